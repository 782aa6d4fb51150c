"""Feature extractors by name: images (B, C, H, W) in [-1, 1] in, features (B, D) out.

A distance between features means nothing without the extractor that made them: its name, the hash of its weights and
how it resizes belong to every number.
"""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from hfgen.errors import ConfigError
from hfgen.hashing import hash_of_weights
from hfgen.images import fitted, unit_of, with_channels
from hfgen.loading import components
from hfgen.loading.resolve import resolve
from hfgen.models.classifier import Classifier

DINOV2, CLIP = "facebook/dinov2-large", "openai/clip-vit-large-patch14"
NAMES = ("pixels", "classifier:<model>", "inception", "dinov2[:<folder or Hub id>]", "clip[:<folder or Hub id>]")


class Extractor:
    """Base of all feature extractors: images (B, C, H, W) in [-1, 1] in, features (B, D) float32 out.

    Attributes: `name` as asked for; `weights_hash`, sha256 over names, shapes and bytes of the tensors, or "none";
    `resizer`, how images are resized, in words; `dim`, D, or None where the images decide; `net`, None for pixels.
    Features of an image do not depend on its batch.
    """

    name = "pixels"
    resizer = "none"
    dim: int | None = None
    net: nn.Module | None = None
    weights_hash = "none"

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        self.name, self.device = name, torch.device(device)

    def _take(self, net: nn.Module) -> None:
        self.net = net.eval().requires_grad_(False).to(self.device)
        self.weights_hash = hash_of_weights(net)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features (B, D), float32, on the extractor's device."""
        return self._features(images.to(self.device)).float()

    def _features(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def describe(self) -> dict[str, Any]:
        """Return name, weights_hash, resizer and dim, as they stand beside a number."""
        return {"name": self.name, "weights_hash": self.weights_hash, "resizer": self.resizer, "dim": self.dim}


class Pixels(Extractor):
    """The images themselves, flattened; also points (B, 2) as they are."""


class ClassifierFeatures(Extractor):
    """The penultimate activations of hfgen's small classifier, and the classes that it sees (`labels`)."""

    def __init__(self, name: str, classifier: Any, device: torch.device | str = "cpu") -> None:
        super().__init__(name, device)
        self._take(classifier)
        self.classifier = classifier
        self.dim = classifier.linear_out.in_features
        height, width = classifier.sides
        self.resizer = f"bicubic, antialiased, float32: shortest side kept in a centred box, {height}x{width}"

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return int(self.classifier.config["num_classes"])

    def prepare(self, images: Tensor) -> Tensor:
        """Return images in [-1, 1] in the size and channels of the classifier."""
        channels = self.classifier.config["channels"]
        if images.shape[1] == channels and tuple(images.shape[2:]) == self.classifier.sides:
            return images.float()
        return fitted(with_channels(unit_of(images), channels), *self.classifier.sides) * 2 - 1

    def _features(self, images: Tensor) -> Tensor:
        return self.classifier.features(self.prepare(images))

    @torch.no_grad()
    def labels(self, images: Tensor) -> Tensor:
        """Return the most probable class of each image, int64 (B,)."""
        return torch.as_tensor(self.classifier(self.prepare(images.to(self.device))).argmax(1))


class VisionTransformer(Extractor):
    """DINOv2's class token after the last norm (`pooler_output`), or CLIP's projected image embedding, not normalised.

    Resized as the model's own preprocessor says. Fréchet distances published with DINOv2 (Stein et al. 2023) resize to
    224x224 without a crop: compare with those only through a folder whose preprocessor says so.
    """

    def __init__(self, name: str, net: Any, preprocessing: Any, device: torch.device | str = "cpu") -> None:
        super().__init__(name, device)
        self._take(net)
        self.preprocessing, self.resizer = preprocessing, str(preprocessing)
        self.projected = hasattr(net, "visual_projection")
        self.dim = net.config.projection_dim if self.projected else net.config.hidden_size

    def prepare(self, images: Tensor) -> Tensor:
        """Return images in [-1, 1] as the network takes them."""
        return torch.as_tensor(self.preprocessing(with_channels(unit_of(images), 3)))

    def _features(self, images: Tensor) -> Tensor:
        net: Any = self.net
        output = net(pixel_values=self.prepare(images))
        return torch.as_tensor(output.image_embeds if self.projected else output.pooler_output)


class Inception(Extractor):
    """Inception-v3 of the first FID, 2,048 features, in torch-fidelity's port: what published FIDs mean.

    It takes 8 bits and resizes to 299x299 itself, bilinear as TensorFlow 1 did, not antialiased.
    """

    resizer = "torch-fidelity's inception-v3-compat: 8 bits, bilinear as in TensorFlow 1, 299x299, not antialiased"

    def __init__(self, name: str, net: nn.Module, device: torch.device | str = "cpu") -> None:
        super().__init__(name, device)
        self._take(net)
        self.dim = 2048

    def _features(self, images: Tensor) -> Tensor:
        net: Any = self.net
        levels = (with_channels(unit_of(images), 3) * 255).round().to(torch.uint8)
        return torch.as_tensor(net(levels)[0])


def load_extractor(name: str, device: torch.device | str = "cpu") -> Extractor:
    """Return the feature extractor `name`, on `device`.

    `pixels`; `classifier:<model>`, hfgen's classifier in a run or pipeline folder or of a Hub id; `inception`, if
    torch-fidelity is installed; `dinov2` and `clip`, or `dinov2:<folder or Hub id>`, through transformers. Nothing but
    safetensors and JSON is read (torch-fidelity's pickle excepted). Raises ConfigError for any other name.
    """
    kind, colon, model = name.partition(":")
    known = {entry.partition(":")[0].partition("[")[0] for entry in NAMES}
    needs, takes = kind == "classifier", kind in ("classifier", "dinov2", "clip")
    if kind not in known or (needs and not model) or (colon and not (takes and model)):
        raise ConfigError(f"{name!r} is no feature extractor; it is one of {', '.join(NAMES)}")
    if kind == "pixels":
        return Pixels(name, device)
    if kind == "classifier":
        return ClassifierFeatures(name, load_classifier(model), device)
    if kind == "inception":
        return Inception(name, _load_inception(), device)
    from hfgen.metrics.vision import load_clip, load_dinov2

    net, preprocessing = load_dinov2(model or DINOV2) if kind == "dinov2" else load_clip(model or CLIP)
    return VisionTransformer(name, net, preprocessing, device)


def load_classifier(model: str) -> Classifier:
    """Return hfgen's classifier in a run folder, a pipeline folder or of a Hub id; ConfigError if it holds none."""
    folder = resolve(model)
    _, entries = components.read_index(folder)
    for part, pair in entries.items():
        if isinstance(pair, list) and len(pair) == 2 and pair[1] == Classifier.__name__:
            cls = components.component_class(folder / components.INDEX, part, *pair)
            found: Classifier = components.load_component(folder, part, cls, pair[1])
            return found
    raise ConfigError(f"{folder}: holds no {Classifier.__name__} ({', '.join(entries)}); train one with "
                      "hfgen train classifier")


def _load_inception() -> nn.Module:
    if find_spec("torch_fidelity") is None:
        raise ConfigError("inception: torch-fidelity is not installed. pip install torch-fidelity torchvision; on "
                          "first use it downloads its weights as a pickle, which can run code when opened. Without it: "
                          f"{', '.join(entry for entry in NAMES if entry != 'inception')}")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    net: nn.Module = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    return net


def features_of(extractor: Extractor, images: Tensor | Iterable[Tensor], batch_size: int = 256) -> Tensor:
    """Return the features (N, D) float32 on the CPU of images (N, C, H, W), or of batches of them that come in turn."""
    batches = images.split(batch_size) if isinstance(images, Tensor) else images
    return torch.cat([extractor(batch).cpu() for batch in batches])
