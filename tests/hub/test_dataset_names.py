"""Names of datasets: a slip is named without asking the Hub, and the Hub is asked for an unknown one only once."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.hub.standin import Standin, run_client

LOAD = """
from hfgen.data import load_dataset
from hfgen.errors import HfgenError
try:
    print(load_dataset({name!r}).describe())
except HfgenError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("name", "near"), [("digit", "digits"), ("Digits", "digits"), ("moon", "moons"), ("swiss_roll", "swissroll")]
)
def test_a_slip_in_the_name_of_a_built_in_dataset_is_named_without_a_request(
    hub: Standin, tmp_path: Path, name: str, near: str
) -> None:
    says = run_client(hub, LOAD.format(name=name), tmp_path).stdout
    assert says.startswith("DataError") and f"did you mean {near!r}?" in says and "grid25" in says
    assert not hub.seen("datasets")


def test_a_folder_that_does_not_exist_is_named_without_a_request(hub: Standin, tmp_path: Path) -> None:
    says = run_client(hub, LOAD.format(name="nofolder"), tmp_path).stdout
    assert says.startswith("DataError nofolder: no such file or folder; ") and "owner/name" in says
    assert not hub.seen("datasets")


def test_a_name_that_nobody_has_takes_one_request(hub: Standin, tmp_path: Path) -> None:
    name = "user/nothing"
    says = run_client(hub, LOAD.format(name=name), tmp_path).stdout
    assert says.startswith(f"DataError {name}: no such file or folder, not a built-in dataset, and no dataset of")
    assert len(hub.seen("datasets")) == 1


def test_without_a_connection_a_cached_dataset_is_used_and_any_other_name_ends_after_one_request(
    hub: Standin, tmp_path: Path
) -> None:
    png, parquet = io.BytesIO(), io.BytesIO()
    Image.new("L", (4, 4)).save(png, "png")
    pq.write_table(pa.table({"image": pa.array([png.getvalue()] * 3, pa.binary())}), parquet)
    hub.put("user/three", {"data/train-00000-of-00001.parquet": parquet.getvalue()}, kind="dataset")
    there = run_client(hub, LOAD.format(name="user/three"), tmp_path).stdout
    assert "3 images" in there
    hub.cut(".", at=0.0, times=1000)
    before = len(hub.seen("datasets"))
    says = run_client(hub, LOAD.format(name="user/other"), tmp_path).stdout
    assert says.startswith("DataError user/other: no such file") and "out of reach" in says
    assert len(hub.seen("datasets")) == before + 1
    assert run_client(hub, LOAD.format(name="user/three"), tmp_path).stdout == there
