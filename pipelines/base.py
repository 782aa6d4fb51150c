"""Base class of all pipelines: loading, saving and publishing; checks of common arguments."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers import __version__ as diffusers_version
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.hub.source import checked_source, shim
from hfgen.loading import components, transformers_models
from hfgen.loading.mixins import Component
from hfgen.loading.resolve import HubOptions, resolve
from hfgen.pipelines.outputs import ImageOutput
from hfgen.registry import (
    MODULES,
    PIPELINE_SHIM,
    SHIM,
    STOCK_ENTRIES,
    STOCK_SCHEDULERS,
    TRANSFORMERS_MODELS,
    TRANSFORMERS_TOKENIZERS,
    saved_name,
)

if TYPE_CHECKING:
    from hfgen.hub.upload import Published

Generators = torch.Generator | list[torch.Generator] | None
ClassLabels = int | list[int] | torch.Tensor | None


class Pipeline(DiffusionPipeline):
    """Base of hfgen's pipelines: a `DiffusionPipeline` that loads without running code and saves stock folders.

    A subclass has `__init__` annotated with the classes of its components, `__call__`, and `model_cpu_offload_seq`.
    Arguments of `__init__` with a default are settings, plain JSON, which `register_to_config` saves in
    `model_index.json`.
    """

    model_cpu_offload_seq: str | None = None  # type: ignore[assignment]
    run_folder: Path | None = None
    """Folder of the run that `hfgen.train` trained the pipeline in; None for a pipeline from elsewhere."""
    __call__: Callable[..., Any]

    def stock_twin(self) -> str | None:
        """Return the name of the diffusers pipeline that loads this one without hfgen; None if there is none."""
        return None

    def register_modules(self, **parts: Any) -> None:
        """Register the components; a KL-autoencoder of diffusers is replaced by hfgen's with the same weights."""
        super().register_modules(**{name: _own(part) for name, part in parts.items()})

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        variant: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> Self:
        """Return the pipeline saved in `model`: a pipeline folder, a run folder or a Hub id. None of its code is run.

        `revision`: branch, tag or commit. `subfolder`: folder of the pipeline there. `variant`: weight files such as
        "fp16". `cache_dir`: folder of downloaded files. `local_files_only`: no request is sent. `token`: access token.
        `dtype` of the networks and their `device`. Default: float32 on the CPU. Raises ConfigError for a folder or
        settings that are not a pipeline's, CheckpointError for weights that do not fit, and UnsafeContentError for
        pickles and code.
        """
        # folder and class
        folder = resolve(model, HubOptions(revision, subfolder, cache_dir, local_files_only, token, variant))
        name, entries = components.read_index(folder)
        if name not in {base.__name__ for base in cls.__mro__}:
            raise ConfigError(f"{folder} holds a {name}: load it with hfgen.{name} or hfgen.AutoPipeline, "
                              f"not {cls.__name__}")
        # components and settings
        saved, settings = components.split_index(folder / components.INDEX, cls, entries)
        classes = cls._component_classes(folder / components.INDEX, saved)
        built = {
            part: components.load_component(folder, part, class_, saved[part][1], dtype=dtype, variant=variant)
            for part, class_ in classes.items()
        }
        pipeline = cls(**built, **settings)
        if device is not None:
            pipeline.to(device)
        return pipeline

    @classmethod
    def _component_classes(cls, path: Path, saved: dict[str, tuple[str, str]]) -> dict[str, type]:
        """Return the class of each component, from the table, checked against the annotations of `__init__`."""
        types, (names, _) = cls._get_signature_types(), cls._get_signature_keys(cls)
        annotated, optional = {part: types[part] for part in names}, set(cls._optional_components)
        # names of the components
        classes = {part: components.component_class(path, part, *pair) for part, pair in saved.items()}
        if not annotated.keys() - optional <= classes.keys() <= annotated.keys():
            raise ConfigError(f"{path}: {cls.__name__} has the components {', '.join(sorted(annotated))}; "
                              f"got {', '.join(sorted(classes)) or 'none'}")
        # their classes; any scheduler may replace another
        for part, class_ in classes.items():
            scheduler = any(issubclass(one, SchedulerMixin) for one in annotated[part])
            if not issubclass(class_, SchedulerMixin if scheduler else annotated[part]):
                expected = ", ".join(one.__name__ for one in annotated[part])
                raise ConfigError(f"{path}: {part!r} must be {expected}, got {saved[part][1]}")
        return classes

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        *,
        variant: str | None = None,
        safe_serialization: bool = True,
        source: str | None = None,
    ) -> None:
        """Write the pipeline to a folder of safetensors and JSON, which diffusers loads too.

        If diffusers needs hfgen to load it, the folder names `source`, from which pip installs hfgen. Default:
        HFGEN_SOURCE. The folder is written under a hidden name beside `save_directory` and renamed when it is complete.
        An older pipeline in its place is replaced; other files there (a README) are kept. Raises ConfigError for any
        other folder that is not empty.
        """
        # check the target
        if not safe_serialization:
            raise ConfigError("safe_serialization=False would write pickles; hfgen saves safetensors only")
        target = Path(save_directory).resolve()
        if target.exists() and not _replaceable(target):
            raise ConfigError(f"{target} is not empty and not a pipeline folder; save into a new folder")
        # write a hidden folder, then rename it
        temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            self._write(temporary, variant, checked_source(source))
            _put_in_place(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _write(self, folder: Path, variant: str | None, source: str | None) -> None:
        """Write the files of the pipeline to an empty folder."""
        # class
        name, twin = type(self).__name__, self.stock_twin()
        index: dict[str, Any] = {"_class_name": twin or [PIPELINE_SHIM, name], "_diffusers_version": diffusers_version}
        if twin is None:
            (folder / f"{PIPELINE_SHIM}.py").write_text(shim(name, source), encoding="utf-8")
        else:
            index |= STOCK_ENTRIES.get(twin, {})
        # components and settings; a pipeline of diffusers has neither optional components nor settings of hfgen
        for part, component in self.components.items():
            if component is not None:
                index[part] = _save_component(folder / part, component, variant, source)
            elif twin is None:
                index[part] = [None, None]
        if twin is None:
            index |= {setting: self.config[setting] for setting in self._get_signature_keys(self)[1]}
        # index
        (folder / components.INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        mode = (folder / components.INDEX).stat().st_mode                                # safetensors ignores the umask
        for file in folder.rglob("*"):
            if file.is_file():
                file.chmod(mode)

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        private: bool = True,
        commit_message: str | None = None,
        variant: str | None = None,
        source: str | None = None,
    ) -> "Published":
        """Return the published commit of the pipeline: `oid`, `repo_id` and `commit_url`.

        The token is that of `hf auth login` or HF_TOKEN. The repository is created if it does not exist; one commit
        holds the pipeline and its card, and an unchanged pipeline makes no commit. The published files are downloaded
        and compared bit for bit. Card and shims name `source`, from which pip installs hfgen. Default: HFGEN_SOURCE (no
        install line if it is not set). Raises ConfigError if the user may not write there, ResourceError if the Hub
        cannot be reached.
        """
        from hfgen.hub.publish import push_pipeline

        return push_pipeline(
            self, repo_id, public=not private, message=commit_message, variant=variant, source=source
        )

    def _output(self, images: Any, return_dict: bool) -> ImagePipelineOutput | tuple[Any]:
        """Return `images` as a pipeline output or a tuple, after offloaded models have left the device."""
        self.maybe_free_model_hooks()
        return output_or_tuple(ImageOutput(images=images), return_dict)


def saved_pair(component: Any) -> tuple[str, str]:
    """Return the `(library, class name)` pair under which a component is saved, without torch.compile."""
    component = getattr(component, "_orig_mod", component)
    if isinstance(component, Component):
        return component.saved_as()
    return saved_name(type(component).__name__)


def _own(part: Any) -> Any:
    """Return hfgen's KL-autoencoder for one of diffusers, with the same tensors; other components unchanged."""
    if type(part).__name__ != "AutoencoderKL" or not type(part).__module__.startswith("diffusers."):
        return part
    cls: Any = import_module(MODULES["AutoencoderKL"]).AutoencoderKL
    with torch.device("meta"):
        net = cls(**{name: value for name, value in part.config.items() if not name.startswith("_")})
    net.load_state_dict(part.state_dict(), assign=True)
    return net.train(part.training)


def _save_component(folder: Path, component: Any, variant: str | None, source: str | None) -> list[str]:
    """Return `[library, class name]` of a component that is written to `folder`.

    Raises ConfigError for a class that hfgen cannot load.
    """
    component = getattr(component, "_orig_mod", component)                              # without torch.compile
    # name
    name = type(component).__name__
    library, saved = saved_pair(component)
    if library == SHIM and name not in MODULES:
        raise ConfigError(f"{folder.name} is a {name}, which hfgen could not load again. Networks and schedulers of "
                          f"hfgen can be saved, and {', '.join((*STOCK_SCHEDULERS, *TRANSFORMERS_MODELS))}")
    # files
    options = {"variant": variant} if isinstance(component, torch.nn.Module) else {}
    component.save_pretrained(folder, **options)
    if library == SHIM:
        (folder / f"{SHIM}.py").write_text(shim(saved, source), encoding="utf-8")
    if saved not in TRANSFORMERS_TOKENIZERS:
        _tidy_config(folder, component)
    return [library, saved]


def _tidy_config(folder: Path, component: Any) -> None:
    """Remove the local path, and keys unknown to a network of transformers, from a component's configuration.

    `from_pretrained` of diffusers writes the path there; transformers keeps every key of the file that it loaded.
    """
    # find the file
    cls: Any = type(component)
    stock = cls.__name__ in TRANSFORMERS_MODELS
    path = folder / (transformers_models.CONFIG if stock else component.config_name)
    # list the keys to remove
    config = json.loads(path.read_text(encoding="utf-8"))
    unknown = {"_name_or_path"}
    if stock:
        unknown |= config.keys() - transformers_models.known_keys(cls)
    # write the other keys
    kept = {key: value for key, value in config.items() if key not in unknown}
    if kept != config:
        path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _replaceable(folder: Path) -> bool:
    return folder.is_dir() and ((folder / components.INDEX).is_file() or not any(folder.iterdir()))


def _put_in_place(new: Path, target: Path) -> None:
    """Rename the folder `new` to `target`; files there that an older pipeline did not write are kept."""
    # rename at once if there is no older pipeline
    if not (target / components.INDEX).is_file():
        if target.is_dir():                                                             # an empty one
            target.rmdir()
        new.rename(target)
        return
    # exchange the folders
    index = json.loads((target / components.INDEX).read_text(encoding="utf-8"))
    old = new.with_name(new.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    target.rename(old)
    new.rename(target)
    # move the other files of the old folder to the new one
    for entry in old.iterdir():
        if entry.name not in {*index, components.INDEX, f"{PIPELINE_SHIM}.py"} and not (target / entry.name).exists():
            entry.rename(target / entry.name)
    shutil.rmtree(old)


def output_or_tuple(output: Any, return_dict: bool) -> Any:
    """Return a pipeline output, a dataclass, or the tuple of its fields unless `return_dict`."""
    if return_dict:
        return output
    return tuple(getattr(output, field.name) for field in fields(output))


def check_generator(generator: Generators, batch_size: int) -> None:
    """Raise unless `generator` is None, one torch.Generator, or a list of `batch_size` of them."""
    if generator is None:
        return
    listed = generator if isinstance(generator, list) else [generator]
    for one in listed:
        if not isinstance(one, torch.Generator):
            raise ConfigTypeError(f"generator must be a torch.Generator or a list of them, got {one!r}")
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ConfigError(f"generator is a list of {len(generator)}; it must have one for each of {batch_size} images")


def check_labels(
    labels: Any, num_classes: int | None, batch_size: int, name: str = "class_labels"
) -> torch.Tensor | None:
    """Return class labels as a tensor (B,) of int64; None for a network without classes.

    One int is repeated for the whole batch. Labels are in [0, num_classes); they are required exactly if the network
    has classes. `name` is the argument in error messages. Raises ConfigError for labels that are missing, out of range
    or of another number, ConfigTypeError for labels that are not ints.
    """
    # accept None exactly from a network without classes
    if num_classes is None:
        if labels is not None:
            raise ConfigError(f"{name} must be None, this network has no classes; got {labels!r}")
        return None
    if labels is None:
        raise ConfigError(f"{name} must be given, this network has classes: ints in [0, {num_classes - 1}]")
    # read ints
    try:
        given = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigTypeError(f"{name} must be an int, a list or a tensor of ints, got {labels!r}") from error
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise ConfigTypeError(f"{name} must be ints, got {given.dtype}: {labels!r}")
    # check their number and range
    if given.ndim > 1 or (given.ndim == 1 and len(given) != batch_size):
        raise ConfigError(f"{name} must be one int or {batch_size} (batch_size) of them, got {list(given.shape)}")
    if given.numel() and not 0 <= int(given.min()) <= int(given.max()) < num_classes:
        raise ConfigError(f"{name} must be in [0, {num_classes - 1}], "
                          f"got {int(given.min())} to {int(given.max())}")
    return given.long().expand(batch_size)
