"""Networks divided among devices, compiled block by block, and loaded with a part in float32, as in diffusers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import compute_module_sizes
from torch.utils._pytree import tree_flatten

import hfgen
from tests.models.test_unet import NCSNPP, SMALL
from tests.models.variants import VARIANTS, every_variant

WHOLE = ("VAE", "HierarchicalVAE")
"""Networks that compute with their own tensors, and are not divided."""


def outputs(net: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    with torch.no_grad():
        return tree_flatten(net(**inputs))[0]


@pytest.mark.parametrize("name", every_variant())
def test_a_network_half_of_which_lies_on_the_disk_gives_the_same_output(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, inputs = VARIANTS[name]()
    net.eval()
    if type(net).__name__ in WHOLE:
        assert net._no_split_modules is None
        return
    # divide it between memory and disk
    size, expected = compute_module_sizes(net)[""], outputs(net, inputs)
    kept = list(net._no_split_modules)
    places = infer_auto_device_map(net, {"cpu": size // 2, "disk": 2 * size}, no_split_module_classes=kept)
    # no residual block, and no normalised weight, is cut into two
    for path, module in net.named_modules():
        inside = [place for part, place in places.items() if part.startswith(f"{path}.")]
        assert type(module).__name__ not in kept or not inside, path
    # compute
    if len(set(places.values())) == 2:
        net = dispatch_model(net, places, main_device="cpu", offload_dir=tmp_path)
    for found, value in zip(outputs(net, inputs), expected, strict=True):
        torch.testing.assert_close(found, value, atol=1e-6, rtol=1e-6)


def test_the_names_of_blocks_are_those_of_modules_that_some_variant_has() -> None:
    named, present = dict[str, set[str]](), dict[str, set[str]]()
    for make in VARIANTS.values():
        net, _ = make()
        kind = type(net).__name__
        named[kind] = {*(net._no_split_modules or ()), *net._repeated_blocks}
        present.setdefault(kind, set()).update(type(module).__name__ for module in net.modules())
    spectral = {"SpectralLinear", "SpectralConv2d", "SpectralConvTranspose2d"}
    for kind, names in named.items():
        assert names - spectral <= present[kind], kind


REPEATED = [name for name, make in VARIANTS.items() if make()[0]._repeated_blocks]
FIRST = {name.split(",")[0]: name for name in reversed(REPEATED)}


@pytest.mark.parametrize("name", FIRST.values())
def test_repeated_blocks_are_compiled_alone(name: str) -> None:
    torch.manual_seed(0)
    net, inputs = VARIANTS[name]()
    net.eval()
    expected, seen = outputs(net, inputs), list[Any]()

    def watched(graph: Any, examples: Any) -> Any:
        seen.append(graph)
        return graph.forward

    torch.compiler.reset()
    net.compile_repeated_blocks(backend=watched, fullgraph=True)
    found = outputs(net, inputs)
    assert seen
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_frequencies_of_time_stay_float32_when_the_rest_is_loaded_in_half_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = hfgen.UNet(**{**SMALL, **NCSNPP})
    net.save_pretrained(tmp_path)
    half = hfgen.UNet.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    kept = {key for key, value in half.state_dict().items() if value.dtype == torch.float32}
    assert kept == {"time_proj.weight"} and half.dtype == torch.bfloat16
    t = torch.tensor([0.01, 50.0])
    assert torch.equal(half.time_proj(t), net.time_proj(t))
    x = torch.randn(2, 3, 16, 16)
    found, expected = half(x.bfloat16(), t).sample.float(), net(x, t).sample
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()
