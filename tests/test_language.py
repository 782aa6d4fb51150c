"""The English and the names of the package, as far as a program can read them."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

from tests.benchmarks.house import docstrings, prose, what_per_1000
from tests.imports import sources

ROOT = Path(__file__).resolve().parents[1]
FILES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sources(ROOT)}


class Retired(NamedTuple):
    """A name that the package no longer uses, and the name that it uses for the same thing.

    `use`: "identifier" where no variable, argument, attribute, function, class or module may have it; "definition"
    where an everyday word may still name a variable, but no function, class, constant or module.
    """

    name: str
    now: str
    use: Literal["identifier", "definition"] = "identifier"
    within: str = ""
    """The files whose path begins so. Default: all."""


RETIRED = (
    Retired("judging", "evaluation", "definition"),
    Retired("judge", "evaluation", "definition"),
    Retired("Asking", "SampleRequest"),
    Retired("Subject", "EvaluatedModel"),
    Retired("Case", "MetricContext"),
    Retired("Found", "MetricResult"),
    Retired("Real", "ReferenceData", "definition"),
    Retired("Fresh", "ReferenceData"),
    Retired("Collected", "Features"),
    Retired("Collector", "FeatureExtraction"),
    Retired("groups", "metric_groups", "definition", "hfgen/evaluation/"),
    Retired("COMPUTE", "METRICS"),
    Retired("DEPENDS", "METRICS"),
    Retired("told", "cond"),
    Retired("instead", "uncond"),
    Retired("Start", "InitialState"),
    Retired("Wanted", "ImageSpec or SampleRequest"),
    Retired("History", "ImagePool"),
    Retired("history", "image_pool", "definition"),
    Retired("Game", "AdversarialLosses"),
    Retired("Bound", "VAELoss", "identifier", "training/"),
    Retired("Denoising", "DenoisingLoss"),
    Retired("facts", "record", "definition"),
    Retired("start", "init_from", "definition", "training/"),
    Retired("read", "restore", "definition", "training/engine/state.py"),
    Retired("write", "save", "definition", "training/engine/state.py"),
    Retired("focus", "freeze_others", "definition"),
    Retired("mine", "local_rows", "definition"),
    Retired("share", "split_batch", "definition"),
    Retired("look", "preview_and_evaluate", "definition"),
    Retired("go", "loop", "definition"),
    Retired("trouble", "diagnose", "definition"),
    Retired("staging", "package"),
    Retired("stage", "package", "definition", "hfgen/hub/"),
    Retired("generated", "sample_dataset", "definition"),
    Retired("full", "upcast", "definition"),
    Retired("plus", "axpy", "definition"),
    Retired("of_x_0", "coef_x0"),
    Retired("of_x_t", "coef_xt"),
    Retired("SHAPES", "DISTRIBUTIONS"),
    Retired("dropped", "dropout_or_none", "definition"),
    Retired("started", "init_weights", "definition"),
    Retired("power_iteration", "spectral_norm"),
    Retired("AT_ONCE", "BATCH_SIZE"),
    Retired("SHOWN", "GRID_IMAGES"),
    Retired("MEASURED", "EVAL_IMAGES"),
    Retired("collapse", "modes", "definition"),
)
HOMONYMS = ("Settings", "Run", "Wanted", "Conditions", "Game", "Labels", "check", "coverage")
"""Names of which the package has one at most, as a function, class or alias of a module."""

MOST_WHAT = 0.5
"""How often the word "what" may stand in 1,000 words of docstrings and comments."""


@cache
def identifiers(text: str) -> list[tuple[int, str, bool]]:
    """Return line and name of every identifier of a source, and whether a function, class or constant is defined there.

    A name that is imported from outside the package is not one of its identifiers.
    """
    return list(_identifiers(ast.parse(text)))


def _identifiers(tree: ast.AST) -> Iterator[tuple[int, str, bool]]:
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                yield node.lineno, node.name, True
            case ast.Name():
                yield node.lineno, node.id, node.id.isupper() and isinstance(node.ctx, ast.Store)
            case ast.arg():
                yield node.lineno, node.arg, False
            case ast.keyword(arg=str()):
                yield node.value.lineno, str(node.arg), False
            case ast.Attribute():
                yield node.lineno, node.attr, False
            case ast.ImportFrom(module=str()) if str(node.module).startswith("hfgen"):
                for name in (*str(node.module).split("."), *(alias.name for alias in node.names)):
                    yield node.lineno, name, False


def uses(retired: Retired, path: str, text: str) -> list[str]:
    """Return the places of a file in which a retired name is used."""
    if not path.startswith(retired.within):
        return []
    module = [path] if retired.name in Path(path).with_suffix("").parts else []
    lines = [line for line, name, defined in identifiers(text)
             if name == retired.name and (defined or retired.use == "identifier")]  # fmt: skip
    return module + [f"{path}:{line}" for line in lines]


@pytest.mark.parametrize("path", FILES)
def test_docstrings_begin_with_a_verb_or_a_noun(path: str) -> None:
    begin = re.compile(r"\s*(What|Of|By|That)\b")
    inverted = [(line, text[:60]) for line, text in docstrings(FILES[path]) if begin.match(text)]
    assert not inverted, inverted


def test_an_inverted_docstring_would_be_seen() -> None:
    assert list(docstrings('class A:\n    x: int = 1\n    """What x is."""\n')) == [(3, "What x is.")]


@pytest.mark.parametrize("retired", RETIRED, ids=lambda retired: retired.name)
def test_a_retired_name_is_no_longer_used(retired: Retired) -> None:
    places = [place for path, text in FILES.items() for place in uses(retired, path, text)]
    assert not places, f"{retired.name} is now {retired.now}: {places}"


def test_a_retired_name_would_be_seen_wherever_it_stands() -> None:
    everywhere, defined = Retired("told", "cond"), Retired("full", "upcast", "definition", "hfgen/")
    for text in ("told = 1", "def f(told): ...", "f(told=1)", "x.told", "def told(): ...", "class told: ...",
                 "from hfgen.told import x", "from hfgen.x import told"):  # fmt: skip
        assert uses(everywhere, "hfgen/x.py", text) == ["hfgen/x.py:1"], text
        assert uses(everywhere, "hfgen/x.py", text.replace("told", "untold")) == [], text
    assert uses(everywhere, "hfgen/told/x.py", "") == ["hfgen/told/x.py"]
    assert uses(defined, "hfgen/x.py", "full = torch.full(1)\ndef full(): ...") == ["hfgen/x.py:2"]
    assert uses(defined, "training/x.py", "def full(): ...") == []
    assert uses(Retired("SHAPES", "DISTRIBUTIONS", "definition"), "x.py", "SHAPES: int = 1") == ["x.py:1"]


@pytest.mark.parametrize("name", HOMONYMS)
def test_a_name_stands_for_one_thing(name: str) -> None:
    places = [path for path, text in FILES.items() if name in definitions(ast.parse(text))]
    assert len(places) <= 1, f"{name}: {places}"


def definitions(module: ast.Module) -> set[str]:
    """Return the names of the functions, classes and aliases that stand directly in a module."""
    names = {node.name for node in module.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    targets = [target for node in module.body if isinstance(node, ast.Assign) for target in node.targets]
    return names | {target.id for target in targets if isinstance(target, ast.Name)}


def test_docstrings_and_comments_name_things_rather_than_say_what() -> None:
    parts = {path: " ".join(prose(text)) for path, text in FILES.items()}
    worst = sorted(parts, key=lambda path: -len(re.findall(r"(?i)\bwhat\b", parts[path])))[:10]
    assert what_per_1000(" ".join(parts.values())) <= MOST_WHAT, worst
