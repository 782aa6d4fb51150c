"""For every test: quiet libraries, no network, one random state, and the folder of real data beside a checkout."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")                      # workers share the cores

import pytest
import torch

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Start every test from the same global random state, and undo what runs in this process do to torch's threads."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture
def shared_data() -> Path:
    """Return the folder of real data (MNIST, CIFAR-10) beside the checkout; skip where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no folder of real data at {SHARED_DATA}")
    return SHARED_DATA
