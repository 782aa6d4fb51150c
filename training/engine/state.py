"""The state of a run: written to a checkpoint and restored from it.

`model/` is the pipeline with the averaged weights, a model folder like any other; `nets.safetensors` and
`optimizers.safetensors` are the rest of the state, by name; `state.json` has the step, the settings and the numbers
that are being averaged for the log.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from hfgen.errors import CheckpointError
from hfgen.loading.transformers_models import load_model
from hfgen.registry import TRANSFORMERS_MODELS
from hfgen.training.engine.ema import EMA
from hfgen.training.engine.phase import Recipe

MODEL_WEIGHTS = "diffusion_pytorch_model.safetensors"


def save(
    folder: Path, recipe: Recipe, nets: Mapping[str, nn.Module], averages: Mapping[str, EMA], state: dict[str, Any]
) -> None:
    """Write model, networks, optimisers and `state` (JSON) of a run into `folder`."""
    # write the model, networks and optimisers, JSON
    recipe.pipeline(served_networks(nets, averages)).save_pretrained(folder / "model")
    net_tensors = {f"{name}.{key}": value for name, net in nets.items() for key, value in net.state_dict().items()}
    _save(net_tensors, folder / "nets.safetensors")
    moments = _optimizer_tensors(recipe, nets)
    _save(moments, folder / "optimizers.safetensors")
    state = {**state, "moments": len(moments)}
    (folder / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


def restore(folder: Path, recipe: Recipe, nets: Mapping[str, nn.Module], averages: Mapping[str, EMA]) -> dict[str, Any]:
    """Put a run back into the state stored in `folder` and return the `state` that `save` wrote."""
    # read networks and optimisers, check those
    tensors, moments = (_tensors(folder / f"{name}.safetensors") for name in ("nets", "optimizers"))
    state = read_state(folder)
    check_moments(recipe, nets, moments, state.get("moments"), folder)
    # restore networks and averages, then optimisers
    for name, net in nets.items():
        _load(net, {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}, folder)
    for name, average in averages.items():
        _load(average.net, _averaged(folder / "model" / name, average.net), folder)
    _load_optimizers(recipe, nets, moments)
    return state


def read_state(folder: Path) -> dict[str, Any]:
    """Return the `state` that `save` wrote. Raises CheckpointError for a file that is none."""
    path = folder / "state.json"
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {**state, "step": int(state["step"]), "settings": dict(state["settings"]), "log": dict(state["log"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: is no state of a run ({type(error).__name__}: {error})") from error


def check_moments(
    recipe: Recipe, nets: Mapping[str, nn.Module], tensors: dict[str, torch.Tensor], count: int | None, folder: Path
) -> None:
    """Raise CheckpointError unless the `tensors` are `count` states of this run's parameters, in their shapes.

    `count`: None in checkpoints that do not say it. A state that is one number, such as Adam's step, has no shape.
    """
    # check the names and shapes
    shapes = {name: parameter.shape for name, _, parameter in _parameters(recipe, nets)}
    for key, value in tensors.items():
        name = key.rpartition(":")[0]
        if name not in shapes:
            raise CheckpointError(f"{folder}: optimizers.safetensors has {key!r}, which this run does not train")
        if value.ndim and value.shape != shapes[name]:
            found = f"{tuple(value.shape)}, its parameter is {tuple(shapes[name])}"
            raise CheckpointError(f"{folder}: optimizers.safetensors: {key!r} has the shape {found}")
    # check that none is missing
    if count is not None and len(tensors) != count:
        raise CheckpointError(f"{folder}: optimizers.safetensors holds {len(tensors)} tensors, {count} were written")


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file. Raises CheckpointError, naming it, for a file that is none."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is no file of tensors ({error})") from error


def served_networks(nets: Mapping[str, nn.Module], averages: Mapping[str, EMA]) -> dict[str, nn.Module]:
    """Return the networks as users get them: the averaged ones where there is an average."""
    return {name: averages[name].net if name in averages else net for name, net in nets.items()}


def _averaged(home: Path, net: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of an averaged network from its folder; transformers files them under other names."""
    if (home / MODEL_WEIGHTS).is_file():
        return load_file(home / MODEL_WEIGHTS)
    cls: Any = type(net)
    if cls.__name__ in TRANSFORMERS_MODELS:
        loaded: nn.Module = load_model(home, cls, torch.float32)
    else:
        loaded = cls.from_pretrained(home)
    return loaded.state_dict()


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    path.chmod(0o666 & ~_umask())                            # safetensors writes 0600


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _load(net: nn.Module, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: does not fit this run's {type(net).__name__}: {error}") from error


def _parameters(recipe: Recipe, nets: Mapping[str, nn.Module]) -> list[tuple[str, torch.optim.Optimizer, nn.Parameter]]:
    """Return (name, optimiser, parameter) of everything that is trained; the name is unique within a run."""
    names = {parameter: f"{n}.{key}" for n, net in nets.items() for key, parameter in net.named_parameters()}
    optimizers = {id(phase.optimizer): phase for phase in recipe.phases}
    return [
        (f"{phase.name}.{names[parameter]}", phase.optimizer, parameter)
        for phase in optimizers.values()
        for group in phase.optimizer.param_groups
        for parameter in group["params"]
    ]


def _optimizer_tensors(recipe: Recipe, nets: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """Return every tensor of the optimisers' state; their hyperparameters are functions of settings and step."""
    return {
        f"{name}:{key}": value
        for name, optimizer, parameter in _parameters(recipe, nets)
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, torch.Tensor)
    }


def _load_optimizers(recipe: Recipe, nets: Mapping[str, nn.Module], tensors: dict[str, torch.Tensor]) -> None:
    for name, optimizer, parameter in _parameters(recipe, nets):
        own = {key.rpartition(":")[2]: value for key, value in tensors.items() if key.rpartition(":")[0] == name}
        optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in own.items()}
