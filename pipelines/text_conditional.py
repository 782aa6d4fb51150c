"""Base class of the pipelines whose network may be conditioned on texts, through a text encoder and its tokenizer."""

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.models.text import check_tokens, token_ids
from hfgen.pipelines.generative import GenerativePipeline

Prompt = str | list[str] | None


class TextConditionalPipeline(GenerativePipeline):
    """Base of the pipelines that generate with one network, conditioned on texts or not."""

    model_cpu_offload_seq: str | None = None
    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012  (as diffusers declares it)

    @property
    def conditioned(self) -> Any:
        """Return the network that is conditioned."""
        raise NotImplementedError

    @property
    def reads_text(self) -> bool:
        """Return whether the network is conditioned on texts."""
        return self.text_encoder is not None

    def _check_text_parts(
        self, part: str, text: bool, text_encoder: CLIPTextModel | None, tokenizer: CLIPTokenizer | None
    ) -> None:
        """Raise ConfigError unless text encoder and tokenizer are given exactly if the network `part` needs them.

        `text`: whether the network is conditioned on texts.
        """
        if text != (text_encoder is not None) or text != (tokenizer is not None):
            raise ConfigError(f"text_encoder and tokenizer must be given exactly if the {part} is conditioned on texts")
        if text_encoder is not None and tokenizer is not None:
            check_tokens(text_encoder, tokenizer)

    def _check_prompt(self, prompt: Prompt) -> None:
        """Raise ConfigError unless a prompt is given to a network that was always trained with texts."""
        if prompt is None and self.reads_text and not self.guidable:
            raise ConfigError("prompt must be given: this model was not trained without texts")

    @torch.no_grad()
    def _text(self, name: str, texts: Prompt, B: int) -> Tensor | None:
        """Return text features (B, L, F), those of one text repeated; None for a model without texts.

        `name` is the argument in error messages. `texts`: one text, B texts in a list, or None for the empty text.
        """
        # texts
        if self.text_encoder is None:
            if texts is not None:
                raise ConfigError(f"{name} must be None, this model is not conditioned on texts; got {texts!r}")
            return None
        listed = [texts or ""] * B if texts is None or isinstance(texts, str) else texts
        if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
            raise ConfigTypeError(f"{name} must be a text or a list of texts, got {texts!r}")
        if len(listed) not in (1, B):
            raise ConfigError(f"{name} must be one text or {B} of them, got {len(listed)}")
        # features
        ids = token_ids(self.tokenizer, listed, self._execution_device)
        features: Tensor = self.text_encoder(input_ids=ids).last_hidden_state.to(self.conditioned.dtype)
        return features.expand(B, -1, -1)


def first_argument(first: Any, batch_size: int, prompt: Prompt) -> tuple[int, Prompt]:
    """Return `batch_size` and `prompt`; one of them may be the first argument: a text or a list is the prompt.

    Raises ConfigTypeError if the same argument is also given by its keyword.
    """
    if first is None:
        return batch_size, prompt
    if isinstance(first, str | list):
        _check_given_once("prompt", first, prompt, default=None)
        return batch_size, first
    _check_given_once("batch_size", first, batch_size, default=1)
    return first, prompt


def _check_given_once(name: str, first: Any, keyword: Any, default: Any) -> None:
    if keyword != default:
        raise ConfigTypeError(f"{name} must be given once; the first argument is {first!r}, the keyword {keyword!r}")
