"""Sphinx extension: last touches to written pages, for weight and for all.

What the theme's templates put into a page cannot be reached while the page is
written. So these work on the files, once the build is done:

* icons: the theme's script for them weighs as much as a chapter. The dozen
  that the book shows become drawings in the page, from that same script;
* pictures: each PNG becomes a WebP of the very same pixels, and the page says
  how large it is, so that text does not jump when it comes;
* players: their frames become files, fetched when a reader goes to a player;
* dialogs get names, buttons do not say theirs twice, the empty corners of
  tables are no longer headers, and references are items of their list.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

ICON_SCRIPT = "_static/scripts/fontawesome.js"
ICON_SCRIPT_TAG = re.compile(r"<script[^>]*fontawesome\.js[^>]*></script>\n?")
ICON_CREDIT = (
    "<!-- Icons: Font Awesome Free, https://fontawesome.com, CC BY 4.0 -->\n"
)
# The script holds one object of icons a style, each closed by its name.
ICON_STYLES = re.compile(r'\("(fa[bs])",p\)')
ICON = re.compile(
    r'<(i|span) class="(?P<before>[^"]*?)\b(?P<style>fa-solid|fas|fab) '
    r'fa-(?P<name>[a-z-]+)(?P<after>[^"]*)"(?P<attributes>[^>]*)></\1>'
)
STYLES = {"fa-solid": "fas", "fas": "fas", "fab": "fab"}

PICTURE = re.compile(
    r"<img (?!width=)(?P<rest>[^>]*?)"
    r'src="(?P<path>[^"]*_images/[^"]+\.(png|webp))'
)
FRAMES = re.compile(r'const pictures = \["data:[^\]]*\];')
FRAME = re.compile(r"data:image/webp;base64,(?P<code>[A-Za-z0-9+/=]+)")
# A frame that comes while the player runs would come late.
FETCH_AHEAD = """
  for (const sign of ["focusin", "pointerover"]) {
    root.addEventListener(sign, () => {
      for (const address of pictures) new Image().src = address;
    }, { once: true });
  }"""

DIALOGS = {
    "pst-search-dialog": "Search",
    "pst-primary-sidebar-modal": "Chapters",
    "pst-secondary-sidebar-modal": "On this page",
}
# The text of the button follows its picture, and says the same.
BUTTON_PICTURE = re.compile(
    r'(?P<start><span class="btn__icon-container">\s*<img alt=")[^"]*'
)
EMPTY_HEADER = re.compile(
    r"<th(?P<attributes>(?: [^>]*)?)>\s*(?:<p>\s*</p>)?\s*</th>"
)


def read_icons(script: str) -> dict[str, str]:
    """Read the icons out of the theme's script.

    Parameters
    ----------
    script : str
        Font Awesome's, of which ``bars:[448,512,[],"f0c9","M0 96..."]`` is
        an icon: width, height, other names, code, path.

    Returns
    -------
    dict
        Drawings by style and name, such as ``"fas bars"``.
    """
    icon = re.compile(
        r'[{,]"?(?P<name>[a-z][a-z0-9-]*)"?:'
        r'\[(?P<width>\d+),(?P<height>\d+),\[[^\]]*\],"[0-9a-f]+",'
        r'"(?P<path>[^"]+)"\]'
    )
    icons = {}
    start = 0
    for end in ICON_STYLES.finditer(script):
        for found in icon.finditer(script, start, end.start()):
            icons[f"{end[1]} {found['name']}"] = (
                f'viewBox="0 0 {found["width"]} {found["height"]}">'
                f'<path fill="currentColor" d="{found["path"]}"/>'
            )
        start = end.end()
    return icons


def draw_icons(page: str, icons: Mapping[str, str]) -> str:
    """Put drawings in the place of a page's icons.

    Raises
    ------
    ExtensionError
        If the page has an icon that the theme's script lacks.
    """

    def draw(found: re.Match[str]) -> str:
        key = f"{STYLES[found['style']]} {found['name']}"
        if key not in icons:
            raise ExtensionError(
                f"no icon {key!r} in the theme's {ICON_SCRIPT}: its format "
                "or the icon's name has changed (book/_ext/finished_pages.py)"
            )
        classes = f"{found['before']}hg-icon {found['after']}".split()
        return (
            f'<svg class="{" ".join(classes)}" aria-hidden="true"'
            f"{found['attributes']} {icons[key]}</svg>"
        )

    return ICON.sub(draw, ICON_SCRIPT_TAG.sub(ICON_CREDIT, page))


def lighten(picture: Path) -> Path:
    """Write a PNG as a WebP of the same pixels, in its place."""
    target = picture.with_suffix(".webp")
    with Image.open(picture) as image:
        # The quickest of the methods that is about as good as the slowest.
        image.save(target, "WEBP", lossless=True, exact=True, method=2)
    picture.unlink()
    return target


def point_to_webp(page: str, folder: Path) -> str:
    """Let a page show the lighter pictures, and state their size.

    Parameters
    ----------
    page : str
        The page's text.
    folder : Path
        The folder of all pictures.
    """

    def point(found: re.Match[str]) -> str:
        path = found["path"].removesuffix(".png")
        path = path.removesuffix(".webp") + ".webp"
        with Image.open(folder / path.rpartition("/")[2]) as image:
            width, height = image.size
        return (
            f'<img width="{width}" height="{height}" {found["rest"]}'
            f'src="{path}'
        )

    return PICTURE.sub(point, page)


def detach_frames(page: str, address: str) -> tuple[str, dict[str, bytes]]:
    """Turn the frames of a page's players into files.

    Parameters
    ----------
    page : str
        The page's text.
    address : str
        The folder for the files, as seen from the page.

    Returns
    -------
    page : str
        With addresses of files where the frames were.
    files : dict
        The frames by their file's name.
    """
    files = {}

    def detach(frame: re.Match[str]) -> str:
        code = base64.b64decode(frame["code"])
        name = f"{hashlib.sha256(code).hexdigest()}.webp"
        files[name] = code
        return f"{address}/{name}"

    page = FRAMES.sub(lambda found: found[0] + FETCH_AHEAD, page)
    return FRAME.sub(detach, page), files


def name_parts(page: str) -> str:
    """Tell what the theme's dialogs are for, and buttons only once."""
    for name, label in DIALOGS.items():
        page = page.replace(
            f'<dialog id="{name}">',
            f'<dialog id="{name}" aria-label="{label}">',
        )
    return BUTTON_PICTURE.sub(r"\g<start>", page)


