"""The penalty of mean activities against torch's divergence of Bernoulli distributions."""

import pytest
import torch

from hfgen.losses.sparsity import kl_to_rate


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_the_penalty_is_the_divergence_of_bernoulli_distributions_and_zero_at_the_rate(rate):
    mean = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    target = torch.distributions.Bernoulli(torch.full_like(mean, rate))
    expected = torch.distributions.kl_divergence(target, torch.distributions.Bernoulli(mean))
    torch.testing.assert_close(kl_to_rate(mean, rate), expected, atol=1e-12, rtol=0)
    assert float(kl_to_rate(torch.tensor(rate), rate)) == pytest.approx(0, abs=1e-7)


def test_units_that_are_always_off_or_on_have_a_finite_penalty():
    ends = kl_to_rate(torch.tensor([0.0, 1.0]), 0.05)
    assert ends.isfinite().all() and (ends > 0.45).all()
