"""Autoregressive models: the distribution of an image as a product over its entries, each conditioned on all before.

    hfgen train autoregressive --dataset digits --output-dir runs/transformer
    hfgen train autoregressive --dataset data/mnist-train.parquet --binarise --output-dir runs/binary
    hfgen train autoregressive --dataset digits --objective masked --output-dir runs/maskgit

Entries are levels of pixels, patches of few levels, or the codes of a discrete autoencoder. The likelihood is exact.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from accelerate import PartialState
from torch import Tensor, nn

from hfgen.checks import require_int, require_number
from hfgen.data.dataset import Dataset
from hfgen.errors import ConfigError
from hfgen.losses.elbo import binarised
from hfgen.losses.masked import masked_cross_entropy, random_mask
from hfgen.metrics.likelihood import bits_per_dim
from hfgen.models.autoregressive import AutoregressiveNetwork
from hfgen.models.entries import CodeEntries, PixelEntries
from hfgen.models.image_transformer import ImageTransformer
from hfgen.models.pixel_cnn import PixelCNN
from hfgen.models.vq_autoencoder import VQAutoencoder
from hfgen.pipelines.autoregressive import AutoregressivePipeline
from hfgen.pipelines.entries import EntriesPipeline
from hfgen.pipelines.masked_generation import MaskedGenerationPipeline
from hfgen.training.denoiser import Conditions, images_to_encode, open_dataset
from hfgen.training.engine import codes
from hfgen.training.engine.codes import Codes, load_autoencoder
from hfgen.training.engine.encoded_images import try_out
from hfgen.training.engine.evaluation import batches_of, held_out
from hfgen.training.engine.noise import Noise
from hfgen.training.engine.phase import Batch, Phase, Recipe
from hfgen.training.engine.preview import preview
from hfgen.training.engine.recipe import RecipeSpec, side_or_sides
from hfgen.training.engine.run import main
from hfgen.training.settings.autoregressive import SPEC, AutoregressiveSettings, recommended
from hfgen.training.settings.tarflow import TarFlowSettings

Entries = PixelEntries | CodeEntries

BETAS = (0.9, 0.95)
"""Adam's decay rates (Chen et al. 2020, section 3.3)."""

EVAL_ROWS = 64
"""Images that the likelihood is computed of at once."""


def build(s: AutoregressiveSettings, dataset: Dataset) -> Recipe:
    """Return the networks, the one phase and the pipeline of an autoregressive model of `dataset`."""
    # build the networks
    check_autoregressive(s, dataset)
    conditions = Conditions(s, dataset)
    entries = entries_of(s, dataset)
    net: Any = network(s, dataset, entries, conditions)
    nets: dict[str, nn.Module] = {"network": net, **conditions.nets}
    trained = ("network", *conditions.trained)
    # the autoencoder of codes, and held-out images
    autoencoder = None if s.autoencoder is None else load_autoencoder(s.autoencoder)
    evaluation = held_out(s, dataset, image_shape(dataset, autoencoder))
    loss = (MaskedLoss if s.objective == "masked" else AutoregressiveLoss)(s, entries, conditions, autoencoder)

    def pipeline(nets: Mapping[str, Any]) -> EntriesPipeline:
        parts = conditions.parts(nets) | settings_of(entries)
        if autoencoder is not None:
            parts["autoencoder"] = cast(Any, autoencoder).to(nets["network"].device)
        if s.objective == "masked":
            return MaskedGenerationPipeline(nets["network"], **parts)
        return AutoregressivePipeline(nets["network"], binarised=s.binarise, **parts)

    # assemble the recipe
    drawn = partial(preview, dataset=dataset, seed=s.seed, labelled=s.class_conditional, count=s.preview_images)
    return Recipe(
        nets=nets,
        phases=[Phase("autoregressive", optimizer(s, nets), trained, loss)],
        pipeline=pipeline,
        preview=drawn if s.preview_images else None,
        averaged=trained,
        evaluate=None if evaluation is None else lambda nets: evaluate(nets, evaluation, loss),
        usage=f"hfgen sample {{run}}{conditions.words()} -n 64 --seed 0 -o grid.png",
    )


