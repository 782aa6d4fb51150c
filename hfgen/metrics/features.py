"""Feature extractors by name: images (B, C, H, W) in [-1, 1] in, features (B, D) out.

A distance between features has a meaning only for one extractor: report its name, the hash of its weights and its
resizing with every number.
"""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from hfgen.errors import ConfigError
from hfgen.images import fitted, unit_of, with_channels
from hfgen.loading import components
from hfgen.loading.hashing import hash_of_weights
from hfgen.loading.resolve import resolve
from hfgen.models.classifier import Classifier

DINOV2, CLIP = "facebook/dinov2-large", "openai/clip-vit-large-patch14"
"""Default models of the extractors `dinov2` and `clip`."""

NAMES = ("pixels", "classifier:<model>", "inception", "dinov2[:<folder or Hub id>]", "clip[:<folder or Hub id>]")
"""Names that `load_extractor` takes."""

BATCH_SIZE = 256
"""Default number of images whose features are computed at once."""


class Extractor:
    """Base of all feature extractors: images (B, C, H, W) in [-1, 1] in, features (B, D) float32 out.

    Attributes: `name`, as requested; `weights_hash`, sha256 of names, shapes and bytes of the tensors, or "none";
    `resizer`, the resizing in words; `dim`, the number D of features, None if it depends on the images; `net`, None for
    pixels. Features of an image do not depend on its batch.
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
        """Return the features (B, D) float32, on the extractor's device, of images (B, C, H, W) in [-1, 1]."""
        return self._features(images.to(self.device)).float()

    def _features(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def describe(self) -> dict[str, Any]:
        """Return name, weights_hash, resizer and dim, which are reported with each number."""
        return {"name": self.name, "weights_hash": self.weights_hash, "resizer": self.resizer, "dim": self.dim}


class Pixels(Extractor):
    """The flattened images; points (B, 2) are unchanged."""


class ClassifierFeatures(Extractor):
    """Penultimate activations of hfgen's small classifier, and its predicted classes (`labels`)."""

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
        """Return images (B, C, H, W) in [-1, 1] in the size and channels of the classifier."""
        channels = self.classifier.config["channels"]
        if images.shape[1] == channels and tuple(images.shape[2:]) == self.classifier.sides:
            return images.float()
        return fitted(with_channels(unit_of(images), channels), *self.classifier.sides) * 2 - 1

    def _features(self, images: Tensor) -> Tensor:
        return self.classifier.features(self.prepare(images))

    @torch.no_grad()
    def labels(self, images: Tensor) -> Tensor:
        """Return the most probable class of each image, int64 (B,) in [0, K - 1]."""
        return torch.as_tensor(self.classifier(self.prepare(images.to(self.device))).logits.argmax(1))


class VisionTransformer(Extractor):
    """DINOv2's class token after the last norm (`pooler_output`), or CLIP's projected image embedding, not normalised.

    Images are resized as in the model's own preprocessor. Published Fréchet distances with DINOv2 (Stein et al. 2023)
    resize to 224x224 without a crop: to compare with them, use a folder whose preprocessor does the same.
    """

    def __init__(self, name: str, net: Any, preprocessing: Any, device: torch.device | str = "cpu") -> None:
        super().__init__(name, device)
        self._take(net)
        self.preprocessing, self.resizer = preprocessing, str(preprocessing)
        self.projected = hasattr(net, "visual_projection")
        self.dim = net.config.projection_dim if self.projected else net.config.hidden_size

    def prepare(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [-1, 1] as input of the network, (B, 3, h, w)."""
        return torch.as_tensor(self.preprocessing(with_channels(unit_of(images), 3)))

    def _features(self, images: Tensor) -> Tensor:
        net: Any = self.net
        output = net(pixel_values=self.prepare(images))
        if self.projected:
            return torch.as_tensor(output.image_embeds)
        return torch.as_tensor(output.pooler_output)


class Inception(Extractor):
    """Inception-v3 of published FIDs in torch-fidelity's port, 2,048 features (Heusel et al. 2017).

    It takes 8-bit images and resizes them to 299x299, bilinear as in TensorFlow 1, not antialiased.
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

    `pixels`; `classifier:<model>`, hfgen's classifier in a run folder, a pipeline folder or under a Hub id;
    `inception`, if torch-fidelity is installed; `dinov2` and `clip`, or `dinov2:<folder or Hub id>`, through
    transformers. Only safetensors and JSON are read, except for torch-fidelity's pickle. Raises ConfigError for any
    other name.
    """
    # check the name
    kind, colon, model = name.partition(":")
    known = {entry.partition(":")[0].partition("[")[0] for entry in NAMES}
    needs, takes = kind == "classifier", kind in ("classifier", "dinov2", "clip")
    if kind not in known or (needs and not model) or (colon and not (takes and model)):
        raise ConfigError(f"{name!r} is no feature extractor; it is one of {', '.join(NAMES)}")
    # load the network
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
    """Return hfgen's classifier in a run folder, a pipeline folder or under a Hub id.

    Raises ConfigError if there is no classifier.
    """
    folder = resolve(model)
    _, entries = components.read_index(folder)
    for part, pair in entries.items():
        if isinstance(pair, list) and len(pair) == 2 and pair[1] == Classifier.__name__:
            cls = components.component_class(folder / components.INDEX, part, *pair)
            classifier: Classifier = components.load_component(folder, part, cls, pair[1])
            return classifier
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


def features_of(extractor: Extractor, images: Tensor | Iterable[Tensor], batch_size: int = BATCH_SIZE) -> Tensor:
    """Return the features (N, D) float32, on the CPU, of images (N, C, H, W) in [-1, 1] or of an iterable of batches.

    `batch_size`: images at once, for a tensor of images.
    """
    batches = images.split(batch_size) if isinstance(images, Tensor) else images
    return torch.cat([extractor(batch).cpu() for batch in batches])
