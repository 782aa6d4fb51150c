"""Publishing into a folder: the files that a repository on the Hub would have, to be shared without a Hub."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from hfgen import runs
from hfgen.cards.metadata import CARD
from hfgen.errors import ConfigError
from hfgen.hub.package import is_published, package
from hfgen.hub.publish import described
from hfgen.hub.source import checked_source
from hfgen.hub.upload import TEMPORARY, compare, files_of, refuse_token
from hfgen.loading import components
from hfgen.loading.files import read_json
from hfgen.loading.resolve import resolve, variants_of


def is_folder(name: str) -> bool:
    """Return whether the place of a publication is a folder: it begins with `.`, `/` or `~`, or is an absolute path."""
    return name.startswith((".", "/", "~")) or Path(name).is_absolute()


def publish_to_folder(
    model: str | Path, folder: str | Path, *, source: str | None = None, licence: str | None = None
) -> str:
    """Return a text on the files of `model` that are written to `folder`: those of `hfgen publish`, card included.

    `model`: a run folder, a pipeline folder or a Hub id. A model published there before is replaced, all other files
    and users' text in its card stay. The files are loaded from there and compared bit for bit. `source`: where pip
    installs hfgen from. Default: HFGEN_SOURCE. `licence`: as in `publish`. Raises ConfigError for a folder
    that holds anything else.
    """
    # check the target
    source, target = checked_source(source), Path(folder).expanduser()
    index, old = target / components.INDEX, set[str]()
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not index.is_file())):
        raise ConfigError(f"{target}: must be a new or empty folder, or one with a model that was published there")
    if index.is_file():
        parts = read_json(index)
        old = {name for name in files_of(target) if is_published(name, parts)}
    # collect the files, with the card
    with TemporaryDirectory(prefix=TEMPORARY) as temporary:
        staged, run = Path(temporary, "model"), runs.find(model)
        package(resolve(model), staged, run, source)
        if (target / CARD).is_file():
            shutil.copyfile(target / CARD, staged / CARD)
        described(staged, run, target.resolve().name, source, licence)
        # write them, load and compare
        names = files_of(staged)
        copy_files(staged, names, target, old)
        for variant in variants_of(names):
            components.pipeline_class(target).from_pretrained(target, variant=variant)
        compare(staged, target, names)
    return written(target, names)


def copy_files(source: Path, names: list[str], target: Path, old: Iterable[str]) -> None:
    """Copy files to a folder, each whole or not at all, and delete the `old` ones that have no successor.

    Raises UnsafeContentError if a text file holds the user's token.
    """
    refuse_token(source)
    for name in names:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        shutil.copyfile(source / name, temporary)
        temporary.replace(path)
    for name in set(old) - set(names):
        (target / name).unlink()


def written(target: Path, names: list[str]) -> str:
    """Return a text on the files of a folder."""
    size = sum((target / name).stat().st_size for name in names)
    return f"written to {target}: {len(names)} files, {size:,} bytes, read back: every bit is the same"
