"""The discriminator of BEGAN: an autoencoder whose output is its negated error."""

from typing import Any

import pytest
import torch
from torch import nn

from hfgen import BEGANDiscriminator
from hfgen.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "shape"),
    [({"resolution": 16, "channels": 3}, (3, 16, 16)), ({"resolution": (8, 32), "channels": 1}, (1, 8, 32)),
     ({"dim": 2}, (2,)), ({"dim": 2, "layers": 0}, (2,))],
    ids=str,
)  # fmt: skip
def test_the_output_is_minus_the_mean_absolute_error_of_the_reconstruction(fields: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    D = BEGANDiscriminator(**fields, width=4, code_dim=3, base_size=4)
    x = torch.randn(5, *shape)
    again, logits = D.reconstruct(x), D(x).logits
    assert again.shape == x.shape and logits.shape == (5,) and (logits < 0).all()
    expected = torch.stack([-(a - b).abs().mean() for a, b in zip(x, again, strict=True)])
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)
    assert D.encoder(x).shape == (5, 3)                                   # all that the decoder knows of x
    torch.testing.assert_close(D(x[:2], return_dict=False)[0], logits[:2], atol=1e-6, rtol=0)


def test_the_layers_are_those_of_the_papers_figure_1() -> None:
    D = BEGANDiscriminator(32, 3, width=8, code_dim=5, base_size=8)
    convs = [m for m in D.encoder if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convs] == [8, 8, 16, 16, 24, 24] and max(m.kernel_size for m in convs) == (3, 3)
    assert [m.stride[0] for m in convs] == [1, 1, 2, 1, 2, 1]              # subsampled by strides
    up = [m for m in D.decoder if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in up] == [8] * 6 + [3] and sum(isinstance(m, nn.Upsample) for m in D.decoder) == 2
    kinds = {type(m) for m in D.modules() if not list(m.parameters()) and not list(m.children())}
    assert kinds == {nn.ELU, nn.Flatten, nn.Unflatten, nn.Upsample}


@pytest.mark.parametrize(
    ("field", "value"),
    [("width", 0), ("code_dim", -1), ("extra_layers", -1), ("resolution", 42), ("dim", 0), ("base_size", 0)],
)
def test_a_bad_setting_is_an_error_that_names_the_field(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        BEGANDiscriminator(**{field: value})


def test_other_inputs_are_errors() -> None:
    D = BEGANDiscriminator(8, 1, width=4, base_size=4)
    with pytest.raises(ConfigError, match=r"x must have shape \(B, 1, 8, 8\), got \(2, 1, 8, 16\)"):
        D(torch.zeros(2, 1, 8, 16))
    with pytest.raises(ConfigError, match="class_labels must be None"):
        D(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long))


def test_it_learns_to_reconstruct_what_it_is_shown() -> None:
    torch.manual_seed(0)
    D = BEGANDiscriminator(dim=2, width=32, layers=2, code_dim=1)
    angle = torch.rand(256) * 3
    x = torch.stack([angle.cos(), angle.sin()], 1)                        # an arc, which one number describes
    optimizer = torch.optim.Adam(D.parameters(), lr=3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        (-D(x).logits.mean()).backward()
        optimizer.step()
    assert D(x).logits.mean().detach() > -0.05 and D(x * 0.3).logits.mean().detach() < -0.2
