"""BigGAN's parts against their equations: conditional normalisation, self-attention, projection, orthogonal filters."""

from typing import Any

import pytest
import torch
from torch import nn

from hfgen import BigGANDiscriminator, BigGANGenerator
from hfgen.errors import ConfigError
from hfgen.models.biggan import ConditionalNorm, SelfAttention, chunks_of

SMALL: dict[str, Any] = {"resolution": 16, "channels": 1, "width": 4, "attention_size": 8}
LATENT: dict[str, Any] = {**SMALL, "latent_dim": 7, "embedding_dim": 5}


@pytest.mark.parametrize(
    ("resolution", "base", "attention"),
    [(16, 4, 8), (28, 4, 14), (32, 4, 16), (64, 4, 32), ((16, 48), 4, 8), ((32, 64), 4, 16), (8, 2, 4), (8, 4, 0)],
    ids=str,
)
def test_images_and_logits_have_their_shapes_at_every_resolution_that_a_dcgan_has(
    resolution: Any, base: int, attention: int
) -> None:
    size: dict[str, Any] = {"resolution": resolution, "width": 4, "base_size": base, "attention_size": attention}
    G, D = BigGANGenerator(**size, latent_dim=9), BigGANDiscriminator(**size)
    x = G(torch.randn(2, 9)).sample
    sides = (resolution, resolution) if isinstance(resolution, int) else resolution
    assert x.shape == (2, 3, *sides) and x.abs().max() <= 1
    assert D(x).logits.shape == (2,)
    assert sum(isinstance(part, SelfAttention) for net in (G, D) for part in net.modules()) == 2 * bool(attention)


def test_channels_are_those_of_the_paper_at_128_pixels() -> None:
    size: dict[str, Any] = {"resolution": 128, "width": 2, "attention_size": 64}
    G, D = BigGANGenerator(**size), BigGANDiscriminator(**size)
    assert [block.conv_1.out_channels for block in G.blocks] == [32, 16, 8, 4, 2]  # type: ignore[union-attr]
    assert G.blocks[0].conv_1.in_channels == 32  # type: ignore[union-attr]
    assert [block.conv_1.out_channels for block in D.blocks] == [2, 4, 8, 16, 32, 32]  # type: ignore[union-attr]
    places = [[isinstance(b.attention, SelfAttention) for b in net.blocks] for net in (G, D)]  # type: ignore[union-attr]
    assert places == [[False, False, False, True, False], [True, False, False, False, False, False]]


def test_the_norm_of_a_block_has_a_gain_and_a_bias_that_are_linear_in_the_condition() -> None:
    torch.manual_seed(0)
    norm, h, c = ConditionalNorm(3, 4, "batch"), torch.randn(5, 3, 2, 2) * 3 + 1, torch.randn(5, 4)
    norm.gain.eval(), norm.bias.eval()
    out = norm(h, c)
    for b in range(5):
        for i in range(3):
            plane = (h[b, i] - h[:, i].mean()) / (h[:, i].var(unbiased=False) + 1e-5).sqrt()
            expected = (1 + norm.gain.weight[i] @ c[b]) * plane + norm.bias.weight[i] @ c[b]
            torch.testing.assert_close(out[b, i], expected, atol=1e-5, rtol=0)


def test_self_attention_is_the_sum_over_places_that_the_equation_states_and_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    layer, h = SelfAttention(8).eval(), torch.randn(2, 8, 4, 6)
    assert torch.equal(layer(h), h)
    layer.gamma.data.fill_(0.7)
    out = layer(h)

    def at(conv: Any, vector: torch.Tensor) -> torch.Tensor:
        return conv.weight[:, :, 0, 0] @ vector + conv.bias

    def largest(conv: Any, b: int, i: int, j: int) -> torch.Tensor:
        square = [at(conv, h[b, :, 2 * i + p, 2 * j + q]) for p in (0, 1) for q in (0, 1)]
        return torch.stack(square).amax(0)

    for b, y, x in ((0, 0, 0), (1, 3, 5), (0, 2, 3)):
        places = [(i, j) for i in range(2) for j in range(3)]
        query = at(layer.query, h[b, :, y, x])
        scores = torch.stack([largest(layer.key, b, i, j) @ query for i, j in places])
        beta = scores.exp() / scores.exp().sum()
        attended = torch.stack([w * largest(layer.value, b, i, j) for w, (i, j) in zip(beta, places, strict=True)])
        expected = h[b, :, y, x] + 0.7 * at(layer.out, attended.sum(0))
        torch.testing.assert_close(out[b, :, y, x], expected, atol=1e-5, rtol=0)


