"""Networks for points of a few dimensions: a noise predictor called like the U-Net, and the networks of a GAN."""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.configuration_utils import FrozenDict

from hfgen.checks import require, require_int, require_number
from hfgen.errors import ConfigError
from hfgen.loading.config import register_to_config
from hfgen.loading.mixins import ModelMixin
from hfgen.models.blocks import SinusoidalFeatures, TimestepEmbedding, as_timesteps
from hfgen.models.choices import Norm
from hfgen.models.dcgan import check_parts, packed, with_classes, with_deviation
from hfgen.models.outputs import LogitsOutput, SampleOutput
from hfgen.models.spectral import SPECTRAL_LAYERS, spectral_norm


class ResidualBlock(nn.Module):
    """Residual block conditioned on time: h + W_2 silu(W_1 norm(h) + W_t temb), h (B, hidden), temb (B or 1, T)."""

    def __init__(self, hidden: int, time_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.linear_1 = nn.Linear(hidden, hidden)
        self.time_emb_proj = nn.Linear(time_dim, hidden)
        self.linear_2 = nn.Linear(hidden, hidden)

    def forward(self, h: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """Return features (B, hidden) from h (B, hidden) and the embedding of time `temb` (B or 1, T)."""
        return h + self.linear_2(F.silu(self.linear_1(self.norm(h)) + self.time_emb_proj(temb)))


class MLPDenoiser(ModelMixin):
    """Residual MLP that predicts the noise in points x_t (B, dim), called like the U-Net.

    `data_mean` (one number per coordinate) and `data_std` (one number, or one per coordinate) convert model coordinates
    to data coordinates: x_data = data_std * x + data_mean. They are stored for the pipeline; `forward` does not use
    them. Raises ConfigError, naming the field, for impossible values.
    """

    _no_split_modules = ("ResidualBlock",)
    _repeated_blocks = ("ResidualBlock",)

    @register_to_config
    def __init__(
        self,
        dim: int = 2,
        hidden: int = 128,
        layers: int = 4,
        time_embedding_dim: int = 128,
        num_class_embeds: int | None = None,
        data_mean: Sequence[float] = (0.0, 0.0),
        data_std: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__()
        self._check_config()
        self.linear_in = nn.Linear(dim, hidden)
        # embedding of time and class
        self.time_proj = SinusoidalFeatures(time_embedding_dim)
        self.time_embedding = TimestepEmbedding(time_embedding_dim, time_embedding_dim)
        self.class_embedding: nn.Module | None = None
        if num_class_embeds is not None:
            self.class_embedding = nn.Embedding(num_class_embeds, time_embedding_dim)
        # residual blocks between two linear layers
        self.blocks = nn.ModuleList(ResidualBlock(hidden, time_embedding_dim) for _ in range(layers))
        self.norm_out = nn.LayerNorm(hidden)
        self.linear_out = nn.Linear(hidden, dim)

    def _check_config(self) -> None:
        c = self.config
        for field, high in (("dim", 4096), ("hidden", 2**16), ("layers", 256), ("time_embedding_dim", 2**16)):
            require_int(field, c[field], high=high)
        if c["num_class_embeds"] is not None:
            require_int("num_class_embeds", c["num_class_embeds"])
        check_coordinates(c)

    @property
    def config(self) -> Any:
        """Return the configuration with the U-Net's fields `in_channels` (= dim) and `sample_size` (None)."""
        saved = super().config
        return FrozenDict({**saved, "in_channels": saved["dim"], "sample_size": None})

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> SampleOutput | tuple[torch.Tensor]:
        """Return the prediction (B, dim) as `.sample` or as a tuple of one.

        `sample`: x_t (B, dim). `timestep`: numbers in [0, T - 1], integer or not, of shape (), (1,) or (B,).
        `class_labels`: ints (B,), None without classes. `encoder_hidden_states` must be None. Raises ConfigError for
        other inputs.
        """
        # check the conditions
        if encoder_hidden_states is not None:
            raise ConfigError("encoder_hidden_states must be None: this network takes no text, only class_labels")
        if (self.class_embedding is None) != (class_labels is None):
            expected = "None: this network has no class embedding" if self.class_embedding is None else "given"
            raise ConfigError(f"class_labels must be {expected} (num_class_embeds={self.config['num_class_embeds']})")

        # embedding of time and class
        features = self.time_proj(as_timesteps(timestep, sample.device))                 # (B or 1, T)
        temb = self.time_embedding(features.to(sample.dtype))
        if self.class_embedding is not None:
            temb = temb + self.class_embedding(class_labels)
        temb = F.silu(temb)

        # residual blocks
        h = self.linear_in(sample)                                                       # (B, hidden)
        for block in self.blocks:
            h = block(h, temb)
        out = self.linear_out(F.silu(self.norm_out(h)))                                  # (B, dim)
        if not return_dict:
            return (out,)
        return SampleOutput(sample=out)


class MLPGenerator(ModelMixin):
    """Generator of points (B, dim) in model coordinates from latents z (B, latent_dim).

    `layers` hidden layers of `hidden` units with ReLU; 0 for an affine map, whose samples are Gaussian for Gaussian z.
    `norm` as in `DCGANGenerator`. The class of a conditional
    network is a one-hot vector joined to z. `data_mean` and `data_std` convert to data coordinates, as in
    `MLPDenoiser`. Raises ConfigError, naming the field, for impossible values.
    """

    _no_split_modules = SPECTRAL_LAYERS

    @register_to_config
    def __init__(
        self,
        dim: int = 2,
        hidden: int = 128,
        layers: int = 3,
        latent_dim: int = 16,
        num_classes: int | None = None,
        norm: Norm = "none",
        data_mean: Sequence[float] = (0.0, 0.0),
        data_std: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__()
        check_parts(self.config)
        check_coordinates(self.config)
        inputs = latent_dim + (num_classes or 0)
        self.body = perceptron(inputs, hidden, layers, norm, nn.ReLU())
        self.head = nn.Linear(hidden if layers else inputs, dim)

    def forward(
        self, z: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> SampleOutput | tuple[torch.Tensor]:
        """Return points (B, dim) in model coordinates from z (B, latent_dim), as `.sample` or as a tuple of one.

        `class_labels` (B,) are given exactly if the network is conditional; otherwise raises ConfigError.
        """
        sample = self.head(self.body(with_classes(z, class_labels, self.config["num_classes"])))
        if not return_dict:
            return (sample,)
        return SampleOutput(sample=sample)

    def first_layer(self) -> torch.Tensor:
        """Return the matrix (F, latent_dim) that the first layer multiplies z with, without the one-hot class.

        F: `hidden`, or `dim` of an affine map.
        """
        weight = cast(nn.Linear, [*self.body, self.head][0]).weight                    # (F, D + K)
        return weight[:, : self.config["latent_dim"]]


class MLPDiscriminator(ModelMixin):
    """Discriminator of points (B, dim): logits (B / pack,) that they are real, without sigmoid.

    `layers`: hidden layers of `hidden` units with LeakyReLU; 0 for a linear classifier, whose decision boundary is a
    line where `frequencies` is 0. `pack`, `minibatch_stddev`, `norm`: as in `DCGANDiscriminator`. `frequencies`: number
    of random waves sin(w.x), cos(w.x) joined to the input, |w| log-uniform from 1/2 to `max_frequency`. Without them an
    MLP learns fine structure slowly (Tancik et al. 2020). Raises ConfigError, naming the field, for impossible values.
    """

    _no_split_modules = SPECTRAL_LAYERS

    @register_to_config
    def __init__(
        self,
        dim: int = 2,
        hidden: int = 128,
        layers: int = 3,
        num_classes: int | None = None,
        norm: Norm = "none",
        pack: int = 1,
        minibatch_stddev: int = 0,
        frequencies: int = 0,
        max_frequency: float = 64.0,
    ) -> None:
        super().__init__()
        check_parts(self.config)
        require_int("frequencies", frequencies, low=0, high=2**16)
        require_number("max_frequency", max_frequency, 0.5)
        inputs = pack * (dim + (num_classes or 0))
        self.waves = Waves(inputs, frequencies, max_frequency) if frequencies else nn.Identity()
        features = inputs + 2 * frequencies
        self.body = perceptron(features, hidden, layers, norm, nn.LeakyReLU(0.2))
        self.head = linear((hidden if layers else features) + (minibatch_stddev > 1), 1, norm)

    def forward(
        self, x: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> LogitsOutput | tuple[torch.Tensor]:
        """Return logits (B / pack,) of points x (B, dim), as `.logits` or as a tuple of one.

        `class_labels` (B,) are given exactly if the network is conditional. Raises ConfigError for other labels, and
        for a batch that the pack and the group do not divide.
        """
        c = self.config
        x = packed(with_classes(x, class_labels, c["num_classes"]), c["pack"], c["minibatch_stddev"])
        logits = self.head(with_deviation(self.body(self.waves(x)), c["minibatch_stddev"])).flatten()
        if not return_dict:
            return (logits,)
        return LogitsOutput(logits=logits)


class Waves(nn.Module):
    """x (B, D) joined with sin(w.x) and cos(w.x) of `number` fixed random frequencies w, (B, D + 2 number)."""

    def __init__(self, dim: int, number: int, highest: float) -> None:
        super().__init__()
        directions = F.normalize(torch.randn(dim, number), dim=0)
        lengths = 0.5 * (2 * highest) ** torch.rand(number)
        self.w: torch.Tensor
        self.register_buffer("w", directions * lengths)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (B, D) joined with sines and cosines in [-1, 1], (B, D + 2 number)."""
        phase = x @ self.w
        return torch.cat([x, phase.sin(), phase.cos()], 1)


def perceptron(inputs: int, hidden: int, layers: int, norm: str, activation: nn.Module) -> nn.Sequential:
    """Return `layers` hidden layers of `hidden` units, each with normalisation `norm` and activation."""
    parts: list[nn.Module] = []
    for layer in range(layers):
        parts.append(linear(hidden if layer else inputs, hidden, norm))
        if norm == "batch":
            parts.append(nn.BatchNorm1d(hidden))
        elif norm == "layer":
            parts.append(nn.LayerNorm(hidden))
        parts.append(activation)
    return nn.Sequential(*parts)


def linear(inputs: int, outputs: int, norm: str) -> nn.Module:
    """Return a linear layer; for the `norm` "spectral" its weight is divided by its spectral norm."""
    layer = nn.Linear(inputs, outputs)
    return spectral_norm(layer) if norm == "spectral" else layer


def check_coordinates(config: Any) -> None:
    """Raise ConfigError, naming the field, unless data_mean and data_std define data coordinates."""
    mean, std = config["data_mean"], config["data_std"]
    for field, value in (("data_mean", mean), ("data_std", std)):
        fits = not isinstance(value, list | tuple) or len(value) == config["dim"]
        require(fits, field, value, f"one number for each of the {config['dim']} coordinates")
    for value in mean if isinstance(mean, list | tuple) else (mean,):
        require_number("data_mean", value, -1e30, 1e30)
    for value in std if isinstance(std, list | tuple) else (std,):
        require_number("data_std", value, 1e-30, 1e30)
