"""The engine in one process: averages, noise, micro-batches, and steps that must not happen."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hfgen.data import load_dataset
from hfgen.errors import ConfigError, NonFiniteError
from hfgen.training.ddpm import DDPMSettings
from hfgen.training.engine.distributed import split_batch
from hfgen.training.engine.ema import EMA
from hfgen.training.engine.loop import MAX_NON_FINITE
from hfgen.training.engine.noise import Noise
from hfgen.training.engine.phase import Phase, Recipe
from tests.training.tiny import DDPM, run

settings, engine = DDPM.settings, DDPM.engine


def test_micro_batches_give_the_losses_and_weights_of_the_whole_batch() -> None:
    whole, parts = engine(), engine(micro_batch_size=4)
    for a, b in zip(run(whole, 10), run(parts, 10), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
    for p, q in zip(whole.nets["unet"].parameters(), parts.nets["unet"].parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-4, rtol=0)       # a tenth of one step of Adam


def test_a_step_is_a_function_of_its_number_alone() -> None:
    there, again = engine(), engine()
    run(there, 4)
    again.nets["unet"].load_state_dict(there.nets["unet"].state_dict())
    again.recipe.phases[0].optimizer.load_state_dict(deepcopy(there.recipe.phases[0].optimizer.state_dict()))
    torch.randn(100)                                          # the global generator does not matter
    assert run(there, 3, first=4) == run(again, 3, first=4)


def test_a_loss_goes_down_and_the_average_follows_the_weights() -> None:
    trained = engine()
    losses = [line["loss"] for line in run(trained, 20)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    net, average = trained.nets["unet"].state_dict(), trained.averages["unet"].net.state_dict()
    assert any(not torch.equal(net[key], average[key]) for key in net)


def test_the_moving_average_is_the_formula_in_float64() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    ema = EMA(net, decay=0.9)
    expected = {k: v.double() for k, v in net.state_dict().items()}
    for step in range(30):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter))
            net(torch.randn(8, 3))
        ema.update(step, torch.ones(()))
        decay = min(0.9, (1 + step) / (10 + step))
        for key, value in net.state_dict().items():
            expected[key] = decay * expected[key] + (1 - decay) * value.double()
    for key, value in ema.net.state_dict().items():
        if key.endswith("num_batches_tracked"):
            assert value == 30                                # counters are copied, not averaged
        else:
            torch.testing.assert_close(value.double(), expected[key], atol=1e-5, rtol=0)


def test_noise_of_a_slice_is_the_slice_of_the_noise() -> None:
    whole = Noise((0, 5, "d"), 12, slice(0, 12))
    for draw in (lambda n: n.normal("eps", 2, 3), lambda n: n.uniform("u"), lambda n: n.stratified("t")):
        parts = [draw(Noise((0, 5, "d"), 12, slice(i, i + 4))) for i in (0, 4, 8)]
        assert torch.equal(torch.cat(parts), draw(whole))
    assert not torch.equal(whole.normal("a", 4), whole.normal("b", 4))
    assert not torch.equal(whole.normal("a", 4), Noise((0, 6, "d"), 12, slice(0, 12)).normal("a", 4))


def test_stratified_times_have_one_in_each_cell() -> None:
    t = Noise((1, 2, "x"), 50, slice(0, 50)).stratified("t")
    assert sorted((t * 50).long().tolist()) == list(range(50))
    assert float(t.min()) >= 0 and float(t.max()) < 1


class Poisoned(nn.Module):
    """A network with batch statistics whose loss is NaN in the steps asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def poisoned_recipe(when: set[int], fused: bool) -> Any:
    """Return a recipe's build function whose loss is NaN in the steps `when`."""

    def build(settings: DDPMSettings, dataset: Any) -> Recipe:
        net = Poisoned()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=fused)

        def loss(nets: Mapping[str, nn.Module], batch: Any, noise: Noise, memo: Any) -> Any:
            value = nets["net"](batch["x"]).square().mean()
            value = value * float("nan") if noise.key[1] in when else value
            return value, {"loss": value.detach()}

        nothing: Any = None
        return Recipe({"net": net}, [Phase("only", optimizer, ("net",), loss)], nothing, nothing, ("net",))

    return build


@pytest.mark.parametrize("fused", [True, False])
def test_a_non_finite_step_changes_neither_weights_nor_averages_nor_batch_statistics(fused: bool) -> None:
    poisoned = engine(build=poisoned_recipe({3, 4}, fused))
    run(poisoned, 3)
    before = {k: v.clone() for k, v in poisoned.nets["net"].state_dict().items()}
    average = {k: v.clone() for k, v in poisoned.averages["net"].net.state_dict().items()}
    run(poisoned, 2, first=3)
    assert all(torch.equal(before[k], v) for k, v in poisoned.nets["net"].state_dict().items())
    assert all(torch.equal(average[k], v) for k, v in poisoned.averages["net"].net.state_dict().items())
    poisoned.check_finite(5)
    run(poisoned, 1, first=5)
    after = poisoned.nets["net"].state_dict()
    assert all(v.isfinite().all() for v in after.values())
    assert any(not torch.equal(before[k], v) for k, v in after.items())
    assert after["body.1.num_batches_tracked"] == 4           # steps 0, 1, 2 and 5


def test_too_many_non_finite_steps_in_a_row_are_an_error_with_the_first_step() -> None:
    poisoned = engine(build=poisoned_recipe(set(range(4, 4 + MAX_NON_FINITE)), True))
    run(poisoned, 4 + MAX_NON_FINITE)
    with pytest.raises(NonFiniteError, match=f"last {MAX_NON_FINITE} steps, since step 5"):
        poisoned.check_finite(4 + MAX_NON_FINITE)


def test_a_batch_that_does_not_divide_names_the_nearest_sizes_that_do() -> None:
    assert split_batch(settings(batch_size=12, micro_batch_size=3), 2, 1) == (slice(6, 12), [slice(6, 9), slice(9, 12)])
    with pytest.raises(ConfigError, match=r"--batch-size 10 .* 2 processes x micro-batches of 4; .* 8 and 16"):
        split_batch(settings(batch_size=10, micro_batch_size=4), 2, 0)
    with pytest.raises(ConfigError, match="nearest are 8"):
        split_batch(settings(batch_size=5), 8, 0)


@pytest.mark.parametrize("weighting", ["simple", "vlb", "min_snr"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_every_weighting_and_prediction_learns(weighting: str, prediction: str) -> None:
    if weighting == "vlb" and prediction != "epsilon":
        with pytest.raises(ConfigError, match="--weighting vlb"):
            engine(weighting=weighting, prediction_type=prediction)
        return
    trained = engine(weighting=weighting, prediction_type=prediction)
    x_0, eps, t = load_dataset("digits").tensor(100), torch.randn(100, 1, 8, 8), torch.arange(100)
    scheduler = trained.recipe.pipeline(trained.nets).scheduler
    x_t = scheduler.add_noise(x_0, eps, t)

    def error_of_x0() -> float:
        with torch.no_grad():
            output = trained.nets["unet"](x_t, t).sample
        return float((scheduler.predict_x0(output, t, x_t) - x_0)[30:70].square().mean())

    before = error_of_x0()
    run(trained, 20)
    assert error_of_x0() < 0.8 * before
