"""Choices of a diffusion loss by name; settings read them without loading torch."""

from typing import Literal

PredictionType = Literal["epsilon", "sample", "v_prediction"]
Weighting = Literal["simple", "vlb", "min_snr"]
