"""Metrics: tensors in, numbers out. Modules are imported at their first use."""

from types import ModuleType
from typing import TYPE_CHECKING

from hfgen.registry import submodule

if TYPE_CHECKING:
    from hfgen.metrics import bootstrap as bootstrap
    from hfgen.metrics import codes as codes
    from hfgen.metrics import cost as cost
    from hfgen.metrics import disentanglement as disentanglement
    from hfgen.metrics import distances as distances
    from hfgen.metrics import features as features
    from hfgen.metrics import halving as halving
    from hfgen.metrics import likelihood as likelihood
    from hfgen.metrics import memorisation as memorisation
    from hfgen.metrics import modes as modes
    from hfgen.metrics import prdc as prdc
    from hfgen.metrics import reconstruction as reconstruction
    from hfgen.metrics import runge_kutta as runge_kutta
    from hfgen.metrics import translation as translation
    from hfgen.metrics import usefulness as usefulness
    from hfgen.metrics import vision as vision

__all__ = [
    "bootstrap", "codes", "cost", "disentanglement", "distances", "features", "halving", "likelihood",
    "memorisation", "modes", "prdc", "reconstruction", "runge_kutta", "translation", "usefulness", "vision",
]  # fmt: skip


if not TYPE_CHECKING:                                                # static tools have the names above

    def __getattr__(name: str) -> ModuleType:
        return submodule(__name__, __all__, name)


def __dir__() -> list[str]:
    return __all__
