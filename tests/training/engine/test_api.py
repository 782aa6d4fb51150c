"""`hfgen.train`: every recipe from Python, with a callback, in a temporary folder, and in a thread."""

import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

import hfgen
from hfgen.errors import CheckpointError, ConfigError
from hfgen.images import to_pil
from tests import command_line
from tests.training import tiny
from tests.training.runs import LAUNCH_TWO, ROOT, environment

FIELDS: dict[str, dict[str, Any]] = {
    "ddpm": tiny.DDPM.fields,
    "score_sde": tiny.SCORE_SDE.fields,
    "gan": tiny.GAN.fields,
    "vae": tiny.VAE.fields,
    "autoencoder": {"hidden": (16,), "latent_dim": 4, "batch_size": 16},
    "autoencoder_kl": tiny.AUTOENCODER_KL.fields,
    "autoregressive": tiny.AUTOREGRESSIVE.fields,
    "vq_autoencoder": tiny.VQ_AUTOENCODER.fields,
    "tarflow": tiny.TARFLOW.fields,
    "classifier": {"width": 8, "batch_size": 16},
    "translation": tiny.TRANSLATION.fields,
    "latent_diffusion": tiny.LATENT_DIFFUSION.fields,
}
QUICK: dict[str, Any] = {"max_steps": 2, "threads": 1, "sample_every": 0}


def fields_of(recipe: str, **changes: Any) -> dict[str, Any]:
    fields = {**FIELDS[recipe], **QUICK, **changes}
    names = {field.name for field in dataclasses.fields(tiny_settings(recipe))}
    return {**fields, **{name: 2 for name in ("preview_images", "preview_steps") if name in names}}


def tiny_settings(recipe: str) -> Any:
    from importlib import import_module

    return import_module(hfgen.registry.RECIPES[recipe]).RECIPE.settings


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    nets = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": value.cpu() for name, net in nets.items() for key, value in net.state_dict().items()}


@pytest.mark.parametrize("recipe", FIELDS)
def test_a_line_of_python_trains_any_recipe_to_its_pipeline(recipe: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {}
    if recipe == "latent_diffusion":
        more["autoencoder"] = hfgen.AutoPipeline.from_pretrained(tiny.make_autoencoder(tmp_path / "kl", 1))
    pipe = hfgen.train(recipe, **more, **fields_of(recipe))
    assert pipe.run_folder is not None and type(hfgen.AutoPipeline.from_pretrained(pipe.run_folder)) is type(pipe)
    assert json.loads((pipe.run_folder / "run.json").read_text(encoding="utf-8"))["recipe"] == recipe
    assert not any(net.training for net in pipe.components.values() if isinstance(net, torch.nn.Module))


def test_the_temporary_folder_is_told_and_deleted_with_the_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = hfgen.train("vae", dataset="digits", output_dir=None, **fields_of("vae"))
    folder: Any = pipe.run_folder
    assert f"run folder {folder}: deleted with the pipeline" in capsys.readouterr().out
    assert (folder / "model").is_dir()
    del pipe
    gc.collect()
    assert not folder.exists()


def test_a_callback_sees_each_step_with_its_own_losses_and_learning_rate(tmp_path: Path) -> None:
    seen: list[tuple[int, dict[str, float]]] = []

    def look(step: int, numbers: Mapping[str, float]) -> None:
        seen.append((step, dict(numbers)))

    fields = fields_of("ddpm", max_steps=5, log_every=2)
    hfgen.train("ddpm", "digits", output_dir=tmp_path / "run", callback=look, **fields)
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5]
    assert all({"loss", "grad_norm", "learning_rate"} <= numbers.keys() for _, numbers in seen)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [numbers["loss"] for _, numbers in seen]
    means = [sum(losses[:2]) / 2, sum(losses[2:4]) / 2, losses[4]]
    assert [line["loss"] for line in lines] == pytest.approx(means, abs=1e-9)


def test_a_callback_sees_evaluations_and_ends_a_run_whose_model_is_written(tmp_path: Path) -> None:
    def good_enough(step: int, numbers: Mapping[str, float]) -> bool:
        return numbers.get("eval_accuracy", -1.0) >= 0.0

    pipe = hfgen.train(
        "classifier", dataset="digits", split="train[:80%]", eval_split="train[80%:]", output_dir=tmp_path / "run",
        callback=good_enough, **fields_of("classifier", max_steps=50, sample_every=3),
    )  # fmt: skip
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["step"] == 3
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-00000003"]
    assert isinstance(pipe, hfgen.ClassifierPipeline)


def test_a_run_that_a_callback_ended_resumes_to_the_bits_of_one_that_went_on(tmp_path: Path) -> None:
    fields = fields_of("ddpm", max_steps=6)
    whole = hfgen.train("ddpm", output_dir=tmp_path / "whole", **fields)
    hfgen.train("ddpm", output_dir=tmp_path / "parts", callback=lambda step, _: step == 3, **fields)
    parts = hfgen.train("ddpm", output_dir=tmp_path / "parts", resume=True)
    assert all(torch.equal(value, weights(parts)[name]) for name, value in weights(whole).items())


