"""Sampling from the generator of a GAN in one step (Goodfellow et al. 2014), and editing of its latents."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from hfgen.checks import check_int, require_number
from hfgen.errors import ConfigError
from hfgen.images import LATENT, check_output_type
from hfgen.models.biggan import BigGANGenerator
from hfgen.models.dcgan import DCGANGenerator
from hfgen.models.mlp import MLPGenerator
from hfgen.models.progressive import ProgressiveGenerator
from hfgen.pipelines.base import ClassLabels, Generators, check_generator, check_labels, output_or_tuple
from hfgen.pipelines.generative import merge_steps
from hfgen.pipelines.inputs import common_batch
from hfgen.pipelines.latents import (
    batch_of,
    checked_latents,
    class_normals,
    factorised_directions,
    move,
    one_latent,
    one_step,
    slerp,
    truncate,
)
from hfgen.pipelines.outputs import ImageOutput, decode, in_plane
from hfgen.pipelines.text_conditional import Prompt, TextConditionalPipeline, first_argument

Given = dict[str, torch.Tensor]
"""Conditions of a generator by the names of its arguments."""

Generator = DCGANGenerator | MLPGenerator | BigGANGenerator | ProgressiveGenerator
"""Networks that a GAN's pipelines sample from."""


@dataclass
class GANOutput(ImageOutput):
    """Output of `GANPipeline`: `images`, and `latents` (B, D), from which the same images are generated again."""

    images: Any
    latents: torch.Tensor


