"""A notebook on its own, where only other packages are installed.

`make colab` runs all of them, with the versions that Colab has; this is the
part of it that takes seconds and no network.
"""

import os
import subprocess
import sys
import sysconfig
import tomllib
from dataclasses import replace
from pathlib import Path

import colab
import pytest
from packaging.requirements import Requirement

from notebooks import ROOT, paths, read

# Neither what builds the package is fetched then, nor any package.
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
FINE = colab.Run(
    error="",
    warnings="",
    setup_seconds=9.0,
    seconds=30.0,
    before={"numpy": "2.0.2", "pandas": "2.2.2"},
    after={"numpy": "2.0.2", "pandas": "2.2.2", "healthgym-utils": "0.1.0"},
)


@pytest.fixture
def python(tmp_path):
    """An environment with all packages of this one, but for the book's."""
    folder = tmp_path / "environment"
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(command, check=True)
    there = colab.packages_of(folder)
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if colab.PACKAGE not in path.name:
            (there / path.name).symlink_to(path)
    colab.add_google_colab(folder)
    return colab.python_of(folder)


@pytest.mark.slow
def test_notebook_runs_from_its_own_file_alone(python, tmp_path):
    """Not without an archive to install; with one, to the end."""
    (path,) = paths(["05"])
    served = tmp_path / "served"
    served.mkdir()
    with colab.served(served) as address:
        run = colab.run(path, python, tmp_path / "1", address, **OFFLINE)
        assert "Install failed: check the network" in run.error
        assert run.after == run.before
        colab.write_archive(served)
        run = colab.run(path, python, tmp_path / "2", address, **OFFLINE)
    assert run.problems == []
    assert {*run.after} - {*run.before} == {"healthgym-utils"}
    # It took itself for Colab, and found the package where it was installed.
    asked = "import google.colab, healthgym_utils as hg; print(hg.__file__)"
    own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    said = subprocess.check_output(
        [python, "-c", asked], cwd=tmp_path, env=own
    )
    assert str(colab.packages_of(python.parents[1])) in said.decode()
    (tmp_path / "2" / "content" / path.name).unlink()
    assert not [*(tmp_path / "2" / "content").iterdir()]
    for cell in read(tmp_path / "2" / "out.ipynb").cells:
        assert cell.cell_type != "code" or cell.execution_count


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"error": "ValueError: no"}, "ValueError: no"),
        ({"warnings": "use one_of"}, "it warned: use one_of"),
        ({"setup_seconds": 61.0}, "the setup cell took 61 s"),
        ({"before": FINE.after}, "had the package already"),
        ({"after": FINE.before}, "did not install the package"),
        ({"after": FINE.after | {"numpy": "2.4.0"}}, "there: numpy"),
        ({"after": {"healthgym-utils": "0.1.0"}}, "there: numpy, pandas"),
    ],
)
def test_problems_are_named(changes, named):
    assert FINE.problems == []
    (problem,) = replace(FINE, **changes).problems
    assert named in problem


def test_what_colab_moved_is_named():
    shipped = (
        "# of pip, numpy==9\nnumpy==2.0.2\nPillow==11.3.0\ntorch==2.9.0\n"
    )
    wheel = "https://download.pytorch.org/whl/cu126/torch-2.9.0%2Bcu126-cp312"
    listed = f"numpy==2.0.2\npillow==11.3.0\ntorch @ {wheel}-cp312-linux.whl\n"
    assert colab.moved(shipped, listed) == []
    assert colab.moved(shipped, "numpy==2.1.0\ntorch==2.9.0+cu130\n") == [
        "numpy: 2.0.2 here, 2.1.0 on Colab",
        "pillow: 11.3.0 here, not there on Colab",
    ]


def test_colab_has_all_that_the_package_needs():
    """A bound above Colab's version would replace a package there."""
    has = colab.versions(colab.SHIPPED.read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"]:
        needed = Requirement(text)
        assert needed.specifier.contains(has[needed.name]), text
