"""Latent diffusion: stock's loop as oracle, guidance, images and masks, saved folders, noise per image, refusals."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from hfgen import AutoPipeline, DDPMScheduler
from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.loading.components import load_component
from hfgen.loading.old_names import OLD_ATTENTION_NAMES
from hfgen.models.autoencoder_kl import AutoencoderKL
from hfgen.models.conditional_unet import ConditionalUNet
from hfgen.models.text import build_text_encoder, token_ids
from hfgen.pipelines.inversion import interpolate, invert
from hfgen.pipelines.latent_diffusion import LatentDiffusionPipeline
from hfgen.schedulers.samplers import make_sampler
from tests.helpers import seed
from tests.pipelines.helpers import TOKENIZER, features, last, reference, with_ddim


def make(text: bool = False, classes: int | None = None, null: bool = False, **changes: Any) -> Any:
    """Return a quiet pipeline: latents (2, 4, 4) of images 8x8."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4, sample_size=8,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=2, scaling_factor=0.5, shift_factor=0.1,
    )  # fmt: skip
    unet = ConditionalUNet(
        sample_size=4, in_channels=2, out_channels=2, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        attention_levels=(1,), attention_head_dim=4, cross_attention_dim=8 if text else None, num_class_embeds=classes,
        **changes,
    )  # fmt: skip
    parts = {"text_encoder": build_text_encoder(TOKENIZER, 8, 1, 2).eval(), "tokenizer": TOKENIZER} if text else {}
    scheduler = DDPMScheduler(num_train_timesteps=20, clip_sample=False)
    pipe = LatentDiffusionPipeline(vae.eval(), unet.eval(), scheduler, **parts, null_condition=null)  # type: ignore[arg-type]
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_samples_are_those_of_stocks_loop_decoded() -> None:
    pipe, x = with_ddim(make()), torch.randn(3, 2, 4, 4)
    expected = reference(pipe, x, 5, lambda z, t: pipe.unet(z, t).sample)
    found = last(pipe.states(num_steps=5, latents=x))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    with torch.no_grad():
        images = (pipe.vae.decode(expected / 0.5 + 0.1).sample / 2 + 0.5).clamp(0, 1)
    tensor = pipe(num_steps=5, latents=x, output_type="pt").images
    torch.testing.assert_close(tensor, images, atol=1e-4, rtol=0)
    torch.testing.assert_close(pipe.decode(found, "pt").images, tensor, atol=1e-6, rtol=0)
    assert [p.size for p in pipe(batch_size=2, num_steps=2).images] == [(8, 8)] * 2
    assert len(list(pipe.states())) == 21


@pytest.mark.parametrize(
    ("T", "sampler", "steps"),
    [(20, None, 20), (1000, None, 50), (20, "reverse_sde", 20), (1000, "reverse_sde", 500), (1000, "dpmpp_2m", 20)],
)
def test_steps_are_50_or_what_is_usual_for_the_sampler_and_never_more_than_those_of_training(
    T: int, sampler: str | None, steps: int
) -> None:
    pipe, asked = make(), []
    pipe.scheduler = DDPMScheduler(num_train_timesteps=T, clip_sample=False)
    pipe._times = lambda scheduler, steps, share: asked.append(steps) or []
    assert len(list(pipe.states(sampler=sampler))) == 1 and asked == [steps]


def test_images_are_inverted_and_joined_in_latents_and_told_a_text() -> None:
    pipe, x = make(text=True, classes=4, null=True), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        z = pipe.vae.to_latents(2 * x - 1)
        seen = (pipe.vae.from_latents(z) / 2 + 0.5).clamp(0, 1)
    told: dict[str, Any] = {"class_labels": 1, "prompt": "a red circle"}
    found = invert(pipe, x, 40, **told)
    torch.testing.assert_close(found.reconstructed, z, atol=0.02, rtol=0)
    torch.testing.assert_close(found.error, (found.reconstructed - z).double().square().mean((1, 2, 3)))
    states = list(pipe.states(num_steps=40, sampler="ode_heun", latents=found.latents, guidance_scale=1.0, **told))
    torch.testing.assert_close(states[-2], found.reconstructed, atol=1e-4, rtol=0)
    other = invert(pipe, x, 40, class_labels=1, prompt="a blue square").latents
    assert (other - found.latents).abs().max() > 1e-3
    path = interpolate(pipe, x, 3, 40, output_type="pt", **told)
    assert path.shape == (3, 3, 8, 8)
    torch.testing.assert_close(path[[0, 2]], seen, atol=0.02, rtol=0)
    assert [picture.size for picture in interpolate(pipe, x, 2, 1, **told)] == [(8, 8)] * 2
    with pytest.raises(ConfigError, match="prompt must be given"):
        invert(make(text=True), x, 1)


