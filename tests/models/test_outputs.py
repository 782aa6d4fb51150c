"""Outputs of networks as diffusers and accelerate expect them: dictionaries with fields, or tuples on request."""

from typing import Any

import pytest
import torch
from accelerate.utils.operations import convert_to_fp32
from diffusers.utils import BaseOutput

from tests.models.variants import VARIANTS, every_variant

EVERY = pytest.mark.parametrize("name", every_variant())


def leaves(value: Any) -> list[Any]:
    """Return the tensors of an output, a tuple or a distribution, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, tuple):
        return [leaf for part in value for leaf in leaves(part)]
    return [value.mean, value.std]


@EVERY
def test_the_tuple_holds_the_values_of_the_dictionary(name: str) -> None:
    torch.manual_seed(0)
    net, inputs = VARIANTS[name]()
    net.eval()
    with torch.no_grad():
        found, short = net(**inputs), net(**inputs, return_dict=False)
    assert isinstance(found, BaseOutput) and type(short) is tuple
    for part, value in zip(short, found.values(), strict=False):
        for a, b in zip(leaves(part), leaves(value), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    first = next(iter(found))
    assert found[0] is found[first] is getattr(found, first)


@EVERY
def test_accelerate_converts_an_output_of_bfloat16(name: str) -> None:
    net, inputs = VARIANTS[name]()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = net.eval()(**inputs)
    converted = convert_to_fp32(found)
    assert type(converted) is type(found) and list(converted) == list(found)
    for value in converted.values():
        if isinstance(value, torch.Tensor) and value.is_floating_point():              # codes are integers
            assert value.dtype == torch.float32
