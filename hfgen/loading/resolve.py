"""Resolution of a model (a pipeline folder, a run folder, a Hub id) to a local pipeline folder.

Only safetensors, JSON and tokenizer files of one commit are downloaded from the Hub: no code, no pickles.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils import httpx

from hfgen import runs
from hfgen.checks import HUB_ID, check_model, path_of, require
from hfgen.errors import ConfigError, ConfigTypeError, HfgenError, ResourceError, UnsafeContentError
from hfgen.loading.components import INDEX, component_folder, read_index
from hfgen.loading.files import PICKLES, refuse_pickles
from hfgen.registry import SHIM

CONFIG = "config.json"
CONFIGS = (CONFIG, "scheduler_config.json")
"""File names of settings: of a network, and of a network or scheduler."""

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json",
)

SAFE_PATH = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)*", re.ASCII)
PLAIN_FILE = re.compile(r"[\w-][\w.-]*\.(?:json|txt|model)", re.ASCII)
WEIGHT_FILE = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>[\w-]+?))?(?:-\d{5}-of-\d{5})?\.safetensors", re.ASCII
)
COMPONENT_FILE = re.compile(
    rf"{WEIGHT_FILE.pattern}|(?:scheduler_)?config\.json|{SHIM}\.py|[\w-]+\.safetensors\.index(?:\.[\w-]+)?\.json|"
    + "|".join(map(re.escape, TOKENIZER_FILES)), re.ASCII,
)  # fmt: skip


@dataclass(frozen=True)
class HubOptions:
    """Options of a place on the Hub or on disk, as in diffusers.

    `revision`: branch, tag or commit. Default: the main branch. `subfolder`: folder of the model in its repository or
    local folder. `cache_dir`: folder of downloaded files. `local_files_only`: no request is sent. `token`: access
    token; True for the stored one. `variant`: weight files such as "fp16". `force_download`: files in the cache are
    downloaded again.
    """

    revision: str | None = None
    subfolder: str | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    token: str | bool | None = None
    variant: str | None = None
    force_download: bool = False


DEFAULT = HubOptions()


def resolve(model: str | Path, options: HubOptions = DEFAULT) -> Path:
    """Return the local pipeline folder of `model`: a pipeline folder, a run folder or a Hub id, tried in this order.

    In a run folder it is `model/`, or the newest checkpoint's before `model/` is written. A Hub id is resolved to one
    commit of the revision, whose files are downloaded once. Raises ConfigError if there is no such model,
    UnsafeContentError if there are only pickles, ResourceError if the Hub cannot be reached.
    """
    folder = _local(model, options)
    return _pipeline_folder(folder / (options.subfolder or ""))


def resolve_alone(model: str | Path, config: str, saved: list[tuple[str, str]], options: HubOptions = DEFAULT) -> Path:
    """Return the local folder of one network or scheduler, given by `model` and the subfolder in `options`.

    It is a folder with the file `config` and without a pipeline's index; the part `subfolder` of a run; or the only
    part of a pipeline or run that is saved as one of `saved`, pairs (library, class name). Raises as `resolve`, and
    ConfigError if there is none, or more than one.
    """
    subfolder = options.subfolder or ""
    home = _local(model, options, alone=True)
    # a folder of the component alone
    for candidate in (home / subfolder, home / runs.MODEL / subfolder):
        if _is_alone(candidate, config):
            return candidate
    # a part of a run
    if subfolder and not (home / subfolder).is_dir():
        return _pipeline_folder(home) / subfolder
    # the only part of a pipeline with the class
    pipeline = _pipeline_folder(home / subfolder)
    parts = [part for part, value in read_index(pipeline)[1].items() if value in map(list, saved)]
    if len(parts) != 1:
        raise ConfigError(f"{home / subfolder}: name with subfolder= the part to load; saved there as {saved[-1][1]}: "
                          f"{', '.join(parts) or 'none'}")  # fmt: skip
    return component_folder(pipeline, parts[0])


def resolve_component(model: str | Path, part: str) -> Path:
    """Return the local folder of a component: `part` of a pipeline or a run, or `model` if it is a single component.

    A folder or Hub repository with a config.json and without a pipeline's index is a single component. Raises as
    `resolve`, and ConfigError for a pipeline without that part.
    """
    # a single component
    folder = Path(model).expanduser()
    if not folder.exists() and HUB_ID.fullmatch(str(model)):
        folder = download(str(model), alone=True)
    if _is_alone(folder, CONFIG):
        return folder
    # a part of a pipeline
    home = resolve(folder)
    if not (home / part).is_dir():
        raise ConfigError(f"{model}: holds no {part}; it holds {', '.join(sorted(one.name for one in home.iterdir()))}")
    return home / part


def _is_alone(folder: Path, config: str) -> bool:
    """Return whether a folder holds a single component, with its settings in the file `config`."""
    return (folder / config).is_file() and not (folder / INDEX).is_file()


def _local(model: str | Path, options: HubOptions, alone: bool = False) -> Path:
    """Return the folder `model`, or the folder of the files downloaded from the Hub; errors as in `resolve`."""
    # a folder
    require(isinstance(model, str | Path), "model", model, "a folder, a run or a Hub id", ConfigTypeError)
    path = path_of(model)
    _check_inside("subfolder", options.subfolder or "")
    if path is None:
        raise ConfigError(f"{str(model)!r:.80} cannot be a folder, nor a Hub id")
    if path.is_dir():
        return path
    if path.exists():
        kind = UnsafeContentError if path.name.endswith(PICKLES) else ConfigError
        raise kind(f"{path} is a file; a model is a folder with {INDEX}, safetensors and JSON files")
    # a Hub id
    name = str(model)
    check_model(name)
    return download(name, options, alone)


def _check_inside(argument: str, path: str) -> None:
    """Raise UnsafeContentError for a path that leads out of the folder that it is relative to."""
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\\" in path:
        raise UnsafeContentError(f"{argument} {path!r} points outside of the model's folder")


def _pipeline_folder(folder: Path) -> Path:
    """Return `folder` if it is a pipeline folder, else the pipeline folder of the run in it."""
    # a pipeline folder, or the pipeline of a finished run
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    for candidate in (folder, folder / runs.MODEL):
        if (candidate / INDEX).is_file():
            return candidate
    # the newest checkpoint of a run
    if (folder / runs.CHECKPOINTS).is_dir():
        if checkpoint := runs.newest_checkpoint(folder):
            return checkpoint / runs.MODEL
        raise ConfigError(f"{folder}: this run has not saved anything yet; let it reach its first checkpoint")
    refuse_pickles(folder)
    raise ConfigError(f"{folder}: neither a pipeline folder (no {INDEX}) nor a run folder (no model/, no checkpoints/)")


def download(name: str, options: HubOptions = DEFAULT, alone: bool = False) -> Path:
    """Return the folder of one commit of the Hub's model `name` with the files that hfgen reads; errors as `resolve`.

    A local folder called `name` is ignored. `alone`: the model may also be a single component.
    """
    api, cache = HfApi(token=options.token), options.cache_dir
    with _explained(name, options.revision):
        # one commit
        branch = api.resolve_revision(
            name, revision=options.revision, cache_dir=cache, local_files_only=options.local_files_only
        )
        commit = branch.resolved                                    # `branch` itself is a str too: its name
        # the names of its files
        try:
            names = [file.path for file in get_cached_repo_tree(name, revision=commit, cache_dir=cache)]
        except CachedRepoTreeNotFoundError:
            names = api.list_repo_files(name, revision=commit)
        # the files that hfgen reads
        return Path(snapshot_download(
            name, revision=commit, cache_dir=cache, token=options.token,
            allow_patterns=readable_files(name, names, options.subfolder, options.variant, alone),
            local_files_only=options.local_files_only, force_download=options.force_download,
        ))


def readable_files(
    name: str, names: list[str], subfolder: str | None = None, variant: str | None = None, alone: bool = False
) -> list[str]:
    """Return the files among a repository's `names` that hfgen reads: those of the pipeline folder and its components.

    `alone`: the repository may also hold a single component, with settings and no index, at its root or in a run.
    """
    files = _near(name, names, subfolder, alone)
    # weights: in each folder those of the variant, or the plain ones
    variants, special, chosen = dict[PurePosixPath, str | None](), set[PurePosixPath](), list[PurePosixPath]()
    for file in files:
        if match := WEIGHT_FILE.fullmatch(file.name):
            variants[file] = match["variant"]
            if variant and match["variant"] == variant:
                special.add(file.parent)
    for file, one in variants.items():
        if one == (variant if file.parent in special else None):
            chosen.append(file)
    # settings and tokenizers
    chosen += [file for file in files if PLAIN_FILE.fullmatch(file.name)]
    # only names that are safe as paths
    return sorted(filter(SAFE_PATH.fullmatch, map(str, chosen)))


def _near(name: str, names: list[str], subfolder: str | None, alone: bool) -> list[PurePosixPath]:
    """Return the files in the pipeline folder of a repository and in the folders of its components.

    Raises UnsafeContentError if all their weights are pickled, ConfigError if there is no pipeline folder.
    """
    root = PurePosixPath(subfolder or "")
    # the pipeline folder: that of the first index or settings
    places = [root / INDEX, root / runs.MODEL / INDEX]
    if alone:
        places += [folder / config for folder in (root, runs.MODEL / root) for config in CONFIGS]
    first = next((place for place in places if str(place) in names), None)
    files = list(map(PurePosixPath, names))
    if first is not None:
        depth = 2 if first.name == INDEX else 1                     # a component has no folders of its own
        files = [file for file in files if first.parent in file.parents[:depth]]
    # pickles are refused
    pickles = [str(file) for file in files if file.name.endswith(PICKLES)]
    if pickles and not any(file.name.endswith(".safetensors") for file in files):
        raise UnsafeContentError(f"{name}: holds only pickled weights ({', '.join(pickles[:5])}), which can run code "
                                 "when opened; ask its owner for safetensors")
    if first is None:
        raise ConfigError(f"{name}: no {INDEX} in {subfolder or 'its root'}; not a pipeline")
    return files


def variants_of(files: Iterable[str]) -> list[str | None]:
    """Return the weight variants among `files`, names or paths, sorted; None is the plain variant."""
    variants = set[str | None]()
    for file in files:
        if match := WEIGHT_FILE.fullmatch(PurePosixPath(file).name):
            variants.add(match["variant"])
    return sorted(variants, key=lambda variant: variant or "") or [None]


@contextmanager
def _explained(name: str, revision: str | None) -> Iterator[None]:
    """Context that turns errors of the Hub's client into an HfgenError with the next step."""
    try:
        yield
    except HfgenError:
        raise
    except GatedRepoError as error:
        raise ConfigError(f"{name}: access must be granted first; request it on the model's page, then log in with "
                          "`hf auth login` or pass token=") from error
    except RevisionNotFoundError as error:
        raise ConfigError(f"{name}: no revision {revision!r}; give a branch, a tag or a commit of it") from error
    except RepositoryNotFoundError as error:
        raise ConfigError(f"{name}: no such folder, and no such model on the Hub that you may read. Check the "
                          "spelling; for a private model log in with `hf auth login` or pass token=") from error
    except LocalTokenNotFoundError as error:
        raise ConfigError(f"{name}: token=True, and nobody is logged in: use `hf auth login` or HF_TOKEN") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, RevisionResolutionError) as error:
        if isinstance(error.__cause__, HfHubHTTPError):
            raise _answered(name, error.__cause__) from error
        raise ResourceError(f"{name}: no such folder, not downloaded before, and the Hub is out of reach. Check the "
                            "spelling and the connection; unset HF_HUB_OFFLINE and local_files_only") from error
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise _answered(name, error) from error


def _answered(name: str, error: Exception) -> HfgenError:
    """Return the HfgenError for an error response of the Hub, or for a broken connection."""
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return ConfigError(f"{name}: the Hub does not accept the token, or not for this model. Log in again with "
                           "`hf auth login`, or pass or unset token= and HF_TOKEN")
    return ResourceError(f"{name}: no such folder, and the Hub answers with {type(error).__name__}: "
                         f"{str(error).splitlines()[0]}; try again later")
