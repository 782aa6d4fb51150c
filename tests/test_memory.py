"""The memory of freed tensors is kept where glibc can be told so."""

import json
import platform
import subprocess
import sys

import pytest

from hfgen import memory

COUNT = """
import json, resource, sys, torch
from hfgen.memory import keep_memory
told = keep_memory() if sys.argv[1] == "keep" else None
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        x = torch.zeros(10_000_000) + 1                         # 40 MB each
        del x
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(json.dumps([told, faults()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is of glibc")
def test_tensors_take_the_pages_of_those_before() -> None:
    found = {}
    for word in ("keep", "leave"):
        done = subprocess.run([sys.executable, "-c", COUNT, word], capture_output=True, text=True, check=True)
        found[word] = json.loads(done.stdout)
    assert found["keep"][0] is True
    assert found["keep"][1] < 1000 < found["leave"][1]


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_memory() is False


def test_a_library_without_mallopt_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert memory.keep_memory() is False
