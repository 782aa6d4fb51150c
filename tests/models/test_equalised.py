"""Layers with an equalised learning rate and pixel normalisation against their equations."""

import math

import torch
import torch.nn.functional as F

from hfgen.models.equalised import EqualisedConv2d, EqualisedLinear, PixelNorm


def test_an_equalised_layer_is_the_plain_layer_with_scaled_weights() -> None:
    torch.manual_seed(0)
    linear, conv = EqualisedLinear(12, 5), EqualisedConv2d(3, 4, 3, gain=1.0)
    torch.nn.init.normal_(linear.bias), torch.nn.init.normal_(conv.bias)
    x, image = torch.randn(7, 12), torch.randn(2, 3, 5, 6)
    expected = F.linear(x, linear.weight * math.sqrt(2 / 12), linear.bias)
    torch.testing.assert_close(linear(x), expected, atol=1e-6, rtol=0)
    expected = F.conv2d(image, conv.weight * math.sqrt(1 / 27), conv.bias, padding=1)
    torch.testing.assert_close(conv(image), expected, atol=1e-6, rtol=0)


def test_layers_of_any_size_start_from_unit_weights_and_keep_the_variance() -> None:
    torch.manual_seed(0)
    for inputs in (16, 512):
        layer = EqualisedConv2d(inputs, 256, 3, gain=1.0)
        assert abs(float(layer.weight.detach().std()) - 1) < 0.02 and not layer.bias.any()
        out = layer(torch.randn(4, inputs, 12, 12))[:, :, 1:-1, 1:-1]
        assert abs(float(out.detach().std()) - 1) < 0.1


def test_one_step_of_adam_moves_layers_of_any_size_by_the_same_share_of_their_weights() -> None:
    torch.manual_seed(0)
    moved = []
    for inputs in (8, 2048):
        layer = EqualisedLinear(inputs, 64)
        before = layer.scale * layer.weight.detach().clone()
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
        layer(torch.randn(32, inputs)).square().sum().backward()
        optimizer.step()
        moved.append(float((layer.scale * layer.weight.detach() - before).norm() / before.norm()))
    assert abs(moved[0] / moved[1] - 1) < 0.05 and abs(moved[0] - 0.01) < 0.001


def test_pixel_norm_divides_each_pixel_by_the_root_of_its_mean_square() -> None:
    h = torch.randn(2, 5, 3, 4)
    out = PixelNorm()(h)
    for b, y, x in ((0, 0, 0), (1, 2, 3)):
        expected = h[b, :, y, x] / math.sqrt(float(h[b, :, y, x].square().mean()) + 1e-8)
        torch.testing.assert_close(out[b, :, y, x], expected, atol=1e-6, rtol=0)
    z = torch.randn(3, 6)
    torch.testing.assert_close(PixelNorm()(z).square().mean(1), torch.ones(3), atol=1e-5, rtol=0)
