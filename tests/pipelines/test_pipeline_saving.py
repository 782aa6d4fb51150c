"""Folders: round trips bit for bit, stock diffusers both ways, shims, and what a save leaves behind."""

import json
import os
import stat

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline as StockPipeline
from diffusers import DDPMScheduler as StockScheduler
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file

import hfgen
from hfgen import AutoPipeline, DDPMPipeline, DDPMScheduler, MLPDenoiser, UNet
from hfgen.errors import ConfigError
from hfgen.pipelines.base import Pipeline
from hfgen.registry import PIPELINES

KINDS = ["unconditional", "class-conditional", "plane"]


@pytest.fixture(params=KINDS)
def any_pipeline(request, make_pipeline, plane_pipeline):
    """Return each kind of pipeline in turn."""
    if request.param == "plane":
        return plane_pipeline
    return make_pipeline(num_class_embeds=4 if request.param == "class-conditional" else None)


def sample(pipe, **arguments):
    """Return a sample of a pipeline, labelled if it knows classes."""
    pipe.set_progress_bar_config(disable=True)
    labels = {"class_labels": 1} if pipe.unet.config.num_class_embeds else {}
    generator = torch.Generator().manual_seed(0)
    return pipe(2, num_steps=5, generator=generator, output_type="np", **labels, **arguments).images


