"""What a run of translation measures of held-out images, by the metrics' own functions, and its grid."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hfgen import TranslationPipeline
from hfgen.data.shapes.dataset import domain_pair
from hfgen.images import to_pil
from hfgen.metrics.translation import cycle_error, translation_error
from hfgen.models.outputs import SampleOutput
from hfgen.training.engine.run import main
from hfgen.training.translation import RECIPE, held_out, open_datasets
from hfgen.training.translation_evaluation import evaluate, preview
from tests.training import runs
from tests.training.test_translation_recipe import PAIRS
from tests.training.tiny import TRANSLATION

settings = TRANSLATION.settings


def test_a_run_measures_cycles_and_true_translations_of_held_out_images(tmp_path: Path) -> None:
    words = [*runs.SHARED, *runs.TINY["translation"], "--max-steps", "4", "--sample-every", "2", "--save-every", "0"]
    assert main(RECIPE, ["--output-dir", str(tmp_path / "run"), *words, "--eval-split", "test[40:60]"]) == 0
    log = runs.metrics(tmp_path / "run")
    measured = {f"eval_cycle_error_{x}" for x in "ab"} | {f"eval_translation_error_{d}" for d in ("a2b", "b2a")}
    assert [measured <= set(line) for line in log] == [False, True, False, True]
    pipe, pair = TranslationPipeline.from_pretrained(tmp_path / "run"), domain_pair("test[40:60]", 16)
    for direction, (x, y) in (("a2b", pair), ("b2a", pair[::-1])):
        real = x.tensor()
        made, back = (call(real / 2 + 0.5, direction, output_type="pt").images * 2 - 1 for call in (pipe, pipe.cycle))
        assert log[-1][f"eval_cycle_error_{direction[0]}"] == pytest.approx(cycle_error(real, back), abs=1e-6)
        expected = translation_error(made, y.tensor(), real)
        assert log[-1][f"eval_translation_error_{direction}"] == pytest.approx(expected, abs=1e-6)


def test_translations_have_an_error_only_where_their_truth_is_known() -> None:
    cases: list[tuple[dict[str, Any], bool]] = [
        ({"eval_split": "test[:3]"}, True),
        ({"eval_split": "test[:3]", "eval_split_b": "test[3:6]"}, False),
        ({"eval_split": "train[:3]"}, False),
        ({"eval_dataset_b": "shapes:a", "eval_split": "test[:3]"}, False),
        ({**PAIRS, "split": "test[:40]", "eval_split": "test[40:43]"}, True),
        ({"eval_split_b": "test[:3]"}, False),
    ]
    for changes, known in cases:
        s = settings(**changes)
        recipe = RECIPE.create(s, open_datasets(s))
        assert recipe.evaluate is not None
        found = recipe.evaluate(recipe.nets)
        assert set(found) == {"eval_cycle_error_a", "eval_cycle_error_b"} | (
            {"eval_translation_error_a2b", "eval_translation_error_b2a"} if known else set()
        ), changes
    assert RECIPE.create(settings(), open_datasets(settings())).evaluate is None


def test_held_out_images_have_the_sides_the_channels_and_the_middle_of_the_training_data() -> None:
    s = settings(resolution=None, crop=8, eval_dataset_a="digits", eval_split_b="test[:200]")
    with pytest.warns(UserWarning, match="are enlarged"):
        shown = held_out(s, open_datasets(s))
    assert shown is not None and not shown.paired
    assert (shown.a.shape, shown.b.shape, shown.shape_a) == ((3, 32, 32), (3, 32, 32), (3, 8, 8))
    assert (shown.a.name, shown.b.name) == ("digits", "shapes:b test[:200]")
    seen: list[torch.Tensor] = []

    class Unchanged(torch.nn.Module):
        sides, device, dtype = (1, 1), "cpu", torch.float32

        def forward(self, x: torch.Tensor) -> SampleOutput:
            seen.append(x)
            return SampleOutput(sample=x)

    numbers = evaluate({"generator_a2b": Unchanged(), "generator_b2a": Unchanged()}, shown)
    assert numbers == {"eval_cycle_error_a": 0.0, "eval_cycle_error_b": 0.0}
    assert torch.equal(torch.cat(seen)[:128], shown.a.tensor(128)[:, :, 12:20, 12:20])  # the first 128, their middle
    assert len(torch.cat(seen)) == 4 * 128


def test_the_grid_shows_each_domain_translated_and_back_image_below_image() -> None:
    s = settings(eval_split="test[:5]", eval_split_b="test[:3]")
    dataset = open_datasets(s)
    recipe, shown = RECIPE.create(s, dataset), held_out(s, dataset)
    assert shown is not None
    pipe: Any = recipe.pipeline(recipe.nets)
    sheet, drawn = recipe.preview(pipe), []
    with torch.no_grad():
        for net, back, domain in (
            (pipe.generator_a2b, pipe.generator_b2a, shown.a), (pipe.generator_b2a, pipe.generator_a2b, shown.b)
        ):  # fmt: skip
            x = domain.tensor(3)
            drawn += [x, net(x).sample, back(net(x).sample).sample]
    assert sheet.size == (3 * 34 + 2, 6 * 34 + 2)                               # 16 pixels, enlarged to 32
    for row, expected in enumerate(drawn):
        for column, picture in enumerate(to_pil(expected)):
            place = (2 + 34 * column, 2 + 34 * row)
            cell = sheet.crop((*place, place[0] + 32, place[1] + 32)).resize((16, 16), 0)
            assert cell.tobytes() == picture.tobytes(), (row, column)
    assert preview(pipe, dataset).size == (8 * 34 + 2, 6 * 34 + 2)              # of the training data: eight of each
