"""Translation errors against loops over pixels, baselines, and what is refused."""

import pytest
import torch

from hfgen.data.shapes.dataset import domain_pair
from hfgen.errors import ConfigError
from hfgen.metrics.translation import (
    background,
    cycle_error,
    foreground,
    translation_baselines,
    translation_error,
)


def picture(spot: tuple[slice, slice], value: float, ground: float) -> torch.Tensor:
    x = torch.full((1, 2, 6, 7), ground)
    x[0, 1][spot] = value
    return x


def test_only_pixels_where_input_or_truth_differ_from_their_background_count() -> None:
    images = picture((slice(1, 3), slice(2, 4)), 0.5, -1.0)                    # four pixels
    truth = picture((slice(2, 4), slice(2, 5)), -0.5, 1.0)                     # six, two of them shared
    translated = truth.clone()
    translated[0, 0, 0, 0] = -1.0                                              # outside: does not count
    translated[0, :, 2, 2] += 0.25                                             # in both
    translated[0, 0, 1, 2] -= 0.5                                              # in the input only
    assert translation_error(translated, truth, images) == pytest.approx((0.25 + 0.25) / 8)
    assert translation_error(truth, truth, images) == 0
    assert int(foreground(images).sum()) == 4 and float(background(truth)[0, 0]) == 1.0


def test_pixels_of_all_images_count_alike() -> None:
    images = torch.cat([picture((slice(1, 2), slice(1, 2)), 1.0, 0.0), picture((slice(1, 4), slice(1, 2)), 1.0, 0.0)])
    truth = images.clone()
    translated = images.clone()
    translated[0, 1, 1, 1] = 0.0
    assert translation_error(translated, truth, images) == pytest.approx(0.5 / 4)


def test_the_error_is_that_of_a_loop_over_pixels_also_with_other_channels() -> None:
    images, truth, translated = (torch.randn(3, c, 5, 4).clamp(-1, 1) for c in (1, 3, 3))
    errors = []
    for x, y, z in zip(images, truth, translated, strict=True):
        grounds = []
        for some in (x, y):
            border = [some[:, i, j] for i in range(5) for j in range(4) if i in (0, 4) or j in (0, 3)]
            grounds.append(torch.stack(border).median(0).values)
        for i in range(5):
            for j in range(4):
                apart = [(some[:, i, j] - ground).abs().max() for some, ground in zip((x, y), grounds, strict=True)]
                if max(apart) > 1.0:
                    errors.append(float((y[:, i, j] - z[:, i, j]).abs().mean()))
    assert 20 < len(errors) < 60
    assert translation_error(translated, truth, images, 1.0) == pytest.approx(sum(errors) / len(errors), abs=1e-6)


def test_the_baselines_of_drawn_shapes_are_far_from_the_truth_and_blank_is_the_background() -> None:
    a, b = (domain.tensor(200) for domain in domain_pair())
    found = translation_baselines(b, a)
    assert found["untranslated"] == translation_error(a, b, a) > 0.5
    assert found["blank"] == translation_error(background(a).expand_as(a), b, a) > 0.3
    assert set(background(a).unique().tolist()) == {-1.0, 1.0}                 # black and white grounds
    assert float(foreground(a).double().mean()) < 0.2


def test_the_cycle_error_is_the_mean_absolute_difference() -> None:
    x, y = torch.randn(2, 4, 3, 5, 5).double()
    assert cycle_error(x, y) == pytest.approx(sum(map(abs, (x - y).flatten().tolist())) / x.numel())
    assert cycle_error(x, x) == 0


def test_what_cannot_be_compared_is_refused() -> None:
    x = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ConfigError, match=r"translated and truth must be images of one shape"):
        translation_error(x[:1], x, x)
    with pytest.raises(ConfigError, match=r"images must be \(2, 3, 8, 8\) but for the channels, got \(2, 1, 8, 6\)"):
        translation_error(x, x, x[:, :1, :, :6])
    with pytest.raises(ConfigError, match="nothing but background"):
        translation_error(x, x, x)
    with pytest.raises(ConfigError, match="cycled and images must be"):
        cycle_error(x, x[0])
