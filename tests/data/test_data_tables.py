"""Parquet files and dataset repositories through `datasets`."""

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hfgen.data import load_dataset
from hfgen.errors import ConfigError, DataError

NAMES = datasets.ClassLabel(names=["no", "yes", "maybe"])


def as_uint8(dataset) -> np.ndarray:
    return ((dataset.tensor() + 1) * 127.5).round().byte().numpy()


def test_a_parquet_file_gives_its_images_labels_and_captions(write_parquet, pixels):
    file = write_parquet(5, label=[0, 1, 0, 1, 1], text=list("abcde"), features={"label": NAMES})
    dataset = load_dataset(file, caption_column="text")
    assert np.array_equal(as_uint8(dataset), pixels(5))
    assert (dataset.labels().tolist(), dataset.class_names) == ([0, 1, 0, 1, 1], ["no", "yes", "maybe"])
    assert dataset.describe() == f"{file}: 5 images 3x6x6, 3 classes"
    assert sorted(next(dataset.batches(seed=0, batch_size=5))["caption"]) == list("abcde")


def test_lists_and_patterns_of_parquet_files_are_joined_in_order(write_parquet, tmp_path, pixels):
    files = [write_parquet(3, f"part-{i}.parquet", label=[0, 1, 2], features={"label": NAMES}) for i in range(2)]
    for name in (files, str(tmp_path / "part-*.parquet")):
        dataset = load_dataset(name)
        assert np.array_equal(as_uint8(dataset), np.concatenate([pixels(3)] * 2))


def test_a_struct_of_bytes_and_plain_bytes_are_images_too(write_parquet, tmp_path, pixels):
    cells = pq.read_table(write_parquet(4)).column("image").combine_chunks().field("bytes")
    struct = pa.table({"img": pa.StructArray.from_arrays([cells], ["bytes"]), "x": [0, 1, 2, 3]})
    plain = pa.table({"img": cells})
    for i, table in enumerate([struct, plain]):
        pq.write_table(table, tmp_path / f"{i}.parquet")
        dataset = load_dataset(tmp_path / f"{i}.parquet")
        assert np.array_equal(as_uint8(dataset), pixels(4)) and dataset.num_classes is None


def test_a_dataset_repository_has_splits_and_slices_of_them(write_parquet, tmp_path, pixels):
    write_parquet(6, "repo/data/train-00000-of-00001.parquet")
    write_parquet(2, "repo/data/test-00000-of-00001.parquet")
    repo = str(tmp_path / "repo")
    assert (len(load_dataset(repo)), len(load_dataset(repo, split="test"))) == (6, 2)
    assert np.array_equal(as_uint8(load_dataset(repo, split="train[2:5]")), pixels(6)[2:5])
    with pytest.raises(ConfigError, match="dev"):
        load_dataset(repo, split="dev")


def test_a_repositorys_configurations_are_respected(write_parquet, tmp_path, monkeypatch, pixels):
    write_parquet(3, "owner/name/small/train.parquet")
    write_parquet(5, "owner/name/large/train.parquet")
    configs = "".join(f"- config_name: {c}\n  data_files: {c}/*.parquet\n" for c in ("small", "large"))
    (tmp_path / "owner/name/README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    monkeypatch.chdir(tmp_path)                                # an id is looked up below the working folder first
    assert [len(load_dataset(f"owner/name:{config}")) for config in ("small", "large")] == [3, 5]
    with pytest.raises(ConfigError, match="small"):
        load_dataset("owner/name")


def test_a_hub_id_that_cannot_be_had_is_a_data_error():
    with pytest.raises(DataError, match="owner/nothing: cannot be loaded"):
        load_dataset("owner/nothing")


def test_broken_cells_are_named_by_row_and_skipped_on_demand(write_parquet, tmp_path, pixels):
    table = pq.read_table(write_parquet(4)).to_pylist()
    table[1]["image"]["bytes"] = b"junk"
    table[3]["image"] = None
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"2 of 4 images(.|\n)*bad.parquet, row 1: no image(.|\n)*row 3: .*no image"):
        load_dataset(tmp_path / "bad.parquet")
    with pytest.warns(UserWarning, match="left out 2 of 4"):
        dataset = load_dataset(tmp_path / "bad.parquet", skip_bad_images=True)
    assert np.array_equal(as_uint8(dataset), pixels(4)[[0, 2]])


def test_a_file_that_is_no_parquet_is_a_data_error(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "x.parquet").write_text("no table")
    for streaming in (False, True):
        with pytest.raises(DataError, match=r"x\.parquet: cannot be loaded"):
            load_dataset(tmp_path / "x.parquet", streaming=streaming)


