"""hfgen: train, judge, share and sample generative models in the manner of the Hugging Face stack.

    import hfgen

    pipe = hfgen.AutoPipeline.from_pretrained("runs/digits")        # a run folder, a model folder or a Hub id
    images = pipe(batch_size=16).images
    print(hfgen.evaluate(pipe, "digits").table())

Pipelines      AutoPipeline finds the class of a saved model: DDPMPipeline, LatentDiffusionPipeline, GANPipeline,
               ControllableGANPipeline, VAEPipeline, AutoencoderPipeline, AutoencoderKLPipeline, VQAutoencoderPipeline,
               AutoregressivePipeline, MaskedGenerationPipeline, NormalizingFlowPipeline, TranslationPipeline,
               ClassifierPipeline
Networks       UNet, ConditionalUNet, ImageTransformer, AutoencoderKL, VQAutoencoder, Autoencoder, VAE,
               HierarchicalVAE, Classifier, MLPDenoiser, DCGANGenerator, DCGANDiscriminator, MLPGenerator,
               MLPDiscriminator, BEGANDiscriminator, BigGANGenerator, BigGANDiscriminator, ProgressiveGenerator,
               ProgressiveDiscriminator, ResNetTranslator, UNetTranslator, PatchDiscriminator, PixelCNN, TarFlow
Schedulers     DDPMScheduler, VPSDEScheduler
Functions      evaluate (one model against reference data), compare (several)

Rooms          hfgen.data          load_dataset: digits, shapes, toy sets, folders, tables, Hub ids
               hfgen.losses        adversarial losses, bounds, diffusion losses: tensors in, tensors out
               hfgen.metrics       distances, precision and recall, modes, likelihoods: tensors in, numbers out
               hfgen.schedulers    noise schedules; the table of samplers by name
               hfgen.training      the recipes; hfgen.evaluation, hfgen.sampling, hfgen.hub, hfgen.cards
               hfgen.logging       set_verbosity_error, disable_progress_bar; hfgen.errors: what is raised

Command line   hfgen train RECIPE, sample, evaluate, compare, publish, script; --help after each

Names are imported at first use, so that `import hfgen` is fast.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import filterwarnings

from hfgen.registry import MODULES, ROOMS

if TYPE_CHECKING:
    from hfgen import cards as cards
    from hfgen import data as data
    from hfgen import errors as errors
    from hfgen import evaluation as evaluation
    from hfgen import hub as hub
    from hfgen import images as images
    from hfgen import loading as loading
    from hfgen import logging as logging
    from hfgen import losses as losses
    from hfgen import metrics as metrics
    from hfgen import models as models
    from hfgen import pipelines as pipelines
    from hfgen import runs as runs
    from hfgen import sampling as sampling
    from hfgen import schedulers as schedulers
    from hfgen import training as training
    from hfgen.evaluation.api import compare, evaluate
    from hfgen.models.autoencoder import Autoencoder
    from hfgen.models.autoencoder_kl import AutoencoderKL
    from hfgen.models.began import BEGANDiscriminator
    from hfgen.models.biggan import BigGANDiscriminator, BigGANGenerator
    from hfgen.models.classifier import Classifier
    from hfgen.models.conditional_unet import ConditionalUNet
    from hfgen.models.dcgan import DCGANDiscriminator, DCGANGenerator
    from hfgen.models.image_transformer import ImageTransformer
    from hfgen.models.mlp import MLPDenoiser, MLPDiscriminator, MLPGenerator
    from hfgen.models.pixel_cnn import PixelCNN
    from hfgen.models.progressive import ProgressiveDiscriminator, ProgressiveGenerator
    from hfgen.models.tarflow import TarFlow
    from hfgen.models.translator import PatchDiscriminator, ResNetTranslator, UNetTranslator
    from hfgen.models.unet import UNet
    from hfgen.models.vae import VAE, HierarchicalVAE
    from hfgen.models.vq_autoencoder import VQAutoencoder
    from hfgen.pipelines.auto import AutoPipeline
    from hfgen.pipelines.autoencoder import AutoencoderPipeline
    from hfgen.pipelines.autoencoder_kl import AutoencoderKLPipeline
    from hfgen.pipelines.autoregressive import AutoregressivePipeline
    from hfgen.pipelines.classifier import ClassifierPipeline
    from hfgen.pipelines.controllable_gan import ControllableGANPipeline
    from hfgen.pipelines.ddpm import DDPMPipeline
    from hfgen.pipelines.gan import GANPipeline
    from hfgen.pipelines.latent_diffusion import LatentDiffusionPipeline
    from hfgen.pipelines.masked_generation import MaskedGenerationPipeline
    from hfgen.pipelines.normalizing_flow import NormalizingFlowPipeline
    from hfgen.pipelines.translation import TranslationPipeline
    from hfgen.pipelines.vae import VAEPipeline
    from hfgen.pipelines.vq_autoencoder import VQAutoencoderPipeline
    from hfgen.schedulers.ddpm import DDPMScheduler
    from hfgen.schedulers.vp_sde import VPSDEScheduler
    from hfgen.training.engine.api import train

filterwarnings("ignore", message="IProgress not found")          # tqdm in a notebook without ipywidgets: bars are text

if not Path(__file__).with_name("pipelines").is_dir():            # a source archive, or a clone without symbolic links
    __path__.append(str(Path(__file__).parents[1]))               # has pipelines/ and training/ beside this folder

__version__ = "0.1.0"

__all__ = [
    "VAE", "AutoPipeline", "Autoencoder", "AutoencoderKL", "AutoencoderKLPipeline", "AutoencoderPipeline",
    "AutoregressivePipeline", "BEGANDiscriminator", "BigGANDiscriminator", "BigGANGenerator", "Classifier",
    "ClassifierPipeline", "ConditionalUNet", "ControllableGANPipeline", "DCGANDiscriminator", "DCGANGenerator",
    "DDPMPipeline", "DDPMScheduler", "GANPipeline", "HierarchicalVAE", "ImageTransformer", "LatentDiffusionPipeline",
    "MLPDenoiser", "MLPDiscriminator", "MLPGenerator", "MaskedGenerationPipeline", "NormalizingFlowPipeline",
    "PatchDiscriminator", "PixelCNN", "ProgressiveDiscriminator", "ProgressiveGenerator", "ResNetTranslator", "TarFlow",
    "TranslationPipeline", "UNet", "UNetTranslator", "VAEPipeline", "VPSDEScheduler", "VQAutoencoder",
    "VQAutoencoderPipeline", "__version__", "compare", "evaluate", "train",
]  # fmt: skip


if not TYPE_CHECKING:                                                # static tools have the names above

    def __getattr__(name: str) -> Any:
        if name in ROOMS:
            return import_module(f"hfgen.{name}")
        if name not in MODULES:
            there = ", ".join(sorted([*MODULES, *ROOMS]))
            raise AttributeError(f"module 'hfgen' has no attribute {name!r}; it has {there}")
        return getattr(import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *ROOMS])
