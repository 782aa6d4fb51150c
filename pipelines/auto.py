"""Loading of any saved pipeline."""

from pathlib import Path

import torch

from hfgen.loading import components
from hfgen.loading.resolve import HubOptions, resolve
from hfgen.pipelines.base import Pipeline


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
        folder = resolve(model, HubOptions(revision, subfolder, cache_dir, local_files_only, token, variant))
        return components.pipeline_class(folder).from_pretrained(folder, variant=variant, dtype=dtype, device=device)