def test_prompts_and_classes_are_guided_away_from_the_negative_prompt_and_the_null_class() -> None:
    pipe, x = with_ddim(make(text=True, classes=4, null=True)), torch.randn(2, 2, 4, 4)
    told = features(pipe, "a red circle", "a blue square")
    negative, empty = features(pipe, "white", "white"), features(pipe, "", "")
    labels, null = torch.tensor([0, 2]), torch.tensor([3, 3])

    def predict(z: Tensor, t: Tensor) -> Tensor:
        c, u = pipe.unet(z, t, labels, told).sample, pipe.unet(z, t, null, negative).sample
        return u + 4.0 * (c - u)

    prompts = {"prompt": ["a red circle", "a blue square"], "class_labels": [0, 2], "latents": x}
    found = last(pipe.states(num_steps=4, guidance_scale=4.0, negative_prompt="white", **prompts))
    torch.testing.assert_close(found, reference(pipe, x, 4, predict), atol=1e-4, rtol=0)
    off = last(pipe.states(num_steps=4, guidance_scale=1.0, **prompts))
    expected = reference(pipe, x, 4, lambda z, t: pipe.unet(z, t, labels, told).sample)
    torch.testing.assert_close(off, expected, atol=1e-4, rtol=0)
    none = last(pipe.states(num_steps=4, guidance_scale=1.0, latents=x))
    expected = reference(pipe, x, 4, lambda z, t: pipe.unet(z, t, null, empty).sample)
    torch.testing.assert_close(none, expected, atol=1e-4, rtol=0)
    never = last(pipe.states(num_steps=4, guidance_scale=4.0, guidance_interval=(1.0, 1.0), **prompts))
    torch.testing.assert_close(never, off, atol=1e-4, rtol=0)
    for trained, scale in ((True, 3.0), (False, 1.0)):
        pipe.register_to_config(null_condition=trained)
        default = last(pipe.states(num_steps=4, **prompts))
        assert torch.equal(default, last(pipe.states(num_steps=4, guidance_scale=scale, **prompts)))


@pytest.mark.parametrize("kind", [{"text": True}, {"classes": 4}, {"text": True, "classes": 4}], ids=str)
def test_inside_its_interval_guidance_is_rescaled_as_stocks_and_each_step_is_one_call(kind: dict[str, Any]) -> None:
    pipe, x, rows = with_ddim(make(null=True, **kind)), torch.randn(2, 2, 4, 4), list[int]()
    texts = [None, None]
    if "text" in kind:
        with torch.no_grad():
            texts = [pipe.text_encoder(input_ids=token_ids(TOKENIZER, [text] * 2)).last_hidden_state
                     for text in ("a red circle", "white")]  # fmt: skip
    labels = [torch.tensor([label] * 2) for label in (1, 3)] if "classes" in kind else [None, None]

    def predict(z: Tensor, t: Tensor) -> Tensor:
        c, u = (pipe.unet(z, t, label, text).sample for label, text in zip(labels, texts, strict=True))
        return rescale_noise_cfg(u + 4.0 * (c - u), c, 0.6) if 0.3 <= t / 19 <= 0.7 else c

    expected = reference(pipe, x, 5, predict)
    pipe.unet.register_forward_pre_hook(lambda net, given: rows.append(len(given[0])))
    told: dict[str, Any] = {"prompt": "a red circle", "negative_prompt": "white"} if "text" in kind else {}
    told |= {"class_labels": 1} if "classes" in kind else {}
    guidance: dict[str, Any] = {"guidance_scale": 4.0, "guidance_interval": (0.3, 0.7), "guidance_rescale": 0.6}
    found = last(pipe.states(num_steps=5, latents=x, **told, **guidance))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert rows == [2, 4, 4, 2, 2]                                       # at t = 16, 12, 8, 4, 0


