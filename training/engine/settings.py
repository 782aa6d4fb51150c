"""Settings of a training run: the fields that all image recipes share, and how they are read and written.

A recipe's settings are one flat dataclass. `tyro` alone parses them: the values of YAML files by the same types as the
command line, whose defaults they become, so that the last one wins.

HFGEN_SMALL=1 in the environment makes every run a trial of seconds: `small` caps the fields named in `SMALL`, and an
evaluation makes 64 samples.
"""

import dataclasses
import os
import re
import sys
from collections.abc import Collection, Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import chain
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import tyro
import yaml

from hfgen.checks import check_dataset, check_model, check_repo_id, nearest
from hfgen.errors import CheckpointError, ConfigError

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
    """Fields that every image recipe has."""

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


@dataclass(kw_only=True)
class _Sources:
    """Fields that decide which YAML files are read, and which of their values count."""

    output_dir: Path | None = None
    config: Path | None = None
    resume: bool = False
    max_steps: int | None = None
    budget: str | None = None


def program_of(cls: type) -> str:
    """Return the words before the options of a recipe, whose settings are `cls`."""
    return f"hfgen train {cls.__module__.rpartition('.')[2]}"


def print_help(documented: type) -> NoReturn:
    """Print the help of a class made for it, and exit."""
    tyro.cli(documented, args=["--help"], prog=program_of(documented), config=(tyro.conf.OmitArgPrefixes,))
    raise AssertionError("tyro exits after the help")


def parse(cls: type[AnySettings], arguments: list[str] | None = None) -> AnySettings:
    """Return settings of class `cls` from command-line `arguments` (default: sys.argv) and the YAML that they name.

    With --resume the run's own `config.yaml` comes first, so that only changes have to be repeated. The last of
    --max-steps and --budget counts. Raises ConfigError for values that no run can use, and ends with tyro's usage
    message and exit code 2 where words or required fields are wrong or missing.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    program = program_of(cls)
    # read the YAML files that the arguments name, the run's own first
    given, _ = tyro.cli(_Sources, args=arguments, prog=program, add_help=False, return_unknown_args=True)
    if given.budget is not None and given.max_steps is not None:
        raise ConfigError("give --max-steps or --budget, not both")
    values = _from_files(cls, given.config, given.output_dir, given.resume)
    values = _overridden(values, {"max_steps": given.max_steps, "budget": given.budget})
    # parse the rest, with their values as defaults
    required = [field.name for field in dataclasses.fields(cls) if _is_required(field)]
    default = cls(**{**dict.fromkeys(required, tyro.MISSING), **values})
    settings = tyro.cli(cls, args=arguments, default=default, prog=program, config=(tyro.conf.OmitSubcommandPrefixes,))
    check_settings(settings)
    return settings


def settings_from(cls: type[AnySettings], values: dict[str, Any], where: str) -> AnySettings:
    """Return settings of class `cls` from `values` by name, checked like those of a command line; None is not given.

    With `resume` and with `config` the values of these files come first, as in `parse`. Raises ConfigError, naming the
    nearest field, for an unknown name, and for values that a field does not take. `where`: place, for messages.
    """
    # parse each value like the words of a command line
    fields = {field.name: field for field in dataclasses.fields(cls)}
    given: dict[str, Any] = {}
    for name, value in values.items():
        known = _known_name(name, fields, where)
        if value is not None:
            given[known] = _parsed(known, value, fields[known].type, where)
    if "max_steps" in given and "budget" in given:
        raise ConfigError(f"{where}: give max_steps or budget, not both")
    # put them over the values of files
    files = _from_files(cls, given.get("config"), given.get("output_dir"), given.get("resume", False))
    merged = _overridden(files, given)
    missing = [name for name, field in fields.items() if _is_required(field) and name not in merged]
    if missing:
        raise ConfigError(f"{where}: needs {', '.join(missing)}")
    settings = cls(**merged)
    check_settings(settings)
    return settings


def _parsed(name: str, value: Any, kind: Any, where: str) -> Any:
    """Return a Python value as the command line would read it. Raises ConfigError unless the field takes it."""
    named = dataclasses.make_dataclass("Named", [(name, kind)])
    listed = list(value) if isinstance(value, tuple) else value
    try:
        with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
            parsed: Any = tyro.cli(named, args=_words(name, listed, kind), prog=where, add_help=False)
    except SystemExit as ended:
        raise ConfigError(f"{where}: {name} must be {_kind_in_words(kind)}, got {value!r}") from ended
    return getattr(parsed, name)


def _kind_in_words(kind: Any) -> str:
    """Return the type of a field as text, such as "int or tuple[int, int]", without None."""
    # a plain type
    if isinstance(kind, type) and not get_args(kind):
        return kind.__name__
    # parts of an annotated type, a choice, or a union
    parts = [one for one in get_args(kind) if one is not type(None)]
    if get_origin(kind) is Annotated:
        return _kind_in_words(parts[0])
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_kind_in_words, parts))
    return str(kind)


def _from_files(
    cls: type[AnySettings], config: Path | None, output_dir: Path | None, resume: bool
) -> dict[str, Any]:
    """Return the values of the file `config`, over those of the run in the output folder if it is to be resumed."""
    given = _read_yaml(cls, config) if config else {}
    folder = output_dir or given.get("output_dir")
    values: dict[str, Any] = {}
    if resume and folder and (folder / "config.yaml").is_file():
        values = _read_yaml(cls, folder / "config.yaml")
    return _overridden(values, given)
DATASETS = tuple(f"{role}dataset{side}" for role in ("", "eval_") for side in ("", "_a", "_b"))
MODELS = ("start_from", "autoencoder", "text_encoder")
"""Fields of the recipes that name data and models."""


def check_settings(settings: Settings) -> None:
    """Raise ConfigError for values that no run can use."""
    # check the ranges of single fields
    positive = ("batch_size", "micro_batch_size", "max_steps", "learning_rate", "log_every", "threads", "max_grad_norm")
    for name in positive:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be above 0, got {value}")
    for name in ("warmup_steps", "save_every", "sample_every", "num_workers"):
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
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


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


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _overridden(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Return `earlier` values with the `later` ones over them; another budget ends a number of steps, and vice versa.

    A run stores its budget and the number of steps that fit into it; the same budget again keeps both.
    """
    values = dict(earlier)
    later = {name: value for name, value in later.items() if value is not None}
    for name, other in (("budget", "max_steps"), ("max_steps", "budget")):
        if name in later and later[name] != earlier.get(name):
            values.pop(other, None)
    return values | later


