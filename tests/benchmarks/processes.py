"""Strong errors of Euler-Maruyama and of Milstein on geometric Brownian motion, against the exact solution.

    python -m tests.benchmarks.processes

dx = mu x dt + sigma x dW from 1 has x_1 = exp(mu - sigma^2 / 2 + sigma W_1); D = sigma^2 x^2 / 2. All numbers of steps
walk along the same paths W. The order is the slope of log error against log step.
"""

import math
from typing import Any

import torch

from hfgen.schedulers.processes import METHODS, Process, one_step
from tests.benchmarks.harness import table

MU, SIGMA, PATHS, FINEST = 0.5, 0.8, 2000, 512


def error(method: str, steps: int, z: torch.Tensor) -> float:
    """Return the mean |x - exact| at t = 1 in a number of steps; `z`: normal draws (finest, paths) of the paths."""
    process = Process(lambda x, t: MU * x, lambda x, t: SIGMA**2 * x**2 / 2)
    draws = z.view(steps, len(z) // steps, -1).sum(1) / math.sqrt(len(z) // steps)
    x = torch.ones_like(z[0])
    for step in range(steps):
        x = one_step(process, x, step / steps, 1 / steps, draws[step], method)
    exact = (MU - SIGMA**2 / 2 + SIGMA * z.sum(0) / math.sqrt(len(z))).exp()
    return float((x - exact).abs().mean())


def main() -> None:
    """Print a table of errors and orders."""
    z = torch.randn(FINEST, PATHS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows: list[dict[str, Any]] = []
    for method in METHODS:
        errors = {steps: error(method, steps, z) for steps in (16, 64, 256, 512)}
        order = math.log2(errors[16] / errors[512]) / math.log2(512 / 16)
        numbers = {f"{steps} steps": value for steps, value in errors.items()}
        rows.append({"seed": 0, "method": method, **numbers, "order": order})
    print(table(rows, ["method"], [*(f"{n} steps" for n in (16, 64, 256, 512)), "order"]))


if __name__ == "__main__":
    main()
