"""How many steps a budget pays for, where steps cost more from some step on."""

from pathlib import Path

import pytest

from hfgen.data import load_dataset
from hfgen.training.autoencoder_kl import AutoencoderKLSettings, build
from hfgen.training.budget import affordable


@pytest.mark.parametrize("start", [None, 0, 7, 1000])
@pytest.mark.parametrize("seconds", [0.0, 1.0, 9.9, 100.0, 123.4])
def test_the_steps_of_a_budget_are_the_most_whose_times_add_up_to_less(start: int | None, seconds: float) -> None:
    def first(steps: int) -> int:
        return steps // 2 if start is None else start

    def taken(steps: int) -> float:
        return sum(1.0 if step < first(steps) else 2.5 for step in range(steps))

    expected = max([1, *(steps for steps in range(150) if taken(steps) <= seconds)])
    assert affordable(seconds, [1.0, 2.5], lambda steps: (0, first(steps))) == expected
    assert affordable(-3.0, [1.0], lambda steps: (0,)) == 1
    assert affordable(seconds, [2.0], lambda steps: (0,)) == max(1, int(seconds / 2))


def test_an_autoencoder_with_a_discriminator_has_two_stages(tmp_path: Path) -> None:
    digits = load_dataset("digits")
    for weight, start, stages in ((0.5, None, (0, 50)), (0.5, 8, (0, 8)), (0.0, None, (0,)), (None, None, (0,))):
        settings = AutoencoderKLSettings(
            output_dir=tmp_path, budget="3m", adversarial_weight=weight, adversarial_start=start
        )
        assert build(settings, digits).stages(100) == stages
