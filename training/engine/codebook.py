"""The use of codes, and a codebook that follows its encoder by moving averages: the same on all processes."""

import torch
import torch.nn.functional as F
from accelerate.utils import reduce
from torch import Tensor, nn

from hfgen.data.order import derive_seed
from hfgen.metrics.codes import code_use
from hfgen.models.quantizers import VectorQuantizer
from hfgen.training.engine.noise import Noise


class CodeUse(nn.Module):
    """Counts of each of K codes since they were last fetched, over micro-batches and processes.

    Its buffer is part of every checkpoint and the same on all processes.
    """

    used: Tensor

    def __init__(self, num_codes: int) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.register_buffer("used", torch.zeros(num_codes, dtype=torch.int64))
        self._pending: Tensor | None = None                          # sums of this step, of this process

    @torch.no_grad()
    def collect(self, z: Tensor, codes: Tensor, noise: Noise) -> None:
        """Add a micro-batch: latents z (b, D, h, w) and their codes (b, h, w)."""
        sums = self.statistics(z.float().movedim(1, -1).flatten(0, -2), codes.flatten(), noise)
        self._pending = sums if self._pending is None else self._pending + sums

    def statistics(self, rows: Tensor, codes: Tensor, noise: Noise) -> Tensor:
        """Return sums over vectors `rows` (n, D) with `codes` (n,): their number in column 0, (K, columns) float32."""
        return F.one_hot(codes, self.num_codes).float().sum(0)[:, None]

    @torch.no_grad()
    def update(self) -> None:
        """Take the sums of this step over all micro-batches and processes in; called after the optimiser's step."""
        if self._pending is not None:
            sums, self._pending = reduce(self._pending, "sum"), None
            self.used += sums[:, 0].round().long()
            self.learn(sums)

    def learn(self, sums: Tensor) -> None:
        """Learn from the sums (K, columns) of one step over the global batch."""

    def fetch(self) -> dict[str, float]:
        """Return the share of codes in use since the last fetch, and their perplexity; {} without a step."""
        counts = self.used.to("cpu", copy=True)
        self.used.zero_()
        if not counts.any():
            return {}
        share, perplexity = code_use(counts)
        return {"codes_used": share, "perplexity": perplexity}


class MovingCodebook(CodeUse):
    """A codebook that moving averages of its encoder's outputs move (van den Oord et al. 2017, appendix A.1):

        N_k <- gamma N_k + (1 - gamma) n_k,     e_k <- (gamma N_k e_k + (1 - gamma) m_k) / N_k

    for n_k vectors of the global batch whose code is k, and their sum m_k. A code is dead while N_k is below `dead`
    times its mean over all codes; a random vector of the global batch takes its place (Dhariwal et al. 2020, section
    3), as a function of (seed, step). `vectors`: of the global batch, B h w. `known`: whether the first codebook is a
    trained one; else all of its codes are dead, and the first batch replaces them.
    """

    counts: Tensor

    def __init__(
        self, quantize: VectorQuantizer, vectors: int, decay: float, dead: float, known: bool = False
    ) -> None:
        super().__init__(quantize.num_codes)
        self._quantize = (quantize,)                                 # a tuple: no part of this module
        self.vectors, self.decay, self.dead = vectors, decay, dead
        self.mean = vectors / quantize.num_codes
        self.register_buffer("counts", torch.full((quantize.num_codes,), self.mean * known))

    def statistics(self, rows: Tensor, codes: Tensor, noise: Noise) -> Tensor:
        """Return (K, 1 + 2D): number and sum of the vectors of each code, and those of `candidates` that are here."""
        # number and sum for each code
        ones = F.one_hot(codes, self.num_codes).float()                                  # (n, K)
        with torch.autocast(rows.device.type, enabled=False):
            total = ones.T @ rows                                                        # (K, D)
        # candidates among the rows of this micro-batch
        per_image = self.vectors // noise.batch_size
        drawn = self.candidates(noise) - noise.rows.start * per_image
        here = torch.nonzero((drawn >= 0) & (drawn < len(rows))).flatten()
        chosen = torch.zeros_like(total)
        chosen[here.to(rows.device)] = rows[drawn[here].to(rows.device)]
        return torch.cat([ones.sum(0)[:, None], total, chosen], 1)

    def candidates(self, noise: Noise) -> Tensor:
        """Return the number of a vector of the global batch, (K,) int64 in [0, B h w), for each code; all different
        where the batch has enough."""
        generator = torch.Generator().manual_seed(derive_seed(*noise.key, "revival"))
        order = torch.randperm(self.vectors, generator=generator)
        return order[torch.arange(self.num_codes) % self.vectors]

    def learn(self, sums: Tensor) -> None:
        """Move the codebook by the sums of one step."""
        # move averages
        n, (total, chosen), codebook = sums[:, 0], sums[:, 1:].chunk(2, 1), self._quantize[0].embedding.weight
        counts = self.decay * self.counts + (1 - self.decay) * n
        moved = self.decay * self.counts[:, None] * codebook + (1 - self.decay) * total
        moved = torch.where(counts[:, None] > 0, moved / counts[:, None], codebook)
        # replace dead codes
        dead = counts < self.dead * self.mean
        self.counts.copy_(torch.where(dead, self.mean, counts))
        codebook.copy_(torch.where(dead[:, None], chosen, moved))
