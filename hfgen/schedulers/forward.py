"""The forward process of DDPM and all that follows from it in closed form (Ho et al. 2020, section 2).

Notation: alpha_bar_t = prod_{s<=t} (1 - beta_s), signal = sqrt(alpha_bar_t), sigma = sqrt(1 - alpha_bar_t). Tables are
computed in float64; int timesteps read them as Python floats, tensors of timesteps from float32 copies (float64 for
float64 samples), one per device, whatever the model's dtype.
"""

from typing import Any

import torch

from hfgen.errors import ConfigError

Number = float | torch.Tensor


def posterior_weights(alpha_bar_t: Any, alpha_bar_prev: Any) -> tuple[Any, Any, Any, Any]:
    """Return (weight of x_0, weight of x_t, variance, beta) of q(x_prev | x_t, x_0) (Ho et al. 2020, eq. 6 and 7).

    For neighbours this is the paper's posterior; for any earlier `prev` the exact one of the strided chain, whose alpha
    is alpha_bar_t / alpha_bar_prev. Floats or float64 tensors; alpha_bar_prev = 1 is the data.
    """
    alpha = alpha_bar_t / alpha_bar_prev
    beta = 1 - alpha
    of_x_0 = alpha_bar_prev**0.5 * beta / (1 - alpha_bar_t)
    of_x_t = alpha**0.5 * (1 - alpha_bar_prev) / (1 - alpha_bar_t)
    return of_x_0, of_x_t, beta * (1 - alpha_bar_prev) / (1 - alpha_bar_t), beta


def plus(x: torch.Tensor, b: Number, y: torch.Tensor) -> torch.Tensor:
    """Return x + b y in one operation, b being a float or a tensor that broadcasts."""
    return torch.add(x, y, alpha=b) if isinstance(b, float) else torch.addcmul(x, b, y)


def plus_(x: torch.Tensor, b: Number, y: torch.Tensor) -> torch.Tensor:
    """Return x, to which b y has been added in place; as `plus`, without its allocation."""
    return x.add_(y, alpha=b) if isinstance(b, float) else x.addcmul_(b, y)


