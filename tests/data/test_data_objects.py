"""Python objects and files of arrays as data: the same dataset as files of images, and a refusal of doubtful arrays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from hfgen.data import load_dataset
from hfgen.data.stream import StreamImages
from hfgen.errors import ConfigError, ConfigTypeError, DataError
from tests.data.conftest import random_image

LABELS = [0, 1, 2, 0, 1, 2]


def same(one: Any, other: Any) -> bool:
    labels = (one.labels(), other.labels())
    equal = labels[0] is labels[1] is None or torch.equal(*labels)
    return torch.equal(one.tensor(), other.tensor()) and equal and one.top == other.top and one.shape == other.shape


@pytest.fixture
def folder(write_folder: Callable[..., Path]) -> Any:
    return load_dataset(write_folder(6))


@pytest.fixture
def array(pixels: Callable[..., np.ndarray]) -> np.ndarray:
    """Return the images of the folder as uint8 (6, 3, 6, 6)."""
    return pixels(6)


def test_arrays_and_tensors_of_every_layout_and_range_are_the_images_of_a_folder(folder: Any, array: Any) -> None:
    unit = torch.from_numpy(array) / 255
    for given in (
        array, array.transpose(0, 2, 3, 1), torch.from_numpy(array), torch.from_numpy(array).permute(0, 2, 3, 1), unit,
        unit.numpy().transpose(0, 2, 3, 1), unit * 2 - 1, unit.double(), (unit - 0.5) / 0.5,
        unit.requires_grad_(), array.astype(np.uint16) * 257,
    ):  # fmt: skip
        assert same(load_dataset(given), folder)


def test_an_array_is_resized_like_the_files(array: Any, write_folder: Callable[..., Path]) -> None:
    for options in ({"resolution": 3}, {"channels": 1}, {"resolution": (4, 2), "channels": 4}):
        assert same(load_dataset(array, **options), load_dataset(write_folder(6), **options))


def test_grey_floats_keep_16_bits_and_bool_is_black_and_white() -> None:
    x = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert load_dataset(x).top == 65535
    torch.testing.assert_close(load_dataset(x[:, 0]).tensor().double(), x * 2 - 1, atol=2e-5, rtol=0)
    assert load_dataset(x[:, 0] > 0.5).tensor().unique().tolist() == [-1.0, 1.0]


RAMP = torch.linspace(0, 1, 270).view(9, 5, 6)


@pytest.mark.parametrize(("given", "message"), [
    (np.zeros((9, 3, 5, 3), np.uint8), "9x3x5x3: both axis 1 and axis 3 can be the channels, which are 1, 3 or 4"),
    (np.zeros((9, 5, 6, 7), np.uint8), "9x5x6x7: neither axis 1 nor axis 3 can be the channels"),
    (np.zeros((32, 32, 3), np.uint8), "32x32x3 may be one image"),
    (torch.zeros(3, 32, 32), "3x32x32 may be one image"),
    (np.zeros((9, 5, 6), np.int64), "pixels of type int64 have no known range; convert them to uint8"),
    (RAMP * 255, r"float pixels are in \[.*\], which is neither \[0, 1\] nor \[-1, 1\]; scale them"),
    (RAMP - 0.01, r"images in \[-1, 1\] have pixels below -0.5, .* clip them to \[0, 1\]"),
    (torch.full((9, 5, 6), torch.nan), "holds NaN or infinite values"),
    (np.zeros((9, 7), np.float32), "9x7 are no images; .* points are"),
    (np.zeros((9, 2), np.int64), r"points must be finite floats \(N, 2\), got int64"),
    (np.zeros((0, 8, 8, 3), np.uint8), "it holds no images"),
])  # fmt: skip
def test_an_array_that_may_mean_two_things_is_refused_with_the_remedy(given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(given)


def test_images_with_labels_come_as_a_pair_and_by_name(folder: Any, array: Any) -> None:
    names = ["no", "yes", "perhaps"]
    for given in ((array, LABELS), (torch.from_numpy(array), torch.tensor(LABELS)), {"image": array, "label": LABELS}):
        dataset = load_dataset(given)
        assert dataset.labels().tolist() == LABELS and dataset.num_classes == 3
        assert torch.equal(dataset.tensor(), folder.tensor())
    texts = load_dataset({"x": array, "y": [names[i] for i in LABELS], "words": list("abcdef")}, caption_column="words")
    assert texts.class_names == ["no", "perhaps", "yes"] and texts.captions == list("abcdef")
    assert load_dataset((array, LABELS), label_column="none").labels() is None
    half = load_dataset((array, LABELS), split="train[50%:]")
    assert half.labels().tolist() == LABELS[3:] and torch.equal(half.tensor(), folder.tensor()[3:])


def test_npy_and_npz_files_are_read_without_pickles(folder: Any, array: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "adm.npz", array.transpose(0, 2, 3, 1), np.array(LABELS))
    np.savez(tmp_path / "mnist.npz", x_train=array, y_train=LABELS, x_test=array[:2], y_test=LABELS[:2])
    assert same(load_dataset(tmp_path / "x.npy"), folder)
    assert load_dataset(str(tmp_path / "adm.npz")).labels().tolist() == LABELS
    with pytest.raises(ConfigError, match=r"choose the array of images with image_column; arrays: x_train \(6x3x6x6"):
        load_dataset(tmp_path / "mnist.npz")
    test = load_dataset(tmp_path / "mnist.npz", image_column="x_test", label_column="y_test")
    assert len(test) == 2 and test.labels().tolist() == LABELS[:2]
    np.save(tmp_path / "evil.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match="pickles"):
        load_dataset(tmp_path / "evil.npy")
    with pytest.raises(DataError, match="no such file"):
        load_dataset("missing.npz")


def test_a_list_of_pil_images_may_hold_any_sizes_and_modes(folder: Any) -> None:
    assert same(load_dataset([random_image(i) for i in range(6)]), folder)
    mixed = [random_image(0), random_image(1, 9, 7, "L"), random_image(2, 5, 5, "RGBA")]
    with pytest.raises(DataError, match="images differ in size: list, item 0 is 6x6 and list, item 1 is 9x7"):
        load_dataset(mixed)
    assert load_dataset(mixed, resolution=5).shape == (3, 5, 5)


class Pictures(torch.utils.data.Dataset[Any]):
    """A dataset as torchvision has them: PIL images, or the result of a transform, with a label, and `classes`."""

    classes = ("no", "yes", "perhaps")

    def __init__(self, transform: Callable[[Image.Image], Any] = lambda image: image) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> tuple[Any, int]:
        if not 0 <= i < 6:
            raise IndexError(i)
        return self.transform(random_image(i)), LABELS[i]


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def test_a_torch_dataset_of_pil_images_or_tensors_is_read_with_its_labels_and_classes(folder: Any) -> None:
    for given in (Pictures(), Pictures(to_tensor), Pictures(lambda image: to_tensor(image) * 2 - 1), list(Pictures())):
        dataset = load_dataset(given)
        assert torch.equal(dataset.tensor(), folder.tensor()) and dataset.labels().tolist() == LABELS
    assert load_dataset(Pictures()).class_names == ["no", "yes", "perhaps"]
    part: Any = load_dataset(Subset(Pictures(), [4, 1]))
    assert torch.equal(part.tensor(), folder.tensor()[[4, 1]]) and part.labels().tolist() == [1, 1]
    tensors = TensorDataset(torch.stack([to_tensor(random_image(i)) for i in range(6)]), torch.tensor(LABELS))
    assert load_dataset(tensors).labels().tolist() == LABELS
    lazy = load_dataset(Pictures(), max_resident_bytes=0)
    assert torch.equal(next(lazy.batches(seed=0, batch_size=6))["label"],
                       next(load_dataset(Pictures()).batches(seed=0, batch_size=6))["label"])  # fmt: skip


def test_a_torch_dataset_of_mappings_has_columns_by_name(folder: Any) -> None:
    items = [{"pixels": to_tensor(random_image(i)), "kind": LABELS[i], "text": f"picture {i}"} for i in range(6)]
    dataset = load_dataset(items, image_column="pixels", label_column="kind", caption_column="text")
    assert torch.equal(dataset.tensor(), folder.tensor()) and dataset.labels().tolist() == LABELS
    assert dataset.captions == [f"picture {i}" for i in range(6)]
    with pytest.raises(ConfigError, match="image_column 'image' does not exist; columns: pixels, kind, text"):
        load_dataset(items)


def test_a_dataset_that_changes_when_it_is_read_again_is_refused() -> None:
    def noisy(image: Image.Image) -> torch.Tensor:
        return to_tensor(image) * torch.rand(())

    for transform in (noisy, lambda image: image.rotate(float(torch.rand(())) * 360)):
        with pytest.raises(ConfigError, match="item 0: changes when it is read again; leave random transforms out"):
            load_dataset(Pictures(transform))


def test_slices_of_items_items_of_many_parts_and_other_objects_are_refused() -> None:
    with pytest.raises(ConfigError, match="is a slice; give a list, or a Subset"):
        load_dataset(Pictures(), split="train[:2]")
    with pytest.raises(ConfigError, match="has 3 parts; an item is an image"):
        load_dataset([(random_image(0), 1, 2)])
    with pytest.raises(DataError, match=r"item 1: has the shape \(3, 4, 4\), item 0 has \(3, 6, 6\); resize them"):
        load_dataset([torch.zeros(3, 6, 6), torch.zeros(3, 4, 4)])
    for value in (3, {1, 2}, iter([1])):
        with pytest.raises(ConfigTypeError, match="dataset must be a name, a folder, a file, a Hub id, an array"):
            load_dataset(value)


@pytest.fixture
def table(write_parquet: Callable[..., Path]) -> datasets.Dataset:
    features = {"label": datasets.ClassLabel(names=["no", "yes", "perhaps"])}
    file = write_parquet(6, label=LABELS, text=list("abcdef"), features=features)
    return datasets.Dataset.from_parquet(str(file), cache_dir=str(file.parent / "cache"))


def test_a_dataset_of_datasets_is_read_with_its_selection_and_its_splits(
    folder: Any, table: Any, tmp_path: Path
) -> None:
    whole = load_dataset(table, caption_column="text")
    assert torch.equal(whole.tensor(), folder.tensor()) and whole.class_names == ["no", "yes", "perhaps"]
    assert whole.captions == list("abcdef")
    chosen = load_dataset(table.select([5, 0, 3]))
    assert torch.equal(chosen.tensor(), folder.tensor()[[5, 0, 3]]) and chosen.labels().tolist() == [2, 0, 0]
    both = datasets.DatasetDict({"train": table.select([0, 1, 2, 3]), "test": table.select([4, 5])})
    assert torch.equal(load_dataset(both, split="test").tensor(), folder.tensor()[4:])
    assert torch.equal(load_dataset(both, split="train[50%:]").tensor(), folder.tensor()[2:4])
    with pytest.raises(ConfigError, match="there is no split 'dev'; splits: test, train"):
        load_dataset(both, split="dev")
    for saved, split in ((both, "test"), (table, "train")):
        saved.save_to_disk(str(tmp_path / f"saved-{split}"))
        expected = folder.tensor()[4:] if split == "test" else folder.tensor()
        assert torch.equal(load_dataset(tmp_path / f"saved-{split}", split=split).tensor(), expected)
    made = datasets.Dataset.from_dict({"image": [random_image(i) for i in range(6)], "label": LABELS})
    assert torch.equal(load_dataset(made).tensor(), folder.tensor())


def test_an_iterable_dataset_is_a_stream_and_a_transform_is_refused(folder: Any, table: Any) -> None:
    stream = load_dataset(table.to_iterable_dataset())
    assert isinstance(stream, StreamImages) and torch.equal(stream.tensor(6), folder.tensor())
    with pytest.raises(ConfigError, match="has a transform; map it to a column"):
        load_dataset(table.with_transform(lambda batch: batch))


def test_points_are_an_array_of_two_columns_and_standardised_in_batches(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal((3, -2), (2, 0.5), (50, 2))
    np.save(tmp_path / "points.npy", points)
    for given in (points, torch.from_numpy(points), tmp_path / "points.npy", (points, [0, 1] * 25)):
        dataset = load_dataset(given)
        assert dataset.shape == (2,) and torch.allclose(dataset.tensor().double(), torch.from_numpy(points), atol=1e-6)
        batch = next(dataset.batches(seed=0, batch_size=50))["x"]
        assert batch.mean(0).abs().max() < 1e-5 and (batch.std(0, correction=0) - 1).abs().max() < 1e-5
    assert next(dataset.batches(seed=0, batch_size=8))["label"].shape == (8,)
    with pytest.raises(ConfigError, match="is a set of points; resolution="):
        load_dataset(points, resolution=8)
    with pytest.raises(DataError, match="all points have the same coordinate"):
        load_dataset(np.zeros((9, 2)))


def test_a_loaded_dataset_is_taken_as_it_is_and_other_arguments_are_refused(folder: Any) -> None:
    assert load_dataset(folder) is folder and load_dataset(folder, resolution=6, channels=3) is folder
    with pytest.raises(ConfigError, match="is a Dataset, loaded already; leave out split, resolution"):
        load_dataset(folder, split="test", resolution=3)


def test_a_fingerprint_is_that_of_the_content(array: Any) -> None:
    changed = array.copy()
    changed[3, 0, 0, 0] ^= 1
    given = [array, torch.from_numpy(array), array.transpose(0, 2, 3, 1), changed, (array, LABELS)]
    prints = [load_dataset(one).fingerprint for one in given]
    assert prints[0] == prints[1] == prints[2] and len(set(prints)) == 3
