"""Image translation: CycleGAN (Zhu et al. 2017) without pairs, pix2pix (Isola et al. 2017) with them.

    hfgen train translation --dataset-a horses --dataset-b zebras --resolution 286 --crop 256 --output-dir runs/zebras
    hfgen train translation --dataset-a edges --dataset-b photos --paired --output-dir runs/photos

Two generators, one for each direction, play against two discriminators, one for each domain.
"""

from collections.abc import Mapping
from functools import partial
from itertools import chain
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from hfgen.data import Dataset, load_dataset
from hfgen.data.source import NO_LABELS
from hfgen.data.unpaired import Unpaired, known_pairs
from hfgen.errors import ConfigError
from hfgen.losses.adversarial import OBJECTIVES, clip_weights, gradient_penalty
from hfgen.models.translator import PatchDiscriminator, ResNetTranslator, UNetTranslator, check_sides
from hfgen.pipelines.translation import DIRECTIONS, TranslationPipeline
from hfgen.training.engine.adversarial import optimizer
from hfgen.training.engine.image_pool import ImagePool
from hfgen.training.engine.noise import Noise
from hfgen.training.engine.phase import Batch, Phase, Recipe
from hfgen.training.engine.recipe import RecipeSpec
from hfgen.training.engine.run import main
from hfgen.training.engine.settings import values_of
from hfgen.training.settings.translation import SPEC, TranslationSettings
from hfgen.training.translation_evaluation import evaluate, preview

Nets = Mapping[str, nn.Module]
Losses = tuple[Tensor, dict[str, Tensor]]

GENERATORS = tuple(f"generator_{direction}" for direction in DIRECTIONS)


def open_datasets(settings: TranslationSettings) -> Unpaired:
    """Return the data of both domains, read in step. Raises ConfigError for settings that belong to one dataset."""
    # refuse settings of one dataset
    s = settings
    if s.dataset:
        raise ConfigError(f"--dataset {s.dataset}: there are two here, --dataset-a and --dataset-b")
    if s.paired and s.skip_bad_images:
        raise ConfigError("--skip-bad-images would pair images that do not belong together; repair the files")
    # open both domains
    names = ("image_column", "resolution", "channels", "background", "skip_bad_images", "flip", "streaming")
    choices = values_of(s, (*names, "num_workers")) | {"label_column": NO_LABELS}
    a = load_dataset(s.dataset_a, split=s.split, **choices)
    b = load_dataset(s.dataset_b, split=s.split_b or s.split, **choices)
    return Unpaired(a, b, paired=s.paired, crop=s.crop)


def build(s: TranslationSettings, dataset: Unpaired) -> Recipe:
    """Return four networks, the three phases of a step and the pipeline of both directions."""
    check_translation(s, dataset)
    # build networks and image pools
    nets = networks(s, dataset)
    losses, pools = TranslationLosses(s), {}
    if s.history:
        for domain, shape in (("a", dataset.shape_a), ("b", dataset.shape_b)):
            pools[f"history_{domain}"] = ImagePool(s.history, shape)
    # add a phase for both generators, and one for each discriminator
    forward = chain.from_iterable(nets[name].parameters() for name in GENERATORS)
    adam = optimizer(s.loss, forward, s.learning_rate, s.betas)
    phases = [Phase("generators", adam, GENERATORS, losses.generator_loss)]
    for domain in ("a", "b"):
        name = f"discriminator_{domain}"
        adam = optimizer(s.loss, nets[name].parameters(), s.discriminator_learning_rate, s.betas)
        after = partial(clip_weights, nets[name], s.clip) if s.clip else None
        phases.append(Phase(name, adam, (name,), partial(losses.discriminator_loss, domain), after=after))
    # assemble the recipe
    shown = held_out(s, dataset)
    return Recipe(
        nets=nets | pools,
        phases=phases,
        pipeline=lambda nets: TranslationPipeline(**{name: nets[name] for name in GENERATORS}),
        preview=partial(preview, dataset=dataset if shown is None else shown),
        averaged=GENERATORS,
        evaluate=None if shown is None else partial(evaluate, dataset=shown),
        usage="hfgen.TranslationPipeline.from_pretrained('{run}')(images, direction='a2b').images",
    )


