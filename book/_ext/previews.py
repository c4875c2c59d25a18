"""Sphinx extension: what a link to a page shows where it is shared.

Each page gets a description from its first sentences, and the tags of Open
Graph and of Twitter's cards, which take one picture for the whole book. The
picture must have a full address, so the book's own is derived here, and only
here, from the repository that ``_config.yml`` states.
"""

from __future__ import annotations

import re
from html import escape
from typing import Any
from urllib.parse import urlsplit

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

PICTURE = "_static/social.png"
PICTURE_SIZE = (1200, 630)  # what most sites crop to
PICTURE_ALT = (
    "Health Gym: viral load over sixty months, of simulated patients in blue "
    "and of patients that four generations of models made in vermillion"
)
TOUCH_ICON = "_static/apple-touch-icon.png"
LONGEST = 200  # characters; search engines and messengers cut there
CITATION = re.compile(r" \[[^]]*\d{4}\w?\]")
SENTENCE_END = re.compile(r"(?<=[.?:])\s+(?=[A-Z0-9“\"])")


def pages_address(repository: str) -> str:
    """Return where GitHub publishes the pages of a repository.

    Raises
    ------
    ValueError
        If the address is not that of a repository on GitHub.
    """
    parts = urlsplit(repository)
    owner, _, name = parts.path.strip("/").partition("/")
    if parts.netloc != "github.com" or not name or "/" in name:
        raise ValueError(
            f"repository url in _config.yml: {repository!r} is not "
            "https://github.com/owner/name"
        )
    site = f"{owner.lower()}.github.io"
    # A repository named like its owner's site has its pages at the top of it.
    return f"https://{site}/" + ("" if name.lower() == site else f"{name}/")


def describe(doctree: nodes.document) -> str:
    """Return the first sentences of a page, as many as fit."""
    texts = (" ".join(p.astext().split()) for p in _prose(doctree))
    first = CITATION.sub("", next(filter(None, texts), ""))
    sentences = SENTENCE_END.split(first)
    description = sentences[0]
    for sentence in sentences[1:]:
        if len(description) + len(sentence) + 1 > LONGEST:
            break
        description += " " + sentence
    if len(description) <= LONGEST:
        return description
    return description[:LONGEST].rpartition(" ")[0].rstrip(",;:") + " …"


def _prose(doctree: nodes.document) -> list[nodes.paragraph]:
    """List the paragraphs that are no badge and no part of a list."""
    return [
        paragraph
        for paragraph in doctree.findall(nodes.paragraph)
        if isinstance(paragraph.parent, nodes.section)
        and not paragraph.next_node(nodes.image)
    ]


def tags(title: str, description: str, address: str, picture: str) -> str:
    """Write a page's tags.

    Parameters
    ----------
    title, description : str
        Plain text.
    address, picture : str
        Full addresses of the page and of the picture.
    """
    width, height = PICTURE_SIZE
    properties = {
        "og:type": "website",
        "og:site_name": "Health Gym",
        "og:title": title,
        "og:description": description,
        "og:url": address,
        "og:image": picture,
        "og:image:width": str(width),
        "og:image:height": str(height),
        "og:image:alt": PICTURE_ALT,
    }
    names = {
        "description": description,
        "twitter:card": "summary_large_image",
    }
    lines = [_tag("property", *item) for item in properties.items()]
    lines += [_tag("name", *item) for item in names.items()]
    return "\n".join(lines) + "\n"


def _tag(kind: str, name: str, content: str) -> str:
    return f'<meta {kind}="{name}" content="{escape(content)}" />'


def set_address(app: Sphinx, config: Config) -> None:
    """Tell Sphinx where the book will be; it adds canonical links."""
    repository = config.html_theme_options["repository_url"]
    config.html_baseurl = pages_address(repository)


def add_tags(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict[str, Any],
    doctree: nodes.document | None,
) -> None:
    """Add the tags, and the icon for home screens, to a page's head."""
    icon = context["pathto"](TOUCH_ICON, resource=True)
    head = f'<link rel="apple-touch-icon" href="{icon}" />\n'
    if doctree is not None:  # unlike on the search page and the index
        address = app.config.html_baseurl
        head += tags(
            app.env.titles[pagename].astext(),
            describe(doctree),
            address + app.builder.get_target_uri(pagename),
            address + PICTURE,
        )
    context["metatags"] = context.get("metatags", "") + head


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the steps; the address before builders read it."""
    app.connect("config-inited", set_address)
    app.connect("html-page-context", add_tags)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
