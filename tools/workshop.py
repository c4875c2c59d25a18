"""Pack what a class needs in a room without a network into one archive.

python tools/workshop.py                          a list of what to install
python tools/workshop.py --wheels 1               and the files of the list
python tools/workshop.py --wheels windows macos --pythons 3.12 3.13

The same book, notebooks and package give the same archive, byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import jinja2
from bs4 import BeautifulSoup
from packaging.markers import Marker, default_environment
from solutions import parts, title
from sphinx_external_toc.parsing import parse_toc_yaml

import healthgym_utils as hg
from notebooks import ROOT, package_version, paths, read

BOOK = ROOT / "_build" / "html"
DOWNLOADS = ROOT / "_build" / "wheels"
ARCHIVES = ROOT / "_build" / "workshop"
CONTENTS = ROOT / "_toc.yml"
LOCK = ROOT / "requirements-workshop.txt"
PAGE = ROOT / "tools" / "start.html"
# What the package is built from.
SOURCES = ("healthgym_utils", "pyproject.toml", "README.md", "LICENSE")

FOLDER = "health-gym-workshop"  # what unpacking gives
COHORT = "cohort/simulated_art_for_hiv.csv.gz"
EARLIEST = (1980, 1, 1, 0, 0, 0)  # the first time that a zip file can state
EARLIEST_SECONDS = "315532800"  # the same, since 1970
COMPRESSED = {".whl", ".png", ".gz"}

# PyTorch for Linux on PyPI is for NVIDIA's GPUs, and brings gigabytes of
# their libraries. A class takes the build for CPUs, from PyTorch's own index.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
FOR_GPUS = re.compile(r"nvidia-|cuda-|triton==")
ON_LINUX = Marker("sys_platform == 'linux'")
NOT_ON_LINUX = Marker("sys_platform != 'linux'")


@dataclass(frozen=True)
class Platform:
    """A kind of computer, as markers and as wheels call it.

    Parameters
    ----------
    markers : dict of str to str
        What ``sys_platform`` and the like are there.
    tags : tuple of str
        What pip takes for ``--platform``.
    """

    markers: dict[str, str]
    tags: tuple[str, ...]


PLATFORMS = {
    "windows": Platform(
        {
            "sys_platform": "win32",
            "platform_system": "Windows",
            "platform_machine": "AMD64",
            "os_name": "nt",
        },
        ("win_amd64",),
    ),
    # pip adds the older ones to it; PyTorch has left Intel's behind.
    "macos": Platform(
        {
            "sys_platform": "darwin",
            "platform_system": "Darwin",
            "platform_machine": "arm64",
            "os_name": "posix",
        },
        ("macosx_14_0_arm64",),
    ),
    # Here pip adds none. 2.34 is in what was current in 2022.
    "linux": Platform(
        {
            "sys_platform": "linux",
            "platform_system": "Linux",
            "platform_machine": "x86_64",
            "os_name": "posix",
        },
        (
            *(f"manylinux_2_{minor}_x86_64" for minor in range(34, 4, -1)),
            *(f"manylinux{year}_x86_64" for year in (2014, 2010, 1)),
        ),
    ),
}
SYSTEMS = {"win32": "windows", "darwin": "macos", "linux": "linux"}
HERE = "1"  # stands for this computer, as in WHEELS=1


@dataclass(frozen=True)
class Pin:
    """A package in one version.

    Parameters
    ----------
    package : str
        Such as ``"torch==2.13.0"``.
    hashes : tuple of str
        Of its files, as ``"sha256:..."``.
    marker : Marker, optional
        Where it is needed; everywhere if not given.
    """

    package: str
    hashes: tuple[str, ...]
    marker: Marker | None = None

    def text(self) -> str:
        """Return the pin as a list for pip has it."""
        where = "" if self.marker is None else f" ; {self.marker}"
        return " \\\n    --hash=".join([self.package + where, *self.hashes])

    def needed(self, environment: dict[str, str]) -> bool:
        """Whether a computer needs it."""
        return self.marker is None or self.marker.evaluate(environment)


@dataclass
class Target:
    """A platform with a version of Python, to download wheels for."""

    name: str
    python: str
    options: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=default_environment)

    @property
    def folder(self) -> Path:
        """Where its wheels are kept from one run to the next."""
        return DOWNLOADS / f"{self.name}-{self.python}"


def read_lock(text: str) -> list[Pin]:
    """Read pins with hashes, as uv writes them."""
    pins = []
    for line in text.replace("\\\n", " ").splitlines():
        if line and not line.startswith("#"):
            requirement, *hashes = line.split("--hash=")
            package, _, marker = map(str.strip, requirement.partition(";"))
            where = Marker(marker) if marker else None
            pins.append(Pin(package, tuple(map(str.strip, hashes)), where))
    return pins


def for_class(pins: list[Pin]) -> list[Pin]:
    """Leave out what Linux needs for GPUs, PyTorch for them included."""
    return [
        replace(pin, marker=NOT_ON_LINUX)
        if pin.package.startswith("torch==")
        else pin
        for pin in pins
        if not FOR_GPUS.match(pin.package)
    ]


def pytorch(pins: list[Pin]) -> str:
    """Return PyTorch with its version."""
    (package,) = (p.package for p in pins if p.package.startswith("torch=="))
    return package


def targets(names: list[str], pythons: list[str]) -> list[Target]:
    """Say for what to download wheels.

    Parameters
    ----------
    names : list of str
        Of :data:`PLATFORMS`, or ``"1"`` for this computer as it is.
    pythons : list of str
        Such as ``"3.12"``; not for this computer, which has one.
    """
    if pythons and not set(names) & set(PLATFORMS):
        sys.exit(
            "PYTHONS is for computers other than this one. Say which: "
            f'make workshop WHEELS="{" ".join(PLATFORMS)}" '
            f'PYTHONS="{" ".join(pythons)}"'
        )
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = []
    for name in names:
        if name == HERE:
            found.append(Target(SYSTEMS[sys.platform], running))
            continue
        platform = PLATFORMS[name]
        for python in pythons or [running]:
            options = ["--python-version", python]
            for tag in platform.tags:
                options += ["--platform", tag]
            versions = {
                "python_version": python,
                "python_full_version": f"{python}.99",
            }
            environment = platform.markers | versions
            found.append(Target(name, python, options, environment))
    return found


def download(target: Target, pins: list[Pin]) -> list[Path]:
    """Get the wheels that a computer needs.

    Wheels are kept from one run to the next; those that an earlier list asked
    for are not returned.
    """
    folder = target.folder
    folder.mkdir(parents=True, exist_ok=True)
    needed = [pin for pin in pins if pin.needed(target.environment)]
    # Markers are for the target; pip would read them as for this computer.
    plain = [replace(pin, marker=None).text() for pin in needed]
    listed = folder / "requirements.txt"
    listed.write_text("\n".join(plain))
    pip_download(target, "--require-hashes", "--requirement", str(listed))
    known = {one for pin in needed for one in pin.hashes}
    wheels = [
        path for path in folder.glob("*.whl") if file_hash(path) in known
    ]
    if target.name == "linux":
        torch = pytorch(pins)
        pip_download(target, "--index-url", CPU_INDEX, f"{torch}+cpu")
        wheels += folder.glob(f"{torch.replace('==', '-')}+cpu-*.whl")
    return wheels


def pip_download(target: Target, *options: str) -> None:
    """Let pip download wheels, or say what it could not do."""
    print(f"Wheels for {target.name}, Python {target.python}", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet"]
    command += ["--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(target.folder), *target.options, *options]
    if subprocess.run(command).returncode:
        sys.exit(
            f"No wheels for {target.name} with Python {target.python}: see "
            "above why. Without them, a class needs a network once: leave "
            "WHEELS out to pack the list only."
        )


def file_hash(path: Path) -> str:
    """Hash a file as lists for pip do."""
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def build_wheel(folder: Path) -> Path:
    """Build the package's wheel into a folder.

    From a copy, so that nothing is left in the checkout, and without a
    network: what builds it is in the environment, since PyTorch asks for it.
    """
    with tempfile.TemporaryDirectory() as copy:
        for name in SOURCES:
            if (ROOT / name).is_dir():
                unwanted = shutil.ignore_patterns("__pycache__", ".*")
                shutil.copytree(
                    ROOT / name, Path(copy) / name, ignore=unwanted
                )
            else:
                shutil.copy(ROOT / name, copy)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet"]
        command += ["--no-deps", "--no-index", "--no-build-isolation"]
        command += ["--wheel-dir", str(folder), copy]
        subprocess.run(
            command,
            check=True,
            env=os.environ | {"SOURCE_DATE_EPOCH": EARLIEST_SECONDS},
        )
    (wheel,) = folder.glob("healthgym_utils-*.whl")
    return wheel


def write_cohort(path: Path, n_patients: int | None = None) -> None:
    """Write the cohort of the notebooks as a CSV file that load_art reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    how = {"method": "gzip", "compresslevel": 6, "mtime": 0}
    cohort = hg.load_art("simulated", n_patients)
    cohort.to_csv(path, index=False, compression=how, lineterminator="\n")


