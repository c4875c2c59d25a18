"""Decks of slides in a browser: they fit, they turn, they ask for nothing."""

import re

import pytest
from slides import write

pytestmark = pytest.mark.slow

SIZES = {
    "projector": (1280, 720),
    "old projector": (1024, 768),
    "phone": (390, 844),
    "phone, turned": (844, 390),
}
DECKS = [f"part{number}.html" for number in range(1, 6)]
# What of a slide's content reaches out of its frame or below the footer's
# edge, or is cut off inside. Code may scroll sideways, on a phone only.
SPILLED = """(isPhone) => {
  const spilled = [];
  for (const slide of document.querySelectorAll(".slide")) {
    const frame = slide.querySelector(".frame").getBoundingClientRect();
    const end = slide.querySelector("footer").getBoundingClientRect().top;
    for (const part of slide.querySelectorAll(".inner *")) {
      if (part.closest("pre") && part.tagName !== "PRE") continue;
      const box = part.getBoundingClientRect();
      const isOut = box.left < frame.left - 1 || box.right > frame.right + 1
        || box.top < frame.top - 1 || box.bottom > end + 1;
      const isCut = part.tagName === "PRE"
        && (part.scrollHeight > part.clientHeight + 1
          || (!isPhone && part.scrollWidth > part.clientWidth + 1));
      if (box.width && (isOut || isCut))
        spilled.push(`${slide.id}: ${part.tagName} ${part.className}`);
    }
  }
  return spilled;
}"""
SMALLEST = """() => Math.min(
  ...[...document.querySelectorAll(".inner .text, .inner pre")].map(
    (part) => parseFloat(getComputedStyle(part)["font-size"])))"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    assert [path.name for path in write(folder)] == DECKS
    return folder


@pytest.fixture
def open_deck(chromium, folder):
    """Return a function that opens a deck from its file."""
    complaints, contexts = [], []

    def note(page):
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text))
        page.on(
            "request",
            lambda request: (
                request.url.startswith((folder.as_uri(), "data:"))
                or complaints.append(request.url)
            ),
        )

    def start(name, size=SIZES["projector"]):
        width, height = size
        context = chromium.new_context(
            viewport={"width": width, "height": height}
        )
        contexts.append(context)
        context.on("page", note)
        page = context.new_page()
        page.goto((folder / name).as_uri())
        return page

    yield start
    for context in contexts:
        context.close()
    assert complaints == []


def place(page):
    """Return the number of the slide on the screen, from 0, by looking."""
    return page.evaluate(
        """() => [...document.querySelectorAll(".slide")].findIndex(
          (slide) => Math.abs(slide.getBoundingClientRect().top) < 2)"""
    )


def slide_id(page, number):
    return page.locator(".slide").nth(number).get_attribute("id")


def arrive(page, number):
    """Wait until a slide is on the screen: browsers scroll when they can."""
    for _ in range(50):
        if place(page) == number:
            return
        page.wait_for_timeout(100)
    pytest.fail(f"slide {place(page)} is on the screen, and not {number}")


def test_book_brings_the_decks(html):
    found = sorted(path.name for path in (html / "slides").iterdir())
    assert found == DECKS


@pytest.mark.parametrize("name", DECKS)
def test_deck_fits_its_frame(open_deck, name):
    page = open_deck(name)
    for hidden in page.locator(".frame details").all():
        hidden.evaluate("answer => (answer.open = true)")
    for size, (width, height) in SIZES.items():
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate(SPILLED, min(width, height) < 500) == [], size
        if size == "projector":
            assert page.evaluate(SMALLEST) >= 22  # 3 % of the height


@pytest.mark.parametrize("name", DECKS)
def test_every_figure_has_an_alt_text(open_deck, name):
    alts = (
        open_deck(name)
        .locator("img")
        .evaluate_all("images => images.map((image) => image.alt)")
    )
    assert alts
    assert min(map(len, alts)) >= 40


def test_keys_turn_the_slides(open_deck):
    page = open_deck(DECKS[4])
    count = page.locator(".slide").count()
    for keys, wanted in [
        (["ArrowRight"], 1),
        (["ArrowDown", "PageDown"], 3),
        (["ArrowLeft"], 2),
        (["ArrowUp"], 1),
        ([" "], 2),
        (["Shift+ "], 1),
        (["End"], count - 1),
        (["ArrowRight"], count - 1),
        (["Home"], 0),
        (["PageUp"], 0),
    ]:
        for key in keys:
            page.keyboard.press(key)
        arrive(page, wanted)
    page.keyboard.press("End")
    slide = page.locator(".slide").last.get_attribute("id")
    assert page.url.endswith(f"#{slide}")


def test_no_layout_turns_a_slide_back(open_deck):
    page = open_deck(DECKS[4])
    page.mouse.wheel(0, 700)
    arrive(page, 1)
    for wanted in range(2, 6):
        page.keyboard.press("ArrowRight")
        page.evaluate("document.body.style.color = 'red'")
        page.wait_for_timeout(50)
        assert place(page) == wanted
        assert page.url.endswith(f"#{slide_id(page, wanted)}")


def test_focus_is_followed(open_deck):
    page = open_deck(DECKS[4])
    slide = page.locator(".slide.answer").last
    slide.locator("summary").focus()
    page.wait_for_function(f"location.hash === '#{slide.get_attribute('id')}'")


def test_link_to_a_slide_opens_it(open_deck):
    page = open_deck(f"{DECKS[0]}")
    page.locator(".contents li a").nth(2).click()
    assert page.url.endswith("#nb03-1")
    page.reload()
    page.keyboard.press("ArrowRight")
    assert page.url.endswith("#nb03-2")


def test_answer_comes_with_the_next_key(open_deck):
    page = open_deck(DECKS[4])
    slide = page.locator(".slide.answer").first
    slide.evaluate("slide => slide.scrollIntoView()")
    anchor = slide.get_attribute("id")
    page.wait_for_function(f"location.hash === '#{anchor}'")
    before = place(page)
    answer = slide.locator("details p").first
    assert not answer.is_visible()
    page.keyboard.press("ArrowRight")
    assert answer.is_visible()
    assert place(page) == before
    page.keyboard.press("ArrowRight")
    arrive(page, before + 1)


def test_notes_and_theme(open_deck):
    page = open_deck(DECKS[4])
    page.keyboard.press("ArrowRight")
    arrive(page, 1)
    notes = page.locator(".notes").nth(1)
    assert not notes.is_visible()
    page.keyboard.press("n")
    assert notes.is_visible()
    arrive(page, 1)
    assert page.evaluate(SPILLED, True) == []
    colours = set()
    for _ in range(2):
        page.keyboard.press("t")
        colours.add(
            page.evaluate("getComputedStyle(document.body).backgroundColor")
        )
    assert len(colours) == 2


def test_speaker_s_window_turns_with_the_other(open_deck):
    page = open_deck(DECKS[4])
    with page.expect_popup() as opened:
        page.keyboard.press("s")
    speaker = opened.value
    speaker.wait_for_load_state()
    assert speaker.locator(".notes").first.is_visible()
    page.keyboard.press("ArrowRight")
    speaker.wait_for_function("location.hash === '#nb27-1'")
    speaker.keyboard.press("ArrowRight")
    page.wait_for_function("location.hash === '#nb27-2'")
    arrive(page, 2)
    arrive(speaker, 2)


def test_a_swipe_is_followed(open_deck):
    page = open_deck(DECKS[4], SIZES["phone"])
    page.mouse.wheel(0, 700)
    page.wait_for_function("location.hash === '#nb27-1'")
    arrive(page, 1)
    page.keyboard.press("ArrowRight")
    arrive(page, 2)


def test_print_has_a_page_a_slide(open_deck):
    page = open_deck(DECKS[4])
    printed = page.pdf(prefer_css_page_size=True)
    pages = re.findall(rb"/Type\s*/Page\b", printed)
    assert len(pages) == page.locator(".slide").count()
