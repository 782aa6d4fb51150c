"""Package of a pipeline for the Hub: a new folder with the files that are published.

They are `model_index.json`, the files that the class of each component reads, the two shims, written again, and one
picture. No other file is read, and none is written into the pipeline folder.
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from diffusers.schedulers.scheduling_utils import SchedulerMixin

from hfgen import runs
from hfgen.cards.families import read_model
from hfgen.cards.metadata import CARD
from hfgen.cards.write import PICTURE
from hfgen.errors import ConfigError
from hfgen.hub.source import shim
from hfgen.loading import components
from hfgen.loading.files import read_json, weight_files, weight_index, weight_stem
from hfgen.loading.resolve import COMPONENT_FILE, SAFE_PATH, TOKENIZER_FILES, variants_of
from hfgen.loading.transformers_models import CONFIG
from hfgen.registry import PIPELINE_SHIM, SHIM, TRANSFORMERS_TOKENIZERS


def package(folder: Path, staged: Path, run: Path | None = None, source: str | None = None) -> None:
    """Fill the new folder `staged` with the published files of the pipeline in `folder` and the picture of its `run`.

    The pipeline is loaded first, in every variant, so that nothing incomplete is published; errors as in loading. The
    shims name `source`, from which pip installs hfgen.
    """
    # components
    index = folder / components.INDEX
    name, entries = components.read_index(folder)
    cls = components.pipeline_class(folder)
    saved_parts, _ = components.split_index(index, cls, entries)
    for part in saved_parts:
        if not SAFE_PATH.fullmatch(part) or not (folder / part).is_dir():
            raise ConfigError(f"{folder / part}: no such folder, the files of this component are elsewhere; load the "
                              "pipeline, save_pretrained it into a new folder, and publish that")
    # loading, in every variant
    for variant in variants_of(file.name for part in saved_parts for file in (folder / part).iterdir()):
        cls.from_pretrained(folder, variant=variant)
    # index and shim
    staged.mkdir()
    link(index, staged / components.INDEX)
    write_marker(staged, runs.class_names(run) if run and read_model(folder).labelled else [])
    if isinstance(read_json(index)["_class_name"], list):
        (staged / f"{PIPELINE_SHIM}.py").write_text(shim(name, source), encoding="utf-8")
    # files of the components
    for part, (library, saved) in saved_parts.items():
        part_class = components.component_class(index, part, library, saved)
        _package_component(folder / part, staged / part, part_class)
        if library == SHIM:
            (staged / part / f"{SHIM}.py").write_text(shim(saved, source), encoding="utf-8")
    # card and picture
    grid = None if run is None else runs.newest_grid(run)
    for file, path in ((CARD, folder / CARD), (PICTURE, grid or folder / PICTURE)):
        if path.is_file():
            shutil.copyfile(path, staged / file)


def write_marker(staged: Path, class_names: Sequence[str] = ()) -> None:
    """Write `config.json` beside the index of a pipeline that diffusers does not have, with the names of its classes.

    The Hub counts a download where a client fetches `config.json`, or the index for models of diffusers.
    """
    index = read_json(staged / components.INDEX)
    if isinstance(index["_class_name"], list):
        marker: dict[str, Any] = {"library_name": "hfgen", "pipeline": index["_class_name"][1]}
        if class_names:
            marker["id2label"] = {str(i): name for i, name in enumerate(class_names)}
        (staged / CONFIG).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def _package_component(home: Path, staged: Path, cls: Any) -> None:
    """Fill the new folder `staged` with the files in `home` that a component of class `cls` reads."""
    staged.mkdir()
    for file in component_files(home, cls):
        link(home / file, staged / file)


def component_files(home: Path, cls: Any) -> list[str]:
    """Return the names of the files in `home` that a component of class `cls` reads, in all variants of its weights."""
    if cls.__name__ in TRANSFORMERS_TOKENIZERS:
        return [name for name in TOKENIZER_FILES if (home / name).is_file()]
    if issubclass(cls, SchedulerMixin):
        return [cls.config_name]
    # a network: settings, weights, and the lists of their shards
    stem = weight_stem(read_json(home / CONFIG))
    names = {CONFIG}
    for variant in variants_of(file.name for file in home.iterdir()):
        names |= {file.name for file in weight_files(home, stem, variant)}
        index = weight_index(home, stem, variant)
        if index.is_file():
            names.add(index.name)
    return sorted(names)


def is_published(file: str, parts: Iterable[str]) -> bool:
    """Return whether `package` writes `file` for a pipeline with the components `parts`; False for the card."""
    part, _, name = file.partition("/")
    return file in (f"{PIPELINE_SHIM}.py", CONFIG) or (part in parts and COMPONENT_FILE.fullmatch(name) is not None)


def link(source: Path, target: Path) -> None:
    """Link `target` to the file `source`, or copy the file if the system does not allow links."""
    try:
        target.symlink_to(source.resolve())
    except OSError:                                                                     # Windows: needs a privilege
        shutil.copyfile(source, target)
