"""Publishing of models on the Hub: one commit with a card, downloaded again and compared bit for bit."""

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hfgen
from hfgen import runs
from hfgen.cards.metadata import has_licence
from hfgen.cards.write import write_card
from hfgen.checks import check_repo_id
from hfgen.errors import HfgenError
from hfgen.hub.package import is_published, package, write_marker
from hfgen.hub.source import checked_source
from hfgen.hub.upload import (
    TEMPORARY,
    Destination,
    Published,
    Repository,
    adding_to_errors,
    files_of,
    on_disk,
    publish_folder,
)
from hfgen.loading import components
from hfgen.loading.files import read_json
from hfgen.loading.resolve import resolve
from hfgen.logging import get_logger

logger = get_logger("hub")


def publish(
    model: str | Path,
    repo_id: str,
    *,
    public: bool = False,
    message: str | None = None,
    source: str | None = None,
    licence: str | None = None,
) -> Published:
    """Return the published commit of `model`: a run folder, a pipeline folder or a Hub id.

    An unchanged model makes no commit. The repository is created if it does not exist, private unless `public`. The
    published files are downloaded at their commit, loaded, and compared bit for bit. Card and shims name `source`, from
    which pip installs hfgen. Default: HFGEN_SOURCE (no install line if it is not set). `licence` of the weights, by its
    name on the Hub, such as "apache-2.0". Default: that of the card; a card without one is warned of. Every HfgenError
    names the command to retry.
    """
    check_repo_id(repo_id)
    source = checked_source(source)
    folder, run = resolve(model), runs.find(model)
    with TemporaryDirectory(prefix=TEMPORARY) as temporary:
        package(folder, Path(temporary, "model"), run, source)
        with adding_to_errors(on_disk(model, repo_id, public, message, source)):
            return _push(Path(temporary), Destination(repo_id, public), message, source, run, licence)


def push_pipeline(
    pipeline: Any,
    place: Destination,
    *,
    message: str | None = None,
    variant: str | None = None,
    source: str | None = None,
) -> Published:
    """Return the published commit, at `place`, of a `pipeline` in memory; otherwise as `publish`."""
    source = checked_source(source)
    with TemporaryDirectory(prefix=TEMPORARY) as temporary:
        pipeline.save_pretrained(Path(temporary, "model"), variant=variant, source=source)
        write_marker(Path(temporary, "model"))
        return _push(Path(temporary), place, message, source)


def publish_finished(run: Path, repo_id: str) -> bool:
    """Return whether the model of a finished run was published, and log its commit; errors are logged, not raised."""
    try:
        logger.info(publish(run, repo_id))
        return True
    except HfgenError as error:
        logger.error(f"error: not published: {error}")
    except Exception as error:
        logger.error(f"error: not published: {type(error).__name__}: {error}. {on_disk(run, repo_id)}")
    return False


def _push(
    temporary: Path,
    place: Destination,
    message: str | None,
    source: str | None,
    run: Path | None = None,
    licence: str | None = None,
) -> Published:
    """Return the published commit, at `place`, of the pipeline in the folder `temporary / "model"`."""
    staged = temporary / "model"
    name, _ = components.read_index(staged)
    return publish_folder(
        temporary,
        place,
        message=message or f"{name} of hfgen {hfgen.__version__}",
        describe=lambda folder: described(folder, run, place.repo_id, source, licence),
        stale=lambda repository: _replaced(repository, staged, temporary / "cache"),
        load=lambda folder, variant: components.pipeline_class(folder).from_pretrained(folder, variant=variant),
    )


def described(folder: Path, run: Path | None, name: str, source: str | None, licence: str | None) -> Path:
    """Return the path of the card of the pipeline in `folder`, and warn if it names no licence."""
    path = write_card(folder, run, name, source, licence)
    if not has_licence(path):
        logger.warning("the card names no licence, so nobody may use the weights: publish again with --license NAME, "
                       "such as apache-2.0, mit, cc-by-4.0 or openrail")  # fmt: skip
    return path


def _replaced(repository: Repository, staged: Path, cache: Path) -> list[str]:
    """Return the files of a pipeline on the Hub that the new pipeline does not have."""
    _, parts = components.read_index(staged)
    with suppress(HfgenError):                                      # an unreadable index names no parts
        if index := repository.fetch(components.INDEX, cache):
            parts |= read_json(index)
    published = {file for file in repository.files if is_published(file, parts)}
    return sorted(published - set(files_of(staged)))