def problems(book: Path) -> list[str]:
    """List what keeps the built book from being handed out."""
    if not (book / "index.html").is_file():
        return [f"The book is not built: there is no {book / 'index.html'}"]
    found = []
    for page in parse_toc_yaml(CONTENTS):
        built = book / f"{page}.html"
        (source,) = ROOT.glob(f"{page}.[mi][dp]*")
        if not built.is_file():
            found.append(f"The built book lacks a page: {page}")
        elif built.stat().st_mtime < source.stat().st_mtime:
            found.append(f"The built page is older than its source: {page}")
    return found


def lay_out_book(book: Path, folder: Path) -> None:
    """Copy the built book; its pages offer the notebooks of the archive."""
    own = shutil.ignore_patterns(".buildinfo")
    shutil.copytree(book, folder, ignore=own)
    shutil.rmtree(folder / "_sources" / "notebooks")
    for page in (folder / "notebooks").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        text = text.replace("../_sources/notebooks/", "../../notebooks/")
        page.write_text(text, encoding="utf-8")


def entry(path: Path) -> dict[str, str]:
    """Return what the start page says of a notebook."""
    first = read(path).cells[0].source
    time = re.search(r"\*\*Time\.\*\* About (\d+ \w+)", first)
    return {"file": path.stem, "title": title(path), "time": time.group(1)}


