"""Distances are what their definitions say, and chance is measured."""

import numpy as np
import pandas as pd
import pytest
from cohorts import MADE_UP, made_up_table
from scipy import stats

from healthgym_utils import metrics

GROUPS = ["ward", "ventilated"]


@pytest.fixture
def real():
    return made_up_table(MADE_UP, 20, 6, seed=1)


@pytest.fixture
def fake():
    return made_up_table(MADE_UP, 30, 4, seed=2)


def groups(**counts):
    """Build a table with so many rows of each ward."""
    wards = [ward for ward, count in counts.items() for _ in range(count)]
    return pd.DataFrame({"ward": wards})


def test_ks_is_the_largest_gap_between_distribution_functions(real, fake):
    found = metrics.ks_distances(real, fake, MADE_UP)
    assert list(found.index) == [f.name for f in MADE_UP.reals]
    for name, distance in found.items():
        a, b = real[name].to_numpy(), fake[name].to_numpy()
        points = np.union1d(a, b)[:, None]
        gaps = (a <= points).mean(axis=1) - (b <= points).mean(axis=1)
        assert distance == pytest.approx(np.abs(gaps).max())


def test_ks_knows_no_scale(real, fake):
    before = metrics.ks_distances(real, fake, MADE_UP)
    logs = [t.assign(lactate=np.log10(t["lactate"])) for t in (real, fake)]
    after = metrics.ks_distances(*logs, MADE_UP)
    assert after["lactate"] == pytest.approx(before["lactate"])


def test_total_variation_by_hand():
    real = groups(A=6, B=4)
    fake = groups(B=5, C=5)
    schema = MADE_UP
    tables = [
        t.assign(ward=t["ward"].map({"A": "W00", "B": "W01", "C": "W02"}))
        for t in (real, fake)
    ]
    for table in tables:
        table["ventilated"] = "no"
    found = metrics.total_variations(*tables, schema)
    assert found["ward"] == pytest.approx((0.6 + 0.1 + 0.5) / 2)
    assert found["ventilated"] == 0


def test_a_copy_is_at_zero_and_disjoint_cohorts_at_one(real):
    assert (metrics.ks_distances(real, real, MADE_UP) == 0).all()
    assert (metrics.total_variations(real, real, MADE_UP) == 0).all()
    same = metrics.coverage(real, real, GROUPS)
    assert same["joint_tv"] == same["mass_lost"] == 0
    assert same["cells_covered"] == same["minority_recall"] == 1
    assert same["entropy_ratio"] == 1
    far = real.assign(lactate=real["lactate"] + 1e6)
    assert metrics.ks_distances(real, far, MADE_UP)["lactate"] == 1


def test_coverage_by_hand():
    """Of B a quarter is kept, of C less, and D is too small to ask for."""
    real = groups(A=500, B=400, C=95, D=5)
    fake = groups(A=880, B=100, C=20)
    found = metrics.coverage(real, fake, ["ward"])
    assert found["joint_tv"] == pytest.approx((380 + 300 + 75 + 5) / 2000)
    assert found["cells_covered"] == pytest.approx(2 / 3)
    assert found["mass_lost"] == pytest.approx(0.095)
    assert found["minority_recall"] == pytest.approx((0.25 + 20 / 95) / 2)
    entropies = [
        stats.entropy([880, 100, 20]),
        stats.entropy([500, 400, 95, 5]),
    ]
    assert found["entropy_ratio"] == pytest.approx(entropies[0] / entropies[1])


def test_collapse_to_one_group():
    found = metrics.coverage(groups(A=50, B=30, C=20), groups(A=100), ["ward"])
    assert found["entropy_ratio"] == 0
    assert found["minority_recall"] == 0
    assert found["mass_lost"] == pytest.approx(0.5)


def test_an_invented_group_counts_in_the_distance():
    found = metrics.coverage(groups(A=100), groups(A=90, B=10), ["ward"])
    assert found["joint_tv"] == pytest.approx(0.1)
    assert found["cells_covered"] == 1


def test_floor_compares_disjoint_samples_of_one_cohort(real):
    seen = []

    def metric(a, b):
        seen.append((set(a["stay"]), set(b["stay"])))
        return metrics.ks_distances(a, b, MADE_UP)

    table = metrics.floor(metric, real, 8, draws=3, seed=5, patient="stay")
    assert table.shape == (3, len(MADE_UP.reals))
    for a, b in seen:
        assert len(a) == len(b) == 8
        assert not a & b
    assert len({tuple(sorted(a)) for a, _ in seen}) == 3
    again = metrics.floor(metric, real, 8, draws=3, seed=5, patient="stay")
    pd.testing.assert_frame_equal(table, again)


def test_floor_falls_with_the_number_of_patients():
    cohort = made_up_table(MADE_UP, 400, 2, seed=3)

    def mean_floor(patients):
        return metrics.floor(
            lambda a, b: metrics.ks_distances(a, b, MADE_UP),
            cohort,
            patients,
            draws=10,
            patient="stay",
        )["lactate"].mean()

    assert mean_floor(200) < mean_floor(20) / 2


@pytest.mark.parametrize("patients", [0, 11])
def test_floor_refuses_what_it_cannot_draw(real, patients):
    with pytest.raises(ValueError, match="the cohort has 20"):
        metrics.floor(lambda a, b: a, real, patients, patient="stay")
