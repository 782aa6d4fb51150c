"""Log-likelihoods of real items, by family; for a family that has none the reason.

Of held-out data where there are any, else of the real data that samples are compared with. Classes and captions are
those of the items: what is measured of a conditional model is log p(x|y).
"""

import itertools
import math
import time
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from hfgen.data.order import derive_seed
from hfgen.data.toy import Toy
from hfgen.errors import ConfigError, NonFiniteError
from hfgen.evaluation.context import Case, Found
from hfgen.evaluation.reference import Real
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
from hfgen.pipelines.ddpm import DDPMPipeline
from hfgen.pipelines.denoising import EVERYWHERE
from hfgen.pipelines.gan import GANPipeline
from hfgen.pipelines.latent_diffusion import LatentDiffusionPipeline
from hfgen.pipelines.outputs import in_plane
from hfgen.pipelines.vae import VAEPipeline
from hfgen.schedulers.ddpm import DDPMScheduler
from hfgen.schedulers.samplers import make_sampler
from hfgen.schedulers.vp_sde import VPSDEScheduler

VAE_IMAGES, AT_ONCE = 1000, 16
"""Items whose likelihood a VAE is asked for, and how many go through a diffusion model at once."""

USUAL = 150
"""Evaluations that the ODE takes, about."""

MOST_IMAGES, DRAWS, TOLERANCE = 64, 100, 1e-4
"""Defaults of a diffusion model: items, terms of the bound and tolerance of the ODE. The tolerance moves the bits of a
small digits model by 0.01, which is far below the standard error."""

Compute = Callable[[Predict, Tensor, torch.Generator], Tensor]
"""A function that computes a diffusion model's likelihood of items, (B,)."""


def likelihood(case: Case) -> Found:
    """Return the likelihoods that the family of the model has, and of a toy set the density where samples lie."""
    pipeline, real = case.subject.pipeline, case.held_out or case.real
    if not isinstance(pipeline, VAEPipeline | DDPMPipeline):
        found = Found(none={"likelihood": _reason(pipeline)})
    elif missing := _missing(case, real):
        found = Found(none={"likelihood": missing})
    elif isinstance(pipeline, VAEPipeline):
        found = _vae(case, pipeline, real)
    else:
        found = _diffusion(case, pipeline, real)
    words = {"items": "held-out data" if case.held_out is not None else "the real data that samples are compared with"}
    found.metrics = {name: row | words for name, row in found.metrics.items()}
    if isinstance(data := case.real.data, Toy):
        if data.sigma:
            found.metrics["log_p"] = _density(case, data)
        else:
            found.none["log_p"] = f"points of {data.name} lie on a curve without noise, which has no density"
    return found


def _missing(case: Case, real: Real) -> str | None:
    """Return what the items lack that the model must be told; None if they lack nothing."""
    asked = case.asking.conditions
    classes = real.data.num_classes
    if asked.labels is not None and (classes is None or classes != case.real.data.num_classes):
        return f"{real.data.name} does not have the labels that the model must be told"
    if asked.captions is not None and real.data.captions is None:
        return f"{real.data.name} does not have the captions that the model must be told"
    return None


def _reason(pipeline: Any) -> str:
    if isinstance(pipeline, GANPipeline):
        return "a GAN has no likelihood: it is trained without one, and its samples fill no volume"
    if isinstance(pipeline, LatentDiffusionPipeline):
        return "the bound of latent diffusion is on its latents; through its decoder there is none on images"
    return f"how {type(pipeline).__name__} makes its samples is not known"


def _density(case: Case, data: Toy) -> dict[str, Any]:
    """Return the mean log-density of the toy set at the samples, and at points of its own."""
    points, seed = case.samples.features, case.settings.seed
    floor = mean_interval(data.log_prob(data.sample(len(points), derive_seed(seed, "density"))), case.resamples, seed)
    value, low, high = mean_interval(data.log_prob(points), case.resamples, seed)
    row = {"value": value, "low": low, "high": high, "floor": floor[0], "floor_low": floor[1], "floor_high": floor[2]}
    return row | {"unit": "nats", "of": "samples under the true density", "count": len(points)}


