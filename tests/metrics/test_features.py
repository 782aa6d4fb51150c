"""Feature extractors: transformers' own image processors and networks as oracles, and what is refused."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from hfgen.errors import ConfigError, UnsafeContentError
from hfgen.images import fitted, from_pil, to_pil, unit_of, with_channels
from hfgen.loading.hashing import hash_of_weights
from hfgen.metrics.features import ClassifierFeatures, Pixels, features_of, load_extractor
from hfgen.models.classifier import Classifier
from hfgen.pipelines.classifier import ClassifierPipeline

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
VISION = {**TINY, "intermediate_size": 32}
LEVEL = 1 / 255 / 0.22
"""One of 255 levels after division by the smallest standard deviation."""


def pictures(height: int, width: int) -> list[Image.Image]:
    """Return three smooth pictures of colour."""
    y, x = np.mgrid[0:height, 0:width] / 9
    planes = [np.stack([np.sin(x + k), np.cos(y * k), np.sin(x * y / 9 + k)], -1) for k in (1, 2, 3)]
    return [Image.fromarray(((plane / 2 + 0.5) * 255).round().astype(np.uint8)) for plane in planes]


def dino(folder):
    net = Dinov2Model(Dinov2Config(**TINY)).eval()
    net.save_pretrained(folder)
    size = {"size": {"shortest_edge": 40}, "crop_size": {"height": 28, "width": 28}}
    processor = BitImageProcessorPil(**size, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    processor.save_pretrained(folder)
    return net, processor


def clip(folder, cls):
    net = cls(CLIPVisionConfig(**VISION, projection_dim=8)).eval()
    net.save_pretrained(folder)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor.save_pretrained(folder)
    return net, processor


@pytest.mark.parametrize("sides", [(64, 64), (50, 93), (20, 17)])
def test_dinov2_prepares_as_its_processor_does_and_gives_the_class_token(tmp_path, sides):
    net, processor = dino(tmp_path)
    extractor = load_extractor(f"dinov2:{tmp_path}")
    images = pictures(*sides)
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    found = extractor.prepare(from_pil(images))
    torch.testing.assert_close(found, expected, atol=2 * LEVEL, rtol=0)                 # Pillow rounds to levels twice
    assert float((found - expected).abs().mean()) < 0.5 * LEVEL
    with torch.no_grad():
        features = net(pixel_values=found).pooler_output
    torch.testing.assert_close(extractor(from_pil(images)), features, atol=1e-6, rtol=0)
    assert (extractor.dim, extractor.name) == (16, f"dinov2:{tmp_path}")
    assert "shortest side to 40, centre crop 28x28" in extractor.resizer and "bicubic, antialiased" in extractor.resizer


@pytest.mark.parametrize("cls", [CLIPVisionModelWithProjection, CLIPVisionModel])
def test_clip_prepares_as_its_processor_does_and_gives_the_image_embedding(tmp_path, cls):
    net, processor = clip(tmp_path, cls)
    extractor = load_extractor(f"clip:{tmp_path}")
    images = pictures(45, 60)
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(extractor.prepare(from_pil(images)), expected, atol=2 * LEVEL, rtol=0)
    with torch.no_grad():
        output = net(pixel_values=extractor.prepare(from_pil(images)))
    features = output.image_embeds if cls is CLIPVisionModelWithProjection else output.pooler_output
    torch.testing.assert_close(extractor(from_pil(images)), features, atol=1e-6, rtol=0)
    assert extractor.dim == features.shape[1]


def test_the_image_half_of_a_whole_clip_model_is_read_with_the_settings_of_old_files(tmp_path):
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "vocab_size": 40, "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
    whole = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)).eval()
    whole.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    old = {"add_cross_attention": False, "num_beams": 1, "projection_dim": 512, "torch_dtype": None}
    config["vision_config"] |= old
    path.write_text(json.dumps({**config, "vision_config_dict": None}))
    extractor = load_extractor(f"clip:{tmp_path}")
    images = from_pil(pictures(28, 28))
    with torch.no_grad():
        expected = whole.get_image_features(pixel_values=extractor.prepare(images))
    expected = getattr(expected, "pooler_output", expected)
    torch.testing.assert_close(extractor(images), expected, atol=1e-6, rtol=0)


def test_grey_images_become_colour_and_features_do_not_depend_on_the_batch(tmp_path):
    dino(tmp_path)
    extractor = load_extractor(f"dinov2:{tmp_path}")
    grey = torch.rand(5, 1, 8, 8) * 2 - 1
    whole = extractor(grey)
    assert torch.equal(whole, extractor(grey.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(features_of(extractor, grey, 2), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(features_of(extractor, iter(grey.split(3))), whole, atol=1e-6, rtol=0)


def test_preprocessors_that_are_not_reproduced_are_refused(tmp_path):
    dino(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    good = json.loads(path.read_text())
    wrong = {
        "resample": 2,
        "image_std": [0.2, 0.0, 0.2],
        "image_mean": [0.5],
        "size": {"longest_edge": 40},
        "crop_size": {"height": 56, "width": 56},
    }
    for key, value in wrong.items():
        path.write_text(json.dumps({**good, key: value}))
        with pytest.raises(ConfigError, match=f"preprocessor_config.json: '{key}'"):
            load_extractor(f"dinov2:{tmp_path}")
    path.write_text(json.dumps({**good, "crop_size": 27}))
    with pytest.raises(ConfigError, match=r"multiples of the patch, 14; found \(27, 27\)"):
        load_extractor(f"dinov2:{tmp_path}")


def test_pickled_weights_and_other_networks_are_refused(tmp_path):
    dino(tmp_path)
    with pytest.raises(ConfigError, match="architectures"):
        load_extractor(f"clip:{tmp_path}")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsafeContentError, match="pickle"):
        load_extractor(f"dinov2:{tmp_path}")
    with pytest.raises(ConfigError, match="no such folder"):
        load_extractor("dinov2:./nowhere")


def classifier() -> Classifier:
    return Classifier(resolution=(8, 8), channels=1, num_classes=4, width=4).eval()


def test_a_saved_classifier_gives_its_penultimate_features_and_labels(tmp_path):
    net = classifier()
    ClassifierPipeline(net).save_pretrained(tmp_path / "model")
    extractor = load_extractor(f"classifier:{tmp_path}")
    images = torch.rand(6, 1, 8, 8) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(extractor(images), net.features(images), atol=0, rtol=0)
        assert torch.equal(extractor.labels(images), net(images).logits.argmax(1))
    assert (extractor.dim, extractor.num_classes) == (16, 4)
    assert extractor.weights_hash == hash_of_weights(net) != hash_of_weights(classifier())
    assert extractor.describe().keys() == {"name", "weights_hash", "resizer", "dim"}


def test_a_classifier_sees_other_sizes_and_colours_as_its_pipeline_does():
    net = classifier()
    extractor, pipeline = ClassifierFeatures("classifier:here", net), ClassifierPipeline(net)
    for images in (torch.rand(3, 3, 21, 30) * 2 - 1, torch.rand(3, 4, 8, 8) * 2 - 1, torch.rand(3, 1, 5, 5) * 2 - 1):
        expected = pipeline.prepare(images / 2 + 0.5)
        torch.testing.assert_close(extractor.prepare(images), expected, atol=1e-6, rtol=0)


def test_pixels_are_the_images_flattened_and_points_as_they_are():
    extractor = load_extractor("pixels")
    images, points = torch.rand(3, 2, 4, 5), torch.randn(7, 2)
    assert torch.equal(extractor(images), images.flatten(1)) and torch.equal(extractor(points), points)
    assert extractor.describe() == {"name": "pixels", "weights_hash": "none", "resizer": "none", "dim": None}
    assert isinstance(extractor, Pixels)


def test_resizing_equals_pillow_in_floats():
    unit = torch.rand(1, 1, 37, 50)                                                    # 37 x 49 is nearest to 12 x 16
    box = Image.fromarray(unit[0, 0, :, :49].numpy()).resize((16, 12), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(box)).clamp(0, 1)
    torch.testing.assert_close(fitted(unit, 12, 16)[0, 0], expected, atol=1e-5, rtol=0)


def test_transparency_becomes_white_and_values_outside_are_clipped():
    rgba = torch.tensor([1.0, -1.0, -1.0, -1.0]).view(1, 4, 1, 1)
    assert with_channels(unit_of(rgba), 3).flatten().tolist() == [1.0, 1.0, 1.0]
    assert unit_of(torch.full((1, 1, 1, 1), 1.5)).item() == 1.0
    with pytest.raises(ConfigError, match=r"float \(B, C, H, W\)"):
        unit_of(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    grey = with_channels(unit_of(from_pil(pictures(4, 4))), 1)
    expected = unit_of(from_pil([image.convert("L") for image in to_pil(from_pil(pictures(4, 4)))]))
    torch.testing.assert_close(grey, expected, atol=1 / 255, rtol=0)


@pytest.mark.parametrize("name", ["vgg", "classifier", "classifier:", "dinov2:", "pixels:x", "inception:x", ""])
def test_names_that_are_none_are_refused_with_the_list(name):
    with pytest.raises(ConfigError, match="is no feature extractor; it is one of pixels, classifier:<model>"):
        load_extractor(name)


def test_inception_without_torch_fidelity_says_what_to_install_and_that_it_is_a_pickle():
    if find_spec("torch_fidelity"):
        pytest.skip("torch-fidelity is installed here")
    with pytest.raises(ConfigError, match=r"pip install torch-fidelity.*pickle"):
        load_extractor("inception")
