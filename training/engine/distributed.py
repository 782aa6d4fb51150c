"""The processes a run lives in: their number, threads, signals and how they agree to stop."""

import ctypes
import os
import signal
import sys
import threading
import warnings
from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType, PartialState
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import GradientAccumulationPlugin, LoggerType
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hfgen.errors import ConfigError
from hfgen.loading.devices import available_device
from hfgen.training.engine.settings import Precision, Settings

INTERRUPTED = 75
"""Exit code of a run that a signal stopped, and that has saved a checkpoint (EX_TEMPFAIL)."""

EXACT = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)

LAUNCHED_PRECISION = "ACCELERATE_MIXED_PRECISION"
"""Environment variable in which `accelerate launch` hands the precision on."""

CHOSEN_DEVICE = "ACCELERATE_TORCH_DEVICE"
"""Environment variable in which Accelerate takes the device of a process."""

REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtypes of mixed precision, by name."""

PR_SET_PDEATHSIG = 1


def accelerator_for(settings: Settings) -> Accelerator:
    """Return the Accelerator of this run; it neither accumulates gradients nor chooses a precision by itself.

    Raises ConfigError where the tracker's package is not installed, and where `accelerate launch` or its configuration
    asks for sharded training, which is not exact.
    """
    # check the tracker
    if settings.tracker != "none" and LoggerType(settings.tracker) not in get_available_trackers():
        raise ConfigError(f"--tracker {settings.tracker}: its package is not installed; "
                          f"pip install {settings.tracker}, or leave --tracker out: metrics.jsonl is written always")
    # create the Accelerator
    if settings.device is not None:
        choose_device(settings.device)
    accelerator = Accelerator(
        mixed_precision="no",                                        # the engine's: see Engine.autocast
        log_with=None if settings.tracker == "none" else settings.tracker,
        project_dir=str(settings.output_dir),
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    # a 1x1 kernel has the same bytes in either memory format; DDP compares its strides only
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    if accelerator.distributed_type not in EXACT:
        raise ConfigError(f"{accelerator.distributed_type.value}: hfgen trains on one process, or on several with DDP")
    if "WORLD_SIZE" in os.environ and sys.platform == "linux":       # a launcher that dies takes its ranks along
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    return accelerator


def choose_device(name: str) -> None:
    """Let Accelerate use the device `name`, such as "cpu", "cuda:1" or "mps".

    Raises ConfigError for a device that is not there, and for one of several processes, whose devices the launcher
    chooses.
    """
    device = available_device(name)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"--device {name}: accelerate launch chooses the devices of several processes; leave it out")
    os.environ[CHOSEN_DEVICE] = str(device)
    if PartialState._shared_state and PartialState().device != device:
        AcceleratorState._reset_state(reset_partial_state=True)


def chosen_precision(settings: Settings) -> Precision:
    """Return the settings' precision, else the one of `accelerate launch` and its configuration. Default: "no".

    Raises ConfigError for a precision of the launcher that hfgen does not train in.
    """
    if settings.mixed_precision is not None:
        return settings.mixed_precision
    match os.environ.get(LAUNCHED_PRECISION, "no"):
        case "no" | "bf16" | "fp16" as launched:
            return launched
        case other:
            raise ConfigError(f"accelerate asks for mixed precision {other!r}; hfgen trains in bf16, fp16 or no; set "
                              "it by `accelerate launch --mixed_precision`, `accelerate config` or --mixed-precision")


def precision_in_words(settings: Settings) -> str:
    """Return the precision of a run, and whether `accelerate launch` asks for the same."""
    precision = settings.mixed_precision
    if precision not in REDUCED:
        return "float32"
    return f"{precision}, as accelerate asks" if os.environ.get(LAUNCHED_PRECISION) == precision else str(precision)


def checkpoint_gradients(nets: Mapping[str, nn.Module]) -> None:
    """Let networks compute activations again in the backward pass, which takes less memory and more time.

    Raises ConfigError if none of the networks can.
    """
    able: list[Any] = [net for net in nets.values() if getattr(net, "_supports_gradient_checkpointing", False)]
    if not able:
        kinds = ", ".join(sorted({type(net).__name__ for net in nets.values()}))
        raise ConfigError(f"--gradient-checkpointing: {kinds} cannot; leave it out")
    for net in able:
        net.enable_gradient_checkpointing()


def wrap(accelerator: Accelerator, net: nn.Module) -> nn.Module:
    """Return the network as this run's processes train it together; each keeps its own batch statistics.

    One without trainable parameters, which only holds tensors, stays as it is. One with `_unused_parameters` has
    parameters that take no part in some steps.
    """
    if not any(parameter.requires_grad for parameter in net.parameters()):
        return net
    if accelerator.ddp_handler is not None:
        accelerator.ddp_handler.find_unused_parameters = getattr(net, "_unused_parameters", False)
    wrapped: nn.Module = accelerator.prepare_model(net)
    if isinstance(wrapped, DistributedDataParallel):
        wrapped.forward_sync_buffers = False
    return wrapped


def seed(device: torch.device, value: int) -> None:
    """Seed the generators that layers such as dropout draw from, of the CPU and of `device`.

    `torch.manual_seed` also seeds devices that are not there, for which it formats a traceback: 3 ms at every call.
    """
    torch.default_generator.manual_seed(value)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(value)


def set_threads(threads: int | None) -> int:
    """Set and return the CPU threads of this process: `threads`, else cores / local processes (launchers set 1)."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else (os.cpu_count() or 1)
    threads = threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(threads)
    return threads


def split_batch(settings: Settings, processes: int, rank: int) -> tuple[slice, list[slice]]:
    """Return this rank's rows of the global batch, and the micro-batches as slices of the global batch.

    Raises ConfigError, naming the nearest sizes that work, unless the batch divides evenly.
    """
    # check that all micro-batches are of one size
    per_process = settings.batch_size // processes
    micro = min(settings.micro_batch_size or per_process, per_process)
    if micro == 0 or settings.batch_size % (processes * micro):
        unit = processes * (micro or 1)
        below, above = settings.batch_size // unit * unit, (settings.batch_size // unit + 1) * unit
        raise ConfigError(
            f"--batch-size {settings.batch_size} is the global batch and must divide by {processes} processes x "
            f"micro-batches of {micro or 1}; the nearest are {' and '.join(str(b) for b in (below, above) if b)}"
        )
    # slice the rows of this process
    start = rank * per_process
    micro_batches = [slice(start + i, start + i + micro) for i in range(0, per_process, micro)]
    return slice(start, start + per_process), micro_batches


class Interrupted(Exception):
    """A stop signal has ended something that is not worth finishing: timed steps, an evaluation, a sample grid."""


class StopSignal:
    """Remembers SIGTERM and SIGINT until the step boundary; a second one changes nothing.

    Off the main thread no signal is handled.
    """

    def __init__(self) -> None:
        self.received = False
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() and dist.get_world_size() > 1 else None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():        # Python handles signals there alone
            return self
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True

    def agreed(self) -> bool:
        """Return whether a signal has reached any process: the same answer on all of them, at the same step."""
        if self._group is None:
            return self.received
        flag = torch.tensor([float(self.received)])
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        self.received = bool(flag)
        return self.received

    def check(self, *_: object) -> None:
        """Raise Interrupted if a stop signal has arrived; takes the arguments of a module's forward hook."""
        if self.received:
            raise Interrupted
