"""A recipe as the run and Python see it: settings, data, networks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic

from hfgen.data import Dataset, load_dataset
from hfgen.training.engine.init_from import BuildOn
from hfgen.training.engine.phase import Recipe
from hfgen.training.engine.settings import AnySettings, Settings, values_of
from hfgen.training.engine.spec import SettingsSpec


def open_dataset(settings: Settings, **more: Any) -> Dataset:
    """Return the dataset that the settings name; `more`: further arguments of `load_dataset`."""
    names = ("split", "image_column", "label_column", "resolution", "channels", "background", "skip_bad_images")
    choices = values_of(settings, (*names, "flip", "streaming", "num_workers"))
    return load_dataset(settings.dataset, **choices, **more)


def side_or_sides(dataset: Any) -> int | tuple[int, int]:
    """Return the side of a dataset's images, or (height, width) where they differ."""
    _, height, width = dataset.shape
    if height == width:
        return int(height)
    return height, width


def mean_and_std(dataset: Dataset) -> dict[str, Any]:
    """Return `data_mean` and `data_std` of points, as networks that standardise points take them."""
    return {} if dataset.coordinates is None else dataset.coordinates.settings()


@dataclass(frozen=True)
class RecipeSpec(Generic[AnySettings]):
    """One recipe: all that `hfgen train RECIPE` needs.

    spec: its settings.
    build: completed settings and dataset -> networks, phases and pipeline.
    open_data: settings -> dataset.
    build_on: as `build`, from the components of the pipeline that `--start-from` names, for one of another family.
    """

    spec: SettingsSpec[AnySettings]
    build: Callable[[AnySettings, Any], Recipe]
    open_data: Callable[[AnySettings], Any] = open_dataset
    build_on: BuildOn | None = None

    @property
    def settings(self) -> type[AnySettings]:
        """Return the dataclass of the fields."""
        return self.spec.settings

    def recommended(self, settings: AnySettings, dataset: Any) -> AnySettings:
        """Return the settings with a value in every `Auto` field."""
        return self.spec.recommended(settings, dataset)

    def create(self, settings: AnySettings, dataset: Any) -> Recipe:
        """Return the networks, phases and pipeline of settings that may still have open `Auto` fields."""
        return self.build(self.recommended(settings, dataset), dataset)
