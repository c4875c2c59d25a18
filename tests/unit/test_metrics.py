"""Distances are what their definitions say, and chance is measured."""

import numpy as np
import pandas as pd
import pytest
from cohorts import MADE_UP, by_hand, made_up_table
from scipy import stats

from healthgym_utils import metrics
from healthgym_utils.preprocess import EPSILON
from healthgym_utils.schema import ART_SCHEMA
from healthgym_utils.trajectories import Panel

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


def test_wasserstein_is_scipys_in_log10(real, fake):
    found = metrics.wasserstein_distances(real, fake, MADE_UP)
    logs = (np.log10(t["lactate"] + EPSILON) for t in (real, fake))
    assert found["lactate"] == pytest.approx(stats.wasserstein_distance(*logs))
    units = real["base_excess"], fake["base_excess"]
    expected = stats.wasserstein_distance(*units)
    assert found["base_excess"] == pytest.approx(expected)
    tenfold = real.assign(lactate=10 * real["lactate"] + 9 * EPSILON)
    found = metrics.wasserstein_distances(real, tenfold, MADE_UP)
    assert found["lactate"] == pytest.approx(1)


def test_rows_may_come_as_a_panel(real):
    """Two cohorts of as many months, for panels are compared so."""
    fake = made_up_table(MADE_UP, 30, 6, seed=4)
    folded = Panel.of(real, MADE_UP), Panel.of(fake, MADE_UP)
    for distances in (
        metrics.ks_distances,
        metrics.total_variations,
        metrics.wasserstein_distances,
    ):
        pd.testing.assert_series_equal(
            distances(*folded, MADE_UP),
            distances(real, fake, MADE_UP),
            atol=1e-4,
        )


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


def test_groups_are_counted_by_patient():
    """Rows agree, but in the second cohort wards change from hour to hour."""
    real = by_hand(ward=np.repeat([[0], [0], [1]], 6, axis=1))
    fake = by_hand(ward=[[0, 0, 0, 0, 1, 1]] * 3)
    rows = metrics.coverage(real, fake, ["ward"])
    patients = metrics.static_coverage(real, fake, MADE_UP, ["ward"])
    assert rows["joint_tv"] == pytest.approx(0)
    assert patients["joint_tv"] == pytest.approx(1 / 3)
    assert patients["mass_lost"] == pytest.approx(1 / 3)


def test_static_classes_are_crossed(real):
    table = made_up_table(ART_SCHEMA, 50, 3, seed=1)
    table["Gender"] = table.groupby("PatientID")["Gender"].transform("first")
    table["Ethnic"] = table.groupby("PatientID")["Ethnic"].transform("first")
    women = table[table["Gender"] == "Female"]
    found = metrics.static_coverage(table, women, ART_SCHEMA)
    once = table.drop_duplicates("PatientID")
    columns = ["Gender", "Ethnic"]
    first = women.drop_duplicates("PatientID")
    expected = metrics.coverage(once, first, columns)
    pd.testing.assert_series_equal(found, expected)
    with pytest.raises(ValueError, match="no static variable has classes"):
        metrics.static_coverage(real, real, MADE_UP)


def test_the_usual_class_is_the_one_of_most_months():
    table = by_hand(ward=[[3, 3, 1], [2, 5, 5], [4, 0, 2]])
    found = metrics.usual_classes(table, MADE_UP)
    assert found["ward"].tolist() == [3, 5, 0]
    assert found["ventilated"].tolist() == [0, 0, 0]


# --- Relations --------------------------------------------------------------


def test_rank_correlations_are_scipys(real):
    found = metrics.rank_correlations(real, MADE_UP)
    design = pd.get_dummies(real[["lactate", "ward"]], dtype=float)
    for label in ("W00", "W07"):
        expected = stats.spearmanr(design["lactate"], design[f"ward_{label}"])
        value = found.loc["lactate", f"ward={label}"]
        assert value == pytest.approx(expected.statistic)
    expected = stats.spearmanr(real["lactate"], real["age"]).statistic
    assert found.loc["age", "lactate"] == pytest.approx(expected)


def test_rank_correlation_distance_by_hand():
    """Of six values the ranks are turned round; one class is never seen."""
    up = np.arange(6.0).reshape(2, 3)
    schema = MADE_UP.subset(["lactate", "base_excess", "ventilated"])
    nobody, some = np.zeros((2, 3), int), np.array([[0, 0, 0], [1, 1, 1]])
    real = by_hand(lactate=up, base_excess=up, ventilated=some)
    fake = by_hand(lactate=up, base_excess=-up, ventilated=nobody)
    r = stats.spearmanr(up.ravel(), some.ravel()).statistic
    # Two for the labs; r for two labs and two classes; the classes are one
    # variable, and no pair.
    expected = (2 + 4 * r) / 5
    found = metrics.rank_correlation_distance(real, fake, schema)
    assert found == pytest.approx(expected)
    # Nothing is asked about what is constant in the real cohort.
    found = metrics.rank_correlation_distance(fake, real, schema)
    assert found == pytest.approx(2)


def test_associations_are_scipys(real):
    real = real.assign(
        ventilated=np.where(real["ward"] < "W07", real["ventilated"], "no")
    )
    found = metrics.associations(real, MADE_UP)
    assert (np.diag(found) == 1).all()
    crossed = pd.crosstab(real["ward"], real["ventilated"]).to_numpy()
    v = stats.contingency.association(crossed, method="cramer")
    assert found.loc["ward", "ventilated"] == pytest.approx(v)
    r = stats.pearsonr(real["base_excess"], real["age"]).statistic
    assert found.loc["base_excess", "age"] == pytest.approx(r, abs=1e-6)
    age = real["age"]
    means = age.groupby(real["ward"]).transform("mean")
    eta = np.sqrt(means.var(ddof=0) / age.var(ddof=0))
    assert found.loc["ward", "age"] == pytest.approx(eta)
    assert found.loc["age", "ward"] == found.loc["ward", "age"]


def test_constants_have_no_association():
    table = by_hand(base_excess=[[1.0, 2, 3]])
    found = metrics.associations(table, MADE_UP)
    pairs = found.to_numpy()[~np.eye(len(MADE_UP), dtype=bool)]
    assert np.isnan(pairs).all()


def test_association_distances_go_by_kind():
    half = np.array([[0, 0, 1, 1]])
    real = by_hand(lactate=np.exp(half), base_excess=half, ward=half)
    fake = by_hand(lactate=np.exp(half), base_excess=-half, ward=[[0, 1] * 2])
    found = metrics.association_distances(real, fake, MADE_UP)
    assert found["pearson"] == pytest.approx(2, abs=1e-5)
    assert found["correlation_ratio"] == pytest.approx(1)
    assert np.isnan(found["cramers_v"])


# --- Floors -----------------------------------------------------------------


def test_floor_can_draw_three_samples(real):
    seen = []

    def metric(*tables):
        seen.append([set(t["stay"]) for t in tables])
        return metrics.ks_distances(*tables[:2], MADE_UP)

    metrics.floor(metric, real, 6, draws=2, patient="stay", samples=3)
    for sets in seen:
        assert len(set.union(*sets)) == 18
    with pytest.raises(ValueError, match="3 times as many"):
        metrics.floor(metric, real, 7, patient="stay", samples=3)


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
