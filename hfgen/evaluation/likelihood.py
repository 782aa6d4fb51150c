"""Log-likelihoods of items by family; for a family without likelihoods the reason.

The items are held-out data if there are any, else the reference data that samples are compared with. Conditional models
are conditioned on the classes and captions of the items: the quantity is log p(x|y).
"""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, singledispatch
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfgen.data.coordinates import Coordinates
from hfgen.data.order import derive_seed
from hfgen.data.toy import Toy
from hfgen.errors import ConfigError, NonFiniteError
from hfgen.evaluation.context import MetricContext, MetricResult
from hfgen.evaluation.reference import ReferenceData
from hfgen.losses.elbo import binarised
from hfgen.metrics.bootstrap import mean_interval
from hfgen.metrics.likelihood import (
    ROWS,
    Predict,
    bits_per_dim,
    dequantised,
    elbo,
    log_likelihood,
    ode_bits_per_dim,
    ode_log_likelihood,
    variational_bound,
)
from hfgen.metrics.likelihood.bound import stretches
from hfgen.pipelines.autoregressive import AutoregressivePipeline
from hfgen.pipelines.conditional import EVERYWHERE
from hfgen.pipelines.ddpm import DDPMPipeline
from hfgen.pipelines.gan import GANPipeline
from hfgen.pipelines.latent_diffusion import LatentDiffusionPipeline
from hfgen.pipelines.normalizing_flow import NormalizingFlowPipeline
from hfgen.pipelines.vae import VAEPipeline
from hfgen.schedulers.ddpm import DDPMScheduler
from hfgen.schedulers.samplers import make_sampler
from hfgen.schedulers.traits import traits_of
from hfgen.schedulers.vp_sde import VPSDEScheduler

VAE_ITEMS, BATCH_SIZE = 1000, 16
"""Number of items whose likelihood under a VAE is computed, and of items in one batch of a diffusion model."""

EXACT_ITEMS, EXACT_BATCH = 1000, 50
"""Default number of items whose exact likelihood is computed, and of items in one batch."""

ODE_EVALUATIONS = 150
"""Approximate number of evaluations of the network that the ODE takes."""

ITEMS, DRAWS, TOLERANCE = 64, 100, 1e-4
"""Defaults for a diffusion model: items, terms of the bound and tolerance of the ODE. The tolerance changes the bits of
a small digits model by 0.01, which is far below the standard error."""

Compute = Callable[[Predict, Tensor, torch.Generator], Tensor]
"""A function that computes the likelihood of items under a diffusion model, (B,)."""


def likelihood(context: MetricContext) -> MetricResult:
    """Return the likelihoods that the family of the model has, and for a toy set the density at the samples."""
    # compute the likelihoods of the family
    items, words = context.reference, "the real data that samples are compared with"
    if context.held_out is not None:
        items, words = context.held_out, "held-out data"
    result = family_likelihood(context.model.pipeline, context, items)
    for row in result.metrics.values():
        row["items"] = words

    # compute the density of a toy set
    data = context.reference.data
    if isinstance(data, Toy):
        if data.sigma:
            result.metrics["log_p"] = _density(context, data)
        else:
            result.none["log_p"] = f"points of {data.name} lie on a curve without noise, which has no density"
    return result


@singledispatch
def family_likelihood(pipeline: Any, context: MetricContext, items: ReferenceData) -> MetricResult:
    """Return the likelihoods of items under a pipeline, or the reason why its family has none."""
    return _no_likelihood(f"how {type(pipeline).__name__} makes its samples is not known")


@family_likelihood.register(AutoregressivePipeline)
def exact_likelihood(pipeline: AutoregressivePipeline, context: MetricContext, items: ReferenceData) -> MetricResult:
    """Return the exact log-likelihood of items in nats, also in bits per dimension.

    Default: as many of 1,000 items as `likelihood_seconds` allow; with `likelihood_images` all those items.
    """
    # leave out models without a likelihood of pixels
    if pipeline.autoencoder is not None:
        return _no_likelihood("the likelihood of this model is of codes; through its decoder there is none on images")
    if missing := _missing(context, items):
        return _no_likelihood(missing)
    # take the items, as the model was trained on them
    images, seed = context.settings.likelihood_images, derive_seed(context.settings.seed, "likelihood")
    number = min(images or EXACT_ITEMS, items.count)
    x, of = pixels_of(pipeline, items, number, seed)
    # make a row
    values = _exact(pipeline, context, items, x)
    row = _interval(values, context) | {"unit": "nats", "of": of, "count": len(values), "exact": True}
    row["bits_per_dim"] = bits_per_dim(row["value"], math.prod(items.data.shape))
    return MetricResult({"log_likelihood": row})


