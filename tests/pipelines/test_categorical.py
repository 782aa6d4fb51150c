"""Tests of draws of entries from their distributions."""

import pytest
import torch

from hfgen.errors import ConfigError
from hfgen.pipelines.categorical import Categorical, uniforms

LOGITS = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.7, 0.1, 0.1, 0.1]]).log()


def test_the_temperature_divides_the_logits() -> None:
    p = Categorical(temperature=0.5).probabilities(LOGITS)
    squares = torch.tensor([0.01, 0.16, 0.04, 0.09], dtype=torch.float64)
    assert torch.allclose(p[0], squares / squares.sum(), atol=1e-7)


def test_top_k_keeps_the_likeliest_values() -> None:
    p = Categorical(top_k=2).probabilities(LOGITS)[0]
    assert torch.allclose(p, torch.tensor([0, 4 / 7, 0, 3 / 7], dtype=torch.float64), atol=1e-7)


def test_the_nucleus_is_the_smallest_set_whose_probabilities_reach_p() -> None:
    p = Categorical(top_p=0.65).probabilities(LOGITS)
    assert (p > 0).tolist() == [[False, True, False, True], [True, False, False, False]]
    assert torch.allclose(p.sum(1), torch.ones(2, dtype=torch.float64))
    assert Categorical(top_p=1.0).probabilities(LOGITS).gt(0).all()


def test_draws_invert_the_distribution_function() -> None:
    u = torch.tensor([0.0, 0.09, 0.11, 0.49, 0.51, 0.69, 0.71, 0.999999], dtype=torch.float64)
    values = Categorical().draw(LOGITS[:1].expand(8, 4), u)
    assert values.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_value_of_probability_zero_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(3, 4)
    u = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert Categorical().draw(logits, u).tolist() == [1, 2, 2]


def test_the_frequencies_of_draws_are_the_probabilities() -> None:
    u = uniforms(20_000, 1, torch.Generator().manual_seed(0))[:, 0]
    values = Categorical(top_k=3).draw(LOGITS[:1].expand(20_000, 4), u)
    counts = torch.bincount(values, minlength=4) / 20_000
    expected = torch.tensor([0, 0.4, 0.2, 0.3]) / 0.9
    assert torch.allclose(counts, expected, atol=0.015)


def test_the_uniforms_of_a_list_of_generators_do_not_depend_on_the_batch() -> None:
    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(3)]

    together = uniforms(3, 5, generators())
    alone = uniforms(1, 5, generators()[2:])
    assert torch.equal(together[2:], alone)


@pytest.mark.parametrize("arguments", [{"temperature": 0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_impossible_choices_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        Categorical(**arguments)                                                        # type: ignore[arg-type]
