"""The last touches to written pages change what they should and no more."""

import base64

import numpy as np
import pytest
from finished_pages import (
    detach_frames,
    draw_icons,
    free_corners,
    lighten,
    list_references,
    name_parts,
    point_to_webp,
    read_icons,
)
from PIL import Image
from sphinx.errors import ExtensionError

SCRIPT = (
    '{var p={github:[496,512,[],"f09b","M1 1z"]};d("fab",p)}'
    '{var p={sun:[512,512,[9728],"f185","M2 2z"]};x("far",p)}'
    '{var p={"arrow-up":[384,512,[8593],"f062","M3 3z"],'
    'sun:[512,512,[9728],"f185","M4 4z"]};d("fas",p),d("fa-solid",p)}'
)


@pytest.fixture
def picture(tmp_path):
    """Draw some pixels, one of them seen through."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 4), "uint8")
    file = tmp_path / "plot.png"
    Image.fromarray(pixels).save(file)
    return file


def test_icons_are_told_apart_by_style():
    icons = read_icons(SCRIPT)
    assert set(icons) == {"fab github", "fas arrow-up", "fas sun"}
    assert "M4 4z" in icons["fas sun"]
    assert 'viewBox="0 0 384 512"' in icons["fas arrow-up"]


def test_icons_become_drawings_and_their_script_goes():
    page = (
        '<script defer src="../_static/scripts/fontawesome.js?x"></script>\n'
        '<i class="theme-switch fa-solid fa-sun fa-lg" data-mode="light"></i>'
        '<span class="fab fa-github"></span><i>sun</i>'
    )
    drawn = draw_icons(page, read_icons(SCRIPT))
    assert "<script" not in drawn and "CC BY 4.0" in drawn
    assert (
        '<svg class="theme-switch hg-icon fa-lg" aria-hidden="true" '
        'data-mode="light" viewBox="0 0 512 512">'
    ) in drawn
    assert drawn.count("<svg") == 2
    assert drawn.endswith("<i>sun</i>")


def test_an_unknown_icon_stops_the_build():
    with pytest.raises(ExtensionError, match="no icon 'fas moon'"):
        draw_icons('<i class="fas fa-moon"></i>', read_icons(SCRIPT))


def test_pictures_keep_every_pixel(picture):
    with Image.open(picture) as image:
        before = np.asarray(image)
    webp = lighten(picture)
    assert not picture.exists()
    with Image.open(webp) as image:
        assert np.array_equal(np.asarray(image), before)


def test_pages_show_the_lighter_picture_and_its_size(picture):
    lighten(picture)
    page = '<p><img alt="A plot" src="../_images/plot.png" /></p>'
    shown = point_to_webp(page, picture.parent)
    assert shown == (
        '<p><img width="40" height="30" alt="A plot" '
        'src="../_images/plot.webp" /></p>'
    )
    assert point_to_webp(shown, picture.parent) == shown


def test_frames_become_files():
    codes = [base64.b64encode(text).decode() for text in (b"one", b"two")]
    frames = [f"data:image/webp;base64,{code}" for code in codes]
    page = (
        f'<img src="{frames[1]}" alt="Two">'
        f'const pictures = ["{frames[0]}", "{frames[1]}"];'
    )
    detached, files = detach_frames(page, "../_images")
    assert sorted(files.values()) == [b"one", b"two"]
    assert "base64" not in detached
    assert all(detached.count(f"../_images/{name}") for name in files)
    assert detached.count("addEventListener") == 1
    assert detach_frames(detached, "../_images") == (detached, {})


def test_only_empty_headers_become_cells():
    row = '<tr><th></th><th class="head"><p></p></th><th>min</th></tr>'
    assert free_corners(row) == (
        '<tr><td></td><td class="head"></td><th>min</th></tr>'
    )
    assert free_corners("<thead></thead>") == "<thead></thead>"


def test_dialogs_get_names_and_buttons_one():
    page = (
        '<dialog id="pst-search-dialog"></dialog>'
        '<span class="btn__icon-container">\n  <img alt="Colab logo" src="c">'
        "</span>Colab"
    )
    named = name_parts(page)
    assert '<dialog id="pst-search-dialog" aria-label="Search">' in named
    assert '<img alt="" src="c">' in named


def test_references_are_items_of_their_list():
    page = '<div role="list"><div role="doc-biblioentry">One</div></div>'
    assert list_references(page).count('role="listitem"') == 1
