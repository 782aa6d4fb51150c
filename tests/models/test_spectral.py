"""Spectral normalisation that can be pickled, against torch's own: the same bits, keys and checkpoints."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from hfgen.models.spectral import spectral_norm

LAYERS = [
    (lambda: nn.Linear(6, 5), (4, 6)),
    (lambda: nn.Conv2d(3, 4, 3), (2, 3, 6, 6)),
    (lambda: nn.ConvTranspose2d(3, 4, 3, bias=False), (2, 3, 6, 6)),
]


@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "convolution", "transposed"])
def test_outputs_estimates_and_checkpoints_are_those_of_torchs_normalisation(make: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    theirs = parametrizations.spectral_norm(make())
    torch.manual_seed(0)
    ours = spectral_norm(make())
    x = torch.randn(shape)
    for layer in (theirs, ours):
        for _ in range(3):
            layer(x).square().mean().backward()
    assert torch.equal(ours(x), theirs(x))
    state = theirs.state_dict()
    assert state.keys() == ours.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in ours.state_dict().items())
    gradients = zip(ours.parameters(), theirs.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in gradients)
    other = spectral_norm(make())
    other.load_state_dict(state, strict=True)                          # checkpoints of torch's normalisation load
    assert torch.equal(other.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "convolution", "transposed"])
def test_a_layer_is_pickled_copied_and_given_another_weight(make: Any, shape: tuple[int, ...]) -> None:
    layer = spectral_norm(make())
    x = torch.randn(shape)
    layer(x)
    for again in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert type(again) is type(layer) and parametrize.is_parametrized(again, "weight")
        assert torch.equal(again.eval()(x), layer.eval()(x))
    weight = torch.randn_like(layer.weight)
    layer.weight = weight
    assert torch.equal(layer.parametrizations.weight.original, weight)
