"""Completion in the shell: the script that the help names, in bash."""

import shutil
import subprocess
import sys

import pytest

from hfgen.cli import RECIPES

BASH = """
eval "$({python} -m hfgen --tyro-print-completion bash)"
function=$(complete -p hfgen | sed -E 's/.*-F ([^ ]+).*/\\1/')
try() {{
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    $function hfgen "${{COMP_WORDS[-1]}}" "${{COMP_WORDS[-2]}}"
    echo "${{COMPREPLY[*]}}"
}}
try hfgen tr
try hfgen train ""
try hfgen train ddpm --bat
try hfgen train gan --loss hin
try hfgen sample run --sam
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_recipes_their_fields_and_choices() -> None:
    script = BASH.format(python=sys.executable)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    commands, recipes, field, choice, option = done.stdout.splitlines()
    assert commands == "train" and field == "--batch-size" and choice == "hinge" and option == "--sampler"
    assert set(RECIPES) <= set(recipes.split())


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script_of_their_own(shell: str) -> None:
    command = [sys.executable, "-m", "hfgen", "--tyro-print-completion", shell]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "hfgen" in done.stdout and "importance" in done.stdout and "latent_diffusion" in done.stdout


def test_the_help_names_the_line_that_turns_completion_on() -> None:
    done = subprocess.run([sys.executable, "-m", "hfgen", "-h"], capture_output=True, text=True, check=True)
    assert 'eval "$(hfgen --tyro-print-completion bash)"' in done.stdout
