"""Layers whose weight is divided by its largest singular value (Miyato et al. 2018, section 2.1)."""

from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrizations

Layer = TypeVar("Layer", bound=nn.Module)


class SpectralWeight(nn.Module):
    """Base of layers whose weight is computed from a parameter of torch's parametrisation.

    torch gives each parametrised layer a class of its own, which cannot be pickled. Here the classes have names, and
    the state dict keeps torch's keys.
    """

    parametrizations: Any

    @property
    def weight(self) -> Tensor:
        """Return W / sigma(W), in the shape of W; in training mode each access moves the estimate of sigma."""
        weight: Tensor = self.parametrizations.weight()
        return weight

    @weight.setter
    def weight(self, value: Tensor) -> None:
        self.parametrizations.weight.right_inverse(value)


class SpectralLinear(SpectralWeight, nn.Linear):
    """Linear layer with spectral normalisation."""


class SpectralConv2d(SpectralWeight, nn.Conv2d):
    """Convolution with spectral normalisation."""


class SpectralConvTranspose2d(SpectralWeight, nn.ConvTranspose2d):
    """Fractionally-strided convolution with spectral normalisation."""


SPECTRAL: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: SpectralLinear,
    nn.Conv2d: SpectralConv2d,
    nn.ConvTranspose2d: SpectralConvTranspose2d,
}


SPECTRAL_LAYERS = tuple(kind.__name__ for kind in SPECTRAL.values())
"""Names of layers whose tensors must be on one device."""


def spectral_norm(layer: Layer) -> Layer:
    """Return the layer, changed in place, with its weight divided by torch's estimate of its spectral norm."""
    kind: Any = SPECTRAL[type(layer)]
    parametrizations.spectral_norm(layer)
    layer.__class__ = kind
    return layer
