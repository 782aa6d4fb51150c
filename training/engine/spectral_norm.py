"""Spectral norms of networks in training: one power iteration for each optimisation, not for each forward pass."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList


class PowerIterations:
    """The normalised weights of some networks, whose estimates of the largest singular value move in `advance`.

    torch moves them whenever a network in training is called (Miyato et al. 2018, algorithm 1, has once a step). A step
    of several micro-batches would then differ from that of one, and one process from two.
    """

    def __init__(self, nets: Mapping[str, nn.Module]) -> None:
        self._of = {name: normalised_weights(net) for name, net in nets.items()}

    @torch.no_grad()
    def advance(self, trained: Iterable[str]) -> None:
        """Move the estimates of the networks `trained` by one iteration; until the next call, all of them stay."""
        for name, weights in self._of.items():
            for weight in weights:
                if name in trained:
                    weight.train()
                    weight()                                        # in training mode this moves the estimate
                weight.eval()


def normalised_weights(net: nn.Module) -> list[ParametrizationList]:
    """Return the weights of a network that have a parametrisation, such as spectral norm."""
    return [module for module in net.modules() if isinstance(module, ParametrizationList)]
