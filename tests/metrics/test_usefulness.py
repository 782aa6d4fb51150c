"""Usefulness, coverage and cost on tiny real parts."""

import json
import math

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import nn

from hfgen.data import load_dataset
from hfgen.errors import ConfigError
from hfgen.metrics.cost import (
    Evaluations,
    TrainingCost,
    networks_of,
    sampling_cost,
    training_cost,
)
from hfgen.metrics.modes import label_report, toy_report
from hfgen.metrics.usefulness import (
    Training,
    augmentation_gain,
    classifier_accuracy_score,
    few_per_class,
    train_classifier,
)

QUICK = Training(steps=60, batch_size=32, learning_rate=5e-3, width=4, seeds=1)


def digits() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    data = load_dataset("digits")
    x, y = data.tensor(), data.labels()
    return (x[:1200], y[:1200]), (x[1200:], y[1200:])


def test_real_images_in_the_place_of_synthetic_ones_score_the_same_and_wrong_labels_score_chance() -> None:
    train, test = digits()
    same = classifier_accuracy_score(train, train, test, 10, QUICK)
    assert same.real == same.other and same.gain == (0.0, 0.0, 0.0)
    assert same.real[0] > 0.7 and same.real[1] < same.real[0] < same.real[2] and same.images == 1200
    shuffled = (train[0], train[1][torch.randperm(1200)])
    wrong = classifier_accuracy_score(shuffled, train, test, 10, QUICK)
    assert wrong.other[0] < 0.35 and wrong.gain[2] < -0.3
    assert wrong.gain[0] == pytest.approx(wrong.other[0] - wrong.real[0], abs=1e-12)


def test_good_synthetic_images_help_where_real_ones_are_few() -> None:
    train, test = digits()
    few = augmentation_gain(train, train, test, 10, (2, 500), QUICK)
    assert few[2].images == 20 and few[500].images == 1200
    assert few[2].gain[1] > 0                                                    # the interval is above 0
    assert few[2].real[0] < few[500].real[0]


def test_a_classifier_is_a_function_of_the_seed_and_leaves_the_global_generator_alone() -> None:
    train, _ = digits()
    before = torch.random.get_rng_state()
    first, again, other = (train_classifier([train], 10, QUICK, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["linear_out.weight"], other["linear_out.weight"])


def test_few_images_of_each_class_are_chosen_within_more_of_them() -> None:
    (x, y), _ = digits()
    numbered = torch.arange(1200).float()[:, None, None, None].expand_as(x)
    small, large = few_per_class((numbered, y), 3), few_per_class((numbered, y), 7)
    assert small[1].bincount().tolist() == [3] * 10 and large[1].bincount().tolist() == [7] * 10
    chosen = [set(images[:, 0, 0, 0].long().tolist()) for images, _ in (small, large)]
    assert chosen[0] < chosen[1]
    assert torch.equal(y[small[0][:, 0, 0, 0].long()], small[1])


def test_labelled_images_that_do_not_fit_are_refused() -> None:
    train, test = digits()
    with pytest.raises(ConfigError, match=r"one shape \(1, 8, 8\)"):
        classifier_accuracy_score((train[0][:, :, :7], train[1]), train, test, 10, QUICK)


def test_a_planted_missing_class_is_found_by_coverage_and_kl() -> None:
    (_, y), _ = digits()
    found = label_report(y[y != 3], 10, y)
    assert (found.covered, found.modes, found.missing) == (9, 10, [3])
    share = float((y == 3).double().mean())
    assert found.kl == pytest.approx(-math.log(1 - share), abs=1e-9)
    assert found.kl > 10 * found.kl_floor
    fair = label_report(y[torch.randint(1200, (1200,))], 10, y)
    assert fair.covered == 10 and fair.kl < 4 * fair.kl_floor
    with pytest.raises(ConfigError, match=r"labels must be in \[0, 9\]"):
        label_report(torch.tensor([10]), 10)


def test_a_planted_missing_mode_is_found_by_modes_and_high_quality_is_that_of_real_points() -> None:
    ring = load_dataset("ring8")
    points = ring.sample(2000, 1)
    whole = toy_report(points, ring.modes, ring.sigma, ring.sample(2000, 2))
    assert (whole.covered, whole.modes, whole.missing) == (8, 8, [])
    assert whole.high_quality == pytest.approx(whole.high_quality_floor, abs=0.01)
    kept = points[(points - ring.modes[5]).norm(dim=1) > 0.3]
    found = toy_report(kept, ring.modes, ring.sigma)
    assert (found.covered, found.missing) == (7, [5])
    assert found.kl == pytest.approx(math.log(8 / 7), abs=0.01)
    assert found.high_quality_floor == pytest.approx(0.98889, abs=1e-5)


def stock() -> DDPMPipeline:
    net = UNet2DModel(8, 1, 1, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
                      down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))  # fmt: skip
    pipe = DDPMPipeline(net, DDPMScheduler(num_train_timesteps=20))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_stock_pipeline_costs_one_evaluation_a_step_and_its_parameters() -> None:
    pipe = stock()
    found = sampling_cost(lambda n: pipe(n, num_inference_steps=5), networks_of(pipe), images=4, repeats=1)
    assert found.evaluations == {"unet": 5.0}
    assert found.parameters == {"unet": pipe.unet.num_parameters()}
    assert found.seconds > 0 and found.device == "cpu" and found.images == 4


