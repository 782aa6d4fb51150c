"""The masked loss: the share of masked entries, uniform masks, the cross-entropy of the masked entries alone."""

import math

import pytest
import torch

from hfgen.losses.masked import cosine, masked_cross_entropy, random_mask


def test_the_share_falls_from_one_to_zero_as_a_cosine() -> None:
    torch.testing.assert_close(cosine(torch.tensor([0.0, 1 / 3, 0.5, 2 / 3, 1.0])),
                               torch.tensor([1, math.sqrt(3) / 2, math.sqrt(0.5), 0.5, 0]).double())  # fmt: skip


@pytest.mark.parametrize(("u", "count"), [(0.0, 10), (0.5, 8), (2 / 3, 5), (0.9999999, 1)])
def test_the_masked_entries_are_the_first_in_order_and_at_least_one(u: float, count: int) -> None:
    order = torch.rand(6, 10, generator=torch.Generator().manual_seed(0))
    mask = random_mask(torch.full((6,), u), order)
    assert (mask.sum(1) == count).all()
    assert (order.masked_fill(~mask, -1).amax(1) < order.masked_fill(mask, 2).amin(1)).all()


def test_every_entry_is_masked_equally_often() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = random_mask(torch.rand(40_000, generator=generator), torch.rand(40_000, 5, generator=generator))
    shares = mask.float().mean(0)
    # E[ceil(5 cos(pi u / 2)) / 5] by sums over a grid of u
    u = (torch.arange(100_000) + 0.5) / 100_000
    expected = ((cosine(u) * 5).ceil() / 5).mean().float()
    torch.testing.assert_close(shares, expected.expand(5), atol=0.01, rtol=0)


def test_the_loss_is_the_mean_of_the_negated_log_probabilities_of_the_masked_entries() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, generator=generator)
    entries = torch.randint(3, (2, 4), generator=generator)
    mask = torch.tensor([[True, False, False, True], [False, True, False, False]])
    log_p = logits.log_softmax(-1)
    first = -(log_p[0, 0, entries[0, 0]] + log_p[0, 3, entries[0, 3]]) / 2
    second = -log_p[1, 1, entries[1, 1]]
    torch.testing.assert_close(masked_cross_entropy(logits, entries, mask), torch.stack([first, second]))
