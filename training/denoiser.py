"""The denoiser that three recipes share: settings, network, optimiser, and the classes or captions as conditions."""

import shlex
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from hfgen.data.dataset import Dataset
from hfgen.data.images import Images
from hfgen.errors import ConfigError
from hfgen.loading.files import read_json
from hfgen.loading.resolve import resolve_component
from hfgen.loading.transformers_models import CONFIG, load_half, load_model, load_tokenizer
from hfgen.models.blocks import FourierFeatures, TableFeatures
from hfgen.models.conditional_unet import ConditionalUNet
from hfgen.models.mlp import MLPDenoiser
from hfgen.models.text import build_text_encoder, build_tokenizer, token_ids
from hfgen.models.unet import UNet
from hfgen.schedulers.forward import Marginals
from hfgen.schedulers.samplers import RECOMMENDED, SAMPLERS
from hfgen.training.engine import recipe
from hfgen.training.engine.noise import Noise
from hfgen.training.engine.phase import Batch
from hfgen.training.settings.denoiser import CaptionSettings, ConditionSettings, DenoiserSettings


def open_dataset(settings: CaptionSettings) -> Dataset:
    """Return the dataset that the settings name, with captions if the network is conditioned on them."""
    s = settings
    # check the fields of conditions
    if not 0 <= dropout_of(s) < 1:
        raise ConfigError(f"--condition-dropout must be in [0, 1), got {dropout_of(s)}")
    for name in ("caption_column", "text_encoder"):
        if getattr(s, name) is not None and not s.captions:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(s, name)} needs --captions")
    for name, least in (("text_width", 1), ("text_layers", 1), ("max_words", 0)):
        if getattr(s, name) < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(s, name)}")
    if s.captions and s.streaming:
        raise ConfigError("--streaming: captions are read before training, all of them; leave it out")
    # open the dataset
    caption_column = None
    if s.captions:
        caption_column = s.caption_column or "caption"
    dataset = recipe.open_dataset(s, caption_column=caption_column)
    if s.captions and dataset.captions is None:
        raise ConfigError(f"--captions: {dataset.name} is a stream, whose captions cannot be read before training")
    return dataset


def dropout_of(settings: CaptionSettings) -> float:
    """Return the share of samples whose conditions are left out in training; 0 for recipes without this field."""
    return settings.condition_dropout if isinstance(settings, ConditionSettings) else 0.0


def images_to_encode(settings: Any, channels: int, family: str) -> tuple[Images, bool]:
    """Return the images that an autoencoder of `channels` is to encode, none mirrored, and whether to mirror them.

    Raises ConfigError, naming the field, for data that are no images, have no labels or have other channels. `family`:
    the model, as errors name it.
    """
    # open the images, and check that they fit
    s = settings
    if s.streaming:
        raise ConfigError("--streaming: images are encoded once, all of them; leave it out")
    source = open_dataset(s)
    if not isinstance(source, Images):
        raise ConfigError(f"--dataset {s.dataset}: {family} is for images, these are points")
    if s.class_conditional and not source.num_classes:
        raise ConfigError(f"--class-conditional: the dataset {s.dataset!r} has no labels")
    if source.shape[0] != channels:
        raise ConfigError(f"--autoencoder {s.autoencoder}: is for {channels} channels, the images of "
                          f"{s.dataset} have {source.shape[0]}; see --channels")  # fmt: skip
    # mirrored copies are encoded on their own
    flip, source = source.flip, copy(source)
    source.flip = False
    return source, flip


def load_text(model: str | Path) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """Return text encoder and tokenizer of a pipeline or a run, or of a folder or a Hub id that is a CLIP model alone.

    `model` may be the text encoder or the whole CLIP, with its tokenizer. Texts are padded and cut to the number of
    positions of the encoder. Errors as in `loading.resolve` and `loading.transformers_models`.
    """
    # find and load both parts
    home, words = resolve_component(model, "text_encoder"), resolve_component(model, "tokenizer")
    whole = read_json(home / CONFIG).get("model_type") == "clip"
    encoder: CLIPTextModel = (load_half if whole else load_model)(home, CLIPTextModel, torch.float32)
    tokenizer: CLIPTokenizer = load_tokenizer(words, CLIPTokenizer)
    # cut texts to the positions of the encoder
    tokenizer.model_max_length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    return encoder, tokenizer


