"""Networks under the tools of torch: pickle, copies, processes, ensembles by vmap, export and ONNX."""

import copy
import io
import pickle
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.utils._pytree import tree_flatten, tree_map

from tests.models.variants import FEW, VARIANTS, every_variant

EVERY = pytest.mark.parametrize("name", every_variant())


def made(name: str, seed: int = 0) -> tuple[Any, dict[str, Any]]:
    """Return a network in evaluation mode, and its inputs."""
    torch.manual_seed(seed)
    net, inputs = VARIANTS[name]()
    return net.eval(), inputs


def outputs(net: Any, inputs: dict[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        return tree_flatten(net(**inputs))[0]


def assert_equal(found: Any, expected: Any, atol: float = 0.0) -> None:
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=min(atol, 1e-6))


@EVERY
def test_a_network_can_be_pickled_and_copied_before_and_after_a_training_step(name: str) -> None:
    net, inputs = made(name)
    for _ in range(2):
        expected = outputs(net, inputs)
        for again in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
            assert type(again) is type(net) and dict(again.config) == dict(net.config)
            assert_equal(outputs(again, inputs), expected)
            assert_equal(list(again.state_dict().values()), list(net.state_dict().values()))
        net.train()
        sum(x.float().sum() for x in tree_flatten(net(**inputs))[0]).backward()
        net.eval()


def in_another_process(folder: str) -> None:
    """Read networks and inputs, and write outputs; a process that was spawned runs this."""
    torch.set_num_threads(1)
    for path in sorted(Path(folder).glob("*.pkl")):
        net, inputs = pickle.loads(path.read_bytes())
        torch.save(outputs(net, inputs), path.with_suffix(".pt"))                   # tensors alone


def test_spawned_workers_take_every_network(tmp_path: Path) -> None:
    nets = {f"{i:03}": made(name) for i, name in enumerate(VARIANTS)}
    for number, pair in nets.items():
        (tmp_path / f"{number}.pkl").write_bytes(pickle.dumps(pair))
    worker = get_context("spawn").Process(target=in_another_process, args=(str(tmp_path),))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    for number, (net, inputs) in nets.items():
        assert_equal(torch.load(tmp_path / f"{number}.pt"), outputs(net, inputs), atol=1e-6)


@pytest.mark.filterwarnings("ignore:There is a performance drop")              # attention on CPUs, in stock's too
@EVERY
def test_an_ensemble_runs_under_vmap(name: str) -> None:
    nets, inputs = [made(name, seed)[0] for seed in range(3)], made(name)[1]
    params, buffers = stack_module_state(nets)
    base = copy.deepcopy(nets[0]).to("meta")

    def one(params: Any, buffers: Any) -> Any:
        return functional_call(base, (params, buffers), args=(), kwargs=inputs)

    with torch.no_grad():
        found = tree_flatten(vmap(one)(params, buffers))[0]
    expected = [torch.stack(parts) for parts in zip(*(outputs(net, inputs) for net in nets), strict=True)]
    assert_equal(found, expected, atol=1e-5)


def of_other_batch(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return inputs for six samples in place of four."""
    return tree_map(lambda x: torch.cat([x, x[:2].flip(0)]), inputs)


def dynamic(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return torch's description of inputs whose batch is dynamic."""
    return tree_map(lambda x: {0: torch.export.Dim.DYNAMIC}, inputs)


@EVERY
def test_an_export_with_a_dynamic_batch_takes_other_batches(name: str) -> None:
    net, inputs = made(name)
    exported = torch.export.export(net, (), kwargs=inputs, dynamic_shapes=dynamic(inputs))
    saved = io.BytesIO()
    torch.export.save(exported, saved)
    again = torch.export.load(io.BytesIO(saved.getvalue())).module()
    for some in (inputs, of_other_batch(inputs)):
        found = again(**some)
        assert type(found) is type(net(**some))                                    # return_dict=True is the default
        assert_equal(tree_flatten(found)[0], outputs(net, some), atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", every_variant(FEW))
def test_torchs_own_onnx_export_agrees_in_onnxruntime(name: str, tmp_path: Path) -> None:
    net, inputs = made(name)
    path = tmp_path / "net.onnx"
    torch.onnx.export(net, (), str(path), kwargs=inputs, dynamo=True, dynamic_shapes=dynamic(inputs), verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for some in (inputs, of_other_batch(inputs)):
        names = [node.name for node in session.get_inputs()]
        values = [x.numpy() for x in tree_flatten(some)[0]]
        assert len(names) == len(values)
        found = [torch.from_numpy(np.asarray(x)) for x in session.run(None, dict(zip(names, values, strict=True)))]
        assert_equal(found, outputs(net, some), atol=1e-4)
