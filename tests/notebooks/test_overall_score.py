"""Notebook 27's overall score is that of sdmetrics.

The library asks for an older pandas than this book has, so that the two
cannot be installed together. Its numbers were made once, by

    QualityReport().generate(real, fake, metadata)

of sdmetrics 0.32.0 with pandas 2.3.3, on the tables made here: its score, and
how many pairs it used.
"""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import healthgym_utils as hg
from notebooks import paths, read

COLUMNS = hg.ART_SCHEMA.names
EXPECTED = {
    "other patients": (0.833194444, 6),
    "independent columns": (0.811111111, 6),
    "tied labs": (0.850782828, 11),
    "tied labs, independent": (0.804154002, 11),
}


@pytest.fixture(scope="module")
def overall_score():
    """The notebook's own function."""
    (path,) = paths(["27"])
    (source,) = (
        cell.source
        for cell in read(path).cells
        if cell.cell_type == "code" and "def overall_score" in cell.source
    )
    names = {
        "SCHEMA": hg.ART_SCHEMA,
        "combinations": combinations,
        "metrics": hg.metrics,
        "np": np,
        "pd": pd,
        "stats": stats,
    }
    exec(source, names)
    return names["overall_score"]


def halves():
    cohort = hg.load_art("simulated", 120)[[*COLUMNS, "PatientID"]]
    order = cohort["PatientID"].rank(method="dense")
    return cohort[order > 60][COLUMNS], cohort[order <= 60][COLUMNS]


def tied(table):
    """Labs that depend on each other and on gender: more pairs count."""
    cd4 = table["CD4"] + 3000.0 * (table["Gender"] == "Female")
    return table.assign(CD4=cd4, VL=50 + cd4 / 100)


def dealt(table):
    rng = np.random.default_rng(0)
    columns = {n: rng.permutation(table[n].to_numpy()) for n in COLUMNS}
    return table.assign(**columns).astype(table.dtypes)


def cases():
    real, other = halves()
    return {
        "other patients": (real, other),
        "independent columns": (real, dealt(other)),
        "tied labs": (tied(real), tied(other)),
        "tied labs, independent": (tied(real), dealt(tied(other))),
    }


@pytest.mark.parametrize("name", EXPECTED)
def test_equals_sdmetrics(name, overall_score):
    score, pairs = overall_score(*cases()[name])
    assert score == pytest.approx(EXPECTED[name][0], abs=1e-6)
    assert len(pairs) == EXPECTED[name][1]
