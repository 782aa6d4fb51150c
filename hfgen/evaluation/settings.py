"""Settings of an evaluation, checked before anything is sampled.

The fields of `EvaluationArguments` are the keyword arguments of `hfgen.evaluate` and `hfgen.compare` and the options of
the two commands; their docstrings are the help texts. The command line reads them without loading torch.
"""

import ast
import dataclasses
import difflib
import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from types import SimpleNamespace
from typing import Annotated, Any, TypeVar, get_type_hints

from tyro.conf import Suppress, arg
from tyro.constructors import PrimitiveConstructorSpec

from hfgen.checks import require, require_choice
from hfgen.errors import ConfigError
from hfgen.schedulers.samplers import SAMPLERS

GROUPS = ("frechet", "kid", "prdc", "diversity", "likelihood", "usefulness", "privacy", "cost")
DEFAULT_GROUPS = tuple(name for name in GROUPS if name != "usefulness")
"""Groups of metrics by name, and the groups that are computed by default: usefulness trains classifiers."""

STOCK = "stock:"
"""Prefix of a model that diffusers itself loads, whatever pipeline it is."""

Function = TypeVar("Function", bound=Callable[..., Any])


def resolution_of(words: list[str]) -> int | tuple[int, ...]:
    """Return the side, or height and width, of a text such as "32" or "32 48". Raises ValueError for anything else."""
    numbers = tuple(int(number) for number in words[0].split())
    if len(numbers) not in (1, 2):
        raise ValueError(f"a side, or height and width, expected; got {words[0]!r}")
    return numbers[0] if len(numbers) == 1 else numbers


RESOLUTION: PrimitiveConstructorSpec[Any] = PrimitiveConstructorSpec(
    nargs=1,
    metavar="SIDE | HEIGHT WIDTH",
    instance_from_str=resolution_of,
    is_instance=lambda value: value is None or isinstance(value, int | tuple),
    str_from_instance=lambda value: [str(value)],
)
"""The resolution on the command line; its numbers come as one word, since a model may follow them."""


