"""Measures of the source: its tree and imports, the size and form of its functions, the English of its docstrings.

    python -m tests.benchmarks.house [ROOT]

ROOT is a checkout. Default: this one. The frames between the command and the loss are counted in a training by the code
of that checkout.
"""

import ast
import io
import os
import re
import statistics
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Iterator
from pathlib import Path

from tests.imports import circles, import_graph, sources

HERE = Path(__file__).resolve().parents[2]
Function = ast.FunctionDef | ast.AsyncFunctionDef
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

SHAPE = re.compile(r"\(\w[\w ]*,[^)]*\)|\([A-Z],?\)|\bshapes?\b|\bscalars?\b|\b0-d\b")
UNIT = re.compile(
    r"[\[(]-?\d[\d.]*, |\bfrom -?\d|[<>≤≥] ?-?\d|\bpositive|\bnon-negative|\bunit variance\b|\bvariance 1\b|\blogits?\b"
    r"|\bprobabilit|\bnats?\b|\bbits?\b|\bpixels?\b|\buint8\b|\bseconds?\b|\bbytes?\b|\bdata coordinates\b"
)
ERROR = re.compile(r"\b[Rr]aises?\b|\w+Error\b")
SOURCE = re.compile(r"\b(19|20)\d\d\b|\beq\.|\bsection \d")

TRACE = """
import os, sys
from pathlib import Path
from hfgen import cli
from hfgen.losses import diffusion

root, arguments = Path(sys.argv[1]), sys.argv[2:]

def traced(*tensors):
    frame, codes = sys._getframe(1), []
    while frame.f_code is not cli.main.__code__:
        codes.append(frame.f_code)
        frame = frame.f_back
    ours = [code.co_qualname for code in reversed(codes) if root in Path(code.co_filename).parents]
    print("FRAMES", *ours, flush=True)
    os._exit(0)

diffusion.l_simple = traced                 # before the recipe imports it
sys.argv = ["hfgen", *arguments]
cli.main()
"""
"""A program that prints the functions between the command and its first loss, and ends there."""


def share(part: int, whole: int, per: int = 100) -> float:
    """Return how many there are in `per`; 0 in nothing."""
    return per * part / whole if whole else 0.0


def frames_to_loss(root: Path) -> list[str]:
    """Return the functions of the checkout that stand between `cli.main` and the first loss of `hfgen train ddpm`."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "train", "ddpm", "--dataset", "digits", "--output-dir", f"{folder}/run", "--max-steps", "2",
            "--batch-size", "4", "--block-out-channels", "32", "--preview-images", "0", "--threads", "1",
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", TRACE, str(root), *words], cwd=root, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )  # fmt: skip
    lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("FRAMES ")]
    if done.returncode or len(lines) != 1:
        raise RuntimeError(f"no loss was seen in {root}: exit {done.returncode}\n{done.stderr[-3000:]}")
    return lines[0]


def comments(text: str) -> Iterator[tuple[int, str, bool]]:
    """Yield line and text of each comment of a source, without its `#`, and whether it has the line to itself."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("#").strip(), not token.line[: token.start[1]].strip()


