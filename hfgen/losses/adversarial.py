"""Losses of generative adversarial networks: pure functions on logits, each a mean over the batch, in float32.

`real` and `fake` are the discriminator's logits of real and of generated samples, of any shape: D(x) = sigmoid(real).
A discriminator minimises `*_d(real, fake)`, a generator `*_g(fake)`; each is a scalar. log D(x) = -softplus(-logit) and
log(1 - D(x)) = -softplus(logit) do not overflow for any logit.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu, softplus

Critic = Callable[[Tensor], Tensor]


def minimax_d(real: Tensor, fake: Tensor) -> Tensor:
    """Return -E log D(x) - E log(1 - D(G(z))), the negated value of Goodfellow et al. 2014, eq. 1.

    A non-negative scalar; `real` and `fake` are logits, of any shape.
    """
    return softplus(-real.float()).mean() + softplus(fake.float()).mean()


def minimax_g(fake: Tensor) -> Tensor:
    """Return E log(1 - D(G(z))), a non-positive scalar: the saturating generator loss (Goodfellow et al. 2014, eq. 1).

    Its gradient in the logit is -D(G(z)), which vanishes when the discriminator wins.
    """
    return -softplus(fake.float()).mean()


def non_saturating_g(fake: Tensor) -> Tensor:
    """Return -E log D(G(z)), a non-negative scalar: the log D trick (Goodfellow et al. 2014, section 3).

    Its gradient in the logit is D(G(z)) - 1, which tends to -1 when the discriminator wins.
    """
    return softplus(-fake.float()).mean()


def least_squares_d(real: Tensor, fake: Tensor) -> Tensor:
    """Return 1/2 E (D(x) - 1)^2 + 1/2 E D(G(z))^2 on the raw outputs (Mao et al. 2017, eq. 9).

    A non-negative scalar.
    """
    return (real.float() - 1).square().mean() / 2 + fake.float().square().mean() / 2


def least_squares_g(fake: Tensor) -> Tensor:
    """Return 1/2 E (D(G(z)) - 1)^2 on the raw outputs, a non-negative scalar (Mao et al. 2017, eq. 9)."""
    return (fake.float() - 1).square().mean() / 2


def hinge_d(real: Tensor, fake: Tensor) -> Tensor:
    """Return E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))) on the raw outputs (Miyato et al. 2018, eq. 16).

    A non-negative scalar.
    """
    return relu(1 - real.float()).mean() + relu(1 + fake.float()).mean()


def wasserstein_d(real: Tensor, fake: Tensor) -> Tensor:
    """Return E f(G(z)) - E f(x), the negated critic's estimate of the distance (Arjovsky et al. 2017, eq. 2).

    A scalar of either sign; `real` and `fake` are raw outputs, of any shape. It is an estimate only for a 1-Lipschitz
    f: see `clip_weights` and `gradient_penalty`.
    """
    return fake.float().mean() - real.float().mean()


def wasserstein_g(fake: Tensor) -> Tensor:
    """Return -E f(G(z)), a scalar: the generator's loss for Wasserstein and hinge GANs (Miyato et al. 2018, eq. 17)."""
    return -fake.float().mean()


hinge_g = wasserstein_g


def relativistic_d(real: Tensor, fake: Tensor) -> Tensor:
    """Return -E log sigmoid(D(x) - D(G(z))) over pairs of a real and a generated sample (Huang et al. 2024, eq. 2).

    A non-negative scalar. It compares the two samples of a pair: `real` and `fake`, logits, have one shape
    (Jolicoeur-Martineau 2019).
    """
    return softplus(fake.float() - real.float()).mean()


def relativistic_g(fake: Tensor, real: Tensor) -> Tensor:
    """Return -E log sigmoid(D(G(z)) - D(x)) over pairs, the discriminator's loss with exchanged roles.

    A non-negative scalar; `fake` and `real` are logits of one shape.
    """
    return relativistic_d(real=fake, fake=real)


def began_d(real: Tensor, fake: Tensor, k: Tensor) -> Tensor:
    """Return L(x) - k L(G(z)), a scalar (Berthelot et al. 2017, section 3.4).

    `real` and `fake` are outputs -L(v) of an autoencoder with error L, of any shape; `k` is a scalar in [0, 1].
    """
    return k * fake.float().mean() - real.float().mean()


