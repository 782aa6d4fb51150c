"""Slices of splits: the same items as `datasets` takes, of digits, folders and files."""

import numpy as np
import pytest
import torch
from PIL import Image

from hfgen.data import load_dataset
from hfgen.data.splits import Split
from hfgen.errors import ConfigError, DataError

SLICES = [
    "train[:80%]", "train[80%:]", "train[33%:66%]", "train[:-20%]", "train[-20%:]", "train[:1%]", "train[:100%]",
    "train[:5]", "train[5:]", "train[3:8]", "train[-4:]", "train[:-4]", "train[2:999]", "train[-999:3]", "train[:]",
    "train[:10%]+train[90%:]", "train[:2]+train[5:7]", "train[:1_0]", "train+train[:2]", "train[50%:]",
]  # fmt: skip


@pytest.mark.parametrize("n", [17, 250])
def test_a_slice_takes_the_items_that_datasets_takes(n, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / "numbers.parquet"
    datasets.Dataset.from_dict({"x": list(range(n))}).to_parquet(file)
    asked = [text for text in SLICES if n >= 50 or text != "train[:1%]"]                # 1% of 17 is none
    theirs = datasets.load_dataset("parquet", data_files=str(file), split=asked)
    ours = [Split.parse("it", text).indices("it", n).tolist() for text in asked]
    assert ours == [list(part["x"]) for part in theirs]


def test_a_whole_split_is_not_a_slice():
    assert Split.parse("it", "train").indices("it", 5) is None


NO_SPLITS = ["", "train[", "train[:]x", "train[1]", "train[a:b]", "train[:50.5%]", "a +a", "a[:1]+b[1:]"]


@pytest.mark.parametrize("text", NO_SPLITS)
def test_what_is_no_split_is_refused_with_examples(text):
    with pytest.raises(ConfigError, match=r"it: cannot read the split .* such as train, train\[:80%\]"):
        Split.parse("it", text)


def test_percentages_beyond_all_are_refused():
    with pytest.raises(ConfigError, match=r"cannot read the split 'train\[:101%\]' \(Percent slice boundaries"):
        Split.parse("it", "train[:101%]")


def test_two_slices_of_digits_are_the_whole_without_overlap():
    whole, first, last = (load_dataset("digits", split=split) for split in ("train", "train[:80%]", "train[80%:]"))
    assert (len(first), len(last)) == (1438, 359)                      # round(0.8 * 1797) = 1438
    assert torch.equal(torch.cat([first.tensor(), last.tensor()]), whole.tensor())
    assert torch.equal(torch.cat([first.labels(), last.labels()]), whole.labels())
    assert len({dataset.fingerprint for dataset in (whole, first, last)}) == 3
    assert first.describe() == "digits train[:80%]: 1,438 images 1x8x8, 10 classes"


def test_classes_keep_their_numbers_whatever_a_slice_of_digits_holds():
    three = load_dataset("digits", split="train[7:10]")
    assert three.labels().tolist() == [7, 8, 9]
    assert (three.num_classes, three.class_names) == (10, [str(digit) for digit in range(10)])


def test_a_resized_slice_is_the_slice_of_the_resized():
    assert torch.equal(
        load_dataset("digits", split="train[10:20]", resolution=4).tensor(),
        load_dataset("digits", resolution=4).tensor()[10:20],
    )


def test_empty_slices_and_unknown_splits_say_what_there_is():
    with pytest.raises(DataError, match=r"digits: the slice 'train\[2000:\]' is empty; the split has 1,797 items"):
        load_dataset("digits", split="train[2000:]")
    with pytest.raises(ConfigError, match="digits: there is no split 'test'; splits: train"):
        load_dataset("digits", split="test[:10%]")
    with pytest.raises(ConfigError, match="ring8: 'train\\[:10%\\]' is a slice, and a toy set has none"):
        load_dataset("ring8", split="train[:10%]")


def test_slices_of_a_folder_keep_labels_captions_and_classes(tmp_path):
    for i in range(10):
        path = tmp_path / "val" / ("a" if i < 6 else "b") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), i).save(path)
    part = load_dataset(tmp_path, split="validation[50%:90%]")
    assert ((part.tensor()[:, 0, 0, 0] + 1) * 127.5).round().int().tolist() == [5, 6, 7, 8]
    assert part.labels().tolist() == [0, 1, 1, 1] and part.class_names == ["a", "b"]
    only = load_dataset(tmp_path, split="validation[:2]")
    assert (only.num_classes, only.class_names) == (2, ["a", "b"])
    lines = ["file_name,text", *(f"{'a' if i < 6 else 'b'}/{i}.png,no {i}" for i in range(10))]
    (tmp_path / "val" / "metadata.csv").write_text("\n".join(lines) + "\n")
    captioned = load_dataset(tmp_path, split="val[8:]", caption_column="text")
    batch = captioned.take(0, np.zeros(2, np.int64), np.arange(2), torch.device("cpu"))
    assert batch["caption"] == ["no 8", "no 9"]


def test_slices_of_a_list_of_files_take_files(write_folder):
    files = sorted(write_folder(5).iterdir())
    assert torch.equal(load_dataset(files, split="train[1:3]").tensor(), load_dataset(files).tensor()[1:3])
    with pytest.raises(ConfigError, match="there is no split 'test'; splits: train"):
        load_dataset(files, split="test")
