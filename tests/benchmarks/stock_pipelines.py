"""diffusers' own tests of pipelines, run against three pipelines of hfgen: passed, failed, not applicable, skipped.

    python tests/benchmarks/stock_pipelines.py CHECKOUT [PATTERN] [--verbose]

CHECKOUT is a checkout of diffusers: the mixins of its `tests/pipelines/test_pipelines_common.py` are imported. PATTERN:
part of the names of the tests to run. `safe_serialization=False` in these tests, which writes pickles and which hfgen
refuses, is replaced by its default.
"""

import sys
import unittest
import warnings
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch

CHECKOUT = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
HERE = Path(__file__).resolve().parents[2]
sys.path[0] = str(CHECKOUT)                                          # `tests` is the package of diffusers
for library in ("parameterized", "requests_mock"):                   # of tests of networks, which do not run here
    if find_spec(library) is None:
        sys.modules[library] = MagicMock()

# ruff: noqa: E402  (diffusers' tests are found only now)
import diffusers
from tests.pipelines.pipeline_params import TEXT_TO_IMAGE_BATCH_PARAMS, TEXT_TO_IMAGE_PARAMS

import hfgen
from hfgen.models.text import build_text_encoder, build_tokenizer
from hfgen.pipelines.base import Pipeline
from tests.pipelines import test_pipelines_common as common

NOT_OURS = {"height", "width", "prompt_embeds", "negative_prompt_embeds", "cross_attention_kwargs"}
"""Arguments of text-to-image pipelines that hfgen does not have: networks have one size, and texts are texts."""

NO_ACCELERATOR = "fails in the same way with diffusers' own pipelines (DiT) on a machine without an accelerator"
NO_GUIDANCE = "a model without conditions refuses guidance by name; in diffusers such pipelines lack the argument"
NOT_APPLICABLE = {
    "test_cpu_offload_forward_pass_twice": NO_ACCELERATOR,
    "test_from_pipe_consistent_forward_pass_cpu_offload": NO_ACCELERATOR,
    "test_sequential_cpu_offload_forward_pass": NO_ACCELERATOR,
    "test_sequential_offload_forward_pass_twice": NO_ACCELERATOR,
    "UnconditionalTests.test_callback_cfg": NO_GUIDANCE,
    "UnconditionalTests.test_cfg": NO_GUIDANCE,
    "UnconditionalTests.test_from_pipe_consistent_config": "downloads a Stable Diffusion pipeline",
    "UnconditionalTests.test_num_images_per_prompt": "there is no prompt to repeat; the test leaves batch_size at 1",
    "test_latents_input": "an image with four channels is RGBA, not latents, which are given as `latents`",
    "test_karras_schedulers_shape":
        "asks for DPMSolverSDEScheduler (torchsde is missing) and EDMEulerScheduler (not for these noise levels)",
    "test_multi_vae": "the pipeline holds an AutoencoderKL, not the three other autoencoders",
    "test_save_load_optional_components": "takes the text encoder away from a network that reads texts",
}
"""Reasons why a test that fails does not ask for something that these pipelines have."""


class Ours(common.PipelineTesterMixin):
    """Arguments that the tests give all three pipelines."""

    batch_params: frozenset[str] = frozenset()
    required_optional_params = frozenset({"num_inference_steps", "generator", "latents", "output_type", "return_dict"})

    def get_dummy_inputs(self, device: Any, seed: int = 0) -> dict[str, Any]:
        """Return the arguments of a call."""
        generator = torch.Generator("cpu").manual_seed(seed)
        return {"batch_size": 1, "generator": generator, "num_inference_steps": 1, "output_type": "np"}


class UnconditionalTests(common.PipelineFromPipeTesterMixin, Ours, unittest.TestCase):
    """Tests of DDPMPipeline, also made from diffusers' DDPMPipeline."""

    pipeline_class, params = hfgen.DDPMPipeline, frozenset({"batch_size", "num_images_per_prompt"})
    original_pipeline_class = diffusers.DDPMPipeline

    def get_dummy_components(self) -> dict[str, Any]:
        """Return the parts of a pipeline."""
        torch.manual_seed(0)
        return {"unet": unet(3), "scheduler": hfgen.DDPMScheduler(), "text_encoder": None, "tokenizer": None}

    def get_dummy_inputs(self, device: Any, seed: int = 0) -> dict[str, Any]:
        """Return the arguments of a call."""
        return super().get_dummy_inputs(device, seed) | {"num_inference_steps": 2}


