"""The conditions of a denoiser: the class or the caption of each sample, dropped at random for guidance."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from hfgen.data.dataset import Dataset
from hfgen.errors import ConfigError
from hfgen.loading.files import read_json
from hfgen.loading.resolve import resolve_component
from hfgen.loading.transformers_models import CONFIG, load_half, load_model, load_tokenizer
from hfgen.models.text import build_text_encoder, build_tokenizer, token_ids
from hfgen.training.engine import run
from hfgen.training.engine.noise import Noise
from hfgen.training.engine.phase import Batch
from hfgen.training.engine.settings import Settings


@dataclass(kw_only=True)
class ConditionSettings(Settings):
    """Fields of what a network is told."""

    class_conditional: bool = False
    """Condition the network on the dataset's labels."""
    captions: bool = False
    """Condition the network on the dataset's captions, through a text encoder."""
    caption_column: str | None = None
    """Column that holds the captions, with --captions; "caption" if not given."""
    condition_dropout: float = 0.1
    """Share of samples whose class or caption is left out, which guidance needs (Ho and Salimans 2021)."""
    text_encoder: str | None = None
    """Folder or Hub id of a CLIP text encoder and tokenizer, or of a pipeline that has them, which are not trained; by
    default a small encoder is built for the words of the captions and trained along."""
    text_width: int = 128
    """Features of each token of the text encoder that is built."""
    text_layers: int = 2
    """Layers of the text encoder that is built."""
    max_words: int = 4096
    """Most frequent words of the captions that are one token each."""


def open_dataset(settings: ConditionSettings) -> Dataset:
    """Return the dataset that the settings name, with captions if the network is to be told them."""
    s = settings
    if not 0 <= s.condition_dropout < 1:
        raise ConfigError(f"--condition-dropout must be in [0, 1), got {s.condition_dropout}")
    for name in ("caption_column", "text_encoder"):
        if getattr(s, name) is not None and not s.captions:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(s, name)} needs --captions")
    for name, least in (("text_width", 1), ("text_layers", 1), ("max_words", 0)):
        if getattr(s, name) < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(s, name)}")
    if s.captions and s.streaming:
        raise ConfigError("--streaming: captions are read before training, all of them; leave it out")
    return run.open_dataset(s, caption_column=(s.caption_column or "caption") if s.captions else None)


def load_text(model: str | Path) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """Return text encoder and tokenizer of a pipeline or a run, or of a folder or a Hub id that is a CLIP model alone.

    That may be the text encoder or the whole CLIP, with its tokenizer. Texts are padded and cut to what the encoder has
    positions for. Raises as `hub.resolve_component` and `safe_transformers`.
    """
    home, words = (resolve_component(model, part) for part in ("text_encoder", "tokenizer"))
    whole = read_json(home / CONFIG).get("model_type") == "clip"
    encoder: CLIPTextModel = (load_half if whole else load_model)(home, CLIPTextModel, torch.float32)
    tokenizer: CLIPTokenizer = load_tokenizer(words, CLIPTokenizer)
    tokenizer.model_max_length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    return encoder, tokenizer


class Conditions:
    """The conditions of a run, called for those of a batch; they are left out as a function of (seed, step, sample).

    `num_class_embeds` counts the classes and, if it is trained, the null class behind them. `nets` has the text
    encoder, if any; `width` is the number of its features, `trained` names it if it is trained along.
    """

    def __init__(self, settings: ConditionSettings, dataset: Dataset) -> None:
        s = self.settings = settings
        if s.class_conditional and not dataset.num_classes:
            raise ConfigError(f"--class-conditional: the dataset {s.dataset!r} has no labels")
        self.null = s.condition_dropout > 0 and (s.class_conditional or s.captions)
        self.classes = cast(int, dataset.num_classes)
        self.num_class_embeds = self.classes + self.null if s.class_conditional else None
        self.nets: dict[str, nn.Module] = {}
        self.tokenizer: Any = None
        self.width: int | None = None
        self.trained: tuple[str, ...] = ()
        self.captions = dataset.captions or []
        if s.captions:
            encoder: Any = self._build_text()
            self.nets["text_encoder"], self.width = encoder, encoder.config.hidden_size
            self.nothing = token_ids(self.tokenizer, [""])

    def _build_text(self) -> nn.Module:
        s = self.settings
        if s.text_encoder is not None:
            frozen, self.tokenizer = load_text(s.text_encoder)
            return frozen.requires_grad_(False)
        self.tokenizer, self.trained = build_tokenizer(self.captions, s.max_words), ("text_encoder",)
        heads = max(n for n in range(1, max(1, s.text_width // 32) + 1) if s.text_width % n == 0)
        encoder: Any = build_text_encoder(self.tokenizer, s.text_width, s.text_layers, heads)
        encoder.set_attn_implementation("eager")     # of short texts faster in bfloat16, as in hfgen.models.attention
        return cast(nn.Module, encoder)

    def __call__(self, nets: Mapping[str, nn.Module], batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Return what the network is told of each sample; of some, at random, nothing."""
        s, told = self.settings, {}
        left_out = noise.uniform("condition") < s.condition_dropout                     # (B,)
        if s.class_conditional:
            told["class_labels"] = torch.where(left_out, self.classes, batch["label"])
        if s.captions:
            ids = token_ids(self.tokenizer, batch["caption"], left_out.device)
            ids = torch.where(left_out[:, None], self.nothing.to(ids.device), ids)       # (B, L)
            told["encoder_hidden_states"] = nets["text_encoder"](input_ids=ids).last_hidden_state
        return told

    def parts(self, nets: Mapping[str, nn.Module]) -> dict[str, Any]:
        """Return what a pipeline is told of the conditions: text encoder, tokenizer, and whether it can be guided."""
        return {
            "text_encoder": nets.get("text_encoder"), "tokenizer": self.tokenizer, "null_condition": self.null,
        }  # fmt: skip

    def words(self) -> str:
        """Return the words of `hfgen sample` that ask for a class and a caption."""
        label = " --label 0" if self.settings.class_conditional else ""
        prompt = f" --prompt {shlex.quote(self.captions[0])}" if self.captions else ""
        return (label + prompt).replace("{", "{{").replace("}", "}}")