class TranslationLosses:
    """The losses of the three phases of a step."""

    def __init__(self, settings: TranslationSettings):
        self.settings, self.objective = settings, OBJECTIVES[settings.loss]

    def generator_loss(self, nets: Nets, batch: Batch, noise: Noise, memo: dict[str, Tensor]) -> Losses:
        """(1) G_ab and G_ba: be taken for real, and undo each other (Zhu et al. 2017, eq. 3).

        Returns the weighted sum of the parts, a scalar, and scalars to log. `batch["a"]`, `batch["b"]`: images
        (B, C, H, W) in [-1, 1].
        """
        # compute the parts of both directions
        there = self.direction_loss(nets, batch, memo, "a", "b")
        back = self.direction_loss(nets, batch, memo, "b", "a")
        parts = {name: there[name] + back[name] for name in there}
        # sum them by weight
        total = sum(weight * parts[name] for name, weight in self.weights().items() if weight)
        scalars = {f"loss_{name}": value.detach() for name, value in parts.items()}
        return cast(Tensor, total), scalars | {"loss_generators": cast(Tensor, total).detach()}

    def direction_loss(self, nets: Nets, batch: Batch, memo: dict[str, Tensor], x: str, y: str) -> dict[str, Tensor]:
        """Return the parts of the loss of the translation from domain x to y, scalars; hand the translations on.

        Cycle consistency: Zhu et al. 2017, eq. 2; distance to the paired image: Isola et al. 2017, eq. 3. The
        translations are (B, C, H, W) in [-1, 1], and stand in `memo` without gradients.
        """
        # translate, and keep the translations for the discriminator
        there, back = nets[f"generator_{x}2{y}"], nets[f"generator_{y}2{x}"]
        made = there(batch[x]).sample.float()
        memo[f"fake_{y}"] = made.detach()
        # compute each part of the loss that has a weight
        fake = self.logits(nets, batch, y, made)
        real = self.logits(nets, batch, y, batch[y]) if self.settings.loss == "relativistic" else fake
        parts, weights = {"adversarial": self.objective.g(fake, real)}, self.weights()
        if weights["cycle"]:
            parts["cycle"] = F.l1_loss(back(made).sample.float(), batch[x])
        if weights["identity"]:
            parts["identity"] = F.l1_loss(there(batch[y]).sample.float(), batch[y])
        if weights["paired"]:
            parts["paired"] = F.l1_loss(made, batch[y])
        return parts

    def discriminator_loss(
        self, domain: str, nets: Nets, batch: Batch, noise: Noise, memo: dict[str, Tensor]
    ) -> Losses:
        """(2) D_A, (3) D_B: tell real images of a domain from translated ones, of this step or of earlier ones.

        Returns the mean loss over images and patches, a scalar, and scalars to log. `batch[domain]`: images
        (B, C, H, W) in [-1, 1].
        """
        # take translations of this step or of earlier ones
        x, made = batch[domain], memo[f"fake_{domain}"]
        if self.settings.history:
            made = nets[f"history_{domain}"](made, noise)
        # compute the objective, and the discriminator's mean verdicts
        real, fake = self.logits(nets, batch, domain, x), self.logits(nets, batch, domain, made)
        loss = self.objective.d(real, fake)
        says = self.objective.verdict(real.detach(), fake.detach())
        name = domain.upper()
        scalars = {f"loss_discriminator_{domain}": loss.detach(), f"D_{name}(x)": says[0], f"D_{name}(G(y))": says[1]}
        # add the gradient penalty of a Wasserstein critic
        if self.settings.gradient_penalty:
            def critic(image: Tensor) -> Tensor:
                return self.logits(nets, batch, domain, image).mean((1, 2, 3))
            penalty = gradient_penalty(critic, x, made, noise.uniform("eta"))
            loss = loss + self.settings.gradient_penalty * penalty
        return loss, scalars

    def logits(self, nets: Nets, batch: Batch, domain: str, image: Tensor) -> Tensor:
        """Return the logits of patches, (B, 1, h, w), of the domain's discriminator for images (B, C, H, W).

        In pairs it sees the other domain's image as well.
        """
        condition = None
        if self.settings.paired:
            condition = batch["b" if domain == "a" else "a"]
        return nets[f"discriminator_{domain}"](image, condition).logits

    def weights(self) -> dict[str, float]:
        """Return the weight of each part of the generators' loss."""
        s = self.settings
        cycle = s.cycle_weight
        identity, paired = cycle * s.identity_weight, s.paired_weight
        return {"adversarial": s.adversarial_weight, "cycle": cycle, "identity": identity, "paired": paired}


