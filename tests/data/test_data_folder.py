"""Folders of images and everything that can be wrong with them."""

import json
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hfgen.data import load_dataset
from hfgen.errors import ConfigError, DataError


def save(path: Path, value: int = 0, size: tuple[int, int] = (4, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)
    return path


def values(dataset) -> list[int]:
    return ((dataset.tensor()[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# --- what is a dataset ---


def test_subfolders_are_the_classes_and_paths_the_order(tmp_path):
    for i, name in enumerate(["dog/2.png", "cat/9.PNG", "cat/1.png", "dog/.hidden.png", ".cache/3.png"]):
        save(tmp_path / name.replace(".PNG", ".png"), i)
    dataset = load_dataset(tmp_path)
    assert (values(dataset), dataset.labels().tolist(), dataset.class_names) == ([2, 1, 0], [0, 0, 1], ["cat", "dog"])
    assert load_dataset(tmp_path, label_column="none").num_classes is None


@pytest.mark.parametrize("files", [["a.png", "b.png"], ["one/a.png", "one/b.png"], ["a.png", "x/b.png", "y/c.png"]])
def test_without_two_class_folders_of_one_depth_there_are_no_labels(tmp_path, files):
    for name in files:
        save(tmp_path / name)
    dataset = load_dataset(tmp_path)
    assert len(dataset) == len(files) and dataset.num_classes is None and dataset.labels() is None


def test_split_folders_are_splits(tmp_path):
    for split, name in [("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")]:
        save(tmp_path / split / name / "x.png", 7 if split == "val" else 1)
    assert values(load_dataset(tmp_path)) == [1, 1]
    validation = load_dataset(tmp_path, split="validation")
    assert values(validation) == [7, 7] and validation.class_names == ["a", "b"]
    with pytest.raises(ConfigError, match="no split 'test'; splits: train, validation"):
        load_dataset(tmp_path, split="test")


def test_our_reading_of_a_folder_is_that_of_datasets(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for i, name in enumerate(["b/2.png", "a/9.png", "a/1.png", "c/5.png", "c/50.png"]):
        save(tmp_path / "images" / name, i)
    theirs = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "images"), split="train")
    ours = load_dataset(tmp_path / "images")
    pairs = [(image.getpixel((0, 0)), label) for image, label in zip(theirs["image"], theirs["label"], strict=True)]
    assert sorted(pairs) == sorted(zip(values(ours), ours.labels().tolist(), strict=True))
    assert theirs.features["label"].names == ours.class_names


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_metadata_lists_images_labels_and_captions(tmp_path, kind):
    rows = [{"file_name": f"in/{i}.png", "label": i % 2, "text": f"no, {i}"} for i in (2, 0, 1)]
    for i in range(4):
        save(tmp_path / f"in/{i}.png", i)
    if kind == "csv":
        lines = ["file_name,label,text", *(f'{r["file_name"]},{r["label"]},"{r["text"]}"' for r in rows)]
        (tmp_path / "metadata.csv").write_text("\n".join(lines))
    elif kind == "jsonl":
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "metadata.parquet")
    dataset = load_dataset(tmp_path, caption_column="text")
    assert (values(dataset), dataset.labels().tolist(), dataset.num_classes) == ([2, 0, 1], [0, 0, 1], 2)
    batch = next(dataset.batches(seed=0, batch_size=3))
    assert sorted(batch["caption"]) == ["no, 0", "no, 1", "no, 2"]


def test_lists_and_patterns_of_image_files_are_datasets(tmp_path):
    paths = [save(tmp_path / f"{i}.png", i) for i in range(4)]
    assert values(load_dataset(paths[::-1])) == [3, 2, 1, 0]
    assert values(load_dataset(str(tmp_path / "[12].png"))) == [1, 2]


# --- F16, F17: files that cannot be read ---


@pytest.fixture
def broken(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(tmp_path / "8.jpg")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "3.png").write_text("no image at all")
    (tmp_path / "4.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "6.png").write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    jpeg = (tmp_path / "8.jpg").read_bytes()
    (tmp_path / "8.jpg").write_bytes(jpeg[: len(jpeg) * 2 // 3])
    return tmp_path


@pytest.mark.parametrize("limit", [2**31, 0])
def test_one_error_lists_all_broken_files(broken, limit):
    with pytest.raises(DataError, match="5 of 9 images cannot be read") as caught:
        load_dataset(broken, max_resident_bytes=limit)
    named = [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:-1]]
    assert named == [str(broken / name) for name in ("1.png", "3.png", "4.png", "6.png", "8.jpg")]
    assert "--skip-bad-images" in str(caught.value)


@pytest.mark.parametrize("limit", [2**31, 0])
def test_skipping_leaves_the_broken_files_out_and_counts_them(broken, limit):
    with pytest.warns(UserWarning, match=r"left out 5 of 9 images .* the first is .*1\.png") as warned:
        dataset = load_dataset(broken, skip_bad_images=True, max_resident_bytes=limit)
    assert len(warned) == 1
    good = [broken / f"{i}.png" for i in (0, 2, 5, 7)]
    assert torch.equal(dataset.tensor(), load_dataset(good).tensor())


def test_skipping_keeps_labels_beside_their_images(broken):
    (broken / "metadata.csv").write_text("file_name,label\n" + "".join(f"{i}.png,{i}\n" for i in range(8)))
    with pytest.warns(UserWarning, match="left out 4 of 8"):
        dataset = load_dataset(broken, skip_bad_images=True)
    assert dataset.labels().tolist() == [0, 2, 5, 7] and dataset.num_classes == 8


def test_every_flipped_byte_of_a_png_is_noticed(tmp_path):
    path = save(tmp_path / "a.png", 9)
    whole = path.read_bytes()
    for i in range(len(whole) - 12):                       # all but the empty chunk at its end
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0x10]) + whole[i + 1 :])
        with pytest.raises(DataError, match=r"a\.png"):
            load_dataset(tmp_path)


def test_a_long_list_of_broken_files_is_cut_at_twenty(tmp_path):
    for i in range(30):
        (tmp_path / f"{i:02d}.png").write_bytes(b"")
    with pytest.raises(DataError, match="30 of 30 images") as caught:
        load_dataset(tmp_path, skip_bad_images=True)
    assert str(caught.value).count(".png") == 20 and "and 10 more" in str(caught.value)


def test_a_png_bomb_is_refused_from_its_header_with_memory_flat(tmp_path):
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    assert len(bomb) < 80
    save(tmp_path / "a.png")
    (tmp_path / "bomb.png").write_bytes(bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"1 of 2 images.*\n.*bomb\.png"):
        load_dataset(tmp_path, resolution=4)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000       # kilobytes


# --- F18, F19: modes and bit depths ---


def test_channels_follow_the_images_unless_they_are_given(tmp_path):
    save(tmp_path / "a.png", 10)
    assert load_dataset(tmp_path).shape == (1, 4, 4)
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "b.png")
    assert load_dataset(tmp_path).shape == (3, 4, 4)
    assert [load_dataset(tmp_path, channels=c).shape[0] for c in (1, 3, 4)] == [1, 3, 4]


