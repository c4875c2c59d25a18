"""Check that a computer is ready for a class.

``python -m healthgym_utils.doctor`` says what to do about each finding.
Nothing but the standard library is imported before a check needs it, so that
a missing package is a finding and no traceback; and nothing is written here
that Python 3.9, which many laptops have, cannot read.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import itertools
import operator
import os
import re
import sys
import tempfile
import textwrap
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from healthgym_utils.diffusion import Diffusion

PROJECT = "healthgym-utils"
OLDEST_PYTHON = (3, 11)  # as in pyproject.toml, readable without installing
# Where a package is imported by another name than it is installed by.
IMPORTED_AS = {
    "ipython": "IPython",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
}
COMPARISONS = {">=": operator.ge, "<": operator.lt}
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
# A test holds every notebook under 2 GB; the rest is for the system, and
# above that for a browser with the book.
LEAST_MEMORY = 3e9  # bytes
GOOD_MEMORY = 6e9
PATIENTS = 300  # of the notebooks' cohort
PATIENCE = 4.0  # seconds for a server to answer
SECONDS = 5.0  # of training
# However slow the computer: enough to tell learning from none.
LEAST_STEPS = 40
# Loss after training, as a share of that before, that counts as learning.
FALL = 0.9
WIDTH = 79
INSTALL = "In the folder of the book: python -m pip install -e ."


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Parameters
    ----------
    status : {"ok", "warning", "failure"}
        Whether a class would run: yes, with limits, or no.
    what : str
        What was found.
    todo : str
        What to do about it; empty if nothing. A line each for what is to be
        copied, such as a command.
    """

    status: str
    what: str
    todo: str = ""


def check_python() -> Finding:
    """Compare this Python with the oldest that the package works with."""
    version = ".".join(map(str, sys.version_info[:3]))
    what = f"{version}, {sys.executable}"
    if sys.version_info[:2] >= OLDEST_PYTHON:
        return Finding("ok", what)
    oldest = ".".join(map(str, OLDEST_PYTHON))
    return Finding(
        "failure",
        f"{what}; {oldest} or newer is needed",
        f"Install Python {oldest} or newer from https://www.python.org and "
        "make a new environment with it.",
    )


def check_packages() -> Finding:
    """Look up the version of each dependency, and import it."""
    try:
        wanted = requirements()
    except metadata.PackageNotFoundError:
        return Finding(
            "failure",
            f"{PROJECT} is not installed in this Python",
            "Run this with the Python of the book's environment, such as "
            f".venv/bin/python, or install it.\n{INSTALL}",
        )
    problems = {name: problem_with(name, wanted[name]) for name in wanted}
    problems = {name: what for name, what in problems.items() if what}
    if not problems:
        return Finding(
            "ok", f"all {len(wanted)} there, in range, and importable"
        )
    return Finding(
        "failure",
        "; ".join(f"{name} {what}" for name, what in problems.items()),
        f"{INSTALL}\nIf one still cannot be imported, install it anew:\n"
        f"python -m pip install --force-reinstall {next(iter(problems))}",
    )


def requirements() -> dict[str, str]:
    """Read which packages are needed, and in which versions.

    Returns
    -------
    dict of str to str
        Such as ``{"torch": ">=2.6"}``; those of extras are left out.
    """
    found = {}
    for line in metadata.requires(PROJECT) or []:
        requirement, _, marker = line.partition(";")
        if "extra" not in marker:
            name, versions = re.match(
                r"([\w.-]+)\s*\(?([^)]*)", requirement
            ).groups()
            found[name] = versions.strip()
    return found


def problem_with(name: str, wanted: str) -> str:
    """Say what is wrong with a package; empty if nothing is."""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return "is not installed"
    if not in_range(version, wanted):
        return f"is version {version}, needed is {wanted}"
    try:
        importlib.import_module(IMPORTED_AS.get(name, name))
    except Exception as error:  # a library that is broken raises anything
        return f"cannot be imported ({error})"
    return ""


def in_range(version: str, wanted: str) -> bool:
    """Whether a version is in a range such as ``">=1.0.4,<2"``.

    Only numbers count: 2.6.0rc1 and 2.6.0+cpu are 2.6.

    Raises
    ------
    ValueError
        If the range has another comparison than ``>=`` and ``<``.
    """
    for part in filter(None, wanted.split(",")):
        match = re.fullmatch(r"\s*(>=|<)\s*([\d.]+)\s*", part)
        if match is None:
            raise ValueError(f"cannot read the range of versions {wanted!r}")
        sign, bound = match.groups()
        if not COMPARISONS[sign](release(version), release(bound)):
            return False
    return True


def release(version: str) -> tuple[int, ...]:
    """Return the numbers at the start of a version, without zeros at the end.

    So that 2.10 is after 2.9, and 2.0 is 2.
    """
    numbers = re.match(r"[\d.]*\d", version).group()
    return tuple(map(int, re.sub(r"(\.0+)+$", "", numbers).split(".")))


