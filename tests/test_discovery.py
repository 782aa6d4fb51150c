"""Names as tools find them: jedi and mypy in a script of a user, star imports, `help`, and the rooms as attributes."""

import os
import pydoc
import re
import subprocess
import sys
import venv
from configparser import ConfigParser
from pathlib import Path

import jedi
import pytest

import hfgen
from hfgen.registry import FUNCTIONS, MODULES, ROOMS

ROOT = Path(__file__).resolve().parents[1]

MEMBERS = {
    "DDPMPipeline": ("from_pretrained", "save_pretrained", "push_to_hub", "states", "num_classes"),
    "GANPipeline": ("from_pretrained", "states"),
    "VAEPipeline": ("encode", "manifold"),
    "UNet": ("forward", "from_pretrained", "num_parameters"),
    "DDPMScheduler": ("add_noise", "step", "snr"),
    "AutoPipeline": ("from_pretrained",),
}
"""Some members of some classes, their own and inherited ones."""


def test_all_and_the_imports_for_static_tools_are_in_step_with_the_registry() -> None:
    assert sorted(hfgen.__all__) == sorted([*MODULES, "__version__"])
    source = Path(hfgen.__file__).read_text(encoding="utf-8")
    static = source.partition("if TYPE_CHECKING:")[2].partition("__version__")[0]
    found = {}
    for module, names in re.findall(r"^    from (hfgen\.[\w.]+) import (.+)$", static, re.MULTILINE):
        found |= dict.fromkeys(names.split(", "), module)
    assert found == MODULES
    assert re.findall(r"^    from hfgen import (\w+) as \1$", static, re.MULTILINE) == sorted(ROOMS)


def test_a_star_import_brings_every_public_name_and_shadows_nothing() -> None:
    names: dict[str, object] = {}
    exec("from hfgen import *", names)
    assert set(MODULES) <= set(names) and "logging" not in names


def test_jedi_completes_every_public_name_and_room() -> None:
    completed = {one.name for one in jedi.Script("import hfgen\nhfgen.").complete(2, 6)}
    assert {*MODULES, *ROOMS} <= completed


QUICK = ("DDPMPipeline", "evaluate")
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in sorted(MODULES)]


@pytest.mark.parametrize("name", NAMES)
def test_jedi_infers_every_public_name_and_completes_its_members(name: str) -> None:
    script = jedi.Script(f"import hfgen\nhfgen.{name}\nhfgen.{name}.")
    inferred = script.infer(2, 8)
    assert [(one.name, one.module_name) for one in inferred] == [(name, MODULES[name])]
    if name not in FUNCTIONS:
        members = {one.name for one in script.complete(3, len(f"hfgen.{name}."))}
        assert set(MEMBERS.get(name, ())) <= members and len(members) > 20


def test_an_editable_install_is_a_path_that_jedi_follows(tmp_path: Path) -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert setup["editable_wheel"]["mode"] == "compat"                 # the folder in a .pth, and no import hook
    venv.create(tmp_path / "venv")
    (site,) = (tmp_path / "venv").rglob("site-packages")
    (site / "__editable__.hfgen.pth").write_text(f"{ROOT}\n", encoding="utf-8")
    environment = jedi.create_environment(tmp_path / "venv", safe=False)
    script = jedi.Script("import hfgen\nhfgen.DDPMPipeline\n", path=tmp_path / "mine.py", environment=environment)
    assert [one.module_name for one in script.infer(2, 8)] == ["hfgen.pipelines.ddpm"]


SCRIPT = """
import hfgen
from hfgen import UNet, evaluate

pipe = hfgen.DDPMPipeline.from_pretrained("runs/digits")
reveal_type(pipe)
reveal_type(UNet.from_pretrained("runs/digits"))
reveal_type(hfgen.data.load_dataset("digits"))
reveal_type(hfgen.losses.adversarial.gradient_penalty)
reveal_type(hfgen.metrics.distances)
hfgen.logging.set_verbosity_error()
net: hfgen.UNet = pipe.unet
hfgen.NoSuchName
"""


@pytest.fixture(scope="module")
def seen_by_mypy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return all that mypy says of a script of a user that names everything that is public."""
    folder = tmp_path_factory.mktemp("user")
    names = "".join(f"reveal_type(hfgen.{name})\n" for name in sorted(MODULES))
    (folder / "script.py").write_text(SCRIPT + names)
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(folder / "cache"), "--follow-imports", "silent",
               "--ignore-missing-imports", "script.py"]  # fmt: skip
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    return done.stdout + done.stderr


@pytest.mark.slow
def test_mypy_knows_every_public_name_and_refuses_others(seen_by_mypy: str) -> None:
    revealed = re.findall(r'Revealed type is "(.*)"', seen_by_mypy)[-len(MODULES):]
    for (name, module), kind in zip(sorted(MODULES.items()), revealed, strict=True):
        assert kind.startswith("def (") and (name in FUNCTIONS or kind.endswith(f"-> {module}.{name}")), (name, kind)
    assert 'Module has no attribute "NoSuchName"' in seen_by_mypy
    for wanted in ("hfgen.pipelines.ddpm.DDPMPipeline", "hfgen.data.dataset.Dataset", "def (critic: "):
        assert f'Revealed type is "{wanted}' in seen_by_mypy, seen_by_mypy


def test_the_rooms_are_attributes_after_the_import_of_hfgen_alone() -> None:
    program = f"import hfgen\nfor room in {ROOMS}:\n    assert getattr(hfgen, room).__name__ == f'hfgen.{{room}}'\n"
    program += "assert callable(hfgen.losses.adversarial.gradient_penalty) and callable(hfgen.metrics.prdc.prdc)\n"
    program += "assert callable(hfgen.data.load_dataset)"
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'; it has adversarial"):
        _ = hfgen.losses.nothing


def test_the_help_of_hfgen_begins_with_a_page_that_has_every_public_name() -> None:
    page = pydoc.plain(pydoc.render_doc(hfgen)).partition("PACKAGE CONTENTS")[0]
    assert len(page.splitlines()) < 60
    for name in (*MODULES, "hfgen.data", "hfgen.losses", "hfgen.metrics", "hfgen train"):
        assert re.search(rf"\b{re.escape(name)}\b", page), name
