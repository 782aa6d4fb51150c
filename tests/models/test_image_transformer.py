"""The transformer over entries: causality, the cache, probabilities that sum to 1, refusals."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from hfgen import ImageTransformer
from hfgen.errors import ConfigError

SMALL: dict[str, Any] = {"vocab_size": 5, "grid": (2, 3, 2), "width": 16, "layers": 2, "heads": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "rotary": {},
    "learned, tied": {"positions": "learned", "tie_weights": True},
    "classes": {"num_class_embeds": 3},
    "text": {"text_width": 4},
    "classes and text, learned": {"num_class_embeds": 3, "text_width": 4, "positions": "learned"},
}
B, N = 3, 12


def make(**changes: Any) -> ImageTransformer:
    """Return a small network in evaluation mode, whose weights are so large that every input matters."""
    torch.manual_seed(0)
    net = ImageTransformer(**{**SMALL, **changes})
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


def conditions(net: ImageTransformer) -> dict[str, Tensor]:
    given = {}
    if net.config["num_class_embeds"]:
        given["class_labels"] = torch.arange(B) % 3
    if net.config["text_width"]:
        given["encoder_hidden_states"] = torch.randn(B, 4, 4, generator=torch.Generator().manual_seed(1))
    return given


def some_entries() -> Tensor:
    return torch.randint(0, 5, (B, N), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", VARIANTS)
def test_an_entry_depends_on_all_entries_before_it_and_on_no_other(name: str) -> None:
    net = make(**VARIANTS[name])
    seen: list[Tensor] = []
    hook = net.wte.register_forward_hook(lambda module, given, out: seen.append(out))
    logits = net(some_entries(), **conditions(net)).logits
    hook.remove()
    for i in range(N):
        (gradient,) = torch.autograd.grad(logits[:, i].square().sum(), seen[0], retain_graph=True, allow_unused=True)
        size = torch.zeros(N - 1) if gradient is None else gradient.abs().sum((0, 2))
        assert (size[:i] > 1e-8).all()
        assert not size[i:].any()


@pytest.mark.parametrize("name", VARIANTS)
def test_the_cache_changes_no_logits_and_runs_one_input_for_each_entry(name: str) -> None:
    net = make(**VARIANTS[name])
    entries, given, cache = some_entries(), conditions(net), net.new_cache()
    run: list[int] = []
    net.h[0].register_forward_pre_hook(lambda module, args: run.append(args[0].shape[1]))
    whole = net(entries, **given).logits
    run.clear()
    with torch.no_grad():
        for i in range(N):
            torch.testing.assert_close(net.next_logits(entries[:, :i], **given, cache=cache), whole[:, i],
                                       atol=1e-5, rtol=0)  # fmt: skip
    assert run[1:] == [1] * (N - 1)
    assert run[0] == 1 + 4 * ("encoder_hidden_states" in given)


def test_a_cache_may_start_with_several_entries_and_go_on_with_several() -> None:
    net, entries = make(), some_entries()
    whole, cache = net(entries).logits, net.new_cache()
    for i in (4, 9, 10):
        torch.testing.assert_close(net.next_logits(entries[:, :i], cache=cache), whole[:, i], atol=1e-5, rtol=0)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_the_probabilities_of_all_images_of_two_by_two_pixels_sum_to_one(positions: str) -> None:
    net = make(vocab_size=2, grid=(2, 2, 1), positions=positions).double()
    images = torch.tensor(list(product((0, 1), repeat=4)))
    log_p = net(images, log_prob=True).log_prob.double().sum(1)
    assert log_p.std() > 0.1
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_log_probabilities_are_those_of_the_softmax() -> None:
    net, entries = make(), some_entries()
    by_hand = net(entries).logits.log_softmax(-1).gather(2, entries[..., None])[..., 0]
    torch.testing.assert_close(net(entries, log_prob=True).log_prob, by_hand, atol=1e-6, rtol=0)
    assert isinstance(net(entries, return_dict=False), tuple)
    assert isinstance(net(entries, log_prob=True, return_dict=False), tuple)


def test_rotations_depend_on_differences_of_rows_and_columns_alone() -> None:
    net = make(grid=(4, 4, 1), vocab_size=3)
    x = torch.randn(1, 1, 16)
    angles = [net.rotation(torch.tensor([number]), x) for number in range(16)]
    q, k = torch.randn(8), torch.randn(8)

    def score(a: int, b: int) -> float:
        from hfgen.models.image_transformer import rotated

        turned = [rotated(v.view(1, 1, 1, 8), angles[i])[0, 0, 0] for v, i in ((q, a), (k, b))]
        return float(turned[0] @ turned[1])

    assert score(5, 0) == pytest.approx(score(10, 5), abs=1e-5)           # one row and one column further
    assert score(5, 0) == pytest.approx(score(15, 10), abs=1e-5)
    assert abs(score(5, 0) - score(5, 1)) > 1e-3


def test_without_causality_every_entry_depends_on_all_that_are_not_masked() -> None:
    net = make(causal=False)
    entries = some_entries()
    entries[:, 5] = 5                                                      # the mask
    seen: list[Tensor] = []
    hook = net.wte.register_forward_hook(lambda module, given, out: seen.append(out))
    logits = net(entries).logits
    hook.remove()
    assert logits.shape == (B, N, 5)
    (gradient,) = torch.autograd.grad(logits[:, 5].square().sum(), seen[0])
    assert (gradient.abs().sum((0, 2)) > 1e-8).all()


@pytest.mark.parametrize(("changes", "field"), [
    ({"vocab_size": 1}, "vocab_size"), ({"grid": (2, 3)}, "grid"), ({"heads": 3}, "heads"), ({"layers": 0}, "layers"),
    ({"positions": "none"}, "positions"), ({"causal": 1}, "causal"), ({"dropout": 1.0}, "dropout"),
    ({"text_width": 0}, "text_width"),
])  # fmt: skip
def test_impossible_settings_are_refused_by_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        ImageTransformer(**{**SMALL, **changes})


def test_missing_conditions_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="class_labels"):
        make(num_class_embeds=3)(some_entries())
    with pytest.raises(ConfigError, match="encoder_hidden_states"):
        make(text_width=4)(some_entries())