def files(folder):
    """Return the relative paths of all files in a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("loader", [DDPMPipeline, AutoPipeline])
def test_a_round_trip_keeps_every_bit(any_pipeline, tmp_path, loader):
    any_pipeline.save_pretrained(tmp_path / "saved")
    again = loader.from_pretrained(tmp_path / "saved")
    assert type(again) is DDPMPipeline and type(again.unet) is type(any_pipeline.unet)
    assert not again.unet.training and type(again.scheduler) is DDPMScheduler
    before, after = any_pipeline.unet.state_dict(), again.unet.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    np.testing.assert_array_equal(sample(again), sample(any_pipeline))
    again.save_pretrained(tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "saved")
    for name in files(tmp_path / "saved"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes(), name


@pytest.mark.parametrize("name", PIPELINES)
def test_every_row_of_the_table_is_a_pipeline_of_that_name(name):
    assert issubclass(getattr(hfgen, name), Pipeline) and getattr(hfgen, name).__name__ == name


def test_an_unconditional_folder_is_a_stock_folder(saved):
    assert files(saved) == {
        "model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    index = json.loads((saved / "model_index.json").read_text())
    assert index == {
        "_class_name": "DDPMPipeline", "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"],
    }
    assert json.loads((saved / "unet/config.json").read_text())["_class_name"] == "UNet2DModel"


def test_other_pipelines_carry_shims(any_pipeline, tmp_path):
    any_pipeline.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved/model_index.json").read_text())
    code = {name for name in files(tmp_path / "saved") if name.endswith(".py")}
    if any_pipeline.stock_twin():
        assert code == set()
    else:
        assert index["_class_name"] == ["pipeline", "DDPMPipeline"]
        plane = isinstance(index["unet"], list) and index["unet"] == ["hfgen_shim", "MLPDenoiser"]
        assert code == ({"pipeline.py", "unet/hfgen_shim.py"} if plane else {"pipeline.py"})
        assert plane or index["unet"] == ["diffusers", "UNet2DModel"]


def test_stock_diffusers_loads_and_samples_a_folder_where_hfgen_cannot_be_imported(make_pipeline, python, tmp_path):
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path / "plain")
    make_pipeline(num_class_embeds=4).save_pretrained(tmp_path / "classes")
    program = """
        import sys, numpy as np, torch, diffusers
        folder = sys.argv[1]
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder + "/plain")
        assert type(pipe) is diffusers.DDPMPipeline and type(pipe.unet) is diffusers.UNet2DModel
        generator = torch.Generator().manual_seed(0)
        np.save(folder + "/images.npy", pipe(2, generator, 5, output_type="np").images)
        assert not any(name.split(".")[0] == "hfgen" for name in sys.modules)
        diffusers.DiffusionPipeline.from_pretrained(folder + "/classes", trust_remote_code=True)
    """
    result = python(program, tmp_path, blocked=True)
    np.testing.assert_allclose(np.load(tmp_path / "images.npy"), sample(pipe), atol=1e-4, rtol=0)
    assert result.returncode == 1 and "No module named 'hfgen'" in result.stderr
    assert "from hfgen import DDPMPipeline  # This project has no package on PyPI" in result.stderr


def test_stock_diffusers_loads_the_other_folders_through_their_shims(make_pipeline, plane_pipeline, python, tmp_path):
    pipes = {"classes": make_pipeline(num_class_embeds=4), "plane": plane_pipeline}
    for name, pipe in pipes.items():
        pipe.save_pretrained(tmp_path / name)
    program = """
        import sys, numpy as np, torch, diffusers
        folder = sys.argv[1]
        for name, labels in {"classes": {"class_labels": 1}, "plane": {}}.items():
            pipe = diffusers.DiffusionPipeline.from_pretrained(f"{folder}/{name}", trust_remote_code=True)
            assert type(pipe).__module__ == "hfgen.pipelines.ddpm"
            generator = torch.Generator().manual_seed(0)
            images = pipe(2, num_steps=5, generator=generator, output_type="np", **labels).images
            np.save(f"{folder}/{name}.npy", images)
            pipe.save_pretrained(f"{folder}/{name}-again")
    """
    result = python(program, tmp_path)
    assert result.returncode == 0, result.stderr
    for name, pipe in pipes.items():
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), sample(pipe), atol=1e-4, rtol=0)
        assert files(tmp_path / f"{name}-again") == files(tmp_path / name)
        everything = b"".join(path.read_bytes() for path in (tmp_path / f"{name}-again").rglob("*.json"))
        assert b"_name_or_path" not in everything and str(tmp_path).encode() not in everything
        np.testing.assert_allclose(sample(DDPMPipeline.from_pretrained(tmp_path / f"{name}-again")), sample(pipe),
                                   atol=1e-4, rtol=0)


def stock_pipeline(**changes):
    """Return a pipeline made of stock parts alone."""
    net = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"), **changes,
    )
    pipe = StockPipeline(net.eval(), StockScheduler(num_train_timesteps=20, variance_type="fixed_large"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def assert_same_images(ours, theirs):
    ours.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    images = ours(2, num_steps=5, generator=generators[0], output_type="np").images
    expected = theirs(2, generators[1], 5, output_type="np").images
    np.testing.assert_allclose(images, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("time", ["positional", "fourier"])
def test_a_stock_folder_loads(tmp_path, time):
    pipe = stock_pipeline(time_embedding_type=time)
    pipe.save_pretrained(tmp_path)
    ours = DDPMPipeline.from_pretrained(tmp_path)
    assert type(ours.unet) is UNet
    trained = {name for name, parameter in ours.unet.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in pipe.unet.named_parameters() if parameter.requires_grad}
    assert not any(tensor.is_meta for tensor in [*ours.unet.parameters(), *ours.unet.buffers()])
    if time == "positional":
        assert_same_images(ours, pipe)


def test_a_stock_folder_in_shards_loads(tmp_path):
    pipe = stock_pipeline()
    pipe.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    assert_same_images(DDPMPipeline.from_pretrained(tmp_path), pipe)


def test_a_variant_is_chosen_and_becomes_float32(tmp_path):
    pipe = stock_pipeline()
    pipe.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    ours = DDPMPipeline.from_pretrained(tmp_path, variant="fp16")
    assert ours.unet.dtype == torch.float32
    assert DDPMPipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16).unet.dtype == torch.float16
    assert torch.equal(ours.unet.conv_in.weight, pipe.unet.conv_in.weight.float())


def test_an_old_flat_folder_loads(tmp_path):
    pipe = stock_pipeline(add_attention=True)
    pipe.save_pretrained(tmp_path / "new")
    flat = tmp_path / "flat"
    flat.mkdir()
    config = json.loads((tmp_path / "new/unet/config.json").read_text())
    for later in ("dropout", "add_attention", "class_embed_type", "num_class_embeds", "num_train_timesteps",
                  "attn_norm_num_groups", "downsample_type", "upsample_type", "resnet_time_scale_shift",
                  "time_embedding_dim"):
        del config[later]
    config["_diffusers_version"] = "0.0.4"
    (flat / "config.json").write_text(json.dumps(config))
    scheduler = {
        "_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "num_train_timesteps": 20, "beta_start": 0.0001,
        "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": True, "trained_betas": None,
        "variance_type": "fixed_large", "tensor_format": "pt", "timestep_values": None,
    }
    (flat / "scheduler_config.json").write_text(json.dumps(scheduler))
    (flat / "model_index.json").write_bytes((tmp_path / "new/model_index.json").read_bytes())
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    weights = load_file(tmp_path / "new/unet/diffusion_pytorch_model.safetensors")
    for new_name, old_name in old.items():
        weights = {key.replace(new_name, old_name): tensor for key, tensor in weights.items()}
    assert any(".proj_attn." in key for key in weights)
    save_file(weights, flat / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    assert_same_images(DDPMPipeline.from_pretrained(flat), pipe)


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")                        # diffusers with numpy 2
def test_a_swapped_scheduler_keeps_its_stock_name(make_pipeline, tmp_path):
    pipe = make_pipeline(scheduler={"variance_type": "fixed_large"})
    for name in ("DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"):
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
        pipe.save_pretrained(tmp_path / name)
        again = DDPMPipeline.from_pretrained(tmp_path / name)
        assert type(again.scheduler) is getattr(diffusers, name)
        np.testing.assert_array_equal(sample(again), sample(pipe))
        index = json.loads((tmp_path / name / "model_index.json").read_text())
        assert index["_class_name"] == "DDPMPipeline" and index["scheduler"] == ["diffusers", name]
    back = DDPMScheduler.from_config(pipe.scheduler.config)
    assert back.config.variance_type == "fixed_large"


def test_stock_parts_in_our_pipeline_are_saved_under_their_stock_names(tmp_path):
    pipe = stock_pipeline()
    ours = DDPMPipeline(**pipe.components)
    ours.save_pretrained(tmp_path / "saved")
    assert_same_images(DDPMPipeline.from_pretrained(tmp_path / "saved"), pipe)


def test_file_modes_follow_the_umask(make_pipeline, tmp_path):
    before = os.umask(0o027)
    try:
        make_pipeline(num_class_embeds=4).save_pretrained(tmp_path / "saved")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert modes == {0o640}
    assert stat.S_IMODE((tmp_path / "saved").stat().st_mode) == 0o750


def test_saving_over_an_older_pipeline_replaces_it_and_keeps_other_files(make_pipeline, plane_pipeline, tmp_path):
    target = tmp_path / "saved"
    plane_pipeline.save_pretrained(target)
    (target / "README.md").write_text("a card")
    old = DDPMPipeline.from_pretrained(target)
    pipe = make_pipeline()
    pipe.save_pretrained(target)
    np.testing.assert_array_equal(sample(DDPMPipeline.from_pretrained(target)), sample(pipe))
    np.testing.assert_array_equal(sample(old), sample(plane_pipeline))          # its mapped files are gone, not changed
    assert not (target / "pipeline.py").exists() and not (target / "unet/hfgen_shim.py").exists()
    assert (target / "README.md").read_text() == "a card" and os.listdir(tmp_path) == ["saved"]


def test_a_folder_of_something_else_is_not_overwritten(make_pipeline, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not a pipeline folder"):
        make_pipeline().save_pretrained(tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_an_empty_folder_is_filled(make_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    assert (tmp_path / "model_index.json").is_file()


def test_a_compiled_network_samples_and_is_saved_as_what_it_was(plane_pipeline, tmp_path):
    expected = sample(plane_pipeline)
    plane_pipeline.unet = torch.compile(plane_pipeline.unet, backend="eager")
    np.testing.assert_allclose(sample(plane_pipeline), expected, atol=1e-5, rtol=0)
    plane_pipeline.save_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(sample(DDPMPipeline.from_pretrained(tmp_path / "saved")), expected)


def test_saving_through_a_link_fills_the_folder_behind_it(make_pipeline, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    make_pipeline().save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real/model_index.json").is_file()


def test_whole_numbers_may_stand_for_data_means(tmp_path):
    net = MLPDenoiser(data_mean=[1, -2], data_std=3)
    DDPMPipeline(net, DDPMScheduler(num_train_timesteps=20)).save_pretrained(tmp_path / "saved")
    again = DDPMPipeline.from_pretrained(tmp_path / "saved")
    assert again.unet.config.data_mean == [1, -2]
    np.testing.assert_array_equal(sample(again), sample(DDPMPipeline(net.eval(), again.scheduler)))


def test_a_failed_save_leaves_the_older_pipeline_and_no_litter(make_pipeline, saved, tmp_path):
    before = {name: (saved / name).read_bytes() for name in files(saved)}

    class Mine(UNet):
        """A network that hfgen could not load again."""

    mine = Mine(**{k: v for k, v in make_pipeline().unet.config.items() if not k.startswith("_")})
    with pytest.raises(ConfigError, match="Mine"):
        DDPMPipeline(mine, DDPMScheduler()).save_pretrained(saved)
    assert {name: (saved / name).read_bytes() for name in files(saved)} == before
    assert os.listdir(tmp_path) == ["saved"]


def test_pickles_are_not_written(make_pipeline, tmp_path):
    with pytest.raises(ConfigError, match="safe_serialization"):
        make_pipeline().save_pretrained(tmp_path / "saved", safe_serialization=False)


def test_loading_is_placed_on_the_device_and_in_the_type_asked_for(saved):
    pipe = DDPMPipeline.from_pretrained(saved, dtype=torch.bfloat16, device="cpu")
    assert pipe.unet.dtype == torch.bfloat16 and pipe.device == torch.device("cpu")
