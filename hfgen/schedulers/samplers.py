"""The table of samplers by name: scheduler, settings and usual number of steps of each."""

from importlib import import_module
from typing import Any, NamedTuple

from hfgen.checks import require_choice
from hfgen.errors import ConfigError
from hfgen.registry import MODULES
from hfgen.schedulers.traits import traits_of


class Sampler(NamedTuple):
    """A sampler: scheduler class, its settings, usual number of steps, and a description."""

    scheduler: str
    settings: dict[str, Any]
    steps: int
    words: str


ODE = {"lambda_min_clipped": -3.5}
"""Start of deterministic methods, where errors are amplified: an error of 0.03 in eps is 1 in x_0 there, 30 at t = 1.

Other networks start at t = 1: features as wide as an image, such as its brightness, are decided before that start."""

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
"""Samplers by name; each of them runs networks that were trained with any of these schedulers."""

RECOMMENDED = "dpmpp_2m"
"""Sampler for a diffusion model whose own scheduler is that of training, which needs hundreds of steps."""

CLOSED_FORM = ("linear", "squaredcos_cap_v2")
"""Names in `hfgen.schedulers.vp_rates.RATES`, repeated because that module imports torch."""


def make_sampler(name: str, trained: Any) -> Any:
    """Return the scheduler of the sampler `name` for a network that was trained with the scheduler `trained`.

    The linear and the cosine schedule have continuous counterparts in closed form. Any other table of betas becomes a
    process that is exact at each integer timestep. Raises ConfigError for a name that is not in `SAMPLERS`, and for a
    scheduler without a table of noise levels alpha_bar.
    """
    require_choice("sampler", name, SAMPLERS)
    sampler = SAMPLERS[name]
    cls: Any = getattr(import_module(MODULES[sampler.scheduler]), sampler.scheduler)
    continuous = traits_of(trained).continuous
    # discrete sampler
    if not cls.traits.continuous:
        return cls.from_config((trained.discretised() if continuous else trained).config)
    # sampler in continuous time
    settings = dict(sampler.settings)
    if not amplifies_errors(trained):
        settings.pop("lambda_min_clipped", None)
    if not continuous and not has_closed_form(trained):
        settings["trained_betas"] = betas_of(trained)
    return cls.from_config(trained.config, **settings)


def amplifies_errors(trained: Any) -> bool:
    """Return whether x_0 = (x_t - sigma eps) / gamma multiplies errors of eps by sigma / gamma, without a bound: eps is
    predicted, and x_0 is not clipped."""
    clipped = trained.config.get("clip_sample", True)
    return not clipped and trained.config.get("prediction_type", "epsilon") == "epsilon"


def has_closed_form(trained: Any) -> bool:
    """Return whether the betas of a scheduler are a named schedule with a continuous counterpart."""
    replaced = trained.config.get("trained_betas") is not None or trained.config.get("rescale_betas_zero_snr")
    return not replaced and trained.config.get("beta_schedule") in CLOSED_FORM and hasattr(trained, "alphas_cumprod")


def betas_of(trained: Any) -> list[float]:
    """Return the betas of a scheduler with a table of alpha_bar, of hfgen (float64) or of diffusers (float32).

    Raises ConfigError for a scheduler without such a table.
    """
    table = getattr(trained, "alpha_bar", getattr(trained, "alphas_cumprod", None))
    if table is None:
        raise ConfigError(f"{type(trained).__name__} has no table of noise levels, which all samplers by name need")
    alpha_bar = table.double().cpu()
    return [1 - float(alpha_bar[0]), *(1 - alpha_bar[1:] / alpha_bar[:-1]).tolist()]


def described() -> str:
    """Return the table as text, one line per sampler: name, usual number of steps, description, scheduler."""
    lines = [f"{name:20} {s.steps:>5} steps  {s.words}; {s.scheduler}" for name, s in SAMPLERS.items()]
    return "\n".join(lines)
