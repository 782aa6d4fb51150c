"""README.md and the tours of training/ and pipelines/: every shell line and Python block, in order, as pasted.

A process of its own plays the reader: in an empty folder with the reader's own files, HFGEN_SMALL=1, and a Hub on the
loopback. Each Python block is run alone, so its imports stand in it.
"""

import dataclasses
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from hfgen.cli import RECIPES
from hfgen.training.engine.settings import SMALL, Settings, small
from hfgen.training.settings.ddpm import SPEC
from tests.hub.standin import HURRY, ROOT, TOKEN, Standin, client_environment

DOCUMENTS = ("README.md", "training/README.md", "pipelines/README.md")
INSTALLED = ("git", "cd", "pip", "pytest")
"""Commands that are checked by their words and not run: the suite runs in an installation, under pytest."""

READER = """
import contextlib, json, subprocess, sys, traceback

def hfgen(words):
    from hfgen.cli import main
    sys.argv = ["hfgen", *words]
    try:
        main()
    except SystemExit as ended:
        return ended.code or 0
    return 0

for line in sys.stdin:
    place, words, code = json.loads(line)
    with contextlib.redirect_stdout(sys.stderr):
        try:
            if code:
                exec(compile(code, place, "exec"), {"__name__": "__main__"})
                result = 0
            elif words[0] == "hfgen":
                result = hfgen(words[1:])
            else:
                result = subprocess.run(words, stdout=sys.stderr).returncode
        except Exception:
            traceback.print_exc()
            result = 1
    print(json.dumps(result), flush=True)
"""


class Block(NamedTuple):
    """A fenced block: `place`, "file:line" of its fence, its language and its text."""

    place: str
    language: str
    text: str


