"""Every page in a browser: quiet, accessible, light, and wide enough."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from toc import NOTEBOOK_PAGES, PAGES

pytestmark = pytest.mark.slow

COMMON_PAGES = [*PAGES, "search", "genindex"]
ROOT_TAG = "document.documentElement"
BUDGET = 1_500_000  # bytes that travel for a page, text compressed
# What axe finds depends on the colours by these rules only.
COLOUR_RULES = ["color-contrast", "link-in-text-block"]
# Thousands of coloured words of code take axe most of its time. The first of
# each kind stays, in each kind of block; the others become plain text.
THIN_CODE = """() => {
    const seen = new Set();
    for (const block of document.querySelectorAll("pre")) {
        const place = block.closest(".cell_output, .cell_input");
        const repeated = [];
        const words = block.querySelectorAll("span");
        for (const word of words) {
            const kind = `${word.className} in ${place?.className}`;
            if (seen.has(kind)) repeated.push(word);
            seen.add(kind);
        }
        if (repeated.length < words.length) {
            repeated.forEach((word) => word.replaceWith(...word.childNodes));
        } else {
            block.textContent = block.textContent;
        }
    }
}"""


def check_accessibility(page, **options):
    """Fail with what axe-core finds; its default rules, unless told."""
    options |= {"resultTypes": ["violations"], "preload": False}
    result = Axe().run(page, options=options)
    if result.violations_count:
        pytest.fail(result.generate_report(), pytrace=False)


def wear(page, theme):
    """Turn the system's colours over; the page follows."""
    page.emulate_media(color_scheme=theme)
    page.wait_for_function(
        f"theme => {ROOT_TAG}.dataset.theme === theme", arg=theme
    )


def overflows(page):
    """Say whether the page scrolls sideways, or holds what is out of sight."""
    page.evaluate(f"{ROOT_TAG}.scrollLeft = 1000")
    return page.evaluate(
        f"{ROOT_TAG}.scrollLeft > 0 || "
        f"{ROOT_TAG}.scrollWidth > {ROOT_TAG}.clientWidth"
    )


@pytest.mark.parametrize("name", COMMON_PAGES)
def test_page_on_a_desktop(new_page, address, html, record_property, name):
    page = new_page(reduced_motion="reduce")
    requests = []
    page.on("requestfinished", lambda request: requests.append(request))
    page.goto(f"{address}{name}.html", wait_until="networkidle")
    assert page.locator("html").get_attribute("lang") == "en-GB"

    requests = [r for r in requests if r.url.startswith(address)]
    travelled = sum(r.sizes()["responseBodySize"] for r in requests)
    files = [html / urlsplit(r.url).path.lstrip("/") for r in requests]
    record_property("page", name)
    record_property("kilobytes", travelled / 1000)
    record_property("plain", sum(f.stat().st_size for f in files) / 1000)
    assert travelled <= BUDGET

    page.evaluate(THIN_CODE)
    assert not overflows(page)
    check_accessibility(page)
    wear(page, "dark")
    assert not overflows(page)
    check_accessibility(page, runOnly=COLOUR_RULES)


@pytest.mark.parametrize("name", COMMON_PAGES)
def test_page_on_a_phone(open_page, name):
    page = open_page(name, "phone", "dark", reduced_motion="reduce")
    assert page.locator("html").get_attribute("data-theme") == "dark"
    page.evaluate(THIN_CODE)
    assert not overflows(page)
    off = {rule: {"enabled": False} for rule in COLOUR_RULES}
    check_accessibility(page, rules=off)
    wear(page, "light")
    assert not overflows(page)


def test_text_comes_before_mathjax(new_page, address):
    page = new_page()
    held = []
    page.route("**/mathjax/*", lambda route: held.append(route))
    page.goto(f"{address}{NOTEBOOK_PAGES[0]}.html", wait_until="commit")
    paint = "performance.getEntriesByName('first-contentful-paint')[0]"
    page.wait_for_function(f"{paint} !== undefined")
    assert page.locator("article h1").is_visible()
    assert page.locator("article p").first.is_visible()
    assert page.locator("mjx-container").count() == 0
    page.wait_for_function("true")  # lets the page ask, if it has not yet
    assert len(held) == 1
    held[0].continue_()
    page.wait_for_selector("mjx-container svg")


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


# A colour, a term of the glossary, a model, and names in code.
TERMS = {
    "vermillion": "How to use this book",
    "wasserstein": "Glossary",
    "transformer": "17 · Health Gym v2.5",
    "gradient_penalty": "09 · The eye of the critic",
    "NoiseSchedule": "22 · Forward diffusion",
    "Box-Cox": "01 · Pre-processing",
}


