"""The archive for a class: complete, linked, installable, reproducible."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from types import SimpleNamespace
from urllib.parse import urlsplit

import pandas as pd
import pytest
import workshop
from bs4 import BeautifulSoup
from packaging.utils import canonicalize_name
from sphinx_external_toc.parsing import parse_toc_yaml

import healthgym_utils as hg
from notebooks import ROOT, package_version, paths

PATIENTS = 20
PINS = workshop.read_lock(workshop.LOCK.read_text())
PAGE = "<title>Part I: slides</title><a href='../_sources/{0}.ipynb'>x</a>"


def _build(folder):
    """Write what a built book has, without its contents."""
    pages = [*parse_toc_yaml(workshop.CONTENTS), "index", "slides/part1"]
    for name in pages:
        page = folder / f"{name}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(PAGE.format(name))
    for name in ("_static/logo.svg", "_static/favicon.svg", ".buildinfo"):
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("")
    sources = folder / "_sources" / "notebooks"
    sources.mkdir(parents=True)
    (sources / "01_preprocessing.ipynb").write_text("{}")
    return folder


@pytest.fixture
def book(tmp_path):
    """A folder that looks like a built book."""
    return _build(tmp_path / "html")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """An archive of a small cohort and no real pages, and what is in it."""
    base = tmp_path_factory.mktemp("workshop")
    folder = base / workshop.FOLDER
    workshop.lay_out(folder, _build(base / "html"), n_patients=PATIENTS)
    archive = base / "room.zip"
    workshop.write_archive(folder, archive)
    with zipfile.ZipFile(archive) as stream:
        stream.extractall(base / "unpacked")
    unpacked = base / "unpacked" / workshop.FOLDER
    files = {
        path.relative_to(unpacked).as_posix()
        for path in unpacked.rglob("*")
        if path.is_file()
    }
    (wheel,) = (unpacked / "wheels").iterdir()
    return SimpleNamespace(
        source=folder,
        archive=archive,
        folder=unpacked,
        files=files,
        wheel=wheel,
    )


def _links(page):
    soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    found = [tag.get("href") or tag.get("src") for tag in soup.select("*")]
    return [link for link in found if link]


def _commands(page):
    """Return the lines to type, by the heading above them."""
    soup = BeautifulSoup(page, "html.parser")
    return {
        pre.find_previous(["h2", "h3"]).get_text(): pre.get_text().splitlines()
        for pre in soup.find_all("pre")
    }


def test_archive_has_what_a_class_needs(room):
    assert {
        "start.html",
        "requirements.txt",
        "LICENSE",
        "LICENSE-CONTENT",
        workshop.COHORT,
        "book/index.html",
        "book/slides/part1.html",
    } <= room.files
    for path in paths():
        copy = room.folder / "notebooks" / path.name
        assert copy.read_bytes() == path.read_bytes()
    # A notebook would take it for a checkout, and the wheel not at all.
    assert not (room.folder / "healthgym_utils").exists()
    with zipfile.ZipFile(room.archive) as stream:
        assert stream.testzip() is None


def test_notebooks_are_packed_once(room):
    notebooks = {name for name in room.files if name.endswith(".ipynb")}
    assert notebooks == {f"notebooks/{path.name}" for path in paths()}
    page = room.folder / "book" / "notebooks" / f"{paths()[0].stem}.html"
    (link,) = _links(page)
    assert (page.parent / link).resolve() == (
        room.folder / "notebooks" / paths()[0].name
    )


def test_links_of_the_start_page_lead_to_files(room):
    links = _links(room.folder / "start.html")
    assert len(links) > 2 * len(paths())
    text = (room.folder / "start.html").read_text(encoding="utf-8")
    for link in links:
        parts = urlsplit(link)
        assert not parts.scheme, link
        if parts.path:
            assert parts.path in room.files, link
        else:
            assert f'id="{parts.fragment}"' in text, link


def test_start_page_lists_notebooks_with_their_times(room):
    page = (room.folder / "start.html").read_text(encoding="utf-8")
    text = BeautifulSoup(page, "html.parser").get_text(" ", strip=True)
    for path in paths():
        assert re.search(rf"\b{path.name[:2]} · .+? \d+ (sec|min)", text)
    assert "Part I: slides" in text


def test_start_page_says_whose_wheels_are_there():
    packed = workshop.targets(["windows"], ["3.12", "3.13"])
    page = workshop.start_page(packed, [])
    assert (
        "Windows are in this archive, for Python 3.12 and 3.13:"
        in " ".join(page.split())
    )
    assert 'id="slides"' not in page
    typed = _commands(page)
    systems = ("Windows", "macOS", "Linux")
    offline = [any("--no-index" in x for x in typed[s]) for s in systems]
    assert offline == [True, False, False]
    assert [len(typed[system]) for system in systems] == [3, 3, 5]
    assert f" {workshop.pytorch(PINS)} " in typed["Linux"][1]


def test_cohort_is_the_one_of_the_notebooks(room):
    cohort = hg.load_art(room.folder / workshop.COHORT)
    same = hg.load_art("simulated", PATIENTS)
    pd.testing.assert_frame_equal(cohort, same, check_exact=True)


def test_wheel_installs_without_network_and_works(room, tmp_path):
    """From the archive's own list, by its hash, beside the installed one."""
    listed = (room.folder / "requirements.txt").read_text()
    assert listed.startswith("--require-hashes\n--find-links wheels\n")
    name = f"healthgym-utils=={package_version()}"
    (pin,) = re.findall(rf"^{re.escape(name)} \\\n.+$", listed, re.MULTILINE)
    (tmp_path / "one.txt").write_text(pin)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--no-index", "--find-links", str(room.wheel.parent)]
    command += ["--target", str(tmp_path / "installed")]
    command += ["--requirement", str(tmp_path / "one.txt")]
    subprocess.run(command, check=True)
    code = (
        "import healthgym_utils as hg; print(hg.__file__);"
        "print(hg.load_art('auto', 5).shape, hg.load_pretrained('v1-100'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "installed"))


def test_wheel_holds_the_package_with_its_models(room):
    kept = {
        path.relative_to(ROOT).as_posix()
        for name in ("*.py", "*/*.safetensors", "*/*.md", "*/*.html")
        for path in (ROOT / "healthgym_utils").glob(name)
    }
    with zipfile.ZipFile(room.wheel) as stream:
        names = {n for n in stream.namelist() if ".dist-info/" not in n}
        assert {entry.date_time for entry in stream.infolist()} == {
            workshop.EARLIEST
        }
    assert kept <= names
    assert not any("__pycache__" in name for name in names)


def test_same_files_give_the_same_bytes(room, tmp_path):
    for path in room.source.rglob("*"):
        os.utime(path)
    again = tmp_path / "again.zip"
    workshop.write_archive(room.source, again)
    assert again.read_bytes() == room.archive.read_bytes()
    once, twice = (tmp_path / name / "cohort.csv.gz" for name in ("a", "b"))
    workshop.write_cohort(once, 2)
    workshop.write_cohort(twice, 2)
    assert once.read_bytes() == twice.read_bytes()


def test_report_adds_up(room):
    head, *parts, hashed = workshop.report(room.archive).splitlines()
    size = float(re.search(r": ([\d.]+) MB$", head)[1])
    sizes = [float(part.split()[0]) for part in parts]
    assert {part.split()[2] for part in parts} >= {"wheels", "book"}
    assert abs(size - sum(sizes)) < 1
    assert hashed.split() == [workshop.file_hash(room.archive)]


def test_built_book_passes(book):
    assert workshop.problems(book) == []


def test_book_that_is_not_built_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(workshop, "BOOK", tmp_path / "html")
    monkeypatch.setattr(sys, "argv", ["workshop.py"])
    with pytest.raises(SystemExit, match=r"not built(.|\n)+`make book`"):
        workshop.main()


def test_book_that_is_not_current_is_refused(book):
    (book / "book" / "errata.html").unlink()
    os.utime(book / "notebooks" / f"{paths()[0].stem}.html", (0, 0))
    assert sorted(workshop.problems(book)) == [
        "The built book lacks a page: book/errata",
        "The built page is older than its source: "
        f"notebooks/{paths()[0].stem}",
    ]


def test_list_covers_the_package_and_jupyterlab():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {re.match(r"[\w.-]+", d)[0] for d in project["dependencies"]}
    assert asked | {"jupyterlab"} <= {p.package.split("==")[0] for p in PINS}


def test_list_has_the_versions_of_the_book():
    lock = (ROOT / "requirements.txt").read_text()
    book = {
        canonicalize_name(name): version
        for name, version in re.findall(r"^([\w.-]+)==(\S+)$", lock, re.M)
    }
    shared = 0
    for pin in PINS:
        name, version = pin.package.split("==")
        assert pin.hashes
        assert all(re.fullmatch(r"sha256:[\da-f]{64}", h) for h in pin.hashes)
        assert book.get(name, version) == version, name
        shared += name in book
    assert shared > 50


@pytest.mark.parametrize(
    ("system", "own", "foreign"),
    [
        ("windows", {"torch", "pywinpty", "colorama"}, {"appnope"}),
        ("macos", {"torch", "appnope", "pexpect"}, {"pywinpty"}),
        ("linux", {"pexpect"}, {"torch", "triton", "colorama"}),
    ],
)
def test_each_system_gets_its_own(system, own, foreign):
    (target,) = workshop.targets([system], ["3.12"])
    needed = {
        pin.package.split("==")[0]
        for pin in workshop.for_class(PINS)
        if pin.needed(target.environment)
    }
    assert own <= needed
    assert not foreign & needed
    assert not any(name.startswith(("nvidia", "cuda")) for name in needed)
    assert "overrides" not in needed  # for Python 3.11 alone


@pytest.mark.parametrize("names", [[], [workshop.HERE]])
def test_versions_of_python_need_a_system(names):
    with pytest.raises(SystemExit, match='WHEELS="windows macos linux"'):
        workshop.targets(names, ["3.12"])


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """Let pip download nothing, and note what it was asked for."""
    asked = []

    def note(command):
        asked.append(command)
        return SimpleNamespace(returncode=asked.count(command) - 1)

    monkeypatch.setattr(workshop, "DOWNLOADS", tmp_path)
    monkeypatch.setattr(
        workshop, "subprocess", SimpleNamespace(run=note, asked=asked)
    )
    return asked


def test_wheels_of_an_older_list_are_left_out(downloads):
    (target,) = workshop.targets(["linux"], ["3.12"])
    target.folder.mkdir()
    names = ["new-2.whl", "old-1.whl", "torch-2.0+cpu-cp312-x.whl"]
    new, _, torch = (target.folder / name for name in names)
    for name in names:
        (target.folder / name).write_text(name)
    pins = [
        workshop.Pin("new==2", (workshop.file_hash(new),)),
        workshop.Pin("torch==2.0", (), workshop.NOT_ON_LINUX),
    ]
    assert workshop.download(target, pins) == [new, torch]
    listed, cpu_build = downloads
    assert "--require-hashes" in listed
    assert cpu_build[-2:] == [workshop.CPU_INDEX, "torch==2.0+cpu"]
    for command in downloads:
        assert "manylinux_2_28_x86_64" in command
        assert command[command.index("--python-version") + 1] == "3.12"


def test_wheels_that_cannot_be_had_end_it(downloads):
    (target,) = workshop.targets([workshop.HERE], [])
    workshop.pip_download(target, "torch")
    with pytest.raises(SystemExit, match=r"No wheels for \w+ with Python 3"):
        workshop.pip_download(target, "torch")
