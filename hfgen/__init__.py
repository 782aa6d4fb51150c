"""hfgen: train, judge, share and sample generative models in the manner of the Hugging Face stack.

Names are imported at first use, so that `import hfgen` is fast.
"""

from importlib import import_module
from typing import Any
from warnings import filterwarnings

from hfgen.registry import MODULES

filterwarnings("ignore", message="IProgress not found")          # tqdm in a notebook without ipywidgets: bars are text

__version__ = "0.1.0"
__all__ = sorted([*MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module 'hfgen' has no attribute {name!r}; it has {', '.join(sorted(MODULES))}")
    return getattr(import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
