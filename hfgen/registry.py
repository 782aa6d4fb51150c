"""Static table of public names: the module of each class, and the name under which it is saved.

`MODULES` and `ROOMS` serve the lazy names of `import hfgen`, which `hfgen/__init__.py` repeats for static tools.
`SAVED_NAMES` gives the `[library, name]` pair in `model_index.json` and the `_class_name` of a component's
configuration: the pair of diffusers where it has the same class, so that diffusers loads the saved folder. Loading
looks names up in this table and never imports a name from a file.
"""

from collections.abc import Collection
from importlib import import_module
from types import ModuleType
from typing import Any

SHIM = "hfgen_shim"
PIPELINE_SHIM = "pipeline"
"""File names, without `.py`, of the only code in a saved folder. It is for diffusers; hfgen never runs it."""

MODULES: dict[str, str] = {
    "AutoPipeline": "hfgen.pipelines.auto",
    "Autoencoder": "hfgen.models.autoencoder",
    "AutoencoderKL": "hfgen.models.autoencoder_kl",
    "AutoencoderKLPipeline": "hfgen.pipelines.autoencoder_kl",
    "AutoencoderPipeline": "hfgen.pipelines.autoencoder",
    "AutoregressivePipeline": "hfgen.pipelines.autoregressive",
    "BEGANDiscriminator": "hfgen.models.began",
    "BigGANDiscriminator": "hfgen.models.biggan",
    "BigGANGenerator": "hfgen.models.biggan",
    "Classifier": "hfgen.models.classifier",
    "ClassifierPipeline": "hfgen.pipelines.classifier",
    "ConditionalUNet": "hfgen.models.conditional_unet",
    "ControllableGANPipeline": "hfgen.pipelines.controllable_gan",
    "DCGANDiscriminator": "hfgen.models.dcgan",
    "DCGANGenerator": "hfgen.models.dcgan",
    "DDPMPipeline": "hfgen.pipelines.ddpm",
    "DDPMScheduler": "hfgen.schedulers.ddpm",
    "GANPipeline": "hfgen.pipelines.gan",
    "HierarchicalVAE": "hfgen.models.vae",
    "ImageTransformer": "hfgen.models.image_transformer",
    "LatentDiffusionPipeline": "hfgen.pipelines.latent_diffusion",
    "MLPDenoiser": "hfgen.models.mlp",
    "MLPDiscriminator": "hfgen.models.mlp",
    "MLPGenerator": "hfgen.models.mlp",
    "MaskedGenerationPipeline": "hfgen.pipelines.masked_generation",
    "NormalizingFlowPipeline": "hfgen.pipelines.normalizing_flow",
    "PatchDiscriminator": "hfgen.models.translator",
    "PixelCNN": "hfgen.models.pixel_cnn",
    "ProgressiveDiscriminator": "hfgen.models.progressive",
    "ProgressiveGenerator": "hfgen.models.progressive",
    "ResNetTranslator": "hfgen.models.translator",
    "TarFlow": "hfgen.models.tarflow",
    "TranslationPipeline": "hfgen.pipelines.translation",
    "UNet": "hfgen.models.unet",
    "UNetTranslator": "hfgen.models.translator",
    "VAE": "hfgen.models.vae",
    "VAEPipeline": "hfgen.pipelines.vae",
    "VPSDEScheduler": "hfgen.schedulers.vp_sde",
    "VQAutoencoder": "hfgen.models.vq_autoencoder",
    "VQAutoencoderPipeline": "hfgen.pipelines.vq_autoencoder",
    "compare": "hfgen.evaluation.api",
    "evaluate": "hfgen.evaluation.api",
    "train": "hfgen.training.engine.api",
}

FUNCTIONS: tuple[str, ...] = ("compare", "evaluate", "train")
"""Public functions; nothing is saved under their names."""

RECIPES: dict[str, str] = {
    "autoencoder": "hfgen.training.autoencoder",
    "autoencoder_kl": "hfgen.training.autoencoder_kl",
    "autoregressive": "hfgen.training.autoregressive",
    "classifier": "hfgen.training.classifier",
    "ddpm": "hfgen.training.ddpm",
    "gan": "hfgen.training.gan",
    "latent_diffusion": "hfgen.training.latent_diffusion",
    "score_sde": "hfgen.training.score_sde",
    "tarflow": "hfgen.training.tarflow",
    "translation": "hfgen.training.translation",
    "vae": "hfgen.training.vae",
    "vq_autoencoder": "hfgen.training.vq_autoencoder",
}
"""The recipes by name, each with its module, which has the object `RECIPE`."""

ROOMS: tuple[str, ...] = (
    "cards", "data", "errors", "evaluation", "hub", "images", "loading", "logging", "losses", "metrics",
    "models", "pipelines", "runs", "sampling", "schedulers", "training",
)  # fmt: skip
"""Packages and modules that are attributes of hfgen, imported at their first use."""

PIPELINES: dict[str, str | None] = {
    "AutoencoderKLPipeline": None,
    "AutoencoderPipeline": None,
    "AutoregressivePipeline": None,
    "ClassifierPipeline": None,
    "ControllableGANPipeline": None,
    "DDPMPipeline": "DDPMPipeline",
    "GANPipeline": None,
    "LatentDiffusionPipeline": "StableDiffusionPipeline",
    "MaskedGenerationPipeline": None,
    "NormalizingFlowPipeline": None,
    "TranslationPipeline": None,
    "VAEPipeline": None,
    "VQAutoencoderPipeline": None,
}
"""Every pipeline of hfgen and the pipeline of diffusers whose folders it loads; None if there is none."""

