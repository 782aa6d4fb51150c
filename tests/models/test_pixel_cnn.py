"""The convolutional model of pixels: causality, no blind spot, the cache, exact probabilities, refusals."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from hfgen import PixelCNN
from hfgen.errors import ConfigError

SMALL: dict[str, Any] = {"channels": 1, "sample_size": (4, 5), "levels": 5, "width": 8, "layers": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "grey": {},
    "colours": {"channels": 3},
    "mixture of colours": {"channels": 3, "levels": 33, "mixtures": 3},
    "classes": {"num_class_embeds": 3},
    "classes and text": {"num_class_embeds": 3, "text_width": 4, "output": "logistic_mixture", "mixtures": 2},
}
B = 3


def make(**changes: Any) -> PixelCNN:
    """Return a small network in evaluation mode, whose weights are so large that every input matters."""
    torch.manual_seed(0)
    net = PixelCNN(**{**SMALL, **changes})
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5)
    return net.eval()


def conditions(net: PixelCNN) -> dict[str, Tensor]:
    given = {}
    if net.config["num_class_embeds"]:
        given["class_labels"] = torch.arange(B) % 3
    if net.config["text_width"]:
        given["encoder_hidden_states"] = torch.randn(B, 4, 4, generator=torch.Generator().manual_seed(1))
    return given


def some_entries(net: PixelCNN) -> Tensor:
    return torch.randint(0, net.vocab_size, (B, net.num_entries), generator=torch.Generator().manual_seed(2))


def test_by_gradients_an_entry_depends_on_all_entries_before_it_and_on_no_other() -> None:
    net = make(channels=3, output="logistic_mixture", mixtures=2).double()
    x = (torch.rand(1, 4, 5, 3, generator=torch.Generator().manual_seed(3)).double() * 2 - 1).requires_grad_()
    h = net.features(x, None)
    logits = net.of_levels(h.flatten(0, 2), x.flatten(0, 2)).flatten(0, 1)                # (n, V)
    for i in range(net.num_entries):
        (gradient,) = torch.autograd.grad(logits[i].square().sum(), x, retain_graph=True)
        size = gradient.abs().flatten()
        assert (size[:i] > 1e-12).all()
        assert not size[i:].any()


@pytest.mark.parametrize("name", VARIANTS)
def test_another_value_of_an_entry_changes_the_logits_of_all_later_entries_alone(name: str) -> None:
    net = make(**VARIANTS[name]).double()
    entries, given = some_entries(net), conditions(net)
    if "encoder_hidden_states" in given:
        given["encoder_hidden_states"] = given["encoder_hidden_states"].double()
    before = net(entries, **given).logits
    for i in range(net.num_entries):
        other = entries.clone()
        other[:, i] = (other[:, i] + 1 + net.vocab_size // 2) % net.vocab_size
        changed = (net(other, **given).logits - before).abs().amax((0, 2))
        assert not changed[: i + 1].any()
        assert (changed[i + 1 :] > 1e-12).all()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("cached", [True, False])
def test_the_logits_of_the_next_entry_are_those_of_the_whole_image(name: str, cached: bool) -> None:
    net = make(**VARIANTS[name])
    entries, given = some_entries(net), conditions(net)
    cache = None
    if cached:
        cache = net.new_cache()
    with torch.no_grad():
        whole = net(entries, **given).logits
        for i in range(net.num_entries):
            torch.testing.assert_close(net.next_logits(entries[:, :i], **given, cache=cache), whole[:, i],
                                       atol=1e-5, rtol=0)  # fmt: skip


def test_a_cache_may_start_in_the_middle_of_an_image_and_goes_on_from_there() -> None:
    net = make(**VARIANTS["mixture of colours"])
    entries, cache = some_entries(net), net.new_cache()
    with torch.no_grad():
        whole = net(entries).logits
        for i in (31, 32, 40, 59):
            torch.testing.assert_close(net.next_logits(entries[:, :i], cache=cache), whole[:, i], atol=1e-5, rtol=0)


def test_with_a_cache_each_pixel_runs_through_the_left_stack_once() -> None:
    net = make(sample_size=6)
    run: list[int] = []
    net.left[0].register_forward_pre_hook(lambda module, args: run.append(args[0].shape[2] * args[0].shape[3]))
    entries, cache = some_entries(net), net.new_cache()
    with torch.no_grad():
        for i in range(36):
            net.next_logits(entries[:, :i], cache=cache)
    assert run == [1] * 36


@pytest.mark.parametrize("name", VARIANTS)
def test_log_probabilities_are_the_log_softmax_of_the_logits_of_the_next_entry(name: str) -> None:
    net = make(**VARIANTS[name])
    entries, given = some_entries(net), conditions(net)
    with torch.no_grad():
        found = net(entries, **given, log_prob=True).log_prob
        for i in range(net.num_entries):
            logits = net.next_logits(entries[:, :i], **given)
            by_hand = logits.log_softmax(-1).gather(1, entries[:, i : i + 1])[:, 0]
            torch.testing.assert_close(found[:, i], by_hand, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("output", ["categorical", "logistic_mixture"])
def test_the_probabilities_of_all_binary_images_of_two_by_two_pixels_sum_to_one(output: str) -> None:
    net = make(sample_size=2, levels=2, output=output, mixtures=3).double()
    images = torch.tensor(list(product((0, 1), repeat=4)))
    log_p = net(images, log_prob=True).log_prob.double().sum(1)
    assert log_p.std() > 0.1
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_the_output_is_a_softmax_up_to_32_levels_and_a_mixture_above() -> None:
    assert not PixelCNN(**{**SMALL, "levels": 32}).mixture
    assert PixelCNN(**{**SMALL, "levels": 33}).mixture
    assert not PixelCNN(**{**SMALL, "levels": 33, "output": "categorical"}).mixture


def test_every_parameter_has_a_gradient() -> None:
    for changes in VARIANTS.values():
        net = make(**changes)
        (-net(some_entries(net), **conditions(net), log_prob=True).log_prob.mean()).backward()
        without = [name for name, value in net.named_parameters() if value.grad is None or not value.grad.any()]
        assert without == []


@pytest.mark.parametrize(("changes", "field"), [
    ({"channels": 0}, "channels"), ({"sample_size": (4, 5, 6)}, "sample_size"), ({"levels": 1}, "levels"),
    ({"layers": 0}, "layers"), ({"output": "gaussian"}, "output"), ({"mixtures": 0}, "mixtures"),
    ({"dropout": 1.0}, "dropout"), ({"text_width": 0}, "text_width"),
])  # fmt: skip
def test_impossible_settings_are_refused_by_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        PixelCNN(**{**SMALL, **changes})


def test_missing_conditions_are_refused_by_name() -> None:
    net = make()
    with pytest.raises(ConfigError, match="class_labels"):
        make(num_class_embeds=3)(some_entries(net))
    with pytest.raises(ConfigError, match="encoder_hidden_states"):
        make(text_width=4)(some_entries(net))
    with pytest.raises(ConfigError, match="class_labels"):
        net(some_entries(net), class_labels=torch.zeros(B, dtype=torch.int64))
