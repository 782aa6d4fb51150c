"""Data that somebody made to stop, mislead or open something: each is one error that names the place."""

import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from hfgen.checks import check_model
from hfgen.data import load_dataset
from hfgen.errors import ConfigError, DataError, HfgenError

NAMES = ["1.png", "2.png", "3.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        Image.new("L", (4, 4)).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(("name", "text", "words"), [
    ("metadata.csv", 'file_name,label\n"",0\n', r"names the file ''"),
    ("metadata.csv", "file_name,label\n.,0\n", r"names the file '\.'"),
    ("metadata.csv", "file_name,label\n1.png,0\n2.png,1,\n", r"metadata\.csv, line 3: has more cells than the 2"),
    ("metadata.csv", "file_name,text\n1.png,a red, round thing\n", r"line 2: has more cells .* quotation marks"),
    ("metadata.csv", f"file_name\n{'a' * 5000}.png\n", "names the file"),
    ("metadata.csv", f"file_name,label\n1.png,{'9' * 5000}\n", "cannot be read as csv"),
    ("metadata.csv", "file_name,label\n1.png,0\n2.png,99999999999999999999\n", "has gaps"),
    ("metadata.csv", "file_name,label\n1.png,0\n2.png,1e999\n", "holds float and int"),
    ("metadata.jsonl", '{"file_name": "1.png"}\n7\n', r"metadata\.jsonl, line 2: must be a JSON object, got int"),
    ("metadata.jsonl", '{"file_name": "1.png"}\n\n["2.png"]\n', "line 3: must be a JSON object, got list"),
    ("metadata.jsonl", '{"file_name": ""}\n', r"names the file ''"),
    ("metadata.jsonl", '{"file_name": "a\\u0000b.png"}\n', "only paths inside the folder"),
    ("metadata.jsonl", '{"file_name": "1.png", "label": 18446744073709551616}\n', "has gaps"),
    ("metadata.jsonl", '{"file_name": "1.png", "label": -99999999999999999999}\n', "labels start at 0"),
    ("metadata.jsonl", "[" * 100_000 + "\n", r"metadata\.jsonl, line 1: cannot be read as JSON"),
    ("metadata.jsonl", '{"file_name": "1.png"}\n{', "line 2: cannot be read as JSON"),
])  # fmt: skip
def test_metadata_that_cannot_be_meant_names_the_file_and_the_line(
    name: str, text: str, words: str, folder: Path
) -> None:
    (folder / name).write_text(text)
    with pytest.raises((DataError, ConfigError), match=words) as raised:
        load_dataset(folder)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("name", ["0.png", "metadata.csv", "metadata.jsonl"])
def test_a_pipe_in_a_folder_is_named_and_never_opened(name: str, folder: Path) -> None:
    os.mkfifo(folder / name)
    code = f"""
from hfgen.data import load_dataset
from hfgen.errors import DataError
try:
    load_dataset({str(folder)!r})
except DataError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert f"{folder / name}: is no regular file" in done.stdout, done.stderr


def test_a_pipe_is_skipped_like_other_images_that_cannot_be_read(folder: Path) -> None:
    os.mkfifo(folder / "0.png")
    with pytest.warns(UserWarning, match="left out 1 of 4 images"):
        assert len(load_dataset(folder, skip_bad_images=True)) == 3


FEATURES = datasets.Features({"image": datasets.Image()})


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("path", ["http://127.0.0.1:9/x.png", "/etc/passwd", "zip://x.png::/tmp/x.zip"])
def test_a_cell_of_a_table_that_names_a_file_is_not_followed(path: str, streaming: bool, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": path}]}, features=FEATURES)
    rows.data.table.to_pandas()
    import pyarrow.parquet

    pyarrow.parquet.write_table(rows.data.table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match="names in tables are not followed"):
        load_dataset(tmp_path / "x.parquet", streaming=streaming)
    with pytest.raises(DataError, match="names in tables are not followed"):
        load_dataset(datasets.Dataset.from_parquet(str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "cache")))


def test_a_saved_folder_whose_cells_name_files_is_not_followed(folder: Path, tmp_path: Path) -> None:
    cell = {"bytes": None, "path": str(folder / NAMES[0])}
    rows = datasets.Dataset.from_dict({"image": [cell]}, features=FEATURES)
    plain = rows.cast_column("image", datasets.Image(decode=False))
    assert len(load_dataset(rows)) == 1                            # a table of somebody's own program
    plain.with_format(None).cast(datasets.Features({"image": {"bytes": datasets.Value("binary"),
                                                              "path": datasets.Value("string")}})
                                 ).save_to_disk(str(tmp_path / "saved"))  # fmt: skip
    with pytest.raises(DataError, match="names in tables are not followed"):
        load_dataset(tmp_path / "saved")


@pytest.mark.parametrize("high", [float("inf"), float("nan"), 0.0])
def test_a_float_image_with_a_range_without_end_is_refused(high: float, tmp_path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in ((340, 0.0), (341, high)):
        tags.tagtype[tag] = 11
        tags[tag] = value
    pixels = np.linspace(0, 0.5, 16, dtype=np.float32).reshape(4, 4)
    Image.fromarray(pixels).save(tmp_path / "x.tiff", tiffinfo=tags)
    with pytest.raises(DataError, match="have no known range"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("name", ["a" * 5000, "~nosuchuser/x", "", "a\0b", "a" * 300 + ".png", "/" + "b/" * 5000])
def test_a_name_that_cannot_be_one_is_refused_with_a_short_message(name: str) -> None:
    for check in (load_dataset, check_model):
        with pytest.raises(HfgenError) as raised:
            check(name)
        assert len(str(raised.value)) < 12_000
