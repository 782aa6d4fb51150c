"""Hostile and broken folders: every one is refused by name, and nothing in it is run."""

import json
import pickle
import re
import socket
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from hfgen import AutoPipeline, DDPMPipeline
from hfgen.errors import CheckpointError, ConfigError, HfgenError, UnsafeContentError
from tests.pipelines.helpers import Evil, edit

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Refuse every connection."""

    def refuse(*_):
        raise AssertionError("network attempt")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def canary(tmp_path):
    """Return the path that code in a model's folder would create, and the line of Python that creates it."""
    path = tmp_path / "canary"
    yield path, f"open({str(path)!r}, 'w').close()\n"
    assert not path.exists()


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("text", ["{", "[]", "", "3", "[" * 100_000, '{"a": 1' + "0" * 5000 + "}", b"\xff\xfe{"])
def test_a_file_that_is_no_json_object_is_named(saved, name, text):
    (saved / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=name):
        DDPMPipeline.from_pretrained(saved)


@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_a_missing_configuration_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(ConfigError, match=name):
        DDPMPipeline.from_pretrained(saved)


def test_a_huge_configuration_is_not_read(saved):
    with open(saved / "unet/config.json", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ConfigError, match=r"unet/config\.json: 1099511627776 bytes"):
        DDPMPipeline.from_pretrained(saved)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("unet/config.json", "in_channels", -1), ("unet/config.json", "in_channels", "1"),
        ("unet/config.json", "in_channels", True), ("unet/config.json", "in_channels", 1.5),
        ("unet/config.json", "in_channels", None), ("unet/config.json", "norm_eps", float("nan")),
        ("unet/config.json", "norm_eps", float("inf")), ("unet/config.json", "norm_num_groups", 0),
        ("unet/config.json", "block_out_channels", [8, -16]), ("unet/config.json", "block_out_channels", {"a": 1}),
        ("unet/config.json", "down_block_types", [[], []]), ("unet/config.json", "down_block_types", "DownBlock2D"),
        ("unet/config.json", "down_block_types", ["__import__", "DownBlock2D"]), ("unet/config.json", "new_key", 1),
        ("unet/config.json", "quantization_config", {}), ("unet/config.json", "_class_name", "UNet2DConditionModel"),
        ("unet/config.json", "_class_name", ["hfgen_shim", "UNet"]), ("unet/config.json", "_class_name", ...),
        ("unet/config.json", "sample_size", 10**9), ("unet/config.json", "layers_per_block", 10**12),
        ("scheduler/scheduler_config.json", "beta_start", "0.1"), ("scheduler/scheduler_config.json", "new_key", 1),
        ("scheduler/scheduler_config.json", "beta_end", float("nan")),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**12),
        ("scheduler/scheduler_config.json", "num_train_timesteps", -5),
        ("scheduler/scheduler_config.json", "beta_schedule", "no such"),
        ("scheduler/scheduler_config.json", "trained_betas", [0.1, float("nan")]),
        ("scheduler/scheduler_config.json", "trained_betas", 3),
        ("scheduler/scheduler_config.json", "_class_name", "DDIMScheduler"),
        ("scheduler/scheduler_config.json", "predict_epsilon", False),
        ("model_index.json", "unet", ["diffusers"]), ("model_index.json", "unet", "diffusers"),
        ("model_index.json", "unet", None), ("model_index.json", "unet", ["diffusers", 3]),
        ("model_index.json", "unet", ["diffusers", "UNet3DConditionModel"]), ("model_index.json", "unet", ...),
        ("model_index.json", "unet", ["diffusers", "DDPMScheduler"]),
        ("model_index.json", "scheduler", ["diffusers", "UNet2DModel"]),
        ("model_index.json", "vae", ["diffusers", "UNet2DModel"]), ("model_index.json", "_class_name", ...),
    ],
)
def test_a_bad_setting_is_named_with_its_file(saved, name, field, value):
    edit(saved / name, **{field: value})
    with pytest.raises(ConfigError) as caught:
        DDPMPipeline.from_pretrained(saved)
    assert name in str(caught.value)
    assert field in str(caught.value) or field in ("layers_per_block", "norm_num_groups", "down_block_types")


@pytest.mark.parametrize("name", ["LDMPipeline", "DiTPipeline", "StableDiffusionXLPipeline", "os", "__class__"])
def test_an_unknown_pipeline_is_named_with_those_supported(saved, name):
    edit(saved / "model_index.json", _class_name=name)
    with pytest.raises(ConfigError, match=f"{name}.*DDPMPipeline"):
        AutoPipeline.from_pretrained(saved)


