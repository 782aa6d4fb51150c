"""A dataset of generated images: parquet files with images, labels and seeds, and a card that states their origin."""

import math
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import DatasetCard, snapshot_download
from PIL.Image import Image

import hfgen
from hfgen import images
from hfgen.cards.markdown import code, last_name, markdown, table
from hfgen.cards.metadata import CARD, is_ours, own_part, updated
from hfgen.checks import check_repo_id
from hfgen.errors import ConfigError
from hfgen.hub.folder import copy_files, written
from hfgen.hub.package import link
from hfgen.hub.upload import (
    Destination,
    Published,
    adding_to_errors,
    commit_folder,
    compare,
    explained,
    files_of,
    on_disk,
    open_repository,
    require_login,
)
from hfgen.loading.hashing import hash_of_file
from hfgen.loading.resolve import readable_files, resolve
from hfgen.pipelines.base import Pipeline, check_labels
from hfgen.sampling.generate import batches, class_names, label_of, num_classes, open_model
from hfgen.sampling.request import GRID_SUFFIXES, SampleRequest

SHARD = re.compile(r"train-\d{5}-of-\d{5}\.parquet", re.ASCII)
SHARD_BYTES = 2**28
"""Names of the parquet files in `data/`, and the bytes of pixels in one file."""


def push_samples(request: SampleRequest, repo_id: str, output: Path | None = None, public: bool = False) -> Published:
    """Return the commit of the published dataset of samples; errors as in `write_dataset` and `push_dataset`.

    `output`: the folder of the dataset. Default: a temporary folder, which is kept if the push fails.
    """
    # check the request
    check_repo_id(repo_id)
    require_login()
    if output is not None and output.suffix in (*GRID_SUFFIXES, ".npy"):
        raise ConfigError(f"-o {output}: must be a folder with --push-dataset, which then holds the dataset")
    # write the dataset
    folder = output or Path(tempfile.mkdtemp(prefix="hfgen-dataset-"))
    try:
        write_dataset(request, folder)
    except BaseException:
        if output is None:
            shutil.rmtree(folder)
        raise
    # push it
    done = push_dataset(folder, repo_id, public=public)
    if output is None:
        shutil.rmtree(folder)
    return done


