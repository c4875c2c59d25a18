"""Figures of trajectories are what their definitions say."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from cohorts import MADE_UP, by_hand, made_up_table
from scipy import signal, stats

from healthgym_utils import baselines, metrics
from healthgym_utils.preprocess import EPSILON
from healthgym_utils.schema import ART_SCHEMA, TableError
from healthgym_utils.simulate import simulate_art
from healthgym_utils.trajectories import (
    Panel,
    Relations,
    Times,
    ks,
)

DISTANCES = (
    metrics.trend_distance,
    metrics.cycle_distance,
    metrics.transition_distances,
    metrics.switch_distances,
    metrics.dwell_distances,
    metrics.acf_distance,
    metrics.ccf_distance,
    metrics.summary_distances,
    metrics.association_distances,
    metrics.rank_correlation_distance,
)


@pytest.fixture(scope="module")
def art():
    """Eighty patients of two years."""
    cohort = simulate_art(80, 24, seed=3)
    return cohort[[*ART_SCHEMA.ids, *ART_SCHEMA.names]]


@pytest.fixture(scope="module")
def other():
    cohort = simulate_art(90, 24, seed=4)
    return cohort[[*ART_SCHEMA.ids, *ART_SCHEMA.names]]


# --- Panels -----------------------------------------------------------------


def test_a_panel_holds_the_table_in_any_order(made_up):
    panel = Panel.of(made_up.sample(frac=1, random_state=1), MADE_UP)
    assert panel.shape == (9, 17)
    stay = made_up[made_up["stay"] == made_up["stay"].unique()[4]]
    lactate = np.log10(stay["lactate"] + EPSILON)
    assert panel["lactate"][4] == pytest.approx(lactate.to_numpy(), abs=1e-5)
    assert panel["age"][4] == pytest.approx(stay["age"].to_numpy())
    wards = np.asarray(MADE_UP["ward"].classes)[panel["ward"][4]]
    assert list(wards) == list(stay["ward"])


def test_a_panel_knows_the_outcome_and_takes_patients(made_up):
    panel = Panel.of(made_up, MADE_UP, lambda table: table["age"] > 50)
    assert (panel.outcome == (panel["age"] > 50)).all()
    twice = panel.take(np.array([3, 3, 0]))
    for name in MADE_UP.names:
        assert (twice[name] == panel[name][[3, 3, 0]]).all()
    assert (twice.outcome == panel.outcome[[3, 3, 0]]).all()


def test_design_agrees_with_the_preprocessor_on_classes(made_up, x):
    design = Panel.of(made_up, MADE_UP).design(MADE_UP)
    for feature in MADE_UP.categoricals:
        span = MADE_UP.spans[feature.name]
        assert (design[..., span] == x[..., span].numpy()).all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_ragged_table_is_refused_by_name(distance):
    schema, table = ART_SCHEMA, made_up_table(ART_SCHEMA, 6, 5, seed=1)
    with pytest.raises(TableError, match="patient 7 lacks month 3"):
        distance(table.drop(index=13), table, schema)


def test_follow_up_has_to_be_the_same(art):
    short = art[art["Timestep"] < 23]
    with pytest.raises(TableError, match="24 months and the other 23"):
        metrics.acf_distance(art, short, ART_SCHEMA)
    first = art[art["Timestep"] == 0]
    with pytest.raises(TableError, match="two months or more"):
        metrics.switch_distances(first, first, ART_SCHEMA)


@pytest.mark.parametrize("distance", DISTANCES)
def test_who_is_who_does_not_matter(distance, art, other):
    """Distances know no names of patients; a panel gives what tables do."""
    names = art["PatientID"].unique()
    renamed = art.assign(
        PatientID=art["PatientID"].map(
            dict(zip(names, names[::-1], strict=True))
        )
    )
    assert np.max(distance(art, renamed, ART_SCHEMA)) < 1e-9
    folded = Panel.of(renamed, ART_SCHEMA), Panel.of(other, ART_SCHEMA)
    found = np.asarray(distance(*folded, ART_SCHEMA))
    assert found == pytest.approx(
        np.asarray(distance(art, other, ART_SCHEMA)), abs=1e-6, nan_ok=True
    )
    assert np.nanmax(found) > 0


def test_ks_is_scipys(art, other):
    a, b = art["VL"].to_numpy(), other["VL"].to_numpy()
    a, b = np.round(a, -2), np.round(b, -2)  # with ties
    assert ks(a, b) == pytest.approx(stats.ks_2samp(a, b).statistic)


# --- Relations --------------------------------------------------------------


def columns_of(cohort):
    """Changing columns of the design matrix, a series a patient, by hand."""
    vl, cd4 = (np.log10(cohort[n] + EPSILON) for n in ("VL", "CD4"))
    columns = {"VL": vl, "CD4": cd4}
    for name in ("Base_Drug_Combo", "Extra_PI", "Extra_pk_En"):
        classes = ART_SCHEMA[name].classes
        for label in classes[1:] if len(classes) == 2 else classes:
            columns[f"{name}={label}"] = (cohort[name] == label).astype(float)
    return {
        name: values.to_numpy().reshape(-1, 24)
        for name, values in columns.items()
    }


def slowly(cohort, of_patient, of_pair):
    """Visit each pair of columns, and each patient in whom both change."""
    columns = columns_of(cohort)
    found = {}
    for a, b in combinations(columns, 2):
        if a.partition("=")[0] == b.partition("=")[0]:
            continue
        each = [
            of_patient(x, y)
            for x, y in zip(columns[a], columns[b], strict=True)
            if np.ptp(x) > 0 and np.ptp(y) > 0
        ]
        if len(each) > 2:
            found[a, b] = of_pair(each), len(each)
    return found


def slope(y):
    return stats.linregress(np.arange(len(y)), y).slope


def test_trends_are_spearman_of_fitted_slopes(art):
    slow = slowly(
        art,
        lambda x, y: (slope(x), slope(y)),
        lambda each: stats.spearmanr(np.array(each)).statistic,
    )
    found = metrics.trends(art, ART_SCHEMA)
    assert len(slow) > 20
    for (a, b), (value, patients) in slow.items():
        assert found.values.loc[a, b] == pytest.approx(value, abs=1e-6)
        assert found.patients.loc[a, b] == patients
        assert found.values.loc[b, a] == found.values.loc[a, b]


def test_cycles_average_detrended_correlations_by_fisher(art):
    def correlate(x, y):
        r = np.corrcoef(signal.detrend(x), signal.detrend(y))[0, 1]
        return np.arctanh(np.clip(r, -0.999999, 0.999999))

    slow = slowly(art, correlate, lambda each: np.tanh(np.mean(each)))
    found = metrics.cycles(art, ART_SCHEMA)
    for (a, b), (value, patients) in slow.items():
        assert found.values.loc[a, b] == pytest.approx(value, abs=1e-5)
        assert found.patients.loc[a, b] == patients


def test_straight_lines_vote(art):
    """Their correlation is 1 or -1, so its mean says how many agree."""

    def correlate(x, y):
        lines = [v - signal.detrend(v) for v in (x, y)]
        return np.corrcoef(*lines)[0, 1]

    slow = slowly(art, correlate, np.mean)
    found = metrics.trend_agreements(art, ART_SCHEMA)
    assert len(slow) > 20
    for (a, b), (value, patients) in slow.items():
        assert found.values.loc[a, b] == pytest.approx(value, abs=1e-6)
        assert found.patients.loc[a, b] == patients


@pytest.mark.parametrize("window", [1, 5])
def test_smooth_trends_correlate_moving_averages(art, window):
    def correlate(x, y):
        parts = [np.convolve(v, np.ones(window), "valid") for v in (x, y)]
        r = np.corrcoef(*parts)[0, 1]
        return np.arctanh(np.clip(r, -0.999999, 0.999999))

    slow = slowly(art, correlate, lambda each: np.tanh(np.mean(each)))
    found = metrics.smooth_trends(art, ART_SCHEMA, window)
    for (a, b), (value, patients) in slow.items():
        assert found.values.loc[a, b] == pytest.approx(value, abs=1e-4)
        assert found.patients.loc[a, b] == patients


def test_windows_have_to_fit(art):
    for window in (0, 60):
        with pytest.raises(ValueError, match="window is 1 to"):
            metrics.smooth_trends(art, ART_SCHEMA, window)


def test_distances_of_relations_are_zero_for_one_cohort_alone(art):
    strangers = baselines.exchange_trajectories(art, ART_SCHEMA, 0)
    for distance in (
        metrics.agreement_distance,
        metrics.smooth_trend_distance,
        metrics.trend_distance,
        metrics.cycle_distance,
    ):
        assert distance(art, art, ART_SCHEMA) == 0
        assert distance(art, strangers, ART_SCHEMA) > 0.01


def test_columns_of_one_variable_are_no_pair(art):
    for found in (
        metrics.trends(art, ART_SCHEMA),
        metrics.trend_agreements(art, ART_SCHEMA),
        metrics.smooth_trends(art, ART_SCHEMA),
        metrics.cycles(art, ART_SCHEMA),
    ):
        drug = found.patients.filter(like="Extra_PI=").filter(
            like="Extra_PI=", axis=0
        )
        assert (drug.to_numpy() == 0).all()


def test_lines_and_constants_have_no_cycle():
    hours = np.arange(10.0)
    wave = np.sin(hours)
    table = by_hand(
        base_excess=[3 * hours, wave, wave],
        lactate=np.exp([wave, -wave, 0 * hours]),
    )
    found = metrics.cycles(table, MADE_UP)
    assert found.patients.loc["lactate", "base_excess"] == 1
    assert found.values.loc["lactate", "base_excess"] < -0.99


def relations(value, patients):
    names = ["a", "b"]
    values = [[np.nan, value], [value, np.nan]]
    counts = [[0, patients], [patients, 0]]
    return Relations(
        pd.DataFrame(values, names, names), pd.DataFrame(counts, names, names)
    )


def test_a_pair_counts_if_enough_real_patients_inform_it():
    fake = relations(0.1, 50)
    assert relations(0.4, 30).distance(fake) == pytest.approx(0.3)
    assert np.isnan(relations(0.4, 29).distance(fake))


def test_a_cohort_without_informative_patients_has_no_relation():
    assert relations(0.4, 30).distance(relations(np.nan, 0)) == 0.4


def test_pairs_weigh_as_their_real_patients():
    names = ["a", "b", "c"]
    counts = pd.DataFrame([[0, 90, 30], [90, 0, 0], [30, 0, 0]], names, names)
    ours = Relations(pd.DataFrame(0.0, names, names), counts)
    values = pd.DataFrame([[0, 0.4, 0.8], [0.4, 0, 1], [0.8, 1, 0]])
    theirs = Relations(values.set_axis(names).set_axis(names, axis=1), counts)
    assert ours.distance(theirs) == pytest.approx((90 * 0.4 + 30 * 0.8) / 120)


# --- Classes ----------------------------------------------------------------


def test_transitions_by_hand():
    table = by_hand(ward=[[0, 0, 1, 2], [2, 2, 2, 0]])
    counts = metrics.transitions(table, MADE_UP, "ward")
    expected = np.zeros((12, 12), dtype=int)
    expected[[0, 0, 1, 2], [0, 1, 2, 0]] = 1
    expected[2, 2] = 2
    assert (counts.to_numpy() == expected).all()
    assert list(counts.index) == list(MADE_UP["ward"].classes)


def test_transition_distance_by_hand():
    real = by_hand(ward=[[0, 0, 1, 1, 1], [2, 2, 2, 2, 2]])
    fake = by_hand(ward=[[0, 1, 1, 0, 1], [1, 1, 1, 1, 1]])
    # From 0: half stay, against none; from 1: all stay, against five of six;
    # ward 2 is never seen. The real cohort is there 2, 2 and 4 times.
    expected = (2 * 0.5 + 2 * 1 / 6 + 4 * 1) / 8
    found = metrics.transition_distances(real, fake, MADE_UP)
    assert found["ward"] == pytest.approx(expected)
    assert found["ventilated"] == 0


def test_switch_distance_by_hand():
    real = by_hand(ward=[[0, 0, 1, 1, 1], [2, 2, 2, 2, 3]])
    fake = by_hand(ward=[[0, 1, 0, 1, 0], [2, 2, 2, 2, 2], [4, 4, 4, 4, 4]])
    found = metrics.switch_distances(real, fake, MADE_UP)
    assert found["ward"] == pytest.approx(np.log((4.5 / 12) / (2.5 / 8)))
    still = by_hand(ward=np.ones((2, 5), dtype=int))
    found = metrics.switch_distances(real, still, MADE_UP)
    assert found["ward"] == pytest.approx(np.log(2.5 / 0.5))
    assert found["ventilated"] == 0


def test_sticky_chains_hide_in_the_transitions_only():
    """What makes the switch rate needed: the diagonal dominates."""
    random = np.random.default_rng(0)

    def chain(hazard):
        leaves = random.random((300, 60)) < hazard
        return by_hand(ward=leaves.cumsum(axis=1) % 12)

    cohorts = chain(0.04), chain(0.02)
    transition = metrics.transition_distances(*cohorts, MADE_UP)["ward"]
    switch = metrics.switch_distances(*cohorts, MADE_UP)["ward"]
    assert transition < 0.03
    assert switch == pytest.approx(np.log(2), abs=0.15)


def test_statics_that_vary_by_hand():
    ages = np.full((4, 5), 40.0)
    ages[1, 2] = 41
    ages[3, 4] = 39
    assert metrics.statics_vary(by_hand(age=ages), MADE_UP) == 0.5
    assert metrics.statics_vary(by_hand(ward=[[0, 1]]), MADE_UP) == 0
    schema = MADE_UP.subset(["lactate"])
    assert np.isnan(metrics.statics_vary(by_hand(ward=[[0, 1]]), schema))


def test_dwell_times_by_hand():
    """Two stays of one hour and one of three end; others are cut off."""
    ward = [[0, 1, 2, 2, 2, 3], [5, 5, 5, 5, 5, 5]]
    found = metrics.dwell_distances(
        by_hand(ward=ward), by_hand(ward=np.ones((2, 6), int)), MADE_UP
    )
    # At risk 5 at hour 1, of whom two leave and one is cut off; 2 at hour 3.
    curve = np.array([1, 3 / 5, 3 / 5, 3 / 10, 3 / 10, 3 / 10, 3 / 10])
    assert found["ward"] == pytest.approx((1 - curve).mean())
    assert found["ventilated"] == 0


# --- Labs -------------------------------------------------------------------


def slow_lagged(early, late, lag):
    a, b = early - early.mean(), late - late.mean()
    products = [a[t] * b[t + lag] for t in range(len(a) - lag)]
    return sum(products) / np.sqrt((a @ a) * (b @ b))


def test_autocorrelations_are_the_usual_estimator(art):
    found = metrics.autocorrelations(art, ART_SCHEMA, lags=5)
    vl = columns_of(art)["VL"]
    assert list(found.index) == [1, 2, 3, 4, 5]
    for lag in found.index:
        expected = np.mean([slow_lagged(x, x, lag) for x in vl])
        assert found.loc[lag, "VL"] == pytest.approx(expected, abs=1e-5)


def test_cross_correlations_point_forward_in_time(art):
    found = metrics.cross_correlations(art, ART_SCHEMA, lags=3)
    columns = columns_of(art)
    pairs = zip(columns["VL"], columns["CD4"], strict=True)
    expected = np.mean([slow_lagged(x, y, 2) for x, y in pairs])
    assert found.loc[2, ("VL", "CD4")] == pytest.approx(expected, abs=1e-5)
    pulse = np.zeros((1, 12))
    pulse[0, 4] = 1
    table = by_hand(base_excess=pulse, lactate=np.exp(np.roll(pulse, 3)))
    found = metrics.cross_correlations(table, MADE_UP, lags=5)
    assert found["base_excess", "lactate"].idxmax() == 3
    assert found["base_excess", "lactate"].max() > 0.95


def test_patients_whose_lab_is_constant_have_no_autocorrelation():
    wave = np.sin(np.arange(9.0))
    alone = by_hand(base_excess=[wave])
    both = by_hand(base_excess=[wave, np.ones(9)])
    found = [
        metrics.autocorrelations(t, MADE_UP)["base_excess"]
        for t in (alone, both)
    ]
    pd.testing.assert_series_equal(*found)
    assert len(found[0]) == 8  # no lag is longer than the follow-up
    assert metrics.autocorrelations(alone, MADE_UP)["lactate"].isna().all()


def test_summaries_are_of_patients_and_steps_are_absolute():
    up = [[0.0, 1, 2, 3], [0, 0, 0, 0]]
    zigzag = [[0.0, 3, 0, 3], [0, 0, 0, 0]]
    found = metrics.summary_distances(
        by_hand(base_excess=up), by_hand(base_excess=zigzag), MADE_UP
    ).loc["base_excess"]
    assert found["mean"] == 0
    assert found["sd"] == found["step"] == 0.5
    assert list(found.index) == ["mean", "sd", "step"]


# --- Time to an outcome -----------------------------------------------------


def low(table):
    return table["base_excess"] < 0


def test_an_event_is_a_run_by_hand():
    table = by_hand(
        base_excess=[
            [-1, 1, -1, -1, 1],  # a single month first
            [-1, -1, -1, 1, 1],
            [1, -1, 1, -1, 1],  # never two
            [1, 1, 1, -1, -1],
        ]
    )
    found = metrics.times_to(table, MADE_UP, low)
    assert found.months.tolist() == [2, 0, 3, 3]
    assert found.happened.tolist() == [True, True, False, True]
    one = metrics.times_to(table, MADE_UP, low, run=1)
    assert one.months.tolist() == [0, 0, 1, 3]
    assert one.happened.all()


def test_an_event_needs_an_outcome_and_months():
    table = by_hand(base_excess=np.ones((2, 4)))
    with pytest.raises(ValueError, match="no outcome"):
        metrics.times_to(table, MADE_UP, None)
    with pytest.raises(ValueError, match="1 to the 4 months there are"):
        metrics.times_to(table, MADE_UP, low, run=5)


MONTHS = np.array([6, 6, 6, 7, 10, 13, 16, 6, 9, 10, 11, 17, 19, 20])
HAPPENED = np.arange(14) < 7


def test_survival_by_hand():
    """Some of the remission times of Freireich et al. (1963), 6-MP."""
    curve = metrics.survival(Times(MONTHS, HAPPENED), 21)
    assert (curve[:6] == 1).all()
    after_6 = 1 - 3 / 14
    assert curve[6] == pytest.approx(after_6)
    assert curve[9] == pytest.approx(after_6 * (1 - 1 / 10))
    assert curve[10] == pytest.approx(after_6 * 0.9 * (1 - 1 / 8))


def test_survival_is_scipys():
    curve = metrics.survival(Times(MONTHS, HAPPENED), 21)
    data = stats.CensoredData.right_censored(MONTHS, ~HAPPENED)
    expected = stats.ecdf(data).sf.evaluate(np.arange(21))
    assert curve == pytest.approx(expected)


def test_survival_distance_by_hand():
    real = by_hand(base_excess=[[-1, -1, 1, 1], [1, -1, -1, 1]])
    fake = by_hand(base_excess=[[-1, -1, 1, 1], [1, 1, 1, 1]])
    # 1/2, 0, 0 against 1/2, 1/2, 1/2.
    found = metrics.survival_distance(real, fake, MADE_UP, low)
    assert found == pytest.approx(1 / 3)


def test_log_rank_is_mantels(art, other):
    """As Mantel's formula, month by month; lifelines 0.30.3 agrees."""

    def outcome(table):
        return table["VL"] < 1000

    a, b = (metrics.times_to(t, ART_SCHEMA, outcome) for t in (art, other))
    gap = variance = 0.0
    for month in range(23):
        n = (a.months >= month).sum(), (b.months >= month).sum()
        d = [((t.months == month) & t.happened).sum() for t in (a, b)]
        total, events = sum(n), sum(d)
        gap += d[0] - events * n[0] / total
        if total > 1:
            share = n[0] / total
            variance += (
                events * share * (1 - share) * (total - events) / (total - 1)
            )
    found = metrics.log_rank(art, other, ART_SCHEMA, outcome)
    assert found["statistic"] == pytest.approx(gap**2 / variance)
    p_value = stats.chi2.sf(gap**2 / variance, df=1)
    assert found["p_value"] == pytest.approx(p_value)
