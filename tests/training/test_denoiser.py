"""Conditions of denoisers: what is left out and when, captions in pixels, text encoders that were trained before."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from hfgen import AutoPipeline
from hfgen.errors import ConfigError, UnsafeContentError
from hfgen.models.text import build_text_encoder, build_tokenizer, token_ids
from hfgen.training import ddpm
from hfgen.training.denoiser import Conditions, load_text, open_dataset
from hfgen.training.engine.loop import Engine
from hfgen.training.engine.noise import Noise
from tests.training import runs
from tests.training.tiny import DDPM, SCORE_SDE, Tiny

SHAPES: dict[str, Any] = {"dataset": "shapes", "split": "train[:64]", "resolution": 8, "captions": True}
WORDS = build_tokenizer(["a large filled red circle at the top left on white", "blue square small hollow centre"])


def pipeline_of(e: Engine) -> Any:
    return e.recipe.pipeline(e.nets)


def test_classes_are_left_out_at_the_rate_asked_as_a_function_of_seed_and_step(tmp_path: Path) -> None:
    settings = ddpm.DDPMSettings(output_dir=tmp_path, class_conditional=True, condition_dropout=0.25)
    dataset = open_dataset(settings)
    conditions, out = Conditions(settings, dataset), []
    assert conditions.num_class_embeds == 11 and conditions.null and not conditions.nets
    batch = next(dataset.batches(seed=0, batch_size=64))
    for step in range(100):
        told = conditions({}, batch, Noise((3, step, "ddpm", 0), 64, slice(64)))["class_labels"]
        again = [conditions({}, {"label": batch["label"][rows]}, Noise((3, step, "ddpm", 0), 64, rows))["class_labels"]
                 for rows in (slice(0, 16), slice(16, 64))]  # fmt: skip
        assert torch.equal(torch.cat(again), told)                 # whatever the division into processes
        left_out = Noise((3, step, "ddpm", 0), 64, slice(64)).uniform("condition") < 0.25
        assert torch.equal(told, torch.where(left_out, 10, batch["label"]))
        out.append(left_out)
    share = torch.stack(out).float().mean()
    assert abs(float(share) - 0.25) < 4 * (0.25 * 0.75 / 6400) ** 0.5      # four standard errors


@pytest.mark.parametrize("recipe", [DDPM, SCORE_SDE])
@pytest.mark.parametrize(("dropout", "classes"), [(0.1, 11), (0.0, 10)])
def test_a_model_can_be_guided_exactly_if_its_null_class_was_trained(
    recipe: Tiny, dropout: float, classes: int
) -> None:
    e = recipe.engine(class_conditional=True, condition_dropout=dropout)
    before = e.nets["unet"].class_embedding.weight.detach().clone()  # type: ignore[union-attr, operator]
    list(e.train(0, 3, 20))
    moved = (e.nets["unet"].class_embedding.weight != before).any(1)  # type: ignore[union-attr]
    assert moved.shape == (classes,) and moved.all()
    pipe = pipeline_of(e)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.config["null_condition"] is (dropout > 0)
    if dropout:
        assert pipe(num_steps=1, guidance_scale=2.0, output_type="pt").images.shape == (1, 1, 8, 8)
        return
    with pytest.raises(ConfigError, match="guidance_scale must be 1"):
        pipe(class_labels=1, num_steps=1, guidance_scale=2.0)


@pytest.mark.parametrize("recipe", [DDPM, SCORE_SDE])
def test_captions_in_pixels_give_the_same_numbers_in_micro_batches(recipe: Tiny) -> None:
    lines = []
    for micro in (None, 4):
        e = recipe.engine(**SHAPES, class_conditional=True, micro_batch_size=micro)
        lines.append([e.log.fetch(e.accelerator) for _ in e.train(0, 3, 20)])
        assert set(e.averages) == {"unet", "text_encoder"}
        assert e.nets["unet"].config["attention_levels"] == (1,)  # type: ignore[union-attr, index]
    for a, b in zip(*lines, strict=True):
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=1e-4, rel=1e-4), name


def test_a_run_in_pixels_learns_from_captions_and_its_folder_does_what_a_text_says(tmp_path: Path) -> None:
    words = "--dataset shapes --split train[:64] --resolution 8 --captions --text-width 16 --text-layers 1"
    words += " --attention-head-dim 4 --max-steps 60 --learning-rate 5e-3"
    log = runs.train_here("ddpm", tmp_path / "run", *words.split())
    assert sum(line["loss"] for line in log[-10:]) < 0.9 * sum(line["loss"] for line in log[:10])
    pipe: Any = AutoPipeline.from_pretrained(tmp_path / "run")
    pipe.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {"num_steps": 5, "latents": torch.randn(1, 3, 8, 8), "sampler": "ddim"}
    red, blue, none = (list(pipe.states(prompt=prompt, **given))[-1] for prompt in (
        "a large filled red circle in the centre on white", "a large filled blue circle in the centre on white", None))
    assert (red - blue).abs().max() > 1e-4 and (red - none).abs().max() > 1e-4


def saved_text(folder: Path) -> Path:
    """Return the folder of a text encoder and its tokenizer."""
    for part in (build_text_encoder(WORDS, 8, 1, 2), WORDS):
        part.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


def test_a_text_encoder_that_was_trained_before_stays_as_it_is_and_comes_along(tmp_path: Path) -> None:
    folder = saved_text(tmp_path / "text")
    e = DDPM.engine(**SHAPES, text_encoder=str(folder))
    before = {name: tensor.clone() for name, tensor in load_text(folder)[0].state_dict().items()}
    list(e.train(0, 2, 20))
    pipe = pipeline_of(e)
    assert set(e.averages) == {"unet"} and pipe.unet.config["cross_attention_dim"] == 8
    after = pipe.text_encoder.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    text = ["a red circle", "a large filled blue square"]
    assert torch.equal(token_ids(pipe.tokenizer, text), token_ids(WORDS, text))
    pipe.save_pretrained(tmp_path / "pipeline")
    other = DDPM.engine(**SHAPES, text_encoder=str(tmp_path / "pipeline"))
    assert all(torch.equal(other.nets["text_encoder"].state_dict()[name], before[name]) for name in before)


def whole_clip(folder: Path) -> Any:
    """Return a CLIP model, saved in a folder with its tokenizer as older releases saved it."""
    text = CLIPTextConfig(vocab_size=len(WORDS), hidden_size=8, intermediate_size=16, num_hidden_layers=1,
                          num_attention_heads=2, max_position_embeddings=9)  # fmt: skip
    vision = CLIPVisionConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                              image_size=8, patch_size=4)  # fmt: skip
    clip: Any = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).eval()
    for part in (clip, WORDS):
        part.save_pretrained(folder)
    old = {"add_cross_attention": False, "num_beams": 1, "torch_dtype": None, "architectures": None}
    change(folder / "config.json", text_config=text.to_dict() | old, text_config_dict=None)
    return clip


def change(path: Path, **settings: Any) -> None:
    """Change settings in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | settings), encoding="utf-8")


