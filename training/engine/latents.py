"""A dataset of latents: images encoded once, kept beside the run, and read again as long as nothing has changed."""

import copy
import hashlib
import json
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hfgen.data.dataset import Batch, Dataset, fingerprint_of
from hfgen.data.order import Ints, uniforms
from hfgen.errors import CheckpointError, ConfigError
from hfgen.loading import components
from hfgen.loading.given import object_of
from hfgen.loading.resolve import resolve_component
from hfgen.logging import warn
from hfgen.models.autoencoder_kl import AutoencoderKL

SHARD, BATCH_SIZE = 4096, 128
"""Images in a file, after each of which an interrupted encoding goes on; images that are encoded at once."""

OFF = 0.05
"""How far the mean of all latents may be from 0, and their variance from 1, before a run warns."""

Part = tuple[Tensor, Tensor]
"""Means and standard deviations of latents."""


class Latents(Dataset):
    """Latents of mean 0 and variance 1: q(z|x) of every image, as means and standard deviations (N, F, D, h, w).

    F is 2 with mirrored copies, of which a batch has one, as a function of (seed, epoch, index); else 1. Beside the
    means, `x`, a batch has `std`, so that z ~ q(z|x) is drawn at every step.
    """

    def __init__(self, source: Dataset, mean: Tensor, std: Tensor, key: str) -> None:
        self.name, self.shape = f"latents of {source.name}", tuple(mean.shape[2:])
        self.num_classes, self.class_names, self._labels = source.num_classes, source.class_names, source.labels()
        self.captions, self.fingerprint = source.captions, key
        self._mean, self._std = mean, std

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._mean)

    def describe(self) -> str:
        """Return e.g. `latents of digits: 1,797 of 2x4x4, 10 classes`."""
        classes = f", {self.num_classes} classes" if self.num_classes else ""
        return f"{self.name}: {len(self):,} of {'x'.join(map(str, self.shape))}{classes}"

    def tensor(self, n: int | None = None) -> Tensor:
        """Return the means of the first `n` latents, not mirrored, (n, D, h, w) float32. Default: all."""
        return self._mean[:n, 0]

    def labels(self) -> Tensor | None:
        """Return the labels of all images in order, (N,) int64 from 0 on; None without labels."""
        return self._labels

    def take(self, seed: int, epochs: Ints, indices: Ints, device: torch.device) -> Batch:
        """Return the batch of the images `indices`, mirrored by f(seed, epoch, index)."""
        # take means and deviations of one side each
        rows = torch.from_numpy(indices)
        side = torch.from_numpy(uniforms(seed, epochs, indices, "flip") * self._mean.shape[1]).long()
        batch: Batch = {"x": self._mean[rows, side].to(device), "std": self._std[rows, side].to(device)}
        # add the conditions
        if self._labels is not None:
            batch["label"] = self._labels[rows].to(device)
        if self.captions is not None:
            batch["caption"] = [self.captions[i] for i in indices]
        return batch


def encoded(source: Dataset, vae: AutoencoderKL, flip: bool, folder: Path) -> Latents:
    """Return the latents of all images of `source`, which must not mirror any, from the files in `folder`.

    Files that are missing, cut short, or changed are encoded first, by one process. Files that belong to
    other images, or to an autoencoder with other weights, are a CheckpointError. Warns where the latents are not of
    mean 0 and variance 1, as of an autoencoder that was measured on other images.
    """
    # read each shard, or encode it in the first process
    key = fingerprint_of("latents", source.fingerprint, weights_hash(vae), flip)
    parts = []
    with PartialState().main_process_first():
        for start in range(0, len(source), SHARD):
            part = _read(_file(folder, start), key)
            if part is None:
                if not PartialState().is_main_process:
                    raise CheckpointError(f"{_file(folder, start)}: was there a moment ago and is gone")
                part = _encode(source, vae, flip, start)
                _write(_file(folder, start), part, key)
            parts.append(part)
    # check and join them
    if PartialState().is_main_process:
        _check_standard(source.name, parts)
    mean, std = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Latents(source, mean, std, key)


