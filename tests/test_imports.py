"""Who may import whom: the layers of the package, read from its source."""

import ast
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BASE = {"errors", "images", "resizing", "registry", "memory", "install"}
LOADING = {"checkpoint", "hub", "old_names", "safe_build", "safe_files", "safe_load", "safe_transformers", "upload"}
LAYERS = [
    BASE,
    LOADING | {"component", "card_text", "card_file", "card_component"},
    {"models", "schedulers", "losses"},
    {"data", "metrics", "card", "card_data", "card_families", "card_run"},
    {"pipelines", "publish", "package"},
    {"training"},
    {"judge", "judging", "sampling", "sample_dataset"},
    {"cli", "app", "figures"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
PIPELINES_SEE = BASE | LOADING | {"models", "schedulers", "pipelines", "publish"}


def unit_of(path: Path) -> str:
    """Return the module or package right under hfgen that a file belongs to."""
    parts = path.relative_to(ROOT).parts
    return (parts[1] if parts[0] == "hfgen" else parts[0]).removesuffix(".py")


def imported_units(tree: ast.AST) -> set[str]:
    """Return the units of hfgen that a file names: imports anywhere in it, and lazy attributes `hfgen.X`."""
    from hfgen.registry import MODULES

    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "hfgen":
            names |= {MODULES.get(alias.name, f"hfgen.{alias.name}") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hfgen":
            names.add(MODULES.get(node.attr, f"hfgen.{node.attr}"))
    return {name.split(".")[1] for name in names if name.startswith("hfgen.")} & set(RANK)


FILES = [p for folder in ("hfgen", "pipelines", "training") for p in sorted((ROOT / folder).rglob("*.py"))]
FILES = [p for p in FILES if p.relative_to(ROOT).parts[:2] not in {("hfgen", "pipelines"), ("hfgen", "training")}]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_only_its_own_layer_and_those_below(path: Path) -> None:
    unit = unit_of(path)
    if unit == "__init__":
        return
    assert unit in RANK, f"{path} belongs to no layer: add it to LAYERS"
    for other in imported_units(ast.parse(path.read_text(encoding="utf-8"))):
        assert RANK[other] <= RANK[unit], f"{path} imports {other}, which is above it"
        if unit == "pipelines":
            assert other in PIPELINES_SEE, f"{path} is a pipeline and may not see {other}"


def test_the_reader_of_imports_sees_lazy_names_and_nested_imports() -> None:
    source = "import hfgen\ndef f():\n    from hfgen.training import run\n    return hfgen.DDPMPipeline"
    assert imported_units(ast.parse(source)) == {"training", "pipelines"}


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
