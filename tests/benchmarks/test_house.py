"""The measures of the house, on a made checkout whose measures are known."""

from pathlib import Path

import pytest

from tests.benchmarks.house import HERE, frames_to_loss, measure, what_per_1000

SOURCE = '''"""What a tensor is."""

from torch import Tensor

from hfgen.training import ddpm


def scaled(x: Tensor, name: str) -> Tensor:
    """Return x / 2, shape (B, C), in [0, 1] (Ho et al. 2020, eq. 4). Raises ValueError on a wrong name."""
    # refuse wrong names
    if name:
        raise ValueError(name)                  # the name tells
    return x / 2


def mirrored(x: Tensor) -> Tensor:
    """Return -x."""
    if x is None:
        raise TypeError
    return -x if len(x) else x if len(x) > 1 else [[y for y in row] for row in x]


def _private(x: Tensor) -> Tensor:
    return x
'''


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a checkout of three modules, two of which import each other, and of one test."""
    for name, text in {
        "hfgen/__init__.py": "",
        "hfgen/registry.py": "MODULES: dict[str, str] = {}\n",
        "hfgen/maths.py": SOURCE,
        "training/ddpm.py": "def loss():\n    from hfgen import maths\n",
        "pipelines/__init__.py": "",
        "tests/test_maths.py": "x = 1\n" * 14,
        "README.md": "one\ntwo\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_every_measure_of_a_known_checkout_is_right(checkout: Path) -> None:
    statements = 1 + 3 + (5 + 5 + 2) + 2        # of the registry, of maths and its functions, of training
    assert measure(checkout) == pytest.approx({
        "loose modules in hfgen/": 3,
        "Python files in training/": 1,
        "import circles": 1,
        "comment lines per 100 lines of code": 100 / 15,
        "ternaries per 100 statements": 200 / statements,
        "comprehensions per 100 statements": 200 / statements,
        "nested ternaries": 1,
        "nested comprehensions": 1,
        "AST nodes per function, median": (10 + 27) / 2,
        '"what" per 1,000 words of docstrings and comments': 1000 / 28,
        "lines of README.md": 2,
        "public functions on tensors": 2,
        "- with shapes, %": 50,
        "- with a range or unit, %": 50,
        "- with errors, % of those that raise": 50,
        "- with a source, %": 50,
        "test lines per source line": 14 / 27,
    })  # fmt: skip


def test_what_is_counted_as_a_word_alone() -> None:
    assert what_per_1000("What stands somewhat whatever 12 it is, and what not") == pytest.approx(2000 / 9)
    assert what_per_1000("") == 0


def test_a_training_of_this_checkout_passes_from_the_command_through_the_loop_to_the_loss() -> None:
    frames = frames_to_loss(HERE)
    assert frames[0] == "exit_code_of" and "train" in frames            # the command
    assert "Engine.train" in frames and frames[-1].endswith(".__call__")


def test_a_checkout_without_the_command_is_an_error(checkout: Path) -> None:
    with pytest.raises(RuntimeError, match=r"no loss was seen.*\n.*"):
        frames_to_loss(checkout)
