"""The DDPM scheduler: ancestral sampling through the forward process's posterior (Ho et al. 2020, algorithm 2)."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from diffusers.utils.torch_utils import randn_tensor

from hfgen.checks import check_int
from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.loading.config import register_to_config
from hfgen.loading.mixins import SchedulerMixin
from hfgen.schedulers.betas import make_betas
from hfgen.schedulers.forward import ForwardProcess, Number, axpy_, posterior_weights, upcast, zero_snr_error
from hfgen.schedulers.settings import FIXED, LEARNED, check_settings
from hfgen.schedulers.traits import SchedulerTraits

Generators = torch.Generator | list[torch.Generator] | None

MIN_VARIANCE = 1e-20
"""Lower bound of the posterior's variance, as in diffusers; it keeps log(variance) finite."""

MIN_SIGNAL = 1e-18
"""Replacement of signal = 0 in a division whose result is clipped: it gives the limit without NaN."""


class DDPMSchedulerOutput(NamedTuple):
    """The output of a step: `prev_sample` is x_{t-1}, `pred_original_sample` the (clipped) estimate of x_0.

    It is read like diffusers' output of that name: by attribute, index, key or `to_tuple()`.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor

    def __getitem__(self, key: Any) -> Any:
        return getattr(self, key) if isinstance(key, str) else tuple.__getitem__(self, key)

    def keys(self) -> tuple[str, ...]:
        """Return the names of the fields, so that `dict(output)` works."""
        return self._fields

    def values(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the fields, (B, C, ...) each, in the order of `keys`."""
        return self.to_tuple()

    def to_tuple(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (prev_sample, pred_original_sample), (B, C, ...) each."""
        return self.prev_sample, self.pred_original_sample


class Step(NamedTuple):
    """Constants of one step t -> prev_t of the chain."""

    prev_t: int
    signal: float
    sigma: float
    coef_x0: float
    coef_xt: float
    variance: float
    beta: float


class DDPMScheduler(ForwardProcess, SchedulerMixin):  # type: ignore[misc]
    """Noise schedule, training targets and ancestral sampler of DDPM; settings and defaults are those of diffusers.

    Args:
        num_train_timesteps: T, the length of the chain.
        beta_start, beta_end, beta_schedule: "linear", "scaled_linear", "squaredcos_cap_v2" (cosine), "sigmoid" or
            "laplace"; `trained_betas` replace them.
        variance_type: variance of the reverse step. "fixed_small" is that of the posterior and "fixed_large" is beta;
            with "_log" the variance is the same (diffusers gives NaN for "fixed_large_log"). "learned": the second half
            of the model's channels is the variance, negative values count as 0. "learned_range": it interpolates
            between the logarithms of small and large (Nichol and Dhariwal 2021, eq. 15).
        clip_sample, clip_sample_range: clip the estimate of x_0 to [-range, range].
        thresholding, dynamic_thresholding_ratio, sample_max_value: dynamic thresholding in place of clipping.
        prediction_type: output of the model, "epsilon", "sample" (x_0) or "v_prediction".
        timestep_spacing, steps_offset: "leading", "linspace" or "trailing" (Lin et al. 2024, table 2).
        rescale_betas_zero_snr: end the chain in pure noise (Lin et al. 2024, algorithm 1).

    Samples are tensors (B, C, ...), also points (B, 2). Raises ConfigError for settings without meaning.
    """

    traits = SchedulerTraits(predicts_variance=True, on_cpu=True)
    _compatibles = [scheduler.name for scheduler in KarrasDiffusionSchedulers]  # noqa: RUF012
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | Sequence[float] | None = None,
        variance_type: str = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        check_settings(self.config)
        self._set_betas(
            make_betas(num_train_timesteps, beta_schedule, beta_start, beta_end, trained_betas, rescale_betas_zero_snr)
        )
        self.init_noise_sigma = 1.0
        self.variance_type = variance_type
        self.custom_timesteps = False
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps).flip(0)
        self._chains: dict[torch.dtype, dict[int, Step]] = {}
        self._chain_timesteps: torch.Tensor | None = None

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Set the timesteps of sampling: `num_inference_steps` spaced timesteps, or the descending `timesteps`.

        Raises ConfigError unless exactly one of them is given, `num_inference_steps` is an int in [1, T] and
        `timesteps` descend within [0, T - 1].
        """
        # choose the chain
        if (num_inference_steps is None) == (timesteps is None):
            raise ConfigTypeError("set_timesteps needs num_inference_steps or timesteps, and not both")
        if timesteps is not None:
            chain = self._given_timesteps(timesteps)
        else:
            check_int("num_inference_steps", num_inference_steps, 1, len(self))
            self.num_inference_steps = num_inference_steps
            chain = self._spaced_timesteps(num_inference_steps or 0)
        # keep it
        self.custom_timesteps = timesteps is not None
        self.timesteps = torch.from_numpy(chain).to(device)

    def _given_timesteps(self, timesteps: Sequence[int]) -> np.ndarray:
        chain = np.array(timesteps, dtype=np.int64)
        if not len(chain) or (np.diff(chain) >= 0).any() or chain[0] >= len(self) or chain[-1] < 0:
            raise ConfigError(f"timesteps must descend within [0, {len(self) - 1}], got {list(timesteps)}")
        return chain

    def _spaced_timesteps(self, n: int) -> np.ndarray:
        total, spacing = len(self), self.config.timestep_spacing
        if spacing == "linspace":
            return np.linspace(0, total - 1, n).round()[::-1].astype(np.int64)
        if spacing == "leading":
            return np.arange(n)[::-1] * (total // n) + self.config.steps_offset
        # drop an extra entry that rounding may add to arange: there diffusers visits timestep -1 (T = 1000, n = 61)
        return np.arange(total, 0, -total / n)[:n].round().astype(np.int64) - 1

    def previous_timestep(self, timestep: int | torch.Tensor) -> int | torch.Tensor:
        """Return the timestep that follows `timestep`, in [0, T - 1], in the chain; -1 after the last.

        It is a scalar tensor after a call of `set_timesteps`. Raises ConfigError for a timestep outside the chain.
        """
        if self.custom_timesteps or self.num_inference_steps:
            return torch.tensor(self._step_from(int(timestep)).prev_t, device=self.timesteps.device)
        return timestep - 1

    def _step_from(self, t: int, dtype: torch.dtype = torch.float32) -> Step:
        """Return the constants of the step from t in the chain of the current `timesteps`.

        They are computed in `dtype`: float64 for float64 samples, else from float32 tables as in diffusers. The
        rounding is visible at the first timesteps (about 5e-5 at t = 1), so both schedulers give the same image.
        """
        # build the chain once per set of timesteps and dtype
        if self._chain_timesteps is not self.timesteps:
            self._chains, self._chain_timesteps = {}, self.timesteps
        if dtype not in self._chains:
            self._chains[dtype] = self._build_chain(dtype)
        # look the step up
        chain = self._chains[dtype]
        try:
            return chain[t]
        except KeyError:
            raise ConfigError(
                f"timestep {t} is not in the chain of {len(chain)} timesteps from {max(chain)} to {min(chain)}; "
                "step through scheduler.timesteps"
            ) from None

    def _build_chain(self, dtype: torch.dtype) -> dict[int, Step]:
        """Return the constants of each step of the current timesteps, by timestep."""
        # timesteps of the chain
        strided = self.custom_timesteps or self.num_inference_steps
        chain = self.timesteps.tolist() if strided else list(range(len(self.betas)))[::-1]
        if chain[0] >= len(self.betas):
            raise ConfigError(
                f"timestep {chain[0]} is beyond the last of {len(self.betas)} betas; use a smaller steps_offset "
                f"({self.config.steps_offset}), fewer num_inference_steps, or as many trained_betas as timesteps"
            )
        # constants of all steps, a column each
        successors = [*chain[1:], -1]
        alpha_bar = self._alpha_bar.to(dtype)
        alpha_bar_t, alpha_bar_prev = alpha_bar[chain], alpha_bar[successors]
        signal, sigma = alpha_bar_t.sqrt().clamp(min=MIN_SIGNAL), (1 - alpha_bar_t).sqrt()
        columns = torch.stack([signal, sigma, *posterior_weights(alpha_bar_t, alpha_bar_prev)]).tolist()
        return dict(zip(chain, map(Step, successors, *columns), strict=True))

    def scale_model_input(self, sample: torch.Tensor, timestep: int | None = None) -> torch.Tensor:
        """Return `sample`, (B, C, ...): the input of a DDPM model is x_t without scaling."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Return x_{t-1} ~ p(x_{t-1} | x_t) and the estimate of x_0 (Ho et al. 2020, algorithm 2).

        Args:
            model_output: prediction (B, C, ...) of the `prediction_type`; (B, 2C, ...) with a learned variance.
            timestep: t in [0, T - 1], an int or a scalar tensor, one of `timesteps`.
            sample: x_t, (B, C, ...).
            generator: generator of the noise, or a list with one per sample. No noise is drawn at t = 0.

        Raises ConfigError for a timestep outside the chain, for missing channels of a learned variance, and for epsilon
        without clipping at alpha_bar = 0.
        """
        # widen the inputs to at least float32
        t = int(timestep)
        k = self._step_from(t, torch.float64 if sample.dtype is torch.float64 else torch.float32)
        output, raw_variance = self._split(model_output, sample)
        x_t, like, dtype = sample, output, torch.float32
        if not sample.dtype is output.dtype is dtype:
            dtype = torch.promote_types(sample.dtype, output.dtype)
            x_t, output = upcast(sample, dtype), upcast(output, dtype)
        # mean of the posterior at the estimate of x_0 (eq. 7)
        x_0 = self._bound(self._to_x_0(output, x_t, k.signal, k.sigma), k)
        prev = axpy_(x_0 * k.coef_x0, k.coef_xt, x_t)
        # noise
        if t > 0:
            axpy_(prev, self._std(k, raw_variance), _noise(like, generator))
        # output in the common dtype of the inputs
        if prev.dtype is not dtype:
            prev, x_0 = prev.to(dtype), x_0.to(dtype)
        return DDPMSchedulerOutput(prev, x_0) if return_dict else (prev, x_0)

    def _split(self, output: torch.Tensor, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return (prediction, raw variance), the halves of the channels; (output, None) for a fixed variance."""
        if self.variance_type not in LEARNED:
            return output, None
        if output.shape[1] != 2 * sample.shape[1]:
            raise ConfigError(
                f"variance_type {self.variance_type!r} needs a model with {2 * sample.shape[1]} output channels, twice "
                f"the sample's, got {output.shape[1]}; train such a model or use one of {', '.join(FIXED)}"
            )
        prediction, raw_variance = output.chunk(2, dim=1)
        return prediction, upcast(raw_variance)

    def _bound(self, x_0: torch.Tensor, k: Step) -> torch.Tensor:
        """Return x_0 thresholded or clipped by the configuration; clipping works in place."""
        config = self.config
        if config.thresholding:
            return dynamic_threshold(x_0, config.dynamic_thresholding_ratio, config.sample_max_value)
        if config.clip_sample:
            return x_0.clamp_(-config.clip_sample_range, config.clip_sample_range)
        if k.signal < 2 * MIN_SIGNAL and config.prediction_type == "epsilon":
            raise zero_snr_error()
        return x_0

    def _std(self, k: Step, raw_variance: torch.Tensor | None) -> Number:
        """Return the standard deviation of the reverse step, a float or a tensor of the sample's shape."""
        if raw_variance is not None and self.variance_type == "learned_range":
            return (0.5 * _log_variance_in_range(k, raw_variance)).exp()
        if raw_variance is not None:
            return raw_variance.clamp(min=0).sqrt()
        return math.sqrt(k.beta if "large" in self.variance_type else max(k.variance, MIN_VARIANCE))

    def _get_variance(
        self, t: int, predicted_variance: torch.Tensor | None = None, variance_type: str | None = None
    ) -> torch.Tensor:
        """Return a variance, its root or its logarithm, by type, as the private method of this name in diffusers."""
        k = self._step_from(int(t))
        kind = variance_type or self.config.variance_type
        if predicted_variance is not None and kind in LEARNED:
            return predicted_variance if kind == "learned" else _log_variance_in_range(k, predicted_variance)
        small = max(k.variance, MIN_VARIANCE)
        values = {"fixed_small_log": small**0.5, "fixed_large": k.beta, "fixed_large_log": math.log(k.beta)}
        return torch.tensor(values.get(kind, small))


def dynamic_threshold(x_0: torch.Tensor, ratio: float, largest: float) -> torch.Tensor:
    """Return each sample of x_0 (B, C, ...) clipped to [-s, s] and divided by s (Saharia et al. 2022, section 2.3).

    s is the `ratio` quantile of |x_0| over the sample, at least 1 and at most `largest`. The result is in [-1, 1].
    """
    s = torch.stack([sample.abs().flatten().quantile(ratio) for sample in x_0]).clamp(1, None).clamp(max=largest)
    s = s.view(-1, *[1] * (x_0.ndim - 1))
    return torch.clamp(x_0, -s, s) / s


def _log_variance_in_range(k: Step, raw: torch.Tensor) -> torch.Tensor:
    """Return v log beta + (1 - v) log beta-tilde, v = (raw + 1) / 2 (Nichol and Dhariwal 2021, eq. 15)."""
    small, large = math.log(max(k.variance, MIN_VARIANCE)), math.log(k.beta)
    return (raw + 1) * ((large - small) / 2) + small


def _noise(like: torch.Tensor, generator: Generators) -> torch.Tensor:
    """Return standard normal noise of the shape, dtype and device of `like`, drawn as in diffusers."""
    if isinstance(generator, list):
        if len(generator) != len(like):
            raise ConfigError(f"generator must be one, or a list of {len(like)}, one per sample; got {len(generator)}")
    elif generator is None or generator.device == like.device:
        return torch.randn_like(like, generator=generator, memory_format=torch.contiguous_format)
    return randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)
