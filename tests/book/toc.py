"""What `_toc.yml` lists, for tests that go through all pages."""

from collections.abc import Iterator

import yaml

from notebooks import ROOT


def _files(entry: dict) -> Iterator[str]:
    if "file" in entry:
        yield entry["file"]
    for key in ("parts", "chapters", "sections"):
        for below in entry.get(key, []):
            yield from _files(below)


TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *_files(TOC)]
NOTEBOOK_PAGES = [page for page in PAGES if page.startswith("notebooks/")]
