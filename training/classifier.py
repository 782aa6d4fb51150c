"""A small classifier of images: cross-entropy on images that are shifted at random.

    hfgen train classifier --dataset digits --split "train[:80%]" --eval-split "train[80%:]" --output-dir runs/reader
    hfgen train classifier --dataset digits --split "train[:100]" --start-from runs/codes --output-dir runs/few

Started from an autoencoder or VAE, it is a linear layer on the codes of its encoder, and all is trained.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from hfgen import images, runs
from hfgen.data.dataset import Batch, Dataset
from hfgen.errors import ConfigError
from hfgen.loading.components import component_folder
from hfgen.loading.files import read_json
from hfgen.models.classifier import Classifier
from hfgen.models.encoders import SOURCES, encoder_settings
from hfgen.pipelines.base import Pipeline
from hfgen.pipelines.classifier import ClassifierPipeline
from hfgen.training.engine.evaluation import BATCH_SIZE, batches_of, held_out
from hfgen.training.engine.init_from import copy_weights
from hfgen.training.engine.noise import Noise
from hfgen.training.engine.phase import Phase, Recipe
from hfgen.training.engine.recipe import RecipeSpec, side_or_sides
from hfgen.training.engine.run import main
from hfgen.training.settings.classifier import SPEC, ClassifierSettings

GRID_IMAGES, CANDIDATES = 64, 2048
"""Images on a grid, and images among which they are chosen."""


def build(settings: ClassifierSettings, dataset: Dataset) -> Recipe:
    """Return the network, the one phase and the pipeline of a classifier of `dataset`.

    The network of a run that is resumed has the encoder of its checkpoint.
    """
    stored = runs.newest_checkpoint(settings.output_dir) if settings.resume else None
    encoder = None
    if stored is not None:
        encoder = read_json(component_folder(stored / "model", "classifier") / "config.json").get("encoder")
    return recipe_of(network(settings, dataset, encoder), settings, dataset)


def build_on(settings: ClassifierSettings, dataset: Dataset, components: dict[str, Any]) -> Recipe | None:
    """Return the recipe of a classifier on the encoder of an autoencoder, a VAE or a classifier that has one.

    None for other components. Raises ConfigError for an encoder of other images.
    """
    # find a trained encoder
    source = next((net for net in components.values() if type(net).__name__ in SOURCES), None)
    trained = components.get("classifier")
    if source is not None:
        encoder = encoder_settings(source)
    elif isinstance(trained, Classifier) and trained.codes is not None:
        encoder = trained.config["encoder"]
    else:
        return None
    # build on it, and start from its weights
    net: Any = network(settings, dataset, encoder)
    if source is not None:
        net.codes.start_from(source)
    else:
        copy_weights(cast(nn.Module, trained), net, "--start-from: classifier")
    return recipe_of(net, settings, dataset)


def recipe_of(classifier: Any, settings: ClassifierSettings, dataset: Dataset) -> Recipe:
    """Return the one phase and the pipeline of a classifier of `dataset`."""
    unseen = evaluation_data(settings, dataset)
    # shift images at random, and smooth labels
    reach = [round(side / 12) for side in dataset.shape[1:]]
    if settings.max_shift is not None:
        reach = [settings.max_shift] * len(reach)

    def loss(nets: Mapping[str, nn.Module], batch: Batch, noise: Noise, memo: dict[str, Tensor]):  # type: ignore[no-untyped-def]
        x, label = batch["x"], batch["label"]
        offsets = [(noise.uniform(f"shift {axis}") * (2 * r + 1)).long() - r for axis, r in enumerate(reach)]
        logits = nets["classifier"](shifted(x, *offsets)).logits                         # (B, K)
        mean = F.cross_entropy(logits, label, label_smoothing=settings.label_smoothing)
        return mean, {"loss": mean.detach(), "accuracy": (logits.argmax(1) == label).float().mean()}

    # assemble the recipe
    optimizer = torch.optim.AdamW(
        classifier.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    return Recipe(
        nets={"classifier": classifier},
        phases=[Phase("classifier", optimizer, ("classifier",), loss)],
        pipeline=lambda nets: ClassifierPipeline(nets["classifier"]),
        preview=lambda pipeline: preview(pipeline, unseen or dataset),
        averaged=("classifier",),
        evaluate=None if unseen is None else lambda nets: evaluate(nets["classifier"], unseen),
        usage="hfgen.ClassifierPipeline.from_pretrained('{run}')(images).labels",
    )


def network(settings: ClassifierSettings, dataset: Dataset, encoder: dict[str, Any] | None = None) -> Classifier:
    """Return the classifier for the dataset's images and classes. Raises ConfigError where it has none."""
    # check that the dataset can be classified
    if len(dataset.shape) != 3:
        raise ConfigError(f"--dataset {settings.dataset}: a classifier is for images, these are points")
    if dataset.num_classes is None:
        raise ConfigError(
            f"--dataset {settings.dataset}: a classifier needs labels, and there are none: name a --label-column, sort "
            "the images into a folder for each class, or list their labels in a metadata.csv"
        )
    if dataset.num_classes < 2:
        raise ConfigError(f"--dataset {settings.dataset}: a classifier needs two classes or more, found one")
    _check_settings(settings, dataset)
    # build the network
    return Classifier(
        resolution=side_or_sides(dataset),
        channels=dataset.shape[0],
        num_classes=dataset.num_classes,
        width=settings.width,
        dropout=settings.dropout,
        class_names=dataset.class_names,
        encoder=encoder,
    )


