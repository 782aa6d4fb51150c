"""Settings of `hfgen train gan`, and their recommended values."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hfgen.models.choices import Norm
from hfgen.training.engine.defaults import IMAGES_AND_POINTS
from hfgen.training.engine.settings import AUTO, Auto, filled
from hfgen.training.engine.spec import SettingsSpec, Shaped
from hfgen.training.settings.denoiser import CaptionSettings
from hfgen.training.settings.shared import AdversarialFields


@dataclass(kw_only=True)
class GANSettings(AdversarialFields, CaptionSettings):
    """Train a generative adversarial network (Goodfellow et al. 2014) on images or 2-D points."""

    before: ClassVar[dict[str, Any]] = {"wrong_conditions": 0.0}

    # optimisation
    discriminator_steps: Auto[int] = AUTO
    """Discriminator steps before each generator step, k."""
    betas: Auto[tuple[float, float]] = AUTO
    """Adam's decay rates of both optimisers."""
    discriminator_betas: Auto[tuple[float, float]] = AUTO
    """Adam's decay rates of the discriminator, where they differ."""

    # network
    network: Auto[Literal["mlp", "dcgan", "biggan", "progressive"]] = AUTO
    """Networks of points (mlp) or of images: dcgan (Radford et al. 2016); biggan (Brock et al. 2019), residual
    networks with self-attention, class-conditional normalisation and a projection discriminator; progressive (Karras et
    al. 2018), which grows from about 4x4 pixels to the full resolution."""
    stage_shares: tuple[float, ...] | None = None
    """Relative numbers of steps of the stages of progressive, the smallest images first. Default: half of all steps for
    the full resolution, the rest in equal parts."""
    fade_share: float = 0.5
    """Share of each stage of progressive, after the first, in which its layers fade in."""
    width: Auto[int] = AUTO
    """Channels next to the image, doubled at each stage; units of each layer for 2-D points."""
    layers: Auto[int] = AUTO
    """Hidden layers of both networks for 2-D points; 0 makes the discriminator a linear classifier and the generator an
    affine map of z."""
    generator_extra_layers: Auto[int] = AUTO
    """3x3 convolutions after each stage of the generator."""
    discriminator_extra_layers: Auto[int] = AUTO
    """3x3 convolutions after each stage of the discriminator."""
    base_size: Auto[int] = AUTO
    """Pixels a side where the generator starts and the discriminator ends, at least."""
    attention_size: Auto[int] = AUTO
    """Smaller side of the maps with self-attention in biggan; 0 for none."""
    latent_dim: Auto[int] = AUTO
    """Dimensions of the latent z."""
    generator_norm: Auto[Norm] = AUTO
    """Normalisation in the generator."""
    discriminator_norm: Auto[Norm] = AUTO
    """Normalisation in the discriminator; layer, none and spectral make it a critic."""
    pack: Auto[int] = AUTO
    """Samples that the discriminator judges together, against mode collapse (PacGAN)."""
    code_dim: Auto[int] = AUTO
    """Numbers in the code of the autoencoder that began has for a discriminator. Default: 64 for images, 16 below 16
    pixels, 1 for points; none for other losses."""
    frequencies: Auto[int] = AUTO
    """Random waves of 2-D points that their discriminator sees beside the points. Default: 0 for --layers 0."""
    minibatch_stddev: Auto[int] = AUTO
    """Samples in a group whose standard deviation the discriminator sees; 0 for none."""

    # losses
    generator_loss: Auto[Literal["non_saturating", "minimax"]] = AUTO
    """Generator's loss of an f-divergence: maximise g_f(D(G(z))), or minimise the bound as it is. Default:
    non_saturating; none for other losses, which have their own."""
    gamma: Auto[float] = AUTO
    """Error of generated over that of real samples, E L(G(z)) / E L(x), that began aims at: more for more variety, less
    for sharper samples. Default: 0.5 for began (0.7 for points and below 16 pixels), none for other losses."""
    lambda_k: Auto[float] = AUTO
    """Step of k, by which began balances both networks. Default: 0.001 for began (0.01 for
    points and below 16 pixels), none for other losses."""
    r1: Auto[float] = AUTO
    """Weight of the zero-centred gradient penalty on real samples."""
    r2: Auto[float] = AUTO
    """Weight of the zero-centred gradient penalty on generated samples."""
    orthogonal_penalty: Auto[float] = AUTO
    """Weight of the squared inner products of different filters in each layer of the generator."""
    penalty_end: Auto[float] = AUTO
    """Factor of the weights of R1 and R2 at the last step, reached exponentially; 1 keeps them constant."""
    penalty_every: Auto[int] = AUTO
    """Discriminator steps from one evaluation of R1 and R2, with that many times the weight, to the next."""
    wrong_conditions: Auto[float] = AUTO
    """Share of real samples with a wrong class or caption among the discriminator's fakes (Reed et al. 2016). Default:
    0.5 for images with classes or captions (0 for wasserstein and wasserstein_gp)."""
    stop_on_collapse: bool = False
    """Save and stop where the generator has collapsed, the discriminator has won, or samples stay far from the data,
    instead of a warning. All are verdicts on some 300 steps in a row."""

    @property
    def extendable(self) -> bool:
        """Return whether a resumed run may have another number of steps; it decides when networks grow."""
        return super().extendable and self.network != "progressive"


