"""Families of pipelines for the cards of models: one static table, and the code that loads and samples a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgen.cards.markdown import literal
from hfgen.loading.components import INDEX, component_folder, read_index
from hfgen.loading.files import read_json
from hfgen.registry import PIPELINES


@dataclass(frozen=True)
class Family:
    """Card entries of a pipeline class: a sentence, the Hub's task, tags, limits, and its use.

    `apply`: lines that apply a `pipeline` to an image, () for a pipeline that samples. `arguments`: arguments that
    sampling requires.
    """

    description: str
    task: str | None
    tags: tuple[str, ...]
    limits: tuple[str, ...]
    apply: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


TO_IMAGES = ('images = pipeline([Image.open("image.png")]).images',)
GENERATION, IMAGES = "unconditional-image-generation", "image-to-image"
SMALL_CODES = "Fine detail is lost: reconstructions hold only what the code stores."
STEPS = "Each sample takes many passes through the network; with few steps samples lose quality."

FAMILIES: dict[str, Family] = {
    "AutoencoderKLPipeline": Family(
        "A KL-autoencoder (Rombach et al. 2022): it maps images to latents of mean 0 and variance 1, and back.",
        IMAGES, ("autoencoder", "autoencoder-kl"),
        (SMALL_CODES, "It makes no images from noise; a diffusion model of its latents does that.",
         "Trained with an adversarial loss, it may invent plausible texture."),
        TO_IMAGES,
    ),
    "AutoencoderPipeline": Family(
        "An autoencoder (denoising: Vincent et al. 2008): it maps images to a short code, and back.",
        IMAGES, ("autoencoder",),
        (SMALL_CODES, "It makes no images from noise: its codes follow no known distribution.",
         "It repairs only the kind of corruption that it was trained on, which the configuration names."),
        TO_IMAGES,
    ),
    "AutoregressivePipeline": Family(
        "An autoregressive model (van den Oord et al. 2016): an image is drawn entry by entry, each conditioned on all "
        "before it.",
        GENERATION, ("autoregressive",),
        ("Each sample takes as many passes through the network as it has entries.",
         "An early draw that is unlikely changes all that follows it."),
    ),
    "ClassifierPipeline": Family(
        "A small convolutional classifier of images.",
        "image-classification", ("classifier",),
        ("It predicts one of its classes for any image; its probabilities are not calibrated.",),
        ('output = pipeline([Image.open("image.png")])', "labels, names = output.labels, output.names"),
    ),
    "ControllableGANPipeline": Family(
        "A generative adversarial network (Goodfellow et al. 2014) with a classifier: gradient ascent in the latents "
        "until the classifier predicts the target.",
        GENERATION, ("gan", "controllable-generation"),
        ("The classifier decides which images have the target; its mistakes are included.",
         "Features other than the target may change too; the output measures how much."),
        arguments=("target=0",),
    ),
    "DDPMPipeline": Family(
        "A denoising diffusion model (Ho et al. 2020): samples are noise that a network removes step by step.",
        GENERATION, ("diffusion", "ddpm"), (STEPS,),
    ),
    "GANPipeline": Family(
        "A generative adversarial network (Goodfellow et al. 2014): a sample is one pass through a generator.",
        GENERATION, ("gan",),
        ("Parts of the data may be missing among the samples (mode collapse); its likelihood is not known.",),
    ),
    "LatentDiffusionPipeline": Family(
        "A latent diffusion model (Rombach et al. 2022): noise is removed step by step, in an autoencoder's latents.",
        GENERATION, ("diffusion", "latent-diffusion"),
        (STEPS, "Images are at most as sharp as the autoencoder's reconstructions.",
         "Strong guidance reduces the variety of samples."),
    ),
    "MaskedGenerationPipeline": Family(
        "A masked generative transformer (MaskGIT, Chang et al. 2022): all entries of an image are drawn in a few "
        "parallel steps, the most confident ones first.",
        GENERATION, ("masked-generation", "maskgit"),
        ("Entries that one step draws together do not depend on each other: few steps cost quality.",
         "Its likelihood is not known."),
    ),
    "NormalizingFlowPipeline": Family(
        "A normalizing flow (TarFlow, Zhai et al. 2025): an invertible map between images and standard normal latents.",
        GENERATION, ("normalizing-flow", "tarflow"),
        ("Each sample takes one pass for each patch and block.",
         "Its density is of pixels with the noise that training added, which sampling removes."),
    ),
    "TranslationPipeline": Family(
        "Two translators of images between a domain A and a domain B (CycleGAN, Zhu et al. 2017; with pairs pix2pix, "
        "Isola et al. 2017).",
        IMAGES, ("gan", "image-translation", "cyclegan"),
        ("Translations of images from neither domain are meaningless.",
         "Content that the target domain lacks may be hidden or invented; translations are not measurements."),
        ('images = pipeline([Image.open("image.png")], direction="a2b").images',),
    ),
    "VAEPipeline": Family(
        "A variational autoencoder (Kingma and Welling 2014): a decoder of standard normal latents, and an encoder.",
        GENERATION, ("vae",),
        ("Samples are means of p(x|z), smoother than the data.", "Only a lower bound of its likelihood is known."),
    ),
    "VQAutoencoderPipeline": Family(
        "A discrete autoencoder (van den Oord et al. 2017): it maps images to a grid of codes, and back.",
        IMAGES, ("autoencoder", "vq-vae"),
        (SMALL_CODES, "It makes no images from noise; an autoregressive model of its codes does that.",
         "Trained with an adversarial loss, it may invent plausible texture."),
        TO_IMAGES,
    ),
}  # fmt: skip

SCORE_SDE = Family(
    "A score model of the variance-preserving SDE (Song et al. 2021): samples solve the reverse SDE, or its ODE.",
    GENERATION, ("diffusion", "score-sde"), (STEPS,),
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """Model in a pipeline folder: `name` of the class, `stock` name in diffusers, `{component: configuration}`."""

    name: str
    stock: str | None
    configs: dict[str, dict[str, Any]]

    @property
    def family(self) -> Family:
        """Return the family of the pipeline."""
        if self.sde:
            return SCORE_SDE
        return FAMILIES[self.name]

    @property
    def task(self) -> str | None:
        """Return the Hub's name of the task; None for points, for which the Hub has no name."""
        if self.has("text_encoder"):
            return "text-to-image"
        if self.points:
            return None
        return self.family.task

    @property
    def sde(self) -> bool:
        """Return whether the scheduler is that of the score SDE."""
        return self.setting("scheduler", "_class_name") == "VPSDEScheduler"

    @property
    def points(self) -> bool:
        """Return whether samples are points, not images."""
        return any(self.setting(part, "dim") is not None for part in ("unet", "generator", "vae"))

    @property
    def labelled(self) -> bool:
        """Return whether a sample needs a class."""
        keys = [("unet", "num_class_embeds"), ("unet", "class_embed_type"), ("generator", "num_classes")]
        keys += [("vae", "num_classes"), ("network", "num_class_embeds")]
        return any(self.setting(*key) is not None for key in keys)

    def has(self, part: str) -> bool:
        """Return whether the pipeline has a component of this name."""
        return part in self.configs

    def setting(self, part: str, key: str) -> Any:
        """Return a setting of a component; None if it has no such setting."""
        return self.configs.get(part, {}).get(key)


