"""The U-Net against diffusers' `UNet2DModel`: same outputs, gradients, keys and folders; bad values are refused."""

import json
import time

import pytest
import torch
from diffusers import UNet2DModel

from hfgen import DDPMPipeline, DDPMScheduler, UNet, VPSDEScheduler
from hfgen.errors import ConfigError
from hfgen.loading.old_names import rename_old_attention_keys
from hfgen.models.blocks import FREQUENCY_STD, SinusoidalFeatures, TableFeatures, as_timesteps

SMALL = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
}
PLAIN = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
RESNET = {
    "down_block_types": ("AttnDownBlock2D",) * 2,
    "up_block_types": ("AttnUpBlock2D",) * 2,
    "downsample_type": "resnet",
    "upsample_type": "resnet",
}
NCSNPP = {
    "sample_size": 16,
    "block_out_channels": (32, 32, 64),
    "norm_num_groups": None,
    "norm_eps": 1e-6,
    "mid_block_scale_factor": 2**0.5,
    "time_embedding_type": "fourier",
    "attention_head_dim": None,
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
}
VARIANTS = {
    "the small network": {},
    "one level": {
        "block_out_channels": (8,),
        "down_block_types": ("AttnDownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    },
    "four levels": {
        "sample_size": 16,
        "block_out_channels": (4, 8, 8, 12),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
    },
    "one channel": {"in_channels": 1, "out_channels": 1},
    "four channels in, six out": {"in_channels": 4, "out_channels": 6},
    "not square": {"sample_size": (4, 10)},
    "three layers, swish spelt loudly": {"layers_per_block": 3, "act_fn": "SWISH"},
    "mish": {"act_fn": "mish"},
    "gelu and no middle": {"act_fn": "gelu", "mid_block_type": None},
    "relu and a scaled middle": {"act_fn": "relu", "mid_block_scale_factor": 2.5},
    "one head": {"attention_head_dim": None},
    "heads that do not divide the channels": {"attention_head_dim": 5},
    "no attention anywhere": {**PLAIN, "add_attention": False},
    "attention groups of their own": {"attn_norm_num_groups": 2},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "scale and shift with attention groups": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8},
    "padding 0, centred, old names": {
        "downsample_padding": 0,
        "center_input_sample": True,
        "down_block_types": ("UNetResDownBlock2D", "UNetResAttnDownBlock2D"),
        "up_block_types": ("UNetResAttnUpBlock2D", "UNetResUpBlock2D"),
    },
    "resnet resampling": RESNET,
    "resnet resampling is for attention blocks only": {**RESNET, **PLAIN},
    "sine first, shifted": {"flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6},
    "odd number of time features": {"block_out_channels": (9, 18), "norm_num_groups": 3, "attention_head_dim": 3},
    "wide time embedding": {"time_embedding_dim": 20},
    "random Fourier": {"time_embedding_type": "fourier"},
    "NCSN++": NCSNPP,
    "NCSN++ with attention everywhere, heads, two layers, not square": {
        **NCSNPP,
        "sample_size": (8, 16),
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "down_block_types": ("AttnSkipDownBlock2D",) * 3,
        "up_block_types": ("AttnSkipUpBlock2D",) * 3,
    },
    "NCSN++ with scale and shift, classes, and timesteps as usual": {
        **NCSNPP,
        "time_embedding_type": "positional",
        "resnet_time_scale_shift": "scale_shift",
        "num_class_embeds": 10,
        "act_fn": "mish",
    },
    "NCSN++ in the fine levels only": {
        **NCSNPP,
        "norm_num_groups": 4,
        "down_block_types": ("SkipDownBlock2D", "AttnDownBlock2D", "SkipDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "SkipUpBlock2D", "SkipUpBlock2D"),
        "attention_head_dim": 16,
    },
    "NCSN++ in the last level only": {
        "in_channels": 2,
        "down_block_types": ("DownBlock2D", "SkipDownBlock2D"),
        "up_block_types": ("UpBlock2D", "SkipUpBlock2D"),
    },
    "NCSN++ of one level": {
        **NCSNPP, "block_out_channels": (8,), "down_block_types": ("SkipDownBlock2D",),
        "up_block_types": ("SkipUpBlock2D",),
    },
    "learned times": {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "classes": {"num_class_embeds": 10},
    "classes as times": {"class_embed_type": "timestep"},
    "classes as embeddings": {"class_embed_type": "identity"},
}


def pair(**changes):
    """Return stock's network and ours with the same weights, loaded strictly."""
    config = {**SMALL, **changes}
    theirs, ours = UNet2DModel(**config), UNet(**config)
    with torch.no_grad():
        for parameter in theirs.parameters():  # ones and zeros of a fresh normalisation would hide mistakes
            parameter.add_(0.2 * torch.randn_like(parameter) * (parameter.ndim == 1))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def inputs(net, batch=3):
    """Return a noisy batch, timesteps and labels that suit the network."""
    c = net.config
    size = c.sample_size if isinstance(c.sample_size, tuple) else (c.sample_size,) * 2
    x, t = torch.randn(batch, c.in_channels, *size), torch.tensor([1, 500, 999])[:batch]
    labels = {None: torch.tensor([0, 9, 4]), "timestep": torch.tensor([0, 9, 4]), "identity": torch.randn(3, 32)}
    conditional = c.class_embed_type or c.num_class_embeds
    return (x, t, labels[c.class_embed_type][:batch]) if conditional else (x, t)


@pytest.mark.parametrize("name", VARIANTS)
def test_output_keys_and_shapes_are_those_of_diffusers(name):
    theirs, ours = pair(**VARIANTS[name])
    args = inputs(theirs)
    with torch.no_grad():
        expected, found = theirs(*args).sample, ours(*args).sample
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert found.is_contiguous()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    trained = {k for k, p in theirs.named_parameters() if p.requires_grad}
    assert {k for k, p in ours.named_parameters() if p.requires_grad} == trained


@pytest.mark.parametrize("name", ["the small network", "scale and shift", "resnet resampling", "NCSN++"])
def test_gradients_are_those_of_diffusers_with_and_without_checkpointing(name):
    theirs, ours = pair(**VARIANTS[name])
    checkpointed = pair(**VARIANTS[name])[1]
    checkpointed.load_state_dict(theirs.state_dict())
    checkpointed.enable_gradient_checkpointing()
    assert checkpointed.is_gradient_checkpointing
    x, t = inputs(theirs)
    gradients = []
    for net in (theirs, ours, checkpointed):
        sample = x.clone().requires_grad_()
        net(sample, t).sample.square().mean().backward()
        gradients.append({"sample": sample.grad, **{k: p.grad for k, p in net.named_parameters()}})
    for found in gradients[1:]:
        for key, expected in gradients[0].items():
            if expected is None:                                       # frequencies are not trained
                assert found[key] is None
                continue
            torch.testing.assert_close(found[key], expected, atol=1e-5, rtol=0, msg=lambda m, key=key: f"{key}: {m}")


def test_a_published_configuration_gives_the_keys_of_diffusers():
    published = {  # of a U-Net for 32x32 images from the first days of diffusers, which says nothing of later keys
        "_class_name": "UNet2DModel",
        "_diffusers_version": "0.0.4",
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": [128, 256, 256, 256],
        "center_input_sample": False,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 32,
        "time_embedding_type": "positional",
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    }
    with torch.device("meta"):
        theirs, ours = UNet2DModel.from_config(published), UNet.from_config(published)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert ours.num_parameters() == 35746307


def test_defaults_and_configuration_keys_are_those_of_diffusers():
    import inspect

    def defaults(cls):
        return {k: p.default for k, p in inspect.signature(cls.__init__).parameters.items() if k != "self"}

    assert defaults(UNet) == defaults(UNet2DModel)


def test_a_saved_folder_is_a_stock_folder_and_the_other_way_round(tmp_path):
    theirs, ours = pair()
    x, t = inputs(ours)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["_class_name"] == "UNet2DModel"
    with torch.no_grad():
        in_stock = UNet2DModel.from_pretrained(tmp_path / "ours")(x, t).sample
        in_ours = UNet.from_pretrained(tmp_path / "theirs")(x, t).sample
        torch.testing.assert_close(in_stock, ours(x, t).sample, atol=1e-5, rtol=0)
        torch.testing.assert_close(in_ours, theirs(x, t).sample, atol=1e-5, rtol=0)


def with_old_names(state_dict):
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    renamed = {}
    for key, tensor in state_dict.items():
        for new, was in old.items():
            key = key.replace(new, was)
        renamed[key] = tensor
    return renamed


def test_old_attention_names_load(tmp_path):
    from safetensors.torch import save_file

    _, ours = pair()
    old = with_old_names(ours.state_dict())
    assert "mid_block.attentions.0.query.weight" in old
    renamed = rename_old_attention_keys(old)
    assert list(renamed) == list(ours.state_dict())
    assert all(torch.equal(renamed[key], tensor) for key, tensor in ours.state_dict().items())
    assert rename_old_attention_keys(renamed).keys() == renamed.keys()
    ours.save_config(tmp_path)
    save_file(old, tmp_path / "diffusion_pytorch_model.safetensors")
    loaded = UNet.from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in ours.state_dict().items())


@pytest.mark.parametrize("timestep", [7, torch.tensor(7), torch.tensor([7])])
def test_one_timestep_serves_the_whole_batch(timestep):
    theirs, ours = pair()
    x, _ = inputs(ours)
    with torch.no_grad():
        found = ours(x, timestep).sample
        torch.testing.assert_close(found, theirs(x, timestep).sample, atol=1e-5, rtol=0)
        torch.testing.assert_close(found, ours(x, torch.full((3,), 7)).sample, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["positional", "fourier"])
def test_timesteps_between_whole_numbers_count(kind):
    theirs, ours = pair(time_embedding_type=kind)
    x, _ = inputs(ours)
    with torch.no_grad():
        found = ours(x, 7.5).sample
        torch.testing.assert_close(found, theirs(x, torch.tensor(7.5)).sample, atol=1e-5, rtol=0)
        assert (found - ours(x, 7).sample).abs().max() > 1e-4


@pytest.mark.parametrize("scheduler", [DDPMScheduler(num_train_timesteps=20), VPSDEScheduler(num_train_timesteps=20)])
@pytest.mark.parametrize("time", [
    {"time_embedding_type": "fourier"}, {"time_embedding_type": "learned", "num_train_timesteps": 20},
])  # fmt: skip
def test_every_kind_of_time_features_samples_with_our_own_schedulers(scheduler, time):
    pipe = DDPMPipeline(UNet(**{**SMALL, **time}).eval(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    *_, images = pipe.states(2, num_steps=20)
    assert images.isfinite().all()


def test_random_fourier_features_are_those_of_stock_and_finite_at_time_0():
    theirs, ours = pair(time_embedding_type="fourier")
    x, _ = inputs(ours)
    with torch.no_grad():
        for t in (1e-3, 1.0, 80.0):
            stock = theirs(x, torch.tensor(t)).sample
            torch.testing.assert_close(ours(x, t).sample, stock, atol=1e-5 * max(1, 1 / t), rtol=0)
        assert theirs(x, torch.tensor(0)).sample.isnan().all()
        assert torch.equal(ours(x, 0).sample, ours(x, 1).sample)


def test_a_table_of_fourier_features_has_waves_of_a_gaussian_spectrum_also_between_its_rows():
    table = TableFeatures(1000, 512)
    table.use_fourier_features()
    assert not table.weight.requires_grad
    # E cos(2 pi w d) = exp(-2 pi^2 s^2 d^2) for w ~ N(0, s^2): the mean product of two rows at the distance d
    t = torch.arange(1000)
    rows = table(t)
    for distance in (0, 3, 10, 30, 300):
        products = (rows[distance:] * rows[: 1000 - distance]).mean(1) * 2
        expected = torch.tensor(-2 * (torch.pi * FREQUENCY_STD * distance / 1000) ** 2).exp()
        assert abs(float(products.mean() - expected)) < 4 * 256**-0.5
    # between rows the features are those of the frequencies that all rows have in common
    half = torch.tensor([0.5, 499.25, 998.75])
    waves = torch.complex(rows[:, :256], rows[:, 256:])
    step = (waves[1:] * waves[:-1].conj()).mean(0).angle()
    exact = torch.exp(1j * half[:, None] * step)
    torch.testing.assert_close(table(half), torch.cat([exact.real, exact.imag], 1), atol=0.03, rtol=0)
    torch.testing.assert_close(table(torch.tensor([0.0, 7.0, 999.0])), rows[[0, 7, 999]], atol=0, rtol=0)


def test_labels_and_one_timestep_broadcast():
    theirs, ours = pair(num_class_embeds=10)
    x, _, labels = inputs(ours)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, 3, labels).sample, theirs(x, 3, labels).sample, atol=1e-5, rtol=0)


def test_the_answer_is_a_tuple_on_request():
    _, ours = pair()
    x, t = inputs(ours)
    with torch.no_grad():
        assert torch.equal(ours(x, t, return_dict=False)[0], ours(x, t).sample)


def test_dropout_acts_in_training_only():
    _, ours = pair(dropout=0.5)
    x, t = inputs(ours)
    with torch.no_grad():
        assert torch.equal(ours.eval()(x, t).sample, ours(x, t).sample)
        assert (ours.train()(x, t).sample - ours(x, t).sample).abs().max() > 1e-3


def test_time_features_keep_float32_in_a_bfloat16_network():
    features = SinusoidalFeatures(32).to(torch.bfloat16)(torch.tensor([998, 999]))
    assert features.dtype == torch.float32
    assert (features[0] - features[1]).abs().max() > 0.1
    t = torch.tensor([998.0, 999.0], dtype=torch.float64)
    exact = torch.cat([(t[:, None] * 10000 ** (-torch.arange(16) / 16.0).double()).cos()], dim=1)
    torch.testing.assert_close(features[:, :16].double(), exact, atol=2e-4, rtol=0)


def test_a_bfloat16_network_is_close_to_the_float32_one():
    _, ours = pair()
    x, t = inputs(ours)
    with torch.no_grad():
        expected = ours(x, t).sample
        found = ours.to(torch.bfloat16)(x.bfloat16(), t).sample
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0)


def test_autocast_is_close_to_float32_and_differentiable():
    theirs, ours = pair()
    x, t = inputs(ours)
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(x, t).sample
    found.float().square().mean().backward()
    torch.testing.assert_close(found.float(), theirs(x, t).sample, atol=0.1, rtol=0)
    assert all(p.grad.isfinite().all() for p in ours.parameters())


def test_features_of_timesteps_are_one_row_or_one_a_sample():
    cpu = torch.device("cpu")
    assert as_timesteps(3, cpu).tolist() == [3]
    assert as_timesteps(torch.tensor(3.5), cpu).tolist() == [3.5]
    assert as_timesteps(torch.tensor([1, 2]), cpu).tolist() == [1, 2]


BAD = [
    ("down_block_types", ("KDownBlock2D", "AttnDownBlock2D")),
    ("down_block_types", ("DownBlock2D",)),
    ("up_block_types", ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")),
    ("up_block_types", ("DownBlock2D", "UpBlock2D")),
    ("mid_block_type", "UNetMidBlock2DCrossAttn"),
    ("resnet_time_scale_shift", "spatial"),
    ("time_embedding_type", "sinusoidal"),
    ("num_train_timesteps", None),
    ("class_embed_type", "projection"),
    ("downsample_type", "fir"),
    ("upsample_type", None),
    ("downsample_padding", 2),
    ("act_fn", "tanh"),
    ("act_fn", None),
    ("center_input_sample", 1),
    ("in_channels", 0),
    ("in_channels", 3.0),
    ("out_channels", -1),
    ("out_channels", True),
    ("layers_per_block", 0),
    ("layers_per_block", 10**9),
    ("layers_per_block", "2"),
    ("block_out_channels", ()),
    ("block_out_channels", 8),
    ("block_out_channels", (8, 10)),
    ("block_out_channels", (8, -16)),
    ("block_out_channels", (8, 4 * 10**12)),
    ("norm_num_groups", None),
    ("norm_num_groups", 3),
    ("attn_norm_num_groups", 3),
    ("attention_head_dim", 32),
    ("attention_head_dim", 0),
    ("norm_eps", float("nan")),
    ("norm_eps", -1e-5),
    ("dropout", 1.5),
    ("mid_block_scale_factor", 0),
    ("mid_block_scale_factor", float("inf")),
    ("freq_shift", 4),
    ("freq_shift", "1"),
    ("time_embedding_dim", 0),
    ("num_class_embeds", -1),
    ("sample_size", 7),
    ("sample_size", (8, 8, 8)),
    ("sample_size", "8"),
]


@pytest.mark.parametrize(("field", "value"), BAD, ids=lambda v: str(v)[:40])
def test_a_bad_value_is_refused_by_name(field, value):
    config = {**SMALL, "time_embedding_type": "learned" if field == "num_train_timesteps" else "positional"}
    with pytest.raises(ConfigError) as caught:
        UNet(**{**config, field: value})
    named = "block_out_channels" if (field, value) == ("norm_num_groups", 3) else field
    assert str(caught.value).startswith(named)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("in_channels", {"in_channels": 1}),
        ("out_channels", {"out_channels": 1}),
        ("norm_num_groups", {"down_block_types": ("SkipDownBlock2D",) * 2 + ("DownBlock2D",)}),
        ("down_block_types", {"down_block_types": ("DownBlock2D", "SkipDownBlock2D", "SkipDownBlock2D")}),
        ("up_block_types", {"up_block_types": ("SkipUpBlock2D", "UpBlock2D", "SkipUpBlock2D")}),
        ("block_out_channels", {"block_out_channels": (32, 36, 64)}),
        ("block_out_channels", {"block_out_channels": (3, 32, 64)}),
        ("block_out_channels", {"block_out_channels": (8, 32, 32)}),
        ("block_out_channels", {"block_out_channels": (12, 34, 64), "down_block_types": ("SkipDownBlock2D",) * 3,
                                "up_block_types": ("SkipUpBlock2D",) * 3}),
    ],
)  # fmt: skip
def test_an_ncsnpp_whose_image_or_groups_do_not_fit_is_refused_by_name(field, changes):
    with pytest.raises(ConfigError) as caught:
        UNet(**{**NCSNPP, **changes})
    assert str(caught.value).startswith(field)


def test_the_published_configuration_of_ncsnpp_gives_the_keys_of_diffusers():
    published = {  # of the score SDE for 1024x1024 faces, which says nothing of later keys
        "_class_name": "UNet2DModel", "_diffusers_version": "0.2.1", "act_fn": "silu", "attention_head_dim": None,
        "block_out_channels": [16, 32, 64, 128, 256, 512, 512, 512], "center_input_sample": False,
        "down_block_types": ["SkipDownBlock2D"] * 6 + ["AttnSkipDownBlock2D", "SkipDownBlock2D"],
        "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 3, "layers_per_block": 1,
        "mid_block_scale_factor": 1.4142135623730951, "norm_eps": 1e-06, "norm_num_groups": None, "out_channels": 3,
        "sample_size": 1024, "time_embedding_type": "fourier",
        "up_block_types": ["SkipUpBlock2D", "AttnSkipUpBlock2D"] + ["SkipUpBlock2D"] * 6,
    }  # fmt: skip
    with torch.device("meta"):
        theirs, ours = UNet2DModel.from_config(published), UNet.from_config(published)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def test_smoothed_resampling_is_the_filter_of_the_paper_between_zeros():
    from hfgen.models.ncsnpp import smooth_double, smooth_halve

    x, taps = torch.randn(2, 3, 6, 8, dtype=torch.float64), torch.tensor([1.0, 3.0, 3.0, 1.0]).double() / 8
    kernel = torch.outer(taps, taps).expand(3, 1, 4, 4)
    halved = torch.nn.functional.conv2d(x, kernel, stride=2, padding=1, groups=3)
    doubled = torch.nn.functional.conv_transpose2d(x, 4 * kernel, stride=2, padding=1, groups=3)
    torch.testing.assert_close(smooth_halve(x), halved, atol=1e-12, rtol=0)
    torch.testing.assert_close(smooth_double(x), doubled, atol=1e-12, rtol=0)


def test_a_size_that_cannot_be_halved_is_refused_with_the_nearest_ones():
    net = UNet(**{**SMALL, **VARIANTS["four levels"]})
    with pytest.raises(ConfigError, match="got 28x9; the nearest valid sizes are 24x8 and 32x16"):
        net(torch.zeros(1, 3, 28, 9), 0)
    with pytest.raises(ConfigError, match=r"sample_size .* nearest valid sizes are 8x8$"):
        UNet(**{**SMALL, **VARIANTS["four levels"], "sample_size": 1})


def test_labels_and_text_are_asked_for_or_refused():
    _, plain = pair()
    _, conditional = pair(num_class_embeds=10)
    x, t = inputs(plain)
    with pytest.raises(ConfigError, match="class_labels must be None"):
        plain(x, t, torch.tensor([1, 2, 3]))
    with pytest.raises(ConfigError, match="class_labels must be given"):
        conditional(x, t)
    with pytest.raises(ConfigError, match="encoder_hidden_states must be None"):
        plain(x, t, encoder_hidden_states=torch.zeros(3, 4, 8))


def test_parameters_of_a_monstrous_network_are_counted_without_allocating():
    start = time.process_time()
    with torch.device("meta"):
        net = UNet(block_out_channels=(2**16,) * 4, layers_per_block=16)
    assert net.num_parameters() > 10**12
    assert time.process_time() - start < 2.0
