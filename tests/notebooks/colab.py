"""Run notebooks as Colab does, as near as that can be had without Colab.

python tests/notebooks/colab.py [01 05 ...] [--budget book] [--python ...]

``make colab`` does so. Each notebook is copied out of the checkout and run
from its own file alone, in an environment that has what Colab has, and no
healthgym_utils. Its setup cell runs as it stands, but for the address: the
archive that it installs comes from this computer instead of GitHub.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from math import inf
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

import nbformat
from packaging.utils import canonicalize_name

from notebooks import ROOT, paths, read, repository, tags

SHIPPED = Path(__file__).with_name("colab.txt")
ENVIRONMENT = ROOT / "_build" / "colab"  # kept, since it is gigabytes
PACKAGE = "healthgym_utils"
SETUP_SECONDS = 60
NOTEBOOK_SECONDS = 1_200


@dataclass(frozen=True)
class Run:
    """What a notebook did to the environment that it ran in.

    Parameters
    ----------
    error : str
        The last lines of its failure; empty if all went well.
    warnings : str
        What it wrote to stderr, which Colab shows in red.
    setup_seconds, seconds : float
        What its setup cell and all of it took.
    before, after : dict of str to str
        The version of each distribution that was there.
    """

    error: str
    warnings: str
    setup_seconds: float
    seconds: float
    before: dict[str, str]
    after: dict[str, str]

    @property
    def replaced(self) -> set[str]:
        """What is not as it was, other than the package of the book."""
        changed = dict(self.before.items() ^ self.after.items())
        return {*changed} - {"healthgym-utils"}

    def __str__(self) -> str:
        """Say what it took."""
        return f"setup {self.setup_seconds:.0f} s, all {self.seconds:.0f} s"

    @property
    def problems(self) -> list[str]:
        """All that a reader on Colab would stumble over."""
        found = [self.error] if self.error else []
        if self.warnings:
            found.append(f"it warned: {self.warnings}")
        if "healthgym-utils" in self.before:
            found.append("the environment had the package already")
        if "healthgym-utils" not in self.after:
            found.append("the setup cell did not install the package")
        if self.replaced:
            names = ", ".join(sorted(self.replaced))
            found.append(f"it replaced what was there: {names}")
        if self.setup_seconds >= SETUP_SECONDS:
            found.append(f"the setup cell took {self.setup_seconds:.0f} s")
        return found


def make_environment(folder: Path, base: str) -> Path:
    """Install what Colab ships, and return the environment's Python.

    What is there already, with the same of everything, is taken as it is.
    """
    ready = folder / "ready.txt"
    wanted = f"{base}\n{SHIPPED.read_text()}"
    if not ready.is_file() or ready.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([base, "-m", "venv", folder], check=True)
        pip = [python_of(folder), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--requirement", SHIPPED], check=True)
        add_google_colab(folder)
        ready.write_text(wanted)
    return python_of(folder)


def python_of(folder: Path) -> Path:
    """Return the Python of a virtual environment."""
    return folder / "bin" / "python"


def packages_of(folder: Path) -> Path:
    """Return where a virtual environment has its packages."""
    (found,) = folder.glob("lib/python*/site-packages")
    return found


def add_google_colab(folder: Path) -> None:
    """Let `import google.colab` work in a virtual environment."""
    stub = folder / "stub" / "google" / "colab"
    stub.mkdir(parents=True)
    (stub / "__init__.py").touch()
    # google stays a namespace, which other packages add to.
    path = packages_of(folder) / "google_colab_stub.pth"
    path.write_text(f"{folder / 'stub'}\n")


def write_archive(folder: Path) -> None:
    """Write the archive that GitHub would make of the working tree."""
    path = folder / "archive" / "refs" / "heads" / "main.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = ["git", "ls-files", "-z", "--cached", "--others"]
    names = subprocess.run(
        [*listed, "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    top = repository().rpartition("/")[2] + "-main"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in filter(None, names):
            if (ROOT / name).is_file():
                archive.write(ROOT / name, f"{top}/{name}")


def versions(text: str) -> dict[str, str]:
    """Read the version of each package of a list that pip froze.

    Parts after a plus, such as torch's of CUDA, name a build and are left out.
    """
    found = {}
    for line in text.splitlines():
        name, pinned, version = line.partition("==")
        if not pinned:
            # Installed from an address, which ends in the wheel's name.
            name, _, version = line.partition(" @ ")
            wheel = unquote(version).rpartition("/")[2]
            version = wheel.split("-")[1] if wheel.count("-") > 1 else ""
        if version and not line.startswith("#"):
            found[canonicalize_name(name)] = version.partition("+")[0]
    return found


def moved(shipped: str, listed: str) -> list[str]:
    """Say which packages Colab lists in another version than we do."""
    theirs = versions(listed)
    return [
        f"{name}: {ours} here, {theirs.get(name, 'not there')} on Colab"
        for name, ours in versions(shipped).items()
        if theirs.get(name) != ours
    ]


class _Quiet(SimpleHTTPRequestHandler):
    """Serve files, and print nothing about it."""

    def log_message(self, *arguments: object) -> None:
        """Leave out the line a request."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this computer alone; yield its address."""
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def copy_out(path: Path, folder: Path, address: str) -> Path:
    """Copy one notebook into an empty folder; it installs from an address."""
    folder.mkdir(parents=True)
    notebook = read(path)
    (setup,) = (c for c in notebook.cells if "setup" in tags(c))
    stated = f'"{repository()}"'
    if setup.source.count(stated) != 1:
        raise ValueError(
            f"{path.name}: its setup cell does not state {stated}"
        )
    setup.source = setup.source.replace(stated, f'"{address}"')
    copied = folder / path.name
    nbformat.write(notebook, copied)
    return copied


