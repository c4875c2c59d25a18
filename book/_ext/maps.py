"""Sphinx extension: maps of the book, drawn from ``_toc.yml``.

Two directives, so that no map is kept by hand beside the table of contents:

* ``part-map``, on the opening page of a part: the five parts with this one
  lit, and below them the part's pages as stations;
* ``book-map``: the parts themselves as stations.

Each line of their content is ``key: sentence``; a longer one goes on in the
next line, indented. Keys are the number of a notebook (``07``), or the name
of a part's opening page (``part2``). The drawings are in
``book/_figures/icons``, one a key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective
from sphinx_external_toc.api import SiteMap, TocTree

ICONS = Path(__file__).resolve().parents[1] / "_figures" / "icons"
LINE = re.compile(r"(?P<key>\w+): +(?P<text>\S.*)")
CAPTION = re.compile(r"(?P<number>Part [IVX]+)\. (?P<name>.+)")
NOTEBOOK = re.compile(r"notebooks/(?P<number>\d\d)_\w+")


def find_parts(site_map: SiteMap) -> list[TocTree]:
    """List the numbered parts of the table of contents, in order."""
    trees = site_map.root.subtrees
    return [tree for tree in trees if CAPTION.fullmatch(tree.caption or "")]


def split_caption(part: TocTree) -> tuple[str, str]:
    """Split a part's caption into its number and its name."""
    match = CAPTION.fullmatch(part.caption)
    return match["number"], match["name"]


def notebook_number(docname: str) -> str | None:
    """Return a notebook's number as text, or None for other pages."""
    match = NOTEBOOK.fullmatch(str(docname))
    return match and match["number"]


def notebook_range(part: TocTree) -> str:
    """Say which notebooks a part has, such as ``notebooks 01–06``."""
    numbers = [n for n in map(notebook_number, part.items) if n]
    if len(numbers) == 1:
        return f"notebook {numbers[0]}"
    return f"notebooks {numbers[0]}–{numbers[-1]}"


def read_sentences(lines: Sequence[str], keys: Sequence[str]) -> dict:
    """Read the content of a directive: one sentence for each key.

    Parameters
    ----------
    lines : sequence of str
    keys : sequence of str
        Which keys there must be, in this order.

    Returns
    -------
    dict
        The sentence of each key.

    Raises
    ------
    ValueError
        If a line is no sentence, or keys are not those wanted.
    """
    sentences: dict[str, str] = {}
    key = None
    for line in lines:
        if key and line.startswith(" "):
            sentences[key] += " " + line.strip()
            continue
        match = LINE.fullmatch(line)
        if not match:
            raise ValueError(f"expected 'key: sentence', found {line!r}")
        key = match["key"]
        if key in sentences:
            raise ValueError(f"{key!r} is there twice")
        sentences[key] = match["text"]
    if list(sentences) != list(keys):
        raise ValueError(
            f"_toc.yml wants sentences for {', '.join(keys)}, in this order; "
            f"found {', '.join(sentences) or 'none'}"
        )
    return sentences


def icon(name: str) -> str:
    """Read a drawing, to stand in the page so that it follows the theme."""
    path = ICONS / f"{name}.svg"
    if not path.is_file():
        raise ExtensionError(f"there is no drawing {path}; draw one")
    return path.read_text(encoding="utf-8").strip()


def link(docname: str, text: str | None = None) -> nodes.Node:
    """Link to a page, by its own title unless a text is given."""
    reference = addnodes.pending_xref(
        "",
        nodes.inline("", text or docname, classes=["doc"]),
        refdomain="std",
        reftype="doc",
        reftarget=f"/{docname}",
        refexplicit=text is not None,
        refwarn=True,
    )
    return reference


class _Map(SphinxDirective):
    """What both maps share: sentences, and stations."""

    has_content = True

    @property
    def parts(self) -> list[TocTree]:
        return find_parts(self.config.external_site_map)

    def sentences(self, keys: Sequence[str]) -> dict[str, str]:
        try:
            return read_sentences(list(self.content), keys)
        except ValueError as problem:
            raise self.error(f"{self.name}: {problem}") from problem

    def station(
        self,
        drawing: str,
        title: nodes.Node,
        sentence: str | None,
        where: str | None = None,
    ) -> nodes.list_item:
        """Build one stop: a drawing, a linked title, a sentence."""
        text = nodes.container(classes=["station"])
        if where:
            text += nodes.paragraph("", where, classes=["where"])
        text += nodes.paragraph("", "", title, classes=["what"])
        if sentence:
            inline, messages = self.parse_inline(sentence)
            text += [nodes.paragraph("", "", *inline), *messages]
        return nodes.list_item(
            "", nodes.raw("", icon(drawing), format="html"), text
        )


class PartMap(_Map):
    """All parts with the page's own lit, and the stations of this one."""

    def run(self) -> list[nodes.Node]:
        """Build the nodes."""
        here = self.env.docname
        own = [part for part in self.parts if str(part.items[0]) == here]
        if not own:
            raise self.error(f"{here} opens no part of _toc.yml")
        pages = [str(page) for page in own[0].items[1:]]
        keys = [number for number in map(notebook_number, pages) if number]
        sentences = self.sentences(keys)
        stations = nodes.enumerated_list()
        for page in pages:
            key = notebook_number(page)
            stations += self.station(
                key or "page", link(page), sentences.get(key)
            )
        return [
            nodes.raw("", self.ribbon(own[0]), format="html"),
            nodes.container("", stations, classes=["path"]),
        ]

    def ribbon(self, own: TocTree) -> str:
        """Write the row of all parts."""
        stops = "\n".join(self._stop(part, part is own) for part in self.parts)
        return (
            '<nav class="ribbon" aria-label="Parts of the book">\n'
            f"<ol>\n{stops}\n</ol>\n</nav>"
        )

    def _stop(self, part: TocTree, own: bool) -> str:
        page = str(part.items[0])
        number, name = split_caption(part)
        uri = self.env.app.builder.get_relative_uri(self.env.docname, page)
        style = ' class="here"' if own else ""
        here = ' aria-current="page"' if own else ""
        return (
            f'<li{style}><a href="{escape(uri) or "#"}"{here}>'
            f"{icon(Path(page).name)}"
            f'<span class="where">{number}</span> '
            f'<span class="what">{escape(name)}</span></a></li>'
        )


class BookMap(_Map):
    """The parts of the book as stations."""

    def run(self) -> list[nodes.Node]:
        """Build the nodes."""
        names = [Path(str(part.items[0])).name for part in self.parts]
        sentences = self.sentences(names)
        stations = nodes.enumerated_list()
        for key, part in zip(names, self.parts, strict=True):
            number, name = split_caption(part)
            stations += self.station(
                key,
                link(str(part.items[0]), name),
                sentences[key],
                f"{number} · {notebook_range(part)}",
            )
        return [nodes.container("", stations, classes=["path"])]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register both directives."""
    app.add_directive("part-map", PartMap)
    app.add_directive("book-map", BookMap)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