def decks(book: Path) -> list[dict[str, str]]:
    """List the slides that come with a built book."""
    found = []
    for path in sorted((book / "slides").glob("*.html")):
        page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        found.append({"file": path.name, "title": page.title.get_text()})
    return found


def start_page(packed: list[Target], slides: list[dict[str, str]]) -> str:
    """Write the page at the top of the archive."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pythons = {}
    for target in packed:
        pythons.setdefault(target.name, []).append(target.python)
    return environment.get_template(PAGE.name).render(
        folder=FOLDER,
        version=package_version(),
        cohort=COHORT,
        cpu_index=CPU_INDEX,
        torch=pytorch(read_lock(LOCK.read_text())),
        parts=[(name, map(entry, files)) for name, files in parts()],
        pythons=pythons,
        slides=slides,
    )


def lay_out(
    folder: Path,
    book: Path,
    packed: list[Target] | None = None,
    n_patients: int | None = None,
) -> None:
    """Lay out what goes into the archive.

    Parameters
    ----------
    folder : Path
        Where to; it is made.
    book : Path
        The built book.
    packed : list of Target, optional
        Computers whose wheels are put in.
    n_patients : int, optional
        How many patients the file of the cohort has; all if not given.
    """
    folder.mkdir()
    lay_out_packages(folder, packed or [])
    lay_out_book(book, folder / "book")
    (folder / "notebooks").mkdir()
    for path in paths():
        shutil.copy(path, folder / "notebooks")
    write_cohort(folder / COHORT, n_patients)
    for path in ROOT.glob("LICENSE*"):
        shutil.copy(path, folder)
    page = start_page(packed or [], decks(book))
    (folder / "start.html").write_text(page, encoding="utf-8")


def lay_out_packages(folder: Path, packed: list[Target]) -> None:
    """Put wheels, and a list for pip that knows their hashes, in a folder."""
    wheels = folder / "wheels"
    wheels.mkdir()
    own = build_wheel(wheels)
    pins = for_class(read_lock(LOCK.read_text()))
    listed = [Pin(f"healthgym-utils=={package_version()}", (file_hash(own),))]
    listed += pins
    for target in packed:
        for path in download(target, pins):
            shutil.copy(path, wheels)
    builds = sorted(wheels.glob("torch-*+cpu-*.whl"))
    if builds:
        version = builds[0].name.split("-")[1]
        hashes = tuple(map(file_hash, builds))
        listed.append(Pin(f"torch=={version}", hashes, ON_LINUX))
    lines = ["--require-hashes", "--find-links wheels"]
    lines += [pin.text() for pin in listed]
    text = "\n".join([*lines, ""])
    (folder / "requirements.txt").write_text(text)


def write_archive(folder: Path, archive: Path) -> None:
    """Zip a folder so that the same files give the same bytes."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    partial = archive.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w") as stream:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = f"{FOLDER}/{path.relative_to(folder).as_posix()}"
            entry = zipfile.ZipInfo(name, EARLIEST)
            entry.create_system = 3  # Unix, wherever it is made
            entry.external_attr = 0o100644 << 16
            if path.suffix not in COMPRESSED:
                entry.compress_type = zipfile.ZIP_DEFLATED
            entry.file_size = path.stat().st_size
            with path.open("rb") as source, stream.open(entry, "w") as goal:
                shutil.copyfileobj(source, goal)
    partial.replace(archive)


def report(archive: Path) -> str:
    """Say how large an archive is, and each folder in it."""
    sizes = Counter()
    with zipfile.ZipFile(archive) as stream:
        for entry in stream.infolist():
            top = entry.filename.split("/")[1]
            sizes[top] += entry.compress_size
    lines = [f"{archive}: {archive.stat().st_size / 1e6:.1f} MB"]
    for name, size in sizes.most_common():
        lines.append(f"  {size / 1e6:8.1f} MB  {name}")
    return "\n".join([*lines, f"  {file_hash(archive)}"])


def main() -> None:
    """Parse the command line, and make the archive."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--wheels",
        nargs="*",
        default=[],
        choices=[HERE, *PLATFORMS],
        help="whose wheels to download; 1 is this computer",
    )
    parser.add_argument(
        "--pythons",
        nargs="*",
        default=[],
        help="versions of Python that the other computers have: 3.12 3.13",
    )
    arguments = parser.parse_args()
    found = problems(BOOK)
    if found:
        sys.exit("\n".join([*found, "What to do: run `make book` first."]))
    archive = ARCHIVES / f"{FOLDER}-{package_version()}.zip"
    with tempfile.TemporaryDirectory() as folder:
        inside = Path(folder) / FOLDER
        packed = targets(arguments.wheels, arguments.pythons)
        lay_out(inside, BOOK, packed)
        write_archive(inside, archive)
    print(report(archive))


if __name__ == "__main__":
    main()
