"""Speed beside plain diffusers: the same network, batch and steps, one after the other in one process.

    python tests/benchmarks/speed.py [--threads 2] [--rounds 9] [--only scheduler]

Ours and theirs alternate, round by round, so that a machine whose speed drifts slows both; the figure is the ratio
ours / theirs of the medians (below 1 is faster), and the speed-up its inverse. Warm-up is left out and stated.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from hfgen import DDPMPipeline, DDPMScheduler, UNet
from hfgen.data import load_dataset
from hfgen.training.ddpm import RECIPE, DDPMSettings
from hfgen.training.engine.loop import Engine

DIGITS = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (32, 64), "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "attention_head_dim": 32,
}  # fmt: skip
CIFAR = {
    "sample_size": 32, "in_channels": 3, "out_channels": 3, "block_out_channels": (64, 128, 128), "norm_num_groups": 16,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 64,
}  # fmt: skip
SIZES = {"digits 1x8x8, batch 128": (DIGITS, 128), "colour 3x32x32, batch 8": (CIFAR, 8)}

Work = Callable[[], Any]


def ratio(name: str, ours: Work, theirs: Work, rounds: int, repeats: int = 1) -> float:
    """Print and return ours / theirs: medians over alternating rounds of `repeats` calls, after one warm-up each."""
    times: dict[Work, list[float]] = {ours: [], theirs: []}
    for work in times:
        work()
    for _ in range(rounds):
        for work, seconds in times.items():
            before = time.perf_counter()
            for _ in range(repeats):
                work()
            seconds.append((time.perf_counter() - before) / repeats)
    mine, stock = (statistics.median(seconds) * 1e3 for seconds in times.values())
    print(f"| {name} | {mine:.4g} | {stock:.4g} | {mine / stock:.2f} | {stock / mine:.2f} x |", flush=True)
    return mine / stock


def networks(config: dict[str, Any], seed: int = 0) -> tuple[UNet, diffusers.UNet2DModel]:
    """Return our U-Net and the stock one with the same weights."""
    torch.manual_seed(seed)
    theirs = diffusers.UNet2DModel(**config)
    ours = UNet(**config)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def autocast(precision: str) -> torch.autocast:
    """Return the autocast context of "bf16", or one that does nothing."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")


def unet(rounds: int) -> None:
    """Compare the networks: forward pass without gradients, forward and backward in training."""
    for size, (config, batch) in SIZES.items():
        ours, theirs = networks(config)
        x = torch.randn(batch, config["in_channels"], config["sample_size"], config["sample_size"])
        t = torch.randint(0, 1000, (batch,))

        def forward(net: torch.nn.Module, x: torch.Tensor = x) -> None:
            with torch.no_grad():
                net(x, 500)

        def train(net: torch.nn.Module, precision: str, x: torch.Tensor = x, t: torch.Tensor = t) -> None:
            with autocast(precision):
                out = net(x, t).sample
            out.float().square().mean().backward()

        ratio(f"U-Net forward, {size}", lambda: forward(ours), lambda: forward(theirs), rounds)  # noqa: B023
        ratio(f"U-Net training step, {size}", lambda: train(ours, "no"), lambda: train(theirs, "no"), rounds)  # noqa: B023


def stock_loop(config: dict[str, Any], batch_size: int, pixels: torch.Tensor) -> Work:
    """Return one step of diffusers' unconditional training example: AdamW, EMA, clipping, `.item()` every step."""
    accelerator = Accelerator(cpu=True)
    _, model = networks(config)
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    data = torch.utils.data.DataLoader([{"input": image} for image in pixels], batch_size=batch_size, shuffle=True)
    rate = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=100_000)
    model, optimizer, data, rate = accelerator.prepare(model, optimizer, data, rate)
    endless = (batch for _ in range(10**9) for batch in data)

    def step() -> None:
        clean = next(endless)["input"]
        noise = torch.randn(clean.shape)
        t = torch.randint(0, 1000, (len(clean),)).long()
        noisy = scheduler.add_noise(clean, noise, t)
        with accelerator.accumulate(model):
            loss = torch.nn.functional.mse_loss(model(noisy, t).sample.float(), noise.float())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
        ema.step(model.parameters())
        loss.detach().item()

    return step


def our_loop(settings: DDPMSettings) -> Work:
    """Return one step of hfgen's engine, logging every 50 steps as a run does."""
    dataset = load_dataset("digits", resolution=settings.resolution, channels=settings.channels)
    engine = Engine(settings, RECIPE.create, dataset, Accelerator(cpu=True))
    steps = engine.train(0, 10**9, 10**9)

    def step() -> None:
        if next(steps) % 50 == 0:
            engine.log.fetch(engine.accelerator)

    return step


