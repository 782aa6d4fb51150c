"""Multi-head attention (Vaswani et al. 2017, section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT = 256 * 256
"""Largest number of query-key pairs for which two products are faster than torch's kernel, in bfloat16 on CPUs."""


def attention(q: Tensor, k: Tensor, v: Tensor, head_dim: int) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v of all heads, each of d = `head_dim` channels, joined: (B, N, heads d).

    Queries are (B, N, heads d), keys and values (B, L, heads d) (Vaswani et al. 2017, eq. 1). The weights of each query
    are in [0, 1] and sum to 1, so the result is in the range of v.
    """
    q, k, v = (x.unflatten(2, (-1, head_dim)).transpose(1, 2) for x in (q, k, v))        # (B, heads, N or L, d)
    return attend(q, k, v).transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, dropout: float = 0.0) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v, (B, heads, N, d), the faster of torch's kernel and two products.

    q is (B, heads, N, d), k and v are (B, heads, L, d). `causal`: queries are the last N of the L inputs, and each
    attends to its own input and to earlier ones. `dropout`: share of the weights that are dropped, in [0, 1).
    """
    N, L = q.shape[2], k.shape[2]
    if N * L <= SHORT and q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return short_attention(q, k, v, causal, dropout)
    mask = None
    if causal and 1 < N < L:
        mask = torch.ones(N, L, dtype=torch.bool, device=q.device).tril(L - N)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal and N == L > 1)


def short_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, dropout: float = 0.0) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v, (B, heads, N, d), and keep all weights (B, heads, N, L) for the backward pass.

    Arguments are those of `attend`; weights are in [0, 1]. torch's kernel computes the weights again in the backward
    pass, which on CPUs in bfloat16 takes four times as long for 64 queries.
    """
    logits = q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)
    if causal:
        N, L = logits.shape[2:]
        logits = logits + torch.full((N, L), -torch.inf, dtype=q.dtype, device=q.device).triu(L - N + 1)
    return F.dropout(logits.softmax(-1).to(v.dtype), dropout) @ v