began_g = wasserstein_g
"""E L(G(z)) for outputs -L(v), a non-negative scalar (Berthelot et al. 2017, section 3.4)."""


def began_balance(k: Tensor, real: Tensor, fake: Tensor, gamma: float, lambda_k: float) -> Tensor:
    """Return k + lambda_k (gamma L(x) - L(G(z))), clipped to [0, 1] (Berthelot et al. 2017, section 3.4).

    All are scalars; `real` and `fake` are the errors L(x) and L(G(z)), means over the batch.
    """
    return (k + lambda_k * (gamma * real - fake)).clamp(0, 1)


def began_convergence(real: Tensor, fake: Tensor, gamma: float) -> Tensor:
    """Return M_global = L(x) + |gamma L(x) - L(G(z))|, a non-negative scalar (Berthelot et al. 2017, section 3.4.1)."""
    return real + (gamma * real - fake).abs()


@torch.no_grad()
def clip_weights(net: torch.nn.Module, c: float) -> None:
    """Clip all parameters to [-c, c] in place, which bounds the Lipschitz constant (Arjovsky et al. 2017, alg. 1)."""
    for parameter in net.parameters():
        parameter.clamp_(-c, c)


def gradient_penalty(critic: Critic, real: Tensor, fake: Tensor, eta: Tensor) -> Tensor:
    """Return E (|grad f(x_hat)|_2 - 1)^2 at x_hat = eta x + (1 - eta) G(z), a scalar (Gulrajani et al. 2017, eq. 3).

    `real` and `fake` are samples (B, ...), `eta` (B,) is uniform on [0, 1).
    """
    # take the gradient between real and generated samples
    eta = eta.view(-1, *[1] * (real.ndim - 1))
    squared = squared_gradient(critic, eta * real + (1 - eta) * fake)
    # penalise its distance from length 1; the constant keeps the derivative of the root finite at 0
    return ((squared + 1e-12).sqrt() - 1).square().mean()


def zero_centred_penalty(discriminator: Critic, x: Tensor) -> Tensor:
    """Return 1/2 E |grad D(x)|^2 at samples x (B, ...): R1 for real x, R2 for generated x, a non-negative scalar.

    Source: Mescheder et al. 2018, eq. 9 and 10.
    """
    return squared_gradient(discriminator, x).mean() / 2