def _vae(case: Case, pipeline: VAEPipeline, real: Real) -> Found:
    """Return the ELBO and the importance-sampled log-likelihood of the items, in nats, of images also in bits/dim."""
    vae: Any = pipeline.vae
    number, device = min(VAE_IMAGES, real.count), vae.centre.device
    x, labels = real(range(number)), _labels(case, real, number)
    seed = derive_seed(case.settings.seed, "likelihood")
    levels, change, width = _levels(real), 0.0, None
    if real.in_plane:
        mean, std = (torch.as_tensor(vae.config[key], dtype=torch.float32) for key in ("data_mean", "data_std"))
        x, change, of = (x - mean) / std, -float((torch.zeros(2) + std).log().sum()), "density of points"
    else:
        u = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))
        name = vae.config["likelihood"]
        if name == "bernoulli":
            x, of, width = binarised(x, u), "binarised pixels", 1.0
        elif vae.likelihood.discrete:
            if vae.config["levels"] != levels:
                words = f"the model's pixels have {vae.config['levels']} levels, these {levels}"
                return Found(none={"likelihood": words})
            of, width = f"pixels at {levels} levels", 1.0
        else:
            x, width = dequantised(x, u, levels), 2 / (levels - 1)
            of = f"density of pixels, {levels} levels dequantised"
    x, labels = x.to(device), None if labels is None else labels.to(device)
    k, rows = case.settings.importance_samples, {}
    for name, draws in (("elbo", 1), ("log_likelihood", k)):
        estimate = elbo if name == "elbo" else log_likelihood
        generator, items, parts = torch.Generator().manual_seed(seed), max(1, ROWS // draws), []
        for start in range(0, number, items):
            case.progress.tick(start / number if draws == k else 0.0)
            some = slice(start, start + items)
            told = None if labels is None else labels[some]
            parts.append(estimate(vae, x[some], draws, generator, class_labels=told))
        nats = torch.cat(parts) + change
        value, low, high = mean_interval(nats, case.resamples, case.settings.seed)
        row = {"value": value, "low": low, "high": high, "unit": "nats", "of": of, "count": number, "draws": draws}
        if width is not None:
            row["bits_per_dim"] = bits_per_dim(value, math.prod(real.data.shape), width)
        rows[name] = row
    return Found(rows)


def _diffusion(case: Case, pipeline: DDPMPipeline, real: Real) -> Found:
    """Return the variational bound and the ODE's likelihood of the items: bits per dimension, of points nats.

    Default, in bounded time: as many of 64 items as `likelihood_seconds` allow for each of the two, the bound from 100
    draws of its terms, the ODE at a tolerance of 1e-4. With `likelihood_images`: all those items, every term, 1e-5.
    """
    trained: Any = pipeline.scheduler
    if not isinstance(trained, DDPMScheduler | VPSDEScheduler):
        words = f"{type(trained).__name__} is not the scheduler that the model was trained with, one of hfgen's"
        return Found(none={"likelihood": words})
    bounded, points = case.settings.likelihood_images is None, in_plane(pipeline.unet)
    number = min(case.settings.likelihood_images or MOST_IMAGES, real.count)
    x, labels, captions = real(range(number)), _labels(case, real, number), _captions(case, real, number)
    change, levels = 0.0, _levels(real)
    if points:
        mean, std = (torch.as_tensor(pipeline.unet.config[key]).float() for key in ("data_mean", "data_std"))
        x, change = (x - mean) / std, -float((torch.zeros(2) + std).log().sum())

    def over(compute: Compute, usual: int, before: float) -> Tensor:
        parts, clock = list[Tensor](), Clock(case.settings.likelihood_seconds if bounded else None)
        for rows in pieces(number, bounded):
            if parts and not clock.allows(rows):
                break
            predict = _predictor(pipeline, None if labels is None else labels[rows], captions and captions[rows])
            generator = torch.Generator().manual_seed(derive_seed(case.settings.seed, "likelihood", rows.start))
            predict = _reported(predict, case, clock, before, rows, number, usual)
            parts.append(compute(predict, x[rows].to(pipeline.unet.device), generator).cpu())
        return torch.cat(parts)

    def bound() -> tuple[Compute, dict[str, Any]]:
        chain = trained.discretised() if isinstance(trained, VPSDEScheduler) else trained
        draws = DRAWS if bounded else None

        def compute(predict: Predict, part: Tensor, generator: torch.Generator) -> Tensor:
            found = variational_bound(predict, chain, part, None if points else levels, generator, draws)
            return change - found.nats if points else found.bits_per_dim

        T = len(chain.betas)
        return compute, {"timesteps": T, "terms": len(stretches(T, draws)), "variance_type": chain.variance_type}

    def ode() -> tuple[Compute, dict[str, Any]]:
        sde = trained if isinstance(trained, VPSDEScheduler) else make_sampler("ode_heun", trained)
        usual = {name: one.default for name, one in signature(ode_log_likelihood).parameters.items()}
        tolerances = {name: TOLERANCE if bounded else usual[name] for name in ("rtol", "atol")}
        probes = None if points else usual["probes"]

        def compute(predict: Predict, part: Tensor, generator: torch.Generator) -> Tensor:
            if not points:
                return ode_bits_per_dim(predict, sde, part, generator, levels, **tolerances)
            return ode_log_likelihood(predict, sde, part, generator, probes, **tolerances).log_prob + change

        how = {"probes": probes, "dequantisation": "none" if points else "uniform", "t_min": sde.t_min}
        return compute, tolerances | how

    result, unit = Found(), "nats" if points else "bits_per_dim"
    facts = {"unit": "nats" if points else "bits/dim"} | ({} if points else {"levels": levels})
    for name, prepared, before in (("bound", bound, 0.0), ("ode", ode, 0.5)):
        try:
            compute, how = prepared()
            values = over(compute, how.get("terms", USUAL), before)
            value, low, high = mean_interval(values, case.resamples, case.settings.seed)
        except (ConfigError, NonFiniteError) as error:
            result.none[f"{name}_{unit}"] = str(error)
        else:
            row = {"value": value, "low": low, "high": high, "standard_error": float(values.std()) / len(values) ** 0.5}
            result.metrics[f"{name}_{unit}"] = {**row, "count": len(values), **facts, **how}
    return result


def _reported(
    predict: Predict, case: Case, clock: "Clock", before: float, rows: slice, number: int, usual: int
) -> Predict:
    """Return `predict`, which also reports how far the items `rows` of `number` are, of some `usual` evaluations."""
    calls = itertools.count(1)

    def reporting(x_t: Tensor, t: Tensor) -> Tensor:
        done = rows.start + (rows.stop - rows.start) * min(1.0, next(calls) / usual)
        case.progress.tick(before + min(1.0, max(done / number, clock.share)) / 2)
        return predict(x_t, t)

    return reporting


def pieces(number: int, bounded: bool) -> list[slice]:
    """Return the items 0 to `number` in the pieces that go through a diffusion model at once: of 16, where time is
    `bounded` first of 4, 4 and 8, so that the first one is soon done."""
    sizes = [4, 4, 8] if bounded else []
    edges = [0]
    while edges[-1] < number:
        edges.append(min(number, edges[-1] + (sizes.pop(0) if sizes else AT_ONCE)))
    if len(edges) > 2 and edges[-1] - edges[-2] == 1:                       # two items at least: one has no interval
        edges.pop(-2)
    return [slice(first, end) for first, end in itertools.pairwise(edges)]


class Clock:
    """Says whether more items fit into `seconds` since it was made; None: always."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.start = seconds, time.monotonic()

    @property
    def share(self) -> float:
        """Return the share of the time that is spent; 0 of unlimited time."""
        return 0.0 if self.seconds is None else (time.monotonic() - self.start) / self.seconds

    def allows(self, rows: slice) -> bool:
        """Return whether the items `rows` can be done in time, at the pace of those before them."""
        elapsed = time.monotonic() - self.start
        return self.seconds is None or elapsed * rows.stop / rows.start <= self.seconds


def _predictor(pipeline: DDPMPipeline, labels: Tensor | None, captions: list[str] | None) -> Predict:
    """Return the network, told these classes and captions, as a function of x_t and t; not guided."""
    count = len(labels) if labels is not None else len(captions) if captions else 1
    told = pipeline._guide(captions, None, labels, count, 1.0, EVERYWHERE, 0.0).cond
    net: Any = pipeline.unet
    return lambda x_t, t: net(x_t, t, return_dict=False, **told)[0]


def _levels(real: Real) -> int:
    return real.data.top + 1


def _labels(case: Case, real: Real, number: int) -> Tensor | None:
    if case.asking.conditions.labels is None:
        return None
    return real.labels(number)


def _captions(case: Case, real: Real, number: int) -> list[str] | None:
    return None if case.asking.conditions.captions is None else real.captions(number)