def pixels_of(
    pipeline: AutoregressivePipeline, items: ReferenceData, number: int, seed: int
) -> tuple[Tensor, str]:
    """Return the first items (number, C, H, W) in [0, 1], binarised if the model's data were; and a description."""
    x, levels = items(range(number)), pipeline.config["levels"]
    of = f"pixels at {levels} levels"
    if pipeline.config["binarised"]:
        x, of = binarised(x, torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))), "binarised pixels"
    elif levels != items.data.top + 1:
        of = f"pixels rounded to {levels} levels"
    return x / 2 + 0.5, of


@family_likelihood.register(NormalizingFlowPipeline)
def flow_likelihood(pipeline: NormalizingFlowPipeline, context: MetricContext, items: ReferenceData) -> MetricResult:
    """Return the exact log-density of items with dequantised pixels in nats, also in bits per dimension of their
    levels, an upper bound.

    Default: as many of 1,000 items as `likelihood_seconds` allow; with `likelihood_images` all those items.
    """
    if missing := _missing(context, items):
        return _no_likelihood(missing)
    # fill the bins of pixels
    number, levels = min(context.settings.likelihood_images or EXACT_ITEMS, items.count), items.data.top + 1
    seed = derive_seed(context.settings.seed, "likelihood")
    x = items(range(number))
    x = dequantised(x, torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)), levels)
    # make a row
    values = _exact(pipeline, context, items, x / 2 + 0.5)
    of = f"density of pixels, {levels} levels dequantised"
    row = _interval(values, context) | {"unit": "nats", "of": of, "count": len(values), "exact": True}
    row["bits_per_dim"] = bits_per_dim(row["value"], math.prod(items.data.shape), 2 / (levels - 1))
    return MetricResult({"log_likelihood": row})


def _exact(pipeline: Any, context: MetricContext, items: ReferenceData, x: Tensor) -> Tensor:
    """Return the log-likelihoods (n,) in nats of the first n of the images x (number, C, H, W) in [0, 1], which are
    `items`; n = number, or as many as `likelihood_seconds` allow if no number of images is given."""
    # collect their conditions
    number, captions = len(x), None
    labels = _labels(context, items, number)
    if context.generator.conditions.captions is not None:
        captions = items.captions(number)
    # compute them as long as there is time
    limit = None if context.settings.likelihood_images else context.settings.likelihood_seconds
    clock, parts = Clock(limit), list[Tensor]()
    for first in range(0, number, EXACT_BATCH):
        rows = slice(first, min(first + EXACT_BATCH, number))
        if parts and not clock.allows(rows):
            break
        context.progress.tick(max(first / number, min(1.0, clock.spent)))
        prompt = None if captions is None else captions[rows]
        parts.append(pipeline.log_likelihood(x[rows], None if labels is None else labels[rows], prompt))
    return torch.cat(parts)


@family_likelihood.register(GANPipeline)
def _(pipeline: GANPipeline, context: MetricContext, items: ReferenceData) -> MetricResult:
    return _no_likelihood("a GAN has no likelihood: it is trained without one, and its samples fill no volume")


@family_likelihood.register(LatentDiffusionPipeline)
def _(pipeline: LatentDiffusionPipeline, context: MetricContext, items: ReferenceData) -> MetricResult:
    words = "the bound of latent diffusion is on its latents; through its decoder there is none on images"
    return _no_likelihood(words)


def is_timed(pipeline: Any) -> bool:
    """Return whether the likelihoods of a pipeline take the time of `likelihood_seconds`."""
    return family_likelihood.dispatch(type(pipeline)) is diffusion_likelihood


def _no_likelihood(reason: str) -> MetricResult:
    return MetricResult(none={"likelihood": reason})


def _missing(context: MetricContext, items: ReferenceData) -> str | None:
    """Return the reason if the items lack the conditions of the model; None if they have them."""
    conditions, classes = context.generator.conditions, items.data.num_classes
    if conditions.labels is not None and (classes is None or classes != context.reference.data.num_classes):
        return f"{items.data.name} does not have the labels that the model is conditioned on"
    if conditions.captions is not None and items.data.captions is None:
        return f"{items.data.name} does not have the captions that the model is conditioned on"
    return None


