"""Cards on disk: hfgen writes the YAML head and one section between two marks; all other text is kept.

Fields of the head that a user wrote or changed are kept too. Fields that hfgen wrote are updated; the card holds a
digest of each of them, which shows whether they were changed.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import yaml_dump

from hfgen.cards.markdown import markdown
from hfgen.errors import ConfigError

CARD = "README.md"
LICENCE = "license"
BEGIN, END = "<!-- hfgen:begin -->", "<!-- hfgen:end -->"
MARKS = re.compile(rf"^(?:{BEGIN}|{END})(?=\r?$)", re.MULTILINE)
WRITTEN = re.compile(r"^<!-- hfgen:head(?P<digests>(?: [\w-]+=[0-9a-f]+)*) -->\r?$", re.MULTILINE)
TITLE = re.compile(r"^#\s", re.MULTILINE)

COMMAND = "hfgen "
"""Prefix of the argument `command`, by which hfgen recognises its own metrics."""


def update_card(path: Path, ours: dict[str, Any], title: str, section: list[str]) -> Path:
    """Return `path`, a card with the head `ours`, the lines of `section`, and `title` unless the card has a title.

    Raises ConfigError if the head is not YAML or the marks do not match; the card is then unchanged.
    """
    # the card as it is
    text = _read(path)
    head_text, old_head, body = _split(path, text)
    before, old_section, after = _parts(path, body)
    written = WRITTEN.search(old_section)
    # the new head, and the digests of its fields
    old_digests: dict[str, str] = {}
    if written:
        old_digests = dict(pair.split("=") for pair in written["digests"].split())
    head = merged(old_head, ours, old_digests)
    marked = "".join(f" {key}={value}" for key, value in digests(ours, head).items())
    # the new section
    lines = [BEGIN, f"<!-- hfgen:head{marked} -->", ""]
    if not TITLE.search(before + after):
        lines += [f"# {markdown(title)}", ""]
    # the file, with its own line ends
    eol = "\r\n" if "\r\n" in text else "\n"
    block = head_text
    if head != old_head:
        block = f"---\n{yaml_dump(head, sort_keys=False)}---\n".replace("\n", eol)
    content = block + before + "\n".join([*lines, *section, "", END]).replace("\n", eol) + after
    if content != text:
        with path.open("w", encoding="utf-8", newline="") as file:
            file.write(content)
    return path


def has_licence(path: Path) -> bool:
    """Return whether the head of a card names a licence."""
    _, head, _ = _split(path, _read(path))
    return bool(head.get(LICENCE))


def _read(path: Path) -> str:
    """Return the text of a card, with its line ends; "" if there is no card."""
    if not path.is_file():
        return ""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 ({error}); save it in this encoding, or move it away") from error


def _split(path: Path, text: str) -> tuple[str, dict[str, Any], str]:
    """Return the head of a card as text and as YAML, and the text after it."""
    # text of the head
    match = REGEX_YAML_BLOCK.match(text)
    if match is None:
        if text.lstrip().startswith("---"):
            raise ConfigError(f"{path}: its head begins with --- and does not end with one; nothing was changed")
        return "", {}, text
    # its YAML
    try:
        head = yaml.safe_load(match[2])
        ModelCard(text)
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: its head is not the YAML of a model card ({reason}); repair it, or move the file "
                          "away; nothing was changed") from error  # fmt: skip
    return match[0], head or {}, text[match.end() :]


def _parts(path: Path, body: str) -> tuple[str, str, str]:
    """Return the text before hfgen's section, the section, and the text after it; a new section comes last."""
    marks = list(MARKS.finditer(body))
    if not marks:
        text = body.rstrip()
        if text:
            return f"{text}\n\n", "", "\n"
        return "\n", "", "\n"
    if [mark[0] for mark in marks] != [BEGIN, END]:
        raise ConfigError(f"{path}: {BEGIN} and {END} must each occur once, in this order, or not at all; "
                          "nothing was changed")  # fmt: skip
    first, last = marks
    return body[: first.start()], body[first.start() : last.end()], body[last.end() :]


def merged(old: dict[str, Any], ours: dict[str, Any], written: dict[str, str]) -> dict[str, Any]:
    """Return the head `old` of a card, updated with `ours`; `written`: digests of the values that hfgen wrote.

    A field keeps its place and, unless hfgen wrote its value, its value. `model-index` joins both.
    """
    # join the metrics, keep the fields of users; a licence that is named now replaces another
    index = _others(old.get("model-index")) + ours.get("model-index", [])
    kept = {key: value for key, value in old.items() if written.get(key) != digest(value)}
    fields = {**ours, **kept, "model-index": index}
    if LICENCE in ours:
        fields[LICENCE] = ours[LICENCE]
    if not index:
        del fields["model-index"]
    # in the order of the old head
    return {key: fields[key] for key in dict.fromkeys([*old, *fields]) if key in fields}


def digests(ours: dict[str, Any], head: dict[str, Any]) -> dict[str, str]:
    """Return `{key: digest}`, sorted, of the values of `ours` that are in `head`, without `model-index`.

    A licence is the user's own; later cards keep it.
    """
    same = sorted(key for key in ours if key not in ("model-index", LICENCE) and head[key] == ours[key])
    return {key: digest(ours[key]) for key in same}


def digest(value: Any) -> str:
    """Return a digest of a YAML value, twelve hexadecimal digits."""
    return hashlib.sha256(str(yaml_dump(value)).encode()).hexdigest()[:12]


def _others(index: Any) -> list[Any]:
    """Return a `model-index` without hfgen's metrics, and without results and models that are then empty."""
    models = []
    for model in index or []:
        results = []
        for result in model["results"]:
            metrics = [metric for metric in result["metrics"] if not _is_ours(metric)]
            if metrics:
                results.append({**result, "metrics": metrics})
        if results:
            models.append({**model, "results": results})
    return models


def _is_ours(metric: dict[str, Any]) -> bool:
    """Return whether hfgen measured a metric of a `model-index`."""
    args = metric.get("args")
    return isinstance(args, dict) and str(args.get("command", "")).startswith(COMMAND)
