"""Sources of hfgen for readers of a published model: its publisher names one. Default: no source.

Nobody has registered the name hfgen on PyPI for this project. An install line with the bare name would run the code of
whoever takes it, on the machine of every reader.
"""

import os
import re
import shlex
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from hfgen.errors import ConfigError

VARIABLE = "HFGEN_SOURCE"
NOT_OURS = "hfgen is not on PyPI under a name of ours: ask the publisher of this model for the source"
SCHEME = re.compile(r"(?:git\+)?(?:https|ssh|file)")
ALLOWED = (
    "a URL (https://..., git+https://..., git+ssh://..., file://...) or a requirement of pip that is not the bare name "
    "hfgen, which on PyPI is not ours"
)


def checked_source(source: str | None = None) -> str | None:
    """Return the source from which pip installs hfgen: `source`, else HFGEN_SOURCE, else None.

    Raises ConfigError for text that pip cannot install from, for a URL with a password in it, and for the bare name.
    """
    given = os.environ.get(VARIABLE) or None if source is None else source
    if given is None:
        return None
    if "://" in given and not re.match(r"[\w.\[\], -]+@ ", given):
        safe = _is_public(given) and not re.search(r"\s", given)
    else:
        safe = _is_requirement(given)
    if not (safe and given.isascii() and given.isprintable()):
        raise ConfigError(f"source (--source, {VARIABLE}) must be {ALLOWED}, without credentials; got {given!r}")
    return given


def _is_public(url: str) -> bool:
    """Return whether `url` has an encrypted or local scheme, and no credentials."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    user = parts.username if "ssh" not in parts.scheme else None
    return SCHEME.fullmatch(parts.scheme) is not None and user is None and parts.password is None


def _is_requirement(text: str) -> bool:
    try:
        found = Requirement(text)
    except InvalidRequirement:
        return False
    return canonicalize_name(found.name) != "hfgen" if found.url is None else _is_public(found.url)


def install_command(source: str) -> str:
    """Return the shell command that installs hfgen from `source`."""
    return f"pip install {shlex.quote(source)}"


def install_lines(source: str | None) -> list[str]:
    """Return the Markdown lines on the installation of hfgen for a card."""
    if source is None:
        return [f"{NOT_OURS}, and do not install the name from an index."]
    text = "hfgen is installed from the source that the publisher of this model names; the name on PyPI is not ours:"
    return [text, "", "```bash", install_command(source), "```"]


def shim(name: str, source: str | None) -> str:
    """Return the code of a shim, through which diffusers finds hfgen's class `name`.

    Python prints the line of a failed import, so its comment tells the reader how to install hfgen.
    """
    hint = NOT_OURS if source is None else install_command(source)
    return f"# Needs hfgen. {hint}\nfrom hfgen import {name}  # {hint}\n"