def test_an_empty_table_is_a_data_error(write_parquet):
    for streaming in (False, True):
        with pytest.raises(DataError, match="holds no images"):
            load_dataset(write_parquet(0), streaming=streaming)


@pytest.mark.parametrize("option", ["image_column", "label_column", "caption_column"])
def test_a_missing_column_is_answered_with_all_names_and_types(write_parquet, option):
    file = write_parquet(2, kind=[0, 1])
    message = rf"{option} 'foo' does not exist; columns: image \(.*Image.*\), kind \(int64"
    with pytest.raises(ConfigError, match=message):
        load_dataset(file, **{option: "foo"})


def test_a_table_without_images_or_with_two_columns_of_them_asks_for_the_column(write_parquet, tmp_path, pixels):
    pq.write_table(pa.table({"n": [1, 2]}), tmp_path / "n.parquet")
    with pytest.raises(ConfigError, match=r"choose the column of images with image_column; columns: n \(int64\)"):
        load_dataset(tmp_path / "n.parquet")
    with pytest.raises(ConfigError, match=r"image_column 'n' holds no images"):
        load_dataset(tmp_path / "n.parquet", image_column="n")
    cells = pq.read_table(write_parquet(2)).column("image")
    pq.write_table(pa.table({"left": cells, "right": cells.take([1, 0])}), tmp_path / "two.parquet")
    with pytest.raises(ConfigError, match="choose the column of images"):
        load_dataset(tmp_path / "two.parquet")
    assert np.array_equal(as_uint8(load_dataset(tmp_path / "two.parquet", image_column="right")), pixels(2)[::-1])


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        ([0, 2, 2], None, r"gaps: 2 different values in \[0, 2\]"),
        ([0, -1, 1], None, r"values in \[-1, 1\]"),
        ([0.0, 1.5, 2.0], None, r"holds float in \[0.0, 2.0\], not integers"),
        ([0, None, 1], None, "no value in 1 of 3 rows"),
        ([0, -1, 1], NAMES, r"values in \[-1, 1\], but its 3 class names allow \[0, 2\]"),
        ([[0], [1], [2]], None, "holds list, not integers"),
    ],
)
def test_labels_that_are_not_classes_name_column_range_and_columns(write_parquet, labels, feature, message):
    file = write_parquet(3, label=labels, features={"label": feature} if feature else None)
    with pytest.raises(ConfigError, match=message) as caught:
        load_dataset(file)
    assert "'label'" in str(caught.value) and "columns: image, label" in str(caught.value)
    assert load_dataset(file, label_column="none").labels() is None


def test_class_names_may_stand_for_classes_that_a_split_lacks(write_parquet):
    dataset = load_dataset(write_parquet(3, kind=[0, 2, 2], features={"kind": NAMES}))
    assert (dataset.num_classes, dataset.labels().tolist()) == (3, [0, 2, 2])


def test_captions_must_be_text(write_parquet):
    file = write_parquet(2, text=["a", None])
    with pytest.raises(ConfigError, match="caption column 'text' holds 1 values that are not text"):
        load_dataset(file, caption_column="text")


def test_lazy_tables_equal_resident_ones_also_through_workers(write_parquet):
    file = write_parquet(12, label=[0, 1] * 6)
    resident = next(load_dataset(file).batches(seed=1, batch_size=12))
    lazy = next(load_dataset(file, max_resident_bytes=0, num_workers=1).batches(seed=1, batch_size=12))
    assert torch.equal(resident["x"], lazy["x"]) and torch.equal(resident["label"], lazy["label"])


def test_real_mnist_is_read_as_its_own_library_reads_it(shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    file = str(shared_data / "mnist-test.parquet")
    theirs = datasets.load_dataset("parquet", data_files=file, split="train")
    ours = load_dataset(file)
    assert ours.describe().endswith("10,000 images 1x28x28, 10 classes")
    assert np.bincount(ours.labels()).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    for i in (0, 77, 9999):
        assert np.array_equal(as_uint8(ours)[i, 0], np.asarray(theirs[i]["image"]))


def test_real_cifar10_is_colour(shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    dataset = load_dataset(str(shared_data / "cifar10-test.parquet"), split="train[:500]")
    assert dataset.shape == (3, 32, 32) and dataset.class_names[6] == "frog" and len(dataset) == 500
    assert abs(dataset.tensor().mean() - (2 * 0.473 - 1)) < 0.05
