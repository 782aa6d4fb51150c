"""Evaluations are kept: the second is instant and identical, another question is another entry, damage is no answer."""

import json
import time
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import hfgen
from hfgen.cards.run import read_run
from hfgen.data import load_dataset
from hfgen.evaluation import cache as cache_module
from hfgen.evaluation import evaluator
from hfgen.evaluation.cache import Cache, key_of
from hfgen.evaluation.generate import PROBES, SampleConditions, SampleGenerator, identity_of
from hfgen.evaluation.metric_groups import METRICS
from hfgen.evaluation.model import EvaluatedModel, attributes_of, fingerprint_of, load_model
from hfgen.evaluation.settings import GROUPS, EvaluationSettings, names_of
from tests import command_line
from tests.cards.helpers import MAKERS, make_run
from tests.evaluation.judged import QUICK, Given


class Counted(Given):
    """Counts how many samples it was asked for."""

    def __init__(self) -> None:
        super().__init__(load_dataset("digits").tensor(), fingerprint="counted")


SETTINGS: dict[str, Any] = {"num_samples": 100, "resamples": 20, "progress": False}


def test_a_second_evaluation_samples_nothing_and_is_the_same(cache: Path) -> None:
    model = Counted()
    first = hfgen.evaluate(model, "digits", **SETTINGS)
    asked = model.calls
    start = time.monotonic()
    second = hfgen.evaluate(model, "digits", **SETTINGS)
    assert model.calls == asked >= 100 and time.monotonic() - start < 5
    assert first.to_json() == second.to_json()
    assert first.pictures["closest"].tobytes() == second.pictures["closest"].tobytes()
    hfgen.evaluate(model, "digits", **SETTINGS, cache=False)
    assert model.calls == 2 * asked


def test_another_question_is_another_entry_and_a_known_part_of_it_is_not_computed_again() -> None:
    model = Counted()
    hfgen.evaluate(model, "digits", metrics="frechet", **SETTINGS)
    hfgen.evaluate(model, "digits", metrics="frechet,kid,prdc", **SETTINGS)
    hfgen.evaluate(model, "digits", metrics="prdc", neighbours=3, **SETTINGS)
    assert model.calls == 100
    for changed in ({"seed": 1}, {"num_samples": 99}, {"batch_size": 50}):
        before = model.calls
        hfgen.evaluate(model, "digits", metrics="frechet", **{**SETTINGS, **changed})
        assert model.calls > before
    model.fingerprint = None                                                            # who it is, nobody knows
    before = model.calls
    hfgen.evaluate(model, "digits", metrics="frechet", **SETTINGS)
    assert model.calls == before + 100


def test_intervals_from_the_cache_are_those_of_the_resamples_asked_for() -> None:
    torch.manual_seed(0)
    vae: Any = hfgen.VAEPipeline(hfgen.VAE(8, 1, hidden=(8,), latent_dim=2, num_classes=10).eval())
    few = {"likelihood_images": 10, "resamples": 20, "importance_samples": 2, "classifier_steps": 1}
    data: dict[str, Any] = {"split": "train[:300]", "held_out_split": "train[300:400]", "num_samples": 40}
    every, found = "frechet,kid,prdc,likelihood,usefulness,privacy", set[str]()
    for model, metrics in ((vae, every), (MAKERS["DDPMPipeline"](), "likelihood")):
        asked: dict[str, Any] = {**data, "metrics": metrics, "progress": False}
        before = hfgen.evaluate(model, "digits", **asked, **few).metrics
        more = {**few, "resamples": 50}
        after = hfgen.evaluate(model, "digits", **asked, **more).metrics
        assert after == hfgen.evaluate(model, "digits", **asked, **more, cache=False).metrics
        found |= {name for name, row in after.items() if "low" in row and row["high"] != before[name]["high"]}
    wanted = {"frechet", "kid", "memorisation_ratio", "elbo", "log_likelihood", "bound_bits_per_dim"}
    assert wanted | {"ode_bits_per_dim"} <= found


def test_a_group_that_reads_a_setting_which_its_key_lacks_cannot_be_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    for group, metric in METRICS.items():
        if "resamples" not in metric.settings:
            continue
        fewer = tuple(one for one in metric.settings if one != "resamples")
        monkeypatch.setitem(METRICS, group, metric._replace(settings=fewer))
        model: Any = MAKERS["VAEPipeline"]()
        with pytest.raises(AttributeError, match="resamples"):
            hfgen.evaluate(model, "digits", metrics=group, **SETTINGS)


def test_every_group_is_in_the_table_and_names_settings_that_exist() -> None:
    fields = names_of(EvaluationSettings)
    assert set(METRICS) == set(GROUPS)
    assert all(set(metric.settings) <= set(fields) for metric in METRICS.values())


