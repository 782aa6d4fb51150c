"""Strings of users in cards: whatever they hold, YAML parses, Markdown keeps its form and a shell reads them back."""

import ast
import html
import json
import os
import re
import subprocess

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from hfgen.cards import markdown
from hfgen.cards.metadata import END
from hfgen.cards.write import write_card
from tests.cards.helpers import NAMES, blocks, card_of, make_run

HOSTILE = [
    *NAMES, "plain", "emoji 🦊 ümläut", "pipe | in | table", "`tick` ```\n```", "<script>alert(1)</script>", END,
    f"\n{END}\n", "&amp; &#124; \\| \\`", "{% x %} {{ y }} $(id) $x",
    "!!python/object:os.system [a, b] *x &y", "\x00\x07\u2028\x85", "\udc80 not utf-8", "*bold* _it_ ~~no~~ # @user",
    "- [x] 1. list", "no", "1e-5", "", " ", "-rf", "x" * 300, "[link](javascript:x) ![i](y)", "٣ ½ \u200f rtl",
]  # fmt: skip


def structure(text: str) -> list[str]:
    """Return what a Markdown reader sees in a card, but for the text itself."""
    markdown_it = pytest.importorskip("markdown_it")
    tokens = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(ModelCard(text).text)
    plain = {"text", "code_inline"}
    return [f"{t.type} {t.tag} {[c.type for c in t.children or [] if c.type not in plain]}" for t in tokens]


@pytest.mark.parametrize("text", HOSTILE)
def test_whatever_names_hold_the_yaml_parses_and_the_markdown_keeps_its_form(text: str, folder, tmp_path) -> None:
    def written(name: str, where: str) -> str:
        record = {"data": {"items": 3, "class_names": [name, "b"]}, "changed": ["dataset", "background"]}
        run = make_run(tmp_path / where, record, dataset=name or "x", background=name, output_dir=f"runs/{where}")
        judged = {"dataset": name, "metrics": {name: {"value": 1.5, "low": 1, "high": 2}}, "extractor": {name: name}}
        (run / "evaluation.json").write_text(json.dumps(judged))
        return card_of(folder, run, "owner/name")

    found, harmless = written(text, "hostile"), written("two words", "run")
    name = markdown.last_name(text) if {"/", "\\"} & {*text} else text
    assert structure(found) == structure(harmless)
    head = ModelCard(found).data.to_dict()
    results = model_index_to_eval_results(head["model-index"])[1]
    assert results[0].metric_type == results[0].metric_name == markdown.plain(text)
    assert results[0].metric_args["low"] == 1 and results[0].metric_args["extractor"] == {
        markdown.plain(text): markdown.plain(name)
    }
    shown = yaml.safe_load(blocks(found, "yaml")[0])
    assert shown["dataset"] == (name or "x") and shown.get("background", "") == name
    if "\x00" not in name:                                      # which no argument of a program can hold
        script = "hfgen() { printf '%s\\0' \"$@\"; }\n" + blocks(found, "bash")[0]
        words = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout.split(b"\0")
        flags = b"--dataset=" if name.startswith("-") else b"--dataset\0"
        assert flags + os.fsencode(name or "x") + b"\0" in b"\0".join(words)
    assert write_card(folder, tmp_path / "hostile", "owner/name").read_text() == found


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_texts_read_back_as_they_were(text: str) -> None:
    assert ast.literal_eval(markdown.literal(text)) == text == yaml.safe_load(markdown.literal(text))
    assert html.unescape(markdown.markdown(text)) == markdown.plain(text)
    assert markdown.plain(text).isprintable() and "\n" not in markdown.shell(text) + markdown.literal(text)
    assert not set("<>|`*_[]{}#~@$&\\!") & set(re.sub(r"&#\d+;", "", markdown.markdown(text)))
