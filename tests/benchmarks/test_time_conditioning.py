"""The benchmark of time conditioning, short: a row for each kind of conditioning."""

from pathlib import Path

import pytest

from tests.benchmarks import time_conditioning


@pytest.mark.slow
def test_a_row_for_each_kind_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = ["--max-steps", "3", "--block-out-channels", "8", "16", "--layers-per-block", "1", "--threads", "1"]
    monkeypatch.setattr("sys.argv", ["x", "--seeds", "0", "--keep", str(tmp_path), "--", *fields])
    monkeypatch.setattr(time_conditioning, "FEATURES", ("fourier",))
    time_conditioning.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[:2] for line in lines[1:]] == [
        ["| fourier", "default"], ["| fourier", "scale_shift"]
    ]
