"""The small classifier: shapes, independence of images, features, configuration."""

import json

import pytest
import torch

from hfgen.errors import ConfigError
from hfgen.models.classifier import Classifier


@pytest.mark.parametrize("resolution", [8, 16, 28, 32, 64, 128, (8, 12), (48, 20), (9, 130), 1])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_side_become_logits_of_every_class(resolution, channels):
    net = Classifier(resolution, channels, num_classes=7, width=4)
    x = torch.randn(2, channels, *net.sides)
    assert net(x).logits.shape == (2, 7)
    assert torch.equal(net.linear_out(net.features(x)), net(x).logits)
    assert net.hidden.in_features <= 16 * 7 * 7                        # no side is left above 7


def test_images_do_not_see_each_other_even_in_training():
    net, x, order = Classifier(8, width=8).train(), torch.randn(5, 1, 8, 8), torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        together = net(x).logits
        torch.testing.assert_close(net(x[order]).logits, together[order], atol=1e-6, rtol=0)
        alone = torch.cat([net(image[None]).logits for image in x])
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=0)


def test_gradients_of_features_in_the_image_are_those_of_finite_differences():
    net = Classifier(8, width=2).double()
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net.features, (x,), atol=1e-6)
    assert torch.autograd.grad(net(x).logits[0, 3], x)[0].abs().max() > 1e-4


def test_dropout_takes_features_away_in_training_only():
    net, x = Classifier(8, width=8, dropout=0.5), torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert not torch.equal(net.train()(x).logits, net(x).logits)
        assert torch.equal(net.eval()(x).logits, net(x).logits)


def test_the_saved_folder_gives_the_same_network(tmp_path):
    net, x = Classifier((8, 12), 3, 3, width=4, class_names=["cat", "dog", "emu"]), torch.randn(2, 3, 8, 12)
    net.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["class_names"] == ["cat", "dog", "emu"]
    loaded = Classifier.from_pretrained(tmp_path)
    assert loaded.sides == (8, 12)
    with torch.no_grad():
        assert torch.equal(loaded(x).logits, net(x).logits)


def test_the_meta_device_holds_the_same_tensors_without_memory():
    with torch.device("meta"):
        empty = Classifier(28, width=8)
    shapes = {key: value.shape for key, value in empty.state_dict().items()}
    assert shapes == {key: value.shape for key, value in Classifier(28, width=8).state_dict().items()}
    assert all(value.is_meta for value in empty.state_dict().values())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resolution", 0),
        ("resolution", (8, 8, 8)),
        ("resolution", 8.0),
        ("channels", 0),
        ("num_classes", 1),
        ("width", True),
        ("dropout", 1.0),
        ("class_names", ["one"]),
        ("class_names", list(range(10))),
        ("class_names", "0123456789"),
    ],
)
def test_a_bad_value_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"^{field} must be"):
        Classifier(**{field: value})


@pytest.mark.parametrize("shape", [(2, 1, 8, 9), (2, 3, 8, 8), (1, 8, 8)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ConfigError, match=r"images must be \(B, 1, 8, 8\)"):
        Classifier(8, width=2)(torch.zeros(shape))
