"""Settings of `hfgen train translation`, and their recommended values."""

from dataclasses import dataclass
from typing import Any, Literal

from hfgen.models.choices import GeneratorNorm, PatchNorm
from hfgen.training.engine.settings import AUTO, Auto, Settings, filled
from hfgen.training.engine.spec import SettingsSpec, ShapedDomains
from hfgen.training.settings.shared import AdversarialFields, AdversarialLoss


@dataclass(kw_only=True)
class TranslationSettings(AdversarialFields, Settings):
    """Train translators between two domains of images, without pairs (CycleGAN) or with them (pix2pix)."""

    # data
    dataset: str = ""
    """Not for translation, which has --dataset-a and --dataset-b."""
    dataset_a: str = "shapes:a"
    """Images of domain A: a folder, parquet files, a Hub id, or shapes:a (filled red shapes)."""
    dataset_b: str = "shapes:b"
    """Images of domain B, such as shapes:b (outlined blue shapes)."""
    split_b: str | None = None
    """Split of B. Default: --split, that of A."""
    paired: bool = False
    """Image i of B is the true translation of image i of A (pix2pix)."""
    crop: int | tuple[int, int] | None = None
    """Side, or height and width, of random crops of the images, which --resolution makes larger before."""

    # losses
    loss: Auto[AdversarialLoss] = AUTO
    """Adversarial loss of patches. Other defaults depend on it. kl, reverse_kl, jensen_shannon, pearson and
    squared_hellinger are f-divergences (Nowozin et al. 2016)."""
    adversarial_weight: Auto[float] = AUTO
    """Weight of the generators' part in their loss: 1, 2 for least_squares, whose square has a factor 1/2."""
    cycle_weight: Auto[float] = AUTO
    """Weight of the cycle consistency, |G_ba(G_ab(a)) - a|_1, and of the same from B. For pairs 0."""
    identity_weight: Auto[float] = AUTO
    """Weight of the identity loss, |G_ab(b) - b|_1, as a share of --cycle-weight. For pairs, and between
    domains with different numbers of channels, 0."""
    paired_weight: Auto[float] = AUTO
    """Weight of |G_ab(a) - b|_1. For pairs 100, else it must be 0."""
    history: Auto[int] = AUTO
    """Generated images of earlier steps in each discriminator's pool, 0 for none. For pairs 0."""

    # network
    generator: Auto[Literal["resnet", "unet"]] = AUTO
    """Network of the generators. For pairs unet."""
    width: Auto[int] = AUTO
    """Channels of the generators next to the image."""
    blocks: Auto[int] = AUTO
    """Residual blocks of resnet."""
    downsamplings: Auto[int] = AUTO
    """Number of times that resnet halves the sides."""
    depth: Auto[int] = AUTO
    """Number of times that unet halves the sides, at most 8."""
    norm: GeneratorNorm = "instance"
    """Normalisation in the generators."""
    dropout: float = 0.0
    """Dropout in the generators; with it, results depend on how a batch is divided."""
    discriminator_width: Auto[int] = AUTO
    """Channels of the discriminators next to the image."""
    discriminator_layers: Auto[int] = AUTO
    """Layers of stride 2 in the discriminators: 3 judge patches of 70x70, 2 of 34x34, 1 of 16x16."""
    discriminator_norm: Auto[PatchNorm] = AUTO
    """Normalisation in the discriminators. For hinge spectral, for wasserstein none, for wasserstein_gp layer."""

    # optimisation
    betas: tuple[float, float] = (0.5, 0.999)
    """Adam's decay rates."""
    lr_schedule: Literal["constant", "cosine", "linear", "second_half"] = "second_half"
    """How the learning rate goes from its peak to zero at the last step; second_half: along a line from the middle."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from zero."""

    # evaluation
    eval_split: str | None = None
    """Split whose first 128 images of each domain are translated, and back, whenever a grid is drawn, and at the end:
    the errors of cycles, and of translations where they are pairs, by --paired or as test items of shapes:a and :b."""
    eval_split_b: str | None = None
    """The split of B. Default: --eval-split, that of A."""
    eval_dataset_a: str | None = None
    """Dataset of that split. Default: the one that is trained on; if it is given, the split's default is train."""
    eval_dataset_b: str | None = None
    """The same of B."""


COMMON: dict[str, Any] = {
    "loss": "least_squares",
    "generator": "resnet",
    "max_steps": 200_000,
    "batch_size": 1,
    "learning_rate": 2e-4,
    "width": 64,
    "blocks": 9,
    "downsamplings": 2,
    "discriminator_width": 64,
    "discriminator_layers": 3,
    "discriminator_norm": "instance",
    "cycle_weight": 10.0,
    "identity_weight": 0.5,
    "paired_weight": 0.0,
    "history": 50,
    "gradient_penalty": 0.0,
    "clip": 0.0,
}
"""Zhu et al. 2017, sections 4 and 7: 200 epochs of about 1,000 images; six blocks below 256 pixels."""

PAIRED: dict[str, Any] = {
    "loss": "non_saturating", "generator": "unet", "cycle_weight": 0.0, "identity_weight": 0.0, "paired_weight": 100.0,
    "history": 0,
}  # fmt: skip
"""Isola et al. 2017, sections 3 and 6."""

SMALL_IMAGES: dict[str, Any] = {
    "max_steps": 10_000, "batch_size": 4, "learning_rate": 1e-3, "width": 16, "blocks": 2, "downsamplings": 1,
    "discriminator_width": 32, "discriminator_layers": 2, "discriminator_norm": "spectral", "cycle_weight": 20.0,
}  # fmt: skip
"""For images below 64 pixels: narrow networks that keep half the resolution, patches of 34x34; 0.1 s a step. Instance
norm would take the contrast of such patches away, and faint traces of the other domain would pass for it."""

OF_LOSS: dict[str, dict[str, Any]] = {
    "wasserstein": {"clip": 0.01, "discriminator_norm": "none"},
    "wasserstein_gp": {"gradient_penalty": 10.0, "discriminator_norm": "layer"},
    "hinge": {"discriminator_norm": "spectral"},
}
"""The settings of each loss, as for other GANs."""


def recommended(settings: TranslationSettings, dataset: ShapedDomains) -> TranslationSettings:
    """Return the settings completed for the data and the loss."""
    # choose values for the data
    height, width = dataset.shape[1:]
    values = COMMON | {"depth": min(8, *((side & -side).bit_length() - 1 for side in (height, width)))}
    if min(height, width) < 256:
        values |= {"blocks": 6}
    if min(height, width) < 64:
        values |= SMALL_IMAGES
    if dataset.shape_a[0] != dataset.shape_b[0]:                       # nothing of B can go through the network of A
        values |= {"identity_weight": 0.0}
    if settings.paired:
        values |= PAIRED
    # choose values for the loss
    loss = settings.loss or values["loss"]
    values |= OF_LOSS.get(loss, {})
    values["adversarial_weight"] = 2.0 if loss == "least_squares" else 1.0   # Zhu et al. have no 1/2 before the square
    settings = filled(settings, values)
    return filled(settings, {"discriminator_learning_rate": settings.learning_rate})


SPEC = SettingsSpec(TranslationSettings, recommended)
