"""Hashes of files and of tensors: sha256, in hexadecimal digits."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:                                    # torch takes seconds to import, and files do not need it
    from torch import Tensor, nn


def hash_of_file(path: Path) -> str:
    """Return the sha256 of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of_tensors(tensors: "Mapping[str, Tensor]", text: str = "") -> str:
    """Return the sha256 of `text`, then of the names, dtypes, shapes and bytes of tensors, in the order of names.

    Tensors may have any shape, dtype and device.
    """
    import torch

    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_of_weights(net: "nn.Module") -> str:
    """Return the sha256 of the parameters and buffers of a network; it does not depend on the device."""
    return hash_of_tensors(net.state_dict())
