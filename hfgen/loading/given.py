"""Python objects in the place of names: the data and models that a caller hands to a run.

The settings of a run are written to `config.yaml`, so a field holds a name. `named` gives each object the name of its
field, such as `<dataset>`, and `object_of` returns the object of a name inside of it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from hfgen.checks import is_name_of_object
from hfgen.errors import ConfigError

_OBJECTS: ContextVar[Mapping[str, Any] | None] = ContextVar("objects", default=None)


@contextmanager
def named(objects: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Context that yields the name of each field's object; `object_of` knows the objects inside, in this thread."""
    names = {field: f"<{field}>" for field in objects}
    token = _OBJECTS.set({names[field]: value for field, value in objects.items()})
    try:
        yield names
    finally:
        _OBJECTS.reset(token)


def object_of(name: Any) -> Any:
    """Return the object of a name such as `<dataset>`; None for any other value.

    Raises ConfigError for the name of an object that is not here: the run was started by another process.
    """
    if not is_name_of_object(name):
        return None
    objects = _OBJECTS.get() or {}
    if name not in objects:
        field = name[1:-1]
        raise ConfigError(f"{name} is a Python object, which config.yaml does not hold; give it again: "
                          f"hfgen.train(..., {field}=..., output_dir=..., resume=True)")  # fmt: skip
    return objects[name]
