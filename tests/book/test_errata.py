"""The errata page: complete, linked, and in step with the notebooks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from myst_parser.mdit_to_docutils.base import default_slugify

from notebooks import ROOT, paths, read

PAGE = ROOT / "book" / "errata.md"
SECTION = "Where this differs from the published series"
WEIGHTS = {
    "A choice",
    "Cost only",
    "Matters",
    "Partly confirmed",
    "Small here",
    "Wording",
}
NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?")
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
DEEPEST = CONFIG["sphinx"]["config"]["myst_heading_anchors"]


def _plain(tokens: list[Token]) -> str:
    """Text as a reader sees it, with single spaces."""
    shown = [
        " " if token.type == "softbreak" else token.content for token in tokens
    ]
    return " ".join("".join(shown).split())


@dataclass
class Passage:
    """A heading, a paragraph or a list item's paragraph."""

    level: int  # of a heading, else 0
    depth: int  # 1, or more inside of a list or quote
    children: list[Token]

    @property
    def text(self) -> str:
        return _plain(self.children)

    @property
    def lead(self) -> str:
        """What it begins with in bold, or nothing."""
        kinds = [token.type for token in self.children]
        shown = [k for k, token in enumerate(self.children) if token.content]
        if "strong_open" not in kinds[: shown[0] + 1]:
            return ""
        opens = kinds.index("strong_open")
        return _plain(self.children[opens : kinds.index("strong_close")])

    @property
    def links(self) -> list[tuple[str, str]]:
        """Text and address of each link."""
        found, opened = [], 0
        for k, token in enumerate(self.children):
            if token.type == "link_open":
                opened = k
            elif token.type == "link_close":
                address = self.children[opened].attrs["href"]
                found.append((_plain(self.children[opened:k]), address))
        return found


def _passages(text: str) -> Iterator[Passage]:
    tokens = MarkdownIt("commonmark").parse(text)
    for before, token in pairwise(tokens):
        if token.type == "inline":
            is_heading = before.type == "heading_open"
            level = int(before.tag[1]) if is_heading else 0
            yield Passage(level, token.level, token.children)


@cache
def _notebook(path: Path) -> tuple[Passage, ...]:
    cells = read(path).cells
    return tuple(
        passage
        for cell in cells
        if cell.cell_type == "markdown"
        for passage in _passages(cell.source)
    )


def _sections(passages) -> dict[str, str]:
    """Title of each heading that can be linked to, by its anchor."""
    return {
        default_slugify(passage.text): passage.text
        for passage in passages
        if 0 < passage.level <= DEEPEST
    }


def _claims(path: Path) -> list[str]:
    """Bold beginnings of paragraphs in a notebook's section on the series."""
    found, inside = [], False
    for passage in _notebook(path):
        if 0 < passage.level <= 2:
            inside = passage.text == SECTION
        elif inside and passage.depth == 1 and passage.lead:
            found.append(passage.lead)
    return found


def _written(cell) -> Iterator[Passage | str]:
    """What a cell says: passages, or code and what it printed."""
    if cell.cell_type == "markdown":
        yield from _passages(cell.source)
        return
    yield cell.source
    for output in cell.outputs:
        shown = output.get("data", {})
        yield output.get("text", shown.get("text/plain", ""))
        yield re.sub("<[^>]+>", " ", shown.get("text/html", ""))


@cache
def _numbers(path: Path) -> dict[str, set[str]]:
    """Every number in each section of a notebook, by the section's anchor."""
    found, around = {}, {}  # `around`: anchors of open headings, by level
    for cell in read(path).cells:
        for piece in _written(cell):
            text = piece
            if isinstance(piece, Passage):
                text = piece.text
                if piece.level:
                    around = {
                        k: v for k, v in around.items() if k < piece.level
                    }
                    around[piece.level] = default_slugify(text)
            for anchor in around.values():
                numbers = NUMBER.findall(text)
                known = found.setdefault(anchor, set())
                known.update(number.replace(",", "") for number in numbers)
    return found