def free_corners(page: str) -> str:
    """Let empty header cells, such as a table's corner, head nothing."""
    return EMPTY_HEADER.sub(r"<td\g<attributes>></td>", page)


def list_references(page: str) -> str:
    """Make references what they are in, items of a list.

    Docutils gives them a role that the standard has since withdrawn.
    """
    return page.replace('role="doc-biblioentry"', 'role="listitem"')


def finish(app: Sphinx, exception: Exception | None) -> None:
    """Apply the touches to all pages of a finished build."""
    if exception is not None or app.builder.name != "html":
        return
    root = Path(app.outdir)
    pictures = root / "_images"
    with ThreadPoolExecutor() as pool:
        list(pool.map(lighten, pictures.glob("*.png")))
    script = root / ICON_SCRIPT
    if not script.exists():
        return  # nothing was written since the last build
    icons = read_icons(script.read_text(encoding="utf-8"))
    for docname in [*app.env.found_docs, "search", "genindex"]:
        file = root / app.builder.get_target_uri(docname)
        page = file.read_text(encoding="utf-8")
        up = "../" * docname.count("/")
        page, frames = detach_frames(page, f"{up}_images")
        for name, code in frames.items():
            (pictures / name).write_bytes(code)
        page = point_to_webp(draw_icons(page, icons), pictures)
        page = list_references(free_corners(name_parts(page)))
        file.write_text(page, encoding="utf-8")
    script.unlink()


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the touches."""
    app.connect("build-finished", finish, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
