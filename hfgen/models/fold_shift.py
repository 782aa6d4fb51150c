"""An autoencoder whose 1 x 1 convolutions normalise its latents, for code that knows a `scaling_factor` alone."""

import torch
import torch.nn as nn
from torch import Tensor

from hfgen.models.autoencoder_kl import AutoencoderKL


@torch.no_grad()
def fold_shift(vae: AutoencoderKL) -> AutoencoderKL:
    """Return an autoencoder with the same normalised latents and images, without `shift_factor` and `latents_mean`.

    Stable Diffusion's pipelines compute scale z and no shift. With the channel means m and deviations s of z (s = 1 for
    a `shift_factor` m), z' = (z - m) / s comes from the last convolution of the encoder and s z' + m from the first of
    the decoder; both are added, as identities, where they are missing. The tensors of other layers are shared with
    `vae`, which is returned itself if there is nothing to fold.
    """
    c = vae.config
    if not c["shift_factor"] and c["latents_mean"] is None:
        return vae
    # mean and deviation of z, (D,)
    D = c["latent_channels"]
    like = next(vae.parameters())
    mean, std = like.new_full((D,), c["shift_factor"] or 0.0), like.new_ones(D)
    if c["latents_mean"] is not None:
        mean, std = like.new_tensor(c["latents_mean"]), like.new_tensor(c["latents_std"])
    # the same network, with both convolutions
    changed = {"shift_factor": None, "latents_mean": None, "latents_std": None}
    settings = {key: value for key, value in c.items() if not key.startswith("_")} | changed
    with torch.device("meta"):
        folded = AutoencoderKL(**{**settings, "use_quant_conv": True, "use_post_quant_conv": True})
    # mu' = (mu - m) / s and log sigma'^2 = log sigma^2 - 2 log s
    tensors = dict(vae.state_dict())
    weight, bias = _weights(vae.quant_conv, 2 * D, like)
    scale = torch.cat([1 / std, torch.ones_like(std)])
    shift = torch.cat([-mean / std, -2 * std.log()])
    tensors |= {"quant_conv.weight": weight * scale[:, None, None, None], "quant_conv.bias": bias * scale + shift}
    # the decoder's input for z = s z' + m
    weight, bias = _weights(vae.post_quant_conv, D, like)
    tensors["post_quant_conv.weight"] = weight * std[:, None, None]
    tensors["post_quant_conv.bias"] = bias + weight.flatten(1) @ mean
    folded.load_state_dict(tensors, assign=True)
    return folded.train(vae.training).requires_grad_(like.requires_grad)


def _weights(conv: nn.Conv2d | None, channels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight (C, C, 1, 1) and bias (C,) of a 1 x 1 convolution; those of the identity for None."""
    if conv is not None:
        assert conv.bias is not None
        return conv.weight, conv.bias
    identity = torch.eye(channels, dtype=like.dtype, device=like.device)
    return identity[:, :, None, None], like.new_zeros(channels)