STOCK_ENTRIES: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
    }
}
"""Entries in the index of a pipeline of diffusers that hfgen's pipeline does not have."""

IMPLIED_SETTINGS: dict[str, dict[str, Any]] = {"StableDiffusionPipeline": {"null_condition": True}}
"""Settings of hfgen's pipelines that hold for each folder of a pipeline of diffusers."""

SAVED_NAMES: dict[str, tuple[str, str]] = {
    "AutoencoderKL": ("diffusers", "AutoencoderKL"),
    "DDPMScheduler": ("diffusers", "DDPMScheduler"),
    "UNet": ("diffusers", "UNet2DModel"),
}
"""Components that diffusers has too; every other one is saved as `("hfgen_shim", its own name)`."""

CONVERTED_NAMES: dict[str, tuple[str, str]] = {
    "ConditionalUNet": ("diffusers", "UNet2DConditionModel"),
    "ImageTransformer": ("transformers", "ImageGPTForCausalImageModeling"),
    "VQAutoencoder": ("diffusers", "VQModel"),
}
"""Components that are saved as a class of diffusers or transformers where that has the same function."""

STOCK_SCHEDULERS: tuple[str, ...] = (
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
)
"""Schedulers of diffusers that a pipeline of hfgen may hold; they are saved under their own names."""

TRANSFORMERS_CLASSIFIERS: tuple[str, ...] = (
    "BeitForImageClassification",
    "BitForImageClassification",
    "ConvNextForImageClassification",
    "ConvNextV2ForImageClassification",
    "Data2VecVisionForImageClassification",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "Dinov2ForImageClassification",
    "Dinov2WithRegistersForImageClassification",
    "EfficientNetForImageClassification",
    "FocalNetForImageClassification",
    "HieraForImageClassification",
    "MobileNetV1ForImageClassification",
    "MobileNetV2ForImageClassification",
    "MobileViTForImageClassification",
    "MobileViTV2ForImageClassification",
    "PoolFormerForImageClassification",
    "PvtForImageClassification",
    "PvtV2ForImageClassification",
    "RegNetForImageClassification",
    "ResNetForImageClassification",
    "SegformerForImageClassification",
    "SwiftFormerForImageClassification",
    "SwinForImageClassification",
    "Swinv2ForImageClassification",
    "ViTForImageClassification",
    "ViTMSNForImageClassification",
)
"""Image classifiers of transformers that a pipeline of hfgen may hold: pixels in, `.logits` out."""

TRANSFORMERS_MODELS: tuple[str, ...] = (*TRANSFORMERS_CLASSIFIERS, "CLIPTextModel")
TRANSFORMERS_TOKENIZERS: tuple[str, ...] = ("CLIPTokenizer",)
"""Every network and tokenizer of transformers that hfgen saves and loads, under `["transformers", its own name]`."""


DRAWN: tuple[str, ...] = ("shapes", "shapes:a", "shapes:b")
TOYS: tuple[str, ...] = ("ring8", "grid25", "line", "circle", "moons", "swissroll")
DATASETS: tuple[str, ...] = ("digits", *DRAWN, *TOYS)
"""Names of datasets that need no files; images are drawn, toy sets are points."""

DATA_SUFFIXES: tuple[str, ...] = (".npy", ".npz", ".parquet")
"""Extensions of files that hold many images."""

IMAGE_SUFFIXES: tuple[str, ...] = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2",
)  # fmt: skip
"""Suffixes of the files that are read as images."""


def submodule(package: str, names: Collection[str], name: str) -> ModuleType:
    """Return the module `name` of a package that imports its modules at their first use.

    Raises AttributeError for a name that is not one of `names`.
    """
    if name not in names:
        raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(sorted(names))}")
    return import_module(f"{package}.{name}")


def saved_name(name: str) -> tuple[str, str]:
    """Return the `(library, class name)` pair under which the class `name`, hfgen's or a stock one, is saved."""
    if name in (*TRANSFORMERS_MODELS, *TRANSFORMERS_TOKENIZERS):
        return "transformers", name
    if name in STOCK_SCHEDULERS:
        return "diffusers", name
    stock = {pair[1]: pair for pair in (*SAVED_NAMES.values(), *CONVERTED_NAMES.values())}
    return stock.get(name) or SAVED_NAMES.get(name, (SHIM, name))


def saved_names(name: str) -> list[tuple[str, str]]:
    """Return every `(library, class name)` pair under which components of the class `name` are saved."""
    converted = [CONVERTED_NAMES[name]] if name in CONVERTED_NAMES else []
    return [saved_name(name), *converted]


def class_for(library: str, name: str) -> str | None:
    """Return the name of the hfgen class that loads a component saved as `(library, name)`; None if there is none."""
    if library == SHIM:
        components = MODULES.keys() - {*SAVED_NAMES, *PIPELINES, *FUNCTIONS}
        return name if name in components else None
    names = SAVED_NAMES | CONVERTED_NAMES
    return next((ours for ours, saved in names.items() if saved == (library, name)), None)

