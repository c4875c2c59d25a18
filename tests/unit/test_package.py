"""The package stays thin: imports point one way, public names are few."""

import ast

import pytest

import healthgym_utils as hg
from notebooks import ROOT

PACKAGE = ROOT / "healthgym_utils"
# In the order that data flows; an import may only point to an earlier line.
ORDER = [
    "runtime",
    "schema",
    "simulate",
    "data",
    "sequences",
    "preprocess",
    "checkpoint",
    "training",
    "layers",
    "memory",
    "gan",
    "unet",
    "guardrails",
    "calibration",
    "diffusion",
    "pretrained",
    "trajectories",
    "judges",
    "baselines",
    "metrics",
    "structural",
    "plots",
    "doctor",
]


def imported(module):
    """Name the package's modules that a module imports."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            head, _, tail = node.module.partition(".")
            if head == "healthgym_utils":
                yield from [tail] if tail else [a.name for a in node.names]


def test_every_module_has_its_place():
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert modules == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_to_earlier_modules(module):
    earlier = ORDER[: ORDER.index(module)]
    assert set(imported(module)) <= set(earlier)


def test_public_names_exist_and_are_documented():
    for name in hg.__all__:
        assert getattr(hg, name).__doc__ or name.isupper(), name
