"""Strings of users, such as the names of datasets and classes, as they may stand in Markdown, YAML, Python and a shell.

Whatever they hold, they stay one line, and end no table, code block, comment or literal that they stand in.
"""

import re
import shlex
from typing import Any

import yaml

PLAIN = frozenset(" .,:;/%=()+-")
"""What, beside letters and digits, means nothing to Markdown inside of a line."""

NAME = re.compile(r"[\w.,:/=()'\[\]%*+-]+", re.ASCII)
SEPARATORS = re.compile(r"[/\\]|^[A-Za-z]:")
QUOTED = "\\'"

LIMITS = (
    "It knows what its training data show and nothing else, their gaps and biases included.",
    "The licence of the weights is for whoever publishes them to say, as `license:` in the head of this card.",
)
"""Limits of every model."""


def plain(text: str) -> str:
    """Return `text` with an escape such as `\\n` in the place of every character that does not print."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def markdown(text: str) -> str:
    """Return Markdown that shows `text`, wherever a line may hold text, cells of tables included."""
    return "".join(c if c.isalnum() or c in PLAIN else f"&#{ord(c)};" for c in plain(text))


def code(text: str) -> str:
    """Return `text` as inline code, or as `markdown` does where it holds more than a name."""
    return f"`{text}`" if NAME.fullmatch(text) else markdown(text)


def table(*rows: tuple[str, ...]) -> str:
    """Return a Markdown table of cells that are Markdown; the first row is its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]])


def literal(value: Any) -> str:
    """Return a number, a truth value, None, a text or a list of them as one line of YAML.

    A text is in double quotes, with escapes that Python reads as well.
    """
    if isinstance(value, list | tuple):
        return f"[{', '.join(literal(item) for item in value)}]"
    if isinstance(value, str):
        return f'"{"".join(_escaped(c) for c in value)}"'
    return yaml.safe_dump(value).splitlines()[0]


def shell(word: str) -> str:
    """Return `word` as one word, and one line, of a shell: as it is, in single quotes, or as bash's $'...'."""
    if word.isprintable():
        return shlex.quote(word)
    return f"$'{''.join(c if c.isprintable() and c not in QUOTED else _bytes(c) for c in word)}'"


def last_name(text: str) -> str:
    """Return the last name of a path of any system, which does not say where it lies; a text that is none as it is."""
    parts = [part for part in SEPARATORS.split(text) if part not in ("", "~", ".", "..")]
    return parts[-1] if parts else ""


def _bytes(c: str) -> str:
    """Return the bytes of a character as a shell writes them; of a file name that is not UTF-8 they are its own."""
    errors = "surrogateescape" if "\udc80" <= c <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in c.encode("utf-8", errors))


def _escaped(c: str) -> str:
    if c in '"\\':
        return f"\\{c}"
    if c.isprintable():
        return c
    letter, width = ("x", 2) if ord(c) < 0x100 else ("u", 4) if ord(c) < 0x10000 else ("U", 8)
    return f"\\{letter}{ord(c):0{width}x}"