def docstrings(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of the docstring of every module, class, function, field and constant of a source."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def prose(text: str) -> list[str]:
    """Return the docstrings and comments of a source."""
    return [*(doc for _, doc in docstrings(text)), *(comment for _, comment, _ in comments(text))]


def code_lines(text: str) -> int:
    """Return the number of lines that hold code: no blank lines, comments or docstrings."""
    lines = set[int]()
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for line, doc in docstrings(text):
        lines -= set(range(line, line + doc.count("\n") + 1))
    return len(lines)


def nested(tree: ast.AST, kinds: tuple[type[ast.AST], ...]) -> int:
    """Return the number of nodes of these kinds inside another of them."""
    outer = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    return len({inner for node in outer for inner in ast.walk(node) if inner is not node and isinstance(inner, kinds)})


def public_functions(tree: ast.AST) -> Iterator[Function]:
    """Yield the functions and methods of a module that no part of their name marks as private; `__call__` is public."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function) and (node.name == "__call__" or not node.name.startswith("_")):
            yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node)


def on_tensors(function: Function) -> bool:
    """Return whether a function takes or returns tensors, by its annotations."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    notes = [function.returns, *(argument.annotation for argument in every)]
    return any("Tensor" in ast.unparse(note) for note in notes if note is not None)


def raises(function: Function) -> bool:
    """Return whether a function raises an error in its own body."""
    return any(isinstance(node, ast.Raise) and node.exc is not None for node in ast.walk(function))


def measure(root: Path) -> dict[str, float]:
    """Return the measures of the checkout `root` that reading gives, each under its name."""
    files = sources(root)
    texts = [path.read_text(encoding="utf-8") for path in files]
    trees = [ast.parse(text) for text in texts]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    statements = sum(isinstance(node, ast.stmt) for node in nodes)
    functions = [node for node in nodes if isinstance(node, Function)]
    own_lines = [alone for text in texts for _, _, alone in comments(text)]
    words = " ".join(part for text in texts for part in prose(text))
    documents = [
        (function, ast.get_docstring(function) or "")
        for tree in trees for function in public_functions(tree) if on_tensors(function)
    ]  # fmt: skip
    raising = [doc for function, doc in documents if raises(function)]
    source_lines = sum(len(text.splitlines()) for text in texts)
    tests = [path.read_text(encoding="utf-8") for path in (root / "tests").rglob("*.py")]

    def documented(pattern: re.Pattern[str], among: list[str]) -> float:
        return share(sum(bool(pattern.search(doc)) for doc in among), len(among))

    everything = [doc for _, doc in documents]
    return {
        "loose modules in hfgen/": len(list((root / "hfgen").glob("*.py"))),
        "Python files in training/": len(list((root / "training").glob("*.py"))),
        "import circles": len(circles(import_graph(root))),
        "comment lines per 100 lines of code": share(sum(own_lines), sum(map(code_lines, texts))),
        "ternaries per 100 statements": share(sum(isinstance(node, ast.IfExp) for node in nodes), statements),
        "comprehensions per 100 statements": share(sum(isinstance(n, COMPREHENSIONS) for n in nodes), statements),
        "nested ternaries": sum(nested(tree, (ast.IfExp,)) for tree in trees),
        "nested comprehensions": sum(nested(tree, COMPREHENSIONS) for tree in trees),
        "AST nodes per function, median": statistics.median(len(list(ast.walk(f))) for f in functions),
        '"what" per 1,000 words of docstrings and comments': what_per_1000(words),
        "lines of README.md": len((root / "README.md").read_text(encoding="utf-8").splitlines()),
        "public functions on tensors": len(documents),
        "- with shapes, %": documented(SHAPE, everything),
        "- with a range or unit, %": documented(UNIT, everything),
        "- with errors, % of those that raise": documented(ERROR, raising),
        "- with a source, %": documented(SOURCE, everything),
        "test lines per source line": share(sum(len(text.splitlines()) for text in tests), source_lines, 1),
    }


def what_per_1000(text: str) -> float:
    """Return how often the word "what" stands in 1,000 words of a text."""
    words = re.findall(r"[A-Za-z]+(?:['’-][A-Za-z]+)*", text)
    return share(sum(word.lower() == "what" for word in words), len(words), 1000)


def main(arguments: list[str]) -> None:
    """Print the measures of a checkout as a table."""
    root = Path(arguments[0]).resolve() if arguments else HERE
    frames = frames_to_loss(root)
    rows = {**measure(root), "frames from the command to the loss": len(frames)}
    print("| measure | value |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value:.3g} |")
    print(f"\nFrames: {' → '.join(frames)}")


if __name__ == "__main__":
    main(sys.argv[1:])
