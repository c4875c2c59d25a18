"""Every exercise has a solution, run by a test, and stands on one page."""

import nbformat
import pytest
from solutions import PAGE, Exercise, exercises, page, parts
from test_papermill import with_solutions

from notebooks import paths, read

NOTEBOOKS = paths()


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_exercises_are_numbered_without_gap(path):
    numbers = [exercise.number for exercise in exercises(path)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_solution_is_code_that_can_be_run(path):
    for exercise in exercises(path):
        assert exercise.code, exercise.number
        words = exercise.solution
        for code in exercise.code:
            words = words.replace(f"```python\n{code}```", "")
        # Code in another fence, or indented, would be run by no test.
        assert "```" not in words + exercise.task, exercise.number
        assert "\n    " not in words, exercise.number


def test_every_solution_is_run(path):
    """Those that the papermill test appends are those that there are."""
    notebook = read(path)
    length = len(notebook.cells)
    appended = [
        cell.source for cell in with_solutions(notebook).cells[length:]
    ]
    assert appended == [
        code for exercise in exercises(path) for code in exercise.code
    ]


def test_page_is_up_to_date():
    assert page() == PAGE.read_text("utf-8"), "run `make solutions`"


def test_page_has_every_notebook():
    files = [file for _, part in parts() for file in part]
    assert files == NOTEBOOKS


def test_code_of_a_solution():
    exercise = Exercise(
        1, "easy", "Add.", "```python\n1 + 1\n```\n\nOr:\n\n```python\n2\n```"
    )
    assert exercise.code == ["1 + 1\n", "2\n"]


@pytest.mark.parametrize(
    "text",
    [
        "# 01 · T\n\n## Exercises\n\n## What you have learned\n",
        "# 01 · T\n\n## Exercises\n\n**1 (easy).** Add.\n",
        "# 01 · T\n\n## Exercises\n\n**1 (simple).** Add.\n\n"
        "<details><summary>Solution</summary>\n\n2\n\n</details>\n",
    ],
    ids=["none", "no solution", "unknown grade"],
)
def test_unsolved_exercise_is_refused(tmp_path, text):
    file = tmp_path / "01_t.ipynb"
    cell = nbformat.v4.new_markdown_cell(text)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), file)
    with pytest.raises(ValueError, match=r"01_t\.ipynb, ## Exercises"):
        exercises(file)
