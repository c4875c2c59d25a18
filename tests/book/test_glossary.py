"""The glossary: each term once, defined once, and linked from notebooks."""

import re
from collections import Counter

import glossary_links
import pytest
from bs4 import BeautifulSoup
from docutils import nodes
from glossary_links import (
    ELSEWHERE,
    EVERYDAY,
    MOST,
    Finder,
    Term,
    hint_of,
    link_terms,
)
from sphinx import addnodes
from toc import NOTEBOOK_PAGES

from notebooks import ROOT, paths, read

TEXT = (ROOT / "book" / "glossary.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```\{glossary\}\n(.+?)```", TEXT, re.DOTALL)
TERMS = [
    line.strip()
    for block in BLOCKS
    for line in block.splitlines()
    if re.match(r"\S", line)
]
# Words that a notebook sets in italics for another reason than defining them.
NO_DEFINITION = {
    "calibration",  # 18, 23 and 26 look at three sides of it
    "code",  # 22 asks whether its program is right
    "cramér's v",  # a measure's name in 26
    "cycle",  # a measure's name in 26
    "mask",  # 20 lists its stages
    "membership",  # a measure's name in 23, 26 and 27
    "schedule",  # a change's name in 23
    "statics",  # a measure's name in 23
    "trend",  # a measure's name in 26
}


def _emphasised(notebook):
    """List the words that a notebook's lessons set in italics or bold."""
    cells = [c.source for c in notebook.cells if c.cell_type == "markdown"]
    lessons = "\n\n".join(cells).partition("\n## Exercises\n")[0]
    found = re.findall(r"(?<![\w*])(\*\*|\*)([^*\n]+?)\1(?!\*)", lessons)
    return {words.lower() for _, words in found}


def test_terms_are_unique():
    repeated = [t for t, n in Counter(map(str.lower, TERMS)).items() if n > 1]
    assert repeated == []
    assert len(TERMS) > 100


def test_words_with_other_senses_are_terms():
    assert set(TERMS) >= EVERYDAY | set(ELSEWHERE)


def test_other_senses_are_on_their_pages():
    texts = {path.stem[:2]: path.read_text("utf-8") for path in paths()}
    for words, numbers in ELSEWHERE.items():
        for number in numbers:
            assert re.search(rf"\b{words}", texts[number], re.IGNORECASE)


def test_terms_are_defined_in_one_notebook():
    """A term in italics is being defined, which happens once."""
    terms = {term.lower() for term in TERMS} - NO_DEFINITION
    places = {}
    for path in paths():
        for words in _emphasised(read(path)) & terms:
            places.setdefault(words, []).append(path.stem)
    assert places
    twice = {words: where for words, where in places.items() if len(where) > 1}
    assert twice == {}


def _terms(*words):
    return {
        w: Term(f"term-{w}", number, f"What {w} means.")
        for number, w in enumerate(words)
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "A soft embedding, and an embedding.",
            ["soft embedding", "embedding"],
        ),
        ("Batches: one batch is enough.", ["Batches"]),
        ("The ART of the arts, or ART.", ["ART"]),
        ("A one-hot and a one-hot-like block.", ["one-hot"]),
        ("Subatch, batch_size.", []),
        ("A code is an everyday word.", []),
    ],
)
def test_first_uses_are_found(text, found):
    words = "embedding", "soft embedding", "batch", "ART", "one-hot", "code"
    pieces = list(Finder(_terms(*words)).split(text))
    assert [words for words, term in pieces if term] == found
    assert "".join(words for words, _ in pieces) == text


def test_everyday_words_are_terms_alone_in_italics():
    def found(text, italics):
        pieces = Finder(_terms("code", "one-hot")).split(text, italics)
        return [words for words, term in pieces if term]

    assert found("codes", italics=True) == ["codes"]
    assert found("codes", italics=False) == []
    assert found("a code, one-hot", italics=True) == ["one-hot"]


def test_two_names_of_one_entry_are_linked_once():
    terms = {
        "viral load": Term("term-viral-load", 0, "Copies."),
        "VL": Term("term-VL", 0, "Copies."),
    }
    pieces = list(Finder(terms).split("The viral load (VL)."))
    assert [words for words, term in pieces if term] == ["viral load"]


def test_titles_code_and_references_stay_as_they_are():
    page = nodes.section()
    title = nodes.title("", "The batch")
    name = nodes.literal("", "batch")
    prose = nodes.paragraph("", "", name, nodes.Text(": a batch."))
    listed = nodes.section("", nodes.paragraph("", "A cohort."))
    listed["names"] = ["references"]
    page += [title, prose, listed]
    link_terms(page, _terms("batch", "cohort"), lambda anchor: f"g#{anchor}")
    (link,) = page.findall(nodes.reference)
    assert link.parent is prose
    assert link["refuri"] == "g#term-batch"
    assert link["reftitle"] == "What batch means."


def test_first_entries_give_way():
    words = [f"term{number:02}" for number in range(MOST + 2)]
    page = nodes.section("", nodes.paragraph("", "", nodes.Text(str(words))))
    prose = page.astext()
    link_terms(page, _terms(*words), lambda anchor: f"g#{anchor}")
    linked = [link.astext() for link in page.findall(nodes.reference)]
    assert linked == words[2:]
    assert page.astext() == prose


def test_hint_leaves_formulas_and_citations_out():
    cited = addnodes.pending_xref("", nodes.Text("key2020"), refdomain="cite")
    term = addnodes.pending_xref("", nodes.Text("noise"), refdomain="std")
    formula = nodes.math("", "\\bar\\alpha")
    prose = nodes.paragraph("", "", nodes.Text("How much "), term)
    prose += [nodes.Text("\n"), cited, nodes.Text(". What is left is ")]
    prose += [formula, nodes.Text(". Then it ends.")]
    hint = hint_of(nodes.definition("", prose))
    assert hint == "How much noise. Then it ends."
    assert "alpha" in prose.astext()


@pytest.mark.slow
@pytest.mark.parametrize("page", NOTEBOOK_PAGES)
def test_notebooks_lead_to_the_glossary(html, page):
    """That the anchors exist is tested with all other links."""
    text = (html / f"{page}.html").read_text(encoding="utf-8")
    links = BeautifulSoup(text, "html.parser").select("a.glossary-term")
    targets = [link["href"] for link in links]
    assert 3 <= len(targets) <= MOST
    assert len(targets) == len(set(targets))
    for link in links:
        assert link["href"].startswith(f"../{glossary_links.GLOSSARY}.html#")
        assert "\\" not in link.get("title", "")
