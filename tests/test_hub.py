"""What a model is called, and where it is: folders, runs, and a Hub of our own on the loopback."""

import hashlib
import json
import os
import subprocess
import sys
import textwrap
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hfgen import DDPMPipeline, DDPMScheduler, UNet, checkpoint
from hfgen.errors import ConfigError, HfgenError, ResourceError, UnsafeContentError
from hfgen.hub import resolve, wanted_files


@pytest.fixture
def pipeline() -> DDPMPipeline:
    """Return a tiny pipeline."""
    net = UNet(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), norm_num_groups=4,
        layers_per_block=1, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )
    return DDPMPipeline(net, DDPMScheduler(num_train_timesteps=20))


def test_a_pipeline_folder_is_itself_as_path_or_as_string(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    assert resolve(tmp_path / "saved") == resolve(str(tmp_path / "saved")) == tmp_path / "saved"
    assert resolve(tmp_path, subfolder="saved") == tmp_path / "saved"


def test_of_a_run_it_is_the_model_and_before_that_the_newest_checkpoint_that_verifies(pipeline, tmp_path):
    def write(folder: Path) -> None:
        pipeline.save_pretrained(folder / "model")

    for step in (1, 2):
        checkpoint.save(tmp_path / "checkpoints", step, write, {})
    assert resolve(tmp_path) == tmp_path / "checkpoints/step-00000002/model"
    with open(tmp_path / "checkpoints/step-00000002/model/unet/diffusion_pytorch_model.safetensors", "r+b") as file:
        file.truncate(1000)
    with pytest.warns(checkpoint.CheckpointWarning, match="step-00000002"):
        assert resolve(tmp_path) == tmp_path / "checkpoints/step-00000001/model"
    pipeline.save_pretrained(tmp_path / "model")
    assert resolve(tmp_path) == tmp_path / "model"


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="has not saved anything yet"):
        resolve(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["digits", "./runs/digits", "/runs/digits", "~/no/such", "a/b/c", "runs/", "runs\\digits", "a--b/c", "../a/b",
     "a/b c", "a/..b", "", "a/b.", "https:/x"],
)
def test_a_misspelt_folder_is_no_hub_id_and_reaches_no_network(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi.resolve_revision", lambda *_, **__: pytest.fail("network attempt"))
    kind = "no model_index.json" if name == "" else "no such folder, and not a Hub id"
    with pytest.raises(ConfigError, match=kind):
        resolve(name)


def test_a_folder_of_something_else_says_what_is_missing(tmp_path):
    with pytest.raises(ConfigError, match=r"no model_index\.json"):
        resolve(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        resolve(tmp_path, subfolder="unet")


def test_a_folder_of_pickles_and_a_pickle_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    for model in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(UnsafeContentError, match=r"pytorch_model\.bin"):
            resolve(model)


@pytest.mark.parametrize("subfolder", ["../x", "/etc", "a/../../b", "..\\x"])
def test_a_subfolder_stays_inside(tmp_path, subfolder):
    with pytest.raises(UnsafeContentError, match="outside"):
        resolve(tmp_path, subfolder=subfolder)


FILES = [
    ".gitattributes", "README.md", "model_index.json", "pipeline.py", "unet/config.json", "unet/hfgen_shim.py",
    "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.bin", "scheduler/scheduler_config.json", "tokenizer/merges.txt",
    "tokenizer/spiece.model", "text_encoder/model-00001-of-00002.safetensors", "v1-5-pruned.safetensors",
    "text_encoder/model.safetensors.index.json", "samples/step.png", "checkpoints/step-1/model/unet/config.json",
]


def test_only_weights_settings_and_tokenizers_are_wanted():
    plain = {
        "model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt",
        "tokenizer/spiece.model", "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model.safetensors.index.json",
    }
    assert set(wanted_files("a/b", FILES)) == plain | {"unet/diffusion_pytorch_model.safetensors"}
    assert set(wanted_files("a/b", FILES, None, "fp16")) == plain | {"unet/diffusion_pytorch_model.fp16.safetensors"}


def test_a_run_on_the_hub_gives_its_model_and_a_subfolder_stands_alone():
    run = ["model/" + name for name in FILES] + ["config.yaml", "metrics.json"]
    assert set(wanted_files("a/b", run)) == {"model/" + name for name in wanted_files("a/b", FILES)}
    assert set(wanted_files("a/b", run, "model")) == set(wanted_files("a/b", run))


def test_hostile_names_are_not_wanted():
    names = ["../model_index.json", "model_index.json", "unet/../../x.json", "a/b?.json", "*.json", "unet/[a].json"]
    assert wanted_files("a/b", names) == ["model_index.json"]


def test_a_repository_of_pickles_or_of_something_else_is_refused():
    with pytest.raises(UnsafeContentError, match=r"unet/diffusion_pytorch_model\.bin"):
        wanted_files("a/b", ["model_index.json", "unet/diffusion_pytorch_model.bin"])
    with pytest.raises(ConfigError, match=r"no model_index\.json"):
        wanted_files("a/b", ["config.json", "model.safetensors"])


def test_offline_an_unknown_model_says_what_to_do(tmp_path):
    with pytest.raises(ResourceError, match="HF_HUB_OFFLINE"):
        resolve("hfgen-tests/none", cache_dir=tmp_path)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """A Hub with the model a/b: its folder is served under one commit; a/private needs a token, a/down is broken."""

    folder: Path
    asked: list[str]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.asked.append(path)
        names = sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())
        if path in ("/api/models/a/b", "/api/models/a/b/revision/main"):
            siblings = [{"rfilename": name} for name in names]
            self.reply(json.dumps({"id": "a/b", "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith(f"/api/models/a/b/tree/{COMMIT}"):
            entries = [
                {"type": "file", "path": name, "size": (self.folder / name).stat().st_size, "oid": "0" * 40}
                for name in names
            ]
            self.reply(json.dumps(entries).encode())
        elif path.startswith(f"/a/b/resolve/{COMMIT}/") and (name := path.split(COMMIT + "/")[1]) in names:
            self.reply((self.folder / name).read_bytes())
        elif "a/b/revision" in path:
            self.reply(b"", 404, "RevisionNotFound")
        elif "a/down" in path:
            self.reply(b"", 500)
        elif "a/gated" in path:
            self.reply(b"", 403, "GatedRepo")
        else:
            self.reply(b"", 401, "RepoNotFound")

    def reply(self, body: bytes, status: int = 200, error: str = "") -> None:
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(body).hexdigest()}"',
            "Content-Type": "application/json", **({"X-Error-Code": error} if error else {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(pipeline, tmp_path):
    """Return the address of a Hub that serves a saved pipeline with code and pickles beside it, and its handler."""
    Hub.folder, Hub.asked = tmp_path / "served", []
    pipeline.save_pretrained(Hub.folder)
    for name in ("pipeline.py", "unet/hfgen_shim.py", "unet/diffusion_pytorch_model.bin", "README.md"):
        (Hub.folder / name).write_text("raise SystemExit('run')")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Hub
    server.shutdown()
    server.server_close()
    thread.join()


def test_from_the_hub_come_the_wanted_files_of_one_commit_and_then_the_cache_serves(hub, tmp_path):
    address, handler = hub
    program = """
        import sys
        from pathlib import Path
        from hfgen import AutoPipeline, hub
        from hfgen.errors import HfgenError
        folder = hub.resolve("a/b", cache_dir=sys.argv[1], token="hf_canary")
        print("files", *sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()))
        print("commit", folder.name)
        pipe = AutoPipeline.from_pretrained("a/b", cache_dir=sys.argv[1], local_files_only=True)
        print("class", type(pipe).__name__, type(pipe.unet).__name__)
        for name, revision in (("a/private", None), ("a/gated", None), ("a/down", None), ("a/b", "v9")):
            try:
                hub.resolve(name, revision, cache_dir=sys.argv[1], token="hf_canary")
            except HfgenError as error:
                print(type(error).__name__, error)
    """
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "cache")],
        capture_output=True, text=True, timeout=120, env=environment,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split()[1:] == [
        "model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    assert lines[1:3] == [f"commit {COMMIT}", "class DDPMPipeline UNet"]
    assert "ConfigError a/private: " in lines[3] and "token=" in lines[3]
    assert "ConfigError a/gated: access" in lines[4]
    assert lines[5].startswith("ResourceError a/down: ")
    assert "ConfigError a/b: no revision 'v9'" in lines[6]
    assert not any(path.endswith((".py", ".bin", ".md")) for path in handler.asked)
    assert "hf_canary" not in result.stdout + result.stderr


def test_every_error_of_resolving_is_one_of_ours(tmp_path):
    (tmp_path / "file").write_text("")
    for model in (tmp_path / "file", tmp_path / "none", "a b"):
        with pytest.raises(HfgenError):
            resolve(model)
