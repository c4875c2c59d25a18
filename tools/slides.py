"""Make a deck of slides for each part of the book, from its notebooks.

python tools/slides.py FOLDER

One file a deck, with all that it needs inside. What a slide shows follows
from rules, so notebooks hold nothing for slides: the instructor guide names
the sections to show, and has what to say. ``make slides`` runs this; as a
Sphinx extension it puts the decks into every build of the book.
"""

from __future__ import annotations

import base64
import io
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from bs4 import BeautifulSoup
from docutils.utils.math.latex2mathml import tex2mathml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup, escape
from mdit_py_plugins.dollarmath import dollarmath_plugin
from nbformat import NotebookNode
from PIL import Image
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from solutions import exercises, parts, title
from sphinx.application import Sphinx

from notebooks import ROOT, read

GUIDE = ROOT / "book" / "instructor_guide.md"
ICON = ROOT / "book" / "_assets" / "favicon.svg"
TEMPLATE = "slides_template.html"
# What can be read from the last row: this many words by themselves, under a
# figure, and over code; this many lines and columns of code.
WORDS, WORDS_FIGURE, WORDS_CODE = 42, 36, 26
LINES, LINES_SAID, COLUMNS = 12, 7, 72
WORDS_POINT, WORDS_LIST = 18, 90
WORDS_EXERCISE = 45  # the class reads it once and then talks
CHECKED = "# NBVAL_CHECK_OUTPUT\n"
SENTENCE = re.compile(r"(?<=[.?!])\s+(?=[A-Z`*$\[\d])")
# docutils puts the index of an accented letter between letter and accent.
INDEX_UNDER_ACCENT = re.compile(
    r"<munderover>\s*(<m\w+>[^<]*</m\w+>)(.+?)(<mo [^>]*>[ˉˆ˜]</mo>)\s*"
    r"</munderover>",
    re.DOTALL,
)


@dataclass(frozen=True)
class Figure:
    """A picture in a notebook's output."""

    source: str
    alt: str
    ratio: float  # width over height


@dataclass
class Section:
    """What stands under one heading of a notebook, up to the next one."""

    heading: str
    cells: list[NotebookNode] = field(default_factory=list)


@dataclass(kw_only=True)
class Slide:
    """One slide; text is HTML."""

    kind: str
    title: str
    text: str = ""
    notes: str = ""
    figure: Figure | None = None
    code: str = ""  # or what it says
    columns: int = 0
    lines: int = 0
    answer: str = ""
    anchor: str = ""
    book: str = ""
    home: str = ""


# --- Text --------------------------------------------------------------------


def _formula(source: str, options: dict[str, bool]) -> str:
    """Set a formula as MathML, which browsers draw without any script."""
    # docutils lacks these two; brackets grow by themselves in MathML.
    source = re.sub(r"\\[bB]ig(?=[^a-z])", "", source)
    source = re.sub(r"\\dots\b", r"\\ldots", source)
    mathml = tex2mathml(source, as_block=options["display_mode"])
    mathml = INDEX_UNDER_ACCENT.sub(
        r"<msub><mover>\1\3</mover>\2</msub>", mathml
    )
    # Without a font for formulas, what is called an accent hits its letter.
    return mathml.replace(' accent="true"', "")


_MARKDOWN = MarkdownIt("commonmark").enable("table")
_MARKDOWN.use(dollarmath_plugin, renderer=_formula)


def html(text: str) -> str:
    """Turn a notebook's or a page's Markdown into HTML for a slide."""
    text = re.sub(
        r"\]\((?:\.\./notebooks/)?(\d\d_\w+)\.ipynb",
        r"](../notebooks/\1.html",
        text,
    )
    return _MARKDOWN.render(text)


def inline(text: str) -> Markup:
    """Turn a title's Markdown into HTML, without a paragraph around it."""
    return Markup(_MARKDOWN.renderInline(text))


def sentences(text: str) -> list[str]:
    """Split a paragraph into its sentences."""
    return SENTENCE.split(" ".join(text.split()))


def opening(text: str, words: int) -> str:
    """Return the first sentences of a text, as many as the words allow.

    The first one comes whatever its length. The last one is a whole one: if
    it runs on into a formula, so does what is returned.
    """
    kept: list[str] = []
    found, following = _until_display(text)
    for sentence in found:
        if kept and len(" ".join([*kept, sentence]).split()) > words:
            break
        kept.append(sentence)
    while len(kept) > 1 and kept[-1][-1] not in ".?!":
        kept.pop()
    whole = " ".join(kept)
    if whole and whole[-1] not in ".?!":
        is_formula = following.startswith("$$")
        whole = f"{whole}\n\n{following}" if is_formula else whole[:-1] + "."
    return whole


