"""The distribution: extras, the page of an index, and a source archive that runs its own tests."""

import ast
import json
import os
import re
import subprocess
import sys
import tarfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from tests.imports import sources

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = "https://127.0.0.1/somebody/hfgen"

METADATA = """
import json, setuptools
from distutils.core import run_setup
metadata = run_setup("setup.py", stop_after="config").metadata
print(json.dumps([metadata.long_description, metadata.project_urls]))
"""


def setup_cfg() -> ConfigParser:
    """Return setup.cfg."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return setup


def packages_of(lines: str) -> set[str]:
    """Return the names of packages in lines of requirements, with underscores."""
    return {re.split(r"[<>=\[]", line.strip())[0].replace("-", "_") for line in lines.splitlines() if line.strip()}


BROUGHT = {"pyarrow", "tokenizers", "torch_fidelity"}
"""Libraries that datasets and transformers bring along, and one that is used where a user has installed it."""


def test_every_library_that_the_package_imports_is_a_dependency_and_no_other_is() -> None:
    # collect the top-level packages that the source imports
    imported = set[str]()
    for path in sources(ROOT):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    names = {"PIL": "pillow", "sklearn": "scikit_learn", "yaml": "pyyaml"}
    third = {names.get(name, name) for name in imported - set(sys.stdlib_module_names) - {"hfgen"}}
    # compare them with the requirements
    setup = setup_cfg()
    needed = packages_of(setup["options"]["install_requires"])
    optional = packages_of(setup["options.extras_require"]["eval"])
    trackers = packages_of(setup["options.extras_require"]["track"])     # Accelerate imports those it is asked for
    assert third - BROUGHT - trackers == needed | optional
    assert {"torchmetrics", "scipy"} <= packages_of(setup["options.extras_require"]["test"])


def page(address: str) -> tuple[str, dict[str, str]]:
    """Return the long description and the project's addresses, as setup.py makes them."""
    command = [sys.executable, "-W", "ignore", "-c", METADATA]
    environment = {**os.environ, "HFGEN_SOURCE": address}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    text, urls = json.loads(done.stdout.splitlines()[-1])
    return text, urls


@pytest.mark.parametrize("address", [ADDRESS, f"git+{ADDRESS}", f"{ADDRESS}.git"])
def test_the_page_of_an_index_has_absolute_pictures_links_and_the_address_that_the_publisher_names(
    address: str
) -> None:
    text, urls = page(address)
    assert urls["Source"] == ADDRESS
    assert f"({ADDRESS}/raw/HEAD/tests/benchmarks/figures/digits.png)" in text
    assert f"[training/README.md]({ADDRESS}/blob/HEAD/training/README.md)" in text
    assert not re.findall(r"\]\((?!https://|#)", text)


def test_without_an_address_the_page_is_the_readme_and_names_none() -> None:
    text, urls = page("")
    assert text == (ROOT / "README.md").read_text(encoding="utf-8") and not urls


@pytest.mark.slow
def test_a_source_archive_runs_its_own_tests(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "setup.py", "egg_info", "--egg-base", tmp_path, "sdist", "-d", tmp_path]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    (home,) = (path for path in tmp_path.iterdir() if path.is_dir() and (path / "setup.cfg").is_file())
    assert not (home / "hfgen/pipelines").exists() and (home / "hfgen/py.typed").is_file()
    tests = ["tests/models/test_classifier.py", "tests/test_discovery.py", "tests/test_first_steps.py"]
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", *tests, "-k", "not jedi and not archive"]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
