"""Every page in a browser: quiet, self-contained, no wider than the screen."""

import functools
import http.server
import os
import shutil
import threading
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright
from toc import PAGES

pytestmark = pytest.mark.slow

SYSTEM_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
COMMON_PAGES = [*PAGES, "search", "genindex"]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        """Keep requests out of the test's output."""


@pytest.fixture(scope="module")
def address(html):
    """Serve the book on the loopback; return where."""
    handler = functools.partial(_Quiet, directory=str(html))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def chromium():
    """Chromium of the system, else Playwright's own."""
    with sync_playwright() as playwright:
        system = next(filter(None, map(shutil.which, SYSTEM_BROWSERS)), None)
        own = playwright.chromium.executable_path
        path = system or (own if Path(own).exists() else None)
        if path is None:
            reason = (
                "no Chromium: install one (apt-get install chromium) or run "
                "`.venv/bin/playwright install chromium`"
            )
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)
        # The sandbox needs rights that root and containers lack; the only
        # pages opened are our own.
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture
def watch(address):
    """Return a function that makes a page note what it must not do."""
    complaints = []

    def start(page):
        page.on(
            "console",
            lambda said: (
                said.type in ("error", "warning")
                and complaints.append(f"{said.type}: {said.text}")
            ),
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                request.url.startswith((address, "data:", "blob:"))
                or complaints.append(f"external: {request.url}")
            ),
        )
        page.on(
            "response",
            lambda response: (
                response.status >= 400
                and complaints.append(f"{response.status}: {response.url}")
            ),
        )
        return page

    yield start
    assert complaints == []


@pytest.fixture
def open_page(chromium, address, watch):
    """Return a function that opens a page of the book."""
    contexts = []

    def start(name, size=WIDTHS["desktop"], theme="light"):
        width, height = size
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme
        )
        contexts.append(context)
        page = watch(context.new_page())
        page.goto(f"{address}{name}.html", wait_until="networkidle")
        return page

    yield start
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", COMMON_PAGES)
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", WIDTHS.values(), ids=WIDTHS)
def test_page(open_page, name, size, theme):
    page = open_page(name, size, theme)
    root = "document.documentElement"
    assert page.evaluate(f"{root}.dataset.theme") == theme
    # The page itself must not scroll sideways, not even out of sight.
    page.evaluate(f"{root}.scrollLeft = 1000")
    assert page.evaluate(f"{root}.scrollLeft") == 0
    assert page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")


def test_maths_is_typeset(open_page):
    page = open_page("book/glossary")
    formulas = page.locator("mjx-container svg")
    assert formulas.count() == page.locator("span.math").count() > 0


def test_drawings_follow_the_theme(open_page):
    strokes = []
    for theme in ("light", "dark"):
        page = open_page("book/intro", theme=theme)
        drawing = page.locator(".path .ink path").first
        strokes.append(drawing.evaluate("e => getComputedStyle(e).stroke"))
    assert strokes[0] != strokes[1]


def test_search_finds_a_term(open_page):
    page = open_page("search")
    page.goto(page.url + "?q=vermillion")
    page.wait_for_selector("#search-results li a")
    found = page.locator("#search-results li a").all_inner_texts()
    assert "How to use this book" in found


def test_theme_button_changes_the_theme(open_page):
    page = open_page("book/intro")
    seen = set()
    for _ in range(3):
        page.locator("button.theme-switch-button").first.click()
        seen.add(page.evaluate("document.documentElement.dataset.theme"))
    assert seen == {"light", "dark"}


def test_solution_unfolds(open_page):
    notebook = next(page for page in PAGES if page.startswith("notebooks/"))
    page = open_page(notebook, WIDTHS["phone"])
    solution = page.locator("article details", has_text="Solution").first
    assert not solution.locator("p, pre").first.is_visible()
    solution.locator("summary").click()
    assert solution.locator("p, pre").first.is_visible()
