"""Loading of any saved pipeline."""

from pathlib import Path
from typing import Any

import torch

from hfgen.loading import components
from hfgen.loading.keywords import Dtype
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
        force_download: bool = False,
        token: str | bool | None = None,
        dtype: Dtype = None,
        torch_dtype: Dtype = None,
        device: str | torch.device | None = None,
        device_map: str | torch.device | dict[str, Any] | None = None,
        **others: Any,
    ) -> Pipeline:
        """Return the pipeline saved in `model`, of any class; arguments and errors as in `Pipeline.from_pretrained`."""
        hub = HubOptions(revision, subfolder, cache_dir, local_files_only, token, variant, force_download)
        folder = resolve(model, hub)
        found: Pipeline = components.pipeline_class(folder).from_pretrained(
            folder, variant=variant, dtype=dtype, torch_dtype=torch_dtype, device=device, device_map=device_map,
            **others,
        )  # fmt: skip
        return found
