"""Traits that sampling reads from schedulers of hfgen and of diffusers."""

import diffusers
import pytest

from hfgen.schedulers.ddpm import DDPMScheduler
from hfgen.schedulers.samplers import SAMPLERS, make_sampler
from hfgen.schedulers.traits import SchedulerTraits, traits_of
from hfgen.schedulers.vp_sde import VPSDEScheduler


@pytest.mark.parametrize(
    "scheduler, traits",
    [
        (DDPMScheduler(), SchedulerTraits(predicts_variance=True, on_cpu=True)),
        (VPSDEScheduler(), SchedulerTraits(continuous=True, on_cpu=True)),
        (diffusers.DDPMScheduler(), SchedulerTraits(predicts_variance=True)),
        (diffusers.DDIMScheduler(), SchedulerTraits()),
        (diffusers.DPMSolverMultistepScheduler(), SchedulerTraits(multistep=True)),
        (diffusers.UniPCMultistepScheduler(), SchedulerTraits(multistep=True)),
        (diffusers.EulerDiscreteScheduler(), SchedulerTraits()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_scheduler_has_its_traits(scheduler, traits):
    assert traits_of(scheduler) == traits


def test_a_subclass_has_the_traits_of_its_class():
    class Renamed(VPSDEScheduler):
        """A scheduler of another name."""

    assert traits_of(Renamed()).continuous
    assert make_sampler("ddpm", Renamed()).config.num_train_timesteps == 1000


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_states_whether_it_is_continuous(name):
    assert traits_of(make_sampler(name, DDPMScheduler())).continuous == (name != "ddpm")
