"""How often the 95 % intervals of the distances, precision, recall, density and coverage hold the true value.

    python -m tests.benchmarks.interval_coverage --repeats 200

Both distributions are known. The true value of a metric at counts (N, M) is its mean over `--truth` draws of N real and
M generated items, none of which an interval is computed from: intervals are to hold the expectation at those counts,
not the limit for infinitely many. A Markdown row for each metric and pair of counts: the true value, the standard
deviation of single values, the share of intervals that hold it, those wholly above and wholly below it, and the
intervals' mean width over 3.92 standard deviations.
"""

import argparse
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hfgen.metrics.bootstrap import Estimate, estimates
from hfgen.metrics.distances import frechet_distance, kid
from hfgen.metrics.prdc import prdc

Draw = Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]
"""What draws N real and M generated items, (N, D) and (M, D)."""

COUNTS = ((300, 60), (500, 200), (300, 100), (500, 500))
METRICS = ("recall", "precision", "density", "coverage", "frechet", "kid")


def narrow(n: int, m: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return items of N(0, I) and of N(0.3, 0.8^2 I) in 8 dimensions."""
    return torch.randn(n, 8, generator=generator), torch.randn(m, 8, generator=generator) * 0.8 + 0.3


def near(n: int, m: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return items of N(0, I) and of N(0.2, 0.9^2 I) in 16 dimensions."""
    return torch.randn(n, 16, generator=generator), torch.randn(m, 16, generator=generator) * 0.9 + 0.2


def modes(n: int, m: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return points of eight Gaussians on a circle, and of six of them, narrower and in unequal shares."""
    angles = torch.arange(8) * (math.pi / 4)
    centres = torch.stack([angles.cos(), angles.sin()], 1) * 2
    which = torch.randint(8, (n,), generator=generator)
    chosen = torch.multinomial(torch.tensor([4.0, 3, 2, 1, 1, 1, 0, 0]), m, True, generator=generator)
    real = centres[which] + 0.3 * torch.randn(n, 2, generator=generator)
    return real, centres[chosen] + 0.2 * torch.randn(m, 2, generator=generator)


DISTRIBUTIONS: dict[str, Draw] = {"narrow": narrow, "near": near, "modes": modes}


class Row(NamedTuple):
    """How the intervals of a metric hold its true value `mean`; `above`, `below`: shares of intervals that miss it."""

    mean: float
    deviation: float
    covered: float
    above: float
    below: float
    width: float


def true_values(draw: Draw, n: int, m: int, draws: int, seed: int) -> dict[str, Tensor]:
    """Return the values of each metric in `draws` draws, (draws,) float64."""
    generator, rows = torch.Generator().manual_seed(seed), []
    for _ in range(draws):
        real, generated = draw(n, m, generator)
        rows.append(prdc(real, generated)._asdict() | {
            "frechet": frechet_distance(real, generated), "kid": kid(real, generated),
        })  # fmt: skip
    return {name: torch.tensor([row[name] for row in rows]).double() for name in METRICS}


def intervals(draw: Draw, n: int, m: int, repeats: int, resamples: int, seed: int) -> list[dict[str, Estimate]]:
    """Return the estimates of `repeats` draws."""
    generator = torch.Generator().manual_seed(seed)
    return [estimates(*draw(n, m, generator), 5, resamples, 2, i) for i in range(repeats)]


def measure(draw: Draw, n: int, m: int, repeats: int, truth: int, resamples: int, seed: int = 0) -> dict[str, Row]:
    """Return how the intervals of each metric hold its mean over other draws of `n` real and `m` generated items."""
    values = true_values(draw, n, m, truth, 2 * seed)
    found = intervals(draw, n, m, repeats, resamples, 2 * seed + 1)
    rows = {}
    for name in METRICS:
        mean, deviation = float(values[name].mean()), float(values[name].std())
        above = sum(one[name].low > mean for one in found) / repeats
        below = sum(one[name].high < mean for one in found) / repeats
        width = sum(one[name].high - one[name].low for one in found) / repeats / (3.92 * deviation or math.nan)
        rows[name] = Row(mean, deviation, 1 - above - below, above, below, width)
    return rows


def main() -> None:
    """Print a table in Markdown, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200, help="Intervals of each metric and pair of counts.")
    parser.add_argument("--truth", type=int, default=1000, help="Draws whose mean is the true value.")
    parser.add_argument("--resamples", type=int, default=300, help="Of each bootstrap.")
    parser.add_argument("--distributions", nargs="+", default=list(DISTRIBUTIONS), choices=list(DISTRIBUTIONS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| distributions | real, generated | metric | true value | deviation | covered | above | below | width |")
    print("|" + "---|" * 9)
    for name in options.distributions:
        for n, m in COUNTS:
            found = measure(DISTRIBUTIONS[name], n, m, options.repeats, options.truth, options.resamples)
            for metric, row in found.items():
                shares = " | ".join(f"{100 * share:.1f} %" for share in row[2:5])
                numbers = f"{row.mean:.4g} | {row.deviation:.2g} | {shares} | {row.width:.2f}"
                print(f"| {name} | {n}, {m} | {metric} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