class AutoregressiveLoss:
    """The loss of the one phase: - log p(x|y) / n, a mean over entries and images, in nats.

    log p(x|y) = sum_i log p(x_i | x_1, ..., x_(i-1), y) (van den Oord et al. 2016, eq. 1).
    """

    def __init__(
        self,
        settings: AutoregressiveSettings,
        entries: Entries,
        conditions: Conditions,
        autoencoder: VQAutoencoder | None = None,
    ) -> None:
        self.settings, self.entries, self.conditions, self.autoencoder = settings, entries, conditions, autoencoder

    def __call__(
        self, nets: Mapping[str, nn.Module], batch: Batch, noise: Noise, memo: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss over the batch in nats for each entry, and bits per dimension or code: scalars >= 0.

        `batch["x"]`: images (B, C, H, W) in [-1, 1], or `batch["codes"]` (B, n) int64.
        """
        # compute the probabilities of all entries at once
        entries = self.drawn(batch, noise)                                               # (B, n)
        conditions = self.conditions(nets, batch, noise)
        log_p = nets["network"](entries, **conditions, log_prob=True).log_prob           # (B, n)
        loss = -log_p.mean()
        bits = bits_per_dim(-loss.detach() * log_p.shape[1], self.entries.dims)
        return loss, {"loss": loss.detach(), self.unit: bits}

    @property
    def unit(self) -> str:
        """Return the name of the bits: `bits_per_dim` of pixels, `bits_per_code` of codes."""
        return "bits_per_dim" if self.autoencoder is None else "bits_per_code"

    def drawn(self, batch: Batch, noise: Noise) -> Tensor:
        """Return the entries (B, n) of a batch: codes, or pixels rounded to levels or drawn black or white."""
        if "codes" in batch:
            codes: Tensor = batch["codes"]
            return codes
        u = None
        if self.settings.binarise:
            u = noise.uniform("pixels", *batch["x"].shape[1:])
        return self.encoded(batch["x"], u)

    def encoded(self, x: Tensor, u: Tensor | None) -> Tensor:
        """Return the entries (B, n) of images x (B, C, H, W) in [-1, 1], binarised by uniform draws u if given."""
        if self.autoencoder is not None:
            return self.autoencoder.to_codes(x.to(self.autoencoder.device)).flatten(1)
        if u is not None:
            x = binarised(x, u)
        return cast(PixelEntries, self.entries).encode(x)

    def nats(self, net: Any, entries: Tensor, conditions: Batch, generator: torch.Generator) -> Tensor:
        """Return - log p(x|y) >= 0 of entries (B, n), (B,), in nats."""
        log_p: Tensor = net.log_probabilities(entries, **conditions)
        return -log_p.cpu().double().sum(1)

    def numbers(self, nats: float) -> dict[str, float]:
        """Return the numbers of an evaluation from the mean of `nats`: `eval_nats`, and `eval_` with the unit."""
        return {"eval_nats": nats, f"eval_{self.unit}": bits_per_dim(-nats, self.entries.dims)}


class MaskedLoss(AutoregressiveLoss):
    """The loss of masked entries: the mean of - log p(x_i | entries that are not masked, y), in nats.

    The share of masked entries is cos(pi u / 2), u uniform in [0, 1) (Chang et al. 2022, section 3.1).
    """

    def __call__(
        self, nets: Mapping[str, nn.Module], batch: Batch, noise: Noise, memo: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss over the batch, a scalar >= 0, in nats for each masked entry."""
        entries = self.drawn(batch, noise)                                               # (B, n)
        mask = random_mask(noise.uniform("share"), noise.uniform("order", entries.shape[1]))
        loss = self.of(nets["network"], entries, mask, self.conditions(nets, batch, noise)).mean()
        return loss, {"loss": loss.detach()}

    def of(self, net: Any, entries: Tensor, mask: Tensor, conditions: Batch) -> Tensor:
        """Return the mean loss (B,) over the masked entries of each image; the `mask` is (B, n)."""
        vocabulary = self.entries.vocab_size
        logits = net(entries.masked_fill(mask, vocabulary), **conditions).logits
        return masked_cross_entropy(logits, entries, mask)

    def nats(self, net: Any, entries: Tensor, conditions: Batch, generator: torch.Generator) -> Tensor:
        """Return the mean loss (B,) over the masked entries of each image; the `generator` draws the masks."""
        u, order = (torch.rand(shape, generator=generator) for shape in (len(entries), entries.shape))
        return self.of(net, entries, random_mask(u, order).to(entries.device), conditions)

    def numbers(self, nats: float) -> dict[str, float]:
        """Return the number of an evaluation: `eval_loss`, the mean loss."""
        return {"eval_loss": nats}


def check_autoregressive(s: AutoregressiveSettings, dataset: Dataset) -> None:
    """Raise ConfigError, naming the field, for settings that no run can use."""
    # check the data
    if len(dataset.shape) != 3:
        raise ConfigError(f"--dataset {s.dataset}: autoregressive models are for images, these are points")
    # check fields that exclude each other
    if s.autoencoder is not None and (s.binarise or s.levels is not None or s.patch_size > 1):
        raise ConfigError("--levels, --binarise and --patch-size are for pixels; leave them out with --autoencoder")
    if s.autoencoder is not None and s.network == "pixel_cnn":
        raise ConfigError("--network pixel_cnn is for pixels; codes take the transformer")
    if s.binarise and s.levels is not None:
        raise ConfigError(f"--levels {s.levels}: leave it out with --binarise, whose pixels have 2")
    if s.network == "pixel_cnn" and s.objective == "masked":
        raise ConfigError("--objective masked needs --network transformer; pixel_cnn predicts pixels in order")
    if s.network == "pixel_cnn" and s.patch_size > 1:
        raise ConfigError(f"--patch-size {s.patch_size} needs --network transformer; pixel_cnn predicts single pixels")
    # check the sizes
    for name in ("width", "layers", "attention_head_dim"):
        require_int(f"--{name.replace('_', '-')}", getattr(s, name))
    require_number("--dropout", s.dropout, 0, 1, "[)")


def entries_of(s: AutoregressiveSettings, dataset: Dataset) -> Entries:
    """Return the entries of the images, or of the codes of images, in a dataset."""
    if isinstance(dataset, Codes):
        return CodeEntries(dataset.grid, dataset.num_codes)
    levels = s.levels or dataset.top + 1
    if s.binarise:
        levels = 2
    channels, height, width = dataset.shape
    return PixelEntries((channels, height, width), levels, s.patch_size)


def settings_of(entries: Entries) -> dict[str, Any]:
    """Return the settings of a pipeline of these entries; {} for codes, whose autoencoder has them."""
    if isinstance(entries, CodeEntries):
        return {}
    return {"image_shape": entries.shape, "levels": entries.levels, "patch_size": entries.patch_size}


def image_shape(dataset: Dataset, autoencoder: VQAutoencoder | None) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of the images of a dataset, also of one of codes."""
    channels, height, width = dataset.shape
    if autoencoder is None:
        return channels, height, width
    return autoencoder.config["in_channels"], height * autoencoder.factor, width * autoencoder.factor


def network(
    s: AutoregressiveSettings, dataset: Dataset, entries: Entries, conditions: Conditions
) -> AutoregressiveNetwork:
    """Return the network that predicts the entries."""
    choices: dict[str, Any] = {
        "width": s.width, "layers": s.layers, "dropout": s.dropout, "num_class_embeds": conditions.num_class_embeds,
        "text_width": conditions.width,
    }  # fmt: skip
    if s.network == "pixel_cnn":
        return PixelCNN(
            channels=dataset.shape[0], sample_size=side_or_sides(dataset), levels=entries.vocab_size, **choices
        )
    return ImageTransformer(
        vocab_size=entries.vocab_size, grid=entries.grid, heads=max(1, s.width // s.attention_head_dim),
        positions=s.positions, tie_weights=s.tie_weights, causal=s.objective == "causal", **choices,
    )  # fmt: skip


def optimizer(s: AutoregressiveSettings | TarFlowSettings, nets: Mapping[str, nn.Module]) -> torch.optim.Optimizer:
    """Return AdamW for everything in the networks that is trained; vectors, such as gains and biases, do not decay."""
    matrices, vectors = list[nn.Parameter](), list[nn.Parameter]()
    for net in nets.values():
        for parameter in net.parameters():
            if parameter.requires_grad:
                (matrices if parameter.ndim > 1 else vectors).append(parameter)
    groups = [{"params": matrices, "weight_decay": s.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=s.learning_rate, betas=BETAS, fused=True)


@torch.no_grad()
def evaluate(nets: Mapping[str, Any], dataset: Dataset, loss: AutoregressiveLoss) -> dict[str, float]:
    """Return the means over the items of a dataset: `eval_nats` and `eval_bits_per_dim`, or `eval_loss` if masked.

    Binarised pixels and masks are drawn with a fixed seed. Conditional models are conditioned on the items' conditions.
    """
    # sum over batches
    net, total = nets["network"], 0.0
    generator = torch.Generator().manual_seed(0)
    for batch in batches_of(dataset):
        x, u = batch["x"], None
        if loss.settings.binarise:
            u = torch.rand(x.shape, generator=generator)
        every = loss.encoded(x, u)
        conditions = loss.conditions.of(nets, batch, torch.zeros(len(x), dtype=torch.bool, device=net.device))
        for rows in torch.arange(len(x)).split(EVAL_ROWS):
            some = {name: value[rows.to(value.device)] for name, value in conditions.items()}
            entries = every[rows.to(every.device)].to(net.device)
            total += float(loss.nats(net, entries, some, generator).cpu().double().sum())
    return loss.numbers(total / len(dataset))


def open_data(settings: AutoregressiveSettings) -> Dataset:
    """Return the images of the dataset, or with an autoencoder their codes, encoded into the run's folder."""
    if settings.autoencoder is None:
        return open_dataset(settings)
    # load autoencoder and images
    net = cast(VQAutoencoder, load_autoencoder(settings.autoencoder).to(PartialState().device))
    source, flip = images_to_encode(settings, net.config["in_channels"], "autoregression of codes")
    # check, then encode all images once
    try_out(settings, codes.of_shape(source, net), recommended, build)
    return codes.encoded(source, net, flip, settings.output_dir / "codes")


RECIPE = RecipeSpec(SPEC, build, open_data)

if __name__ == "__main__":
    from hfgen.training import autoregressive

    raise SystemExit(main(autoregressive.RECIPE))