def read_model(folder: Path) -> Model:
    """Return the model in a pipeline folder. Raises ConfigError or UnsafeContentError for any other folder."""
    name, entries = read_index(folder)
    # configurations of the components
    configs = {}
    for part, value in entries.items():
        if isinstance(value, list) and value[:1] not in ([], [None]):
            config = _config(folder, part)
            if config is not None:
                configs[part] = config
    # name in diffusers
    shimmed = isinstance(read_json(folder / INDEX)["_class_name"], list)
    return Model(name, None if shimmed else PIPELINES[name], configs)


def _config(folder: Path, part: str) -> dict[str, Any] | None:
    """Return the configuration of a component; None for a component without one, such as a tokenizer."""
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    path = component_folder(folder, part) / name
    return read_json(path) if path.is_file() else None


def hfgen_code(model: Model, name: str) -> str:
    """Return the Python code that loads the model `name` in hfgen and samples or applies it."""
    return _program(model, ["import hfgen"], f"pipeline = hfgen.{model.name}.from_pretrained({literal(name)})")


def diffusers_code(model: Model, name: str) -> str:
    """Return the Python code that loads the model `name` in diffusers and samples or applies it."""
    imports = ["from diffusers import DiffusionPipeline"]
    if model.stock is None:
        load = f"pipeline = DiffusionPipeline.from_pretrained({literal(name)}, trust_remote_code=True)"
        return _program(model, imports, load)
    words = ["batch_size=16"]
    if model.has("text_encoder"):
        words = ['"a caption"', "guidance_scale=3"]
    use = f"images = pipeline({', '.join(words)}, num_inference_steps={_steps(model)}).images"
    return "\n".join([*imports, "", f"pipeline = DiffusionPipeline.from_pretrained({literal(name)})", use])


def _program(model: Model, imports: list[str], load: str) -> str:
    """Return a program: imports, the line that loads a `pipeline`, and its use."""
    # pipelines that are applied to images
    if model.family.apply:
        imports = [*imports, "from PIL import Image"]
    return "\n".join([*imports, "", load, *_use(model)])


def _use(model: Model) -> list[str]:
    """Return the lines that use a loaded `pipeline`."""
    # pipelines that are applied to images
    if model.family.apply:
        return list(model.family.apply)
    # arguments of a pipeline that samples
    words = ["batch_size=16"]
    if model.has("text_encoder"):
        words.append('prompt="a caption"')
    if model.labelled:
        words.append("class_labels=0")
    words += model.family.arguments
    if model.sde:
        words.append('sampler="ode_heun", num_steps=25')
    elif model.has("scheduler"):
        words.append(f"num_steps={_steps(model)}")
    # the line that samples
    samples = "points" if model.points else "images"
    return [f"{samples} = pipeline({', '.join(words)}).images"]


def _steps(model: Model) -> int:
    """Return the number of sampling steps: 50, or all T steps of a shorter model."""
    return min(50, int(model.setting("scheduler", "num_train_timesteps") or 1000))
