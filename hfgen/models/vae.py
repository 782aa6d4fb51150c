"""Variational autoencoders with one layer of latents (Kingma and Welling 2014) or several (Burda et al. 2016).

Both are one model with different numbers of layers. Inference is q(z_1|x) q(z_2|z_1) ..., generation is
p(z_L) ... p(z_1|z_2) p(x|z_1). Every q and p(z_l|z_l+1) is a normal distribution with diagonal covariance, and
z_L ~ N(0, I); with one layer q may be a normalizing flow from such a distribution. The file has the models, then the
networks that they are made of, then the checks of their settings.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from hfgen.checks import check_divisible, require, require_choice, require_int, require_number, require_size
from hfgen.errors import ConfigError
from hfgen.loading.config import register_to_config
from hfgen.loading.mixins import ModelMixin
from hfgen.losses.elbo import LIKELIHOODS, kl_to_standard_normal, log_normal, wide
from hfgen.models.choices import Posterior
from hfgen.models.dcgan import with_classes
from hfgen.models.mlp import check_coordinates
from hfgen.models.outputs import Terms
from hfgen.models.posterior_flows import FLOWS

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}

BODIES = ("mlp", "conv")
MAX_LAYERS = 32
POSTERIORS = ("normal", *FLOWS)


class Layer(NamedTuple):
    """A layer of latents given x, (B, 1 or k, D_l): `z`, mean and log-variance of q or of the start of its flow.

    `log_det` (B, 1 or k): log-determinant of the flow, in nats; 0 without one.
    """

    z: Tensor
    mu: Tensor
    log_var: Tensor
    log_det: Tensor | float = 0.0


class LatentModel(ModelMixin):
    """Base of `VAE` and `HierarchicalVAE`, which add their settings.

    `x` is (B, C, H, W) in [-1, 1], or (B, dim). `class_labels` (B,) are given exactly if the model is conditional.
    `latents` (B, D) are the noise of all layers, the last layer first: standard normal under the prior.
    """

    def _build(self, sizes: Sequence[int], hidden: Sequence[Sequence[int]]) -> None:
        """Build the networks for `sizes` of latents, from the data up, and `hidden` units of each layer."""
        # q(z_1|x) and p(x|z_1)
        c, self.sizes = self.config, tuple(sizes)
        classes, P = c["num_classes"] or 0, math.prod(self.shape)
        act, down = ACTIVATIONS[c["activation"]], [list(h)[::-1] for h in hidden]
        self.flow: Any = None
        if c.get("posterior", "normal") != "normal":
            self.flow = FLOWS[c["posterior"]](sizes[0], c["flow_steps"], c["flow_width"])
        outputs = 2 * sizes[0] + self.context
        maps = 1 + c["sigma_per_pixel"]                                                  # location, and log-scale
        if c["body"] == "conv":
            self.encoder = conv_encoder(self.shape, classes, hidden[0], outputs, act)
            out = (maps * self.shape[0], *self.shape[1:])
            self.decoder = conv_decoder(sizes[0] + classes, down[0], out, act)
        else:
            self.encoder = mlp(P + classes, hidden[0], outputs, act)
            self.decoder = mlp(sizes[0] + classes, down[0], maps * P, act)
        # q(z_l+1|z_l) and p(z_l|z_l+1)
        between = list(zip(sizes, sizes[1:], hidden[1:], down[1:], strict=False))
        self.inference = nn.ModuleList(mlp(low, up, 2 * high, act) for low, high, up, _ in between)
        self.generation = nn.ModuleList(mlp(high, back, 2 * low, act) for low, high, _, back in between)
        # scale and centre of p(x|z_1)
        self.log_scale: nn.Parameter | None = None
        if c["sigma_per_pixel"]:
            self._start_decoder(None)
        elif c["learned_sigma"] and self.likelihood.has_scale:
            self.log_scale = nn.Parameter(torch.full((1,), math.log(c["sigma"])))
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(self.shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of an item, (C, H, W) or (dim,)."""
        c = self.config
        if c["dim"] is not None:
            return (c["dim"],)
        return (c["channels"], *require_size("resolution", c["resolution"]))

    @property
    def latent_size(self) -> int:
        """Return D, the sum of the dimensions of all layers of latents."""
        return sum(self.sizes)

    @property
    def context(self) -> int:
        """Return the number of outputs of the encoder that the flow of q is a function of; 0 without a flow."""
        return 0 if self.flow is None else self.flow.context

    @property
    def likelihood(self) -> Any:
        """Return p(x|z) as `hfgen.losses.elbo.Likelihood`."""
        return LIKELIHOODS[self.config["likelihood"]]

    @property
    def log_sigma(self) -> Tensor:
        """Return the logarithm of the one scale of all pixels, (1,) if learned, else 0-d: sigma, or s of logistics."""
        if self.log_scale is None:
            return self.centre.new_tensor(math.log(self.config["sigma"]))
        return self.log_scale

    @torch.no_grad()
    def start_at(self, mean: Tensor) -> None:
        """Initialise the model with the `mean` of the data: the decoder returns it, the encoder subtracts it from x.

        `mean`: (C, H, W) in [-1, 1], or (dim,).
        """
        self.centre.copy_(mean)
        self._start_decoder(self.likelihood.link(mean))

    @torch.no_grad()
    def _start_decoder(self, location: Tensor | None) -> None:
        """Set the biases of the last layer to a location in the shape of x, and to `sigma`, if pixels have scales."""
        c = self.config
        last: Any = self.decoder[-1]
        biases = last.bias.chunk(1 + c["sigma_per_pixel"])
        if location is not None:
            biases[0].copy_(location.mean((1, 2)) if isinstance(last, nn.ConvTranspose2d) else location.flatten())
        if c["sigma_per_pixel"]:
            biases[1].fill_(math.log(c["sigma"] / c["min_sigma"] - 1))

    def encode(self, x: Tensor, class_labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of q(z_1|x), each (B, D_1), of x (B, C, H, W) in [-1, 1] or (B, dim).

        With a flow they are those of the distribution that it starts from. Raises ConfigError for x of another shape.
        """
        mu, log_var, _ = self._encoded(x, class_labels)
        return mu, log_var

    def _encoded(self, x: Tensor, class_labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `encode` returns, and the context of the flow, (B, C), C = 0 without one."""
        if tuple(x.shape[1:]) != self.shape:
            raise ConfigError(f"x must have shape (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        h = x - self.centre
        if self.config["body"] == "mlp":
            h = h.flatten(1)
        h = self.encoder(with_classes(h, class_labels, self.config["num_classes"]).to(self.centre.dtype))
        D = self.sizes[0]
        mu, log_var, context = wide(h).split([D, D, self.context], 1)
        return mu, log_var, context

    def decode(self, z: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Return the location of p(x|z_1) for z_1 (B, D_1): logits or means of all pixels, in the shape of x."""
        return self._decoded(z, class_labels)[0]

    def pixel_scales(self, z: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Return the scale > 0 of p(x|z_1) of each pixel for z_1 (B, D_1), in the shape of x: sigma, or s of logistics.

        For likelihoods that have a scale.
        """
        location, log_scale = self._decoded(z, class_labels)
        return log_scale.exp().expand(location.shape)

    def _decoded(self, z: Tensor, class_labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return location and log-scale of p(x|z_1), the latter in the shape of the former or as `log_sigma`.

        If each pixel has a scale, it is min_sigma (1 + exp(r)), r an output of the decoder: at least min_sigma.
        """
        h = with_classes(z.to(self.centre.dtype), class_labels, self.config["num_classes"])
        out: Tensor = self.decoder(h)
        if self.config["body"] == "mlp":
            out = out.unflatten(1, (-1, *self.shape[1:]))
        if not self.config["sigma_per_pixel"]:
            return out, self.log_sigma
        location, r = out.chunk(2, 1)
        return location, softplus(wide(r)) + math.log(self.config["min_sigma"])

    def forward(
        self, x: Tensor, eps: Sequence[Tensor], class_labels: Tensor | None = None, return_dict: bool = True
    ) -> Terms | tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return the terms of the bound in nats for standard normal `eps`, (B, k, D_l) per layer from the data up.

        The result is a `Terms`, or the tuple of its values without `return_dict`.
        """
        # latents of all layers
        layers = self._posterior(x, eps, class_labels)
        zs = [layer.z for layer in layers]
        # log q - log p of each layer
        kl, log_ratio = [], torch.zeros((), device=x.device)
        for e, layer, prior in zip(eps, layers, self._priors(zs), strict=True):
            ratio = log_normal(e) - layer.log_var / 2 - log_normal(layer.z, *prior)      # (B, k, D_l)
            whole = ratio.sum(-1) - layer.log_det
            log_ratio = log_ratio + whole
            if self.flow is not None:
                kl.append(whole[..., None])
            else:
                kl.append(ratio if prior else kl_to_standard_normal(layer.mu, layer.log_var))
        terms = Terms(self.log_likelihood(x, zs[0], class_labels), log_ratio, tuple(kl))
        if not return_dict:
            return terms.to_tuple()
        return terms

    def log_weights(
        self, x: Tensor, k: int, generator: torch.Generator | None = None, class_labels: Tensor | None = None
    ) -> Tensor:
        """Return log w = log p(x, z) - log q(z|x) in nats of k draws z ~ q(z|x), (B, k); E[w] = p(x)."""
        terms: Any = self.forward(x, self.normals(x.shape[0], k, generator), class_labels)
        return terms.log_weights

    def log_likelihood(self, x: Tensor, z: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Return log p(x|z_1) in nats, (B, k), of z_1 (B, k, D_1)."""
        k = z.shape[1]
        labels = None if class_labels is None else class_labels.repeat_interleave(k)
        location, log_scale = self._decoded(z.flatten(0, 1), labels)
        if log_scale.ndim > 1:
            log_scale = log_scale.flatten(1).unflatten(0, (z.shape[0], k))                          # (B, k, P)
        location = location.flatten(1).unflatten(0, (z.shape[0], k))                                # (B, k, P)
        return self.likelihood.log_prob(x.flatten(1)[:, None], location, log_scale, self.config["levels"])

    def normals(self, batch: int, k: int, generator: torch.Generator | None = None) -> list[Tensor]:
        """Return draws (batch, k, D_l) of mean 0 and variance 1 for each layer, on the model's device."""
        where = generator.device if generator is not None else self.centre.device
        draws = []
        for D in self.sizes:
            draw = torch.randn(batch, k, D, generator=generator, device=where)
            draws.append(draw.to(self.centre.device))
        return draws

    def means(self, x: Tensor, class_labels: Tensor | None = None) -> list[Tensor]:
        """Return the mean of q of each layer, (B, D_l): of q(z_1|x), and of q(z_l|z_l-1) at the mean of layer l - 1.

        With a flow it is the point to which the flow maps the mean of the distribution that it starts from.
        """
        return [layer.z[:, 0] for layer in self._posterior(x, None, class_labels)]

    def infer(
        self, x: Tensor, class_labels: Tensor | None = None, eps: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Return latents (B, D) of items: `means` of q, or draws from q for `eps` (B, 1, D_l) of each layer.

        `x`: (B, C, H, W) in [-1, 1], or (B, dim).
        """
        zs = [layer.z for layer in self._posterior(x, eps, class_labels)]
        noise = []
        for z, prior in zip(zs, self._priors(zs), strict=True):
            if prior:
                mu, log_var = prior
                z = (z - mu) * torch.exp(-log_var / 2)
            noise.append(z)
        return torch.cat(noise[::-1], -1)[:, 0]

    def generate(self, latents: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Return the mean of p(x|z_1), in [-1, 1] for images, from latents (B, D): z_l = mu + sigma latent_l."""
        # from the last layer to z_1
        drawn = list(latents.split(self.sizes[::-1], 1))
        z = drawn.pop(0)                                                                 # (B, D_L)
        for net, e in zip(reversed(self.generation), drawn, strict=True):
            mu, log_var = self._normal(net, z)
            z = reparameterise(mu, log_var, e)
        return self.likelihood.mean(self.decode(z, class_labels))

    def _posterior(
        self, x: Tensor, eps: Sequence[Tensor] | None, class_labels: Tensor | None
    ) -> list[Layer]:
        """Return all layers, from the data up; without `eps` z is the mean, or the point the flow maps it to."""
        layers: list[Layer] = []
        for i in range(len(self.sizes)):
            # mean and log-variance
            if i == 0:
                mu, log_var, context = (part[:, None] for part in self._encoded(x, class_labels))
            else:
                mu, log_var = self._normal(self.inference[i - 1], layers[-1].z)
            # latents
            z, log_det = mu if eps is None else reparameterise(mu, log_var, eps[i]), 0.0
            if self.flow is not None:
                z, log_det = self.flow(z, context)
            layers.append(Layer(z, mu, log_var, log_det))
        return layers

    def _priors(self, zs: list[Tensor]) -> list[tuple[Tensor, Tensor] | tuple[()]]:
        """Return mean and log-variance of p(z_l|z_l+1) of each layer; () for the last, N(0, I)."""
        return [*(self._normal(net, z) for net, z in zip(self.generation, zs[1:], strict=True)), ()]

    def _normal(self, net: nn.Module, h: Tensor) -> tuple[Tensor, Tensor]:
        mu, log_var = wide(net(h.to(self.centre.dtype))).chunk(2, -1)
        return mu, log_var


class VAE(LatentModel):
    """A variational autoencoder with one layer of latents: q(z|x), p(x|z), z ~ N(0, I).

    `channels`, `resolution` (int or pair): shape of images. `dim`: length of vectors, in place of images. `body`: "mlp"
    with `hidden` units per layer (an empty list makes it linear), or "conv" with `hidden` channels per stage, each of
    which halves the sides. `likelihood`: "bernoulli" (pixels -1 or 1), "continuous_bernoulli", "gaussian", or
    "discretised_logistic" (pixels at `levels` even levels). The last two have one scale for all pixels: `sigma`, or its
    initial value if `learned_sigma`; or with `sigma_per_pixel` one for each pixel, a function of z that is at least
    `min_sigma` and `sigma` at first. The class of a conditional model is a one-hot vector (planes) joined to x and z.
    `data_mean` and `data_std` convert vectors to data coordinates, as in `MLPDenoiser`. `posterior`: "normal", or a
    normalizing flow of `flow_steps` from a normal distribution, "planar" (Rezende and Mohamed 2015) or
    "inverse_autoregressive" (Kingma et al. 2016), the latter with `flow_width` hidden units. Raises ConfigError, naming
    the field, for impossible values.
    """

    @register_to_config
    def __init__(
        self,
        resolution: int | tuple[int, int] = 28,
        channels: int = 1,
        dim: int | None = None,
        body: str = "mlp",
        hidden: Sequence[int] = (200, 200),
        activation: str = "tanh",
        latent_dim: int = 50,
        likelihood: str = "bernoulli",
        sigma: float = 1.0,
        learned_sigma: bool = False,
        levels: int = 256,
        num_classes: int | None = None,
        data_mean: Sequence[float] | None = None,
        data_std: float | Sequence[float] | None = None,
        posterior: Posterior = "normal",
        flow_steps: int = 2,
        flow_width: int = 200,
        sigma_per_pixel: bool = False,
        min_sigma: float = 0.01,
    ) -> None:
        super().__init__()
        check_config(self.config, [latent_dim], [hidden])
        self._build([latent_dim], [hidden])


class HierarchicalVAE(LatentModel):
    """A variational autoencoder with several layers of latents, `latent_dims` from the data up (Burda et al. 2016).

    `hidden[0]` are the hidden layers between x and z_1, `hidden[i]` those between z_i and z_i+1; generation uses them
    in reverse. The other settings are those of `VAE`. The defaults are the paper's model with two layers,
    784-200-200-100 and 100-100-100-50.
    """

    @register_to_config
    def __init__(
        self,
        resolution: int | tuple[int, int] = 28,
        channels: int = 1,
        dim: int | None = None,
        body: str = "mlp",
        hidden: Sequence[Sequence[int]] = ((200, 200), (100, 100)),
        activation: str = "tanh",
        latent_dims: Sequence[int] = (100, 50),
        likelihood: str = "bernoulli",
        sigma: float = 1.0,
        learned_sigma: bool = False,
        levels: int = 256,
        num_classes: int | None = None,
        data_mean: Sequence[float] | None = None,
        data_std: float | Sequence[float] | None = None,
        sigma_per_pixel: bool = False,
        min_sigma: float = 0.01,
    ) -> None:
        super().__init__()
        check_config(self.config, latent_dims, hidden)
        self._build(latent_dims, hidden)


def mlp(inputs: int, hidden: Sequence[int], outputs: int, activation: type[nn.Module]) -> nn.Sequential:
    """Return linear layers with activations in between; weights as in Glorot and Bengio 2010, eq. 16."""
    parts: list[nn.Module] = []
    for width in hidden:
        parts += [linear(inputs, width), activation()]
        inputs = width
    return nn.Sequential(*parts, linear(inputs, outputs))


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer initialised with Glorot's uniform weights and bias 0."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def conv_encoder(
    shape: tuple[int, ...], classes: int, hidden: Sequence[int], outputs: int, activation: type[nn.Module]
) -> nn.Sequential:
    """Return 4x4 convolutions of stride 2 from images with one-hot classes, (B, C + K, H, W), to (B, outputs)."""
    channels, height, width = shape[0] + classes, *shape[1:]
    parts: list[nn.Module] = []
    for wider in hidden:
        parts += [nn.Conv2d(channels, wider, 4, 2, 1), activation()]
        channels, height, width = wider, height // 2, width // 2
    return nn.Sequential(*parts, nn.Flatten(), linear(channels * height * width, outputs))


def conv_decoder(
    inputs: int, hidden: Sequence[int], shape: tuple[int, ...], activation: type[nn.Module]
) -> nn.Sequential:
    """Return the mirror image of `conv_encoder`, with fractionally-strided convolutions: (B, inputs) to images."""
    # smallest map
    factor, channels = 2 ** len(hidden), hidden[0]
    height, width = (side // factor for side in shape[1:])
    parts: list[nn.Module] = [linear(inputs, channels * height * width), nn.Unflatten(1, (channels, height, width))]
    # double the sides
    for narrower in (*hidden[1:], shape[0]):
        parts += [activation(), nn.ConvTranspose2d(channels, narrower, 4, 2, 1)]
        channels = narrower
    return nn.Sequential(*parts)


def reparameterise(mu: Tensor, log_var: Tensor, eps: Tensor) -> Tensor:
    """Return z = mu + sigma eps, sigma = exp(log_var / 2), a draw from N(mu, sigma^2) for eps ~ N(0, I).

    Source: Kingma and Welling 2014, eq. 10. Shapes broadcast.
    """
    return mu + torch.exp(log_var / 2) * eps


def check_config(config: Any, sizes: Any, hidden: Any) -> None:
    """Raise ConfigError, naming the field, for impossible settings of a variational autoencoder."""
    # choices
    c = config
    choices: dict[str, Collection[str]] = {"body": BODIES, "activation": ACTIVATIONS, "likelihood": LIKELIHOODS}
    for field, allowed in choices.items():
        require_choice(field, c[field], allowed)
    # layers of latents
    listed = isinstance(sizes, list | tuple) and 1 <= len(sizes) <= MAX_LAYERS
    field = "latent_dims" if "latent_dims" in c else "latent_dim"
    require(listed, field, sizes, f"a list of 1 to {MAX_LAYERS} sizes")
    for size in sizes:
        require_int(field, size, high=2**16)
    # flow
    if "posterior" in c:
        require_choice("posterior", c["posterior"], POSTERIORS)
        require_int("flow_steps", c["flow_steps"], high=2**10)
        require_int("flow_width", c["flow_width"], high=2**16)
    # hidden layers
    groups = isinstance(hidden, list | tuple) and len(hidden) == len(sizes)
    require(groups, "hidden", hidden, f"a list of widths for each of the {len(sizes)} layers of latents")
    for widths in hidden:
        require(isinstance(widths, list | tuple) and len(widths) <= MAX_LAYERS, "hidden", widths, "a list of widths")
        for width in widths:
            require_int("hidden", width, high=2**16)
    # numbers
    require_number("sigma", c["sigma"], 1e-6)
    require(isinstance(c["sigma_per_pixel"], bool), "sigma_per_pixel", c["sigma_per_pixel"], "true or false")
    if c["sigma_per_pixel"]:
        require_number("min_sigma", c["min_sigma"], 1e-6)
        require(c["min_sigma"] < c["sigma"], "min_sigma", c["min_sigma"], f"below sigma ({c['sigma']})")
        scaled = LIKELIHOODS[c["likelihood"]].has_scale
        require(scaled, "sigma_per_pixel", True, f"false for likelihood {c['likelihood']}, which has no scale")
    require_int("levels", c["levels"], 2, 2**16)
    if c["num_classes"] is not None:
        require_int("num_classes", c["num_classes"], high=2**20)
    _check_shape(c, hidden[0])


def _check_shape(c: Any, hidden: Sequence[int]) -> None:
    # vectors
    if c["dim"] is not None:
        require_int("dim", c["dim"], high=2**24)
        require(c["body"] == "mlp", "body", c["body"], "mlp for vectors (dim)")
        if c["data_mean"] is not None:
            check_coordinates(c)
        return
    # images
    height, width = require_size("resolution", c["resolution"])
    require_int("channels", c["channels"], high=2**10)
    if c["body"] == "conv":
        require(len(hidden) > 0, "hidden", hidden, "the channels of at least one stage, for body conv")
        check_divisible("resolution", height, width, len(hidden) + 1)
