"""The forward process of DDPM and its closed-form consequences (Ho et al. 2020, section 2).

Notation: alpha_bar_t = prod_{s<=t} (1 - beta_s), signal = sqrt(alpha_bar_t), sigma = sqrt(1 - alpha_bar_t). Tables are
computed in float64. For int timesteps they are read as Python floats, for tensors of timesteps from float32 copies
(float64 for float64 samples), one per device, for every dtype of the model.
"""

from typing import Any

import torch

from hfgen.errors import ConfigError

Number = float | torch.Tensor


def posterior_weights(alpha_bar_t: Any, alpha_bar_prev: Any) -> tuple[Any, Any, Any, Any]:
    """Return (coefficient of x_0, coefficient of x_t, variance, beta) of the posterior q(x_prev | x_t, x_0).

    For neighbours it is Ho et al. 2020, eq. 6 and 7. For an earlier `prev` it is the exact posterior of the strided
    chain, whose alpha is alpha_bar_t / alpha_bar_prev. Floats or float64 tensors of one shape, in [0, 1];
    alpha_bar_prev = 1 is the data.
    """
    alpha = alpha_bar_t / alpha_bar_prev
    beta = 1 - alpha
    coef_x0 = alpha_bar_prev**0.5 * beta / (1 - alpha_bar_t)
    coef_xt = alpha**0.5 * (1 - alpha_bar_prev) / (1 - alpha_bar_t)
    return coef_x0, coef_xt, beta * (1 - alpha_bar_prev) / (1 - alpha_bar_t), beta


def axpy(x: torch.Tensor, b: Number, y: torch.Tensor) -> torch.Tensor:
    """Return x + b y in one operation, for x and y of one shape; `b` is a float or a tensor that broadcasts to it."""
    return torch.add(x, y, alpha=b) if isinstance(b, float) else torch.addcmul(x, b, y)


def axpy_(x: torch.Tensor, b: Number, y: torch.Tensor) -> torch.Tensor:
    """Return x after b y, of its shape, was added in place: `axpy` without its allocation."""
    return x.add_(y, alpha=b) if isinstance(b, float) else x.addcmul_(b, y)