def write_dataset(request: SampleRequest, folder: Path) -> None:
    """Write samples as a dataset with the columns image, label, seed and index, and its card.

    Sample i is the i-th sample of `hfgen sample`. Its class is the label of the request. Default: i mod K for a model
    with K classes; a model without classes has no such column. Raises ConfigError for a folder that is not empty, and
    for a model of points.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: must be a new or empty folder, which then holds the dataset")
    # open the model, choose labels
    source = resolve(request.model)
    place: dict[str, Any] = {"device": request.device, "dtype": request.dtype}
    pipeline = open_model(source, sampler=request.sampler, eta=request.eta, **place, **request.conditions)
    labels = labels_of(pipeline, label_of(request, pipeline), request.number)
    names = class_names(request.model, num_classes(pipeline))
    # write samples
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for k, count, first, pictures in _shards(batches(pipeline, request, labels), request):
        indices = range(first, first + len(pictures))
        rows: dict[str, list[Any]] = {"image": pictures, "seed": [request.seed] * len(pictures), "index": list(indices)}
        if labels:
            rows["label"] = labels[indices.start : indices.stop]
        _write_parquet(folder / "data" / f"train-{k:05d}-of-{count:05d}.parquet", rows, names)
    # write the card
    (folder / CARD).write_text(card(request.number, provenance(request, source, pipeline)), encoding="utf-8")


def labels_of(pipeline: Pipeline, label: int | None, number: int) -> list[int] | None:
    """Return the class of each sample; None for a model without classes. ConfigError for an unknown label."""
    known = num_classes(pipeline)
    if known is not None and label is None:
        return [i % known for i in range(number)]
    check_labels(label, known, 1, "--label")
    if label is None:
        return None
    return [label] * number


def _shards(samples: Iterator[torch.Tensor], request: SampleRequest) -> Iterator[tuple[int, int, int, list[Image]]]:
    """Yield for each shard its number, the number of shards, the index of its first sample, and its images."""
    waiting: list[Image] = []
    rows, done = 0, 0
    for batch in samples:
        # add the images of this batch
        if batch.ndim != 4:
            raise ConfigError(f"{request.model}: makes points; --push-dataset is for images")
        rows = rows or max(1, SHARD_BYTES // batch[0].numel())
        waiting += images.to_pil(batch * 2 - 1)
        # yield full shards, and at the end the rest
        while len(waiting) >= rows or (waiting and done + len(waiting) == request.number):
            yield done // rows, math.ceil(request.number / rows), done, waiting[:rows]
            done, waiting = done + len(waiting[:rows]), waiting[rows:]


def _write_parquet(path: Path, rows: dict[str, list[Any]], names: list[str] | None) -> None:
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    columns = {name: Value("int64") for name in rows} | {"image": ImageFeature()}
    if names is not None:
        columns["label"] = ClassLabel(names=names)
    Dataset.from_dict(rows, features=Features(columns)).to_parquet(path)


def provenance(request: SampleRequest, source: Path, pipeline: Pipeline) -> dict[str, str]:
    """Return the origin of the images: model, commit, weights, settings and versions; never a path."""
    # name the model
    local = Path(request.model).expanduser().exists()
    origin = {"model": last_name(request.model) if local else request.model}
    commits = [path.name for path in (source, *source.parents) if path.parent.name == "snapshots"]
    if commits and not local:
        origin["commit"] = commits[0]
    origin["pipeline"] = type(pipeline).__name__
    # hash the weights
    for name in readable_files(request.model, files_of(source)):
        if name.endswith(".safetensors"):
            origin[f"sha256 of {name}"] = hash_of_file(source / name)
    # add settings and versions
    settings = asdict(request)
    del settings["model"]
    origin |= {name: "default of the model" if value is None else str(value) for name, value in settings.items()}
    return {**origin, "hfgen": hfgen.__version__, "torch": torch.__version__}


def card(number: int, origin: dict[str, str]) -> str:
    """Return the card of a dataset: the Hub's metadata, and a table of `origin`."""
    # write metadata
    title = f"{number:,} images of {origin['model']}"
    metadata = {
        "pretty_name": title,
        "tags": ["synthetic", "generated", "hfgen"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
    }
    # write text
    rows = table(("property", "value"), *((markdown(name), code(value)) for name, value in origin.items()))
    text = (
        "A model generated every image; none is a photograph or a drawing by a person. A sample is a function of the "
        "model, its `seed` and its `index`."
    )
    return updated(Path(CARD), "", metadata, title, [text, "", *rows.splitlines()], DatasetCard)


def merged(old: str, new: str) -> str:
    """Return the card `old` with hfgen's part and metadata from `new`; all other text is kept."""
    head, section = own_part(new, DatasetCard)
    return updated(Path(CARD), old, head, head["pretty_name"], section, DatasetCard)


def is_dataset(folder: str | Path) -> bool:
    """Return whether `folder` is a dataset written by `write_dataset`."""
    folder = Path(folder).expanduser()
    path = folder / CARD
    return bool(_files(folder)) and path.is_file() and is_ours(path.read_text(encoding="utf-8"))


def _files(folder: Path) -> list[str]:
    """Return the names of the parquet files of a dataset, relative to its folder."""
    return sorted(f"data/{file.name}" for file in folder.glob("data/*.parquet") if SHARD.fullmatch(file.name))


def dataset_to_folder(folder: str | Path, target: str | Path) -> str:
    """Return a text on the dataset in `folder` that is copied to `target`, where it replaces another one.

    Users' text in the card of `target` stays. Raises ConfigError for a target that holds anything else.
    """
    # check the target
    folder, target = Path(folder).expanduser(), Path(target).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())) and not is_dataset(target):
        raise ConfigError(f"{target}: must be a new or empty folder, or one with a dataset of hfgen")
    # write the files and the card, and compare
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary, "dataset")
        own, card_there = (folder / CARD).read_text(encoding="utf-8"), target / CARD
        (staged / "data").mkdir(parents=True)
        for name in _files(folder):
            link(folder / name, staged / name)
        if card_there.is_file():
            own = merged(card_there.read_text(encoding="utf-8"), own)
        (staged / CARD).write_text(own, encoding="utf-8")
        names = files_of(staged)
        copy_files(staged, names, target, _files(target))
        compare(staged, target, names)
    return written(target, names)


def push_dataset(folder: str | Path, repo_id: str, *, public: bool = False, message: str | None = None) -> Published:
    """Return the commit of the published dataset in `folder`; an unchanged dataset makes no new commit.

    The repository is created if it does not exist, private unless `public`. The published files are downloaded and
    compared bit for bit. Raises ConfigError if the repository holds other data; every HfgenError names the command to
    retry.
    """
    check_repo_id(repo_id)
    folder = Path(folder).expanduser()
    with adding_to_errors(on_disk(folder, repo_id, public, message)), tempfile.TemporaryDirectory() as temporary:
        # open the repository, and read its card
        repository = open_repository(Destination(repo_id, public), "dataset")
        cache, staged = Path(temporary, "cache"), Path(temporary, "dataset")
        published = repository.fetch(CARD, cache)
        old = published.read_text(encoding="utf-8") if published else ""
        others = repository.files - {CARD, ".gitattributes"}
        if others and not is_ours(old):
            raise ConfigError(f"{repo_id}: holds other data ({', '.join(sorted(others)[:3])}); choose another name")
        # link the new files
        (staged / "data").mkdir(parents=True)
        for name in _files(folder):
            link(folder / name, staged / name)
        own = (folder / CARD).read_text(encoding="utf-8")
        if old:
            own = merged(old, own)
        (staged / CARD).write_text(own, encoding="utf-8")
        # commit
        names = files_of(staged)
        stale = [name for name in repository.files - set(names) if SHARD.fullmatch(name.removeprefix("data/"))]
        done = commit_folder(repository, staged, message or "Generated images", stale)
        # download and compare
        with explained(repo_id):
            arrived = snapshot_download(
                repo_id, repo_type="dataset", revision=done.oid, cache_dir=cache, allow_patterns=names
            )
        compare(staged, Path(arrived), names)
        return done
