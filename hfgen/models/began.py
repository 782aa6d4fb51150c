"""The discriminator of BEGAN: an autoencoder, whose error says how far a sample is from those that it knows."""

from typing import Any

from torch import Tensor, nn

from hfgen.checks import require, require_int, require_size
from hfgen.errors import ConfigError
from hfgen.loading.config import register_to_config
from hfgen.loading.mixins import ModelMixin
from hfgen.models.dcgan import stages_of
from hfgen.models.outputs import LogitsOutput


class BEGANDiscriminator(ModelMixin):
    """Discriminator that is an autoencoder D: its outputs are -L(v), (B,), with L(v) = |v - D(v)|, the mean absolute
    error over the dimensions of v (Berthelot et al. 2017, section 3.1 and fig. 1).

    Images (B, C, H, W): 3x3 convolutions with ELU. Each stage of the encoder halves the sides by a stride of 2 and adds
    `width` channels, down to sides of about `base_size`; a linear layer gives a code of `code_dim` numbers. The decoder
    has `width` channels throughout, and doubles the sides by repeating pixels. `extra_layers`: number of further
    convolutions in each stage. Points (B, `dim`), where `dim` is given: `layers` hidden layers of `width` units before
    and behind the code; `resolution`, `channels`, `extra_layers` and `base_size` are not used. Raises ConfigError,
    naming the field, for impossible values.
    """

    _no_split_modules: tuple[str, ...] = ()

    @register_to_config
    def __init__(
        self,
        resolution: int | tuple[int, int] = 64,
        channels: int = 3,
        dim: int | None = None,
        width: int = 64,
        code_dim: int = 64,
        layers: int = 3,
        extra_layers: int = 0,
        base_size: int = 8,
    ) -> None:
        super().__init__()
        check_config(self.config)
        if dim is not None:
            self.shape: tuple[int, ...] = (dim,)
            down, up = perceptrons(dim, width, layers, code_dim)
        else:
            self.shape = (channels, *require_size("resolution", resolution))
            stages, base = stages_of(resolution, base_size)
            down, up = convolutions(channels, width, code_dim, stages, base, extra_layers)
        self.encoder, self.decoder = nn.Sequential(*down), nn.Sequential(*up)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return D(x), of the shape of x, not clipped, of images (B, C, H, W) in [-1, 1] or points (B, dim).

        Raises ConfigError for another shape.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ConfigError(f"x must have shape (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        return self.decoder(self.encoder(x))

    def forward(
        self, x: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> LogitsOutput | tuple[Tensor]:
        """Return -L(x), (B,) <= 0, of images or points x as `.logits` or as a tuple of one; `class_labels`: None."""
        require(class_labels is None, "class_labels", class_labels, "None: this network has no classes")
        logits = -(x.float() - self.reconstruct(x).float()).abs().flatten(1).mean(1)     # (B,)
        if not return_dict:
            return (logits,)
        return LogitsOutput(logits=logits)


def perceptrons(dim: int, width: int, layers: int, code_dim: int) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the layers from points (B, dim) to codes (B, code_dim), and those back."""
    down, up = list[nn.Module](), list[nn.Module]()
    for layer in range(layers):
        down += [nn.Linear(width if layer else dim, width), nn.ELU()]
        up += [nn.Linear(width if layer else code_dim, width), nn.ELU()]
    return [*down, nn.Linear(width if layers else dim, code_dim)], [*up, nn.Linear(width if layers else code_dim, dim)]


def convolutions(
    channels: int, width: int, code_dim: int, stages: int, base: tuple[int, int], extra: int
) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the layers from images (B, C, H, W) to codes (B, code_dim), and those back."""
    # encoder: add channels and halve the sides
    down = conv(channels, width)
    for stage in range(1, stages + 1):
        down += same(width * stage, 1 + extra) + conv(width * stage, width * (stage + 1), stride=2)
    last = width * (stages + 1)
    down += [*same(last, 1 + extra), nn.Flatten(), nn.Linear(last * base[0] * base[1], code_dim)]
    # decoder: double the sides
    up: list[nn.Module] = [nn.Linear(code_dim, width * base[0] * base[1]), nn.Unflatten(1, (width, *base))]
    for _ in range(stages):
        up += [*same(width, 2 + extra), nn.Upsample(scale_factor=2.0)]
    return down, [*up, *same(width, 2 + extra), nn.Conv2d(width, channels, 3, padding=1)]


def conv(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """Return a 3x3 convolution and ELU, which keep the variance of their input (He et al. 2015, eq. 10)."""
    layer = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return [layer, nn.ELU()]


def same(channels: int, number: int) -> list[nn.Module]:
    """Return `number` 3x3 convolutions with as many input as output channels, each with ELU."""
    return [part for _ in range(number) for part in conv(channels, channels)]


def check_config(config: Any) -> None:
    """Raise ConfigError, naming the field, for impossible settings of a BEGAN discriminator."""
    sizes = {"channels": 2**10, "width": 2**14, "code_dim": 2**16, "base_size": 16}
    for field, high in sizes.items():
        require_int(field, config[field], high=high)
    for field, high in {"layers": 2**8, "extra_layers": 16}.items():
        require_int(field, config[field], low=0, high=high)
    if config["dim"] is not None:
        require_int("dim", config["dim"], high=2**12)
    else:
        require_size("resolution", config["resolution"])