def upcast(x: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return x, any shape, in the widest of its dtype, `dtype` and float32; x itself if its dtype does not change."""
    return x.to(torch.promote_types(torch.promote_types(x.dtype, dtype), torch.float32))


class Marginals:
    """q(x_t | x_0) = N(signal x_0, sigma^2 I) and its changes of variables, for every noise schedule.

    Samples are (B, C, ...); t is a number or a (B,) tensor, one timestep per sample. The class is mixed into a
    scheduler that has `_rows`, and whose `config.prediction_type` is the model's output: "epsilon", "sample" (x_0) or
    "v_prediction".
    """

    config: Any

    def _rows(self, t: Any, like: torch.Tensor) -> list[Any]:
        """Return signal and sigma first, snr last, at t: floats, or (B, 1, ...) that broadcast to `like`."""
        raise NotImplementedError

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: float | torch.Tensor
    ) -> torch.Tensor:
        """Return x_t = signal x_0 + sigma eps in the shape (B, C, ...) and dtype of x_0 (Ho et al. 2020, eq. 4).

        `noise`: eps, standard normal, in the shape of x_0. `timesteps`: in [0, T - 1], a number or (B,).
        """
        x_0, eps = upcast(original_samples), upcast(noise)
        signal, sigma, *_ = self._rows(timesteps, x_0)
        return axpy_(x_0 * signal, sigma, eps).to(original_samples.dtype)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: float | torch.Tensor) -> torch.Tensor:
        """Return v = signal eps - sigma x_0 in the shape and dtype of `sample`, x_0 (Salimans and Ho 2022, appendix D).

        `sample` and `noise`: (B, C, ...). `timesteps`: in [0, T - 1], a number or (B,).
        """
        x_0, eps = upcast(sample), upcast(noise)
        signal, sigma, *_ = self._rows(timesteps, x_0)
        return axpy_(eps * signal, -sigma, x_0).to(sample.dtype)

    def predict_x0(self, model_output: torch.Tensor, t: float | torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
        """Return the estimate of x_0 from `model_output`, not clipped, in the shape and dtype of x_t (B, C, ...).

        epsilon: (x_t - sigma eps) / signal (Ho et al. 2020, eq. 15). v_prediction: signal x_t - sigma v. sample: the
        output. `t`: in [0, T - 1], a number or (B,). Raises ConfigError for epsilon at signal 0, where every x_0 is
        possible.
        """
        # read the rates at t
        output, x = upcast(model_output), upcast(x_t)
        signal, sigma, *_ = self._rows(t, x)
        # convert the output
        if isinstance(signal, float) and signal == 0 and self.config.prediction_type == "epsilon":
            raise zero_snr_error()
        return self._to_x_0(output, x, signal, sigma).to(x_t.dtype)

    def _to_x_0(self, output: torch.Tensor, x_t: torch.Tensor, signal: Number, sigma: Number) -> torch.Tensor:
        """Return the estimate of x_0 from `output` as a new tensor."""
        kind = self.config.prediction_type
        if kind == "epsilon":
            return axpy(x_t, -sigma, output).mul_(1 / signal)
        if kind == "v_prediction":
            return axpy_(x_t * signal, -sigma, output)
        return output.clone()

    def predict_eps(self, model_output: torch.Tensor, t: float | torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
        """Return the estimate of the noise from `model_output`, in the shape and dtype of x_t (B, C, ...).

        epsilon: the output. v_prediction: signal v + sigma x_t. sample: (x_t - signal x_0) / sigma. The last two
        invert Ho et al. 2020, eq. 4, and the definition of v. `t`: in [0, T - 1], a number or (B,).
        """
        # read the rates at t
        output, x = upcast(model_output), upcast(x_t)
        signal, sigma, *_ = self._rows(t, x)
        # convert the output
        kind = self.config.prediction_type
        if kind == "v_prediction":
            output = axpy_(output * signal, sigma, x)
        elif kind == "sample":
            output = axpy(x, -signal, output) / sigma
        return output.to(x_t.dtype)

    def score(self, model_output: torch.Tensor, t: float | torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
        """Return the estimate of the score grad log q(x_t), in the shape and dtype of x_t (B, C, ...).

        -eps / sigma_t (Song et al. 2021, section 3.3). It is equivalent to `predict_x0` by Tweedie's formula,
        E[x_0 | x_t] = (x_t + sigma^2 score) / signal. `t`: in [0, T - 1], a number or (B,).
        """
        sigma = self._rows(t, upcast(x_t))[1]
        return (upcast(self.predict_eps(model_output, t, x_t)) * (-1 / sigma)).to(x_t.dtype)

    def snr(self, t: float | torch.Tensor) -> torch.Tensor:
        """Return the signal-to-noise ratio alpha_bar_t / (1 - alpha_bar_t), non-negative float32, in the shape of t."""
        like = torch.empty(0, device=t.device if isinstance(t, torch.Tensor) else "cpu")
        ratio = torch.as_tensor(self._rows(t, like)[-1], dtype=torch.float32)
        return ratio.view(t.shape) if isinstance(t, torch.Tensor) else ratio


class ForwardProcess(Marginals):
    """The marginals of given betas and the posterior; t is an int or a (B,) tensor in [0, T - 1].

    `alpha_bar` (T,) is float64; `betas`, `alphas` and `alphas_cumprod` are float32 as in diffusers.
    """

    def _set_betas(self, betas: torch.Tensor) -> None:
        # alpha_bar; entry -1 is the data, alpha_bar = 1
        alpha_bar = torch.cumprod(1 - betas, 0)
        one = alpha_bar.new_ones(1)
        self._alpha_bar = torch.cat([alpha_bar, one])
        self.alpha_bar = alpha_bar
        # the rows of `_rows`
        coef_x0, coef_xt, variance, _ = posterior_weights(alpha_bar, torch.cat([one, alpha_bar[:-1]]))
        rates = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        self._table = torch.stack([*rates, coef_x0, coef_xt, variance, alpha_bar / (1 - alpha_bar)])  # (6, T)
        self._copies: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}
        # the tables of diffusers
        self.betas, self.alphas, self.alphas_cumprod = betas.float(), (1 - betas).float(), alpha_bar.float()

    def _rows(self, t: int | torch.Tensor, like: torch.Tensor) -> list[Any]:
        """Return signal, sigma, coefficients of x_0 and x_t, variance, snr at t: floats, or (B, 1, ...) for `like`.

        Raises ConfigError for an int outside [0, T - 1].
        """
        # read Python floats for a number
        if not isinstance(t, torch.Tensor):
            if not 0 <= t < len(self.betas):
                raise ConfigError(f"timestep must be in [0, {len(self.betas) - 1}], got {t}")
            return self._table[:, t].tolist()
        # index a copy on the device for a tensor
        key = (like.device, like.dtype)
        if key not in self._copies:
            self._copies[key] = self._table.to(like.device, like.dtype)
        rows = self._copies[key].index_select(1, t.to(like.device).flatten())  # (6, B)
        return list(rows.view(*rows.shape, *[1] * (like.ndim - 1)))

    def posterior(
        self, x0: torch.Tensor, x_t: torch.Tensor, t: int | torch.Tensor, prev_t: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (mean, variance) of the posterior q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 6 and 7).

        The mean has the shape and dtype of x_t (B, C, ...). The variance is float32 or wider, a scalar tensor for an
        int t in [0, T - 1], (B, 1, ...) for a (B,) tensor, and 0 at t = 0. `prev_t` (for an int t; -1 is the data): the
        posterior q(x_{prev_t} | x_t, x_0) of a strided chain. Default: t - 1.
        """
        # compute the weights of x_0 and x_t
        x_0, x = upcast(x0), upcast(x_t)
        if prev_t is None:
            _, _, coef_x0, coef_xt, variance, _ = self._rows(t, x)
        else:
            pair = self._alpha_bar[[int(t), prev_t]].tolist()
            coef_x0, coef_xt, variance, _ = posterior_weights(*pair)
        # add them up
        mean = axpy_(x_0 * coef_x0, coef_xt, x).to(x_t.dtype)
        return mean, torch.as_tensor(variance, dtype=x.dtype, device=x.device)


def zero_snr_error() -> ConfigError:
    """Return the error of epsilon-prediction at a timestep without signal."""
    return ConfigError(
        "prediction_type 'epsilon' does not determine x_0 at a timestep with alpha_bar = 0 (rescale_betas_zero_snr); "
        "use 'v_prediction' or 'sample', set clip_sample, or start at an earlier timestep"
    )
