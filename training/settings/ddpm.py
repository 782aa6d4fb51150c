"""Settings of `hfgen train ddpm`."""

from dataclasses import dataclass
from typing import Literal

from hfgen.losses.choices import Weighting
from hfgen.training.engine.defaults import IMAGES_AND_POINTS
from hfgen.training.engine.settings import filled
from hfgen.training.engine.spec import SettingsSpec, Shaped
from hfgen.training.settings import denoiser
from hfgen.training.settings.denoiser import DenoiserSettings, smaller


@dataclass(kw_only=True)
class DDPMSettings(DenoiserSettings):
    """Train a denoising diffusion model (Ho et al. 2020) on images or 2-D points."""

    # diffusion
    num_train_timesteps: int = 1000
    """Diffusion steps T."""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "squaredcos_cap_v2"
    """Noise schedule; squaredcos_cap_v2 is the cosine schedule."""
    variance_type: Literal["fixed_small", "fixed_large", "learned_range"] = "fixed_large"
    """Variance of the reverse steps: the posterior's, beta_t, or one learned between them, of images."""
    vlb_weight: float = 0.001
    """Weight of the variational bound that a learned variance is trained on, beside the simple loss."""
    weighting: Weighting = "simple"
    """Weight of each timestep's error: 1 (simple), that of the variational bound (vlb), or min-SNR-gamma (min_snr)."""
    snr_gamma: float = 5.0
    """gamma of the min-SNR weighting."""


def recommended(settings: DDPMSettings, dataset: Shaped) -> DDPMSettings:
    """Return the settings completed for the dataset; the noise is predicted where the bound's weights are its own."""
    if settings.weighting == "vlb":
        settings = filled(settings, {"prediction_type": "epsilon"})
    return denoiser.recommended(settings, dataset)


SPEC = SettingsSpec(DDPMSettings, recommended, smaller, IMAGES_AND_POINTS)
