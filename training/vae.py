"""Variational autoencoders (Kingma and Welling 2014): maximise a lower bound on log p(x).

    hfgen train vae --dataset digits --latent-dim 2 --output-dir runs/plane
    hfgen train vae --dataset data/mnist-train.parquet --importance-samples 50 --output-dir runs/iwae
    hfgen train vae --dataset data/mnist-train.parquet --posterior inverse_autoregressive --output-dir runs/flow
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from hfgen.data.dataset import Dataset
from hfgen.errors import ConfigError
from hfgen.losses.elbo import LIKELIHOODS, binarised, elbo, free_bits, log_mean_exp
from hfgen.metrics.likelihood import active_units
from hfgen.models.vae import VAE, HierarchicalVAE, LatentModel, Terms
from hfgen.pipelines.base import Pipeline
from hfgen.pipelines.vae import VAEPipeline
from hfgen.training.engine.evaluation import batches_of, held_out
from hfgen.training.engine.noise import Noise
from hfgen.training.engine.phase import Batch, Phase, Recipe, detached
from hfgen.training.engine.preview import preview
from hfgen.training.engine.recipe import RecipeSpec, mean_and_std, side_or_sides
from hfgen.training.engine.run import main
from hfgen.training.settings.vae import SPEC, VAESettings

LOOKED_AT, LISTED = 2000, 16
"""Items that the training data are judged by, and latents listed one by one."""

START_SIGMA = 0.3
"""Initial value of a learned scale of p(x|z)."""


def build(s: VAESettings, dataset: Dataset) -> Recipe:
    """Return the network, the one phase and the pipeline of a variational autoencoder of `dataset`."""
    # build network and optimiser
    check_vae(s, dataset)
    net: Any = network(s, dataset)
    rate, epsilon = s.learning_rate, s.adam_epsilon
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, eps=epsilon, fused=True)
    # evaluate on held-out data, else on the first batches of the run
    evaluation = held_out(s, dataset)
    judged = partial(training_batches, dataset, s)
    if evaluation is not None:
        judged = partial(batches_of, evaluation)
    # assemble the recipe
    return Recipe(
        nets={"vae": net},
        phases=[Phase("vae", optimizer, ("vae",), VAELoss(s, net.sizes))],
        pipeline=lambda nets: VAEPipeline(nets["vae"]),
        preview=partial(picture, dataset=dataset, s=s),
        averaged=("vae",),
        evaluate=lambda nets: evaluate(nets["vae"], judged(), s, named=evaluation is not None),
        guard=guard,
    )


class VAELoss:
    """The loss of the one phase: the negated bound on log p(x), a mean over images, in nats."""

    def __init__(self, settings: VAESettings, sizes: tuple[int, ...]):
        self.settings, self.sizes = settings, sizes

    def __call__(
        self, nets: Mapping[str, nn.Module], batch: Batch, noise: Noise, memo: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and ELBO, reconstruction (- log p(x|z)) and KL to log: scalars in nats.

        `batch["x"]`: images (B, C, H, W) in [-1, 1], or points (B, 2).
        """
        # draw black or white pixels, and eps for each layer of latents
        s, x = self.settings, batch["x"]
        if draws_pixels(s):
            x = binarised(x, noise.uniform("pixels", *x.shape[1:]))
        eps = [noise.normal(f"z_{i}", s.importance_samples, D) for i, D in enumerate(self.sizes, 1)]
        # compute the terms of the bound on log p(x)
        terms = nets["vae"](x, eps, batch["label"] if s.class_conditional else None)
        bound = self.bound(terms, noise.step)                                            # (B,)
        kl = total(terms).mean()
        log_px = terms.log_px_z.mean()
        scalars = {"loss": -bound.mean(), "elbo": log_px - kl, "reconstruction": -log_px, "kl": kl}
        if s.importance_samples > 1:
            scalars["iwae"] = log_mean_exp(terms.log_weights).mean()
        return scalars["loss"], detached(scalars)

    def bound(self, terms: Terms, step: int) -> Tensor:
        """Return the objective to maximise, (B,) in nats: the ELBO or the bound L_k, with the KL weighted for `step`.

        L_k: Burda et al. 2016, eq. 8. Free bits are counted image by image, not on a batch's mean, so that the result
        does not depend on how a batch is divided.
        """
        s = self.settings
        beta = s.beta * min(1.0, (step + 1) / max(1, s.beta_warmup_steps))
        if s.importance_samples > 1:
            return log_mean_exp(terms.log_px_z - beta * terms.log_ratio)
        kl = free_bits(terms.kl[0], s.free_bits) if s.free_bits else total(terms)
        return elbo(terms.log_px_z, kl, beta)[:, 0]