def _is_among(number: str, numbers: set[str]) -> bool:
    """Whether numbers include one, or one that rounds to its decimals."""
    decimals = len(number.partition(".")[2])
    return any(
        f"{float(exact):.{decimals}f}" == number
        if len(exact.partition(".")[2]) > decimals > 0
        else float(exact) == float(number)
        for exact in numbers
    )


def _by_heading(passages, level: int) -> dict[str, list[Passage]]:
    """What stands between each heading of a level and the next heading."""
    found, below = {}, []
    for passage in passages:
        if passage.level:
            below = []
            if passage.level == level:
                found[passage.text] = below
        else:
            below.append(passage)
    return found


PASSAGES = list(_passages(PAGE.read_text(encoding="utf-8")))
LINKS = [link for passage in PASSAGES for link in passage.links]
ENTRIES = _by_heading(PASSAGES, 3)
LISTS = [
    item
    for title in ("What held", "Where our own notes were wrong")
    for item in _by_heading(PASSAGES, 2)[title]
    if item.depth > 1
]


def _target(address: str) -> tuple[Path, str]:
    file, _, anchor = address.partition("#")
    return (PAGE.parent / file).resolve() if file else PAGE, anchor


def _linked(passages) -> list[tuple[Path, str]]:
    """Notebooks and sections that passages lead to."""
    targets = [_target(link) for p in passages for _, link in p.links]
    return [target for target in targets if target[0].suffix == ".ipynb"]


def _complaint(text: str, address: str) -> str:
    """Say what is wrong with a link, if anything is."""
    path, anchor = _target(address)
    if not path.is_file():
        return "no such file"
    is_notebook = path.suffix == ".ipynb"
    if not is_notebook and not anchor:
        return ""
    sections = _sections(_notebook(path) if is_notebook else PASSAGES)
    if anchor not in sections:
        return f"no such section among {sorted(sections)}"
    if not is_notebook:
        return ""
    said = _claims(path) if sections[anchor] == SECTION else [sections[anchor]]
    return "" if text in said else f"the words there are {said}"


def test_links_lead_to_what_they_say():
    assert LINKS
    complaints = {link: _complaint(*link) for link in LINKS}
    assert {link: said for link, said in complaints.items() if said} == {}


@pytest.mark.parametrize("path", paths(), ids=lambda path: path.stem)
def test_every_claim_of_a_notebook_is_here(path):
    shown = {text for text, link in LINKS if _target(link)[0] == path}
    assert set(_claims(path)) <= shown


def test_page_says_which_notebooks_have_nothing():
    (said,) = (
        passage.text
        for passage in PASSAGES
        if passage.text.endswith("found nothing to correct.")
    )
    silent = {path.name[:2] for path in paths() if not _claims(path)}
    assert set(re.findall(r"\d\d", said)) == silent


@pytest.mark.parametrize("title", ENTRIES)
def test_entry_has_claim_evidence_and_cure(title):
    weight, *body = ENTRIES[title]
    assert weight.text.rstrip(".") in WEIGHTS
    leads = [passage.lead for passage in body]
    assert [lead for lead in leads if lead != "Limits."] == [
        "Series.",
        "Evidence.",
        "Cure.",
    ]
    evidence = _linked([body[leads.index("Evidence.")]])
    named = re.findall(r"\d\d", re.search(r"\(([\d, ]+)\)$", title)[1])
    assert named
    assert set(named) <= {path.name[:2] for path, _ in evidence}


def test_index_lists_the_entries_in_order():
    listed = [link[1:] for _, link in LINKS if link.startswith("#")]
    entries = [default_slugify(title) for title in ENTRIES]
    assert [anchor for anchor in listed if anchor in entries] == entries


@pytest.mark.parametrize(
    "passages",
    [*ENTRIES.values(), *([item] for item in LISTS)],
    ids=[*ENTRIES, *(item.lead for item in LISTS)],
)
def test_numbers_are_those_of_the_sections(passages):
    linked = _linked(passages)
    assert linked
    there = set().union(
        *(_numbers(path).get(part, ()) for path, part in linked)
    )
    wrong = {
        number
        for passage in passages
        for number in NUMBER.findall(passage.text.removeprefix(passage.lead))
        if not _is_among(number.replace(",", ""), there)
    }
    assert wrong == set()
