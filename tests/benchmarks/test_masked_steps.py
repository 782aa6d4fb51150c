"""The benchmark of masked generation's steps, short: a trained model's samples, in each number of steps."""

from pathlib import Path

import pytest

from tests.benchmarks import masked_steps


@pytest.mark.slow
def test_a_row_for_each_number_of_steps_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--seeds", "0", "--steps", "1", "8", "--temperatures", "4.5", "inf", "--keep", str(tmp_path)]
    fields = ["--max-steps", "3", "--width", "16", "--layers", "1", "--preview-images", "0", "--threads", "1"]
    monkeypatch.setattr("sys.argv", ["x", *words, "--", *fields])
    masked_steps.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[:2] for line in lines[1:]] == [
        ["| 4.5", "1"], ["| 4.5", "8"], ["| inf", "1"], ["| inf", "8"]
    ]
    assert lines[0] == "| temperature | steps | seeds | frechet_ratio | precision | nearest_ratio | seconds |"
