"""Streams: windows of examples in a seeded order."""

from itertools import islice

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import hfgen.data.stream
from hfgen.data import load_dataset
from hfgen.data.dataset import fingerprint_of
from hfgen.data.tables import image_bytes
from hfgen.errors import ConfigError, DataError

NAMES = datasets.ClassLabel(names=["no", "yes"])


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(hfgen.data.stream, "WINDOW", 8)


@pytest.fixture
def stream(write_parquet):
    """Return 20 labelled and captioned examples as a stream: windows of 8, 8 and 4."""
    columns = {"label": [i % 2 for i in range(20)], "number": [f"{i}" for i in range(20)]}
    file = write_parquet(20, **columns, features={"label": NAMES})
    return lambda **options: load_dataset(file, streaming=True, caption_column="number", flip=True, **options)


def take(dataset, n: int, **options) -> list[dict]:
    return list(islice(dataset.batches(**{"seed": 0, "batch_size": 6} | options), n))


def numbers(batches: list[dict]) -> list[int]:
    return [int(caption) for batch in batches for caption in batch["caption"]]


def test_every_epoch_is_a_permutation_inside_each_window(stream):
    order = np.array(numbers(take(stream(), 10))).reshape(3, 20)
    for epoch in order:
        for window in (slice(0, 8), slice(8, 16), slice(16, 20)):
            assert sorted(epoch[window]) == list(range(20))[window]
    assert not (order[0] == order[1]).all() and not (order[0] == np.arange(20)).all()
    assert numbers(take(stream(), 3, seed=1)) != order[0, :18].tolist()


def test_a_batch_holds_images_labels_and_captions_of_the_same_rows(stream, pixels):
    exact = torch.from_numpy(pixels(20).astype(np.float32)) / 127.5 - 1
    for batch in take(stream(), 5):
        rows = [int(caption) for caption in batch["caption"]]
        assert batch["label"].tolist() == [row % 2 for row in rows]
        for x, expected in zip(batch["x"], exact[rows], strict=True):
            assert min((x - expected).abs().max(), (x - expected.flip(-1)).abs().max()) < 1e-6


@pytest.mark.parametrize("first", [1, 2, 3, 4, 9, 40])
def test_a_stream_resumes_at_any_batch_bit_for_bit(stream, first):
    whole, resumed = take(stream(), first + 3)[first:], take(stream(), 3, first=first)
    assert numbers(whole) == numbers(resumed)
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(whole, resumed, strict=True))


def test_the_ranks_slices_together_are_the_whole_batch(stream):
    whole = take(stream(), 5)
    parts = [take(stream(), 5, rows=slice(3 * rank, 3 * rank + 3)) for rank in range(2)]
    for k, batch in enumerate(whole):
        assert torch.equal(batch["x"], torch.cat([part[k]["x"] for part in parts]))
        assert batch["caption"] == parts[0][k]["caption"] + parts[1][k]["caption"]


def test_the_fingerprint_of_a_stream_is_that_of_runs_made_before(stream):
    dataset = stream()
    rows = list(dataset._stream.take(8))
    content = [(image_bytes(row["image"], follow=True), row["label"], row["number"]) for row in rows]
    choices = (
        b"Wanted(resolution=None, channels=None, background=(255, 255, 255), skip_bad_images=False, flip=True)"
    )
    columns = "Columns(image='image', label='label', caption='number')"
    assert repr(dataset.columns) == columns
    assert dataset.fingerprint == fingerprint_of("stream", content, dataset.layout, choices, columns.encode(), 8)


def test_a_stream_tells_what_it_knows_and_refuses_what_it_cannot(stream, pixels):
    dataset = stream()
    assert dataset.describe().endswith("(stream): images 3x6x6, 2 classes") and dataset.class_names == ["no", "yes"]
    assert dataset.fingerprint == stream().fingerprint != stream(channels=1).fingerprint
    torch.testing.assert_close(dataset.tensor(11), torch.from_numpy(pixels(11)) / 127.5 - 1, atol=1e-6, rtol=0)
    with pytest.raises(TypeError, match="has no length"):
        len(dataset)
    with pytest.raises(ConfigError, match="give the number of images"):
        dataset.tensor()


def test_a_stream_shorter_than_a_batch_is_refused_before_the_first_step(write_parquet):
    with pytest.raises(DataError, match="5 images are fewer than one batch of 6"):
        load_dataset(write_parquet(5), streaming=True).batches(seed=0, batch_size=6)


def test_iterating_a_stream_leaves_the_global_random_state_alone(stream):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    take(stream(), 5, first=2)
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])


@pytest.fixture
def damaged(write_parquet, tmp_path):
    """Return a table whose rows 2 (in the first window) and 11 are no images."""
    rows = pq.read_table(write_parquet(20)).to_pylist()
    for i, row in enumerate(rows):
        row["number"] = str(i)
    for bad in (2, 11):
        rows[bad]["image"]["bytes"] = b"junk"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "damaged.parquet")
    return tmp_path / "damaged.parquet"


def test_broken_images_of_the_first_window_are_listed_at_once(damaged):
    with pytest.raises(DataError, match=r"1 of 8 images cannot be read:\n.*example 2: no image"):
        load_dataset(damaged, streaming=True)


def test_skipped_images_give_way_to_others_of_their_window_and_no_position_moves(damaged):
    dataset = load_dataset(damaged, streaming=True, skip_bad_images=True, caption_column="number")
    order = np.array(numbers(take(dataset, 10))).reshape(3, 20)
    for epoch in order:
        for window in (slice(0, 8), slice(8, 16), slice(16, 20)):
            assert set(epoch[window]) == set(range(20)[window]) - {2, 11}
    assert order.ravel()[30:].tolist() == numbers(take(dataset, 5, first=5))


def test_a_later_broken_image_is_named_when_it_comes(damaged, tmp_path):
    rows = pq.read_table(damaged).to_pylist()
    pq.write_table(pa.Table.from_pylist(rows[3:]), tmp_path / "later.parquet")
    dataset = load_dataset(tmp_path / "later.parquet", streaming=True)
    with pytest.raises(DataError, match="example 8: no image"):
        take(dataset, 3)


def test_labels_of_a_stream_must_declare_their_classes(write_parquet):
    file = write_parquet(4, label=[0, 1, 0, 1])
    with pytest.raises(ConfigError, match="'label' does not declare its classes"):
        load_dataset(file, streaming=True)
    assert load_dataset(file, streaming=True, label_column="none").num_classes is None


def test_a_split_that_does_not_exist_is_refused(write_parquet):
    with pytest.raises(ConfigError, match="foo"):
        load_dataset(write_parquet(4), streaming=True, split="foo")
