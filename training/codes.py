"""Codes of a discrete autoencoder as the data of another model, which learns their distribution."""

from collections.abc import Callable
from typing import Any, cast

from accelerate import PartialState

from hfgen.models.vq_autoencoder import VQAutoencoder
from hfgen.training.denoiser import images_to_encode
from hfgen.training.engine import codes
from hfgen.training.engine.codes import Codes, load_autoencoder


def open_codes(settings: Any, try_out: Callable[[Codes], None], family: str = "autoregression of codes") -> Codes:
    """Return the codes of the dataset that the settings name, encoded into the run's folder unless they are there.

    `settings`: with the fields of `ConditionSettings`, and `autoencoder`: a run, a model folder or a Hub id, or the
    name of an object. `try_out`: builds the networks once for codes of the right shape, all 0, so that errors are
    raised before all images are encoded (`encoded_images.try_out`). `family`: the model, as errors name it. Codes that
    are there are read again; those of other images, or of an autoencoder with other weights, are a CheckpointError.
    Raises ConfigError, naming the field, for an autoencoder or data that do not fit.
    """
    # load autoencoder and images
    net = cast(VQAutoencoder, load_autoencoder(settings.autoencoder).to(PartialState().device))
    source, flip = images_to_encode(settings, net.config["in_channels"], family)
    # check, then encode all images once
    try_out(codes.of_shape(source, net))
    return codes.encoded(source, net, flip, settings.output_dir / "codes")
