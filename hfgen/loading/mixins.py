"""Base classes of networks and schedulers: loading, saving and publishing of safetensors and JSON, as in pipelines.

`ModelMixin` and `SchedulerMixin` inherit first from `Component`, then from their namesakes in diffusers. Other methods
of diffusers are unchanged: `from_config`, `num_parameters`, `enable_gradient_checkpointing`.
"""

import difflib
import inspect
import json
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import diffusers
import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import FrozenDict

import hfgen
from hfgen.cards.metadata import CARD
from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.hub.source import checked_source
from hfgen.hub.upload import TEMPORARY, Published, Repository, check_repo_id, files_of, publish_folder
from hfgen.loading.components import INDEX, load_alone
from hfgen.loading.files import DIFFUSERS_WEIGHTS, weight_files, weight_index
from hfgen.loading.resolve import COMPONENT_FILE, HubOptions, resolve_alone
from hfgen.registry import saved_name

STOCK_KEYWORDS: dict[str, tuple[Any, ...]] = {
    "disable_mmap": (None, False, True),
    "force_download": (False,),
    "low_cpu_mem_usage": (None, False, True),
    "max_memory": (None,),
    "offload_folder": (None,),
    "offload_state_dict": (None, False),
    "output_loading_info": (False,),
    "proxies": (None,),
    "quantization_config": (None,),
    "return_unused_kwargs": (False,),
    "use_flashpack": (False,),
    "use_safetensors": (None, True),
}
"""Keywords of diffusers' `from_pretrained`, and their values without an effect in hfgen."""


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
        token: str | bool | None = None,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        device_map: dict[str, Any] | None = None,
        **stock: Any,
    ) -> Self:
        """Return the network, in evaluation mode, or the scheduler saved in `model`. No code and no pickle is read.

        `model`: its folder, a pipeline or run folder that holds it, or a Hub id of any of these. `subfolder`: name of
        the component; needed only if several are of this class. `variant`: weight files such as "fp16". `dtype`
        (`torch_dtype` in diffusers) and `device` (`device_map={"": device}` in diffusers) of a network. Default:
        float32 on the CPU. Raises ConfigError, CheckpointError (keys that are missing, extra or misshaped) or
        UnsafeContentError (only pickled weights).
        """
        # keywords of hfgen and of diffusers
        _check_keywords(cls, stock)
        if dtype is not None and torch_dtype not in (None, dtype):
            raise ConfigError(f"dtype is {dtype} and torch_dtype {torch_dtype}; give one of them")
        if device_map is not None:
            device = _whole_device(device_map, device)
        # the folder
        pair = saved_name(cls.__name__)
        options = HubOptions(revision, subfolder, cache_dir, local_files_only, token, variant)
        home = resolve_alone(model, cls.config_name, pair, options)
        # the component
        names = dict.fromkeys([pair[1], *getattr(cls, "_compatibles", [])])
        component = load_alone(home, cls, names, dtype=dtype or torch_dtype, variant=variant)
        if device is not None and isinstance(component, torch.nn.Module):
            component.to(device)
        return component

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        variant: str | None = None,
        safe_serialization: bool = True,
        max_shard_size: int | str = "10GB",
    ) -> None:
        """Write settings as JSON and weights as safetensors to a folder.

        diffusers loads the folder of a class that it has too, such as its `UNet2DModel` for a `UNet`.
        Raises ConfigError for `safe_serialization=False`, which would write a pickle.
        """
        # check the target
        if not safe_serialization:
            raise ConfigError("safe_serialization=False would write pickles; hfgen saves safetensors only")
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file; save into a folder")
        # settings of a scheduler
        stock: Any = super()
        if not isinstance(self, torch.nn.Module):
            stock.save_pretrained(folder)
            return
        # settings and weights of a network
        weight_index(folder, DIFFUSERS_WEIGHTS, variant).unlink(missing_ok=True)
        stock.save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
        mode = (folder / self.config_name).stat().st_mode                          # safetensors ignores the umask
        for file in weight_files(folder, DIFFUSERS_WEIGHTS, variant):
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
        private: bool = True,
        commit_message: str | None = None,
        variant: str | None = None,
        source: str | None = None,
    ) -> Published:
        """Return the published commit of the component: `oid`, `repo_id` and `commit_url`.

        The repository is created if it does not exist, private by default. One commit holds the component and its
        card; an unchanged component makes no commit. The published files are downloaded and compared bit for bit. The
        card names `source`, from which pip installs hfgen. Default: HFGEN_SOURCE (no install line if it is not set).
        Raises ConfigError if the user may not write there, or if the repository holds a pipeline.
        """
        from hfgen.cards.write import write_component_card

        check_repo_id(repo_id)
        cls, source = type(self), checked_source(source)
        with TemporaryDirectory(prefix=TEMPORARY) as temporary:
            staged = Path(temporary, "model")
            self.save_pretrained(staged, variant=variant)
            return publish_folder(
                Path(temporary),
                repo_id,
                public=not private,
                message=commit_message or f"{cls.__name__} of hfgen {hfgen.__version__}",
                describe=lambda folder: write_component_card(folder, cls, repo_id, source),
                stale=lambda repository: _replaced(repository, files_of(staged)),
                load=lambda folder, variant: cls.from_pretrained(folder, variant=variant),
            )

    def to_json_string(self) -> str:
        """Return the settings as JSON without local paths; `_class_name` is the name in diffusers, if there is one."""
        stock: Any = super()
        # diffusers adds keys to the object's own settings, where saving should change nothing
        itself: Any = self
        settings = FrozenDict(itself._internal_dict)
        config = json.loads(stock.to_json_string())
        itself._internal_dict = settings
        config["_class_name"] = saved_name(type(self).__name__)[1]
        config.pop("_name_or_path", None)
        return json.dumps(config, indent=2, sort_keys=True) + "\n"


