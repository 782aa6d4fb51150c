"""The request of `hfgen sample`: a model and its samples. The command line reads these fields without loading torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from hfgen.checks import require_choice, require_int
from hfgen.errors import ConfigError
from hfgen.schedulers.samplers import SAMPLERS

GRID_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Suffixes of a file that holds samples as one grid."""


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """A model and the samples that it generates; the fields are the options of `hfgen sample`."""

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """Run folder, model folder or Hub id."""
    number: Annotated[int, arg(aliases=("-n",))] = 16
    """Number of samples."""
    num_steps: int | None = None
    """Sampling steps. Default: those of the model."""
    seed: int = 0
    """Seed. Sample i is a function of the model, the seed and i."""
    label: int | str | None = None
    """Class, by number or by name, for a class-conditional model."""
    batch_size: int = 64
    """Number of samples in one batch; it does not change them."""
    sampler: str | None = None
    """Sampling method; `--list-samplers` lists them. Default: the method of the model."""
    eta: float | None = None
    """Share of fresh noise in each step of --sampler ddim, from 0 to 1."""
    prompt: str | None = None
    """Text, for a model that is conditioned on captions."""
    guidance_scale: float | None = None
    """Strength of guidance by class or text; 1: no guidance. Default: 3 where the model can be guided."""
    negative_prompt: str | None = None
    """Text that guidance moves samples away from."""
    device: str | None = None
    """Device such as cpu, cuda:1 or mps. Default: an accelerator if there is one, else the CPU."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the numbers in the networks; the shorter ones take half the memory."""

    def __post_init__(self) -> None:
        """Raise ConfigError unless there is at least one sample, in batches of at least one, and for a sampler that
        does not exist."""
        require_int("--number", self.number)
        require_int("--batch-size", self.batch_size)
        if self.sampler is not None:
            require_choice("--sampler", self.sampler, SAMPLERS)

    @property
    def conditions(self) -> dict[str, Any]:
        """Return the text and guidance arguments of the pipeline."""
        return {name: getattr(self, name) for name in ("prompt", "guidance_scale", "negative_prompt")}

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the pipeline that all samples share, without those that have no value."""
        given = {"num_steps": self.num_steps, "sampler": self.sampler, "eta": self.eta, **self.conditions}
        return {name: value for name, value in given.items() if value is not None}


def check_output(output: Path) -> None:
    """Raise ConfigError for a file of samples with another suffix than that of an image or `.npy`."""
    if output.suffix not in (*GRID_SUFFIXES, ".npy", ""):
        raise ConfigError(f"-o {output}: must be a folder, or end in one of {', '.join(GRID_SUFFIXES)}, .npy")
