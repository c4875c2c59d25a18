"""Maintainers' commands for the notebooks; each one is behind ``make``.

python tools/notebooks.py run [01 05 ...]     make the stored outputs
python tools/notebooks.py check               are stored outputs current?
python tools/notebooks.py stamp owner/name    move the repository address
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import time
from pathlib import Path

import nbformat
import yaml
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
TEMPLATE = ROOT / "tools" / "template.ipynb"
CELL_SECONDS = 300
KEEP_METADATA = {
    "kernelspec": {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
    "colab": {"toc_visible": True},
}
# Every file that repeats the address stated in _config.yml.
STAMPED = (
    "README.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE-CONTENT",
    "pyproject.toml",
    "tools/template.ipynb",
    "book/*.md",
    "notebooks/*.ipynb",
)


def paths(names: list[str] | None = None) -> list[Path]:
    """List the notebooks, or those whose file name starts with a name."""
    found = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not names:
        return found
    chosen = [p for p in found if p.name.startswith(tuple(names))]
    if not chosen:
        sys.exit(f"no notebook starts with {', '.join(names)}")
    return chosen


def read(path: Path) -> NotebookNode:
    """Read a notebook as format 4."""
    return nbformat.read(path, as_version=4)


def tags(cell: NotebookNode) -> list[str]:
    """Return a cell's tags."""
    return cell.metadata.get("tags", [])


def code_hash(notebook: NotebookNode) -> str:
    """Hash the code that stored outputs depend on.

    The setup cell is left out: it carries the repository address, which may
    be stamped anew without making any output stale.
    """
    sources = [
        cell.source
        for cell in notebook.cells
        if cell.cell_type == "code" and "setup" not in tags(cell)
    ]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()


def package_version() -> str:
    """Read the package's version where it is stated."""
    text = (ROOT / "healthgym_utils" / "__init__.py").read_text()
    return re.search(r'__version__ = "(.+)"', text).group(1)


def keep_times(notebook: NotebookNode, stored: NotebookNode) -> None:
    """Take the stored outputs of the cells that measure time.

    No two runs take the same time, so a cell tagged ``timing`` keeps what it
    printed when its code was first run: a second run changes no notebook.
    To measure anew, clear the cell's output first.
    """
    for cell, old in zip(notebook.cells, stored.cells, strict=True):
        if "timing" in tags(cell) and old.outputs:
            cell.outputs = old.outputs


def clean(notebook: NotebookNode) -> None:
    """Drop what differs from run to run or names this machine."""
    kept = notebook.metadata.get("healthgym", {})
    notebook.metadata = NotebookNode(KEEP_METADATA | {"healthgym": kept})
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        for key in ("execution", "papermill", "collapsed", "scrolled"):
            cell.metadata.pop(key, None)
        for output in cell.get("outputs", []):
            output.get("metadata", {}).clear()
            output.pop("transient", None)


def run(path: Path) -> float:
    """Execute one notebook in place; return the seconds it took."""
    notebook, stored = read(path), read(path)
    started = time.perf_counter()
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        # Two prints may arrive as one message or two, as the machine likes.
        coalesce_streams=True,
    )
    client.execute()
    seconds = time.perf_counter() - started
    count = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
    if not problems(stored):
        keep_times(notebook, stored)
    notebook.metadata["healthgym"] = {
        "code_sha256": code_hash(notebook),
        "package_version": package_version(),
    }
    clean(notebook)
    # Written beside and moved, so that a kill leaves the old file whole.
    partial = path.with_suffix(".partial")
    nbformat.write(notebook, partial)
    partial.replace(path)
    return seconds


def problems(notebook: NotebookNode) -> list[str]:
    """List what keeps a notebook's stored outputs from being current."""
    kept = notebook.metadata.get("healthgym", {})
    found = []
    if kept.get("code_sha256") != code_hash(notebook):
        found.append("outputs are older than the code")
    if kept.get("package_version") != package_version():
        found.append("outputs were made with another package version")
    if set(notebook.metadata) != {*KEEP_METADATA, "healthgym"}:
        found.append("metadata is not clean")
    return found


def repository() -> str:
    """Read the repository address from the one place that states it."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    return config["repository"]["url"]


def slug(address: str) -> str:
    """Return owner/name of a GitHub address."""
    return address.removeprefix("https://github.com/").strip("/")


def stamp(new: str) -> None:
    """Write a new owner/name into every address of the repository.

    Into addresses only: where the text cites a repository by its bare name,
    it goes on citing the same one.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", new):
        sys.exit(f"a repository is owner/name, not {new!r}")
    old = re.escape(slug(repository()))
    # On github.com, and on Colab, which opens .../github/owner/name/...
    address = re.compile(rf"(\bgithub(?:\.com)?/){old}(?![\w-])")
    names = ["_config.yml"]
    for pattern in STAMPED:
        names += [str(p.relative_to(ROOT)) for p in ROOT.glob(pattern)]
    for name in names:
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        stamped = address.sub(rf"\g<1>{new}", text)
        if stamped != text:
            path.write_text(stamped, encoding="utf-8")
            print(f"stamped {name}")


def main() -> None:
    """Parse the command line and do as it says."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("run", "check"):
        sub = commands.add_parser(command)
        sub.add_argument("names", nargs="*", help="such as 01 05")
    commands.add_parser("stamp").add_argument("repository")
    arguments = parser.parse_args()
    if arguments.command == "stamp":
        return stamp(arguments.repository)
    if arguments.command == "check":
        found = [
            f"{path.name}: {problem}"
            for path in paths(arguments.names)
            for problem in problems(read(path))
        ]
        return sys.exit("\n".join(found) if found else 0)
    # Bars as text would leave dozens of lines in the stored outputs.
    os.environ["TQDM_DISABLE"] = "1"
    for path in paths(arguments.names):
        print(f"{path.name}: {run(path):.0f} s", flush=True)


if __name__ == "__main__":
    main()
