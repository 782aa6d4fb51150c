"""Diffusers' own tests of models, schedulers, averages of weights and training, run on hfgen's networks and schedulers.

    python -m tests.benchmarks.stock_suites CHECKOUT [-o FILE.json]

CHECKOUT is a clone of diffusers with its `tests` folder; nothing of it is copied. Each of its files runs twice, with
diffusers' classes and with hfgen's in their place; the mixins for models and training also run on every variant of
hfgen's networks. The Hub is not reached: the network that the tests of averages download is built with random weights.
"""

import argparse
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import types
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]

SUITES = {
    "UNet2DModel": "models/unets/test_models_unet_2d.py",
    "AutoencoderKL": "models/autoencoders/test_models_autoencoder_kl.py",
    "DDPMScheduler": "schedulers/test_scheduler_ddpm.py",
    "EMAModel": "others/test_ema.py",
    "variants": str(HERE),
}
NOT_APPLICABLE = {
    r"expected_set|do not match expected set": "names diffusers' own classes of blocks",
    r"^\S*(_hub|output_pretrained\w*) |Hub|offline|LocalEntryNotFound|couldn't connect|Cannot reach": "needs the Hub",
    r"[Cc]uda|CUDA|accelerator": "needs an accelerator",
}
"""Patterns of a test's name and error, and the reason why it does not concern networks of another library."""

OURS, VARIANTS_ONLY = "hfgen", "variants"


def run(checkout: Path, suite: str, whose: str) -> list[dict[str, str]]:
    """Return the outcome and the error of each test of a suite, with the classes of `whose`: stock or hfgen."""
    with tempfile.TemporaryDirectory() as folder:
        # leave this project's tests out of the path, whose package has the same name as theirs
        found = Path(folder, "found.json")
        path = os.pathsep.join([str(HERE.parent), str(ROOT)])
        env = {**os.environ, "PYTHONPATH": path, "STOCK_SUITES": f"{whose} {suite} {checkout} {found}",
               "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # fmt: skip
        file = SUITES[suite] if suite == VARIANTS_ONLY else str(checkout / "tests" / SUITES[suite])
        command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "stock_suites", "-p", "no:cacheprovider", "-p",
                   "no:xdist", "-c", os.devnull, "--rootdir", str(checkout), file]  # fmt: skip
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        if not found.exists():
            raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
        return json.loads(found.read_text("utf-8"))


def reason_of(test: dict[str, str]) -> str | None:
    """Return why a test is not applicable, None for a failure."""
    words = f"{test['name']} {test['error']}"
    return next((reason for pattern, reason in NOT_APPLICABLE.items() if re.search(pattern, words)), None)


