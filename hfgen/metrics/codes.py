"""The use of the codes of discrete autoencoders: counts in, numbers out."""

from torch import Tensor, special

from hfgen.errors import ConfigError


def code_use(counts: Tensor) -> tuple[float, float]:
    """Return the share of codes in use, in (0, 1], and their perplexity exp(-sum_k p_k log p_k), in [1, K].

    `counts` (K,): how often each code occurs; p = counts / sum. The perplexity is K if all codes occur equally often.
    Raises ConfigError without any code.
    """
    counts = counts.cpu().double()
    if counts.ndim != 1 or not counts.sum() > 0:
        raise ConfigError(f"counts must be numbers (K,), not all 0, got {list(counts.shape)}")
    p = counts / counts.sum()
    return float((counts > 0).double().mean()), float(special.entr(p).sum().exp())