def _read_yaml(cls: type[Settings], path: Path) -> dict[str, Any]:
    """Return the fields of `cls` that a YAML file sets. Raises ConfigError naming the file and the field."""
    # read the file
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold `field: value` lines, found {type(values).__name__}")
    # turn each value into the words that a user would type
    fields = {field.name: field for field in dataclasses.fields(cls)}
    words: dict[str, list[str]] = {}
    for key, value in values.items():
        name = _known_name(key, fields, path)
        if value is not None:
            words[name] = _words(name, value, fields[name].type)
    # parse those words by the types of the fields
    named = dataclasses.make_dataclass("Named", [(name, fields[name].type) for name in words])
    arguments = list(chain.from_iterable(words.values()))
    try:
        parsed: Any = tyro.cli(named, args=arguments, prog=str(path), add_help=False)
    except SystemExit as ended:
        raise ConfigError(f"{path}: holds a value that its field does not take, named above") from ended
    return {name: getattr(parsed, name) for name in words}


def _known_name(key: Any, fields: Collection[str], where: str | Path) -> str:
    """Return a key of a file or a call as the name of a field. Raises ConfigError, with the nearest, for others."""
    name = str(key).replace("-", "_")
    if name in fields:
        return name
    raise ConfigError(f"{where}: unknown field {key!r}; {nearest(name, fields)}")


def _words(name: str, value: Any, kind: Any) -> list[str]:
    """Return the words that a user would have typed for a YAML value."""
    if value is False and kind is not bool:                # YAML reads a bare `no` as false
        value = "no"
    return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
