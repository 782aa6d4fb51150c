"""Orthogonal regularisation: the filters of each layer are kept at right angles to each other (Brock et al. 2019)."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def orthogonal_penalty(matrices: Iterable[Tensor]) -> Tensor:
    """Return the sum over W of |W W^T * (1 - I)|_F^2, * elementwise, rows of W (F, N) being filters: a scalar >= 0.

    Brock et al. 2019, eq. 3, where filters are columns: inner products of different filters; their lengths are free.
    """
    total = torch.zeros(())
    for W in matrices:
        gram = W.float() @ W.float().T                                                   # (F, F)
        total = total.to(gram) + (gram - gram.diagonal().diag()).square().sum()
    return total


def filters(net: nn.Module) -> Iterator[Tensor]:
    """Yield the trained weight of each linear layer and convolution of a network as a matrix (F, N) of F filters.

    Of a layer with spectral normalisation it is the weight before the division.
    """
    for layer in net.modules():
        if not isinstance(layer, LAYERS):
            continue
        # take the parameter
        parameters = {name.removeprefix("parametrizations."): p for name, p in layer.named_parameters()}
        weight: Tensor = parameters["weight" if "weight" in parameters else "weight.original"]
        # put filters first
        if isinstance(layer, nn.ConvTranspose2d):
            weight = weight.transpose(0, 1)
        yield weight.flatten(1)
