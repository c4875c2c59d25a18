"""The scoreboard tells a copy, a shuffle and a sample of a cohort apart."""

import numpy as np
import pandas as pd
import pytest
from cohorts import MADE_UP, made_up_table

import healthgym_utils as hg
from healthgym_utils import metrics
from healthgym_utils.schema import suppressed

SCHEMA = hg.ART_SCHEMA
PATIENTS = 300
PRIVACY = [
    "membership",
    "closest record",
    "distance ratio",
    "neighbour ratio",
    "exact copies",
]
MARGINS = ["KS", "Wasserstein", "TV"]


@pytest.fixture(scope="module")
def cohort():
    table = hg.load_art("simulated", n_patients=4 * PATIENTS)
    return table[[*SCHEMA.ids, *SCHEMA.names]]


@pytest.fixture(scope="module")
def train(cohort):
    return cohort[cohort["PatientID"] < PATIENTS]


@pytest.fixture(scope="module")
def real(cohort):
    ids = cohort["PatientID"]
    return cohort[(ids >= PATIENTS) & (ids < 2 * PATIENTS)]


def figures(real, fake, train):
    return metrics.figures(real, fake, SCHEMA, train, suppressed)


@pytest.fixture(scope="module")
def floors(cohort):
    return metrics.floor(figures, cohort, PATIENTS, draws=3, samples=3)


def shuffled(table, together):
    """Shuffle rows: all variables alike, or each on its own."""
    random = np.random.default_rng(0)
    order = random.permutation(len(table))
    columns = {}
    for name in SCHEMA.names:
        order = order if together else random.permutation(len(table))
        columns[name] = table[name].array[order]
    return table.assign(**columns)