@dataclass(frozen=True, kw_only=True)
class ReferenceSettings:
    """Settings that decide which reference data are read, and how."""

    split: str = "train"
    """Split of the dataset, or a slice of it such as train[:80%]."""
    held_out: Annotated[Any, arg(constructor=str, metavar="DATASET", help_behavior_hint="(default: None)")] = None
    """Data that the model was not trained on, for memorisation, usefulness and likelihoods. Default: none, or --dataset
    if --held-out-split is given (fresh points for toy sets)."""
    held_out_split: str | None = None
    """Split of the held-out data."""
    resolution: Annotated[int | tuple[int, int] | None, RESOLUTION] = None
    """Side, or height and width, of the images. Default: as they are."""
    channels: int | None = None
    """Channels of the images: 1, 3 or 4. Default: 1 if all images are grey, else 3."""
    image_column: str | None = None
    """Column of the images. Default: found by its type."""
    label_column: str | None = None
    """Column of the class labels; none: the data count as unlabelled. Default: found by its type."""
    caption_column: str | None = None
    """Column of the captions, for models that are conditioned on them."""
    background: str = "white"
    """Colour under transparent pixels."""
    skip_bad_images: bool = False
    """Leave out files that cannot be decoded."""

    @property
    def reading(self) -> dict[str, Any]:
        """Return the given arguments of `load_dataset` that apply to the dataset and to the held-out data alike."""
        given: dict[str, Any] = {}
        for field in dataclasses.fields(ReferenceSettings):
            value = getattr(self, field.name)
            if field.name not in ("split", "held_out", "held_out_split") and value != field.default:
                given[field.name] = value
        return given


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Settings that decide the numbers of an evaluation; its JSON file holds them."""

    metrics: Annotated[str | Sequence[str] | None, arg(constructor=str, metavar="NAMES", help_behavior_hint="")] = None
    """Groups of metrics, separated by commas: frechet, kid, prdc, diversity, likelihood, usefulness, privacy, cost.
    Default: all but usefulness, which trains classifiers."""
    num_samples: int | None = None
    """Number of samples. Default: the number of reference items, at most 10,000."""
    features: str = "pixels"
    """Feature extractor: pixels, classifier:MODEL, dinov2, clip or inception."""
    classifier: str | None = None
    """Model of `hfgen train classifier` that predicts the classes of samples. Default: that of --features, if any."""
    seed: int = 0
    """Seed. Sample i is a function of the model, the seed and i."""
    num_steps: int | None = None
    """Sampling steps. Default: those of the sampler in the table of `hfgen sample --list-samplers`."""
    guidance_scale: float = 1.0
    """Strength of guidance by class or text; 1: no guidance."""
    sampler: str | None = None
    """Sampling method. Default: dpmpp_2m for diffusion models of hfgen (ddpm asks for ancestral sampling, reverse_sde
    for that of the SDE), else the method of the model."""
    batch_size: int = 64
    """Number of samples in one batch."""
    neighbours: int = 5
    """k of precision, recall, density and coverage."""
    resamples: int | None = None
    """Resamples of the bootstrap. Default: 1,000 (200 or 50 for many features or items)."""
    likelihood_images: int | None = None
    """Number of items whose likelihood under a diffusion model is computed with every term and a tolerance of 1e-5.
    Default: as many of 64 as --likelihood-seconds allow (at least 4), with 100 terms and a tolerance of 1e-4."""
    likelihood_seconds: float = 15.0
    """Seconds for a diffusion model's variational bound, and as many for its likelihood by the ODE."""
    importance_samples: int = 100
    """Draws of z for the likelihood of each item under a VAE."""
    classifier_steps: int = 500
    """Training steps of each classifier of usefulness."""

    def __post_init__(self) -> None:
        """Raise ConfigError, naming the argument, for values that no evaluation can use."""
        # check groups and counts
        object.__setattr__(self, "metrics", known_groups(self.metrics))
        for name in ("batch_size", "neighbours", "importance_samples", "classifier_steps"):
            _require_count(name, getattr(self, name), 1)
        for name, lowest in (("num_samples", 1), ("resamples", 2), ("likelihood_images", 2)):
            if getattr(self, name) is not None:
                _require_count(name, getattr(self, name), lowest)
        if self.sampler is not None:
            require_choice("sampler", self.sampler, SAMPLERS)
        # check seconds
        seconds = self.likelihood_seconds
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        require(number and seconds > 0, "likelihood_seconds", seconds, "a number > 0")

    @property
    def metric_groups(self) -> tuple[str, ...]:
        """Return the groups of metrics in order."""
        return known_groups(self.metrics)

    @property
    def decisive(self) -> dict[str, Any]:
        """Return the settings that decide the numbers, by name."""
        return {name: getattr(self, name) for name in names_of(EvaluationSettings)}

    def only(self, names: Sequence[str]) -> Any:
        """Return the settings `names` alone: a group of metrics reads no setting that its cache key lacks."""
        return SimpleNamespace(**{name: getattr(self, name) for name in names})

    def count(self, items: int) -> int:
        """Return the number of samples for a number of reference items."""
        return self.num_samples or min(items, most_samples())

    def count_of(self, given: int) -> int:
        """Return the number of `given` samples to use, all by default. Raises ConfigError for more than there are."""
        count = self.num_samples or given
        require(count <= given, "num_samples", count, f"at most {given}, the number of samples")
        return count

    def check_counts(self, items: int, samples: int) -> None:
        """Raise ConfigError if there are too few samples, or too few reference items, for the metrics."""
        # find the smallest count that the groups can use
        k, groups = self.neighbours, self.metric_groups
        smallest = 1
        if {"frechet", "kid"} & {*groups}:
            smallest = 4
        if "prdc" in groups:
            smallest = max(4, k + 1)
        # check samples, and each half of the items
        if samples < smallest or items // 2 < smallest:
            raise ConfigError(
                f"num_samples must be at least {smallest} and the real items at least {2 * smallest}, for "
                f"{', '.join(groups)} with {k} neighbours; got {samples} samples and {items} real items"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationArguments(EvaluationSettings, ReferenceSettings):
    """Keyword arguments of `hfgen.evaluate` and `hfgen.compare`."""

    cache: bool = True
    """Results are kept in the folder HFGEN_CACHE (default: ~/.cache/hfgen) and read from there; --no-cache computes
    everything anew and keeps nothing."""
    progress: Annotated[bool, Suppress] = True
    """Show a bar on the standard error, with the time that is left."""


def most_samples() -> int:
    """Return the largest default number of samples."""
    from hfgen.training.engine.settings import is_small  # reads YAML, which help does not need

    return 64 if is_small() else 10_000


def known_groups(metrics: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return groups of metrics in order. Raises ConfigError, with the nearest name, for an unknown group."""
    # read names
    if isinstance(metrics, str):
        metrics = metrics.split(",")
    names = [name.strip() for name in (DEFAULT_GROUPS if metrics is None else metrics)]
    # check them
    for name in names:
        if name not in GROUPS:
            near = difflib.get_close_matches(name, GROUPS, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"metrics: there is no {name!r}; {hint}there are {', '.join(GROUPS)}")
    if not names:
        raise ConfigError(f"metrics must name at least one of {', '.join(GROUPS)}")
    return tuple(name for name in GROUPS if name in names)


def _require_count(name: str, value: Any, lowest: int) -> None:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    require(whole and value >= lowest, name, value, f"an int >= {lowest}")


def names_of(settings: type) -> list[str]:
    """Return the names of the fields of a dataclass."""
    return [field.name for field in dataclasses.fields(settings)]


def field_texts(settings: type) -> dict[str, str]:
    """Return the docstrings of the fields of a dataclass and of its bases, as they stand in the source."""
    texts: dict[str, str] = {}
    for cls in reversed(settings.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        # parse the class
        body = ast.parse(inspect.getsource(cls)).body[0]
        assert isinstance(body, ast.ClassDef)
        # take the text behind each field
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                texts[field.target.id] = " ".join(ast.literal_eval(text.value).split())
    return texts


def with_arguments(function: Function) -> Function:
    """Return the function, whose signature and docstring now name every field of `EvaluationArguments`.

    Its last parameter must be `**settings`: the fields, and further arguments of `load_dataset`.
    """
    # extend the signature
    signature = inspect.signature(function)
    *named, last = signature.parameters.values()
    types = get_type_hints(EvaluationArguments)
    fields = inspect.signature(EvaluationArguments).parameters.values()
    keywords = [field.replace(annotation=types[field.name]) for field in fields]
    function.__dict__["__signature__"] = signature.replace(parameters=[*named, *keywords, last])

    # extend the docstring
    texts = field_texts(EvaluationArguments) | {last.name: "Further arguments of `load_dataset`."}
    wrapper = textwrap.TextWrapper(115, initial_indent=" " * 4, subsequent_indent=" " * 8)
    lines = [wrapper.fill(f"{name}: {text}") for name, text in texts.items()]
    function.__doc__ = "\n".join([inspect.cleandoc(function.__doc__ or ""), "", "Keyword arguments:", *lines])
    return function
