"""The autoregressive pipeline: draws, the cache, guidance, completion, likelihoods, round trips, refusals."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hfgen import AutoPipeline, AutoregressivePipeline, ImageTransformer
from hfgen.errors import ConfigError
from hfgen.models.text import build_text_encoder
from tests.helpers import seed
from tests.pipelines.helpers import TOKENIZER, features, last

SHAPE, LEVELS = (1, 4, 4), 3


def make(
    grid: Any = (4, 4, 1), vocab_size: int = LEVELS, null: bool = False, text: bool = False, **changes: Any
) -> Any:
    """Return a pipeline of a tiny transformer whose draws are far from uniform."""
    torch.manual_seed(0)
    settings = {key: changes.pop(key) for key in ("image_shape", "levels", "patch_size", "binarised") if key in changes}
    parts: dict[str, Any] = {"null_condition": null}
    if text:
        parts |= {"text_encoder": build_text_encoder(TOKENIZER, 8, 1, 1), "tokenizer": TOKENIZER}
        changes["text_width"] = 8
    net = ImageTransformer(vocab_size, grid, width=16, layers=2, heads=2, **changes)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    pipe = AutoregressivePipeline(net.eval(), **{"image_shape": SHAPE, "levels": LEVELS, **settings}, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_each_entry_is_the_inverse_distribution_function_of_a_uniform_draw() -> None:
    pipe = make()
    entries = pipe(3, generator=seed(0), output_type="latent").images
    u = torch.rand(3, 16, generator=seed(0), dtype=torch.float64)
    by_hand = torch.zeros(3, 0, dtype=torch.long)
    for i in range(16):
        padded = torch.cat([by_hand, torch.zeros(3, 16 - i, dtype=torch.long)], 1)
        with torch.no_grad():
            F = pipe.network(padded).logits[:, i].double().softmax(-1).cumsum(-1)
        by_hand = torch.cat([by_hand, torch.searchsorted(F, u[:, i : i + 1].contiguous(), right=True)], 1)
    assert torch.equal(entries, by_hand)
    images = pipe(3, generator=seed(0), output_type="pt").images
    torch.testing.assert_close(images.flatten(1), by_hand / 2, atol=1e-6, rtol=0)


def test_the_cache_and_the_loop_without_it_draw_the_same() -> None:
    pipe = make()
    cached, plain = (pipe(4, generator=seed(0), use_cache=use, output_type="latent").images for use in (True, False))
    assert torch.equal(cached, plain)
    assert cached.unique().numel() == LEVELS


def test_the_frequencies_of_images_are_their_probabilities() -> None:
    pipe = make(grid=(2, 2, 1), vocab_size=2, image_shape=(1, 2, 2), levels=2)
    entries = pipe(20_000, generator=seed(0), output_type="latent").images
    counts = torch.bincount((entries * torch.tensor([8, 4, 2, 1])).sum(1), minlength=16) / 20_000
    images = torch.tensor(list(product((0.0, 1.0), repeat=4))).view(16, 1, 2, 2)
    p = pipe.log_likelihood(images).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-6)
    assert (p.max() / p.min()) > 3
    torch.testing.assert_close(counts.double(), p, atol=0.015, rtol=0)


def test_an_image_of_a_list_of_generators_does_not_depend_on_the_batch() -> None:
    pipe = make()
    together = pipe(3, generator=[seed(i) for i in range(3)], output_type="latent").images
    alone = pipe(1, generator=[seed(2)], output_type="latent").images
    assert torch.equal(together[2:], alone)


def test_a_tiny_temperature_and_top_k_of_one_draw_the_likeliest_value() -> None:
    pipe = make()
    cold, greedy = (pipe(2, generator=seed(1), output_type="latent", **more).images
                    for more in ({"temperature": 1e-4}, {"top_k": 1}))  # fmt: skip
    assert torch.equal(cold, greedy)
    with torch.no_grad():
        best = pipe.network(greedy).logits.argmax(-1)
    assert torch.equal(best, greedy)


def test_guidance_mixes_log_probabilities() -> None:
    pipe = make(null=True, num_class_embeds=4)
    entries = pipe(2, class_labels=[0, 2], guidance_scale=2.0, generator=seed(0), output_type="latent").images
    u = torch.rand(2, 16, generator=seed(0), dtype=torch.float64)
    with torch.no_grad():
        cond, uncond = (pipe.network(entries, class_labels=torch.tensor(labels)).logits.log_softmax(-1)
                        for labels in ([0, 2], [3, 3]))  # fmt: skip
    F = (uncond + 2 * (cond - uncond)).double().softmax(-1).cumsum(-1)
    assert torch.equal((u[..., None] >= F).sum(-1), entries)
    plain = pipe(2, class_labels=[0, 2], guidance_scale=1.0, generator=seed(0), output_type="latent").images
    assert not torch.equal(plain, entries)


def test_a_text_conditions_the_draws() -> None:
    pipe = make(null=True, text=True)
    first, second, empty = (pipe(prompt, batch_size=4, generator=seed(0), output_type="latent").images
                            for prompt in ("a red circle", "a blue square on white", ""))  # fmt: skip
    assert not torch.equal(first, second)
    guided = pipe("a red circle", batch_size=4, guidance_scale=3.0, generator=seed(0), output_type="latent").images
    assert not torch.equal(guided, first)
    assert torch.equal(empty, pipe(4, generator=seed(0), output_type="latent").images)


def test_guidance_by_a_text_starts_from_the_empty_text() -> None:
    pipe = make(null=True, text=True)
    entries = pipe("a red circle", batch_size=2, guidance_scale=2.0, generator=seed(0), output_type="latent").images
    u = torch.rand(2, 16, generator=seed(0), dtype=torch.float64)
    with torch.no_grad():
        cond, uncond = (
            pipe.network(entries, encoder_hidden_states=features(pipe, text, text)).logits.log_softmax(-1)
            for text in ("a red circle", "")
        )
    F = (uncond + 2 * (cond - uncond)).double().softmax(-1).cumsum(-1)
    assert torch.equal((u[..., None] >= F).sum(-1), entries)


def test_states_show_the_picture_growing() -> None:
    pipe = make()
    states = list(pipe.states(2, generator=seed(0)))
    assert len(states) == 17
    for i, entries in enumerate(states):
        assert (entries[:, :i] >= 0).all()
        assert (entries[:, i:] == -1).all()
    half = pipe.decode(states[8], "pt")
    assert (half[:, :, 2:] == 0.5).all()
    assert torch.equal(pipe.decode(states[-1], "pt"), pipe(2, generator=seed(0), output_type="pt").images)


def test_completion_keeps_the_upper_rows_and_draws_the_rest() -> None:
    pipe = make()
    image = (torch.randint(0, 3, (2, 1, 4, 4), generator=seed(3)) / 2).float()
    completed = pipe.complete(image, rows=3, generator=seed(0), output_type="pt").images
    assert torch.equal(completed[:, :, :3], image[:, :, :3])
    many = pipe.complete(image[:1], num_images_per_prompt=32, generator=seed(0), output_type="pt").images
    assert (many[:, :, :2] == image[:1, :, :2]).all()
    assert many[:, :, 2:].std(0).min() > 0
    start = pipe.encode(image)[:, :12]
    u = torch.rand(2, 16, generator=seed(0), dtype=torch.float64)
    entries = last(pipe.states(image=image, rows=3, generator=seed(0)))
    with torch.no_grad():
        F = pipe.network(entries).logits.double().softmax(-1).cumsum(-1)
    assert torch.equal(entries[:, :12], start)
    assert torch.equal((u[..., None] >= F).sum(-1)[:, 12:], entries[:, 12:])


def test_patches_are_drawn_as_one_entry() -> None:
    pipe = make(grid=(2, 2, 1), vocab_size=16, levels=2, patch_size=2)
    images = pipe(3, generator=seed(0), output_type="pt").images
    assert images.shape == (3, 1, 4, 4)
    assert set(images.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(pipe.encode(images), pipe(3, generator=seed(0), output_type="latent").images)
    with pytest.raises(ConfigError, match="rows must be a multiple of 2"):
        pipe.complete(images, rows=3)


def test_a_saved_pipeline_draws_the_same_and_is_found_by_its_folder(tmp_path: Path) -> None:
    pipe = make(null=True, num_class_embeds=4)
    pipe.save_pretrained(tmp_path / "model")
    again = AutoPipeline.from_pretrained(tmp_path / "model")
    again.set_progress_bar_config(disable=True)
    assert isinstance(again, AutoregressivePipeline)
    assert again.sample_shape == SHAPE
    images = [one(2, class_labels=1, generator=seed(0), output_type="np").images for one in (pipe, again)]
    assert (images[0] == images[1]).all()


def test_a_callback_sees_each_entry_and_may_stop() -> None:
    pipe = make()
    steps: list[int] = []

    def stop(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(step)
        pipe._interrupt = step == 5
        return tensors

    entries = pipe(1, callback_on_step_end=stop, output_type="latent").images
    assert steps == [0, 1, 2, 3, 4, 5]
    assert int((entries >= 0).sum()) == 6


@pytest.mark.parametrize(("arguments", "words"), [
    ({"num_steps": 4}, "num_steps must be 16"), ({"rows": 2}, "rows requires an image"),
    ({"temperature": 0.0}, "temperature"), ({"class_labels": 1}, "class_labels must be None"),
    ({"prompt": "red"}, "prompt must be None"), ({"guidance_scale": 2.0}, "guidance_scale must be 1"),
])  # fmt: skip
def test_arguments_that_do_not_fit_are_refused_before_the_first_draw(arguments: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make().states(**arguments)


def test_num_steps_may_be_the_number_of_entries() -> None:
    pipe = make()
    assert pipe(1, num_inference_steps=16, output_type="pt").images.shape == (1, *SHAPE)
    assert pipe.num_timesteps == 16


@pytest.mark.parametrize("settings", [{"levels": 4}, {"image_shape": (1, 4, 5)}, {"image_shape": None}])
def test_a_network_of_other_entries_than_the_images_is_refused(settings: Any) -> None:
    with pytest.raises(ConfigError, match=r"entries|image_shape"):
        make(**settings)
