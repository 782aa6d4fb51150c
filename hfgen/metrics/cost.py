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


@dataclass(frozen=True)
class SamplingCost:
    """Cost of `images` images: `parameters` and `evaluations` per image of each network, `seconds`, the median of the
    repeats, and `peak_bytes`, with `peak_of`, what they count, on `device`.
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
    """Cost of training as a run folder records it; None: not recorded. `steps` and `seconds`: all sessions together;
    `batch_size`: the global one; `parameters`: of every network trained, discriminators and encoders too; `budget`: as
    given; `autoencoder`: the run or model in whose latents this one was trained, which has a cost of its own.
    """

    steps: int | None = None
    seconds: float | None = None
    hardware: dict[str, Any] | None = None
    parameters: dict[str, int] | None = None
    batch_size: int | None = None
    budget: str | None = None
    autoencoder: str | None = None


def networks_of(pipeline: Any) -> dict[str, nn.Module]:
    """Return the networks among the components of a pipeline, hfgen's or a stock one, by name."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def parameters(networks: Mapping[str, nn.Module]) -> dict[str, int]:
    """Return how many parameters each network has."""
    return {name: sum(p.numel() for p in net.parameters()) for name, net in networks.items()}


class Evaluations:
    """Counts, while it is open, how many items each network is given: a batch of B counts B.

    Of a network that is not called itself (a VAE whose decoder is) the most evaluated of its direct parts counts. Items
    over images is the number of function evaluations per image; classifier-free guidance takes 2 a step.
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
        """Return how many items each network was given."""
        return {name: whole or max(self._parts[name].values(), default=0) for name, whole in self._whole.items()}


def sampling_cost(
    make: Callable[[int], Any], networks: Mapping[str, nn.Module], images: int = IMAGES, repeats: int = 3
) -> SamplingCost:
    """Return what `make(n)`, which samples n images, costs for `images` of them.

    A first call warms up and is where evaluations and memory are measured; `seconds` is the median of `repeats` more.
    Peak memory on CUDA is that of torch's tensors, weights included, exact; on the CPU the growth of the process during
    the first call plus the weights, sampled every 5 ms, which misses what lives shorter and, where the C library is not
    glibc, what the process already held free: a lower bound.
    """
    device = next((p.device for net in networks.values() for p in net.parameters()), torch.device("cpu"))
    with Evaluations(networks) as counted, _peak(device, networks) as peak:
        make(images)
    seconds = []
    for _ in range(repeats):
        start = _now(device)
        make(images)
        seconds.append(_now(device) - start)
    evaluations = {name: items / images for name, items in counted.items.items()}
    found = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return SamplingCost(
        images, parameters(networks), evaluations, statistics.median(seconds), peak.bytes, peak.counts, found
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class _Peak:
    """The most memory held while it is open, in `bytes`; `counts` says what."""

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
    """Hand what was freed back to the system, so that its reuse counts as growth; only glibc can be asked to."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _peak(device: torch.device, networks: Mapping[str, nn.Module]) -> _Peak:
    if device.type == "cuda":
        return _CudaPeak(device)
    tensors = [t for net in networks.values() for t in (*net.parameters(), *net.buffers())]
    return _ProcessPeak(sum(t.numel() * t.element_size() for t in tensors))


def training_cost(model: str | Path) -> TrainingCost:
    """Return what training cost, from the run folder `model`, or the one that the pipeline folder `model` lies in.

    `config.yaml`: batch size and budget; `run.json`: the rest; steps of a run without one: those of the last complete
    line of `metrics.jsonl`. All None for a Hub id, and for a folder that belongs to no run.
    """
    run = runs.find(model)
    if run is None:
        return TrainingCost()
    settings, record = runs.settings(run), runs.record(run)
    steps = record.get("step")
    if "step" not in record and (log := runs.metrics(run)):
        steps = log[-1]["step"]
    known = {key: record.get(key) for key in ("seconds", "hardware", "parameters")}
    known |= {name: settings.get(name) for name in ("batch_size", "budget", "autoencoder")}
    return TrainingCost(steps, **known)
