"""Help and errors in arguments come at once: no library that loads slowly is imported on the way to them."""

import json
import resource
import subprocess
import sys

import pytest

from hfgen.cli import RECIPES

HEAVY = ("torch", "diffusers", "transformers", "datasets", "accelerate", "numpy", "sklearn", "PIL")
MOST = 1.0
"""CPU seconds of a command; it takes about 0.3."""

HELP = ["--help", "-h", "--version", "sample --help", "evaluate -h", "compare -h", "publish -h", "train --help"]
HELP += ["train -h", "train gan -h", *(f"train {recipe} --help" for recipe in RECIPES)]

ERRORS = [
    "",
    "nonsense",
    "train nonsense",
    "train ddpm",
    "train ddpm --output-dir x --lr 3",
    "train ddpm --output-dir x --batch-size 0",
    "train ddpm --output-dir x --batch-size many",
    "train ddpm --output-dir x --weighting nonsense",
    "train vae --output-dir x --config no/such/file.yaml",
    "sample",
    "sample run -n x",
    "sample run -n 0",
    "sample nofolder -o x.png",
    "sample tests --sampler nonsense -o x.png",
    "sample tests -o x.tiff",
    "evaluate nofolder --dataset digits",
    "evaluate tests --dataset digits --sampler nonsense",
    "compare tests nofolder --dataset digits -o x",
    "train latent_diffusion --output-dir x --autoencoder nofolder",
    "train gan --output-dir x --start-from nofolder",
    "evaluate run --dataset digits --metrics nonsense",
    "publish run",
]

PROGRAM = f"""
import sys, json
from hfgen.cli import main
try:
    main(json.loads(sys.argv[1]))
except SystemExit as ended:
    heavy = [name for name in {HEAVY} if name in sys.modules]
    print(json.dumps([ended.code, heavy]), file=sys.stderr)
"""


def ended(words: str) -> tuple[int, list[str], float]:
    """Return the exit code of a command, the heavy libraries that it imported, and its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", PROGRAM, json.dumps(words.split())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, heavy = json.loads(done.stderr.splitlines()[-1])
    return code, heavy, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


NO_DATA = [
    "train ddpm --output-dir x --dataset nofolder",
    "train vae --output-dir x --eval-dataset nofolder",
    "evaluate tests --dataset nofolder",
]

CASES = [(words, code) for code, commands in ((0, HELP), (2, ERRORS), (65, NO_DATA)) for words in commands]


@pytest.mark.parametrize(("words", "code"), CASES)
def test_help_and_errors_in_arguments_take_less_than_a_second_and_import_nothing_heavy(words: str, code: int) -> None:
    found, heavy, seconds = ended(words)
    assert (found, heavy) == (code, [])
    assert seconds < MOST
