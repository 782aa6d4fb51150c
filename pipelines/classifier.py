"""Classification of images: PIL images or tensors of any size."""

from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from PIL import Image

from hfgen.checks import check_int
from hfgen.models.classifier import Classifier
from hfgen.pipelines.base import Pipeline, output_or_tuple
from hfgen.pipelines.inputs import checked, prepared


@dataclass
class ClassifierOutput(BaseOutput):
    """Predictions: `labels` (B,) int64; `probabilities` (B, K) float32, each row of sum 1; `names`, the class name of
    each label, None if the classes have no names."""

    labels: torch.Tensor
    probabilities: torch.Tensor
    names: list[str] | None = None


class ClassifierPipeline(Pipeline):
    """Labels and probabilities of images, which are first resized to the network's size and channels."""

    model_cpu_offload_seq = "classifier"

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.register_modules(classifier=classifier)

    @torch.no_grad()
    def __call__(
        self,
        images: Image.Image | list[Image.Image] | torch.Tensor,
        batch_size: int = 256,
        return_dict: bool = True,
    ) -> ClassifierOutput | tuple[torch.Tensor, torch.Tensor, list[str] | None]:
        """Return the most probable class of each image and the probabilities of all, `batch_size` images at a time.

        `images`: a PIL image or a list of them, of any sizes, or a float tensor (B, C, H, W) in [0, 1], as pipelines
        return for "pt". Images of other sizes are resized as training data are: shortest side to the network's, bicubic
        and antialiased, centre crop. Transparent pixels become white. RGB is converted to grey, or grey to RGB, as the
        network requires. Raises ConfigError, or ConfigTypeError (also a TypeError) for arguments that are not images.
        """
        check_int("batch_size", batch_size, 1)
        given = checked(images)
        # logits
        parts = [given[i : i + batch_size] for i in range(0, len(given), batch_size)]
        logits = torch.cat([self.classifier(self.prepare(part)).logits for part in parts])  # (B, K)
        self.maybe_free_model_hooks()
        # probabilities, labels and their names
        probabilities = logits.float().softmax(1)
        labels = probabilities.argmax(1)
        known = self.classifier.config.class_names
        names = None
        if known:
            names = [known[label] for label in labels.tolist()]
        return output_or_tuple(ClassifierOutput(labels, probabilities, names), return_dict)

    def prepare(self, images: list[Image.Image] | torch.Tensor) -> torch.Tensor:
        """Return images as inputs of the network: (B, C, H, W) in [-1, 1], on its device and in its dtype."""
        height, width = self.classifier.sides
        x = prepared(images, self.classifier.config.channels, height, width, self._execution_device)
        return x.to(self.classifier.dtype)
