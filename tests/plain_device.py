"""A device of tests, "plain": it computes on the CPU, has no float64, as Apple's MPS, and takes no tensor of the CPU.

    python -m tests.plain_device RECIPE [AUTOENCODER]

trains the recipe's tiny model on it for three steps, evaluates and samples, and prints the losses.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

NAME = "plain"
MIXING = ("copy_", "index", "index_put_", "_local_scalar_dense")
"""Operations that take tensors of the CPU on real devices too."""


class Backend(backend_registration._DummyBackendModule):
    """The device's module, torch.plain."""

    def manual_seed(self, seed: int) -> None:
        """Accept a seed; the device draws no numbers."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Return the dtypes of autocast."""
        return [torch.float16, torch.bfloat16]


class Plain(torch.Tensor):
    """A tensor on the device; `host` is the tensor of the CPU with its numbers."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> "Plain":
        """Return the tensor on the device with the numbers of `host`."""
        if host.dtype is torch.float64:
            raise TypeError(f"float64 on the device {NAME}, which has none")
        out = torch.Tensor._make_wrapper_subclass(
            cls, host.shape, strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
            device=torch.device(NAME, 0), requires_grad=host.requires_grad,
        )  # fmt: skip
        out.host = host.detach()
        return out

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the result of an operation on tensors of the device."""
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return the result of an operation on the device."""
    # refuse tensors of the CPU, as real devices do, but numbers
    name = func._schema.name.removeprefix("aten::")
    for tensor in tree_leaves((args, kwargs)):
        strange = isinstance(tensor, torch.Tensor) and not isinstance(tensor, Plain) and tensor.ndim
        if strange and name not in MIXING and name != "_to_copy":
            raise RuntimeError(f"{name}: a tensor of the CPU among those of {NAME}")
    # compute on the CPU
    device = kwargs.get("device")
    named = kwargs if device is None else {**kwargs, "device": "cpu"}
    out = func(*tree_map(host_of, args), **tree_map(host_of, named))
    # leave results there that were asked for there
    if not func._schema.returns:
        return None
    if func._schema.name.endswith("_"):
        return args[0]
    if "out" in kwargs:
        return kwargs["out"]
    if device is not None and torch.device(device).type != NAME:
        return out
    return tree_map(lambda x: Plain(x) if isinstance(x, torch.Tensor) else x, out)


def host_of(value: Any) -> Any:
    """Return the tensor of the CPU that has the numbers of a tensor on the device; other values unchanged."""
    return value.host if isinstance(value, Plain) else value


def register() -> torch.library.Library:
    """Return the library that makes the device known to torch, for as long as it lives."""
    torch.__future__.set_swap_module_params_on_conversion(True)        # `net.to` keeps its parameters, as elsewhere
    backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())
    library = torch.library.Library("_", "IMPL")
    operation: Callable[..., Any] = lambda func, *args, **kwargs: computed(func, args, kwargs)  # noqa: E731
    library.fallback(operation, "PrivateUse1")
    return library


def main(recipe: str, autoencoder: str | None = None) -> None:
    """Train a recipe's tiny model on the device."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = NAME
    library = register()
    from accelerate import Accelerator

    from hfgen.pipelines.denoising import DenoisingPipeline
    from hfgen.schedulers.samplers import SAMPLERS
    from hfgen.training.engine.loop import Engine
    from hfgen.training.engine.preview import draw
    from hfgen.training.engine.state import served_networks
    from tests.training import tiny

    model = getattr(tiny, recipe.upper())
    changes: dict[str, Any] = {}
    if autoencoder is not None:
        changes = {"autoencoder": autoencoder, "output_dir": Path(autoencoder).with_name("run")}
    settings = model.settings(**changes)
    data = model.recipe.open_data(settings)
    engine = Engine(model.recipe.recommended(settings, data), model.recipe.build, data, Accelerator())
    assert engine.device.type == NAME
    assert all(isinstance(p, Plain) for net in engine.nets.values() for p in net.parameters())
    for _ in engine.train(0, 3, 20):
        print(engine.fetch())
    engine.check_finite(3)
    # evaluate and draw, as a run does
    nets = served_networks(engine.nets, engine.averages)
    if engine.recipe.evaluate is not None:
        print(engine.recipe.evaluate(nets))
    picture = draw(engine, nets)
    if picture is not None:
        print(picture.size)
    # sample with every method
    pipeline = engine.recipe.pipeline(nets)
    if isinstance(pipeline, DenoisingPipeline):
        for sampler in SAMPLERS:
            images = pipeline(batch_size=2, sampler=sampler, num_steps=3, output_type="pt").images
            assert images.isfinite().all(), sampler
            print(sampler)
    del library


if __name__ == "__main__":
    main(*sys.argv[1:])
