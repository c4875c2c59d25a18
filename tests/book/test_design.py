"""The book's look: its cover, its maps, and what a shared link shows."""

import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urljoin
from xml.etree import ElementTree

import cover
import maps
import numpy as np
import pytest
import yaml
from bs4 import BeautifulSoup
from docutils import nodes
from docutils.core import publish_doctree
from PIL import Image
from previews import LONGEST, PICTURE_SIZE, describe, pages_address, tags
from sphinx.errors import ExtensionError
from sphinx_external_toc.parsing import parse_toc_yaml
from toc import NOTEBOOK_PAGES, PAGES

from notebooks import ROOT, repository

PARTS = maps.find_parts(parse_toc_yaml(ROOT / "_toc.yml"))
OPENERS = [str(part.items[0]) for part in PARTS]
ICONS = sorted(maps.ICONS.glob("*.svg"))


# --- The cover ---------------------------------------------------------------


@pytest.fixture(scope="module")
def figure():
    return BeautifulSoup(cover.COVER.read_text("utf-8"), "html.parser").figure


def test_cover_counts_what_the_scoreboard_counts(figure):
    """Numbers are those of the committed results, whoever retrained what."""
    counts, total = cover.verdicts()
    wanted = [
        f"{counts[generation.model]} of {total} within chance"
        for generation in cover.GENERATIONS
    ]
    said = [tag.text for tag in figure.select(".score")]
    assert said == wanted, "run `make cover`"
    assert f"judged by {total} measures" in figure.text


def test_cover_shows_a_real_panel_and_all_generations(figure):
    names = [tag.text for tag in figure.select(".panel b")]
    assert names == ["Real", *(g.name for g in cover.GENERATIONS)]
    for plot in figure.select(".plot"):
        assert len(plot.select("g path")) == cover.DRAWN
    assert len(figure.select(".plot .real path")) == cover.DRAWN
    assert "The cohort is simulated." in " ".join(
        figure.figcaption.text.split()
    )


def test_trajectories_are_drawn_at_their_heights():
    decades = [5.0, -1.0, 2.0, 9.0]  # the last one is cut at the frame
    x, first, *steps = re.findall(r"-?\d+", cover.outline(decades))
    heights = np.cumsum([int(first), *map(int, steps[1::2])])
    assert x == "0"
    assert set(steps[::2]) == {"1"}
    assert heights.tolist() == [0, cover.HEIGHT, cover.HEIGHT // 2, 0]


def test_words_for_trajectories_are_measured():
    lines = np.array([[1.0, 2.0, 2.0], [3.0, 2.0, 2.0], [5.0, 4.0, 4.0]])
    assert cover.in_words(lines) == (
        "the median goes from 1,000 to 100 copies/mL, and a month differs "
        "from the next by a factor of 3.2"
    )


def test_tally_fills_as_many_marks_as_are_right():
    marks = BeautifulSoup(cover.tally(3, 5), "html.parser").svg
    data = {path["class"][0]: path["d"] for path in marks.find_all("path")}
    assert data["full"].count("M") == 3
    assert data["empty"].count("M") == 2
    assert marks["aria-label"] == "3 of 5 marks are filled"


def test_tensor_draws_each_cell_that_is_not_zero():
    x = np.array([[0.0, 1.0], [0.5, 0.0], [1.0, 1.0]])
    drawing = BeautifulSoup(cover.tensor(x), "html.parser").svg
    cells = {path["style"]: path["d"].count("M") for path in drawing("path")}
    assert cells == {"opacity:0.66": 1, "opacity:1.00": 3}


def test_pictures_have_the_sizes_that_sites_expect():
    with Image.open(cover.SOCIAL) as picture:
        assert picture.size == PICTURE_SIZE
    with Image.open(cover.TOUCH_ICON) as picture:
        assert picture.size == (180, 180)
    assert cover.SOCIAL.stat().st_size < 300_000


def test_favicon_has_a_dark_version():
    style = ElementTree.parse(cover.FAVICON).find("{*}style").text
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    assert len(set(re.findall(r"#\w{6}", light + dark))) == 4


# --- The maps ----------------------------------------------------------------


def test_each_page_of_a_part_has_a_drawing():
    names = {Path(page).name for page in OPENERS}
    names |= {maps.notebook_number(page) for page in NOTEBOOK_PAGES}
    assert {path.stem for path in ICONS} == names | {"page"}
    with pytest.raises(ExtensionError, match=r"99\.svg; draw one"):
        maps.icon("99")


@pytest.mark.parametrize("path", ICONS, ids=lambda path: path.stem)
def test_drawings_are_of_one_style(path):
    drawing = ElementTree.parse(path).getroot()
    assert drawing.get("viewBox") == "0 0 160 100"
    assert len(drawing.get("aria-label")) >= 20
    # Colours come from the style sheet, so that they follow the theme.
    assert not re.search(r"#[0-9a-f]{3}|style=|fill=", path.read_text(), re.I)
    classes = {
        word
        for tag in drawing.iter()
        for word in (tag.get("class") or "").split()
    }
    sheet = (ROOT / "book" / "_assets" / "book.css").read_text()
    for word in classes - {"arrow"}:
        assert f".{word}" in sheet


def test_parts_are_those_of_the_contents():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    captions = [part["caption"] for part in contents["parts"]]
    assert [part.caption for part in PARTS] == [
        caption for caption in captions if caption.startswith("Part ")
    ]
    assert maps.notebook_range(PARTS[0]) == "notebooks 01–06"
    assert maps.notebook_range(PARTS[-1]) == "notebook 27"
    assert maps.split_caption(PARTS[3]) == ("Part IV", "Diffusion")


def test_sentences_may_go_on_in_the_next_line():
    lines = ["07: What is it?", "08: One, and:", "    another."]
    assert maps.read_sentences(lines, ["07", "08"]) == {
        "07": "What is it?",
        "08": "One, and: another.",
    }


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["07 What is it?"], "expected 'key: sentence', found '07 What"),
        (["07: What?", "07: Who?"], "'07' is there twice"),
        (["07: What?"], r"wants sentences for 07, 08, .* found 07$"),
        (["08: What?", "07: Who?"], "found 08, 07$"),
        ([], "found none$"),
    ],
)
def test_faulty_sentences_are_refused(lines, problem):
    with pytest.raises(ValueError, match=problem):
        maps.read_sentences(lines, ["07", "08"])