def test_the_logit_is_a_linear_layer_and_the_inner_product_with_the_vector_of_the_class() -> None:
    torch.manual_seed(0)
    D = BigGANDiscriminator(**SMALL, num_classes=3).eval()
    x, labels = torch.randn(4, 1, 16, 16), torch.tensor([2, 0, 1, 2])
    logits = D(x, labels).logits
    h = x
    for block in D.blocks:
        h = block(h)
    for b in range(4):
        phi = h[b].clamp(min=0).sum((1, 2))
        expected = D.head.weight[0] @ phi + D.head.bias[0] + D.classes.weight[labels[b]] @ phi
        torch.testing.assert_close(logits[b], expected, atol=1e-4, rtol=1e-5)


def test_each_block_is_conditioned_on_its_own_chunk_and_on_one_embedding_that_all_blocks_share() -> None:
    torch.manual_seed(0)
    G = BigGANGenerator(**LATENT, num_classes=3).eval()
    assert chunks_of(7, 3) == [3, 2, 2] and chunks_of(120, 6) == [20] * 6
    seen: list[torch.Tensor] = []
    for block in G.blocks:
        block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    z, labels = torch.randn(2, 7), torch.tensor([2, 1])
    G(z, labels)
    shared = G.embedding.weight[labels]
    assert torch.equal(seen[0], torch.cat([z[:, 3:5], shared], 1))
    assert torch.equal(seen[1], torch.cat([z[:, 5:], shared], 1))
    alone = BigGANGenerator(**LATENT).eval()
    assert not hasattr(alone, "embedding") and alone(z).sample.shape == (2, 1, 16, 16)


def test_every_layer_has_spectral_norm_1_and_rows_or_columns_at_right_angles_at_first() -> None:
    torch.manual_seed(0)
    for net in (BigGANGenerator(**LATENT, num_classes=3), BigGANDiscriminator(**SMALL, num_classes=3)):
        layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        assert len(layers) >= 14
        for layer in layers:
            W = layer.weight.detach().flatten(1)
            assert hasattr(layer, "parametrizations") and float(torch.linalg.matrix_norm(W, 2)) < 1.01
            small = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
            torch.testing.assert_close(small, torch.eye(len(small)), atol=0.02, rtol=0)


def test_only_batch_norm_mixes_the_samples_of_a_batch() -> None:
    torch.manual_seed(0)
    z, x = torch.randn(6, 7), torch.randn(6, 1, 16, 16)
    for norm in ("batch", "layer", "none"):
        G: Any = BigGANGenerator(**LATENT, norm=norm)  # type: ignore[arg-type]
        for layer in G.modules():
            layer.training = isinstance(layer, nn.BatchNorm2d)
        assert torch.allclose(G(z)[0][:2], G(z[:2])[0], atol=1e-5) == (norm != "batch")
    D = BigGANDiscriminator(**SMALL).eval()
    torch.testing.assert_close(D(x)[0][:2], D(x[:2])[0], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [("width", 0), ("latent_dim", 2), ("norm", "spectral"), ("num_classes", 0), ("attention_size", 4),
     ("attention_size", 16), ("attention_size", -1), ("embedding_dim", 0), ("resolution", 18)],
)  # fmt: skip
def test_a_bad_setting_is_an_error_that_names_the_field(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        BigGANGenerator(**{**LATENT, field: value})


def test_classes_are_given_exactly_if_the_networks_have_them() -> None:
    G, D = BigGANGenerator(**LATENT, num_classes=3), BigGANDiscriminator(**SMALL)
    with pytest.raises(ConfigError, match="class_labels must be given"):
        G(torch.randn(2, 7))
    with pytest.raises(ConfigError, match="class_labels must be None"):
        D(torch.randn(2, 1, 16, 16), torch.tensor([0, 1]))
    with pytest.raises(ConfigError, match=r"x must have shape \(B, 1, 16, 16\)"):
        D(torch.randn(2, 1, 8, 8))


def test_the_matrix_of_the_first_layer_acts_on_z_as_the_layers_do() -> None:
    torch.manual_seed(0)
    G: Any = BigGANGenerator(**LATENT, num_classes=2).eval()
    z = torch.randn(7)
    expected = [G.project.weight @ z[:3]]
    for block, chunk in zip(G.blocks, (z[3:5], z[5:]), strict=True):
        for norm in (block.norm_1, block.norm_2):
            expected += [norm.gain.weight[:, :2] @ chunk, norm.bias.weight[:, :2] @ chunk]
    torch.testing.assert_close(G.first_layer() @ z, torch.cat(expected), atol=1e-5, rtol=0)
