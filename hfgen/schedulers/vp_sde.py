"""The VP-SDE scheduler: samplers of the reverse SDE and of the probability-flow ODE, of any order."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hfgen.checks import check_int, require_choice, require_number
from hfgen.errors import ConfigError
from hfgen.loading.config import register_to_config
from hfgen.loading.mixins import SchedulerMixin
from hfgen.schedulers import solvers
from hfgen.schedulers.betas import SCHEDULES, make_betas
from hfgen.schedulers.ddpm import DDPMSchedulerOutput, Generators
from hfgen.schedulers.forward import upcast
from hfgen.schedulers.langevin import langevin_step
from hfgen.schedulers.processes import euler_maruyama_step
from hfgen.schedulers.settings import MAX_TIMESTEPS
from hfgen.schedulers.solvers import Estimate, Level
from hfgen.schedulers.traits import SchedulerTraits
from hfgen.schedulers.vp_process import VPProcess
from hfgen.schedulers.vp_rates import RATES, Table

CHOICES = {
    "beta_schedule": tuple(SCHEDULES),
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "method": (
        "reverse_sde", "ode_euler", "ode_heun", "predictor_corrector", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "unipc",
    ),
    "spacing": ("log_snr", "linspace"),
}  # fmt: skip

ONE_EVALUATION = ("ddim", "dpmpp_2m", "dpmpp_2m_sde", "unipc")
"""Methods with as many evaluations of the network as steps, the last one included, as in diffusers."""


class Stage(NamedTuple):
    """One evaluation of the network, at the level `s`, and the kind of its step, which goes to the level `t`."""

    kind: str
    s: Level
    t: Level


class VPSDEScheduler(VPProcess, SchedulerMixin):  # type: ignore[misc]
    """The variance-preserving SDE, its training targets and the samplers that follow from its score.

    Args:
        num_train_timesteps: T; the input of networks is a timestep in [0, T - 1], integer or not.
        beta_start, beta_end, beta_schedule: "linear", beta(t) from T beta_start to T beta_end, or "squaredcos_cap_v2",
            cosine: the continuous counterparts of a DDPM scheduler with these settings. The other schedules of DDPM,
            and `trained_betas` in their place, are interpolated between timesteps.
        prediction_type: output of the model, "epsilon", "sample" (x_0) or "v_prediction".
        clip_sample, clip_sample_range: clip every estimate of x_0 to [-range, range].
        t_min: end of sampling and start of training, in (0, 1). Default: 1 / T, the noise of DDPM's first timestep.
        method: "reverse_sde" (Euler-Maruyama), "ode_euler" or "ode_heun" (probability flow), "predictor_corrector",
            "ddim", "dpmpp_2m", "dpmpp_2m_sde" or "unipc"; see `hfgen.schedulers.solvers`.
        spacing: steps are even in the log-SNR ("log_snr") or in t ("linspace").
        lambda_min_clipped: log(gamma / sigma) at the start of sampling, if that is later than t = 1. With little signal
            a small error of eps is a large error of x_0, and a deterministic method carries it to the end.
        denoise: end with E[x_0 | x_t] at t_min (one more evaluation), not with the state there.
        corrector_steps, corrector_snr: Langevin steps after each predictor step, and r (Song et al. 2021, algorithm 5).

    `set_timesteps(n)` plans n steps. `timesteps` are the inputs of the network's evaluations; a step of Heun or of
    predictor-corrector needs more than one. Raises ConfigError for settings without meaning.
    """

    traits = SchedulerTraits(continuous=True, on_cpu=True)
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
        trained_betas: Sequence[float] | None = None,
        lambda_min_clipped: float | None = None,
    ) -> None:
        # check the settings
        check_int("num_train_timesteps", num_train_timesteps, 2, MAX_TIMESTEPS)
        check_int("corrector_steps", corrector_steps, 1, 1000)
        for name in ("beta_start", "beta_end", "clip_sample_range"):
            require_number(name, self.config[name], 1e-12, 1e12)
        for name, choices in CHOICES.items():
            require_choice(name, self.config[name], choices)
        self.t_min = 1 / num_train_timesteps if t_min is None else t_min
        require_number("t_min", self.t_min, 1e-9, 0.5)
        require_number("corrector_snr", corrector_snr, 1e-6, 1)
        if lambda_min_clipped is not None:
            require_number("lambda_min_clipped", lambda_min_clipped, -50, 0)
        # build the rate
        if trained_betas is not None or beta_schedule not in RATES:
            self.rate: Any = Table(make_betas(num_train_timesteps, beta_schedule, beta_start, beta_end, trained_betas))
        else:
            self.rate = RATES[beta_schedule](num_train_timesteps, beta_start, beta_end)
        # plan T steps
        self.init_noise_sigma = 1.0
        self.order = {"ode_heun": 2, "predictor_corrector": 1 + corrector_steps}.get(method, 1)
        self.set_timesteps(num_train_timesteps)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None, inverse: bool = False
    ) -> None:
        """Plan `num_inference_steps` >= 1 steps from noise to data, or with `inverse` from data to noise.

        Raises ConfigError for another number, and for `inverse` with a method that is no ODE solver.
        """
        check_int("num_inference_steps", num_inference_steps, 1, MAX_TIMESTEPS)
        if inverse and not self.config.method.startswith("ode"):
            raise ConfigError(f"only ode_euler and ode_heun can be inverted, method is {self.config.method!r}")
        # plan the evaluations
        denoise = self.config.denoise and not inverse
        last_is_step = denoise and self.config.method in ONE_EVALUATION
        levels = self.levels(self.grid(num_inference_steps - last_is_step))
        self._stages = list(self._plan(levels[::-1] if inverse else levels, denoise))
        self.set_begin_index(0)
        self.num_inference_steps = num_inference_steps
        # timesteps of the evaluations
        times = torch.tensor([stage.s.tau for stage in self._stages], dtype=torch.float64)
        self.timesteps = times.float().clamp(0, len(self) - 1).to(device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at `timesteps[begin_index]`, from an intermediate state."""
        self._next = begin_index
        # slope of the first half of Heun's step
        self._slope: Any = None
        # the last two estimates of multistep methods, and the state of the last one
        self._estimates: list[Estimate] = []
        self._state: Any = None

    def grid(self, n: int) -> list[float]:
        """Return the times t_0 > t_1 > ... > t_n = t_min between n steps, t_0 = 1 or less; for n = 0 only t_0."""
        # start
        lam = self.config.lambda_min_clipped
        start = 1.0 if lam is None else min(1.0, float(self.time_of_log_snr(torch.tensor(2.0 * lam))))
        if n == 0:
            return [start]
        # even steps in t or in the log-SNR
        u = torch.linspace(0, 1, n + 1, dtype=torch.float64)
        if self.config.spacing == "linspace":
            inner = start + u * (self.t_min - start)
        else:
            least, most = self.log_snr(torch.tensor([start, self.t_min], dtype=torch.float64))
            inner = self.time_of_log_snr(least + u * (most - least))
        return [start, *inner[1:-1].tolist(), self.t_min]

    def levels(self, times: Sequence[float]) -> list[Level]:
        """Return the noise levels at times in [t_min, 1]."""
        t = torch.tensor(times, dtype=torch.float64)
        rows = torch.stack([t, self.timestep_of(t), self.gamma(t), self.sigma(t), self.log_snr(t) / 2], 1)
        return [Level(*row) for row in rows.tolist()]

    def _plan(self, levels: list[Level], denoise: bool) -> Iterator[Stage]:
        method = self.config.method
        kind = {"ode_heun": "ode_euler", "predictor_corrector": "reverse_sde"}.get(method, method)
        for s, t in pairwise(levels):
            yield Stage(kind, s, t)
            if method == "ode_heun":
                yield Stage("heun", t, s)
            elif method == "predictor_corrector":
                yield from [Stage("langevin", t, t)] * self.config.corrector_steps
        if denoise:
            yield Stage("denoise", levels[-1], levels[-1])

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """Return `sample`, (B, C, ...): the input of the model is x_t without scaling."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        eta: float = 0.0,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """Return the state after this evaluation of the network, and the (clipped) estimate of x_0.

        `model_output` and `sample`: (B, C, ...). `generator`: one, or a list with one per sample. `eta`: noise of
        "ddim", in [0, 1]. Raises ConfigError unless `timestep` is the next of `timesteps`.
        """
        # estimate x_0
        stage = self._stage(float(timestep))
        dtype = torch.promote_types(sample.dtype, model_output.dtype)
        x, output = upcast(sample, dtype), upcast(model_output, dtype)
        x_0 = self._to_x_0(output, x, stage.s.gamma, stage.s.sigma)
        if self.config.clip_sample:
            x_0.clamp_(-self.config.clip_sample_range, self.config.clip_sample_range)

        def z() -> Tensor:
            return randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)

        # make the step
        prev = x_0 if stage.kind == "denoise" else self._moved(stage, x, x_0, z, eta)
        prev, x_0 = prev.to(dtype), x_0.to(dtype)
        return DDPMSchedulerOutput(prev, x_0) if return_dict else (prev, x_0)

    def _moved(self, stage: Stage, x: Tensor, x_0: Tensor, z: Callable[[], Tensor], eta: float) -> Tensor:
        """Return the state after a step of the stage's kind from x, with the estimate x_0; z() draws noise like x."""
        # methods that use earlier estimates of x_0
        kind, s, t = stage
        if kind in ("dpmpp_2m", "dpmpp_2m_sde", "unipc"):
            return self._multistep(kind, x, Estimate(x_0, s), t, z)
        # methods that use eps, that of the clipped x_0
        eps = (x - s.gamma * x_0) / s.sigma
        if kind == "ddim":
            return solvers.ddim(x_0, eps, s, t, eta, z() if eta else None)
        if kind == "ode_euler":
            self._slope = solvers.slope(x, eps, s.sigma)
            return solvers.euler(x, eps, s, t)
        # here t is the level where Euler's step began
        if kind == "heun":
            return solvers.heun(x, self._slope, solvers.slope(x, eps, s.sigma), t, s)
        # methods that use the score
        score = eps / -s.sigma
        if kind == "langevin":
            return self._langevin(score, s, x, z())
        return self._reverse_sde(score, s, t, x, z())

    def _multistep(self, kind: str, x: Tensor, now: Estimate, t: Level, z: Callable[[], Tensor]) -> Tensor:
        """Return the state at t from the last two estimates of x_0; "unipc" first corrects x."""
        # correct x by the estimate made there
        last, before = ([*self._estimates[::-1], None, None])[:2]
        if kind == "unipc" and last is not None:
            x = solvers.unipc_corrected(self._state, last, before, now)
        # keep the last two estimates, and make the step
        self._estimates, self._state = [*self._estimates[-1:], now], x
        if kind == "dpmpp_2m_sde":
            return solvers.dpmpp_2m_sde(x, now, last, t, z())
        return solvers.dpmpp_2m(x, now, last, t)

    def _stage(self, timestep: float) -> Stage:
        """Return the next stage; ConfigError unless it is that of `timestep`."""
        # compare the timestep with the next
        index = self._next % len(self._stages)
        expected = float(self.timesteps[index])
        if abs(timestep - expected) > 1e-3:
            raise ConfigError(f"timestep {timestep:g} is not the next, {expected:g}; step through scheduler.timesteps")
        # move on; a new run starts without earlier estimates
        if index == 0:
            self.set_begin_index(0)
        self._next = index + 1
        return self._stages[index]

    def _reverse_sde(self, score: Tensor, s: Level, t: Level, x: Tensor, z: Tensor) -> Tensor:
        """Return x + (x / 2 + score) dB + sqrt(dB) z, a step of Euler-Maruyama of `reverse_process` with B as time.

        dB = int beta dt over the step is exact for every growth of beta; B = -2 log gamma.
        """
        dB = 2 * math.log(t.gamma / s.gamma)
        return euler_maruyama_step(x, x / 2 + score, 0.5, dB, z)

    def _langevin(self, score: Tensor, s: Level, x: Tensor, z: Tensor) -> Tensor:
        """Return the state after a Langevin step of size 2 (r sigma_t)^2 (Song et al. 2021, algorithm 5).

        sigma_t replaces |z| / |score|, which has that size. So a sample does not depend on the others of its batch, and
        the step size does not depend on the noise.
        """
        return langevin_step(x, score, 2 * (self.config.corrector_snr * s.sigma) ** 2, z)
