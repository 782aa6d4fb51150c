"""Base class of all pipelines: loading, saving and publishing; checks of common arguments."""

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers import __version__ as diffusers_version
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput, logger
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.hub.source import checked_source, shim
from hfgen.loading import components, transformers_models
from hfgen.loading.keywords import (
    Dtype,
    check_keywords,
    check_push,
    check_safe,
    dtype_of,
    keywords_of,
    merge_dtypes,
    one_device,
    unknown_keyword,
)
from hfgen.loading.mixins import Component
from hfgen.loading.resolve import HubOptions, resolve, variants_of
from hfgen.pipelines.outputs import ImageOutput
from hfgen.registry import (
    MODULES,
    PIPELINE_SHIM,
    SHIM,
    STOCK_ENTRIES,
    STOCK_SCHEDULERS,
    TRANSFORMERS_MODELS,
    TRANSFORMERS_TOKENIZERS,
    class_for,
    saved_name,
)

if TYPE_CHECKING:
    from hfgen.hub.upload import Published

Generators = torch.Generator | list[torch.Generator] | None
ClassLabels = int | list[int] | torch.Tensor | None

REPLACED = (
    ("diffusers", "AutoencoderKL"), ("diffusers", "UNet2DConditionModel"), ("diffusers", "VQModel"),
    ("transformers", "ImageGPTForCausalImageModeling"),
)
"""Networks of other libraries that hfgen replaces by its own with the same tensors."""


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
        """Register the components; a KL-autoencoder of diffusers is replaced by hfgen's with the same weights.

        Raises ConfigError for a scheduler of diffusers that does not fit.
        """
        super().register_modules(**{name: _fitting(part) for name, part in parts.items()})

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a new component is replaced and checked as in `register_modules`."""
        super().__setattr__(name, _fitting(value))

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
        force_download: bool = False,
        token: str | bool | None = None,
        dtype: Dtype = None,
        torch_dtype: Dtype = None,
        device: str | torch.device | None = None,
        device_map: str | torch.device | dict[str, Any] | None = None,
        **others: Any,
    ) -> Self:
        """Return the pipeline saved in `model`: a pipeline folder, a run folder or a Hub id. None of its code is run.

        Place. `revision`: branch, tag or commit. `subfolder`: folder of the pipeline there. `variant`: weight files
        such as "fp16"; a component without them has its plain ones. `cache_dir`: folder of downloaded files.
        `local_files_only`: no request is sent. `force_download`: files in the cache are downloaded again. `token`:
        access token.

        Networks. `dtype` (`torch_dtype` in diffusers): one for all, or a dict by component with the key "default".
        Default: float32. `device` (`device_map` in diffusers, where "balanced" is the accelerator). Default: the CPU.

        Other keywords replace components and settings that are then not loaded, such as `scheduler=` and `unet=`.
        Keywords of diffusers that have no effect in hfgen are accepted (`use_safetensors=True`, `low_cpu_mem_usage`).
        Raises ConfigTypeError for other keywords, ConfigError for a folder or settings that are not a pipeline's and
        for a missing variant, CheckpointError for weights that do not fit, and UnsafeContentError for pickles and code.
        """
        # keywords
        where, (parts, options) = f"{cls.__name__}.from_pretrained", cls._get_signature_keys(cls)
        given = {name: others.pop(name) for name in (*parts, *options) if name in others}
        check_keywords(where, others, [*keywords_of(cls.from_pretrained), *parts, *options])
        cls._check_classes(given)
        place, numbers = one_device(device, device_map), merge_dtypes(dtype, torch_dtype, parts)
        # folder and class
        hub = HubOptions(revision, subfolder, cache_dir, local_files_only, token, variant, force_download)
        folder = resolve(model, hub)
        name, entries = components.read_index(folder)
        if name not in {base.__name__ for base in cls.__mro__}:
            raise ConfigError(f"{folder} holds a {name}: load it with hfgen.{name} or hfgen.AutoPipeline, "
                              f"not {cls.__name__}")
        # components and settings
        path = folder / components.INDEX
        kept = {part: entry for part, entry in entries.items() if part not in given}
        saved, settings = components.split_index(path, cls, kept)
        classes = cls._component_classes(path, saved, given)
        variants, built = _variants(folder, classes, variant), {}
        for part, class_ in classes.items():
            numbers_of_part = dtype_of(part, numbers)
            built[part] = components.load_component(
                folder, part, class_, saved[part][1], dtype=numbers_of_part, variant=variants[part]
            )
            logger.info(f"Loaded {part} as {class_.__name__} from `{part}` subfolder of {model}.")
        # pipeline
        pipeline = cls(**built, **settings, **given)
        if place is not None:
            pipeline.to(place)
        return pipeline

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **changes: Any) -> Self:
        """Return a pipeline of this class that shares the components of another one, of hfgen or of diffusers.

        `changes`: components and settings in the place of those of `pipeline`, and `dtype` (`torch_dtype`), to which
        the shared networks are converted too. Default: each network keeps its own. Settings that this class does not
        have are kept for a later `from_pipe`. Raises ConfigError for components that are missing or of another class.
        """
        # keywords
        parts, options = cls._get_signature_keys(cls)
        numbers = merge_dtypes(changes.pop("dtype", None), changes.pop("torch_dtype", None))
        for key in changes:
            if key not in (*parts, *options):
                raise unknown_keyword(f"{cls.__name__}.from_pipe", key, [*parts, *options, "dtype", "torch_dtype"])
        # components
        given = {name: part for name, part in pipeline.components.items() if name in parts} | changes
        given = {name: own_network(part) for name, part in given.items()}
        cls._check_classes(given)
        if missing := sorted(set(parts) - set(cls._optional_components) - given.keys()):
            raise ConfigError(f"{cls.__name__} also needs {', '.join(missing)}, which {type(pipeline).__name__} does "
                              f"not have: {cls.__name__}.from_pipe(pipeline, {missing[0]}=...)")  # fmt: skip
        # settings
        config = {key.removeprefix("_"): value for key, value in pipeline.config.items()}
        known = {key: value for key, value in config.items() if key in options}
        new = cls(**known | given)
        unknown = config.keys() - known.keys() - pipeline.components.keys() - {"class_name", "diffusers_version"}
        new.register_to_config(**{f"_{key}": config[key] for key in unknown})
        if numbers is not None:
            new.to(dtype=numbers)
        return new

    @classmethod
    def _check_classes(cls, given: dict[str, Any]) -> None:
        """Raise ConfigError unless the components in `given` are of the classes that `__init__` names."""
        types, parts = cls._get_signature_types(), cls._get_signature_keys(cls)[0]
        for name, part in given.items():
            part = _fitting(getattr(part, "_orig_mod", part))                           # without torch.compile
            if name not in parts or (part is None and name in cls._optional_components):
                continue
            scheduler = any(issubclass(one, SchedulerMixin) for one in types[name])
            if not isinstance(part, SchedulerMixin if scheduler else types[name]):
                raise ConfigError(f"{cls.__name__}: {name!r} must be {_names(types[name])}, got {type(part).__name__}")

    @classmethod
    def _component_classes(
        cls, path: Path, saved: dict[str, tuple[str, str]], given: Collection[str] = ()
    ) -> dict[str, type]:
        """Return the class of each component, from the table, checked against the annotations of `__init__`.

        `given`: the components that are not loaded.
        """
        types, (names, _) = cls._get_signature_types(), cls._get_signature_keys(cls)
        annotated = {part: types[part] for part in names if part not in given}
        # names of the components
        classes = {part: components.component_class(path, part, *pair) for part, pair in saved.items()}
        if not annotated.keys() - set(cls._optional_components) <= classes.keys() <= annotated.keys():
            raise ConfigError(f"{path}: {cls.__name__} has the components {', '.join(sorted(annotated))}; "
                              f"got {', '.join(sorted(classes)) or 'none'}")
        # their classes; any scheduler may replace another
        for part, class_ in classes.items():
            scheduler = any(issubclass(one, SchedulerMixin) for one in annotated[part])
            if not issubclass(class_, SchedulerMixin if scheduler else annotated[part]):
                raise ConfigError(f"{path}: {part!r} must be {_names(annotated[part])}, got {saved[part][1]}")
        return classes

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        *,
        variant: str | None = None,
        safe_serialization: bool = True,
        max_shard_size: int | str | None = None,
        source: str | None = None,
        push_to_hub: bool = False,
        **push: Any,
    ) -> None:
        """Write the pipeline to a folder of safetensors and JSON, which diffusers loads too.

        If diffusers needs hfgen to load it, the folder names `source`, from which pip installs hfgen. Default:
        HFGEN_SOURCE. The folder is written under a hidden name beside `save_directory` and renamed when it is complete.
        An older pipeline in its place is replaced; other files there (a README) are kept. `max_shard_size`: maximal
        size of one weight file of a network, such as "5GB". `push_to_hub`: whether the pipeline, and no other file, is
        also published, with `repo_id` and the other arguments of `push_to_hub`; default of `repo_id`: the name of the
        folder. Raises ConfigError for any other folder that is not empty.
        """
        # check the arguments
        check_safe(safe_serialization)
        check_push(f"{type(self).__name__}.save_pretrained", self, push_to_hub, push)
        target = Path(save_directory).resolve()
        if target.exists() and not _replaceable(target):
            raise ConfigError(f"{target} is not empty and not a pipeline folder; save into a new folder")
        # write a hidden folder, then rename it
        temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            self._write(temporary, variant, max_shard_size, checked_source(source))
            _put_in_place(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        # publish
        if push_to_hub:
            self.push_to_hub(push.pop("repo_id", target.name), variant=variant, source=source, **push)

    def _write(self, folder: Path, variant: str | None, max_shard_size: int | str | None, source: str | None) -> None:
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
                index[part] = _save_component(folder / part, component, variant, max_shard_size, source)
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
        token: str | None = None,
        private: bool | None = True,
        commit_message: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        variant: str | None = None,
        source: str | None = None,
    ) -> "Published":
        """Return the published commit of the pipeline: `oid`, `repo_id`, `commit_url` and `pr_url`.

        The repository is created if it does not exist, private unless `private=False`; without an owner `repo_id` is a
        name in the user's own namespace. One commit holds the pipeline and its card, and an unchanged pipeline makes no
        commit. The published files are downloaded and compared bit for bit. `token`: access token. Default: that of `hf
        auth login` or HF_TOKEN. `revision`: branch, created if it does not exist. Default: the main branch.
        `create_pr`: the commit is a pull request. Card and shims name `source`, from which pip installs hfgen. Default:
        HFGEN_SOURCE (no install line if it is not set). Raises ConfigError if the user may not write there,
        ResourceError if the Hub cannot be reached.
        """
        from hfgen.hub.publish import push_pipeline
        from hfgen.hub.upload import Destination

        place = Destination.of(repo_id, token, private, revision, create_pr)
        return push_pipeline(self, place, message=commit_message, variant=variant, source=source)

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


def _variants(folder: Path, parts: Iterable[str], variant: str | None) -> dict[str, str | None]:
    """Return the variant of the weights of each component: `variant` if it has such files, else None, the plain ones.

    Raises ConfigError if no component has the variant.
    """
    variants: dict[str, str | None] = dict.fromkeys(parts)
    for part in variants:
        if variant in variants_of(file.name for file in components.component_folder(folder, part).iterdir()):
            variants[part] = variant
    if variant is not None and variants and not any(variants.values()):
        raise ConfigError(f"You are trying to load the model files of the `variant={variant}`, but no such modeling "
                          f"files are available: {folder} holds other weights. Leave variant out")
    return variants


def _names(classes: Iterable[type]) -> str:
    return ", ".join(one.__name__ for one in classes)


def _fitting(part: Any) -> Any:
    """Return a component in hfgen's class; ConfigError for a scheduler of diffusers that is not in the table."""
    name = type(part).__name__
    stock = isinstance(part, SchedulerMixin) and type(part).__module__.startswith("diffusers.")
    if stock and name not in ("DDPMScheduler", *STOCK_SCHEDULERS):
        raise ConfigError(f"{name} does not fit hfgen's networks; these schedulers of diffusers do: DDPMScheduler, "
                          f"{', '.join(STOCK_SCHEDULERS)}")  # fmt: skip
    return own_network(part)


def own_network(part: Any) -> Any:
    """Return hfgen's network for one in `REPLACED` of diffusers or transformers, with the same tensors.

    Other components are returned unchanged. Raises ConfigError for settings that hfgen does not reproduce.
    """
    library, name = type(part).__module__.partition(".")[0], type(part).__name__
    if (library, name) not in REPLACED:
        return part
    ours = str(class_for(library, name))
    cls: Any = getattr(import_module(MODULES[ours]), ours)
    config = part.config if library == "diffusers" else json.loads(part.config.to_json_string(use_diff=False))
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    with torch.device("meta"):
        net = cls(**cls.own_settings(settings))
    net.load_state_dict(cls.own_tensors(part.state_dict()), assign=True)
    return net.train(part.training)


def _save_component(
    folder: Path, component: Any, variant: str | None, max_shard_size: int | str | None, source: str | None
) -> list[str]:
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
    options: dict[str, Any] = {}
    if isinstance(component, torch.nn.Module):
        options["variant"] = variant
        if max_shard_size is not None:
            options["max_shard_size"] = max_shard_size
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