def total(terms: Terms) -> Tensor:
    """Return the KL over all layers and dimensions, (B, 1 or k) in nats."""
    return cast(Tensor, sum(kl.sum(-1) for kl in terms.kl))


def draws_pixels(s: VAESettings) -> bool:
    """Return whether the model sees pixels drawn black or white."""
    return s.likelihood == "bernoulli" and s.binarise


def network(s: VAESettings, dataset: Dataset) -> LatentModel:
    """Return the model for the dataset's images or points, which starts from the mean of the first 10,000."""
    # collect arguments that all networks share
    sizes, hidden = s.latent_dim, s.hidden
    choices: dict[str, Any] = {
        "body": s.body, "activation": s.activation, "likelihood": s.likelihood, "learned_sigma": s.sigma is None,
        "sigma": START_SIGMA if s.sigma is None else s.sigma, "levels": dataset.top + 1,
        "num_classes": dataset.num_classes if s.class_conditional else None, "sigma_per_pixel": s.sigma_per_pixel,
    }  # fmt: skip
    if s.sigma_per_pixel:
        choices["min_sigma"] = smallest_sigma(s, dataset)
    if len(dataset.shape) == 1:
        choices |= {"dim": dataset.shape[0], **mean_and_std(dataset)}
    else:
        choices |= {"channels": dataset.shape[0], "resolution": side_or_sides(dataset)}
    # build one layer of latents, or a hierarchy
    if len(sizes) == 1:
        if s.posterior != "normal":
            choices |= {"posterior": s.posterior, "flow_steps": s.flow_steps, "flow_width": s.flow_width or 1}
        net: LatentModel = VAE(latent_dim=sizes[0], hidden=hidden, **choices)
    else:
        layers = (hidden, *[s.upper_hidden] * (len(sizes) - 1))
        net = HierarchicalVAE(latent_dims=sizes, hidden=layers, **choices)
    # start from the mean of the data
    if len(dataset.shape) == 3:
        net.start_at(dataset.tensor(10_000).mean(0))
    return net


def smallest_sigma(s: VAESettings, dataset: Dataset) -> float:
    """Return the smallest scale of a pixel: as given, else the deviation of rounding, a bin / sqrt(12)."""
    if s.min_sigma is not None:
        return s.min_sigma
    if len(dataset.shape) == 1:
        return 0.01
    return min(0.1, 2 / dataset.top / 12**0.5)


def check_vae(s: VAESettings, dataset: Dataset) -> None:
    """Raise ConfigError, naming the field, for settings that no run can use."""
    # check the data
    points = len(dataset.shape) == 1
    if s.class_conditional and not dataset.num_classes:
        raise ConfigError(f"--class-conditional: the dataset {s.dataset!r} has no labels")
    if points and s.likelihood != "gaussian":
        raise ConfigError(f"--likelihood must be gaussian for points, got {s.likelihood}")
    if points and (s.eval_split is not None or s.eval_dataset is not None):
        raise ConfigError(f"--eval-split, --eval-dataset: {s.dataset} is a set of points, these are for images")
    # check the ranges
    if not s.latent_dim:
        raise ConfigError("--latent-dim must be one number, or several for a hierarchy, got none")
    if s.importance_samples < 1:
        raise ConfigError(f"--importance-samples must be at least 1, got {s.importance_samples}")
    for name in ("beta", "beta_warmup_steps", "free_bits"):
        if getattr(s, name) < 0:
            raise ConfigError(f"--{name.replace('_', '-')} must not be negative, got {getattr(s, name)}")
    # check fields that exclude each other
    if s.free_bits and (s.importance_samples > 1 or len(s.latent_dim) > 1 or s.posterior != "normal"):
        raise ConfigError("--free-bits needs the KL in closed form: --importance-samples 1, one --latent-dim, and "
                          "--posterior normal")  # fmt: skip
    check_posterior(s)
    if s.sigma is not None and not LIKELIHOODS[s.likelihood].has_scale:
        raise ConfigError(f"--sigma {s.sigma}: --likelihood {s.likelihood} has none")
    if s.sigma_per_pixel and not LIKELIHOODS[s.likelihood].has_scale:
        raise ConfigError(f"--sigma-per-pixel: --likelihood {s.likelihood} has no scale")
    if s.sigma_per_pixel and s.sigma is not None:
        raise ConfigError(f"--sigma {s.sigma} is one scale for all pixels, without --sigma-per-pixel")
    if s.min_sigma is not None and not (s.sigma_per_pixel and 0 < s.min_sigma < START_SIGMA):
        raise ConfigError(f"--min-sigma must be between 0 and {START_SIGMA}, with --sigma-per-pixel, got {s.min_sigma}")


