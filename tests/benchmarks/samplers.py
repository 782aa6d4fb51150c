"""Samplers compared: order on a Gaussian, distance to the truth on toys for what it costs, and the price of images.

    python -m tests.benchmarks.samplers gaussian -o order.png
    python -m tests.benchmarks.samplers toys -o toys.png [--datasets ring8 moons swissroll] [--results rows.jsonl]
    python -m tests.benchmarks.samplers cost [--model RUN]

`gaussian`: root mean square error against the exact flow of the probability-flow ODE (deterministic samplers), and
relative error of the variance (stochastic ones), the predictor of the noise being exact: what remains is the solver.
The orders of methods are seen on the way to a little noise, of a chain so fine that no grid is rounded to its
timesteps; on the whole way to x_0 the last step, E[x_0 | x_t] in place of the end of the flow, and the rounding of
timesteps add theirs. `toys`: 2-Wasserstein distance, exact by assignment, of 1,000 samples of a trained model to 1,000
points of the truth, mean of several draws, against the evaluations of the network; then the recommended sampler at 20
evaluations and the best of all at up to 1,000, both with forty draws that nothing was chosen by. `cost`: evaluations
and seconds for 64 images, the median of three after a short run.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import matplotlib
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from hfgen import AutoPipeline, DDPMPipeline, DDPMScheduler, UNet, VPSDEScheduler
from hfgen.data import load_dataset
from hfgen.data.toy import Toy
from hfgen.schedulers.samplers import SAMPLERS, make_sampler
from tests.benchmarks.harness import Row, collect, table, train

matplotlib.use("Agg")
from matplotlib import pyplot

FINE, STOP = 9601, 1200
"""Timesteps of the fine chain, and the one down to which the order of a method is measured: sigma is 0.39 there."""
ORDER_STEPS = (8, 24, 48, 96, 192, 384)
"""Steps of the whole chain whose grids all visit that timestep."""

STOCHASTIC = ("ddpm", "reverse_sde", "predictor_corrector")
STEPS = (5, 10, 20, 40, 80, 160, 320)
TOY_STEPS = (*STEPS, 500, 1000)
RECOMMENDED, FEW, MANY = "dpmpp_2m", 20, 1001
"""The sampler of the comparison, its evaluations, and those of the best; Heun's first step is one more."""

REPEATS = 3
"""Samplings whose median of seconds is the price."""

DRAWS, JUDGED = 5, 40
"""Sets of points whose distance to as many sets of the truth is averaged, in the figure and in the verdict."""

MU, S = torch.tensor([0.8, -0.3], dtype=torch.float64), torch.tensor([0.5, 0.2], dtype=torch.float64)


class Evaluations:
    """Counts how often a network is called."""

    def __init__(self, net: nn.Module) -> None:
        self.count = 0
        net.register_forward_pre_hook(self.add)

    def add(self, *_: Any) -> None:
        """Count one call."""
        self.count += 1


def w2(a: Tensor, b: Tensor) -> float:
    """Return the 2-Wasserstein distance of two sets of N points (N, D): the best of all assignments."""
    cost = torch.cdist(a.double(), b.double()).square().numpy()
    rows, columns = linear_sum_assignment(cost)
    return math.sqrt(cost[rows, columns].mean())


def perfect(gamma: Tensor, sigma: Tensor, x: Tensor) -> Tensor:
    """Return E[eps | x_t] of rows x_t = gamma x_0 + sigma eps, x_0 ~ N(MU, diag S^2)."""
    return sigma * (x - gamma * MU) / (gamma**2 * S**2 + sigma**2)


def flowed(x: Tensor, start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor]) -> Tensor:
    """Return where the probability flow leads rows x, from (gamma, sigma) `start` to `end`."""
    before, after = ((gamma**2 * S**2 + sigma**2).sqrt() for gamma, sigma in (start, end))
    return end[0] * MU + (x - start[0] * MU) * after / before


def order_error(name: str, steps: int, count: int = 2000) -> tuple[int, float]:
    """Return (evaluations, root mean square error) of a deterministic sampler from x_T down to the timestep STOP."""
    trained = DDPMScheduler(num_train_timesteps=FINE, beta_start=1e-5, beta_end=2e-3, clip_sample=False)
    scheduler, last = make_sampler(name, trained), float(STOP)
    if isinstance(scheduler, VPSDEScheduler):                       # its own timesteps are 0 at t_min
        t_min, last = float(scheduler.time_of(last)), 0.0
        scheduler = VPSDEScheduler.from_config(scheduler.config, denoise=False, t_min=t_min)
    scheduler.set_timesteps(steps)

    def level(timestep: float) -> tuple[Tensor, Tensor]:
        if isinstance(scheduler, VPSDEScheduler):
            t = scheduler.time_of(timestep)
            return scheduler.gamma(t), scheduler.sigma(t)
        alpha_bar = scheduler.alphas_cumprod[int(timestep)].double()
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    x = start = torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    visited = [t for t in scheduler.timesteps if float(t) > last]
    for timestep in visited:
        eps = perfect(*level(float(timestep)), x)
        x = scheduler.step(eps, timestep, x).prev_sample
    exact = flowed(start, level(float(visited[0])), level(last))
    return len(visited), float((x - exact).square().mean().sqrt())


