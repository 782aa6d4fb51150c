"""Masked entries: the share that is masked, and the cross-entropy of the masked ones (Chang et al. 2022)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine(u: Tensor) -> Tensor:
    """Return the share of masked entries, gamma(u) = cos(pi u / 2) in [0, 1], of u in [0, 1] (Chang et al. 2022,
    section 3.3): 1 at u = 0, 0 at u = 1.
    """
    return torch.cos(u.double() * (math.pi / 2)).clamp(0, 1)


def random_mask(u: Tensor, order: Tensor) -> Tensor:
    """Return a mask (B, n), bool: True at the ceil(gamma(u) n) entries, at least one, that come first in `order`.

    `u` (B,) and `order` (B, n) are uniform in [0, 1), so that the masked entries are a uniform draw.
    """
    n = order.shape[1]
    count = (cosine(u) * n).ceil().clamp(1, n)                                           # (B,)
    rank = order.argsort(1).argsort(1)                                                   # (B, n)
    return rank < count[:, None]


def masked_cross_entropy(logits: Tensor, entries: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of - log p(x_i | unmasked entries) over the masked entries of each image, (B,) >= 0, in nats.

    `logits` (B, n, V) are computed from the unmasked entries; `entries` (B, n), int64 in [0, V - 1], are all of them;
    `mask` (B, n), bool, has at least one True in each row (Chang et al. 2022, eq. 1, divided by the number masked).
    """
    losses = F.cross_entropy(logits.float().transpose(1, 2), entries, reduction="none")  # (B, n)
    return (losses * mask).sum(1) / mask.sum(1)
