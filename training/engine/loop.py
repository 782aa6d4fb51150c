"""The only training loop: it knows nothing of losses, nor of how many networks and optimisers there are.

Step k is a pure function of the settings and k (see `Noise` and `hfgen.data.order`), so a run gives
the same numbers however its batches are divided and however often it was interrupted.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hfgen.data.dataset import Dataset
from hfgen.data.order import derive_seed
from hfgen.errors import NonFiniteError, ResourceError
from hfgen.metrics.cost import parameters
from hfgen.training.engine.distributed import REDUCED, checkpoint_gradients, seed, split_batch, wrap
from hfgen.training.engine.ema import EMA
from hfgen.training.engine.log import Averages
from hfgen.training.engine.loss_scale import LossScale
from hfgen.training.engine.lr_schedule import factor
from hfgen.training.engine.noise import Noise
from hfgen.training.engine.phase import Batch, Phase, Recipe
from hfgen.training.engine.settings import Settings
from hfgen.training.engine.spectral_norm import PowerIterations

MAX_NON_FINITE = 10
"""Steps in a row with NaN or infinite gradients after which a run gives up."""

VERDICT_ON_DEVICE = ("cpu", "cuda")
"""Devices whose fused optimisers are tested here with `grad_scale` and `found_inf`; others wait for the verdict."""

MAX_HALVINGS = 20
"""Further such steps in float16, in which the loss scale falls to 2^-4."""

Build = Callable[[Any, Dataset], Recipe]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is used up: that of a device, or of the CPU, whose allocator has no
    class of error."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def trainable_parameters(net: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a network that training changes."""
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


