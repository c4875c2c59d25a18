"""Figures that train a judge or look for neighbours: use, and privacy.

They compare whole patients, so that what no single figure asks for, a mix of
variables over many months, counts too. They cost seconds, not milliseconds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from healthgym_utils.schema import Schema
from healthgym_utils.trajectories import (
    NO_OUTCOME,
    Cohort,
    Outcome,
    Panel,
    fold_both,
)

FOLDS = 2  # each patient is judged by a model that has not seen them
# Labs this close, in log10 where the schema says Box-Cox, are the same lab:
# preprocessing and single precision move a value by less.
SAME = 1e-3

# --- Can a judge tell them apart? -------------------------------------------


class Judge(nn.Module):
    """A GRU that reads a patient and says how synthetic they look.

    Parameters
    ----------
    width : int
        Columns of the design matrix.
    hidden : int
        Size of the GRU's state.
    """

    def __init__(self, width: int, hidden: int = 32) -> None:
        super().__init__()
        self.gru = nn.GRU(width, hidden, batch_first=True)
        self.score = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Score patients, (patients, months, width) to (patients,)."""
        states, _ = self.gru(x)
        return self.score(states.mean(dim=1)).squeeze(-1)


def two_sample_score(
    real: Cohort,
    fake: Cohort,
    schema: Schema,
    steps: int = 80,
    batch_size: int = 128,
    seed: int = 0,
) -> float:
    """Measure how well a classifier tells real patients from synthetic ones.

    ``2 AUC - 1`` of a GRU, trained on one half of the patients and scored on
    the other, and the other way round; the AUC is taken in each half. -1 to
    1, 0 is best, and what is below 0 is chance. Source: classifier
    two-sample test (Lopez-Paz & Oquab 2017). Pitfall: 0 says that *this*
    judge, after so few steps, found nothing; compare equal sizes and steps
    only. A classifier on summaries of the rows saturates at 1.

    Parameters
    ----------
    real, fake : DataFrame or Panel
    schema : Schema
    steps : int
        Of Adam, for each of the two judges; half of each batch is real.
    batch_size : int
    seed : int
        Of the halves, the judges and the batches.
    """
    ours, theirs = fold_both(real, fake, schema)
    x = [
        torch.from_numpy(_standardised(panel, ours, schema)).float()
        for panel in (ours, theirs)
    ]
    random = np.random.default_rng(seed)
    halves = [_halves(len(part), random) for part in x]
    scores = []
    for fold in range(FOLDS):
        seen = [
            part[half != fold] for part, half in zip(x, halves, strict=True)
        ]
        unseen = [
            part[half == fold] for part, half in zip(x, halves, strict=True)
        ]
        judge = _train_judge(*seen, steps, batch_size, seed + fold)
        with torch.no_grad():
            found = [judge(part).numpy() for part in unseen]
        scores.append(_advantage(found[1], found[0]))
    return float(np.mean(scores))


def _train_judge(
    real: Tensor, fake: Tensor, steps: int, batch_size: int, seed: int
) -> Judge:
    """Train to score synthetic patients higher."""
    # The caller's own random numbers go on as if no judge had been trained.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge(real.shape[2])
        adam = torch.optim.Adam(judge.parameters(), lr=1e-2)
        half = batch_size // 2
        label = (torch.arange(2 * half) >= half).float()
        for _ in range(steps):
            rows = [x[torch.randint(len(x), (half,))] for x in (real, fake)]
            loss = F.binary_cross_entropy_with_logits(
                judge(torch.cat(rows)), label
            )
            adam.zero_grad()
            loss.backward()
            adam.step()
    return judge


# --- Is it of use? ----------------------------------------------------------


