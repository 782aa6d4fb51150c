"""Loading from a Hub over HTTP: every family bit for bit, every argument, one commit, broken connections, no code."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hfgen.registry import PIPELINES
from tests.hub.models import FAMILIES, digest, make, outputs
from tests.hub.standin import TOKEN, Standin, run_client
from tests.hub.worker import worker

LOAD = """
import hfgen, torch
from hfgen.loading.resolve import resolve_component
from hfgen.errors import HfgenError
from huggingface_hub import HfApi
from tests.hub.models import digest

def load(name, loader="AutoPipeline", upload=None, part=None, **settings):
    if "dtype" in settings:
        settings["dtype"] = getattr(torch, settings["dtype"])
    if upload:
        api = HfApi(token=settings["token"])
        api.create_repo(name, private=True)
        api.upload_folder(repo_id=name, folder_path=upload)
    try:
        if part:
            return {"files": sorted(file.name for file in resolve_component(name, part).iterdir())}
        pipe = getattr(hfgen, loader).from_pretrained(name, **settings)
    except HfgenError as error:
        return {"error": type(error).__name__, "says": str(error)}
    bits = None if pipe.device.type == "meta" else digest(pipe)
    return {"class": type(pipe).__name__, "digest": bits, "dtype": str(pipe.dtype), "device": str(pipe.device)}
