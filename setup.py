"""Addresses of the project and its page in an index of packages; all other metadata stand in setup.cfg.

The address is nobody's but the publisher's, who names it in HFGEN_SOURCE as for `hfgen publish`:

    HFGEN_SOURCE=https://HOST/OWNER/hfgen python -m build

With it the page links to the repository, and its pictures and links, which are relative in README.md, are absolute.
"""

import os
import re
from pathlib import Path

from setuptools import setup

source = os.environ.get("HFGEN_SOURCE", "").removeprefix("git+").removesuffix(".git").rstrip("/")
page = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
urls = {}
if source.startswith("https://"):
    urls = {"Source": source, "Changelog": f"{source}/blob/HEAD/CHANGELOG.md"}
    page = re.sub(r"(!\[[^]]*\]\()(?!https?:)", rf"\g<1>{source}/raw/HEAD/", page)
    page = re.sub(r"((?<!!)\[[^]]*\]\()(?!https?:|#)", rf"\g<1>{source}/blob/HEAD/", page)

setup(long_description=page, long_description_content_type="text/markdown", project_urls=urls)