def _density(context: MetricContext, data: Toy) -> dict[str, Any]:
    """Return the mean log-density of a toy set at the samples and, as the floor, at points of the set, in nats."""
    points, seed, resamples = context.samples.features, context.settings.seed, context.resamples
    floor = mean_interval(data.log_prob(data.sample(len(points), derive_seed(seed, "density"))), resamples, seed)
    row = _interval(data.log_prob(points), context)
    row |= {"floor": floor[0], "floor_low": floor[1], "floor_high": floor[2]}
    return row | {"unit": "nats", "of": "samples under the true density", "count": len(points)}


def _interval(values: Tensor, context: MetricContext) -> dict[str, Any]:
    """Return the mean of values (N,) and its 95 % interval."""
    mean = mean_interval(values, context.resamples, context.settings.seed)
    return dict(zip(("value", "low", "high"), mean, strict=True))


def _standardised(x: Tensor, config: Any) -> tuple[Tensor, float]:
    """Return points (B, 2) in the coordinates of a model, and the difference of log-densities to data coordinates."""
    coordinates = Coordinates.of(config)
    scale = torch.zeros(2) + coordinates.std.to(x)
    return coordinates.to_model(x), -float(scale.log().sum())


def _labels(context: MetricContext, items: ReferenceData, number: int) -> Tensor | None:
    """Return the labels of the first items, (number,), for a model that is conditioned on classes."""
    return None if context.generator.conditions.labels is None else items.labels(number)


class VAEItems(NamedTuple):
    """Items as the likelihood of a VAE takes them.

    `x` (B, ...) in model coordinates; `log_scale`: the difference of log-densities to data coordinates; `of`: the
    quantity, in words; `width`: of the bins of pixels in model coordinates, None for points.
    """

    x: Tensor
    log_scale: float
    of: str
    width: float | None


def vae_items(vae: Any, items: ReferenceData, number: int, seed: int) -> VAEItems:
    """Return the first items as the likelihood of a VAE takes them: binarised, discrete, or dequantised with `seed`.

    Raises ConfigError if pixels of the model and of the data have different numbers of levels.
    """
    # standardise points
    x, levels = items(range(number)), items.data.top + 1
    if items.points:
        x, log_scale = _standardised(x, vae.config)
        return VAEItems(x, log_scale, "density of points", None)
    # binarise or dequantise pixels, or keep them
    u = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))
    if vae.config["likelihood"] == "bernoulli":
        return VAEItems(binarised(x, u), 0.0, "binarised pixels", 1.0)
    if not vae.likelihood.discrete:
        of = f"density of pixels, {levels} levels dequantised"
        return VAEItems(dequantised(x, u, levels), 0.0, of, 2 / (levels - 1))
    if vae.config["levels"] != levels:
        raise ConfigError(f"the model's pixels have {vae.config['levels']} levels, these {levels}")
    return VAEItems(x, 0.0, f"pixels at {levels} levels", 1.0)


@family_likelihood.register(VAEPipeline)
def vae_likelihood(pipeline: VAEPipeline, context: MetricContext, items: ReferenceData) -> MetricResult:
    """Return the ELBO and the importance-sampled log-likelihood of items, in nats, for images also in bits/dim."""
    # move items and labels to the device of the model
    if missing := _missing(context, items):
        return _no_likelihood(missing)
    vae: Any = pipeline.vae
    number, device = min(VAE_ITEMS, items.count), vae.centre.device
    seed = derive_seed(context.settings.seed, "likelihood")
    try:
        prepared = vae_items(vae, items, number, seed)
    except ConfigError as error:
        return _no_likelihood(str(error))
    x, labels = prepared.x.to(device), _labels(context, items, number)
    if labels is not None:
        labels = labels.to(device)

    # estimate, and make a row of each
    rows: dict[str, dict[str, Any]] = {}
    draws_of = {"elbo": (elbo, 1), "log_likelihood": (log_likelihood, context.settings.importance_samples)}
    for name, (estimate, draws) in draws_of.items():
        tick = context.progress.tick if name == "log_likelihood" else None
        values = _in_batches(partial(estimate, vae), x, labels, draws, seed, tick)
        row = _interval(values + prepared.log_scale, context)
        row |= {"unit": "nats", "of": prepared.of, "count": number, "draws": draws}
        if prepared.width is not None:
            row["bits_per_dim"] = bits_per_dim(row["value"], math.prod(items.data.shape), prepared.width)
        rows[name] = row
    return MetricResult(rows)