def load_autoencoder(model: str) -> AutoencoderKL:
    """Return the autoencoder of a run or a pipeline (its `vae`), or that which a folder or a Hub id is alone.

    The name of a Python object stands for a pipeline or an AutoencoderKL, of which a copy is returned. Raises
    ConfigError for any other object.
    """
    # copy that of an object
    given = object_of(model)
    if given is not None:
        part = getattr(given, "vae", given)
        if not isinstance(part, AutoencoderKL):
            raise ConfigError(f"autoencoder must be a name, an AutoencoderKL or a pipeline with one, got {given!r:.80}")
        return copy.deepcopy(part).eval().requires_grad_(False)
    # load that of a folder
    vae: AutoencoderKL = components.load_component(
        resolve_component(model, "vae"), "", AutoencoderKL, "AutoencoderKL"
    )
    return vae.requires_grad_(False)


def weights_hash(vae: AutoencoderKL) -> str:
    """Return the sha256 of all weights and settings of an autoencoder, whatever version of a library it is from."""
    settings = {key: value for key, value in json.loads(vae.to_json_string()).items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()


def mean_and_variance(parts: Iterable[Part]) -> tuple[float, float]:
    """Return mean and variance of z ~ N(mu, sigma^2), given in parts (mu, sigma), over all its numbers.

    Var z = E mu^2 + E sigma^2 - (E mu)^2, so that nothing has to be drawn.
    """
    mean = square = torch.zeros((), dtype=torch.float64)
    count = 0
    for part in parts:
        mu, sigma = part[0].cpu().double(), part[1].cpu().double()
        mean, square, count = mean + mu.sum(), square + mu.square().sum() + sigma.square().sum(), count + mu.numel()
    return float(mean / count), max(0.0, float(square / count - (mean / count) ** 2))


def _check_standard(name: str, parts: list[Part]) -> None:
    """Warn unless the latents have mean 0 and variance 1, which their diffusion starts from."""
    chunks = (zip(mean.split(BATCH_SIZE), std.split(BATCH_SIZE), strict=True) for mean, std in parts)
    mean, variance = mean_and_variance(chain.from_iterable(chunks))
    if abs(mean) > OFF or abs(variance - 1) > OFF:
        warn(
            f"{name}: the latents have mean {mean:.3f} and variance {variance:.3f}, not 0 and 1: shift_factor and "
            "scaling_factor in the autoencoder's config.json are not those of these images"
        )


@torch.no_grad()
def _encode(source: Dataset, vae: AutoencoderKL, flip: bool, start: int) -> Part:
    """Return means and standard deviations of up to 4,096 images, (n, F, D, h, w), as diffusion takes them."""
    # encode in batches
    means, stds = [], []
    stop = min(start + SHARD, len(source))
    for first in range(start, stop, BATCH_SIZE):
        x = _rows(source, first, min(first + BATCH_SIZE, stop))["x"]
        sides_of_x = [x, x.flip(-1)] if flip else [x]
        copies = [vae.to_moments(one.to(vae.device)) for one in sides_of_x]
        # stack both sides
        mean, std = (torch.stack(sides, 1).float().cpu() for sides in zip(*copies, strict=True))
        means.append(mean)
        stds.append(std)
    return torch.cat(means), torch.cat(stds)


def _rows(source: Dataset, first: int, stop: int) -> dict[str, Any]:
    indices = np.arange(first, min(stop, len(source)))
    return source.take(0, np.zeros_like(indices), indices, torch.device("cpu"))


def _file(folder: Path, start: int) -> Path:
    return folder / f"latents-{start:08d}.safetensors"


def _read(path: Path, key: str) -> Part | None:
    """Return the means and standard deviations in a file, None where it is missing or not as it was written.

    CheckpointError where it belongs to other data or weights.
    """
    # read the file
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as handle:
            found = handle.metadata() or {}
            part = handle.get_tensor("mean"), handle.get_tensor("std")
    except SafetensorError:
        return None
    # check that it is whole, and of these images
    if found.get("sha256") != _sha256(part, found.get("key", "")):
        return None
    if found["key"] != key:
        raise CheckpointError(f"{path}: holds latents of other images, or of an autoencoder with other weights; "
                              "use those it was made with, or a new folder")  # fmt: skip
    return part


def _write(path: Path, part: Part, key: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    tensors = {"mean": part[0].contiguous(), "std": part[1].contiguous()}
    save_file(tensors, temporary, metadata={"key": key, "sha256": _sha256(part, key)})
    temporary.chmod(path.parent.stat().st_mode & 0o666)             # safetensors writes 0600
    temporary.replace(path)


def _sha256(part: Part, key: str) -> str:
    return fingerprint_of(key, part[0].numpy(), part[1].numpy())
