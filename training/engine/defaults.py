"""The help of a recipe: its fields in groups, with the defaults that the recipe computes for a few kinds of data."""

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from copy import copy
from itertools import pairwise
from typing import Annotated, Any, get_type_hints

import tyro

from hfgen.training.engine.settings import AUTO, AnySettings

IMAGES: dict[str, tuple[int, ...]] = {
    "256x256": (3, 256, 256), "128x128": (3, 128, 128), "32x32": (3, 32, 32), "28x28 grey": (1, 28, 28),
    "8x8 grey": (1, 8, 8),
}  # fmt: skip
IMAGES_AND_POINTS: dict[str, tuple[int, ...]] = {**IMAGES, "points": (2,)}
"""Shapes of the data by the words that stand for them in a help text, the general one first."""


PARTS = ("run", "data", "network", "conditions", "diffusion", "losses", "evaluation", "optimisation", "saving")
HEADING = re.compile(r"    # (.+)")
"""Groups of fields in the order of the help, and the comment that is the heading of a group in a class."""


@dataclasses.dataclass(frozen=True)
class Example:
    """Data of one kind, as far as recommendations depend on it: its shape."""

    shape: tuple[int, ...]

    @property
    def shape_a(self) -> tuple[int, ...]:
        """Return the shape of domain A of image translation."""
        return self.shape

    shape_b = shape_a


def with_defaults(
    cls: type[AnySettings],
    recommended: Callable[[AnySettings, Any], AnySettings],
    kinds: Mapping[str, tuple[int, ...]],
) -> type:
    """Return a class for the help of the settings `cls`: its fields in groups, with their recommended values."""
    # compute recommended values for each kind of data
    required: dict[str, Any] = {f.name: "" for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    by_kind: dict[str, Any] = {kind: recommended(cls(**required), Example(shape)) for kind, shape in kinds.items()}
    # put them into the help of each field, and the field into its group
    hints, texts = get_type_hints(cls), documentation(cls)                 # Auto[T] is T | None here
    groups: dict[str, list[Any]] = {part: [] for part in PARTS}
    for field in dataclasses.fields(cls):
        part, text = texts[field.name]
        values = {kind: getattr(settings, field.name) for kind, settings in by_kind.items()}
        hint = tyro.conf.arg(help=text, help_behavior_hint=_default(field, values, text))
        groups[part].append((field.name, Annotated[hints[field.name], hint], copy(field)))
    # make a class of groups
    boxes: list[Any] = []
    for part, fields in groups.items():
        if fields:
            box = dataclasses.make_dataclass(part, fields, kw_only=True)
            boxes.append((part, Annotated[box, tyro.conf.arg(prefix_name=False)]))
    documented = dataclasses.make_dataclass(cls.__name__, boxes)
    documented.__module__, documented.__doc__ = cls.__module__, cls.__doc__
    return documented


def documentation(cls: type) -> dict[str, tuple[str, str]]:
    """Return the group and the docstring of each field, as they stand in the source of a dataclass and of its bases.

    A comment in the body of a class, such as `# data`, is the group of the fields below it.
    """
    found: dict[str, tuple[str, str]] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        # find headings and fields
        source = inspect.getsource(base)
        headings = {n: match[1] for n, line in enumerate(source.splitlines(), 1) if (match := HEADING.fullmatch(line))}
        body = ast.parse(source).body[0].body  # type: ignore[attr-defined]
        # take the docstring behind each field, and the heading before it
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                part = headings[max(n for n in headings if n < field.lineno)]
                found[field.target.id] = part, " ".join(ast.literal_eval(text.value).split())
    return found


def _default(field: dataclasses.Field[Any], values: dict[str, Any], text: str) -> str | None:
    """Return the end of a help text: the recommended values, or nothing where the text says the default itself.

    None stands for tyro's own end, with the default of the field.
    """
    if field.default is AUTO and any(value is not None for value in values.values()):
        return f"(default: {in_words(values)})"
    if field.default is None:
        return "" if "Default:" in text else "(default: none)"
    return None


def in_words(values: dict[str, Any]) -> str:
    """Return values by kind of data as one phrase: the general value, then the kinds that have another one."""
    # take the general value
    words = {kind: _word(value) for kind, value in values.items()}
    general = next(iter(words.values()))
    # collect exceptions
    others: dict[str, list[str]] = {}
    for kind, word in words.items():
        if word != general:
            others.setdefault(word, []).append(kind)
    exceptions = "; ".join(f"{word} for {', '.join(kinds)}" for word, kinds in others.items())
    return f"{general} ({exceptions})" if exceptions else general


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
