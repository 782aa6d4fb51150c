"""The flow of transformers: its inverse, its determinant by autograd, a density that integrates to 1, the cache."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hfgen.errors import ConfigError
from hfgen.models.tarflow import TarFlow

SMALL: dict[str, Any] = {
    "channels": 2, "sample_size": (4, 6), "patch_size": 2, "width": 16, "blocks": 3, "layers": 1, "heads": 2,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "two layers": {"layers": 2},
    "classes": {"num_class_embeds": 3},
    "classes and text": {"num_class_embeds": 3, "text_width": 4},
}
B = 3


def make(**changes: Any) -> Any:
    """Return a small flow in evaluation mode, whose weights are so large that every patch matters."""
    torch.manual_seed(0)
    net = TarFlow(**{**SMALL, **changes})
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25 * parameter.shape[-1] ** -0.25)
    return net.eval()


def conditions(net: Any, rows: int = B) -> dict[str, Tensor]:
    given = {}
    if net.config["num_class_embeds"]:
        given["class_labels"] = torch.arange(rows) % 3
    if net.config["text_width"]:
        given["encoder_hidden_states"] = torch.randn(rows, 5, 4, generator=torch.Generator().manual_seed(1))
    return given


def images(net: Any, seed: int = 2) -> Tensor:
    return torch.randn(B, *net.shape, generator=torch.Generator().manual_seed(seed)) / 2


def undone(net: Any, z: Tensor, **settings: Any) -> Tensor:
    for block in reversed(range(len(net.flow))):
        z = net.inverse(z, block, **settings)
    return z


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@torch.no_grad()
def test_the_inverse_of_all_blocks_returns_the_images(
    name: str, use_cache: bool, dtype: torch.dtype, atol: float
) -> None:
    net = make(**VARIANTS[name]).to(dtype)
    given, x = conditions(net), images(net).to(dtype)
    if "encoder_hidden_states" in given:
        given["encoder_hidden_states"] = given["encoder_hidden_states"].to(dtype)
    z = net(x, **given).latents
    assert (z - x).abs().max() > 0.3
    torch.testing.assert_close(undone(net, z, use_cache=use_cache, **given), x, atol=atol, rtol=0)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_log_prob_is_the_normal_density_and_the_determinant_of_the_jacobian_by_autograd(patch_size: int) -> None:
    net = make(channels=1, sample_size=2, patch_size=patch_size).double()
    x = images(net)[:1].double()
    J = torch.autograd.functional.jacobian(lambda v: net(v.view(1, 1, 2, 2)).latents.flatten(), x.flatten())
    z = net(x).latents
    by_hand = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum() + torch.linalg.slogdet(J).logabsdet
    assert torch.linalg.slogdet(J).logabsdet.abs() > 0.1
    assert net(x).log_prob.item() == pytest.approx(by_hand.item(), abs=1e-9)


@torch.no_grad()
def test_the_density_of_two_pixels_integrates_to_one() -> None:
    net = make(channels=1, sample_size=(1, 2), patch_size=1).double()
    side = torch.linspace(-20, 20, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side).view(-1, 1, 1, 2)
    total = sum(float(net(part).log_prob.exp().sum()) for part in grid.split(100_000))
    assert total * 0.1**2 == pytest.approx(1, abs=1e-3)


def test_each_block_is_causal_and_every_second_one_takes_the_patches_backwards() -> None:
    net = make()
    for block, backwards in zip(net.flow, (False, True, False), strict=True):
        x = torch.randn(1, 6, 8, requires_grad=True)
        z, _ = block(x, None, None)
        for i in range(6):
            (gradient,) = torch.autograd.grad(z[:, i].square().sum(), x, retain_graph=True)
            size = gradient.abs().sum((0, 2))
            before = range(i + 1, 6) if backwards else range(i)
            assert all(size[j] > 1e-8 for j in (i, *before))
            assert not any(size[j] for j in range(6) if j != i and j not in before)


def test_an_untrained_flow_is_the_identity_of_the_standard_normal() -> None:
    net = TarFlow(**SMALL)
    x = images(net)
    out: Any = net(x)
    assert torch.equal(out.latents, x)
    expected = -x.square().flatten(1).sum(1) / 2 - 24 * math.log(2 * math.pi)
    torch.testing.assert_close(out.log_prob, expected)


@torch.no_grad()
def test_with_the_cache_each_patch_runs_once() -> None:
    net = make()
    run: list[int] = []
    net.flow[0].h[0].register_forward_pre_hook(lambda module, args: run.append(args[0].shape[1]))
    net.inverse(images(net), 0)
    assert run == [1] * 6
    run.clear()
    net.inverse(images(net), 0, use_cache=False)
    assert run == [1, 2, 3, 4, 5, 6]


@torch.no_grad()
def test_guidance_extrapolates_the_coefficients_of_each_patch() -> None:
    net = make(num_class_embeds=3, blocks=1).double()
    z, u, c = images(net).double(), torch.full((B,), 2), torch.arange(B) % 2
    guided = net.inverse(z, 0, torch.cat([u, c]), scale=1.7)
    x, w = net.patches(guided), 1.7
    (alpha_u, mu_u), (alpha_c, mu_c) = (net.flow[0].coefficients(x[:, :-1], labels, None) for labels in (u, c))
    alpha, mu = alpha_u + w * (alpha_c - alpha_u), mu_u + w * (mu_c - mu_u)
    torch.testing.assert_close(net.patches(z), (x - mu) * torch.exp(-alpha), atol=1e-10, rtol=0)
    assert (guided - net.inverse(z, 0, c)).abs().max() > 0.01
    torch.testing.assert_close(net.inverse(z, 0, torch.cat([u, c]), scale=1 + 1e-12), net.inverse(z, 0, c))


@pytest.mark.parametrize(("changes", "field"), [
    ({"channels": 0}, "channels"), ({"sample_size": (4, 5)}, "patch_size"), ({"heads": 3}, "heads"),
    ({"blocks": 0}, "blocks"), ({"dropout": 1.0}, "dropout"), ({"num_class_embeds": 0}, "num_class_embeds"),
    ({"sample_size": 4096, "patch_size": 1}, "patch_size"),
])  # fmt: skip
def test_impossible_settings_are_refused_by_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        TarFlow(**{**SMALL, **changes})


def test_other_shapes_and_missing_conditions_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="sample"):
        make()(torch.zeros(1, 1, 4, 6))
    with pytest.raises(ConfigError, match="class_labels"):
        make(num_class_embeds=3)(torch.zeros(1, 2, 4, 6))
    with pytest.raises(ConfigError, match="encoder_hidden_states"):
        make()(torch.zeros(1, 2, 4, 6), encoder_hidden_states=torch.zeros(1, 2, 3))
