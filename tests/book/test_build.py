"""The built book: complete, linked, self-contained, described."""

import re
from itertools import pairwise
from urllib.parse import unquote, urlsplit

import offline_pages
import pytest
import yaml
from bs4 import BeautifulSoup
from sphinx.builders.html._assets import _CascadingStyleSheet, _JavaScript
from toc import NOTEBOOK_PAGES, PAGES

from notebooks import ROOT, repository

# What makes a browser fetch something without being asked.
LOADING = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
}


@pytest.fixture(scope="module")
def soups(html):
    """All pages, parsed, by their path from the book's root."""
    return {
        path.relative_to(html).as_posix(): BeautifulSoup(
            path.read_text(encoding="utf-8"), "html.parser"
        )
        for path in sorted(html.rglob("*.html"))
        if "_static" not in path.relative_to(html).parts
    }


@pytest.mark.slow
def test_builds_without_warnings(build):
    assert build.complaints == ""
    assert build.returncode == 0, build.tail


@pytest.mark.slow
def test_every_page_is_there(html, soups):
    built = set(soups) - {"index.html", "search.html", "genindex.html"}
    built = {page for page in built if not page.startswith("slides/")}
    assert built == {f"{page}.html" for page in PAGES}
    assert (html / ".nojekyll").exists()


@pytest.mark.slow
def test_pages_have_no_handlers_but_the_theme_s(soups):
    """Nor links that run script, nor frames of other pages."""
    handlers = set()
    for page, soup in soups.items():
        assert not soup.find(["iframe", "object", "embed", "base"]), page
        for tag in soup.find_all(True):
            for name, value in tag.attrs.items():
                if name.startswith("on"):
                    handlers.add(value)
                if name in ("href", "src", "action"):
                    assert not value.lower().startswith("javascript:"), page
    assert handlers == {"toggleFullScreen()", "window.print()"}


@pytest.mark.slow
def test_index_leads_to_the_introduction(soups):
    refresh = soups["index.html"].find("meta", {"http-equiv": "Refresh"})
    assert refresh["content"].endswith("url=book/intro.html")


def _target(page, link):
    """Split a link on a page into the file and the anchor it points to."""
    parts = urlsplit(link)
    folder = page.rpartition("/")[0]
    steps = [*folder.split("/"), *parts.path.split("/")]
    if not parts.path:
        return page, unquote(parts.fragment)
    path = []
    for step in steps:
        if step == "..":
            path.pop()
        elif step not in ("", "."):
            path.append(step)
    return unquote("/".join(path)), unquote(parts.fragment)


@pytest.mark.slow
def test_internal_links_and_anchors_resolve(html, soups):
    anchors = {
        page: {tag["id"] for tag in soup.find_all(id=True)}
        for page, soup in soups.items()
    }
    broken, count = [], 0
    for page, soup in soups.items():
        for tag in soup.find_all("a", href=True):
            link = tag["href"]
            if urlsplit(link).scheme or link in ("#", ""):
                continue
            count += 1
            file, anchor = _target(page, link)
            if not (html / file).is_file():
                broken.append(f"{page}: {link}")
            elif anchor and anchor not in anchors.get(file, ()):
                broken.append(f"{page}: {link} (no such anchor)")
    assert broken == []
    assert count > 10 * len(PAGES)


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(html, soups):
    found = []
    for page, soup in soups.items():
        links = [
            tag.get(LOADING[tag.name]) for tag in soup.find_all(list(LOADING))
        ]
        links += [
            tag["href"]
            for tag in soup.find_all("link", href=True)
            if "canonical" not in tag.get("rel", [])
        ]
        links += re.findall(r"url\(['\"]?([^'\")]+)", str(soup.style or ""))
        for link in filter(None, links):
            parts = urlsplit(link)
            if parts.netloc or parts.scheme not in ("", "data"):
                found.append(f"{page}: {link}")
            elif not parts.scheme:
                assert (html / _target(page, link)[0]).is_file(), link
    for sheet in html.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        if re.search(r"(@import|url\()\s*['\"]?(https?:)?//", text):
            found.append(sheet.name)
    assert found == []


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_images_have_a_real_alt(soups, page):
    article = soups[f"{page}.html"].find("article")
    for image in article.find_all("img"):
        alt = image.get("alt", "")
        # A file name passes for an alt with most checkers and helps nobody.
        assert not re.search(r"\.(png|svg|jpe?g)$|_images|/", alt), alt
        assert len(alt) >= 20, str(image)[:200]
    for drawing in article.select("figure svg"):
        assert len(drawing["aria-label"]) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_headings_are_in_order(soups, page):
    article = soups[f"{page}.html"].find("article")
    levels = [
        int(tag.name[1]) for tag in article.find_all(re.compile("^h[1-6]$"))
    ]
    assert levels.count(1) == 1
    assert levels[0] == 1
    for above, below in pairwise(levels):
        assert below <= above + 1


@pytest.mark.slow
def test_language_is_stated(soups):
    for page in PAGES:
        assert soups[f"{page}.html"].html["lang"] == "en-GB"


@pytest.mark.slow
@pytest.mark.parametrize("page", NOTEBOOK_PAGES)
def test_launch_button_opens_this_notebook(soups, page):
    slug = repository().removeprefix("https://github.com/")
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    branch = config["repository"]["branch"]
    wanted = (
        "https://colab.research.google.com/github/"
        f"{slug}/blob/{branch}/{page}.ipynb"
    )
    soup = soups[f"{page}.html"]
    header = soup.select("div.dropdown-launch-buttons a[href]")
    assert wanted in [link["href"] for link in header]
    badge = soup.find(class_="colab-badge").find_parent("a")
    assert badge["href"] == wanted


@pytest.mark.slow
def test_mathjax_comes_only_where_there_is_maths(soups):
    for page in PAGES:
        soup = soups[f"{page}.html"]
        sources = [tag["src"] for tag in soup.find_all("script", src=True)]
        loaded = any("mathjax/" in source for source in sources)
        assert loaded == bool(soup.article.select(".math")), page


@pytest.mark.slow
def test_scripts_come_once(soups):
    for page in PAGES:
        tags = soups[f"{page}.html"].find_all("script")
        scripts = [tag.get("src") or tag.string for tag in tags]
        assert len(scripts) == len(set(scripts)), page


def test_badge_becomes_text_inside_its_link():
    link = "https://colab.research.google.com"
    badge = f'<img alt="Open" src="{link}/assets/colab-badge.svg" />'
    page = f'<a href="{link}/github/x"><img src="own.png">{badge}</a>'
    assert offline_pages.localise(page) == (
        f'<a href="{link}/github/x"><img src="own.png">'
        '<span class="colab-badge">Open in Colab</span></a>'
    )


def test_first_of_equal_scripts_is_kept():
    scripts = [
        _JavaScript("a.js"),
        _JavaScript(None, body="let x = 1"),
        _JavaScript("a.js", priority=700),
        _JavaScript("", body="let x = 1"),
        _JavaScript("", body="let y = 1"),
    ]
    kept = offline_pages.drop_repeated(scripts)
    assert kept == [scripts[0], scripts[1], scripts[4]]


def test_thebe_is_left_out():
    scripts = [
        _JavaScript("sphinx-thebe.js"),
        _JavaScript(None, body='const THEBE_JS_URL = "https://unpkg.com"'),
        _JavaScript("book.js"),
    ]
    assert offline_pages.drop_thebe(scripts) == scripts[2:]
    sheets = [_CascadingStyleSheet("sphinx-thebe.css")]
    assert offline_pages.drop_thebe(sheets) == []
