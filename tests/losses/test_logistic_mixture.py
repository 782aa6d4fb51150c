"""Mixtures of discretised logistics against sums over components of differences of sigmoids, and against all levels."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from hfgen.losses.logistic_mixture import LogisticMixture

LEVELS, CHANNELS, COMPONENTS = 6, 3, 4


def made(seed: int = 0, channels: int = CHANNELS, levels: int = LEVELS) -> tuple[LogisticMixture, Tensor]:
    """Return a mixture for two pixels, and its raw parameters."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(2, COMPONENTS * (1 + 2 * channels + channels**2), generator=generator)
    return LogisticMixture.of(raw, channels, levels), raw


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def by_hand(raw: list[float], x: list[float], channels: int, levels: int) -> float:
    """Return P(x_1, ..., x_C), with components and channels one after the other (Salimans et al. 2017, eq. 2, 3)."""
    size = 1 + 2 * channels + channels**2
    components = [raw[m * size : (m + 1) * size] for m in range(COMPONENTS)]
    total = sum(math.exp(one[0]) for one in components)
    half, P = 1 / (levels - 1), 0.0
    for one in components:
        product = math.exp(one[0]) / total
        for c in range(channels):
            slopes = one[1 + 2 * channels + c * channels :][:channels]
            mu = one[1 + c] + sum(math.tanh(slopes[d]) * x[d] for d in range(c))
            s = math.exp(max(-7.0, one[1 + channels + c]))
            high = 1.0 if x[c] > 1 - half else sigmoid((x[c] - mu + half) / s)
            low = 0.0 if x[c] < half - 1 else sigmoid((x[c] - mu - half) / s)
            product *= high - low
        P += product
    return P


def test_log_prob_is_the_sum_over_components_of_products_of_differences_of_sigmoids() -> None:
    mixture, raw = made()
    values = torch.linspace(-1, 1, LEVELS)
    for levels in ([0, 3, 5], [5, 0, 2], [1, 1, 4]):
        x = values[torch.tensor([levels, levels])]
        found = mixture.log_prob(x).sum(1).exp()
        for row in range(2):
            expected = by_hand(raw[row].tolist(), x[row].tolist(), CHANNELS, LEVELS)
            assert float(found[row]) == pytest.approx(expected, rel=1e-4)


def test_the_probabilities_of_all_values_of_a_pixel_sum_to_one() -> None:
    mixture, _ = made(1)
    values = torch.linspace(-1, 1, LEVELS)
    total = torch.zeros(2, dtype=torch.float64)
    for levels in itertools.product(range(LEVELS), repeat=CHANNELS):
        total += mixture.log_prob(values[list(levels)].expand(2, -1)).sum(1).double().exp()
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-6, rtol=0)


@pytest.mark.parametrize("levels", [2, 6, 256])
def test_the_probabilities_of_all_levels_of_a_channel_sum_to_one_and_hold_the_log_prob(levels: int) -> None:
    mixture, _ = made(2, levels=levels)
    entries = torch.tensor([[0, levels - 1, levels // 2], [levels // 3, 0, levels - 1]])
    x = entries * (2 / (levels - 1)) - 1
    log_p = mixture.log_prob(x)
    for c in range(CHANNELS):
        of_levels = mixture.log_probs_of_levels(x, c)
        total = of_levels.double().exp().sum(1)
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-6, rtol=0)
        torch.testing.assert_close(of_levels.gather(1, entries[:, c : c + 1])[:, 0], log_p[:, c], atol=1e-4, rtol=0)


def test_the_earlier_channels_alone_matter() -> None:
    mixture, _ = made(3)
    x, other = torch.zeros(2, CHANNELS), torch.zeros(2, CHANNELS)
    x[:, 1:], other[:, 1:] = 0.6, -1.0
    torch.testing.assert_close(mixture.log_probs_of_levels(x, 1), mixture.log_probs_of_levels(other, 1))
    assert (mixture.log_probs_of_levels(x, 2) - mixture.log_probs_of_levels(other, 2)).abs().max() > 1e-3


def test_extreme_parameters_have_finite_log_probabilities_and_gradients() -> None:
    raw = (1e3 * made(4)[1]).requires_grad_()
    x = torch.linspace(-1, 1, 2 * CHANNELS).view(2, CHANNELS)
    log_p = LogisticMixture.of(raw, CHANNELS, 256).log_prob(x)
    log_p.sum().backward()
    assert raw.grad is not None
    assert log_p.isfinite().all() and raw.grad.isfinite().all()
