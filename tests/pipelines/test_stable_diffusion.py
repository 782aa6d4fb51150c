"""Captioned latent diffusion is saved as a Stable Diffusion pipeline, which diffusers and its users' scripts load."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from hfgen import AutoencoderKL, AutoPipeline, ConditionalUNet, DDPMScheduler, LatentDiffusionPipeline
from hfgen.errors import ConfigError
from hfgen.models.fold_shift import fold_shift
from hfgen.models.text import build_text_encoder
from tests.pipelines.helpers import TOKENIZER

PROMPT = "a red circle"
VAE: dict[str, Any] = {
    "block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2, "norm_num_groups": 4,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "latent_channels": 4, "sample_size": 16, "scaling_factor": 0.5,
}  # fmt: skip
UNET: dict[str, Any] = {
    "sample_size": 8, "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1,
    "attention_levels": (1,), "attention_head_dim": 4, "cross_attention_dim": 64, "pooled_text": True,
}  # fmt: skip


def make(null: bool = True, vae: dict[str, Any] | None = None, **unet: Any) -> Any:
    """Return a quiet pipeline of captions: latents (4, 8, 8) of images 16x16."""
    torch.manual_seed(0)
    scheduler = DDPMScheduler(
        num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False,
        timestep_spacing="trailing", steps_offset=1,
    )  # fmt: skip
    encoder = build_text_encoder(TOKENIZER, 64, 1, 2).eval()
    net = fold_shift(AutoencoderKL(**{**VAE, "shift_factor": 0.3, **(vae or {})}).eval())
    pipe = LatentDiffusionPipeline(
        net, ConditionalUNet(**{**UNET, **unet}).eval(), scheduler, encoder, TOKENIZER, null_condition=null
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captions") / "model"
    make().save_pretrained(folder)
    return folder


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_folder_has_no_code_and_two_stock_classes_load_it_with_equal_latents(folder: Path) -> None:
    assert not list(folder.rglob("*.py"))
    x, ours = torch.randn(2, 4, 8, 8), quiet(AutoPipeline.from_pretrained(folder))
    settings: dict[str, Any] = {"num_inference_steps": 5, "guidance_scale": 2.0, "latents": x}
    expected = None
    for cls in (diffusers.DiffusionPipeline, diffusers.AutoPipelineForText2Image):
        stock: Any = quiet(cls.from_pretrained(folder))
        assert type(stock) is diffusers.StableDiffusionPipeline
        assert type(stock.unet) is diffusers.UNet2DConditionModel
        generator = torch.Generator().manual_seed(1)
        found = stock([PROMPT] * 2, output_type="latent", generator=generator, **settings).images
        pixels = stock([PROMPT] * 2, output_type="pt", generator=torch.Generator().manual_seed(1), **settings).images
        if expected is None:
            generator = torch.Generator().manual_seed(1)
            *_, expected = ours.states([PROMPT] * 2, generator=generator, **settings)
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
        torch.testing.assert_close(pixels, ours.decode(expected, "pt").images, atol=1e-5, rtol=0)


def test_the_saved_pipeline_is_loaded_again_with_the_same_tensors_and_settings(folder: Path) -> None:
    first, again = make(), AutoPipeline.from_pretrained(folder)
    assert type(again) is LatentDiffusionPipeline and again.guidable
    for part in ("vae", "unet", "text_encoder"):
        mine, theirs = getattr(first, part).state_dict(), getattr(again, part).state_dict()
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    own = {key: value for key, value in first.unet.config.items() if not key.startswith("_")}
    loaded = {key: value for key, value in again.unet.config.items() if not key.startswith("_")}
    assert json.dumps(own, sort_keys=True) == json.dumps(loaded, sort_keys=True)
    alone = ConditionalUNet.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), again.unet.parameters(), strict=True))


def test_a_stock_pipeline_saved_by_diffusers_comes_back(folder: Path, tmp_path: Path) -> None:
    stock: Any = diffusers.DiffusionPipeline.from_pretrained(folder)
    stock.save_pretrained(tmp_path / "again")
    x = torch.randn(1, 4, 8, 8)
    found = [list(quiet(AutoPipeline.from_pretrained(one)).states(PROMPT, num_steps=3, latents=x,
             generator=torch.Generator().manual_seed(0)))[-1] for one in (folder, tmp_path / "again")]  # fmt: skip
    assert torch.equal(*found)


def test_image_to_image_inpainting_and_controlnet_scripts_of_others_run(folder: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    image_to_image: Any = quiet(diffusers.AutoPipelineForImage2Image.from_pretrained(folder))
    assert image_to_image(PROMPT, picture, strength=0.5, num_inference_steps=4).images[0].size == (16, 16)
    inpaint: Any = quiet(diffusers.AutoPipelineForInpainting.from_pretrained(folder))
    mask = Image.new("L", (16, 16), 255)
    assert inpaint(PROMPT, picture, mask, num_inference_steps=4, height=16, width=16).images[0].size == (16, 16)
    text: Any = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    net = diffusers.ControlNetModel.from_unet(text.unet, conditioning_embedding_out_channels=(16, 32))
    control: Any = quiet(diffusers.StableDiffusionControlNetPipeline.from_pipe(text, controlnet=net))
    assert control(PROMPT, picture, num_inference_steps=2, height=16, width=16).images[0].size == (16, 16)


def test_lora_weights_are_trained_saved_and_loaded_by_a_script_of_others(folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="LoRA needs peft")
    pipe: Any = quiet(diffusers.StableDiffusionPipeline.from_pretrained(folder))
    pipe.unet.requires_grad_(False)
    pipe.unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    trained = [p for p in pipe.unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 64)
    losses = []
    for _ in range(5):
        loss = (pipe.unet(x, torch.tensor([1, 50]), text).sample - 1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 1e-3
    layers = peft.get_peft_model_state_dict(pipe.unet)
    diffusers.StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=diffusers.utils.convert_state_dict_to_diffusers(layers)
    )
    fresh: Any = quiet(diffusers.StableDiffusionPipeline.from_pretrained(folder))
    before = fresh.unet(x, torch.tensor([1, 50]), text).sample
    assert len(fresh.unet.attn_processors) == 2 * 4
    fresh.load_lora_weights(tmp_path)
    after = fresh.unet(x, torch.tensor([1, 50]), text).sample
    expected = pipe.unet(x, torch.tensor([1, 50]), text).sample
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("other", [
    {"null": False}, {"num_class_embeds": 3}, {"self_attention": False}, {"sample_size": 10},
])  # fmt: skip
def test_models_that_stable_diffusion_cannot_hold_stay_hfgens(other: dict[str, Any], tmp_path: Path) -> None:
    pipe = make(**other)
    pipe.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "pipeline.py").is_file()
    again: Any = AutoPipeline.from_pretrained(tmp_path / "model")
    assert again.guidable == pipe.guidable and again.num_classes == pipe.num_classes


@pytest.mark.parametrize("field, value", [
    ("act_fn", "gelu"), ("down_block_types", ["DownBlock2D", "Strange"]), ("attention_head_dim", [1, 3]),
    ("attention_head_dim", "many"), ("block_out_channels", 8), ("addition_embed_type_num_heads", 5),
    ("addition_embed_type", "image"), ("up_block_types", ["UpBlock2D", "UpBlock2D"]), ("unknown", 1),
    ("cross_attention_dim", [64]), ("mid_block_type", "UNetMidBlock2D"), ("block_out_channels", [8, None]),
])  # fmt: skip
def test_settings_that_are_not_reproduced_are_refused_by_name(
    field: str, value: Any, folder: Path, tmp_path: Path
) -> None:
    config = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, field: value}), encoding="utf-8")
    with pytest.raises(ConfigError, match=field):
        ConditionalUNet.from_pretrained(tmp_path)


@pytest.mark.parametrize("vae", [
    {"shift_factor": 0.3}, {"shift_factor": 0.3, "use_quant_conv": False, "use_post_quant_conv": False},
    {"shift_factor": None, "latents_mean": (0.1, -0.2, 0.3, 0.4), "latents_std": (0.5, 1.5, 2.0, 1.0)},
])  # fmt: skip
def test_folding_the_shift_changes_neither_latents_nor_images(vae: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = AutoencoderKL(**{**VAE, **vae}).eval()
    folded = fold_shift(net)
    assert folded.config["shift_factor"] is None and folded.config["latents_mean"] is None
    x, z = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 4, 8, 8)
    for found, expected in zip(folded.to_moments(x), net.to_moments(x), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(folded.from_latents(z), net.from_latents(z), atol=2e-6, rtol=1e-5)
    assert fold_shift(folded) is folded


def test_pipelines_are_exchanged_both_ways(folder: Path) -> None:
    stock: Any = quiet(diffusers.StableDiffusionPipeline.from_pretrained(folder))
    ours: Any = quiet(LatentDiffusionPipeline.from_pipe(stock, null_condition=True))
    assert type(ours.unet) is ConditionalUNet and type(ours.vae) is AutoencoderKL
    x = torch.randn(1, 4, 8, 8)
    settings: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 2.0, "latents": x}
    expected = stock(PROMPT, output_type="latent", generator=torch.Generator().manual_seed(0), **settings).images
    *_, found = ours.states(PROMPT, generator=torch.Generator().manual_seed(0), **settings)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
