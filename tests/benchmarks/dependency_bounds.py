"""The lower bounds of the dependencies in setup.cfg, and the newest releases, each in an environment of its own.

    python -m tests.benchmarks.dependency_bounds [lowest] [newest] [--folder FOLDER] [--bound NAME=VERSION ...]

`lowest` installs every dependency at exactly its lower bound, `newest` without one; torch is that of constraints.txt in
both, all others are what pip resolves. In each environment a short suite of hfgen runs: the Hub's client, loading and
saving, networks, pipelines, data, settings, training and sampling. `--bound` tries another lower bound.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
import venv
from collections import Counter
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SUITE = (
    "tests/hub/test_loading.py", "tests/loading/test_mixins.py", "tests/pipelines/test_pipeline_latent_diffusion.py",
    "tests/test_first_steps.py", "tests/models/test_unet.py", "tests/pipelines/test_pipeline_ddpm.py",
    "tests/data/test_data_tables.py", "tests/training/engine/test_settings.py",
)  # fmt: skip

RUNNERS = ("pytest", "pytest-timeout", "pytest-xdist")


def bounds() -> dict[str, str]:
    """Return the lower bound of each dependency in setup.cfg."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = setup["options"]["install_requires"].split()
    return dict(line.split(">=") for line in lines)


def requirements(kind: str, lower: dict[str, str]) -> list[str]:
    """Return the requirements of an environment, without torch."""
    names = [name for name in lower if name != "torch"]
    return [f"{name}=={lower[name]}" for name in names] if kind == "lowest" else names


def environment(folder: Path, kind: str, lower: dict[str, str]) -> Path:
    """Return the Python of a new environment with the dependencies of a kind."""
    # make the environment
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    # install torch by its pin, then the rest
    (pin,) = re.findall(r"^torch==.*$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    for words in ([pin], [pin, *requirements(kind, lower), *RUNNERS]):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *words], check=True)
    return python


def versions(python: Path, names: list[str]) -> dict[str, str]:
    """Return the installed version of each package."""
    program = "import json, sys; from importlib.metadata import version\n"
    program += "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    done = subprocess.run([python, "-c", program, *names], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def suite(python: Path) -> tuple[dict[str, int], str]:
    """Return how many tests passed, failed and so on, and the whole output.

    Each file runs in a process of its own, so that one that crashes is counted and no other is lost. Warnings of
    libraries, such as of old releases with a new torch, are no errors here.
    """
    counts, output = Counter[str](), ""
    for file in SUITE:
        command = [python, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", "-o", "filterwarnings=default"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([*command, file], cwd=ROOT, env=environment, capture_output=True, text=True)
        last = (done.stdout.strip().splitlines() or ["nothing"])[-1]
        found = {kind: int(number) for number, kind in re.findall(r"(\d+) (passed|failed|error|skipped)", last)}
        counts.update(found or {"crashed": 1})
        print(f"    {file}: {last}", flush=True)
        output += f"{file}: {last}\n{done.stdout}{done.stderr}\n"
    return dict(counts), output


def main() -> None:
    """Make the environments, run the suite in each, and print versions and results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=["lowest", "newest"])
    parser.add_argument("--folder", type=Path, help="folder of the environments; default: a temporary one")
    parser.add_argument("--bound", action="append", default=[], metavar="NAME=VERSION")
    options = parser.parse_args()
    lower = bounds() | dict(one.split("=") for one in options.bound)
    with tempfile.TemporaryDirectory() as temporary:
        for kind in options.kinds:
            # install
            began = time.monotonic()
            folder = (options.folder or Path(temporary)) / kind
            python = environment(folder, kind, lower)
            installed = versions(python, list(lower))
            print(kind, ", ".join(f"{name} {version}" for name, version in installed.items()), flush=True)
            # test
            seconds = time.monotonic() - began
            counts, output = suite(python)
            (folder / "suite.txt").write_text(output, encoding="utf-8")
            result = ", ".join(f"{number} {name}" for name, number in counts.items())
            print(f"{kind}: installed in {seconds:.0f} s; {result}", flush=True)


if __name__ == "__main__":
    main()
