"""Texts as conditions: a tokenizer over the words of captions, and a small CLIP text encoder (Radford et al. 2021)."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from hfgen.errors import ConfigError

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
Merge = tuple[str, str]


def build_tokenizer(captions: Iterable[str], max_words: int = 4096, max_length: int = 77) -> CLIPTokenizer:
    """Return a CLIP tokenizer in which each of the `max_words` most frequent words of `captions` is one token.

    It is a byte-pair encoding (Sennrich et al. 2016) whose merges build those words. Any other text becomes pieces of
    words or single bytes. `max_length`: tokens that a text is padded or cut to, start and end included; at most that
    of the longest caption.
    """
    # count the words
    letters = sorted(ByteLevel.alphabet())
    alphabet = [START, END, *letters, *(c + WORD_END for c in letters)]
    spelling = CLIPTokenizer(vocab=_numbered(alphabet), merges=[])
    counts: Counter[tuple[str, ...]] = Counter()
    longest = 1
    for caption in captions:
        words = _words(spelling, caption)
        counts.update(words)
        longest = max(longest, len(words))
    # merge the letters of the most frequent words
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:max_words]
    merges = merges_for(frequent)
    vocabulary = [*alphabet, *(a + b for a, b in merges)]
    options: Any = {"merges": merges, "model_max_length": min(max_length, longest + 2)}
    return CLIPTokenizer(vocab=_numbered(vocabulary), **options)


def merges_for(words: Iterable[tuple[str, ...]]) -> list[Merge]:
    """Return merges in order of rank that make each word, a tuple of letters, one token.

    A word that earlier merges leave in pieces gets merges of its own. They have lower rank and do not change earlier
    words.
    """
    ranks: dict[Merge, int] = {}
    for word in words:
        pieces = _merged(list(word), ranks)
        while len(pieces) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
            pieces = _merged(pieces, ranks)
    return list(ranks)


def build_text_encoder(
    tokenizer: CLIPTokenizer, hidden_size: int = 128, layers: int = 2, heads: int = 4
) -> CLIPTextModel:
    """Return a CLIP text encoder with random weights for the texts of `tokenizer`.

    Token embeddings are initialised with variance 1, not CLIP's 0.02^2: next to the first words that are learned,
    small embeddings of other words would vanish in the normalisation, and their gradients with them. Raises ConfigError
    unless `hidden_size` is a multiple of `heads`, and for sizes below 1.
    """
    if min(hidden_size, layers, heads) < 1 or hidden_size % heads:
        raise ConfigError(f"hidden_size must be a multiple of heads, all above 0, got {hidden_size}, {heads}, {layers}")
    net = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=hidden_size, intermediate_size=4 * hidden_size,
        projection_dim=hidden_size, num_hidden_layers=layers, num_attention_heads=heads,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))  # fmt: skip
    tokens: Any = net.get_input_embeddings()
    torch.nn.init.normal_(tokens.weight)
    return net


def token_ids(tokenizer: Any, texts: list[str], device: torch.device | str = "cpu") -> Tensor:
    """Return the tokens of texts, int64 (B, L) in [0, vocabulary - 1], padded or cut to the tokenizer's length L."""
    encoding = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    ids: Tensor = encoding["input_ids"].to(device)
    return ids


def check_tokens(text_encoder: CLIPTextModel, tokenizer: Any) -> None:
    """Raise ConfigError unless the text encoder has a position and an embedding for every token that may come."""
    config = text_encoder.config
    for what, needed, there in (
        ("positions for texts", tokenizer.model_max_length, config.max_position_embeddings),
        ("tokens", len(tokenizer), config.vocab_size),
    ):
        if needed > there:
            raise ConfigError(f"the tokenizer has {needed:,} {what}, the text encoder {there:,}: they do not belong "
                              "together")  # fmt: skip


def _numbered(tokens: Iterable[str]) -> dict[str, int]:
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


def _words(spelling: CLIPTokenizer, caption: str) -> list[tuple[str, ...]]:
    """Return the words into which the tokenizer divides a caption, each as a tuple of letters."""
    backend = spelling.backend_tokenizer
    text = backend.normalizer.normalize_str(caption)
    words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    return [(*word[:-1], word[-1] + WORD_END) for word in words if word]


def _merged(pieces: list[str], ranks: dict[Merge, int]) -> list[str]:
    """Return the pieces of a word after all merges that apply, in order of rank."""
    while True:
        pairs = [(ranks[pair], i) for i, pair in enumerate(pairwise(pieces)) if pair in ranks]
        if not pairs:
            return pieces
        _, i = min(pairs)
        pieces = [*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2 :]]
