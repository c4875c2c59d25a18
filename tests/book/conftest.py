"""The book, built once for all tests that read it or look at it."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from notebooks import ROOT


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
