"""The paths and the instructor guide are true of the notebooks."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_documents import README, ROW

from notebooks import ROOT, paths, read

GUIDE, PATHS = (
    ROOT / "book" / name for name in ("instructor_guide.md", "paths.md")
)
LABELS = [
    "Open",
    "Run",
    "Teach",
    "Say",
    "Stuck",
    "Ask",
    "Answer",
    "Ask",
    "Answer",
    "Live",
    "Skip",
]
LINK = re.compile(r"\[([^]]*)\]\(([^)\s]+)\)")
LINKED = re.compile(r"\]\((?:\.\./notebooks/)?(\d\d)_\w+\.ipynb\)")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?:e[-+]\d+)?")
EXERCISES = re.compile(
    r"^## Exercises$.*?(?=^## What you have learned$)",
    re.DOTALL | re.MULTILINE,
)
REFERENCES = re.compile(r"^## References$.*", re.DOTALL | re.MULTILINE)
WORDS_A_MINUTE, SKIM = 150, 3


@dataclass(frozen=True)
class Notebook:
    """What the pages say about a notebook, taken from the notebook."""

    file: Path
    title: str
    run: str
    needs: tuple[str, ...]
    headings: frozenset[str]
    numbers: frozenset[str]
    minutes: int


def _numbers(text: str) -> set[str]:
    return {number.replace(",", "") for number in NUMBER.findall(text)}


def _outputs(cell) -> str:
    said = [
        output.get("text", "") + output.get("data", {}).get("text/plain", "")
        for output in cell.get("outputs", [])
    ]
    return "\n".join(said)


def _notebook(file: Path, run: str) -> Notebook:
    cells = read(file).cells
    prose = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    before = re.search(
        r"\*\*Before you start\.\*\*(.+?)\n\*\*", prose, re.DOTALL
    ).group(1)
    text = REFERENCES.sub("", EXERCISES.sub("", prose))
    return Notebook(
        file=file,
        title=prose.partition("\n")[0].removeprefix("# "),
        run=run,
        needs=tuple(LINKED.findall(before)),
        headings=frozenset(re.findall(r"^##+ (.+)$", prose, re.MULTILINE)),
        numbers=frozenset(
            _numbers(prose + "\n".join(_outputs(cell) for cell in cells))
        ),
        minutes=math.ceil(len(text.split()) / WORDS_A_MINUTE),
    )


RUN = {row["file"]: row["minutes"] for row in ROW.finditer(README)}
NOTEBOOKS = {
    file.name[:2]: _notebook(file, RUN[f"notebooks/{file.name}"])
    for file in paths()
}


def _sections(page: Path) -> dict[str, str]:
    """Return what stands under each heading of the third level."""
    pieces = re.split(r"^### (.+)$", page.read_text(), flags=re.MULTILINE)
    bodies = [re.split(r"^## ", body, flags=re.M)[0] for body in pieces[2::2]]
    assert len(set(pieces[1::2])) == len(bodies)
    return dict(zip(pieces[1::2], bodies, strict=True))


def _items(body: str, mark: str) -> list[str]:
    """Return the items of a list, each on one line."""
    found = re.findall(
        rf"^{re.escape(mark)} (.+(?:\n {{2,}}.+)*)", body, re.MULTILINE
    )
    return [" ".join(item.split()) for item in found]


def _entry(body: str) -> list[tuple[str, str]]:
    return [
        re.fullmatch(r"\*\*(\w+)\*\* (.+)", item).groups()
        for item in _items(body, "-")
    ]


GUIDED = _sections(GUIDE)
ENTRIES = {
    title: _entry(body)
    for title, body in GUIDED.items()
    if re.match(r"\d\d · ", title)
}
TEACH = {
    title[:2]: int(dict(entry)["Teach"].removesuffix(" min"))
    for title, entry in ENTRIES.items()
}
PLANS = {
    title: _items(body, "-")
    for title, body in GUIDED.items()
    if title not in ENTRIES
}
WAYS = _sections(PATHS)


@pytest.mark.parametrize("page", [GUIDE, PATHS], ids=lambda page: page.stem)
def test_links_lead_to_files(page):
    links = LINK.findall(page.read_text())
    assert links
    for _, target in links:
        assert (page.parent / target).is_file(), target


def test_every_notebook_has_its_entry():
    assert list(ENTRIES) == [book.title for book in NOTEBOOKS.values()]


@pytest.mark.parametrize("title", ENTRIES)
def test_entry_is_complete_and_true(title):
    book, entry = NOTEBOOKS[title[:2]], ENTRIES[title]
    assert [label for label, _ in entry] == LABELS
    once = dict(entry)
    (link,) = LINK.findall(once["Open"])
    assert (GUIDE.parent / link[1]).resolve() == book.file.resolve()
    assert once["Run"] == f"{book.run} min"
    assert all(text[-1] == "?" for label, text in entry if label == "Ask")


@pytest.mark.parametrize("title", ENTRIES)
def test_entry_names_sections_of_its_notebook(title):
    once = dict(ENTRIES[title])
    live, skip = (
        [re.fullmatch(r"\*(.+)\*", part).group(1) for part in text.split("; ")]
        for text in (once["Live"], once["Skip"])
    )
    assert set(live + skip) <= NOTEBOOKS[title[:2]].headings
    assert not set(live) & set(skip)


@pytest.mark.parametrize("title", ENTRIES)
def test_numbers_of_an_entry_are_in_its_notebook(title):
    text = " ".join(
        said
        for label, said in ENTRIES[title]
        if label in ("Say", "Stuck", "Ask", "Answer")
    )
    unknown = _numbers(text) - NOTEBOOKS[title[:2]].numbers
    assert not unknown


def test_three_plans_in_four_days():
    assert [title.split(" (")[0] for title in PLANS] == [
        "Half a day",
        "One day",
        "Two days, first day",
        "Two days, second day",
    ]


@pytest.mark.parametrize("title", PLANS)
def test_plan_adds_up(title):
    hours = int(re.search(r"\((\d+) hours\)$", title).group(1))
    clock = 0
    for item in PLANS[title]:
        start, what = re.fullmatch(r"\*\*(\d+:\d\d)\*\* · (.+)", item).groups()
        assert start == f"{clock // 60}:{clock % 60:02d}"
        if what == "End":
            break
        minutes, what = re.fullmatch(r"(\d+) min · (.+)", what).groups()
        clock += int(minutes)
        taught = re.match(r"\[(\d\d)\]", what)
        if taught:
            number = taught.group(1)
            assert int(minutes) == TEACH[number]
            assert (
                what.partition(") ")[2]
                == (NOTEBOOKS[number].title.partition(" · ")[2])
            )
    assert item == PLANS[title][-1]
    assert clock == 60 * hours
    assert any("Break" in item for item in PLANS[title])


@pytest.mark.parametrize(
    "days", [(0,), (1,), (2, 3)], ids=["half a day", "one day", "two days"]
)
def test_plan_says_or_teaches_what_a_notebook_needs(days):
    met = set()
    for item in (item for day in days for item in list(PLANS.values())[day]):
        numbers = LINKED.findall(item)
        if "Bridge" not in item:
            for number in numbers:
                assert set(NOTEBOOKS[number].needs) <= met, number
        met.update(numbers)
    assert len(met) > 5


def test_paths_are_for_every_time_and_reader():
    assert list(WAYS) == [
        "Read only",
        "One evening",
        "Half a day",
        "One day",
        "Two days",
        "Statistician",
        "Engineer",
        "Clinician",
        "You have a cohort of your own",
    ]


@pytest.mark.parametrize("title", WAYS)
def test_path_respects_what_its_notebooks_need(title):
    met = set()
    for number in LINKED.findall("\n".join(_items(WAYS[title], "1."))):
        missing = set(NOTEBOOKS[number].needs) - met
        assert not missing, f"{number} needs {missing}"
        assert number not in met
        met.add(number)
    assert met


@pytest.mark.parametrize("title", WAYS)
def test_path_states_its_minutes(title):
    total = 0.0
    for item in _items(WAYS[title], "1."):
        numbers, links = LINKED.findall(item), LINK.findall(item)
        if item.startswith("Skim "):
            assert [text for text, _ in links] == numbers
            assert item.endswith(f": {SKIM * len(numbers)} min")
            total += SKIM * len(numbers)
            continue
        (number,), ((text, _),) = numbers, links
        book = NOTEBOOKS[number]
        assert text == book.title
        reading, comma, running = item.partition("): ")[2].partition(", ")
        assert reading == f"read {book.minutes} min"
        total += book.minutes
        if comma:
            assert running == f"run {book.run} min"
            total += float(book.run)
    hours, minutes = re.search(
        r"^\*\*In all\*\* (\d+) h (\d+) min$", WAYS[title], re.MULTILINE
    ).groups()
    assert math.ceil(round(total, 1)) == 60 * int(hours) + int(minutes)
    assert "**Then you can** " in WAYS[title]


def test_page_says_how_minutes_are_counted():
    text = " ".join(PATHS.read_text().split())
    assert f"at {WORDS_A_MINUTE} words a minute, rounded up" in text
    assert "in three minutes a notebook" in text