def _in_batches(
    estimate: Callable[..., Tensor], x: Tensor, labels: Tensor | None, draws: int, seed: int,
    tick: Callable[[float], None] | None,
) -> Tensor:  # fmt: skip
    """Return the estimates (N,), in nats, for items x (N, ...) from `draws` of z each; `tick` gets the share done."""
    generator, batch, parts = torch.Generator().manual_seed(seed), max(1, ROWS // draws), list[Tensor]()
    for start in range(0, len(x), batch):
        if tick is not None:
            tick(start / len(x))
        some = slice(start, start + batch)
        classes = None if labels is None else labels[some]
        parts.append(estimate(x[some], draws, generator, class_labels=classes))
    return torch.cat(parts)


class Estimator(NamedTuple):
    """An estimator of likelihoods: its function, evaluations of the network for one batch, and facts for its row."""

    compute: Compute
    evaluations: int
    facts: dict[str, Any]


@dataclass(frozen=True)
class DiffusionItems:
    """Items whose likelihood under a diffusion model is computed.

    `x` (N, ...) in model coordinates, with `labels` (N,) and `captions` if the model is conditioned on them; `levels`:
    of pixels, None for points; `log_scale`: the difference of log-densities to data coordinates; `limited`: compute
    only as many items as the time allows.
    """

    context: MetricContext
    pipeline: DDPMPipeline
    x: Tensor
    labels: Tensor | None
    captions: list[str] | None
    levels: int | None
    log_scale: float
    limited: bool

    @classmethod
    def of(cls, pipeline: DDPMPipeline, context: MetricContext, items: ReferenceData) -> "DiffusionItems":
        """Return the first items: `likelihood_images` of them. Default: at most 64, as many as the time allows."""
        # bring items into model coordinates
        images = context.settings.likelihood_images
        number = min(images or ITEMS, items.count)
        x, log_scale, levels = items(range(number)), 0.0, None
        if pipeline.points:
            x, log_scale = _standardised(x, pipeline.unet.config)
        else:
            levels = items.data.top + 1
        # collect their conditions
        labels, captions = _labels(context, items, number), None
        if context.generator.conditions.captions is not None:
            captions = items.captions(number)
        return cls(context, pipeline, x, labels, captions, levels, log_scale, limited=images is None)

    def bound(self, trained: Any) -> Estimator:
        """Return the estimator by the variational bound (Ho et al. 2020, eq. 5)."""
        # build the chain, and count its terms
        chain = trained.discretised() if traits_of(trained).continuous else trained
        T, draws = len(chain.betas), DRAWS if self.limited else None
        terms = len(stretches(T, draws))

        def compute(predict: Predict, x: Tensor, generator: torch.Generator) -> Tensor:
            bound = variational_bound(predict, chain, x, self.levels, generator, draws)
            return bound.bits_per_dim if self.levels else self.log_scale - bound.nats

        return Estimator(compute, terms, {"timesteps": T, "terms": terms, "variance_type": chain.variance_type})

    def ode(self, trained: Any) -> Estimator:
        """Return the estimator by the probability-flow ODE (Song et al. 2021, eq. 39)."""
        # choose SDE and tolerances
        sde = trained if traits_of(trained).continuous else make_sampler("ode_heun", trained)
        usual = signature(ode_log_likelihood).parameters
        tolerances = {"rtol": usual["rtol"].default, "atol": usual["atol"].default}
        if self.limited:
            tolerances = dict.fromkeys(tolerances, TOLERANCE)

        def compute(predict: Predict, x: Tensor, generator: torch.Generator) -> Tensor:
            if self.levels:
                return ode_bits_per_dim(predict, sde, x, generator, self.levels, **tolerances)
            return ode_log_likelihood(predict, sde, x, generator, None, **tolerances).log_prob + self.log_scale

        # record settings of the estimate for pixels
        facts = {"probes": None, "dequantisation": "none"}
        if self.levels:
            facts = {"probes": usual["probes"].default, "dequantisation": "uniform"}
        return Estimator(compute, ODE_EVALUATIONS, {**tolerances, **facts, "t_min": sde.t_min})

    def values(self, estimator: Estimator, done: float) -> Tensor:
        """Return the likelihoods of the items, (n,), in nats or bits/dim. `done`: the share of the stage before."""
        # compute batch by batch, as long as there is time
        parts, clock = list[Tensor](), Clock(self.context.settings.likelihood_seconds if self.limited else None)
        for rows in pieces(len(self.x), self.limited):
            if parts and not clock.allows(rows):
                break
            predict = self._reporting(self._predictor(rows), rows, estimator.evaluations, clock, done)
            generator = torch.Generator().manual_seed(derive_seed(self.context.settings.seed, "likelihood", rows.start))
            parts.append(estimator.compute(predict, self.x[rows].to(self.pipeline.unet.device), generator).cpu())
        return torch.cat(parts)

    def _predictor(self, rows: slice) -> Predict:
        """Return the network, conditioned on the classes and captions of items, as a function of x_t and t; no
        guidance."""
        # take the conditions of these items
        labels = captions = None
        count = 1
        if self.captions is not None:
            captions = self.captions[rows]
            count = len(captions)
        if self.labels is not None:
            labels = self.labels[rows]
            count = len(labels)
        # call the network with them
        cond = self.pipeline._guide(captions, None, labels, count, 1.0, EVERYWHERE, 0.0).cond
        net: Any = self.pipeline.unet
        return lambda x_t, t: net(x_t, t, return_dict=False, **cond)[0]

    def _reporting(self, predict: Predict, rows: slice, evaluations: int, clock: "Clock", done: float) -> Predict:
        """Return `predict`, which also reports the progress within the items `rows`, of some number of evaluations."""
        calls = itertools.count(1)

        def reporting(x_t: Tensor, t: Tensor) -> Tensor:
            items = rows.start + (rows.stop - rows.start) * min(1.0, next(calls) / evaluations)
            self.context.progress.tick(done + min(1.0, max(items / len(self.x), clock.spent)) / 2)
            return predict(x_t, t)

        return reporting


@family_likelihood.register(DDPMPipeline)
def diffusion_likelihood(pipeline: DDPMPipeline, context: MetricContext, items: ReferenceData) -> MetricResult:
    """Return the variational bound and the ODE's likelihood of items: bits per dimension, for points nats.

    Default, in bounded time: as many of 64 items as `likelihood_seconds` allow for each of the two, the bound from 100
    draws of its terms, the ODE at a tolerance of 1e-4. With `likelihood_images`: all those items, every term, 1e-5.
    """
    # choose the items
    if missing := _missing(context, items):
        return _no_likelihood(missing)
    trained: Any = pipeline.scheduler
    if not isinstance(trained, DDPMScheduler | VPSDEScheduler):
        words = f"{type(trained).__name__} is not the scheduler that the model was trained with, one of hfgen's"
        return _no_likelihood(words)
    chosen = DiffusionItems.of(pipeline, context, items)
    suffix, facts = "nats", dict[str, Any](unit="nats")
    if chosen.levels is not None:
        suffix, facts = "bits_per_dim", {"unit": "bits/dim", "levels": chosen.levels}

    # compute both estimates
    result = MetricResult()
    for name, prepare, done in (("bound", chosen.bound, 0.0), ("ode", chosen.ode, 0.5)):
        try:
            estimator = prepare(trained)
            values = chosen.values(estimator, done)
            row = _interval(values, context)
        except (ConfigError, NonFiniteError) as error:
            result.none[f"{name}_{suffix}"] = str(error)
        else:
            row |= {"standard_error": float(values.std()) / len(values) ** 0.5, "count": len(values)}
            result.metrics[f"{name}_{suffix}"] = {**row, **facts, **estimator.facts}
    return result


def pieces(number: int, limited: bool) -> list[slice]:
    """Return the items 0 to `number` in batches of 16; in `limited` time the first ones have 4, 4 and 8 items.

    The last batch has at least two items, since one item has no interval.
    """
    # choose edges of batches
    sizes = itertools.chain([4, 4, 8] if limited else [], itertools.repeat(BATCH_SIZE))
    edges = [0]
    while edges[-1] < number:
        edges.append(min(number, edges[-1] + next(sizes)))
    # join a last item to the batch before it
    if len(edges) > 2 and edges[-1] - edges[-2] == 1:
        edges.pop(-2)
    return [slice(first, end) for first, end in itertools.pairwise(edges)]


class Clock:
    """A clock that tells whether more items fit into `seconds` since it was created; None: they always do."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.start = seconds, time.monotonic()

    @property
    def spent(self) -> float:
        """Return the share of the time that has passed; 0 for unlimited time."""
        return 0.0 if self.seconds is None else (time.monotonic() - self.start) / self.seconds

    def allows(self, rows: slice) -> bool:
        """Return whether the items `rows` can be computed in time, at the pace of those before them."""
        elapsed = time.monotonic() - self.start
        return self.seconds is None or elapsed * rows.stop / rows.start <= self.seconds
