"""GANs conditioned on texts: the prompt against the network itself, batches, editing, saved folders, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hfgen import AutoPipeline, Classifier, ControllableGANPipeline, DCGANGenerator, GANPipeline
from hfgen.errors import ConfigError
from hfgen.models.text import build_text_encoder
from tests.helpers import seed
from tests.pipelines.helpers import TOKENIZER, edit, features

RED, BLUE = "a red circle", "a blue square on white"


def generator(**changes: Any) -> DCGANGenerator:
    """Return a tiny generator in evaluation mode whose images differ."""
    torch.manual_seed(0)
    net = DCGANGenerator(**{"resolution": 8, "channels": 1, "width": 4, "latent_dim": 6, "norm": "none", **changes})
    for parameter in net.body.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


def parts(**changes: Any) -> dict[str, Any]:
    """Return a generator conditioned on texts, its text encoder and its tokenizer."""
    net = generator(text_width=8, **changes)
    return {"generator": net, "text_encoder": build_text_encoder(TOKENIZER, 8, 1, 2).eval(), "tokenizer": TOKENIZER}


def make(**changes: Any) -> Any:
    return GANPipeline(**parts(**changes))


def test_images_are_what_the_network_makes_of_the_draw_and_the_features_of_the_text() -> None:
    pipe = make()
    output = pipe(prompt=[RED, BLUE], generator=seed(0), output_type="pt")
    z = torch.randn(2, 6, generator=seed(0))
    assert torch.equal(output.latents, z)
    with torch.no_grad():
        x = pipe.generator(z, encoder_hidden_states=features(pipe, RED, BLUE)).sample
    assert torch.equal(output.images, (x / 2 + 0.5).clamp(0, 1))
    (state,) = pipe.states(prompt=[RED, BLUE], generator=seed(0))
    assert torch.equal(state, x)
    again = pipe(prompt=[RED, BLUE], latents=z, output_type="pt").images
    assert torch.equal(again, output.images)


def test_the_text_changes_the_image_of_one_latent_and_is_repeated_for_a_batch() -> None:
    pipe, z = make(), torch.randn(3, 6, generator=seed(1))
    red, blue = (pipe(prompt=text, latents=z, output_type="pt").images for text in (RED, BLUE))
    assert (red - blue).abs().amax((1, 2, 3)).min() > 1e-3
    listed = pipe(prompt=[RED] * 3, latents=z, output_type="pt").images
    torch.testing.assert_close(listed, red, atol=1e-6, rtol=0)
    first = pipe([RED] * 3, latents=z, output_type="pt").images                          # as pipelines of diffusers
    assert torch.equal(first, listed)
    assert pipe(RED, generator=seed(0), output_type="pt").images.shape == (1, 1, 8, 8)
    assert pipe(5, prompt=RED, output_type="pt").images.shape == (5, 1, 8, 8)


def test_interpolation_keeps_the_text_and_its_ends() -> None:
    pipe, (a, b) = make(), torch.randn(2, 6, generator=seed(2))
    between = pipe.interpolate(a, b, 3, prompt=BLUE, output_type="pt").images
    ends = pipe(prompt=BLUE, latents=torch.stack([a, b]), output_type="pt").images
    torch.testing.assert_close(between[[0, 2]], ends, atol=1e-6, rtol=0)


def test_classes_and_texts_are_conditions_together() -> None:
    pipe = make(num_classes=3)
    output = pipe(prompt=RED, class_labels=[0, 2], batch_size=2, generator=seed(0), output_type="pt")
    with torch.no_grad():
        text = features(pipe, RED, RED)
        x = pipe.generator(output.latents, class_labels=torch.tensor([0, 2]), encoder_hidden_states=text).sample
    torch.testing.assert_close(output.images, (x / 2 + 0.5).clamp(0, 1), atol=1e-6, rtol=0)


def test_a_saved_folder_holds_the_text_encoder_and_the_tokenizer_and_loads_again(tmp_path: Path) -> None:
    pipe = make()
    pipe.save_pretrained(tmp_path / "texts")
    index = json.loads((tmp_path / "texts" / "model_index.json").read_text())
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"] and index["tokenizer"][1] == "CLIPTokenizer"
    suffixes = {path.suffix for path in (tmp_path / "texts").rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".py", ".txt"}                          # no pickle
    again = AutoPipeline.from_pretrained(tmp_path / "texts")
    assert isinstance(again, GANPipeline) and again.reads_text and not again.guidable
    a, b = (p(prompt=[RED, BLUE], generator=seed(3), output_type="pt").images for p in (pipe, again))
    assert torch.equal(a, b)


def test_a_folder_from_before_texts_loads(tmp_path: Path) -> None:
    pipe = GANPipeline(generator())
    pipe.save_pretrained(tmp_path / "old")
    edit(tmp_path / "old" / "model_index.json", text_encoder=..., tokenizer=...)
    edit(tmp_path / "old" / "generator" / "config.json", text_width=...)
    again: Any = AutoPipeline.from_pretrained(tmp_path / "old")
    assert not again.reads_text
    assert torch.equal(again(2, generator=seed(0), output_type="pt").images,
                       pipe(2, generator=seed(0), output_type="pt").images)  # fmt: skip


def test_gradient_ascent_keeps_the_text() -> None:
    classifier = Classifier(resolution=8, channels=1, num_classes=2, width=4).eval()
    pipe = ControllableGANPipeline(**parts(), classifier=classifier)
    pipe.set_progress_bar_config(disable=True)
    z = torch.randn(2, 6, generator=seed(4))
    output = pipe(prompt=[RED, BLUE], target=1, latents=z, num_steps=2, threshold=0.999, generator=seed(0),
                  output_type="pt")  # fmt: skip
    assert (output.latents - z).abs().max() > 0.01
    expected = GANPipeline(**{name: getattr(pipe, name) for name in ("generator", "text_encoder", "tokenizer")})(
        prompt=[RED, BLUE], latents=output.latents, output_type="pt"
    ).images
    torch.testing.assert_close(output.images, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("given", "message"), [
    ({}, "prompt must be given: this model was not trained without texts"),
    ({"prompt": [RED, BLUE], "batch_size": 3}, "these must agree: prompt 2, batch_size 3"),
    ({"prompt": [RED, BLUE], "latents": torch.zeros(3, 6)}, "batch_size must be 3, the number of latents"),
    ({"prompt": [RED, 1]}, "prompt must be a text or a list of texts"),
])  # fmt: skip
def test_wrong_prompts_are_errors_that_say_what_is_wrong(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()(**given)


def test_texts_and_networks_must_fit_together() -> None:
    with pytest.raises(ConfigError, match="prompt must be None, this model is not conditioned on texts"):
        GANPipeline(generator())(prompt=RED)
    with pytest.raises(ConfigError, match="must be given exactly if the generator is conditioned on texts"):
        GANPipeline(generator(text_width=8))
    with pytest.raises(ConfigError, match="must be given exactly if the generator is conditioned on texts"):
        GANPipeline(**{**parts(), "generator": generator()})
