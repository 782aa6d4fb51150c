"""Log-likelihoods of real items, by family; for a family that has none the reason.

Of held-out data where there are any, else of the real data that samples are compared with. Classes and captions are
those of the items: what is measured of a conditional model is log p(x|y).
"""

import math
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hfgen.data.order import derive_seed
from hfgen.data.toy import Toy
from hfgen.errors import ConfigError, NonFiniteError
from hfgen.judging.case import Case, Found
from hfgen.judging.data import Real
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

Compute = Callable[[Predict, Tensor, torch.Generator], Tensor]
"""What a diffusion model's likelihood of some items is computed by, (B,)."""


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
        for start in tqdm(range(0, number, items), name, unit=" batches", leave=False, disable=not case.progress):
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
    """Return the variational bound and the ODE's likelihood of the items: bits per dimension, of points nats."""
    trained: Any = pipeline.scheduler
    if not isinstance(trained, DDPMScheduler | VPSDEScheduler):
        words = f"{type(trained).__name__} is not the scheduler that the model was trained with, one of hfgen's"
        return Found(none={"likelihood": words})
    number, points = min(case.settings.likelihood_images, real.count), in_plane(pipeline.unet)
    x, labels, captions = real(range(number)), _labels(case, real, number), _captions(case, real, number)
    change, levels = 0.0, _levels(real)
    if points:
        mean, std = (torch.as_tensor(pipeline.unet.config[key]).float() for key in ("data_mean", "data_std"))
        x, change = (x - mean) / std, -float((torch.zeros(2) + std).log().sum())

    def over(compute: Compute) -> Tensor:
        parts = []
        for start in tqdm(range(0, number, AT_ONCE), "likelihood", leave=False, disable=not case.progress):
            rows = slice(start, min(start + AT_ONCE, number))
            predict = _predictor(pipeline, None if labels is None else labels[rows], captions and captions[rows])
            generator = torch.Generator().manual_seed(derive_seed(case.settings.seed, "likelihood", start))
            parts.append(compute(predict, x[rows].to(pipeline.unet.device), generator).cpu())
        return torch.cat(parts)

    def bound() -> tuple[Compute, dict[str, Any]]:
        chain = trained.discretised() if isinstance(trained, VPSDEScheduler) else trained

        def compute(predict: Predict, part: Tensor, generator: torch.Generator) -> Tensor:
            found = variational_bound(predict, chain, part, None if points else levels, generator)
            return change - found.nats if points else found.bits_per_dim

        return compute, {"timesteps": len(chain.betas), "variance_type": chain.variance_type}

    def ode() -> tuple[Compute, dict[str, Any]]:
        sde = trained if isinstance(trained, VPSDEScheduler) else make_sampler("ode_heun", trained)
        usual = {name: one.default for name, one in signature(ode_log_likelihood).parameters.items()}
        tolerances = {name: usual[name] for name in ("rtol", "atol")}
        probes = None if points else usual["probes"]

        def compute(predict: Predict, part: Tensor, generator: torch.Generator) -> Tensor:
            if not points:
                return ode_bits_per_dim(predict, sde, part, generator, levels, **tolerances)
            return ode_log_likelihood(predict, sde, part, generator, probes, **tolerances).log_prob + change

        how = {"probes": probes, "dequantisation": "none" if points else "uniform", "t_min": sde.t_min}
        return compute, tolerances | how

    result, unit = Found(), "nats" if points else "bits_per_dim"
    facts = {"unit": "nats" if points else "bits/dim", "count": number} | ({} if points else {"levels": levels})
    for name, prepared in (("bound", bound), ("ode", ode)):
        try:
            compute, how = prepared()
            value, low, high = mean_interval(over(compute), case.resamples, case.settings.seed)
        except (ConfigError, NonFiniteError) as error:
            result.none[f"{name}_{unit}"] = str(error)
        else:
            result.metrics[f"{name}_{unit}"] = {"value": value, "low": low, "high": high, **facts, **how}
    return result


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