def test_other_versions_of_what_computes_are_other_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {key_of("frechet")}
    for package in ("hfgen", "torch", "diffusers", "transformers"):
        monkeypatch.setattr(getattr(cache_module, package), "__version__", "0.0.1")
        keys.add(key_of("frechet"))
    assert len(keys) == 5


def test_the_seconds_of_another_machine_are_not_those_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Counted()
    calls = []
    for name in ("this processor", "this processor", "another processor"):
        monkeypatch.setattr(evaluator, "device_name", lambda device, name=name: name)
        hfgen.evaluate(model, "digits", metrics="cost", **SETTINGS)
        calls.append(model.calls)
    assert calls[0] == calls[1] < calls[2]


def test_changed_weights_or_settings_of_a_pipeline_change_its_entry() -> None:
    torch.manual_seed(0)
    pipeline: Any = MAKERS["DDPMPipeline"]()
    found = [fingerprint_of(pipeline)]
    pipeline.scheduler = hfgen.DDPMScheduler(num_train_timesteps=6)
    found.append(fingerprint_of(pipeline))
    with torch.no_grad():
        next(pipeline.unet.parameters()).add_(1e-3)
    found.append(fingerprint_of(pipeline))
    assert None not in found and len(set(found)) == 3 and fingerprint_of(pipeline) == found[2]
    text: Any = MAKERS["DDPMPipeline of text"]()
    assert fingerprint_of(text) is not None


CALLS: list[int] = []


class Weightless(diffusers.DiffusionPipeline):  # type: ignore[misc]
    """Gives noise of a scale that neither weights nor settings hold: `scale` is an attribute, `offset` the class's."""

    offset = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.register_to_config()
        self.scale = 1.0

    def __call__(self, batch_size: int = 1, generator: Any = None) -> tuple[torch.Tensor]:
        CALLS.append(batch_size)
        noise = torch.stack([torch.rand(1, 8, 8, generator=one) for one in generator])
        return ((noise * self.scale + self.offset).clamp(0, 1),)


def frechet_of(pipeline: Any, cache: bool = True) -> float:
    found = hfgen.evaluate(pipeline, "digits", metrics="frechet", cache=cache, **SETTINGS)
    return float(found.metrics["frechet"]["value"])


def test_five_pipelines_of_one_class_without_weights_have_their_own_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    pipelines = [Weightless() for _ in range(5)]
    for i, one in enumerate(pipelines):
        one.scale = 0.2 * (i + 1)
    found = [frechet_of(one) for one in pipelines]
    assert len(set(found)) == 5 and found == [frechet_of(one, cache=False) for one in pipelines]
    CALLS.clear()
    assert found == [frechet_of(one) for one in pipelines] and CALLS == [PROBES] * 5     # the entries are found again
    monkeypatch.setattr(Weightless, "offset", 0.1)                                      # which only samples tell
    moved = [frechet_of(one) for one in pipelines]
    assert not {*moved} & {*found} and moved == [frechet_of(one, cache=False) for one in pipelines]


def test_a_pipeline_that_differs_only_in_its_code_or_in_a_late_sample_has_its_own_entry() -> None:
    torch.manual_seed(0)
    parts: Any = MAKERS["DDPMPipeline"]().components

    class Brighter(hfgen.DDPMPipeline):
        def __call__(self, batch_size: int = 1, num_steps: int | None = None, generator: Any = None) -> Any:  # type: ignore[override]
            made = super().__call__(batch_size, num_steps=num_steps, generator=generator, output_type="pt")
            return (made.images * 0.5 + 0.5,)

    Brighter.__name__ = "DDPMPipeline"
    plain, brighter = (cls(parts["unet"], parts["scheduler"]) for cls in (hfgen.DDPMPipeline, Brighter))
    before = attributes_of(brighter)
    assert frechet_of(plain) != frechet_of(brighter) == frechet_of(brighter, cache=False)
    assert "_num_timesteps" in vars(brighter) and attributes_of(brighter) == before

    class Late(Weightless):
        def __call__(self, batch_size: int = 1, generator: Any = None) -> tuple[torch.Tensor]:
            (images,) = super().__call__(batch_size, generator)
            images[20:] *= float(self.later)
            return (images,)

    late = [Late() for _ in range(2)]
    for one, later in zip(late, (1.0, torch.tensor(0.1)), strict=True):
        one.later = later  # type: ignore[attr-defined]
    assert frechet_of(late[0]) != frechet_of(late[1])
    late[0].later = lambda: 1.0  # type: ignore[attr-defined]
    assert identity_of(generator_of(late[0])) is None and identity_of(generator_of(late[1])) is not None


def generator_of(pipeline: Any) -> SampleGenerator:
    choices: dict[str, Any] = {"num_steps": None, "guidance_scale": 1.0, "sampler": None}
    return SampleGenerator(EvaluatedModel(pipeline), SampleConditions(), 0, 64, **choices)


