"""Masked generation: all entries of an image are drawn in a few parallel steps, the most confident ones first."""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from hfgen.checks import check_int, require_number
from hfgen.errors import ConfigError
from hfgen.images import LATENT, as_output, check_output_type
from hfgen.losses.masked import cosine
from hfgen.models.image_transformer import ImageTransformer
from hfgen.models.vq_autoencoder import VQAutoencoder
from hfgen.pipelines.base import ClassLabels, Generators, check_generator
from hfgen.pipelines.categorical import Categorical, uniforms
from hfgen.pipelines.conditional import EVERYWHERE
from hfgen.pipelines.entries import EntriesPipeline, conditions_of, guided_logits
from hfgen.pipelines.generative import merge_steps, with_arguments_of
from hfgen.pipelines.guidance import Guide
from hfgen.pipelines.inputs import common_batch, prepared_mask, repeated
from hfgen.pipelines.step_end import Callback, StepEnd
from hfgen.pipelines.text_conditional import Prompt, first_argument

STEPS = 12
"""Default number of steps (Chang et al. 2022, section 4.1, use 8 to 12)."""

CHOICE_TEMPERATURE = 4.5
"""Default temperature of the choice of entries in the first step."""


class MaskedGenerationPipeline(EntriesPipeline):
    """Images drawn in a few parallel steps by a bidirectional transformer (MaskGIT, Chang et al. 2022).

    At first all entries are masked. Each step draws a value for each masked entry and keeps the most confident draws;
    the others are masked again. `complete` draws the masked part of given images.
    """

    causal = False

    def __init__(
        self,
        network: ImageTransformer,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        autoencoder: VQAutoencoder | None = None,
        null_condition: bool = False,
        image_shape: tuple[int, int, int] | None = None,
        levels: int = 256,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        self._register_entries(
            network, text_encoder, tokenizer, autoencoder, null_condition, image_shape, levels, patch_size
        )

    def states(
        self,
        first: int | Prompt = None,
        /,
        *,
        batch_size: int = 1,
        num_steps: int | None = None,
        num_inference_steps: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        choice_temperature: float = CHOICE_TEMPERATURE,
        class_labels: ClassLabels = None,
        prompt: Prompt = None,
        negative_prompt: Prompt = None,
        num_images_per_prompt: int | None = 1,
        guidance_scale: float | None = None,
        image: Any = None,
        mask: Any = None,
        generator: Generators = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> Iterator[Tensor]:
        """Return an iterator over the entries (B, n), int64 in [0, V - 1], or -1 where they are masked.

        The first state has only the entries of `image` that are kept, the last has all. `decode(state)` makes images of
        them, and `__call__` explains the arguments; all are checked before the first state.
        """
        batch_size, prompt = first_argument(first, batch_size, prompt)
        choice = Categorical(temperature, top_k, top_p)
        heat = require_number("choice_temperature", choice_temperature, 0, math.inf)
        # batch
        if (image is None) != (mask is None):
            raise ConfigError("image and mask must be given together, or none of them")
        pixels = None if image is None else self._pixels(image)
        B = common_batch(batch_size, prompt=prompt, class_labels=class_labels, image=pixels)
        times = 1 if num_images_per_prompt is None else check_int("num_images_per_prompt", num_images_per_prompt, 1)
        missing = None if mask is None else self._missing(mask, B)
        prompt, negative_prompt, class_labels, pixels, missing = (
            repeated(given, B, times) for given in (prompt, negative_prompt, class_labels, pixels, missing)
        )
        B *= times
        check_generator(generator, B)
        # conditions
        guide = self._guide(prompt, negative_prompt, class_labels, B, guidance_scale, EVERYWHERE, 0.0)
        end = StepEnd.of(callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        # masked entries, and steps
        start = self._start(pixels, missing, B)
        steps = self._steps(merge_steps(num_steps, num_inference_steps), int((start < 0).sum(1).max()))
        self._interrupt, self._guidance_scale, self._num_timesteps = False, guide.scale, steps
        return self._draw(start, guide, choice, heat, steps, generator, end)

    @with_arguments_of(states)
    def __call__(
        self, first: int | Prompt = None, /, *, output_type: str = "pil", return_dict: bool = True, **settings: Any
    ) -> ImagePipelineOutput | tuple[Any]:
        """Return samples, `.images`: PIL images, an array (B, H, W, C) or a tensor (B, C, H, W) in [0, 1].

        `output_type`: "pil", "np" (or "numpy"), "pt", or "latent" for the entries (B, n), int64 in [0, V - 1].

        Batch. The first argument is `batch_size` if it is an int, `prompt` if it is a text or a list. `batch_size`:
        number of samples B; lists and `image` determine it too. `num_images_per_prompt`: number of samples for each
        prompt or image, or for each of `batch_size`. `generator`: one, or a list with one for each sample, whose draws
        then do not depend on the batch.

        Draws. `num_steps` (`num_inference_steps` in diffusers): number of parallel steps, in [1, n] for n entries.
        Default: 12 (n for fewer entries). `temperature` > 0: logits are divided by it. `top_k` and `top_p`: draw from
        the k likeliest values, or from the nucleus of probability p in (0, 1]. Default: None (all values).
        `choice_temperature` >= 0: noise of the choice of entries in the first step, which falls to 0 in the last. At 0
        each step keeps the draws of highest probability; at infinity the order is random, and n steps draw exactly from
        the product of the conditional distributions. Default: 4.5.
        `callback_on_step_end`: function(pipeline, step, timestep, tensors) after each step, with the entries as
        "latents"; `pipeline._interrupt = True` ends sampling.

        Conditions. `class_labels`: an int for all samples, or one int for each. `prompt`: a text for all, or one for
        each. `negative_prompt`: the text of the unconditional prediction. `guidance_scale`: w >= 0 of the logits u + w
        (c - u). Default: 1 (no guidance).

        Completion. `image`: PIL images, a tensor (B, C, H, W) or an array (B, H, W, C) in [0, 1]. `mask`: 1, or white,
        where the image is drawn, 0 where it is kept; an entry is drawn if any of its pixels is. Raises ConfigError, a
        ValueError.
        """
        check_output_type(output_type, latent=True)
        for entries in self.states(first, **settings):  # noqa: B007
            pass                                                                        # only the last is kept
        if output_type == LATENT:
            return self._output(entries, return_dict)
        with torch.no_grad():
            x = self._images(entries)
            if settings.get("image") is not None:
                times = settings.get("num_images_per_prompt") or 1
                x = self._with_kept_pixels(x, settings["image"], settings["mask"], times)
        return self._output(as_output(x, output_type), return_dict)

    def complete(self, image: Any, mask: Any, **settings: Any) -> ImagePipelineOutput | tuple[Any]:
        """Return images, `.images`, that are those of `image` where `mask` is 0, and drawn where it is 1 or white.

        Other arguments and errors as in `__call__`.
        """
        return self(image=image, mask=mask, **settings)

    @property
    def variable_steps(self) -> bool:
        """Return True: each step draws a part of the entries, so that there may be 1 to n of them."""
        return True

    def _steps(self, num_steps: Any, masked: int) -> int:
        """Return the number of steps for a number of masked entries, checked: each step draws at least one."""
        n = self.network.num_entries
        if num_steps is None:
            num_steps = min(STEPS, n)
        return min(check_int("num_steps", num_steps, 1, n), max(1, masked))

    def _start(self, pixels: Tensor | None, missing: Tensor | None, B: int) -> Tensor:
        """Return the entries (B, n) of images (B or 1, C, H, W), -1 where pixels are missing; without images only -1.

        `missing`: bool (B or 1, 1, H, W).
        """
        # no image
        if pixels is None or missing is None:
            return torch.full((B, self.network.num_entries), -1, device=self._execution_device)
        # an entry is masked if any of its pixels is
        entries = self._encoded(pixels.masked_fill(missing, 0.0)).expand(B, -1)
        rows, columns, cell = self.network.grid
        cells = F.adaptive_max_pool2d(missing.float(), (rows, columns)) > 0             # (B or 1, 1, rows, columns)
        masked = cells.flatten(1).repeat_interleave(cell, 1)                            # (B or 1, n)
        return entries.masked_fill(masked.to(entries.device), -1)

    def _missing(self, mask: Any, B: int) -> Tensor:
        """Return the mask of the pixels that are drawn, bool (B, 1, H, W) or (1, 1, H, W)."""
        _, height, width = self.sample_shape
        return prepared_mask(mask, B, height, width, self._execution_device)

    def _with_kept_pixels(self, x: Tensor, image: Any, mask: Any, times: int) -> Tensor:
        """Return images x (B, C, H, W), `times` for each of `image`, with the pixels of `image` where the mask is 0."""
        pixels = self._pixels(image).to(x)
        missing = self._missing(mask, len(x) // times).to(x.device)
        parts = [part.repeat_interleave(len(x) // len(part), 0) for part in (missing, pixels)]
        return torch.where(parts[0], x, parts[1])

    @torch.no_grad()
    def _draw(
        self, entries: Tensor, guide: Guide, choice: Categorical, heat: float, steps: int, generator: Generators,
        end: StepEnd | None,
    ) -> Iterator[Tensor]:
        """Yield the entries (B, n) before the first step and after each; masked ones are -1."""
        # the numbers of entries that are masked after each step
        B, n = entries.shape
        left = masked_after((entries < 0).sum(1).cpu(), steps)                           # (steps, B)
        yield entries
        for t in self.progress_bar(range(steps)):
            # draw all masked entries
            masked = (entries < 0).cpu()                                                 # (B, n)
            u, noise = (uniforms(B, n, generator) for _ in range(2))
            values, confidence = self._drawn(entries, masked, guide, choice, u)
            # mask the least confident ones again
            share = 1 - (t + 1) / steps
            keep = ~masked | chosen(confidence, masked, left[t], noise, heat, share)
            entries = torch.where(keep.to(entries.device), values.to(entries.device), -1)
            # callback
            if end is not None:
                entries, guide = end.call(self, t, torch.tensor(t), entries, guide)
            yield entries
            if self._interrupt:
                return

    def _drawn(
        self, entries: Tensor, masked: Tensor, guide: Guide, choice: Categorical, u: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the entries (B, n) with a draw in the place of each masked one, and the draws' log-probabilities.

        Both are on the CPU; log-probabilities (B, n) are float64, in nats, and 0 where entries are not masked.
        """
        # logits of all entries
        seen = torch.where(entries < 0, self.network.vocab_size, entries)
        doubled = guide.scale != 1
        if doubled:
            seen = torch.cat([seen, seen])
        logits = guided_logits(self.network(seen, **conditions_of(guide)).logits, doubled, guide.scale)
        # draws of the masked ones
        p = choice.probabilities(logits[masked.to(logits.device)])                       # (masked entries, V)
        x = choice.inverse(p, u[masked])
        values, log_p = entries.cpu().clone(), torch.zeros(masked.shape, dtype=torch.float64)
        values[masked], log_p[masked] = x, p.gather(1, x[:, None])[:, 0].log()
        return values, log_p


def masked_after(counts: Tensor, steps: int) -> Tensor:
    """Return how many entries are masked after each step, (steps, B), int64, of `counts` (B,) that are at first.

    They are floor(gamma(t / T) count) (Chang et al. 2022, section 3.2), but at least one less than before, and enough
    for one in each later step. None is left after the last step.
    """
    left, rows = counts, []
    for t in range(1, steps + 1):
        wanted = (cosine(torch.tensor(t / steps, dtype=torch.float64)) * counts).floor().long()
        left = wanted.clamp(min=steps - t).minimum(left - 1).clamp(min=0)
        rows.append(left)
    return torch.stack(rows)


def chosen(
    confidence: Tensor, masked: Tensor, left: Tensor, noise: Tensor, heat: float, share: float
) -> Tensor:
    """Return which of the masked entries are kept, bool (B, n): all but the `left` (B,) least confident ones.

    The confidence of a draw is log p + a Gumbel draw times `heat` and `share`, the share of steps that are left; at
    infinite heat it is the Gumbel draw alone. `confidence`: log p (B, n); `noise`: (B, n), uniform in [0, 1).
    """
    gumbel = -(-noise.clamp(min=1e-300).log()).log()
    score = gumbel if math.isinf(heat) else confidence + heat * share * gumbel
    rank = score.masked_fill(~masked, math.inf).argsort(1).argsort(1)                    # the least confident first
    return masked & (rank >= left[:, None])
