"""The first lines that a run prints."""

import os

from torch import nn

from hfgen.hub.upload import logged_in
from hfgen.training.engine.distributed import precision_in_words
from hfgen.training.engine.loop import Engine
from hfgen.training.engine.settings import Settings

SEVERAL_ON_CPUS = (
    "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0 ..."
)


def introduction(settings: Settings, engine: Engine, threads: int, step: int) -> str:
    """Return a few lines on data, networks, steps and processes of a run that begins or continues at `step`."""
    # describe data, networks, steps and processes
    processes = engine.accelerator.num_processes
    sizes = ", ".join(f"{name} {count:,}" for name, count in engine.sizes().items())
    steps = f"{settings.max_steps:,} steps of {settings.batch_size}"
    if step:
        steps += f", continued from step {step:,}"
    lines = [
        engine.dataset.describe(),
        f"parameters: {sizes}; {steps}",
        f"{processes} process(es) on {engine.device.type}, {threads} thread(s) each, "
        f"precision {precision_in_words(settings)}",
    ]
    # add warnings
    if processes == 1 and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        lines.append("warning: the launcher was asked for several processes and started one. On CPUs this starts "
                     f"several: {SEVERAL_ON_CPUS}")  # fmt: skip
    divided = processes > 1 or len(engine.micro_batches) > 1
    random = sorted({type(m).__name__ for net in engine.nets.values() for m in net.modules() if _is_local(m)})
    if divided and random:
        lines.append(f"{', '.join(random)}: depends on how the batch is divided; resuming is exact all the same")
    if settings.publish_to is not None and not logged_in():
        lines.append(f"--publish-to {settings.publish_to}: nobody is logged in yet; run `hf auth login` meanwhile")
    return "\n".join(lines)


def _is_local(module: nn.Module) -> bool:
    """Return whether a module's output depends on more than its own sample: dropout, batch statistics."""
    dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    return dropout or isinstance(module, nn.modules.batchnorm._BatchNorm)
