"""Tests that pipelines describe themselves, and of the arguments that they share."""

from inspect import signature
from typing import Any

import pytest
import torch

from hfgen import (
    VAE,
    AutoencoderPipeline,
    DCGANGenerator,
    DDPMPipeline,
    GANPipeline,
    LatentDiffusionPipeline,
    MLPGenerator,
    VAEPipeline,
)
from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.pipelines.denoising import DenoisingPipeline
from hfgen.pipelines.generative import merge_steps


def test_a_pipeline_describes_its_samples_before_it_makes_one(make_pipeline: Any, plane_pipeline: Any) -> None:
    gan = GANPipeline(DCGANGenerator(channels=3, resolution=8, latent_dim=4, num_classes=5))
    vae = VAEPipeline(VAE(channels=1, resolution=8, latent_dim=2))
    for pipe, classes in ((make_pipeline(num_class_embeds=4), 4), (gan, 5), (vae, None), (make_pipeline(), None),
                          (plane_pipeline, None), (GANPipeline(MLPGenerator()), None)):
        pipe.set_progress_bar_config(disable=True)
        assert pipe.num_classes == classes and not pipe.reads_text and not pipe.guidable
        x_0 = list(pipe.states(batch_size=2, class_labels=None if classes is None else 1, num_steps=1))[-1]
        assert tuple(x_0.shape[1:]) == pipe.sample_shape and pipe.points == (x_0.ndim == 2)


def test_the_null_class_is_not_among_the_classes_of_a_guidable_pipeline(make_pipeline: Any) -> None:
    plain = make_pipeline(num_class_embeds=4)
    pipe = DDPMPipeline(plain.unet, plain.scheduler, null_condition=True)
    assert pipe.num_classes == 3 and pipe.guidable


def test_pipelines_that_make_no_samples_have_no_states() -> None:
    assert not hasattr(AutoencoderPipeline, "states")


def test_both_denoising_pipelines_have_one_argument_list() -> None:
    for cls in (DDPMPipeline, LatentDiffusionPipeline):
        assert cls.__call__ is DenoisingPipeline.__call__ and cls.states is DenoisingPipeline.states
    first, *others = list(signature(DenoisingPipeline.states).parameters.values())[1:]
    assert first.kind is first.POSITIONAL_ONLY and {one.kind for one in others} == {first.KEYWORD_ONLY}


def test_the_call_shows_the_arguments_of_states_and_two_of_its_own_and_refuses_others(make_pipeline: Any) -> None:
    shared, call = signature(DenoisingPipeline.states).parameters, signature(DenoisingPipeline.__call__).parameters
    assert dict(shared) == {name: one for name, one in call.items() if name not in ("output_type", "return_dict")}
    assert call["output_type"].default == "pil" and call["return_dict"].default is True
    assert list(call)[-2:] == ["output_type", "return_dict"]
    pipe = make_pipeline()
    assert list(signature(pipe.__call__).parameters) == list(call)[1:]
    with pytest.raises(TypeError, match="DDPMPipeline has no argument 'num_step'; did you mean 'num_steps'"):
        pipe(num_step=3)


def test_the_first_argument_is_the_batch_size_or_the_prompt(make_pipeline: Any) -> None:
    pipe = make_pipeline()
    assert pipe(3, num_steps=1, output_type="pt").images.shape[0] == 3
    with pytest.raises(ConfigError, match="prompt must be None, this model is not conditioned on texts; got 'a cat'"):
        pipe("a cat")
    with pytest.raises(ConfigTypeError, match="batch_size must be given once; the first argument is 3, the keyword 2"):
        pipe(3, batch_size=2)
    with pytest.raises(ConfigTypeError, match="prompt must be given once"):
        pipe("a cat", prompt="a dog")


def test_num_inference_steps_is_another_name_of_num_steps(make_pipeline: Any) -> None:
    pipe = make_pipeline()
    states = [list(pipe.states(generator=torch.Generator().manual_seed(0), **{name: 4})) for name in
              ("num_steps", "num_inference_steps")]  # fmt: skip
    assert len(states[0]) == 5 and all(map(torch.equal, *states))
    for other in (pipe, GANPipeline(MLPGenerator()), VAEPipeline(VAE(channels=1, resolution=8, latent_dim=2))):
        assert len(other(num_steps=1, num_inference_steps=1, output_type="pt").images) == 1
        with pytest.raises(ConfigError, match="num_steps is 1 and num_inference_steps 2"):
            other(num_steps=1, num_inference_steps=2)
    assert merge_steps(None, None) is None