def test_the_autoencoder_may_be_a_stock_one_of_old(tmp_path: Path) -> None:
    stock = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4, sample_size=8,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=2,
    ).eval()  # fmt: skip
    stock.save_pretrained(tmp_path / "stock")
    path, weights = tmp_path / "stock" / "config.json", stock.state_dict()
    config = json.loads(path.read_text()) | {"_diffusers_version": "0.4.2"}
    for later in ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast", "use_quant_conv",
                  "use_post_quant_conv", "mid_block_add_attention"):
        config.pop(later)
    path.write_text(json.dumps(config))
    for old, new in OLD_ATTENTION_NAMES.items():
        weights = {key.replace(f".{new}.", f".{old}."): tensor.contiguous() for key, tensor in weights.items()}
    assert any(".proj_attn." in key for key in weights)
    save_file(weights, tmp_path / "stock" / "diffusion_pytorch_model.safetensors")
    vae = load_component(tmp_path / "stock", "", AutoencoderKL, "AutoencoderKL")
    plain, x = make(), torch.randn(2, 2, 4, 4)
    pipe: Any = LatentDiffusionPipeline(vae, plain.unet, plain.scheduler)
    pipe.set_progress_bar_config(disable=True)
    images = with_ddim(pipe)(num_steps=3, latents=x, output_type="pt").images
    z = reference(pipe, x, 3, lambda z, t: pipe.unet(z, t).sample)
    with torch.no_grad():
        expected = (stock.decode(z / 0.18215).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)
    pipe.scheduler = plain.scheduler
    pipe.save_pretrained(tmp_path / "saved")
    again: Any = AutoPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(with_ddim(again)(num_steps=3, latents=x, output_type="pt").images, images)
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path / "saved" / "vae")
    assert all(torch.equal(theirs.state_dict()[key], tensor) for key, tensor in stock.state_dict().items())


def test_an_image_is_noised_for_the_last_share_of_the_steps() -> None:
    pipe, x, noise = with_ddim(make()), torch.rand(2, 3, 8, 8), torch.randn(2, 2, 4, 4)
    with torch.no_grad():
        z = pipe.vae.to_latents(2 * x - 1)
    scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(10)
    begin = scheduler.add_noise(z, noise, scheduler.timesteps[6].expand(2))
    expected = reference(pipe, begin, 10, lambda z, t: pipe.unet(z, t).sample, skip=6)
    states = list(pipe.states(num_steps=10, image=x, strength=0.4, latents=noise))
    assert len(states) == 5
    torch.testing.assert_close(states[0], begin, atol=1e-5, rtol=0)
    torch.testing.assert_close(states[-1], expected, atol=1e-4, rtol=0)
    several = pipe(num_steps=4, image=Image.new("RGB", (20, 9), "red"), batch_size=3, generator=seed(0)).images
    assert len(several) == 3 and several[0].tobytes() != several[1].tobytes()


def test_samplers_in_continuous_time_start_in_the_middle_too() -> None:
    pipe, x, noise = make(), torch.rand(2, 3, 8, 8), torch.randn(2, 2, 4, 4)
    with torch.no_grad():
        z = pipe.vae.to_latents(2 * x - 1)
    states = list(pipe.states(num_steps=10, image=x, strength=0.4, latents=noise, sampler="ode_heun"))
    assert len(states) == 1 + 2 * 4 + 1                                  # two evaluations a step, and the last estimate
    sde = make_sampler("ode_heun", pipe.scheduler)
    sde.set_timesteps(10)
    begin = sde.add_noise(z, noise, sde.timesteps[12].expand(2))
    torch.testing.assert_close(states[0], begin, atol=1e-5, rtol=0)


@pytest.mark.parametrize("text", [False, True])
def test_a_saved_folder_loads_again_with_and_without_text(tmp_path: Path, text: bool) -> None:
    pipe = make(text=text, classes=4, null=True)
    pipe.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["text_encoder"] == (["transformers", "CLIPTextModel"] if text else [None, None])
    assert index["tokenizer"] == (["transformers", "CLIPTokenizer"] if text else [None, None])
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    assert index["unet"] == (["diffusers", "UNet2DConditionModel"] if text else ["hfgen_shim", "ConditionalUNet"])
    again: Any = AutoPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    told = {"prompt": "a red circle"} if text else {}
    a, b = (p(class_labels=1, num_steps=3, generator=seed(2), output_type="pt", **told).images for p in (pipe, again))
    assert torch.equal(a, b)
    index.pop("vae")
    (tmp_path / "saved" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="LatentDiffusionPipeline has the components"):
        AutoPipeline.from_pretrained(tmp_path / "saved")


