"""Base classes of networks and schedulers: loading, saving and publishing of safetensors and JSON, as in pipelines.

`ModelMixin` and `SchedulerMixin` inherit first from `Component`, then from their namesakes in diffusers. Other methods
of diffusers are unchanged: `from_config`, `num_parameters`, `enable_gradient_checkpointing`.
"""

import json
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict
from diffusers.models import modeling_utils
from diffusers.schedulers import scheduling_utils
from huggingface_hub import save_torch_state_dict

import hfgen
from hfgen.cards.metadata import CARD
from hfgen.errors import ConfigError
from hfgen.hub.source import checked_source
from hfgen.hub.upload import TEMPORARY, Destination, Published, Repository, files_of, publish_folder
from hfgen.loading.components import INDEX, load_alone
from hfgen.loading.files import DIFFUSERS_WEIGHTS, TRANSFORMERS_WEIGHTS, saved_class, weight_files, weight_index
from hfgen.loading.keywords import (
    check_keywords,
    check_push,
    check_safe,
    dtype_of,
    keywords_of,
    merge_dtypes,
    one_device,
)
from hfgen.loading.old_names import rename_old_attention_keys
from hfgen.loading.resolve import COMPONENT_FILE, HubOptions, resolve_alone
from hfgen.registry import CONVERTED_NAMES, saved_name, saved_names


