"""Sampling from variational autoencoders (Kingma and Welling 2014), and traversal of their latents."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from hfgen.checks import check_int
from hfgen.data.coordinates import Coordinates
from hfgen.errors import ConfigError
from hfgen.images import LATENT, as_output, check_output_type, grid, to_pil
from hfgen.models.vae import VAE, HierarchicalVAE
from hfgen.pipelines.base import ClassLabels, Generators, check_generator, check_labels, output_or_tuple
from hfgen.pipelines.generative import GenerativePipeline, merge_steps
from hfgen.pipelines.inputs import checked, prepared
from hfgen.pipelines.latents import batch_of, checked_latents, one_latent, one_step, slerp
from hfgen.pipelines.outputs import ImageOutput, as_points


@dataclass
class VAEOutput(ImageOutput):
    """Output of `VAEPipeline`: `images`, and `latents` (B, D), from which the same images are generated again."""

    images: Any
    latents: torch.Tensor


class VAEPipeline(GenerativePipeline):
    """Images or points from latents z ~ N(0, I) in one step, the mean of p(x|z); and latents from images.

    Latents (B, D) are standard normal under the prior. A model with several layers of latents joins those of all
    layers, the last layer first, each standardised: z_l = mu + sigma latent_l with mu and sigma of p(z_l|z_l+1).
    `images`: a PIL image or a list of them, of any sizes, a float tensor (B, C, H, W) in [0, 1], or for points a tensor
    (B, dim) in data coordinates. `class_labels`: an int for all samples, or one for each; required exactly if the model
    has classes. Raises ConfigError, a ValueError.
    """

    model_cpu_offload_seq = "vae"

    def __init__(self, vae: VAE | HierarchicalVAE) -> None:
        super().__init__()
        self.register_modules(vae=vae)

    def __call__(
        self,
        batch_size: int = 1,
        class_labels: ClassLabels = None,
        latents: torch.Tensor | None = None,
        num_steps: int | None = None,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        num_inference_steps: int | None = None,
    ) -> VAEOutput | tuple[Any, torch.Tensor]:
        """Return `batch_size` samples, `.images`: PIL images, an array (B, H, W, C) or a tensor (B, C, H, W) in [0, 1].

        For a model of points `.images` is (B, dim) in data coordinates, an array (a tensor for "pt"). `output_type`:
        "pil", "np" (or "numpy"), "pt", or "latent" for the latents in the place of images. `.latents` is (B, D); passed
        as `latents`, they determine the batch size and give the same images. `generator`: one, or a list with one for
        each sample, whose latents then do not depend on the batch. `num_steps` (`num_inference_steps` in
        diffusers): 1 is the only value.
        """
        check_output_type(output_type, latent=True)
        one_step(merge_steps(num_steps, num_inference_steps))
        z, labels = self._drawn(batch_size, class_labels, latents, generator)
        return self._rendered(z, labels, output_type, return_dict)

    def states(
        self,
        batch_size: int = 1,
        class_labels: ClassLabels = None,
        latents: torch.Tensor | None = None,
        num_steps: int | None = None,
        generator: Generators = None,
        num_inference_steps: int | None = None,
    ) -> Iterator[torch.Tensor]:
        """Return an iterator over the single state x_0: images (B, C, H, W) in [-1, 1], or points (B, dim).

        The arguments are those of `__call__`; they are checked before the first state.
        """
        one_step(merge_steps(num_steps, num_inference_steps))
        z, labels = self._drawn(batch_size, class_labels, latents, generator)
        return (self._made(z, labels) for _ in range(1))

    def encode(
        self,
        images: Any,
        class_labels: ClassLabels = None,
        sample: bool = False,
        generator: Generators = None,
        batch_size: int = 256,
    ) -> torch.Tensor:
        """Return the latents (B, D) of images: the means of q(z|x), or draws from it if `sample`.

        `generator`: of the draws; one, or a list with one for each image. `batch_size`: images in one evaluation of the
        network; it does not change the result. Latents have mean 0 and unit variance under the prior. Raises
        ConfigError for a `generator` without `sample`.
        """
        # images, labels
        check_int("batch_size", batch_size, 1)
        x = self._input(images)
        labels = self._labels(class_labels, len(x))
        # noise of the draws
        check_generator(generator, len(x))
        if not sample and generator is not None:
            raise ConfigError("generator must be None if sample is False: the mean of q(z|x) is not random")
        eps = None
        if sample:
            eps = [self._normal((len(x), 1, D), generator) for D in self.vae.sizes]
        # latents
        latents = self._inferred(x, labels, eps, batch_size)
        self.maybe_free_model_hooks()
        return latents

    def reconstruct(
        self,
        images: Any,
        class_labels: ClassLabels = None,
        batch_size: int = 256,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> VAEOutput | tuple[Any, torch.Tensor]:
        """Return reconstructions, `.images`: the mean of p(x|z) at the mean of q(z|x), which is `.latents` (B, D).

        `images`: PIL images, a float tensor (B, C, H, W) in [0, 1], or for points a tensor (B, dim) in data
        coordinates.
        """
        check_output_type(output_type, latent=True)
        z = self.encode(images, class_labels, batch_size=batch_size)
        return self._rendered(z, self._labels(class_labels, len(z)), output_type, return_dict)

    def interpolate(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        n: int,
        class_labels: ClassLabels = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> VAEOutput | tuple[Any, torch.Tensor]:
        """Return `n` >= 2 samples interpolated from latents `a` to `b`, (D,) or (1, D) each, both ends included.

        Interpolation is spherical (Shoemake 1985): latents stay as likely as the ends.
        """
        check_output_type(output_type, latent=True)
        check_int("n", n, 2)
        # points on the great circle
        start, end = one_latent("a", a, self.vae.latent_size), one_latent("b", b, self.vae.latent_size)
        z = slerp(start, end, torch.linspace(0, 1, n, dtype=torch.float64))
        # their images
        z, labels = self._drawn(1, class_labels, z, None)
        return self._rendered(z, labels, output_type, return_dict)

    def traverse(
        self,
        dim: int,
        latents: torch.Tensor | None = None,
        n: int = 9,
        span: float = 3.0,
        class_labels: ClassLabels = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> VAEOutput | tuple[Any, torch.Tensor]:
        """Return `n` >= 2 samples whose latent `dim` takes equally spaced values from -`span` to `span`.

        The other latents are those of `latents`, (D,) or (1, D). Default: 0, the prior's mean. Values count standard
        deviations of the prior.
        """
        check_output_type(output_type, latent=True)
        check_int("n", n, 2)
        # the other latents
        D = self.vae.latent_size
        check_int("dim", dim, 0, D - 1)
        base = torch.zeros(D)
        if latents is not None:
            base = one_latent("latents", latents, D)
        z = base.detach().clone().expand(n, D).clone()
        # latent `dim`
        z[:, dim] = torch.linspace(-span, span, n)
        z, labels = self._drawn(1, class_labels, z, None)
        return self._rendered(z, labels, output_type, return_dict)

    def manifold(self, n: int = 20, class_labels: int | None = None) -> Image.Image:
        """Return a grid of n x n images over the plane of latents (Kingma and Welling 2014, fig. 4).

        Column i of n has z_1 = Phi^-1((i + 1/2) / n), so that all cells are equally likely under the prior; z_2 grows
        upwards in the same way. Raises ConfigError unless the model has two latents and makes images.
        """
        check_int("n", n, 1)
        if self.vae.latent_size != 2 or self.points:
            raise ConfigError(f"manifold is for images of two latents, this model has {self.vae.latent_size}; "
                              "traverse(dim) and interpolate(a, b, n) are for any number")  # fmt: skip
        # latents of the grid
        quantiles = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n).float()
        rows, columns = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
        z, labels = self._drawn(1, class_labels, torch.stack([columns, rows], -1).reshape(-1, 2), None)
        # its images
        pictures = to_pil(self._made(z, labels))
        self.maybe_free_model_hooks()
        return grid(pictures, columns=n, padding=0)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return the shape of one sample: (C, H, W), or (dim,) for points."""
        return tuple(self.vae.shape)

    @property
    def num_classes(self) -> int | None:
        """Return the number of classes of the model; None without classes."""
        return self.vae.config.num_classes

    def _drawn(
        self, batch_size: int, class_labels: ClassLabels, latents: Any, generator: Generators
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return latents (B, D), given or drawn, and labels (B,), on the device; all arguments are checked."""
        check_int("batch_size", batch_size, 1)
        D = self.vae.latent_size
        if latents is not None:
            batch_size = batch_of(checked_latents(latents, D), batch_size, D)
        check_generator(generator, batch_size)
        labels = self._labels(class_labels, batch_size)
        if latents is None:
            return self._normal((batch_size, D), generator), labels
        return latents.detach().to(self._execution_device, self._dtype), labels

    def _normal(self, shape: tuple[int, ...], generator: Generators) -> torch.Tensor:
        return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self.vae.dtype, torch.float32)                  # dtype of the latents

    def _labels(self, class_labels: ClassLabels, batch_size: int) -> torch.Tensor | None:
        labels = check_labels(class_labels, self.num_classes, batch_size)
        if labels is None:
            return None
        return labels.to(self._execution_device)

    def _input(self, images: Any) -> torch.Tensor:
        """Return images or points as inputs of the network."""
        if not self.points:
            channels, height, width = self.vae.shape
            x = prepared(checked(images), channels, height, width, self._execution_device)
        else:
            points = checked_latents(images, self.vae.config["dim"]).to(self._execution_device, self._dtype)
            x = Coordinates.of(self.vae.config).to_model(points)
        return x.to(self.vae.dtype)

    @torch.no_grad()
    def _inferred(
        self, x: torch.Tensor, labels: torch.Tensor | None, eps: list[torch.Tensor] | None, batch_size: int
    ) -> torch.Tensor:
        """Return the latents (B, D) of prepared images, with the noise `eps` of each layer or without noise."""
        latents = []
        for rows in torch.arange(len(x), device=x.device).split(batch_size):
            part = None if eps is None else [e[rows] for e in eps]
            latents.append(self.vae.infer(x[rows], None if labels is None else labels[rows], part))
        return torch.cat(latents)

    @torch.no_grad()
    def _made(self, z: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        return self.vae.generate(z, labels).to(z.dtype)

    def _rendered(
        self, z: torch.Tensor, labels: torch.Tensor | None, output_type: str, return_dict: bool
    ) -> VAEOutput | tuple[Any, torch.Tensor]:
        if output_type == LATENT:
            images: Any = z
        elif self.points:
            images = as_points(self._made(z, labels), self.vae, output_type)
        else:
            images = as_output(self._made(z, labels), output_type)
        self.maybe_free_model_hooks()
        return output_or_tuple(VAEOutput(images=images, latents=z), return_dict)
