"""The use of codes: shares and perplexities that are known."""

import math

import pytest
import torch

from hfgen.errors import ConfigError
from hfgen.metrics.codes import code_use


def test_codes_that_occur_equally_often_have_their_number_as_perplexity() -> None:
    assert code_use(torch.tensor([3, 3, 0, 3, 0])) == (0.6, pytest.approx(3.0))
    assert code_use(torch.tensor([0, 7])) == (0.5, 1.0)


def test_the_perplexity_is_the_exponential_of_the_entropy_in_nats() -> None:
    expected = math.exp(-(0.5 * math.log(0.5) + 0.25 * math.log(0.25) * 2))
    assert code_use(torch.tensor([2, 1, 1]))[1] == pytest.approx(expected, rel=1e-12)


def test_counts_without_any_code_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"counts must be numbers \(K,\), not all 0, got \[4\]"):
        code_use(torch.zeros(4))