class TextTests(
    common.PipelineLatentTesterMixin, common.PipelineKarrasSchedulerTesterMixin, Ours, unittest.TestCase
):
    """Tests of LatentDiffusionPipeline with captions."""

    pipeline_class, params = hfgen.LatentDiffusionPipeline, TEXT_TO_IMAGE_PARAMS - NOT_OURS
    batch_params = TEXT_TO_IMAGE_BATCH_PARAMS
    required_optional_params = Ours.required_optional_params | {
        "num_images_per_prompt", "callback_on_step_end", "callback_on_step_end_tensor_inputs",
    }  # fmt: skip
    image_params, image_latents_params = frozenset({"image"}), frozenset({"image"})

    def get_dummy_components(self) -> dict[str, Any]:
        """Return the parts of a pipeline."""
        torch.manual_seed(0)
        tokenizer = build_tokenizer(["a red circle", "a blue square on white", "very long"])
        net = hfgen.ConditionalUNet(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), norm_num_groups=4,
            layers_per_block=1, attention_levels=(1,), attention_head_dim=4, cross_attention_dim=8,
        )  # fmt: skip
        vae = hfgen.AutoencoderKL(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4, sample_size=16,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
        )  # fmt: skip
        return {
            "unet": net.eval(), "vae": vae.eval(), "scheduler": hfgen.DDPMScheduler(clip_sample=False),
            "text_encoder": build_text_encoder(tokenizer, 8, 1, 2).eval(), "tokenizer": tokenizer,
            "null_condition": True,
        }  # fmt: skip

    def get_dummy_inputs(self, device: Any, seed: int = 0) -> dict[str, Any]:
        """Return the arguments of a call."""
        inputs = super().get_dummy_inputs(device, seed) | {"num_inference_steps": 2, "guidance_scale": 6.0}
        del inputs["batch_size"]
        return inputs | {"prompt": "a red circle"}


class ImageTests(TextTests):
    """Tests of LatentDiffusionPipeline with captions and an image to start from."""

    params = TextTests.params | {"image", "strength"}
    batch_params = TextTests.batch_params | {"image"}

    def get_dummy_inputs(self, device: Any, seed: int = 0) -> dict[str, Any]:
        """Return the arguments of a call."""
        image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        return super().get_dummy_inputs(device, seed) | {"image": image, "strength": 0.8, "num_inference_steps": 5}


class GANTests(Ours, unittest.TestCase):
    """Tests of GANPipeline."""

    pipeline_class, params = hfgen.GANPipeline, frozenset({"batch_size"})

    def get_dummy_components(self) -> dict[str, Any]:
        """Return the parts of a pipeline."""
        torch.manual_seed(0)
        return {"generator": hfgen.DCGANGenerator(resolution=8, channels=3, width=8, latent_dim=6).eval()}


def unet(channels: int) -> Any:
    """Return a small U-Net for images of 8 x 8."""
    return hfgen.UNet(
        sample_size=8, in_channels=channels, out_channels=channels, block_out_channels=(4, 8), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


class Result(unittest.TestResult):
    """Outcomes: (class, test, outcome, reason)."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[str, str, str, str]] = []

    def note(self, test: Any, outcome: str, reason: str = "") -> None:
        """Add one row."""
        self.rows.append((type(test).__name__, test._testMethodName, outcome, reason))

    def addSuccess(self, test: Any) -> None:
        """Note a test that passed."""
        self.note(test, "passed")

    def addSkip(self, test: Any, reason: str) -> None:
        """Note a test that diffusers skips, with its reason."""
        self.note(test, "skipped", reason)

    def addFailure(self, test: Any, err: Any) -> None:
        """Note a test that failed, with its error, or that does not apply, with the reason."""
        name = test._testMethodName
        reason = NOT_APPLICABLE.get(f"{type(test).__name__}.{name}", NOT_APPLICABLE.get(name))
        error = " ".join(f"{err[0].__name__}: {err[1]}".split())[:100]
        self.note(test, "not applicable" if reason else "failed", f"{reason or ''} [{error}]")
        if "--verbose" in sys.argv:
            print(self._exc_info_to_string(err, test))  # type: ignore[attr-defined]

    addError = addFailure


CASES = (UnconditionalTests, TextTests, ImageTests, GANTests)


def main() -> None:
    """Run the tests and print the outcomes."""
    save = Pipeline.save_pretrained
    Pipeline.save_pretrained = lambda self, folder, safe_serialization=True, **rest: save(self, folder, **rest)  # type: ignore[method-assign]
    patterns = [word for word in sys.argv[2:] if not word.startswith("-")]
    result = Result()
    for case in CASES:
        names = unittest.defaultTestLoader.getTestCaseNames(case)
        suite = unittest.TestSuite(case(name) for name in names if all(pattern in name for pattern in patterns))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            suite.run(result)
    for case_name, name, outcome, reason in result.rows:
        if outcome != "passed":
            print(f"{case_name:20} {name:55} {outcome:14} {reason}")
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}")
    for case in CASES:
        print(case.__name__, dict(Counter(row[2] for row in result.rows if row[0] == case.__name__)))


if __name__ == "__main__":
    main()