def exchanged(table):
    """Give whole trajectories of each variable to other patients."""
    random = np.random.default_rng(0)
    months = table["Timestep"].nunique()
    columns = {}
    for name in SCHEMA.names:
        patients = random.permutation(len(table) // months)
        rows = patients[:, None] * months + np.arange(months)
        columns[name] = table[name].array[rows.ravel()]
    return table.assign(**columns)


# --- Controls ---------------------------------------------------------------


@pytest.fixture(scope="module")
def copy_board(real, train, floors):
    return metrics.scoreboard(
        real, train, SCHEMA, train, suppressed, floors, bootstrap=10
    ).set_index("figure")


def test_a_copy_is_at_the_floor_but_fails_privacy(copy_board, floors):
    fidelity = copy_board.drop(index=PRIVACY)
    highest = floors.abs().max()
    # Three draws do not know all that chance can do.
    assert (fidelity["value"] <= 2 * highest[fidelity.index] + 0.02).all()
    value = copy_board["value"]
    assert value["exact copies"] == 1
    assert value["membership"] > 0.99
    assert value["closest record"] == pytest.approx(0.5)
    assert value["distance ratio"] < 0.01
    assert value["neighbour ratio"] < 0.01
    assert (copy_board.loc[PRIVACY, "ratio"] > 5).all()


def test_shuffled_rows_keep_margins_and_lose_time(real, train, floors):
    found = figures(real, shuffled(train, together=True), train)
    of_copy = figures(real, train, train)
    kept = [*MARGINS, "rank correlation", "Cramér's V"]
    assert (found[kept] - of_copy[kept]).abs().max() < 1e-6
    lost = {
        "transition TV": 0.3,
        "switch rate": 3,
        "statics vary": 0.99,
        "dwell time": 0.5,
        "ACF": 0.2,
        "patient sd": 0.4,
        "patient step": 0.6,
        "statics' joint TV": 0.3,
        "mass lost": 0.3,
        "C2ST": 0.95,
        "utility gap": 0.2,
        "Kaplan-Meier": 0.1,
    }
    for name, least in lost.items():
        assert found[name] > max(least, 2 * floors[name].abs().max()), name
    assert abs(found["membership"]) < 0.2
    assert found["exact copies"] == 0


def test_independent_columns_lose_relations(real, train, floors):
    fake = shuffled(train, together=False)
    ours, theirs = (metrics.Panel.of(t, SCHEMA) for t in (real, fake))
    found = metrics.association_distances(ours, theirs, SCHEMA)
    names = ["Pearson", "Cramér's V", "correlation ratio"]
    assert (found.to_numpy() > 2 * floors[names].mean().to_numpy()).all()
    distance = metrics.rank_correlation_distance(ours, theirs, SCHEMA)
    assert distance > 2 * floors["rank correlation"].mean()
    alike = metrics.ks_distances(train, fake, SCHEMA)
    assert (alike == 0).all()


def test_exchanged_trajectories_keep_time_and_lose_relations(
    real, train, floors
):
    ours, theirs, copied = (
        metrics.Panel.of(t, SCHEMA, suppressed)
        for t in (real, exchanged(train), train)
    )
    for keeps in (
        metrics.acf_distance,
        metrics.survival_distance,
        metrics.switch_distances,
        metrics.transition_distances,
    ):
        of_copy = np.asarray(keeps(ours, copied, SCHEMA))
        found = np.asarray(keeps(ours, theirs, SCHEMA))
        assert found == pytest.approx(of_copy), keeps.__name__
    assert metrics.statics_vary(theirs, SCHEMA) == 0
    cycle = metrics.cycle_distance(ours, theirs, SCHEMA)
    assert cycle > 1.5 * floors["cycle"].mean()
    kinds = metrics.association_distances(ours, theirs, SCHEMA)
    assert kinds["cramers_v"] > 2 * floors["Cramér's V"].mean()
    assert metrics.two_sample_score(ours, theirs, SCHEMA) > 0.2


# --- The board --------------------------------------------------------------


def test_the_board_is_tidy(copy_board, floors):
    assert list(copy_board.columns) == [
        "value",
        "low",
        "high",
        "floor",
        "ratio",
        "best",
    ]
    assert list(copy_board.index) == list(floors.columns)
    ratios = ["distance ratio", "neighbour ratio"]
    assert (copy_board.loc[ratios, "best"] == 1).all()
    assert (copy_board["best"].drop(ratios) == 0).all()
    assert copy_board["value"].notna().all()
    assert copy_board["floor"].to_numpy() == pytest.approx(
        floors.mean().to_numpy()
    )


def test_ratios_are_distances_from_the_best_over_chance(copy_board, floors):
    kept = copy_board["value"]["KS"] / floors["KS"].mean()
    assert copy_board["ratio"]["KS"] == pytest.approx(kept)
    far = 1 - copy_board["value"]["distance ratio"]
    typical = (floors["distance ratio"] - 1).abs().mean()
    assert copy_board["ratio"]["distance ratio"] == pytest.approx(
        far / typical
    )
    assert copy_board["ratio"]["statics vary"] == 1
    assert copy_board["ratio"]["exact copies"] == np.inf


def test_intervals_are_of_quick_figures(copy_board):
    slow = ["C2ST", "utility gap", *PRIVACY]
    assert copy_board.loc[slow, ["low", "high"]].isna().all(axis=None)
    quick = copy_board.drop(index=slow)
    assert (quick["low"] <= quick["value"]).all()
    assert (quick["value"] <= quick["high"]).all()
    assert (quick["low"] >= 0).all()
    wide = (quick["high"] - quick["low"]).drop("statics vary")
    assert (wide > 0).all()


def test_intervals_narrow_as_cohorts_grow():
    def spread(patients):
        real, fake = (
            made_up_table(MADE_UP, patients, 6, seed=s) for s in (1, 2)
        )
        ours, theirs = (metrics.Panel.of(t, MADE_UP) for t in (real, fake))
        return metrics._resampled(ours, theirs, MADE_UP, 2, 30, seed=0)["KS"]

    assert spread(400) < 0.6 * spread(40)


def test_another_cohort_has_a_scoreboard_too():
    """Nothing is HIV's: no static classes, other identifiers, hours."""
    real, fake, train = (
        made_up_table(MADE_UP, 60, 12, seed=s) for s in range(3)
    )
    board = hg.scoreboard(real, fake, MADE_UP, bootstrap=2).set_index("figure")
    assert "statics' joint TV" not in board.index
    assert not {"Kaplan-Meier", "utility gap", *PRIVACY} & set(board.index)
    assert board["value"].notna().all()
    assert board[["floor", "ratio"]].isna().all(axis=None)
    assert board["value"]["C2ST"] < 0.6
    again = hg.scoreboard(
        real,
        fake,
        MADE_UP,
        train,
        lambda table: table["lactate"] > 3,
        run=1,
        ahead=2,
        bootstrap=0,
    ).set_index("figure")
    assert {"Kaplan-Meier", "utility gap", *PRIVACY} < set(again.index)
    shared = board.index
    pd.testing.assert_series_equal(again["value"][shared], board["value"])
    assert again["low"].isna().all()