@pytest.mark.parametrize("term", TERMS)
def test_search_finds(open_page, term):
    page = open_page("book/intro")
    page.keyboard.press("Control+k")
    page.keyboard.type(term)
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=*")
    page.wait_for_selector("#search-results li a")
    page.wait_for_load_state("networkidle")
    found = page.locator("#search-results li a").all_inner_texts()
    assert any(title.startswith(TERMS[term]) for title in found), found


def test_search_results_are_accessible(open_page):
    page = open_page("search", reduced_motion="reduce")
    page.goto(page.url + "?q=critic", wait_until="networkidle")
    check_accessibility(page)
    wear(page, "dark")
    check_accessibility(page, runOnly=COLOUR_RULES)


def test_search_says_when_it_finds_nothing(open_page):
    page = open_page("search")
    page.goto(page.url + "?q=qwertyuiop", wait_until="networkidle")
    said = page.locator("#search-results").inner_text()
    assert "did not match any documents" in said


def test_theme_button_changes_the_theme_and_says_so(open_page):
    page = open_page("book/intro")
    button = page.locator("button.theme-switch-button").first
    themes, names = set(), set()
    for _ in range(3):
        button.press("Enter")
        themes.add(page.evaluate(f"{ROOT_TAG}.dataset.theme"))
        names.add(button.get_attribute("aria-label"))
        assert button.locator("svg:visible").count() == 1
    assert themes == {"light", "dark"}
    assert names == {
        "Colour mode: light",
        "Colour mode: dark",
        "Colour mode: as the system",
    }


def test_theme_stays_from_page_to_page(open_page, address):
    page = open_page("book/intro")
    button = page.locator("button.theme-switch-button").first
    while page.evaluate(f"{ROOT_TAG}.dataset.theme") != "dark":
        button.click()
    page.goto(f"{address}book/glossary.html")
    assert page.locator("html").get_attribute("data-theme") == "dark"


def test_skip_link_leads_to_the_text(open_page):
    page = open_page(NOTEBOOK_PAGES[0])
    page.keyboard.press("Tab")
    link = page.get_by_role("link", name="Skip to main content")
    assert link.evaluate("e => e === document.activeElement")
    # The theme slides it in; it has to arrive.
    page.wait_for_function(
        "document.activeElement.getBoundingClientRect().top >= 0"
    )
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null")


def test_sidebar_shows_the_place_and_leads_on(open_page):
    here, there = NOTEBOOK_PAGES[:2]
    page = open_page(here)
    sidebar = page.get_by_role("navigation", name="Main")
    title = page.locator("article h1").inner_text()
    assert sidebar.locator("a.current").inner_text() == title.rstrip("#")
    sidebar.locator(f"a[href$='{Path(there).name}.html']").click()
    page.wait_for_url(f"**/{there}.html")


@pytest.mark.parametrize("drawer", ["Chapters", "On this page"])
def test_drawers_of_the_phone(open_page, drawer):
    page = open_page(NOTEBOOK_PAGES[0], "phone", reduced_motion="reduce")
    button = page.get_by_role("button", name=drawer)
    dialog = page.get_by_role("dialog", name=drawer)
    assert dialog.count() == 0
    button.press("Enter")
    assert dialog.is_visible()
    check_accessibility(page)
    page.keyboard.press("Escape")
    assert dialog.count() == 0
    assert button.evaluate("e => e === document.activeElement")
    before = page.url
    button.click()
    dialog.get_by_role("link").last.click()
    assert page.url != before


def test_open_dialogs_and_menus_are_accessible(open_page):
    page = open_page(NOTEBOOK_PAGES[0], reduced_motion="reduce")
    page.evaluate(THIN_CODE)
    page.get_by_role("button", name="Launch interactive content").click()
    assert page.get_by_role("link", name="Colab", exact=True).is_visible()
    check_accessibility(page, rules={"color-contrast": {"enabled": False}})
    page.keyboard.press("Escape")
    page.keyboard.press("Control+k")
    assert page.get_by_role("dialog", name="Search").is_visible()
    check_accessibility(page, runOnly={"type": "tag", "values": ["wcag2a"]})


def test_solutions_unfold(open_page):
    page = open_page(NOTEBOOK_PAGES[0], "phone", reduced_motion="reduce")
    solutions = page.locator("article details", has_text="Solution")
    for solution in solutions.all():
        assert not solution.locator("p, pre").first.is_visible()
        solution.locator("summary").press("Enter")
        assert solution.locator("p, pre").first.is_visible()
    page.evaluate(THIN_CODE)
    assert not overflows(page)
    check_accessibility(page)