class ModelMixin(Component, diffusers.ModelMixin, ConfigMixin):
    """diffusers' `ModelMixin` with the loading, saving and publishing of `Component`: the base of every network."""


class SchedulerMixin(Component, diffusers.SchedulerMixin, ConfigMixin):
    """diffusers' `SchedulerMixin` with the loading, saving and publishing of `Component`: the base of schedulers."""


def _whole_device(device_map: Any, device: Any) -> Any:
    """Return the one device of stock's `device_map`; ConfigError for a map to several devices."""
    if not isinstance(device_map, dict) or set(device_map) != {""} or device not in (None, device_map[""]):
        raise ConfigError(f"device_map must be {{'': device}}, the same as device, got {device_map!r} and {device!r}")
    return device_map[""]


def _check_keywords(cls: type, given: dict[str, Any]) -> None:
    """Raise ConfigTypeError for a keyword that diffusers does not have, ConfigError for an unsupported one."""
    known = [*list(inspect.signature(Component.from_pretrained).parameters)[:-1], *STOCK_KEYWORDS]
    for key, value in given.items():
        # unknown keywords
        where = f"{cls.__name__}.from_pretrained"
        if key not in STOCK_KEYWORDS:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigTypeError(f"{where} has no argument {key!r}{hint}")
        # unsupported values
        if not any(value is allowed for allowed in STOCK_KEYWORDS[key]):
            words = " or ".join(map(repr, STOCK_KEYWORDS[key]))
            raise ConfigError(f"{where}: {key} must be {words}, got {value!r}, which hfgen does not support")


def _replaced(repository: Repository, new: Iterable[str]) -> list[str]:
    """Return the files of a component in a repository that are not `new`; ConfigError if it holds a pipeline."""
    if INDEX in repository.files:
        raise ConfigError(f"{repository.name}: holds a pipeline; publish the pipeline, or choose another name")
    return sorted({file for file in repository.files if COMPONENT_FILE.fullmatch(file)} - {*new, CARD})