def networks(s: TranslationSettings, dataset: Unpaired) -> dict[str, nn.Module]:
    """Return the two generators and the two discriminators."""
    # choose the generators
    a, b = dataset.shape_a[0], dataset.shape_b[0]
    sizes: dict[str, Any] = {"width": s.width, "norm": s.norm, "dropout": s.dropout}
    if s.generator == "resnet":
        make: Any = partial(ResNetTranslator, **sizes, blocks=s.blocks, downsamplings=s.downsamplings)
    else:
        make = partial(UNetTranslator, **sizes, depth=s.depth)
    # build them and the discriminators
    patches: dict[str, Any] = {"width": s.discriminator_width, "layers": s.discriminator_layers}
    patches["norm"] = s.discriminator_norm
    forth, back = make(a, b), make(b, a)
    for net, (_, height, width) in ((forth, dataset.shape_a), (back, dataset.shape_b)):
        check_sides(height, width, *net.sides)
    return {
        "generator_a2b": forth,
        "generator_b2a": back,
        "discriminator_a": PatchDiscriminator(a, b if s.paired else 0, **patches),
        "discriminator_b": PatchDiscriminator(b, a if s.paired else 0, **patches),
    }


def check_translation(s: TranslationSettings, dataset: Unpaired) -> None:
    """Raise ConfigError, naming the field, for values that no translation can use."""
    # check the ranges of single fields
    names = ("adversarial_weight", "cycle_weight", "identity_weight", "paired_weight", "gradient_penalty", "clip")
    for name in (*names, "history"):
        if not 0 <= getattr(s, name) < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')} must be a number >= 0, got {getattr(s, name)}")
    if not s.discriminator_learning_rate > 0:
        raise ConfigError(f"--discriminator-learning-rate must be above 0, got {s.discriminator_learning_rate}")
    if not all(0 <= beta < 1 for beta in s.betas):
        raise ConfigError(f"--betas must be two numbers in [0, 1), got {s.betas}")
    # check fields that exclude each other
    if s.paired_weight and not s.paired:
        raise ConfigError(f"--paired-weight {s.paired_weight}: needs --paired, image i of B true for image i of A")
    if s.paired and s.history:
        raise ConfigError(f"--history {s.history}: with --paired a discriminator sees both images of a pair; take 0")
    if s.identity_weight and dataset.shape_a[0] != dataset.shape_b[0]:
        channels = f"{dataset.shape_a[0]} and {dataset.shape_b[0]}"
        raise ConfigError(f"--identity-weight {s.identity_weight}: A and B have {channels} channels; take 0")
    if not any(TranslationLosses(s).weights().values()):
        raise ConfigError("--adversarial-weight, --cycle-weight and --paired-weight are all 0: nothing is learned")


def held_out(settings: TranslationSettings, dataset: Unpaired) -> Unpaired | None:
    """Return the images of --eval-dataset-a and -b and their splits; None where none of these fields is given.

    They have the sides and channels of the training data; `paired` where --paired is given, or they are known to be.
    """
    s = settings
    if not any((s.eval_split, s.eval_split_b, s.eval_dataset_a, s.eval_dataset_b)):
        return None
    # open images shaped like the training data
    split = s.eval_split or "train"
    a = _like(dataset.a, s, s.eval_dataset_a or s.dataset_a, split)
    b = _like(dataset.b, s, s.eval_dataset_b or s.dataset_b, s.eval_split_b or split)
    return Unpaired(a, b, paired=s.paired or known_pairs(a, b), crop=s.crop)


def _like(trained: Dataset, s: TranslationSettings, name: str, split: str) -> Dataset:
    """Return a dataset with the sides and channels of the one that is trained on."""
    channels, height, width = trained.shape
    choices = values_of(s, ("image_column", "background", "skip_bad_images"))
    choices |= {"resolution": (height, width), "channels": channels, "label_column": NO_LABELS}
    return load_dataset(name, split=split, **choices)


RECIPE = RecipeSpec(SPEC, build, open_datasets)

if __name__ == "__main__":
    from hfgen.training import translation

    raise SystemExit(main(translation.RECIPE))
