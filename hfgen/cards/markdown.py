"""Quoting of users' strings, such as names of datasets and classes, for Markdown, YAML, Python and a shell.

A quoted string is one line, and ends no table, code block, comment or literal around it.
"""

import re
import shlex
from typing import Any

import yaml

PLAIN = frozenset(" .,:;/%=()+-")
"""Characters, beside letters and digits, without a meaning in a line of Markdown."""

NAME = re.compile(r"[\w.,:/=()'\[\]%*+-]+", re.ASCII)
SEPARATORS = re.compile(r"[/\\]|^[A-Za-z]:")
QUOTED = "\\'"

LIMITS = (
    "It reproduces its training data, including their gaps and biases.",
    "The publisher states the licence of the weights, as `license:` in the head of this card.",
)
"""Limits of all models."""


def plain(text: str) -> str:
    """Return `text`; every character that is not printable is replaced by an escape such as `\\n`."""
    return "".join(map(_printable, text))


def markdown(text: str) -> str:
    """Return Markdown that shows `text` in a line, also in a cell of a table."""
    return "".join(map(_entity, plain(text)))


def code(text: str) -> str:
    """Return `text` as inline code if it is a name, else as `markdown(text)`."""
    if NAME.fullmatch(text):
        return f"`{text}`"
    return markdown(text)


def table(*rows: tuple[str, ...]) -> str:
    """Return a Markdown table of cells that are Markdown; the first row is its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]])


def literal(value: Any) -> str:
    """Return a number, a bool, None, a text or a list of them as one line of YAML.

    A text is in double quotes, with escapes that Python reads as well.
    """
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, str):
        return f'"{"".join(map(_escaped, value))}"'
    return yaml.safe_dump(value).splitlines()[0]


def shell(word: str) -> str:
    """Return `word` as one word, and one line, of a shell: as it is, in single quotes, or as bash's $'...'."""
    if word.isprintable():
        return shlex.quote(word)
    letters = [c if c.isprintable() and c not in QUOTED else _bytes(c) for c in word]
    return f"$'{''.join(letters)}'"


def last_name(text: str) -> str:
    """Return the last name of a path of any system, without its folders; other text unchanged."""
    names = [name for name in SEPARATORS.split(text) if name not in ("", "~", ".", "..")]
    return next(reversed(names), "")


def _printable(c: str) -> str:
    """Return a character as it is if it is printable, else as an escape."""
    if c.isprintable():
        return c
    return c.encode("unicode_escape").decode()


def _entity(c: str) -> str:
    """Return a character as it is if it has no meaning in Markdown, else as an entity of HTML."""
    if c.isalnum() or c in PLAIN:
        return c
    return f"&#{ord(c)};"


def _bytes(c: str) -> str:
    """Return the bytes of a character as shell escapes; bytes of a file name that is not UTF-8 are kept."""
    errors = "surrogateescape" if "\udc80" <= c <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in c.encode("utf-8", errors))


def _escaped(c: str) -> str:
    """Return a character of a text in double quotes: as it is, or as an escape of YAML and Python."""
    if c in '"\\':
        return f"\\{c}"
    if c.isprintable():
        return c
    if ord(c) < 0x100:
        return f"\\x{ord(c):02x}"
    if ord(c) < 0x10000:
        return f"\\u{ord(c):04x}"
    return f"\\U{ord(c):08x}"