@pytest.mark.parametrize("held_free", [False, True])
def test_peak_memory_sees_a_block_that_is_held_for_a_moment(held_free: bool) -> None:
    net = nn.Linear(4, 4)
    if held_free:
        pinned = [torch.ones(25_000) for _ in range(2500)][-1]                   # 250 MB, all but the last freed again
        assert len(pinned)

    def make(n: int) -> torch.Tensor:
        block = torch.ones(40 * 2**20)                                          # 160 MiB
        for _ in range(20):
            block.add_(1)
        return net(block[: 4 * n].view(n, 4))

    found = sampling_cost(make, {"net": net}, images=2, repeats=1)
    assert 150 * 2**20 < found.peak_bytes < 400 * 2**20
    assert found.evaluations == {"net": 1.0} and "weights" in found.peak_of


def test_guidance_counts_twice_and_a_network_whose_decoder_alone_is_called_counts_the_decoder() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(2, 2), nn.Linear(2, 2)

    pair, guided, idle = Pair(), nn.Linear(2, 2), nn.Linear(2, 2)
    with Evaluations({"pair": pair, "guided": guided, "idle": idle}) as counted:
        pair.decoder(torch.zeros(6, 2))
        for _ in range(3):
            guided(input=torch.zeros(12, 2))
    assert counted.items == {"pair": 6, "guided": 36, "idle": 0}
    pair.decoder(torch.zeros(6, 2))
    assert counted.items["pair"] == 6


def test_training_cost_is_read_from_the_run_folder_or_from_the_model_in_it(tmp_path) -> None:
    (tmp_path / "model").mkdir()
    assert training_cost(tmp_path / "model") == TrainingCost() == training_cost("owner/name")
    (tmp_path / "config.yaml").write_text("batch_size: 64\nbudget: 3m\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 50, "loss": 1}\n{"step": 100, "loss": 1}\n{"step": 150, "l')
    assert training_cost(tmp_path) == TrainingCost(100, None, None, None, 64, "3m")
    record = {"step": 120, "seconds": 7.5, "hardware": {"device": "cpu"}, "parameters": {"unet": 5}, "recipe": "ddpm"}
    (tmp_path / "run.json").write_text(json.dumps(record))
    expected = TrainingCost(120, 7.5, {"device": "cpu"}, {"unet": 5}, 64, "3m")
    assert training_cost(tmp_path / "model") == expected == training_cost(str(tmp_path))
    (tmp_path / "config.yaml").write_text("batch_size: 64\nautoencoder: runs/latents\n")
    assert training_cost(tmp_path).autoencoder == "runs/latents"
