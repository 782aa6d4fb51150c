"""Likelihoods of the judge against closed forms: networks that say nothing, on images and on points."""

import math
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hfgen
from hfgen.data import load_dataset
from hfgen.errors import ConfigError
from hfgen.evaluation.likelihood import pieces
from hfgen.evaluation.reference import FreshReferenceData, ReferenceData
from hfgen.evaluation.settings import most_samples
from hfgen.schedulers.samplers import make_sampler
from tests.cards.helpers import unet
from tests.evaluation.judged import QUICK, Given

LEVELS, PIXELS = 17, 64
"""Levels and number of the pixels of digits, which are 1 / 8 apart."""


def silent(net: Any) -> Any:
    """Return a network whose answer is 0."""
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    return net.eval()


def judged(pipeline: Any, data: str, **settings: Any) -> Any:
    return hfgen.evaluate(pipeline, data, metrics="likelihood", num_samples=20, **{**QUICK, **settings})


def above_the_decoder(chain: Any, x: Tensor) -> float:
    """Return L_T and L_1, ..., L_{T-1} in nats a dimension, expected of a network that sees no noise.

    Its x_0 is x_t / sqrt(alpha_bar), off by eps / sqrt(SNR): a step's KL is (SNR(t-1) / SNR(t) - 1) / 2.
    """
    a = chain.alpha_bar.double()
    snr = a / (1 - a)
    prior = float(a[-1] * x.double().square().mean() - a[-1] - torch.log1p(-a[-1])) / 2
    return prior + float((snr[:-1] / snr[1:] - 1).sum()) / 2


def first_variance(chain: Any) -> float:
    """Return the posterior's variance at the second timestep, which stands for that of the first."""
    a = chain.alpha_bar.double()
    return float((1 - a[1] / a[0]) * (1 - a[0]) / (1 - a[1]))


def shrunk(sde: Any, x: Tensor, noise: float = 0.0) -> float:
    """Return -log N(x; 0, exp(B)) in nats a dimension: the flow of a network that sees no noise only shrinks."""
    B = float(sde.rate.integral(torch.tensor([sde.t_min, 1.0], dtype=torch.float64)).diff())
    return (math.log(2 * math.pi) + B + (float(x.double().square().mean()) + noise) * math.exp(-B)) / 2


def test_the_bits_of_a_diffusion_model_of_images_are_the_closed_form() -> None:
    chain = hfgen.DDPMScheduler(num_train_timesteps=5, beta_start=0.05, beta_end=0.1, clip_sample=False)
    found = judged(hfgen.DDPMPipeline(silent(unet()), chain), "digits", likelihood_images=64).metrics
    x = ReferenceData(load_dataset("digits"), 0)(range(64))
    bound, ode = found["bound_bits_per_dim"], found["ode_bits_per_dim"]
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(80))
    a, s = float(chain.alpha_bar[0]), math.sqrt(first_variance(chain))
    levels, counts = x.double().unique(return_counts=True)                              # (K,)
    distance = -math.sqrt(1 / a - 1) * nodes                                            # of a pixel from its mean
    edges = ((distance + shift) / s for shift in (1 / 16, -1 / 16))
    high, low = (torch.special.ndtr(edge).expand(len(levels), -1).clone() for edge in edges)
    high[levels == 1], low[levels == -1] = 1.0, 0.0                                     # the outermost bins have no end
    of_level = -((high - low).clamp(min=1e-300).log() @ weights) / weights.sum()
    decoder = float((of_level * counts).sum() / counts.sum())
    assert len(levels) == LEVELS
    assert bound["value"] == pytest.approx((above_the_decoder(chain, x) + decoder) / math.log(2), abs=0.08)
    assert bound["low"] < bound["value"] < bound["high"] and bound["count"] == 64
    assert (bound["timesteps"], bound["variance_type"]) == (5, "fixed_small")
    sde: Any = make_sampler("ode_heun", chain)
    bits = (shrunk(sde, x, 1 / (3 * 16**2)) - math.log(2 / 16)) / math.log(2)           # the dequantisation's variance
    assert ode["value"] == pytest.approx(bits, abs=4e-3)
    facts = {"rtol": 1e-5, "atol": 1e-5, "probes": 1, "dequantisation": "uniform", "t_min": 0.2, "levels": LEVELS}
    assert facts.items() <= ode.items()


