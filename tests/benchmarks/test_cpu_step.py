"""The benchmark of a step on the CPU, short: both comparisons are of what they say."""

import json
import platform

import pytest
import torch
import torch.nn.functional as F

from hfgen.models.attention import short_attention
from tests.benchmarks import cpu_step


def test_both_ways_of_attention_are_timed_with_the_lengths_asked_for() -> None:
    seen: list[tuple[int, ...]] = []

    def spied(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.append((q.shape[2], k.shape[2], v.shape[2]))
        assert q.dtype == torch.bfloat16 and q.requires_grad
        return short_attention(q, k, v)

    assert cpu_step.milliseconds(spied, 9, 5, calls=3) > 0 and seen == [(9, 5, 5)] * 3
    assert cpu_step.milliseconds(F.scaled_dot_product_attention, 9, 5, calls=1) > 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is of glibc")
def test_the_two_processes_differ_in_what_they_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["x", "memory", "--side", "16"])
    cpu_step.main()
    left, kept = (json.loads(line.split(" ", 1)[1]) for line in capsys.readouterr().out.splitlines())
    assert set(left) == set(kept) == {"faults", "user", "system", "peak MB"}
    assert kept["faults"] < left["faults"] / 4
