"""The VP-SDE scheduler: the reverse SDE, the probability-flow ODE and predictor-corrector sampling."""

from collections.abc import Iterator
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hfgen.component import SchedulerMixin
from hfgen.errors import ConfigError
from hfgen.schedulers.ddpm import DDPMSchedulerOutput, Generators
from hfgen.schedulers.forward import full
from hfgen.schedulers.langevin import langevin_step
from hfgen.schedulers.settings import check_number
from hfgen.schedulers.vp_process import VPProcess
from hfgen.schedulers.vp_rates import RATES

CHOICES = {
    "beta_schedule": tuple(RATES),
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "method": ("reverse_sde", "ode_euler", "ode_heun", "predictor_corrector"),
    "spacing": ("log_snr", "linspace"),
}


class Stage(NamedTuple):
    """One evaluation of the network, at t, and what is done with it: a step of this kind to `next_t`."""

    kind: str
    t: float
    next_t: float


class VPSDEScheduler(VPProcess, SchedulerMixin):
    """The variance-preserving SDE, its training targets and the samplers that follow from its score.

    Args:
        num_train_timesteps: T; networks see timesteps in [0, T - 1], whole or not.
        beta_start, beta_end, beta_schedule: "linear", beta(t) from T beta_start to T beta_end, or "squaredcos_cap_v2",
            cosine: the continuous counterparts of a DDPM scheduler with these settings.
        prediction_type: what the model predicts: "epsilon", "sample" (x_0) or "v_prediction".
        clip_sample, clip_sample_range: clip the last estimate of x_0 to [-range, range].
        t_min: where sampling ends and training begins, in (0, 1); by default 1 / T, the noise of DDPM's first timestep.
        method: "reverse_sde" (Euler-Maruyama), "ode_euler" or "ode_heun" (probability flow), or "predictor_corrector".
        spacing: steps are even in "log_snr" or, "linspace", in t.
        denoise: end with E[x_0 | x_t] at t_min (one more evaluation) and not with the state there.
        corrector_steps, corrector_snr: Langevin steps after each predictor step, and r (Song et al. 2021, algorithm 5).

    `set_timesteps(n)` plans n steps; `timesteps` are those of the network's evaluations, of which a step of Heun and of
    predictor-corrector needs more than one. Raises ConfigError where a setting has no meaning.
    """

    _compatibles = [scheduler.name for scheduler in KarrasDiffusionSchedulers]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        prediction_type: str = "epsilon",
        clip_sample: bool = True,
        clip_sample_range: float = 1.0,
        t_min: float | None = None,
        method: str = "reverse_sde",
        spacing: str = "log_snr",
        denoise: bool = True,
        corrector_steps: int = 1,
        corrector_snr: float = 0.16,
    ) -> None:
        check_number("num_train_timesteps", num_train_timesteps, Integral, 2, 1_000_000)
        check_number("corrector_steps", corrector_steps, Integral, 1, 1000)
        for name in ("beta_start", "beta_end", "clip_sample_range"):
            check_number(name, self.config[name], Real, 1e-12, 1e12)
        for name, choices in CHOICES.items():
            if self.config[name] not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {self.config[name]!r}")
        self.t_min = 1 / num_train_timesteps if t_min is None else t_min
        check_number("t_min", self.t_min, Real, 1e-9, 0.5)
        check_number("corrector_snr", corrector_snr, Real, 1e-6, 1)
        self.rate = RATES[beta_schedule](num_train_timesteps, beta_start, beta_end)
        self.init_noise_sigma = 1.0
        self.order = {"ode_heun": 2, "predictor_corrector": 1 + corrector_steps}.get(method, 1)
        self.set_timesteps(num_train_timesteps)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None, inverse: bool = False
    ) -> None:
        """Plan `num_inference_steps` >= 1 steps from noise to data; with `inverse`, of an ODE, from data to noise."""
        check_number("num_inference_steps", num_inference_steps, Integral, 1, 1_000_000)
        if inverse and not self.config.method.startswith("ode"):
            raise ConfigError(f"only ode_euler and ode_heun can be inverted, method is {self.config.method!r}")
        grid = self.grid(num_inference_steps)
        self._stages = list(self._plan(grid[::-1] if inverse else grid, denoise=self.config.denoise and not inverse))
        self._next, self.num_inference_steps = 0, num_inference_steps
        times = torch.tensor([stage.t for stage in self._stages], dtype=torch.float64)
        self.timesteps = self.timestep_of(times).float().clamp(0, len(self) - 1).to(device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at `timesteps[begin_index]`, from a state in the middle."""
        self._next = begin_index

    def grid(self, n: int) -> list[float]:
        """Return the times 1 = t_0 > t_1 > ... > t_n = t_min between n steps."""
        u = torch.linspace(0, 1, n + 1, dtype=torch.float64)
        if self.config.spacing == "linspace":
            inner = self.time_drawn(1 - u)
        else:
            inner = self.time_drawn(1 - u, importance=True)
        return [1.0, *inner[1:-1].tolist(), self.t_min]

    def _plan(self, grid: list[float], denoise: bool) -> Iterator[Stage]:
        method = self.config.method
        for t, next_t in pairwise(grid):
            if method.startswith("ode"):
                yield Stage("ode", t, next_t)
            else:
                yield Stage("sde", t, next_t)
            if method == "ode_heun":
                yield Stage("heun", next_t, t)
            elif method == "predictor_corrector":
                yield from [Stage("langevin", next_t, next_t)] * self.config.corrector_steps
        if denoise:
            yield Stage("denoise", grid[-1], grid[-1])

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """Return `sample` itself: the model sees x_t as it is."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """Return the state after this evaluation of the network, and the estimate of x_0.

        `timestep` must be the next of `timesteps`: ConfigError otherwise. `generator`: one, or one per sample.
        """
        stage = self._stage(float(timestep))
        dtype = torch.promote_types(sample.dtype, model_output.dtype)
        x, output = full(sample, dtype), full(model_output, dtype)
        tau = float(self.timestep_of(torch.tensor(stage.t, dtype=torch.float64)))
        x_0 = self.predict_x0(output, tau, x)
        if self.config.clip_sample:
            x_0 = x_0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        if stage.kind == "denoise":
            prev = x_0
        elif stage.kind in ("ode", "heun"):
            prev = self._flow(self.predict_eps(output, tau, x), stage, x)
        else:
            z = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            move = self._langevin if stage.kind == "langevin" else self._reverse_sde
            prev = move(self.score(output, tau, x), stage, x, z)
        prev, x_0 = prev.to(dtype), x_0.to(dtype)
        return DDPMSchedulerOutput(prev, x_0) if return_dict else (prev, x_0)

    def _stage(self, timestep: float) -> Stage:
        index = self._next % len(self._stages)
        expected = float(self.timesteps[index])
        if abs(timestep - expected) > 1e-3:
            raise ConfigError(f"timestep {timestep:g} is not the next, {expected:g}; step through scheduler.timesteps")
        self._next = index + 1
        return self._stages[index]

    def _reverse_sde(self, score: Tensor, stage: Stage, x: Tensor, z: Tensor) -> Tensor:
        """Return x + (x / 2 + score) dB + sqrt(dB) z, a step of Euler-Maruyama.

        dx = [-1/2 beta x - beta score] dt + sqrt(beta) dW backwards in t (Song et al. 2021, eq. 6), with B as the time:
        dB = int beta dt over the step, which no growth of beta within it can upset.
        """
        dB = -self._between(self.rate.integral, stage)
        return x + (x / 2 + score) * dB + z * dB**0.5

    def _langevin(self, score: Tensor, stage: Stage, x: Tensor, z: Tensor) -> Tensor:
        """Return the state after a Langevin step of size 2 (r sigma_t)^2 (Song et al. 2021, algorithm 5).

        sigma_t stands for |z| / |score|, its size: so a sample depends on no other of its batch, and the size of a step
        not on the noise in it.
        """
        sigma = float(self.sigma(torch.tensor(stage.t, dtype=torch.float64)))
        return langevin_step(x, score, 2 * (self.config.corrector_snr * sigma) ** 2, z)

    def _flow(self, eps: Tensor, stage: Stage, x: Tensor) -> Tensor:
        """Return x after a step of Euler, or of the second half of one of Heun, along the probability flow.

        dx = -1/2 beta (x + score) dt (Song et al. 2021, eq. 13), with y = log(sigma / gamma) as the time, in which it
        is smooth to the end: dy = beta / (2 sigma^2) dt and dx/dy = sigma (eps - sigma x).
        """
        slope = flow(self, x, eps, stage.t)
        dy = -self._between(self.log_snr, stage) / 2
        if stage.kind == "ode":
            self._slope = slope
            return x + slope * dy
        return x + (slope - self._slope) * (-dy / 2)             # from Euler's end: its slope by the mean of both

    def _between(self, function: Any, stage: Stage) -> float:
        """Return function(next_t) - function(t)."""
        before, after = function(torch.tensor([stage.t, stage.next_t], dtype=torch.float64)).tolist()
        return after - before


def flow(process: VPProcess, x: Tensor, eps: Tensor, t: float) -> Tensor:
    """Return dx/dy = sigma (eps - sigma x) of the probability flow at t, y being log(sigma / gamma)."""
    sigma = float(process.sigma(torch.tensor(t, dtype=torch.float64)))
    return sigma * (eps - sigma * x)
