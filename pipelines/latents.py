"""Latents: checks of given latents, truncated draws, great circles, semantic directions."""

import math
from typing import Any

import torch

from hfgen.checks import check_int
from hfgen.errors import ConfigError, ConfigTypeError


def truncate(z: torch.Tensor, limit: float) -> torch.Tensor:
    """Return standard normal `z`, any shape, mapped elementwise to the normal truncated to |z| <= `limit`.

    The truncation trick (Brock et al. 2018, section 3.1) by the inverse distribution function instead of rejection:
    z' = Phi^-1(Phi(-t) + Phi(z) (Phi(t) - Phi(-t))), which tends to z as t grows. It is computed in float64 for -|z|,
    where Phi keeps its digits; the map is odd. `limit`: t, positive.
    """
    # truncate -|z| by the inverse distribution function
    low = -z.detach().cpu().double().abs()
    t = torch.tensor(limit, dtype=torch.float64)
    inside = torch.special.erf(t / math.sqrt(2))                                        # Phi(t) - Phi(-t)
    moved = torch.special.ndtri(_normal_below(-t) + _normal_below(low) * inside)
    # restore the sign
    return moved.maximum(low).maximum(-t).abs().to(z) * z.sign()                        # the map only shrinks z


def _normal_below(x: torch.Tensor) -> torch.Tensor:
    """Return Phi(x), accurate for x << 0, where `torch.special.ndtr` is not."""
    return torch.special.erfc(-x / math.sqrt(2)) / 2


def slerp(a: torch.Tensor, b: torch.Tensor, fractions: torch.Tensor) -> torch.Tensor:
    """Return points (n, D) interpolated from `a` to `b`, (D,) each, along a great circle at `fractions` (n,) in [0, 1].

    Spherical interpolation (Shoemake 1985): sin((1 - f) w) / sin w a + sin(f w) / sin w b for unit vectors with the
    angle w. Lengths are interpolated linearly, so both ends are exact. The interpolation is linear if the vectors are
    parallel or one of them is 0, since the great circle is then not unique.
    """
    # angle
    start, end, f = a.cpu().double(), b.cpu().double(), fractions.cpu().double()[:, None]    # f: (n, 1)
    u, v = (vector / vector.norm().clamp_min(1e-300) for vector in (start, end))
    angle = 2 * torch.atan2((u - v).norm(), (u + v).norm())
    if angle.sin() < 1e-6 or not start.any() or not end.any():
        return ((1 - f) * start + f * end).to(a)
    # length and direction
    length = (1 - f) * start.norm() + f * end.norm()
    from_a, from_b = ((part * angle).sin() / angle.sin() for part in (1 - f, f))
    return (from_a * (length / start.norm()) * start + from_b * (length / end.norm()) * end).to(a)


def factorised_directions(matrix: torch.Tensor, n: int) -> torch.Tensor:
    """Return unit rows (n, D): the directions of z that the first layer A, `matrix` (F, D), amplifies most.

    Closed-form factorisation (SeFa, Shen and Zhou 2021, eq. 5): eigenvectors of A^T A, largest eigenvalue first. The
    sign makes the coordinate of largest magnitude positive.
    """
    # eigenvectors of A^T A
    A = matrix.detach().double().cpu()
    _, vectors = torch.linalg.eigh(A.T @ A)                                             # (D, D), smallest first
    rows = vectors.flip(1).T[:n]
    # their signs
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return (rows * largest.sign()).to(matrix)


def class_normals(latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return unit rows (K, D): for each of the K classes in `labels` (N,), ascending, the direction towards the class.

    Normal of the plane by which a logistic regression separates the class from all others, on `latents` (N, D)
    (InterFaceGAN, Shen et al. 2020, section 2.1). Raises ConfigError if there is only one class.
    """
    from sklearn.linear_model import LogisticRegression

    # classes
    points, targets = latents.detach().double().cpu().numpy(), labels.cpu().numpy()
    classes = sorted(set(targets.tolist()))
    if len(classes) < 2:
        raise ConfigError(f"labels must hold at least two classes, got only {classes}")
    # one plane for each class
    planes = [LogisticRegression(max_iter=1000).fit(points, targets == one).coef_[0] for one in classes]
    normals = torch.stack([torch.from_numpy(plane) for plane in planes])
    return torch.nn.functional.normalize(normals, dim=1).to(latents)


def move(latents: torch.Tensor, direction: torch.Tensor, strength: float) -> torch.Tensor:
    """Return `latents` (..., D) moved by `strength` along `direction` (D,): z + strength d / |d|.

    The length of `direction` has no effect. Raises ConfigError if it is 0 or not finite.
    """
    length = direction.norm()
    if not (length > 0 and torch.isfinite(length)):
        raise ConfigError(f"direction must have a length that is finite and not 0, got {float(length)}")
    return latents + strength * (direction / length).to(latents)


def checked_latents(latents: Any, D: int) -> torch.Tensor:
    """Return `latents` unchanged; ConfigError unless they are floats (B, D), B > 0."""
    if not isinstance(latents, torch.Tensor) or not latents.is_floating_point():
        kind = latents.dtype if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise ConfigTypeError(f"latents must be a tensor of floats (B, {D}), got {kind}")
    if latents.ndim != 2 or latents.shape[1] != D or not len(latents):
        raise ConfigError(f"latents must have shape (B, {D}), got {list(latents.shape)}")
    return latents


def one_latent(name: str, given: Any, D: int) -> torch.Tensor:
    """Return one latent (D,) for one of shape (D,) or (1, D). Raises ConfigError for any other.

    `name` is the argument in error messages.
    """
    fits = isinstance(given, torch.Tensor) and given.is_floating_point() and given.shape in ((D,), (1, D))
    if not fits:
        got = list(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
        raise ConfigError(f"{name} must be a tensor of floats ({D},) or (1, {D}), got {got}")
    return given.reshape(D)


def batch_of(latents: Any, batch_size: int, D: int) -> int:
    """Return B, the number of `latents` (B, D); ConfigError unless `batch_size` is B or 1."""
    B = len(checked_latents(latents, D))
    if batch_size not in (1, B):
        raise ConfigError(f"batch_size must be {B}, the number of latents given, or left out; got {batch_size}")
    return B


def one_step(num_steps: Any) -> None:
    """Raise ConfigError unless `num_steps` is 1, or None."""
    if num_steps is not None:
        check_int("num_steps", num_steps, 1, 1)