def check_memory() -> Finding:
    """Compare the memory of this computer with what notebooks take."""
    size = memory()
    if not size:
        return Finding(
            "warning",
            "its size could not be found out",
            f"Make sure that it is {GOOD_MEMORY / 1e9:.0f} GB or more.",
        )
    what = f"{size / 1e9:.1f} GB; a notebook takes up to 2 GB"
    if size < LEAST_MEMORY:
        return Finding(
            "failure", what, "Use another computer, or Colab (see the book)."
        )
    if size < GOOD_MEMORY:
        return Finding(
            "warning",
            what,
            "Close other programs, and run one notebook at a time.",
        )
    return Finding("ok", what)


def memory() -> int:
    """Return the bytes of memory this Python may use; 0 if unknown."""
    if sys.platform == "win32":
        kilobytes = ctypes.c_ulonglong()
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(
            ctypes.byref(kilobytes)
        )
        return kilobytes.value * 1024
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # no container, or one without limit
        size = min(size, int(CONTAINER_LIMIT.read_text()))
    return max(size, 0)


def check_device() -> Finding:
    """Compute on the device that the notebooks will choose."""
    import torch

    from healthgym_utils.runtime import get_device

    device = get_device()
    try:
        torch.ones(2, device=device).sum().item()
    except RuntimeError as error:
        return Finding(
            "failure",
            f"{device.type} is there and does not compute ({error})",
            "Update its driver; or hide it, by setting the environment "
            "variable CUDA_VISIBLE_DEVICES to -1, and use the CPU.",
        )
    if device.type != "cpu":
        return Finding("ok", f"{device.type}; the notebooks will use it")
    cores = os.cpu_count() or 1
    if cores < 2:
        return Finding(
            "warning",
            "the CPU, with one core; the book's minutes are for two",
            "Expect twice the time, or share a computer with a neighbour.",
        )
    return Finding("ok", f"the CPU, {cores} cores; no notebook needs a GPU")


def check_cache() -> Finding:
    """Write a file where the published cohort would be kept."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(b"doctor")
    except OSError as error:
        return Finding(
            "warning",
            f"cannot write to {folder} ({error.strerror}); the published "
            "cohort cannot be kept, the simulated one needs no folder",
            "Set the environment variable HEALTHGYM_CACHE to a folder of "
            "yours.",
        )
    return Finding("ok", f"{folder} can be written to")


def cache_folder() -> Path:
    """Return the folder that ``load_art("figshare")`` keeps its file in."""
    from healthgym_utils.data import figshare_store

    return Path(figshare_store().abspath)


def check_network() -> Finding:
    """Ask figshare for the published cohort's address; never a failure."""
    if answers():
        return Finding("ok", "figshare answers; the published cohort is there")
    return Finding(
        "ok",
        "figshare does not answer; the simulated cohort needs no network",
        "Nothing, unless you want the published cohort: bring its CSV file "
        "and give its path as DATA_SOURCE.",
    )


def answers() -> bool:
    """Whether figshare's server says anything at all, in a few seconds."""
    import requests

    from healthgym_utils.data import FIGSHARE_URL

    answered = threading.Event()

    def ask() -> None:
        with suppress(Exception):  # why it is silent does not matter here
            requests.head(FIGSHARE_URL, timeout=PATIENCE)
            answered.set()

    # In a thread of its own: looking up a name knows no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answered.is_set()


def check_cohort() -> Finding:
    """Simulate the cohort that the notebooks use."""
    from healthgym_utils.data import load_art

    cohort = load_art("simulated", PATIENTS)
    return Finding(
        "ok", f"{PATIENTS} simulated patients, {len(cohort):,} months"
    )


def check_models() -> Finding:
    """Load every trained model that comes with the package."""
    import torch

    from healthgym_utils.pretrained import (
        FOLDER,
        load_pretrained,
        trained_names,
    )

    names = trained_names()
    damaged = {}
    for name in names:
        try:
            load_pretrained(name, device=torch.device("cpu"))
        except Exception as error:  # a damaged file may hold anything
            damaged[name] = error
    if names and not damaged:
        return Finding("ok", f"all {len(names)} can be loaded")
    what = f"there are none in {FOLDER}"
    if damaged:
        first = next(iter(damaged.values()))
        what = f"cannot load {', '.join(damaged)} ({first})"
    return Finding(
        "failure",
        what,
        "In a clone: git checkout healthgym_utils/checkpoints\n"
        "Elsewhere, install the package anew, as you did before.",
    )