class GANPipeline(TextConditionalPipeline):
    """Images or points from latents z ~ N(0, I) in one step: x = G(z), or G(z, y) for classes or texts y.

    Latents (B, D) are returned with the images and accepted as an argument, for arithmetic on latents (Radford et al.
    2016, section 6.3.2):

        smiling_woman, woman, man = (pipe(8).latents.mean(dim=0) for _ in range(3))   # means of chosen samples
        smiling_man = smiling_woman - woman + man
        images = pipe(latents=smiling_man[None]).images
    """

    model_cpu_offload_seq = "text_encoder->generator"

    def __init__(
        self,
        generator: Generator,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
    ) -> None:
        super().__init__()
        text = generator.config.get("text_width") is not None
        self._check_text_parts("generator", text, text_encoder, tokenizer)
        self.register_modules(generator=generator, text_encoder=text_encoder, tokenizer=tokenizer)

    def __call__(
        self,
        batch_size: int | Prompt = 1,
        class_labels: ClassLabels = None,
        truncation: float | None = None,
        latents: torch.Tensor | None = None,
        num_steps: int | None = None,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        num_inference_steps: int | None = None,
        prompt: Prompt = None,
    ) -> GANOutput | tuple[Any, ...]:
        """Return `batch_size` samples, `.images`: PIL images, an array (B, H, W, C) or a tensor (B, C, H, W) in [0, 1].

        For a network of points `.images` is (B, 2) in data coordinates, an array (a tensor for "pt"). `output_type`:
        "pil", "np" (or "numpy"), "pt", or "latent" for the latents in the place of images. `.latents` is (B, D); passed
        as `latents`, they determine the batch size and give the same images. `truncation`: t > 0; z_i is
        drawn from the normal truncated to |z_i| <= t (Brock et al. 2018); smaller t gives better, less varied images.
        `class_labels`: an int for all samples, or one for each; required exactly if the network has classes.
        `prompt`: a text for all samples, or a list with one for each, which determines the batch size; required exactly
        if the network is conditioned on texts. It may be the first argument.
        `generator`: one, or a list with one for each sample, whose latents then do not depend on the batch.
        `num_steps` (`num_inference_steps` in diffusers): 1 is the only value. Raises ConfigError, a ValueError.
        """
        check_output_type(output_type, latent=True)
        one_step(merge_steps(num_steps, num_inference_steps))
        z, given = self._prepare(batch_size, class_labels, truncation, latents, generator, prompt)
        return self._rendered(z, given, output_type, return_dict)

    def states(
        self,
        batch_size: int | Prompt = 1,
        class_labels: ClassLabels = None,
        truncation: float | None = None,
        latents: torch.Tensor | None = None,
        num_steps: int | None = None,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        prompt: Prompt = None,
    ) -> Iterator[torch.Tensor]:
        """Return an iterator over the single state x_0 = G(z): images (B, C, H, W) in [-1, 1], or points (B, 2).

        The arguments are those of `__call__`; they are checked before the first state.
        """
        one_step(merge_steps(num_steps, num_inference_steps))
        z, given = self._prepare(batch_size, class_labels, truncation, latents, generator, prompt)
        return (self._made(z, given) for _ in range(1))

    def interpolate(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        n: int,
        class_labels: ClassLabels = None,
        output_type: str = "pil",
        return_dict: bool = True,
        prompt: Prompt = None,
    ) -> GANOutput | tuple[Any, ...]:
        """Return `n` >= 2 samples interpolated from latents `a` to `b`, (D,) or (1, D) each, both ends included.

        Interpolation is spherical (Shoemake 1985): latents stay as likely as the ends. A straight line would pass near
        the origin, where a normal distribution in many dimensions has almost no mass.
        """
        check_output_type(output_type, latent=True)
        check_int("n", n, 2)
        # points on the great circle
        start, end = one_latent("a", a, self._latent_dim), one_latent("b", b, self._latent_dim)
        z = slerp(start, end, torch.linspace(0, 1, n, dtype=torch.float64))
        # their images
        z, given = self._prepare(1, class_labels, None, z, None, prompt)
        return self._rendered(z, given, output_type, return_dict)

    def find_directions(
        self, n: int | None = None, latents: torch.Tensor | None = None, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return semantic directions of z, unit vectors (n, D), n in [1, D].

        Without labels: the `n` directions that the network's first layer amplifies most, in descending order (SeFa,
        Shen and Zhou 2021, eq. 5). Default: all D. With `latents` (N, D) and their `labels`, N ints: one direction for
        each class in ascending order, from the other classes towards it (InterFaceGAN, Shen et al. 2020, section 2.1);
        `n` is then None. Raises ConfigError for other combinations and shapes.
        """
        # without labels
        if latents is None and labels is None:
            D = self._latent_dim
            if n is not None:
                check_int("n", n, 1, D)
            return factorised_directions(self.generator.first_layer(), n or D)
        if latents is None or labels is None or n is not None:
            raise ConfigError("find_directions takes n alone, or latents and labels: one direction for each class")
        given = torch.as_tensor(labels)
        z = checked_latents(latents, self._latent_dim)
        if given.is_floating_point() or given.dtype == torch.bool or given.shape != z.shape[:1]:
            raise ConfigError(f"labels must be {len(z)} ints, one for each latent, got {given.dtype} of shape "
                              f"{list(given.shape)}")
        return class_normals(z, given)

    def edit(self, latents: torch.Tensor, direction: torch.Tensor, strength: float) -> torch.Tensor:
        """Return `latents` (B, D) moved by `strength` along `direction` (D,): z + strength d / |d|.

        Latents have unit variance, so `strength` counts standard deviations. Raises ConfigError for other shapes, and
        for a direction of length 0.
        """
        D = self._latent_dim
        return move(checked_latents(latents, D), one_latent("direction", direction, D), strength)

    @property
    def conditioned(self) -> Any:
        """Return the generator."""
        return self.generator

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return the shape of one sample: (C, H, W), or (2,) for points."""
        config = self.generator.config
        if in_plane(self.generator):
            return (config.dim,)
        sides = config.resolution
        if isinstance(sides, int):
            sides = (sides, sides)
        return (config.channels, *sides)

    @property
    def num_classes(self) -> int | None:
        """Return the number of classes of the generator; None without classes."""
        return self.generator.config.num_classes

    @property
    def _latent_dim(self) -> int:
        return int(self.generator.config.latent_dim)

    def _prepare(
        self, batch_size: int | Prompt, class_labels: ClassLabels, truncation: float | None, latents: Any,
        generator: Generators, prompt: Prompt,
    ) -> tuple[torch.Tensor, Given]:
        """Return latents (B, D), given or drawn, and the generator's conditions, on the device; arguments are checked.
        """
        # batch
        number, prompt = first_argument(batch_size, 1, prompt)
        number = common_batch(number, prompt=prompt)
        if latents is not None:
            if truncation is not None:
                raise ConfigError(f"truncation must be None where latents are given, got {truncation!r}")
            number = batch_of(latents, number, self._latent_dim)
        check_generator(generator, number)
        if truncation is not None:
            require_number("truncation", truncation, 0, math.inf, "()")
        # conditions, and latents
        given = self._conditions(class_labels, prompt, number)
        dtype = torch.promote_types(self.generator.dtype, torch.float32)
        if latents is not None:
            return latents.detach().to(self._execution_device, dtype), given
        size = (number, self._latent_dim)
        z = randn_tensor(size, generator=generator, device=self._execution_device, dtype=dtype)
        if truncation is not None:
            z = truncate(z, truncation)
        return z, given

    def _conditions(self, class_labels: ClassLabels, prompt: Prompt, B: int) -> Given:
        """Return labels (B,) and text features (B, L, F), those that the generator takes, on the device."""
        given: Given = {}
        if (labels := check_labels(class_labels, self.num_classes, B)) is not None:
            given["class_labels"] = labels.to(self._execution_device)
        self._check_prompt(prompt)
        if (text := self._text("prompt", prompt, B)) is not None:
            given["encoder_hidden_states"] = text
        return given

    @torch.no_grad()
    def _made(self, z: torch.Tensor, given: Given) -> torch.Tensor:
        return self._generate(z, given)

    def _generate(self, z: torch.Tensor, given: Given) -> torch.Tensor:
        """Return G(z), (B, C, H, W) in [-1, 1] or (B, 2), with gradients if they are enabled."""
        with evaluating(self.generator):
            return self.generator(z.to(self.generator.dtype), **given).sample.to(z.dtype)

    def _rendered(
        self, z: torch.Tensor, given: Given, output_type: str, return_dict: bool
    ) -> GANOutput | tuple[Any, ...]:
        images = z if output_type == LATENT else decode(self._made(z, given), self.generator, output_type)
        self.maybe_free_model_hooks()
        return output_or_tuple(GANOutput(images=images, latents=z), return_dict)


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Context in which networks are in evaluation mode; batch statistics are neither computed nor updated."""
    training = [part for net in networks for part in net.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
