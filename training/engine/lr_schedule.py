"""The learning rate as a function of the optimiser step."""

import math


def factor(name: str, step: int, max_steps: int, warmup_steps: int) -> float:
    """Return the factor of the peak learning rate at `step` (0-based), in (0, 1].

    It rises linearly over `warmup_steps`; then it stays ("constant"), or falls to zero at `max_steps` along a line
    ("linear") or half a cosine ("cosine", Loshchilov & Hutter 2017, eq. 5), or stays for the first half and falls
    along a line in the second ("second_half", Zhu et al. 2017, section 4).
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    if name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if name == "second_half":
        return min(1.0, 2 * (1 - progress))
    return 1 - progress if name == "linear" else 1.0