POINT_NETWORKS = ("mlp",)
"""Choices of `network` for points; the others are for images."""

COMMON: dict[str, Any] = {
    "network": "dcgan",
    "loss": "non_saturating",
    "max_steps": 20_000,
    "batch_size": 64,
    "learning_rate": 2e-4,
    "betas": (0.5, 0.999),
    "discriminator_steps": 1,
    "width": 64,
    "layers": 3,
    "latent_dim": 100,
    "base_size": 4,
    "attention_size": 0,
    "generator_extra_layers": 0,
    "discriminator_extra_layers": 0,
    "generator_norm": "batch",
    "discriminator_norm": "batch",
    "pack": 1,
    "minibatch_stddev": 0,
    "frequencies": 0,
    "gradient_penalty": 0.0,
    "r1": 0.0,
    "r2": 0.0,
    "orthogonal_penalty": 0.0,
    "penalty_end": 1.0,
    "penalty_every": 1,
    "clip": 0.0,
    "wrong_conditions": 0.0,
}
"""Radford et al. 2016, section 3."""

F_DIVERGENCES = ("kl", "reverse_kl", "jensen_shannon", "pearson", "squared_hellinger")
"""Losses that are f-divergences."""

OF_LOSS: dict[str, dict[str, Any]] = {
    "wasserstein": {"clip": 0.01, "learning_rate": 5e-5, "discriminator_steps": 5},
    "wasserstein_gp": {
        "gradient_penalty": 10.0, "learning_rate": 1e-4, "betas": (0.0, 0.9), "discriminator_steps": 5,
        "discriminator_norm": "layer",
    },
    "hinge": {"discriminator_norm": "spectral"},
    "relativistic": {"discriminator_norm": "none", "betas": (0.0, 0.99), "r1": 1.0, "r2": 1.0},
    **{name: {"generator_loss": "non_saturating"} for name in F_DIVERGENCES},
}  # fmt: skip
"""The settings of each loss: Arjovsky et al. 2017, algorithm 1; Gulrajani et al. 2017, algorithm 1; Miyato et al. 2018,
section 4; Huang et al. 2024, section 4."""

BOUNDED = ("minimax", "non_saturating", "least_squares", "hinge", "relativistic")
"""Losses in which the term of real samples with wrong conditions has a bound. Under a gradient penalty, which holds
between real and generated samples of one condition, a critic lowers it for ever."""

BEGAN: dict[str, Any] = {
    "gamma": 0.5, "lambda_k": 1e-3, "learning_rate": 1e-4, "betas": (0.5, 0.999), "discriminator_norm": "none",
    "generator_norm": "layer", "minibatch_stddev": 0,
}  # fmt: skip
"""Berthelot et al. 2017, section 4. The norm lets the first samples vary; without it a new generator has one image."""

BEGAN_SHORT: dict[str, Any] = {"gamma": 0.7, "lambda_k": 0.01, "discriminator_learning_rate": 1e-3}
"""The same for points and images below 16 pixels, whose trainings are short."""

POINTS: dict[str, Any] = {
    "network": "mlp",
    "generator_norm": "none", "discriminator_norm": "none", "latent_dim": 2, "width": 128, "batch_size": 256,
}  # fmt: skip
"""For points: small networks without normalisation."""

RECOMMENDED_POINTS: dict[str, Any] = {
    "network": "mlp",
    "loss": "relativistic", "learning_rate": 2e-3, "betas": (0.0, 0.99), "frequencies": 32,
    "r1": 1.0, "r2": 1.0, "penalty_end": 1e-4, "penalty_every": 4,
}  # fmt: skip
"""The recommended recipe for points. Strong penalties at first let every mode be found; as they fade, and the learning
rate with them, the discriminator may become steep enough to take away the samples between the modes; the waves let it
see how wide a mode is."""

SMALL_IMAGES: dict[str, Any] = {
    "max_steps": 4000, "learning_rate": 2e-3, "betas": (0.0, 0.99), "width": 32, "latent_dim": 64, "base_size": 2,
    "generator_extra_layers": 1, "minibatch_stddev": 4,
}  # fmt: skip
"""For images below 16 pixels, such as digits: a narrow pair, fast learning, a generator deeper than its critic."""

