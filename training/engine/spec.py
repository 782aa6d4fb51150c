"""The settings of a recipe as the command line sees them, without torch: fields, recommended values, help."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol

from hfgen.training.engine.defaults import IMAGES, with_defaults
from hfgen.training.engine.settings import AnySettings, parse


class Shaped(Protocol):
    """Data as far as recommended values depend on them: the shape of an item, (C, H, W) or (2,)."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class ShapedDomains(Shaped, Protocol):
    """Data of two domains, A and B."""

    @property
    def shape_a(self) -> tuple[int, ...]: ...

    @property
    def shape_b(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class SettingsSpec(Generic[AnySettings]):
    """The settings of one recipe.

    settings: the dataclass of its fields. `Auto` fields are None until they are completed.
    recommended: settings and dataset -> settings with a value in every `Auto` field.
    smaller: settings and dataset -> settings with smaller networks than the recommended one, the smallest first, for
        short budgets; completed but for the steps.
    kinds: shapes of data, by name, whose recommended values the help shows.
    """

    settings: type[AnySettings]
    recommended: Callable[[AnySettings, Any], AnySettings]
    smaller: Callable[[AnySettings, Any], list[AnySettings]] = lambda settings, dataset: []
    kinds: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: IMAGES)

    def parse(self, words: list[str]) -> AnySettings:
        """Return the settings that the words of a command line give; print help or a usage error, and exit otherwise.

        Errors as in `engine.settings.parse`.
        """
        kind = self.settings
        if {"-h", "--help"} & {*words}:
            kind = with_defaults(kind, self.recommended, self.kinds)
        return parse(kind, words)