# --- Previews ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "pages"),
    [
        ("https://github.com/Some-One/a_book", "some-one.github.io/a_book/"),
        ("https://github.com/me/x/", "me.github.io/x/"),
        ("https://github.com/Me/me.github.io", "me.github.io/"),
        ("https://github.com/me/you.github.io", "me.github.io/you.github.io/"),
    ],
)
def test_pages_address_follows_from_the_repository(url, pages):
    assert pages_address(url) == f"https://{pages}"


@pytest.mark.parametrize(
    "url", ["https://github.com/me", "https://example.org/me/x", "me/x", ""]
)
def test_other_addresses_are_refused(url):
    with pytest.raises(ValueError, match=r"_config\.yml.*github\.com/owner"):
        pages_address(url)


def _read(text):
    return publish_doctree(
        f"Title\n=====\n\n{text}",
        settings_overrides={"doctitle_xform": False},
    )


def _described(text):
    return describe(_read(text))


def test_description_is_of_whole_sentences():
    short = "A network wants numbers. A table holds words, e.g. drug names."
    assert _described(short) == short
    cited = "It stands on theirs [Kuo *et al.*, 2023, Kuo, 2022]."
    assert _described(cited) == "It stands on theirs."
    long = "One is short. " + "Two is long and longer " * 10 + "still."
    assert _described(long) == "One is short."


def test_description_of_a_long_sentence_is_cut_between_words():
    cut = _described("word, " * 60)
    assert cut.endswith("word …")
    assert len(cut) <= LONGEST + 2


def test_description_passes_over_badges_and_lists():
    text = ".. image:: badge.svg\n\n- A point.\n\nThe first sentence."
    assert _described(text) == "The first sentence."
    paragraph = nodes.paragraph("", "", nodes.image())
    page = _read("Words.")
    page.next_node(nodes.section).insert(1, paragraph)
    assert describe(page) == "Words."


def test_tags_are_escaped():
    head = BeautifulSoup(
        tags('"A" & <b>', "It's <i>", "https://a/p", "https://a/i.png"),
        "html.parser",
    )
    assert head.find(property="og:title")["content"] == '"A" & <b>'
    assert head.find(attrs={"name": "description"})["content"] == "It's <i>"
    assert len(head.find_all(True)) == len(head.find_all("meta"))


# --- As built ----------------------------------------------------------------


@pytest.fixture(scope="module")
def page(html):
    """Return a function that parses a page of the built book."""

    def read(name):
        text = (html / f"{name}.html").read_text(encoding="utf-8")
        return BeautifulSoup(text, "html.parser")

    return read


@pytest.mark.slow
def test_every_page_has_a_preview(html, page):
    base = pages_address(repository())
    descriptions = set()
    for name in PAGES:
        soup = page(name)

        def said(name, soup=soup):
            (tag,) = soup.find_all("meta", property=f"og:{name}")
            return tag["content"]

        assert said("title") in soup.title.text
        assert 40 <= len(said("description")) <= LONGEST + 2, name
        assert said("url") == f"{base}{name}.html"
        assert soup.find(rel="canonical")["href"] == said("url")
        assert said("image").startswith(base)
        assert (html / said("image").removeprefix(base)).is_file()
        (icon,) = soup.find_all(rel="apple-touch-icon")
        address = urljoin(said("url"), icon["href"])
        assert (html / address.removeprefix(base)).is_file()
        (card,) = soup.find_all("meta", attrs={"name": "twitter:card"})
        assert card["content"] == "summary_large_image"
        descriptions.add(said("description"))
    assert len(descriptions) == len(PAGES)


