"""The discrete autoencoder: VQ-VAE (van den Oord et al. 2017), VQGAN (Esser et al. 2021), FSQ (Mentzer et al. 2024).

    hfgen train vq_autoencoder --dataset digits --output-dir runs/vq

An image becomes a grid of codes, of which autoregressive models learn the distribution. `hfgen.training.first_stage`
has the losses but those of the codes.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from hfgen.data.dataset import Dataset
from hfgen.errors import ConfigError
from hfgen.metrics.codes import code_use
from hfgen.models.quantizers import VectorQuantizer
from hfgen.models.vq_autoencoder import VQAutoencoder
from hfgen.pipelines.vq_autoencoder import VQAutoencoderPipeline
from hfgen.training import first_stage
from hfgen.training.engine.codebook import CodeUse, MovingCodebook
from hfgen.training.engine.evaluation import batches_of, held_out
from hfgen.training.engine.noise import Noise
from hfgen.training.engine.phase import Recipe
from hfgen.training.engine.recipe import RecipeSpec
from hfgen.training.engine.run import main
from hfgen.training.first_stage import FirstStageLosses, Nets
from hfgen.training.settings.vq_autoencoder import SPEC, VQAutoencoderSettings

LOW, PATIENCE = 0.05, 300
"""Perplexity over the number of codes that is low, and steps for which it stays low before a run warns."""


def build(s: VQAutoencoderSettings, dataset: Dataset) -> Recipe:
    """Return autoencoder and discriminator, their phases and the pipeline of a discrete autoencoder of `dataset`."""
    check_vq_autoencoder(s, dataset)
    # build the networks, and the counts of codes beside them
    net: Any = network(s, dataset)
    use = codebook(s, net, dataset)
    nets: dict[str, nn.Module] = {"autoencoder": net, "codebook": use}
    judge = first_stage.discriminator(s, dataset)
    if judge is not None:
        nets["discriminator"] = judge
    # assemble the recipe
    shown = held_out(s, dataset)
    return Recipe(
        nets=nets,
        phases=first_stage.phases(CodeLosses(s, net, judge, use), "autoencoder", nets, use.update),
        pipeline=lambda nets: VQAutoencoderPipeline(nets["autoencoder"]),
        preview=lambda pipeline: first_stage.preview(cast(Any, pipeline).autoencoder, shown or dataset),
        averaged=("autoencoder",),
        evaluate=None if shown is None else lambda nets: evaluate(nets["autoencoder"], shown),
        guard=lambda memory, line: guard(memory, line, s, net.num_codes),
        fetch=use.fetch,
        stages=first_stage.stages(s),
        usage="hfgen.VQAutoencoderPipeline.from_pretrained('{run}').reconstruct(images).images",
    )


def network(s: VQAutoencoderSettings, dataset: Dataset) -> VQAutoencoder:
    """Return the autoencoder for the dataset's images; moving averages, not gradients, move its codebook with ema."""
    # build with a grid
    sizes = first_stage.sizes(s, dataset)
    if s.quantizer == "fsq":
        return VQAutoencoder(latent_channels=len(s.levels), quantizer="fsq", levels=s.levels, **sizes)
    # build with a codebook
    net = VQAutoencoder(latent_channels=s.code_dim, num_vq_embeddings=s.num_codes, **sizes)
    if s.codebook == "ema":
        cast(VectorQuantizer, net.quantize).hold_codebook()
    return net


def codebook(s: VQAutoencoderSettings, net: VQAutoencoder, dataset: Dataset) -> CodeUse:
    """Return the module that counts the codes, and moves the codebook with ema."""
    if s.quantizer == "fsq" or s.codebook == "gradient":
        return CodeUse(net.num_codes)
    height, width = net.code_shape(dataset.shape)
    quantize, known = cast(VectorQuantizer, net.quantize), s.start_from is not None
    return MovingCodebook(quantize, s.batch_size * height * width, s.codebook_decay, s.dead_below, known)


