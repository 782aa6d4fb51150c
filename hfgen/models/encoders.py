"""Encoders of trained autoencoders and variational autoencoders, on whose codes a classifier is built."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from hfgen.checks import require, require_size
from hfgen.models.autoencoder import Autoencoder
from hfgen.models.vae import VAE, HierarchicalVAE

SOURCES: dict[str, Any] = {cls.__name__: cls for cls in (Autoencoder, VAE, HierarchicalVAE)}
"""Networks by name whose encoders are used."""


def encoder_settings(source: nn.Module) -> dict[str, Any]:
    """Return the settings of `Encoder` for a network of `SOURCES`: the name of its class, and its own settings."""
    own: Any = source
    return {"name": type(source).__name__} | {key: own.config[key] for key in signature(type(source)).parameters}


class Encoder(nn.Module):
    """The encoder of an autoencoder or VAE: codes (B, `size`) of images (B, C, H, W) in [-1, 1].

    The codes of a VAE are the means of q(z_1|x). `settings`: those of `encoder_settings`. Raises ConfigError, naming
    the field, for impossible settings, and for those of a network that is conditioned on classes or of points.
    """

    def __init__(self, settings: Any) -> None:
        super().__init__()
        # build the network
        require(isinstance(settings, Mapping), "encoder", settings, "a mapping of settings")
        name = settings.get("name")
        require(isinstance(name, str) and name in SOURCES, "encoder name", name, f"one of {tuple(SOURCES)}")
        own = {key: value for key, value in settings.items() if key != "name"}
        known = set(signature(SOURCES[name]).parameters)
        require(set(own) <= known, "encoder", sorted(set(own) - known), f"settings of {name}")
        for field in ("num_classes", "dim"):
            require(own.get(field) is None, f"encoder {field}", own.get(field), "None")
        source: Any = SOURCES[name](**own)
        # keep the layers of its encoder
        c = source.config
        self.shape = (c["channels"], *require_size("resolution", c["resolution"]))
        self.size: int = c["latent_dims"][0] if "latent_dims" in c else c["latent_dim"]
        self.flat = c["body"] == "mlp"
        self.layers = source.encoder
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(self.shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return the codes (B, size) of images x (B, C, H, W) in [-1, 1]."""
        h = x - self.centre
        if self.flat:
            h = h.flatten(1)
        return self.layers(h)[:, : self.size]

    @torch.no_grad()
    def start_from(self, source: nn.Module) -> None:
        """Take the weights of the encoder of `source`, which has these settings."""
        trained: Any = source
        self.layers.load_state_dict(trained.encoder.state_dict())
        if isinstance(source, VAE | HierarchicalVAE):
            self.centre.copy_(source.centre)