def check_training() -> Finding:
    """Train a small model for a few seconds, and see whether it learns."""
    todo = (
        "Install PyTorch anew: python -m pip install --force-reinstall torch\n"
        "With a GPU, try without it: set the environment variable "
        "CUDA_VISIBLE_DEVICES to -1."
    )
    try:
        steps, seconds, before, after = train_briefly()
    except RuntimeError as error:
        why = str(error).partition(". ")[0]  # then comes advice to coders
        return Finding("failure", f"it broke off ({why})", todo)
    what = (
        f"{steps} steps in {seconds:.0f} s, loss {before:.2f} to {after:.2f}"
    )
    if not after < FALL * before:  # not a number, too
        return Finding("failure", f"{what}: it does not learn", todo)
    if seconds > 2 * SECONDS:
        return Finding(
            "warning",
            f"{what}: this is slow",
            "Close other programs and plug in the power supply; or share a "
            "computer, or use Colab (see the book).",
        )
    return Finding("ok", what)


def train_briefly(
    learning_rate: float = 3e-3,
) -> tuple[int, float, float, float]:
    """Train a small diffusion model for ``SECONDS``.

    Returns
    -------
    steps : int
        ``LEAST_STEPS`` or more.
    seconds : float
    before, after : float
        Loss on the same patients with the same noise.

    Raises
    ------
    RuntimeError
        If a gradient is not finite.
    """
    from healthgym_utils.data import load_art
    from healthgym_utils.diffusion import Diffusion, DiffusionSettings
    from healthgym_utils.preprocess import Preprocessor
    from healthgym_utils.schema import ART_SCHEMA
    from healthgym_utils.sequences import sequence_loader

    cohort = load_art("simulated", 50)
    x = Preprocessor(ART_SCHEMA).fit(cohort).transform(cohort)
    settings = DiffusionSettings(hidden=16, learning_rate=learning_rate)
    model = Diffusion(ART_SCHEMA, settings)
    loader = sequence_loader(x, batch_size=25)
    before = loss_of(model, x)
    started = time.perf_counter()
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for steps, (real, lengths) in enumerate(batches, start=1):
        model.train_step(real, lengths)
        seconds = time.perf_counter() - started
        if steps >= LEAST_STEPS and seconds >= SECONDS:
            return steps, seconds, before, loss_of(model, x)


def loss_of(model: Diffusion, x: Tensor) -> float:
    """Return a model's loss on sequences, with the same noise every time."""
    import torch

    random = torch.Generator().manual_seed(0)
    lengths = torch.full((len(x),), x.shape[1])
    x0, mask, statics = model.prepare(x, lengths)
    steps = model.settings.steps
    t = torch.randint(1, steps + 1, (len(x),), generator=random)
    noise = torch.randn(x0.shape, generator=random).to(x0.device)
    with torch.no_grad():
        return model.losses(x0, mask, statics, t, noise)["loss"].item()


CHECKS: tuple[tuple[str, Callable[[], Finding]], ...] = (
    ("Python", check_python),
    ("Packages", check_packages),
    ("Memory", check_memory),
    ("Device", check_device),
    ("Cache folder", check_cache),
    ("Network", check_network),
    ("Cohort", check_cohort),
    ("Trained models", check_models),
    ("Training", check_training),
)


def examine(check: Callable[[], Finding]) -> Finding:
    """Run a check; if it crashes, that is a failure."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return check()
    except ImportError as error:
        return Finding(
            "failure", f"not tried: {error}", "Mend Python and packages first."
        )
    except Exception as error:  # whatever it is, the other checks go on
        return Finding(
            "failure",
            f"the check crashed with {type(error).__name__}: {error}",
            "Show this line to your lecturer.",
        )


def describe(title: str, finding: Finding) -> str:
    """Lay a finding out in lines of 79 characters or fewer."""
    margin = " " * 9
    parts = [(f"{finding.status:9}{title}: {finding.what}", "", margin)]
    for line in finding.todo.splitlines():
        parts.append((line, f"{margin}-> ", f"{margin}   "))
    return "\n".join(
        textwrap.fill(
            text,
            WIDTH,
            initial_indent=first,
            subsequent_indent=later,
            break_on_hyphens=False,
        )
        for text, first, later in parts
    )


def verdict(findings: list[Finding]) -> str:
    """Sum up in one line."""
    statuses = [finding.status for finding in findings]
    failures, warned = statuses.count("failure"), statuses.count("warning")
    counts = f"failures: {failures}, warnings: {warned}"
    if failures:
        return f"Not ready ({counts}). Follow the arrows, then run this again."
    return f"Ready for class ({counts})."


def main() -> int:
    """Run all checks, and return the exit code: 1 if a class would fail."""
    argparse.ArgumentParser(
        prog="python -m healthgym_utils.doctor",
        description="Check that this computer is ready for a class. Exit "
        "code 1 if the class would fail, else 0.",
    ).parse_args()
    # Paths and messages may hold letters that a Windows pipe cannot.
    sys.stdout.reconfigure(errors="replace")
    print("Is this computer ready for a class? About 15 seconds.\n")
    findings = []
    for title, check in CHECKS:
        findings.append(examine(check))
        print(describe(title, findings[-1]), flush=True)
    print(f"\n{verdict(findings)}")
    return int(any(finding.status == "failure" for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
