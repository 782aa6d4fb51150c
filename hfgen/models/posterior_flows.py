"""Normalizing flows from a diagonal normal distribution to a richer posterior of a variational autoencoder.

z = f(z_0; h), z_0 ~ N(mu, sigma^2 I), and log q(z|x) = log q_0(z_0|x) - log |det dz/dz_0| (Rezende and Mohamed 2015,
eq. 7). h is a further output of the encoder, `context` numbers for each item.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from hfgen.losses.elbo import wide
from hfgen.models.choices import Posterior

START = 2.0
"""Initial s of an inverse autoregressive step, which keeps sigmoid(2) = 0.88 of z (Kingma et al. 2016, section 4)."""

SMALLEST_SLOPE = 1e-6
"""Bound below which the derivative of a planar step along w does not fall: float32 could not invert it."""


class PlanarFlow(nn.Module):
    """The flow z + u tanh(w z + b), several steps; u, w and b of each step are the context (Rezende and Mohamed 2015).

    It has no parameters of its own. u is moved along w until w u > -1, which makes each step invertible (appendix A.1).
    """

    def __init__(self, dim: int, steps: int) -> None:
        super().__init__()
        self.dim, self.steps = dim, steps
        self.context = steps * (2 * dim + 1)

    def forward(self, z: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return f(z; h) (B, k, D) and log |det df/dz| (B, k) in nats of z (B, k, D) and the context h (B, 1, C)."""
        # invertible coefficients of all steps
        u, w, b = h.unflatten(-1, (self.steps, -1)).split([self.dim, self.dim, 1], -1)   # (B, 1, steps, D) and 1
        inner = (w * u).sum(-1, keepdim=True)
        slope = softplus(inner) + SMALLEST_SLOPE                                         # 1 + w u > 0
        u = u + (slope - 1 - inner) * w / w.square().sum(-1, keepdim=True).clamp(min=1e-12)
        # eq. 10 and its determinant, eq. 12: 1 + (1 - a^2) w u
        log_det = z.new_zeros(z.shape[:-1])
        for u_i, w_i, b_i, slope_i in zip(*(part.unbind(2) for part in (u, w, b, slope)), strict=True):
            a = torch.tanh((w_i * z).sum(-1, keepdim=True) + b_i)                        # (B, k, 1)
            z = z + u_i * a
            log_det = log_det + torch.log(slope_i + a.square() * (1 - slope_i))[..., 0]
        return z, log_det


class InverseAutoregressiveFlow(nn.Module):
    """The flow sigma z + (1 - sigma) m, several steps; m_i and sigma_i are functions of z_1, ..., z_{i-1} and h.

    sigma = sigmoid(s). The order of the latents is reversed after each step (Kingma et al. 2016, algorithm 1).
    `width`: units of the hidden layers of each step, to the first of which the context is added.
    """

    def __init__(self, dim: int, steps: int, width: int) -> None:
        super().__init__()
        self.context = width
        self.steps = nn.ModuleList(AutoregressiveMLP(dim, width) for _ in range(steps))

    def forward(self, z: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return f(z; h) (B, k, D) and log |det df/dz| (B, k) in nats of z (B, k, D) and the context h (B, 1, C)."""
        log_det = z.new_zeros(z.shape[:-1])
        for step in self.steps:
            m, s = step(z, h)
            z = torch.lerp(m, z, torch.sigmoid(s)).flip(-1)
            log_det = log_det + logsigmoid(s).sum(-1)
        return z, log_det


class AutoregressiveMLP(nn.Module):
    """A perceptron with two hidden layers whose outputs i are functions of the inputs below i and of a context (MADE).

    Each hidden unit has a degree d in [0, D - 1], and sees the inputs 1, ..., d (Germain et al. 2015, section 4); units
    of degree 0 see the context alone.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        inputs, hidden = torch.arange(1, dim + 1), torch.arange(width) * dim // width
        outputs = torch.arange(dim).repeat(2)                                            # of m, then of s
        self.inputs = MaskedLinear(inputs, hidden)
        self.hidden = MaskedLinear(hidden, hidden)
        self.outputs = MaskedLinear(hidden, outputs)
        # start: m = 0, s = START
        nn.init.zeros_(self.outputs.weight)
        nn.init.zeros_(self.outputs.bias)
        with torch.no_grad():
            self.outputs.bias[dim:] = START

    def forward(self, z: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return m and s, each (B, k, D), of z (B, k, D) and the context h (B, 1, width)."""
        dtype = self.inputs.weight.dtype
        units = nn.functional.elu(self.inputs(z.to(dtype)) + h.to(dtype))                # (B, k, width)
        m, s = wide(self.outputs(nn.functional.elu(self.hidden(units)))).chunk(2, -1)
        return m, s


class MaskedLinear(nn.Linear):
    """A linear layer without weights to units of a lower degree; `degrees_in` (I,) and `degrees_out` (O,)."""

    def __init__(self, degrees_in: Tensor, degrees_out: Tensor) -> None:
        super().__init__(len(degrees_in), len(degrees_out))
        self.mask: Tensor
        mask = (degrees_in <= degrees_out[:, None]).to(self.weight.dtype)                # (O, I)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output (..., O) of x (..., I)."""
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


FLOWS: dict[Posterior, Callable[[int, int, int], nn.Module]] = {
    "planar": lambda dim, steps, width: PlanarFlow(dim, steps),
    "inverse_autoregressive": InverseAutoregressiveFlow,
}
"""The flow of a posterior, from the number of latents, of steps, and of hidden units; `normal` has none."""
