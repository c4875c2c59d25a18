"""Each plain baseline keeps what it says, and breaks what it says."""

import numpy as np
import pandas as pd
import pytest
from cohorts import MADE_UP, by_hand, made_up_table

import healthgym_utils as hg
from healthgym_utils import baselines, metrics
from healthgym_utils.schema import TableError

ALL = [
    baselines.copy,
    baselines.shuffle_rows,
    baselines.exchange_trajectories,
    baselines.markov_walk,
]
every_baseline = pytest.mark.parametrize("make", ALL)


def histories(table, name):
    """Name's histories, one a patient, whatever the order of patients."""
    values = table.sort_values(MADE_UP.ids)[name].to_numpy()
    months = table[MADE_UP.month].nunique()
    return sorted(map(tuple, values.reshape(-1, months)))


def rows(table):
    """All rows without identifiers, in an order of their own."""
    return sorted(table[MADE_UP.names].itertuples(index=False, name=None))


@every_baseline
def test_a_tidy_table_of_as_many_comes_back(make, made_up):
    fake = make(made_up, MADE_UP)
    MADE_UP.validate(fake)
    assert list(fake.columns) == [*MADE_UP.ids, *MADE_UP.names]
    grid = pd.MultiIndex.from_product([range(9), range(17)])
    assert list(fake[MADE_UP.ids].itertuples(index=False, name=None)) == list(
        grid
    )


@every_baseline
def test_the_seed_decides(make, made_up):
    once, again, other = (make(made_up, MADE_UP, seed=s) for s in (1, 1, 2))
    pd.testing.assert_frame_equal(once, again)
    assert not once.equals(other)


@every_baseline
def test_the_order_of_rows_does_not_matter(make, made_up):
    mixed = made_up.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(make(mixed, MADE_UP), make(made_up, MADE_UP))


@every_baseline
def test_a_patient_without_a_month_is_refused(make, made_up):
    with pytest.raises(TableError, match="patient 5"):
        make(made_up.drop(index=3), MADE_UP)


def test_a_copy_holds_the_same_patients(made_up):
    fake = baselines.copy(made_up, MADE_UP)
    for name in MADE_UP.names:
        assert histories(fake, name) == histories(made_up, name)
    assert rows(fake) == rows(made_up)
    assert not fake[MADE_UP.names].equals(made_up[MADE_UP.names])


def test_shuffled_rows_are_the_same_rows(made_up):
    fake = baselines.shuffle_rows(made_up, MADE_UP)
    assert rows(fake) == rows(made_up)
    assert histories(fake, "lactate") != histories(made_up, "lactate")


def test_exchanged_histories_are_whole_and_apart(made_up):
    fake = baselines.exchange_trajectories(made_up, MADE_UP)
    for name in MADE_UP.names:
        assert histories(fake, name) == histories(made_up, name)
    pairs = ["lactate", "base_excess"]
    both = [set(t[pairs].itertuples(index=False)) for t in (fake, made_up)]
    assert both[0].isdisjoint(both[1])


def test_a_chain_takes_only_steps_that_were_seen():
    """Ward 0 always leads to 1, 1 to 2 or back; nobody leaves 2 again."""
    ward = np.array([[0, 1, 2, 2, 2], [0, 1, 0, 1, 2]])
    train = by_hand(ward=np.tile(ward, (100, 1)))
    fake = baselines.markov_walk(train, MADE_UP)
    ours = metrics.transitions(train, MADE_UP, "ward").to_numpy()
    theirs = metrics.transitions(fake, MADE_UP, "ward").to_numpy()
    assert ((theirs > 0) <= (ours > 0)).all()
    share = [table[1, 0] / table[1].sum() for table in (ours, theirs)]
    assert share[1] == pytest.approx(share[0], abs=0.05)


def test_a_chain_stays_where_nobody_was_seen_to_go_on():
    """Ward 1 is reached in the last hour only; a longer stay needs a rule."""
    train = by_hand(ward=[[0, 0, 1], [1, 1, 1]])
    first, counts = np.array([0, 1]), np.array([[0, 2], [0, 0]])
    path = baselines._chain(first, counts, 4, np.random.default_rng(0))
    assert path.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]
    MADE_UP.validate(baselines.markov_walk(train, MADE_UP))


def test_a_walk_turns_back_at_the_ends_of_what_was_seen():
    lactate = 10.0 ** np.array([[0, 1, 2, 1, 0, 1], [2, 1, 0, 1, 2, 1]])
    train = by_hand(lactate=np.tile(lactate, (50, 1)))
    fake = baselines.markov_walk(train, MADE_UP)
    values = np.log10(fake["lactate"].to_numpy().reshape(100, 6))
    assert (values.min(), values.max()) == pytest.approx((0, 2), abs=1e-3)
    assert np.abs(np.diff(values)).round(2).max() == 1


def test_statics_are_drawn_together_and_stay():
    train = hg.load_art("simulated", n_patients=300)
    african = train["Ethnic"] == "African"
    gender = np.where(african, "Female", "Male")
    train["Gender"] = pd.Categorical(gender, ["Male", "Female"])

    def groups(make):
        fake = make(train, hg.ART_SCHEMA)
        assert metrics.statics_vary(fake, hg.ART_SCHEMA) == 0
        return set(fake[["Gender", "Ethnic"]].itertuples(index=False))

    real = groups(baselines.copy)
    assert groups(baselines.markov_walk) == real
    assert groups(baselines.exchange_trajectories) > real


def test_a_lab_that_never_changes_stays():
    train = by_hand(lactate=np.full((3, 4), 2.5))
    fake = baselines.markov_walk(train, MADE_UP)
    assert fake["lactate"].to_numpy() == pytest.approx(2.5)


def test_one_month_is_no_history():
    table = made_up_table(MADE_UP, 5, 1, seed=0)
    for make in ALL:
        assert len(make(table, MADE_UP)) == 5
