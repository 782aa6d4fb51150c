"""A dataset of latents: images encoded once, kept beside the run, and read again as long as nothing has changed."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hfgen import hub, safe_load
from hfgen.data.dataset import Batch, Dataset, fingerprint_of
from hfgen.data.order import Ints, uniforms
from hfgen.errors import CheckpointError, ConfigError
from hfgen.models.autoencoder_kl import AutoencoderKL

SHARD, AT_ONCE = 4096, 128
"""Images in a file, after each of which an interrupted encoding goes on; images that are encoded at once."""


class Latents(Dataset):
    """Latents of mean 0 and variance 1: q(z|x) of every image, as means and standard deviations (N, F, D, h, w).

    F is 2 with mirrored copies, of which a batch has one, as a function of (seed, epoch, index); else 1. Beside the
    means, `x`, a batch has `std`, so that z ~ q(z|x) can be drawn anew at every step.
    """

    def __init__(self, source: Dataset, mean: Tensor, std: Tensor, captions: list[str] | None, key: str) -> None:
        self.name, self.shape = f"latents of {source.name}", tuple(mean.shape[2:])
        self.num_classes, self.class_names, self._labels = source.num_classes, source.class_names, source.labels()
        self.captions, self.fingerprint = captions, key
        self._mean, self._std = mean, std

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._mean)

    def describe(self) -> str:
        """Return e.g. `latents of digits: 1,797 of 2x4x4, 10 classes`."""
        classes = f", {self.num_classes} classes" if self.num_classes else ""
        return f"{self.name}: {len(self):,} of {'x'.join(map(str, self.shape))}{classes}"

    def tensor(self, n: int | None = None) -> Tensor:
        """Return the means of the first `n` images (default: all), not mirrored, (n, D, h, w)."""
        return self._mean[:n, 0]

    def labels(self) -> Tensor | None:
        """Return the labels of all images in order, int64 (N,); None without labels."""
        return self._labels

    def take(self, seed: int, epochs: Ints, indices: Ints, device: torch.device) -> Batch:
        """Return the batch of the images `indices`, mirrored by f(seed, epoch, index)."""
        rows = torch.from_numpy(indices)
        side = torch.from_numpy(uniforms(seed, epochs, indices, "flip") * self._mean.shape[1]).long()
        batch: Batch = {"x": self._mean[rows, side].to(device), "std": self._std[rows, side].to(device)}
        if self._labels is not None:
            batch["label"] = self._labels[rows].to(device)
        if self.captions is not None:
            batch["caption"] = [self.captions[i] for i in indices]
        return batch


def encoded(source: Dataset, vae: AutoencoderKL, flip: bool, folder: Path) -> Latents:
    """Return the latents of all images of `source`, which is not to mirror any, from the files in `folder`.

    What is missing there is encoded first, by one process. Files that belong to other images, or to an autoencoder with
    other weights, are a CheckpointError.
    """
    key = fingerprint_of("latents", source.fingerprint, weights_hash(vae), flip)
    starts = range(0, len(source), SHARD)
    captions: list[str] | None = None
    with PartialState().main_process_first():
        if PartialState().is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            for start in starts:
                if not _verified(_file(folder, start), key):
                    _write(_file(folder, start), *_encode(source, vae, flip, start), key)
    parts = []
    for start in starts:
        if not _verified(_file(folder, start), key):
            raise CheckpointError(f"{_file(folder, start)}: was there a moment ago and is gone")
        with safe_open(_file(folder, start), framework="pt") as handle:
            parts.append((handle.get_tensor("mean"), handle.get_tensor("std")))
    if "caption" in _rows(source, 0, 1):
        captions = [text for start in starts for text in _rows(source, start, start + SHARD)["caption"]]
    mean, std = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Latents(source, mean, std, captions, key)


def load_autoencoder(model: str) -> AutoencoderKL:
    """Return the autoencoder of a run, a pipeline (its `vae`) or a folder of its own, or of a Hub id of a pipeline."""
    own = Path(model).expanduser()
    if (own / "config.json").is_file():
        folder, part = own, ""
    else:
        folder, part = hub.resolve(model), "vae"
        if not (folder / part).is_dir():
            raise ConfigError(f"--autoencoder {model}: holds no vae, found "
                              f"{', '.join(sorted(path.name for path in folder.iterdir()))}")  # fmt: skip
    vae: AutoencoderKL = safe_load.load_component(folder, part, AutoencoderKL, "AutoencoderKL")
    return vae.requires_grad_(False)


def weights_hash(vae: AutoencoderKL) -> str:
    """Return the sha256 of all weights and settings of an autoencoder."""
    digest = hashlib.sha256(json.dumps(json.loads(vae.to_json_string()), sort_keys=True).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _encode(source: Dataset, vae: AutoencoderKL, flip: bool, start: int) -> tuple[Tensor, Tensor]:
    """Return means and standard deviations of up to 4,096 images, (n, F, D, h, w), as diffusion takes them."""
    means, stds = [], []
    stop = min(start + SHARD, len(source))
    scale = vae.normalise(torch.ones(1, vae.config["latent_channels"], 1, 1)) - vae.normalise(torch.zeros(1, 1, 1, 1))
    for first in range(start, stop, AT_ONCE):
        x = _rows(source, first, min(first + AT_ONCE, stop))["x"]
        copies = [vae.posterior(one.to(vae.device)) for one in ([x, x.flip(-1)] if flip else [x])]
        means.append(torch.stack([vae.normalise(q.mean).float().cpu() for q in copies], 1))
        stds.append(torch.stack([q.std.float().cpu() * scale for q in copies], 1))
    return torch.cat(means), torch.cat(stds)


def _rows(source: Dataset, first: int, stop: int) -> dict[str, Any]:
    indices = np.arange(first, min(stop, len(source)))
    return source.take(0, np.zeros_like(indices), indices, torch.device("cpu"))


def _file(folder: Path, start: int) -> Path:
    return folder / f"latents-{start:08d}.safetensors"


def _verified(path: Path, key: str) -> bool:
    """Return whether the file is there and whole; CheckpointError where it belongs to other data or weights."""
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt") as handle:
            found = (handle.metadata() or {}).get("key")
    except SafetensorError:
        return False
    if found != key:
        raise CheckpointError(f"{path}: holds latents of other images, or of an autoencoder with other weights; "
                              "use those it was made with, or a new folder")  # fmt: skip
    return True


def _write(path: Path, mean: Tensor, std: Tensor, key: str) -> None:
    temporary = path.with_suffix(".tmp")
    save_file({"mean": mean.contiguous(), "std": std.contiguous()}, temporary, metadata={"key": key})
    temporary.chmod(path.parent.stat().st_mode & 0o666)             # safetensors writes 0600
    temporary.rename(path)
