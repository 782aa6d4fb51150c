"""The one static table of generation methods: which scheduler each is, with which settings, and what it is good for."""

from importlib import import_module
from typing import Any, NamedTuple

from hfgen.errors import ConfigError
from hfgen.registry import MODULES


class Sampler(NamedTuple):
    """A method: its scheduler, hfgen's or diffusers', the settings that make it, its usual steps, and words for it."""

    scheduler: str
    settings: dict[str, Any]
    steps: int
    words: str


ODE = {"lambda_min_clipped": -3.5}
"""A deterministic method starts where an error of 0.03 in eps is one of 1 in x_0, and not of 30 as at t = 1."""

SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler("DDPMScheduler", {}, 1000, "ancestral sampling (Ho et al. 2020)"),
    "ddim": Sampler(
        "VPSDEScheduler", {"method": "ddim"} | ODE, 150,
        "implicit, with --eta from 0 (an ODE) to 1 (Song et al. 2021)",
    ),
    "dpmpp_2m": Sampler(
        "VPSDEScheduler", {"method": "dpmpp_2m"} | ODE, 20, "DPM-Solver++(2M), an ODE (Lu et al. 2022), recommended"
    ),
    "dpmpp_2m_sde": Sampler(
        "VPSDEScheduler", {"method": "dpmpp_2m_sde"}, 50, "DPM-Solver++(2M) of the reverse SDE (Lu et al. 2022)"
    ),
    "unipc": Sampler(
        "VPSDEScheduler", {"method": "unipc"} | ODE, 20, "predictor-corrector of an ODE (Zhao et al. 2023)"
    ),
    "reverse_sde": Sampler(
        "VPSDEScheduler", {"method": "reverse_sde"}, 500, "reverse SDE by Euler-Maruyama (Song et al. 2021)"
    ),
    "ode_euler": Sampler("VPSDEScheduler", {"method": "ode_euler"} | ODE, 150, "probability-flow ODE by Euler"),
    "ode_heun": Sampler(
        "VPSDEScheduler", {"method": "ode_heun"} | ODE, 25, "probability-flow ODE by Heun, 2 evaluations"
    ),
    "predictor_corrector": Sampler(
        "VPSDEScheduler", {"method": "predictor_corrector"}, 250, "reverse SDE with Langevin steps, 2 evaluations"
    ),
}  # fmt: skip
"""Every scheduler here runs networks trained under every other."""

OWN = ("DDPMScheduler", "VPSDEScheduler")

CLOSED_FORM = ("linear", "squaredcos_cap_v2")
"""Schedules of `hfgen.schedulers.vp_rates.RATES`, whose module imports torch."""


def make_sampler(name: str, trained: Any) -> Any:
    """Return the scheduler of method `name` for a network that was trained with the scheduler `trained`.

    The linear and the cosine schedule have continuous counterparts in closed form; any other table of betas becomes a
    process that is exact at every whole timestep. Raises ConfigError for a name that is not in the table, and for a
    scheduler without a table of noise levels alpha_bar.
    """
    if name not in SAMPLERS:
        raise ConfigError(f"sampler must be one of {', '.join(SAMPLERS)}, got {name!r}")
    wanted, settings = SAMPLERS[name].scheduler, dict(SAMPLERS[name].settings)
    cls: Any = getattr(import_module(MODULES[wanted]), wanted)
    continuous = type(trained).__name__ == "VPSDEScheduler"
    if wanted == "DDPMScheduler":
        return cls.from_config((trained.discretised() if continuous else trained).config)
    if not continuous and not has_closed_form(trained):
        settings["trained_betas"] = betas_of(trained)
    return cls.from_config(trained.config, **settings)


def has_closed_form(trained: Any) -> bool:
    """Return whether a scheduler's table of betas is a named schedule with a continuous counterpart."""
    replaced = trained.config.get("trained_betas") is not None or trained.config.get("rescale_betas_zero_snr")
    return not replaced and trained.config.get("beta_schedule") in CLOSED_FORM and hasattr(trained, "alphas_cumprod")


def betas_of(trained: Any) -> list[float]:
    """Return the betas of a scheduler with a table of alpha_bar, hfgen's (float64) or one of diffusers (float32)."""
    table = getattr(trained, "alpha_bar", getattr(trained, "alphas_cumprod", None))
    if table is None:
        raise ConfigError(f"{type(trained).__name__} has no table of noise levels, which every sampler by name needs")
    alpha_bar = table.double().cpu()
    return [1 - float(alpha_bar[0]), *(1 - alpha_bar[1:] / alpha_bar[:-1]).tolist()]


def described() -> str:
    """Return the table for people: a line for each method with its scheduler and its usual number of steps."""
    lines = [f"{name:20} {s.steps:>5} steps  {s.words}; {s.scheduler}" for name, s in SAMPLERS.items()]
    return "\n".join(lines)
