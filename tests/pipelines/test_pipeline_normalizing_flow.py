"""The pipeline of normalizing flows: latents and back, densities, noise removed, guidance, states, a saved folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from hfgen import AutoPipeline, NormalizingFlowPipeline, TarFlow
from hfgen.errors import ConfigError
from hfgen.models.text import build_text_encoder, build_tokenizer

SMALL: dict[str, Any] = {"sample_size": (4, 6), "patch_size": 2, "width": 16, "blocks": 3, "layers": 1, "heads": 2}


def pipeline(levels: int = 17, noise_std: float = 0.0, parts: dict[str, Any] | None = None, **changes: Any) -> Any:
    """Return a pipeline of a small flow, whose weights are so large that every patch matters."""
    torch.manual_seed(0)
    net: Any = TarFlow(**{**SMALL, **changes}).eval()
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2 * parameter.shape[-1] ** -0.25)
    pipe = NormalizingFlowPipeline(net, levels=levels, noise_std=noise_std, **(parts or {}))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def text_parts() -> dict[str, Any]:
    tokenizer = build_tokenizer(["a red circle", "a blue square"])
    return {"text_encoder": build_text_encoder(tokenizer, 8, 1, 1), "tokenizer": tokenizer}


def images(count: int = 3, levels: int = 17) -> Tensor:
    return torch.randint(0, levels, (count, 1, 4, 6), generator=torch.Generator().manual_seed(1)) / (levels - 1)


def test_the_latents_of_images_give_the_same_images_again() -> None:
    pipe, x = pipeline(), images()
    z = pipe.invert(x)
    assert z.shape == (3, 1, 4, 6) and (z - (2 * x - 1)).abs().max() > 0.1
    torch.testing.assert_close(pipe(latents=z, denoise=False, output_type="pt").images, x, atol=1e-5, rtol=0)
    torch.testing.assert_close(pipe(latents=z, output_type="pt").images, x, atol=1e-6, rtol=0)
    pictures = [Image.new("L", (12, 8), grey) for grey in (0, 255)]
    again = pipe(latents=pipe.invert(pictures)).images
    assert [picture.getextrema() for picture in again] == [(0, 0), (255, 255)]


def test_with_a_class_or_a_text_the_latents_are_those_of_the_condition() -> None:
    for parts, changes, given in (
        ({}, {"num_class_embeds": 3}, {"class_labels": [0, 1, 2]}),
        (text_parts(), {"text_width": 8}, {"prompt": ["a red circle", "a circle", "a square"]}),
    ):
        pipe, x = pipeline(parts=parts, **changes), images()
        z = pipe.invert(x, **given)
        other = pipe.invert(x, **{name: values[0] for name, values in given.items()})
        assert torch.equal(z[:1], other[:1]) and not torch.equal(z[1:], other[1:])
        found = pipe(latents=z, denoise=False, output_type="pt", **given).images
        torch.testing.assert_close(found, x, atol=1e-5, rtol=0)


def test_samples_are_the_inverse_of_normal_latents_with_any_batch() -> None:
    pipe = pipeline()
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4, 5)]
    found = pipe(batch_size=3, generator=generators, output_type="latent").images
    z = torch.cat([torch.randn(1, 1, 4, 6, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4, 5)])
    with torch.no_grad():
        torch.testing.assert_close(pipe.network(found).latents, z, atol=1e-5, rtol=0)
    alone = pipe(generator=torch.Generator().manual_seed(4), output_type="latent").images
    torch.testing.assert_close(alone, found[1:2], atol=1e-5, rtol=0)
    half = pipe(batch_size=3, generator=torch.Generator().manual_seed(4), temperature=0.5, output_type="latent").images
    with torch.no_grad():
        expected = 0.5 * torch.randn(3, 1, 4, 6, generator=torch.Generator().manual_seed(4))
        torch.testing.assert_close(pipe.network(half).latents, expected, atol=1e-5, rtol=0)


def test_states_show_the_blocks_from_latents_to_the_image_with_and_without_the_cache() -> None:
    pipe, z = pipeline(), torch.randn(2, 1, 4, 6)
    states = list(pipe.states(latents=z))
    assert len(states) == 4 and torch.equal(states[0], z)
    with torch.no_grad():
        x = states[3]
        for block, state in zip(pipe.network.flow, reversed(states[:3]), strict=True):
            x = pipe.network.images(block(pipe.network.patches(x), None, None)[0])
            torch.testing.assert_close(x, state, atol=1e-5, rtol=0)
    for cached, state in zip(states, pipe.states(latents=z, use_cache=False), strict=True):
        torch.testing.assert_close(cached, state, atol=1e-5, rtol=0)


def test_levels_are_restored_and_gaussian_noise_is_removed_by_the_score() -> None:
    pipe = pipeline(levels=5, noise_std=0.3)
    x = torch.randn(2, 1, 4, 6, generator=torch.Generator().manual_seed(6)) / 2
    moved = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(pipe.network(moved).log_prob.sum(), moved)
    by_hand = (((x + 0.09 * score).clamp(-1, 1) + 1) * 2).round() / 2 - 1
    torch.testing.assert_close(pipe.denoised(x), by_hand)
    z = torch.randn(2, 1, 4, 6, generator=torch.Generator().manual_seed(7))
    shown = pipe(latents=z, output_type="pt").images
    noisy = pipe(latents=z, output_type="latent").images
    torch.testing.assert_close(shown, pipe.denoised(noisy) / 2 + 0.5)
    assert {float(value) for value in shown.unique()} <= {0.0, 0.25, 0.5, 0.75, 1.0}
    raw = pipe(latents=z, denoise=False, output_type="pt").images
    torch.testing.assert_close(raw, (noisy / 2 + 0.5).clamp(0, 1))


def test_the_score_recovers_the_mean_of_a_gaussian_behind_noise() -> None:
    pipe = pipeline(levels=2**16, noise_std=0.6)
    for block in pipe.network.flow:
        torch.nn.init.zeros_(block.outputs.weight)
    x = torch.full((1, 1, 4, 6), 0.5)
    torch.testing.assert_close(pipe.denoised(x), 0.64 * x, atol=1e-4, rtol=0)    # x + noise ~ N(0, 1), x ~ N(0, 0.64)


def test_the_log_likelihood_is_that_of_pixels_in_model_coordinates() -> None:
    pipe, x = pipeline(num_class_embeds=3), images()
    x = x + (torch.rand(x.shape) - 0.5) / 16                               # dequantised: outside [0, 1] too
    found = pipe.log_likelihood(x, [0, 1, 1])
    with torch.no_grad():
        expected = pipe.network(2 * x - 1, torch.tensor([0, 1, 1])).log_prob
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected.double(), atol=1e-4, rtol=0)


def test_guidance_moves_samples_away_from_the_null_class() -> None:
    pipe = pipeline(parts={"null_condition": True}, num_class_embeds=3)
    assert pipe.num_classes == 2 and pipe.guidable

    def drawn(**settings: Any) -> Tensor:
        return pipe(2, generator=torch.Generator().manual_seed(8), output_type="latent", **settings).images

    plain, guided = drawn(class_labels=[0, 1]), drawn(class_labels=[0, 1], guidance_scale=2.0)
    assert (plain - guided).abs().max() > 1e-3
    torch.testing.assert_close(drawn(guidance_scale=2.0), drawn())          # no condition: nothing to guide
    torch.testing.assert_close(drawn(class_labels=[0, 1], guidance_scale=0.0), drawn(), atol=1e-5, rtol=0)


def test_a_callback_sees_each_block_and_may_end_sampling() -> None:
    pipe, seen = pipeline(), list[int]()

    def callback(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(int(timestep))
        pipe._interrupt = step == 1
        return tensors

    assert len(list(pipe.states(callback_on_step_end=callback))) == 3
    assert seen == [2, 1]


def test_only_the_number_of_all_patches_of_all_blocks_is_a_number_of_steps() -> None:
    pipe = pipeline()
    assert len(pipe(2, num_steps=18).images) == len(pipe(2, num_inference_steps=18).images) == 2
    with pytest.raises(ConfigError, match="num_steps must be 18, 6 patches in each of 3 blocks"):
        pipe(num_steps=10)


@pytest.mark.parametrize(("arguments", "words"), [
    ({"latents": torch.zeros(1, 1, 4, 4)}, "latents must be a tensor of shape"),
    ({"temperature": -1.0}, "temperature"), ({"class_labels": 1}, "class_labels"), ({"prompt": "a dog"}, "prompt"),
    ({"guidance_scale": 2.0}, "guidance_scale must be 1"), ({"temprature": 1.0}, "did you mean 'temperature'"),
])  # fmt: skip
def test_wrong_arguments_are_refused_by_name(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        pipeline()(**arguments)


def test_a_saved_folder_gives_the_same_samples(tmp_path: Path) -> None:
    pipe = pipeline(levels=17, noise_std=0.1, parts={"null_condition": True}, num_class_embeds=3)
    pipe.save_pretrained(tmp_path)
    back: Any = AutoPipeline.from_pretrained(tmp_path)
    assert type(back) is NormalizingFlowPipeline
    assert json.loads((tmp_path / "model_index.json").read_text())["network"] == ["hfgen_shim", "TarFlow"]
    a, b = (one(2, class_labels=1, guidance_scale=2.0, generator=torch.Generator().manual_seed(0), output_type="pt")
            .images for one in (pipe, back))  # fmt: skip
    assert torch.equal(a, b)
