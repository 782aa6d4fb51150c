"""Quantisers: the nearest code, straight-through gradients, the grid of finite scalar quantisation."""

from itertools import product

import pytest
import torch

from hfgen.models.quantizers import FiniteScalarQuantizer, VectorQuantizer

LEVELS = [(3,), (2, 4), (8, 5, 5, 5), (5, 8, 2)]


def test_the_code_of_a_vector_is_the_nearest_of_all_by_brute_force() -> None:
    quantize = VectorQuantizer(17, 3)
    torch.nn.init.normal_(quantize.embedding.weight)
    z, codebook = torch.randn(4, 3, 5, 6), quantize.embedding.weight.detach()
    vectors, codes = quantize(z)
    for b, i, j in product(range(4), range(5), range(6)):
        distances = [float((z[b, :, i, j] - e).double().square().sum()) for e in codebook]
        assert int(codes[b, i, j]) == distances.index(min(distances))
    assert torch.equal(vectors, quantize.vectors(codes)) and vectors.shape == z.shape and codes.dtype == torch.int64
    assert torch.equal(quantize.nearest(vectors), codes)


def test_the_gradient_passes_straight_through_to_the_encoder_and_not_to_the_codebook() -> None:
    quantize = VectorQuantizer(17, 3)
    z, weights = torch.randn(4, 3, 5, 6, requires_grad=True), torch.randn(4, 3, 5, 6)
    (quantize(z)[0] * weights).sum().backward()
    assert z.grad is not None and torch.equal(z.grad, weights) and quantize.embedding.weight.grad is None
    vectors = quantize.vectors(torch.zeros(1, 1, 1, dtype=torch.int64))
    vectors.sum().backward()
    gradient = quantize.embedding.weight.grad
    assert gradient is not None and gradient[0].eq(1).all() and gradient[1:].eq(0).all()


def test_a_held_codebook_is_a_buffer_of_the_same_name_and_codes() -> None:
    quantize, z = VectorQuantizer(17, 3), torch.randn(4, 3, 5, 6)
    before, keys = quantize(z)[1], quantize.state_dict().keys()
    quantize.hold_codebook()
    assert not list(quantize.parameters()) and quantize.state_dict().keys() == keys
    assert torch.equal(quantize(z)[1], before)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_codes_and_vectors_of_the_grid_are_the_same_thing_twice(levels: tuple[int, ...]) -> None:
    quantize = FiniteScalarQuantizer(levels)
    assert not quantize.state_dict() and not list(quantize.parameters())
    codes = torch.arange(quantize.num_codes)[None, :, None]
    vectors = quantize.vectors(codes)                                                    # (1, D, K, 1)
    expected = [[(digit - n // 2) / (n // 2) for digit in range(n)] for n in levels]
    for channel, values in enumerate(expected):
        assert sorted(set(vectors[0, channel].flatten().tolist())) == pytest.approx(values)
    assert len({tuple(row) for row in vectors[0, :, :, 0].T.tolist()}) == quantize.num_codes
    # an input whose bounded value lies on a grid point has that point's code
    target = vectors * quantize.width
    z = torch.atanh((target + quantize.offset) / quantize.reach) - quantize.shift
    found, again = quantize(z)
    assert torch.equal(again, codes)
    torch.testing.assert_close(found, vectors, atol=1e-6, rtol=0)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_every_level_is_reached_and_no_input_leaves_the_grid(levels: tuple[int, ...]) -> None:
    quantize = FiniteScalarQuantizer(levels)
    z = torch.linspace(-12, 12, 4001).expand(len(levels), -1)[None, ..., None]
    vectors, codes = quantize(z)
    assert 0 <= int(codes.min()) <= int(codes.max()) < quantize.num_codes
    assert vectors.abs().max() <= 1
    for channel, count in enumerate(levels):
        values, steps = vectors[0, channel, :, 0], vectors[0, channel, :, 0].diff()
        assert len(values.unique()) == count and (steps >= 0).all()
    middle = quantize(torch.zeros(1, len(levels), 1, 1))[0].flatten()
    assert middle.abs().max() == 0                                                       # 0 is a grid point


def test_the_gradient_of_the_grid_is_that_of_the_bound() -> None:
    quantize = FiniteScalarQuantizer((8, 5, 5))
    z = torch.randn(2, 3, 4, 4, requires_grad=True)
    weights = torch.randn(2, 3, 4, 4)
    (quantize(z)[0] * weights).sum().backward()
    found = z.grad
    z.grad = None
    (quantize.bound(z) / quantize.width * weights).sum().backward()
    assert found is not None and torch.equal(found, z.grad) and found.abs().min() > 0
