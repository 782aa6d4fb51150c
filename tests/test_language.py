"""The English of docstrings and help texts, as far as a program can read it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for folder in ("hfgen", "pipelines", "training") for path in (ROOT / folder).rglob("*.py"))


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of every docstring of a module, class, function, field or constant."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value.strip()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_begin_with_a_verb_or_a_noun(path: Path) -> None:
    inverted = [(line, text[:60]) for line, text in texts(path) if re.match(r"(What|Of|By|That)\b", text)]
    assert not inverted, inverted


def test_an_inverted_docstring_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text('class A:\n    x: int = 1\n    """What x is."""\n', encoding="utf-8")
    assert [text for _, text in texts(tmp_path / "module.py")] == ["What x is."]
