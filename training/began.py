"""BEGAN (Berthelot et al. 2017): the discriminator is an autoencoder, and k_t balances it with the generator."""

from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from hfgen.data.dataset import Dataset
from hfgen.errors import ConfigError
from hfgen.losses.adversarial import began_balance, began_convergence, began_d, began_g
from hfgen.models.began import BEGANDiscriminator
from hfgen.training.engine.recipe import side_or_sides
from hfgen.training.settings.gan import GANSettings

UNUSED: dict[str, Any] = {
    "class_conditional": False, "captions": False, "pack": 1, "minibatch_stddev": 0, "frequencies": 0,
    "gradient_penalty": 0.0, "r1": 0.0, "r2": 0.0, "clip": 0.0, "discriminator_norm": "none",
}  # fmt: skip
"""Fields that an autoencoder in the place of a discriminator does not have, and their values."""


def discriminator(s: GANSettings, dataset: Dataset) -> BEGANDiscriminator:
    """Return the autoencoder for the dataset's shape. Raises ConfigError, naming the field, for other discriminators'
    settings."""
    # check the fields
    for name, value in UNUSED.items():
        if getattr(s, name) != value:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(s, name)}: the discriminator of --loss began is an "
                              f"autoencoder, which has only {value}")  # fmt: skip
    for name, (low, high) in {"gamma": (0.0, 1.0), "lambda_k": (0.0, 1.0)}.items():
        if not low <= getattr(s, name) <= high:
            raise ConfigError(f"--{name.replace('_', '-')} must be in [{low:g}, {high:g}], got {getattr(s, name)}")
    # build it for points or images
    size: dict[str, Any] = {"width": s.width, "code_dim": s.code_dim}
    if len(dataset.shape) == 1:
        return BEGANDiscriminator(dim=dataset.shape[0], layers=s.layers, **size)
    return BEGANDiscriminator(
        side_or_sides(dataset), dataset.shape[0], base_size=s.base_size, extra_layers=s.discriminator_extra_layers,
        **size,
    )  # fmt: skip


class Balance(nn.Module):
    """The objective of BEGAN, with k_t and the sums for the mean of M_global.

    k_t and M_global are functions of the means over the global batch, however it is divided. The buffers are part of
    every checkpoint, the same on all processes, and restored after a step that was not finite.
    """

    k: Tensor
    convergence: Tensor
    steps: Tensor

    def __init__(self, gamma: float, lambda_k: float) -> None:
        super().__init__()
        self.gamma, self.lambda_k = gamma, lambda_k
        for name in ("k", "convergence", "steps"):
            self.register_buffer(name, torch.zeros(()))
        self._pending: dict[str, list[Tensor]] = {"real": [], "fake": []}            # errors in this step and process

    def d(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the discriminator's loss with the present k, a scalar, of outputs -L(v), each of any shape."""
        self._pending["real"].append(-real.detach().float().mean())
        return began_d(real, fake, self.k)

    def g(self, fake: Tensor, real: Tensor) -> Tensor:
        """Return the generator's loss, a scalar, of outputs -L(G(z)) of any shape."""
        self._pending["fake"].append(-fake.detach().float().mean())
        return began_g(fake)

    def verdict(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean outputs, -L(x) and -L(G(z))."""
        return real.float().mean(), fake.float().mean()

    @torch.no_grad()
    def update(self) -> None:
        """Move k by the errors of this step on all processes; called after the generator's optimiser step."""
        # take the means over micro-batches and processes
        means = [torch.stack(errors).mean() for errors in self._pending.values()]
        self._pending = {"real": [], "fake": []}
        real, fake = reduce(torch.stack(means), "mean")
        # move k, and sum the convergence
        k, convergence = self.k.clone(), began_convergence(real, fake, self.gamma)
        finite = convergence.isfinite()
        self.k.copy_(torch.where(finite, began_balance(k, real, fake, self.gamma, self.lambda_k), k))
        self.convergence.add_(torch.where(finite, convergence, 0.0))
        self.steps.add_(finite)

    def fetch(self) -> dict[str, float]:
        """Return k now, and the mean of M_global over the steps since the last fetch; {} without a step."""
        steps = float(self.steps)
        if not steps:
            return {}
        numbers = {"k": float(self.k), "M_global": float(self.convergence) / steps}
        self.convergence.zero_()
        self.steps.zero_()
        return numbers