class Conditions:
    """The conditions of a run, called for those of a batch; they are left out as a function of (seed, step, sample).

    `num_class_embeds` counts the classes and, if it is trained, the null class behind them. `nets` has the text
    encoder, if any; `width` is the number of its features, `trained` names it if it is trained along.
    """

    def __init__(self, settings: CaptionSettings, dataset: Dataset) -> None:
        # count classes, and the null class behind them
        s = self.settings = settings
        if s.class_conditional and not dataset.num_classes:
            raise ConfigError(f"--class-conditional: the dataset {s.dataset!r} has no labels")
        self.null = dropout_of(s) > 0 and (s.class_conditional or s.captions)
        self.classes = cast(int, dataset.num_classes)
        self.num_class_embeds = self.classes + self.null if s.class_conditional else None
        # build the text encoder, if any, and the tokens of the empty text
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
        # load a given encoder, and freeze it
        s = self.settings
        if s.text_encoder is not None:
            frozen, self.tokenizer = load_text(s.text_encoder)
            return frozen.requires_grad_(False)
        # build a small one for the words of the captions
        self.tokenizer, self.trained = build_tokenizer(self.captions, s.max_words), ("text_encoder",)
        heads = max(n for n in range(1, max(1, s.text_width // 32) + 1) if s.text_width % n == 0)
        encoder: Any = build_text_encoder(self.tokenizer, s.text_width, s.text_layers, heads)
        encoder.set_attn_implementation("eager")     # of short texts faster in bfloat16, as in hfgen.models.attention
        return cast(nn.Module, encoder)

    def __call__(self, nets: Mapping[str, nn.Module], batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Return the network's condition arguments for a batch; conditions of some samples are dropped at random
        (Ho and Salimans 2021).

        `class_labels`: (B,) int64 from 0 on, the null class being the last; `encoder_hidden_states`: (B, L, width).
        """
        return self.of(nets, batch, noise.uniform("condition") < dropout_of(self.settings))

    def of(self, nets: Mapping[str, nn.Module], batch: Batch, left_out: Tensor) -> dict[str, Tensor]:
        """Return the conditions of a batch, but none of the samples `left_out` (B,), which are bool."""
        s, conditions = self.settings, {}
        if s.class_conditional:
            conditions["class_labels"] = torch.where(left_out, self.classes, batch["label"].to(left_out.device))
        if s.captions:
            ids = token_ids(self.tokenizer, batch["caption"], left_out.device)
            ids = torch.where(left_out[:, None], self.nothing.to(ids.device), ids)       # (B, L)
            conditions["encoder_hidden_states"] = nets["text_encoder"](input_ids=ids).last_hidden_state
        return conditions

    def parts(self, nets: Mapping[str, nn.Module]) -> dict[str, Any]:
        """Return the arguments of a pipeline: text encoder, tokenizer, and whether there is a null condition."""
        return {
            "text_encoder": nets.get("text_encoder"), "tokenizer": self.tokenizer, "null_condition": self.null,
        }  # fmt: skip

    def usage(self) -> str:
        """Return the command that samples the finished run `{run}` by the recommended sampler."""
        sampler = f"--sampler {RECOMMENDED} --num-steps {SAMPLERS[RECOMMENDED].steps}"
        return f"hfgen sample {{run}}{self.words()} {sampler} -n 64 --seed 0 -o grid.png"

    def words(self) -> str:
        """Return the words of `hfgen sample` that ask for a class and a caption."""
        words = ""
        if self.settings.class_conditional:
            words += " --label 0"
        if self.captions:
            words += f" --prompt {shlex.quote(self.captions[0])}"
        return words.replace("{", "{{").replace("}", "}}")


def network(
    settings: DenoiserSettings,
    dataset: Dataset,
    learned_variance: bool = False,
    num_class_embeds: int | None = None,
    text_width: int | None = None,
    num_train_timesteps: int = 1000,
) -> UNet | MLPDenoiser | ConditionalUNet:
    """Return the denoiser for the dataset's shape: a U-Net for images, with or without text, an MLP for 2-D points.

    Raises ConfigError, naming the field, for settings of a U-Net with points.
    """
    # build an MLP for points
    widths, layers = settings.block_out_channels, settings.layers_per_block
    if len(dataset.shape) == 1:
        if learned_variance:
            raise ConfigError("--variance-type learned_range is for images; points take fixed_small or fixed_large")
        for name, usual in (("time_embedding_type", "positional"), ("resnet_time_scale_shift", "default")):
            if getattr(settings, name) != usual:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{option} {getattr(settings, name)} is for images; points take {usual}")
        return MLPDenoiser(
            dim=dataset.shape[0], hidden=widths[-1], layers=layers, num_class_embeds=num_class_embeds,
            **recipe.mean_and_std(dataset),
        )  # fmt: skip
    # build a U-Net for images or latents
    if text_width is not None:
        return conditional_unet(
            settings, dataset, learned_variance, num_class_embeds, text_width, num_train_timesteps
        )
    channels, groups = dataset.shape[0], min(32, widths[0] // 4)
    kinds = ["Attn" if level in settings.attention_levels else "" for level in range(len(widths))]
    fourier, scale_shift = settings.time_embedding_type == "fourier", settings.resnet_time_scale_shift == "scale_shift"
    unet = UNet(
        sample_size=recipe.side_or_sides(dataset),
        in_channels=channels,
        out_channels=2 * channels if learned_variance else channels,
        block_out_channels=widths,
        layers_per_block=layers,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        attention_head_dim=min(settings.attention_head_dim, *widths),
        norm_num_groups=groups,
        attn_norm_num_groups=groups if scale_shift else None,      # as without adaptive normalisation
        dropout=settings.dropout,
        num_class_embeds=num_class_embeds,
        time_embedding_type="learned" if fourier else "positional",
        num_train_timesteps=num_train_timesteps if fourier else None,
        resnet_time_scale_shift=settings.resnet_time_scale_shift,
    )
    # in a stock U-Net "fourier" is of noise levels, so that features of timesteps are a table
    if isinstance(unet.time_proj, TableFeatures):
        unet.time_proj.use_fourier_features()
    return unet


def conditional_unet(
    settings: DenoiserSettings,
    dataset: Dataset,
    learned_variance: bool,
    num_class_embeds: int | None,
    text_width: int,
    num_train_timesteps: int,
) -> ConditionalUNet:
    """Return the U-Net with transformer blocks, for images or latents conditioned on text."""
    channels, widths, fourier = dataset.shape[0], settings.block_out_channels, settings.time_embedding_type == "fourier"
    unet = ConditionalUNet(
        sample_size=recipe.side_or_sides(dataset),
        in_channels=channels,
        out_channels=2 * channels if learned_variance else channels,
        block_out_channels=widths,
        layers_per_block=settings.layers_per_block,
        attention_levels=settings.attention_levels,
        attention_head_dim=min(settings.attention_head_dim, *widths),
        cross_attention_dim=text_width,
        pooled_text=True,
        norm_num_groups=min(32, max(1, widths[0] // 4)),
        dropout=settings.dropout,
        num_class_embeds=num_class_embeds,
        time_embedding_type=settings.time_embedding_type,
        time_embedding_dim=4 * widths[0] if fourier else None,     # as without Fourier features
        resnet_time_scale_shift=settings.resnet_time_scale_shift,
    )
    # frequencies for the number of timesteps
    if isinstance(unet.time_proj, FourierFeatures):
        unet.time_proj.weight.mul_(1000 / num_train_timesteps)
    return unet


def optimizer(settings: DenoiserSettings, nets: Mapping[str, nn.Module]) -> torch.optim.Optimizer:
    """Return AdamW for everything in the networks that is trained."""
    parameters = [p for net in nets.values() for p in net.parameters() if p.requires_grad]
    rate = settings.learning_rate
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=settings.weight_decay, fused=True)


def target(scheduler: Marginals, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Return the prediction target at the timesteps t (B,), int64 from 0 on: eps, x_0 or the velocity.

    It has the shape of x_0 (B, ...). The velocity is that of Salimans and Ho 2022.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return eps
    if kind == "sample":
        return x_0
    return scheduler.get_velocity(x_0, eps, t)


def drawn(batch: Batch, noise: Noise) -> Tensor:
    """Return x_0: the batch's images (B, C, H, W) in [-1, 1] or points (B, 2); of latents, which have a deviation,
    draws of q(z|x) (B, D, h, w)."""
    x: Tensor = batch["x"]
    if "std" in batch:
        return x + batch["std"] * noise.normal("posterior", *x.shape[1:])
    return x


