"""Latents: truncated draws against scipy, great circles against the closed form, directions that were planted."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from hfgen.errors import ConfigError
from hfgen.pipelines.latents import class_normals, factorised_directions, move, slerp, truncate


@pytest.mark.parametrize("limit", [0.1, 0.7, 2.0, 6.0])
def test_truncated_draws_follow_the_truncated_normal(limit):
    draws = truncate(torch.randn(20_000), limit)
    assert draws.abs().max() <= limit
    assert stats.kstest(draws.numpy(), stats.truncnorm(-limit, limit).cdf).pvalue > 1e-3


def test_the_map_is_that_of_the_distribution_functions():
    z = torch.linspace(-5, 5, 101, dtype=torch.float64)
    for limit in (0.3, 1.0, 3.0):
        inverse = stats.truncnorm(-limit, limit).ppf(stats.norm.cdf(z.numpy()))
        np.testing.assert_allclose(truncate(z, limit).numpy(), inverse, atol=1e-9, rtol=0)


def test_truncation_keeps_the_order_and_the_sign_and_changes_nothing_far_out():
    z = torch.randn(5000).sort().values
    for limit in (0.01, 1.0, 4.0):
        moved = truncate(z, limit)
        assert (moved.diff() >= 0).all() and torch.equal(moved.sign(), z.sign())
    far = torch.linspace(-9, 9, 37, dtype=torch.float64)
    torch.testing.assert_close(truncate(far, 30.0), far, atol=1e-9, rtol=0)
    torch.testing.assert_close(truncate(z, 1.0), truncate(z, 1.0 + 1e-6), atol=2e-6, rtol=0)


@pytest.mark.parametrize("limit", [1e-6, 0.5, 1e300])
def test_extreme_draws_and_limits_stay_finite_and_inside(limit):
    z = torch.tensor([-40.0, -8.0, 0.0, 8.0, 40.0])
    moved = truncate(z, limit)
    assert moved.isfinite().all() and moved.abs().max() <= min(limit, 40.0) and moved[2] == 0
    assert (moved.diff() >= 0).all()


def test_half_of_a_right_angle_is_the_diagonal():
    a, b = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    way = slerp(a, b, torch.tensor([0.0, 1 / 3, 0.5, 1.0]))
    angles = torch.tensor([0.0, math.pi / 6, math.pi / 4, math.pi / 2])
    expected = torch.stack([angles.cos(), angles.sin(), torch.zeros(4)], dim=1)
    torch.testing.assert_close(way, expected, atol=1e-6, rtol=0)


def test_ends_are_exact_and_lengths_and_angles_grow_evenly():
    a, b = 3 * torch.randn(50), torch.randn(50)
    way = slerp(a, b, torch.linspace(0, 1, 11))
    assert torch.equal(way[0], a) and torch.equal(way[-1], b)
    torch.testing.assert_close(way.norm(dim=1), torch.linspace(float(a.norm()), float(b.norm()), 11), atol=1e-4, rtol=0)
    cosines = torch.cosine_similarity(way[:-1].double(), way[1:].double())
    whole = torch.cosine_similarity(a.double(), b.double(), dim=0).acos()
    torch.testing.assert_close(cosines.acos(), (whole / 10).expand(10), atol=1e-5, rtol=0)


@pytest.mark.parametrize("factor", [1.0, 2.5, -1.0, 0.0])
def test_between_parallel_latents_the_way_is_straight(factor):
    a = torch.randn(8)
    fractions = torch.linspace(0, 1, 5)
    torch.testing.assert_close(
        slerp(a, factor * a, fractions), torch.outer(1 + (factor - 1) * fractions, a), atol=1e-6, rtol=0
    )


def test_nearly_parallel_latents_do_not_jump():
    a = torch.randn(8, dtype=torch.float64)
    for gap in (1e-3, 1e-5, 1e-7, 1e-9):
        b = a + gap * torch.randn(8, dtype=torch.float64)
        middle = slerp(a, b, torch.tensor([0.5]))[0]
        torch.testing.assert_close(middle, (a + b) / 2, atol=float(gap**2), rtol=0)


def test_factorised_directions_are_the_right_singular_vectors():
    matrix = torch.randn(30, 7, dtype=torch.float64)
    directions = factorised_directions(matrix, 7)
    expected = torch.linalg.svd(matrix).Vh
    torch.testing.assert_close((directions * expected).sum(dim=1).abs(), torch.ones(7, dtype=torch.float64),
                               atol=1e-9, rtol=0)
    stretch = (matrix @ directions.T).norm(dim=0)
    torch.testing.assert_close(stretch, torch.linalg.svdvals(matrix), atol=1e-9, rtol=0)
    assert torch.equal(factorised_directions(matrix, 3), directions[:3])


def test_the_sign_of_a_factorised_direction_does_not_depend_on_the_sign_of_the_matrix():
    matrix = torch.randn(12, 5)
    directions = factorised_directions(matrix, 5)
    torch.testing.assert_close(directions, factorised_directions(-matrix, 5), atol=1e-6, rtol=0)
    assert (directions.gather(1, directions.abs().argmax(1, keepdim=True)) > 0).all()


def test_normals_of_two_classes_recover_the_planted_direction():
    planted = torch.nn.functional.normalize(torch.randn(16), dim=0)
    latents = torch.randn(4000, 16)
    normals = class_normals(latents, (latents @ planted > 0).long() + 5)
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(2), atol=1e-6, rtol=0)
    assert normals[1] @ planted > 0.99
    torch.testing.assert_close(normals[0], -normals[1], atol=1e-3, rtol=0)


def test_each_of_several_classes_has_its_own_normal_in_ascending_order():
    latents = torch.randn(3000, 6)
    scores = latents[:, [4, 0, 2]]                                             # class k: coordinate [4, 0, 2][k] leads
    normals = class_normals(latents, scores.argmax(dim=1))
    for k, coordinate in enumerate((4, 0, 2)):
        assert normals[k].argmax() == coordinate and normals[k, coordinate] > 0.7
        assert (normals[k, [1, 3, 5]].abs() < 0.1).all()


def test_one_class_alone_has_no_normal():
    with pytest.raises(ConfigError, match=r"labels .* got only \[3\]"):
        class_normals(torch.randn(5, 2), torch.full((5,), 3))


def test_a_move_is_as_long_as_it_is_strong_whatever_the_length_of_the_direction():
    z, direction = torch.randn(4, 9), 17 * torch.randn(9)
    moved = move(z, direction, -2.5) - z
    torch.testing.assert_close(moved.norm(dim=1), torch.full((4,), 2.5), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cosine_similarity(moved, direction[None]), -torch.ones(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_direction_without_a_length_is_refused(value):
    with pytest.raises(ConfigError, match="direction"):
        move(torch.zeros(1, 3), torch.full((3,), value), 1.0)
