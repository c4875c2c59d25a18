"""The book, built once for all tests that read it, and a browser on it."""

import functools
import gzip
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from playwright.sync_api import sync_playwright

from notebooks import ROOT

SYSTEM_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
COMPRESSED = {".html", ".css", ".js", ".svg", ".json"}


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """Build as `make book` does; the log's last line is the exit code.

    Test processes that run side by side share one folder, and the first one
    to come builds for all of them.
    """
    base = tmp_path_factory.getbasetemp()
    # pytest-xdist gives each process a folder inside the common one.
    shared = base.parent if base.name.startswith("popen-") else base
    folder, log = shared / "book", shared / "book.log"
    with FileLock(shared / "book.lock"):
        if not log.exists():
            script = Path(sys.executable).with_name("jupyter-book")
            command = [str(script), "build", "."]
            command += ["--path-output", str(folder)]
            command += ["--all", "-W", "-n", "--keep-going"]
            done = subprocess.run(
                command,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            log.write_text(f"{done.stdout}\n{done.returncode}")
    *lines, code = log.read_text().splitlines()
    complaints = [
        line for line in lines if "WARNING" in line or "ERROR" in line
    ]
    return SimpleNamespace(
        html=folder / "_build" / "html",
        returncode=int(code),
        complaints="\n".join(complaints),
        tail="\n".join(lines[-20:]),
    )


@pytest.fixture(scope="session")
def html(build):
    """Return the folder of the built pages."""
    assert build.returncode == 0, build.complaints or build.tail
    return build.html


@functools.cache
def _compress(file):
    return gzip.compress(file.read_bytes(), compresslevel=6)


class _Pages(http.server.SimpleHTTPRequestHandler):
    """Serve as GitHub Pages does: text is compressed."""

    def do_GET(self):
        file = Path(self.translate_path(self.path))
        if file.suffix not in COMPRESSED or not file.is_file():
            return super().do_GET()
        body = _compress(file)
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(str(file)))
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        """Keep requests out of the test's output."""


@pytest.fixture(scope="session")
def address(html):
    """Serve the book on the loopback; return where."""
    handler = functools.partial(_Pages, directory=str(html))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
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
def watch():
    """Return a function that makes a page note what it must not do."""
    complaints = []

    def start(page, home):
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
                request.url.startswith((home, "data:", "blob:"))
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
def new_page(chromium, address, watch):
    """Return a function that makes an empty, watched page.

    It takes the options of Playwright's ``new_context``, and ``home``: the
    address under which alone the page may load anything.
    """
    contexts = []

    def start(size="desktop", theme="light", home=address, **options):
        width, height = SIZES[size]
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme=theme,
            **options,
        )
        contexts.append(context)
        return watch(context.new_page(), home)

    yield start
    for context in contexts:
        context.close()


@pytest.fixture
def open_page(new_page, address):
    """Return a function that opens a page of the book.

    It takes the page's name and the options of ``new_page``.
    """

    def start(name, *arguments, **options):
        page = new_page(*arguments, **options)
        page.goto(f"{address}{name}.html", wait_until="networkidle")
        return page

    return start
