"""Properties of schedulers on which sampling depends, read in one place for those of hfgen and of diffusers."""

from dataclasses import dataclass
from typing import Any

from hfgen.schedulers.samplers import OWN


@dataclass(frozen=True)
class SchedulerTraits:
    """Properties of a scheduler on which sampling depends.

    `continuous`: any number of steps is allowed, otherwise at most T. `predicts_variance`: `step` takes the network's
    variance beside its prediction. `multistep`: a step divides by the difference of two noise levels. `on_cpu`:
    `timesteps` are read as Python numbers.
    """

    continuous: bool
    predicts_variance: bool
    multistep: bool
    on_cpu: bool


def traits_of(scheduler: Any) -> SchedulerTraits:
    """Return the traits of a scheduler of hfgen or of diffusers, which does not state them itself."""
    name, module = type(scheduler).__name__, type(scheduler).__module__
    return SchedulerTraits(
        continuous=name == "VPSDEScheduler",
        predicts_variance=name.startswith("DDPM"),
        multistep=name.endswith("MultistepScheduler"),
        on_cpu=name in OWN and module.startswith("hfgen."),
    )
