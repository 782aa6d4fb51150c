"""What the classifier's pipeline makes of images of all kinds, and that it is saved and loaded whole."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hfgen import AutoPipeline
from hfgen.data.decode import fit
from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.images import from_pil, to_pil
from hfgen.models.classifier import Classifier
from hfgen.pipelines.classifier import ClassifierPipeline

NAMES = ["ant", "bee", "cow", "dog"]


def pipeline(channels=1, resolution=8, names=None):
    torch.manual_seed(0)
    net = Classifier(resolution, channels, num_classes=4, width=8, class_names=names)
    torch.nn.init.normal_(net.linear_out.weight)                       # so that the images differ in class
    return ClassifierPipeline(net.eval())


def picture(i, width=8, height=8, mode="L"):
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (height, width, *channels), dtype=np.uint8))


def test_probabilities_are_the_softmax_of_the_network_whatever_the_batch_size():
    pipe, pictures = pipeline(names=NAMES), [picture(i) for i in range(9)]
    with torch.no_grad():
        expected = pipe.classifier(from_pil(pictures)).logits.softmax(1)
    seen = pipe(pictures, batch_size=4)
    torch.testing.assert_close(seen.probabilities, expected, atol=1e-6, rtol=0)
    assert torch.equal(seen.labels, expected.argmax(1)) and len(seen.labels.unique()) > 1
    assert seen.names == [NAMES[label] for label in seen.labels]
    labels, probabilities, names = pipe(pictures, return_dict=False)
    assert torch.equal(labels, seen.labels) and names == seen.names
    torch.testing.assert_close(probabilities, expected, atol=1e-6, rtol=0)
    assert pipeline()(pictures).names is None


def test_a_tensor_one_picture_and_a_list_of_it_are_seen_alike():
    pipe, one = pipeline(), picture(3)
    probabilities = pipe([one]).probabilities
    assert torch.equal(pipe(one).probabilities, probabilities)
    tensor = from_pil([one]) / 2 + 0.5
    torch.testing.assert_close(pipe(tensor).probabilities, probabilities, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(20, 20), (21, 33), (4, 5)])
def test_pictures_are_resized_as_training_data_are(size):
    pipe, other = pipeline(3, (8, 12)), picture(1, *size, mode="RGB")
    expected = from_pil([fit(other, 8, 12)])
    torch.testing.assert_close(pipe.prepare([other]), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(16, 24), (24, 40), (40, 36), (6, 9)])
def test_tensors_are_resized_as_pictures_are_but_for_the_edge_of_what_is_cut_off(size):
    pipe, x = pipeline(1, (8, 12)), torch.rand(2, 1, *size)
    expected = pipe.prepare(to_pil(x * 2 - 1))
    inside = (..., slice(2, -2), slice(2, -2))                         # Pillow looks two pixels beyond the cut
    torch.testing.assert_close(pipe.prepare(x)[inside], expected[inside], atol=0.02, rtol=0)


@pytest.mark.parametrize("wanted", [1, 3, 4])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_channels_are_converted_alike_for_pictures_and_tensors(mode, wanted):
    pipe, one = pipeline(wanted), picture(5, mode=mode)
    torch.testing.assert_close(pipe.prepare(from_pil([one]) / 2 + 0.5), pipe.prepare([one]), atol=0.01, rtol=0)


def test_a_transparent_picture_is_white():
    assert torch.equal(pipeline(1).prepare([Image.new("RGBA", (8, 8), (0, 0, 0, 0))]), torch.ones(1, 1, 8, 8))


def test_the_saved_folder_loads_again_by_either_name(tmp_path):
    pipe, x = pipeline(3, (8, 12), NAMES), torch.rand(3, 3, 8, 12)
    pipe.save_pretrained(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "ClassifierPipeline"]
    assert index["classifier"] == ["hfgen_shim", "Classifier"]
    for loader in (AutoPipeline, ClassifierPipeline):
        loaded = loader.from_pretrained(tmp_path / "model")
        assert isinstance(loaded, ClassifierPipeline)
        assert torch.equal(loaded(x).probabilities, pipe(x).probabilities) and loaded(x).names == pipe(x).names


@pytest.mark.parametrize("images", [None, "cat.png", 3, [1, 2], [picture(0), "x"], np.zeros((8, 8))])
def test_what_holds_no_images_is_a_type_error_that_says_what_came(images):
    with pytest.raises(ConfigTypeError, match="images must be PIL images, a float tensor"):
        pipeline()(images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "at least one image"),
        (torch.zeros(0, 1, 8, 8), "at least one image"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "must be floats"),
        (torch.zeros(1, 8, 8), r"must be \(B, C, H, W\)"),
        (torch.zeros(1, 2, 8, 8), "2 channels and the network takes 1"),
        (torch.full((1, 1, 8, 8), -1.0), r"from \[-1, 1\] use"),
        (torch.full((1, 1, 8, 8), float("nan")), r"must be in \[0, 1\]"),
        (Image.new("F", (8, 8)), "must have 8 bits a channel"),
    ],
)
def test_images_that_cannot_be_read_are_refused_by_reason(images, message):
    with pytest.raises(ConfigError, match=message):
        pipeline()(images)