def blocks(document: str) -> list[Block]:
    """Return the fenced blocks of a document, in order."""
    found, opened = list[Block](), None
    for number, line in enumerate((ROOT / document).read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            if opened is None:
                opened = Block(f"{document}:{number}", line[3:], "")
            else:
                found.append(opened)
                opened = None
        elif opened is not None:
            opened = opened._replace(text=f"{opened.text}{line}\n")
    assert opened is None, f"{opened} is never closed"
    return found


def commands(block: Block) -> list[list[str]]:
    """Return the words of each command of a shell block; `&&` and line ends part commands, a backslash joins lines."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines for part in line.split("&&") if (words := shlex.split(part, comments=True))]


def png(seed: int, mode: str, side: int) -> bytes:
    """Return a noise image."""
    shape = (side, side) if mode == "L" else (side, side, 3)
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def table(count: int, side: int) -> bytes:
    """Return a parquet file of grey images with labels."""
    images = pa.array([{"bytes": png(i, "L", side), "path": None} for i in range(count)])
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": images, "label": [i % 10 for i in range(count)]}), buffer)
    return buffer.getvalue()


class Reader:
    """Reads the documents in order, once: `read(document)` pastes all up to its end."""

    def __init__(self, hub: Standin, folder: Path, process: subprocess.Popen[str]) -> None:
        self.hub, self.folder, self.process = hub, folder, process
        self.done = list[str]()

    def read(self, document: str) -> None:
        """Paste every block of the documents up to `document` that was not pasted before."""
        for name in DOCUMENTS[: DOCUMENTS.index(document) + 1]:
            if name not in self.done:
                self.done.append(name)
                for block in blocks(name):
                    self.paste(block)

    def paste(self, block: Block) -> None:
        """Run a block; fail with its place, its text and the end of stderr unless it ends well."""
        if block.language == "python":
            self.ask(block.place, [], block.text)
            return
        for words in commands(block):
            if words[0] not in INSTALLED:
                self.ask(block.place, words, "")
                self.check(block.place, words)

    def ask(self, place: str, words: list[str], code: str) -> None:
        """Have the process run words or code."""
        assert self.process.stdin and self.process.stdout
        print(json.dumps((place, words, code)), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if answer.strip() != "0":
            said = (self.folder / "stderr.txt").read_text(encoding="utf-8")[-4000:]
            pytest.fail(f"{place}: {' '.join(words) or code}\nended with {answer or 'a crash'}\n{said}", pytrace=False)

    def check(self, place: str, words: list[str]) -> None:
        """Assert that a command has left the things that it names: files, a trained model, a repository."""
        values = {words[i - 1]: word for i, word in enumerate(words) if i}
        for option in ("-o", "--output", "--output-dir"):
            if option in values:
                assert (self.folder / values[option]).exists(), f"{place}: {words} left no {values[option]}"
        if "--output-dir" in values:
            run = self.folder / values["--output-dir"]
            assert (run / "model" / "model_index.json").is_file(), place
            assert yaml.safe_load((run / "config.yaml").read_text())["max_steps"] <= SMALL["max_steps"], place
        for option, kind in (("publish", "model"), ("--publish-to", "model"), ("--push-dataset", "dataset")):
            if option in words:
                repo_id = words[words.index(option) + (2 if option == "publish" else 1)]
                if repo_id.startswith("./"):
                    assert (self.folder / repo_id / "README.md").is_file(), place
                    continue
                assert self.hub.repo(repo_id, kind).private != ("--public" in words), place


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Return a reader with the repository's recipes, photos, horses, zebras and a table, and MNIST on the Hub."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "training").symlink_to(ROOT / "training")
    for name in ("photos", "horses", "zebras", "edges", "facades"):
        (folder / name).mkdir()
        for i in range(20):
            (folder / name / f"{i:02d}.png").write_bytes(png(i, "RGB", 48))
    (folder / "scans.parquet").write_bytes(table(40, 16))
    with Standin(tokens={TOKEN: "your-name"}) as hub, open(folder / "stderr.txt", "w", encoding="utf-8") as stderr:
        mnist = {f"mnist/{split}-00000-of-00001.parquet": table(count, 28) for split, count in SPLITS}
        hub.put("ylecun/mnist", mnist, kind="dataset")
        environment = client_environment(hub, folder / "home", TOKEN, offline=False)
        environment |= {"HFGEN_SMALL": "1", "HFGEN_CACHE": str(folder / "cache")}
        process = subprocess.Popen(
            [sys.executable, "-c", HURRY + READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
            text=True, cwd=folder, env=environment,
        )  # fmt: skip
        with process:
            yield Reader(hub, folder, process)
            assert process.stdin
            process.stdin.close()


SPLITS = (("train", 64), ("test", 32))
"""Images of each split of the small MNIST on the Hub."""


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_of_a_document_runs_as_it_is_pasted(reader: Reader, document: str) -> None:
    found = blocks(document)
    assert len(found) >= 8 and {block.language for block in found} <= {"bash", "python"}
    reader.read(document)


def test_the_lines_that_install_name_extras_that_there_are() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = set(setup["options.extras_require"])
    found = [words for name in DOCUMENTS for block in blocks(name) if block.language == "bash"
             for words in commands(block) if words[0] in INSTALLED]  # fmt: skip
    installs = [words for words in found if words[0] == "pip"]
    assert len(installs) >= 2 and ["pytest"] in found
    for words in installs:
        assert words[:-1] == ["pip", "install", "-c", "constraints.txt", "-e"]
        assert set(words[-1].removeprefix(".[").removesuffix("]").split(",")) <= extras


def test_the_line_that_clones_gives_a_folder_that_can_be_installed(tmp_path: Path) -> None:
    lines = [words for block in blocks("README.md") for words in commands(block) if words[0] in ("git", "cd")]
    assert lines == [["git", "clone", "ADDRESS", "hfgen"], ["cd", "hfgen"]]
    if not (ROOT / ".git").exists():
        pytest.skip("this folder is no clone")
    subprocess.run(["git", "clone", "--quiet", str(ROOT), "hfgen"], cwd=tmp_path, check=True)
    assert (tmp_path / "hfgen/setup.cfg").is_file() and (tmp_path / "hfgen/hfgen/pipelines/ddpm.py").is_file()


def test_the_table_for_scripts_of_diffusers_names_things_that_there_are_on_both_sides() -> None:
    import hfgen

    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("| diffusers | hfgen |")[2].partition("\n\n")[0]
    rows = [row.strip("|").split(" | ") for row in table.splitlines()[2:]]
    assert len(rows) == 9 and all(len(row) == 2 for row in rows)
    for name in re.findall(r"`([A-Z]\w+)", " ".join(row[0] for row in rows)):
        assert hasattr(diffusers, name), name
    ours = " ".join(row[1] for row in rows)
    for name in re.findall(r"hfgen\.([\w.]+)", ours):
        value: Any = hfgen
        for part in name.split("."):
            value = getattr(value, part)
    fields = {field.name for field in dataclasses.fields(SPEC.settings)}
    options = {option.replace("-", "_") for option in re.findall(r"--([\w-]+)", ours)}
    assert options and options <= fields, options - fields


def test_readme_is_a_page_and_the_tour_has_every_recipe_with_its_five_parts() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
    tour = (ROOT / "training/README.md").read_text(encoding="utf-8")
    sections = {part.split("\n")[0].split(":")[0]: part for part in tour.split("\n## ")}
    for recipe in RECIPES:
        assert f"hfgen train {recipe} " in sections[recipe]
        for heading in ("Objective", "Watch", "Trouble", "Evaluate"):
            assert f"**{heading}.**" in sections[recipe], f"{recipe}: no {heading}"


def test_headline_numbers_stand_in_the_results_with_the_same_digits() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [line for line in readme.partition("## Headline results")[2].splitlines() if line.startswith("| ")]
    results = numbers((ROOT / "tests/benchmarks/RESULTS.md").read_text(encoding="utf-8"))
    assert len(rows) == 13
    for row in rows[1:]:
        cells = row.split("|")[2:4]
        assert numbers(" ".join(cells)) and numbers(" ".join(cells)) <= results, row


def numbers(text: str) -> set[str]:
    """Return the numbers of a text, as they are written."""
    return set(re.findall(r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)", text))


@pytest.mark.parametrize("document", [*DOCUMENTS, "CONTRIBUTING.md", "tests/benchmarks/RESULTS.md"])
def test_every_link_and_picture_of_a_document_is_there(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert target.startswith("https://") or ((ROOT / document).parent / target).exists(), target


def test_the_small_setting_caps_the_fields_that_it_names_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"output_dir": Path("x"), "budget": "2h", "learning_rate": 0.5}
    monkeypatch.delenv("HFGEN_SMALL", raising=False)
    assert small(Settings(**asked)) == Settings(**asked)
    monkeypatch.setenv("HFGEN_SMALL", "1")
    expected = Settings(output_dir=Path("x"), learning_rate=0.5, max_steps=4, batch_size=16, threads=1)
    assert small(Settings(**asked)) == expected
    assert small(Settings(output_dir=Path("x"), max_steps=2, batch_size=8)).max_steps == 2
