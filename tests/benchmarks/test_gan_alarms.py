"""The benchmark of the guard on two short runs: what it reads out of a log is what the run said."""

from pathlib import Path

import pytest
import torch

from tests.benchmarks.gan_alarms import alarms, class_variance, health
from tests.benchmarks.in_process import train

SHORT = "--dataset digits --threads 1 --max-steps 520 --width 8 --batch-size 16 --save-every 0 --sample-every 0".split()


@pytest.mark.parametrize(("fields", "said"), [("", False), ("--learning-rate 1e-9", True)], ids=["healthy", "frozen"])
def test_the_log_of_a_run_gives_the_warnings_that_the_run_gave(
    fields: str, said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("gan", tmp_path / "run", 0, [*SHORT, *fields.split()])
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: step")]
    found = alarms(tmp_path / "run")
    assert len(found) == len(warnings) == said
    for (step, text), line in zip(found, warnings, strict=True):
        assert line.startswith(f"warning: step {step}: {text}") and "collapsed" in text
    assert (health(tmp_path / "run")["variance"] < 0.1) == said


def test_the_variance_within_classes_is_that_of_the_noise_around_their_means() -> None:
    labels = torch.arange(20_000) % 4
    noise = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0))
    assert float(class_variance(10 * labels[:, None] + 2 * noise, labels)) == pytest.approx(4, rel=0.03)
