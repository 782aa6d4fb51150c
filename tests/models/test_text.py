"""Tokenizer and text encoder: words of captions are single tokens, folders load in transformers and without code."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from hfgen.data.shapes.captions import captions_of
from hfgen.data.shapes.scene import COMBINATIONS, combined
from hfgen.errors import CheckpointError, ConfigError
from hfgen.loading.components import component_class, load_component
from hfgen.models.text import build_text_encoder, build_tokenizer, merges_for, token_ids

CAPTIONS = captions_of(combined(torch.arange(COMBINATIONS).numpy()))
OTHERS = ["", "a dreadful redder square!", "Ünïcode Grünkohl 12", "circle circled on-white", CAPTIONS[7]]


def test_each_word_of_the_captions_is_one_token_and_any_text_comes_back() -> None:
    tokenizer = build_tokenizer(CAPTIONS)
    for caption in CAPTIONS[::97]:
        assert len(tokenizer.tokenize(caption)) == len(caption.split())
        assert tokenizer.decode(tokenizer(caption)["input_ids"], skip_special_tokens=True) == caption
    longest = max(len(caption.split()) for caption in CAPTIONS)
    assert tokenizer.model_max_length == longest + 2
    assert tokenizer.tokenize("grünkohl")[0] == "gr" and len(tokenizer) < 700
    ids = token_ids(tokenizer, OTHERS)
    assert ids.shape == (5, longest + 2) and len({tuple(row) for row in ids.tolist()}) == 5
    assert ids[0].tolist() == [0] + [1] * (longest + 1)                        # start, end, and padding


def test_rarer_words_are_spelt_from_pieces() -> None:
    tokenizer = build_tokenizer(["red green", "red blue", "red green"], max_words=2)
    assert [len(tokenizer.tokenize(word)) for word in ("red", "green", "blue")] == [1, 1, 4]


def test_merges_of_one_word_leave_the_words_before_it_whole() -> None:
    words = [("r", "e", "d</w>"), ("g", "r", "e", "e", "n</w>"), ("r", "e", "e", "d</w>"), ("a", "a", "a", "a</w>")]
    letters = sorted({c for word in words for c in word} | {"<|startoftext|>", "<|endoftext|>"})
    vocabulary = {c: i for i, c in enumerate(letters)}
    merges = merges_for(words)
    vocabulary |= {a + b: len(vocabulary) + i for i, (a, b) in enumerate(merges)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges)
    for word in words:
        assert tokenizer.tokenize("".join(word).removesuffix("</w>")) == ["".join(word)]


def test_the_folder_of_a_tokenizer_loads_in_transformers_and_in_hfgen_alike(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(CAPTIONS)
    tokenizer.save_pretrained(tmp_path)
    stock = CLIPTokenizer.from_pretrained(tmp_path)
    cls = component_class(tmp_path, "tokenizer", "transformers", "CLIPTokenizer")
    ours = load_component(tmp_path, "tokenizer", cls, "CLIPTokenizer")
    for again in (stock, ours):
        assert torch.equal(token_ids(again, OTHERS), token_ids(tokenizer, OTHERS))
    table = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    (tmp_path / "tokenizer.json").unlink()                                     # as in older folders
    (tmp_path / "vocab.json").write_text(json.dumps(table["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in table["merges"]))
    old = load_component(tmp_path, "tokenizer", cls, "CLIPTokenizer")
    assert torch.equal(token_ids(old, OTHERS), token_ids(tokenizer, OTHERS))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tokenizer_config.json", {"model_max_length": 10**30}, "'model_max_length' must be in"),
        ("tokenizer_config.json", {"pad_token": "nothing"}, "'pad_token' must be a token of the vocabulary"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": "evil.Evil"}}, "auto_map"),
        ("tokenizer.json", {"model": {"vocab": {"a": 5}, "merges": []}}, "'vocab' must number at most"),
        ("tokenizer.json", {"model": {"vocab": {"a": "x"}, "merges": []}}, "'vocab' must number at most"),
        ("tokenizer.json", {"model": None}, "'model' must be an object"),
        ("tokenizer.json", {"model": {"vocab": {"a": 0}, "merges": ["a"]}}, "each of 'merges' must be two tokens"),
    ],
)
def test_a_broken_tokenizer_is_refused_with_its_file(tmp_path: Path, file: str, change: Any, message: str) -> None:
    build_tokenizer(["red"]).save_pretrained(tmp_path)
    path = tmp_path / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(Exception, match=message) as caught:
        load_component(tmp_path, "tokenizer", CLIPTokenizer, "CLIPTokenizer")
    assert type(caught.value).__module__ == "hfgen.errors" and file in str(caught.value)


def test_a_text_encoder_loads_with_every_bit_and_other_weights_are_refused(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(CAPTIONS)
    encoder: Any = build_text_encoder(tokenizer, 16, 1, 2).eval()
    for part in (encoder, tokenizer):
        part.save_pretrained(tmp_path)
    ids = token_ids(tokenizer, OTHERS)
    with torch.no_grad():
        expected = encoder(input_ids=ids).last_hidden_state
        assert expected.shape == (5, tokenizer.model_max_length, 16)
        ours = load_component(tmp_path, "text_encoder", CLIPTextModel, "CLIPTextModel")
        assert torch.equal(ours(input_ids=ids).last_hidden_state, expected)
    state = {f"text_model.{key}": tensor for key, tensor in encoder.state_dict().items()}       # as in older folders
    state["text_model.embeddings.position_ids"] = torch.arange(tokenizer.model_max_length)[None]
    save_file(state, tmp_path / "model.safetensors")
    with torch.no_grad():
        old = load_component(tmp_path, "text_encoder", CLIPTextModel, "CLIPTextModel")
        assert torch.equal(old(input_ids=ids).last_hidden_state, expected)
    config = json.loads((tmp_path / "config.json").read_text()) | {"vocab_size": 7}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="misshaped"):
        load_component(tmp_path, "text_encoder", CLIPTextModel, "CLIPTextModel")


def test_at_its_place_a_word_is_heard_above_the_others() -> None:
    tokenizer = build_tokenizer(["a red circle on white", "a blue square on black"])
    ids = token_ids(tokenizer, ["a red circle on white", "a red square on white", "a blue circle on white"])
    for _ in range(3):
        with torch.no_grad():
            h = build_text_encoder(tokenizer, 128, 2, 4)(input_ids=ids).last_hidden_state[:, 3]      # at the shape
        assert (h[1] - h[0]).norm() > 3 * (h[2] - h[0]).norm() > 0


def test_sizes_that_fail_are_refused() -> None:
    with pytest.raises(ConfigError, match="hidden_size must be a multiple of heads"):
        build_text_encoder(build_tokenizer(["red"]), 10, 1, 4)
