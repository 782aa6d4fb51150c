"""Classifier-free guidance: closed forms, one call of the network, interval, rescale, and what is refused."""

from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.pipelines.guidance import check_guidance, guided, rescaled, scale_at


class Linear:
    """A network whose prediction is x times its condition, and that counts its calls."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, x: Tensor, label: Tensor, text: Tensor | None = None) -> Tensor:
        self.rows.append(len(x))
        return x * label[:, None] + (0 if text is None else text)


X = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
GIVEN: dict[str, Tensor | None] = {"label": torch.tensor([5.0, 6.0]), "text": None}
NULL: dict[str, Tensor | None] = {"label": torch.tensor([2.0, 2.0]), "text": None}


def test_guidance_is_linear_in_the_scale_and_one_call_of_twice_the_batch() -> None:
    net = Linear()
    for scale, factors in ((0.0, [2.0, 2.0]), (2.0, [8.0, 10.0]), (7.5, [2 + 7.5 * 3, 2 + 7.5 * 4])):
        expected = X * torch.tensor(factors)[:, None]
        torch.testing.assert_close(guided(net, X, GIVEN, NULL, scale), expected, atol=1e-5, rtol=0)
    assert net.rows == [4, 4, 4]


def test_a_scale_of_one_is_off_and_costs_nothing() -> None:
    net = Linear()
    assert torch.equal(guided(net, X, GIVEN, NULL, 1.0, rescale=0.7), X * torch.tensor([[5.0], [6.0]]))
    assert net.rows == [2]


def test_all_conditions_take_part() -> None:
    given, null = {**GIVEN, "text": torch.ones(2, 2)}, {**NULL, "text": torch.zeros(2, 2)}
    found = guided(Linear(), X, given, null, 3.0)
    torch.testing.assert_close(found, X * torch.tensor([[11.0], [14.0]]) + 3.0, atol=1e-5, rtol=0)


@pytest.mark.parametrize("phi", [0.0, 0.3, 1.0])
def test_rescaling_is_that_of_stock_pipelines(phi: float) -> None:
    mixed, c = torch.randn(3, 4, 5, 6), 2 * torch.randn(3, 4, 5, 6)
    torch.testing.assert_close(rescaled(mixed, c, phi), rescale_noise_cfg(mixed, c, phi), atol=1e-5, rtol=0)
    if phi == 1:
        torch.testing.assert_close(rescaled(mixed, c, phi).std((1, 2, 3)), c.std((1, 2, 3)), atol=1e-5, rtol=0)


def test_a_variance_behind_the_channels_of_x_is_that_of_the_condition() -> None:
    def predict(x: Tensor, label: Tensor) -> Tensor:
        return torch.cat([x * label[:, None], -label[:, None].expand(-1, 2)], 1)

    given, null = {"label": GIVEN["label"]}, {"label": NULL["label"]}
    expected = torch.cat([X * torch.tensor([[8.0], [10.0]]), torch.tensor([[-5.0, -5.0], [-6.0, -6.0]])], 1)
    torch.testing.assert_close(guided(predict, X, given, null, 2.0), expected, atol=1e-5, rtol=0)


def test_outside_its_interval_guidance_is_off() -> None:
    scales = [scale_at(4.0, (0.2, 0.5), t, 11) for t in range(11)]
    assert scales == [1.0, 1.0, 4.0, 4.0, 4.0, 4.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert scale_at(4.0, (0.0, 1.0), 0, 1) == 4.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((-1.0, (0, 1), 0.0), r"guidance_scale must be a number in \[0, 1000\], got -1.0"),
        ((float("nan"), (0, 1), 0.0), "guidance_scale"),
        ((2.0, (0, 1), 1.1), r"guidance_rescale must be a number in \[0, 1\], got 1.1"),
        ((2.0, (0.5, 0.4), 0.0), "guidance_interval must be"),
        ((2.0, 0.5, 0.0), "guidance_interval must be"),
        ((2.0, ("a", "b"), 0.0), "guidance_interval must be"),
        ((2.0, (True, True), 0.0), r"guidance_interval must be .* got \(True, True\)"),
    ],
)
def test_wrong_values_are_refused_by_name(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_guidance(*values)
    with pytest.raises(ConfigTypeError, match="guidance_scale"):
        check_guidance("2", (0, 1), 0.0)
    check_guidance(7.5, (0.0, 1.0), 0.5)
