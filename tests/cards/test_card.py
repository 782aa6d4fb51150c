"""Cards of models: code that runs, real runs, data, paths, numbers in the Hub's schema."""

import json
import os
import re
import shlex
import subprocess
import sys
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image
from safetensors.torch import load_file

from hfgen.cards import markdown
from hfgen.cards.families import FAMILIES
from hfgen.cards.write import write_card
from hfgen.data import BUILT_IN
from hfgen.errors import ConfigError
from hfgen.registry import PIPELINES
from hfgen.training.engine.run import main
from tests.cards.helpers import MAKERS, blocks, card_of, make_run
from tests.training.runs import SHARED, TINY, metrics

PROGRAM = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hfgen":
            raise ModuleNotFoundError(name)
blocker = Blocker()
sys.meta_path.insert(0, blocker)
plain, shimmed = {}, {}
exec(sys.argv[1], plain)
assert type(plain["pipeline"]).__module__.startswith("diffusers.") and len(plain["images"]) == 16
assert not any(name.split(".")[0] == "hfgen" for name in sys.modules)
sys.meta_path.remove(blocker)
exec(sys.argv[2], shimmed)
assert type(shimmed["pipeline"]).__module__.startswith("hfgen.") and len(shimmed["images"]) == 16
"""
TASKS = {
    "DDPMPipeline of points": None, "AutoencoderPipeline": "image-to-image", "AutoencoderKLPipeline": "image-to-image",
    "VQAutoencoderPipeline": "image-to-image",
    "LatentDiffusionPipeline of text": "text-to-image", "DDPMPipeline of text": "text-to-image",
    "ClassifierPipeline": "image-classification",
    "TranslationPipeline": "image-to-image",
}  # fmt: skip


@pytest.mark.parametrize("kind", MAKERS)
def test_the_code_in_the_card_of_every_family_loads_and_samples_it(kind: str, tmp_path, monkeypatch) -> None:
    MAKERS[kind]().save_pretrained(tmp_path / "saved")
    text = write_card(tmp_path / "saved").read_text()
    first, second = blocks(text, "python")
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8), 100).save("image.png")
    names: dict[str, Any] = {}
    exec(first, names)
    assert type(names["pipeline"]).__name__ == kind.split()[0]
    made = names.get("points", names.get("images", names.get("labels")))
    assert len(made) in (1, 16) and ("points" in names) == kind.endswith("points")
    stock = kind == "DDPMPipeline"
    data = ModelCard(text).data
    assert data.library_name == ("diffusers" if stock else "hfgen")
    assert ("trust_remote_code=True" in second) is not stock
    assert data.pipeline_tag == TASKS.get(kind, "unconditional-image-generation")
    assert "hfgen" in data.tags and data.datasets is None and data.license is None and "model-index" not in data
    assert "Not known: the model was published without its run folder." in text


def test_every_pipeline_has_a_row_in_the_table_and_is_tried_here() -> None:
    assert FAMILIES.keys() == PIPELINES.keys() == {kind.split()[0] for kind in MAKERS}


def test_the_code_for_diffusers_runs_without_hfgen_where_the_folder_is_stock(tmp_path) -> None:
    programs = []
    for kind, name in {"DDPMPipeline": "stock", "GANPipeline": "shimmed"}.items():
        MAKERS[kind]().save_pretrained(tmp_path / name)
        code = blocks(write_card(tmp_path / name, repo_id=f"owner/{name}").read_text(), "python")[1]
        assert code.count(f'"owner/{name}"') == 1
        programs.append(code.replace(f"owner/{name}", name))
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, *programs], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_card_of_a_real_run_has_its_facts_and_the_command_in_it_makes_the_same_weights(
    tmp_path, monkeypatch
) -> None:
    from hfgen.training import ddpm

    run, threads = tmp_path / "runs of alice" / "first", torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    try:
        words = [*SHARED, *TINY["ddpm"], "--max-steps", "3", "--seed", "5", "--flip", "--split", "train[:50%]"]
        assert main(ddpm.RECIPE, ["--output-dir", str(run), *words]) == 0
        (run / "model/samples.png").write_bytes((run / "samples/step-00000003.png").read_bytes())
        text = write_card(run / "model", run, "owner/name").read_text()
        (command,) = blocks(text, "bash")
        called = shlex.split(command.replace("\\\n", " "))
        assert called[:3] == ["hfgen", "train", "ddpm"] and called[-2:] == ["--output-dir", "first"]
        assert main(ddpm.RECIPE, called[3:]) == 0
    finally:
        torch.set_num_threads(threads)
    first, again = (load_file(p / "model/unet/diffusion_pytorch_model.safetensors") for p in (run, tmp_path / "first"))
    assert first.keys() == again.keys() and all(torch.equal(first[key], again[key]) for key in first)
    found, logged = json.loads((run / "run.json").read_text()), metrics(run)[-1]
    for fact in ("![Samples of the model](samples.png)", f"| {found['seconds']:,.0f} |", "1 process(es) on", "| 3 |",
                 "| 5 |", f"unet {found['parameters']['unet']:,}", torch.__version__, "CC BY 4.0",
                 f"{found['data']['items']} items"):  # fmt: skip
        assert fact in text, fact
    assert "alice" not in text and str(tmp_path) not in text and text.startswith("---\n")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    shown = yaml.safe_load(blocks(text, "yaml")[0])
    assert shown.items() <= settings.items() and {"seed", "flip", "split", "learning_rate"} <= shown.keys()
    ((name, results),) = [model_index_to_eval_results(yaml.safe_load(text.split("---\n")[1])["model-index"])]
    assert name == "owner/name" and [(r.metric_type, r.metric_value) for r in results] == [("loss", logged["loss"])]
    assert (results[0].dataset_type, results[0].dataset_split) == ("digits", "train[:50%]")


def test_the_last_name_of_a_path_says_nothing_of_where_it_lies() -> None:
    paths = {
        "/home/alice/pics": "pics", "~/pics/": "pics", "C:\\Users\\alice\\pics": "pics", "C:pics": "pics",
        "../data/*.parquet": "*.parquet", "digits": "digits", "shapes:a": "shapes:a", "//host/share": "share", "/": "",
    }  # fmt: skip
    assert {path: markdown.last_name(path) for path in paths} == paths


def test_no_local_path_gets_into_a_card_and_hub_ids_get_there_whole(folder, tmp_path) -> None:
    secret = {"dataset": "/home/alice/pics", "eval_dataset": "alice/other", "start_from": "C:\\alice\\runs\\old",
              "output_dir": "/home/alice/runs/mine", "publish_to": "alice/mine"}  # fmt: skip
    text = card_of(folder, make_run(tmp_path / "a", {"changed": list(secret)}, **secret))
    assert "alice" not in text and "# mine" in text and ModelCard(text).data.datasets is None
    assert "--dataset pics" in text and "--start-from old" in text and "not known here; see the dataset" in text
    hub = {"dataset": "owner/name:small", "eval_dataset": "owner/name", "start_from": "owner/model"}
    text = card_of(folder, make_run(tmp_path / "b", {"hub": list(hub), "changed": list(hub)}, **hub))
    assert ModelCard(text).data.datasets == ["owner/name"] and "--dataset owner/name:small" in text
    results = ModelCard(text).data.eval_results
    assert {(r.dataset_type, r.dataset_config, r.metric_type) for r in results} == {
        ("owner/name", "small", "loss"), ("owner/name", None, "modes"),
    }  # fmt: skip
    text = card_of(folder, make_run(tmp_path / "c", None, **hub))
    assert ModelCard(text).data.datasets is None and "owner" not in text and "recipe was not recorded" in text


@pytest.mark.parametrize("name", BUILT_IN)
def test_data_that_come_with_hfgen_have_their_licence(name: str, folder, tmp_path) -> None:
    text = card_of(folder, make_run(tmp_path / "run", {}, dataset=name))
    assert ("CC BY 4.0" in text) == (name == "digits") and ("none needed, drawn by rule" in text) == (name != "digits")
    assert ModelCard(text).data.datasets is None


def test_both_domains_of_a_translation_are_named(folder, tmp_path) -> None:
    settings = {"dataset": "", "dataset_a": "/x/horses", "dataset_b": "shapes:b", "split_b": "test"}
    text = card_of(folder, make_run(tmp_path / "run", {"changed": list(settings)}, **settings))
    assert "| domain A | `horses` | `train` | not known here; see the dataset |" in text
    assert "| domain B | `shapes:b` | `test` | none needed, drawn by rule |" in text
    assert "--dataset-a horses" in text and "--dataset " not in text


def test_numbers_of_a_translation_are_of_the_held_out_data_of_their_domain(folder, tmp_path) -> None:
    settings = {"dataset": "", "dataset_a": "shapes:a", "dataset_b": "shapes:b", "eval_split": "test[:100]",
                "eval_dataset_b": "/x/zebras", "eval_split_b": "test[9:]"}  # fmt: skip
    run = make_run(tmp_path / "run", {"changed": list(settings), "evaluated": []}, **settings)
    (run / "metrics.jsonl").write_text(json.dumps({"step": 40, "loss": 1, "eval_cycle_error_a": 2,
                                                   "eval_cycle_error_b": 3, "eval_translation_error_a2b": 4}) + "\n")
    text = card_of(folder, run)
    assert "| evaluation A | `shapes:a` | `test[:100]` |" in text and "| evaluation B | `zebras` | `test[9:]` |" in text
    _, results = model_index_to_eval_results(yaml.safe_load(text.split("---\n")[1])["model-index"])
    assert {r.metric_type: (r.dataset_type, r.dataset_split) for r in results} == {
        "loss": ("shapes:a", "train"), "eval_cycle_error_a": ("shapes:a", "test[:100]"),
        "eval_cycle_error_b": ("zebras", "test[9:]"), "eval_translation_error_a2b": ("shapes:a", "test[:100]"),
    }  # fmt: skip


def test_numbers_are_those_of_the_step_with_their_intervals_in_the_hubs_schema(folder, tmp_path) -> None:
    run = make_run(tmp_path / "run", {})
    judged = {
        "frechet": {"value": 12.5, "low": 11.0, "high": 14.25, "floor": 1.5}, "kid": {"value": 0.5, "low": None},
        "broken": {"value": float("nan")},
    }  # fmt: skip
    judge = {"dataset": "digits", "extractor": {"name": "/home/alice/net", "dims": 64}, "metrics": judged}
    (run / "evaluation.json").write_text(json.dumps(judge))
    text = card_of(folder, run)
    assert "| `frechet` | 12.5 | 11 to 14.25 | 1.5 |" in text and "| `kid` | 0.5 |  |" in text
    name, results = model_index_to_eval_results(yaml.safe_load(text.split("---\n")[1])["model-index"])
    found = {r.metric_type: (r.metric_value, r.metric_args) for r in results}
    extractor = {"name": "net", "dims": 64}
    assert found == {
        "frechet": (12.5, {"command": "hfgen evaluate", "confidence": 0.95, "low": 11.0, "high": 14.25, "floor": 1.5,
                           "extractor": extractor}),
        "kid": (0.5, {"command": "hfgen evaluate", "extractor": extractor}),
        "loss": (0.5, {"command": "hfgen train, training"}),
        "modes": (7.0, {"command": "hfgen train, evaluation"}),
    }  # fmt: skip
    assert name == "run" and {(r.task_type, r.dataset_type) for r in results} == {
        ("unconditional-image-generation", "digits")
    }
    assert "alice" not in text and "broken" not in text and "`D(x)` | 0.25" in text


def test_a_folder_that_is_no_run_is_refused_by_the_file_that_is_wrong(folder, tmp_path) -> None:
    run = make_run(tmp_path / "run", {})
    files = {"metrics.jsonl": "[]\n", "evaluation.json": '{"metrics": [1]}', "run.json": "{"}
    files["config.yaml"] = "a: {b: 1}"
    for name, text in files.items():
        (run / name).write_text(text)
        with pytest.raises(ConfigError, match=re.escape(name)):
            write_card(folder, run)
    (run / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"config\.yaml: cannot be read"):
        write_card(folder, run)