def _until_display(text: str) -> tuple[list[str], str]:
    """Split a text at its first list, table, formula or code.

    Returns
    -------
    list of str
        The sentences before it.
    str
        The formula or whatever it is; empty if there is none.
    """
    found = []
    for block in re.split(r"\n\s*\n", text.strip()):
        if re.match(r"[-*|>] ?\s|\d+\. |\$\$|<|```", block):
            return found, block
        found += sentences(block)
    return found, ""


# --- Notebooks ---------------------------------------------------------------


@cache
def sections(path: Path) -> list[Section]:
    """Cut a notebook at its headings; text cells are cut, too."""
    found = [Section("")]
    for cell in read(path).cells:
        if cell.cell_type == "code":
            found[-1].cells.append(cell)
            continue
        first, *rest = re.split(r"^##+ (.+)$", cell.source, flags=re.M)
        found[-1].cells.append(_text(first))
        for heading, body in zip(rest[::2], rest[1::2], strict=True):
            found.append(Section(heading, [_text(body)]))
    return found


def _text(source: str) -> NotebookNode:
    return NotebookNode(cell_type="markdown", source=source.strip())


def lead(section: Section, words: int) -> str:
    """Return how a section begins."""
    return opening(section.cells[0].source, words)


def figure(cell: NotebookNode) -> Figure | None:
    """Find the first picture of a cell; of a player, the frame it starts at.

    Raises
    ------
    ValueError
        If the picture has no alt text.
    """
    if cell.cell_type != "code":
        return None
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" in data:
            mystnb = cell.metadata.get("mystnb", {})
            alt = mystnb.get("image", {}).get("alt", "")
            source = "data:image/png;base64," + re.sub(
                r"\s", "", data["image/png"]
            )
        elif image := BeautifulSoup(
            data.get("text/html", ""), "html.parser"
        ).find("img"):
            alt, source = image.get("alt", ""), image["src"]
        else:
            continue
        if not alt:
            raise ValueError(
                f"a figure without alt text, made by: {cell.source[:80]!r}"
            )
        return Figure(source, alt, _ratio(source))
    return None


def _ratio(source: str) -> float:
    raw = base64.b64decode(source.partition(",")[2])
    width, height = Image.open(io.BytesIO(raw)).size
    return round(width / height, 3)


def caption(cells: list[NotebookNode], place: int) -> str:
    """Say what to see in a figure: how the text after it begins."""
    for cell in cells[place + 1 :]:
        if cell.cell_type == "markdown" and cell.source:
            text = cell.source
            if text.startswith("Press play"):  # a slide has no buttons
                text = " ".join(sentences(text)[1:])
            return opening(text, WORDS_FIGURE)
    return ""


def listing(cell: NotebookNode) -> str | None:
    """Return a cell's code and what it prints, if a slide can hold them."""
    if cell.cell_type != "code" or cell.metadata.get("tags"):
        return None
    code = re.sub(r"\n{3,}", "\n\n", cell.source.removeprefix(CHECKED).strip())
    said = "".join(o.get("text", "") for o in cell.outputs).rstrip()
    if said:
        said = "\n\n" + re.sub(r"^", "# ", said, flags=re.M)
    for whole in (code + said, code):
        lines = whole.splitlines()
        if 3 <= len(lines) <= LINES and max(map(len, lines)) <= COLUMNS:
            return whole
    return None


def result(cell: NotebookNode) -> str | None:
    """Return what a cell prints, or its table, if a slide can hold it."""
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        table = data.get("text/plain", "") if "text/html" in data else ""
        said = (output.get("text", "") or table).rstrip()
        lines = said.splitlines()
        is_short = 2 <= len(lines) <= LINES_SAID
        if is_short and max(map(len, lines)) <= COLUMNS:
            return said
    return None


def _teaches(cell: NotebookNode) -> bool:
    """Tell code that carries an idea from loading, drawing and tables."""
    return not re.search(
        r"^import |\bplt\.|\bax(es)?\b|to_frame|DataFrame|load_art|def refus",
        cell.source,
        re.M,
    )


def _defines(code: str) -> bool:
    return code.startswith(("def ", "class "))


