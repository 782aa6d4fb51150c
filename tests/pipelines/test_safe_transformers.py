"""Networks of transformers: stock folders load bit for bit, hostile and broken ones are refused and run nothing."""

import json
import pickle
import sys
import time

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hfgen import AutoPipeline, ControllableGANPipeline, DCGANGenerator
from hfgen.errors import CheckpointError, ConfigError, UnsafeContentError
from hfgen.loading.components import component_class
from hfgen.loading.transformers_models import _renamer, check_model_settings, load_model
from hfgen.registry import TRANSFORMERS_CLASSIFIERS, TRANSFORMERS_MODELS
from tests.pipelines.helpers import Evil, edit

TINY = {"image_size": 8, "patch_size": 4, "num_labels": 3}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, **TINY}
FLAT = {"intermediate_size": 16, **SMALL}
DEEP = {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "image_size": 8, "patch_size": 2,
        "num_labels": 3}
CONVOLUTIONS = {"depths": [1, 1], "hidden_sizes": [8, 8], "num_labels": 3}
SETTINGS = {
    "ViT": FLAT, "DeiT": FLAT, "Beit": FLAT, "Dinov2": SMALL, "ViTMSN": FLAT, "Swin": DEEP, "Swinv2": DEEP,
    "ResNet": {**CONVOLUTIONS, "embedding_size": 8, "layer_type": "basic"},
    "ConvNext": {**CONVOLUTIONS, "num_stages": 2}, "ConvNextV2": {**CONVOLUTIONS, "num_stages": 2},
    "MobileNetV2": {"depth_multiplier": 0.1, "num_labels": 3, "image_size": 32},
}


def network(kind):
    """Return a tiny random classifier of transformers."""
    cls = getattr(transformers, f"{kind}ForImageClassification")
    return cls(cls.config_class(**SETTINGS[kind])).eval()


def assert_same_logits(a, b, size=8):
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(a(x).logits, b(x).logits)


@pytest.fixture
def vit(tmp_path):
    """Return the folder of a saved ViT."""
    network("ViT").save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.fixture
def saved(tmp_path):
    """Return the folder of a saved pipeline whose classifier is a ViT."""
    generator = DCGANGenerator(8, 1, 4, latent_dim=4)
    ControllableGANPipeline(generator, network("ViT"), image_mean=[0.4]).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("name", TRANSFORMERS_MODELS)
def test_every_row_of_the_table_is_a_class_whose_saved_keys_lead_back_to_its_own(name, tmp_path):
    cls = component_class(tmp_path, "classifier", "transformers", name)
    assert cls is getattr(transformers, name)
    with torch.device("meta"):
        net = cls(cls.config_class())
    own = net.state_dict().keys()
    assert _renamer(net, own)({key: key for key in own}) == {key: key for key in own}
    stored = transformers.core_model_loading.revert_weight_conversion(net, dict(net.state_dict()))
    assert sorted(_renamer(net, stored.keys())(stored)) == sorted(own)
    path = tmp_path / "config.json"
    net.config.save_pretrained(tmp_path)
    config = {**json.loads(path.read_text()), "architectures": [name]}
    assert cls.config_class(**check_model_settings(path, cls, config)).to_dict() == net.config.to_dict()


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("kind", SETTINGS)
def test_a_stock_folder_loads_with_every_bit(tmp_path, kind, original):
    net = network(kind)
    net.save_pretrained(tmp_path, save_original_format=original)
    again = load_model(tmp_path, type(net), torch.float32)
    assert not again.training and not any(t.is_meta for t in [*again.parameters(), *again.buffers()])
    buffers = dict(again.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in net.named_buffers())
    assert_same_logits(net, again, 32 if kind == "MobileNetV2" else 8)


