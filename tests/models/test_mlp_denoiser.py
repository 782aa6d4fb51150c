"""The noise predictor for points in the plane: its call, its configuration and that it learns the known optimum."""

import json

import pytest
import torch

from hfgen import MLPDenoiser
from hfgen.errors import ConfigError


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_prediction_has_the_shape_of_the_sample(dim):
    net = MLPDenoiser(dim=dim, hidden=16, layers=2, data_mean=[0.0] * dim)
    x = torch.randn(7, dim)
    assert net(x, 3).sample.shape == net(x, torch.arange(7), return_dict=False)[0].shape == x.shape


def test_points_do_not_see_each_other():
    net, order = MLPDenoiser(hidden=16, layers=2), torch.tensor([3, 0, 4, 1, 2])
    x, t = torch.randn(5, 2), torch.tensor([0, 10, 500, 998, 999])
    with torch.no_grad():
        together = net(x, t).sample
        torch.testing.assert_close(net(x[order], t[order]).sample, together[order], atol=1e-6, rtol=0)
        alone = torch.cat([net(x[i : i + 1], t[i].item()).sample for i in range(5)])
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=0)


def test_time_counts_between_whole_numbers_and_up_to_the_last():
    net, x = MLPDenoiser(hidden=16, layers=2), torch.randn(4, 2)
    with torch.no_grad():
        whole, between, last = (net(x, t).sample for t in (998, torch.tensor(998.5), 999.0))
    assert (whole - between).abs().max() > 1e-4
    assert (whole - last).abs().max() > 1e-4


def test_a_conditional_network_depends_on_the_label_and_asks_for_it():
    net, x = MLPDenoiser(hidden=16, layers=2, num_class_embeds=3), torch.randn(4, 2)
    with torch.no_grad():
        a, b = (net(x, 5, torch.full((4,), k)).sample for k in (0, 2))
    assert (a - b).abs().max() > 1e-3
    with pytest.raises(ConfigError, match="class_labels must be given"):
        net(x, 5)
    with pytest.raises(ConfigError, match="class_labels must be None"):
        MLPDenoiser(hidden=16)(x, 5, torch.zeros(4, dtype=torch.long))
    with pytest.raises(ConfigError, match="encoder_hidden_states must be None"):
        MLPDenoiser(hidden=16)(x, 5, encoder_hidden_states=x)


def test_the_saved_folder_gives_the_same_network(tmp_path):
    net, x = MLPDenoiser(hidden=16, layers=2, data_mean=(1.0, -2.0), data_std=[0.5, 3.0]), torch.randn(4, 2)
    net.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["_class_name"] == "MLPDenoiser"
    assert "in_channels" not in saved
    loaded = MLPDenoiser.from_pretrained(tmp_path)
    assert (loaded.config.in_channels, loaded.config.sample_size) == (2, None)
    assert (list(loaded.config.data_mean), loaded.config.data_std) == ([1.0, -2.0], [0.5, 3.0])
    with torch.no_grad():
        assert torch.equal(loaded(x, 5).sample, net(x, 5).sample)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dim", 0),
        ("hidden", 12.0),
        ("layers", 10**9),
        ("time_embedding_dim", True),
        ("num_class_embeds", 0),
        ("data_mean", [0.0]),
        ("data_mean", [0.0, float("nan")]),
        ("data_std", 0.0),
        ("data_std", [1.0, -1.0]),
    ],
)
def test_a_bad_value_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"^{field} must be"):
        MLPDenoiser(**{field: value})


MEANS, SPREAD = torch.tensor([[1.5, 0.5], [-1.0, -0.5]]), 0.3


def noisy_mixture(count, alpha_bar):
    """Return (t, x_t, eps) for points of two Gaussians of equal weight."""
    t = torch.randint(0, len(alpha_bar), (count,))
    x_0 = MEANS[torch.randint(0, 2, (count,))] + SPREAD * torch.randn(count, 2)
    eps, a = torch.randn(count, 2), alpha_bar[t][:, None]
    return t, a.sqrt() * x_0 + (1 - a).sqrt() * eps, eps


def best_prediction(x_t, a):
    """Return E[eps | x_t] of the mixture: posterior weights times each Gaussian's linear regression."""
    variance = a * SPREAD**2 + 1 - a                                                    # (B, 1)
    offset = x_t[:, None] - a.sqrt()[:, None] * MEANS                                   # (B, 2, 2)
    weights = (-offset.square().sum(-1) / (2 * variance)).softmax(dim=1)[..., None]     # (B, 2, 1)
    return (1 - a).sqrt() / variance * (weights * offset).sum(1)


def test_training_reaches_the_loss_of_the_exact_denoiser():
    alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)
    net = MLPDenoiser(hidden=64, layers=2, time_embedding_dim=32)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    steps = 400
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)
    for _ in range(steps):
        t, x_t, eps = noisy_mixture(1024, alpha_bar)
        loss = (net(x_t, t).sample - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    t, x_t, eps = noisy_mixture(20000, alpha_bar)
    exact = best_prediction(x_t, alpha_bar[t][:, None])
    with torch.no_grad():
        found = net(x_t, t).sample
    optimum, reached = (exact - eps).square().mean(), (found - eps).square().mean()
    assert reached < 1.02 * optimum
    assert (found - exact).square().mean() < 0.02 * optimum