def test_a_text_encoder_is_read_from_a_whole_clip_model_too(tmp_path: Path) -> None:
    clip = whole_clip(tmp_path)
    encoder, tokenizer = load_text(tmp_path)
    ids = token_ids(tokenizer, ["a red circle at the top left on white red red red", "blue"])
    assert ids.shape == (2, 9)                                     # as many as the encoder has positions for
    with torch.no_grad():
        found = encoder(input_ids=ids).last_hidden_state
        torch.testing.assert_close(found, clip.text_model(input_ids=ids).last_hidden_state, atol=1e-6, rtol=0)
    clip.vision_model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"'architectures' must be \['CLIPTextModel'\] .*'CLIPVisionModel'"):
        load_text(tmp_path)


def test_a_text_encoder_names_no_code_and_no_kernel_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("from_pretrained", "set_attn_implementation"):
        monkeypatch.setattr(f"transformers.PreTrainedModel.{method}", lambda *_, **__: pytest.fail("code of a folder"))
    hostile: dict[str, Any] = {"attn_implementation": "someone/kernel", "_attn_implementation": "someone/kernel"}
    config = saved_text(tmp_path / "alone") / "config.json"
    change(config, _attn_implementation="someone/kernel")
    assert load_text(tmp_path / "alone")[0].config._attn_implementation != "someone/kernel"
    change(config, **hostile)
    with pytest.raises(ConfigError, match=r"alone/config\.json: unknown key 'attn_implementation'; [^\n]*$"):
        load_text(tmp_path / "alone")
    change(config, auto_map={"AutoModel": "evil.Evil"})
    with pytest.raises(UnsafeContentError, match="'auto_map' would run code"):
        load_text(tmp_path / "alone")
    whole_clip(tmp_path / "whole")
    given = json.loads((tmp_path / "whole" / "config.json").read_text())
    change(tmp_path / "whole" / "config.json", **hostile, text_config=given["text_config"] | hostile)
    assert load_text(tmp_path / "whole")[0].config._attn_implementation != "someone/kernel"


def test_heads_divide_the_width_that_is_asked(tmp_path: Path) -> None:
    for width, heads in ((16, 1), (65, 1), (72, 2), (96, 3)):
        settings = ddpm.DDPMSettings(output_dir=tmp_path, text_width=width, text_layers=1, **SHAPES)
        config: Any = Conditions(settings, open_dataset(settings)).nets["text_encoder"].config
        assert (config.hidden_size, config.num_attention_heads) == (width, heads)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "ring8", "captions": True}, "ring8: caption_column='caption' does not apply"),
        ({"dataset": "ring8", "class_conditional": True}, "--class-conditional: the dataset 'ring8' has no labels"),
        ({"condition_dropout": -0.1}, r"--condition-dropout must be in \[0, 1\), got -0.1"),
        ({"caption_column": "text"}, "--caption-column text needs --captions"),
        ({"text_encoder": "somewhere"}, "--text-encoder somewhere needs --captions"),
        ({"captions": True, "streaming": True}, "--streaming: captions are read before training"),
        ({"max_words": -5}, "--max-words must be at least 0, got -5"),
        ({"text_layers": 0}, "--text-layers must be at least 1, got 0"),
        ({"text_width": 0}, "--text-width must be at least 1, got 0"),
        ({**SHAPES, "text_encoder": "nowhere"}, "'nowhere': no such folder"),
    ],
)
def test_settings_that_no_run_can_use_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DDPM.engine(**changes)
