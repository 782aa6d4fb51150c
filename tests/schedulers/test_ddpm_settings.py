"""Settings of DDPMScheduler: the tables they make, the files they are saved in, the values that have no meaning."""

import itertools
import json

import diffusers
import numpy as np
import pytest
import torch

from hfgen.errors import ConfigError
from hfgen.schedulers.ddpm import DDPMScheduler
from tests.schedulers.helpers import SCHEDULES

Stock = diffusers.DDPMScheduler


def test_settings_and_defaults_are_those_of_diffusers():
    ours, stock = dict(DDPMScheduler().config), dict(Stock().config)
    stock.pop("_use_default_values")               # ours are all kept by a scheduler that is created from this one
    assert ours == stock
    assert DDPMScheduler._compatibles == Stock._compatibles
    assert (DDPMScheduler.order, DDPMScheduler().init_noise_sigma, len(DDPMScheduler())) == (1, 1.0, 1000)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_tables_equal_those_of_diffusers(schedule, zero_snr):
    tolerance = 1e-5 if zero_snr else 1e-6  # the rescaling subtracts nearly equal float32 numbers in diffusers
    for total, (start, end) in itertools.product((2, 10, 1000), ((1e-4, 0.02), (0.00085, 0.012))):
        config = {"num_train_timesteps": total, "beta_start": start, "beta_end": end, "beta_schedule": schedule}
        ours = DDPMScheduler(**config, rescale_betas_zero_snr=zero_snr)
        stock = Stock(**config, rescale_betas_zero_snr=zero_snr)
        for name in ("betas", "alphas", "alphas_cumprod"):
            assert getattr(ours, name).dtype == torch.float32
            torch.testing.assert_close(getattr(ours, name), getattr(stock, name), atol=tolerance, rtol=0)


def test_an_unknown_variance_warns_and_means_fixed_small():
    with pytest.warns(UserWarning, match="'other' is unknown and means 'fixed_small'"):
        other = DDPMScheduler(variance_type="other")
    x_t, output = torch.randn(2, 3), torch.randn(2, 3)
    results = [each.step(output, 500, x_t, torch.Generator().manual_seed(3)) for each in (other, DDPMScheduler())]
    assert torch.equal(results[0].prev_sample, results[1].prev_sample)


def test_betas_above_one_warn_and_leave_the_timesteps_before_them_alone():
    with pytest.warns(UserWarning, match="beta >= 1 from timestep 474 on"):
        ours = DDPMScheduler(beta_start=0.1, beta_end=2)
    x_t, output = torch.randn(2, 3), torch.randn(2, 3)
    both = (ours, Stock(beta_start=0.1, beta_end=2))
    results = [each.step(output, 5, x_t, torch.Generator().manual_seed(3)).prev_sample for each in both]
    torch.testing.assert_close(*results, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"beta_schedule": "exponential"}, "beta_schedule must be one of linear, .*got 'exponential'"),
        ({"prediction_type": "noise"}, "prediction_type must be one of epsilon, .*got 'noise'"),
        ({"timestep_spacing": "log"}, "timestep_spacing must be one of leading"),
        ({"num_train_timesteps": 0}, r"num_train_timesteps must be an int in \[1, 1000000\], got 0"),
        ({"num_train_timesteps": 10**12}, "num_train_timesteps must be an int"),
        ({"num_train_timesteps": 10.0}, "num_train_timesteps must be an int"),
        ({"num_train_timesteps": True}, "num_train_timesteps must be an int"),
        ({"beta_start": -1}, "beta_start must be a number"),
        ({"beta_start": 0}, "must be finite and > 0"),
        ({"beta_end": float("nan")}, "beta_end must be a number.*got nan"),
        ({"beta_end": "0.02"}, "beta_end must be a number.*got '0.02'"),
        ({"dynamic_thresholding_ratio": 1.5}, r"dynamic_thresholding_ratio must be a number in \[0, 1\]"),
        ({"steps_offset": -1}, "steps_offset must be an int"),
        ({"trained_betas": []}, "trained_betas must be a non-empty list"),
        ({"trained_betas": [0.1, float("nan")]}, "trained_betas must be finite and > 0"),
        ({"num_train_timesteps": 1, "rescale_betas_zero_snr": True}, "needs num_train_timesteps >= 2"),
    ],
)
def test_a_setting_without_meaning_is_named(setting, message):
    with pytest.raises(ConfigError, match=message):
        DDPMScheduler(**setting)


def test_a_saved_scheduler_is_a_stock_scheduler_and_comes_back(tmp_path):
    settings = {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction", "clip_sample": False}
    ours = DDPMScheduler(num_train_timesteps=200, **settings)
    ours.save_pretrained(tmp_path / "ours")
    written = json.loads((tmp_path / "ours" / "scheduler_config.json").read_text())
    assert written["_class_name"] == "DDPMScheduler"
    stock = Stock.from_pretrained(tmp_path / "ours")
    stock.save_pretrained(tmp_path / "stock")
    back = DDPMScheduler.from_pretrained(tmp_path / "stock")
    assert type(back) is DDPMScheduler
    for name, value in ours.config.items():
        if not name.startswith("_"):
            assert stock.config[name] == back.config[name] == value
    assert torch.equal(back.betas, ours.betas)


def test_given_betas_survive_saving(tmp_path):
    DDPMScheduler(num_train_timesteps=2, trained_betas=np.array([0.1, 0.3])).save_pretrained(tmp_path)
    assert DDPMScheduler.from_pretrained(tmp_path).betas.tolist() == torch.tensor([0.1, 0.3]).tolist()


@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"])
def test_other_schedulers_are_made_from_our_configuration_and_back(name):
    ours = DDPMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")
    other = getattr(diffusers, name).from_config(ours.config)
    assert other.config.prediction_type == "v_prediction"
    torch.testing.assert_close(other.alphas_cumprod, ours.alphas_cumprod, atol=1e-6, rtol=0)
    assert torch.equal(DDPMScheduler.from_config(other.config).betas, ours.betas)
    assert type(ours.compatibles) is list
    assert getattr(diffusers, name) in ours.compatibles
