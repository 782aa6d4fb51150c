"""A Hub of our own for each test that asks for one."""

from collections.abc import Iterator

import pytest

from tests.hub.standin import Standin


@pytest.fixture
def hub() -> Iterator[Standin]:
    """Return an empty Hub on the loopback."""
    with Standin() as standin:
        yield standin
