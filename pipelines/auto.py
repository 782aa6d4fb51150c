"""Loading of any saved pipeline."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from hfgen import hub, safe_load
from hfgen.pipelines.base import Pipeline
from hfgen.registry import MODULES


class AutoPipeline:
    """Loader of pipelines: finds the class of a pipeline folder, a run folder or a Hub id. It has no instances."""

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        variant: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> Pipeline:
        """Return the pipeline saved in `model`, of any class; arguments and errors as in `Pipeline.from_pretrained`."""
        folder = hub.resolve(model, revision, subfolder, cache_dir, local_files_only, token, variant)
        name, _ = safe_load.read_index(folder)
        pipeline: Any = getattr(import_module(MODULES[name]), name)
        return pipeline.from_pretrained(folder, variant=variant, dtype=dtype, device=device)
