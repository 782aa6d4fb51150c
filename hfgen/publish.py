"""A model goes to the Hub: staged, described by its card, committed once, read back and compared."""

import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import hfgen
from hfgen import hub, safe_load
from hfgen.card import CARD, write_card
from hfgen.errors import HfgenError
from hfgen.pipelines.auto import AutoPipeline
from hfgen.pipelines.base import Pipeline
from hfgen.safe_files import read_json
from hfgen.staging import is_published, run_of, stage, variants_in
from hfgen.upload import (
    Published,
    Repository,
    check_repo_id,
    commit_folder,
    compare,
    files_of,
    on_disk,
    open_repository,
    saying,
)

TEMPORARY = "hfgen-publish-"


def publish(model: str | Path, repo_id: str, *, public: bool = False, message: str | None = None) -> Published:
    """Return where `model`, a run folder, a pipeline folder or a Hub id, was published.

    One commit, none where nothing has changed; the repository is made if need be, private unless `public`. What was
    pushed is downloaded at its commit, loaded, and compared bit for bit. Any HfgenError names the command to retry.
    """
    check_repo_id(repo_id)
    folder, run = hub.resolve(model), run_of(Path(model))
    with TemporaryDirectory(prefix=TEMPORARY) as temporary:
        stage(folder, Path(temporary, "model"), run)
        with saying(on_disk(model, repo_id, public, message)):
            return _push(Path(temporary), repo_id, public, message, run)


def push_pipeline(
    pipeline: Pipeline, repo_id: str, *, public: bool = False, message: str | None = None, variant: str | None = None
) -> Published:
    """Return where `pipeline` was published from memory; otherwise as `publish`."""
    check_repo_id(repo_id)
    with TemporaryDirectory(prefix=TEMPORARY) as temporary:
        pipeline.save_pretrained(Path(temporary, "model"), variant=variant)
        return _push(Path(temporary), repo_id, public, message)


def publish_finished(run: Path, repo_id: str) -> None:
    """Publish the model of a finished run and print where it is; whatever goes wrong is only printed."""
    try:
        print(publish(run, repo_id))
    except HfgenError as error:
        print(f"warning: not published: {error}")
    except Exception as error:
        print(f"warning: not published: {type(error).__name__}: {error}. {on_disk(run, repo_id)}")


def _push(temporary: Path, repo_id: str, public: bool, message: str | None, run: Path | None = None) -> Published:
    """Publish the pipeline folder `temporary / "model"`; the text of a card that is on the Hub already is kept."""
    staged, cache = temporary / "model", temporary / "cache"
    repository = open_repository(repo_id, "model", public)
    if card := repository.fetch(CARD, cache):
        shutil.copyfile(card, staged / CARD)
    write_card(staged, run, repo_id)
    name, _ = safe_load.read_index(staged)
    done = commit_folder(
        repository, staged, message or f"{name} of hfgen {hfgen.__version__}", _replaced(repository, staged, cache)
    )
    _read_back(done, staged, cache)
    return done


def _read_back(done: Published, staged: Path, cache: Path) -> None:
    """Download what was published at its commit, load it and compare every file that a loader reads."""
    parts = [path.name for path in staged.iterdir() if path.is_dir()]
    try:
        for variant in variants_in(staged, parts):
            arrived = hub.download(done.repo_id, done.oid, cache_dir=cache, variant=variant)
            AutoPipeline.from_pretrained(arrived, variant=variant)
            compare(staged, arrived, hub.wanted_files(done.repo_id, files_of(staged), None, variant))
    except HfgenError as error:
        raise type(error)(f"committed as {done.oid}, but not confirmed. {error}") from error


def _replaced(repository: Repository, staged: Path, cache: Path) -> list[str]:
    """Return the files of a pipeline that are on the Hub and that the new one, with the same or others, has not."""
    _, parts = safe_load.read_index(staged)
    with suppress(HfgenError):                                      # an index that cannot be read names no parts
        parts |= read_json(index) if (index := repository.fetch(safe_load.INDEX, cache)) else {}
    there = {file for file in repository.files if is_published(file, parts)}
    return sorted(there - set(files_of(staged)))
