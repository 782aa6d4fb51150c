"""The transformer over entries: first weights, checkpointing, and all that is refused before it is built or run."""

from typing import Any

import pytest
import torch
from torch import Tensor

import hfgen
from hfgen.errors import ConfigError

SMALL: dict[str, Any] = {"vocab_size": 5, "grid": (3, 4, 1), "width": 16, "layers": 2, "heads": 2,
                         "positions": "learned"}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "learned": {},
    "rotary": {"positions": "rotary"},
    "colour": {"positions": "rotary", "grid": (2, 3, 3)},
    "tied": {"tie_weights": True},
    "classes": {"num_class_embeds": 3},
    "text": {"text_width": 6, "positions": "rotary"},
    "classes and text": {"num_class_embeds": 3, "text_width": 6},
}


def made(name: str, **changes: Any) -> tuple[Any, Tensor, dict[str, Tensor]]:
    """Return a network in evaluation mode, entries (2, n) and conditions; its weights are far from the first ones."""
    torch.manual_seed(0)
    net = hfgen.ImageTransformer(**{**SMALL, **VARIANTS[name], **changes}).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    entries = torch.randint(net.vocab_size, (2, net.num_entries))
    conditions: dict[str, Tensor] = {}
    if net.config["num_class_embeds"]:
        conditions["class_labels"] = torch.tensor([0, 2])
    if net.config["text_width"]:
        conditions["encoder_hidden_states"] = torch.randn(2, 4, 6)
    return net, entries, conditions


def test_the_cache_refuses_another_batch_and_entries_that_it_has_seen() -> None:
    net, entries, _ = made("learned")
    cache = net.new_cache()
    net.next_logits(entries[:, :3], cache=cache)
    with pytest.raises(ConfigError, match="cache must be one of 1 sequences, or new, got 'one of 2 sequences'"):
        net.next_logits(entries[:1, :4], cache=cache)
    with pytest.raises(ConfigError, match="cache must be one of fewer than 4 inputs"):
        net.next_logits(entries[:, :3], cache=cache)


def test_masked_entries_are_seen_as_the_mask_and_every_entry_is_predicted() -> None:
    net, entries, _ = made("rotary", causal=False)
    masked = entries.clone()
    masked[:, 3] = net.vocab_size
    with torch.no_grad():
        found, again = net(masked).logits, net(masked.clone()).logits
        torch.testing.assert_close(found, again, atol=0, rtol=0)
        assert found.shape == (2, 12, 5)
        assert not torch.equal(found, net(entries).logits)
    with pytest.raises(ConfigError, match="causal must be true to draw one entry after the other, got False"):
        net.next_logits(entries[:, :2])


def test_checkpointed_blocks_have_the_same_gradients() -> None:
    net, entries, conditions = made("classes and text")
    grads = []
    for _ in range(2):
        net.zero_grad()
        net(entries, **conditions, log_prob=True).log_prob.sum().backward()
        grads.append([parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None])
        net.enable_gradient_checkpointing()
    assert net.h[0].gradient_checkpointing
    torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-5)


def test_first_weights_are_those_of_gpt_2() -> None:
    torch.manual_seed(0)
    net: Any = hfgen.ImageTransformer(width=256, layers=8, heads=4)
    assert abs(net.h[3].attn.c_attn.weight.std() - 0.02) < 1e-3
    for part in (net.h[3].attn, net.h[3].mlp):
        assert abs(part.c_proj.weight.std() - 0.02 / 16**0.5) < 2.5e-4
    assert net.h[0].ln_1.weight.eq(1).all() and net.h[0].mlp.c_fc.bias.eq(0).all()


@pytest.mark.parametrize(("change", "message"), [
    ({"vocab_size": 1}, "vocab_size must be an int in"),
    ({"grid": (3, 4)}, "grid must be three numbers"),
    ({"grid": (4096, 4096, 1)}, "grid must be of at most 65,536 entries"),
    ({"width": 15}, "heads must be such that"),
    ({"layers": 10**9}, "layers must be an int in"),
    ({"width": 10**9}, "width must be an int in"),
    ({"mlp_ratio": 10**9}, "mlp_ratio must be an int in"),
    ({"positions": "fixed"}, "positions must be one of learned, rotary"),
    ({"causal": 1}, "causal must be true or false"),
    ({"dropout": 1.0}, "dropout must be a number in"),
    ({"num_class_embeds": 0}, "num_class_embeds must be an int"),
])  # fmt: skip
def test_impossible_sizes_are_refused_before_any_allocation(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hfgen.ImageTransformer(**{**SMALL, **change})


def test_inputs_that_do_not_fit_are_refused() -> None:
    net, entries, conditions = made("classes and text")
    with pytest.raises(ConfigError, match="class_labels must be given"):
        net(entries, encoder_hidden_states=conditions["encoder_hidden_states"])
    with pytest.raises(ConfigError, match="encoder_hidden_states must be of 6 features"):
        net(entries, conditions["class_labels"], torch.zeros(2, 4, 7))
    with pytest.raises(ConfigError, match="entries must be"):
        net(torch.cat([entries, entries], 1), **conditions)
    plain, entries, _ = made("learned")
    with pytest.raises(ConfigError, match="class_labels must be left out"):
        plain(entries, torch.tensor([0, 1]))
