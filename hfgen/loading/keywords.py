"""Keywords of `from_pretrained` and their values: those of hfgen, and those of diffusers with the same meaning."""

import difflib
import inspect
from collections.abc import Callable, Collection
from typing import Any

import torch

from hfgen.checks import require
from hfgen.errors import ConfigError, ConfigTypeError

STOCK_KEYWORDS: dict[str, tuple[Any, ...]] = {
    "custom_pipeline": (None,),
    "disable_mmap": (None, False, True),
    "load_connected_pipeline": (False,),
    "low_cpu_mem_usage": (None, False, True),
    "max_memory": (None,),
    "offload_folder": (None,),
    "offload_state_dict": (None, False),
    "output_loading_info": (False,),
    "proxies": (None,),
    "quantization_config": (None,),
    "return_unused_kwargs": (False,),
    "trust_remote_code": (None, False),
    "use_flashpack": (False,),
    "use_onnx": (None, False),
    "use_safetensors": (None, True),
}
"""Keywords of diffusers' `from_pretrained`, and their values without an effect in hfgen."""

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
"""Values of `device_map` by which accelerate distributes a network; hfgen runs each model on one device."""

Dtype = torch.dtype | dict[str, torch.dtype] | None


def keywords_of(function: Callable[..., Any]) -> list[str]:
    """Return the names of the keyword-only arguments of a function, in their order."""
    return [name for name, one in inspect.signature(function).parameters.items() if one.kind is one.KEYWORD_ONLY]


def check_keywords(where: str, given: dict[str, Any], known: Collection[str]) -> None:
    """Raise ConfigTypeError for a keyword that neither hfgen nor diffusers has, ConfigError for an unsupported value.

    `given`: the keywords that the function does not name. `known`: those that it has. `where`: its name in errors.
    """
    known = [*known, *STOCK_KEYWORDS]
    for key, value in given.items():
        # unknown keywords
        if key not in STOCK_KEYWORDS:
            raise unknown_keyword(where, key, known)
        # unsupported values
        if not any(value is allowed for allowed in STOCK_KEYWORDS[key]):
            words = " or ".join(map(repr, STOCK_KEYWORDS[key]))
            raise ConfigError(f"{where}: {key} must be {words}, got {value!r}, which hfgen does not support")


def unknown_keyword(where: str, key: str, known: Collection[str]) -> ConfigTypeError:
    """Return the error for the unknown keyword `key` of the function `where`; it names the nearest of the `known`."""
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ConfigTypeError(f"{where} has no argument {key!r}{hint}")


def merge_dtypes(dtype: Dtype, torch_dtype: Dtype, parts: Collection[str] = ()) -> Dtype:
    """Return the dtype given under hfgen's or diffusers' name; None if neither is given.

    For a model with components `parts` it may be a dict: the dtype of each, and that of the others as "default". Raises
    ConfigError if both are given and differ, ConfigTypeError for other values.
    """
    if dtype is not None and torch_dtype not in (None, dtype):
        raise ConfigError(f"dtype is {dtype} and torch_dtype {torch_dtype}; give one of them")
    merged = torch_dtype if dtype is None else dtype
    # one dtype
    if merged is None or isinstance(merged, torch.dtype):
        return merged
    # a dict of them
    allowed = "a torch.dtype"
    if parts:
        allowed += f", or a dict of them by component ({', '.join(parts)}, default)"
    listed = isinstance(merged, dict) and {"default", *parts}.issuperset(merged) and len(parts) > 0
    correct = listed and all(isinstance(value, torch.dtype) for value in merged.values())
    require(correct, "dtype", merged, allowed, ConfigTypeError)
    return merged


def dtype_of(part: str, dtype: Dtype) -> torch.dtype | None:
    """Return the dtype of the component `part`; None for the default, float32."""
    if isinstance(dtype, dict):
        return dtype.get(part, dtype.get("default"))
    return dtype


def one_device(device: Any, device_map: Any) -> torch.device | None:
    """Return the device of a model under hfgen's or diffusers' name; None if neither is given.

    `device_map`: a device, {"": device}, or a strategy such as "balanced", which stands for the accelerator, or the CPU
    if there is none. Raises ConfigError for a map to several devices, and if both are given and differ.
    """
    if device_map is None:
        return None if device is None else torch.device(device)
    # the device of the map
    mapped = device_map
    if isinstance(device_map, dict) and set(device_map) == {""}:
        mapped = device_map[""]
    elif isinstance(device_map, str) and device_map in STRATEGIES:
        mapped = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    try:
        place = torch.device(mapped)
    except (TypeError, RuntimeError) as error:
        raise ConfigError(f"device_map must be a device, {{'': device}} or one of {', '.join(STRATEGIES)}, got "
                          f"{device_map!r}; hfgen runs a model on one device") from error
    # the other name
    if device is not None and torch.device(device) != place:
        raise ConfigError(f"device is {device} and device_map {device_map!r}; give one of them")
    return place


def check_safe(safe_serialization: bool) -> None:
    """Raise ConfigError for `safe_serialization=False`."""
    if not safe_serialization:
        raise ConfigError("safe_serialization=False would write pickles; hfgen saves safetensors only")


def check_push(where: str, component: Any, push_to_hub: bool, given: dict[str, Any]) -> None:
    """Raise ConfigTypeError for keywords of `save_pretrained`, here `where`, that are not those of `push_to_hub`.

    `given`: the keywords that `save_pretrained` does not name; it passes them to `push_to_hub` of the component.
    """
    known = ["repo_id", *keywords_of(component.push_to_hub)]
    for key in given:
        if key not in known:
            raise unknown_keyword(where, key, [*known, *keywords_of(component.save_pretrained)])
        if not push_to_hub:
            raise ConfigTypeError(f"{where}: {key!r} is an argument of publishing and needs push_to_hub=True")
