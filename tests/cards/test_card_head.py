"""The head of a card as the Hub reads it: base model, licence, gallery, emissions; the file that counts downloads."""

import json
import logging
from pathlib import Path

import pytest
import yaml

from hfgen import AutoPipeline
from hfgen.cards.write import write_card
from hfgen.errors import ConfigError
from hfgen.hub.folder import publish_to_folder
from hfgen.sampling.generate import label_of
from hfgen.sampling.request import SampleRequest
from tests.training import runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mine"
    runs.train_here("gan", folder, "--max-steps", "2")
    return folder


def head_of(card: Path) -> dict:
    return yaml.safe_load(card.read_text(encoding="utf-8").split("---\n")[1])


def test_a_model_that_started_from_another_on_the_hub_names_it(run: Path, tmp_path: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    settings = yaml.safe_load((run / "config.yaml").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**record, "hub": ["start_from"]}))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**settings, "start_from": "owner/first"}))
    (tmp_path / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes())
    publish_to_folder(run, tmp_path / "shared")
    head = head_of(write_card(tmp_path / "shared", tmp_path, "owner/second"))
    assert head["base_model"] == "owner/first" and head["base_model_relation"] == "finetune"
    assert "base_model" not in head_of(write_card(tmp_path / "shared", run, "owner/third"))


def test_a_published_model_has_a_gallery_a_licence_and_a_file_that_counts_downloads(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("hfgen").propagate = True
    with caplog.at_level(logging.WARNING, logger="hfgen"):
        publish_to_folder(run, tmp_path / "shared")
        assert "publish again with --license" in caplog.text
        caplog.clear()
        publish_to_folder(run, tmp_path / "shared", licence="apache-2.0")
        assert "license" not in caplog.text
    text = (tmp_path / "shared" / "README.md").read_text()
    head = head_of(tmp_path / "shared" / "README.md")
    assert head["license"] == "apache-2.0" and "<Gallery />" in text
    assert head["widget"] == [{"text": "samples", "output": {"url": "samples.png"}}]
    marker = json.loads((tmp_path / "shared" / "config.json").read_text())
    assert marker == {"library_name": "hfgen", "pipeline": "GANPipeline"}
    publish_to_folder(run, tmp_path / "shared")
    assert head_of(tmp_path / "shared" / "README.md")["license"] == "apache-2.0"


def test_measured_emissions_are_summed_in_grams(run: Path, tmp_path: Path) -> None:
    publish_to_folder(run, tmp_path / "shared")
    lines = "timestamp,emissions,country_name,gpu_model\n1,0.002,Norway,\n2,0.0035,Norway,\n"
    (run / "emissions.csv").write_text(lines)
    head = head_of(write_card(tmp_path / "shared", run))
    assert head["co2_eq_emissions"] == {
        "emissions": 5.5, "source": "codecarbon", "training_type": "pre-training", "geographical_location": "Norway",
    }  # fmt: skip
    (run / "emissions.csv").write_text("energy\n1\n")
    with pytest.raises(ConfigError, match="CodeCarbon"):
        write_card(tmp_path / "shared", run)
    (run / "emissions.csv").unlink()


def test_a_published_model_knows_its_classes_by_name(tmp_path: Path) -> None:
    runs.train_here("gan", tmp_path / "mine", "--max-steps", "2", "--class-conditional")
    record = json.loads((tmp_path / "mine" / "run.json").read_text())
    names = [f"digit {i}" for i in range(10)]
    record["data"]["class_names"] = names
    (tmp_path / "mine" / "run.json").write_text(json.dumps(record))
    publish_to_folder(tmp_path / "mine", tmp_path / "shared")
    marker = json.loads((tmp_path / "shared" / "config.json").read_text())
    assert marker["id2label"] == {str(i): name for i, name in enumerate(names)}
    pipeline = AutoPipeline.from_pretrained(tmp_path / "shared")
    request = SampleRequest(model=str(tmp_path / "shared"), label="digit 7")
    assert label_of(request, pipeline) == 7
    with pytest.raises(ConfigError, match="did you mean 'digit 8'"):
        label_of(SampleRequest(model=str(tmp_path / "shared"), label="digit8"), pipeline)
