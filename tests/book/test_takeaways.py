"""The one-page summaries and their quizzes are true, and their code runs."""

import contextlib
import io
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path

import pandas as pd
import pytest
import test_errata as errata
from markdown_it import MarkdownIt
from markdown_it.token import Token
from toc import TOC

import healthgym_utils as hg
from notebooks import ROOT

PAGES = sorted((ROOT / "book").glob("part*_takeaways.md"))
SECTIONS = [
    "Notebook by notebook",
    "Lines to know by heart",
    "What goes wrong in practice",
    "You can now",
    "Where next",
    "Quiz",
]
ONE_NOTEBOOK = ["Question by question", *SECTIONS[1:]]  # Part V has only one
OPTION = re.compile(
    r"<details><summary>([A-D])\. (.+?)</summary>\s*", re.DOTALL
)
GAP = "____"
MATHS = re.compile(r"\$\$.+?\$\$|\$[^$]+\$", re.DOTALL)
CODE = re.compile(r"<code>(.+?)</code>")
VERDICTS = {"Right.": True, "No.": False}
NOTEBOOK = re.compile(r"notebooks? \d\d(?: to \d\d)?|\((?:\d\d(?:, )?)+\)")
ROW = re.compile(r"^\| ([\w ]+) \| (.+) \|$", re.MULTILINE)


@dataclass
class Option:
    """A possible answer, and what unfolds under it."""

    letter: str
    text: str
    passages: list[errata.Passage] = field(default_factory=list)
    code: list[str] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        """What the explanation begins with: right or not."""
        return VERDICTS[self.passages[0].lead]

    @property
    def offered(self) -> str:
        """Code that the option offers, or nothing."""
        found = CODE.match(self.text)
        return found.group(1) if found else ""


@dataclass
class Piece:
    """A list item, a paragraph or a question, with all that belongs to it."""

    title: str
    passages: list[errata.Passage] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    options: list[Option] = field(default_factory=list)

    @property
    def all_passages(self) -> list[errata.Passage]:
        """Its own text, and that of the explanations."""
        explained = [p for option in self.options for p in option.passages]
        return [*self.passages, *explained]


@dataclass
class Page:
    """One summary, in pieces."""

    file: Path
    sections: dict[str, list[Piece]]
    questions: list[Piece]

    @property
    def pieces(self) -> list[Piece]:
        """All that may hold a number."""
        return [*chain(*self.sections.values()), *self.questions]


def _without_maths(text: str) -> str:
    """Formulas hold no measured numbers, and underscores that mislead."""
    return MATHS.sub("", text)


class Reader:
    """Cuts a page into sections, pieces, questions and options."""

    def __init__(self, file: Path) -> None:
        self.page = Page(file, {}, [])
        self.inside = 0  # of how many list items
        self.begin("")
        text = _without_maths(file.read_text(encoding="utf-8"))
        tokens = MarkdownIt("commonmark").parse(text)
        for before, token in pairwise(tokens):
            self.take(before, token)

    def begin(self, section: str) -> None:
        """Open a section; what stands above its first list is one piece."""
        self.section = self.page.sections[section] = []
        self.open(Piece(section), self.section)

    def open(self, piece: Piece, among: list[Piece]) -> None:
        """Open a piece: text and code that follow belong to it."""
        self.place = piece
        among.append(piece)

    def take(self, before: Token, token: Token) -> None:
        """Put a token where it belongs."""
        match token.type:
            case "list_item_open":
                self.inside += 1
            case "list_item_close":
                self.inside -= 1
            case "html_block":
                self.take_html(token.content)
            case "fence":
                assert token.info == "python", token.info
                self.place.code.append(token.content)
            case "inline":
                passage = errata.Passage(0, token.level, token.children)
                self.take_text(passage, before)

    def take_html(self, html: str) -> None:
        """Open an option, or go back to its question."""
        question = self.page.questions[-1]
        self.place = question
        if html.strip() != "</details>":
            letter, text = OPTION.match(html).groups()
            self.place = Option(letter, " ".join(text.split()))
            question.options.append(self.place)

    def take_text(self, passage: errata.Passage, before: Token) -> None:
        """Begin with a heading, or add to what is open."""
        if before.type == "heading_open":
            if before.tag == "h2":
                self.begin(passage.text)
            elif before.tag == "h3":
                self.open(Piece(passage.text), self.page.questions)
            return
        if self.inside:
            title = passage.lead or passage.text[:40]
            self.open(Piece(title), self.section)
        self.place.passages.append(passage)


