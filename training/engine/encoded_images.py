"""Datasets of encoded images: encoded once, kept beside the run, and read again as long as nothing has changed."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hfgen.data.dataset import Batch, Dataset, fingerprint_of, require_batch
from hfgen.data.order import Ints, uniforms
from hfgen.errors import CheckpointError, ConfigError
from hfgen.loading import components
from hfgen.loading.given import object_of
from hfgen.loading.mixins import ModelMixin
from hfgen.loading.resolve import resolve_component
from hfgen.registry import saved_names
from hfgen.training.engine.distributed import split_batch
from hfgen.training.engine.init_from import with_weights_of
from hfgen.training.engine.loop import Build

SHARD, BATCH_SIZE = 4096, 128
"""Images in a file, after each of which an interrupted encoding goes on; images that are encoded at once."""

Part = dict[str, Tensor]
"""Encoded images by the name of each tensor, (n, F, ...)."""

Network = TypeVar("Network", bound=ModelMixin)


class EncodedImages(Dataset):
    """Images of `source` as an autoencoder encodes them: tensors (N, F, ...) by name.

    F is 2 with mirrored copies, of which a batch has one, as a function of (seed, epoch, index); else 1.
    """

    kind: str
    """Name of the encoded images, also of their files."""

    def __init__(self, source: Dataset, tensors: Part, key: str, shape: Sequence[int]) -> None:
        self.name, self.shape = f"{self.kind} of {source.name}", tuple(shape)
        self.num_classes, self.class_names, self._labels = source.num_classes, source.class_names, source.labels()
        self.captions, self.fingerprint = source.captions, key
        self._tensors = tensors

    def __len__(self) -> int:
        """Return the number of images."""
        return len(next(iter(self._tensors.values())))

    def describe(self) -> str:
        """Return e.g. `latents of digits: 1,797 of 2x4x4, 10 classes`."""
        classes = f", {self.num_classes} classes" if self.num_classes else ""
        return f"{self.name}: {len(self):,} of {'x'.join(map(str, self.shape))}{classes}"

    def labels(self) -> Tensor | None:
        """Return the labels of all images in order, (N,) int64 from 0 on; None without labels."""
        return self._labels

    def take(self, seed: int, epochs: Ints, indices: Ints, device: torch.device) -> Batch:
        """Return the batch of the images `indices`, mirrored by f(seed, epoch, index)."""
        # take the tensors of one side each
        rows = torch.from_numpy(indices)
        sides = next(iter(self._tensors.values())).shape[1]
        side = torch.from_numpy(uniforms(seed, epochs, indices, "flip") * sides).long()
        batch: Batch = {name: tensor[rows, side].to(device) for name, tensor in self._tensors.items()}
        # add the conditions
        if self._labels is not None:
            batch["label"] = self._labels[rows].to(device)
        if self.captions is not None:
            batch["caption"] = [self.captions[i] for i in indices]
        return batch


def kept(
    kind: str, source: Dataset, net: ModelMixin, flip: bool, folder: Path, encode: Callable[[Tensor], Part]
) -> tuple[Part, str]:
    """Return all images of `source`, which must not mirror any, encoded, from the files in `folder`; and their key.

    `encode`: images (b, C, H, W) in [-1, 1] on the network's device -> tensors (b, ...) by name; with `flip` mirrored
    copies are encoded too. Files that are missing, cut short, or changed are encoded first, by one process. Files that
    belong to other images, or to an autoencoder with other weights, are a CheckpointError.
    """
    # read each shard, or encode it in the first process
    key = fingerprint_of(kind, source.fingerprint, weights_hash(net), flip)
    parts = []
    with PartialState().main_process_first():
        for start in range(0, len(source), SHARD):
            file = folder / f"{kind}-{start:08d}.safetensors"
            part = _read(file, key, kind)
            if part is None:
                if not PartialState().is_main_process:
                    raise CheckpointError(f"{file}: was there a moment ago and is gone")
                part = _encode(source, net, flip, start, encode)
                _write(file, part, key)
            parts.append(part)
    # join them
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, key


def load_autoencoder(model: str, cls: type[Network], part: str) -> Network:
    """Return the autoencoder of a run or a pipeline, its component `part`, or that which a folder or a Hub id is alone.

    The name of a Python object stands for a pipeline or a network of the class `cls`, of which a copy is returned.
    Raises ConfigError for any other object, and for a folder with a network of another class.
    """
    # copy that of an object
    given = object_of(model)
    if given is not None:
        found = getattr(given, part, given)
        if not isinstance(found, cls):
            raise ConfigError(f"autoencoder must be a name, {article(cls)} or a pipeline with one, got {given!r:.80}")
        return copy.deepcopy(found).eval().requires_grad_(False)
    # load that of a folder
    names = [name for _, name in saved_names(cls.__name__)]
    net: Network = components.load_alone(resolve_component(model, part), cls, names)
    return net.requires_grad_(False)


def article(cls: type) -> str:
    """Return the name of a class with its article: "an AutoencoderKL", "a VQAutoencoder"."""
    return f"{'an' if cls.__name__[0] in 'AEIOU' else 'a'} {cls.__name__}"


def weights_hash(net: ModelMixin) -> str:
    """Return the sha256 of all weights and settings of an autoencoder, whatever version of a library it is from."""
    settings = {key: value for key, value in json.loads(net.to_json_string()).items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()


def try_out(settings: Any, dataset: Dataset, recommended: Callable[[Any, Any], Any], build: Build) -> None:
    """Check the batch and build the networks once, so that errors are raised before all images are encoded.

    `dataset`: of the shape of the encoded images, in no memory.
    """
    s = recommended(settings, dataset)
    split_batch(s, PartialState().num_processes, PartialState().process_index)
    require_batch(dataset, s.batch_size)
    make = build if s.start_from is None or s.resume else with_weights_of(s.start_from, build)
    make(s, dataset)


@torch.no_grad()
def _encode(source: Dataset, net: Any, flip: bool, start: int, encode: Callable[[Tensor], Part]) -> Part:
    """Return up to 4,096 images from number `start` on, encoded, (n, F, ...)."""
    parts = []
    for x in _images(source, start, min(start + SHARD, len(source))):
        sides_of_x = [x, x.flip(-1)] if flip else [x]
        sides = [encode(side.to(net.device)) for side in sides_of_x]
        parts.append({name: torch.stack([side[name] for side in sides], 1).cpu() for name in sides[0]})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _images(source: Dataset, start: int, stop: int) -> Iterator[Tensor]:
    """Yield the images from `start` to `stop` in batches (b, C, H, W)."""
    for first in range(start, stop, BATCH_SIZE):
        indices = np.arange(first, min(first + BATCH_SIZE, stop))
        yield source.take(0, np.zeros_like(indices), indices, torch.device("cpu"))["x"]


def _read(path: Path, key: str, kind: str) -> Part | None:
    """Return the tensors in a file, None where it is missing or not as it was written.

    CheckpointError where it belongs to other data or weights.
    """
    # read the file
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as handle:
            found = handle.metadata() or {}
            part = {name: handle.get_tensor(name) for name in sorted(handle.keys())}
    except SafetensorError:
        return None
    # check that it is whole, and of these images
    if found.get("sha256") != _sha256(part, found.get("key", "")):
        return None
    if found["key"] != key:
        raise CheckpointError(f"{path}: holds {kind} of other images, or of an autoencoder with other weights; "
                              "use those it was made with, or a new folder")  # fmt: skip
    return part


def _write(path: Path, part: Part, key: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    tensors = {name: tensor.contiguous() for name, tensor in part.items()}
    save_file(tensors, temporary, metadata={"key": key, "sha256": _sha256(part, key)})
    temporary.chmod(path.parent.stat().st_mode & 0o666)             # safetensors writes 0600
    temporary.replace(path)


def _sha256(part: Part, key: str) -> str:
    return fingerprint_of(key, *(part[name].numpy() for name in sorted(part)))
