"""Source from which readers of a published model install hfgen. The publisher names it. Default: none.

Nobody has registered the name hfgen on PyPI for this project. An install line with the bare name would run, on the
machine of every reader, the code of anybody who registers it.
"""

import os
import re
import shlex
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from hfgen.errors import ConfigError

VARIABLE = "HFGEN_SOURCE"
NOT_OURS = "This project has no package on PyPI: ask the publisher of this model for the source of hfgen"
SCHEME = re.compile(r"(?:git\+)?(?:https|ssh|file)")
ALLOWED = (
    "a URL (https://..., git+https://..., git+ssh://..., file://...) or a requirement of pip that is not the bare name "
    "hfgen, which this project does not own on PyPI"
)


def checked_source(source: str | None = None) -> str | None:
    """Return the source from which pip installs hfgen: `source`, else HFGEN_SOURCE, else None.

    Raises ConfigError for text that pip cannot install from, for a URL with a password in it, and for the bare name.
    """
    # read the source
    given = source
    if source is None:
        given = os.environ.get(VARIABLE) or None
    if given is None:
        return None
    # check it as a URL, or as a requirement of pip
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
    """Return whether `text` is a requirement of pip with another name than hfgen, or with a public URL."""
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return False
    if requirement.url is None:
        return canonicalize_name(requirement.name) != "hfgen"
    return _is_public(requirement.url)


def install_command(source: str) -> str:
    """Return the shell command that installs hfgen from `source`."""
    return f"pip install {shlex.quote(source)}"


def install_lines(source: str | None) -> list[str]:
    """Return the Markdown lines on the installation of hfgen for a card."""
    if source is None:
        return [f"{NOT_OURS}, and do not install the name hfgen from an index."]
    text = "The publisher of this model names the source of hfgen. Do not install the name hfgen from an index:"
    return [text, "", "```bash", install_command(source), "```"]


def shim(name: str, source: str | None) -> str:
    """Return the code of a shim, a module through which diffusers imports hfgen's class `name`.

    Python prints the line of a failed import, so the comment in that line names the source of hfgen.
    """
    hint = NOT_OURS if source is None else install_command(source)
    return f"# Needs hfgen. {hint}\nfrom hfgen import {name}  # {hint}\n"
