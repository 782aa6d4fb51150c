"""Helpers of tests in several folders."""

from typing import Any

import torch


def seed(*values: int) -> Any:
    """Return a generator of the one value, or a list of generators."""
    generators = [torch.Generator().manual_seed(value) for value in values]
    return generators[0] if len(values) == 1 else generators