def test_the_density_of_a_diffusion_model_of_points_is_the_closed_form_in_data_coordinates() -> None:
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([20.0, 5.0])
    net = silent(hfgen.MLPDenoiser(hidden=4, layers=1, data_mean=mean.tolist(), data_std=std.tolist()))
    sde = hfgen.VPSDEScheduler(num_train_timesteps=10, beta_start=0.05, beta_end=0.1, clip_sample=False)
    found = judged(hfgen.DDPMPipeline(net, sde), "moons", likelihood_images=320).metrics
    x = (FreshReferenceData(load_dataset("moons"), 0, most_samples())(range(320)) - mean) / std  # type: ignore[arg-type]
    bound, ode, change = found["bound_nats"], found["ode_nats"], -float(std.log().sum())
    assert ode["value"] == pytest.approx(change - 2 * shrunk(sde, x), abs=1e-3)
    facts = {"rtol": 1e-5, "probes": None, "dequantisation": "none", "t_min": 0.1, "unit": "nats", "count": 320}
    assert facts.items() <= ode.items() and ode["items"] == "held-out data"
    chain: Any = sde.discretised()
    v, a = first_variance(chain), float(chain.alpha_bar[0])
    decoder = (math.log(2 * math.pi * v) + (1 / a - 1) / v) / 2
    assert bound["value"] == pytest.approx(change - 2 * (above_the_decoder(chain, x) + decoder), abs=0.3)
    assert (bound["timesteps"], bound["variance_type"]) == (10, chain.variance_type)


def test_the_default_likelihood_of_a_diffusion_model_is_bounded_in_time_and_says_its_standard_error() -> None:
    chain = hfgen.DDPMScheduler(200, beta_schedule="squaredcos_cap_v2", clip_sample=False)
    model = hfgen.DDPMPipeline(silent(unet()), chain)
    found = judged(model, "digits", cache=False, likelihood_seconds=300)         # time for all, on a busy machine too
    whole = judged(model, "digits", cache=False, likelihood_images=64).metrics
    for name, full in whole.items():
        row = found.metrics[name]
        error, width = row["standard_error"], row["high"] - row["low"]
        assert row["low"] < row["value"] < row["high"] and width / 3.92 == pytest.approx(error, rel=0.3)
        assert abs(row["value"] - full["value"]) < 2 * error + 1e-3 and row["count"] == full["count"] == 64
        assert f"standard error {error:.4g}, 64 items" in found.table()
    assert found.metrics["bound_bits_per_dim"]["terms"] < 100 < whole["bound_bits_per_dim"]["terms"] == 200
    assert (found.metrics["ode_bits_per_dim"]["rtol"], whole["ode_bits_per_dim"]["rtol"]) == (1e-4, 1e-5)


def test_a_slow_diffusion_model_has_the_likelihood_of_fewer_items() -> None:
    slow = silent(unet())
    slow.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    model = hfgen.DDPMPipeline(slow, hfgen.DDPMScheduler(num_train_timesteps=50))
    found = judged(model, "digits", likelihood_seconds=0.1)
    rows = [found.metrics[name] for name in ("bound_bits_per_dim", "ode_bits_per_dim")]
    assert [row["count"] for row in rows] == [4, 4] and all(row["standard_error"] > 0 for row in rows)
    with pytest.raises(ConfigError, match="likelihood_seconds must be a number > 0, got 0"):
        judged(model, "digits", likelihood_seconds=0)


def test_items_go_through_a_diffusion_model_in_pieces_of_two_at_least() -> None:
    for number in range(2, 70):
        for bounded in (False, True):
            found = pieces(number, bounded)
            assert [i for rows in found for i in range(number)[rows]] == list(range(number))
            assert all(2 <= rows.stop - rows.start <= 17 for rows in found)


