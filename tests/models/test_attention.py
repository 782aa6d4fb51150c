"""Attention: its two ways of computing agree, and the right one is taken."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hfgen.models import attention as module
from hfgen.models.attention import attention, short_attention


def of_heads(x: Tensor, head_dim: int) -> Tensor:
    return x.reshape(*x.shape[:2], -1, head_dim).transpose(1, 2)


def inputs(dtype: torch.dtype, queries: int = 9, keys: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, n, 12, generator=generator).to(dtype).requires_grad_() for n in (queries, keys, keys)]


def test_the_short_way_is_the_fused_kernel_in_values_and_gradients() -> None:
    q, k, v = (of_heads(x, 4) for x in inputs(torch.float64))
    ours, theirs = short_attention(q, k, v), F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(ours, theirs)
    found, expected = (torch.autograd.grad(out.square().sum(), [q, k, v], retain_graph=True) for out in (ours, theirs))
    torch.testing.assert_close(found, expected)


def test_heads_are_independent_and_side_by_side() -> None:
    q, k, v = inputs(torch.float64)
    whole = attention(q, k, v, head_dim=4)
    assert whole.shape == q.shape
    heads = [attention(*(x[..., i : i + 4] for x in (q, k, v)), head_dim=4) for i in (0, 4, 8)]
    torch.testing.assert_close(whole, torch.cat(heads, 2))


def test_bfloat16_stays_within_its_rounding_of_float64() -> None:
    exact = attention(*inputs(torch.float64), head_dim=4)
    rounded = attention(*inputs(torch.bfloat16), head_dim=4)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.double(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("dtype", "queries", "short"),
    [(torch.float32, 9, False), (torch.bfloat16, 9, True), (torch.bfloat16, 2**14, False)],
)
def test_only_short_sequences_in_bfloat16_keep_their_weights(
    dtype: torch.dtype, queries: int, short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bool] = []
    monkeypatch.setattr(module, "short_attention", lambda q, k, v, *_: taken.append(True) or v)
    q, k, v = inputs(dtype, queries, queries if short else 5)
    attention(q, k, v, head_dim=4)
    assert taken == [True] * short


@pytest.mark.parametrize("queries", [1, 3, 5])
def test_causal_queries_are_the_last_inputs_and_attend_to_none_after_them(queries: int) -> None:
    q, k, v = (of_heads(x, 4) for x in inputs(torch.float64, 5, 5))
    expected = torch.cat([F.scaled_dot_product_attention(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1])
                          for i in range(5)], 2)[:, :, -queries:]                        # each query with its own keys
    for way in (module.attend, short_attention):
        torch.testing.assert_close(way(q[:, :, -queries:], k, v, True), expected)


@pytest.mark.parametrize("way", [module.attend, short_attention])
def test_dropout_drops_weights_and_keeps_their_mean(way: Any) -> None:
    torch.manual_seed(0)
    q, k, v = (of_heads(x.detach(), 4)[:1].expand(20_000, -1, -1, -1) for x in inputs(torch.float64))
    dropped = way(q, k, v, False, 0.5)
    assert len(dropped[:, 0, 0].unique(dim=0)) > 10
    torch.testing.assert_close(dropped.mean(0), way(q, k, v)[0], atol=0.05, rtol=0)
