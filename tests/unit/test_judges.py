"""Judges find what is there to find, and privacy what lies too close."""

import numpy as np
import pandas as pd
import pytest
import torch
from cohorts import MADE_UP, by_hand, made_up_table
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from healthgym_utils import judges, metrics
from healthgym_utils.trajectories import Panel

SHAPE = 120, 8


def lactates(seed, shift=0.0, memory=0.0):
    """Build a cohort with one lab that moves; Gaussian on the log scale."""
    random = np.random.default_rng(seed)
    level = random.normal(size=(SHAPE[0], 1))
    noise = random.normal(size=SHAPE)
    log = memory * level + np.sqrt(1 - memory**2) * noise + shift
    return by_hand(lactate=np.exp(log))


# --- Classifier -------------------------------------------------------------


def test_a_judge_cannot_tell_samples_of_one_cohort_apart():
    score = metrics.two_sample_score(lactates(0), lactates(1), MADE_UP)
    assert abs(score) < 0.3


def test_a_judge_is_not_asked_about_patients_it_has_learnt_by_heart():
    a, b = (t[t["stay"] < 40] for t in (lactates(0), lactates(1)))
    score = metrics.two_sample_score(a, b, MADE_UP, steps=200)
    assert abs(score) < 0.5


def test_a_judge_sees_a_shift_and_what_only_trajectories_show():
    shifted = metrics.two_sample_score(lactates(0), lactates(1, 2), MADE_UP)
    assert shifted > 0.95
    same_margins = lactates(0, memory=0.95), lactates(1)
    assert metrics.two_sample_score(*same_margins, MADE_UP) > 0.9


def test_a_judge_is_the_same_again_and_leaves_random_numbers_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    a, b = lactates(0), lactates(1, 0.1)
    first = metrics.two_sample_score(a, b, MADE_UP, steps=5)
    assert (torch.rand(3) == expected).all()
    assert metrics.two_sample_score(a, b, MADE_UP, steps=5) == first
    assert metrics.two_sample_score(a, b, MADE_UP, steps=5, seed=1) != first


# --- Utility ----------------------------------------------------------------


def high(table):
    return table["lactate"] > 1


def test_a_cohort_of_the_same_kind_is_as_useful():
    """Also where a model that has seen the tested patients would excel."""
    a, b = lactates(0, memory=0.6), lactates(1, memory=0.6)
    gap = metrics.utility_gap(a, b, MADE_UP, high, ahead=2)
    assert abs(gap) < 0.05


def test_a_cohort_that_teaches_the_opposite_or_nothing():
    real = lactates(0, memory=0.9)
    ours = Panel.of(real, MADE_UP, high)
    opposite = Panel(ours.values, ~ours.outcome)
    useless = Panel(ours.values, np.ones(SHAPE, dtype=bool))
    gaps = [
        metrics.utility_gap(ours, fake, MADE_UP, ahead=2)
        for fake in (opposite, useless)
    ]
    assert gaps[0] > 0.7
    # The model of a constant outcome has an AUC of one half.
    assert 0.3 < gaps[1] < 0.5


def test_landmarks_pair_each_month_with_a_later_one():
    lactate = np.arange(1.0, 9)[None] * np.ones((2, 1))
    panel = Panel.of(
        by_hand(lactate=lactate), MADE_UP, lambda t: t["lactate"] > 4
    )
    x, y = judges._landmarks(panel, MADE_UP, 3)
    months = np.round(10 ** x[:, 0])
    assert months.tolist() == [1, 4, 1, 4]
    assert y.tolist() == [False, True, False, True]


def test_utility_refuses_what_it_cannot_do():
    a = lactates(0)
    with pytest.raises(ValueError, match="no outcome"):
        metrics.utility_gap(a, a, MADE_UP)
    with pytest.raises(ValueError, match="ahead is 1 to 7 with 8 months"):
        metrics.utility_gap(a, a, MADE_UP, high, ahead=8)
    with pytest.raises(ValueError, match="nothing to predict"):
        metrics.utility_gap(a, a, MADE_UP, lambda t: t["lactate"] > 0)


# --- Privacy ----------------------------------------------------------------


