"""Networks and schedulers alone on the Hub: published privately with a card, read back, and loaded by their ids."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import hfgen
from tests.hub.models import COMPONENTS, make, make_component
from tests.hub.standin import TOKEN, Standin, run_client
from tests.hub.worker import Ask, worker

WEIGHTS = "diffusion_pytorch_model.safetensors"
LOAD = """
import hfgen
from hfgen.errors import HfgenError
from safetensors.torch import save_file

def load(name, repo_id, **words):
    try:
        part = getattr(hfgen, name).from_pretrained(repo_id, **words)
    except HfgenError as error:
        return [type(error).__name__, str(error)]
    return [type(part).__name__, float(sum(p.detach().double().sum() for p in getattr(part, "parameters", list)()))]
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[Standin]:
    """Return a Hub for all tests of this file, which give their repositories names of their own."""
    with Standin() as standin:
        yield standin


@pytest.fixture(scope="module")
def ask(hub: Standin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Return a function that runs words of hfgen's command line, or code that sets `answer`, in another process."""
    with worker(hub, tmp_path_factory.mktemp("home")) as ask:
        yield ask


def weigh(net: torch.nn.Module) -> float:
    """Return the sum of all weights, which tells one network of these tests from another."""
    return float(sum(parameter.detach().double().sum() for parameter in net.parameters()))


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_goes_up_in_one_private_commit_with_a_card_and_comes_back(
    name: str, ask: Ask, hub: Standin, tmp_path: Path
) -> None:
    repo_id = f"user/{name}"
    code = f"""{LOAD}
from tests.hub.models import make_component
part = make_component({name!r}, 3)
done, again = part.push_to_hub({repo_id!r}), part.push_to_hub({repo_id!r})
answer = [done.public, done.changed, again.changed, done.oid == again.oid, *load({name!r}, {repo_id!r})]
"""
    component = make_component(name, 3)
    total = weigh(component) if isinstance(component, torch.nn.Module) else 0.0
    assert ask(code) == [False, True, False, True, name, total]
    files = hub.files(repo_id)
    component.save_pretrained(tmp_path)
    saved = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(files) == {".gitattributes", "README.md", *saved}
    assert all(files[file] == content for file, content in saved.items())
    newest, first = hub.commits(repo_id)
    assert hub.repo(repo_id).private and newest.title.startswith(name) and first.title == "initial commit"
    assert hub.seen(f"GET /{repo_id}/resolve/{newest.oid}/")
    card = files["README.md"].decode()
    assert f'hfgen.{name}.from_pretrained("{repo_id}")' in card and "pip install" not in card


def test_public_source_and_message_are_heeded_and_old_files_go_while_other_words_stay(ask, hub) -> None:
    card = b"---\nlicense: mit\n---\n# Mine\n\nMy words.\n"
    old = {"diffusion_pytorch_model.fp16.safetensors": b"x", "diffusion_pytorch_model.safetensors.index.json": b"{}",
           "notes.txt": b"keep", "README.md": card, "samples/a.json": b"{}"}
    hub.put("user/grown", old)
    code = """
from tests.hub.models import make_component
done = make_component("UNet").push_to_hub(
    "user/grown", private=False, commit_message="Mine", source="git+https://example.org/hfgen.git")
answer = done.public
"""
    assert ask(code) is True
    files = hub.files("user/grown")
    assert set(files) - {".gitattributes"} == {"config.json", WEIGHTS, "README.md", "notes.txt", "samples/a.json"}
    text = files["README.md"].decode()
    assert "license: mit" in text and "# Mine\n\nMy words." in text and "hfgen.UNet.from_pretrained" in text
    assert "```bash\npip install git+https://example.org/hfgen.git\n```" in text
    assert hub.commits("user/grown")[0].title == "Mine"


def test_what_is_refused_leaves_the_repository_as_it_was(ask, hub, tmp_path) -> None:
    make("ddpm").save_pretrained(tmp_path)
    hub.put("user/whole", tmp_path, private=True)
    hub.put("user/open", {"README.md": b"hello"})
    for repo_id, words, message in (
        ("user/whole", "", "user/whole: holds a pipeline"),
        ("user/open", "", "exists and is public"),
        ("user/new", "source='hfgen'", "the bare name hfgen"),
        ("a--b/bad", "", "is no repository on the Hub"),
        ("a b", "", "is no repository on the Hub"),
    ):
        code = f"""
from hfgen.errors import ConfigError
from tests.hub.models import make_component
try:
    make_component("UNet").push_to_hub({repo_id!r}, {words})
except ConfigError as error:
    answer = str(error)
"""
        assert message in ask(code)
    for name in ("user/whole", "user/open"):
        assert [commit.title for commit in hub.commits(name)] == ["from outside", "initial commit"]
    assert ("model", "user/new") not in hub.repos


def test_a_component_is_loaded_out_of_a_pipeline_a_run_and_a_revision_on_the_hub_and_then_offline(
    hub: Standin, tmp_path: Path
) -> None:
    pipes = [make("ddpm", seed) for seed in (1, 2)]
    for pipe in pipes:
        pipe.save_pretrained(tmp_path / "saved")
        hub.put("user/pipe", tmp_path / "saved", title=str(weigh(pipe.unet)))
    hub.tag("user/pipe", "first", hub.commits("user/pipe")[1].oid)
    pipes[1].save_pretrained(tmp_path / "run/model")
    hub.put("user/run", tmp_path / "run")
    first, second = (weigh(pipe.unet) for pipe in pipes)
    calls = [("UNet", "user/pipe", {}, second), ("UNet", "user/pipe", {"subfolder": "unet"}, second),
             ("UNet", "user/pipe", {"subfolder": "unet", "revision": "first"}, first),
             ("UNet", "user/run", {"subfolder": "unet"}, second), ("UNet", "user/run", {}, second),
             ("UNet", "user/run", {"subfolder": "model/unet", "device": "cpu"}, second),
             ("DDPMScheduler", "user/pipe", {"subfolder": "scheduler"}, 0.0), ("DDPMScheduler", "user/run", {}, 0.0)]
    program = f"""{LOAD}
import json, sys
print(json.dumps([load(name, repo, **words) for name, repo, words, _ in json.loads(sys.argv[1])]))
"""
    for offline in (False, True):
        before = len(hub.requests)
        said = run_client(hub, program, tmp_path, json.dumps(calls), offline=offline).stdout
        assert json.loads(said.splitlines()[-1]) == [[name, total] for name, _, _, total in calls]
        assert (len(hub.requests) == before) is offline
    seen = hub.seen("GET /user/(pipe|run)/resolve/")
    fetched = {request.path.split("/resolve/")[1].split("/", 1)[1] for request in seen}
    assert fetched == {f"{place}{name}" for place in ("", "model/") for name in (
        "model_index.json", "unet/config.json", f"unet/{WEIGHTS}", "scheduler/scheduler_config.json")}  # fmt: skip


def test_of_a_repository_with_only_a_pickle_nothing_is_fetched_and_an_error_says_so(ask, hub, tmp_path) -> None:
    make("ddpm").save_pretrained(tmp_path)
    config = (tmp_path / "unet/config.json").read_bytes()
    alone = {"config.json": config, "diffusion_pytorch_model.bin": b"\x80\x04."}
    hub.put("user/pickle", alone)
    hub.put("user/mixed", {f"unet/{name}": content for name, content in alone.items()})
    hub.put("user/mixed", {"vae/config.json": b"{}", f"vae/{WEIGHTS}": b"x", "scheduler/scheduler_config.json":
                           (tmp_path / "scheduler/scheduler_config.json").read_bytes()})  # fmt: skip
    code = f"""{LOAD}
answer = [load("UNet", "user/pickle"), load("UNet", "user/mixed", subfolder="unet"),
          load("DDPMScheduler", "user/mixed", subfolder="scheduler"), load("UNet", "user/none")]
"""
    alone_says, mixed_says, scheduler, none = ask(code)
    for kind, says in (alone_says, mixed_says):
        assert kind == "UnsafeContentError" and "diffusion_pytorch_model.bin" in says
    assert scheduler == ["DDPMScheduler", 0.0] and none[0] == "ConfigError" and "no such model on the Hub" in none[1]
    assert not hub.seen(r"resolve/.*\.bin")


def test_where_hfgen_cannot_be_imported_plain_diffusers_loads_the_published_twins(ask, hub, tmp_path) -> None:
    twins = {"UNet": "UNet2DModel", "AutoencoderKL": "AutoencoderKL", "VQAutoencoder": "VQModel",
             "DDPMScheduler": "DDPMScheduler"}  # fmt: skip
    ask(f"""
from tests.hub.models import make_component
answer = [make_component(name, 8).push_to_hub("user/twin-" + name).changed for name in {list(twins)!r}]
""")
    program = f"""
        import sys
        import diffusers, torch
        from safetensors.torch import save_file
        found = {{}}
        for name, stock in {twins!r}.items():
            part = getattr(diffusers, stock).from_pretrained("user/twin-" + name)
            tensors = part.state_dict() if isinstance(part, torch.nn.Module) else {{"betas": part.betas}}
            found |= {{name + "/" + key: tensor.contiguous() for key, tensor in tensors.items()}}
        assert not any(name.split(".")[0] == "hfgen" for name in sys.modules)
        save_file(found, sys.argv[1])
    """
    run_client(hub, program, tmp_path, tmp_path / "found", token=TOKEN, without_hfgen=True)
    found = load_file(tmp_path / "found")
    for name in ("UNet", "AutoencoderKL", "VQAutoencoder"):
        expected = make_component(name, 8).state_dict()
        assert all(torch.equal(found[f"{name}/{key}"], tensor) for key, tensor in expected.items())
        assert sum(key.startswith(f"{name}/") for key in found) == len(expected)
    assert torch.equal(found["DDPMScheduler/betas"], hfgen.DDPMScheduler(
        num_train_timesteps=20, beta_schedule="squaredcos_cap_v2").betas)  # fmt: skip
