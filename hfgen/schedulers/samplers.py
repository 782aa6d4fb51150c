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


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler("DDPMScheduler", {}, 1000, "ancestral sampling (Ho et al. 2020)"),
    "ddim": Sampler("DDIMScheduler", {}, 50, "implicit, with --eta from 0 (an ODE) to 1 (Song et al. 2021)"),
    "dpmpp_2m": Sampler(
        "DPMSolverMultistepScheduler",
        {"lambda_min_clipped": -5.1, "variance_type": None},
        20,
        "DPM-Solver++(2M), an ODE (Lu et al. 2022), recommended",
    ),
    "unipc": Sampler("UniPCMultistepScheduler", {}, 20, "predictor-corrector of an ODE (Zhao et al. 2023)"),
    "reverse_sde": Sampler(
        "VPSDEScheduler", {"method": "reverse_sde"}, 500, "reverse SDE by Euler-Maruyama (Song et al. 2021)"
    ),
    "ode_euler": Sampler("VPSDEScheduler", {"method": "ode_euler"}, 100, "probability-flow ODE by Euler"),
    "ode_heun": Sampler("VPSDEScheduler", {"method": "ode_heun"}, 25, "probability-flow ODE by Heun, 2 evaluations"),
    "predictor_corrector": Sampler(
        "VPSDEScheduler", {"method": "predictor_corrector"}, 250, "reverse SDE with Langevin steps, 2 evaluations"
    ),
}
"""Every scheduler here runs networks trained under every other."""

OWN = ("DDPMScheduler", "VPSDEScheduler")


def make_sampler(name: str, trained: Any) -> Any:
    """Return the scheduler of method `name` for a network that was trained with the scheduler `trained`.

    Raises ConfigError for a name that is not in the table, and for a noise schedule that has no continuous counterpart
    where one is needed.
    """
    if name not in SAMPLERS:
        raise ConfigError(f"sampler must be one of {', '.join(SAMPLERS)}, got {name!r}")
    wanted, settings = SAMPLERS[name].scheduler, SAMPLERS[name].settings
    continuous = type(trained).__name__ == "VPSDEScheduler"
    if wanted == "VPSDEScheduler" and not continuous:
        for setting in ("trained_betas", "rescale_betas_zero_snr"):
            if trained.config.get(setting) is not None and trained.config[setting] is not False:
                raise ConfigError(f"sampler {name!r} needs a linear or a cosine schedule, this model has {setting}")
    source = trained.discretised() if continuous and wanted != "VPSDEScheduler" else trained
    module = import_module(MODULES[wanted] if wanted in OWN else "diffusers")
    return getattr(module, wanted).from_config(source.config, **settings)


def described() -> str:
    """Return the table for people: a line for each method with its scheduler and its usual number of steps."""
    lines = [f"{name:20} {s.steps:>5} steps  {s.words}; {s.scheduler}" for name, s in SAMPLERS.items()]
    return "\n".join(lines)
