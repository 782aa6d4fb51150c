"""Publishing to a Hub over HTTP: what goes up and what never does, one commit, every bit back, faults and refusals."""

import io
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hfgen.hub.package import package
from hfgen.hub.upload import compare, files_of
from hfgen.loading import checkpoint
from tests.hub.models import FAMILIES, digest, make
from tests.hub.repos import Blob
from tests.hub.standin import TOKEN, Standin
from tests.hub.worker import Ask, worker
from tests.training.runs import SHARED, TINY


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


@pytest.fixture(scope="module")
def trained(ask: Ask, hub: Standin, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a run of two steps whose `--publish-to` met a Hub out of order, and what it printed."""
    run = tmp_path_factory.mktemp("publish") / "run"
    hub.fail("POST .*/user/late/commit/", status=500)
    words = ["train", "ddpm", "--output-dir", run, *SHARED, *TINY["ddpm"], "--max-steps", 2, "--sample-every", 1]
    return run, ask([*words, "--publish-to", "user/late"], code=69)


@pytest.fixture(scope="module")
def gan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small pipeline with classes and shims."""
    folder = tmp_path_factory.mktemp("models") / "gan"
    make("gan").save_pretrained(folder)
    return folder


def names_of(hub: Standin, repo_id: str, kind: str = "model") -> set[str]:
    return set(hub.files(repo_id, kind=kind)) - {".gitattributes"}


def titles(hub: Standin, repo_id: str, kind: str = "model") -> list[str]:
    return [commit.title for commit in hub.commits(repo_id, kind=kind)]


DDPM_FILES = {
    "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
}
GAN_FILES = {
    "model_index.json", "pipeline.py", "generator/config.json", "generator/hfgen_shim.py",
    "generator/diffusion_pytorch_model.safetensors",
}


def test_a_push_that_fails_after_training_leaves_a_finished_run_and_the_command_to_retry(trained, ask, hub) -> None:
    run, out = trained
    assert f"model    {run}/model" in out and (run / "model/model_index.json").is_file()
    [line] = [line for line in out.splitlines() if line.startswith("error: not published:")]
    assert "the Hub answers with 500" in line and titles(hub, "user/late") == ["initial commit"]
    retry = shlex.split(line.partition("try again with: hfgen ")[2])
    assert retry == ["publish", str(run), "user/late"]
    assert "published user/late (private)" in ask(retry)
    assert len(titles(hub, "user/late")) == 2
    sent = hub.seen("PUT /storage/.*user/late")                     # weights and picture, once, without the token
    assert [(request.status, request.authorised) for request in sent] == [(200, False)] * 2


def test_a_run_may_be_resumed_with_another_place_to_publish_to(trained, ask, hub) -> None:
    out = ask(["train", "ddpm", "--output-dir", trained[0], "--resume", "--publish-to", "user/moved"])
    assert "published user/moved (private)" in out and names_of(hub, "user/moved") >= DDPM_FILES


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_staged_of_a_saved_pipeline_is_all_of_it(family: str, tmp_path: Path) -> None:
    make(family).save_pretrained(tmp_path / "saved")
    package(tmp_path / "saved", tmp_path / "staged")
    compare(tmp_path / "saved", tmp_path / "staged", files_of(tmp_path / "saved"))
    counted = ["config.json"] if (tmp_path / "saved" / "pipeline.py").is_file() else []
    assert files_of(tmp_path / "staged") == sorted([*files_of(tmp_path / "saved"), *counted])


def plant(folder: Path) -> set[Path]:
    """Put what must never be published into a folder, and return it."""
    names = [
        ".env", "token", "token.txt", "optimiser.safetensors", "training_state.pkl", "pytorch_model.bin", "log.txt",
        "events.out.tfevents.1", "notes.json", ".cache/huggingface/token", "scaler.pt", "run.py",
    ]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"secret {TOKEN}")
    return {folder / name for name in names}


