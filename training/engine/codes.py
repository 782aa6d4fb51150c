"""A dataset of codes: images as the grids of codes of a discrete autoencoder, encoded once and kept beside the run."""

from pathlib import Path

import torch
from torch import Tensor

from hfgen.data.dataset import Batch, Dataset
from hfgen.data.order import Ints
from hfgen.models.vq_autoencoder import VQAutoencoder
from hfgen.training.engine import encoded_images
from hfgen.training.engine.encoded_images import EncodedImages


class Codes(EncodedImages):
    """Codes of images, (N, F, h, w), as sequences: a batch has `codes` (b, n) int64, n = h w, in raster order.

    Beside it `label` (b,) and `caption`, as the images have them. Attributes: `num_codes` K, codes are in [0, K);
    `grid`: (h, w); `shape`: (1, h, w), as of images whose grey levels are codes.
    """

    kind = "codes"

    def __init__(self, source: Dataset, codes: Tensor, num_codes: int, key: str) -> None:
        height, width = codes.shape[2:]
        super().__init__(source, {"codes": codes}, key, (1, height, width))
        self.num_codes, self.grid = num_codes, (int(height), int(width))

    def tensor(self, n: int | None = None) -> Tensor:
        """Return the codes of the first `n` images, not mirrored, (n, h w) int64. Default: all."""
        return self._tensors["codes"][:n, 0].flatten(1).long()

    def take(self, seed: int, epochs: Ints, indices: Ints, device: torch.device) -> Batch:
        """Return the batch of the images `indices`, mirrored by f(seed, epoch, index): `codes` (b, h w) int64."""
        batch = super().take(seed, epochs, indices, device)
        return {**batch, "codes": batch["codes"].flatten(1).long()}


def encoded(source: Dataset, net: VQAutoencoder, flip: bool, folder: Path) -> Codes:
    """Return the codes of all images of `source`, which must not mirror any, from the files in `folder`.

    Errors as in `encoded_images.kept`.
    """
    tensors, key = encoded_images.kept(
        Codes.kind, source, net, flip, folder, lambda x: {"codes": net.to_codes(x).to(torch.int32)}
    )
    return Codes(source, tensors["codes"], net.num_codes, key)


def of_shape(source: Dataset, net: VQAutoencoder) -> Codes:
    """Return codes of the shape of those of `source`, all 0, in no memory."""
    nothing = torch.zeros((), dtype=torch.int32).expand(len(source), 1, *net.code_shape(source.shape))
    return Codes(source, nothing, net.num_codes, "")


def load_autoencoder(model: str) -> VQAutoencoder:
    """Return the VQAutoencoder of a run or a pipeline (its `autoencoder`), or that which a folder or a Hub id is alone.

    The name of a Python object stands for a pipeline or a VQAutoencoder, of which a copy is returned. Raises
    ConfigError for any other.
    """
    return encoded_images.load_autoencoder(model, VQAutoencoder, "autoencoder")
