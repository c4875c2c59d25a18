"""Run the cells of a notebook on one worker, and report what each costs."""

import os
from collections import defaultdict
from operator import itemgetter
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling


class NotebookScheduling(LoadScopeScheduling):
    """Keep the cells of a notebook together, and spread all other tests.

    The cells share one kernel. pytest-xdist's own groups would do, but their
    marks do not reach the scheduler under the pytest that is locked here.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return path if path.endswith(".ipynb") else nodeid


def pytest_configure() -> None:
    """Run cells as their stored outputs were made: without progress bars."""
    os.environ["TQDM_DISABLE"] = "1"


def pytest_xdist_make_scheduler(
    config: pytest.Config, log: Producer
) -> NotebookScheduling:
    """Tell pytest-xdist to schedule so."""
    return NotebookScheduling(config, log)


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print what notebooks cost to run, and pages to fetch."""
    _report_notebooks(terminalreporter)
    _report_pages(terminalreporter)


def _report_pages(terminalreporter: TerminalReporter) -> None:
    """Print how much travels for a page, heaviest first."""
    tests = [
        *terminalreporter.getreports("passed"),
        *terminalreporter.getreports("failed"),
    ]
    pages = [
        properties
        for test in tests
        if test.when == "call"
        and "kilobytes" in (properties := dict(test.user_properties))
    ]
    if not pages:
        return
    terminalreporter.section("kilobytes a page: compressed text, plain text")
    row = "{page:44} {kilobytes:>9.0f} {plain:>9.0f}".format
    for page in sorted(pages, key=itemgetter("kilobytes"), reverse=True):
        terminalreporter.line(row(**page))


def _report_notebooks(terminalreporter: TerminalReporter) -> None:
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