def test_transparent_images_stand_on_the_background_asked_for(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "a.png")
    for colour, value in [("white", [1, 1, 1]), ("#00ff00", [-1, 1, -1])]:
        assert load_dataset(tmp_path, background=colour).tensor()[0, :, 0, 0].tolist() == value


def test_a_float_tiff_without_a_range_is_one_of_the_broken_files(tmp_path):
    Image.fromarray(np.full((4, 4), 1000, np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=r"a\.tiff: float pixels in \[1000, 1000\] have no known range"):
        load_dataset(tmp_path)


# --- F20: sizes ---


def test_images_of_different_sizes_need_a_resolution(tmp_path):
    for name, size in [("a", (4, 4)), ("b", (4, 4)), ("c", (6, 4)), ("d", (1, 1))]:
        save(tmp_path / f"{name}.png", size=size)
    with pytest.raises(DataError, match=r"a\.png is 4x4 and .*c\.png is 4x6 \(height x width\); set a resolution"):
        load_dataset(tmp_path)


def test_images_smaller_than_the_resolution_are_enlarged_with_one_warning(tmp_path):
    for i, size in enumerate([(1, 1), (2000, 1), (5, 30), (64, 64)]):
        save(tmp_path / f"{i}.png", 50 * i, size)
    with pytest.warns(UserWarning, match=r"3 of 4 images are smaller than 16x8 .*0\.png, 1x1") as warned:
        dataset = load_dataset(tmp_path, resolution=(16, 8))
    assert len(warned) == 1 and dataset.shape == (1, 16, 8)
    assert values(dataset) == [0, 50, 100, 150]


# --- F21: nothing there ---


@pytest.mark.parametrize(
    ("files", "message"),
    [([], "found no files"), (["a.txt", "b.txt", "c.md"], r"found 3 files \(.txt: 2, .md: 1\); images \(.bmp .gif")],
)
def test_a_folder_without_images_says_what_it_holds(tmp_path, files, message):
    for name in files:
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "missing.parquet", "~/missing", "a/b/c"])
def test_a_missing_folder_is_named(name):
    with pytest.raises(DataError, match="no such file or folder") as caught:
        load_dataset(name)
    assert name in str(caught.value)


