"""Helpers of several tests of pipelines: stock's DDIM loop, texts, edited and hostile files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from hfgen.models.text import build_tokenizer, token_ids

TOKENIZER = build_tokenizer(["a red circle", "a blue square on white"])


def features(pipe: Any, *texts: str) -> Tensor:
    """Return the features that the pipeline's text encoder, which reads `TOKENIZER`, gives texts."""
    with torch.no_grad():
        return pipe.text_encoder(input_ids=token_ids(TOKENIZER, list(texts))).last_hidden_state


def with_ddim(pipe: Any) -> Any:
    """Return the pipeline with diffusers' DDIM scheduler put in, as its users do."""
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe


def reference(pipe: Any, x: Tensor, steps: int, predict: Callable[[Tensor, Tensor], Tensor], skip: int = 0) -> Tensor:
    """Return x_0 of diffusers' DDIM scheduler, driven as its documentation says."""
    scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps[skip:]:
            x = scheduler.step(predict(x, t), t, x).prev_sample
    return x


def last(states: Any) -> Tensor:
    """Return the last of a pipeline's states."""
    return list(states)[-1]


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; a value of ... drops the key."""
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in config.items() if value is not ...}
    path.write_text(json.dumps(kept), encoding="utf-8")


class Evil:
    """A pickle that creates a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")