BOOK = [Reader(file).page for file in PAGES]
QUESTIONS = [
    pytest.param(question, id=f"{page.file.stem}: {question.title}")
    for page in BOOK
    for question in page.questions
]
RUNNABLE = [one for one in QUESTIONS if one.values[0].code]


def _run(code: str) -> str:
    """Run a snippet by itself; return what it prints."""
    heard = io.StringIO()
    with contextlib.redirect_stdout(heard):
        exec(code, {"__name__": "snippet"})
    return heard.getvalue().strip()


def _linked_numbers(piece: Piece) -> set[str]:
    """Numbers of the notebooks' sections that a piece leads to."""
    found = set()
    for path, part in errata._linked(piece.all_passages):
        numbers = errata._numbers(path)
        found.update(*([numbers[part]] if part else numbers.values()))
    return found


def _said_numbers(piece: Piece) -> set[str]:
    """Numbers that a piece states, but for those of notebooks."""
    texts = (p.text.removeprefix(p.lead) for p in piece.all_passages)
    return {
        number.replace(",", "")
        for text in texts
        for number in errata.NUMBER.findall(NOTEBOOK.sub("", text))
    }


def _scoreboard() -> pd.DataFrame:
    """Mean over seeds, figures down and cohorts across."""
    board = hg.load_results("scoreboard")
    return board.pivot_table("value", "figure", "name")


def _complaint(text: str, address: str) -> str:
    """Say what is wrong with a link, if anything is."""
    file, _, anchor = address.partition("#")
    if file and anchor:
        return errata._complaint(text, address)
    if anchor:
        return "" if anchor == "quiz" else "no such section"
    return "" if (ROOT / "book" / file).is_file() else "no such file"


def test_each_part_ends_with_its_page():
    parts = [part for part in TOC["parts"] if "Part " in part["caption"]]
    last = [part["chapters"][-1] for part in parts]
    assert [ROOT / f"{entry['file']}.md" for entry in last] == PAGES
    for entry, part in zip(last, parts, strict=True):
        number = part["caption"].split(".")[0]
        title = f"{number} in one page"
        assert entry.get("title", title) == title
        page = ROOT / f"{entry['file']}.md"
        assert page.read_text().startswith(f"# {title}\n")
        opener = ROOT / f"{part['chapters'][0]['file']}.md"
        assert f"({page.name})" in opener.read_text()


@pytest.mark.parametrize("page", BOOK, ids=lambda page: page.file.stem)
def test_page_has_its_sections(page):
    found = [title for title in page.sections if title]
    assert found in (SECTIONS, ONE_NOTEBOOK)
    assert 6 <= len(page.questions) <= 8
    first = " ".join(p.text for p in page.sections[""][0].passages)
    number = {8: "eight", 7: "seven", 6: "six"}[len(page.questions)]
    assert f"{number} questions" in first


@pytest.mark.parametrize("page", BOOK[:-1], ids=lambda page: page.file.stem)
def test_page_has_an_item_for_each_notebook(page):
    leads = [piece.title for piece in page.sections[SECTIONS[0]][1:]]
    (part,) = (
        part
        for part in TOC["parts"]
        if f"book/{page.file.stem}" in str(part["chapters"])
    )
    files = [Path(entry["file"]).name for entry in part["chapters"]]
    listed = [f"{name[:2]}." for name in files if name[:2].isdigit()]
    assert leads == listed