def test_of_a_run_go_the_model_its_card_and_the_newest_picture_in_one_private_commit_and_nothing_else(
    trained, ask, hub, tmp_path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    for folder in (run, run / "model", run / "model/unet", run / "model/scheduler", run / "samples"):
        plant(folder)
    before = sorted(run.rglob("*"))
    out = ask(["publish", run, "user/digits", "--message", "The first"])
    files = hub.files("user/digits")
    assert names_of(hub, "user/digits") == DDPM_FILES | {"README.md", "samples.png"}
    assert not any(TOKEN.encode() in content or str(tmp_path).encode() in content for content in files.values())
    assert all(files[name] == (run / "model" / name).read_bytes() for name in DDPM_FILES)
    assert files["samples.png"] == (run / "samples/step-00000002.png").read_bytes()
    assert hub.repo("user/digits").private and titles(hub, "user/digits") == ["The first", "initial commit"]
    assert hub.seen(f"GET /user/digits/resolve/{hub.commits('user/digits')[0].oid}/unet/diff")         # it came back
    assert f"commit/{hub.commits('user/digits')[0].oid}" in out and "every bit is the same" in out
    assert "unchanged user/digits (private)" in ask(["publish", run / "model", "user/digits"])
    assert titles(hub, "user/digits") == ["The first", "initial commit"]
    assert sorted(run.rglob("*")) == before


def test_a_folder_that_is_called_as_the_repository_is_not_what_is_read_back(gan, ask, hub, tmp_path) -> None:
    shutil.copytree(gan, tmp_path / "user/same")
    code = """
import contextlib
from hfgen.hub.publish import publish
with contextlib.chdir(%r):
    answer = publish("user/same", "user/same").oid
"""
    assert ask(code % str(tmp_path)) == hub.commits("user/same")[0].oid
    assert hub.seen("GET /user/same/resolve/.*safetensors")


def test_before_a_run_is_finished_its_newest_checkpoint_goes(gan, ask, hub, tmp_path) -> None:
    checkpoint.save(tmp_path / "checkpoints", 3, lambda folder: shutil.copytree(gan, folder / "model"), {})
    ask(["publish", tmp_path, "user/unfinished"])
    assert names_of(hub, "user/unfinished") == GAN_FILES | {"config.json", "README.md"}


def test_cut_connections_and_500s_on_the_way_are_overcome(ask, hub, tmp_path) -> None:
    make("gan", seed=7).save_pretrained(tmp_path / "gan")           # weights that are not there yet
    hub.cut("PUT /storage/.*user/rough")
    hub.fail("POST /user/rough.git/info/lfs", status=503)
    hub.fail("POST .*/user/rough/preupload", status=500)
    hub.cut("GET /user/rough/resolve/.*safetensors")
    assert "published user/rough" in ask(["publish", tmp_path / "gan", "user/rough"])
    assert len(titles(hub, "user/rough")) == 2 and len(hub.seen("PUT /storage/.*user/rough")) == 2


@pytest.mark.parametrize(
    ("repo_id", "pattern", "status", "message"),
    [
        ("user/down", "PUT /storage/.*user/down", 500, "the Hub answers with 500"),
        ("user/gone", "GET /api/models/user/gone", 0, "cut the connection"),
        ("user/cut", "POST .*user/cut/commit", 0, "cut the connection"),
        ("user/full", "POST .*user/full.git/info/lfs", 402, "the Hub answers with 402 (You have no room left)"),
    ],
)
def test_what_cannot_be_overcome_is_one_line_with_the_command_to_retry_and_no_commit(
    gan, ask, hub, tmp_path, repo_id: str, pattern: str, status: int, message: str
) -> None:
    other = tmp_path / "other model"
    make("gan", seed=len(repo_id) + status).save_pretrained(other)
    if status:
        hub.fail(pattern, status=status, times=100, message="You have no room left" if status == 402 else "")
    else:
        hub.cut(pattern, at=0, times=100)
    said = ask(["publish", other, repo_id], code=1)
    assert message in said and said.endswith(f"try again with: hfgen publish '{other}' {repo_id}")
    assert titles(hub, repo_id) == ["initial commit"]
    hub.faults.clear()
    assert "published" in ask(["publish", other, repo_id])


def test_a_read_back_that_fails_or_differs_by_a_bit_is_never_called_done(gan, ask, hub) -> None:
    file = "generator/diffusion_pytorch_model.safetensors"

    def flip() -> None:
        files = hub.repo("user/flipped").at("main").files
        content = bytearray(files[file].content)
        content[-1] ^= 1
        files[file] = Blob(bytes(content), True)

    hub.before(f"HEAD /user/flipped/resolve/.*{file}", flip)
    said = ask(["publish", gan, "user/flipped"], code=1)
    assert "not confirmed" in said and f"these files on the Hub differ from those that were sent: {file}" in said
    hub.fail("GET /user/unread/resolve/.*safetensors", status=500, times=100)
    said = ask(["publish", gan, "user/unread"], code=1)
    assert f"committed as {hub.commits('user/unread')[0].oid}, but not confirmed" in said


def test_somebody_elses_commit_in_between_is_not_overwritten(gan, ask, hub) -> None:
    hub.before("POST .*user/race/preupload", lambda: hub.put("user/race", {"theirs.txt": b"new"}))
    assert "user/race: changed on the Hub while it was being uploaded" in ask(["publish", gan, "user/race"], code=1)
    assert titles(hub, "user/race") == ["from outside", "initial commit"]


@pytest.mark.parametrize("name", ["digits", "a--b/c", "user/a b", "user/", "https://hub/a", "user/a/b", "../a"])
def test_a_bad_name_reaches_no_network(gan, ask, hub, name: str) -> None:
    before = len(hub.requests)
    commands = [["publish", gan, name], ["sample", gan, "--push-dataset", name]]
    for words in commands[name.startswith(".") :]:                 # publish takes it for a folder
        assert f"error: {name!r} is no repository on the Hub" in ask(words, code=2)
    assert "is no repository" in ask(["train", "ddpm", "--output-dir", gan / "x", "--publish-to", name], code=2)
    assert len(hub.requests) == before and not (gan / "x").exists()


def test_without_login_with_a_wrong_token_and_in_somebody_elses_place_nothing_is_uploaded(gan, ask, hub) -> None:
    hub.put("other/theirs", {"README.md": b"hello"})
    before = len(hub.requests)
    for words in (["publish", gan, "user/x"], ["sample", gan, "--push-dataset", "user/x"]):
        assert "not logged in to the Hub; run `hf auth login`" in ask(words, token=None, code=2)
    assert len(hub.requests) == before
    for repo_id, token, extra, message in (
        ("user/x", "wrong", [], "refuses it with 401"),
        ("other/x", TOKEN, [], "refuses it with 403"),
        ("other/theirs", TOKEN, [], "exists and is public"),
        ("other/theirs", TOKEN, ["--public"], "refuses it with 403"),
    ):
        assert message in ask(["publish", gan, repo_id, *extra], token=token, code=2)
    assert not hub.seen("PUT /storage/.*(other|user/x)") and ("model", "user/x") not in hub.repos
    assert titles(hub, "other/theirs") == ["from outside", "initial commit"]


def test_public_is_asked_for_and_an_existing_repository_stays_what_it_is(gan, ask, hub) -> None:
    assert "published user/open (public)" in ask(["publish", gan, "user/open", "--public"])
    assert not hub.repo("user/open").private
    assert "exists and is public" in ask(["publish", gan, "user/open"], code=2)
    assert "unchanged user/open (public)" in ask(["publish", gan, "user/open", "--public"])
    hub.put("user/closed", {"notes.md": b"mine"}, private=True)
    assert "exists and is private" in ask(["publish", gan, "user/closed", "--public"], code=2)
    ask(["publish", gan, "user/closed"])
    assert hub.repo("user/closed").private
    assert names_of(hub, "user/closed") == GAN_FILES | {"config.json", "README.md", "notes.md"}


def test_the_source_that_a_publisher_names_stands_in_card_and_shims_and_the_bare_name_reaches_no_network(
    gan, ask, hub
) -> None:
    source = "git+https://example.org/hfgen.git"
    ask(["publish", gan, "user/sourced", "--source", source])
    told = {name: text.decode() for name, text in hub.files("user/sourced").items() if name.endswith((".py", ".md"))}
    assert set(told) == {"README.md", "pipeline.py", "generator/hfgen_shim.py"}
    assert all(set(re.findall(r"pip install (\S+)", text)) == {source} for text in told.values())
    ask(["publish", gan, "user/sourced"])
    files = hub.files("user/sourced")
    assert not any(b"pip install" in files[name] for name in told)
    before = len(hub.requests)
    said = ask(["publish", gan, "user/x", "--source", "hfgen"], code=2)
    assert "the bare name hfgen, which this project does not own on PyPI" in said
    assert len(hub.requests) == before


def test_a_written_card_keeps_its_text_and_an_older_pipeline_leaves_nothing_behind(gan, ask, hub, tmp_path) -> None:
    make("ddpm").save_pretrained(tmp_path / "old")
    written = b"---\nlicense: mit\n---\n# Mine\n\nBy hand.\n"
    shards = {f"{part}/diffusion_pytorch_model.safetensors.index.json": b"{}" for part in ("unet", "generator")}
    hub.put("user/old", tmp_path / "old", private=True)
    hub.put("user/old", {**shards, "README.md": written, "unet/notes.md": b"kept"})
    ask(["publish", gan, "user/old"])
    card = hub.files("user/old")["README.md"].decode()
    assert "license: mit" in card and "# Mine\n\nBy hand." in card and "GANPipeline" in card
    assert names_of(hub, "user/old") == GAN_FILES | {"config.json", "README.md", "unet/notes.md"}


def test_shims_are_hfgens_own_and_a_token_in_a_card_stops_everything(gan, ask, hub, tmp_path) -> None:
    folder = tmp_path / "gan"
    shutil.copytree(gan, folder)
    for name in ("pipeline.py", "generator/hfgen_shim.py"):
        (folder / name).write_text("raise SystemExit('run')")
    ask(["publish", folder, "user/shims"])
    assert all(hub.files("user/shims")[name] == (gan / name).read_bytes() for name in GAN_FILES)
    (folder / "README.md").write_text(f"my token is {TOKEN}")
    said = ask(["publish", folder, "user/leak"], code=1)
    assert "README.md holds your access token" in said and titles(hub, "user/leak") == ["initial commit"]


def test_a_variant_is_published_with_the_model_and_half_a_model_is_not(ask, hub, tmp_path) -> None:
    pipe = make("gan", seed=1)
    pipe.save_pretrained(tmp_path / "model", variant="fp16")
    ask(["publish", tmp_path / "model", "user/variant"])
    assert "generator/diffusion_pytorch_model.fp16.safetensors" in names_of(hub, "user/variant")
    (tmp_path / "model/generator/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"\0" * 100)
    said = ask(["publish", tmp_path / "model", "user/half"], code=1)
    assert "cannot be read as safetensors" in said and ("model", "user/half") not in hub.repos


def test_a_pipeline_publishes_itself_and_comes_back_bit_for_bit(ask) -> None:
    code = """
from hfgen import AutoPipeline, LatentDiffusionPipeline
from tests.hub.models import digest, make
pipe = make("latent-diffusion-text", seed=3)
done = pipe.push_to_hub("user/text", commit_message="From Python")
back = AutoPipeline.from_pretrained("user/text", revision=done.oid)
again = pipe.push_to_hub("user/text")
answer = [done.public, done.changed, again.changed, again.oid == done.oid, digest(back) == digest(pipe), digest(pipe)]
"""
    assert ask(code) == [False, True, False, True, True, digest(make("latent-diffusion-text", seed=3))]


def test_a_model_of_the_hub_can_be_published_under_another_name(gan, ask, hub) -> None:
    hub.put("other/gan", gan)
    ask(["publish", "other/gan", "user/mine"])
    assert all(hub.files("user/mine")[name] == (gan / name).read_bytes() for name in GAN_FILES)


def test_generated_images_go_up_as_a_private_dataset_that_anybody_can_load(gan, ask, hub, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copytree(gan, tmp_path / "run/model")
    (tmp_path / "run/config.yaml").write_text("seed: 0\n")
    (tmp_path / "run/run.json").write_text(json.dumps({"data": {"class_names": ["ant", "bee", "<cow>\n---"]}}))
    words = ["sample", tmp_path / "run", "-n", 7, "--seed", 5, "--batch-size", 3]
    assert "published user/images (private)" in ask([*words, "--push-dataset", "user/images"])
    files = hub.files("user/images", kind="dataset")
    assert set(files) == {".gitattributes", "README.md", "data/train-00000-of-00001.parquet"}
    assert hub.repo("user/images", "dataset").private and len(hub.seen("PUT /storage/.*user/images")) == 1
    card = files["README.md"].decode()
    assert "GANPipeline" in card and "sha256 of generator" in card and str(tmp_path) not in card
    code = """
import datasets
rows = datasets.load_dataset("user/images", split="train")
answer = [str(rows.features["image"]), rows.features["label"].names]
answer += [list(rows[name]) for name in ("label", "index", "seed")]
rows[6]["image"].save(%r)
"""
    image, names, labels, index, seed = ask(code % str(tmp_path / "6.png"))
    assert image.startswith("Image(") and names == ["ant", "bee", "<cow>\n---"]
    assert (labels, index, seed) == ([0, 1, 2, 0, 1, 2, 0], list(range(7)), [5] * 7)
    ask([*words, "--label", 0, "-o", tmp_path / "png"])
    sixth, same = (np.asarray(Image.open(path)) for path in (tmp_path / "6.png", tmp_path / "png/00006.png"))
    assert np.abs(sixth.astype(int) - same).max() <= 1
    assert "unchanged user/images" in ask([*words, "--push-dataset", "user/images"])
    assert titles(hub, "user/images", "dataset") == ["Generated images", "initial commit"]


def test_a_dataset_whose_push_fails_is_on_disk_and_goes_up_with_the_command_that_is_printed(
    gan, ask, hub, tmp_path
) -> None:
    hub.fail("POST .*user/four/commit", status=500)
    words = ["sample", gan, "-n", 4, "--label", 2, "--push-dataset", "user/four", "-o", tmp_path / "set", "--public"]
    said = ask(words, code=1)
    retry = shlex.split(said.partition("try again with: hfgen ")[2])
    assert retry == ["publish", str(tmp_path / "set"), "user/four", "--public"]
    card = (tmp_path / "set/README.md").read_bytes() + b"\nMy words\n"
    hub.put("user/four", {"data/train-00000-of-00009.parquet": b"old", "README.md": card}, kind="dataset")
    assert "published user/four (public)" in ask(retry)
    files = hub.files("user/four", kind="dataset")
    assert set(files) == {".gitattributes", "README.md", "data/train-00000-of-00001.parquet"}
    assert files["README.md"].decode().endswith("\nMy words\n")
    table = pq.read_table(io.BytesIO(files["data/train-00000-of-00001.parquet"]))
    assert table["label"].to_pylist() == [2] * 4 and table["index"].to_pylist() == [0, 1, 2, 3]
    hub.put("user/real", {"data/train-00000-of-00001.parquet": b"real"}, kind="dataset", private=True)
    assert "holds other data" in ask(["publish", tmp_path / "set", "user/real"], code=2)
    assert "must be a new or empty folder" in ask([*words[:-1]], code=2)


def test_help_of_publish_has_no_token(ask) -> None:
    text = ask(["publish", "--help"]) + ask(["sample", "--help"])
    assert "--public" in text and "--push-dataset" in text and not re.search(r"--\w*token", text)


def test_a_folder_gets_the_very_files_of_the_hub_and_loads_from_there(trained, ask, hub, tmp_path) -> None:
    shared = tmp_path / "shared"
    out = ask(["publish", trained[0], shared])
    assert f"written to {shared}: 6 files" in out and "every bit is the same" in out
    ask(["publish", trained[0], "user/shared"])
    there = {name: content for name, content in hub.files("user/shared").items() if name != ".gitattributes"}
    there["README.md"] = there["README.md"].replace(b"user/shared", b"shared")
    assert {name: (shared / name).read_bytes() for name in files_of(shared)} == there
    assert not any(path.is_symlink() for path in shared.rglob("*"))
    code = f"import hfgen\nanswer = len(hfgen.DDPMPipeline.from_pretrained({str(shared)!r})(2, num_steps=2).images)"
    assert ask(code) == 2


def test_a_folder_of_another_model_is_replaced_and_other_files_and_text_stay(trained, gan, ask, tmp_path) -> None:
    shared = tmp_path / "shared"
    ask(["publish", gan, shared])
    (shared / "notes.txt").write_text("mine")
    with (shared / "README.md").open("a", encoding="utf-8") as card:
        card.write("\nMy own words.\n")
    ask(["publish", trained[0], shared])
    assert set(files_of(shared)) == DDPM_FILES | {"README.md", "samples.png", "notes.txt"}
    assert "My own words." in (shared / "README.md").read_text(encoding="utf-8")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert "must be a new or empty folder" in ask(["publish", gan, tmp_path / "full"], code=2)
    assert "--public and --message are for the Hub" in ask(["publish", gan, shared, "--public"], code=2)


def test_a_dataset_of_samples_is_copied_to_a_folder(gan, ask, tmp_path) -> None:
    code = f"""
from pathlib import Path
from hfgen.sampling.dataset import write_dataset
from hfgen.sampling.request import SampleRequest
write_dataset(SampleRequest(model={str(gan)!r}, number=4), Path({str(tmp_path / "made")!r}))
answer = 0
"""
    ask(code)
    ask(["publish", tmp_path / "made", tmp_path / "copy"])
    assert files_of(tmp_path / "copy") == files_of(tmp_path / "made")
    compare(tmp_path / "made", tmp_path / "copy", files_of(tmp_path / "made"))