def test_shards_variants_and_types_are_those_asked_for(tmp_path):
    net = network("ViT")
    net.save_pretrained(tmp_path / "shards", max_shard_size="5KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert_same_logits(net, load_model(tmp_path / "shards", type(net), torch.float32))
    net.half().save_pretrained(tmp_path / "half", variant="fp16")
    again = load_model(tmp_path / "half", type(net), torch.float32, "fp16")
    assert again.dtype == torch.float32 and torch.equal(again.classifier.weight, net.classifier.weight.float())
    assert load_model(tmp_path / "half", type(net), torch.float16, "fp16").dtype == torch.float16


def test_tensors_of_two_names_that_are_stored_once_are_one_again(tmp_path):
    config = transformers.T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    net = transformers.T5EncoderModel(config).eval()
    net.save_pretrained(tmp_path)
    again = load_model(tmp_path, type(net), torch.float32)
    assert again.encoder.embed_tokens.weight is again.shared.weight
    x = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        assert torch.equal(net(x).last_hidden_state, again(x).last_hidden_state)


def test_loading_leaves_the_global_random_state_alone(tmp_path):
    net = network("Swin")
    net.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    load_model(tmp_path, type(net), torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


def test_saving_keeps_no_local_path_and_nothing_that_loading_would_refuse(tmp_path):
    network("ViT").save_pretrained(tmp_path / "origin")
    edit(tmp_path / "origin/config.json", path_norm=True, _name_or_path=str(tmp_path))
    net = transformers.ViTForImageClassification.from_pretrained(tmp_path / "origin").eval()
    assert net.config.path_norm is True
    ControllableGANPipeline(DCGANGenerator(8, 1, 4), net).save_pretrained(tmp_path / "saved")
    for path in (tmp_path / "saved").rglob("*.json"):
        assert str(tmp_path) not in path.read_text() and "path_norm" not in path.read_text()
    assert_same_logits(net, AutoPipeline.from_pretrained(tmp_path / "saved").classifier)
    stock = transformers.ViTForImageClassification.from_pretrained(tmp_path / "saved/classifier")
    assert_same_logits(net, stock.eval())


def test_missing_unexpected_and_misshaped_keys_are_listed(saved):
    path = saved / "classifier/model.safetensors"
    tensors = load_file(path)
    tensors["extra.weight"] = tensors.pop("vit.layernorm.weight")
    tensors["classifier.bias"] = torch.zeros(7)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        AutoPipeline.from_pretrained(saved)
    for words in ("missing: vit.layernorm.weight", "unexpected: extra.weight", "classifier.bias (7,) instead of (3,)"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "16"), ("hidden_size", -1), ("hidden_size", 10**12), ("hidden_size", 17), ("new_key", 1),
        ("hidden_act", "no such"), ("hidden_act", ["gelu"]), ("layer_norm_eps", float("nan")),
        ("num_hidden_layers", 10**9), ("num_hidden_layers", 2000), ("image_size", 10**9), ("image_size", [8] * 5000),
        ("architectures", ["ResNetForImageClassification"]), ("architectures", ...), ("architectures", "ViT"),
        ("model_type", "swin"), ("model_type", ...), ("id2label", 3), ("problem_type", "no such"),
        ("quantization_config", {"load_in_4bit": True}), ("attn_implementation", "someone/kernels"),
        ("num_labels", 10**9), ("per_layer_config", {}),
    ],
)
def test_a_bad_setting_is_named_with_its_file(vit, field, value):
    edit(vit / "config.json", **{field: value})
    with pytest.raises((ConfigError, CheckpointError)) as caught:
        load_model(vit, transformers.ViTForImageClassification, torch.float32)
    assert "config.json" in str(caught.value)
    assert field in str(caught.value) or (field, value) in [
        ("hidden_size", 17), ("hidden_size", -1), ("hidden_act", "no such"),
    ]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("ViT", {"hidden_size": 2**24, "num_attention_heads": 2}), ("ViT", {"intermediate_size": 2**24}),
     ("ViT", {"num_hidden_layers": 1024}), ("Swin", {"window_size": 1024, "image_size": 4096}),
     ("Swin", {"depths": [1024] * 1024, "num_heads": [2] * 1024}), ("Beit", {"num_hidden_layers": 10**9})],
)
def test_a_configuration_that_asks_for_too_much_is_refused_at_once(tmp_path, kind, changes):
    network(kind).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", **changes)
    start = time.process_time()
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_model(tmp_path, getattr(transformers, f"{kind}ForImageClassification"), torch.float32)
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize("name", ["BertModel", "ViTModel", "AutoModel", "pipeline", "__name__", "Trainer"])
def test_a_class_of_transformers_outside_the_table_is_refused(saved, name):
    assert name not in TRANSFORMERS_CLASSIFIERS
    edit(saved / "model_index.json", classifier=["transformers", name])
    with pytest.raises(ConfigError, match=rf"model_index\.json: 'classifier' is a transformers\.{name}"):
        AutoPipeline.from_pretrained(saved)