def test_the_stop_button_saves_and_raises_keyboard_interrupt(tmp_path: Path) -> None:
    def stop(step: int, numbers: Mapping[str, float]) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"stopped and saved; .*resume=True"):
        hfgen.train("gan", output_dir=tmp_path / "run", callback=stop, **fields_of("gan", max_steps=50))
    assert signal.getsignal(signal.SIGINT) is before
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]


def test_a_run_in_a_thread_leaves_signals_random_state_and_threads_alone() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    state, threads, trained = torch.get_rng_state(), torch.get_num_threads(), list[Any]()
    thread = threading.Thread(target=lambda: trained.append(hfgen.train("vae", "ring8", **fields_of("vae"))))
    thread.start()
    thread.join()
    assert isinstance(trained[0], hfgen.VAEPipeline)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads


@pytest.mark.parametrize(("words", "message"), [
    ({"batchsize": 8}, r"hfgen.train\('ddpm'\): unknown field 'batchsize'; did you mean batch_size\?"),
    ({"batch_size": "many"}, r"hfgen.train\('ddpm'\): batch_size must be int, got 'many'"),
    ({"mixed_precision": "fp61"}, r"mixed_precision must be one of no, .*got 'fp61'"),
    ({"max_steps": 5, "budget": "1m"}, "give max_steps or budget, not both"),
    ({"resume": True}, "output_dir must be given"),
])  # fmt: skip
def test_a_wrong_setting_is_refused_by_name_before_a_folder_is_made(
    words: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=message):
        hfgen.train("ddpm", **words)
    assert capsys.readouterr().out == ""


def test_an_unknown_recipe_and_a_missing_setting_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"there is no recipe 'dpm'; did you mean ddpm\?"):
        hfgen.train("dpm")
    with pytest.raises(ConfigError, match=r"hfgen.train\('latent_diffusion'\): needs autoencoder"):
        hfgen.train("latent_diffusion")