def training(rounds: int) -> None:
    """Compare whole training steps, data to moving average, in float32 and in the recommended bf16."""
    from accelerate.state import AcceleratorState

    for size, (config, batch) in SIZES.items():
        side, channels = config["sample_size"], config["in_channels"]
        pixels = load_dataset("digits", resolution=side, channels=channels).tensor()
        attention = tuple(i for i, kind in enumerate(config["down_block_types"]) if kind.startswith("Attn"))
        for precision in ("no", "bf16"):
            settings = DDPMSettings(
                output_dir=Path("unused"), batch_size=batch, block_out_channels=config["block_out_channels"],
                attention_levels=attention, attention_head_dim=config["attention_head_dim"], resolution=side,
                channels=channels, mixed_precision=precision,
            )  # fmt: skip
            AcceleratorState._reset_state()
            theirs = stock_loop(config, batch, pixels)
            AcceleratorState._reset_state()
            ours = our_loop(settings)
            name = "float32" if precision == "no" else "ours bf16, stock float32"
            ratio(f"training loop, {size}, {name}", ours, theirs, rounds, repeats=4)


def sampling(rounds: int, steps: int = 20) -> None:
    """Compare pipelines from noise to images: same weights, steps, batch and seed."""
    for size, (config, batch) in SIZES.items():
        ours, theirs = networks(config)
        pipeline = DDPMPipeline(unet=ours.eval(), scheduler=DDPMScheduler())
        stock = diffusers.DDPMPipeline(unet=theirs.eval(), scheduler=diffusers.DDPMScheduler())
        for one in (pipeline, stock):
            one.set_progress_bar_config(disable=True)

        def generate(precision: str, pipeline: Any = pipeline, batch: int = batch) -> Any:
            with autocast(precision):
                generator = torch.Generator().manual_seed(0)
                return pipeline(batch_size=batch, num_steps=steps, generator=generator, output_type="np").images

        def generate_stock(stock: Any = stock, batch: int = batch) -> Any:
            generator = torch.Generator().manual_seed(0)
            return stock(batch_size=batch, num_inference_steps=steps, generator=generator, output_type="np").images

        assert abs(generate("no") - generate_stock()).max() < 1e-3
        for precision, name in (("no", "float32"), ("bf16", "ours bf16, stock float32")):
            ratio(f"sampling {steps} steps, {size}, {name}", lambda: generate(precision), generate_stock, rounds)  # noqa: B023


def scheduler(rounds: int) -> None:
    """Compare one reverse step of the schedulers, and drawing its noise alone with all of stock's step."""
    for shape in ((16, 1, 8, 8), (16, 3, 32, 32)):
        ours, theirs = DDPMScheduler(), diffusers.DDPMScheduler()
        x, eps = torch.randn(2, *shape)
        for one in (ours, theirs):
            one.set_timesteps(100)

        def step(one: Any, x: torch.Tensor = x, eps: torch.Tensor = eps) -> None:
            one.step(eps, 500, x)

        def stock(theirs: Any = theirs) -> None:
            step(theirs)

        size = "x".join(map(str, shape))
        ratio(f"scheduler.step, {size}", lambda: step(ours), stock, rounds * 4, repeats=50)  # noqa: B023
        ratio(f"drawing the noise alone, {size}", lambda: torch.randn(shape), stock, rounds * 4, repeats=50)  # noqa: B023


def imports(rounds: int) -> None:
    """Print the time of `import hfgen` and `hfgen --help` in fresh processes, less that of an empty one."""

    def seconds(*words: str) -> float:
        times = []
        for _ in range(rounds):
            before = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, capture_output=True)
            times.append(time.perf_counter() - before)
        return statistics.median(times)

    empty = seconds("-c", "pass")
    mine, stock = seconds("-c", "import hfgen") - empty, seconds("-c", "import diffusers") - empty
    print(f"| `import hfgen` / `import diffusers` | {mine * 1e3:.0f} | {stock * 1e3:.0f} | {mine / stock:.3f} | |")
    shown = seconds("-c", "import sys; sys.argv = ['hfgen', '--help']; from hfgen.cli import main; main()")
    print(f"| `hfgen --help`, whole process | {shown * 1e3:.0f} | | | |")


PARTS: dict[str, Callable[[int], None]] = {
    "scheduler": scheduler, "imports": imports, "unet": unet, "sampling": sampling, "training": training,
}  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"torch {torch.__version__}, diffusers {diffusers.__version__}, Python {platform.python_version()}, "
        f"{options.threads} threads, {time.strftime('%Y-%m-%d')}, medians of {options.rounds} alternating rounds\n\n"
        "| | ours, ms | diffusers, ms | ours / theirs | speed-up |\n|---|---|---|---|---|"
    )
    for name in options.only:
        PARTS[name](options.rounds)


if __name__ == "__main__":
    main()
