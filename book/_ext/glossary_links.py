"""Sphinx extension: a term's first use on a notebook's page leads to it.

A notebook cannot do it itself: a link into the book works on the book's pages,
and nowhere else that the notebook is read. So the links are made while a page
is written, one a term, on the words as they stand. A definition shows when the
pointer rests on a link.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

GLOSSARY = "book/glossary"
# Terms that are everyday words as well, and mostly meant as such: they are
# linked only where a notebook sets them in italics.
EVERYDAY = {
    "attention",
    "baseline",
    "budget",
    "class",
    "code",
    "cycle",
    "gap",
    "lesson",
    "padding",
    "peer",
    "score",
    "skip",
    "span",
    "step",
    "trend",
    "update",
    "window",
}
# Terms that mean something else on some pages, which are named by number.
ELSEWHERE = {
    "checkpoint": {"19"},  # a time to take a look
    "code": {"22"},  # a program
    "embedding": {"24"},  # of a step
    "floor": {"07", "25"},  # of a measure of shape; a lower limit
    "generator": {"14"},  # of random numbers
    "head": {"14"},  # a head start
    "label": {"16"},  # of an entry: where it comes from
    "latent": {"10"},  # an axis, as long as the noise is wide
    "mask": {"17"},  # over later months
    "moments": {"08", "12"},  # of time
    "ragged": {"16"},  # uneven
    "shortcut": {"04"},  # of a story
    "slope": {"04", "08", "19", "27"},  # of lines and densities
}
MOST = 24  # links a page
# Words inside these are names, titles, or links already.
CLOSED = (
    nodes.literal,
    nodes.literal_block,
    nodes.math,
    nodes.math_block,
    nodes.reference,
    nodes.title,
    addnodes.pending_xref,
)
SHOWN = 300  # characters of a hint


class Term(NamedTuple):
    """Where a term stands in the glossary, in which entry, and its hint."""

    anchor: str
    entry: int
    hint: str


def terms_in(glossary: nodes.document) -> dict[str, Term]:
    """Read the terms, as spelt, off the parsed glossary.

    Parameters
    ----------
    glossary : docutils document
        The page of the glossary.
    """
    found = {}
    entries = glossary.findall(nodes.definition_list_item)
    for number, entry in enumerate(entries):
        hint = hint_of(entry.next_node(nodes.definition))
        for term in entry.findall(nodes.term):
            # The index entry inside the term repeats its words.
            words = term.next_node(nodes.Text).astext()
            found[words] = Term(term["ids"][0], number, hint)
    return found


def hint_of(definition: nodes.definition) -> str:
    """Take what a hint can show: no formulas, no citations.

    Parameters
    ----------
    definition : docutils definition
        What the glossary says of a term.
    """
    copy = definition.deepcopy()
    for formula in list(copy.findall(nodes.math)):
        formula.parent.replace(formula, nodes.Text("$"))
    for link in list(copy.findall(addnodes.pending_xref)):
        if link["refdomain"] == "cite":
            link.parent.remove(link)
    text = re.sub(r"\s+([.,;:])", r"\1", copy.astext())
    sentences = re.split(r"(?<=[.:]) ", " ".join(text.split()))
    return " ".join(s for s in sentences if "$" not in s)[:SHOWN]


def pattern_of(words: str) -> str:
    """Match a term with any spacing, and its plural; names as spelt.

    Parameters
    ----------
    words : str
        A term as the glossary has it.
    """
    spaced = r"\s+".join(map(re.escape, words.split()))
    plural = "(?:e?s)?" if words[-1].isalpha() else ""
    flag = "i" if words == words.lower() else ""
    return rf"(?{flag}:{spaced}){plural}"


class Finder:
    """Finds the first use of each term on one page.

    Parameters
    ----------
    terms : dict of str to Term
        The glossary.
    """

    def __init__(self, terms: dict[str, Term]) -> None:
        # Longer terms first, so that "soft embedding" is no "embedding".
        self.left = sorted(terms, key=len, reverse=True)
        self.terms = terms
        self._compile()

    def _compile(self) -> None:
        groups = "|".join(f"({pattern_of(words)})" for words in self.left)
        self.search = re.compile(rf"(?<![\w-])(?:{groups or '(?!)'})(?![\w-])")

    def split(
        self, text: str, italics: bool = False
    ) -> Iterator[tuple[str, Term | None]]:
        """Cut a text into pieces, with the term that a piece is to link.

        Parameters
        ----------
        text : str
            Words without markup.
        italics : bool
            Whether they are in italics: an everyday word alone is a term then.
        """
        start = 0
        while match := self.search.search(text, start):
            yield text[start : match.start()], None
            start = match.end()
            found = self.left[match.lastindex - 1]
            if found in EVERYDAY and not (italics and match.group() == text):
                yield match.group(), None
                continue
            term = self.terms[found]
            yield match.group(), term
            # Two words for one entry are one term.
            self.left = [
                words
                for words in self.left
                if self.terms[words].entry != term.entry
            ]
            self._compile()
        yield text[start:], None


def link_terms(
    page: nodes.document,
    terms: dict[str, Term],
    address: Callable[[str], str],
) -> None:
    """Turn each term's first use on a page into a link.

    Where there are too many, the glossary's first entries are left out, as
    readers of a page with that many terms have long known them.

    Parameters
    ----------
    page : docutils document
        Changed in place.
    terms : dict of str to Term
        The glossary.
    address : callable
        Gives the link to an anchor of the glossary.
    """
    finder = Finder(terms)
    prose = [text for text in page.findall(nodes.Text) if not _is_closed(text)]
    found = [
        list(finder.split(text, isinstance(text.parent, nodes.emphasis)))
        for text in prose
    ]
    entries = sorted(
        term.entry for pieces in found for _, term in pieces if term
    )
    kept = set(entries[-MOST:])
    for text, pieces in zip(prose, found, strict=True):
        if any(term and term.entry in kept for _, term in pieces):
            replacement = [
                _link(words, term, address)
                if term and term.entry in kept
                else nodes.Text(words)
                for words, term in pieces
                if words
            ]
            text.parent.replace(text, replacement)


def _link(
    words: str, term: Term, address: Callable[[str], str]
) -> nodes.reference:
    link = nodes.reference(
        words,
        words,
        internal=True,
        refuri=address(term.anchor),
        classes=["glossary-term"],
    )
    if term.hint:
        link["reftitle"] = term.hint
    return link


def _is_closed(node: nodes.Node) -> bool:
    """Tell whether a text is the reader's prose, or something else."""
    while node := node.parent:
        if isinstance(node, CLOSED):
            return True
        # Cells of code and what they have put out.
        if isinstance(node, nodes.container) and "cell" in node["classes"]:
            return True
        if isinstance(node, nodes.section) and "references" in node["names"]:
            return True
    return False


def add_links(app: Sphinx, page: nodes.document, name: str) -> None:
    """Link the terms on the page of a notebook.

    Parameters
    ----------
    app : Sphinx
    page : docutils document
    name : str
        The document's name.
    """
    if not name.startswith("notebooks/"):
        return
    glossary = app.builder.get_relative_uri(name, GLOSSARY)
    number = name.removeprefix("notebooks/")[:2]
    terms = {
        words: term
        for words, term in terms_in(app.env.get_doctree(GLOSSARY)).items()
        if number not in ELSEWHERE.get(words, ())
    }
    link_terms(page, terms, lambda anchor: f"{glossary}#{anchor}")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("doctree-resolved", add_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
