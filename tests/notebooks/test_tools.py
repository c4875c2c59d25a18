"""The setup cell and the maintainers' commands do what they say."""

import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import pytest
from previews import pages_address

import notebooks as tools


@pytest.fixture
def setup_source():
    cells = tools.read(tools.TEMPLATE).cells
    return next(c.source for c in cells if "setup" in tools.tags(c))


@pytest.fixture
def fresh_colab(monkeypatch, tmp_path):
    """No checkout, no package; record what would be installed."""
    calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    def run(command):
        calls.append(command)
        return SimpleNamespace(returncode=fresh.returncode)

    fresh = SimpleNamespace(calls=calls, returncode=0)
    monkeypatch.setattr(subprocess, "run", run)
    return fresh


def test_setup_installs_where_the_package_is_missing(
    setup_source, fresh_colab
):
    exec(setup_source, {})
    (command,) = fresh_colab.calls
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    archive = f"{tools.repository()}/archive/refs/heads/main.zip"
    assert command[-1] == archive


def test_setup_says_in_one_line_what_to_do(setup_source, fresh_colab):
    fresh_colab.returncode = 1
    with pytest.raises(SystemExit) as stop:
        exec(setup_source, {})
    message = str(stop.value)
    assert "\n" not in message
    assert "check the network" in message
    assert "pip install https://" in message


def test_setup_installs_nothing_where_the_package_is(
    setup_source, fresh_colab, monkeypatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    exec(setup_source, {})
    assert fresh_colab.calls == []


def test_setup_uses_a_checkout_as_it_stands(
    setup_source, fresh_colab, monkeypatch, tmp_path
):
    (tmp_path / "healthgym_utils").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setattr(sys, "path", [])
    exec(setup_source, {})
    assert sys.path == [str(tmp_path)]
    assert fresh_colab.calls == []


@pytest.fixture
def copy_of_project(monkeypatch, tmp_path):
    """Copy what a checkout holds, but for the weights of trained models."""
    ignored = (tools.ROOT / ".gitignore").read_text().split()
    folders = [pattern.rstrip("/") for pattern in ignored]
    copy = shutil.copytree(
        tools.ROOT,
        tmp_path / "copy",
        ignore=shutil.ignore_patterns(".git", "*.safetensors", *folders),
    )
    monkeypatch.setattr(tools, "ROOT", copy)
    return copy


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_stamp_moves_every_address_and_back(copy_of_project):
    old = tools.slug(tools.repository())
    before = contents(copy_of_project)
    hashes = {
        p: tools.code_hash(tools.read(p))
        for p in copy_of_project.rglob("*.ipynb")
    }
    tools.stamp("someone/else")
    assert tools.slug(tools.repository()) == "someone/else"
    assert pages_address(tools.repository()) == (
        "https://someone.github.io/else/"
    )
    owner, _, name = old.lower().partition("/")
    address = re.compile(
        rf"github(\.com)?/{owner}/{name}|{owner}\.github\.io".encode()
    )
    for path, content in contents(copy_of_project).items():
        assert not address.search(content.lower()), path
    for path, value in hashes.items():
        assert tools.code_hash(tools.read(path)) == value
        assert "github.com/someone/else" in path.read_text()
    tools.stamp(old)
    assert contents(copy_of_project) == before


def test_stamp_leaves_alone_what_is_not_the_address(copy_of_project):
    """A bare name is a citation; a longer name is another repository."""
    tools.stamp("a/b")
    page = copy_of_project / "book" / "page.md"
    page.write_text("`a/b`, data/base, https://github.com/a/b-2, github.com/")
    before = page.read_bytes()
    tools.stamp("someone/else")
    assert page.read_bytes() == before
    page.write_text("https://github.com/someone/else.git")
    tools.stamp("a/b")
    assert page.read_text() == "https://github.com/a/b.git"


@pytest.mark.parametrize("name", ["", "owner", "a/b/c", "a b/c", "https://x"])
def test_stamp_refuses_what_is_no_repository(copy_of_project, name):
    with pytest.raises(SystemExit, match="owner/name"):
        tools.stamp(name)


@pytest.fixture
def small_notebook(tmp_path):
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell("1 / 1", metadata={"scrolled": True}),
        nbformat.v4.new_code_cell("print('once')"),
    ]
    path = tmp_path / "98_small.ipynb"
    nbformat.write(notebook, path)
    return path


def test_run_executes_strips_and_hashes(small_notebook):
    assert tools.problems(tools.read(small_notebook))
    tools.run(small_notebook)
    assert tools.problems(tools.read(small_notebook)) == []
    made = tools.read(small_notebook)
    assert [c.execution_count for c in made.cells] == [1, 2]
    assert made.cells[1].outputs[0].text == "once\n"
    assert made.cells[0].metadata == {}
    first = small_notebook.read_bytes()
    tools.run(small_notebook)
    assert small_notebook.read_bytes() == first


def test_times_are_kept_while_the_code_is_the_same(small_notebook):
    made = tools.read(small_notebook)
    clock = nbformat.v4.new_code_cell(
        "import time\nprint(time.perf_counter_ns())",
        metadata={"tags": ["timing"]},
    )
    made.cells.append(clock)
    nbformat.write(made, small_notebook)

    def run():
        tools.run(small_notebook)
        return tools.read(small_notebook).cells[2].outputs[0].text

    took = run()
    assert run() == took
    made = tools.read(small_notebook)
    made.cells[2].outputs = []
    nbformat.write(made, small_notebook)
    anew = run()
    assert anew != took
    made = tools.read(small_notebook)
    made.cells[0].source = "2 / 2"
    nbformat.write(made, small_notebook)
    assert run() != anew


def test_changed_code_is_found(small_notebook):
    tools.run(small_notebook)
    made = tools.read(small_notebook)
    made.cells[1].source += "  # changed"
    nbformat.write(made, small_notebook)
    assert tools.problems(tools.read(small_notebook)) == [
        "outputs are older than the code"
    ]


def test_failing_notebook_is_left_as_it_was(small_notebook):
    made = tools.read(small_notebook)
    made.cells[1].source = "1 / 0"
    nbformat.write(made, small_notebook)
    before = small_notebook.read_bytes()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        tools.run(small_notebook)
    assert small_notebook.read_bytes() == before
