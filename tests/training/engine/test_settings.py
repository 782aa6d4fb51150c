"""Settings from the command line and from YAML, and what may differ on resume."""

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Literal

import pytest
import yaml

from hfgen.cli import RECIPES
from hfgen.errors import CheckpointError, ConfigError
from hfgen.training.engine.lr_schedule import factor
from hfgen.training.engine.parse import parse
from hfgen.training.engine.run import main
from hfgen.training.engine.settings import Settings, check_same, seconds_of, write_yaml
from hfgen.training.latent_diffusion import LatentDiffusionSettings


@dataclass(kw_only=True)
class TinySettings(Settings):
    """A recipe's settings."""

    widths: tuple[int, ...] = (8, 16)
    """Channels."""
    kind: Literal["no", "yes"] = "no"
    """A choice whose name YAML reads as a truth value."""


def test_the_command_line_wins_over_yaml_and_yaml_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("batch-size: 32\nlearning_rate: 0.5\nwidths: [4, 8, 12]\nkind: no\nflip: true\n")
    settings = parse(TinySettings, ["--config", str(file), "--output-dir", "x", "--batch_size", "16"])
    assert (settings.batch_size, settings.learning_rate, settings.widths) == (16, 0.5, (4, 8, 12))
    assert settings.kind == "no" and settings.flip and settings.warmup_steps == 100


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("words", [[], ["--resume"], ["--dataset", "digits", "--config"]])
def test_a_command_that_is_cut_short_ends_with_the_usage_of_one_page(
    recipe: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(import_module(f"hfgen.training.{recipe}").RECIPE, words)
    told = capsys.readouterr().err
    assert ended.value.code == 2 and len(told.splitlines()) < 30 and "Traceback" not in told
    assert ("--config" if "--config" in words else "--output-dir PATH") in told


def test_the_stored_settings_are_found_through_the_folder_that_a_yaml_file_names(tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "a.yaml"
    run.mkdir()
    write_yaml(parse(TinySettings, ["--output-dir", str(run), "--batch-size", "24", "--kind=yes"]), run / "config.yaml")
    file.write_text(f"output_dir: {run}\nkind: no\n")
    settings = parse(TinySettings, ["--config", str(file), "--resume"])
    assert (settings.batch_size, settings.kind, settings.output_dir) == (24, "no", run)


def test_the_last_of_steps_and_budget_counts_and_a_repeated_budget_keeps_its_steps(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"

    def read(text: str, words: str) -> tuple[int | None, str | None]:
        file.write_text(text)
        settings = parse(TinySettings, f"--output-dir x --config={file} {words}".split())
        return settings.max_steps, settings.budget

    assert read("max_steps: 500", "--budget 3m") == (None, "3m")
    assert read("budget: 3m", "--max_steps 7") == (7, None)
    both = "max_steps: 500\nbudget: 3m"                      # what a run with a budget has stored
    assert read(both, "") == read(both, "--budget 3m") == (500, "3m")
    assert read(both, "--budget=4m") == (None, "4m")


def test_what_is_missing_is_named_with_the_command_that_lists_all_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(LatentDiffusionSettings, ["--dataset", "shapes", "--output-dir", "x"])
    found = capsys.readouterr().err
    assert "--autoencoder STR" in found and "hfgen train latent_diffusion --help" in found


def test_written_settings_are_read_back_the_same(tmp_path: Path) -> None:
    settings = parse(TinySettings, "--output-dir x --resolution 8 12 --widths 3 --max-steps 7".split())
    write_yaml(settings, tmp_path / "config.yaml")
    again = parse(TinySettings, ["--config", str(tmp_path / "config.yaml")])
    assert replace(again, config=None) == settings


def test_resume_starts_from_the_settings_stored_in_the_run(tmp_path: Path) -> None:
    settings = parse(TinySettings, ["--output-dir", str(tmp_path), "--batch-size", "24"])
    write_yaml(settings, tmp_path / "config.yaml")
    assert parse(TinySettings, ["--output-dir", str(tmp_path), "--resume"]).batch_size == 24
    assert parse(TinySettings, ["--output-dir", str(tmp_path)]).batch_size is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bach_size: 3", r"a\.yaml: unknown field 'bach_size'; did you mean batch_size"),
        ("[1, 2]", r"a\.yaml: must hold `field: value` lines, found list"),
        ("{", r"a\.yaml: cannot be read as YAML"),
        ("seed: three", r"a\.yaml: holds a value that its field does not take"),
    ],
)
def test_bad_yaml_is_an_error_that_names_the_file_and_the_field(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse(TinySettings, ["--config", str(tmp_path / "a.yaml"), "--output-dir", "x"])


@pytest.mark.parametrize(
    "arguments",
    ["--batch-size 0", "--keep-checkpoints 1", "--ema-decay 1.0", "--budget 3", "--learning-rate -1",
     "--budget 3m --max-steps 5", "--warmup-steps -1", "--learning-rate nan", "--learning-rate inf",
     "--max-grad-norm inf", "--seed 18446744073709551616", "--seed -1", "--threads 100000000000000000000",
     "--resolution 100000000", "--resolution 8 100000000", "--max-steps 9223372036854775808"],
)  # fmt: skip
def test_values_that_no_run_can_use_are_refused_by_name(arguments: str) -> None:
    with pytest.raises(ConfigError, match=arguments.split()[0]):
        parse(TinySettings, ["--output-dir", "x", *arguments.split()])


def test_an_unknown_option_ends_with_the_usage_code_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(TinySettings, ["--output-dir", "x", "--bach-size", "3"])
    assert ended.value.code == 2
    assert "--batch-size" in capsys.readouterr().err


def test_a_budget_is_a_number_with_a_unit() -> None:
    assert [seconds_of(text) for text in ("90s", "3m", "1.5h")] == [90, 180, 5400]


def test_resuming_with_other_settings_names_all_that_differ(tmp_path: Path) -> None:
    settings = parse(TinySettings, ["--output-dir", "x", "--max-steps", "10"])
    write_yaml(settings, tmp_path / "config.yaml")
    stored = yaml.safe_load((tmp_path / "config.yaml").read_text())
    check_same(replace(settings, log_every=3, output_dir=Path("y"), threads=4), stored, tmp_path)
    with pytest.raises(CheckpointError, match=r"seed: 0 in the run, 7 asked; batch_size: None in the run, 64 asked"):
        check_same(replace(settings, batch_size=64, seed=7), stored, tmp_path)
    with pytest.raises(CheckpointError, match="max_steps"):
        check_same(replace(settings, max_steps=20), stored, tmp_path)
    constant = {**stored, "lr_schedule": "constant"}
    check_same(replace(settings, max_steps=20, lr_schedule="constant"), constant, tmp_path)


def test_a_run_that_is_older_than_a_field_has_its_default(tmp_path: Path) -> None:
    settings = parse(TinySettings, ["--output-dir", "x", "--max-steps", "10"])
    write_yaml(settings, tmp_path / "config.yaml")
    stored = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del stored["keep_checkpoints"], stored["seed"]
    check_same(settings, stored, tmp_path)
    with pytest.raises(CheckpointError, match="seed: 0 in the run, 7 asked"):
        check_same(replace(settings, seed=7), stored, tmp_path)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    rates = [factor("cosine", step, 100, 10) for step in range(101)]
    assert rates[10] == 1 and rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5) and rates[100] == pytest.approx(0, abs=1e-12)
    assert factor("linear", 55, 100, 10) == pytest.approx(0.5)
    assert factor("constant", 99, 100, 10) == 1.0
    assert all(rate > 0 for rate in rates[:100])