@pytest.mark.parametrize("page", BOOK, ids=lambda page: page.file.stem)
def test_links_lead_to_what_they_say(page):
    links = [
        link
        for piece in page.pieces
        for passage in piece.all_passages
        for link in passage.links
    ]
    assert links
    complaints = {link: _complaint(*link) for link in links}
    assert {link: said for link, said in complaints.items() if said} == {}


@pytest.mark.parametrize(
    "piece",
    [
        pytest.param(piece, id=f"{page.file.stem}: {piece.title}")
        for page in BOOK
        for piece in page.pieces
        if piece.all_passages
    ],
)
def test_numbers_are_those_of_the_sections_or_of_the_code(piece):
    known = _linked_numbers(piece)
    snippets = [*piece.code, *(c for o in piece.options for c in o.code)]
    for text in (*snippets, *(option.text for option in piece.options)):
        found = errata.NUMBER.findall(text.replace("_", ""))
        known.update(number.replace(",", "") for number in found)
    if any("load_results" in code for code in piece.code):
        known.update(f"{abs(v):.5f}" for v in _scoreboard().to_numpy().flat)
    said = _said_numbers(piece)
    assert {n for n in said if not errata._is_among(n, known)} == set()


@pytest.mark.parametrize("question", QUESTIONS)
def test_question_has_one_right_answer_and_explains_all(question):
    letters = [option.letter for option in question.options]
    assert letters == list("ABCD")[: len(letters)]
    assert len(letters) >= 3
    assert sum(option.is_right for option in question.options) == 1
    for option in question.options:
        lead, *rest = option.passages[0].text.split(". ", 1)
        assert f"{lead}." in VERDICTS
        assert len(" ".join(rest).split()) > 4
    (right,) = (option for option in question.options if option.is_right)
    assert any(path for p in right.passages for _, path in p.links)


@pytest.mark.parametrize("page", BOOK, ids=lambda page: page.file.stem)
def test_right_answers_cannot_be_guessed_by_letter_or_length(page):
    rights, longest = Counter(), 0
    for question in page.questions:
        (right,) = (option for option in question.options if option.is_right)
        rights[right.letter] += 1
        most = max(len(option.text) for option in question.options)
        longest += len(right.text) == most
    assert len(rights) == 4
    assert max(rights.values()) <= len(page.questions) / 2
    assert longest <= len(page.questions) / 2


@pytest.mark.parametrize("page", BOOK, ids=lambda page: page.file.stem)
def test_page_has_questions_that_run(page):
    assert sum(bool(question.code) for question in page.questions) >= 2


@pytest.mark.parametrize("question", RUNNABLE)
def test_right_answer_is_right_and_wrong_ones_are_wrong(question):
    (code,) = question.code
    printed = "" if GAP in code else _run(code)
    for option in question.options:
        if GAP not in code:
            holds = option.offered == printed
        else:
            assert code.count(GAP) == 1
            holds = _passes(code.replace(GAP, option.offered))
        assert holds == option.is_right, (option.letter, printed)


def test_columns_of_the_quiz_are_those_of_the_scoreboard():
    (question,) = (
        question
        for question in BOOK[-1].questions
        if any("load_results" in code for code in question.code)
    )
    means = _scoreboard()
    text = "\n".join(
        "".join(
            "\n" if token.type == "softbreak" else token.content
            for token in passage.children
        )
        for passage in question.passages
    )
    rows = {name: cells.split(" | ") for name, cells in ROW.findall(text)}
    names = [option.offered for option in question.options]
    assert len(rows) == 3
    for figure, cells in rows.items():
        assert cells == [f"{means.loc[figure, name]:.2f}" for name in names]


def _passes(code: str) -> bool:
    """Whether all assertions of a snippet hold."""
    try:
        _run(code)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(code, id=f"{page.file.stem}: {place.title}")
        for page in BOOK
        for piece in page.pieces
        for place, codes in (
            (piece, [] if piece.options else piece.code),
            *((piece, option.code) for option in piece.options),
        )
        for code in codes
    ],
)
def test_code_holds(code):
    assert "assert" in code
    assert _run(code) == ""