def test_a_pipeline_in_memory_is_a_start_and_another_object_is_refused() -> None:
    first = hfgen.train("vae", **fields_of("vae"))
    tuned = hfgen.train("vae", start_from=first, **fields_of("vae", max_steps=1, learning_rate=1e-9, ema_decay=0))
    for name, value in weights(first).items():
        torch.testing.assert_close(weights(tuned)[name], value, atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match="start_from must be a name or a pipeline, got 3"):
        hfgen.train("vae", start_from=3, **fields_of("vae"))


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return some of the digits as a user has them, (200, 1, 8, 8) in [0, 1], and their labels."""
    data = hfgen.data.load_dataset("digits")
    labels = data.labels()
    assert labels is not None
    return data.tensor(200) / 2 + 0.5, labels[:200]


def test_arrays_train_and_resume_to_the_same_bits_and_others_are_refused(tmp_path: Path) -> None:
    images, labels = digits()
    fields = fields_of("ddpm", max_steps=4, class_conditional=True)
    whole = hfgen.train("ddpm", dataset=(images, labels), **fields)
    hfgen.train("ddpm", dataset=(images, labels), output_dir=tmp_path / "run", callback=lambda *_: True, **fields)
    with pytest.raises(CheckpointError, match="the dataset '<dataset>' is not the one this run was trained on"):
        hfgen.train("ddpm", dataset=(images.flip(0), labels), output_dir=tmp_path / "run", resume=True)
    parts = hfgen.train("ddpm", dataset=(images.numpy(), labels), output_dir=tmp_path / "run", resume=True)
    assert all(torch.equal(value, weights(parts)[name]) for name, value in weights(whole).items())


def test_a_run_on_an_object_is_not_resumed_without_it(tmp_path: Path) -> None:
    images, _ = digits()
    hfgen.train("vae", dataset=images, output_dir=tmp_path / "run", callback=lambda *_: True, **fields_of("vae"))
    with pytest.raises(ConfigError, match=r"<dataset> is a Python object, .* give it again: hfgen.train"):
        hfgen.train("vae", output_dir=tmp_path / "run", resume=True)
    done = command_line.hfgen("train", "vae", "--output-dir", str(tmp_path / "run"), "--resume")
    assert done.exit_code == 2 and "<dataset> is a Python object" in done.output


def test_both_domains_and_the_evaluation_data_may_be_objects() -> None:
    shapes = [hfgen.data.load_dataset(f"shapes:{side}", split="train[:20]", resolution=16) for side in "ab"]
    both = {f"dataset_{side}": data.tensor() for side, data in zip("ab", shapes, strict=True)}
    assert hfgen.train("translation", **both, **fields_of("translation")).run_folder is not None
    images, labels = digits()
    fields = fields_of("classifier", eval_dataset=(images[100:], labels[100:]))
    pipe: Any = hfgen.train("classifier", dataset=(images[:100], labels[:100]), **fields)
    assert "eval_accuracy" in (pipe.run_folder / "metrics.jsonl").read_text(encoding="utf-8")


def test_a_file_of_arrays_trains_on_the_command_line(tmp_path: Path) -> None:
    images, labels = digits()
    np.savez(tmp_path / "digits.npz", images=(images * 255).byte().numpy(), labels=labels.numpy())
    np.save(tmp_path / "points.npy", hfgen.data.load_dataset("moons").tensor(300).numpy())
    common = ["--max-steps", "2", "--batch-size", "16", "--hidden", "16", "--threads", "1"]
    for name, shape in (("digits.npz", [1, 8, 8]), ("points.npy", [2])):
        out = tmp_path / f"run-{name}"
        done = command_line.hfgen("train", "vae", "--dataset", str(tmp_path / name), "--output-dir", str(out), *common)
        assert done.exit_code == 0, done.output
        assert json.loads((out / "run.json").read_text(encoding="utf-8"))["data"]["shape"] == shape


def test_datasets_of_hugging_face_and_lists_of_files_are_trained_on(tmp_path: Path) -> None:
    pictures = to_pil(digits()[0] * 2 - 1)
    for i, picture in enumerate(pictures[:40]):
        picture.save(tmp_path / f"{i:02d}.png")
    table = datasets.Dataset.from_dict({"image": pictures, "label": digits()[1].tolist()})
    table = table.cast_column("label", datasets.ClassLabel(10))
    both = datasets.DatasetDict({"train": table, "validation": table.select(range(40))})
    given: dict[str, Any] = {
        "files": sorted(tmp_path.glob("*.png")), "dict": both, "stream": table.to_iterable_dataset(), "list": pictures,
    }  # fmt: skip
    for kind, dataset in given.items():
        split = "validation" if kind == "dict" else "train"
        pipe: Any = hfgen.train("gan", dataset=dataset, split=split, **fields_of("gan"))
        items = {"files": 40, "dict": 40, "stream": None, "list": 200}[kind]
        assert json.loads((pipe.run_folder / "run.json").read_text(encoding="utf-8"))["data"]["items"] == items


def test_the_card_of_a_run_on_an_object_says_so_beside_its_command(tmp_path: Path) -> None:
    pipe: Any = hfgen.train("gan", dataset=digits(), **fields_of("gan"))
    done = command_line.hfgen("publish", pipe.run_folder, str(tmp_path / "shared"))
    assert done.exit_code == 0, done.output
    card = (tmp_path / "shared" / "README.md").read_text(encoding="utf-8")
    assert "&#60;dataset&#62; in the place of a name: a Python object was given to `hfgen.train`." in card
    assert "datasets:" not in card.split("---")[1]


SCRIPT = """
import sys
import hfgen
from accelerate import PartialState
from hfgen.data import load_dataset

data = load_dataset("digits")
dataset, seen = (data.tensor() / 2 + 0.5, data.labels()), []
fields = {fields!r}


def stop(step, numbers):
    seen.append(numbers["loss"])
    return step == 3


hfgen.train("ddpm", dataset=dataset, output_dir=sys.argv[1], callback=stop, **fields)
pipe = hfgen.train("ddpm", dataset=dataset, output_dir=sys.argv[1], resume=True)
result = hfgen.evaluate(pipe, dataset, metrics="frechet", num_samples=20, num_steps=2, cache=False, progress=False)
rank = PartialState().process_index
print("rank", rank, "of", PartialState().num_processes, "saw", len(seen), "judged by", result.processes, flush=True)
"""


@pytest.mark.slow
def test_a_launched_script_trains_stops_resumes_and_evaluates_on_two_processes(tmp_path: Path) -> None:
    fields = fields_of("ddpm", max_steps=5)
    (tmp_path / "script.py").write_text(SCRIPT.format(fields=fields), encoding="utf-8")
    words = [sys.executable, *LAUNCH_TWO, str(tmp_path / "script.py"), str(tmp_path / "run")]
    done = subprocess.run(words, env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = sorted(line for line in done.stdout.splitlines() if line.startswith("rank"))
    assert said == ["rank 0 of 2 saw 3 judged by 2", "rank 1 of 2 saw 0 judged by 2"]
    data = hfgen.data.load_dataset("digits")
    alone = hfgen.train("ddpm", dataset=(data.tensor() / 2 + 0.5, data.labels()), **fields)
    for name, value in weights(hfgen.AutoPipeline.from_pretrained(tmp_path / "run")).items():
        torch.testing.assert_close(value, weights(alone)[name], atol=1e-5, rtol=0)
