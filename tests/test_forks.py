"""Commands that are forked from a server end, print and are killed as those of a new Python are."""

import os
import signal
import subprocess
import sys

import pytest

from tests.forks import ROOT, Fork, completed


def test_a_forked_command_prints_and_ends_as_one_in_a_new_python() -> None:
    words = ["train", "nonsense"]
    program = "import sys; sys.argv[0] = 'hfgen'; from hfgen.cli import main; main()"
    expected = subprocess.run([sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True)
    found = completed(["hfgen", *words], dict(os.environ))
    assert (found.returncode, found.stdout, found.stderr) == (2, expected.stdout, expected.stderr)
    assert "nonsense" in found.stderr and expected.returncode == 2


def test_a_forked_command_has_the_environment_that_it_is_given_and_leaves_ours_as_it_is() -> None:
    before = dict(os.environ)
    module = completed(["tests.environment", "HFGEN_FORKED"], {**before, "HFGEN_FORKED": "yes"})
    assert module.stdout == "yes\n", module.stderr
    assert dict(os.environ) == before


def test_a_forked_command_can_be_waited_for_in_vain_and_killed() -> None:
    fork = Fork(["tests.environment", "--sleep"], dict(os.environ))
    with pytest.raises(subprocess.TimeoutExpired):
        fork.communicate(timeout=0.2)
    assert fork.poll() is None
    fork.kill()
    fork.communicate(timeout=30)
    assert fork.returncode == -signal.SIGKILL
    fork.close()
