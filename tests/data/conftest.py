"""Real files for the data tests: images, folders, parquet tables, and a cache of `datasets` that is thrown away."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def random_image(i: int, height: int = 6, width: int = 6, mode: str = "RGB") -> Image.Image:
    """Return a noise image that differs from every other number's."""
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(i).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes n noise images 000.png, 001.png, ... and returns their folder."""

    def write(n: int, name: str = "images", **shape: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(n):
            random_image(i, **shape).save(folder / f"{i:03d}.png")
        return folder

    return write


@pytest.fixture
def write_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that writes n noise images and other columns as a parquet file and returns its path."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(n: int, path: str = "table.parquet", features: dict[str, Any] | None = None, **columns: Any) -> Path:
        cells = [{"bytes": png(random_image(i)), "path": None} for i in range(n)]
        table = datasets.Dataset.from_dict({"image": cells, **columns}).cast_column("image", datasets.Image())
        for column, feature in (features or {}).items():
            table = table.cast_column(column, feature)
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(file)
        return file

    return write


@pytest.fixture
def pixels() -> Callable[..., np.ndarray]:
    """Return a function that gives the noise images 0..n-1 as uint8 (n, 3, 6, 6)."""
    return lambda n: np.stack([np.asarray(random_image(i)).transpose(2, 0, 1) for i in range(n)])
