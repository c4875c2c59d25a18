"""Slides follow the notebooks and the guide, and stay readable."""

import re
from functools import cache

import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_output
from slides import (
    LINES,
    Section,
    decks,
    entry,
    figure,
    html,
    lesson,
    listing,
    opening,
    sections,
)

from notebooks import paths

made = cache(lesson)


@pytest.fixture(params=paths(), ids=lambda path: path.stem)
def slides(request):
    return made(request.param)


def words(markup):
    soup = BeautifulSoup(markup, "html.parser")
    for formula in soup.find_all("math"):
        formula.replace_with("x")
    return len(soup.get_text(" ").split())


def test_a_deck_a_part_with_all_notebooks_and_lean():
    numbers = []
    for part, (name, _, lessons) in enumerate(decks(), start=1):
        assert name == f"part{part}.html"
        assert 5 <= sum(map(len, lessons)) / len(lessons) <= 10
        numbers += [slides[0].home[:2] for slides in lessons]
    assert numbers == [path.name[:2] for path in paths()]


def test_lesson_has_all_it_needs(slides):
    kinds = [slide.kind for slide in slides]
    assert kinds[0] == "start"
    assert kinds[-1] == "exercise"
    assert "figure" in kinds
    order = [kinds.index(kind) for kind in ("start", "answer", "learned")]
    assert order == sorted(order)
    anchors = [slide.anchor for slide in slides]
    assert len(set(anchors)) == len(anchors)


def test_slides_can_be_read_from_the_last_row(slides):
    limits = {"learned": 95, "exercise": 55, "figure": 45, "code": 40}
    for slide in slides:
        assert 1 <= words(slide.text) <= limits.get(slide.kind, 45), slide
        assert slide.lines <= LINES


def test_every_slide_has_notes(slides):
    for slide in slides:
        assert slide.notes.strip(), slide.title


def test_live_sections_are_shown(slides):
    (path,) = (p for p in paths() if p.stem in slides[0].book)
    titles = {slide.title for slide in slides}
    assert set(re.findall(r"\*([^*]+)\*", entry(path)["Live"][0])) <= titles


def test_notebook_without_an_entry_is_refused(tmp_path):
    (path, *_) = paths()
    other = tmp_path / path.name
    text = path.read_text().replace("# 01 · ", "# 01 · Not ", 1)
    other.write_text(text)
    with pytest.raises(ValueError, match="instructor_guide"):
        lesson(other)


def test_sections_are_cut_inside_a_cell():
    (first, *_) = paths()
    headings = [section.heading for section in sections(first)]
    assert headings[0] == ""
    assert headings[-3:] == [
        "Exercises",
        "What you have learned",
        "References",
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("One two. Three four. Five.", "One two. Three four."),
        ("One two three four five six.", "One two three four five six."),
        ("One two. Three is:\n\n- four", "One two."),
        ("One two. Three is:\n\n$$x$$", "One two."),
        ("It is:\n\n$$x$$", "It is:\n\n$$x$$"),
        ("It has:\n\n- one", "It has."),
        ("One.\n\nTwo.\n\n| a |\n", "One. Two."),
        ("At 0.5 it is. Then no.", "At 0.5 it is."),
    ],
)
def test_opening_is_whole_sentences(text, wanted):
    assert opening(text, 4) == wanted


def test_index_of_an_accented_letter_belongs_to_both():
    (index,) = BeautifulSoup(html(r"$\bar\alpha_t$"), "html.parser")("msub")
    accented, letter = index.find_all(recursive=False)
    assert (accented.name, letter.text) == ("mover", "t")


@pytest.mark.parametrize("path", paths(), ids=lambda path: path.stem)
def test_formulas_of_a_notebook_can_be_set(path):
    for section in sections(path):
        for cell in section.cells:
            if cell.cell_type == "markdown":
                html(cell.source)


def test_code_too_long_for_a_slide_is_left_out():
    short = "\n".join(f"x{n} = {n}" for n in range(LINES))
    assert listing(new_code_cell(short)) == short
    assert listing(new_code_cell(f"{short}\ny = 1")) is None
    assert listing(new_code_cell(f"a = 1\nb = 2\nc = '{'long' * 20}'")) is None


def test_code_shows_what_it_prints_if_there_is_room():
    said = [new_output("stream", name="stdout", text="6\n")]
    cell = new_code_cell("a = 1\nb = 5\nprint(a + b)", outputs=said)
    assert listing(cell) == "a = 1\nb = 5\nprint(a + b)\n\n# 6"


def test_figure_without_alt_text_is_refused():
    data = {"image/png": "iVBORw0KGgo="}
    cell = new_code_cell("plot()", outputs=[new_output("display_data", data)])
    with pytest.raises(ValueError, match="without alt text"):
        figure(cell)


def test_section_holds_its_cells():
    assert Section("a").cells is not Section("b").cells