@pytest.fixture(scope="module")
def cohorts():
    """Training, held-out and synthetic stays, the latter two unlike."""
    return [
        made_up_table(MADE_UP, patients, 6, seed=patients)
        for patients in (50, 40, 30)
    ]


def test_distances_are_those_of_nearest_neighbors(cohorts):
    train, real, fake = (Panel.of(t, MADE_UP) for t in cohorts)
    points = [judges._points(p, train, MADE_UP) for p in (train, real, fake)]
    found = judges._neighbours(points[2], points[0])
    index = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(points[0])
    distances, which = index.kneighbors(points[2])
    assert found.closest == pytest.approx(distances)
    assert (found.which == which[:, 0]).all()
    back = NearestNeighbors(n_neighbors=1).fit(points[2])
    distances, _ = back.kneighbors(points[0])
    assert found.reverse == pytest.approx(distances[:, 0])
    # And the figures are what they say of these distances.
    figures = metrics.privacy(*cohorts, MADE_UP)
    to_real = judges._neighbours(points[2], points[1])
    label = np.repeat([1, 0], [50, 40])
    closeness = -np.concatenate([found.reverse, to_real.reverse])
    auc = roc_auc_score(label, closeness)
    assert figures["membership"] == pytest.approx(2 * auc - 1)
    closer = (found.closest[:, 0] < to_real.closest[:, 0]).mean()
    assert figures["closest record"] == pytest.approx(closer - 50 / 90)
    usual = judges._neighbours(points[1], points[0])
    ratio = np.median(found.closest[:, 0]) / np.median(usual.closest[:, 0])
    assert figures["distance ratio"] == pytest.approx(ratio)


def test_chunks_do_not_change_neighbours():
    random = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 700, 3, generator=random, dtype=torch.float64)
    found = judges._neighbours(a, b)
    distances = torch.cdist(a, b)
    assert found.closest[:, 0] == pytest.approx(distances.min(dim=1).values)
    assert found.reverse == pytest.approx(distances.min(dim=0).values)


def test_a_class_counts_as_a_standard_deviation():
    random = np.random.default_rng(0)
    lactate = np.exp(random.normal(size=(50, 4)))
    panel = Panel.of(by_hand(lactate=lactate), MADE_UP)
    points = judges._points(panel, panel, MADE_UP)
    scaled = panel["lactate"] / panel["lactate"].std()
    distance = np.linalg.norm(scaled[0] - scaled[1])
    assert torch.dist(points[0], points[1]) == pytest.approx(distance)
    moved = panel.values | {"ward": panel["ward"] + 3}
    moved = judges._points(Panel(moved), panel, MADE_UP)
    assert torch.dist(points[0], moved[0]) == pytest.approx(np.sqrt(4))


def test_a_copy_gives_itself_away(cohorts):
    train, real, _ = cohorts
    found = metrics.privacy(train, real, train, MADE_UP)
    assert found["exact copies"] == 1
    assert found["membership"] == 1
    assert found["closest record"] == pytest.approx(1 - 50 / 90)
    assert found["distance ratio"] == pytest.approx(0, abs=1e-6)
    assert found["neighbour ratio"] == pytest.approx(0, abs=1e-6)


def test_copies_are_counted_in_any_order_and_despite_rounding(cohorts):
    train, real, fake = cohorts
    copied = train[train["stay"] < 15]  # ten of them
    copied = copied.assign(
        stay=1000 - copied["stay"], lactate=copied["lactate"] * (1 + 1e-5)
    )
    mixed = pd.concat([fake, copied])
    found = metrics.privacy(train, real, mixed, MADE_UP)
    assert found["exact copies"] == pytest.approx(10 / 40)
    changed = copied.assign(lactate=copied["lactate"] * 1.01)
    mixed = pd.concat([fake, changed])
    assert metrics.privacy(train, real, mixed, MADE_UP)["exact copies"] == 0


def test_patients_who_were_seen_are_no_reference(cohorts):
    train, _, fake = cohorts
    with pytest.raises(ValueError, match="are training patients"):
        metrics.privacy(train, train, fake, MADE_UP)
