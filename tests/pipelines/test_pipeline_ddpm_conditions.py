"""What DDPM is told: classes and texts, guidance against two calls of the network, images and masks to start from."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from hfgen import AutoPipeline, DDPMPipeline, DDPMScheduler, MLPDenoiser
from hfgen.errors import ConfigError
from hfgen.models.conditional_unet import ConditionalUNet
from hfgen.models.text import build_text_encoder
from hfgen.pipelines.inversion import invert
from tests.pipelines.helpers import TOKENIZER, features, last, reference, with_ddim


def labelled(make_unet: Any, null: bool = True, **changes: Any) -> Any:
    """Return a quiet pipeline of three classes and, as the last, the null class (or of four classes)."""
    return quiet(make_unet(num_class_embeds=4, **changes), null_condition=null)


def told(null: bool = True) -> Any:
    """Return a quiet pipeline of 8x8 images that are told a text."""
    unet = ConditionalUNet(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        attention_levels=(1,), attention_head_dim=4, cross_attention_dim=8,
    )  # fmt: skip
    encoder = build_text_encoder(TOKENIZER, 8, 1, 2).eval()
    return quiet(unet.eval(), text_encoder=encoder, tokenizer=TOKENIZER, null_condition=null)


def quiet(unet: Any, **parts: Any) -> Any:
    pipe = DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=20), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_classes_are_guided_away_from_the_null_class_and_scale_1_is_the_condition_exactly(make_unet: Any) -> None:
    pipe, x = with_ddim(labelled(make_unet)), torch.randn(2, 1, 8, 8)
    labels, null = torch.tensor([0, 2]), torch.tensor([3, 3])

    def predict(z: Tensor, t: Tensor) -> Tensor:
        c, u = pipe.unet(z, t, labels).sample, pipe.unet(z, t, null).sample
        return u + 4.0 * (c - u)

    given: dict[str, Any] = {"num_steps": 4, "latents": x}
    found = last(pipe.states(class_labels=[0, 2], guidance_scale=4.0, **given))
    torch.testing.assert_close(found, reference(pipe, x, 4, predict), atol=1e-4, rtol=0)
    for choice in ({"guidance_scale": 1.0}, {"guidance_scale": 4.0, "guidance_interval": (1.0, 1.0)}):
        plain = with_ddim(labelled(make_unet, null=False))
        plain.unet.load_state_dict(pipe.unet.state_dict())
        assert torch.equal(last(pipe.states(class_labels=[0, 2], **choice, **given)),
                           last(plain.states(class_labels=[0, 2], **given)))  # fmt: skip
    nothing = reference(pipe, x, 4, lambda z, t: pipe.unet(z, t, null).sample)
    torch.testing.assert_close(last(pipe.states(guidance_scale=1.0, **given)), nothing, atol=1e-4, rtol=0)
    three = last(pipe.states(class_labels=1, guidance_scale=3.0, **given))
    assert torch.equal(last(pipe.states(class_labels=1, **given)), three)


def test_texts_are_guided_away_from_the_negative_prompt() -> None:
    pipe, x = with_ddim(told()), torch.randn(2, 1, 8, 8)

    prompts = ["a red circle", "a blue square"]
    for negative, text in ((None, ""), ("white", "white")):
        c, u = features(pipe, *prompts), features(pipe, text, text)

        def predict(z: Tensor, t: Tensor, c: Tensor = c, u: Tensor = u) -> Tensor:
            one, other = pipe.unet(z, t, None, c).sample, pipe.unet(z, t, None, u).sample
            return other + 2.5 * (one - other)

        found = pipe.states(num_steps=4, prompt=prompts, guidance_scale=2.5, negative_prompt=negative, latents=x)
        torch.testing.assert_close(last(found), reference(pipe, x, 4, predict), atol=1e-4, rtol=0)
    assert not torch.equal(features(pipe, "white"), features(pipe, ""))


def test_with_nothing_to_lead_to_or_away_from_guidance_costs_nothing(make_unet: Any) -> None:
    x = torch.randn(2, 1, 8, 8)
    rows: list[int] = []

    def sampled(pipe: Any, **choice: Any) -> Tensor:
        rows.clear()
        return last(pipe.states(num_steps=3, latents=x, sampler="ddim", **choice))

    for pipe in (labelled(make_unet), told()):
        pipe.unet.register_forward_pre_hook(lambda net, given: rows.append(len(given[0])))
        plain = sampled(pipe)
        assert rows == [2] * 3
        assert torch.equal(sampled(pipe, guidance_scale=5.0, guidance_rescale=0.5), plain)
    twice = sampled(pipe, prompt="")                                     # the empty text, led away from the empty text
    assert rows == [4] * 3
    torch.testing.assert_close(plain, twice, atol=1e-4, rtol=0)
    away = sampled(pipe, negative_prompt="white")
    assert rows == [4] * 3 and (away - plain).abs().max() > 1e-4


def test_of_a_learned_variance_the_noise_alone_is_guided(make_unet: Any) -> None:
    pipe, x = labelled(make_unet, out_channels=2), torch.randn(1, 1, 8, 8)
    pipe.scheduler = DDPMScheduler(num_train_timesteps=20, variance_type="learned_range")
    generator = torch.Generator().manual_seed(0)
    states = pipe.states(num_steps=20, class_labels=1, generator=generator, latents=x, guidance_scale=5.0)
    first, second = list(states)[:2]
    scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    with torch.no_grad():
        c, u = (pipe.unet(x, 19, torch.tensor([label])).sample for label in (1, 3))
    mixed = torch.cat([u[:, :1] + 5 * (c[:, :1] - u[:, :1]), c[:, 1:]], 1)
    expected = scheduler.step(mixed, 19, x, generator=torch.Generator().manual_seed(0)).prev_sample
    assert torch.equal(first, x)
    torch.testing.assert_close(second, expected, atol=1e-4, rtol=0)


def test_an_image_is_noised_for_the_last_share_of_the_steps(make_pipeline: Any) -> None:
    pipe, x, noise = with_ddim(make_pipeline()), torch.rand(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(10)
    begin = scheduler.add_noise(2 * x - 1, noise, scheduler.timesteps[6].expand(2))
    expected = reference(pipe, begin, 10, lambda z, t: pipe.unet(z, t).sample, skip=6)
    states = list(pipe.states(num_steps=10, image=x, strength=0.4, latents=noise))
    assert len(states) == 5
    torch.testing.assert_close(states[0], begin, atol=1e-5, rtol=0)
    torch.testing.assert_close(states[-1], expected, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")                        # diffusers with numpy 2
@pytest.mark.parametrize("sampler", [None, "dpmpp_2m", "ode_heun"])
def test_inpainting_keeps_every_pixel_outside_the_mask(make_pipeline: Any, sampler: str | None) -> None:
    pipe, x = make_pipeline(), torch.rand(2, 1, 8, 8)
    mask = torch.zeros(8, 8)
    mask[:, 4:] = 1
    images, others = (
        pipe(num_steps=6, image=x, mask=mask, generator=torch.Generator().manual_seed(seed), output_type="pt",
             sampler=sampler).images
        for seed in (0, 1)
    )  # fmt: skip
    torch.testing.assert_close(images[..., :4], x[..., :4], atol=1e-6, rtol=0)
    assert (images - others)[..., 4:].abs().mean() > 0.01


def test_a_guided_folder_says_so_and_its_unet_is_a_stock_one(make_unet: Any, tmp_path: Path) -> None:
    pipe = labelled(make_unet)
    pipe.save_pretrained(tmp_path / "classes")
    index = json.loads((tmp_path / "classes" / "model_index.json").read_text())
    assert index["null_condition"] is True and index["unet"] == ["diffusers", "UNet2DModel"]
    stock: Any = diffusers.UNet2DModel.from_pretrained(tmp_path / "classes" / "unet")
    x, t, labels = torch.randn(2, 1, 8, 8), torch.tensor([3, 7]), torch.tensor([1, 3])
    with torch.no_grad():
        expected = stock(x, t, labels).sample
        torch.testing.assert_close(pipe.unet(x, t, labels).sample, expected, atol=1e-5, rtol=0)
    again: Any = AutoPipeline.from_pretrained(tmp_path / "classes")
    again.set_progress_bar_config(disable=True)
    told: dict[str, Any] = {"class_labels": 1, "num_steps": 3, "latents": x, "output_type": "pt", "eta": 0.0}
    assert torch.equal(again(sampler="ddim", **told).images, pipe(sampler="ddim", **told).images)
    for gone in ("null_condition", "text_encoder", "tokenizer"):
        index.pop(gone)                                            # as older folders are
    (tmp_path / "classes" / "model_index.json").write_text(json.dumps(index))
    old: Any = AutoPipeline.from_pretrained(tmp_path / "classes")
    old.set_progress_bar_config(disable=True)
    assert old(class_labels=3, num_steps=1, output_type="pt").images.shape == (1, 1, 8, 8)
    with pytest.raises(ConfigError, match="class_labels must be given"):
        old(num_steps=1)


def test_a_captioned_folder_loads_again(tmp_path: Path) -> None:
    pipe = told()
    pipe.save_pretrained(tmp_path / "texts")
    index = json.loads((tmp_path / "texts" / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"] and index["tokenizer"][1] == "CLIPTokenizer"
    again: Any = AutoPipeline.from_pretrained(tmp_path / "texts")
    again.set_progress_bar_config(disable=True)
    a, b = (p(prompt="a red circle", num_steps=3, generator=torch.Generator().manual_seed(2), output_type="pt").images
            for p in (pipe, again))  # fmt: skip
    assert torch.equal(a, b)


def test_points_are_not_guided_unless_asked(plane_pipeline: Any) -> None:
    pipe = quiet(MLPDenoiser(num_class_embeds=3).eval(), null_condition=True)
    given: dict[str, Any] = {"class_labels": 1, "num_steps": 4, "latents": torch.randn(5, 2), "sampler": "ddim"}
    plain, off, on = (last(pipe.states(**given, **more)) for more in ({}, {"guidance_scale": 1.0},
                                                                     {"guidance_scale": 2.0}))  # fmt: skip
    assert torch.equal(plain, off) and (plain - on).abs().max() > 1e-4
    with pytest.raises(ConfigError, match="image must be None, this model makes points"):
        plane_pipeline(image=torch.rand(1, 1, 8, 8))


def test_inversion_knows_the_null_class(make_unet: Any) -> None:
    pipe, x = labelled(make_unet), torch.rand(1, 1, 8, 8)
    null = labelled(make_unet, null=False)
    null.unet.load_state_dict(pipe.unet.state_dict())
    assert torch.equal(invert(pipe, x, 4).latents, invert(null, x, 4, class_labels=3).latents)
    with pytest.raises(ConfigError, match=r"class_labels must be in \[0, 2\], got 3"):
        invert(pipe, x, 4, class_labels=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "a"}, "prompt must be None, this model is not conditioned on texts"),
        ({"negative_prompt": "a"}, "negative_prompt must be None, this model is not conditioned on texts"),
        ({"guidance_scale": 2.0}, "guidance_scale must be 1: this model was not trained without conditions"),
        ({"guidance_interval": (1, 0)}, "guidance_interval must be"),
        ({"strength": 0.5}, "mask and strength require an image"),
        ({"image": torch.zeros(1, 1, 8, 8), "strength": 2}, r"strength must be a number in \(0, 1\], got 2"),
        ({"image": torch.zeros(3, 1, 8, 8), "batch_size": 2}, "these must agree: image 3, batch_size 2"),
    ],
)
def test_wrong_arguments_are_refused_by_name(make_pipeline: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_pipeline()(num_steps=2, **arguments)


def test_parts_that_do_not_fit_together_are_refused(make_unet: Any) -> None:
    with pytest.raises(ConfigError, match="null_condition needs a unet that is conditioned on texts, or on classes"):
        quiet(make_unet(), null_condition=True)
    with pytest.raises(ConfigError, match="text_encoder and tokenizer must be given exactly if"):
        quiet(told().unet)
    with pytest.raises(ConfigError, match="prompt must be given: this model was not trained without texts"):
        told(null=False)(num_steps=1)
    with pytest.raises(ConfigError, match="negative_prompt: needs a guidance_scale other than 1; got 'b'"):
        told()(prompt="a", negative_prompt="b", guidance_scale=1, num_steps=1)