# --- The instructor guide ----------------------------------------------------


@cache
def guide() -> dict[str, list[tuple[str, str]]]:
    """Read the guide: for each notebook's title, its labels and texts."""
    pieces = re.split(r"^###? (.+)$", GUIDE.read_text("utf-8"), flags=re.M)
    return {
        heading: [
            # An answer that is a number is no item of a list.
            (label, re.sub(r"^(\d+)\.", r"\1\\.", " ".join(text.split())))
            for label, text in re.findall(
                r"^- \*\*(\w+)\*\* (.+(?:\n {2,}.+)*)", body, re.M
            )
        ]
        for heading, body in zip(pieces[1::2], pieces[2::2], strict=True)
    }


def entry(path: Path) -> dict[str, list[str]]:
    """Return what the guide says about a notebook, by label.

    Raises
    ------
    ValueError
        If the guide does not have all that the slides need.
    """
    found: dict[str, list[str]] = {}
    for label, text in guide().get(title(path), []):
        found.setdefault(label, []).append(text)
    for label in (
        "Run",
        "Teach",
        "Say",
        "Stuck",
        "Ask",
        "Answer",
        "Live",
        "Skip",
    ):
        if label not in found:
            raise ValueError(
                f"{GUIDE.name}, '### {title(path)}': add - **{label}** ..."
            )
    return found


# --- Slides ------------------------------------------------------------------


def lesson(path: Path) -> list[Slide]:
    """Make the slides of one notebook."""
    said = entry(path)
    found = sections(path)
    slides = [
        _start(path, said),
        *_ideas(path, found, said),
        _answer(said),
        *_learned(found),
        _exercise(path, said),
    ]
    number = path.name[:2]
    for place, slide in enumerate(slides, start=1):
        slide.anchor = f"nb{number}-{place}"
        slide.book = f"../notebooks/{path.stem}.html"
        slide.home = title(path)
    return slides


def _start(path: Path, said: dict[str, list[str]]) -> Slide:
    number, _, name = title(path).partition(" · ")
    notes = [
        said["Say"][0],
        f"**Stuck:** {said['Stuck'][0]}",
        f"**Time:** {said['Teach'][0]} in class, {said['Run'][0]} to run. "
        "Choose *Run all* now. Ask the question, and let them guess.",
    ]
    return Slide(
        kind="start",
        title=f"{number} · {name}",
        text=html(said["Ask"][0]),
        notes=html("\n\n".join(notes)),
    )


def _ideas(
    path: Path, found: list[Section], said: dict[str, list[str]]
) -> list[Slide]:
    """Show the sections that the guide runs live, in order.

    If none of them has a figure, or none a short piece of code, the first
    section of the notebook that has one comes as well.
    """
    live, skip = (_names(said[label][0]) for label in ("Live", "Skip"))
    body = found[1 : [s.heading for s in found].index("Exercises")]
    unknown = {*live, *skip} - {section.heading for section in body}
    if unknown:
        raise ValueError(f"{path.name} has no section {unknown.pop()!r}")
    chosen = {s.heading: _idea(s) for s in body if s.heading in live}
    others = [s for s in body if s.heading not in {*live, *skip}]
    for kind, make in (("figure", _picture), ("code", _definition)):
        if any(slide.kind == kind for slide in chosen.values()):
            continue
        extra = next(filter(None, map(make, others)), None)
        if extra:
            chosen[extra.title] = extra
    return [chosen[s.heading] for s in body if s.heading in chosen]


def _names(text: str) -> list[str]:
    return re.findall(r"\*([^*]+)\*", text)


def _idea(section: Section) -> Slide:
    return _picture(section) or _program(section) or _words(section)


def _words(section: Section) -> Slide:
    """Show how a section begins, and what its code says if that is short."""
    text = lead(section, WORDS)
    found = filter(None, map(result, section.cells))
    # A formula is enough to look at.
    said = "" if "$$" in text else next(found, "")
    return Slide(
        kind="text",
        title=section.heading,
        text=html(text),
        code=escape(said),
        columns=max(map(len, said.splitlines()), default=0),
        lines=len(said.splitlines()),
        notes=_context(section),
    )


def _picture(section: Section) -> Slide | None:
    for place, cell in enumerate(section.cells):
        if shown := figure(cell):
            return Slide(
                kind="figure",
                title=section.heading,
                text=html(caption(section.cells, place)),
                figure=shown,
                notes=_context(section),
            )
    return None


