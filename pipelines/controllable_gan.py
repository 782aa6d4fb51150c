"""Controllable generation: gradient ascent in the latents of a GAN until a classifier predicts the target."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedModel

from hfgen.checks import check_int, require_number
from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.images import LATENT, check_output_type
from hfgen.models.classifier import Classifier
from hfgen.pipelines.base import ClassLabels, Generators, check_labels, output_or_tuple
from hfgen.pipelines.gan import GANPipeline, Generator, Given, evaluating
from hfgen.pipelines.generative import merge_steps
from hfgen.pipelines.outputs import ImageOutput, decode, in_plane
from hfgen.pipelines.step_end import LATENTS, Callback, StepEnd
from hfgen.pipelines.text_conditional import Prompt
from hfgen.registry import TRANSFORMERS_CLASSIFIERS


@dataclass
class ControllableOutput(ImageOutput):
    """Output of `ControllableGANPipeline`.

    `images`; `latents` (B, D); `reached` (B,) bool, whether the classifier predicts the target; `steps` (B,),
    the steps that each image took; `probabilities` (B, K) of the classifier at the end; `entanglement` (B,) in
    [0, 1], how much the other features changed.
    """

    images: Any
    latents: torch.Tensor
    reached: torch.Tensor
    steps: torch.Tensor
    probabilities: torch.Tensor
    entanglement: torch.Tensor


@dataclass
class Moment:
    """State of the ascent: latents z (B, D), images x (B, C, H, W), logits (B, K), reached (B,) bool, steps (B,)."""

    z: torch.Tensor
    x: torch.Tensor
    logits: torch.Tensor
    reached: torch.Tensor
    steps: torch.Tensor


class ControllableGANPipeline(GANPipeline):
    """Images of a GAN that a classifier predicts as `target`, by gradient ascent in z.

    The classifier is hfgen's, or an image classifier of transformers. Images are resized to its input size, and grey
    images are repeated in three channels if it takes three. `image_mean` and `image_std`: normalisation that a
    classifier of transformers was trained with, for images in [0, 1], one number or one for each channel. Default: 0.5,
    the range [-1, 1].
    """

    model_cpu_offload_seq = "text_encoder->generator->classifier"

    def __init__(
        self,
        generator: Generator,
        classifier: Classifier | PreTrainedModel,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
    ) -> None:
        super().__init__(generator, text_encoder, tokenizer)
        self.register_modules(classifier=classifier)
        self.register_to_config(image_mean=image_mean, image_std=image_std)
        self._check_parts()

    def __call__(  # type: ignore[override]
        self,
        batch_size: int | Prompt = 1,
        target: ClassLabels = None,
        num_steps: int | None = None,
        class_labels: ClassLabels = None,
        latents: torch.Tensor | None = None,
        truncation: float | None = None,
        step_size: float = 0.3,
        threshold: float = 0.9,
        exploration: float = 0.8,
        prior_weight: float = 0.0,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        num_inference_steps: int | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        prompt: Prompt = None,
    ) -> ControllableOutput | tuple[Any, ...]:
        """Return `batch_size` samples with the feature `target`, a `ControllableOutput`.

        Ascent. Each step moves z, drawn or given as `latents`, by `step_size` along the unit gradient of
        log p(target | G(z)) - prior_weight |z|^2 / 2. An image stops as soon as p >= `threshold`, in (0, 1); a
        classifier trained with label smoothing may never reach it. `num_steps` (`num_inference_steps` in diffusers):
        maximal number of steps, >= 1. Default: 100. `target`: an int for all samples, or one for each; a class, or a
        label of a multi-label classifier. `callback_on_step_end`: function(pipeline, step, step, tensors) after each
        step; it returns the tensors that it replaces ("latents", z) and may set `pipeline._interrupt = True` to stop.
        Other arguments as in `GANPipeline`.

        Prior. `prior_weight`: >= 0; larger values keep latents likely, and 1 ascends the posterior under z ~ N(0, I).
        `exploration`: s in [0, 1); step k of N mixes noise n into z, sqrt(1 - s_k^2) z + s_k n with s_k = s k / N. This
        preserves the prior (Cotter et al. 2013, eq. 4.4); 0 is the gradient alone.

        Entanglement. For a softmax: the total variation distance between the renormalised probabilities of the other
        classes before and after. For a multi-label classifier: the mean change of the other labels' probabilities.
        Raises ConfigError, a ValueError.
        """
        check_output_type(output_type, latent=True)
        goal, way = self._way(
            batch_size, target, merge_steps(num_steps, num_inference_steps), class_labels, latents, truncation,
            step_size, threshold, exploration, prior_weight, generator,
            prompt, StepEnd.of(callback_on_step_end, callback_on_step_end_tensor_inputs, [LATENTS]),
        )  # fmt: skip
        first = last = next(way)
        for last in way:  # noqa: B007
            pass                                                                        # only the ends are kept
        images = last.z if output_type == LATENT else decode(last.x, self.generator, output_type)
        output = ControllableOutput(
            images=images, latents=last.z, reached=last.reached, steps=last.steps,
            probabilities=self._log_probabilities(last.logits).exp(),
            entanglement=self._entanglement(first.logits, last.logits, goal),
        )
        self.maybe_free_model_hooks()
        return output_or_tuple(output, return_dict)

    def states(  # type: ignore[override]
        self,
        batch_size: int | Prompt = 1,
        target: ClassLabels = None,
        num_steps: int | None = None,
        class_labels: ClassLabels = None,
        latents: torch.Tensor | None = None,
        truncation: float | None = None,
        step_size: float = 0.3,
        threshold: float = 0.9,
        exploration: float = 0.8,
        prior_weight: float = 0.0,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        prompt: Prompt = None,
    ) -> Iterator[torch.Tensor]:
        """Return an iterator over the images before the first and after each step, each (B, C, H, W) in [-1, 1].

        There are `num_steps` + 1 states, or fewer if every image reached the target. The arguments are those of
        `__call__`; they are checked before the first state.
        """
        _, way = self._way(
            batch_size, target, merge_steps(num_steps, num_inference_steps), class_labels, latents, truncation,
            step_size, threshold, exploration, prior_weight, generator,
            prompt, StepEnd.of(callback_on_step_end, callback_on_step_end_tensor_inputs, [LATENTS]),
        )  # fmt: skip
        return (moment.x for moment in way)

    def _way(
        self, batch_size: int | Prompt, target: ClassLabels, num_steps: int | None, class_labels: ClassLabels,
        latents: Any, truncation: float | None, step_size: float, threshold: float, exploration: float,
        prior_weight: float, generator: Generators, prompt: Prompt = None, end: StepEnd | None = None,
    ) -> tuple[torch.Tensor, Iterator[Moment]]:
        """Return the targets (B,) and the states of the ascent; all arguments are checked."""
        # check the numbers
        steps = 100 if num_steps is None else check_int("num_steps", num_steps, 1)
        require_number("step_size", step_size, 0, math.inf, "()")
        require_number("threshold", threshold, 0, 1, "()")
        if exploration != 0:
            require_number("exploration", exploration, 0, 1, "()")
        if prior_weight != 0:
            require_number("prior_weight", prior_weight, 0, math.inf, "()")
        # latents and targets
        z, given = self._prepare(batch_size, class_labels, truncation, latents, generator, prompt)
        goal = check_labels(target, self._num_labels, len(z), "target")
        assert goal is not None                                                         # a classifier has classes
        goal = goal.to(z.device)
        # share of noise in each step
        noise = [exploration * k / steps for k in range(steps)]
        self._interrupt, self._num_timesteps = False, steps
        return goal, self._climb(z, given, goal, step_size, math.log(threshold), noise, prior_weight, generator, end)

    def _climb(
        self, z: torch.Tensor, given: Given, goal: torch.Tensor, step_size: float, log_threshold: float,
        noise: list[float], prior_weight: float, generator: Generators, end: StepEnd | None,
    ) -> Iterator[Moment]:
        """Yield the state of the ascent before the first and after each step; `noise`: s_k of each step."""
        # state before the first step
        x, logits, ascent = self._evaluate(z, given, goal)
        reached = self._log_probability(logits, goal) >= log_threshold                  # (B,)
        steps = torch.zeros_like(goal)
        yield Moment(z, x, logits, reached, steps)
        for k, s in enumerate(self.progress_bar(noise)):
            if reached.all() or self._interrupt:
                return
            # along the gradient, then noise
            moved = z + step_size * F.normalize(ascent - prior_weight * z, dim=1)       # (B, D)
            if s:
                n = randn_tensor(z.shape, generator=generator, device=z.device, dtype=z.dtype)
                moved = math.sqrt(1 - s**2) * moved + s * n
            # images that have reached the target stay
            z = torch.where(reached[:, None], z, moved)
            steps = steps + ~reached
            if end is not None:
                z = end.changed(self, k, torch.tensor(k, device=z.device), {LATENTS: z})[LATENTS]
            x, logits, ascent = self._evaluate(z, given, goal)
            reached = reached | (self._log_probability(logits, goal) >= log_threshold)
            yield Moment(z, x, logits, reached, steps)

    def _evaluate(
        self, z: torch.Tensor, given: Given, goal: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return G(z), the classifier's logits (B, K), and the gradient in z of log p(goal | G(z)), (B, D).

        Gradients are enabled for z alone, also if the caller has disabled them.
        """
        with torch.inference_mode(False), torch.enable_grad():
            z, goal = z.clone().requires_grad_(), goal.clone()                          # of no inference mode
            x = self._generate(z, {name: value.clone() for name, value in given.items()})
            logits = self._classify(x)
            (gradient,) = torch.autograd.grad(self._log_probability(logits, goal).sum(), z)
        return x.detach(), logits.detach(), gradient

    def _classify(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K), float32, of images (B, C, H, W) in [-1, 1], adapted to the classifier's input."""
        # adapt channels and size
        if x.shape[1] < self._seen_channels:
            x = x.expand(-1, self._seen_channels, -1, -1)
        if self._seen_size not in (None, tuple(x.shape[2:])):
            x = F.interpolate(x, self._seen_size, mode="bilinear", antialias=True)
        # predict; a classifier of transformers has its own normalisation
        with evaluating(self.classifier):
            if not self._of_transformers:
                return self.classifier(x.to(self.classifier.dtype)).logits.float()
            mean, std = (x.new_tensor(self.config[key] or [0.5])[:, None, None] for key in ("image_mean", "image_std"))
            pixels = ((x / 2 + 0.5 - mean) / std).to(self.classifier.dtype)
            return self.classifier(pixel_values=pixels, return_dict=True).logits.float()

    def _log_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return F.logsigmoid(logits) if self._many_labels else logits.log_softmax(dim=1)

    def _log_probability(self, logits: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        return self._log_probabilities(logits).gather(1, goal[:, None])[:, 0]           # (B,)

    def _entanglement(self, before: torch.Tensor, after: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        """Return the change of the features other than `goal` (B,), (B,) in [0, 1], from logits (B, K)."""
        # mark the other features
        others = torch.ones_like(before, dtype=torch.bool).scatter(1, goal[:, None], False)
        if self._many_labels:
            moved = (after.sigmoid() - before.sigmoid()).abs() * others
            return moved.sum(dim=1) / max(1, self._num_labels - 1)
        # renormalise the probabilities of the other classes
        start, end = (logits.masked_fill(~others, -torch.inf).softmax(dim=1) for logits in (before, after))
        return (end - start).abs().sum(dim=1) / 2

    @property
    def _of_transformers(self) -> bool:
        return not isinstance(getattr(self.classifier, "_orig_mod", self.classifier), Classifier)

    @property
    def num_targets(self) -> int:
        """Return the number of classes of the classifier, which `target` may name."""
        return self._num_labels

    @property
    def variable_steps(self) -> bool:
        """Return True: `num_steps` is the number of gradient steps."""
        return True

    @property
    def _num_labels(self) -> int:
        config = self.classifier.config
        return int(config.num_labels if self._of_transformers else config.num_classes)

    @property
    def _many_labels(self) -> bool:
        return getattr(self.classifier.config, "problem_type", None) == "multi_label_classification"

    @property
    def _seen_channels(self) -> int:
        config = self.classifier.config
        return int(getattr(config, "num_channels", 3) if self._of_transformers else config.channels)

    @property
    def _seen_size(self) -> tuple[int, int] | None:
        config = self.classifier.config
        size = getattr(config, "image_size", None) if self._of_transformers else config.resolution
        if isinstance(size, int):
            return size, size
        return size and tuple(size)

    def _check_parts(self) -> None:
        """Raise ConfigError for networks that do not fit together."""
        # class of the classifier
        name = type(getattr(self.classifier, "_orig_mod", self.classifier)).__name__
        if self._of_transformers and name not in TRANSFORMERS_CLASSIFIERS:
            raise ConfigTypeError(f"classifier must be a Classifier of hfgen, or of transformers one of "
                                  f"{', '.join(TRANSFORMERS_CLASSIFIERS)}; got {name}")
        # images that both networks know
        if in_plane(self.generator):
            raise ConfigError("generator must make images, a classifier takes images only; got "
                              f"{type(self.generator).__name__}")
        made, seen = self.generator.config.channels, self._seen_channels
        if made not in (1, seen):
            raise ConfigError(f"classifier must take {made} channels, those of the generator; it takes {seen}")
        if self._of_transformers:
            self._check_labels_and_range(seen)

    def _check_labels_and_range(self, channels: int) -> None:
        """Raise ConfigError unless a classifier of transformers has classes, and a normalisation for `channels`."""
        config = self.classifier.config
        if config.problem_type == "regression" or (self._num_labels < 2 and not self._many_labels):
            raise ConfigError(f"classifier must have at least two classes, or labels; got problem_type="
                              f"{config.problem_type!r} with {self._num_labels} labels")
        for field in ("image_mean", "image_std"):
            value = self.config[field]
            if value is not None and len(value) not in (1, channels):
                raise ConfigError(f"{field} must be {channels} numbers, one for each channel, or one for all; "
                                  f"got {value!r}")  # fmt: skip
        if not all(number > 0 for number in self.config["image_std"] or ()):
            raise ConfigError(f"image_std must be above 0, got {self.config['image_std']!r}")
