"""The digits of scikit-learn."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from hfgen.data import load_dataset
from hfgen.errors import ConfigError, DataError


def test_digits_equal_scikit_learns_exactly():
    from sklearn.datasets import load_digits

    theirs, ours = load_digits(), load_dataset("digits")
    assert torch.equal(ours.tensor()[:, 0], torch.from_numpy(theirs.images).float() / 8 - 1)
    assert np.array_equal(ours.labels(), theirs.target)
    assert (ours.num_classes, ours.class_names) == (10, [str(name) for name in theirs.target_names])
    assert ours.describe() == "digits: 1,797 images 1x8x8, 10 classes"


def test_digits_are_read_without_importing_scikit_learn_or_datasets():
    code = "import sys; from hfgen.data import load_dataset; load_dataset('digits')"
    code += "; print([name for name in ('sklearn', 'datasets', 'pandas') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_resized_digits_keep_their_mean_and_say_that_they_are_enlarged():
    with pytest.warns(UserWarning, match="smaller than 32x32 and are enlarged") as warned:
        large = load_dataset("digits", resolution=32, channels=3)
    small = load_dataset("digits").tensor()
    assert len(warned) == 1 and large.shape == (3, 32, 32)
    assert torch.equal(large.tensor()[:, 0], large.tensor()[:, 2])
    back = torch.nn.functional.avg_pool2d(large.tensor()[:, :1], 4)
    torch.testing.assert_close(back.mean((1, 2, 3)), small.mean((1, 2, 3)), atol=0.03, rtol=0)


def test_halved_digits_need_no_warning():
    assert load_dataset("digits", resolution=4).shape == (1, 4, 4)


def test_columns_splits_and_streams_are_refused_for_digits():
    for option in [{"split": "test"}, {"image_column": "x"}, {"label_column": "y"}, {"streaming": True}]:
        with pytest.raises(ConfigError, match="digits"):
            load_dataset("digits", **option)


@pytest.mark.parametrize("resolution", [0, -1, 2.5, "8", True, (8,), (8, 0)])
def test_a_resolution_that_is_none_is_refused(resolution):
    with pytest.raises(ConfigError, match="resolution must be an int"):
        load_dataset("digits", resolution=resolution)


def test_channels_and_colours_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match="channels must be 1"):
        load_dataset("digits", channels=2)
    with pytest.raises(ConfigError, match="background must be a colour"):
        load_dataset("digits", background="whyte")


def test_a_misspelt_name_gets_a_hint():
    with pytest.raises(DataError, match="did you mean 'digits'"):
        load_dataset("digits!")
