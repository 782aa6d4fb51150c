"""Choices of networks by name; settings read them without loading torch."""

from typing import Literal

Body = Literal["mlp", "conv"]
CodeActivation = Literal["linear", "relu", "sigmoid"]
OutputActivation = Literal["tanh", "linear"]
"""Networks of an autoencoder, activations of its code, and of its images."""

Norm = Literal["batch", "layer", "none", "spectral"]
"""Normalisations of a GAN's networks."""

GeneratorNorm = Literal["instance", "layer", "none"]
PatchNorm = Literal["instance", "layer", "spectral", "none"]
"""Normalisations of translators, and of the discriminators of patches."""

Posterior = Literal["normal", "planar", "inverse_autoregressive"]
"""Families of q(z|x): a diagonal normal distribution, or a normalizing flow from it."""