def test_copy_button_copies_the_cell(open_page):
    page = open_page(
        NOTEBOOK_PAGES[0], permissions=["clipboard-read", "clipboard-write"]
    )
    cell = page.locator(".cell_input:visible").first
    button = cell.get_by_role("button")
    button.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")  # a ring shows for the keyboard only
    page.wait_for_function(
        "e => getComputedStyle(e).opacity === '1'",
        arg=button.element_handle(),
    )
    page.keyboard.press("Enter")
    page.wait_for_selector("button.copybtn.success")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == cell.locator("pre").inner_text().strip()


@pytest.fixture(scope="module")
def players(html):
    """Name the pages with players."""
    texts = {page: (html / f"{page}.html").read_text() for page in PAGES}
    names = [page for page in PAGES if 'id="player-' in texts[page]]
    assert names
    return names


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_players_wait_play_and_pause(open_page, players, motion):
    page = open_page(players[0], reduced_motion=motion)
    page.clock.install()
    page.reload(wait_until="networkidle")
    player = page.locator('div[id^="player-"]').first
    picture = player.locator("img")
    shown = picture.get_attribute("src")
    page.clock.run_for(5000)
    assert picture.get_attribute("src") == shown, "moves without being asked"

    play = player.get_by_role("button", name="Play")
    play.press("Enter")  # it stands at its end, and starts anew
    first = picture.get_attribute("src")
    assert first != shown
    page.clock.run_for(300)
    moved = picture.get_attribute("src") != first
    assert moved == (motion == "no-preference")
    page.clock.run_for(900)
    assert picture.get_attribute("src") != first

    player.get_by_role("button", name="Pause").press("Space")
    stopped = picture.get_attribute("src")
    page.clock.run_for(5000)
    assert picture.get_attribute("src") == stopped
    assert play.is_visible()


def test_players_step_by_keyboard(open_page, players):
    for name in players:
        page = open_page(name)
        for player in page.locator('div[id^="player-"]').all():
            slider = player.get_by_role("slider", name="Frame")
            slider.press("Home")
            first = slider.get_attribute("aria-valuetext")
            slider.press("ArrowRight")
            second = slider.get_attribute("aria-valuetext")
            assert second != first
            assert player.locator(".caption").inner_text() == second
            # The frames are files, and each of them is there.
            slider.press("End")
            page.wait_for_load_state("networkidle")
            picture = player.locator("img")
            assert picture.evaluate("e => e.complete && e.naturalWidth > 0")
            ring = slider.evaluate("e => getComputedStyle(e).outlineStyle")
            assert ring == "solid"


def test_print_has_the_text_and_no_controls(open_page):
    page = open_page(NOTEBOOK_PAGES[0], theme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("html").get_attribute("data-theme") == "light"
    assert page.locator("article p").first.is_visible()
    assert page.locator("article img").first.is_visible()
    for part in (".bd-sidebar-primary", ".bd-header-article", ".copybtn"):
        assert not page.locator(part).first.is_visible(), part
    for code in page.locator("article pre:visible").all():
        assert code.evaluate("e => e.scrollWidth <= e.clientWidth")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert len(page.pdf()) > 50_000


def test_pages_open_as_files(new_page, html):
    """Text, figures, maths and search; only its excerpts need a server."""
    home = html.as_uri()
    page = new_page(home=home)
    page.goto(f"{home}/index.html")
    page.wait_for_url("**/book/intro.html")
    for following in PAGES[1:8]:
        page.locator("a.right-next").click()
        page.wait_for_url(f"**/{following}.html")
    page.locator("#pst-primary-sidebar a[href$='glossary.html']").click()
    page.wait_for_selector("mjx-container svg")
    page.goto(f"{home}/{NOTEBOOK_PAGES[-1]}.html", wait_until="networkidle")
    broken = "[...document.images].filter(i => !i.naturalWidth && i.src)"
    assert page.evaluate(f"{broken}.map(i => i.src)") == []


def test_search_works_on_files(chromium, html):
    # Not watched: the browser says that it may not read excerpts from files.
    page = chromium.new_page()
    page.goto(f"{html.as_uri()}/search.html?q=wasserstein")
    page.wait_for_selector("#search-results li a")
    found = page.locator("#search-results li a").all_inner_texts()
    page.close()
    assert "Glossary" in found
