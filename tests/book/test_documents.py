"""Documents, table of contents and notebooks say the same."""

import re
import subprocess
import tomllib

import numpy as np
import pandas as pd
import yaml
from toc import NOTEBOOK_PAGES, PAGES

import healthgym_utils as hg
from notebooks import ROOT, STAMPED, paths, read, repository, slug

README = (ROOT / "README.md").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = [
    line
    for line in (ROOT / "requirements.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
ROW = re.compile(
    r"^\| \[(?P<title>[^]]+)\]\((?P<file>notebooks/\S+?\.ipynb)\) \|"
    r" (?P<learn>[^|]+) \|"
    r" \[!\[[^]]+\]\(\S+?\)\]\((?P<badge>\S+?)\) \|"
    r" (?P<minutes>[^|]+) \|$",
    re.MULTILINE,
)


def _project_files():
    made = {".git", ".venv", "_build"}
    for top in ROOT.iterdir():
        if top.is_file():
            yield top
        elif top.name not in made and top.suffix != ".egg-info":
            yield from (path for path in top.rglob("*") if path.is_file())


def _minutes(first_cell):
    """Return the time that a notebook states, in minutes for the table."""
    number, unit = re.search(
        r"\*\*Time\.\*\* About (\d+) (seconds|minutes)", first_cell
    ).groups()
    return f"{int(number) / (60 if unit == 'seconds' else 1):.1f}"


def test_contents_list_the_notebooks_in_order():
    files = [f"notebooks/{path.stem}" for path in paths()]
    assert files == NOTEBOOK_PAGES
    assert len(PAGES) == len(set(PAGES))


def test_contents_list_every_page():
    pages = {f"book/{path.stem}" for path in (ROOT / "book").glob("*.md")}
    assert pages == {page for page in PAGES if page.startswith("book/")}


def test_readme_table_lists_the_notebooks():
    rows = [row.groupdict() for row in ROW.finditer(README)]
    assert [row["file"] for row in rows] == [
        f"notebooks/{path.name}" for path in paths()
    ]
    colab = "https://colab.research.google.com/github"
    for row, path in zip(rows, paths(), strict=True):
        first = read(path).cells[0].source
        assert first.startswith(f"# {row['title']}\n")
        assert row["badge"] == (
            f"{colab}/{slug(repository())}/blob/main/{row['file']}"
        )
        assert row["minutes"] == _minutes(first)


def test_readme_links_lead_to_files():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).is_file(), link


def test_address_is_the_same_everywhere():
    """One place states it; what repeats it is what `stamp` rewrites."""
    address = repository()
    stamped = {p for pattern in STAMPED for p in ROOT.glob(pattern)}
    for name in ("README.md", "CITATION.cff", "pyproject.toml"):
        assert address in (ROOT / name).read_text(), name
    holders = {
        path
        for path in _project_files()
        if slug(address).encode() in path.read_bytes()
    }
    assert holders - stamped == {ROOT / "_config.yml"}
    name = slug(address).partition("/")[2]
    for path in holders:
        text = path.read_text()
        assert text.count(name) == text.count(slug(address)), path


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    for key in ("cff-version", "message", "title", "authors"):
        assert citation[key]
    assert citation["cff-version"] == "1.2.0"
    assert citation["repository-code"] == repository()
    assert citation["version"] == hg.__version__
    dois = {reference["doi"] for reference in citation["references"]}
    bibliography = (ROOT / "book" / "references.bib").read_text()
    for doi in dois:
        assert doi in bibliography
        assert doi in README


def test_changelog_has_a_place_for_what_is_next():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert versions[0] == "Unreleased"


def test_lock_is_exact_and_goes_anywhere():
    for line in LOCK:
        assert re.fullmatch(r"[\w.-]+==[\w.]+", line), line


def test_lock_covers_what_the_project_asks_for():
    project = PYPROJECT["project"]
    asked = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        asked += extra
    names = {re.match(r"[\w.-]+", line)[0].lower() for line in asked}
    locked = {line.partition("==")[0].lower() for line in LOCK}
    assert names <= locked


def test_hooks_use_the_locked_ruff():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (ruff,) = (r for r in hooks["repos"] if "ruff" in r["repo"])
    assert f"ruff=={ruff['rev'].removeprefix('v')}" in LOCK


def test_help_lists_the_targets():
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split()
    shown = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    listed = re.findall(r"^make (\w+) +\S", shown, re.MULTILINE)
    assert listed == phony
    assert {"book", "test", "quicktest", "notebooks", "stamp"} <= set(listed)


def test_stamp_says_what_it_needs():
    done = subprocess.run(
        ["make", "stamp", "REPO=", "READY="],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "make stamp REPO=owner/name" in done.stderr


def test_own_cohort_example_runs():
    """The guide's code, on a table such as it describes."""
    page = (ROOT / "book" / "how_to_use.md").read_text()
    (code,) = re.findall(r"```python\n(.+?)```", page, re.DOTALL)
    rng = np.random.default_rng(0)
    rows = pd.MultiIndex.from_product([range(9), range(7)])
    table = rows.to_frame(index=False, name=["PatientID", "Month"])
    table["HbA1c"] = rng.gamma(9, 6, len(table))
    table["Sex"] = np.where(table["PatientID"] % 2, "Male", "Female")
    therapies = ["None", "Oral", "Insulin"]
    table["Therapy"] = rng.choice(therapies, len(table))
    names = {"table": table}
    exec(code, names)
    assert names["x"].shape == (9, 7, 6)
    again = names["again"]
    for name in ("PatientID", "Month", "Sex", "Therapy"):
        assert again[name].tolist() == table[name].tolist()
    np.testing.assert_allclose(again["HbA1c"], table["HbA1c"], rtol=1e-4)


def test_colours_are_the_ones_stated():
    page = (ROOT / "book" / "how_to_use.md").read_text()
    sheet = (ROOT / "book" / "_assets" / "book.css").read_text()
    logo = (ROOT / "book" / "_assets" / "logo.svg").read_text()
    for name in ("REAL", "SYNTHETIC"):
        colour = getattr(hg.plots, name)
        assert colour in page
        assert colour.lower() in sheet
        assert colour in logo