def utility_gap(
    real: Cohort,
    fake: Cohort,
    schema: Schema,
    outcome: Outcome | None = None,
    ahead: int = 6,
    seed: int = 0,
) -> float:
    """Measure what a predictor loses by training on synthetic patients.

    A month predicts whether the outcome holds `ahead` months later. Two
    classifiers, one trained on real patients and one on as many synthetic
    ones, are tested on other real patients; the figure is the difference of
    their AUCs, averaged over the two halves of the real cohort. -1 to 1, 0
    is best. Source: train on synthetic, test on real (Esteban et al. 2017).
    Pitfall: an outcome that lasts predicts itself, so the figure asks little
    of the relations between variables.

    Parameters
    ----------
    real, fake : DataFrame or Panel
        Panels have to hold the outcome.
    schema : Schema
    outcome : callable or None
        Takes the tidy table, says which rows have the outcome, as
        ``lambda table: table["VL"] < 1000``; None with panels.
    ahead : int
        Months from the month that predicts; those are `ahead` apart too.
    seed : int
        Of the halves, and of who of the synthetic patients takes part.

    Raises
    ------
    ValueError
        If there is no outcome, it is the same for all real patients, or
        `ahead` leaves no month.
    """
    ours, theirs = fold_both(real, fake, schema, outcome)
    if ours.outcome is None or theirs.outcome is None:
        raise ValueError(NO_OUTCOME)
    if not 1 <= ahead < ours.shape[1]:
        raise ValueError(
            f"ahead is 1 to {ours.shape[1] - 1} with {ours.shape[1]} "
            f"months, got {ahead}"
        )
    random = np.random.default_rng(seed)
    half = _halves(ours.shape[0], random)
    gaps = []
    for fold in range(FOLDS):
        train = ours.take(np.flatnonzero(half != fold))
        test = ours.take(np.flatnonzero(half == fold))
        order = random.permutation(theirs.shape[0])
        synthetic = theirs.take(order[: train.shape[0]])
        aucs = [
            _predictive_auc(panel, test, schema, ahead)
            for panel in (train, synthetic)
        ]
        gaps.append(aucs[0] - aucs[1])
    return float(np.mean(gaps))


def _predictive_auc(
    train: Panel, test: Panel, schema: Schema, ahead: int
) -> float:
    """AUC on test patients of a model of the outcome some months ahead."""
    x, y = _landmarks(train, schema, ahead)
    x_test, y_test = _landmarks(test, schema, ahead)
    if y_test.min() == y_test.max():
        raise ValueError(
            "the outcome is the same in all real patients of a half: there "
            "is nothing to predict"
        )
    if y.min() == y.max():
        return 0.5  # a cohort that knows one answer only teaches nothing
    model = HistGradientBoostingClassifier(
        max_iter=50, early_stopping=False, random_state=0
    )
    return roc_auc_score(y_test, model.fit(x, y).predict_proba(x_test)[:, 1])


def _landmarks(
    panel: Panel, schema: Schema, ahead: int
) -> tuple[np.ndarray, np.ndarray]:
    """Every so many months what is known, and what holds later."""
    start = slice(0, panel.shape[1] - ahead, ahead)
    x = panel.design(schema)[:, start]
    y = panel.outcome[:, ahead::ahead]
    return x.reshape(-1, x.shape[2]), y.ravel()


# --- Is somebody in it? -----------------------------------------------------


def privacy(
    train: Cohort, real: Cohort, fake: Cohort, schema: Schema
) -> pd.Series:
    """Ask whether synthetic patients lie too close to training patients.

    Patients are points: all their months side by side, labs standardised,
    and another class counting as much as a lab that is one standard
    deviation off; distances are Euclidean. The held-out patients show how
    close two people of one population are anyway.

    Parameters
    ----------
    train : DataFrame or Panel
        The patients that the generator has seen.
    real : DataFrame or Panel
        Held-out patients of the same population.
    fake : DataFrame or Panel
    schema : Schema

    Returns
    -------
    Series
        ``membership``: 2 AUC - 1 of an attacker who takes patients for
        training patients if a synthetic one is close; -1 to 1, 0 is best
        (Chen et al. 2020, their full black-box attack).
        ``closest record``: share of synthetic patients that are closer to a
        training than to any held-out patient, less the share of training
        patients in both together; -1 to 1, 0 is best.
        ``distance ratio``: median distance to the closest training patient,
        of synthetic over that of held-out patients; 0 to infinity, 1 is
        best, below is too close (Park et al. 2018).
        ``neighbour ratio``: the same of the distance to the closest over
        that to the second closest training patient, which is small where
        somebody sits on one person; 0 to infinity, 1 is best (Zhao et al.
        2021).
        ``exact copies``: share of synthetic patients that have a training
        patient's classes and labs, the latter to 0.001, in all months; 0 to
        1, 0 is best.

    Raises
    ------
    ValueError
        If half the held-out patients are training patients.

    Notes
    -----
    Passing does not rule out leaks: distances to the closest record miss
    what stronger attacks find (arXiv 2505.01524), and the share of closest
    records is unstable in small cohorts.
    """
    seen, ours = fold_both(train, real, schema)
    ours, theirs = fold_both(ours, fake, schema)
    a, b, s = (_points(p, seen, schema) for p in (seen, ours, theirs))
    to_seen, to_ours = _neighbours(s, a), _neighbours(s, b)
    between = _neighbours(b, a)
    usual = np.median(between.closest[:, 0])
    if usual < SAME:
        raise ValueError(
            "half or more of the held-out patients are training patients: "
            "pass patients that the generator has not seen"
        )
    is_closer = to_seen.closest[:, 0] < to_ours.closest[:, 0]
    return pd.Series(
        {
            "membership": _advantage(-to_seen.reverse, -to_ours.reverse),
            "closest record": is_closer.mean() - len(a) / (len(a) + len(b)),
            "distance ratio": np.median(to_seen.closest[:, 0]) / usual,
            "neighbour ratio": np.median(to_seen.ratios)
            / np.median(between.ratios),
            "exact copies": _copies(seen.take(to_seen.which), theirs, schema),
        }
    )


