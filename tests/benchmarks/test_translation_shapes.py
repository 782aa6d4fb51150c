"""The benchmark of translated shapes: what it measures of networks that change nothing."""

from pathlib import Path

import pytest
from PIL import Image
from torch import Tensor

from hfgen import ResNetTranslator, TranslationPipeline
from tests.benchmarks import translation_shapes


class Unchanged(ResNetTranslator):
    """A translator that gives back what it gets."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x."""
        return x


@pytest.mark.parametrize("direction", ["a2b", "b2a"])
def test_the_identity_scores_as_the_untranslated_images(
    direction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translation_shapes, "HELD_OUT", "test[4960:]")
    same = TranslationPipeline(*(Unchanged(3, 3, width=4, blocks=1).eval() for _ in range(2)))
    found = translation_shapes.measure(same, direction, tmp_path)
    assert found["direction"] == direction and set(found) | {"seconds"} == {"direction", *translation_shapes.NUMBERS}
    assert abs(found["error"] - found["untranslated"]) < 1e-6 and found["untranslated"] > 0.1
    assert found["cycle_error"] < 1e-6
    assert (found["shape_kept"], found["all_kept"]) == (1.0, 0.0)                    # fill and colour are the input's
    with Image.open(tmp_path / f"{direction}.png") as picture:
        assert picture.width > 16 * 32 and picture.height > 4 * 32
