"""The runner of diffusers' own tests: it puts hfgen's classes in place, and tells failures from what does not apply."""

from pathlib import Path

import pytest

from tests.benchmarks import stock_suites

SUITE = """
import unittest

from diffusers import DDPMScheduler


class DDPMSchedulerTest(unittest.TestCase):
    def test_whose(self):
        assert DDPMScheduler.__module__.split(".")[0] == "{whose}"

    def test_fails(self):
        raise OSError("no such thing")

    def test_output_pretrained_ve(self):
        raise OSError("cannot be loaded")

    @unittest.skip("takes long")
    def test_skipped(self):
        pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("whose", ["stock", "hfgen"])
def test_a_suite_of_a_checkout_runs_with_the_classes_of_either(whose: str, tmp_path: Path) -> None:
    file = tmp_path / "tests" / stock_suites.SUITES["DDPMScheduler"]
    file.parent.mkdir(parents=True)
    for folder in (file.parent, tmp_path / "tests"):
        (folder / "__init__.py").write_text("", "utf-8")
    file.write_text(SUITE.format(whose="diffusers" if whose == "stock" else "hfgen"), "utf-8")
    found = {test["name"].split("::")[1]: test for test in stock_suites.run(tmp_path, "DDPMScheduler", whose)}
    assert {name: test["outcome"] for name, test in found.items()} == {
        "test_whose": "passed", "test_fails": "failed", "test_output_pretrained_ve": "failed",
        "test_skipped": "skipped",
    }  # fmt: skip
    assert found["test_fails"]["error"] == "OSError: no such thing"
    assert stock_suites.reason_of(found["test_fails"]) is None
    assert stock_suites.reason_of(found["test_output_pretrained_ve"]) == "needs the Hub"
