"""Two datasets read in step: orders of their own, pairs, crops as functions of (seed, epoch, index), fingerprints."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from hfgen.data import load_dataset, require_batch, stretch
from hfgen.data.shapes.dataset import domain_pair
from hfgen.data.unpaired import Unpaired, known_pairs
from hfgen.errors import ConfigError, DataError

Write = Callable[..., Path]


def numbered(n: int, dataset: Unpaired, key: str, **options: Any) -> list[torch.Tensor]:
    """Return the first n batches of a domain."""
    return [batch[key] for batch in islice(dataset.batches(**options), n)]


def places(batch: torch.Tensor, images: torch.Tensor) -> list[int]:
    """Return which of `images` each one of a batch is."""
    return [int((images == x).flatten(1).all(1).nonzero()) for x in batch]


@pytest.fixture
def folders(write_folder: Write) -> tuple[Path, Path]:
    return write_folder(7, "a"), write_folder(5, "b")


def test_each_domain_has_a_seeded_order_of_its_own_and_its_own_epochs(folders: tuple[Path, Path]) -> None:
    a, b = (load_dataset(folder) for folder in folders)
    dataset = Unpaired(a, b)
    assert len(dataset) == 5 and dataset.shape == (3, 6, 6)
    for key, one, seed in (("a", a, dataset.seeds(3)[0]), ("b", b, dataset.seeds(3)[1])):
        batches = numbered(6, dataset, key, seed=3, batch_size=4)
        found = [place for batch in batches for place in places(batch, one.tensor())]
        assert found == stretch(seed, len(one), 0, 24)[1].tolist()
        assert sorted(found[: len(one)]) == list(range(len(one)))              # an epoch shows every image once
        assert all(batch.dtype == torch.float32 and batch.abs().max() <= 1 for batch in batches)
    assert dataset.seeds(3)[0] != dataset.seeds(3)[1] != dataset.seeds(4)[1]
    again = numbered(2, dataset, "a", seed=4, batch_size=4)
    assert not torch.equal(torch.cat(again), torch.cat(numbered(2, dataset, "a", seed=3, batch_size=4)))


def test_pairs_stay_together_flipped_and_cropped_alike(write_folder: Write) -> None:
    folder = write_folder(9, "a", height=12, width=10)
    a, b = (load_dataset(folder, flip=True) for _ in range(2))
    dataset = Unpaired(a, b, paired=True, crop=(8, 7))
    batches = list(islice(dataset.batches(seed=0, batch_size=4), 9))
    assert all(torch.equal(batch["a"], batch["b"]) for batch in batches)
    whole = torch.cat([a.tensor(), a.tensor().flip(-1)])                       # every box of it, flipped or not
    boxes = whole.unfold(2, 8, 1).unfold(3, 7, 1)                              # (18, 3, 5, 4, 8, 7)
    found = []
    for x in torch.cat([batch["a"] for batch in batches]):
        same = (boxes == x[None, :, None, None]).all(-1).all(-1).all(1)
        found += same.nonzero().tolist()
    assert len(found) == 36
    flips, tops, lefts = ({spot[0] // 9 for spot in found}, {spot[1] for spot in found}, {spot[2] for spot in found})
    assert flips == {0, 1} and tops == set(range(5)) and lefts == set(range(4))
    unpaired = Unpaired(a, b, crop=(8, 7))
    assert not any(torch.equal(batch["a"], batch["b"]) for batch in islice(unpaired.batches(seed=0, batch_size=4), 4))


def test_rows_and_resumption_give_the_same_batches_also_where_images_are_decoded_late(write_folder: Write) -> None:
    folders = write_folder(9, "a", height=9, width=9), write_folder(6, "b", height=8, width=8)
    resident = Unpaired(*(load_dataset(f, flip=True) for f in folders), crop=7)
    lazy = Unpaired(*(load_dataset(f, flip=True, max_resident_bytes=0) for f in folders), crop=7)
    assert resident.fingerprint == lazy.fingerprint
    whole = list(islice(resident.batches(seed=1, batch_size=4), 6))
    later = list(islice(lazy.batches(seed=1, batch_size=4, first=3), 3))
    parts = [list(islice(resident.batches(seed=1, batch_size=4, rows=slice(i, i + 2)), 6)) for i in (0, 2)]
    for key in ("a", "b"):
        for k in range(6):
            assert torch.equal(whole[k][key], torch.cat([part[k][key] for part in parts]))
        for one, other in zip(whole[3:], later, strict=True):
            assert torch.equal(one[key], other[key])


def test_the_middle_is_shown_where_nothing_is_random(write_folder: Write) -> None:
    a, b = load_dataset(write_folder(3, "a", height=8, width=11)), load_dataset(write_folder(4, "b"))
    dataset = Unpaired(a, b, crop=(6, 5))
    assert torch.equal(dataset.tensor(2), a.tensor(2)[:, :, 1:7, 3:8])
    assert dataset.shape_a == dataset.shape_b == (3, 6, 5)
    assert torch.equal(Unpaired(b, b).tensor(), b.tensor())


def test_the_fingerprint_covers_both_sets_and_every_choice(folders: tuple[Path, Path]) -> None:
    a, b = (load_dataset(folder) for folder in folders)
    flipped = load_dataset(folders[1], flip=True)
    some = [Unpaired(a, b), Unpaired(b, a), Unpaired(a, b, crop=5), Unpaired(a, flipped), Unpaired(a, a),
            Unpaired(a, a, paired=True)]  # fmt: skip
    assert len({dataset.fingerprint for dataset in some}) == len(some)
    assert Unpaired(a, b).fingerprint == some[0].fingerprint
    text = Unpaired(a, b, crop=5).describe()
    assert "7 images 3x6x6" in text and "5 images 3x6x6" in text and "unpaired, random crops of 5x5" in text


def test_streams_can_be_translated_without_pairs(write_parquet: Write) -> None:
    table = str(write_parquet(6))
    stream, resident = load_dataset(table, streaming=True), load_dataset(table)
    dataset = Unpaired(stream, resident, crop=4)
    with pytest.raises(TypeError, match="no length"):
        len(dataset)
    require_batch(dataset, 3)
    batches = numbered(4, dataset, "a", seed=0, batch_size=3)
    later = next(dataset.batches(seed=0, batch_size=3, first=2))["a"]
    assert torch.equal(batches[2], later) and batches[0].shape == (3, 3, 4, 4)
    with pytest.raises(ConfigError, match="pairs cannot be read as streams"):
        Unpaired(stream, resident, paired=True)


def test_what_does_not_go_together_is_refused_by_reason(write_folder: Write) -> None:
    small, large = load_dataset(write_folder(3, "small")), load_dataset(write_folder(3, "large", height=9))
    more = load_dataset(write_folder(4, "more"))
    with pytest.raises(DataError, match=r"must have one size: .*small has 6x6, .*large 9x6 .* set a resolution"):
        Unpaired(small, large)
    with pytest.raises(ConfigError, match=r"a crop of 7x7 does not fit into images of 6x6"):
        Unpaired(small, large, crop=7)
    with pytest.raises(DataError, match=r"pairs must have one size"):
        Unpaired(small, large, paired=True, crop=4)
    with pytest.raises(DataError, match=r"as many images in A as in B: .*small has 3, .*more has 4"):
        Unpaired(small, more, paired=True)
    with pytest.raises(ConfigError, match="ring8 is a set of points"):
        Unpaired(small, load_dataset("ring8"))
    with pytest.raises(DataError, match="3 items are fewer than one batch of 4"):
        Unpaired(small, more).batches(seed=0, batch_size=4)


def test_only_the_test_splits_of_the_drawn_domains_are_pairs() -> None:
    train, test = ([load_dataset(f"shapes:{d}", split=split) for d in "ab"] for split in ("train[:50]", "test[:50]"))
    with pytest.raises(DataError, match=r"are no pairs: image [0-9]+ shows another scene in each; .* test are pairs"):
        Unpaired(*train, paired=True)
    dataset = Unpaired(*test, paired=True)
    batch = next(dataset.batches(seed=0, batch_size=20))
    truth = {x.numpy().tobytes(): y for x, y in zip(test[0].tensor(), test[1].tensor(), strict=True)}
    assert all(torch.equal(truth[x.numpy().tobytes()], y) for x, y in zip(batch["a"], batch["b"], strict=True))


def test_pairs_are_known_of_the_drawn_domains_with_the_same_scenes_only(folders: tuple[Path, Path]) -> None:
    a, b = (load_dataset(f"shapes:{d}", split="test[10:30]", resolution=8) for d in "ab")
    assert known_pairs(a, b) and known_pairs(b, a)
    assert not known_pairs(a, a)                                               # that is no translation
    one = load_dataset("shapes:b", split="test[11:31]", resolution=8), load_dataset("shapes:b", split="test[10:29]")
    assert not any(known_pairs(a, other) for other in one)
    assert not known_pairs(*(load_dataset(f"shapes:{d}", split="train[:20]") for d in "ab"))
    drawn = domain_pair("test[10:30]", 8, seed=1)
    assert known_pairs(*drawn) and not known_pairs(a, drawn[1])
    every = load_dataset("shapes", split="test[10:30]", resolution=8)
    assert not known_pairs(every, every)
    assert not known_pairs(*(load_dataset(folders[0]) for _ in "ab"))          # of folders nobody knows
