"""Sampling with DDPMScheduler: steps and timesteps against diffusers', against float64, and at the edges."""

import copy
import itertools
import math
import warnings

import diffusers
import numpy as np
import pytest
import torch

from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.schedulers.ddpm import DDPMScheduler
from tests.schedulers.helpers import SCHEDULES, close

Stock = diffusers.DDPMScheduler
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
FIXED = ["fixed_small", "fixed_small_log", "fixed_large"]
LINEAR = np.linspace(1e-4, 0.02, 1000)
BOUNDS = {
    "clipped": {"clip_sample_range": 0.9},
    "thresholded": {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5},
    "unbounded": {"clip_sample": False},
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def situation(scheduler, t, shape=(4, 3, 8, 8), seed=0):
    """Return (model output, x_t) as sampling meets them: x_t holds an x_0 in [-1, 1], the model errs by a tenth."""
    generator = seeded(seed)
    x_0 = torch.rand(shape, generator=generator) * 2 - 1
    eps, error = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator) / 10
    times = torch.full((shape[0],), t)
    x_t = scheduler.add_noise(x_0, eps, times)
    kind = scheduler.config.prediction_type
    target = {"epsilon": eps, "sample": x_0, "v_prediction": scheduler.get_velocity(x_0, eps, times)}[kind]
    output = target + error
    if scheduler.variance_type in ("learned", "learned_range"):
        output = torch.cat([output, torch.rand(shape, generator=generator) * 2 - 1], dim=1)
        if scheduler.variance_type == "learned":
            output[:, shape[1] :].abs_()
    return output, x_t


