"""Calls as users of diffusers write them: steps, callbacks, outputs, several images for each prompt."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback

import hfgen
from hfgen.errors import ConfigError, ConfigTypeError
from tests.helpers import seed
from tests.hub.models import ARGUMENTS, make
from tests.pipelines.helpers import features

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")               # diffusers with numpy 2

GENERATIVE = ["ddpm", "ddpm-classes", "ddpm-text", "score-sde", "ddpm-plane", "gan", "controllable-gan", "vae",
              "hierarchical-vae", "latent-diffusion", "latent-diffusion-text"]  # fmt: skip
DENOISING = [family for family in GENERATIVE if family.startswith(("ddpm", "score", "latent"))]
CODERS = ["autoencoder", "autoencoder-kl", "translation"]
TEXT = {"prompt": "a red circle", "num_inference_steps": 4}


def called(pipe: Any, family: str, **changes: Any) -> Any:
    """Return the output of two samples of a seed."""
    return pipe(**{"batch_size": 2, "generator": seed(0), **ARGUMENTS.get(family, {}), **changes})


def guidable(seed: int = 0) -> Any:
    """Return a pipeline in latents that can be guided by texts."""
    pipe = hfgen.LatentDiffusionPipeline.from_pipe(make("latent-diffusion-text", seed), null_condition=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("family", GENERATIVE)
def test_the_steps_have_two_names_and_two_different_numbers_are_an_error(family: str) -> None:
    pipe = make(family)
    words = {key: value for key, value in ARGUMENTS.get(family, {}).items() if key != "num_steps"}
    steps = ARGUMENTS.get(family, {}).get("num_steps", 1)
    ours, stock = [
        pipe(2, generator=seed(0), output_type="pt", **words, **{name: steps}).images
        for name in ("num_steps", "num_inference_steps")
    ]
    assert torch.equal(ours, stock)
    with pytest.raises(ConfigError, match=f"num_steps is {steps} and num_inference_steps {steps + 1}"):
        pipe(**words, num_steps=steps, num_inference_steps=steps + 1)


@pytest.mark.parametrize("family", GENERATIVE)
def test_every_output_type_of_diffusers_is_known(family: str) -> None:
    pipe = make(family)
    pt, array, numpy, latent = [
        called(pipe, family, output_type=kind).images for kind in ("pt", "np", "numpy", "latent")
    ]
    np.testing.assert_array_equal(array, numpy)
    assert isinstance(latent, torch.Tensor) and len(latent) == 2
    if pipe.points:
        np.testing.assert_array_equal(array, pt.numpy())
        return
    np.testing.assert_allclose(array, pt.permute(0, 2, 3, 1).numpy(), atol=1e-7)
    pil = called(pipe, family, output_type="pil").images
    for picture, values in zip(pil, array, strict=True):
        np.testing.assert_allclose(np.asarray(picture).reshape(values.shape) / 255, values, atol=1 / 500)


def test_latents_are_the_state_that_is_not_decoded() -> None:
    for family in DENOISING:
        pipe = make(family)
        *_, last = pipe.states(2, generator=seed(0), **ARGUMENTS[family])
        assert torch.equal(called(pipe, family, output_type="latent").images, last)
    pipe = make("latent-diffusion")
    latents = called(pipe, "latent-diffusion", output_type="latent").images
    assert latents.shape == (2, 2, 4, 4)
    images = pipe.decode(latents, output_type="pt").images
    assert torch.equal(images, called(pipe, "latent-diffusion", output_type="pt").images)
    for family in ("gan", "vae", "hierarchical-vae"):
        output = called(make(family), family, output_type="latent")
        assert output.images is output.latents


@pytest.mark.parametrize("family", CODERS)
def test_codes_are_the_latents_of_pipelines_that_have_them_and_the_others_say_so(family: str) -> None:
    pipe = make(family)
    images = torch.rand(2, 3 if family == "autoencoder-kl" else 1, 8, 8)
    np.testing.assert_array_equal(pipe(images, output_type="numpy").images, pipe(images, output_type="np").images)
    from_array = pipe(images.permute(0, 2, 3, 1).numpy(), output_type="np").images
    np.testing.assert_allclose(from_array, pipe(images, output_type="np").images, atol=1e-6)
    listed = [list(images), list(images.split(1)), list(images.permute(0, 2, 3, 1).numpy())]
    for given in listed:
        np.testing.assert_allclose(pipe(given, output_type="np").images, from_array, atol=1e-5)
    with pytest.raises(ConfigError, match="images must be of one shape in a list"):
        pipe([images[0], images[0, :, :4]])
    if family == "translation":
        with pytest.raises(ConfigError, match="output_type must be one of pil, np, numpy, pt, got 'latent'"):
            pipe(images, output_type="latent")
    else:
        assert torch.equal(pipe(images, output_type="latent").images, pipe.encode(images))


def test_several_images_for_each_prompt_follow_one_another() -> None:
    pipe = make("latent-diffusion-text")
    prompts = ["a red circle", "a blue square on white"]
    words = {"num_inference_steps": 4, "output_type": "pt"}
    together = pipe(prompts, num_images_per_prompt=2, generator=seed(0, 1, 2, 3), **words).images
    assert together.shape == (4, 3, 8, 8)
    for i, prompt in enumerate([prompts[0], prompts[0], prompts[1], prompts[1]]):
        alone = pipe(prompt, generator=seed(i), **words).images
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-4, rtol=0)
    assert len(pipe(prompt, num_images_per_prompt=3, num_inference_steps=1).images) == 3
    assert len(pipe(prompt, num_images_per_prompt=None, num_inference_steps=1).images) == 1
    given = torch.randn(4, 2, 4, 4)
    assert len(pipe(prompts, num_images_per_prompt=2, num_inference_steps=1, latents=given).images) == 4
    with pytest.raises(ConfigError, match="these must agree: latents 4, batch_size 2"):
        pipe(prompts, num_inference_steps=1, latents=given)
    for wrong in (0, -1, 1.5):
        with pytest.raises(ConfigError, match="num_images_per_prompt"):
            pipe(prompts, num_images_per_prompt=wrong)


def test_several_images_of_each_class_image_and_mask_follow_one_another() -> None:
    pipe, images = make("ddpm-classes"), torch.rand(2, 1, 8, 8)
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:5] = 1
    words = {"class_labels": [0, 3], "image": images, "mask": mask, "num_steps": 5, "output_type": "pt"}
    repeated = pipe(num_images_per_prompt=2, generator=seed(0, 1, 2, 3), **words).images
    twice = {key: words[key].repeat_interleave(2, 0) for key in ("image", "mask")}
    listed = pipe(generator=seed(0, 1, 2, 3), **words | twice | {"class_labels": [0, 0, 3, 3]}).images
    assert torch.equal(repeated, listed)
    one = pipe(3, class_labels=2, num_images_per_prompt=2, num_steps=1, output_type="pt").images
    assert len(one) == 6


@pytest.mark.parametrize("name", ["DDPMScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler"])
def test_timesteps_are_taken_where_the_scheduler_takes_them(name: str) -> None:
    pipe = make("ddpm")
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    images = pipe(2, timesteps=[17, 9, 4, 1], generator=seed(0), output_type="pt").images
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(timesteps=[17, 9, 4, 1])
    assert torch.equal(pipe.scheduler.timesteps, scheduler.timesteps) and images.isfinite().all()
    assert pipe.num_timesteps == len(scheduler.timesteps)


def test_our_scheduler_visits_the_given_timesteps_and_an_image_begins_in_the_middle_of_them() -> None:
    pipe, seen = make("ddpm"), list[float]()
    words = {"timesteps": [17, 9, 4, 1], "callback_on_step_end": lambda p, i, t, x: seen.append(float(t))}
    pipe(**words)
    pipe(image=torch.rand(1, 1, 8, 8), strength=0.5, **words)
    assert seen == [17, 9, 4, 1, 4, 1]


def test_sigmas_are_taken_where_the_scheduler_takes_them() -> None:
    pipe = make("ddpm")
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    given = [0.4, 0.2, 0.1, 0.05, 0.0]
    images = pipe(sigmas=given, generator=seed(0), output_type="pt").images
    assert images.isfinite().all() and pipe.scheduler.sigmas.tolist() == pytest.approx(given)
    with pytest.raises(ConfigError, match="sigmas must be None with DDPMScheduler, which takes a number"):
        make("ddpm")(sigmas=[1.0, 0.0])
    with pytest.raises(ConfigError, match="timesteps must be None with VPSDEScheduler"):
        make("score-sde")(timesteps=[9, 1])
    for given in ({"num_steps": 2, "timesteps": [9, 1]}, {"sigmas": [1.0, 0.0], "timesteps": [9, 1]}):
        with pytest.raises(ConfigError, match=f"give one of timesteps, .*; got .*{next(iter(given))}"):
            pipe(**given)


@pytest.mark.parametrize("family", DENOISING)
def test_a_callback_sees_every_step_and_the_state_after_it(family: str) -> None:
    pipe, seen = make(family), []

    def callback(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        seen.append((step, float(timestep), tensors["latents"].clone()))
        assert list(tensors) == ["latents"]
        return tensors

    states = list(pipe.states(2, generator=seed(0), **ARGUMENTS[family]))
    called(pipe, family, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["latents"])
    assert [step for step, _, _ in seen] == list(range(pipe.num_timesteps)) == list(range(len(states) - 1))
    assert all(torch.equal(x, state) for (_, _, x), state in zip(seen, states[1:], strict=True))
    times = [time for _, time, _ in seen]
    assert times == sorted(times, reverse=True)


def test_a_callback_replaces_the_state() -> None:
    pipe = make("ddpm")

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == pipe.num_timesteps - 1:
            tensors["latents"] = torch.zeros_like(tensors["latents"])
        return tensors

    words = {"num_inference_steps": 4, "output_type": "latent", "generator": seed(0)}
    assert pipe(2, callback_on_step_end=callback, **words).images.abs().sum() == 0
    assert pipe(2, callback_on_step_end=lambda *_: None, **words).images.abs().sum() > 0
    with pytest.raises(ConfigError, match=r"latents must be of shape \(2, 1, 8, 8\) in the callback, got \(1, "):
        pipe(2, callback_on_step_end=lambda p, i, t, x: {"latents": x["latents"][:1]}, **words)


@pytest.mark.parametrize("family", DENOISING)
def test_an_interrupted_call_returns_the_state_it_has_reached_and_the_next_is_whole(family: str) -> None:
    pipe, steps = make(family), []

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        if step == 1:
            pipe._interrupt = True
        return tensors

    states = list(pipe.states(2, generator=seed(0), **ARGUMENTS[family]))
    stopped = called(pipe, family, output_type="latent", callback_on_step_end=callback).images
    assert steps == [0, 1] and pipe.interrupt and torch.equal(stopped, states[2])
    whole = called(pipe, family, output_type="latent").images
    assert not pipe.interrupt and torch.equal(whole, states[-1])


def test_a_callback_sees_replaces_and_stops_the_ascent_in_the_latents_of_a_gan() -> None:
    pipe, seen = make("controllable-gan"), []

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, int(timestep)))
        pipe._interrupt = step == 2
        return {"latents": torch.full_like(tensors["latents"], step)}

    words = {"target": 1, "threshold": 0.9999, "generator": seed(0)}
    output = pipe(2, num_inference_steps=9, callback_on_step_end=callback, **words)
    assert seen == [(0, 0), (1, 1), (2, 2)] and pipe.interrupt and pipe.num_timesteps == 9
    assert (output.latents == 2).all() and torch.equal(pipe(2, num_steps=1, **words).steps, torch.tensor([1, 1]))
    assert not pipe.interrupt
    with pytest.raises(ConfigError, match="callback_on_step_end_tensor_inputs must be names among latents"):
        pipe(target=1, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def test_a_callback_reads_and_replaces_the_text_features() -> None:
    pipe, seen = guidable(), []

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(tensors["prompt_embeds"])
        if step == 1:
            tensors["prompt_embeds"] = torch.cat([features(pipe, ""), features(pipe, "a blue square on white")])
        return tensors

    words = {**TEXT, "guidance_scale": 2.0, "output_type": "latent"}
    changed = pipe(generator=seed(0), callback_on_step_end=callback,
                   callback_on_step_end_tensor_inputs=pipe._callback_tensor_inputs, **words).images  # fmt: skip
    torch.testing.assert_close(seen[0], torch.cat([features(pipe, ""), features(pipe, "a red circle")]))
    torch.testing.assert_close(seen[2], torch.cat([features(pipe, ""), features(pipe, "a blue square on white")]))
    kept = pipe(generator=seed(0), **words).images
    assert (changed - kept).abs().max() > 1e-3


def test_a_callback_changes_the_guidance_scale_of_the_next_steps() -> None:
    pipe = guidable()

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale += 1.0
        return tensors

    words = {**TEXT, "output_type": "latent"}
    changed = pipe(generator=seed(0), guidance_scale=2.0, callback_on_step_end=callback, **words).images
    assert pipe.guidance_scale == 2.0 + pipe.num_timesteps and pipe.do_classifier_free_guidance
    kept = pipe(generator=seed(0), guidance_scale=2.0, **words).images
    assert (changed - kept).abs().max() > 1e-3 and pipe.guidance_scale == 2.0
    with pytest.raises(ConfigError, match="guidance_scale must be above 1 from the first step"):
        pipe(generator=seed(0), guidance_scale=1.0, callback_on_step_end=callback, **words)


def test_the_callbacks_of_diffusers_end_guidance_at_their_step() -> None:
    pipe = guidable()
    words = {**TEXT, "guidance_scale": 3.0, "output_type": "latent"}
    calls, cutoff = list[int](), SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    handle = pipe.unet.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    cut = pipe(generator=seed(0), callback_on_step_end=cutoff, **words).images
    handle.remove()
    assert calls == [2, 2, 1, 1] and not pipe.do_classifier_free_guidance
    several = MultiPipelineCallbacks([SDCFGCutoffCallback(cutoff_step_ratio=0.25)])
    assert torch.equal(pipe(generator=seed(0), callback_on_step_end=several, **words).images, cut)


def test_wrong_callbacks_are_named() -> None:
    pipe = make("ddpm")
    with pytest.raises(ConfigTypeError, match="callback_on_step_end must be a function, got 3"):
        pipe(callback_on_step_end=3)
    for names in (["prompt_embeds"], ["latent"]):
        with pytest.raises(ConfigError, match="callback_on_step_end_tensor_inputs must be names among latents, got"):
            pipe(callback_on_step_end=print, callback_on_step_end_tensor_inputs=names)
    text = guidable()
    with pytest.raises(ConfigError, match="prompt_embeds must be 1, 2 or 4 rows in the callback, got 3"):
        text(["a red circle"] * 2, num_inference_steps=2, callback_on_step_end_tensor_inputs=["prompt_embeds"],
             callback_on_step_end=lambda p, i, t, x: {"prompt_embeds": torch.zeros(3, 8, 8)})  # fmt: skip