def _program(section: Section) -> Slide | None:
    """Show a short piece of code, a definition rather than its use."""
    found = _listings(section)
    definitions = filter(_defines, found)
    return _code(section, next(definitions, found[0])) if found else None


def _definition(section: Section) -> Slide | None:
    found = next(filter(_defines, _listings(section)), None)
    return _code(section, found) if found else None


def _listings(section: Section) -> list[str]:
    cells = filter(_teaches, section.cells)
    return [code for cell in cells if (code := listing(cell))]


def _code(section: Section, code: str) -> Slide:
    formatter = HtmlFormatter(nowrap=True)
    return Slide(
        kind="code",
        title=section.heading,
        text=html(lead(section, WORDS_CODE)),
        code=highlight(code, PythonLexer(), formatter),
        columns=max(map(len, code.splitlines())),
        lines=len(code.splitlines()),
        notes=_context(section),
    )


def _context(section: Section) -> str:
    """Give the speaker the section's first paragraphs, up to the code."""
    return html(section.cells[0].source)


def _answer(said: dict[str, list[str]]) -> Slide:
    more = [
        f"**Ask, too:** {ask}\n\n**Answer:** {answer}"
        for ask, answer in zip(said["Ask"], said["Answer"], strict=True)
    ]
    return Slide(
        kind="answer",
        title="Now you can tell",
        text=html(said["Ask"][0]),
        answer=html(said["Answer"][0]),
        notes=html("\n\n".join(more[1:])),
    )


def _learned(found: list[Section]) -> list[Slide]:
    """List what the notebook says at its end; on two slides, if need be."""
    name = "What you have learned"
    (section,) = (s for s in found if s.heading == name)
    points = [
        " ".join(point.split())
        for point in re.findall(
            r"^- (.+(?:\n {2,}.+)*)", section.cells[0].source, re.M
        )
    ]
    words = sum(len(_shortened(point).split()) for point in points)
    half = -(-len(points) // 2) if words > WORDS_LIST else len(points)
    return [
        Slide(
            kind="learned",
            title=name,
            text=_list(map(_shortened, part)),
            notes=_list(part),
        )
        for part in (points[:half], points[half:])
        if part
    ]


def _list(points: Iterable[str]) -> str:
    return html("\n".join(f"- {point}" for point in points))


def _shortened(point: str) -> str:
    """Keep what is enough to talk about; the notes have the rest."""
    short = opening(point.partition(";")[0].rstrip(".") + ".", WORDS_POINT)
    if len(short.split()) > WORDS_POINT:
        short = short.partition(": ")[0].rstrip(".") + "."
    return short


def _exercise(path: Path, said: dict[str, list[str]]) -> Slide:
    """Choose the first exercise that is not easy and can be read quickly."""
    found = exercises(path)
    short = [e for e in found if len(e.task.split()) <= WORDS_EXERCISE]
    chosen = next(
        (e for e in short if e.grade != "easy"), next(iter(short), found[0])
    )
    return Slide(
        kind="exercise",
        title=f"To discuss: exercise {chosen.number} ({chosen.grade})",
        text=html(chosen.task),
        notes=html(f"**Solution**\n\n{chosen.solution}"),
    )


# --- Decks -------------------------------------------------------------------


def decks() -> Iterator[tuple[str, str, list[list[Slide]]]]:
    """Yield each part's file name, its caption and its slides by notebook."""
    for number, (caption, files) in enumerate(parts(), start=1):
        yield f"part{number}.html", caption, [lesson(path) for path in files]


def write(folder: Path) -> list[Path]:
    """Write all decks into a folder; return their paths."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = inline
    template = environment.get_template(TEMPLATE)
    icon = base64.b64encode(ICON.read_bytes()).decode()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, caption, lessons in decks():
        deck = template.render(
            caption=caption, lessons=lessons, page=f"../book/{name}", icon=icon
        )
        (folder / name).write_text(deck, "utf-8")
        written.append(folder / name)
    return written


# --- In the book -------------------------------------------------------------


def write_into_book(app: Sphinx, error: Exception | None) -> None:
    """Put the decks beside the pages of a build that went well."""
    if error is None and app.builder.format == "html":
        write(Path(app.outdir) / "slides")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register as a Sphinx extension."""
    app.connect("build-finished", write_into_book)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("say where to: python tools/slides.py FOLDER")
    for deck in write(Path(sys.argv[1])):
        print(deck)
