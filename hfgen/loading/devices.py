"""Devices by name, and the widest floating-point numbers that they have."""

import torch

from hfgen.errors import ConfigError


def available_device(name: str) -> torch.device:
    """Return the device `name`, such as "cpu", "cuda", "cuda:1" or "mps"; ConfigError if this machine lacks it."""
    # read the name
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name}: no device is called so; there are cpu, cuda, cuda:1, mps") from error
    # ask its backend
    if device.type == "cpu":
        return device
    backend = torch.get_device_module(device)
    if not backend.is_available():
        raise ConfigError(f"--device {name}: this torch or this machine has none; leave it out")
    if device.index is not None and device.index >= backend.device_count():
        raise ConfigError(f"--device {name}: there are {backend.device_count()} {device.type} devices, from 0 on")
    return device


def best_device() -> torch.device:
    """Return the accelerator of this machine, or its CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def widest(device: torch.device) -> torch.dtype:
    """Return float64 for CPUs and CUDA, float32 for devices that may lack it, as Apple's MPS does."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32
