"""Masked generation: exact draws in any order, the schedule, confidence, guidance, completion, refusals."""

from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

import hfgen
from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.models.outputs import LogitsOutput
from hfgen.pipelines.masked_generation import chosen, masked_after
from tests.models.test_image_transformer_tools import made


def pipeline(name: str = "rotary", null: bool = False, **changes: Any) -> Any:
    net, _, _ = made(name, causal=False, **changes)
    rows, columns, _ = net.grid
    pipe = hfgen.MaskedGenerationPipeline(
        net, image_shape=(1, rows, columns), levels=net.vocab_size, null_condition=null
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(first, first + count)]


class Table(hfgen.ImageTransformer):
    """The exact conditionals of a joint distribution of four bits: p(x_i | unmasked entries)."""

    def __init__(self, joint: Tensor) -> None:
        super().__init__(vocab_size=2, grid=(2, 2, 1), width=4, layers=1, heads=1, causal=False)
        self.joint = joint
        self.images = torch.tensor(list(product((0, 1), repeat=4)))                      # (16, 4)

    def forward(self, entries: Tensor, *args: Any, **settings: Any) -> LogitsOutput:
        known = entries[:, None] < 2                                                     # (B, 1, 4)
        fits = ((self.images == entries[:, None]) | ~known).all(2)                       # (B, 16)
        p = self.joint * fits                                                            # (B, 16)
        ones = p @ self.images.to(p)                                                     # (B, 4)
        return LogitsOutput(logits=torch.stack([p.sum(1, keepdim=True) - ones, ones], 2).log())


def test_as_many_steps_as_entries_in_random_order_draw_from_the_joint_distribution() -> None:
    joint = torch.rand(16, generator=torch.Generator().manual_seed(1)).double() ** 2 + 0.02
    joint /= joint.sum()
    pipe = hfgen.MaskedGenerationPipeline(Table(joint), image_shape=(1, 2, 2), levels=2)
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(8000, num_steps=4, choice_temperature=float("inf"), generator=torch.Generator().manual_seed(0),
                 output_type="latent").images  # fmt: skip
    counts = torch.bincount(drawn @ torch.tensor([8, 4, 2, 1]), minlength=16)
    assert chisquare(counts.numpy(), (joint * 8000).numpy()).pvalue > 0.01
    # one step draws each entry from its own marginal, and no more
    drawn = pipe(8000, num_steps=1, generator=torch.Generator().manual_seed(0), output_type="latent").images
    ones = (joint @ Table(joint).images.double())
    torch.testing.assert_close(drawn.double().mean(0), ones, atol=0.02, rtol=0)
    independent = torch.stack([torch.where(image == 1, ones, 1 - ones).prod() for image in Table(joint).images])
    counts = torch.bincount(drawn @ torch.tensor([8, 4, 2, 1]), minlength=16)
    assert chisquare(counts.numpy(), (independent * 8000).numpy()).pvalue > 0.01
    assert chisquare(counts.numpy(), (joint * 8000).numpy()).pvalue < 1e-6


def test_one_masked_entry_is_drawn_from_the_softmax_of_the_network() -> None:
    pipe = pipeline()
    image = torch.linspace(0, 1, 12).view(1, 1, 3, 4)
    mask = torch.zeros(3, 4)
    mask[1, 2] = 1
    *_, last = pipe.states(4000, image=image, mask=mask, generator=torch.Generator().manual_seed(0))
    # the entries that the network sees
    seen = pipe.encode(image)
    assert (last == seen).sum(1).min() >= 11
    seen[0, 6] = pipe.network.vocab_size
    with torch.no_grad():
        p = pipe.network(seen).logits[0, 6].double().softmax(-1)
    counts = torch.bincount(last[:, 6], minlength=5)
    assert chisquare(counts.numpy(), (p / p.sum() * 4000).numpy()).pvalue > 0.01


