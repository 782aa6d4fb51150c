"""`ImageTransformer` as transformers' `ImageGPTForCausalImageModeling`: folders load both ways, with equal logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling

import hfgen
from hfgen.errors import CheckpointError, ConfigError, UnsafeContentError
from tests.models.test_image_transformer_tools import made

STOCK: dict[str, Any] = {"vocab_size": 6, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}


def stock(**changes: Any) -> ImageGPTForCausalImageModeling:
    torch.manual_seed(0)
    net = ImageGPTForCausalImageModeling(ImageGPTConfig(**{**STOCK, **changes})).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


def assert_equal_logits(ours: Any, theirs: Any) -> None:
    """Compare logits of random entries; transformers' input begins with the start entry, V."""
    entries = torch.randint(ours.vocab_size, (3, ours.num_entries), generator=torch.Generator().manual_seed(0))
    inputs = torch.cat([torch.full((3, 1), ours.vocab_size), entries[:, :-1]], 1)
    with torch.no_grad():
        expected = theirs.eval()(input_ids=inputs).logits
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(entries).logits, expected, atol=1e-5, rtol=1e-5)


def test_transformers_loads_the_saved_folder_without_hfgen(tmp_path: Path) -> None:
    net, _, _ = made("learned", dropout=0.25, mlp_ratio=3)
    net.save_pretrained(tmp_path / "net")
    assert {path.name for path in (tmp_path / "net").iterdir()} == {"config.json", "model.safetensors"}
    theirs, found = ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "net", output_loading_info=True)
    assert not any(found.values())
    assert (theirs.config.attn_pdrop, theirs.config.n_inner, theirs.config.grid) == (0.25, 48, [3, 4, 1])
    assert_equal_logits(net, theirs)


def test_a_folder_of_transformers_loads_in_hfgen(tmp_path: Path) -> None:
    theirs = stock()
    theirs.save_pretrained(tmp_path)
    ours: Any = hfgen.ImageTransformer.from_pretrained(tmp_path)
    assert ours.config["grid"] == [4, 4, 1] and not ours.training
    assert_equal_logits(ours, theirs)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "2KB"}, {"variant": "fp16"},
                                     {"variant": "fp16", "max_shard_size": "2KB"}])  # fmt: skip
def test_every_bit_and_setting_comes_back_through_both_libraries(options: dict[str, Any], tmp_path: Path) -> None:
    net, _, _ = made("learned")
    net.save_pretrained(tmp_path / "ours", **options)
    shards = len(list((tmp_path / "ours").glob("*-of-*.safetensors")))
    assert (shards > 1) == ("max_shard_size" in options)
    variant = options.get("variant")
    theirs = ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "ours", variant=variant)
    theirs.save_pretrained(tmp_path / "theirs")
    for back in (
        hfgen.ImageTransformer.from_pretrained(tmp_path / "ours", variant=variant),
        hfgen.ImageTransformer.from_pretrained(tmp_path / "theirs"),
    ):
        assert dict(back.config) | {"grid": (3, 4, 1)} == dict(net.config) | {
            key: back.config[key] for key in back.config if key.startswith("_")
        }
        assert all(torch.equal(back.state_dict()[key], value) for key, value in net.state_dict().items())
        assert all(value.is_contiguous() for value in back.state_dict().values())


def test_fewer_shards_replace_more_and_are_all_that_loads(tmp_path: Path) -> None:
    net, _, _ = made("learned")
    net.save_pretrained(tmp_path, max_shard_size="2KB")
    net.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert_equal_logits(hfgen.ImageTransformer.from_pretrained(tmp_path), stock_of(tmp_path))


def stock_of(folder: Path) -> ImageGPTForCausalImageModeling:
    return ImageGPTForCausalImageModeling.from_pretrained(folder)


@pytest.mark.parametrize("name", ["rotary", "tied", "classes", "text"])
def test_networks_that_transformers_does_not_have_keep_their_own_settings(name: str, tmp_path: Path) -> None:
    net, entries, conditions = made(name)
    net.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "ImageTransformer"
    back = hfgen.ImageTransformer.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(back(entries, **conditions).logits, net(entries, **conditions).logits)


def test_settings_of_transformers_make_a_network_with_random_weights(tmp_path: Path) -> None:
    stock(n_inner=24).save_pretrained(tmp_path)
    net = hfgen.ImageTransformer.from_config(hfgen.ImageTransformer.load_config(tmp_path))
    assert net.config["mlp_ratio"] == 3 and net.vocab_size == 5


@pytest.mark.parametrize(("change", "message"), [
    ({"activation_function": "gelu"}, "activation_function must be quick_gelu, got 'gelu'"),
    ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon must be 1e-05"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx must be False"),
    ({"tie_word_embeddings": True}, "tie_word_embeddings must be False"),
    ({"attn_pdrop": 0.0}, "attn_pdrop must be resid_pdrop, 0.1"),
    ({"n_positions": 15}, "n_positions must be the product of grid"),
    ({"grid": [4, 3, 1]}, "n_positions must be the product of grid"),
    ({"n_inner": 12}, "n_inner must be a multiple of n_embd"),
    ({"n_layer": 10**9}, "layers must be an int in"),
    ({"n_embd": "8"}, "n_embd must be an int"),
    ({"surprise": 1}, "surprise must be left out"),
    ({"architectures": ["GPT2LMHeadModel"]}, "'_class_name' is 'GPT2LMHeadModel'"),
])  # fmt: skip
def test_settings_that_hfgen_does_not_reproduce_are_refused_by_name(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    stock().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=message):
        hfgen.ImageTransformer.from_pretrained(tmp_path)


def test_weights_that_do_not_fit_pickles_and_code_are_refused(tmp_path: Path) -> None:
    stock().save_pretrained(tmp_path)
    path, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"n_layer": 3}))
    with pytest.raises(CheckpointError, match=r"missing: h\.2\.attn"):
        hfgen.ImageTransformer.from_pretrained(tmp_path)
    path.write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(UnsafeContentError, match="auto_map"):
        hfgen.ImageTransformer.from_pretrained(tmp_path)
    path.write_text(json.dumps(config))
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsafeContentError, match="pickled"):
        hfgen.ImageTransformer.from_pretrained(tmp_path)