def check_posterior(s: VAESettings) -> None:
    """Raise ConfigError, naming the field, for a flow that no run can use, and for fields that it does not have."""
    flow = s.posterior != "normal"
    if flow and len(s.latent_dim) > 1:
        raise ConfigError(f"--posterior {s.posterior} is for one --latent-dim, got {len(s.latent_dim)}")
    used = {"flow_steps": flow, "flow_width": s.posterior == "inverse_autoregressive"}
    for name, has in used.items():
        if has and getattr(s, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(s, name)}")
        if not has and getattr(s, name):
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(s, name)}: --posterior {s.posterior} has none")


def training_batches(dataset: Dataset, s: VAESettings) -> Iterator[Batch]:
    """Yield the first batches of the run, with 2,000 items or a few more."""
    size = s.batch_size
    return islice(dataset.batches(seed=s.seed, batch_size=size), -(-LOOKED_AT // size))


@torch.no_grad()
def evaluate(net: Any, batches: Iterable[Batch], s: VAESettings, named: bool) -> dict[str, float]:
    """Return how the latents are used: active units, and the KL by dimension; of `named` data the ELBO as well.

    With the same draws every time. Of more than 16 latents the smallest, mean and largest KL stand for all; a flow's KL
    is one number for all latents, which the log has.
    """
    # collect posterior means, KL and bound of all batches
    device, generator = net.centre.device, torch.Generator().manual_seed(s.seed)
    means, kls, bounds = [], [], []
    for batch in batches:
        x, labels = batch["x"], None
        if s.class_conditional:
            labels = batch["label"].to(device)
        if draws_pixels(s):
            x = binarised(x, torch.rand(x.shape, generator=generator))
        x = x.to(device)
        terms = net(x, net.normals(len(x), 1, generator), labels)
        means.append([layer.cpu() for layer in net.means(x, labels)])
        kls.append(torch.cat(terms.kl, -1)[:, 0].cpu())                                  # (b, D)
        bounds.append(elbo(terms.log_px_z, total(terms))[:, 0].cpu())
    # count active units, list the KL
    layers = [active_units(torch.cat(layer)) for layer in zip(*means, strict=True)]
    numbers: dict[str, float] = {"active_units": sum(layers)}
    if len(layers) > 1:
        numbers |= {f"active_units_{i}": units for i, units in enumerate(layers, 1)}
    if net.flow is None:
        numbers |= by_dimension(torch.cat(kls).double().mean(0))
    if named:
        numbers["eval_elbo"] = float(torch.cat(bounds).double().mean())
    return numbers


def by_dimension(kl: Tensor) -> dict[str, float]:
    """Return the KL of each dimension (D,), in nats, by name, or their minimum, mean and maximum."""
    if len(kl) <= LISTED:
        return {f"kl_{d}": value for d, value in enumerate(kl.tolist())}
    return {"kl_min": float(kl.min()), "kl_mean": float(kl.mean()), "kl_max": float(kl.max())}


def picture(pipeline: Pipeline, dataset: Dataset, s: VAESettings) -> Image.Image:
    """Return the plane of latents as one picture where there are two; else samples, as all recipes draw them."""
    if len(dataset.shape) == 3 and cast(LatentModel, pipeline.vae).latent_size == 2:
        return cast(VAEPipeline, pipeline).manifold(class_labels=0 if s.class_conditional else None)
    return preview(pipeline, dataset, s.seed, labelled=s.class_conditional)


def guard(memory: dict[str, Any], line: dict[str, float]) -> tuple[dict[str, Any], str | None]:
    """Return whether the posterior has collapsed by the last evaluation, and a warning where that is new."""
    if not any(name.startswith("active_units") for name in line):
        return memory, None
    warning = diagnose(line)
    return {"collapsed": warning is not None}, None if memory.get("collapsed") else warning


def diagnose(numbers: dict[str, float]) -> str | None:
    """Return diagnosis and advice for a line of the log whose posterior has collapsed to the prior; None if healthy."""
    unused = [name for name, value in numbers.items() if name.startswith("active_units") and value == 0]
    if not unused:
        return None
    whole = "active_units" in unused
    where = "" if whole else f" in layer {', '.join(name.rpartition('_')[2] for name in unused)}"
    return (
        f"the posterior has collapsed{where}: q(z|x) is the same for every x, no unit is active"
        f" (KL {numbers['kl']:.3g} nats in all), and the decoder ignores z. Try a longer --beta-warmup-steps, "
        "--free-bits 0.1, a smaller --beta, a smaller --sigma, or a smaller --learning-rate"
    )


RECIPE = RecipeSpec(SPEC, build)

if __name__ == "__main__":
    from hfgen.training import vae

    raise SystemExit(main(vae.RECIPE))