def main(argv: list[str] | None = None) -> int:
    """Run all suites, print a table, and list the failures with their errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--suites", nargs="*", default=list(SUITES))
    options = parser.parse_args(argv)
    results = {}
    print("| suite | classes | passed | failed | not applicable |\n|---|---|---|---|---|")
    for suite in options.suites:
        for whose in (OURS,) if suite == VARIANTS_ONLY else ("stock", OURS):
            # count outcomes
            tests = run(options.checkout.resolve(), suite, whose)
            for test in tests:
                if test["outcome"] == "failed" and (reason := reason_of(test)) is not None:
                    test |= {"outcome": "skipped", "error": reason}
            counts = Counter(test["outcome"] for test in tests)
            results[f"{suite}, {whose}"] = tests
            print(f"| {suite} | {whose} | {counts['passed']} | {counts['failed']} | {counts['skipped']} |", flush=True)
    # list failures and reasons
    for name, tests in results.items():
        why = Counter(f"{t['outcome']}: {t['error']}" for t in tests if t["outcome"] != "passed")
        for words, number in why.most_common():
            print(f"- {name}: {number} {words[:200]}")
        for test in tests:
            if test["outcome"] == "failed":
                print(f"  - {test['name']}")
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=1), "utf-8")
    return 0


# The rest runs inside pytest, to which `run` gives this file as a plugin.

FOUND: list[dict[str, str]] = []


def pytest_runtest_logreport(report: Any) -> None:
    """Keep the outcome of a test."""
    if report.when != "call" and report.outcome == "passed":
        return
    error = ""
    if report.outcome != "passed":
        crash = getattr(report.longrepr, "reprcrash", None)
        error = crash.message if crash is not None else str(report.longrepr[-1])
    FOUND.append({"name": report.nodeid.split("::", 1)[1], "outcome": report.outcome, "error": error.split("\n")[0]})


def pytest_sessionfinish() -> None:
    """Write the outcomes."""
    _, _, _, found = os.environ["STOCK_SUITES"].split()
    Path(found).write_text(json.dumps(FOUND), "utf-8")


def for_averages(cls: Any, **settings: Any) -> Any:
    """Return `cls` that builds the network which the tests of averages download, and takes its text as they give it."""

    def from_pretrained(kind: Any, where: Any, **_: Any) -> Any:
        if str(where).startswith("hf-internal-testing"):
            return kind(**settings)
        return super(made, kind).from_pretrained(where)

    def forward(self: Any, x: Any, t: Any, text: Any) -> Any:
        return super(made, self).forward(x, t, encoder_hidden_states=text)

    made = type(cls.__name__, (cls,), {"from_pretrained": classmethod(from_pretrained), "forward": forward})
    return made


def swap(whose: str, suite: str) -> None:
    """Put hfgen's classes, and networks without the Hub, into the place of diffusers'."""
    import diffusers
    import pytest

    import hfgen

    # a package for their slow tests alone, which need the Hub
    if importlib.util.find_spec("parameterized") is None:
        skipped: Any = types.ModuleType("parameterized")
        skipped.parameterized = types.SimpleNamespace(expand=lambda cases: pytest.mark.skip("needs the Hub"))
        sys.modules["parameterized"] = skipped
    # networks for averages
    sizes = {"in_channels": 4, "out_channels": 4, "block_out_channels": (32, 64), "cross_attention_dim": 32,
             "sample_size": 64}  # fmt: skip
    stock = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": 2,
             "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}  # fmt: skip
    if suite == "EMAModel":
        theirs = for_averages(diffusers.UNet2DConditionModel, **sizes, **stock)
        ours = for_averages(hfgen.ConditionalUNet, **sizes, attention_levels=(1,))
        diffusers.UNet2DConditionModel = ours if whose == OURS else theirs
    # the other classes
    elif whose == OURS:
        diffusers.UNet2DModel, diffusers.AutoencoderKL = hfgen.UNet, hfgen.AutoencoderKL
        diffusers.DDPMScheduler = hfgen.DDPMScheduler


def variants(checkout: Path) -> dict[str, type]:
    """Return test classes of diffusers' mixins for each variant of hfgen's networks."""
    # this project's variants; then its package of tests makes room for that of the checkout
    import torch
    from torch.utils._pytree import tree_flatten

    from tests.models.variants import VARIANTS

    for name in [name for name in sys.modules if name == "tests" or name.startswith("tests.")]:
        del sys.modules[name]
    sys.path.insert(0, str(checkout))
    from tests.models.testing_utils import (  # type: ignore[attr-defined]
        BaseModelTesterConfig,
        ModelTesterMixin,
        TrainingTesterMixin,
    )

    def made(name: str) -> Any:
        torch.manual_seed(0)
        return VARIANTS[name]()

    def init_dict(name: str, self: Any) -> dict[str, Any]:
        net, _ = made(name)
        return {key: net.config[key] for key in list(inspect.signature(type(net).__init__).parameters)[1:]}

    def output_shape(name: str, self: Any) -> tuple[int, ...]:
        net, inputs = made(name)
        return tuple(tree_flatten(net.eval()(**inputs))[0][0].shape[1:])

    classes = {}
    for i, name in enumerate(VARIANTS):
        body = {
            "model_class": type(made(name)[0]), "variant": name, "get_init_dict": _method(partial(init_dict, name)),
            "get_dummy_inputs": _method(lambda self, name=name: made(name)[1]),
            "output_shape": property(partial(output_shape, name)),
        }  # fmt: skip
        words = f"Test{i:03}{re.sub(r'[^A-Za-z0-9]', '', name.title())}"
        classes[words] = type(words, (BaseModelTesterConfig, ModelTesterMixin, TrainingTesterMixin), body)
    return classes


def _method(function: Any) -> Any:
    return lambda self: function(self)


if "STOCK_SUITES" in os.environ and __name__ == "stock_suites":
    whose_, suite_, checkout_, _ = os.environ["STOCK_SUITES"].split()
    swap(whose_, suite_)
    if suite_ == VARIANTS_ONLY:
        globals().update(variants(Path(checkout_)))

if __name__ == "__main__":
    sys.exit(main())