def test_a_pattern_that_matches_nothing_and_a_list_of_nothing_are_refused(tmp_path):
    with pytest.raises(DataError, match="no file matches"):
        load_dataset(str(tmp_path / "*.png"))
    with pytest.raises(DataError, match=r"no such file: .*gone\.png"):
        load_dataset([tmp_path / "gone.png"])
    with pytest.raises(DataError, match="empty"):
        load_dataset([])


# --- F22: columns of metadata ---


def write_metadata(folder: Path, lines: str) -> None:
    for name in ("a", "b", "c"):
        save(folder / f"{name}.png")
    (folder / "metadata.csv").write_text("file_name," + lines)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("label,k\na.png,0,1\nb.png,2,1\nc.png,2,1\n", r"gaps: 2 different values in \[0, 2\], none is 1"),
        ("label,k\na.png,1,1\nb.png,2,1\nc.png,3,1\n", r"gaps: 3 different values in \[1, 3\], none is 0"),
        ("label,k\na.png,-1,1\nb.png,0,1\nc.png,1,1\n", r"values in \[-1, 1\], but labels start at 0"),
        ("label,k\na.png,0.5,1\nb.png,1,1\nc.png,2.5,1\n", r"float and int in \[0.5, 2.5\], not integers"),
        ("label,k\na.png,0,1\nb.png,,1\nc.png,1,1\n", "no value in 1 of 3 rows"),
    ],
)
def test_labels_that_are_not_0_to_k_name_the_column_its_range_and_all_columns(tmp_path, lines, message):
    write_metadata(tmp_path, lines)
    with pytest.raises(ConfigError, match=message) as caught:
        load_dataset(tmp_path)
    assert "'label'" in str(caught.value) and "columns: file_name, label, k" in str(caught.value)
    assert load_dataset(tmp_path, label_column="none").num_classes is None


@pytest.mark.parametrize("option", ["label_column", "caption_column", "image_column"])
def test_a_column_that_does_not_exist_is_refused_with_the_names_there_are(tmp_path, option):
    write_metadata(tmp_path, "label\na.png,0\nb.png,1\nc.png,1\n")
    with pytest.raises(ConfigError, match=f"{option} 'colour' does not exist; columns: "):
        load_dataset(tmp_path, **{option: "colour"})


def test_names_as_labels_are_numbered_in_sorted_order(tmp_path):
    write_metadata(tmp_path, "kind\na.png,pear\nb.png,apple\nc.png,pear\n")
    dataset = load_dataset(tmp_path, label_column="kind")
    assert (dataset.labels().tolist(), dataset.class_names) == ([1, 0, 1], ["apple", "pear"])


def test_metadata_may_name_no_file_that_is_missing_or_outside(tmp_path):
    write_metadata(tmp_path, "label\na.png,0\nz.png,1\n")
    with pytest.raises(DataError, match=r"1 of 2 files that it lists do not exist:\n.*z\.png"):
        load_dataset(tmp_path)
    for outside in ("../a.png", str(tmp_path / "a.png"), "b/../../a.png"):
        (tmp_path / "metadata.csv").write_text(f"file_name,label\n{outside},0\n")
        with pytest.raises(DataError, match="only paths inside the folder"):
            load_dataset(tmp_path)


def test_metadata_that_cannot_be_parsed_is_named(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": ')
    with pytest.raises(DataError, match=r"metadata\.jsonl, line 1: cannot be read as JSON"):
        load_dataset(tmp_path)


def test_a_folder_of_images_cannot_be_streamed(tmp_path):
    save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="streaming is for parquet files and Hub ids"):
        load_dataset(tmp_path, streaming=True)
