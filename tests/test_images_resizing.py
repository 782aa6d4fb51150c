"""Images brought to a size: the box that is cut out of them, against Pillow."""

import numpy as np
import torch
from PIL import Image

from hfgen.images import fitted


def test_the_box_of_a_far_longer_shape_is_one_pixel_high_or_wide() -> None:
    unit = torch.rand(1, 1, 3, 2, generator=torch.Generator().manual_seed(0))
    row = Image.fromarray(unit[0, 0, 1:2].numpy()).resize((100, 8), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(row)).clamp(0, 1)
    torch.testing.assert_close(fitted(unit, 8, 100)[0, 0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(fitted(unit.mT, 100, 8)[0, 0], expected.T, atol=1e-5, rtol=0)
