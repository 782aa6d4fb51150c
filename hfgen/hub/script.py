"""A recipe as one file that installs itself: a script with inline metadata (PEP 723) for jobs on rented machines."""

from pathlib import Path

from hfgen.errors import ConfigError
from hfgen.hub.source import VARIABLE, checked_source
from hfgen.registry import RECIPES

TEMPLATE = '''# /// script
# requires-python = ">=3.11"
# dependencies = [{requirement}]
# ///
"""Train {recipe} of hfgen. The options are those of `hfgen train {recipe}`.

    hf jobs uv run --flavor a10g-small --secrets HF_TOKEN {name} --output-dir run --publish-to USER/NAME
    uv run {name} --output-dir run
"""

import sys

from {module} import RECIPE
from hfgen.training.engine.run import main

if __name__ == "__main__":
    sys.exit(main(RECIPE))
'''


def write_script(recipe: str, path: Path, source: str | None = None) -> None:
    """Write the script of a recipe to `path`; uv installs hfgen from `source`, by default HFGEN_SOURCE.

    Raises ConfigError without a source, and for a file that exists.
    """
    source = checked_source(source)
    if source is None:
        raise ConfigError(f"--source, or {VARIABLE}, must name where hfgen is installed from, such as "
                          "git+https://HOST/OWNER/hfgen")  # fmt: skip
    if path.exists():
        raise ConfigError(f"-o {path}: exists; name a new file")
    # a URL as a requirement
    requirement = source
    if "://" in source and "@ " not in source:
        requirement = f"hfgen @ {source}"
    text = TEMPLATE.format(recipe=recipe, name=path.name, module=RECIPES[recipe], requirement=f'"{requirement}"')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
