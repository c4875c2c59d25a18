"""Sphinx extension: light pages that ask no other host for anything.

Four small repairs, made while each page is written:

* the theme and its plug-ins register some scripts twice, and the second copy
  stops with "has already been declared": keep the first;
* MathJax, two megabytes, comes with every page: keep it where there is maths;
* a notebook's Colab badge is an image on another host, as GitHub and
  JupyterLab want it: write it as text, which the style sheet dresses;
* Matplotlib's animation players link an icon font on another host, for icons
  that the theme brings anyway: drop the link.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

COLAB_BADGE = re.compile(
    r'<img [^>]*src="https://colab\.research\.google\.com/assets/'
    r'colab-badge\.svg"[^>]*>'
)
COLAB_TEXT = '<span class="colab-badge">Open in Colab</span>'
# The head of every player: matplotlib.animation, JS_INCLUDE.
ICON_FONT = re.compile(
    r'<link\s+rel="stylesheet"\s+'
    r'href="https://maxcdn\.bootstrapcdn\.com/font-awesome/[^"]+">'
)


def localise(html: str) -> str:
    """Rid a page's body of the resources that notebooks load from afar."""
    return ICON_FONT.sub("", COLAB_BADGE.sub(COLAB_TEXT, html))


def drop_repeated(scripts: list[Any]) -> list[Any]:
    """Keep the first of equal scripts, in order.

    Parameters
    ----------
    scripts : list
        Sphinx's script entries: a file name, or an object with a
        ``filename`` and ``attributes`` (inline code is in ``body``).
    """
    kept: dict[Any, Any] = {}
    for script in scripts:
        attributes = getattr(script, "attributes", {})
        name = getattr(script, "filename", script)
        # An inline script's name is None or empty, depending on who adds it.
        kept.setdefault((name or "", attributes.get("body")), script)
    return list(kept.values())


def drop_mathjax(scripts: list[Any]) -> list[Any]:
    """Leave out MathJax itself; its inline settings harm nobody."""
    return [
        script
        for script in scripts
        if "mathjax/" not in str(getattr(script, "filename", script))
    ]


def repair_page(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict[str, Any],
    doctree: Any,
) -> None:
    """Apply the repairs to the context of one page."""
    body = context.get("body", "")
    scripts = drop_repeated(context["script_files"])
    if 'class="math' not in body:
        scripts = drop_mathjax(scripts)
    context["script_files"] = scripts
    context["body"] = localise(body)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the repairs, after every extension that adds scripts."""
    app.connect("html-page-context", repair_page, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
