"""The drawn shapes: coverage against supersampling, functions of (seed, index), held-out combinations, the checker."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hfgen.data import load_dataset
from hfgen.data.shapes.captions import captions_of, check_captions, describe_images, factors_of
from hfgen.data.shapes.dataset import Shapes, domain_pair, held_out, translated
from hfgen.data.shapes.scene import COMBINATIONS, COUNTS, FACTORS, combined, coverage, geometry, render
from hfgen.errors import ConfigError

EVERY = combined(np.arange(COMBINATIONS))
NAMES = list(FACTORS)


def corners(kind, radius):
    """Return the vertices (K, 2), y down, of a shape around the origin with the area of a circle of that radius."""
    if kind == "square":
        a = math.sqrt(math.pi) / 2 * radius
        return np.array([(-a, -a), (a, -a), (a, a), (-a, a)])
    if kind == "diamond":
        d = math.sqrt(math.pi / 2) * radius
        return np.array([(0, -d), (d, 0), (0, d), (-d, 0)])
    c = math.sqrt(4 * math.pi / (3 * math.sqrt(3))) * radius            # circumradius of the equilateral triangle
    angles = np.radians([-90, 30, 150])
    return c * np.stack([np.cos(angles), np.sin(angles)], 1)


def within(kind, x, y, radius):
    """Return which points lie inside a filled shape: all cross products with the sides have one sign."""
    if kind == "circle":
        return x**2 + y**2 <= radius**2
    points = corners(kind, radius)
    sides = zip(points, np.roll(points, -1, 0), strict=True)
    return np.all([(b - a)[0] * (y - a[1]) - (b - a)[1] * (x - a[0]) >= 0 for a, b in sides], 0)


@pytest.mark.parametrize("kind", FACTORS["shape"])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_coverage_is_that_of_sixteen_by_sixteen_samples_a_pixel(kind, size):
    rows = EVERY[(EVERY[:, 3] == FACTORS["shape"].index(kind)) & (EVERY[:, 1] == 0)][::11]
    placed, (height, width) = geometry(0, np.arange(len(rows)), rows), size
    ours = coverage(rows, placed, height, width)
    y, x = np.meshgrid((np.arange(16 * height) + 0.5) / 16, (np.arange(16 * width) + 0.5) / 16, indexing="ij")
    for i, (centre_x, centre_y, radius) in enumerate(placed.astype(float)):
        fine = within(kind, (x - centre_x * width) / min(size), (y - centre_y * height) / min(size), radius)
        exact = fine.reshape(height, 16, width, 16).mean((1, 3))
        assert np.abs(ours[i] - exact).max() < 0.35                    # at corners, where two edges meet in a pixel
        assert np.abs(ours[i] - exact).mean() < 0.002
        assert abs(exact.sum() / min(size) ** 2 - math.pi * radius**2) < 2e-3           # one area for all shapes


def test_an_outline_is_the_shape_without_the_shape_one_stroke_smaller():
    rows = EVERY[EVERY[:, 1] == 1][::7]
    placed = geometry(0, np.arange(len(rows)), rows)
    full = rows.copy()
    full[:, 1] = 0
    hollow, whole = coverage(rows, placed, 64, 64), coverage(full, placed, 64, 64)
    assert (hollow >= 0).all() and (hollow <= whole).all()
    inradius = {"circle": 1, "square": math.sqrt(math.pi) / 2, "diamond": math.sqrt(math.pi) / 2}
    inradius["triangle"] = math.sqrt(math.pi / math.sqrt(27))
    for row, (_, _, radius), a, b in zip(rows, placed, hollow, whole, strict=True):
        outer = radius * inradius[FACTORS["shape"][row[3]]]
        assert abs(a.sum() / b.sum() - (1 - (1 - 0.04 / outer) ** 2)) < 0.02


def test_items_are_functions_of_their_number_whatever_else_is_drawn():
    whole, part = load_dataset("shapes"), load_dataset("shapes", split="train[1000:1010]")
    assert torch.equal(whole.pixels(range(1000, 1010)), part.pixels(range(10)))
    assert torch.equal(whole.pixels([1003, 5, 1003])[0], part.pixels([3])[0])
    assert torch.equal(whole.tensor(3), load_dataset("shapes").tensor(3))
    one = render(part.factors().numpy()[4:5], geometry(0, np.array([1004]), part.factors().numpy()[4:5]), 32, 32)
    assert np.array_equal(one[0], part.pixels([4])[0])
    other = Shapes("other", np.arange(1000, 1010), part.factors().numpy(), seed=1)
    assert not (other.tensor() == part.tensor()).flatten(1).all(1).any()


def test_images_that_are_not_kept_are_drawn_again_alike():
    kept, drawn = load_dataset("shapes"), load_dataset("shapes", max_resident_bytes=0)
    a, b = (next(dataset.batches(seed=3, batch_size=64)) for dataset in (kept, drawn))
    assert torch.equal(a["x"], b["x"]) and torch.equal(a["label"], b["label"])
    assert kept.fingerprint == drawn.fingerprint
    again = next(kept.batches(seed=3, batch_size=64))["x"]
    assert torch.equal(a["x"], again)


def test_the_dataset_says_what_it_is():
    train, test = load_dataset("shapes", resolution=16), load_dataset("shapes", split="test", resolution=(32, 48))
    assert train.describe() == "shapes: 50,000 images 3x16x16, 4 classes"
    assert test.describe() == "shapes test: 5,000 images 3x32x48, 4 classes"
    assert train.class_names == list(FACTORS["shape"])
    assert torch.equal(train.labels(), train.factors()[:, 3])
    by_colour = load_dataset("shapes", label_column="colour")
    assert (by_colour.num_classes, by_colour.class_names) == (6, list(FACTORS["colour"]))
    assert torch.equal(by_colour.labels(), by_colour.factors()[:, 2])
    assert load_dataset("shapes", label_column="none").labels() is None
    some = [train, test, by_colour, load_dataset("shapes"), load_dataset("shapes", caption_column="caption")]
    assert len({dataset.fingerprint for dataset in some}) == 5


def test_five_hundred_combinations_are_never_trained_on_and_all_tested_on():
    seen, unseen = (set(map(tuple, load_dataset("shapes", split=s).factors().tolist())) for s in ("train", "test"))
    assert len(seen) == COMBINATIONS - 500 and len(unseen) == 500 and not seen & unseen
    assert unseen == set(map(tuple, held_out().tolist()))
    pairs = [(i, j) for i in range(6) for j in range(i)]
    for i, j in pairs:                                                 # no pair of values is new, only combinations are
        assert {(row[i], row[j]) for row in seen} >= {(row[i], row[j]) for row in unseen}


def test_factors_are_drawn_evenly_and_independently():
    factors = load_dataset("shapes").factors()
    for i, count in enumerate(COUNTS):
        shares = torch.bincount(factors[:, i], minlength=count) / len(factors)
        assert (shares * count - 1).abs().max() < 0.06                 # the 500 held-out ones are missing
    correlation = torch.corrcoef(factors.T.double()) - torch.eye(len(COUNTS))
    assert correlation.abs().max() < 0.03


def test_captions_name_all_factors_and_read_back():
    captions = captions_of(EVERY)
    assert len(set(captions)) == COMBINATIONS == 2592
    assert np.array_equal(factors_of(captions), EVERY)
    assert "a large filled red circle at the top left on white" in captions
    sentences = ["a large red circle at the top left", "an outlined diamond", "a square on black"]
    short = factors_of(sentences)
    assert short.tolist() == [[2, -1, 0, 0, 0, -1], [-1, 1, -1, 3, -1, -1], [-1, -1, -1, 1, -1, 1]]
    assert captions_of(short.numpy()) == sentences
    for sentence in ["a large circle red", "red circle", "a pink circle", "a circle on white on black", ""]:
        with pytest.raises(ConfigError, match="cannot read the caption"):
            factors_of([sentence])


def test_captions_come_with_the_images_they_describe():
    dataset = load_dataset("shapes", caption_column="caption")
    batch = next(dataset.batches(seed=0, batch_size=32))
    assert torch.equal(factors_of(batch["caption"])[:, 3], batch["label"])
    assert all(right.all() for right in check_captions(batch["x"], batch["caption"]).values())
    assert "caption" not in next(load_dataset("shapes").batches(seed=0, batch_size=32))


def blurred(x, sigma):
    kernel = torch.exp(-(torch.arange(-3, 4.0) ** 2) / 2 / sigma**2)
    kernel = (kernel / kernel.sum()).outer(kernel / kernel.sum())
    return F.conv2d(F.pad(x, (3, 3, 3, 3), mode="replicate"), kernel.expand(3, 1, 7, 7), groups=3)


@pytest.mark.parametrize("side", [32, 64])
def test_the_checker_sees_every_factor_of_real_images_also_under_mild_blur_and_noise(side):
    dataset = load_dataset("shapes", resolution=side)
    x, truth = dataset.tensor(2000), dataset.factors()[:2000]
    changed = {"clean": x, "noisy": x + 0.1 * torch.randn_like(x), "pale": 0.8 * x}
    changed["blurred"] = blurred(x, 0.7 * side / 32)
    for name, images in changed.items():
        right = (describe_images(images) == truth).double().mean(0)
        assert right.min() >= 0.99, (name, dict(zip(NAMES, right.tolist(), strict=True)))
        if name == "clean":
            assert right.min() >= 0.9995


def test_the_checker_is_wrong_about_wrong_captions_in_the_factor_that_is_wrong():
    rows = combined(np.random.default_rng(0).permutation(COMBINATIONS)[:200])
    x = torch.from_numpy(render(rows, geometry(0, np.arange(200), rows), 32, 32)).float() / 127.5 - 1
    for i, (name, count) in enumerate(zip(NAMES, COUNTS, strict=True)):
        other = rows.copy()
        other[:, i] = (other[:, i] + 1) % count
        seen = check_captions(x, captions_of(other))
        assert not seen[name].any()
        assert all(seen[kept].all() for kept in NAMES if kept != name)
    only_shape = check_captions(x, [f"a {FACTORS['shape'][k]}" for k in rows[:, 3]])
    assert all(right.all() for right in only_shape.values())


def test_the_checker_sees_no_shape_where_there_is_none():
    x = torch.ones(4, 3, 32, 32)
    assert (describe_images(x)[:, :5] == -1).all() and (describe_images(x)[:, 5] == 0).all()
    assert (describe_images(-x)[:, 5] == 1).all()
    assert (describe_images(torch.rand(50, 3, 32, 32) * 2 - 1)[:, 3] == -1).all()
    x[:, 1:, 8:24, 4:6] = -1                                           # a bar that is no shape, but red
    assert describe_images(x)[:, 2:4].tolist() == [[0, -1]] * 4
    assert describe_images(torch.full((1, 3, 32, 32), float("nan"))).tolist() == [[-1] * 5 + [1]]
    assert describe_images(torch.zeros(0, 3, 32, 32)).shape == (0, 6)


def test_captions_and_images_must_fit():
    with pytest.raises(ConfigError, match="each image needs its caption, got 2 images and 1 captions"):
        check_captions(torch.zeros(2, 3, 32, 32), ["a circle"])
    with pytest.raises(ConfigError, match=r"images must be \(N, 3, H, W\)"):
        describe_images(torch.zeros(2, 1, 32, 32))


def test_the_domains_differ_in_fill_and_colour_only_and_share_no_training_geometry():
    a, b = load_dataset("shapes:a"), load_dataset("shapes:b")
    assert (len(a), len(b)) == (25_000, 25_000)
    assert set(map(tuple, a.factors()[:, 1:3].tolist())) == {(0, 0)}                    # filled red
    assert set(map(tuple, b.factors()[:, 1:3].tolist())) == {(1, 4)}                    # outlined blue
    ink_a, ink_b = ({tuple(row) for row in dataset.placed().tolist()} for dataset in (a, b))
    assert len(ink_a) == len(ink_b) == 25_000 and not ink_a & ink_b


def test_a_pair_of_domains_is_aligned_pixel_by_pixel():
    a, b = domain_pair("test", 32)
    assert np.array_equal(translated(a.factors().numpy(), "shapes:b"), b.factors())
    assert np.array_equal(translated(b.factors().numpy(), "shapes:a"), a.factors())
    x, y = a.pixels(range(300)).int(), b.pixels(range(300)).int()
    ground = 255 * (1 - a.factors()[:300, 5])[:, None, None]
    covered = torch.where(ground > 0, 255 - x[:, 2], x[:, 0])           # red takes blue from white, adds red to black
    outlined = torch.where(ground > 0, 255 - y[:, 0], y[:, 2])
    assert (outlined <= covered).all() and (outlined == covered).any() and (covered > outlined).any()
    assert torch.equal(load_dataset("shapes:a", split="test").tensor(5), a.tensor(5))
    assert torch.equal(load_dataset("shapes:b", split="test").tensor(5), b.tensor(5))
    kept = [0, 3, 4, 5]
    assert torch.equal(describe_images(b.tensor(500))[:, kept], a.factors()[:500, kept])


def test_another_seed_is_another_pair_of_domains_aligned_as_well():
    a, b = domain_pair("test[:300]", 16, seed=1)
    zero = domain_pair("test[:300]", 16)[0]
    assert np.array_equal(translated(a.factors().numpy(), "shapes:b"), b.factors())
    assert torch.equal(a.placed(), b.placed()) and a.fingerprint != zero.fingerprint
    items = np.arange(50_000, 50_300)
    assert np.array_equal(a.placed(), geometry(1, items, a.factors().numpy()))
    assert not (a.placed() == zero.placed()).any()
    assert 0.2 < (a.factors()[:, 3] == zero.factors()[:, 3]).double().mean() < 0.3         # drawn anew: a quarter alike


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "validation"}, "there is no split 'validation'; splits: test, train"),
        ({"caption_column": "text"}, "caption_column='text' does not apply; it can be caption"),
        ({"label_column": "class"}, "label_column='class' does not apply; it can be size, fill, colour"),
        ({"image_column": "image"}, "image_column='image' does not apply; leave it out"),
        ({"streaming": True}, "streaming"),
        ({"channels": 1}, "colour is a factor"),
        ({"flip": True}, "left and right are factors"),
        ({"resolution": 4}, "at least 8"),
    ],
)
def test_what_shapes_do_not_have_is_refused(options, message):
    with pytest.raises(ConfigError, match=f"shapes: .*{message}"):
        load_dataset("shapes", **options)