def vae(likelihood: str, **settings: Any) -> Any:
    """Return a model whose p(x|z) lies around 0 whatever z is and whose q(z|x) is the prior: each bound is log p(x)."""
    return hfgen.VAEPipeline(silent(hfgen.VAE(8, 1, hidden=(4,), latent_dim=2, likelihood=likelihood, **settings)))


def test_a_vae_of_levels_has_the_probability_of_their_bins() -> None:
    found = judged(vae("discretised_logistic", sigma=0.3, levels=LEVELS), "digits", importance_samples=3)
    x = ReferenceData(load_dataset("digits"), 0)(range(1000)).double()
    high, low = ((x + 1 / 16) / 0.3).sigmoid(), ((x - 1 / 16) / 0.3).sigmoid()
    high, low = torch.where(x == 1, 1.0, high), torch.where(x == -1, 0.0, low)
    nats = float((high - low).log().flatten(1).sum(1).mean())
    for name, draws in (("elbo", 1), ("log_likelihood", 3)):
        row = found.metrics[name]
        assert row["value"] == pytest.approx(nats, abs=1e-3) and row["low"] < nats < row["high"]
        assert row["bits_per_dim"] == pytest.approx(-nats / PIXELS / math.log(2), abs=1e-5)
        assert (row["of"], row["count"], row["draws"]) == ("pixels at 17 levels", 1000, draws)


def test_a_vae_of_a_density_is_asked_for_dequantised_pixels() -> None:
    x = ReferenceData(load_dataset("digits"), 0)(range(1000)).double()
    second = float(x.square().mean()) + 1 / (3 * 16**2)
    gaussian = -(math.log(2 * math.pi * 0.25) + second / 0.25) / 2                      # nats a pixel
    for name, settings, expected in (
        ("gaussian", {"sigma": 0.5}, gaussian), ("continuous_bernoulli", {}, -math.log(2)),
    ):  # fmt: skip
        row = judged(vae(name, **settings), "digits", importance_samples=2).metrics["log_likelihood"]
        assert row["value"] == pytest.approx(PIXELS * expected, abs=0.1)
        assert row["bits_per_dim"] == pytest.approx(-(expected + math.log(2 / 16)) / math.log(2), abs=2e-3)
        assert row["of"] == "density of pixels, 17 levels dequantised"


def test_a_vae_of_other_levels_than_the_datas_has_no_likelihood_of_them() -> None:
    found = judged(vae("discretised_logistic", levels=256), "digits")
    assert found.metrics == {} and found.none == {"likelihood": "the model's pixels have 256 levels, these 17"}


@pytest.mark.parametrize("name", ["line", "circle"])
def test_points_on_a_curve_have_no_density_and_that_is_said(name: str) -> None:
    found = judged(Given(load_dataset(name).tensor()), name)
    assert found.none["log_p"] == f"points of {name} lie on a curve without noise, which has no density"
    assert "log_p" not in found.metrics


def test_a_flow_has_the_density_of_dequantised_pixels_and_bits_of_their_levels() -> None:
    pipe = hfgen.NormalizingFlowPipeline(silent(hfgen.TarFlow(width=8, blocks=2, layers=1, heads=2)), levels=LEVELS)
    row = judged(pipe, "digits", likelihood_images=300).metrics["log_likelihood"]
    x = ReferenceData(load_dataset("digits"), 0)(range(300)).double()
    second = float(x.square().mean()) + 1 / (3 * 16**2)                                 # of the standard normal
    expected = -(math.log(2 * math.pi) + second) / 2
    assert row["value"] == pytest.approx(PIXELS * expected, abs=0.1)
    assert row["bits_per_dim"] == pytest.approx(-(expected + math.log(2 / 16)) / math.log(2), abs=2e-3)
    assert (row["of"], row["count"], row["exact"]) == ("density of pixels, 17 levels dequantised", 300, True)
