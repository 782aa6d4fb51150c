"""Normalizing flows of images (TarFlow, Zhai et al. 2025): an invertible map to standard normal latents.

    hfgen train tarflow --dataset digits --output-dir runs/tarflow
    hfgen train tarflow --dataset digits --class-conditional --output-dir runs/tarflow-classes

The map is made of causal transformers over patches. Likelihoods of continuous pixels are exact.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hfgen.checks import require_int, require_number
from hfgen.data.dataset import Dataset
from hfgen.errors import ConfigError
from hfgen.metrics.likelihood import bits_per_dim, dequantised
from hfgen.models.tarflow import TarFlow
from hfgen.pipelines.normalizing_flow import NormalizingFlowPipeline
from hfgen.training.autoregressive import EVAL_ROWS, optimizer
from hfgen.training.denoiser import Conditions, open_dataset
from hfgen.training.engine.evaluation import batches_of, held_out
from hfgen.training.engine.noise import Noise
from hfgen.training.engine.phase import Batch, Phase, Recipe
from hfgen.training.engine.preview import preview
from hfgen.training.engine.recipe import RecipeSpec, side_or_sides
from hfgen.training.engine.run import main
from hfgen.training.settings.tarflow import SPEC, TarFlowSettings


def build(s: TarFlowSettings, dataset: Dataset) -> Recipe:
    """Return the network, the one phase and the pipeline of a normalizing flow of `dataset`."""
    # build the networks
    check_tarflow(s, dataset)
    conditions = Conditions(s, dataset)
    net: Any = TarFlow(
        channels=dataset.shape[0], sample_size=side_or_sides(dataset), patch_size=s.patch_size, width=s.width,
        blocks=s.blocks, layers=s.layers, heads=max(1, s.width // s.attention_head_dim), dropout=s.dropout,
        num_class_embeds=conditions.num_class_embeds, text_width=conditions.width,
    )  # fmt: skip
    nets: dict[str, nn.Module] = {"network": net, **conditions.nets}
    trained = ("network", *conditions.trained)
    # evaluate on held-out data
    evaluation = held_out(s, dataset)
    loss = FlowLoss(s, dataset.top + 1, conditions)

    def pipeline(nets: Mapping[str, Any]) -> NormalizingFlowPipeline:
        parts = conditions.parts(nets)
        return NormalizingFlowPipeline(nets["network"], levels=loss.levels, noise_std=s.noise_std, **parts)

    # assemble the recipe
    drawn = partial(preview, dataset=dataset, seed=s.seed, labelled=s.class_conditional, count=s.preview_images)
    return Recipe(
        nets=nets,
        phases=[Phase("flow", optimizer(s, nets), trained, loss)],
        pipeline=pipeline,
        preview=drawn if s.preview_images else None,
        averaged=trained,
        evaluate=None if evaluation is None else lambda nets: evaluate(nets, evaluation, loss),
        usage=f"hfgen sample {{run}}{conditions.words()} -n 64 --seed 0 -o grid.png",
    )


class FlowLoss:
    """The loss of the one phase: - log p(x|y) / D, a mean over D dimensions and images, in nats.

    log p(x|y) = log N(f(x); 0, I) + log |det df/dx| (Zhai et al. 2025, eq. 1). Pixels x at `levels` even levels are
    dequantised: uniform noise fills the bin of each, to which Gaussian noise of `noise_std` is added.
    """

    def __init__(self, settings: TarFlowSettings, levels: int, conditions: Conditions) -> None:
        self.settings, self.levels, self.conditions = settings, levels, conditions

    def __call__(
        self, nets: Mapping[str, nn.Module], batch: Batch, noise: Noise, memo: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss over the batch in nats for each dimension, and bits per dimension: scalars.

        `batch["x"]`: images (B, C, H, W) in [-1, 1]. Bits are those of levels, from above, if `noise_std` is 0.
        """
        # add noise to pixels
        x = batch["x"]
        x = dequantised(x, noise.uniform("pixels", *x.shape[1:]), self.levels)
        if self.settings.noise_std:
            x = x + self.settings.noise_std * noise.normal("noise", *x.shape[1:])
        # compute the density
        log_p = nets["network"](x, **self.conditions(nets, batch, noise)).log_prob       # (B,)
        D = math.prod(x.shape[1:])
        loss = -log_p.mean() / D
        bits = bits_per_dim(log_p.detach().mean(), D, 2 / (self.levels - 1))
        return loss, {"loss": loss.detach(), "bits_per_dim": bits}


def check_tarflow(s: TarFlowSettings, dataset: Dataset) -> None:
    """Raise ConfigError, naming the field, for settings that no run can use."""
    if len(dataset.shape) != 3:
        raise ConfigError(f"--dataset {s.dataset}: tarflow is for images, these are points")
    for name in ("patch_size", "width", "blocks", "layers", "attention_head_dim"):
        require_int(f"--{name.replace('_', '-')}", getattr(s, name))
    require_number("--dropout", s.dropout, 0, 1, "[)")
    require_number("--noise-std", s.noise_std, 0, 10)


@torch.no_grad()
def evaluate(nets: Mapping[str, Any], dataset: Dataset, loss: FlowLoss) -> dict[str, float]:
    """Return the mean of - log p(x) over the items of a dataset, `eval_nats`, and `eval_bits_per_dim` of their levels.

    Pixels are dequantised once, with a fixed seed, without Gaussian noise. Conditional models are conditioned on the
    items' conditions.
    """
    # sum over batches
    net, total = nets["network"], 0.0
    generator = torch.Generator().manual_seed(0)
    for batch in batches_of(dataset):
        x = dequantised(batch["x"], torch.rand(batch["x"].shape, generator=generator), loss.levels)
        conditions = loss.conditions.of(nets, batch, torch.zeros(len(x), dtype=torch.bool, device=net.device))
        for rows in torch.arange(len(x)).split(EVAL_ROWS):
            some = {name: value[rows.to(value.device)] for name, value in conditions.items()}
            total -= float(net(x[rows].to(net.device), **some).log_prob.double().sum())
    # scale to one image, and to one dimension
    nats = total / len(dataset)
    bits = bits_per_dim(-nats, math.prod(dataset.shape), 2 / (loss.levels - 1))
    return {"eval_nats": nats, "eval_bits_per_dim": bits}


RECIPE = RecipeSpec(SPEC, build, open_dataset)

if __name__ == "__main__":
    from hfgen.training import tarflow

    raise SystemExit(main(tarflow.RECIPE))