def gaussian_error(name: str, steps: int, count: int = 20_000) -> tuple[int, float]:
    """Return (evaluations, error) of a sampler on N(MU, diag S^2) with the exact predictor of the noise."""
    sde = VPSDEScheduler(clip_sample=False)
    scheduler = make_sampler(name, sde)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    x = start = torch.randn(count, 2, dtype=torch.float64, generator=generator)
    choices = {"generator": generator} if name in STOCHASTIC else {}
    for timestep in scheduler.timesteps:
        t = sde.time_of(float(timestep))
        x = scheduler.step(perfect(sde.gamma(t), sde.sigma(t), x), timestep, x, **choices).prev_sample
    if name in STOCHASTIC:
        return len(scheduler.timesteps), float((x.var(0) / S**2 - 1).abs().max())
    t = sde.time_of(float(scheduler.timesteps[0]))                  # where this sampler takes x to be pure noise
    clean = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    exact = flowed(start, (sde.gamma(t), sde.sigma(t)), clean)
    return len(scheduler.timesteps), float((x - exact).square().mean().sqrt())


def gaussian(output: Path) -> None:
    """Draw error against evaluations, on the way to a little noise with lines of the orders, and print the numbers."""
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.5))
    for name in SAMPLERS:
        found = [gaussian_error(name, n) for n in STEPS]
        axes[1 + (name in STOCHASTIC)].loglog(*zip(*found, strict=True), marker="o", label=name)
        print(f"{name:20}", " ".join(f"{error:.2e}" for _, error in found))
        if name not in STOCHASTIC:
            found = [order_error(name, n) for n in ORDER_STEPS]
            axes[0].loglog(*zip(*found, strict=True), marker="o", label=name)
            orders = [math.log(a[1] / b[1]) / math.log(b[0] / a[0]) for a, b in pairwise(found)]
            print(f"{name:20}", "orders down to a little noise:", " ".join(f"{order:.2f}" for order in orders))
    for slope, style in ((1, ":"), (2, "--")):
        line = [0.1 * (ORDER_STEPS[0] / n) ** slope for n in ORDER_STEPS]
        axes[0].loglog(ORDER_STEPS, line, f"k{style}", label=f"order {slope}")
    axes[2].loglog(STEPS, [STEPS[0] / n for n in STEPS], "k:", label="order 1")
    words = "root mean square error"
    axes[0].set(title="probability flow, to a little noise", xlabel="evaluations", ylabel=words)
    axes[1].set(title="probability flow, all the way", xlabel="evaluations", ylabel=f"{words} of x_0")
    axes[2].set(title="reverse SDE", xlabel="evaluations", ylabel="relative error of the variance")
    finish(figure, axes, output)


def sets(dataset: str, draws: int, seed: int) -> list[Tensor]:
    """Return `draws` sets of 1,000 points of the truth; others for another seed."""
    toy = cast(Toy, load_dataset(dataset))
    return [toy.sample(1000, seed=1000 * seed + 1 + i) for i in range(draws)]


def toy_row(job: Row, models: Path) -> Row:
    """Return evaluations, mean distance and its standard error of one sampler at one number of steps on one toy."""
    pipe = cast(Any, AutoPipeline.from_pretrained(models / job["dataset"]))
    pipe.set_progress_bar_config(disable=True)
    counted, draws = Evaluations(pipe.unet), job["draws"]
    generator = torch.Generator().manual_seed(job["seed"])
    choices = {"num_steps": job["steps"], "sampler": job["sampler"]}
    points = pipe(1000 * draws, generator=generator, output_type="pt", **choices).images
    return {"evaluations": counted.count, **distances(points.chunk(draws), sets(job["dataset"], draws, job["seed"]))}


def distances(some: Iterable[Tensor], others: Iterable[Tensor]) -> Row:
    """Return the mean of the distances of pairs of sets, and its standard error."""
    found = [w2(a, b) for a, b in zip(some, others, strict=True)]
    return {"W2": statistics.mean(found), "error": statistics.stdev(found) / len(found) ** 0.5}


def best_of(rows: list[Row]) -> Row:
    """Return the row of the least distance among those of up to MANY evaluations."""
    return min((r for r in rows if r["evaluations"] <= MANY), key=lambda r: float(r["W2"]))


def verdict(few: Row, best: Row) -> str:
    """Return what the recommended sampler at few evaluations and the best of all reach, and the ratio."""
    (one, other) = (f"{r['sampler']} at {r['evaluations']} evaluations {r['W2']:.4f} ± {r['error']:.4f}"
                    for r in (few, best))  # fmt: skip
    return f"{few['dataset']}: {one}, the best, {other}, ratio {few['W2'] / best['W2']:.2f}"


