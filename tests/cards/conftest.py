"""A pipeline whose card is written."""

from pathlib import Path

import pytest

from tests.cards.helpers import MAKERS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a saved pipeline that no test writes to but for its card, which it removes first."""
    path = tmp_path_factory.mktemp("pipelines") / "gan"
    MAKERS["GANPipeline"]().save_pretrained(path)
    return path
