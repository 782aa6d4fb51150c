"""The benchmark of captions: what its shares say of real images with their own captions, and with others'."""

from typing import Any

import torch

from hfgen.data import load_dataset
from tests.benchmarks.shapes_captions import shares


def test_shares_are_1_on_real_images_and_low_where_the_captions_are_shuffled() -> None:
    real: Any = load_dataset("shapes", split="test", caption_column="caption")
    x, captions = real.tensor(64), list(real.captions[:64])
    right = shares(x, captions)
    assert {"colour and shape", "colour", "shape", "all"} <= set(right) and set(right.values()) == {1.0}
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0)).tolist()
    wrong = shares(x, [captions[i] for i in order])
    assert wrong["all"] <= wrong["colour and shape"] <= min(wrong["colour"], wrong["shape"])
    assert max(wrong["colour"], wrong["shape"]) < 0.5 and wrong["all"] < 0.1
