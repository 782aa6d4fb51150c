"""Batches of images: the same items whatever the ranks, the restarts and where the pixels live."""

import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from hfgen.data import load_dataset, require_batch
from hfgen.data.order import stretch
from hfgen.errors import ConfigError, DataError


def take(dataset, n: int, **options) -> list[dict]:
    return list(islice(dataset.batches(**{"seed": 0, "batch_size": 8} | options), n))


def assert_equal(ours: list[dict], theirs: list[dict]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) if key != "caption" else a[key] == b[key] for key in a)


def captioned(folder: Path) -> Path:
    rows = [f"{path.name},{i % 3},picture {i}" for i, path in enumerate(sorted(folder.glob("*.png")))]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label,text", *rows]))
    return folder


@pytest.fixture(params=["resident", "lazy"])
def noise(request, write_folder):
    """Return 20 labelled, captioned, flipped noise images, decoded once or when needed."""
    limit = 2**31 if request.param == "resident" else 0
    return load_dataset(captioned(write_folder(20)), caption_column="text", flip=True, max_resident_bytes=limit)


def test_a_batch_holds_the_items_of_its_stretch_in_the_unit_range(noise, pixels):
    exact = torch.from_numpy(pixels(20).astype(np.float64)) / 127.5 - 1
    for k, batch in enumerate(take(noise, 6, seed=3)):
        _, indices = stretch(3, 20, 8 * k, 8)
        x, expected = batch["x"].double(), exact[indices]
        flipped = (x - expected.flip(-1)).abs().amax((1, 2, 3)) < 1e-6
        assert torch.where(flipped, 0, (x - expected).abs().amax((1, 2, 3))).max() < 1e-6
        assert batch["x"].dtype == torch.float32 and batch["x"].abs().max() <= 1
        assert batch["label"].tolist() == [i % 3 for i in indices]
        assert batch["caption"] == [f"picture {i}" for i in indices]


def test_the_ranks_slices_together_are_the_whole_batch_bit_for_bit(noise):
    whole = take(noise, 5)
    parts = [take(noise, 5, rows=slice(2 * rank, 2 * rank + 2)) for rank in range(4)]
    for k, batch in enumerate(whole):
        assert torch.equal(batch["x"], torch.cat([part[k]["x"] for part in parts]))
        assert torch.equal(batch["label"], torch.cat([part[k]["label"] for part in parts]))
        assert batch["caption"] == [text for part in parts for text in part[k]["caption"]]


def test_beginning_at_batch_k_is_skipping_k_batches(noise):
    assert_equal(take(noise, 3, first=4), take(noise, 7)[4:])


def test_another_seed_gives_another_order(noise):
    assert not torch.equal(take(noise, 1, seed=0)[0]["x"], take(noise, 1, seed=1)[0]["x"])


def test_lazy_images_equal_resident_ones_bit_for_bit_with_and_without_workers(write_folder):
    folder = captioned(write_folder(20))
    loads = [
        load_dataset(folder, flip=True, caption_column="text", max_resident_bytes=limit, num_workers=workers)
        for limit, workers in [(2**31, 0), (100, 0), (100, 2)]
    ]
    assert [type(dataset).__name__ for dataset in loads] == ["ResidentImages", "LazyImages", "LazyImages"]
    resident, *lazy = (take(dataset, 4) for dataset in loads)
    for batches in lazy:
        assert_equal(batches, resident)
    assert len({dataset.fingerprint for dataset in loads}) == 1
    assert all(torch.equal(dataset.tensor(7), loads[0].tensor()[:7]) for dataset in loads)


def test_flips_depend_on_seed_epoch_and_index_only_and_mirror_half_of_the_images(write_folder):
    folder = write_folder(50)
    dataset, straight = load_dataset(folder, flip=True), load_dataset(folder)

    def flips(seed: int, batch_size: int, total: int) -> dict[tuple[int, int], bool]:
        found = {}
        epochs, indices = stretch(seed, 50, 0, total)
        x = torch.cat([batch["x"] for batch in take(dataset, total // batch_size, seed=seed, batch_size=batch_size)])
        for epoch, index, image in zip(epochs, indices, x, strict=True):
            original = straight.tensor()[index]
            assert torch.equal(image, original) or torch.equal(image, original.flip(-1))
            found[int(epoch), int(index)] = torch.equal(image, original.flip(-1))
        return found

    first = flips(0, 10, 500)
    assert first == flips(0, 25, 500) and first != flips(1, 10, 500)
    assert 0.4 < np.mean(list(first.values())) < 0.6
    assert any(first[0, i] != first[1, i] for i in range(50))
    assert torch.equal(dataset.tensor(), straight.tensor())


def test_iterating_leaves_the_global_random_states_alone(noise):
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    take(noise, 5)
    noise.tensor()
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1]) and before[2] == random.getstate()


def test_16_bit_images_reach_the_model_with_all_their_levels(tmp_path):
    from PIL import Image

    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    for name in ("a.png", "b.png"):
        Image.fromarray(ramp).save(tmp_path / name)
    for limit in (2**31, 0):
        dataset = load_dataset(tmp_path, max_resident_bytes=limit, flip=True)
        exact = torch.from_numpy(ramp.astype(np.float64)) / 32767.5 - 1
        torch.testing.assert_close(dataset.tensor()[0, 0].double(), exact, atol=2e-7, rtol=0)
        x = take(dataset, 1, batch_size=2)[0]["x"][0, 0].double()
        assert min((x - exact).abs().max(), (x - exact.flip(-1)).abs().max()) < 2e-7


def test_the_fingerprint_changes_with_every_pixel_and_choice_and_not_with_the_place(write_folder):
    folder, twin, other = write_folder(4, "a"), write_folder(4, "b"), write_folder(4, "c")
    (other / "003.png").write_bytes((other / "002.png").read_bytes())
    choices = [{}, {"flip": True}, {"channels": 1}, {"channels": 4}, {"resolution": 4}, {"background": "black"}]
    prints = [load_dataset(folder, **choice).fingerprint for choice in choices] + [load_dataset(other).fingerprint]
    assert len(set(prints)) == len(prints) and all(len(bytes.fromhex(text)) == 32 for text in prints)
    assert load_dataset(twin).fingerprint == prints[0]
    labelled = captioned(folder)
    assert load_dataset(labelled).fingerprint not in prints
    assert load_dataset(labelled, caption_column="text").fingerprint != load_dataset(labelled).fingerprint


def test_fewer_images_than_the_batch_are_refused_before_the_first_batch(noise):
    with pytest.raises(DataError, match=r"20 items are fewer than one batch of 21"):
        noise.batches(seed=0, batch_size=21)
    require_batch(noise, 20)


@pytest.mark.parametrize("size", [0, -1, 1.5, True])
def test_a_batch_size_that_is_none_is_refused(noise, size):
    with pytest.raises(ConfigError, match="batch_size must be an int >= 1"):
        require_batch(noise, size)


def test_a_file_that_breaks_during_training_is_named(write_folder):
    folder = write_folder(4)
    dataset = load_dataset(folder, max_resident_bytes=0)
    (folder / "002.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"002\.png: cannot be read any more"):
        take(dataset, 1, batch_size=4)


@pytest.mark.gpu
def test_batches_on_a_gpu_equal_those_on_the_cpu(noise):
    gpu = [{key: value.cpu() if key != "caption" else value for key, value in batch.items()}
           for batch in take(noise, 4, device="cuda")]
    assert_equal(gpu, take(noise, 4))
