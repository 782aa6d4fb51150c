"""Properties of schedulers on which sampling depends: hfgen's state them, those of diffusers are recognised here."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SchedulerTraits:
    """Properties of a scheduler on which sampling depends.

    `continuous`: any number of steps is allowed, otherwise at most T. `predicts_variance`: `step` takes the network's
    variance beside its prediction. `multistep`: a step divides by the difference of two noise levels. `on_cpu`:
    `timesteps` are read as Python numbers.
    """

    continuous: bool = False
    predicts_variance: bool = False
    multistep: bool = False
    on_cpu: bool = False


def traits_of(scheduler: Any) -> SchedulerTraits:
    """Return the traits of a scheduler: its own `traits`, or those of a class of diffusers by its name."""
    traits = getattr(scheduler, "traits", None)
    if isinstance(traits, SchedulerTraits):
        return traits
    name = type(scheduler).__name__
    return SchedulerTraits(predicts_variance=name.startswith("DDPM"), multistep=name.endswith("MultistepScheduler"))