def test_noise_of_an_image_does_not_depend_on_its_batch() -> None:
    pipe = make(classes=3)
    together = last(pipe.states(class_labels=[0, 1, 2], num_steps=5, generator=seed(5, 6, 7)))
    alone = last(pipe.states(class_labels=[1], num_steps=5, generator=[seed(6)]))
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ({}, {"prompt": "a"}, "prompt must be None, this model is not conditioned on texts"),
        ({}, {"guidance_scale": 2.0}, "guidance_scale must be 1: this model was not trained without conditions"),
        ({}, {"class_labels": 1}, "class_labels must be None"),
        ({"classes": 3}, {}, "class_labels must be given"),
        ({"classes": 3, "null": True}, {"class_labels": 2}, r"class_labels must be in \[0, 1\]"),
        ({"text": True}, {"prompt": ["a", "b"], "batch_size": 3}, "these must agree: prompt 2, batch_size 3"),
        ({"text": True}, {"prompt": 3}, "prompt must be a text or a list of texts, got 3"),
        ({"text": True, "null": True}, {"negative_prompt": ["a", "b"]}, "negative_prompt must be one text or 1 of"),
        ({"text": True}, {}, "prompt must be given: this model was not trained without texts"),
        ({"text": True}, {"prompt": "a", "guidance_scale": 2.0}, "guidance_scale must be 1: this model was not"),
        ({}, {"negative_prompt": "a"}, "negative_prompt must be None, this model is not conditioned on texts"),
        ({"text": True, "null": True}, {"negative_prompt": "b", "guidance_scale": 1.0},
         "negative_prompt: needs a guidance_scale other than 1; got 'b'"),
        ({"text": True}, {"prompt": "a", "negative_prompt": "b"},
         "negative_prompt: needs a guidance_scale other than 1, which this model, never trained without"),
        ({}, {"mask": torch.ones(8, 8)}, "mask and strength require an image, got none"),
        ({}, {"num_steps": 21}, r"num_steps must be an int in \[1, 20\]"),
        ({}, {"latents": torch.zeros(2, 2, 4, 5)}, r"latents must be a tensor of shape \[2, 2, 4, 4\]"),
        ({}, {"strength": 0.5}, "mask and strength require an image"),
        ({}, {"image": torch.zeros(1, 3, 8, 8), "strength": 0.0}, r"strength must be a number in \(0, 1\], got 0.0"),
        ({}, {"image": torch.zeros(2, 3, 8, 8), "mask": torch.zeros(3, 1, 8, 8)}, "mask must be one for all images"),
        ({}, {"sampler": "best"}, "sampler must be one of"),
        ({}, {"output_type": "png"}, "output_type"),
        ({}, {"guidance_rescale": 2.0}, "guidance_rescale"),
    ],
)
def test_wrong_arguments_are_refused_by_name(kind: Any, arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make(**kind)(**{"num_steps": 2, **arguments})
    assert isinstance(caught.value, ConfigTypeError) == (arguments.get("prompt") == 3)


def test_parts_that_do_not_fit_together_are_refused() -> None:
    text, plain = make(text=True), make()
    with pytest.raises(ConfigError, match="text_encoder and tokenizer must be given exactly if"):
        LatentDiffusionPipeline(plain.vae, text.unet, plain.scheduler)
    wide = ConditionalUNet(sample_size=4, block_out_channels=(8,), norm_num_groups=4, attention_levels=(),
                           attention_head_dim=4)  # fmt: skip
    for part, classes in ((plain, "none"), (make(classes=1), 1)):
        with pytest.raises(ConfigError, match=f"null_condition needs a unet that .* this one has {classes}"):
            LatentDiffusionPipeline(part.vae, part.unet, part.scheduler, null_condition=True)
    with pytest.raises(ConfigError, match="unet takes 4 channels, the latents of the vae have 2"):
        LatentDiffusionPipeline(plain.vae, wide, plain.scheduler)