@pytest.mark.parametrize("library", ["transformers.models.vit", "evil", "transformers_modules", "os"])
def test_a_library_outside_the_table_is_refused_and_never_imported(saved, library):
    edit(saved / "model_index.json", classifier=[library, "ViTForImageClassification"])
    before = set(sys.modules)
    with pytest.raises(UnsafeContentError, match=r"model_index\.json: 'classifier'"):
        AutoPipeline.from_pretrained(saved)
    assert set(sys.modules) == before


def test_code_in_the_folder_is_never_run(saved, tmp_path):
    canary = tmp_path / "canary"
    for place in ("pipeline.py", "classifier/modeling_evil.py", "classifier/hfgen_shim.py"):
        (saved / place).write_text(f"open({str(canary)!r}, 'w').close()\n")
    AutoPipeline.from_pretrained(saved)
    edit(saved / "classifier/config.json", auto_map={"AutoModelForImageClassification": "modeling_evil.Evil"})
    with pytest.raises(UnsafeContentError, match="auto_map"):
        AutoPipeline.from_pretrained(saved)
    assert not canary.exists()


def test_pickled_weights_are_refused_and_never_opened(saved, tmp_path):
    (saved / "classifier/model.safetensors").unlink()
    (saved / "classifier/pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "canary")))
    with pytest.raises(UnsafeContentError, match=r"pytorch_model\.bin"):
        AutoPipeline.from_pretrained(saved)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("part", range(0, 16, 3))
def test_truncated_weights_are_named(vit, part):
    path = vit / "model.safetensors"
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size * part // 16)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(vit, transformers.ViTForImageClassification, torch.float32)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("image_mean", "0.5"), ("image_mean", 0.5), ("image_mean", ["transformers", "x"]), ("image_mean", [True]),
     ("image_mean", [float("nan")]), ("image_std", {"a": 1}), ("image_std", [0.0]), ("image_mean", [0.5, 0.5]),
     ("unknown", 3), ("unknown", None), ("classifier", None), ("classifier", ...), ("generator", [0.5])],
)
def test_a_bad_setting_of_the_pipeline_is_named(saved, setting, value):
    edit(saved / "model_index.json", **{setting: value})
    with pytest.raises(ConfigError, match=setting):
        AutoPipeline.from_pretrained(saved)


def test_a_setting_left_out_has_its_default(saved):
    edit(saved / "model_index.json", image_mean=..., image_std=[0.25])
    pipe = AutoPipeline.from_pretrained(saved)
    assert pipe.config.image_mean is None and pipe.config.image_std == [0.25]


@pytest.mark.parametrize("name", ["GANPipeline", "DDPMPipeline"])
def test_the_class_called_must_be_the_one_saved(saved, name):
    import hfgen

    with pytest.raises(ConfigError, match=r"hfgen\.ControllableGANPipeline or hfgen\.AutoPipeline"):
        getattr(hfgen, name).from_pretrained(saved)
