"""The variance-preserving SDE in closed form (Song et al. 2021, section 3.4; Ho et al. 2020 is its discretisation).

dx = -1/2 beta(t) x dt + sqrt(beta(t)) dW on t in [0, 1] has the marginals x_t ~ N(gamma_t x_0, sigma_t^2 I) with
gamma_t = exp(-B(t) / 2), sigma_t^2 = 1 - gamma_t^2, B(t) = int_0^t beta. The input of networks is the timestep
(T - 1) (t - t_min) / (1 - t_min), a float in [0, T - 1], for t in [t_min, 1].
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from hfgen.schedulers.ddpm import DDPMScheduler
from hfgen.schedulers.forward import Marginals
from hfgen.schedulers.processes import Process
from hfgen.schedulers.vp_rates import Rate


class VPProcess(Marginals):
    """The marginals of the SDE with a given rate and their consequences; times are float64 tensors of any shape."""

    rate: Rate
    t_min: float

    def gamma(self, t: Tensor) -> Tensor:
        """Return the factor of the mean, gamma_t = exp(-B(t) / 2), in (0, 1], in the shape of t; t is in [0, 1]."""
        return (-self.rate.integral(t) / 2).exp()

    def sigma(self, t: Tensor) -> Tensor:
        """Return the standard deviation sigma_t = sqrt(1 - gamma_t^2), in [0, 1), in the shape of t."""
        return (-torch.expm1(-self.rate.integral(t))).sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        """Return log(gamma_t^2 / sigma_t^2) = -log(exp(B(t)) - 1), falling in t, in its shape; t is in (0, 1]."""
        return -torch.expm1(self.rate.integral(t)).log()

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """Return the time t in [0, 1] of a log-SNR, float64, in its shape: B(t) = log(1 + exp(-log_snr)).

        It is the inverse of `log_snr`.
        """
        return self.rate.inverse(softplus(-log_snr.double(), threshold=40))

    def forward_process(self) -> Process:
        """Return the process of t in [0, 1] from data to noise, dx = -1/2 beta x dt + sqrt(beta) dW.

        (Song et al. 2021, eq. 11.) Its diffusion is D = beta / 2.
        """
        return Process(lambda x, t: x * (-self._beta(t) / 2), lambda x, t: self._beta(t) / 2)

    def reverse_process(self, score: Callable[[Tensor, float], Tensor]) -> Process:
        """Return the process of u = 1 - t in [0, 1] from noise to data, dx = beta [x / 2 + score] du + sqrt(beta) dW.

        (Song et al. 2021, eq. 6, for eq. 11.) `score`: (x, t) -> grad log q_t(x), in the shape of x (B, ...).
        """

        def drift(x: Tensor, u: float) -> Tensor:
            return (x / 2 + score(x, 1 - u)) * self._beta(1 - u)

        return Process(drift, lambda x, u: self._beta(1 - u) / 2)

    def _beta(self, t: float) -> float:
        return float(self.rate.beta(torch.tensor(t, dtype=torch.float64)))

    def time_of(self, timestep: float | Tensor) -> Tensor:
        """Return t in [t_min, 1] of timesteps in [0, T - 1], float64, in their shape."""
        timesteps = torch.as_tensor(timestep, dtype=torch.float64)
        return self.t_min + timesteps / (self.config.num_train_timesteps - 1) * (1 - self.t_min)

    def timestep_of(self, t: Tensor) -> Tensor:
        """Return the timesteps in [0, T - 1] of t in [t_min, 1], in the shape of t."""
        return (t - self.t_min) / (1 - self.t_min) * (self.config.num_train_timesteps - 1)

    def time_drawn(self, u: Tensor, importance: bool = False) -> Tensor:
        """Return t in [t_min, 1], float64, for u uniform on [0, 1): uniform, or with density ~ beta / sigma^2.

        It has the shape of u. The second density is for `importance`: the integral of beta / sigma^2 is -log_snr, so t
        is uniform in log_snr (Song et al. 2021, "Maximum likelihood training of score-based diffusion models", section
        4.2; Kingma et al. 2021, section 5.1).
        """
        u = u.double()
        if not importance:
            return self.t_min + u * (1 - self.t_min)
        most, least = self._log_snr_range()
        return self.time_of_log_snr(most + u * (least - most)).clamp(self.t_min, 1)

    def likelihood_weight(self, t: Tensor) -> Tensor:
        """Return beta_t / sigma_t^2 over its mean on [t_min, 1], > 0, in the shape of t.

        As the weight of |eps - eps_theta|^2 it bounds the likelihood: lambda = beta (Song et al. 2021, "Maximum
        likelihood training of score-based diffusion models", eq. 7), scaled to mean 1.
        """
        most, least = self._log_snr_range()
        mean = (most - least) / (1 - self.t_min)
        return self.rate.beta(t) / self.sigma(t).square() / mean

    def _log_snr_range(self) -> tuple[float, float]:
        most, least = self.log_snr(torch.tensor([self.t_min, 1.0], dtype=torch.float64)).tolist()
        return most, least

    def _rows(self, t: Any, like: Tensor) -> list[Any]:
        """Return signal gamma, sigma and snr at timesteps t: floats, or (B, 1, ...) that broadcast to `like`."""
        times = self.time_of(t)
        values = self.gamma(times), self.sigma(times), self.log_snr(times).exp()
        if not isinstance(t, Tensor):
            return [float(value) for value in values]
        shape = (-1, *[1] * (like.ndim - 1))
        return [value.to(like.device, like.dtype).view(shape) for value in values]

    def discretised(self) -> DDPMScheduler:
        """Return the DDPM scheduler with the noise of this process at the timesteps 0, ..., T - 1: alpha_bar = gamma^2.

        With it any sampler for DDPM, of hfgen or diffusers, runs a network that was trained on the SDE.
        """
        B = self.rate.integral(self.time_of(torch.arange(self.config.num_train_timesteps)))
        betas = -torch.expm1(-torch.cat([B[:1], B.diff()]))
        names = ("num_train_timesteps", "prediction_type", "clip_sample", "clip_sample_range")
        return DDPMScheduler(trained_betas=betas.tolist(), **{name: self.config[name] for name in names})
