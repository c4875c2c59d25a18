"""The notebook contract, for every notebook: all that a program can check."""

import base64
import json
import re
from statistics import median

import pytest

from notebooks import ROOT, TEMPLATE, paths, problems, read, repository, tags

NOTEBOOKS = paths()
PARAMETERS = {"SEED", "DATA_SOURCE", "N_PATIENTS", "BUDGET"}
MARK = "# NBVAL_CHECK_OUTPUT"


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return read(path)


def code_cells(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def prose(notebook):
    cells = [c.source for c in notebook.cells if c.cell_type == "markdown"]
    return "\n\n".join(cells)


def tagged(notebook, tag):
    return [c for c in notebook.cells if tag in tags(c)]


def images(cell):
    found = (o.get("data", {}).get("image/png") for o in cell.outputs)
    return [base64.b64decode(image) for image in found if image]


def section(text, label, end=r"\n\*\*|\Z"):
    """Return what stands between a bold label and the next one."""
    found = re.search(rf"\*\*{label}\.?\*\*(.+?)(?={end})", text, re.DOTALL)
    assert found, f"no **{label}** in the first cell"
    return found.group(1)


def test_numbers_have_no_gap():
    numbers = [int(path.name[:2]) for path in NOTEBOOKS]
    assert numbers == list(range(1, len(numbers) + 1))


def test_title_and_badge(path, notebook):
    first = notebook.cells[0].source
    assert re.match(rf"# {path.name[:2]} · \S.+\n", first)
    titles = re.findall(r"^# .+", prose(notebook), re.MULTILINE)
    assert len(titles) == 1
    slug = repository().removeprefix("https://github.com/")
    assert (
        "[![Open In Colab](https://colab.research.google.com/assets/"
        "colab-badge.svg)](https://colab.research.google.com/github/"
        f"{slug}/blob/main/notebooks/{path.name})"
    ) in first


def test_opening(notebook):
    first = notebook.cells[0].source
    points = re.findall(r"^- ", section(first, "You will learn"), re.MULTILINE)
    assert 3 <= len(points) <= 5
    section(first, "Before you start")
    time = section(first, "Time")
    assert re.search(r"\d+ (seconds|minutes)", time)
    assert "GPU" in time


def test_prerequisites_come_earlier(path, notebook):
    """Links to earlier notebooks only, so that the order has no cycle."""
    before = section(notebook.cells[0].source, "Before you start")
    for target in re.findall(r"\]\((\d\d_\w+\.ipynb)\)", before):
        assert target < path.name
        assert (path.parent / target).is_file()


def test_links_between_notebooks_exist(path, notebook):
    for target in re.findall(r"\]\(([\w./]+\.ipynb)\)", prose(notebook)):
        assert (path.parent / target).is_file(), target


def test_setup_cell_is_the_template_s(notebook):
    (setup,) = tagged(read(TEMPLATE), "setup")
    assert notebook.cells[1].source == setup.source
    assert f'REPOSITORY = "{repository()}"' in setup.source


def test_parameters_cell(notebook):
    (cell,) = tagged(notebook, "parameters")
    assert cell is notebook.cells[2]
    names = set(re.findall(r"^(\w+) = ", cell.source, re.MULTILINE))
    assert names >= PARAMETERS
    assert 'BUDGET = "book"' in cell.source
    assert 'DATA_SOURCE = "auto"' in cell.source


def test_first_line_says_cohort_device_and_time(notebook):
    lines = "".join(
        output.get("text", "")
        for cell in code_cells(notebook)
        for output in cell.outputs
    )
    said = re.match(r"Cohort: .+ \| Device: CPU \| (About .+)\n", lines)
    assert said, lines[:200]
    assert (
        section(notebook.cells[0].source, "Time")
        .strip()
        .startswith(said.group(1))
    )


def test_everything_random_is_seeded_before_it_is_drawn(notebook):
    cells = code_cells(notebook)
    (first,) = (c for c in cells if "import healthgym_utils as hg" in c.source)
    assert cells.index(first) == 2
    assert "hg.seed_everything(SEED)" in first.source


def test_training_has_one_thread(notebook):
    """Sums of more are in another order, and differ in their last bits."""
    source = "\n".join(cell.source for cell in code_cells(notebook))
    if re.search(r"\.backward\(|WGANGP\(|load_pretrained\(", source):
        assert "\ntorch.set_num_threads(1)" in code_cells(notebook)[2].source


def test_measured_times_are_not_compared(notebook):
    """What is tagged keeps its output; a comparison with it would fail."""
    for cell in tagged(notebook, "timing"):
        assert MARK not in cell.source
        assert cell.outputs


def test_cells_are_small(notebook):
    cells = code_cells(notebook)
    assert 20 <= len(cells) <= 40
    lengths = [len(cell.source.splitlines()) for cell in cells]
    assert max(lengths) <= 40
    assert median(lengths) <= 10
    lines = [line for c in cells for line in c.source.splitlines()]
    assert max(map(len, lines)) < 80


def test_built_checked_and_used(notebook):
    source = "\n".join(cell.source for cell in code_cells(notebook))
    assert "import healthgym_utils as hg" in source
    assert len(re.findall(r"^\s*assert ", source, re.MULTILINE)) >= 3


def test_checked_outputs(notebook):
    """A marked cell without stored output would pass silently."""
    marked = [c for c in code_cells(notebook) if MARK in c.source]
    assert len(marked) >= 3
    for cell in marked:
        assert cell.source.startswith(MARK)
        assert cell.outputs, cell.source


def test_executed_in_order_without_errors(notebook):
    cells = code_cells(notebook)
    counts = [cell.execution_count for cell in cells]
    assert counts == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text


def test_outputs_are_current_and_clean(notebook):
    assert problems(notebook) == []


def texts_of(cell):
    """What a cell has put out, without pictures, whose code is noise."""
    texts = []
    for output in cell.outputs:
        data = output.get("data", {})
        texts += [v for kind, v in data.items() if kind != "image/png"]
        texts.append(output.get("text", ""))
    return texts


def test_outputs_name_the_cohort_and_no_machine(notebook):
    outputs = json.dumps([texts_of(cell) for cell in code_cells(notebook)])
    assert "Cohort: " in outputs
    for trace in ("/home/", "/root/", "/tmp/", "/Users/", "site-packages"):
        assert trace not in outputs


def test_figures(notebook):
    """Each has alt text that says what it shows, and words under it."""
    count = 0
    for cell, following in zip(
        notebook.cells, [*notebook.cells[1:], None], strict=True
    ):
        if cell.cell_type != "code" or not images(cell):
            continue
        count += 1
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        assert len(alt) >= 40, cell.source
        assert following is not None
        assert following.cell_type == "markdown", cell.source
        for image in images(cell):
            assert len(image) < 150_000
    assert count >= 1


def test_exercises(notebook):
    text = prose(notebook)
    exercises = text.partition("\n## Exercises\n")[2]
    solutions = exercises.count("<details><summary>Solution</summary>\n\n")
    assert 3 <= solutions <= 5
    assert solutions == exercises.count("\n\n</details>")
    grades = re.findall(r"\*\*\d \((easy|medium|hard)\)\.\*\*", exercises)
    assert len(grades) == solutions
    assert grades == sorted(grades, key=["easy", "medium", "hard"].index)


def test_closing_sections(path, notebook):
    text = prose(notebook)
    order = [
        text.find(f"\n## {title}\n")
        for title in ("Exercises", "What you have learned", "References")
    ]
    assert -1 not in order
    assert order == sorted(order)
    assert path.name.startswith("27") or "\n**Next:** " in text


@pytest.mark.parametrize(
    "pattern",
    [
        r"^(```|:::)\{",
        r"\{(doc|term|cite|ref|numref|eq)[:\w]*\}`",
        r"^\([\w-]+\)=",
        r"^> \[!",
        r"```mermaid",
        r"\$\$\s*\([\w-]+\)",
    ],
)
def test_markdown_reads_alike_everywhere(notebook, pattern):
    assert not re.search(pattern, prose(notebook), re.MULTILINE)


def test_no_unfinished_marks(notebook):
    everything = prose(notebook) + "".join(
        cell.source for cell in code_cells(notebook)
    )
    assert not re.search(r"TODO|FIXME|XXX|lorem", everything)


def test_size(path):
    assert path.stat().st_size < 2_500_000


def test_template_follows_the_anatomy():
    template = read(TEMPLATE)
    first = template.cells[0].source
    for label in ("You will learn", "Before you start", "Time"):
        section(first, label)
    assert tags(template.cells[1])[0] == "setup"
    assert tags(template.cells[2]) == ["parameters"]
    assert (ROOT / "notebooks").is_dir()