def some(timesteps, count=9):
    """Return about `count` of the timesteps, always the first two and the last two."""
    values = timesteps.tolist()
    return sorted({*values[:2], *values[-2:], *values[:: max(1, len(values) // count)]}, reverse=True)


def assert_same_steps(config, num_steps=None, float32=True):
    """Assert equal steps: in float64 on equal tables to 1e-9, and in float32 where diffusers' float32 can hold 1e-4."""
    ours, stock, exact = DDPMScheduler(**config), Stock(**config), Stock(**config)
    exact.alphas_cumprod, exact.one = ours.alpha_bar, torch.tensor(1.0, dtype=torch.float64)
    if num_steps is not None:
        for scheduler in (ours, stock, exact):
            scheduler.set_timesteps(num_steps)
    assert torch.equal(ours.timesteps, stock.timesteps)
    for t in some(ours.timesteps):
        inputs = situation(stock, t, seed=t)
        doubles = [x.double() for x in inputs]
        pairs = [(exact, doubles, 1e-9), (stock, inputs, 1e-4)]
        for theirs, (output, x_t), tolerance in pairs[: 2 if float32 else 1]:
            a = ours.step(output, t, x_t, generator=seeded(t))
            b = theirs.step(output, t, x_t, generator=seeded(t))
            close(a.prev_sample, b.prev_sample, tolerance)
            close(a.pred_original_sample, b.pred_original_sample, tolerance)


# Against diffusers


def test_a_chain_of_one_timestep_and_given_betas_equal_those_of_diffusers():
    assert DDPMScheduler(num_train_timesteps=1).betas.tolist() == Stock(num_train_timesteps=1).betas.tolist()
    given = np.linspace(0.001, 0.3, 20)
    for betas in (given, given.tolist()):
        config = {"num_train_timesteps": 20, "trained_betas": betas}
        assert torch.equal(DDPMScheduler(**config).betas, Stock(**config).betas)
        assert_same_steps(config, 5)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("total", [1000, 100, 37])
def test_timesteps_equal_those_of_diffusers_exactly(spacing, total):
    for steps, offset in itertools.product({1, 2, 7, 10, 25, 36, 37, total // 2, total - 1, total}, (0, 1, 3)):
        config = {"num_train_timesteps": total, "timestep_spacing": spacing, "steps_offset": offset}
        ours, stock = DDPMScheduler(**config), Stock(**config)
        assert torch.equal(ours.timesteps, stock.timesteps)
        if steps <= total:
            ours.set_timesteps(steps)
            stock.set_timesteps(steps)
            assert ours.timesteps.dtype == stock.timesteps.dtype
            assert ours.timesteps.tolist() == stock.timesteps.tolist()
            assert ours.num_inference_steps == stock.num_inference_steps


def test_trailing_timesteps_are_as_many_as_asked_for_where_rounding_gives_diffusers_one_too_many():
    ours = DDPMScheduler(timestep_spacing="trailing")
    for steps in range(1, 1001):
        ours.set_timesteps(steps)
        assert len(ours.timesteps) == steps
        assert ours.timesteps[0] == 999
        assert ours.timesteps[-1] >= 0
        assert bool((ours.timesteps.diff() < 0).all())


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("bound", BOUNDS)
def test_steps_equal_those_of_diffusers(schedule, prediction, bound):
    for variance, steps in zip(FIXED, (None, 50, 7), strict=True):
        config = {"beta_schedule": schedule, "prediction_type": prediction, "variance_type": variance, **BOUNDS[bound]}
        assert_same_steps(config, steps)


@pytest.mark.parametrize("variance", [*FIXED, "learned", "learned_range"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_variances_and_spacings_equal_those_of_diffusers(variance, prediction, spacing):
    config = {"variance_type": variance, "prediction_type": prediction, "timestep_spacing": spacing}
    assert_same_steps({**config, "steps_offset": 1}, 20)
    assert_same_steps({**config, "beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100}, 100, float32=False)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
def test_steps_from_zero_terminal_snr_equal_those_of_diffusers(prediction, schedule):
    config = {"prediction_type": prediction, "beta_schedule": schedule, "rescale_betas_zero_snr": True}
    for steps in (None, 20, 1):
        assert_same_steps({**config, "timestep_spacing": "trailing"}, steps, float32=steps is not None)


def test_custom_timesteps_step_like_those_of_diffusers():
    ours, stock = DDPMScheduler(), Stock()
    timesteps = [990, 500, 333, 20, 3]
    ours.set_timesteps(timesteps=timesteps)
    stock.set_timesteps(timesteps=timesteps)
    assert ours.custom_timesteps
    assert ours.num_inference_steps is None
    assert torch.equal(ours.timesteps, stock.timesteps)
    for t in ours.timesteps:
        assert ours.previous_timestep(t) == stock.previous_timestep(t)
        output, x_t = situation(stock, int(t))
        close(ours.step(output, t, x_t, seeded()).prev_sample, stock.step(output, t, x_t, seeded()).prev_sample)


def test_the_chain_follows_timesteps_that_the_caller_replaces():
    ours, stock = DDPMScheduler(), Stock()
    output, x_t = situation(stock, 500)
    for scheduler in (ours, stock):
        scheduler.set_timesteps(50)
        scheduler.step(output, 500, x_t)
        scheduler.timesteps = torch.tensor([500, 100])
    close(ours.step(output, 500, x_t, seeded()).prev_sample, stock.step(output, 500, x_t, seeded()).prev_sample)
    ours.set_timesteps(1000)
    assert ours.previous_timestep(500) == 499
    assert DDPMScheduler().previous_timestep(500) == 499


def test_settings_changed_later_count_as_in_diffusers():
    ours, stock = DDPMScheduler(), Stock()
    output, x_t = situation(stock, 700)
    for scheduler in (ours, stock):
        scheduler.step(output, 700, x_t)
        scheduler.register_to_config(clip_sample=False, prediction_type="v_prediction")
    a, b = ours.step(output, 700, x_t, seeded()), stock.step(output, 700, x_t, seeded())
    close(a.prev_sample, b.prev_sample)
    close(a.pred_original_sample, b.pred_original_sample)


@pytest.mark.parametrize("kind", [*FIXED, "fixed_large_log", "other"])
def test_private_variance_equals_that_of_diffusers(kind):
    with warnings.catch_warnings(action="ignore"):
        ours, stock = DDPMScheduler(variance_type=kind), Stock(variance_type=kind)
    for t in (0, 1, 487, 999):
        torch.testing.assert_close(ours._get_variance(t), stock._get_variance(t), atol=2e-5, rtol=2e-4)
    raw = torch.linspace(-1, 1, 5)
    for learned in ("learned", "learned_range"):
        a, b = ours._get_variance(9, raw, learned), stock._get_variance(9, raw, learned)
        torch.testing.assert_close(a, b, atol=2e-4, rtol=0)


# Randomness


def test_the_noise_is_bit_equal_to_that_of_diffusers_and_none_is_drawn_at_the_end():
    ours = DDPMScheduler(variance_type="learned", prediction_type="sample")
    nothing = torch.zeros(4, 3, 8, 8)
    unit_variance = torch.cat([nothing, nothing + 1], dim=1).contiguous(memory_format=torch.channels_last)
    one, several = seeded(5), [seeded(i) for i in range(4)]
    drawn = ours.step(unit_variance, 9, nothing, one).prev_sample
    assert torch.equal(drawn, torch.randn(4, 3, 8, 8, generator=seeded(5)))
    stacked = torch.cat([torch.randn(1, 3, 8, 8, generator=seeded(i)) for i in range(4)])
    assert torch.equal(ours.step(unit_variance, 9, nothing, several).prev_sample, stacked)
    state = one.get_state()
    ours.step(unit_variance, 0, nothing, one)
    assert torch.equal(one.get_state(), state)
    torch.manual_seed(3)
    drawn = ours.step(unit_variance, 9, nothing).prev_sample
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.randn(4, 3, 8, 8))


def test_a_sample_with_its_own_generator_does_not_depend_on_the_batch():
    ours = DDPMScheduler()
    output, x_t = situation(ours, 600)
    together = ours.step(output, 600, x_t, [seeded(i) for i in range(4)]).prev_sample
    for i in range(4):
        alone = ours.step(output[i : i + 1], 600, x_t[i : i + 1], [seeded(i)]).prev_sample
        assert torch.equal(alone[0], together[i])


# Against float64


def reference_step(kind, clip, large, t, prev_t, output, x_t, noise):
    """Return (x_prev, x_0) in float64: Ho et al. 2020, eq. 15 and 7 with the strided chain's alpha and beta."""
    alpha_bar = np.cumprod(1 - LINEAR)
    a, a_prev = alpha_bar[t], alpha_bar[prev_t] if prev_t >= 0 else 1.0
    alpha = a / a_prev
    output, x_t, noise = output.double(), x_t.double(), noise.double()
    x_0 = {
        "epsilon": (x_t - math.sqrt(1 - a) * output) / math.sqrt(a),
        "sample": output,
        "v_prediction": math.sqrt(a) * x_t - math.sqrt(1 - a) * output,
    }[kind]
    x_0 = x_0.clamp(-1, 1) if clip else x_0
    mean = (math.sqrt(a_prev) * (1 - alpha) * x_0 + math.sqrt(alpha) * (1 - a_prev) * x_t) / (1 - a)
    variance = (1 - alpha) if large else (1 - a_prev) / (1 - a) * (1 - alpha)
    return mean + (math.sqrt(variance) * noise if t > 0 else 0), x_0


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("clip", [False, True])
def test_steps_equal_a_float64_reference_for_any_inputs(kind, clip):
    """Independent random tensors are the hardest inputs: nothing cancels. float32 resolves x_0 to 1e-7 / signal.

    float64 samples are stepped in float64. float32 samples are stepped from float32 tables, as in diffusers, where
    1 - alpha_bar_t has a relative error of 2^-24 / (1 - alpha_bar_t), and so have the weights of eq. 7.
    """
    for large, steps in itertools.product((False, True), (1000, 50, 3)):
        ours = DDPMScheduler(
            prediction_type=kind, clip_sample=clip, variance_type="fixed_large" if large else "fixed_small"
        )
        ours.set_timesteps(steps)
        for t in some(ours.timesteps, 20):
            x_t, output = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
            got = ours.step(output, t, x_t, generator=seeded(t))
            noise = torch.randn(4, 3, 8, 8, generator=seeded(t))
            prev_t = int(ours.previous_timestep(t))
            prev, x_0 = reference_step(kind, clip, large, t, prev_t, output, x_t, noise)
            rounding = 2**-24 / (1 - ours.alpha_bar[max(t - 1, 0)].item())
            assert rounding < 1e-6 or t < 80
            close(got.prev_sample, prev, 1e-5 + 8 * rounding)
            close(got.pred_original_sample, x_0, 1e-5 + rounding + 1e-7 / ours.alpha_bar[t].sqrt().item())
            exact = ours.step(output.double(), t, x_t.double(), generator=seeded(t))
            doubles = torch.randn(4, 3, 8, 8, generator=seeded(t), dtype=torch.float64)
            prev, x_0 = reference_step(kind, clip, large, t, prev_t, output, x_t, doubles)
            close(exact.prev_sample, prev, 1e-9)
            close(exact.pred_original_sample, x_0, 1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_only_the_rounding_of_its_result(dtype):
    ours, resolution = DDPMScheduler(), torch.finfo(dtype).eps
    for t in (999, 500, 3, 1, 0):
        output, x_t = (x.to(dtype) for x in situation(ours, t))
        got = ours.step(output, t, x_t, generator=seeded(t))
        noise = torch.randn(x_t.shape, generator=seeded(t), dtype=dtype)
        prev, x_0 = reference_step("epsilon", True, False, t, t - 1, output, x_t, noise)
        assert got.prev_sample.dtype == got.pred_original_sample.dtype == dtype
        close(got.prev_sample, prev, resolution)
        close(got.pred_original_sample, x_0, resolution)


def test_a_half_precision_model_on_float32_samples_steps_in_float32():
    output, x_t = situation(DDPMScheduler(), 500)
    got = DDPMScheduler().step(output.bfloat16(), 500, x_t, seeded(5)).prev_sample
    noise = torch.randn(x_t.shape, generator=seeded(5), dtype=torch.bfloat16)
    assert got.dtype == torch.float32
    close(got, reference_step("epsilon", True, False, 500, 499, output.bfloat16(), x_t, noise)[0], 1e-5)


# Where diffusers gives NaN


def test_fixed_large_log_is_the_variance_of_fixed_large():
    for steps in (1000, 10):
        a, b = DDPMScheduler(variance_type="fixed_large_log"), DDPMScheduler(variance_type="fixed_large")
        a.set_timesteps(steps)
        b.set_timesteps(steps)
        output, x_t = situation(a, 500)
        close(a.step(output, 500, x_t, seeded()).prev_sample, b.step(output, 500, x_t, seeded()).prev_sample, 1e-9)


@pytest.mark.parametrize("bound", ["clipped", "thresholded"])
def test_epsilon_at_zero_snr_gives_the_limit_of_the_bounded_x0(bound):
    ours = DDPMScheduler(rescale_betas_zero_snr=True, **BOUNDS[bound])
    output, x_t = situation(ours, 999)
    output[0, 0] = x_t[0, 0]
    x_0 = ours.step(output, 999, x_t).pred_original_sample
    largest = 0.9 if bound == "clipped" else 1.0
    torch.testing.assert_close(x_0, largest * (x_t - output).sign(), atol=1e-6, rtol=0)


def test_epsilon_at_zero_snr_without_bound_is_an_error_there_and_nowhere_else():
    ours = DDPMScheduler(rescale_betas_zero_snr=True, clip_sample=False)
    output, x_t = situation(ours, 999)
    with pytest.raises(ConfigError, match="does not determine x_0"):
        ours.step(output, 999, x_t)
    with pytest.raises(ConfigError, match="does not determine x_0"):
        ours.predict_x0(output, 999, x_t)
    assert bool(ours.step(output, 998, x_t).prev_sample.isfinite().all())
    assert ours.snr(999) == 0


def test_negative_learned_variances_count_as_zero():
    ours = DDPMScheduler(variance_type="learned", prediction_type="sample")
    output = torch.cat([torch.zeros(1, 1, 2, 2), -torch.ones(1, 1, 2, 2)], dim=1)
    assert ours.step(output, 9, torch.zeros(1, 1, 2, 2)).prev_sample.abs().max() == 0


# Shapes, outputs, gradients


@pytest.mark.parametrize("bound", BOUNDS)
def test_points_in_the_plane_step_like_images(bound):
    ours = DDPMScheduler(**BOUNDS[bound])
    output, x_t = situation(ours, 300, shape=(6, 2))
    image = ours.step(output.view(6, 2, 1, 1), 300, x_t.view(6, 2, 1, 1), seeded())
    point = ours.step(output, 300, x_t, seeded())
    assert torch.equal(point.prev_sample, image.prev_sample.view(6, 2))
    assert torch.equal(point.pred_original_sample, image.pred_original_sample.view(6, 2))


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("bound", BOUNDS)
def test_a_step_leaves_its_inputs_alone_and_shares_no_memory_with_them(kind, bound):
    ours = DDPMScheduler(prediction_type=kind, **BOUNDS[bound])
    output, x_t = situation(ours, 300)
    kept = output.clone(), x_t.clone()
    for t in (300, 0):
        result = ours.step(output, t, x_t)
        assert torch.equal(output, kept[0])
        assert torch.equal(x_t, kept[1])
        assert len({x.data_ptr() for x in (output, x_t, *result)}) == 4


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
def test_gradients_through_a_step_equal_those_of_diffusers(kind, variance):
    ours, stock = (cls(prediction_type=kind, variance_type=variance) for cls in (DDPMScheduler, Stock))
    output, x_t = situation(stock, 300)
    gradients = []
    for scheduler in (ours, stock):
        inputs = output.clone().requires_grad_(), x_t.clone().requires_grad_()
        result = scheduler.step(inputs[0], 300, inputs[1], seeded())
        (result.prev_sample.square().sum() + result.pred_original_sample.sum()).backward()
        gradients.append([x.grad for x in inputs])
    for a, b in zip(*gradients, strict=True):
        close(a, b)


def test_the_output_reads_like_that_of_diffusers():
    output, x_t = situation(DDPMScheduler(), 0)
    ours, stock = DDPMScheduler().step(output, 0, x_t), Stock().step(output, 0, x_t)
    assert ours[0] is ours.prev_sample is ours["prev_sample"] is ours.to_tuple()[0]
    assert ours[1] is ours.pred_original_sample is ours["pred_original_sample"]
    assert list(ours.keys()) == list(stock.keys())
    assert [x.shape for x in dict(ours).values()] == [x.shape for x in stock.values()]
    assert ours[:1][0] is ours.prev_sample
    pair = DDPMScheduler().step(output, torch.tensor(0), x_t, return_dict=False)
    assert type(pair) is tuple
    assert torch.equal(pair[0], ours[0])
    assert DDPMScheduler().scale_model_input(x_t, 5) is x_t


def test_a_copied_scheduler_steps_alike():
    ours = DDPMScheduler()
    ours.set_timesteps(50)
    output, x_t = situation(ours, 500)
    expected = ours.step(output, 500, x_t, seeded()).prev_sample
    assert torch.equal(copy.deepcopy(ours).step(output, 500, x_t, seeded()).prev_sample, expected)


# Errors


@pytest.mark.parametrize("steps", [0, -1, 2.5, "5", True, 1001])
def test_the_number_of_steps_is_an_int_from_one_to_all(steps):
    with pytest.raises(ConfigError, match=r"num_inference_steps must be an int in \[1, 1000\], got "):
        DDPMScheduler().set_timesteps(steps)


@pytest.mark.parametrize("timesteps", [[1000, 5], [5, 5], [3, 7], [5, -1], []])
def test_custom_timesteps_descend_within_the_chain(timesteps):
    with pytest.raises(ConfigError, match=r"timesteps must descend within \[0, 999\]"):
        DDPMScheduler().set_timesteps(timesteps=timesteps)


def test_steps_and_timesteps_exclude_each_other():
    with pytest.raises(ConfigTypeError, match="and not both"):
        DDPMScheduler().set_timesteps(5, timesteps=[5, 0])
    with pytest.raises(ConfigTypeError, match="needs num_inference_steps or timesteps"):
        DDPMScheduler().set_timesteps()


def test_a_step_that_cannot_be_made_says_why():
    ours = DDPMScheduler(variance_type="learned_range")
    x_t = torch.zeros(4, 3, 8, 8)
    with pytest.raises(ConfigError, match="needs a model with 6 output channels"):
        ours.step(x_t, 5, x_t)
    ours = DDPMScheduler(steps_offset=1)
    ours.set_timesteps(50)
    with pytest.raises(ConfigError, match="timestep 0 is not in the chain of 50 timesteps from 981 to 1"):
        ours.step(x_t, 0, x_t)
    with pytest.raises(ConfigError, match="a list of 4, one per sample; got 3"):
        ours.step(x_t, 981, x_t, [seeded()] * 3)
    ours.set_timesteps(1000)
    with pytest.raises(ConfigError, match="timestep 1000 is beyond the last of 1000 betas"):
        ours.step(x_t, 1000, x_t)
    with pytest.raises(ConfigError, match=r"timestep must be in \[0, 999\], got 1000"):
        ours.add_noise(x_t, x_t, 1000)
