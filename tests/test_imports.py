"""Who may import whom: the layers of the package, read from its source."""

import ast
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [
    {"errors", "checks", "hashing", "images", "memory", "registry", "losses"},
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


def name_of(path: Path) -> str:
    """Return the dotted name of a file of the package, without `hfgen.`: that of its folder for an `__init__`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "hfgen" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = [p for folder in ("hfgen", "pipelines", "training") for p in sorted((ROOT / folder).rglob("*.py"))]
FILES = [p for p in FILES if p.relative_to(ROOT).parts[:2] not in {("hfgen", "pipelines"), ("hfgen", "training")}]


NAMES = {name_of(path): path for path in FILES}


def unit_of(name: str) -> str:
    """Return the entry of the layers that a module belongs to."""
    return name if name in RANK else name.partition(".")[0]


def imported(source: str) -> set[str]:
    """Return the modules of hfgen that a source names: lazy and TYPE_CHECKING imports too, and attributes `hfgen.X`."""
    from hfgen.registry import MODULES

    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            public = [MODULES.get(alias.name, "") for alias in node.names] if node.module == "hfgen" else []
            inside = [name for name in whole if name.removeprefix("hfgen.") in NAMES]
            names |= {*public, *inside} if len(inside) == len(whole) else {*public, *inside, node.module}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hfgen":
            names.add(MODULES.get(node.attr, f"hfgen.{node.attr}"))
    return {name.removeprefix("hfgen.") for name in names if name.startswith("hfgen.")} & NAMES.keys()


GRAPH = {name: imported(path.read_text(encoding="utf-8")) - {name} for name, path in NAMES.items()}


@pytest.mark.parametrize("name", sorted(name for name in NAMES if name))
def test_a_module_imports_only_its_own_layer_and_those_below(name: str) -> None:
    assert unit_of(name) in RANK, f"{name} belongs to no layer: add it to LAYERS"
    for other in GRAPH[name]:
        assert RANK[unit_of(other)] <= RANK[unit_of(name)], f"{name} imports {other}, which is above it"


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return modules that import each other around in a circle, [] if there are none."""
    done, path = set[str](), list[str]()

    def visit(name: str) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        path.append(name)
        found = next((found for other in sorted(graph[name]) if (found := visit(other))), [])
        if not found:
            path.pop()
            done.add(name)
        return found

    return next((found for name in sorted(graph) if (found := visit(name))), [])


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(GRAPH) == []


def test_a_circle_would_be_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_reader_of_imports_sees_lazy_names_and_nested_imports() -> None:
    source = "import hfgen\ndef f():\n    from hfgen.training.engine import run\n    return hfgen.DDPMPipeline"
    assert imported(source) == {"training.engine.run", "pipelines.ddpm"}


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
    homes = {p.parent.relative_to(ROOT) for p in FILES if p.name == "__init__.py"}
    expected = {".".join(home.parts if home.parts[0] == "hfgen" else ("hfgen", *home.parts)) for home in homes}
    assert set(setup["options"]["packages"].split()) == expected
