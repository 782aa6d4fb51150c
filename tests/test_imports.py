"""Who may import whom: the layers of the package, read from its source."""

from configparser import ConfigParser
from pathlib import Path

import pytest

from hfgen.registry import MODULES
from tests.imports import circles, import_graph, imported, sources

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [
    {"errors", "checks", "images", "logging", "memory", "registry", "losses"},
    {"data", "loading", "runs"},
    {"cards", "hub", "loading.mixins"},
    {"models", "schedulers"},
    {"pipelines"},
    {"metrics", "sampling"},
    {"training"},
    {"evaluation", "figures"},
    {"cli", "__main__"},
]
"""Modules and packages of hfgen, the lowest first; a module named here is apart from the package that it lies in."""

RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
GRAPH = import_graph(ROOT)


def unit_of(name: str) -> str:
    """Return the entry of the layers that a module belongs to."""
    return name if name in RANK else name.partition(".")[0]


@pytest.mark.parametrize("name", sorted(name for name in GRAPH if name))
def test_a_module_imports_only_its_own_layer_and_those_below(name: str) -> None:
    assert unit_of(name) in RANK, f"{name} belongs to no layer: add it to LAYERS"
    for other in GRAPH[name]:
        assert RANK[unit_of(other)] <= RANK[unit_of(name)], f"{name} imports {other}, which is above it"


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(GRAPH) == []


def test_a_circle_would_be_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [{"b", "c"}]
    assert circles({"a": {"b"}, "b": {"a"}, "c": {"d"}, "d": {"e"}, "e": {"c"}}) == [{"a", "b"}, {"c", "d", "e"}]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_reader_of_imports_sees_lazy_names_and_nested_imports() -> None:
    source = "import hfgen\ndef f():\n    from hfgen.training.engine import run\n    return hfgen.DDPMPipeline"
    assert imported(source, GRAPH, MODULES) == {"training.engine.run", "pipelines.ddpm"}


def test_the_two_symlinks_are_relative_and_point_to_the_top_level_folders() -> None:
    for name in ("pipelines", "training"):
        assert (ROOT / "hfgen" / name).readlink() == Path(f"../{name}")


def test_every_public_name_can_be_imported() -> None:
    import hfgen

    for name in hfgen.__all__:
        assert getattr(hfgen, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = hfgen.Nothing


def test_every_package_is_installed() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    homes = {p.parent.relative_to(ROOT) for p in sources(ROOT) if p.name == "__init__.py"}
    expected = {".".join(home.parts if home.parts[0] == "hfgen" else ("hfgen", *home.parts)) for home in homes}
    assert set(setup["options"]["packages"].split()) == expected