"""
Load = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def hub() -> Iterator[Standin]:
    """Return a Hub for all tests of this file, which give their repositories names of their own."""
    with Standin() as standin:
        yield standin


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the client's cache."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def load(hub: Standin, home: Path) -> Iterator[Load]:
    """Return a function that loads a model in another process, and returns its digest, or its error in one line.

    `upload` is a folder that the client puts into a new private repository of that name before; of a `part` come the
    files of that component.
    """
    with worker(hub, home) as ask:

        def load(name: str, **settings: Any) -> dict[str, str]:
            answer: dict[str, str] = ask(f"{LOAD}\nanswer = load({name!r}, **{settings!r})", token=None)
            assert "\n" not in answer.get("says", ""), answer
            return answer

        yield load
    assert TOKEN not in (home / "stderr").read_text()


def saved(family: str, seed: int, folder: Path, **settings: Any) -> tuple[dict[str, bytes], str]:
    """Return the files of a saved pipeline, and its digest."""
    pipe = make(family, seed)
    if "dtype" in settings:
        pipe.to(settings.pop("dtype"))
    pipe.save_pretrained(folder, **settings)
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in names.items()}, digest(pipe.to(torch.float32))


def below(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def test_there_is_one_of_every_family() -> None:
    assert {type(make(family)).__name__ for family in FAMILIES} == set(PIPELINES)


EVIL = ("pipeline.py", "modeling.py", "unet/hfgen_shim.py", "unet/evil.py", "vae/hfgen_shim.py", "__init__.py")
OTHER = ("unet/diffusion_pytorch_model.bin", "training_state.pt", "notes.md", "samples/a.png", "optimizer.safetensors")


def test_every_family_goes_to_the_hub_and_comes_back_bit_for_bit_and_then_offline(
    hub: Standin, load: Load, home: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    pipes = {family: make(family, seed) for seed, family in enumerate(FAMILIES)}
    for family, pipe in pipes.items():
        folder = tmp_path / "saved" / family
        pipe.save_pretrained(folder)
        for name in (*EVIL, *OTHER):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(f"open({str(canary)!r}, 'w').close()\n")
        answer = load(f"user/{family}", upload=str(folder), token=TOKEN)
        assert answer["class"] == type(pipe).__name__ and answer["digest"] == digest(pipe), family
    fetched = {request.path.split("/resolve/")[1].split("/", 1)[1] for request in hub.seen(r"GET /user/.*/resolve/")}
    assert fetched and all(re.search(r"\.(safetensors|json|txt)$", name) for name in fetched), fetched
    assert "optimizer.safetensors" not in fetched and not canary.exists()
    assert {request.path.split("/", 5)[5] for request in hub.seen("GET /user/ddpm/resolve/")} == {
        "model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    before = len(hub.requests)
    program = """
        import sys
        import numpy as np
        from hfgen import AutoPipeline
        from tests.hub.models import FAMILIES, digest, outputs
        for family in FAMILIES:
            pipe = AutoPipeline.from_pretrained(f"user/{family}")
            print("loaded", family, type(pipe).__name__, digest(pipe))
            np.save(f"{sys.argv[1]}/{family}.npy", outputs(pipe, family))
    """
    done = run_client(hub, program, home.parent, tmp_path, offline=True, home=home.name)
    loaded = [line.split()[1:] for line in done.stdout.splitlines()]
    assert loaded == [[family, type(pipe).__name__, digest(pipe)] for family, pipe in pipes.items()]
    assert len(hub.requests) == before and not canary.exists()
    for family, pipe in pipes.items():
        images = np.load(tmp_path / f"{family}.npy")
        np.testing.assert_allclose(images, outputs(pipe, family), atol=1e-5, rtol=0, err_msg=family)


def test_every_argument_is_heeded(hub: Standin, load: Load, tmp_path: Path) -> None:
    one, digest_1 = saved("ddpm", 1, tmp_path / "1")
    two, digest_2 = saved("ddpm-classes", 2, tmp_path / "2")
    three, digest_3 = saved("gan", 3, tmp_path / "3")
    half, digest_4 = saved("ddpm-classes", 4, tmp_path / "4", dtype=torch.float16, variant="fp16")
    first = hub.put("user/m", one)
    hub.tag("user/m", "v1")
    hub.branch("user/m", "dev/x")
    hub.put("user/m", three, branch="dev/x", deleted=("unet/", "scheduler/"))
    hub.put("user/m", two)
    hub.put("user/variant", {**two, **half})
    hub.put("user/nested", {**below("a/b", one), **below("c", two), "README.md": b"hello"})
    hub.put("user/run", {**below("model", one), "config.yaml": b"a: 1", "checkpoints/step-1/model/x.json": b"{}"})
    secret = hub.put("user/secret", {**one, "unet/diffusion_pytorch_model.fp16.safetensors": b"more"}, private=True)
    hub.put("user/gated", one, gated=True)
    hub.put("user/alone", {name.removeprefix("unet/"): found for name, found in two.items() if "unet/" in name})
    hub.put("user/forbidden", one)
    hub.fail("GET /api/models/user/forbidden", status=403, times=99)
    cache = str(tmp_path / "elsewhere")
    expected: list[tuple[str, dict[str, Any], Any]] = [
        ("user/m", {}, digest_2),
        ("user/m", {"revision": "main"}, digest_2),
        ("user/m", {"revision": "v1"}, digest_1),
        ("user/m", {"revision": "dev/x", "loader": "GANPipeline"}, digest_3),
        ("user/m", {"revision": first}, digest_1),
        ("user/m", {"revision": "v2"}, ("ConfigError", "no revision 'v2'")),
        ("user/m", {"revision": "f" * 40}, ("ConfigError", "no revision")),
        ("user/m", {"revision": "dev/x", "loader": "DDPMPipeline"}, ("ConfigError", "hfgen.GANPipeline")),
        ("user/m", {"local_files_only": True}, digest_2),
        ("user/m", {"local_files_only": True, "revision": "v1"}, digest_1),
        ("user/m", {"local_files_only": True, "revision": "v2"}, ("ResourceError", "local_files_only")),
        ("user/m", {"local_files_only": True, "cache_dir": cache}, ("ResourceError", "local_files_only")),
        ("user/m", {"cache_dir": cache, "revision": "v1"}, digest_1),
        ("user/variant", {"variant": "fp16"}, digest_4),
        ("user/variant", {"variant": "bf16"}, ("ConfigError", "`variant=bf16`")),
        ("user/variant", {}, digest_2),
        ("user/nested", {"subfolder": "a/b"}, digest_1),
        ("user/nested", {"subfolder": "c"}, digest_2),
        ("user/nested", {"subfolder": "a"}, ("ConfigError", "no model_index.json in a")),
        ("user/nested", {}, ("ConfigError", "no model_index.json")),
        ("user/nested", {"subfolder": "../m"}, ("UnsafeContentError", "outside")),
        ("user/run", {}, digest_1),
        ("user/secret", {}, ("ConfigError", "hf auth login")),
        ("user/secret", {"revision": secret}, ("ConfigError", "hf auth login")),
        ("user/secret", {"token": "hf_of_nobody"}, ("ConfigError", "hf auth login")),
        ("user/secret", {"token": True}, ("ConfigError", "hf auth login")),
        ("user/secret", {"token": TOKEN}, digest_1),
        ("user/secret", {"local_files_only": True}, digest_1),
        ("user/secret", {"revision": secret, "variant": "fp16"}, ("ConfigError", "hf auth login")),
        ("user/gated", {}, ("ConfigError", "access must be granted")),
        ("user/gated", {"token": TOKEN}, digest_1),
        ("user/forbidden", {"token": TOKEN}, ("ConfigError", "not for this model")),
        ("user/alone", {"part": "unet"}, {"files": ["config.json", "diffusion_pytorch_model.safetensors"]}),
        ("user/alone", {}, ("ConfigError", "no model_index.json")),
        ("user/none", {}, ("ConfigError", "no such model")),
        ("user/m", {"dtype": "bfloat16", "device": "cpu"}, {"dtype": "torch.bfloat16", "device": "cpu"}),
        ("user/m", {"device": "meta"}, {"dtype": "torch.float32", "device": "meta"}),
    ]
    for name, settings, wanted in expected:
        answer = load(name, **settings)
        where = f"{name} {settings}: {answer}"
        if isinstance(wanted, str):
            assert answer.get("digest") == wanted, where
        elif isinstance(wanted, tuple):
            assert answer.get("error") == wanted[0] and wanted[1] in answer["says"], where
        else:
            assert wanted.items() <= answer.items(), where
    assert (tmp_path / "elsewhere" / "models--user--m" / "snapshots" / first).is_dir()
    taken = {request.path.rsplit("/", 1)[1] for request in hub.seen("GET /user/variant/resolve/.*safetensors")}
    assert taken == {"diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"}


def test_a_load_stays_on_one_commit_though_another_lands_in_between(hub: Standin, load: Load, tmp_path: Path) -> None:
    old, digest_old = saved("ddpm", 1, tmp_path / "old")
    new, digest_new = saved("gan", 2, tmp_path / "new")
    for moment, pattern in {"listed": "GET .*/{}/tree/", "first": "(GET|HEAD) .*/{}/resolve/"}.items():
        name = f"user/moving-{moment}"
        hub.put(name, old)
        another = partial(hub.put, name, new, deleted=("unet/", "scheduler/"))
        hub.before(pattern.format(f"moving-{moment}"), another)
        assert load(name)["digest"] == digest_old
        assert load(name)["digest"] == digest_new
        commits = [commit.oid for commit in hub.commits(name)]
        asked_for = [re.search(r"/(?:tree|resolve)/([0-9a-f]{40})", r.path) for r in hub.seen(f"/moving-{moment}/")]
        used = [match[1] for match in asked_for if match]
        assert list(dict.fromkeys(used)) == [commits[1], commits[0]]                # all of one, then all of the other


BROKEN = {
    "info": "GET /api/models/user/{}$", "tree": "GET /api/models/user/{}/tree", "head": "HEAD /user/{}/resolve",
    "weights": "GET /user/{}/.*safetensors", "index": "GET /user/{}/.*model_index",
}


@pytest.mark.parametrize("place", BROKEN)
@pytest.mark.parametrize("kind", [500, 503, "cut"])
def test_errors_and_cut_connections_end_in_a_whole_model_or_in_one_line(
    hub: Standin, load: Load, tmp_path: Path, place: str, kind: int | str
) -> None:
    files, right = saved("ddpm", 1, tmp_path / "saved")
    for times in (1, 10**6):
        repo = f"{place}-{kind}-{times}"
        hub.put(f"user/{repo}", files)
        if kind == "cut":
            hub.cut(BROKEN[place].format(repo), times=times)
        else:
            hub.fail(BROKEN[place].format(repo), status=int(kind), times=times)
        answer = load(f"user/{repo}")
        if times > 1 and place != "head":                                   # what is listed needs no questions
            assert "error" in answer, answer
        if kind == "cut" and times == 1 and place in ("weights", "index"):
            assert answer.get("digest") == right, answer                    # the client asks for the rest
        if "error" not in answer:
            assert answer["digest"] == right, answer
            hub.fail(f"GET /api/models/user/{repo}$", status=500, times=10**6)
            assert load(f"user/{repo}")["digest"] == right                  # from the cache
            continue
        assert answer["error"] == "ResourceError" and f"user/{repo}: " in answer["says"], answer
        assert "again" in answer["says"] or "connection" in answer["says"], answer
        hub.faults.clear()
        half = load(f"user/{repo}", local_files_only=True)
        assert half["error"] == "ResourceError" and f"user/{repo}: " in half["says"], half
        assert load(f"user/{repo}")["digest"] == right
