"""Defaults of `Auto` fields in the help of a recipe: computed by the recipe for a few kinds of data."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_type_hints

import tyro

from hfgen.training.engine.settings import AUTO, AnySettings

IMAGES: dict[str, tuple[int, ...]] = {
    "256x256": (3, 256, 256), "128x128": (3, 128, 128), "32x32": (3, 32, 32), "28x28 grey": (1, 28, 28),
    "8x8 grey": (1, 8, 8),
}  # fmt: skip
IMAGES_AND_POINTS: dict[str, tuple[int, ...]] = {**IMAGES, "points": (2,)}
"""Shapes of the data by the words that stand for them in a help text, the general one first."""


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
) -> type[AnySettings]:
    """Return the settings `cls` with the recommended values in the help text of each `Auto` field."""
    # compute recommended values for each kind of data
    required: dict[str, Any] = {f.name: "" for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    by_kind: dict[str, Any] = {kind: recommended(cls(**required), Example(shape)) for kind, shape in kinds.items()}
    # put them into the help of each open field
    hints = get_type_hints(cls)                                     # Auto[T] is T | None here
    fields = []
    for field in dataclasses.fields(cls):
        values = {kind: getattr(settings, field.name) for kind, settings in by_kind.items()}
        if field.default is AUTO and any(value is not None for value in values.values()):
            hint = tyro.conf.arg(help_behavior_hint=f"(default: {in_words(values)})")
            fields.append((field.name, Annotated[hints[field.name], hint], dataclasses.field(default=AUTO)))
    # make a class with these fields
    documented = dataclasses.make_dataclass(cls.__name__, fields, bases=(cls,), kw_only=True)
    documented.__module__, documented.__doc__ = cls.__module__, cls.__doc__
    return documented


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