def _check_settings(settings: ClassifierSettings, dataset: Dataset) -> None:
    if not 0 <= settings.label_smoothing < 1:
        raise ConfigError(f"--label-smoothing must be in [0, 1), got {settings.label_smoothing}")
    side = min(dataset.shape[1:])
    if settings.max_shift is not None and not 0 <= settings.max_shift < side:
        raise ConfigError(f"--max-shift must be in [0, {side - 1}] for images of side {side}, got {settings.max_shift}")


def evaluation_data(settings: ClassifierSettings, dataset: Dataset) -> Dataset | None:
    """Return the data that the accuracy is measured on, shaped like the training data; None where none were named.

    Raises ConfigError unless they are labelled with the same classes.
    """
    # open the data that the settings name
    data = held_out(settings, dataset)
    if data is None:
        return None
    # check that the classes are the same
    classes, names_there = dataset.num_classes or 0, data.class_names
    if data.num_classes is None:
        raise ConfigError(f"the evaluation data {data.name} have no labels; name others with --eval-dataset")
    if data.num_classes > classes or (names_there and dataset.class_names not in (None, names_there)):
        names = names_there or f"{data.num_classes} classes"
        raise ConfigError(
            f"the evaluation data {data.name} have other classes than the training data: {names} instead of "
            f"{dataset.class_names or classes}"
        )
    return data


def shifted(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return images (B, C, H, W) moved by whole pixels (B,) each; pixels from outside repeat the border."""
    # find source row and column of each pixel
    _, _, height, width = x.shape
    rows = (torch.arange(height, device=x.device) - down[:, None]).clamp(0, height - 1)  # (B, H)
    columns = (torch.arange(width, device=x.device) - right[:, None]).clamp(0, width - 1)  # (B, W)
    # gather them
    image = torch.arange(len(x), device=x.device)[:, None, None]
    return x.movedim(1, 3)[image, rows[:, :, None], columns[:, None, :]].movedim(3, 1)


@torch.no_grad()
def evaluate(net: nn.Module, dataset: Dataset) -> dict[str, float]:
    """Return the accuracy, in [0, 1], and the cross-entropy in nats of a network on all of a dataset."""
    device = next(net.parameters()).device
    right = nats = 0.0
    for batch in batches_of(dataset):
        logits, label = net(batch["x"].to(device)).logits, batch["label"].to(device)
        right += float((logits.argmax(1) == label).sum())
        nats += float(F.cross_entropy(logits, label, reduction="sum"))
    return {"eval_accuracy": right / len(dataset), "eval_loss": nats / len(dataset)}


def preview(pipeline: Pipeline, dataset: Dataset) -> Image.Image:
    """Return a grid of the 64 images, of the first 2,048, that the classifier is least sure of, the least one first."""
    # compute the probability of the predicted class
    x = dataset.tensor(CANDIDATES)
    sure = pipeline(x / 2 + 0.5, batch_size=BATCH_SIZE).probabilities.max(1).values
    # draw the least sure images
    least = sure.argsort(stable=True)[:GRID_IMAGES]
    return images.grid(images.to_pil(x[least.cpu()]))


RECIPE = RecipeSpec(SPEC, build, build_on=build_on)

if __name__ == "__main__":
    from hfgen.training import classifier

    raise SystemExit(main(classifier.RECIPE))