@pytest.mark.slow
def test_book_opens_with_the_cover(page):
    article = page("book/intro").article
    (figure,) = article.select("figure.cover")
    assert figure.find_previous_siblings(["h2", "figure", "ul"]) == []
    links = [link["href"] for link in article.select(".path .what a")]
    assert links == [f"{Path(name).name}.html" for name in OPENERS]


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS, ids=OPENERS)
def test_part_opens_with_its_map(page, part):
    opener, *below = map(str, part.items)
    article = page(opener).article
    ribbon = article.find("nav", class_="ribbon")
    assert ribbon["aria-label"]
    stops = ribbon.find_all("a")
    assert [stop["href"] for stop in stops] == [
        "#" if name == opener else f"{Path(name).name}.html"
        for name in OPENERS
    ]
    (here,) = ribbon.find_all(attrs={"aria-current": "page"})
    assert stops.index(here) == OPENERS.index(opener)
    links = [link["href"] for link in article.select(".path .what a")]
    base = f"https://x/{opener}.html"
    assert [urljoin(base, link) for link in links] == [
        f"https://x/{name}.html" for name in below
    ]
    for station in article.select(".path li"):
        assert station.svg["aria-label"]


@pytest.mark.slow
def test_next_and_previous_follow_the_contents(page):
    """No page is left out, and none leads back or away."""
    for before, name in pairwise(PAGES):
        links = SimpleNamespace(
            next=page(before).select_one("a.right-next")["href"],
            back=page(name).select_one("a.left-prev")["href"],
        )
        assert urljoin(f"https://x/{before}.html", links.next) == (
            f"https://x/{name}.html"
        )
        assert urljoin(f"https://x/{name}.html", links.back) == (
            f"https://x/{before}.html"
        )


# --- On a screen -------------------------------------------------------------

# Characters a line, over all paragraphs of several lines.
MEASURE = """ps => {
    let characters = 0, lines = 0;
    for (const p of ps) {
        const height = parseFloat(getComputedStyle(p).lineHeight);
        const count = Math.round(p.getBoundingClientRect().height / height);
        if (count < 3) continue;
        characters += p.textContent.length;
        lines += count - 0.5;  // the last line is half full, on average
    }
    return characters / lines;
}"""
# How many columns of code fit, in the narrowest and the widest block.
COLUMNS = """blocks => {
    const pen = document.createElement("canvas").getContext("2d");
    return blocks.filter(b => b.clientWidth).map(b => {
        const style = getComputedStyle(b);
        pen.font = `${style.fontSize} ${style.fontFamily}`;
        const room = b.clientWidth - 2 * parseFloat(style.paddingLeft);
        return room / pen.measureText("0").width;
    });
}"""


@pytest.mark.slow
def test_text_and_code_are_of_a_comfortable_measure(open_page):
    page = open_page(NOTEBOOK_PAGES[0])
    for details in page.locator("article details:not(.hide)").all():
        details.evaluate("tag => { tag.open = true; }")
    text = page.locator("article section > p")
    assert 60 <= text.evaluate_all(MEASURE) <= 76
    code = page.locator("article section > details pre, .cell_input pre")
    assert min(code.evaluate_all(COLUMNS)) >= 79


@pytest.mark.slow
def test_figures_use_the_whole_width_of_a_phone(open_page):
    page = open_page(NOTEBOOK_PAGES[0], size="phone")
    box = page.locator(".cell_output > img").first.bounding_box()
    assert (box["x"], box["width"]) == (0, 390)


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_cover_is_legible_on_a_phone(open_page, theme):
    page = open_page("book/intro", size="phone", theme=theme)
    sizes = page.locator(".cover *").evaluate_all(
        "tags => tags.filter(t => t.innerText && !t.children.length)"
        ".map(t => parseFloat(getComputedStyle(t).fontSize))"
    )
    assert min(sizes) >= 11
    panels = [p.bounding_box() for p in page.locator(".cover .panel").all()]
    assert all(b["x"] > 0 and b["x"] + b["width"] < 390 for b in panels)
    assert panels[0]["width"] > 1.9 * panels[1]["width"]
    for plot in page.locator(".cover .plot").all():
        assert plot.bounding_box()["height"] >= 100


@pytest.mark.slow
def test_a_tap_anywhere_on_a_station_opens_its_page(open_page):
    page = open_page(OPENERS[1], size="phone")
    page.locator(".path li").nth(1).click(position={"x": 40, "y": 20})
    page.wait_for_url(f"**/{PARTS[1].items[2]}.html")