class _Neighbours(NamedTuple):
    """The closest points of another set.

    Attributes
    ----------
    closest : ndarray, shape (points, 2)
        Distances to the closest one and the next.
    which : ndarray of int, shape (points,)
        Position of the closest one.
    reverse : ndarray, shape (others,)
        Distances from the others to the closest of the points.
    """

    closest: np.ndarray
    which: np.ndarray
    reverse: np.ndarray

    @property
    def ratios(self) -> np.ndarray:
        """Distance to the closest over that to the next; 0 if both are 0."""
        first, second = self.closest.T
        return first / np.maximum(second, np.finfo(float).tiny)


def _neighbours(points: Tensor, others: Tensor) -> _Neighbours:
    """Find neighbours in chunks, as all distances need gigabytes."""
    closest, which = [], []
    reverse = torch.full((len(others),), torch.inf, dtype=others.dtype)
    for chunk in points.split(512):
        distances = torch.cdist(chunk, others)
        found = distances.topk(2, dim=1, largest=False)
        closest.append(found.values)
        which.append(found.indices[:, 0])
        reverse = torch.minimum(reverse, distances.min(dim=0).values)
    return _Neighbours(
        torch.cat(closest).numpy(), torch.cat(which).numpy(), reverse.numpy()
    )


def _points(panel: Panel, reference: Panel, schema: Schema) -> Tensor:
    """Lay each patient's months side by side, in double precision.

    Distances come from a matrix product, which in single precision would
    take a copy for a neighbour.
    """
    x = _standardised(panel, reference, schema)
    for feature in schema.categoricals:
        # Two one-hot columns differ: their squares add up to one.
        x[..., schema.spans[feature.name]] *= np.sqrt(0.5)
    return torch.from_numpy(x.reshape(len(x), -1))


def _copies(originals: Panel, fake: Panel, schema: Schema) -> float:
    """Share of patients that are the original in the same position."""
    same = np.ones(fake.shape[0], dtype=bool)
    for feature in schema:
        gaps = np.abs(originals[feature.name] - fake[feature.name])
        same &= (gaps <= SAME).all(axis=1)
    return float(same.mean())


# --- Shared -----------------------------------------------------------------


def _standardised(
    panel: Panel, reference: Panel, schema: Schema
) -> np.ndarray:
    """Design matrix, reals by the mean and deviation of a reference."""
    x = panel.design(schema)
    for feature in schema.reals:
        known = reference[feature.name]
        column = schema.spans[feature.name].start
        x[..., column] -= known.mean()
        x[..., column] /= known.std() or 1.0
    return x


def _halves(patients: int, random: np.random.Generator) -> np.ndarray:
    """Deal patients to folds at random; shape (patients,)."""
    return random.permutation(patients) % FOLDS


def _advantage(positive: np.ndarray, negative: np.ndarray) -> float:
    """2 AUC - 1 of scores that should be higher for the first."""
    label = np.repeat([1, 0], [len(positive), len(negative)])
    return 2 * roc_auc_score(label, np.concatenate([positive, negative])) - 1
