"""The imports of the package, read from its source: lazy ones and those for types alone too."""

import ast
from collections.abc import Collection, Mapping
from pathlib import Path

FOLDERS = ("hfgen", "pipelines", "training")
LINKS = {("hfgen", "pipelines"), ("hfgen", "training")}
"""Folders of the package's source, and the links in hfgen/ to the last two."""


def sources(root: Path) -> list[Path]:
    """Return the Python files of the package in the checkout `root`, each once although hfgen/ links to two folders."""
    files = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    return [path for path in files if path.relative_to(root).parts[:2] not in LINKS]


def name_of(path: Path, root: Path) -> str:
    """Return the dotted name of a file of the package, without `hfgen.`: the name of its folder for an `__init__`."""
    parts = path.relative_to(root).with_suffix("").parts
    parts = parts[1:] if parts[0] == "hfgen" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def public_modules(root: Path) -> dict[str, str]:
    """Return the module of each public name, as the table `MODULES` of the registry gives it."""
    for node in ast.parse((root / "hfgen" / "registry.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "MODULES" and node.value is not None:
            return dict(ast.literal_eval(node.value))
    raise ValueError(f"{root}/hfgen/registry.py has no table MODULES")


def imported(source: str, names: Collection[str], public: Mapping[str, str]) -> set[str]:
    """Return the modules among `names` that a source imports, or names as an attribute `hfgen.X` of `public`."""
    modules = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            lazy = [public.get(alias.name, "") for alias in node.names] if node.module == "hfgen" else []
            inside = [name for name in whole if name.removeprefix("hfgen.") in names]
            modules |= {*lazy, *inside} if len(inside) == len(whole) else {*lazy, *inside, node.module}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hfgen":
            modules.add(public.get(node.attr, f"hfgen.{node.attr}"))
    return {name.removeprefix("hfgen.") for name in modules if name.startswith("hfgen.")} & set(names)


def import_graph(root: Path) -> dict[str, set[str]]:
    """Return the modules that each module of the package in the checkout `root` imports."""
    public = public_modules(root)
    files = {name_of(path, root): path.read_text(encoding="utf-8") for path in sources(root)}
    return {name: imported(text, files, public) - {name} for name, text in files.items()}


def circles(graph: Mapping[str, Collection[str]]) -> list[set[str]]:
    """Return the largest sets of two or more modules that reach each other by imports."""
    # follow the imports from each module
    reached = dict[str, set[str]]()
    for name in graph:
        reached[name], waiting = set(), [name]
        while waiting:
            new = set(graph[waiting.pop()]) - reached[name]
            reached[name] |= new
            waiting += new
    # keep the modules that can be reached from where they lead
    found = list[set[str]]()
    for name in sorted(graph):
        members = {name} | {other for other in reached[name] if name in reached[other]}
        if len(members) > 1 and members not in found:
            found.append(members)
    return found
