"""Every notebook, its solutions too, runs with other parameters."""

import os
import re
import subprocess
import sys
import time

import nbformat
import papermill
import pytest

from notebooks import NOTEBOOKS, TEMPLATE, paths, read

OTHER = {"SEED": 7, "N_PATIENTS": 280, "BUDGET": "quick"}
# Far above what is aimed at (20 s), for machines that are busy.
SECONDS = 120
PEAK_MB = 2_000
# Runs papermill, then says what its kernel took at its peak, in kilobytes on
# Linux. wait4 would say what this test run takes: a process counts as its own
# what the one that started it had.
COMMAND = """
import resource, sys
from papermill.cli import papermill
papermill(standalone_mode=False)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
# Of what a cell calls itself; the package's own are errors in unit tests.
STRICT = ",".join(
    f"error::{category}:__main__"
    for category in (
        "DeprecationWarning",
        "PendingDeprecationWarning",
        "FutureWarning",
    )
)
SOLUTION = re.compile(r"```python\n(.+?)```", re.DOTALL)


def with_solutions(notebook):
    """Append every exercise's solution as a cell of its own."""
    text = "\n".join(
        c.source for c in notebook.cells if c.cell_type == "markdown"
    )
    exercises = text.partition("## Exercises")[2]
    solutions = SOLUTION.findall(exercises)
    assert len(solutions) >= 3
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in solutions]
    return notebook


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [*paths(), TEMPLATE], ids=lambda path: path.stem
)
def test_runs_with_other_parameters(path, tmp_path, record_property):
    known = papermill.inspect_notebook(path)
    assert set(OTHER) <= set(known), "papermill ignores unknown names"
    source = tmp_path / path.name
    nbformat.write(with_solutions(read(path)), source)
    command = [sys.executable, "-c", COMMAND, "--cwd", str(NOTEBOOKS)]
    command += ["--no-progress-bar", "--kernel", "python3"]
    command += [str(source), str(tmp_path / "out.ipynb")]
    for name, value in OTHER.items():
        command += ["-p", name, str(value)]
    started = time.perf_counter()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": STRICT},
    )
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr[-3000:]
    peak = int(done.stdout.split()[-1])
    peak_mb = peak / (1024 if sys.platform == "linux" else 2**20)
    record_property("notebook", path.name)
    record_property("seconds", seconds)
    record_property("peak_mb", peak_mb)
    assert seconds < SECONDS
    assert peak_mb < PEAK_MB
