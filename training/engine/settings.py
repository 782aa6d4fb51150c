"""Settings of a training run: the fields that all image recipes share, their ranges, and how they are written.

A recipe's settings are one flat dataclass, which `engine.parse` reads.

HFGEN_SMALL=1 in the environment makes every run a trial of seconds: `small` caps the fields named in `SMALL`, and an
evaluation makes 64 samples.
"""

import dataclasses
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, get_origin

import tyro
import yaml

from hfgen.checks import check_dataset, check_model, check_repo_id
from hfgen.errors import CheckpointError, ConfigError
from hfgen.loading.disk import write_text

T = TypeVar("T")

if TYPE_CHECKING:
    Auto = Annotated[T, "completed by the recipe"]
else:

    class Auto:
        """Type of a field that a recipe completes: `Auto[T]` is T once that is done, None (AUTO) before."""

        def __class_getitem__(cls, kind: Any) -> Any:
            """Return T | None, as tyro reads it."""
            return Annotated[kind | None, tyro.conf.arg(help_behavior_hint="(default: recommended)")]


Precision = Literal["no", "bf16", "fp16"]

GRID_IMAGES = 64
"""Images of a sample grid. Default of the recipes that have a field for it."""

AUTO: Any = None
"""The value of an `Auto` field that the recipe completes."""

FREE_ON_RESUME = {"output_dir", "resume", "config", "log_every", "save_every", "sample_every", "keep_checkpoints"}
FREE_ON_RESUME |= {"tracker", "publish_to", "threads", "micro_batch_size", "num_workers", "device"}
FREE_ON_RESUME |= {"gradient_checkpointing", "tracker_public"}
FREE_ON_RESUME |= {"preview_images", "preview_steps"}
"""The settings that may differ when a run is resumed: they change where and how often to write, no computation."""


