"""Outputs of networks: dictionaries with fields, as in diffusers; `return_dict=False` gives a tuple of the same values.

Every field but the first has the default None, because accelerate builds an output anew from a dictionary of all.
"""

from dataclasses import dataclass
from typing import Any

from diffusers.utils import BaseOutput
from torch import Tensor


@dataclass
class SampleOutput(BaseOutput):
    """Images (B, C, H, W) in [-1, 1] or points (B, dim), in `sample`."""

    sample: Tensor


@dataclass
class LogitsOutput(BaseOutput):
    """Logits in `logits`: of a discriminator (B / pack,) or of its patches (B, 1, h, w), of a classifier (B, K), of
    the entries of images (B, n, V)."""

    logits: Tensor


@dataclass
class LogProbOutput(BaseOutput):
    """Log-probabilities of the entries of images, `log_prob` (B, n) <= 0, in nats."""

    log_prob: Tensor


@dataclass
class FlowOutput(BaseOutput):
    """Latents (B, C, H, W) of images under a normalizing flow, `latents`, and the log-density, `log_prob` (B,), in
    nats."""

    latents: Tensor
    log_prob: Any = None


@dataclass
class AutoencoderOutput(BaseOutput):
    """Reconstructed images (B, C, H, W) in [-1, 1], `sample`, and their codes (B, D), `latents`."""

    sample: Tensor
    latents: Any = None


@dataclass
class Terms(BaseOutput):
    """Terms of the bounds on log p(x), in nats, for B items and k draws z ~ q(z|x).

    `log_px_z` (B, k): log p(x|z_1). `log_ratio` (B, k): log q(z|x) - log p(z), over all layers. `kl`: E[log q - log p]
    of each layer, from the data up, by dimension, (B, 1 or k, D_l); exact for the last layer, a draw for the others. If
    q(z|x) is a flow, it is a draw of all dimensions together, (B, k, 1).
    """

    log_px_z: Tensor
    log_ratio: Any = None
    kl: Any = None

    @property
    def log_weights(self) -> Tensor:
        """Return log w = log p(x, z) - log q(z|x) in nats, (B, k)."""
        return self.log_px_z - self.log_ratio
