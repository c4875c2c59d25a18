"""Collect the exercises of all notebooks, with their solutions, on one page.

python tools/solutions.py

Writes book/solutions.md from the notebooks; ``make solutions`` runs it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from notebooks import ROOT, paths, read

PAGE = ROOT / "book" / "solutions.md"
HEADING = "## Exercises"
# An exercise ends where the next one, or the next section, starts.
EXERCISE = re.compile(
    r"^\*\*(?P<number>\d) \((?P<grade>easy|medium|hard)\)\.\*\*"
    r"(?P<task>.+?)"
    r"^<details><summary>Solution</summary>$(?P<solution>.+?)^</details>$",
    re.DOTALL | re.MULTILINE,
)
CODE = re.compile(r"^```python\n(.+?)^```$", re.DOTALL | re.MULTILINE)
INTRODUCTION = """\
<!-- Made from the notebooks by `make solutions`: change them, not this. -->

# Solutions

All {count} exercises of the book with their solutions, for whoever sets them
in a class or checks their own. Try first: a solution that you have fought for
stays with you. Each one continues its notebook, so run that to its end, and
paste the code into a cell below. A test runs all of them so.
"""


@dataclass(frozen=True)
class Exercise:
    """An exercise of a notebook: what to do, and one way to do it."""

    number: int
    grade: str
    task: str
    solution: str

    @property
    def code(self) -> list[str]:
        """The Python blocks of the solution, in order."""
        return CODE.findall(self.solution)


@cache
def markdown(path: Path) -> str:
    """Return all text of a notebook, without code cells."""
    cells = read(path).cells
    return "\n\n".join(c.source for c in cells if c.cell_type == "markdown")


def exercises(path: Path) -> list[Exercise]:
    """Read the exercises of a notebook, in order.

    Raises
    ------
    ValueError
        If a notebook has none, or one that is not followed by its solution.
    """
    section = markdown(path).partition(f"\n{HEADING}\n")[2]
    section = section.partition("\n## ")[0]
    found = [
        Exercise(
            int(match["number"]),
            match["grade"],
            match["task"].strip(),
            match["solution"].strip(),
        )
        for match in EXERCISE.finditer(section)
    ]
    rest = EXERCISE.sub("", section).strip()
    if not found or rest:
        raise ValueError(
            f"{path.name}, {HEADING}: write each exercise as '**1 (easy).** "
            "task', followed by <details><summary>Solution</summary>, the "
            f"solution and </details>; this is something else: {rest[:80]!r}"
        )
    return found


def title(path: Path) -> str:
    """Return a notebook's title, with its number."""
    return markdown(path).partition("\n")[0].removeprefix("# ")


def parts() -> Iterator[tuple[str, list[Path]]]:
    """Yield the parts of the book, each with its notebooks, in order."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    for part in contents["parts"]:
        files = [ROOT / f"{c['file']}.ipynb" for c in part["chapters"]]
        if notebooks := [file for file in files if file.is_file()]:
            yield part["caption"], notebooks


def page() -> str:
    """Write the page."""
    count = sum(len(exercises(path)) for path in paths())
    blocks = [INTRODUCTION.format(count=count)]
    for caption, files in parts():
        blocks.append(f"## {caption}\n")
        blocks += [_notebook(file) for file in files]
    return "\n".join(blocks)


def _notebook(path: Path) -> str:
    address = f"../notebooks/{path.name}"
    back = f"[To the exercises in the notebook]({address}#exercises)"
    blocks = [f"### {title(path)}", back]
    for exercise in exercises(path):
        task, solution = map(_relinked, (exercise.task, exercise.solution))
        blocks += [
            f"**{exercise.number} ({exercise.grade}).** {task}",
            f"<details><summary>Solution</summary>\n\n{solution}\n\n</details>",
        ]
    return "\n\n".join(blocks) + "\n"


def _relinked(text: str) -> str:
    """Make links between notebooks work from the folder of the pages."""
    return re.sub(r"\]\((\d\d_\w+\.ipynb)", r"](../notebooks/\1", text)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
