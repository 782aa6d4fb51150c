"""The peak signal-to-noise ratio against its definition."""

import math

import pytest
import torch

from hfgen.errors import ConfigError
from hfgen.metrics.reconstruction import decibels, psnr


def test_constant_errors_have_the_ratio_of_the_definition():
    x = torch.zeros(3, 1, 4, 4)
    assert psnr(x + 0.2, x) == pytest.approx(20.0, abs=1e-5)           # 20 log10(2 / 0.2)
    assert psnr(x + 0.1, x, peak=1.0) == pytest.approx(20.0, abs=1e-5)
    assert psnr(x, x) == math.inf
    assert decibels(0.04) == pytest.approx(20.0, abs=1e-12)


def test_gaussian_noise_costs_what_its_variance_says():
    x = torch.rand(50, 1, 28, 28) * 2 - 1
    assert psnr(x + 0.5 * torch.randn_like(x), x) == pytest.approx(10 * math.log10(4 / 0.25), abs=0.1)


def test_errors_are_pooled_over_images():
    x = torch.zeros(2, 1, 2, 2)
    images = x.clone()
    images[0] += 0.4                                                   # one image exact, the other off by 0.4
    assert psnr(images, x) == pytest.approx(10 * math.log10(4 / 0.08), abs=1e-5)


def test_images_of_another_shape_are_refused():
    with pytest.raises(ConfigError, match="must have one shape"):
        psnr(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 5))
    with pytest.raises(ConfigError, match="must have one shape"):
        psnr(torch.zeros(0, 1), torch.zeros(0, 1))
