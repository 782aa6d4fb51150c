"""The cost of a model: parameters, evaluations, seconds and memory of sampling; steps and seconds of training."""

import ctypes
import gc
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil
import torch
from torch import Tensor, nn

from hfgen import runs

IMAGES = 64
"""Default number of images of a measurement."""


@dataclass(frozen=True)
class SamplingCost:
    """Cost of sampling `images` images on `device`.

    `parameters`: of each network. `evaluations`: of each network, per image. `seconds`: median of the repeats.
    `peak_bytes`: peak memory; `peak_of`: the memory that it counts, in words.
    """

    images: int
    parameters: dict[str, int]
    evaluations: dict[str, float]
    seconds: float
    peak_bytes: int
    peak_of: str
    device: str


@dataclass(frozen=True)
class TrainingCost:
    """Cost of training from the record of a run folder; None if not recorded.

    `steps`, `seconds`: sum over all sessions. `batch_size`: global batch size. `parameters`: of each trained network,
    discriminators and encoders included. `budget`: the setting. `autoencoder`: run or model whose latents this model
    was trained on; its own cost is not included.
    """

    steps: int | None = None
    seconds: float | None = None
    hardware: dict[str, Any] | None = None
    parameters: dict[str, int] | None = None
    batch_size: int | None = None
    budget: str | None = None
    autoencoder: str | None = None


def networks_of(pipeline: Any) -> dict[str, nn.Module]:
    """Return the networks among the components of a pipeline of hfgen or diffusers, by name."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def parameters(networks: Mapping[str, nn.Module]) -> dict[str, int]:
    """Return the number of parameters of each network."""
    counts = {}
    for name, net in networks.items():
        counts[name] = sum(parameter.numel() for parameter in net.parameters())
    return counts


class Evaluations:
    """Context manager that counts the input items of each network; a batch of B counts B.

    For a network that is not called itself, such as a VAE of which only the decoder is called, the count is that of its
    most evaluated direct part. Items over images is the number of function evaluations per image; classifier-free
    guidance takes 2 per step.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self.networks, self._hooks = networks, list[Any]()
        self._whole = dict.fromkeys(networks, 0)
        self._parts: dict[str, dict[str, int]] = {name: {} for name in networks}

    def __enter__(self) -> Self:
        for name, net in self.networks.items():
            self._watch(net, self._whole, name)
            for part, module in net.named_children():
                self._watch(module, self._parts[name], part)
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _watch(self, module: nn.Module, table: dict[str, int], key: str) -> None:
        def count(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim]
            table[key] = table.get(key, 0) + (len(tensors[0]) if tensors else 1)

        self._hooks.append(module.register_forward_pre_hook(count, with_kwargs=True))

    @property
    def items(self) -> dict[str, int]:
        """Return the number of input items of each network."""
        return {name: whole or max(self._parts[name].values(), default=0) for name, whole in self._whole.items()}


def sampling_cost(
    make: Callable[[int], Any], networks: Mapping[str, nn.Module], images: int = IMAGES, repeats: int = 3
) -> SamplingCost:
    """Return the cost of `images` images from `make(n)`, which samples n images.

    The first call is the warm-up and measures evaluations and memory; `seconds` is the median of `repeats` more calls.
    Peak memory on CUDA is exact: that of torch's tensors, weights included. On the CPU it is the growth of the process
    during the first call, sampled every 5 ms, plus the weights. That is a lower bound: it misses memory that is freed
    sooner and, without glibc, memory that the process held free before.
    """
    device = _device_of(networks)
    # measure evaluations and memory
    with Evaluations(networks) as counted, _peak(device, networks) as peak:
        make(images)
    # measure time
    seconds = []
    for _ in range(repeats):
        start = _now(device)
        make(images)
        seconds.append(_now(device) - start)
    # refer both to one image and to the device
    evaluations = {name: items / images for name, items in counted.items.items()}
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return SamplingCost(
        images, parameters(networks), evaluations, statistics.median(seconds), peak.bytes, peak.counts, hardware
    )


def _device_of(networks: Mapping[str, nn.Module]) -> torch.device:
    """Return the device of the first parameter; the CPU without parameters."""
    for net in networks.values():
        for parameter in net.parameters():
            return parameter.device
    return torch.device("cpu")


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class _Peak:
    """Context manager that measures peak memory: `bytes`, and `counts`, the memory that they count, in words."""

    bytes = 0
    counts = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class _CudaPeak(_Peak):
    counts = "torch's tensors on the GPU, weights included"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> Self:
        torch.cuda.reset_peak_memory_stats(self.device)
        return self

    def __exit__(self, *error: object) -> None:
        self.bytes = torch.cuda.max_memory_allocated(self.device)


class _ProcessPeak(_Peak):
    counts = "growth of the process, sampled, and the weights"

    def __init__(self, weights: int) -> None:
        self._process, self._done = psutil.Process(), threading.Event()
        self._weights, self._highest = weights, 0
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._done.wait(0.005):
            self._highest = max(self._highest, self._process.memory_info().rss)

    def __enter__(self) -> Self:
        _give_back_free_memory()
        self._before = self._highest = self._process.memory_info().rss
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        highest = max(self._highest, self._process.memory_info().rss)
        self.bytes = self._weights + highest - self._before


def _give_back_free_memory() -> None:
    """Return freed memory to the system, so that its reuse counts as growth; without glibc do nothing."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _peak(device: torch.device, networks: Mapping[str, nn.Module]) -> _Peak:
    if device.type == "cuda":
        return _CudaPeak(device)
    size = 0
    for net in networks.values():
        for tensor in (*net.parameters(), *net.buffers()):
            size += tensor.numel() * tensor.element_size()
    return _ProcessPeak(size)


def training_cost(model: str | Path) -> TrainingCost:
    """Return the cost of training from a run folder `model`, or from the run folder that holds the pipeline `model`.

    Batch size and budget are read from `config.yaml`, the rest from `run.json`; without it the steps are read from the
    last complete line of `metrics.jsonl`. All fields are None for a Hub id and for other folders.
    """
    # read the run folder
    run = runs.find(model)
    if run is None:
        return TrainingCost()
    settings, record = runs.settings(run), runs.record(run)
    # find the number of steps
    steps = record.get("step")
    if "step" not in record and (log := runs.metrics(run)):
        steps = log[-1]["step"]
    # add the other fields
    known = {key: record.get(key) for key in ("seconds", "hardware", "parameters")}
    known |= {name: settings.get(name) for name in ("batch_size", "budget", "autoencoder")}
    return TrainingCost(steps, **known)