class Component:
    """Loading, saving and publishing of a network or scheduler, under the names in `hfgen.registry`.

    It precedes diffusers' mixins among the bases and has no base itself: `nn.Module` must come before `ConfigMixin`.
    """

    config_name: Any

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        variant: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        token: str | bool | None = None,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        device_map: str | torch.device | dict[str, Any] | None = None,
        **stock: Any,
    ) -> Self:
        """Return the network, in evaluation mode, or the scheduler saved in `model`. No code and no pickle is read.

        `model`: its folder, a pipeline or run folder that holds it, or a Hub id of any of these. `subfolder`: name of
        the component; needed only if several are of this class. `variant`: weight files such as "fp16".
        `force_download`: files in the cache are downloaded again. `dtype` (`torch_dtype` in diffusers) and `device`
        (`device_map` in diffusers) of a network. Default: float32 on the CPU. Raises ConfigError, CheckpointError
        (keys that are missing, extra or misshaped) or UnsafeContentError (only pickled weights).
        """
        # keywords of hfgen and of diffusers
        check_keywords(f"{cls.__name__}.from_pretrained", stock, keywords_of(Component.from_pretrained))
        place, numbers = one_device(device, device_map), merge_dtypes(dtype, torch_dtype)
        # the folder
        pairs = saved_names(cls.__name__)
        options = HubOptions(revision, subfolder, cache_dir, local_files_only, token, variant, force_download)
        home = resolve_alone(model, cls.config_name, pairs, options)
        # the component
        names = dict.fromkeys([*(saved for _, saved in pairs), *getattr(cls, "_compatibles", [])])
        component = load_alone(home, cls, names, dtype=dtype_of("", numbers), variant=variant)
        if place is not None and isinstance(component, torch.nn.Module):
            component.to(place)
        return component

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        variant: str | None = None,
        safe_serialization: bool = True,
        max_shard_size: int | str = "10GB",
        is_main_process: bool = True,
        save_function: Any = None,
        push_to_hub: bool = False,
        **push: Any,
    ) -> None:
        """Write settings as JSON and weights as safetensors to a folder.

        diffusers loads the folder of a class that it has too, such as its `UNet2DModel` for a `UNet`.
        `max_shard_size`: maximal size of one weight file. `is_main_process`: False writes nothing. `save_function` has
        no effect, as in diffusers. `push_to_hub`: whether the component is also published, with `repo_id` and the other
        arguments of `push_to_hub`; default of `repo_id`: the name of the folder. Raises ConfigError for
        `safe_serialization=False`, which would write a pickle.
        """
        # check the arguments
        check_safe(safe_serialization)
        check_push(f"{type(self).__name__}.save_pretrained", self, push_to_hub, push)
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file; save into a folder")
        # write and publish
        if is_main_process:
            self._write(folder, variant, max_shard_size)
            if push_to_hub:
                self.push_to_hub(push.pop("repo_id", folder.resolve().name), variant=variant, **push)

    def _write(self, folder: Path, variant: str | None, max_shard_size: int | str) -> None:
        """Write the files of the component to a folder."""
        # settings of a scheduler
        stock: Any = super()
        if not isinstance(self, torch.nn.Module):
            stock.save_pretrained(folder)
            return
        # settings and weights of a network, as transformers or as diffusers has them
        if self.saved_as()[0] == "transformers":
            stem = TRANSFORMERS_WEIGHTS
            self.save_config(folder)
            _save_tensors(self.stock_tensors(), folder, variant, max_shard_size)
        else:
            stem = DIFFUSERS_WEIGHTS
            weight_index(folder, stem, variant).unlink(missing_ok=True)
            stock.save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
        mode = (folder / self.config_name).stat().st_mode                          # safetensors ignores the umask
        for file in weight_files(folder, stem, variant):
            file.chmod(mode)

    def save_config(self, save_directory: str | PathLike[str], push_to_hub: bool = False, **unknown: Any) -> None:
        """Write the settings alone to a folder, as JSON."""
        if push_to_hub or unknown:
            raise ConfigError("save_config writes settings to a folder and uploads nothing; use push_to_hub(repo_id)")
        stock: Any = super()
        stock.save_config(save_directory)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | None = None,
        private: bool | None = True,
        commit_message: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        variant: str | None = None,
        source: str | None = None,
    ) -> Published:
        """Return the published commit of the component: `oid`, `repo_id`, `commit_url` and `pr_url`.

        The repository is created if it does not exist, private unless `private=False`; without an owner `repo_id` is a
        name in the user's own namespace. One commit holds the component and its card; an unchanged component makes no
        commit. The published files are downloaded and compared bit for bit. `token`: access token. Default: that of `hf
        auth login` or HF_TOKEN. `revision`: branch, created if it does not exist. Default: the main branch.
        `create_pr`: the commit is a pull request. The card names `source`, from which pip installs hfgen. Default:
        HFGEN_SOURCE (no install line if it is not set). Raises ConfigError if the user may not write there, or if the
        repository holds a pipeline.
        """
        from hfgen.cards.write import write_component_card

        cls, source = type(self), checked_source(source)
        place = Destination.of(repo_id, token, private, revision, create_pr)
        with TemporaryDirectory(prefix=TEMPORARY) as temporary:
            staged = Path(temporary, "model")
            self.save_pretrained(staged, variant=variant)
            return publish_folder(
                Path(temporary),
                place,
                message=commit_message or f"{cls.__name__} of hfgen {hfgen.__version__}",
                describe=lambda folder: write_component_card(folder, cls, place.repo_id, source),
                stale=lambda repository: _replaced(repository, files_of(staged)),
                load=lambda folder, variant: cls.from_pretrained(folder, variant=variant),
            )

    def stock_settings(self) -> dict[str, Any] | None:
        """Return the settings of the stock class under which this component is saved; None for its own."""
        return None

    @classmethod
    def own_settings(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Return this class's settings for `config`, those of a stock class; ConfigError if there are none."""
        return config

    def stock_tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of a network under their names in the class under which it is saved."""
        module: Any = self
        return dict(module.state_dict())

    @classmethod
    def own_tensors(cls, tensors: dict[str, Any]) -> dict[str, Any]:
        """Return the tensors of a stock class, or their shapes, under their names in this class."""
        return rename_old_attention_keys(tensors)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Return a component with the settings `config`, of this class or of the stock class."""
        name = CONVERTED_NAMES.get(cls.__name__, ("", None))[1]
        if isinstance(config, dict) and name is not None and saved_class(config) == name:
            config = cls.own_settings(config)
        stock: Any = super()
        return stock.from_config(config, return_unused_kwargs, **kwargs)

    def saved_as(self) -> tuple[str, str]:
        """Return the `(library, class name)` pair under which this component is saved."""
        name = type(self).__name__
        return saved_name(name) if self.stock_settings() is None else CONVERTED_NAMES[name]

    def to_json_string(self) -> str:
        """Return the settings as JSON without local paths; `_class_name` is the name in diffusers, if there is one."""
        stock: Any = super()
        # diffusers adds keys to the object's own settings, where saving should change nothing
        itself: Any = self
        settings = FrozenDict(itself._internal_dict)
        config = json.loads(stock.to_json_string())
        itself._internal_dict = settings
        # settings of the stock class
        library, name = self.saved_as()
        if (converted := self.stock_settings()) is not None:
            config = {key: value for key, value in config.items() if key.startswith("_")} | converted
        # names
        config["_class_name"] = name
        config.pop("_name_or_path", None)
        if library == "transformers":
            config = {key: value for key, value in config.items() if not key.startswith("_")}
        return json.dumps(config, indent=2, sort_keys=True) + "\n"


class ModelMixin(Component, modeling_utils.ModelMixin, ConfigMixin):  # type: ignore[misc]
    """diffusers' `ModelMixin` with the loading, saving and publishing of `Component`: the base of every network."""

    _keep_in_fp32_modules: Any = None
    _no_split_modules: Any = None
    _repeated_blocks: Any = ()
    _skip_layerwise_casting_patterns: Any = None


class SchedulerMixin(Component, scheduling_utils.SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """diffusers' `SchedulerMixin` with the loading, saving and publishing of `Component`: the base of schedulers."""

    def register_to_config(self, **settings: Any) -> None:
        """Keep the settings; a scheduler of another class that is created from them has the same noise levels.

        diffusers marks the settings that were left out, and `from_config` then takes the defaults of the other class:
        `beta_end` would be 0.012 in place of 0.02.
        """
        settings.pop("_use_default_values", None)
        stock: Any = super()
        stock.register_to_config(**settings)


def _save_tensors(
    tensors: dict[str, torch.Tensor], folder: Path, variant: str | None, max_shard_size: int | str
) -> None:
    """Write the weight files of a network of transformers, and the index of its shards if there are several."""
    # files of an older network, then the new ones
    index = weight_index(folder, TRANSFORMERS_WEIGHTS, variant)
    index.unlink(missing_ok=True)
    name = TRANSFORMERS_WEIGHTS if variant is None else f"{TRANSFORMERS_WEIGHTS}.{variant}"
    save_torch_state_dict(
        tensors, folder, filename_pattern=f"{name}{{suffix}}.safetensors", max_shard_size=max_shard_size,
        metadata={"format": "pt"},
    )  # fmt: skip
    # the index has the variant after its own suffix
    written = folder / f"{name}.safetensors.index.json"
    if written.is_file():
        written.rename(index)


def _replaced(repository: Repository, new: Iterable[str]) -> list[str]:
    """Return the files of a component in a repository that are not `new`; ConfigError if it holds a pipeline."""
    if INDEX in repository.files:
        raise ConfigError(f"{repository.name}: holds a pipeline; publish the pipeline, or choose another name")
    return sorted({file for file in repository.files if COMPONENT_FILE.fullmatch(file)} - {*new, CARD})
