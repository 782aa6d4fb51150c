"""The orthogonal penalty against its equation, and the filters that it is taken of."""

import pytest
import torch
from torch import nn

from hfgen.losses.orthogonal import filters, orthogonal_penalty
from hfgen.models.spectral import spectral_norm


def test_the_penalty_is_the_sum_of_squared_inner_products_of_different_filters() -> None:
    a, b = torch.randn(4, 6), torch.randn(3, 2)
    expected = sum(float(W[i] @ W[j]) ** 2 for W in (a, b) for i in range(len(W)) for j in range(len(W)) if i != j)
    assert float(orthogonal_penalty([a, b])) == pytest.approx(expected, rel=1e-5)


def test_orthogonal_filters_of_any_length_have_no_penalty_and_gradients_lead_to_them() -> None:
    Q = torch.linalg.qr(torch.randn(6, 6))[0]
    assert float(orthogonal_penalty([torch.arange(1.0, 7.0)[:, None] * Q])) < 1e-8
    W = torch.nn.Parameter(torch.randn(3, 8))
    optimizer = torch.optim.Adam([W], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        orthogonal_penalty([W]).backward()
        optimizer.step()
    assert orthogonal_penalty([W]).item() < 1e-4 and W.norm(dim=1).min() > 0.3


def test_filters_are_the_trained_weights_of_linear_layers_and_convolutions_with_filters_as_rows() -> None:
    plain, up = nn.Linear(3, 2), nn.ConvTranspose2d(4, 5, 2)
    normalised = spectral_norm(nn.Conv2d(2, 6, 3))
    net = nn.Sequential(plain, nn.Embedding(7, 3), nn.BatchNorm2d(4), up, normalised)
    found = list(filters(net))
    assert [tuple(W.shape) for W in found] == [(2, 3), (5, 4 * 4), (6, 2 * 9)]
    assert torch.equal(found[0], plain.weight) and torch.equal(found[1][3], up.weight[:, 3].flatten())
    raw = normalised.parametrizations.weight.original
    assert torch.equal(found[2], raw.flatten(1)) and not torch.equal(raw, normalised.weight)
