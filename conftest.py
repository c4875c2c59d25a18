"""Run the cells of a notebook on one worker, and report what each costs."""

from collections import defaultdict
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the cells of a notebook together: they share one kernel."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.xdist_group(item.path.name))


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print seconds and peak memory a notebook."""
    book = defaultdict(float)
    quick = {}
    for report in terminalreporter.getreports("passed"):
        name = Path(report.nodeid.partition("::")[0]).name
        if name.endswith(".ipynb"):
            book[name] += report.duration
        properties = dict(report.user_properties)
        if report.when == "call" and "notebook" in properties:
            quick[properties["notebook"]] = properties
    names = sorted({*book, *quick})
    if not names:
        return
    terminalreporter.section("seconds and peak memory a notebook")
    row = "{:44} {:>9} {:>9} {:>9}".format
    terminalreporter.line(row("notebook", "book s", "quick s", "quick MB"))
    for name in names:
        cells = [f"{book[name]:.0f}" if name in book else "-"]
        cost = quick.get(name)
        cells.append(f"{cost['seconds']:.0f}" if cost else "-")
        cells.append(f"{cost['peak_mb']:.0f}" if cost else "-")
        terminalreporter.line(row(name, *cells))