def toys(output: Path, datasets: list[str], max_steps: int, results: Path | None, models: Path) -> None:
    """Train a score model on each toy (once), then draw distance against evaluations."""
    floor = {}
    for name in datasets:
        if not (models / name / "model").exists():
            fields = f"--dataset {name} --max-steps {max_steps} --batch-size 512 --learning-rate 1e-3 --threads 1"
            train("score_sde", models / name, 0, f"{fields} --layers-per-block 4 --save-every 0".split())
        floor[name] = distances(sets(name, JUDGED, 1), sets(name, JUDGED, 2))
    jobs: list[Row] = [
        {"dataset": d, "sampler": s, "steps": n, "draws": DRAWS, "seed": 0}
        for d in datasets for s in SAMPLERS for n in TOY_STEPS
        if n < 1000 or "Multistep" not in SAMPLERS[s].scheduler                # those cannot visit all 1,000 timesteps
    ]  # fmt: skip
    rows = collect(jobs, lambda job: toy_row(job, models), results, 1)
    figure, axes = pyplot.subplots(1, len(datasets), figsize=(5 * len(datasets), 4.5), squeeze=False)
    for axis, dataset in zip(axes[0], datasets, strict=True):
        for name in SAMPLERS:
            mine = sorted((r["evaluations"], r["W2"]) for r in rows if (r["dataset"], r["sampler"]) == (dataset, name))
            axis.loglog(*zip(*mine, strict=True), marker="o", label=name)
        axis.axhline(floor[dataset]["W2"], color="k", linestyle=":", label="truth to itself")
        axis.set(title=dataset, xlabel="evaluations of the network", ylabel="2-Wasserstein distance")
    finish(figure, axes[0], output)
    print(table(rows, ["dataset", "sampler", "steps"], ["evaluations", "W2"]))
    for dataset in datasets:
        best = best_of([row for row in rows if row["dataset"] == dataset])
        again = {"dataset": dataset, "draws": JUDGED, "seed": 1}
        pair: list[Row] = [{**again, "sampler": RECOMMENDED, "steps": FEW},
                           {**again, "sampler": best["sampler"], "steps": best["steps"]}]  # fmt: skip
        found = collect(pair, lambda job: toy_row(job, models), results, 1)
        judged = [next(row for row in found if job.items() <= row.items()) for job in pair]
        truth = floor[dataset]
        print(verdict(*judged) + f"; truth to itself {truth['W2']:.4f} ± {truth['error']:.4f}")


def finish(figure: Any, axes: Any, output: Path) -> None:
    """Write the figure, with a legend in each part."""
    for axis in axes:
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(output, dpi=120)
    pyplot.close(figure)


def cost_row(name: str, pipe: Any, steps: int | None = None) -> Row:
    """Return steps, evaluations and seconds for 64 images of a pipeline, after two steps that warm it up."""
    steps = steps or min(SAMPLERS[name].steps, int(pipe.scheduler.config.num_train_timesteps))
    pipe(64, num_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt", sampler=name)
    counted, seconds = Evaluations(pipe.unet), []
    for _ in range(REPEATS):
        before = time.perf_counter()
        pipe(64, num_steps=steps, generator=torch.Generator().manual_seed(0), output_type="pt", sampler=name)
        seconds.append(time.perf_counter() - before)
    evaluations = counted.count // REPEATS
    return {"sampler": name, "steps": steps, "evaluations": evaluations, "seconds": statistics.median(seconds)}


def cost(model: str | None) -> None:
    """Print the cost table at each sampler's usual number of steps, of a model or of an untrained 8x8 U-Net."""
    if model is not None:
        pipe = cast(Any, AutoPipeline.from_pretrained(model))
    else:
        net = UNet(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(32, 64), norm_num_groups=8,
            down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        pipe = cast(Any, DDPMPipeline(net.eval(), cast(Any, VPSDEScheduler())))
    pipe.set_progress_bar_config(disable=True)
    print(table([cost_row(name, pipe) for name in SAMPLERS], ["sampler"], ["steps", "evaluations", "seconds"]))


def main() -> None:
    """Run one of the three comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("gaussian", "toys", "cost"))
    parser.add_argument("-o", "--output", type=Path, default=Path("samplers.png"), help="The figure.")
    parser.add_argument("--datasets", nargs="+", default=["ring8", "moons", "swissroll"])
    parser.add_argument("--max-steps", type=int, default=10_000, help="Training steps of the toys' models.")
    parser.add_argument("--results", type=Path, help="Rows are kept here, and not computed again.")
    parser.add_argument("--models", type=Path, help="Folder of the toys' runs, trained once; temporary by default.")
    parser.add_argument("--model", help="Run or model whose images are priced; by default an untrained 8x8 U-Net.")
    options = parser.parse_args()
    if options.what == "gaussian":
        gaussian(options.output)
    elif options.what == "cost":
        cost(options.model)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            models = options.models or Path(temporary)
            toys(options.output, options.datasets, options.max_steps, options.results, models)


if __name__ == "__main__":
    main()
