"""The benchmark of bits per dimension, short: its terms add up, and training brings them down."""

import math
from pathlib import Path

import torch

from hfgen import DDPMPipeline, UNet, VPSDEScheduler
from hfgen.data import load_dataset
from tests.benchmarks.diffusion_bits import fitted, judge

TINY = "--block-out-channels 8 16 --layers-per-block 1 --learning-rate 2e-3 --threads 1 --max-steps 150".split()


def test_a_short_training_needs_fewer_bits_than_pixels_drawn_evenly(tmp_path: Path) -> None:
    fields = [*TINY, "--num-train-timesteps", "50"]
    pipeline = DDPMPipeline.from_pretrained(fitted("DDPM, learned variance", "digits", tmp_path, fields))
    found = judge(pipeline, load_dataset("digits").tensor(8), 17)
    assert 0 <= found["prior"] < 0.01 and 0 < found["decoder"] < found["bound"]
    assert found["ODE"] < math.log2(17), found


def test_a_network_that_sees_no_noise_has_the_likelihood_of_one_gaussian() -> None:
    """With eps = 0 the flow only shrinks, x_T = x exp(-B / 2): the density is N(0, exp(B) I), B = B(1) - B(t_min)."""
    net = UNet(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    sde = VPSDEScheduler(num_train_timesteps=30, beta_end=0.1)
    images = load_dataset("digits").tensor(50)
    found = judge(DDPMPipeline(net.eval(), sde), images, 17)
    B = float(sde.rate.integral(torch.tensor([sde.t_min, 1.0], dtype=torch.float64)).diff())
    second = float(images.square().mean()) + 1 / (3 * 16**2)          # and the variance of the dequantisation
    nats = (math.log(2 * math.pi) + B + second * math.exp(-B)) / 2 - math.log(2 / 16)
    assert abs(found["ODE"] - nats / math.log(2)) < 2e-3
    assert found["bound"] > found["decoder"] + found["prior"] > 0
