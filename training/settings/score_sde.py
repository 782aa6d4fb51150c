"""Settings of `hfgen train score_sde`, and their recommended values."""

from dataclasses import dataclass
from typing import Any, Literal

from hfgen.training.engine.defaults import IMAGES_AND_POINTS
from hfgen.training.engine.settings import filled
from hfgen.training.engine.spec import SettingsSpec, Shaped
from hfgen.training.settings import denoiser
from hfgen.training.settings.denoiser import DenoiserSettings


@dataclass(kw_only=True)
class ScoreSDESettings(DenoiserSettings):
    """Train a score model of the variance-preserving SDE (Song et al. 2021) on images or 2-D points."""

    # diffusion
    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"
    """Rate beta(t) of the SDE: linear from 0.1 to 20, or that of the cosine schedule (squaredcos_cap_v2)."""
    t_min: float = 1e-3
    """Time at which training and sampling end; 1e-3 is the noise of DDPM's first step, 1e-5 is for likelihoods."""
    weighting: Literal["simple", "likelihood"] = "simple"
    """lambda(t) of the score's error: sigma_t^2, which is the error of the noise, or beta(t), which bounds the
    likelihood; the same for every prediction type."""
    importance_sampling: bool = False
    """Draw t with a density in proportion to beta / sigma^2, which leaves the likelihood weighting with no weights."""


def recommended(settings: ScoreSDESettings, dataset: Shaped) -> ScoreSDESettings:
    """Return the settings completed for the dataset, as for a DDPM; for points the velocity is predicted."""
    values: dict[str, Any] = {"preview_steps": 20}
    if len(dataset.shape) == 1:
        values["prediction_type"] = "v_prediction"
    return denoiser.recommended(filled(settings, values), dataset)


def smaller(settings: ScoreSDESettings, dataset: Shaped) -> list[ScoreSDESettings]:
    """Return the settings with each network that is smaller than the recommended one, as of a DDPM."""
    return denoiser.smaller(filled(settings, {"preview_steps": 20}), dataset)


SPEC = SettingsSpec(ScoreSDESettings, recommended, smaller, IMAGES_AND_POINTS)