class CodeLosses(FirstStageLosses):
    """The losses of an autoencoder with codes (van den Oord et al. 2017, eq. 3):

        log p(x|z_q) + |sg[z] - e|^2 + beta |z - sg[e]|^2

    as means over vectors and channels. The second term is left out where moving averages move the codebook, both with
    a grid.
    """

    def __init__(self, settings: Any, net: Any, discriminator: Any, use: CodeUse) -> None:
        super().__init__(settings, net, discriminator)
        self.use = use

    def before_decoder(self, x: Tensor, noise: Noise) -> Tensor:
        """Return the input of the decoder (B, D, h, w) for images (B, C, H, W) in [-1, 1]: of their codes."""
        quantised, _ = self.net.quantize(self.net.before_quantizer(x))
        made: Tensor = self.net.before_decoder(quantised)
        return made

    def passed(self, nets: Nets, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return reconstructions from codes, the loss of commitment and codebook, and both for the log."""
        # reconstruct, and count the codes
        out: Any = nets["autoencoder"](x)
        z, vectors, made = out.latents.float(), out.vectors.float(), out.sample.float()
        self.use.collect(z, out.codes, noise)
        if self.settings.quantizer == "fsq":
            return made, z.new_zeros(()), {}
        # keep the encoder near its codes, and move the codebook by the gradient
        commitment = mse_loss(z, vectors.detach())
        penalty = self.settings.commitment_weight * commitment
        if self.settings.codebook == "gradient":
            penalty = penalty + mse_loss(vectors, z.detach())
        return made, penalty, {"commitment": commitment}


@torch.no_grad()
def evaluate(net: Any, dataset: Dataset) -> dict[str, float]:
    """Return the PSNR in decibels of the reconstructions of all of a dataset, and share and perplexity of its codes."""
    counts = torch.zeros(net.num_codes, dtype=torch.int64)
    for batch in batches_of(dataset):
        codes = net.to_codes(batch["x"].to(net.device)).cpu()
        counts += torch.bincount(codes.flatten(), minlength=net.num_codes)
    share, perplexity = code_use(counts)
    psnr = first_stage.reconstruction_psnr(net, dataset)
    return {"eval_psnr": psnr, "eval_codes_used": share, "eval_perplexity": perplexity}


def guard(
    memory: dict[str, Any], line: dict[str, float], s: VQAutoencoderSettings, num_codes: int
) -> tuple[dict[str, Any], str | None]:
    """Return the memory with a line of the log in it, and a warning if the codebook has collapsed to a few codes.

    It has where the perplexity is below 5 % of the number of codes for 300 steps. The warning comes once, and again
    only after a recovery.
    """
    # remember the step at which it became low
    perplexity = line.get("perplexity")
    if perplexity is None:
        return memory, None
    if perplexity >= LOW * num_codes:
        return {}, None
    since = memory.get("since", line["step"])
    if memory.get("warned") or line["step"] - since < PATIENCE:
        return {**memory, "since": since}, None
    # advise
    return {"since": since, "warned": True}, (
        f"the codebook has collapsed: since step {since:,.0f} the perplexity is at most {LOW:.0%} of the {num_codes} "
        f"codes, now {perplexity:.1f}. {advice(s)}"
    )


def advice(s: VQAutoencoderSettings) -> str:
    """Return the options that help against unused codes, of those that the run does not have."""
    if s.quantizer == "fsq":
        return "Try fewer or smaller --levels, or a lower --learning-rate"
    if s.codebook == "gradient":
        return "Try --codebook ema, which revives dead codes, or --quantizer fsq"
    return f"Try --quantizer fsq, --num-codes {max(2, s.num_codes // 4)}, or --learning-rate {s.learning_rate / 4:.2g}"


def check_vq_autoencoder(s: VQAutoencoderSettings, dataset: Dataset) -> None:
    """Raise ConfigError, naming the field, for data and settings that no run can use."""
    first_stage.check_first_stage(s, dataset, ("commitment_weight",))
    for name in ("num_codes", "code_dim"):
        if getattr(s, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(s, name)}")
    for name in ("codebook_decay", "dead_below"):
        if not 0 <= getattr(s, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be in [0, 1), got {getattr(s, name)}")
    if min(s.levels, default=1) < 2:
        raise ConfigError(f"--levels must be numbers of at least 2, such as 8 5 5 5, got {s.levels}")


RECIPE = RecipeSpec(SPEC, build)

if __name__ == "__main__":
    from hfgen.training import vq_autoencoder

    raise SystemExit(main(vq_autoencoder.RECIPE))
