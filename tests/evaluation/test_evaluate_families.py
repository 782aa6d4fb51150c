"""An evaluation samples every family by its own call, and gives the reason for metrics that do not apply."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from diffusers import DDPMPipeline as StockPipeline
from diffusers import DDPMScheduler as StockScheduler
from PIL import Image

import hfgen
from hfgen.data import derive_seed, load_dataset, stretch
from hfgen.data.images import ResidentImages
from hfgen.errors import ConfigError, DataError
from hfgen.evaluation import features
from hfgen.evaluation.generate import SampleGenerator, conditions_for
from hfgen.evaluation.model import EvaluatedModel
from tests.cards.helpers import MAKERS, make_run
from tests.evaluation.judged import QUICK, Given

FEW: dict[str, Any] = {"num_samples": 8, "likelihood_images": 4, "resamples": 20, "importance_samples": 2}
FEW["progress"] = False


@pytest.fixture(scope="module")
def digits() -> Any:
    return load_dataset("digits", split="train[:64]")


@pytest.fixture(scope="module")
def threes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return drawn images of three colours in grey, as the tiny pipelines of three classes want them."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, number in (("a", 6), ("b", 12), ("c", 18)):
        (folder / name).mkdir()
        for i in range(number):
            Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return load_dataset(folder)


GENERATIVE = [name for name in MAKERS if "Autoencoder" not in name and name[:10] not in ("Classifier", "Translatio")]


@pytest.mark.parametrize("name", GENERATIVE)
def test_every_family_is_judged_and_its_missing_likelihood_has_a_reason(name: str, digits: Any, threes: Any) -> None:
    torch.manual_seed(0)
    pipeline: Any = MAKERS[name]()
    points, classes, text = "points" in name, "classes" in name or name == "LatentDiffusionPipeline", "text" in name
    data = load_dataset("ring8") if points else threes if classes else digits
    if name == "ControllableGANPipeline":
        data = ResidentImages("plain", digits._pixels.numpy(), 16, fingerprint="plain")  # its classes are others
    if text:
        options: dict[str, Any] = {"resolution": 8, "caption_column": "caption", "label_column": "none"}
        data = load_dataset("shapes", split="train[:64]", **options)
        if "DDPM" in name:                                                              # it makes grey images
            grey, captions = digits._pixels.numpy(), data.captions
            data = ResidentImages("grey", grey, 16, fingerprint="grey", captions=captions)
    elif name == "LatentDiffusionPipeline":
        data = load_dataset(str(_folder_of(threes)), channels=3)
    elif "SDE" in name:
        pipeline.scheduler = hfgen.VPSDEScheduler(num_train_timesteps=10)
    steps = None if name.startswith(("GAN", "VAE", "Autoregressive", "NormalizingFlow")) else 2
    found = hfgen.evaluate(pipeline, data, num_steps=steps, **FEW)
    assert found.samples["count"] == 8 and found.samples["each_by_its_own_seed"]
    assert {"frechet", "kid", "recall", "seconds_per_64", "parameters"} <= found.metrics.keys()
    families = {"DDPM": "bound", "VAEP": "elbo", "Auto": "log_likelihood", "Norm": "log_likelihood"}
    wanted = families.get(name[:4])
    assert any(key.startswith(wanted) for key in found.metrics) if wanted else "likelihood" in found.none
    if "GAN" in name:
        assert found.none["likelihood"].startswith("a GAN has no likelihood")
    assert found.samples["told"].get("guidance_scale", 1.0) == 1.0
    expected = "classes of the data" if classes else "captions of the data" if text else "none"
    assert found.samples["conditions"] == ("classes in equal shares" if "Control" in name else expected)


def _folder_of(images: Any) -> Path:
    return Path(images.name)


def test_sample_i_is_that_of_hfgen_sample_whatever_the_batch(digits: Any) -> None:
    pipeline: Any = MAKERS["GANPipeline"]()
    model = EvaluatedModel(pipeline)
    choices: dict[str, Any] = {"num_steps": None, "guidance_scale": 1.0, "sampler": None}
    asked = [SampleGenerator(model, conditions_for(model, digits, 20, 3), 3, size, **choices) for size in (4, 20)]
    rows = [torch.cat([one(batch) for batch in one.batches(20)]) for one in asked]
    generators = [torch.Generator().manual_seed(derive_seed(3, i)) for i in range(20)]
    expected = pipeline(20, generator=generators, output_type="pt").images * 2 - 1
    for made in rows:
        torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(asked[0].at([13, 2], 20), expected[[13, 2]], atol=1e-5, rtol=0)


def test_closest_pairs_that_did_not_stay_are_made_again(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    pipeline: Any = MAKERS["GANPipeline"]()
    settings: dict[str, Any] = {"metrics": "privacy", "num_samples": 300, "batch_size": 100, "cache": False, **QUICK}
    whole = hfgen.evaluate(pipeline, digits, **settings)
    monkeypatch.setattr(features, "IMAGE_BYTES", 0)
    found = hfgen.evaluate(pipeline, digits, **settings)
    assert max(pair[0] for pair in found.metrics["near_copies"]["pairs"]) >= features.GRID_IMAGES
    assert found.metrics == whole.metrics
    assert np.array_equal(np.asarray(found.pictures["closest"]), np.asarray(whole.pictures["closest"]))


def test_classes_come_in_the_proportions_of_the_data(threes: Any) -> None:
    model = EvaluatedModel(MAKERS["GANPipeline of classes"]())
    found = conditions_for(model, threes, 36, 0)
    assert found.labels is not None and torch.bincount(found.labels).tolist() == [6, 12, 18]
    order = stretch(derive_seed(0, "conditions"), 36, 0, 36)[1]
    assert torch.equal(found.labels, threes.labels()[order])
    assert torch.equal(conditions_for(model, threes, 9, 0).labels, found.labels[:9])


def test_a_stock_diffusers_pipeline_is_judged_and_equals_its_own_samples(digits: Any, tmp_path: Path) -> None:
    net = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    ).eval()  # fmt: skip
    pipeline: Any = StockPipeline(net, StockScheduler(num_train_timesteps=20))
    found = hfgen.evaluate(pipeline, digits, num_steps=3, **FEW)
    assert found.samples["told"] == {"num_inference_steps": 3, "output_type": "np"}
    assert found.metrics["evaluations_per_image"]["value"] == 3 and found.family == "DDPMPipeline"
    assert found.none["likelihood"] == "how DDPMPipeline makes its samples is not known"
    pipeline.save_pretrained(tmp_path / "stock")
    loaded = hfgen.evaluate(tmp_path / "stock", digits, num_steps=3, sampler="ddpm", **FEW)     # through AutoPipeline
    told = {"num_steps": 3, "guidance_scale": 1.0, "sampler": "ddpm", "output_type": "pt"}
    assert loaded.samples["told"] == told
    for name in ("frechet", "kid"):
        assert loaded.metrics[name]["value"] == pytest.approx(found.metrics[name]["value"], abs=1e-3)
    assert "bound_bits_per_dim" in loaded.metrics


@pytest.mark.parametrize(("name", "T", "settings", "sampler", "steps"), [
    ("DDPMPipeline", 1000, {}, "dpmpp_2m", 20),
    ("DDPMPipeline", 12, {}, "dpmpp_2m", 12),
    ("DDPMPipeline", 1000, {"num_steps": 7}, "dpmpp_2m", 7),
    ("DDPMPipeline", 30, {"sampler": "ddpm"}, "ddpm", 30),
    ("DDPMPipeline", 1000, {"sampler": "ddim", "num_steps": 3}, "ddim", 3),
    ("DDPMPipeline of the score SDE", 1000, {}, "dpmpp_2m", 20),
    ("LatentDiffusionPipeline of text", 1000, {}, "dpmpp_2m", 20),
])  # fmt: skip
def test_a_diffusion_model_is_sampled_by_the_recommended_sampler_unless_another_is_asked_for(
    name: str, T: int, settings: dict[str, Any], sampler: str, steps: int, digits: Any
) -> None:
    pipeline: Any = MAKERS[name]()
    pipeline.scheduler = type(pipeline.scheduler)(num_train_timesteps=T, beta_schedule="squaredcos_cap_v2")
    data = digits
    if "text" in name:
        data = load_dataset("shapes", split="train[:64]", resolution=8, caption_column="caption", label_column="none")
    found = hfgen.evaluate(pipeline, data, metrics="cost", **FEW, **settings)
    assert found.samples["told"]["sampler"] == sampler and found.samples["told"]["num_steps"] == steps
    assert found.metrics["evaluations_per_image"]["by_network"]["unet"] == steps
    assert f"by {sampler} in {steps} steps" in found.table()


def test_a_scheduler_that_somebody_put_in_is_not_replaced(digits: Any) -> None:
    pipeline: Any = MAKERS["DDPMPipeline"]()
    pipeline.scheduler = DDIMScheduler(num_train_timesteps=100)
    found = hfgen.evaluate(pipeline, digits, num_steps=6, metrics="cost", **FEW)
    assert "sampler" not in found.samples["told"] and found.metrics["evaluations_per_image"]["value"] == 6
    pipeline.scheduler = hfgen.VPSDEScheduler(method="ode_heun")
    found = hfgen.evaluate(pipeline, digits, num_steps=3, metrics="cost", **FEW)
    assert "sampler" not in found.samples["told"] and found.metrics["evaluations_per_image"]["value"] == 2 * 3 + 1


def test_a_folder_that_only_diffusers_loads_is_judged_where_it_is_asked_to(digits: Any, tmp_path: Path) -> None:
    net = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    ).eval()  # fmt: skip
    pipeline: Any = DDIMPipeline(net, DDIMScheduler(num_train_timesteps=20))
    pipeline.save_pretrained(tmp_path / "ddim")
    with pytest.raises(ConfigError, match="DDIMPipeline', which hfgen does not load"):
        hfgen.evaluate(tmp_path / "ddim", digits, **FEW)
    found = hfgen.evaluate(f"stock:{tmp_path / 'ddim'}", digits, num_steps=3, **FEW)
    assert (found.model, found.family) == ("ddim", "DDIMPipeline")
    expected = hfgen.evaluate(pipeline, digits, num_steps=3, **FEW)
    assert found.metrics["frechet"]["value"] == expected.metrics["frechet"]["value"]
    with pytest.raises(ConfigError, match=r"^stock:.*nowhere: diffusers cannot load it \(\S.*\)$"):
        hfgen.evaluate(f"stock:{tmp_path / 'nowhere'}", digits, **FEW)


def test_a_foreign_pipeline_is_asked_with_the_captions_of_the_data_alone() -> None:
    data = load_dataset("shapes", split="train[:64]", resolution=8, caption_column="caption", label_column="none")
    captions, pixels = data.captions, data.tensor() / 2 + 0.5  # type: ignore[attr-defined]
    assert captions is not None
    asked: list[list[str]] = []

    def model(prompt: list[str], num_inference_steps: int = 7) -> tuple[Any, None]:
        asked.append(prompt)
        return pixels[[captions.index(text) for text in prompt]], None

    found = hfgen.evaluate(model, data, metrics="frechet", num_samples=40, num_steps=3, batch_size=16, **QUICK)
    order = stretch(derive_seed(0, "conditions"), 64, 0, 40)[1]
    assert [len(batch) for batch in asked] == [16, 16, 8]
    assert [text for batch in asked for text in batch] == [captions[i] for i in order]
    assert found.samples["conditions"] == "captions of the data"
    assert found.samples["told"] == {"num_inference_steps": 3} and found.metrics["frechet"]["value"] > 0


def test_pil_images_arrays_and_bytes_are_understood_and_other_answers_refused(digits: Any) -> None:
    x = digits.tensor()
    levels = ((x + 1) * 127.5).round().to(torch.uint8)
    pictures = [Image.fromarray(row[0].numpy()) for row in levels]
    answers = {
        "tensor": x / 2 + 0.5, "array": (x / 2 + 0.5).permute(0, 2, 3, 1).numpy(), "bytes": levels,
        "pictures": pictures, "tuple": (x / 2 + 0.5, None),
    }  # fmt: skip
    values = []
    for answer in answers.values():
        def model(batch_size: int, answer: Any = answer) -> Any:
            return (answer[0][:batch_size], None) if isinstance(answer, tuple) else answer[:batch_size]

        found = hfgen.evaluate(model, digits, num_samples=64, metrics="frechet", **QUICK)
        values.append(found.metrics["frechet"]["value"])
    assert max(values) - min(values) < 1e-3
    for bad, message in (
        (lambda batch_size: "nothing", "a model must give images as PIL images, .*; got str"),
        (lambda batch_size: x[:3] / 2 + 0.5, "gave 3 samples where 64 were requested"),
    ):
        with pytest.raises(DataError, match=message):
            hfgen.evaluate(bad, digits, num_samples=64, **QUICK)


def test_mistakes_are_told_in_one_line_before_the_work(digits: Any, tmp_path: Path) -> None:
    model, gan = Given(digits.tensor()), MAKERS["GANPipeline"]()
    large = ResidentImages("large", np.zeros((64, 1, 16, 16), np.uint8), 16, fingerprint="large")

    def needs_image(batch_size: int, image: Any) -> None: ...

    for given, data, settings, message in (
        (model, digits, {"metrics": "frechett"}, "metrics: there is no 'frechett'; did you mean 'frechet'? there are "),
        (model, large, {}, "Given makes 1x8x8, large is 1x16x16; load the data with --resolution 8 --channels 1"),
        (gan, digits, {"num_samples": 5}, "num_samples must be at least 6 and the real items at least 12, for"),
        (gan, digits, {"num_steps": 5}, "num_steps must be 1, GANPipeline makes samples in one step; got 5"),
        (gan, digits, {"guidance_scale": 2.0}, "guidance_scale must be 1: GANPipeline cannot be guided, got 2.0"),
        (gan, digits, {"features": "dinov3"}, "'dinov3' is no feature extractor; it is one of pixels, "),
        (gan, digits, {"batch_size": 0}, "batch_size must be an int >= 1, got 0"),
        (gan, digits, {"held_out": large}, "held_out: large: 64 images 1x16x16"),
        (MAKERS["GANPipeline of classes"](), digits, {}, "GANPipeline makes 3 classes, digits train[:64] has 10"),
        (MAKERS["DDPMPipeline of text"](), digits, {}, "DDPMPipeline reads captions, and digits train[:64] gives none"),
        (needs_image, digits, {}, "function makes no samples from noise alone, it needs image"),
        (5, digits, {}, "int is no model: give a folder, a Hub id, or a callable that returns images"),
        ("nowhere/at all", digits, {}, "no such folder, and not a Hub id"),
        (gan, 5, {}, "list of images, or a Dataset of hfgen, `datasets` or torch, got int"),
        (gan, "digits", {"held_out_split": "train"}, "held_out is the same as dataset, digits train"),
        (gan, digits, {"held_out": digits}, "held_out is the same as dataset, digits train[:64]"),
        (gan, digits, {"held_out_split": "test"}, "held_out_split is for datasets by name, digits train[:64] "),
        (gan, digits, {"resolution": 16}, "digits train[:64]: is a Dataset, loaded already; leave out resolution"),
        (model, "ring8", {"features": "clip"}, "ring8 is a set of points: its features are pixels, and no classifier"),
    ):
        with pytest.raises(ConfigError) as error:
            hfgen.evaluate(given, data, **{**QUICK, **settings})  # type: ignore[arg-type]
        assert message in str(error.value) and "\n" not in str(error.value)


def test_the_cost_of_a_run_is_read_from_its_folder(digits: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {})
    MAKERS["GANPipeline"]().save_pretrained(run / "model")
    for where in (run, run / "model"):
        found = hfgen.evaluate(where, digits, metrics="cost", **QUICK)
        assert found.model == "run" and found.metrics["training_steps"]["value"] == 40
        seconds = found.metrics["training_seconds"]
        assert seconds["value"] == 1234.5 and seconds["budget"] == "3m" and "autoencoder_seconds" not in seconds
        assert found.samples["count"] == 64 and set(found.pictures) == {"samples"}


def test_the_training_of_latent_diffusion_costs_its_autoencoders_too(digits: Any, tmp_path: Path) -> None:
    before, run = make_run(tmp_path / "autoencoder", {}), make_run(tmp_path / "run", {})
    for folder in (before, run):
        MAKERS["GANPipeline"]().save_pretrained(folder / "model")
    with (run / "config.yaml").open("a") as file:
        file.write(f"autoencoder: {before}\n")
    seconds = hfgen.evaluate(run, digits, metrics="cost", **QUICK).metrics["training_seconds"]
    assert (seconds["value"], seconds["autoencoder_seconds"]) == (2469.0, 1234.5)
