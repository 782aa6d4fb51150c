"""Where cards, shims and messages say that hfgen comes from: the publisher's source, and never the bare name."""

import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hfgen.cards.write import write_card, write_component_card
from hfgen.errors import ConfigError
from hfgen.hub.source import VARIABLE, checked_source, install_command, shim
from hfgen.hub.upload import files_of, on_disk
from tests.cards.helpers import blocks
from tests.hub.models import COMPONENTS, FAMILIES, make, make_component

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "git+https://example.org/our/hfgen.git@v1"
BARE = re.compile(r"pip install\W*hfgen", re.IGNORECASE)


def texts(folder: Path) -> dict[str, str]:
    """Return the text of every file in a folder that people read."""
    return {name: (folder / name).read_text() for name in files_of(folder) if name.endswith((".md", ".py"))}


@pytest.mark.parametrize("family", FAMILIES)
def test_no_card_and_no_shim_of_any_family_names_a_package_index_by_default(family: str, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    make(family).save_pretrained(tmp_path / "saved")
    write_card(tmp_path / "saved", repo_id="user/name")
    found = texts(tmp_path / "saved")
    assert "README.md" in found and len(found) == 1 + sum(path.suffix == ".py" for path in tmp_path.rglob("*"))
    expected = "This project has no package on PyPI: ask the publisher of this model for the source of hfgen"
    for name, text in found.items():
        assert "pip install" not in text and expected in text, name


@pytest.mark.parametrize("family", FAMILIES)
def test_with_a_source_every_card_and_shim_installs_from_it_and_from_nothing_else(family: str, tmp_path) -> None:
    make(family).save_pretrained(tmp_path / "saved", source=SOURCE)
    write_card(tmp_path / "saved", repo_id="user/name", source=SOURCE)
    for name, text in texts(tmp_path / "saved").items():
        assert set(re.findall(r"pip install (\S+)", text)) == {SOURCE} and not BARE.search(text), name
        if name.endswith(".py"):
            assert next(line for line in text.splitlines() if line.startswith("from hfgen")).endswith(SOURCE)
            compile(text, name, "exec")


@pytest.mark.parametrize("name", COMPONENTS)
def test_the_card_of_a_component_follows_the_same_rule_and_its_code_is_that_of_its_class(name: str, tmp_path) -> None:
    cls = type(make_component(name))
    plain = write_component_card(tmp_path, cls, "user/part", None).read_text()
    assert "pip install" not in plain and "ask the publisher of this model for the source" in plain
    assert f'hfgen.{name}.from_pretrained("user/part")' in blocks(plain, "python")[0]
    text = write_component_card(tmp_path, cls, "user/part", SOURCE).read_text()
    assert blocks(text, "bash") == [f"pip install {SOURCE}"] and "Do not install the name hfgen from an index" in text
    assert write_component_card(tmp_path, cls, "user/part", None).read_text() == plain


def test_the_environment_names_the_source_and_a_keyword_goes_before_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(VARIABLE, SOURCE)
    make("gan").save_pretrained(tmp_path / "saved")
    assert shim("GANPipeline", SOURCE) == (tmp_path / "saved/pipeline.py").read_text()
    assert blocks(write_card(tmp_path / "saved").read_text(), "bash") == [f"pip install {SOURCE}"]
    other = "our-generators>=1"
    assert blocks(write_card(tmp_path / "saved", source=other).read_text(), "bash") == [f"pip install '{other}'"]
    monkeypatch.setenv(VARIABLE, "hfgen")
    with pytest.raises(ConfigError, match="the bare name hfgen, which this project does not own on PyPI"):
        write_card(tmp_path / "saved")
    monkeypatch.setenv(VARIABLE, "")
    assert checked_source() is None


@pytest.mark.parametrize(
    "source",
    [SOURCE, "https://example.org/hfgen-1-py3-none-any.whl", "git+ssh://git@example.org/hfgen.git", "file:///srv/hfgen",
     "hfgen @ git+https://example.org/hfgen.git", "hfgen[eval] @ https://example.org/hfgen.whl", "our-generators==2"],
)  # fmt: skip
def test_a_url_or_a_requirement_of_pip_is_a_source(source: str) -> None:
    assert checked_source(source) == source
    assert shlex.split(install_command(source)) == ["pip", "install", source]


@pytest.mark.parametrize(
    "source",
    ["hfgen", "HFGen", "hfgen==0.1", "hfgen[eval]>=1", "-r requirements.txt", "--index-url=https://example.org x", "",
     "http://example.org/hfgen.whl", "https://user:secret@example.org/hfgen.git", "https://token@example.org/hfgen.git",
     "hfgen @ https://token@example.org/h.git", "git+ssh://git:secret@example.org/h.git", "a b", "./hfgen",
     "/srv/hfgen", "https://example.org/a b", "https://example.org/\nimport evil", "https://example.org/`x`\u2028", "ftp://x/y"],
)  # fmt: skip
def test_what_would_run_a_strangers_code_leak_a_password_or_break_a_line_is_refused(source: str) -> None:
    with pytest.raises(ConfigError, match=r"source \(--source, HFGEN_SOURCE\) must be a URL"):
        checked_source(source)


def test_the_line_in_the_card_installs_the_package_that_lies_at_the_source(tmp_path: Path) -> None:
    wheel = tmp_path / "our_generators-7-py3-none-any.whl"
    about = {
        "METADATA": "Metadata-Version: 2.1\nName: our-generators\nVersion: 7\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("our_generators.py", "answer = 42\n")
        for name, text in about.items():
            file.writestr(f"our_generators-7.dist-info/{name}", text)
    make("gan").save_pretrained(tmp_path / "saved")
    [line] = blocks(write_card(tmp_path / "saved", source=wheel.as_uri()).read_text(), "bash")
    words = [sys.executable, "-m", *shlex.split(line), "--no-index", "--no-deps", "--target", str(tmp_path / "there")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "there/our_generators.py").read_text() == "answer = 42\n"


def test_the_command_to_retry_keeps_the_source() -> None:
    words = shlex.split(on_disk("runs/a b", "user/x", message="Hi there", source="hfgen @ https://example.org/h.whl"))
    assert words[-4:] == ["--message", "Hi there", "--source", "hfgen @ https://example.org/h.whl"]


def test_no_text_of_the_project_tells_anybody_to_install_the_bare_name() -> None:
    files = [path for folder in ("hfgen", "pipelines", "training") for path in (ROOT / folder).rglob("*.py")]
    files += list(ROOT.glob("*.md"))
    assert len(files) > 150
    assert [str(path) for path in files if BARE.search(path.read_text(encoding="utf-8"))] == []
