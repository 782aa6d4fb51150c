"""Random draws that are pure functions of (seed, step, phase, name): the same on one process or eight."""

from typing import Any

import torch

from hfgen.data.order import derive_seed


class Noise:
    """The draws of one repetition of a phase.

    Each named draw fills the GLOBAL batch from a CPU generator of its own, and returns the rows of this
    process and micro-batch. So no result depends on how the batch is divided, and resuming needs only the step.
    `key` is (seed, step, phase, repetition); `step` is there for losses whose weights change with it.
    """

    def __init__(self, key: tuple[Any, ...], batch_size: int, rows: slice, device: torch.device | str = "cpu"):
        self.key, self.batch_size, self.rows, self.device = key, batch_size, rows, device
        self.step: int = key[1]

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(*self.key, name))

    def _mine(self, draw: torch.Tensor) -> torch.Tensor:
        return draw[self.rows].to(self.device, non_blocking=True)

    def normal(self, name: str, *shape: int) -> torch.Tensor:
        """Return normal draws of mean 0 and variance 1, (rows, *shape) float32."""
        return self._mine(torch.randn(self.batch_size, *shape, generator=self._generator(name)))

    def uniform(self, name: str, *shape: int) -> torch.Tensor:
        """Return draws uniform in [0, 1), (rows, *shape) float32."""
        return self._mine(torch.rand(self.batch_size, *shape, generator=self._generator(name)))

    def stratified(self, name: str) -> torch.Tensor:
        """Return one draw per sample, uniform in [0, 1) and one in each of B equal cells, in random order: (rows,).

        They are float32 on the CPU, where times are computed in float64. Estimates of an expectation over time vary
        less than with independent draws (Kingma et al. 2021, appendix I.1).
        """
        generator = self._generator(name)
        cells = torch.randperm(self.batch_size, generator=generator)
        offset = torch.rand(self.batch_size, generator=generator, dtype=torch.float64)
        return ((cells + offset) / self.batch_size).float().clamp_(max=1 - 2**-24)[self.rows]
