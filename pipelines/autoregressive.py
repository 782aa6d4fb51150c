"""Autoregressive sampling: an image is drawn entry by entry, each conditioned on all before it."""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from hfgen.checks import check_int
from hfgen.errors import ConfigError
from hfgen.images import LATENT, as_output, check_output_type
from hfgen.models.image_transformer import ImageTransformer
from hfgen.models.pixel_cnn import PixelCNN
from hfgen.models.vq_autoencoder import VQAutoencoder
from hfgen.pipelines.base import ClassLabels, Generators, check_generator
from hfgen.pipelines.categorical import Categorical, uniforms
from hfgen.pipelines.conditional import EVERYWHERE
from hfgen.pipelines.entries import EntriesPipeline, conditions_of, guided_logits
from hfgen.pipelines.generative import merge_steps, with_arguments_of
from hfgen.pipelines.guidance import Guide
from hfgen.pipelines.inputs import common_batch, repeated
from hfgen.pipelines.step_end import Callback, StepEnd
from hfgen.pipelines.text_conditional import Prompt, first_argument


class AutoregressivePipeline(EntriesPipeline):
    """Images drawn entry by entry: x_i ~ p(x_i | x_1, ..., x_{i-1}, y), i = 1, ..., n.

    The likelihood of an image is exact: log p(x|y) = sum_i log p(x_i | x_1, ..., x_{i-1}, y). `complete` draws the
    lower rows of given images. `binarised`: whether pixels of the training data were drawn black or white, with the
    probability of their brightness.
    """

    def __init__(
        self,
        network: ImageTransformer | PixelCNN,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        autoencoder: VQAutoencoder | None = None,
        null_condition: bool = False,
        image_shape: tuple[int, int, int] | None = None,
        levels: int = 256,
        patch_size: int = 1,
        binarised: bool = False,
    ) -> None:
        super().__init__()
        self._register_entries(
            network, text_encoder, tokenizer, autoencoder, null_condition, image_shape, levels, patch_size
        )
        self.register_to_config(binarised=binarised)

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
        class_labels: ClassLabels = None,
        prompt: Prompt = None,
        negative_prompt: Prompt = None,
        num_images_per_prompt: int | None = 1,
        guidance_scale: float | None = None,
        image: Any = None,
        rows: int | None = None,
        use_cache: bool = True,
        generator: Generators = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> Iterator[Tensor]:
        """Return an iterator over the growing entries (B, n), int64 in [0, V - 1], or -1 where none is drawn yet.

        The first state has only the entries of `image` that are kept, the last has all. `decode(state)` makes images of
        them, and `__call__` explains the arguments; all are checked before the first state.
        """
        batch_size, prompt = first_argument(first, batch_size, prompt)
        self._check_steps(merge_steps(num_steps, num_inference_steps))
        choice = Categorical(temperature, top_k, top_p)
        # batch
        pixels = None if image is None else self._pixels(image)
        B = common_batch(batch_size, prompt=prompt, class_labels=class_labels, image=pixels)
        times = 1 if num_images_per_prompt is None else check_int("num_images_per_prompt", num_images_per_prompt, 1)
        prompt, negative_prompt, class_labels, pixels = (
            repeated(given, B, times) for given in (prompt, negative_prompt, class_labels, pixels)
        )
        B *= times
        check_generator(generator, B)
        # conditions
        guide = self._guide(prompt, negative_prompt, class_labels, B, guidance_scale, EVERYWHERE, 0.0)
        end = StepEnd.of(callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        # entries that are kept, and draws of the others
        start = self._kept(pixels, rows, B)
        u = uniforms(B, start.shape[1], generator)
        remaining = int((start[0] < 0).sum())
        self._interrupt, self._guidance_scale, self._num_timesteps = False, guide.scale, remaining
        return self._draw(start, guide, choice, u, use_cache, end)

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

        Draws. `num_steps` (`num_inference_steps` in diffusers): n, the number of entries, is the only value.
        `temperature` > 0: logits are divided by it. `top_k` and `top_p`: draw from the k likeliest values, or from the
        nucleus of probability p in (0, 1]. Default: None (all values). `use_cache`: keep keys and values of all entries
        in memory, so that each step computes one entry.
        `callback_on_step_end`: function(pipeline, step, timestep, tensors) after each entry, with the entries as
        "latents"; `pipeline._interrupt = True` ends sampling.

        Conditions. `class_labels`: an int for all samples, or one int for each. `prompt`: a text for all, or one for
        each. `negative_prompt`: the text of the unconditional prediction. `guidance_scale`: w >= 0 of the logits u + w
        (c - u). Default: 1 (no guidance).

        Completion. `image`: PIL images, a tensor (B, C, H, W) or an array (B, H, W, C) in [0, 1]. `rows`: number of
        their upper rows of pixels that are kept, a multiple of the side of a patch or of a code's cell. Default: half
        of the rows. Raises ConfigError, a ValueError.
        """
        check_output_type(output_type, latent=True)
        for entries in self.states(first, **settings):  # noqa: B007
            pass                                                                        # only the last is kept
        if output_type == LATENT:
            return self._output(entries, return_dict)
        with torch.no_grad():
            x = self._images(entries)
        if settings.get("image") is not None and self.autoencoder is not None:
            x = self._with_rows_of(settings["image"], settings.get("rows"), x)
        return self._output(as_output(x, output_type), return_dict)

    def complete(
        self, image: Any, rows: int | None = None, **settings: Any
    ) -> ImagePipelineOutput | tuple[Any]:
        """Return images, `.images`, whose first `rows` rows of pixels are those of `image`; all others are drawn.

        Default of `rows`: half of the rows. Other arguments and errors as in `__call__`.
        """
        return self(image=image, rows=rows, **settings)

    @torch.no_grad()
    def log_likelihood(self, image: Any, class_labels: ClassLabels = None, prompt: Prompt = None) -> Tensor:
        """Return log P(x|y) in nats of images, (B,) float64, exact: the sum of log p(x_i | x_1, ..., x_{i-1}, y).

        `image`: PIL images, a tensor (B, C, H, W) or an array (B, H, W, C) in [0, 1]; pixels are rounded to the levels
        of the model. Raises ConfigError for a model of codes, which is no distribution over pixels.
        """
        if self.autoencoder is not None:
            raise ConfigError("log_likelihood: this model is a distribution over codes of an autoencoder, not pixels")
        entries = self._encoded(self._pixels(image))
        guide = self._guide(prompt, None, class_labels, len(entries), 1.0, EVERYWHERE, 0.0)
        log_p: Tensor = self.network(entries, **guide.cond, log_prob=True).log_prob
        self.maybe_free_model_hooks()
        return log_p.cpu().double().sum(1)

    def _check_steps(self, num_steps: Any) -> None:
        """Raise ConfigError unless the number of steps is that of the entries, or None."""
        n = self.network.num_entries
        if num_steps is not None and check_int("num_steps", num_steps, 1) != n:
            raise ConfigError(f"num_steps must be {n}, the number of entries that are drawn one after the other, or "
                              f"left out; got {num_steps}")  # fmt: skip

    def _kept(self, pixels: Tensor | None, rows: Any, B: int) -> Tensor:
        """Return the entries (B, n) of the upper `rows` of images (B or 1, C, H, W), with -1 below them, or of none."""
        # no image
        n = self.network.num_entries
        if pixels is None:
            if rows is not None:
                raise ConfigError(f"rows requires an image, got {rows} and none")
            return torch.full((B, n), -1, device=self._execution_device)
        # repeat the last row that is kept, so that no code depends on the rows below
        rows, height = self._rows(rows), pixels.shape[2]
        upper = pixels[:, :, :rows]
        whole = torch.cat([upper, upper[:, :, -1:].expand(-1, -1, height - rows, -1)], 2)
        entries = self._encoded(whole).expand(B, -1).clone()
        entries[:, n * rows // height :] = -1
        return entries

    def _rows(self, rows: Any) -> int:
        """Return the number of rows of pixels that are kept, checked."""
        cell, height = self._factor, self.sample_shape[1]
        if rows is None:
            return max(1, height // cell // 2) * cell
        if check_int("rows", rows, 1, height - 1) % cell:
            raise ConfigError(f"rows must be a multiple of {cell}, the rows of pixels of an entry, got {rows}")
        return int(rows)

    def _with_rows_of(self, image: Any, rows: Any, x: Tensor) -> Tensor:
        """Return images x (B, C, H, W) with the upper rows of `image` in the place of their reconstruction."""
        kept, pixels = self._rows(rows), self._pixels(image).to(x)
        pixels = pixels.repeat_interleave(len(x) // len(pixels), 0)
        return torch.cat([pixels[:, :, :kept], x[:, :, kept:]], 2)

    @torch.no_grad()
    def _draw(
        self, entries: Tensor, guide: Guide, choice: Categorical, u: Tensor, use_cache: bool, end: StepEnd | None
    ) -> Iterator[Tensor]:
        """Yield entries (B, n) with one more drawn at each step, in the place of the first -1; `u`: uniforms (B, n)."""
        # conditions, and a cache for each row of them
        n, first = entries.shape[1], int((entries[0] >= 0).sum())
        doubled, conditions = guide.scale != 1, conditions_of(guide)
        cache = self.network.new_cache() if use_cache else None
        yield entries
        for i in self.progress_bar(range(first, n)):
            # logits of entry i
            known = entries[:, :i]
            if doubled:
                known = torch.cat([known, known])
            logits = guided_logits(self.network.next_logits(known, **conditions, cache=cache), doubled, guide.scale)
            # one draw
            entries = entries.clone()
            entries[:, i] = choice.draw(logits, u[:, i]).to(entries.device)
            # callback
            if end is not None:
                entries, guide = end.call(self, i - first, torch.tensor(i), entries, guide)
            yield entries
            if self._interrupt:
                return