@dataclass(kw_only=True)
class Settings:
    """Fields that every image recipe has.

    `before`: values, by name, of runs that are older than a field, where today's recommendation is another.
    """

    before: ClassVar[dict[str, Any]] = {}

    # run
    output_dir: Path
    """Folder of the run: settings, checkpoints, metrics, sample grids and the finished model."""
    config: Path | None = None
    """YAML file with any of these fields; the command line overrides it."""
    resume: bool = False
    """Continue from the newest checkpoint in the output folder; start at step 0 if there is none."""
    start_from: str | None = None
    """Run, model folder or Hub id whose weights training starts from; they are then averaged and trained as usual."""
    seed: int = 0
    """Seed of weights, order, augmentation and noise."""

    # data
    dataset: str = "digits"
    """digits; shapes; ring8, grid25, line, circle, moons, swissroll; a folder of images, parquet files, a .npy
    or .npz file, or a Hub id."""
    split: str = "train"
    """Split of the dataset, or a slice of it such as train[:80%]."""
    image_column: str | None = None
    """Column of the images. Default: the first whose type is an image."""
    label_column: str | None = None
    """Column of the class labels. Default: by its type and name."""
    resolution: int | tuple[int, int] | None = None
    """Side, or height and width, that images are resized and cropped to. Default: as they are."""
    channels: Literal[1, 3, 4] | None = None
    """1 (grey), 3 (RGB) or 4 (RGBA). Default: 1 if all images are grey, else 3."""
    background: str = "white"
    """Colour under transparent pixels."""
    skip_bad_images: bool = False
    """Leave out files that cannot be decoded instead of stopping."""
    flip: bool = False
    """Mirror images left to right at random."""
    streaming: bool = False
    """Read the dataset as a stream, without downloading it whole."""
    num_workers: int = 0
    """Processes that decode images which do not fit in memory."""

    # optimisation
    batch_size: Auto[int] = AUTO
    """Samples per optimiser step over all processes and micro-batches together."""
    micro_batch_size: int | None = None
    """Images per process that go through the network at once. Default: the process's whole share."""
    max_steps: Auto[int] = AUTO
    """Optimiser steps."""
    budget: str | None = None
    """Wall-clock time in place of --max-steps, such as 90s, 3m or 2h: steps are timed, then their number is fixed."""
    learning_rate: Auto[float] = AUTO
    """Peak learning rate, never multiplied by the number of processes."""
    lr_schedule: Literal["constant", "cosine", "linear", "second_half"] = "cosine"
    """How the learning rate goes from its peak to zero at the last step, or stays; second_half: along a line from the
    middle."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from zero."""
    max_grad_norm: float = 1.0
    """Gradients with a larger norm are scaled down to it."""
    ema_decay: float = 0.9999
    """Decay of the moving average of the weights, min(ema_decay, (1 + step) / (10 + step)); 0 for none."""
    mixed_precision: Precision | None = None
    """Precision of the network's forward and backward pass; weights and losses stay float32. fp16, with a scaled loss,
    is for devices without bf16. Default: that of accelerate launch, else no."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time, the same numbers."""
    device: str | None = None
    """Device of the run, such as cpu, cuda:1 or mps. Default: the one that Accelerate chooses."""
    threads: int | None = None
    """CPU threads of each process. Default: cores / processes."""

    # saving
    save_every: int = 1000
    """Steps between checkpoints; 0 for one at the end only."""
    sample_every: int = 500
    """Steps between sample grids; 0 for one at the end only."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept, two at least."""
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Tracker that gets settings, metrics and sample grids as well, through Accelerate."""
    tracker_public: bool = False
    """Make the Space that trackio syncs to public. Default: private."""
    publish_to: str | None = None
    """Repository on the Hub, user/name, that the finished model is published to, private; `hf auth login` first."""

    @property
    def extendable(self) -> bool:
        """Return whether no step depends on the number of steps, so that a resumed run may have another one."""
        return self.lr_schedule == "constant"


AnySettings = TypeVar("AnySettings", bound=Settings)


def filled(settings: AnySettings, recommended: dict[str, Any]) -> AnySettings:
    """Return the settings with recommended values in place of None."""
    missing = {name: value for name, value in recommended.items() if getattr(settings, name) is None}
    return dataclasses.replace(settings, **missing)


def values_of(settings: Any, names: Iterable[str]) -> dict[str, Any]:
    """Return the values of some fields by name."""
    return {name: getattr(settings, name) for name in names}


SMALL: dict[str, Any] = {
    "max_steps": 4, "batch_size": 16, "num_train_timesteps": 50, "preview_images": 4, "preview_steps": 2,
    "block_out_channels": (8, 16), "layers_per_block": 1, "width": 8, "blocks": 1, "text_width": 16, "threads": 1,
}  # fmt: skip
"""Largest values of fields under HFGEN_SMALL: four steps of tiny networks, which run everything and learn nothing."""


def is_small() -> bool:
    """Return whether HFGEN_SMALL is set."""
    return bool(os.environ.get("HFGEN_SMALL"))


def small(settings: AnySettings) -> AnySettings:
    """Return the settings, under HFGEN_SMALL with no field above its value in `SMALL` and without a budget.

    A field that is left open takes that value; of a tuple each number is capped by the last one of `SMALL`. Of shapes,
    which are drawn one by one, 200 are read.
    """
    if not is_small():
        return settings
    # shorten the data
    capped: dict[str, Any] = {"budget": None}
    if settings.dataset == "shapes" and settings.split == "train":
        capped["split"] = "train[:200]"
    # cap the sizes of networks, batches and grids
    for name, most in SMALL.items():
        if not hasattr(settings, name):
            continue
        value = getattr(settings, name)
        if value is None:
            capped[name] = most
        elif isinstance(most, tuple):
            capped[name] = tuple(min(number, most[-1]) for number in value)
        else:
            capped[name] = min(value, most)
    return dataclasses.replace(settings, **capped)


DATASETS = tuple(f"{role}dataset{side}" for role in ("", "eval_") for side in ("", "_a", "_b"))
MODELS = ("start_from", "autoencoder", "text_encoder")
"""Fields of the recipes that name data and models."""


MOST = {"threads": 4096, "num_workers": 4096, "resolution": 16_384}
"""The largest values of some fields; of all others below 2^63."""


def check_number(name: str, value: Any) -> None:
    """Raise ConfigError, naming the field, for a number, or one of several, that is NaN, infinite or too large."""
    most = MOST.get(name, 2**63 - 1)
    for one in value if isinstance(value, tuple) else (value,):
        if isinstance(one, float) and not math.isfinite(one):
            raise ConfigError(f"--{name.replace('_', '-')} must be finite, got {value}")
        if isinstance(one, int) and abs(one) > most:
            raise ConfigError(f"--{name.replace('_', '-')} must be at most {most:,}, got {value}")


def check_settings(settings: Settings) -> None:
    """Raise ConfigError for values that no run can use."""
    # check the ranges of single fields
    for field in dataclasses.fields(settings):
        check_number(field.name, getattr(settings, field.name))
    positive = ("batch_size", "micro_batch_size", "max_steps", "learning_rate", "log_every", "threads", "max_grad_norm")
    for name in positive:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be above 0, got {value}")
    for name in ("seed", "warmup_steps", "save_every", "sample_every", "num_workers"):
        if getattr(settings, name) < 0:
            raise ConfigError(f"--{name.replace('_', '-')} must not be negative, got {getattr(settings, name)}")
    if not 0 <= settings.ema_decay < 1:
        raise ConfigError(f"--ema-decay must be in [0, 1), got {settings.ema_decay}")
    if settings.keep_checkpoints < 2:
        raise ConfigError(f"--keep-checkpoints must be at least 2, got {settings.keep_checkpoints}: one may be broken")
    # check names of data and models
    for name in DATASETS:
        if value := getattr(settings, name, None):
            check_dataset(value)
    for name in MODELS:
        value = getattr(settings, name, None)
        if value is not None and not settings.resume:                   # a run that is resumed has their weights
            check_model(value)
    # check fields with a format
    if settings.budget is not None:
        seconds_of(settings.budget)
    if settings.publish_to is not None:
        check_repo_id(settings.publish_to)


def seconds_of(budget: str) -> float:
    """Return the seconds of a budget such as "90s", "3m" or "1.5h". Raises ConfigError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", budget.strip())
    if not match or float(match[1]) <= 0:
        raise ConfigError(f"--budget must be a number with s, m or h, for instance 90s, 3m, 2h; got {budget!r}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def write_yaml(settings: Settings, path: Path) -> None:
    """Write the settings to `path` in the form that `--config` reads."""
    values = plain_values(settings)
    values.pop("config")
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def check_same(settings: Settings, stored: dict[str, Any], where: Path) -> None:
    """Raise CheckpointError naming the fields in which `settings` differ from the run stored in `where`.

    The number of steps may change only in runs that are `extendable`. A field that is younger than the run has its
    default, an `Auto` field the value of today's recommendation.
    """
    # fields that may change
    free = FREE_ON_RESUME
    if settings.extendable:
        free = free | {"max_steps", "budget"}
    # fields that are younger than the run
    younger = [field for field in dataclasses.fields(settings) if field.name not in stored]
    free = free | {field.name for field in younger if is_auto(field)}
    stored = {**stored, **{field.name: _plain(field.default) for field in younger}}
    # compare
    now = plain_values(settings)
    differing = [name for name in now if name not in free and now[name] != stored[name]]
    if differing:
        changes = "; ".join(f"{name}: {stored[name]!r} in the run, {now[name]!r} asked" for name in differing)
        raise CheckpointError(f"{where}: cannot resume with other settings ({changes}); use those, or a new folder")


def is_auto(field: dataclasses.Field[Any]) -> bool:
    """Return whether a recipe completes the field, whose type is `Auto[T]`."""
    return get_origin(field.type) is Annotated


def plain_values(settings: Settings) -> dict[str, Any]:
    """Return the fields by name, with values that YAML and JSON hold."""
    return {name: _plain(value) for name, value in dataclasses.asdict(settings).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
    return value