@pytest.mark.parametrize("steps", [1, 2, 5, 8, 11, 12])
def test_each_step_draws_at_least_one_entry_and_keeps_all_that_are_drawn(steps: int) -> None:
    states = list(pipeline().states(2, num_steps=steps, generator=generators(2)))
    assert len(states) == steps + 1
    assert (states[0] == -1).all() and (states[-1] >= 0).all()
    for before, after in pairwise(states):
        known = before >= 0
        assert torch.equal(after[known], before[known])
        assert ((after >= 0).sum(1) > known.sum(1)).all()
    if steps == 12:
        assert [int((state < 0).sum()) // 2 for state in states] == list(range(12, -1, -1))


def test_the_schedule_is_the_cosine_of_the_paper() -> None:
    # 256 entries in 8 steps: floor(256 cos(pi t / 16))
    assert masked_after(torch.tensor([256]), 8)[:, 0].tolist() == [251, 236, 212, 181, 142, 97, 49, 0]
    # rows of other lengths end together or before
    left = masked_after(torch.tensor([1, 3, 5]), 5)
    assert left[-1].tolist() == [0, 0, 0] and left[:, 2].tolist() == [4, 3, 2, 1, 0]


def test_without_noise_the_most_confident_draws_are_kept_and_at_infinity_confidence_does_not_matter() -> None:
    log_p = torch.tensor([[-1.0, -3.0, -2.0, -0.5, 0.0]]).double()
    masked = torch.tensor([[True, True, True, True, False]])
    noise = torch.tensor([[0.1, 0.9, 0.8, 0.2, 0.5]]).double()
    kept = chosen(log_p, masked, torch.tensor([2]), noise, 0.0, 0.5)
    assert kept.tolist() == [[True, False, False, True, False]]
    random = chosen(log_p, masked, torch.tensor([2]), noise, float("inf"), 0.5)
    assert random.tolist() == [[False, True, True, False, False]]
    # the noise falls to nothing in the last step
    assert torch.equal(chosen(log_p, masked, torch.tensor([2]), noise, 4.5, 0.0), kept)


@pytest.mark.parametrize("settings", [{}, {"choice_temperature": 0.0, "top_k": 3}, {"temperature": 0.5, "top_p": 0.9}])
def test_generators_of_their_own_give_each_image_its_draws_whatever_the_batch(settings: dict[str, Any]) -> None:
    pipe = pipeline()
    whole = pipe(3, num_steps=4, generator=generators(3), output_type="latent", **settings).images
    for row in range(3):
        alone = pipe(1, num_steps=4, generator=generators(1, row), output_type="latent", **settings).images
        assert torch.equal(whole[row], alone[0])
    assert len(whole.unique(dim=0)) == 3


def test_guidance_mixes_log_probabilities_of_both_conditions() -> None:
    pipe = pipeline("classes", null=True)
    for block in pipe.network.h:
        block.attn.c_attn.weight.data *= 4
        block.attn.c_proj.weight.data *= 4
    mask = torch.full((1, 12), 5)
    with torch.no_grad():
        c, u = (pipe.network(mask, torch.tensor([label])).logits.double().log_softmax(-1) for label in (1, 2))
    expected = (u + 15 * (c - u)).softmax(-1)
    drawn = pipe(4000, class_labels=1, guidance_scale=15.0, num_steps=1, generator=torch.Generator().manual_seed(0),
                 output_type="latent").images  # fmt: skip
    counts = torch.stack([(drawn == value).double().mean(0) for value in range(5)], 1)
    torch.testing.assert_close(counts, expected[0], atol=0.03, rtol=0)
    assert (expected[0] - c[0].exp()).abs().max() > 0.1


def test_completion_keeps_the_pixels_outside_of_the_mask() -> None:
    pipe = pipeline()
    image = (torch.randint(5, (2, 1, 3, 4), generator=torch.Generator().manual_seed(0)) / 4).float()
    mask = torch.zeros(2, 1, 3, 4)
    mask[0, :, 1:], mask[1, :, :, 2:] = 1, 1
    found = pipe.complete(image, mask, num_steps=3, generator=generators(2), output_type="pt").images
    assert torch.equal(found[mask == 0], image[mask == 0])
    assert not torch.equal(found, image)
    # several for each image
    more = pipe.complete(image, mask, num_images_per_prompt=2, generator=generators(4), output_type="pt").images
    doubled = [x.repeat_interleave(2, 0) for x in (image, mask)]
    assert torch.equal(more[doubled[1] == 0], doubled[0][doubled[1] == 0])
    assert not torch.equal(more[0], more[1])


def test_images_of_states_are_grey_where_entries_are_masked() -> None:
    pipe = pipeline()
    states = list(pipe.states(1, num_steps=3, generator=generators(1)))
    shown = pipe.decode(states[1], output_type="pt")
    assert (shown.flatten()[states[1][0] < 0] == 0.5).all()
    images = pipe(1, num_steps=3, generator=generators(1), output_type="pt").images
    assert torch.equal(pipe.decode(states[-1], output_type="pt"), images)


def test_a_callback_sees_each_step_and_can_end_sampling() -> None:
    pipe, seen = pipeline(), list[Any]()

    def callback(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> None:
        seen.append((step, int((tensors["latents"] < 0).sum())))
        pipe._interrupt = step == 2

    states = list(pipe.states(1, num_steps=6, callback_on_step_end=callback))
    assert [step for step, _ in seen] == [0, 1, 2] and len(states) == 4
    assert pipe.num_timesteps == 6 and pipe.interrupt


def test_the_saved_pipeline_draws_the_same_images(tmp_path: Path) -> None:
    pipe = pipeline("classes", null=True)
    pipe.save_pretrained(tmp_path / "pipe")
    back: Any = hfgen.AutoPipeline.from_pretrained(tmp_path / "pipe")
    assert type(back) is hfgen.MaskedGenerationPipeline
    back.set_progress_bar_config(disable=True)
    found, expected = (one(2, class_labels=0, generator=generators(2), output_type="pt").images for one in (back, pipe))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("settings", "error", "message"), [
    ({"num_steps": 13}, ConfigError, r"num_steps must be an int in \[1, 12\], got 13"),
    ({"num_steps": 0}, ConfigError, "num_steps must be an int in"),
    ({"num_steps": 2.5}, ConfigTypeError, "num_steps"),
    ({"choice_temperature": -1.0}, ConfigError, "choice_temperature must be a number >= 0"),
    ({"temperature": 0}, ConfigError, "temperature"),
    ({"guidance_scale": 2.0}, ConfigError, "guidance_scale must be 1"),
    ({"mask": torch.ones(3, 4)}, ConfigError, "image and mask must be given together"),
    ({"choice_temperatur": 1}, ConfigTypeError, "choice_temperature"),
])  # fmt: skip
def test_impossible_arguments_are_refused_by_name(settings: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        pipeline()(1, **settings)


def test_causal_networks_and_bidirectional_ones_are_for_pipelines_of_their_own() -> None:
    causal, both = made("rotary")[0], made("rotary", causal=False)[0]
    with pytest.raises(ConfigError, match="network must have causal=False in MaskedGenerationPipeline"):
        hfgen.MaskedGenerationPipeline(causal, image_shape=(1, 3, 4), levels=5)
    with pytest.raises(ConfigError, match="network must have causal=True in AutoregressivePipeline"):
        hfgen.AutoregressivePipeline(both, image_shape=(1, 3, 4), levels=5)
