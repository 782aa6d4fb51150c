"""Likelihoods and bounds: importance sampling for models with latents, variational bound and ODE for diffusion."""

from hfgen.metrics.likelihood.bound import Bound, Predict, predictor, variational_bound
from hfgen.metrics.likelihood.latents import ROWS, Latent, active_units, elbo, log_likelihood, reconstruction_error
from hfgen.metrics.likelihood.ode import ODELikelihood, ode_bits_per_dim, ode_log_likelihood
from hfgen.metrics.likelihood.units import bits_per_dim, dequantised, nats_of_bits

__all__ = [
    "ROWS",
    "Bound",
    "Latent",
    "ODELikelihood",
    "Predict",
    "active_units",
    "bits_per_dim",
    "dequantised",
    "elbo",
    "log_likelihood",
    "nats_of_bits",
    "ode_bits_per_dim",
    "ode_log_likelihood",
    "predictor",
    "reconstruction_error",
    "variational_bound",
]
