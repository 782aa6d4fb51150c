"""The U-Net of denoising diffusion: a picture and a time in, a picture of the same size out."""


import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput

from hfgen.config import ConfigMixin
from hfgen.models.blocks import (
    ACTIVATIONS,
    Attention,
    BlockSettings,
    Downsample,
    GroupNorm,
    ResnetBlock,
    SinusoidalFeatures,
    TimestepEmbedding,
    Upsample,
    as_timesteps,
)


class DownBlock(nn.Module):
    def __init__(self, in_channels, out_channels, layers, attend, halve, settings, s):
        super().__init__()
        self.resnets = nn.ModuleList()
        self.attentions = nn.ModuleList()
        for _ in range(layers):
            self.resnets.append(ResnetBlock(in_channels, out_channels, settings))
            self.attentions.append(Attention(out_channels, settings.groups, settings.eps, settings.head_dim) if attend else nn.Identity())
            in_channels = out_channels
        self.downsamplers = nn.ModuleList([halve] if halve else [])

    def forward(self, h, temb, skips):
        for resnet, attend in zip(self.resnets, self.attentions):
            h = attend(resnet(h, temb))
            skips.append(h)
        for halve in self.downsamplers:
            h = halve(h, temb)
            skips.append(h)
        return h

class MidBlock(nn.Module):
    def __init__(self, channels, attend, groups, settings, scale):
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, settings, scale) for _ in range(2)])
        self.attentions = nn.ModuleList([Attention(channels, groups, settings.eps, settings.head_dim, scale) if attend else nn.Identity()])
    def forward(self, h, temb):
        return self.resnets[1](self.attentions[0](self.resnets[0](h, temb)), temb)

class UpBlock(nn.Module):
    def __init__(self, in_channels, skip_channels, out_channels, layers, attend, double, settings):
        super().__init__()
        self.resnets = nn.ModuleList()
        self.attentions = nn.ModuleList()
        for _ in range(layers):
            self.resnets.append(ResnetBlock(in_channels + skip_channels.pop(), out_channels, settings))
            self.attentions.append(Attention(out_channels, settings.groups, settings.eps, settings.head_dim) if attend else nn.Identity())
            in_channels = out_channels
        self.upsamplers = nn.ModuleList([double] if double else [])

    def forward(self, h, temb, skips):
        for resnet, attend in zip(self.resnets, self.attentions):
            h = attend(resnet(torch.cat((h, skips.pop()), dim=1), temb))
        for double in self.upsamplers:
            h = double(h, temb)
        return h

class UNet(ModelMixin, ConfigMixin):
    FORMAT = torch.channels_last
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
    ):
        super().__init__()
        C0 = block_out_channels[0]
        tdim = time_embedding_dim or 4 * C0
        s = BlockSettings(tdim, norm_num_groups, norm_eps, ACTIVATIONS[act_fn], dropout, resnet_time_scale_shift == "scale_shift", attention_head_dim)
        self.act = s.act
        self.conv_in = nn.Conv2d(in_channels, C0, 3, padding=1)
        self.time_proj = SinusoidalFeatures(C0, flip_sin_to_cos, freq_shift)
        self.time_embedding = TimestepEmbedding(C0, tdim)
        self.down_blocks = nn.ModuleList()
        c = C0
        skips = [c]
        for i, (t, out) in enumerate(zip(down_block_types, block_out_channels)):
            last = i == len(block_out_channels) - 1
            self.down_blocks.append(DownBlock(c, out, layers_per_block, t.startswith("Attn"), None if last else Downsample(out, downsample_padding), s, None))
            c = out
            skips += [c] * (layers_per_block + (not last))
        self.mid_block = MidBlock(c, add_attention, norm_num_groups, s, 1)
        self.up_blocks = nn.ModuleList()
        for i, (t, out) in enumerate(zip(up_block_types, block_out_channels[::-1])):
            last = i == len(block_out_channels) - 1
            self.up_blocks.append(UpBlock(c, skips, out, layers_per_block + 1, t.startswith("Attn"), None if last else Upsample(out), s))
            c = out
        self.conv_norm_out = GroupNorm(norm_num_groups, C0, norm_eps)
        self.conv_out = nn.Conv2d(C0, out_channels, 3, padding=1)

    def forward(self, sample, timestep, class_labels=None, encoder_hidden_states=None, return_dict=True):
        t = as_timesteps(timestep, sample.device)
        temb = self.act(self.time_embedding(self.time_proj(t).to(self.dtype)))
        h = self.conv_in(sample).contiguous(memory_format=self.FORMAT)
        skips = [h]
        for block in self.down_blocks:
            h = block(h, temb, skips)
        h = self.mid_block(h, temb)
        for block in self.up_blocks:
            h = block(h, temb, skips)
        h = self.conv_out(F.silu(self.conv_norm_out(h))).contiguous()
        return UNet2DOutput(sample=h) if return_dict else (h,)