class Engine:
    """One run's networks, averages and data, and the training step that moves them."""

    def __init__(self, settings: Settings, build: Build, dataset: Dataset, accelerator: Accelerator):
        self.settings, self.dataset, self.accelerator = settings, dataset, accelerator
        self.rank, self.device = accelerator.process_index, accelerator.device
        # build the networks from the seed
        self.rows, self.micro_batches = split_batch(settings, accelerator.num_processes, self.rank)
        torch.manual_seed(derive_seed(settings.seed, "init"))
        self.recipe = build(settings, dataset)
        self.nets = {name: net.to(self.device) for name, net in self.recipe.nets.items()}
        if settings.gradient_checkpointing:
            checkpoint_gradients(self.nets)
        # collect averages and trainable parameters
        self.averages = {n: EMA(self.nets[n], settings.ema_decay) for n in self.recipe.averaged if settings.ema_decay}
        self.trainable = {name: trainable_parameters(net) for name, net in self.nets.items()}
        self.resume_training()
        # wrap the networks for the processes
        self.power_iterations = PowerIterations(self.nets)
        self.wrapped = {name: wrap(accelerator, net) for name, net in self.nets.items()}
        self.buffers = [b for net in self.nets.values() for b in net.buffers()]
        self.non_finite = {phase.name: torch.zeros((), device=self.device) for phase in self.recipe.phases}
        fp16 = settings.mixed_precision == "fp16"
        self.scales = {phase.name: LossScale(self.device) for phase in self.recipe.phases if fp16}
        self.log = Averages()
        for phase in self.recipe.phases:
            for group in phase.optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])

    def sizes(self) -> dict[str, int]:
        """Return the number of parameters of each network that has any, by name."""
        return {name: count for name, count in parameters(self.nets).items() if count}

    def resume_training(self) -> None:
        """Put networks into training mode; those that nothing trains, such as a given text encoder, stay as users run
        them."""
        for name, net in self.nets.items():
            net.train(bool(self.trainable[name]))

    def train(self, first: int, steps: int, max_steps: int) -> Any:
        """Yield the number of steps done after each of `steps` steps that follow step `first`."""
        per_step = max(phase.times for phase in self.recipe.phases)
        batches = self.dataset.batches(
            seed=self.settings.seed, batch_size=self.settings.batch_size, first=first * per_step,
            rows=self.rows, device=self.device,
        )  # fmt: skip
        for step in range(first, first + steps):
            with self.memory(step):
                self.step(step, list(islice(batches, per_step)), max_steps)
            yield step + 1

    @contextmanager
    def memory(self, step: int) -> Iterator[None]:
        """Turn an error of the allocator in the block into ResourceError, which names the ways to need less memory."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            rows = self.micro_batches[0].stop - self.micro_batches[0].start
            ways = ["--gradient-checkpointing", "--mixed-precision bf16", "a smaller network or --resolution"]
            if rows > 1:
                ways.insert(0, f"--micro-batch-size {rows // 2}, which changes no result")
            first = str(error).strip().split("\n")[0] or type(error).__name__
            raise ResourceError(
                f"out of memory in step {step + 1} with {rows} samples at once: try {'; '.join(ways)} ({first:.300})"
            ) from error

    def step(self, step: int, batches: list[Batch], max_steps: int) -> None:
        """Run every phase of one training step."""
        self.set_learning_rates(step, max_steps)
        memo: list[dict[str, Tensor]] = [{} for _ in self.micro_batches]                 # tensors that phases hand on
        for phase in self.recipe.phases:
            for repetition in range(phase.times):
                self.optimise(phase, step, repetition, batches[repetition], memo)

    def set_learning_rates(self, step: int, max_steps: int) -> None:
        """Give every optimiser the learning rate of step `step` of `max_steps`, from 0 on."""
        rate = factor(self.settings.lr_schedule, step, max_steps, self.settings.warmup_steps)
        for phase in self.recipe.phases:
            for group in phase.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate

    def optimise(self, phase: Phase, step: int, repetition: int, batch: Batch, memo: list[dict[str, Tensor]]) -> None:
        """Take one optimiser step: backward over the micro-batches, norm, finite check, clip, step, average.

        `batch`: the rows of this process, (b, ...) for each tensor. `step` and `repetition` count from 0.
        """
        # prepare: freeze other networks, keep buffers, clear gradients
        nets = self.freeze_others(phase)
        before = [buffer.clone() for buffer in self.buffers]
        self.power_iterations.advance(phase.trains)
        phase.optimizer.zero_grad()
        key = (self.settings.seed, step, phase.name, repetition)
        # go backward over the micro-batches
        for i, rows in enumerate(self.micro_batches):
            seed(self.device, derive_seed(*key, "local", i, self.rank))        # for dropout, which has no global batch
            noise = Noise(key, self.settings.batch_size, rows, self.device)
            with ExitStack() as stack:
                if i < len(self.micro_batches) - 1:                            # gradients meet on the last one
                    for name in phase.trains:
                        stack.enter_context(self.accelerator.no_sync(self.wrapped[name]))
                with self.autocast():
                    loss, scalars = phase.loss(nets, self.local_rows(batch, rows), noise, memo[i])
                if phase.name in self.scales:
                    loss = loss * self.scales[phase.name].value
                self.accelerator.backward(loss * (1 + 0 * loss.detach()) / len(self.micro_batches))    # NaN: no step
            self.log.add(scalars)
        # step, restore the buffers where it was not finite, average
        finite = self.update(phase)
        for buffer, old in zip(self.buffers, before, strict=True):
            buffer.copy_(torch.where(finite.bool(), buffer, old))
        for name in phase.trains:
            if name in self.averages:
                self.averages[name].update(step, finite)
        self.non_finite[phase.name] = (self.non_finite[phase.name] + 1) * (1 - finite)

    def fetch(self) -> dict[str, float]:
        """Return the numbers of the log over all processes since the last fetch, and begin new ones."""
        return {**self.log.fetch(self.accelerator), **self.recipe.fetch()}

    def autocast(self) -> torch.autocast:
        """Return the context of forward passes: the run's precision; a loss may step out of it where it must."""
        reduced = REDUCED.get(str(self.settings.mixed_precision))
        return torch.autocast(self.device.type, dtype=reduced, enabled=reduced is not None)

    def freeze_others(self, phase: Phase) -> Mapping[str, nn.Module]:
        """Freeze every network but those the phase trains; return the networks that its loss is to call."""
        if len(self.recipe.phases) > 1:
            for name, trainable in self.trainable.items():
                for parameter in trainable:
                    parameter.requires_grad_(name in phase.trains)
        return {n: self.wrapped[n] if n in phase.trains else net for n, net in self.nets.items()}

    def local_rows(self, batch: Batch, rows: slice) -> Batch:
        """Return the micro-batch `rows` (of the global batch) from this process's part of the batch."""
        local = slice(rows.start - self.rows.start, rows.stop - self.rows.start)
        return {key: value[local] for key, value in batch.items()}

    @torch.no_grad()
    def update(self, phase: Phase) -> Tensor:
        """Step the optimiser on clipped gradients; return the scalar 1.0 if they were finite, else 0.0, and nothing
        has changed.

        Gradients are the same on all processes by now, so is the verdict. A fused optimiser takes the clipping factor
        and the verdict as tensors, and neither touches the gradients again nor waits for the device. In float16 the
        gradients are those of the scaled loss, and the factor divides by the scale too.
        """
        # compute the norm of all gradients
        optimizer = phase.optimizer
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm, scale = torch.nn.utils.get_total_norm(gradients), self.scales.get(phase.name)
        if scale is not None:
            norm = norm / scale.value
        finite = norm.isfinite().float()
        self.log.add({"grad_norm" if len(self.recipe.phases) == 1 else f"grad_norm_{phase.name}": norm})
        # clip, and step
        excess = (norm / self.settings.max_grad_norm).clamp(min=1.0)
        if scale is not None:
            excess = excess * scale.value
            scale.update(finite)
        if optimizer.defaults.get("fused") and self.device.type in VERDICT_ON_DEVICE:
            optimizer.grad_scale, optimizer.found_inf = excess, 1 - finite     # type: ignore[attr-defined]
            optimizer.step()
        elif finite:
            torch._foreach_div_(gradients, excess)
            optimizer.step()
        if phase.after is not None:
            phase.after()
        return finite

    def check_finite(self, step: int) -> None:
        """Raise NonFiniteError if the last steps before `step` were all non-finite (this fetches from the device)."""
        for name, streak in self.non_finite.items():
            if streak >= MAX_NON_FINITE + MAX_HALVINGS * bool(self.scales):
                raise NonFiniteError(
                    f"phase {name!r}: gradients were NaN or infinite in the last {int(streak)} steps, since step "
                    f"{step - int(streak) + 1}. Weights and checkpoints are as they were before: try a smaller "
                    "--learning-rate or --mixed-precision no, and look for NaN in the data."
                )
