"""What a model is called, and where it is: folders and runs; which of a repository's files are read."""

from pathlib import Path

import pytest

from hfgen import DDPMPipeline, DDPMScheduler, UNet
from hfgen.errors import ConfigError, HfgenError, ResourceError, UnsafeContentError
from hfgen.loading import checkpoint
from hfgen.loading.resolve import HubOptions, readable_files, resolve, resolve_component


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
    assert resolve(tmp_path, HubOptions(subfolder="saved")) == tmp_path / "saved"


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
    kind = "cannot be a folder, nor a Hub id" if name == "" else "no such folder, and not a Hub id"
    with pytest.raises(ConfigError, match=kind):
        resolve(name)


def test_a_folder_of_something_else_says_what_is_missing(tmp_path):
    with pytest.raises(ConfigError, match=r"no model_index\.json"):
        resolve(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        resolve(tmp_path, HubOptions(subfolder="unet"))


def test_a_folder_of_pickles_and_a_pickle_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    for model in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(UnsafeContentError, match=r"pytorch_model\.bin"):
            resolve(model)


@pytest.mark.parametrize("subfolder", ["../x", "/etc", "a/../../b", "..\\x"])
def test_a_subfolder_stays_inside(tmp_path, subfolder):
    with pytest.raises(UnsafeContentError, match="outside"):
        resolve(tmp_path, HubOptions(subfolder=subfolder))


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
    assert set(readable_files("a/b", FILES)) == plain | {"unet/diffusion_pytorch_model.safetensors"}
    assert set(readable_files("a/b", FILES, None, "fp16")) == plain | {"unet/diffusion_pytorch_model.fp16.safetensors"}


def test_a_run_on_the_hub_gives_its_model_and_a_subfolder_stands_alone():
    run = ["model/" + name for name in FILES] + ["config.yaml", "metrics.json"]
    assert set(readable_files("a/b", run)) == {"model/" + name for name in readable_files("a/b", FILES)}
    assert set(readable_files("a/b", run, "model")) == set(readable_files("a/b", run))


def test_a_component_alone_is_wanted_where_it_is_asked_for_and_a_pipeline_goes_before_it():
    alone = ["config.json", "diffusion_pytorch_model.safetensors"]
    names = [*alone, "README.md", "x.ckpt", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors"]
    assert readable_files("a/b", names, alone=True) == alone
    assert readable_files("a/b", ["config.json", *FILES], alone=True) == readable_files("a/b", ["config.json", *FILES])
    with pytest.raises(ConfigError, match=r"no model_index\.json"):
        readable_files("a/b", alone)


def test_a_component_is_that_of_a_pipeline_or_alone(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    home = tmp_path / "saved" / "unet"
    assert resolve_component(tmp_path / "saved", "unet") == resolve_component(str(home), "unet") == home
    with pytest.raises(ConfigError, match=r"holds no vae; it holds model_index\.json, scheduler, unet"):
        resolve_component(tmp_path / "saved", "vae")
    with pytest.raises(ConfigError, match="no such folder, and not a Hub id"):
        resolve_component(tmp_path / "none", "vae")


def test_hostile_names_are_not_wanted():
    names = ["../model_index.json", "model_index.json", "unet/../../x.json", "a/b?.json", "*.json", "unet/[a].json"]
    assert readable_files("a/b", names) == ["model_index.json"]


def test_a_repository_of_pickles_or_of_something_else_is_refused():
    with pytest.raises(UnsafeContentError, match=r"unet/diffusion_pytorch_model\.bin"):
        readable_files("a/b", ["model_index.json", "unet/diffusion_pytorch_model.bin"])
    with pytest.raises(ConfigError, match=r"no model_index\.json"):
        readable_files("a/b", ["config.json", "model.safetensors"])


def test_offline_an_unknown_model_says_what_to_do(tmp_path):
    with pytest.raises(ResourceError, match="HF_HUB_OFFLINE"):
        resolve("hfgen-tests/none", HubOptions(cache_dir=tmp_path))


def test_every_error_of_resolving_is_one_of_ours(tmp_path):
    (tmp_path / "file").write_text("")
    for model in (tmp_path / "file", tmp_path / "none", "a b"):
        with pytest.raises(HfgenError):
            resolve(model)
