"""Mixtures of discretised logistics for the channels of a pixel (Salimans et al. 2017, section 2.1 and 2.2).

All M components of a pixel share their weights between the channels, and the location of a channel depends linearly on
the values of the channels before it: P(x) = sum_m pi_m prod_c P_m(x_c | x_1, ..., x_{c-1}).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hfgen.losses.elbo import log_discretised_logistic

LOG_SCALES = (-7.0, 7.0)
"""Least and largest logarithm of a scale, of pixels in [-1, 1]; the least is that of Salimans et al. 2017."""


@dataclass(frozen=True)
class LogisticMixture:
    """Parameters of N pixels of C channels, M components each: `log_pi` (N, M), `mu` and `log_s` (N, M, C).

    `slopes` (N, M, C, C): slope of the location of channel c in the value of channel d < c; others have no effect.
    `levels`: even levels in [-1, 1].
    """

    log_pi: Tensor
    mu: Tensor
    log_s: Tensor
    slopes: Tensor
    levels: int

    @classmethod
    def of(cls, raw: Tensor, channels: int, levels: int) -> "LogisticMixture":
        """Return the mixture for a network's output `raw` (N, M (1 + 2 C + C^2)); slopes are in [-1, 1]."""
        C = channels
        parts = raw.float().unflatten(1, (-1, 1 + 2 * C + C * C))                        # (N, M, ...)
        log_pi, mu, log_s, slopes = parts.split([1, C, C, C * C], 2)
        scales = log_s.clamp(*LOG_SCALES)
        below = torch.tanh(slopes).unflatten(2, (C, C)).tril(-1)
        return cls(log_pi[..., 0].log_softmax(1), mu, scales, below, levels)

    def locations(self, x: Tensor) -> Tensor:
        """Return mu_m,c + sum_(d < c) slope x_d, (N, M, C), for pixels x (N, C) in [-1, 1]."""
        return self.mu + (self.slopes * x[:, None, None, :]).sum(-1)

    def log_components(self, x: Tensor) -> Tensor:
        """Return log P_m(x_c | x_1, ..., x_{c-1}), (N, M, C) <= 0, in nats, for pixels x (N, C) in [-1, 1]."""
        mu = self.locations(x)
        values = x[:, None, :].expand_as(mu)
        return log_discretised_logistic(values[..., None], mu[..., None], self.log_s[..., None], self.levels)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log P(x_c | x_1, ..., x_{c-1}), (N, C) <= 0, in nats, for pixels x (N, C) in [-1, 1].

        It is the difference of log P(x_1, ..., x_c) and log P(x_1, ..., x_{c-1}).
        """
        joint = (self.log_pi[..., None] + self.log_components(x).cumsum(2)).logsumexp(1)  # (N, C)
        before = torch.cat([torch.zeros_like(joint[:, :1]), joint[:, :-1]], 1)
        return joint - before

    def log_probs_of_levels(self, x: Tensor, channel: int) -> Tensor:
        """Return log P(x_c = level | x_1, ..., x_{c-1}), (N, levels), of the `channel` c for the earlier ones in x (N,
        C); values of x from c on have no effect."""
        # weights of the components after the earlier channels
        earlier = self.log_components(x)[:, :, :channel].sum(2)                          # (N, M)
        weights = (self.log_pi + earlier).log_softmax(1)
        # each level under each component
        mu, log_s = self.locations(x)[:, :, channel], self.log_s[:, :, channel]
        values = torch.linspace(-1, 1, self.levels, device=x.device)
        shape = (*mu.shape, self.levels)
        of_levels = log_discretised_logistic(
            values.expand(shape)[..., None], mu[..., None, None].expand(*shape, 1),
            log_s[..., None, None].expand(*shape, 1), self.levels,
        )  # fmt: skip
        return (weights[..., None] + of_levels).logsumexp(1)
