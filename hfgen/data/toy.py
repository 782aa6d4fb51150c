"""Two-dimensional toy sets with known density: mixtures of Gaussians and curves with Gaussian noise.

Each set is one formula: a point is c(u) + sigma * n with u uniform on [0, 1) and n standard normal. A mixture has
finitely many centres c. A curve has a continuum of centres, and its density is the integral of the Gaussian along it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log, pi, sqrt

import numpy as np
import numpy.typing as npt
import torch

from hfgen.data.dataset import fingerprint_of
from hfgen.data.order import uniforms
from hfgen.data.points import Points
from hfgen.errors import ConfigError

Array = npt.NDArray[np.float64]
POINTS = 100_000
"""Default number of points in memory."""


@dataclass(frozen=True)
class Distribution:
    """Definition of a toy set: c(u), (N, 2), for u in [0, 1); sigma; the number of centres, None for a curve.

    For curves: `pieces` is the number of separate curves, `length` an upper bound of |dc/du| / pieces. `points` is the
    number of points in memory.
    """

    centres: Callable[[Array], Array]
    sigma: float
    count: int | None = None
    pieces: int = 1
    length: float = 0.0
    points: int = POINTS


def _ring(u: Array) -> Array:
    angle = 2 * pi * np.floor(8 * u) / 8
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def _grid(u: Array) -> Array:
    row, column = np.divmod(np.floor(25 * u), 5)
    return 2 * np.stack([row - 2, column - 2], 1)


def _line(u: Array) -> Array:
    x = -10 + 20 * np.floor(600 * u) / 599
    return np.stack([x, 0.5 * x + 5], 1)


def _circle(u: Array) -> Array:
    return sqrt(2) * np.stack([np.cos(2 * pi * u), np.sin(2 * pi * u)], 1)


def _moons(u: Array) -> Array:
    angle, lower = 2 * pi * (u % 0.5), u >= 0.5
    x, y = np.cos(angle), np.sin(angle)
    return np.stack([np.where(lower, 1 - x, x), np.where(lower, 0.5 - y, y)], 1)


def _roll(u: Array) -> Array:
    angle = 1.5 * pi * (1 + 2 * u)
    return angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


DISTRIBUTIONS = {
    "ring8": Distribution(_ring, 0.01, count=8),
    "grid25": Distribution(_grid, 0.05, count=25),
    "line": Distribution(_line, 0.0, count=600, points=600),
    "circle": Distribution(_circle, 0.0, length=9),
    "moons": Distribution(_moons, 0.05, pieces=2, length=3.2),
    "swissroll": Distribution(_roll, 0.25, length=135),
}
"""`ring8`: 8 modes on the unit circle; `grid25`: 5x5 modes, spacing 2 (both as in Srivastava et al. 2017, VEEGAN, and
Lin et al. 2018, PacGAN). `line`: 600 evenly spaced points on y = 0.5 x + 5, x from -10 to 10. `circle`: radius
sqrt(2). `moons`: half circles of radius 1, (cos t, sin t) and (1 - cos t, 1/2 - sin t). `swissroll`: t (cos t, sin t),
t from 1.5 pi to 4.5 pi. Line and circle have no noise."""


class Toy(Points):
    """A toy set of 100,000 points in memory (600 for `line`), which are `sample(len(self), seed=0)`.

    Attributes beside those of `Points`: `modes` (K, 2) and `sigma` of mixtures (`modes` is None for curves and for
    `line`).
    """

    def __init__(self, name: str) -> None:
        self.name, self._distribution = name, DISTRIBUTIONS[name]
        self.sigma = self._distribution.sigma
        points = self._resident()
        super().__init__(name, points, fingerprint_of("toy", name, points))
        self.modes = torch.from_numpy(self._nodes(1.0)[0]).float() if self.sigma and self._distribution.count else None

    def describe(self) -> str:
        """Return e.g. `ring8: 100,000 points, 8 modes`."""
        modes = f", {len(self.modes)} modes" if self.modes is not None else ""
        return f"{super().describe()}{modes}"

    def sample(self, n: int, seed: int) -> torch.Tensor:
        """Return `n` points in data coordinates, float32 (n, 2); point i is a function of (seed, i)."""
        return torch.from_numpy(self._draw(n, seed)).float()

    def log_prob(self, points: torch.Tensor, sigma: float | None = None) -> torch.Tensor:
        """Return log p(x) in nats of points (N, 2) in data coordinates, float64 (N,), on the CPU.

        p(x) = mean over u of N(x; c(u), sigma^2 I). `sigma`. Default: that of the set; a larger value is the density of
        the set with more noise. It is exact for mixtures. For curves the integral is a Gauss-Legendre quadrature with
        panels of at most 2 sigma (relative error below 1e-9). Line and circle have no noise and no density: raises
        ConfigError for them without a `sigma` > 0.
        """
        if sigma is None:
            sigma = self.sigma
        if not sigma > 0:
            raise ConfigError(f"{self.name}: points without noise have no density; give log_prob a sigma > 0")
        # sum over the nodes, a block of points at a time
        centres, weights = map(torch.from_numpy, self._nodes(sigma))
        x = points.detach().cpu().double()
        rows = max(1, 2**22 // len(centres))
        parts = [torch.logsumexp(weights.log() - _squared(part, centres) / (2 * sigma**2), 1) for part in x.split(rows)]
        return torch.cat(parts) - log(2 * pi * sigma**2)

    def _resident(self) -> Array:
        if self.name == "line":
            return self._nodes(1.0)[0]
        return self._draw(self._distribution.points, 0)

    def _draw(self, n: int, seed: int) -> Array:
        """Return c(u) + sigma * n, (n, 2); the normal pairs are those of Box and Muller 1958."""
        u, v, w = (uniforms(seed, 0, np.arange(n), f"{self.name}/{draw}") for draw in ("centre", "radius", "angle"))
        radius = np.sqrt(-2 * np.log1p(-v))
        noise = radius[:, None] * np.stack([np.cos(2 * pi * w), np.sin(2 * pi * w)], 1)
        return self._distribution.centres(u) + self.sigma * noise

    def _nodes(self, sigma: float) -> tuple[Array, Array]:
        """Return centres (K, 2) and weights (K,) with sum 1: those of the mixture, or quadrature nodes of the curve."""
        distribution, count = self._distribution, self._distribution.count
        if count:
            return distribution.centres((np.arange(count) + 0.5) / count), np.full(count, 1 / count)
        # 8 Gauss-Legendre nodes per panel
        panels = distribution.pieces * max(1, int(np.ceil(distribution.length / (2 * sigma))))
        x, w = np.polynomial.legendre.leggauss(8)
        u = (np.arange(panels)[:, None] + (x + 1) / 2) / panels
        return distribution.centres(u.ravel()), np.tile(w / 2 / panels, panels)


def _squared(x: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Return squared distances (N, K), computed from differences, which is exact also far from the origin."""
    return (x[:, None, 0] - centres[:, 0]).square() + (x[:, None, 1] - centres[:, 1]).square()
