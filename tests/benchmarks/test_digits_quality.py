"""The promise of the README's first command, on one seed (three minutes and more): pytest -m slow."""

from pathlib import Path

import pytest

from hfgen.data import load_dataset
from tests.benchmarks.digits_quality import generate, measure
from tests.benchmarks.harness import train


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_digits_of_the_first_command_are_as_close_to_real_ones_as_promised(tmp_path: Path) -> None:
    train("ddpm", tmp_path / "digits", seed=0, fields=["--dataset", "digits"])
    real = load_dataset("digits").tensor().flatten(1)
    found = measure(real, generate(tmp_path / "digits" / "model", len(real), seed=1000, num_steps=100))
    assert found["frechet_ratio"] <= 0.7, found
    assert found["precision"] >= found["precision_floor"] - 0.1, found
    assert found["nearest_ratio"] >= 0.8, found


def test_the_measure_tells_real_digits_from_a_fitted_gaussian_and_from_copies() -> None:
    """Neither number alone proves anything: a Gaussian has the moments, copies have the neighbours."""
    import torch

    real = load_dataset("digits").tensor().flatten(1)
    mean, cov = real.double().mean(0), real.double().T.cov()
    gaussian = torch.distributions.MultivariateNormal(mean, cov + 1e-6 * torch.eye(64)).sample((len(real),)).float()
    found = measure(real, gaussian)
    assert found["frechet_ratio"] < 0.5 and found["precision"] < found["precision_floor"] - 0.3
    copies = measure(real, real + 0.01 * torch.randn_like(real))
    assert copies["frechet_ratio"] < 0.1 and copies["nearest_ratio"] < 0.1
    halves = measure(real, real[torch.randperm(len(real))])
    assert halves["precision"] == 1.0 and 0.9 < halves["precision_floor"] <= 1.0
