"""The settings of a recipe as the command line sees them, without torch: fields, recommended values, help."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Generic, Protocol

from hfgen.errors import ConfigError
from hfgen.training.engine.defaults import IMAGES, with_defaults
from hfgen.training.engine.parse import parse, print_help
from hfgen.training.engine.settings import AnySettings


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


ELSEWHERE = {
    "lr": "learning_rate", "epochs": "max_steps", "num_epochs": "max_steps", "num_train_epochs": "max_steps",
    "max_train_steps": "max_steps", "steps": "max_steps", "train_batch_size": "batch_size",
    "per_device_train_batch_size": "batch_size", "lr_scheduler": "lr_schedule", "lr_warmup_steps": "warmup_steps",
    "dataset_name": "dataset", "train_data_dir": "dataset", "output": "output_dir", "o": "output_dir",
    "checkpointing_steps": "save_every", "save_steps": "save_every", "logging_steps": "log_every",
    "resume_from_checkpoint": "resume", "report_to": "tracker", "push_to_hub": "publish_to",
    "ema_max_decay": "ema_decay", "dataloader_num_workers": "num_workers", "random_flip": "flip",
    "gradient_accumulation_steps": "micro_batch_size", "ddpm_num_steps": "num_train_timesteps",
    "ddpm_beta_schedule": "beta_schedule",
}  # fmt: skip
"""Names that other training scripts, mostly of diffusers and transformers, have for a field."""


def refuse_foreign_names(words: list[str], fields: Collection[str]) -> None:
    """Raise ConfigError with the name of the field for a word that names it as another script does."""
    for word in words:
        given = word.partition("=")[0]
        name = given.lstrip("-").replace("-", "_")
        field = ELSEWHERE.get(name, "")
        if given.startswith("-") and name not in fields and field in fields:
            raise ConfigError(f"there is no {given}; did you mean --{field.replace('_', '-')}?")


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

        Errors as in `engine.parse.parse`.
        """
        refuse_foreign_names(words, [one.name for one in fields(self.settings)])
        if {"-h", "--help"} & {*words}:
            print_help(with_defaults(self.settings, self.recommended, self.kinds))
        return parse(self.settings, words)