def test_a_model_that_lies_in_files_is_known_by_its_weights_and_not_probed(tmp_path: Path) -> None:
    MAKERS["GANPipeline"]().save_pretrained(tmp_path / "gan")
    model = load_model(tmp_path / "gan")
    asked = generator_of(model.pipeline)
    assert identity_of(asked) not in (None, model.fingerprint)
    asked.model = model
    assert identity_of(asked) == model.fingerprint


def test_damaged_entries_are_computed_anew_with_the_same_result(cache: Path) -> None:
    first = hfgen.evaluate(Counted(), "digits", metrics="frechet,privacy", **SETTINGS).to_json()
    files = sorted(cache.rglob("*.safetensors"))
    assert len(files) >= 4
    for number, damage in enumerate((lambda b: b[: len(b) // 2], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b"")):
        for file in files:
            file.write_bytes(damage(file.read_bytes()))
        model = Counted()
        assert hfgen.evaluate(model, "digits", metrics="frechet,privacy", **SETTINGS).to_json() == first
        assert model.calls >= 100, number


def test_the_cache_gives_back_what_was_put_and_a_read_only_place_costs_only_time(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, tensors = key_of("test", a=[1, 2]), {"x": torch.arange(6).view(2, 3), "none": torch.zeros(0, 2)}
    Cache().put(key, {"value": 1.5, "text": "é"}, tensors)
    found = Cache().get(key)
    assert found is not None and found[0] == {"value": 1.5, "text": "é"}
    assert all(torch.equal(found[1][name], tensor) for name, tensor in tensors.items())
    assert Cache(on=False).get(key) is None and Cache().get(key_of("test", a=[1, 3])) is None
    (cache.parent / "file").write_text("")
    monkeypatch.setenv("HFGEN_CACHE", str(cache.parent / "file"))
    Cache().put(key, {}, tensors)
    assert Cache().get(key) is None
    monkeypatch.delenv("HFGEN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_module.folder() == Path("/somewhere/hfgen")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_module.folder() == Path.home() / ".cache" / "hfgen"


def test_the_command_writes_into_the_run_where_the_card_finds_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {})
    MAKERS["GANPipeline"]().save_pretrained(run / "model")
    words = "--dataset digits --num-samples 20 --metrics frechet,privacy,likelihood --resamples 20".split()
    done = command_line.hfgen("evaluate", str(run / "model"), *words)
    assert done.exit_code == 0, done.output
    assert "likelihood" in done.output and "none: a GAN has no likelihood" in done.output
    written = json.loads((run / "evaluation.json").read_text())
    assert (run / "evaluation-closest.png").is_file() and (run / "evaluation-samples.png").is_file()
    assert written["samples"]["count"] == 20 and written["settings"]["resamples"] == 20
    numbers = {number.name: number for number in read_run(run).numbers()}
    row = written["metrics"]["frechet"]
    assert (numbers["frechet"].value, numbers["frechet"].low, numbers["frechet"].floor) == (
        row["value"], row["low"], row["floor"]
    )  # fmt: skip
    assert numbers["frechet"].extractor == written["extractor"] and numbers["frechet"].data.name == "digits"
    direct = hfgen.evaluate(run, "digits", metrics="frechet", num_samples=20, resamples=20, progress=False)
    assert direct.metrics["frechet"] == row


def test_mistakes_of_the_command_line_are_one_line_with_exit_code_2(tmp_path: Path) -> None:
    MAKERS["GANPipeline"]().save_pretrained(tmp_path / "gan")
    start = ["evaluate", str(tmp_path / "gan"), "--dataset"]
    for words, code, message in (
        ([*start, "digits", "--metrics", "kit"], 2, "metrics: there is no 'kit'; did you mean 'kid'?"),
        ([*start, "digits", "-o", "x.txt"], 2, "-o x.txt: must end in .json"),
        ([*start, "./nowhere"], 65, "./nowhere: no such file or folder"),
        (["evaluate", "no/model", "--dataset", "digits"], 1, "no/model: no such folder"),
        (["compare", str(tmp_path / "gan"), "--dataset", "digits", "-o", str(tmp_path / "gan/model_index.json")], 2,
         "is a file; the report is written to a folder"),
    ):  # fmt: skip
        done = command_line.hfgen(*words)
        assert done.exit_code == code and message in done.output and done.output.count("\n") == 1, done.output


def test_settings_of_the_bootstrap_are_fewer_the_more_they_cost() -> None:
    found = hfgen.evaluate(Counted(), "digits", metrics="frechet", num_samples=100, progress=False, cache=False)
    assert found.settings["resamples"] is None and found.metrics["frechet"]["low"] > 0
    assert QUICK["resamples"] == 50
