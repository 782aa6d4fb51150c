"""The benchmark of translated shapes: what it measures and draws of networks that change nothing."""

from pathlib import Path

import pytest
from PIL import Image
from torch import Tensor

from hfgen import ResNetTranslator, TranslationPipeline
from hfgen.data.shapes.dataset import domain_pair
from hfgen.images import from_pil
from hfgen.models.outputs import SampleOutput
from tests.benchmarks import harness, in_process, translation_shapes
from tests.benchmarks.translation_shapes import main


class Unchanged(ResNetTranslator):
    """A translator that gives back what it gets."""

    def forward(self, x: Tensor, return_dict: bool = True) -> SampleOutput:
        """Return x."""
        return SampleOutput(sample=x)


@pytest.fixture
def same(monkeypatch: pytest.MonkeyPatch) -> TranslationPipeline:
    """Return a pipeline that changes nothing, to be measured on 40 pairs."""
    monkeypatch.setattr(translation_shapes, "HELD_OUT", "test[4960:]")
    return TranslationPipeline(*(Unchanged(3, 3, width=4, blocks=1).eval() for _ in range(2)))


@pytest.mark.parametrize("direction", ["a2b", "b2a"])
def test_the_identity_scores_as_the_untranslated_images(direction: str, same: TranslationPipeline) -> None:
    found = translation_shapes.measure(same, direction)
    assert found["direction"] == direction and set(found) | {"seconds"} == {"direction", *translation_shapes.NUMBERS}
    assert abs(found["error"] - found["untranslated"]) < 1e-6 and found["untranslated"] > 0.1
    assert found["cycle_error"] < 1e-6
    assert (found["shape_kept"], found["all_kept"]) == (1.0, 0.0)                    # fill and colour are the input's


def test_the_picture_shows_input_translation_cycle_and_truth_of_twelve_images_of_each_domain(
    same: TranslationPipeline,
) -> None:
    sheet = translation_shapes.picture(same)
    a, b = (domain.tensor(12) for domain in domain_pair("test[4960:]"))
    assert sheet.size == (12 * 66 + 2, 8 * 66 + 2) and sheet.width >= 600
    for row, expected in enumerate([a, a, a, b, b, b, b, a]):
        for column in range(12):
            left, top = 2 + 66 * column, 2 + 66 * row
            cell = from_pil([sheet.crop((left, top, left + 64, top + 64)).resize((32, 32), Image.Resampling.NEAREST)])
            assert (cell[0] - expected[column]).abs().max() < 1e-6, (row, column)


def test_kept_runs_are_drawn_and_measured_again_without_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = in_process.Trainings()
    trained = train.folders

    def call(*words: str) -> list[str]:
        fields = "--width 4 --blocks 1 --discriminator-width 4 --max-steps 2 --batch-size 2".split()
        monkeypatch.setattr("sys.argv", ["x", "--threads", "1", *words, "--", *fields])
        main()
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith(("recipe", "|", "no picture"))]

    monkeypatch.setattr(harness, "train", train)
    monkeypatch.setattr(harness, "ThreadPoolExecutor", in_process.InTurn)
    monkeypatch.setattr(translation_shapes, "HELD_OUT", "test[4980:]")
    kept, results, figure = ("--keep", str(tmp_path / "runs")), tmp_path / "rows.jsonl", tmp_path / "new" / "shapes.png"
    first = call(*kept, "--results", str(results))
    assert trained == [tmp_path / "runs" / "CycleGAN-0"] and first[-2].startswith("| CycleGAN | a2b | 1 |")
    assert (trained[0] / "translations.png").stat().st_size > 0 and not any("no picture" in line for line in first)
    assert call(*kept, "--figure", str(figure)) == first                        # without results: measured again
    assert figure.read_bytes() == (trained[0] / "translations.png").read_bytes()
    figure.unlink()
    call(*kept, "--results", str(results), "--figure", str(figure))             # with them: only drawn
    assert figure.exists() and len(trained) == 1
    (said, *_) = call("--results", str(results), "--figure", str(figure))
    assert said.startswith("no picture: --results has the row of a run that is not there")
    (said, *_) = call("--results", str(results))
    assert said == "no picture was kept: they need --keep FOLDER or --figure FILE" and len(trained) == 1