def squared_gradient(net: Critic, x: Tensor) -> Tensor:
    """Return |grad net(x)|^2 of each output, (N,), non-negative; the gradient is with respect to all its input samples.

    `x` is (B, ...); a network that packs m samples has N = B / m outputs. The computation is in float32, also under
    autocast.
    """
    # differentiate the sum of the outputs: each depends on its own samples alone
    with torch.autocast(x.device.type, enabled=False), torch.enable_grad():
        x = x.detach().float().requires_grad_()
        output = net(x)
        (gradient,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    # sum over the samples of each output
    return gradient.reshape(len(output), -1).square().sum(1)


@dataclass(frozen=True)
class Objective:
    """Losses of both networks as functions of logits: `d(real, fake)` and `g(fake, real)` are minimised.

    `verdict(real, fake)` is the mean output (D(x), D(G(z))) for real and for generated samples: probabilities for
    losses that have them, which show when one network wins; raw outputs for critics.
    """

    d: Callable[[Tensor, Tensor], Tensor]
    g: Callable[[Tensor, Tensor], Tensor]
    verdict: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _probabilities(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    return real.float().sigmoid().mean(), fake.float().sigmoid().mean()


def _comparisons(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    return _probabilities(real.float() - fake.float(), fake.float() - real.float())


def _outputs(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    return real.float().mean(), fake.float().mean()


@dataclass(frozen=True)
class FDivergence:
    """One f-divergence D_f(P|Q) = E_Q f(p/q), and its variational bound (Nowozin et al. 2016, eq. 1, 4 and 6):

        D_f(P|Q) >= E_P g_f(V(x)) - E_Q f*(g_f(V(x))),      with equality where g_f(V(x)) = f'(p(x) / q(x))

    P: real samples; Q: generated ones; V: the discriminator. Each field is a function of tensors of any shape.
    `divergence(u)`: f at density ratios u > 0. `activation(v)`: g_f, which increases. `conjugate(v)`: f*(g_f(v)),
    simplified, so that no term in between overflows. `log_ratio(v)`: the log p/q at which the output v is optimal.
    """

    divergence: Callable[[Tensor], Tensor]
    activation: Callable[[Tensor], Tensor]
    conjugate: Callable[[Tensor], Tensor]
    log_ratio: Callable[[Tensor], Tensor]

    def d(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the negated bound, a scalar, at outputs for x of P (`real`) and of Q (`fake`), each of any shape."""
        return self.conjugate(fake.float()).mean() - self.activation(real.float()).mean()

    def minimax_g(self, fake: Tensor) -> Tensor:
        """Return -E f*(g_f(V(G(z)))), a scalar: the generator's part of the bound (Nowozin et al. 2016, eq. 6)."""
        return -self.conjugate(fake.float()).mean()

    def non_saturating_g(self, fake: Tensor) -> Tensor:
        """Return -E g_f(V(G(z))), a scalar: samples are to look real (Nowozin et al. 2016, section 3.2)."""
        return -self.activation(fake.float()).mean()

    def verdict(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean probabilities p / (p + q), of a real and of a generated sample, that a sample is real."""
        return _probabilities(self.log_ratio(real.float()), self.log_ratio(fake.float()))

    def objective(self, saturating: bool = False) -> Objective:
        """Return the losses of both networks; `saturating`: the generator minimises the bound itself."""
        generator = self.minimax_g if saturating else self.non_saturating_g
        return Objective(self.d, lambda fake, real: generator(fake), self.verdict)


F_DIVERGENCES: dict[str, FDivergence] = {
    "kl": FDivergence(
        divergence=lambda u: u * u.log(),
        activation=lambda v: v,
        conjugate=lambda v: (v - 1).exp(),                                     # f*(t) = exp(t - 1)
        log_ratio=lambda v: v - 1,
    ),
    "reverse_kl": FDivergence(
        divergence=lambda u: -u.log(),
        activation=lambda v: -(-v).exp(),
        conjugate=lambda v: v - 1,                                             # f*(t) = -1 - log(-t)
        log_ratio=lambda v: v,
    ),
    "jensen_shannon": FDivergence(
        divergence=lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
        activation=lambda v: math.log(2) + logsigmoid(v),
        conjugate=lambda v: softplus(v) - math.log(2),                         # f*(t) = -log(2 - exp t)
        log_ratio=lambda v: v,
    ),
    "pearson": FDivergence(
        divergence=lambda u: (u - 1).square(),
        activation=lambda v: v,
        conjugate=lambda v: v.square() / 4 + v,                                # f*(t) = t^2 / 4 + t
        log_ratio=lambda v: relu(1 + v / 2).log(),
    ),
    "squared_hellinger": FDivergence(
        divergence=lambda u: (u.sqrt() - 1).square(),
        activation=lambda v: 1 - (-v).exp(),
        conjugate=lambda v: v.exp() - 1,                                       # f*(t) = t / (1 - t)
        log_ratio=lambda v: 2 * v,
    ),
}
"""f-divergences by name (Nowozin et al. 2016, tables 1, 2 and 6). KL is KL(P|Q), reverse KL is KL(Q|P), and
"jensen_shannon" is twice that divergence, whose losses are those of minimax and non-saturating GANs up to a constant.
The bounds of KL, reverse KL and squared Hellinger grow exponentially in v: float32 holds them for |v| < 88."""

OBJECTIVES: dict[str, Objective] = {
    "minimax": Objective(minimax_d, lambda fake, real: minimax_g(fake), _probabilities),
    "non_saturating": Objective(minimax_d, lambda fake, real: non_saturating_g(fake), _probabilities),
    "least_squares": Objective(least_squares_d, lambda fake, real: least_squares_g(fake), _outputs),
    "hinge": Objective(hinge_d, lambda fake, real: hinge_g(fake), _outputs),
    "wasserstein": Objective(wasserstein_d, lambda fake, real: wasserstein_g(fake), _outputs),
    "wasserstein_gp": Objective(wasserstein_d, lambda fake, real: wasserstein_g(fake), _outputs),
    "relativistic": Objective(relativistic_d, relativistic_g, _comparisons),
    **{name: divergence.objective() for name, divergence in F_DIVERGENCES.items()},
}
"""Losses by name. "wasserstein" needs `clip_weights`, "wasserstein_gp" needs `gradient_penalty`."""
