"""Losses: tensors in, tensors out. Modules are imported at their first use."""

from types import ModuleType
from typing import TYPE_CHECKING

from hfgen.registry import submodule

if TYPE_CHECKING:
    from hfgen.losses import adversarial as adversarial
    from hfgen.losses import diffusion as diffusion
    from hfgen.losses import elbo as elbo
    from hfgen.losses import orthogonal as orthogonal
    from hfgen.losses import perceptual as perceptual
    from hfgen.losses import sparsity as sparsity

__all__ = [
    "adversarial", "diffusion", "elbo", "orthogonal", "perceptual", "sparsity",
]  # fmt: skip


if not TYPE_CHECKING:                                                # static tools have the names above

    def __getattr__(name: str) -> ModuleType:
        return submodule(__name__, __all__, name)


def __dir__() -> list[str]:
    return __all__