def full(x: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return x in the wider of its own dtype, `dtype` and float32; x itself where nothing changes."""
    return x.to(torch.promote_types(torch.promote_types(x.dtype, dtype), torch.float32))


class Marginals:
    """q(x_t | x_0) = N(signal x_0, sigma^2 I) and its changes of variables, whatever the noise schedule.

    Samples are (B, C, ...); t is a number or a (B,) tensor, one timestep per sample. Mixed into a scheduler whose
    `config.prediction_type` says what the model predicts, and which has `_rows`.
    """

    config: Any

    def _rows(self, t: Any, like: torch.Tensor) -> list[Any]:
        """Return signal and sigma first, snr last, at t: floats, or (B, 1, ...) to fit `like`."""
        raise NotImplementedError

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: float | torch.Tensor
    ) -> torch.Tensor:
        """Return x_t = signal x_0 + sigma eps in the dtype of x_0 (Ho et al. 2020, eq. 4)."""
        x_0, eps = full(original_samples), full(noise)
        signal, sigma, *_ = self._rows(timesteps, x_0)
        return plus_(x_0 * signal, sigma, eps).to(original_samples.dtype)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: float | torch.Tensor) -> torch.Tensor:
        """Return v = signal eps - sigma x_0 in the dtype of `sample`, x_0 (Salimans & Ho 2022, appendix D)."""
        x_0, eps = full(sample), full(noise)
        signal, sigma, *_ = self._rows(timesteps, x_0)
        return plus_(eps * signal, -sigma, x_0).to(sample.dtype)

    def predict_x0(self, model_output: torch.Tensor, t: float | torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
        """Return the estimate of x_0 that `model_output` means, neither clipped nor thresholded, in the dtype of x_t.

        epsilon: (x_t - sigma eps) / signal (Ho et al. 2020, eq. 15); v_prediction: signal x_t - sigma v; sample: it.
        Raises ConfigError where the signal is 0 and the model predicts epsilon: every x_0 is possible there.
        """
        output, x = full(model_output), full(x_t)
        signal, sigma, *_ = self._rows(t, x)
        if isinstance(signal, float) and signal == 0 and self.config.prediction_type == "epsilon":
            raise zero_snr_error()
        return self._to_x_0(output, x, signal, sigma).to(x_t.dtype)

    def _to_x_0(self, output: torch.Tensor, x_t: torch.Tensor, signal: Number, sigma: Number) -> torch.Tensor:
        """Return a new tensor, the estimate of x_0 that `output` means."""
        kind = self.config.prediction_type
        if kind == "epsilon":
            return plus(x_t, -sigma, output).mul_(1 / signal)
        if kind == "v_prediction":
            return plus_(x_t * signal, -sigma, output)
        return output.clone()

    def predict_eps(self, model_output: torch.Tensor, t: float | torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
        """Return the estimate of the noise that `model_output` means, in the dtype of x_t.

        epsilon: it; v_prediction: signal v + sigma x_t; sample: (x_t - signal x_0) / sigma (the inverses of eq. 4).
        """
        output, x = full(model_output), full(x_t)
        signal, sigma, *_ = self._rows(t, x)
        kind = self.config.prediction_type
        if kind == "v_prediction":
            output = plus_(output * signal, sigma, x)
        elif kind == "sample":
            output = plus(x, -signal, output) / sigma
        return output.to(x_t.dtype)

    def score(self, model_output: torch.Tensor, t: float | torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
        """Return the estimate of grad log q(x_t), -eps / sigma_t, in the dtype of x_t (Song et al. 2021, section 3.3).

        By Tweedie's formula it says the same as `predict_x0`: E[x_0 | x_t] = (x_t + sigma^2 score) / signal.
        """
        sigma = self._rows(t, full(x_t))[1]
        return (full(self.predict_eps(model_output, t, x_t)) * (-1 / sigma)).to(x_t.dtype)

    def snr(self, t: float | torch.Tensor) -> torch.Tensor:
        """Return the signal-to-noise ratio alpha_bar_t / (1 - alpha_bar_t), float32, of the shape of t."""
        like = torch.empty(0, device=t.device if isinstance(t, torch.Tensor) else "cpu")
        ratio = torch.as_tensor(self._rows(t, like)[-1], dtype=torch.float32)
        return ratio.view(t.shape) if isinstance(t, torch.Tensor) else ratio


class ForwardProcess(Marginals):
    """q(x_t | x_0) = N(signal x_0, sigma^2 I) of given betas, its changes of variables and its posterior.

    Every method takes t as an int or as a (B,) tensor in [0, T - 1], one timestep per sample; samples are (B, C, ...).
    Mixed into a scheduler whose `config.prediction_type` says what the model predicts. `alpha_bar` (T,) is float64;
    `betas`, `alphas` and `alphas_cumprod` are float32 as in diffusers.
    """

    def _set_betas(self, betas: torch.Tensor) -> None:
        alpha_bar = torch.cumprod(1 - betas, 0)
        one = alpha_bar.new_ones(1)
        self._alpha_bar = torch.cat([alpha_bar, one])  # entry -1 is the data: alpha_bar = 1
        self.alpha_bar = alpha_bar
        of_x_0, of_x_t, variance, _ = posterior_weights(alpha_bar, torch.cat([one, alpha_bar[:-1]]))
        rates = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        self._table = torch.stack([*rates, of_x_0, of_x_t, variance, alpha_bar / (1 - alpha_bar)])  # (6, T)
        self._copies: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}
        self.betas, self.alphas, self.alphas_cumprod = betas.float(), (1 - betas).float(), alpha_bar.float()

    def _rows(self, t: int | torch.Tensor, like: torch.Tensor) -> list[Any]:
        """Return signal, sigma, weights of x_0 and x_t, variance, snr at t: floats, or (B, 1, ...) to fit `like`."""
        if not isinstance(t, torch.Tensor):
            if not 0 <= t < len(self.betas):
                raise ConfigError(f"timestep must be in [0, {len(self.betas) - 1}], got {t}")
            return self._table[:, t].tolist()
        key = (like.device, like.dtype)
        if key not in self._copies:
            self._copies[key] = self._table.to(like.device, like.dtype)
        rows = self._copies[key].index_select(1, t.to(like.device).flatten())  # (6, B)
        return list(rows.view(*rows.shape, *[1] * (like.ndim - 1)))

    def posterior(
        self, x0: torch.Tensor, x_t: torch.Tensor, t: int | torch.Tensor, prev_t: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (mean, variance) of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 6 and 7).

        The mean has the shape and dtype of x_t; the variance is a scalar tensor for an int t and (B, 1, ...) for a (B,)
        tensor, float32 at least; 0 at t = 0. With `prev_t` (t an int; -1 means the data) it is q(x_{prev_t} | x_t, x_0)
        of a strided chain.
        """
        x_0, x = full(x0), full(x_t)
        if prev_t is None:
            _, _, of_x_0, of_x_t, variance, _ = self._rows(t, x)
        else:
            pair = self._alpha_bar[[int(t), prev_t]].tolist()
            of_x_0, of_x_t, variance, _ = posterior_weights(*pair)
        mean = plus_(x_0 * of_x_0, of_x_t, x).to(x_t.dtype)
        return mean, torch.as_tensor(variance, dtype=x.dtype, device=x.device)


def zero_snr_error() -> ConfigError:
    """Return the error for epsilon-prediction at a timestep without signal."""
    return ConfigError(
        "prediction_type 'epsilon' says nothing about x_0 at a timestep with alpha_bar = 0 (rescale_betas_zero_snr); "
        "use 'v_prediction' or 'sample', set clip_sample, or start at an earlier timestep"
    )