def test_a_class_called_on_the_folder_of_another_family_says_which_to_use(saved):
    class Other(DDPMPipeline.__base__):
        """Another family."""

    with pytest.raises(ConfigError, match=r"hfgen\.DDPMPipeline or hfgen\.AutoPipeline, not Other"):
        Other.from_pretrained(saved)


def rewrite(folder, change):
    """Rewrite the weights through `change(tensors)`."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def test_missing_unexpected_and_misshaped_keys_are_listed(saved):
    def change(tensors):
        tensors["conv_extra.weight"] = tensors.pop("conv_in.weight")
        tensors["conv_out.bias"] = torch.zeros(7)

    rewrite(saved, change)
    with pytest.raises(CheckpointError) as caught:
        DDPMPipeline.from_pretrained(saved)
    for words in ("missing: conv_in.weight", "unexpected: conv_extra.weight", "misshaped: conv_out.bias (7,)", "(1,)"):
        assert words in str(caught.value)


@pytest.mark.parametrize("part", range(16))
def test_truncated_weights_are_named(saved, part):
    size = (saved / WEIGHTS).stat().st_size
    with open(saved / WEIGHTS, "r+b") as file:
        file.truncate(size * part // 16)
    with pytest.raises(CheckpointError, match=WEIGHTS):
        DDPMPipeline.from_pretrained(saved)


def test_a_flipped_byte_in_the_header_never_goes_unseen(saved):
    content = (saved / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    net = DDPMPipeline.from_pretrained(saved).unet.state_dict()
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        place = int(torch.randint(8 + length, (1,), generator=generator))
        broken = bytearray(content)
        broken[place] ^= 1 << int(torch.randint(8, (1,), generator=generator))
        (saved / WEIGHTS).write_bytes(broken)
        try:
            found = DDPMPipeline.from_pretrained(saved).unet.state_dict()
        except HfgenError as error:
            assert isinstance(error, (CheckpointError, ConfigError))
        else:
            assert all(torch.equal(net[key], found[key]) for key in net), place


def test_a_configuration_that_asks_for_a_million_million_parameters_costs_nothing(saved, python):
    edit(saved / "unet/config.json", block_out_channels=[400_000, 400_000])
    program = """
        import json, pathlib, resource, sys, time
        from hfgen import DDPMPipeline
        from hfgen.errors import ConfigError
        import hfgen.loading.components
        resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
        deep = {"layers_per_block": 60, "block_out_channels": [8] * 12, "down_block_types": ["DownBlock2D"] * 12,
                "up_block_types": ["UpBlock2D"] * 12, "num_class_embeds": None, "sample_size": None}
        for edited in (None, {"block_out_channels": [8, 16], "num_class_embeds": 10**11}, deep):
            if edited:
                path = pathlib.Path(sys.argv[1], "unet/config.json")
                path.write_text(json.dumps(json.loads(path.read_text()) | edited))
            start = time.process_time()
            try:
                DDPMPipeline.from_pretrained(sys.argv[1])
            except ConfigError as error:
                peak = pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
                print(error, time.process_time() - start, peak, sep="|")
    """
    result = python(program, saved)
    assert result.returncode == 0, result.stderr
    rows = [line.split("|") for line in result.stdout.splitlines()]
    assert len(rows) == 3, result.stdout
    assert int(re.search(r"a network of (\d+) parameters", rows[0][0])[1]) > 10**12
    assert "100000000000" in rows[1][0] and "operations to build" in rows[2][0]
    assert all(float(seconds) < 1.0 for _, seconds, _ in rows), rows
    assert int(rows[-1][2]) < 2**20, rows                                                # KiB: the process itself


@pytest.mark.parametrize("suffix", ["bin", "ckpt", "pt", "pkl"])
def test_pickled_weights_are_refused_and_never_opened(saved, canary, suffix):
    (saved / WEIGHTS).unlink()
    (saved / f"unet/diffusion_pytorch_model.{suffix}").write_bytes(pickle.dumps(Evil(canary[0])))
    with pytest.raises(UnsafeContentError, match=suffix):
        DDPMPipeline.from_pretrained(saved)


def test_a_pickle_beside_safetensors_is_never_opened(saved, canary):
    (saved / "unet/diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Evil(canary[0])))
    DDPMPipeline.from_pretrained(saved)


HOSTILE = [
    ("model_index.json", {"unet": ["evil", "UNet"]}), ("model_index.json", {"unet": ["../evil", "UNet"]}),
    ("model_index.json", {"unet": ["os", "system"]}), ("model_index.json", {"unet": ["evil.evil", "UNet"]}),
    ("model_index.json", {"_class_name": ["evil", "DDPMPipeline"]}), ("model_index.json", {"custom_pipeline": "evil"}),
    ("model_index.json", {"_class_name": ["../evil", "DDPMPipeline"]}),
    ("model_index.json", {"_class_name": ["pipeline", "Evil"]}),
    ("model_index.json", {"auto_map": {"AutoModel": "evil.Evil"}}),
    ("model_index.json", {"_class_name": ["pipeline", "DDPMPipeline", "evil"]}),
    ("unet/config.json", {"auto_map": {"AutoModel": "evil.Evil"}}),
    ("scheduler/scheduler_config.json", {"auto_map": {"AutoModel": "evil.Evil"}}),
]


@pytest.mark.parametrize(("name", "changes"), HOSTILE)
@pytest.mark.parametrize("loader", [DDPMPipeline, AutoPipeline])
def test_names_of_foreign_code_are_refused_and_never_imported(saved, canary, name, changes, loader):
    for place in ("evil.py", "unet/evil.py", "pipeline.py", "unet/hfgen_shim.py", "scheduler/evil.py", "../evil.py"):
        (saved / place).write_text(canary[1])
    edit(saved / name, **changes)
    before = set(sys.modules)
    with pytest.raises(UnsafeContentError, match=name):
        loader.from_pretrained(saved)
    assert set(sys.modules) == before


def test_shims_in_a_folder_are_never_run(plane_pipeline, tmp_path, canary):
    plane_pipeline.save_pretrained(tmp_path / "saved")
    for shim in ("pipeline.py", "unet/hfgen_shim.py"):
        (tmp_path / "saved" / shim).write_text(canary[1])
    before = set(sys.modules)
    AutoPipeline.from_pretrained(tmp_path / "saved")
    assert set(sys.modules) == before


@pytest.mark.parametrize("name", ["os", "AutoPipeline", "DDPMPipeline", "UNet", "../x", "__init__"])
def test_a_shim_names_only_components_of_the_table(plane_pipeline, tmp_path, name):
    plane_pipeline.save_pretrained(tmp_path / "saved")
    edit(tmp_path / "saved/model_index.json", unet=["hfgen_shim", name])
    with pytest.raises(ConfigError, match=r"model_index\.json: 'unet'"):
        DDPMPipeline.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    "shard",
    ["../evil.safetensors", "/etc/passwd", "diffusion_pytorch_model.bin", "x/../../diffusion_pytorch_model.safetensors",
     "diffusion_pytorch_model-00001-of-00001.safetensors\n", 3, None, ["a"]],
)
def test_a_shard_outside_of_the_folder_is_refused(saved, canary, shard):
    (saved / "evil.safetensors").write_bytes((saved / WEIGHTS).read_bytes())
    index = {"metadata": {}, "weight_map": {"conv_in.weight": shard}}
    (saved / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsafeContentError, match=r"index\.json"):
        DDPMPipeline.from_pretrained(saved)


@pytest.mark.parametrize("weight_map", [{}, [], None, "x"])
def test_a_shard_index_without_a_map_is_named(saved, weight_map):
    path = saved / "unet/diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ConfigError, match="weight_map"):
        DDPMPipeline.from_pretrained(saved)


def test_a_missing_shard_is_named(saved):
    name = "diffusion_pytorch_model-00001-of-00001.safetensors"
    path = saved / "unet/diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))
    with pytest.raises(CheckpointError, match=name):
        DDPMPipeline.from_pretrained(saved)


def test_missing_weights_are_named_with_what_is_there(saved):
    (saved / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=f"{WEIGHTS}.*config.json"):
        DDPMPipeline.from_pretrained(saved)


def test_no_function_of_hfgen_takes_trust_remote_code():
    import inspect

    import hfgen.loading.components
    import hfgen.loading.resolve

    assert not hasattr(hfgen.loading.resolve, "run_repository_code")
    for owner in (hfgen.loading.resolve, hfgen.loading.components, DDPMPipeline, AutoPipeline):
        for name, function in inspect.getmembers(owner, callable):
            if str(getattr(function, "__module__", "")).startswith("hfgen"):
                try:
                    assert "trust_remote_code" not in inspect.signature(function).parameters, name
                except ValueError:
                    continue
