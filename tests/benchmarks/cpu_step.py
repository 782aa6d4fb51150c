"""What two choices for the CPU save: short attention in bfloat16 by two products, and memory that the process keeps.

    python -m tests.benchmarks.cpu_step attention [--threads 2]
    python -m tests.benchmarks.cpu_step memory [--side 28]

`attention`: milliseconds of a call forward and backward in bfloat16, 64 x 2 heads of 32 channels, by torch's fused
kernel and by `short_attention`, medians. `memory`: page faults and CPU seconds of a training step, and the peak of
memory, of a small U-Net, batch 64, bfloat16, one thread, in a process that keeps its memory (`hfgen.memory`) and in one
that does not.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hfgen import UNet
from hfgen.memory import keep_memory
from hfgen.models.attention import short_attention

LENGTHS = ((13, 13), (64, 13), (64, 64), (256, 256))
"""Queries and keys of a call."""


def milliseconds(attend: Callable[[Tensor, Tensor, Tensor], Tensor], queries: int, keys: int, calls: int = 20) -> float:
    """Return the median milliseconds of a call forward and backward, laid out as a U-Net's projections leave it."""
    q, k, v = (
        torch.randn(64, n, 2, 32, dtype=torch.bfloat16).transpose(1, 2).requires_grad_() for n in (queries, keys, keys)
    )
    found = []
    for _ in range(calls):
        before = time.perf_counter()
        attend(q, k, v).sum().backward()
        found.append(1000 * (time.perf_counter() - before))
    return statistics.median(found)


def step_cost(keep: bool, side: int, steps: int = 8) -> dict[str, float]:
    """Return page faults, user and system seconds of a training step, and the peak of this process in MB."""
    if keep and not keep_memory():
        raise SystemExit("this system's memory cannot be told to stay: it has no mallopt")
    torch.set_num_threads(1)
    net = UNet(
        sample_size=side, in_channels=1, out_channels=1, block_out_channels=(32, 64), norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4, fused=True)
    x, t = torch.randn(64, 1, side, side), torch.randint(0, 1000, (64,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            y = net(x, t).sample
        y.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    step()
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(steps):
        step()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "faults": (after.ru_minflt - before.ru_minflt) / steps,
        "user": (after.ru_utime - before.ru_utime) / steps,
        "system": (after.ru_stime - before.ru_stime) / steps,
        "peak MB": after.ru_maxrss / 1024,
    }


def main() -> None:
    """Print one of the two comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("attention", "memory", "kept", "left"), help="The last two: one side alone.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", type=int, default=28)
    options = parser.parse_args()
    if options.what == "attention":
        torch.set_num_threads(options.threads)
        for queries, keys in LENGTHS:
            fused = milliseconds(F.scaled_dot_product_attention, queries, keys)
            short = milliseconds(short_attention, queries, keys)
            print(f"{queries} queries, {keys} keys: fused {fused:.2f} ms, two products {short:.2f} ms")
    elif options.what == "memory":
        for side in ("left", "kept"):                   # a process each, for what malloc was told stays
            words = [sys.executable, "-m", "tests.benchmarks.cpu_step", side, "--side", str(options.side)]
            print(side, subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip())
    else:
        print(json.dumps({k: round(v, 4) for k, v in step_cost(options.what == "kept", options.side).items()}))


if __name__ == "__main__":
    main()
