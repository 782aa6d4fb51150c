"""Quantisers of discrete autoencoders: vectors of an encoder to codes 0..K-1, and codes to vectors of the decoder.

Both have `num_codes` K, `dim` D, `forward(z) -> (vectors, codes)`, whose gradient in z is the identity
(straight-through estimator, Bengio et al. 2013), and `vectors(codes)`.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

EPS = 1e-3
"""Share by which the range of finite scalar quantisation exceeds its outer levels, so that they are reached."""


def straight_through(z: Tensor, vectors: Tensor) -> Tensor:
    """Return `vectors`, with the gradient of z in their place: d/dz = identity. Both have one shape."""
    return vectors.detach() + (z - z.detach())


class VectorQuantizer(nn.Module):
    """Codebook e of K vectors: the code of z is the index of the nearest vector (van den Oord et al. 2017, eq. 1)."""

    def __init__(self, num_codes: int, dim: int) -> None:
        super().__init__()
        self.num_codes, self.dim = num_codes, dim
        self.embedding = nn.Embedding(num_codes, dim)
        nn.init.uniform_(self.embedding.weight, -1 / num_codes, 1 / num_codes)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest vectors (B, D, h, w), straight-through, and codes (B, h, w) int64 of z (B, D, h, w)."""
        codes = self.nearest(z)
        return straight_through(z, self.vectors(codes)), codes

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Return k = argmin_j |z - e_j|^2, (B, h, w) int64 in [0, K), of z (B, D, h, w); computed in float32."""
        rows = z.movedim(1, -1).float()                                                  # (B, h, w, D)
        codebook = self.embedding(torch.arange(self.num_codes, device=z.device)).float()  # (K, D)
        with torch.autocast(z.device.type, enabled=False):
            distances = codebook.square().sum(1) - 2 * (rows @ codebook.T)               # (B, h, w, K), less |z|^2
        return distances.argmin(-1)

    def vectors(self, codes: Tensor) -> Tensor:
        """Return the vectors e_k (B, D, h, w) of codes k (B, h, w); their gradient moves the codebook."""
        return self.embedding(codes).movedim(-1, 1)

    def hold_codebook(self) -> None:
        """Make the codebook a buffer: gradients do not move it, moving averages of encoder outputs may."""
        codebook = self.embedding.weight.detach()
        del self.embedding.weight
        self.embedding.register_buffer("weight", codebook)


class FiniteScalarQuantizer(nn.Module):
    """Finite scalar quantisation (Mentzer et al. 2024): channel i of z is rounded to one of L_i levels in [-1, 1].

    The codebook is the grid of all levels, K = L_1 ... L_D, so nothing is learned and no code can die.
    """

    reach: Tensor
    offset: Tensor
    shift: Tensor
    width: Tensor
    counts: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.num_codes, self.dim = prod(levels), len(levels)
        # bounds of each channel: half the range, and the offset of an even number of levels
        counts = torch.tensor(levels)[:, None, None]                                     # (D, 1, 1)
        reach = (counts - 1) * (1 + EPS) / 2
        offset = 0.5 * (counts % 2 == 0)
        bounds = {"reach": reach, "offset": offset, "shift": torch.atanh(offset / reach), "width": counts // 2}
        # digits of a code: the first channel is the lowest
        basis = [prod(levels[:i]) for i in range(len(levels))]
        for name, value in {**bounds, "counts": counts, "basis": torch.tensor(basis)[:, None, None]}.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors (B, D, h, w) in [-1, 1], with the gradient of the bounded z, and codes (B, h, w) of z."""
        bounded = self.bound(z)
        levels = bounded.detach().round()                                                # integers
        codes = ((levels + self.width).long() * self.basis).sum(1)
        return straight_through(bounded, levels) / self.width, codes

    def bound(self, z: Tensor) -> Tensor:
        """Return z (B, D, h, w) squeezed by tanh to the L levels: [-L/2, L/2 - 1], or +-(L - 1)/2 for odd L."""
        return torch.tanh(z.float() + self.shift) * self.reach - self.offset

    def vectors(self, codes: Tensor) -> Tensor:
        """Return the vectors (B, D, h, w) in [-1, 1] of codes (B, h, w) int64 in [0, K)."""
        digits = codes[:, None] // self.basis % self.counts                              # (B, D, h, w)
        return (digits - self.width) / self.width