def installed(python: Path) -> dict[str, str]:
    """Return the version of each distribution of an environment."""
    listed = [python, "-m", "pip", "list", "--format", "json"]
    listed += ["--disable-pip-version-check"]
    found = subprocess.run(listed, check=True, capture_output=True, text=True)
    return {one["name"]: one["version"] for one in json.loads(found.stdout)}


def uninstall(python: Path) -> None:
    """Take the package out, so that the next notebook finds none."""
    pip = [python, "-m", "pip", "uninstall", "--quiet", "--yes"]
    subprocess.run([*pip, PACKAGE], check=True, capture_output=True)


def variables(python: Path, folder: Path) -> dict[str, str]:
    """Return the variables of a run: nothing of them leads to the checkout.

    The kernel "colab" is the environment's, whatever runs the notebook. The
    published data cannot be had everywhere, so that the run takes the way
    that the book offers: the stand-in.
    """
    kernel = folder / "jupyter" / "kernels" / "colab"
    kernel.mkdir(parents=True)
    start = [str(python), "-m", "ipykernel_launcher", "-f"]
    spec = {
        "argv": [*start, "{connection_file}"],
        "display_name": "Colab",
        "language": "python",
    }
    (kernel / "kernel.json").write_text(json.dumps(spec))
    own = {
        "HEALTHGYM_ART_SOURCE": "simulated",
        "JUPYTER_PATH": str(folder / "jupyter"),
        "IPYTHONDIR": str(folder / "ipython"),
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
    }
    unwanted = ("PYTHONPATH", "VIRTUAL_ENV")
    kept = {k: v for k, v in os.environ.items() if k not in unwanted}
    return kept | own


def run(
    path: Path,
    python: Path,
    folder: Path,
    address: str,
    budget: str = "quick",
    **more: str,
) -> Run:
    """Run a notebook in an environment that lacks the package.

    Parameters
    ----------
    path : Path
        The notebook, in the checkout.
    python : Path
        The environment's Python.
    folder : Path
        Where to; it is made.
    address : str
        What stands in for the repository's.
    budget : str
        "quick" or "book".
    **more : str
        Variables that are set in the run.
    """
    content = folder / "content"
    copied = copy_out(path, content, address)
    out = folder / "out.ipynb"
    command = [sys.executable, "-m", "papermill", "--no-progress-bar"]
    command += ["--kernel", "colab", "--cwd", str(content)]
    command += ["-p", "BUDGET", budget, str(copied), str(out)]
    before = installed(python)
    started = time.perf_counter()
    done = subprocess.run(
        command,
        env=variables(python, folder) | more,
        cwd=content,
        capture_output=True,
        text=True,
        timeout=NOTEBOOK_SECONDS,
    )
    seconds = time.perf_counter() - started
    return Run(
        error=done.stderr[-3_000:] if done.returncode else "",
        warnings=warnings(out) if out.is_file() else "",
        setup_seconds=setup_seconds(out) if out.is_file() else inf,
        seconds=seconds,
        before=before,
        after=installed(python),
    )


def setup_seconds(out: Path) -> float:
    """Read what the setup cell of a notebook that was run took."""
    (setup,) = (c for c in read(out).cells if "setup" in tags(c))
    return setup.metadata.papermill.duration or inf


def warnings(out: Path) -> str:
    """Read what the cells after the setup wrote to stderr."""
    return "".join(
        output.text
        for cell in read(out).cells
        if cell.cell_type == "code" and "setup" not in tags(cell)
        for output in cell.outputs
        if output.get("name") == "stderr"
    )


def main() -> None:
    """Run notebooks one by one, and say of each what went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help="such as 01 05; else all")
    parser.add_argument("--budget", choices=("quick", "book"), default="quick")
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="makes the environment; Colab's is 3.12",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="FILE",
        help="only compare colab.txt with Colab's own list",
    )
    arguments = parser.parse_args()
    if arguments.compare:
        found = moved(SHIPPED.read_text(), arguments.compare.read_text())
        sys.exit("\n".join(["Colab has moved:", *found]) if found else 0)
    python = make_environment(ENVIRONMENT, arguments.python)
    failed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_archive(folder / "served")
        with served(folder / "served") as address:
            for path in paths(arguments.names):
                uninstall(python)
                place = folder / path.stem
                done = run(path, python, place, address, arguments.budget)
                print(f"{path.name}: {done}", *done.problems, sep="\n  ")
                sys.stdout.flush()
                failed += [path.name] * bool(done.problems)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
