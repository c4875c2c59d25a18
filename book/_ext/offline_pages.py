"""Sphinx extension: light pages that ask no other host for anything.

Four small repairs, made while each page is written:

* the theme and its plug-ins register some scripts twice, and the second copy
  stops with "has already been declared": keep the first;
* MathJax, two megabytes, comes with every page: keep it where there is maths;
* a notebook's Colab badge is an image on another host, as GitHub and
  JupyterLab want it: write it as text, which the style sheet dresses;
* Thebe, which would run cells on a server elsewhere, comes with every page and
  is used on none: leave it out.
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


def localise(html: str) -> str:
    """Rid a page's body of the resources that notebooks load from afar."""
    return COLAB_BADGE.sub(COLAB_TEXT, html)


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
        name = getattr(script, "filename", script)
        # An inline script's name is None or empty, depending on who adds it.
        kept.setdefault((name or "", _body(script)), script)
    return list(kept.values())


def drop_mathjax(scripts: list[Any]) -> list[Any]:
    """Leave out MathJax itself; its inline settings harm nobody."""
    return [
        script
        for script in scripts
        if "mathjax/" not in str(getattr(script, "filename", script))
    ]


def drop_thebe(assets: list[Any]) -> list[Any]:
    """Leave out Thebe's scripts, inline ones too, and its style sheet."""
    return [
        asset
        for asset in assets
        if "sphinx-thebe" not in str(getattr(asset, "filename", asset))
        and "THEBE_JS_URL" not in _body(asset)
    ]


def _body(script: Any) -> str:
    return getattr(script, "attributes", {}).get("body") or ""


def repair_page(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict[str, Any],
    doctree: Any,
) -> None:
    """Apply the repairs to the context of one page."""
    body = context.get("body", "")
    scripts = drop_thebe(drop_repeated(context["script_files"]))
    if 'class="math' not in body:
        scripts = drop_mathjax(scripts)
    context["script_files"] = scripts
    context["css_files"] = drop_thebe(context["css_files"])
    context["body"] = localise(body)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the repairs, after every extension that adds scripts."""
    app.connect("html-page-context", repair_page, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