CAPTIONED: dict[str, Any] = {
    "max_steps": 6000, "batch_size": 32, "learning_rate": 1e-3, "betas": (0.0, 0.99), "width": 32, "latent_dim": 32,
    "minibatch_stddev": 4,
}  # fmt: skip
"""For captioned images from 16 to 32 pixels, such as shapes: a narrow pair that learns fast."""

SMALL_IMAGES_WGAN_GP: dict[str, Any] = {
    "max_steps": 3500, "betas": (0.0, 0.9), "discriminator_steps": 2, "discriminator_learning_rate": 4e-3,
    "discriminator_norm": "none", "minibatch_stddev": 0, "gradient_penalty": 1.0,
}  # fmt: skip


UNUSED: dict[str, dict[str, Any]] = {
    "mlp": {"attention_size": 0, "stage_shares": None},
    "dcgan": {"attention_size": 0, "stage_shares": None},
    "biggan": {
        "generator_extra_layers": 0, "discriminator_extra_layers": 0, "discriminator_norm": "spectral", "pack": 1,
        "minibatch_stddev": 0, "stage_shares": None,
    },
    "progressive": {
        "generator_extra_layers": 0, "discriminator_extra_layers": 0, "generator_norm": "none",
        "discriminator_norm": "none", "attention_size": 0,
    },
}  # fmt: skip
"""Fields that a network does not use, or uses with one value only, with that value; any other is an error."""

OF_NETWORK: dict[str, dict[str, Any]] = {
    "biggan": {"latent_dim": 120, "orthogonal_penalty": 1e-4},
    "progressive": {"minibatch_stddev": 4},
}
"""Brock et al. 2019, section 3 and appendix B; Karras et al. 2018, section 3."""

TRAINED_AS: dict[str, dict[str, Any]] = {
    "biggan": {"loss": "hinge", "learning_rate": 1e-4, "discriminator_learning_rate": 4e-4, "betas": (0.0, 0.9)},
    "progressive": {"loss": "non_saturating", "r1": 1.0, "learning_rate": 1e-3, "betas": (0.0, 0.99)},
}
"""Loss and optimiser of a network where no loss is given: Zhang et al. 2019, section 4; Karras et al. 2018, appendix
A.1, but with R1 (Mescheder et al. 2018) in place of wasserstein_gp, with which digits came out worse."""

LARGEST_ATTENTION = 64
"""Largest smaller side of maps with self-attention that is recommended (Brock et al. 2019, appendix B)."""


def recommended(settings: GANSettings, dataset: Shaped) -> GANSettings:
    """Return the settings completed for the dataset and the loss."""
    # choose values for the loss
    loss = settings.loss
    values = COMMON | OF_LOSS.get(loss or "", {})
    if loss:
        values["loss"] = loss
    # choose values for the data
    if len(dataset.shape) == 1:
        values |= POINTS
        if loss is None:
            values |= RECOMMENDED_POINTS
        if settings.layers == 0:
            values["frequencies"] = 0                                      # a classifier that is linear in the points
    elif max(dataset.shape[1:]) < 16:
        values |= SMALL_IMAGES
        if loss == "wasserstein_gp":
            values |= SMALL_IMAGES_WGAN_GP
    elif settings.captions and loss is None and max(dataset.shape[1:]) <= 32:
        values |= CAPTIONED
    # choose values for the network
    network = settings.network or values["network"]
    values |= UNUSED[network] | OF_NETWORK.get(network, {})
    if loss is None:
        values |= TRAINED_AS.get(network, {})
    if network == "biggan":
        values["attention_size"] = attention_size(dataset.shape, settings.base_size or values["base_size"])
    # choose values for conditions
    conditional = settings.class_conditional or settings.captions
    if conditional and len(dataset.shape) == 3 and values["loss"] in BOUNDED:
        values["wrong_conditions"] = 0.5
    # choose values for an autoencoder in the place of the discriminator
    if loss == "began":
        values |= of_began(dataset.shape)
    # choose values for the discriminator, by default those of the generator
    settings = filled(settings, values)
    own = {"discriminator_learning_rate": settings.learning_rate, "discriminator_betas": settings.betas}
    return filled(settings, own)


def attention_size(shape: tuple[int, ...], base_size: int) -> int:
    """Return half the smaller side of images, halved to at most 64; 0 where no map lies between base and image."""
    size = min(shape[1:], default=0) // 2
    while size > LARGEST_ATTENTION:
        size //= 2
    return size if size >= 2 * base_size else 0


def of_began(shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the values of BEGAN for images (C, H, W) or points (2,); codes have fewer numbers than samples."""
    if len(shape) == 1:
        return {**BEGAN, **BEGAN_SHORT, "code_dim": 1, "generator_norm": "none"}
    if max(shape[1:]) < 16:
        return {**BEGAN, **BEGAN_SHORT, "code_dim": 16, "width": 16}
    return {**BEGAN, "code_dim": 64}


SPEC = SettingsSpec(GANSettings, recommended, kinds=IMAGES_AND_POINTS)
