"""How patients move through time: figures that need whole trajectories.

Each figure takes a real and a synthetic cohort of as many months, as tidy
tables or, to fold them once and use them often, each as a :class:`Panel`. A
patient who lacks a month is refused by name: a gap would pass for a step.
"Labs" are the real variables that may change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from healthgym_utils.preprocess import EPSILON
from healthgym_utils.schema import Feature, Schema, TableError
from healthgym_utils.sequences import to_sequences

# Fewer informative patients say nothing about a pair of variables.
MIN_PATIENTS = 30
LAGS = 12
NO_OUTCOME = (
    "no outcome: pass one, as a function of the table, or make the panels "
    "with it"
)

# Takes a tidy table, says of each row whether the outcome holds there.
Outcome = Callable[[pd.DataFrame], pd.Series]


@dataclass(frozen=True)
class Panel:
    """A cohort folded into arrays of shape (patients, months).

    Attributes
    ----------
    values : dict of str to ndarray
        Each variable: reals in log10 where the schema says Box-Cox (after
        adding the preprocessor's epsilon) and in their unit otherwise;
        labels as class codes.
    outcome : ndarray of bool or None
        Whether the outcome holds, if one was asked for.
    """

    values: dict[str, np.ndarray]
    outcome: np.ndarray | None = None

    @classmethod
    def of(
        cls, cohort: Cohort, schema: Schema, outcome: Outcome | None = None
    ) -> Panel:
        """Fold a tidy table; a panel is returned as it is.

        Raises
        ------
        TableError
            If the table breaks the schema, or a patient lacks a month.
        """
        if isinstance(cohort, Panel):
            return cohort
        schema.validate(cohort)
        columns = {f.name: numbers(cohort[f.name], f) for f in schema}
        columns |= {name: cohort[name].to_numpy() for name in schema.ids}
        names = schema.names
        if outcome is not None:
            # No variable has this name: a schema refuses it.
            columns[""] = np.asarray(outcome(cohort), dtype=float)
            names = [*names, ""]
        folded = to_sequences(
            pd.DataFrame(columns), names, schema.patient, schema.month
        )
        arrays = np.moveaxis(folded.values.numpy(), 2, 0)
        values = {
            f.name: array.astype(float if f.is_real else np.int64)
            for f, array in zip(schema, arrays, strict=False)
        }
        return cls(values, None if outcome is None else arrays[-1] > 0)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.values[name]

    @property
    def shape(self) -> tuple[int, int]:
        """Patients and months."""
        return next(iter(self.values.values())).shape

    def take(self, patients: np.ndarray) -> Panel:
        """Keep some patients, by position; the same one may come again."""
        kept = {name: array[patients] for name, array in self.values.items()}
        if self.outcome is None:
            return replace(self, values=kept)
        return Panel(kept, self.outcome[patients])

    def design(self, features: Iterable[Feature]) -> np.ndarray:
        """One column a real and a class; (patients, months, columns)."""
        features = list(features)
        x = np.empty((*self.shape, sum(f.width for f in features)))
        start = 0
        for feature in features:
            block = self[feature.name][..., None]
            if not feature.is_real:
                block = block == np.arange(feature.width)
            x[..., start : start + feature.width] = block
            start += feature.width
        return x


Cohort = pd.DataFrame | Panel


def numbers(column: pd.Series, feature: Feature) -> np.ndarray:
    """Bring a real column to its scale, or number its labels."""
    if not feature.is_real:
        return pd.Index(feature.classes).get_indexer(column)
    values = column.to_numpy(float)
    if feature.transform == "boxcox":
        return np.log10(values + EPSILON)
    return values


def fold_both(
    real: Cohort,
    fake: Cohort,
    schema: Schema,
    outcome: Outcome | None = None,
) -> tuple[Panel, Panel]:
    """Fold two cohorts, and refuse to compare different follow-ups.

    Raises
    ------
    TableError
        If one has more months than the other, there is one month only, a
        table breaks the schema, or a patient lacks a month.
    """
    ours = Panel.of(real, schema, outcome)
    theirs = Panel.of(fake, schema, outcome)
    if ours.shape[1] != theirs.shape[1]:
        raise TableError(
            f"one cohort has {ours.shape[1]} months and the other "
            f"{theirs.shape[1]}; cut both to the same months"
        )
    if ours.shape[1] < 2:
        raise TableError("trajectories need two months or more, got one")
    return ours, theirs


def ks(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples of numbers, any shape."""
    a, b = np.sort(np.ravel(a)), np.sort(np.ravel(b))
    points = np.concatenate([a, b])
    gaps = np.searchsorted(a, points, side="right") / len(a)
    gaps -= np.searchsorted(b, points, side="right") / len(b)
    return float(np.abs(gaps).max())


# --- Relations within patients ----------------------------------------------


class Relations(NamedTuple):
    """A figure for each pair of columns, and how many patients it rests on.

    Attributes
    ----------
    values, patients : DataFrame, shape (columns, columns)
        Columns of the design matrix; one for a variable of two classes, as
        the other is its mirror image. NaN where there is no value.
    """

    values: pd.DataFrame
    patients: pd.DataFrame

    def distance(self, fake: Relations) -> float:
        """Mean absolute difference to a synthetic cohort's relations.

        Only pairs with at least 30 informative real patients count, each as
        much as it has of them. Where the synthetic cohort has no informative
        patient at all, it is taken to have no relation.
        """
        weights = self.patients.to_numpy()
        gaps = (self.values - fake.values.fillna(0.0)).abs().to_numpy()
        use = (weights >= MIN_PATIENTS) & ~np.isnan(gaps)
        if not use.any():
            return np.nan
        return float(np.average(gaps[use], weights=weights[use]))


def trends(cohort: Cohort, schema: Schema) -> Relations:
    """Correlate, across patients, how fast two variables drift.

    A straight line is fitted to each column of each patient; the figure of
    a pair is Spearman's correlation of the two slopes over the patients in
    whom both columns change. -1 to 1.
    """
    x, names, owner = _changing(Panel.of(cohort, schema), schema)
    moves = (x != x[:, :1]).any(axis=1)
    slopes = _slopes(x)
    size = len(names)
    values = np.full((size, size), np.nan)
    counts = np.zeros((size, size), dtype=int)
    for i, j in combinations(range(size), 2):
        both = moves[:, i] & moves[:, j]
        if owner[i] == owner[j] or both.sum() < 3:
            continue
        ranks = stats.rankdata(slopes[both][:, [i, j]], axis=0)
        values[i, j] = values[j, i] = correlation(ranks)[0, 1]
        counts[i, j] = counts[j, i] = both.sum()
    return _relations(values, counts, names)


def trend_agreements(cohort: Cohort, schema: Schema) -> Relations:
    """Ask in how many patients two variables drift in one direction.

    The share of patients whose slopes agree in sign, less the share of those
    whose slopes do not, among those in whom both columns have one: the vote
    behind the trend correlation of the published series, which is that of
    two straight lines, and so +1 or -1 in each patient. -1 to 1, 0 is no
    relation. Pitfall: how fast is forgotten, see :func:`trends`.
    """
    x, names, owner = _changing(Panel.of(cohort, schema), schema)
    time = _centred_months(x)
    lines = time[None, :, None] * _slopes(x)[:, None]
    # However flat a line is, it has a sign; only no slope at all has none.
    r, counts = _within_patients(lines, x, owner, least=1e-6)
    votes = np.sign(r).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = votes / counts
    values[counts == 0] = np.nan
    return _relations(values, counts, names)


def smooth_trends(
    cohort: Cohort, schema: Schema, window: int = 13
) -> Relations:
    """Correlate, within patients, slow movements of any shape.

    As :func:`cycles`, of moving averages in place of what a straight line
    leaves: a fall and a rise, which no line can follow, count. -1 to 1.

    Parameters
    ----------
    cohort : DataFrame or Panel
    schema : Schema
    window : int
        Months of the average, over whole windows only.

    Raises
    ------
    ValueError
        If fewer than three whole windows fit.
    """
    x, names, owner = _changing(Panel.of(cohort, schema), schema)
    if not 1 <= window <= x.shape[1] - 2:
        raise ValueError(
            f"window is 1 to {x.shape[1] - 2} months for {x.shape[1]} "
            f"months, got {window}"
        )
    windows = np.lib.stride_tricks.sliding_window_view(x, window, axis=1)
    means = windows.mean(axis=-1)
    means -= means.mean(axis=1, keepdims=True)
    return _fisher(*_within_patients(means, x, owner), names)


def cycles(cohort: Cohort, schema: Schema) -> Relations:
    """Correlate, within patients, how two variables move about their trends.

    Each column of each patient loses its straight line; the rests of a pair
    are correlated over the months; the correlations of the patients in whom
    neither rest is zero are averaged by Fisher's z, clipped at 0.999999 as
    in the published series. -1 to 1.
    """
    x, names, owner = _changing(Panel.of(cohort, schema), schema)
    time = _centred_months(x)
    rest = x - x.mean(axis=1, keepdims=True)
    rest -= time[None, :, None] * _slopes(x)[:, None]
    return _fisher(*_within_patients(rest, x, owner), names)


def _within_patients(
    parts: np.ndarray, x: np.ndarray, owner: np.ndarray, least: float = 1e-4
) -> tuple[np.ndarray, np.ndarray]:
    """Correlate centred parts of columns in each patient.

    Parameters
    ----------
    parts, x : ndarray, shape (patients, months, columns)
        The parts may have fewer months than the columns themselves.
    owner : ndarray of str, shape (columns,)
    least : float
        A part that is shorter, as a share of its column, is not there: it is
        rounding, as panels are folded in single precision.

    Returns
    -------
    ndarray, shape (patients, columns, columns)
        0 where a part is missing.
    ndarray of int, shape (columns, columns)
        Patients in whom both parts are there, 0 for two of one variable.
    """
    length = np.linalg.norm(parts, axis=1)
    size = np.linalg.norm(x - x.mean(axis=1, keepdims=True), axis=1)
    moves = (x != x[:, :1]).any(axis=1) & (length > least * size)
    unit = parts / np.where(moves, length, np.inf)[:, None]
    counts = moves.T.astype(int) @ moves.astype(int)
    counts[owner[:, None] == owner] = 0
    return np.einsum("ptc,ptd->pcd", unit, unit, optimize=True), counts


def _fisher(
    r: np.ndarray, counts: np.ndarray, names: Sequence[str]
) -> Relations:
    """Average correlations over patients by Fisher's z."""
    z = np.arctanh(r.clip(-0.999999, 0.999999))  # 0 where uninformative
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.tanh(z.sum(axis=0) / counts)
    values[counts == 0] = np.nan
    return _relations(values, counts, names)


def trend_distance(real: Cohort, fake: Cohort, schema: Schema) -> float:
    """Mean absolute difference of :func:`trends`; 0 to 2, 0 is best.

    It takes the place of the trend correlation *within* patients of the
    published series, which is that of two straight lines: always +1 or -1.
    Pitfall: slopes of drugs rest on the few patients who switch them.
    """
    ours, theirs = fold_both(real, fake, schema)
    return trends(ours, schema).distance(trends(theirs, schema))


def agreement_distance(real: Cohort, fake: Cohort, schema: Schema) -> float:
    """Mean absolute difference of :func:`trend_agreements`; 0 to 2, 0 best."""
    ours, theirs = fold_both(real, fake, schema)
    return trend_agreements(ours, schema).distance(
        trend_agreements(theirs, schema)
    )


def smooth_trend_distance(
    real: Cohort, fake: Cohort, schema: Schema, window: int = 13
) -> float:
    """Mean absolute difference of :func:`smooth_trends`; 0 to 2, 0 best."""
    ours, theirs = fold_both(real, fake, schema)
    return smooth_trends(ours, schema, window).distance(
        smooth_trends(theirs, schema, window)
    )


def cycle_distance(real: Cohort, fake: Cohort, schema: Schema) -> float:
    """Mean absolute difference of :func:`cycles`; 0 to 2, 0 is best.

    Source: the dynamic correlation of the published series. Pitfall: without
    a least number of informative patients, rare drugs lift the floor above
    what broken cohorts reach.
    """
    ours, theirs = fold_both(real, fake, schema)
    return cycles(ours, schema).distance(cycles(theirs, schema))


def _changing(
    panel: Panel, schema: Schema
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Columns of what may change, their names, and whose each one is."""
    features = [f for f in schema if not f.static]
    names, owner = [], []
    for feature in features:
        # The first class of two is the mirror image of the second.
        mirrors = 1 if feature.kind == "binary" else 0
        names += feature.columns[mirrors:]
        owner += [feature.name] * (feature.width - mirrors)
    columns = [column for f in features for column in f.columns]
    x = panel.design(features)[..., np.isin(columns, names)]
    return x, names, np.array(owner)


def _centred_months(x: np.ndarray) -> np.ndarray:
    months = np.arange(x.shape[1], dtype=float)
    return months - months.mean()


def _slopes(x: np.ndarray) -> np.ndarray:
    """Least-squares slope a month; (patients, months, n) to (patients, n)."""
    time = _centred_months(x)
    return np.einsum("t,ptc->pc", time, x) / (time @ time)


def correlation(x: np.ndarray) -> np.ndarray:
    """Pearson's correlation of columns; NaN where one is constant."""
    moves = (x != x[:1]).any(axis=0)
    x = x - x.mean(axis=0)
    products = x.T @ x
    length = np.sqrt(np.where(moves, products.diagonal(), np.nan))
    return products / length[:, None] / length


def _relations(
    values: np.ndarray, counts: np.ndarray, names: Sequence[str]
) -> Relations:
    return Relations(
        pd.DataFrame(values, names, names), pd.DataFrame(counts, names, names)
    )


# --- Classes over time ------------------------------------------------------


def transitions(cohort: Cohort, schema: Schema, name: str) -> pd.DataFrame:
    """Count the steps from class (rows) to class of one variable.

    Returns
    -------
    DataFrame of int, shape (classes, classes)
        Classes that never occur too; staying is a step.
    """
    codes, feature = Panel.of(cohort, schema)[name], schema[name]
    step = codes[:, :-1] * feature.width + codes[:, 1:]
    counts = np.bincount(step.ravel(), minlength=feature.width**2)
    table = counts.reshape(feature.width, feature.width)
    return pd.DataFrame(table, feature.classes, feature.classes)


def transition_distances(
    real: Cohort, fake: Cohort, schema: Schema
) -> pd.Series:
    """Total variation of where a patient goes from each class.

    Row by row of the transition matrix, half the summed absolute differences
    of the probabilities; averaged over rows, each as often as the real
    cohort is there. A class in which the synthetic cohort never is counts 1.
    0 to 1, 0 is best; one value a changing variable with classes. Source:
    the total variation of :func:`total_variations`, of each conditional
    distribution. Pitfall: most steps stay, so the diagonal hides chains that
    stick too much: read it together with :func:`switch_distances`.
    """
    ours, theirs = fold_both(real, fake, schema)
    distances = {}
    for feature in _changing_classes(schema):
        a = transitions(ours, schema, feature.name).to_numpy()
        b = transitions(theirs, schema, feature.name).to_numpy()
        stays = a.sum(axis=1)
        gaps = np.abs(_rows(a) - _rows(b)).sum(axis=1) / 2
        gaps[b.sum(axis=1) == 0] = 1.0
        distances[feature.name] = gaps @ stays / stays.sum()
    return pd.Series(distances, dtype=float)


def switch_distances(real: Cohort, fake: Cohort, schema: Schema) -> pd.Series:
    """Absolute log ratio of how often each variable switches class.

    ``|ln(fake rate / real rate)|``, a rate being switches a step, with half
    a switch added to both so that none at all is finite. 0 to infinity, 0 is
    best, 0.69 is twice or half as often; one value a changing variable with
    classes. Source: a log rate ratio, as of two incidence rates. Pitfall: it
    counts switches, and does not ask from what to what.
    """
    ours, theirs = fold_both(real, fake, schema)

    def rate(panel: Panel, name: str) -> float:
        codes = panel[name]
        switches = (codes[:, 1:] != codes[:, :-1]).sum()
        return (switches + 0.5) / codes[:, 1:].size

    return pd.Series(
        {
            f.name: abs(np.log(rate(theirs, f.name) / rate(ours, f.name)))
            for f in _changing_classes(schema)
        },
        dtype=float,
    )


def statics_vary(cohort: Cohort, schema: Schema) -> float:
    """Share of patients in whom a static variable changes.

    0 to 1, and anything but exactly 0 is a person who changes what cannot
    change; NaN if the schema has no static variable. Pitfall: it does not
    ask whether what stays is right.
    """
    panel = Panel.of(cohort, schema)
    if not schema.statics:
        return np.nan
    varies = [
        (panel[f.name] != panel[f.name][:, :1]).any(axis=1)
        for f in schema.statics
    ]
    return float(np.any(varies, axis=0).mean())


def dwell_distances(real: Cohort, fake: Cohort, schema: Schema) -> pd.Series:
    """Distance of how long patients stay on a class before they leave it.

    Mean absolute difference of two Kaplan-Meier curves of the length of
    stays (Kaplan & Meier 1958); a stay that the follow-up ends is censored.
    0 to 1, 0 is best; one value a changing variable with classes. Pitfall:
    stays, not patients, are counted, and a restless patient has many.
    """
    ours, theirs = fold_both(real, fake, schema)
    horizon = ours.shape[1] + 1
    return pd.Series(
        {
            f.name: _gap(_stays(ours[f.name]), _stays(theirs[f.name]), horizon)
            for f in _changing_classes(schema)
        },
        dtype=float,
    )


def _changing_classes(schema: Schema) -> list[Feature]:
    return [f for f in schema.categoricals if not f.static]


def _rows(counts: np.ndarray) -> np.ndarray:
    """Turn counts into shares of each row; an empty row stays zero."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


# --- Labs over time ---------------------------------------------------------


def autocorrelations(
    cohort: Cohort, schema: Schema, lags: int = LAGS
) -> pd.DataFrame:
    """Correlate each lab with itself k months later, within patients.

    The usual estimator, ``sum_t d(t) d(t + k) / sum_t d(t)^2`` with d the
    deviation from the patient's mean, averaged over the patients in whom the
    lab changes. -1 to 1. Pitfall: it leans to below 0 by about 1 / months,
    in both cohorts alike.

    Returns
    -------
    DataFrame, shape (lags, labs)
    """
    panel = Panel.of(cohort, schema)
    labs = {f.name: _deviations(panel[f.name]) for f in _labs(schema)}
    months = range(1, min(lags, panel.shape[1] - 1) + 1)
    return pd.DataFrame(
        {n: [_lagged(d, d, k) for k in months] for n, d in labs.items()},
        index=pd.Index(months, name="lag"),
    )


def cross_correlations(
    cohort: Cohort, schema: Schema, lags: int = LAGS
) -> pd.DataFrame:
    """Correlate each lab with another one k months later, within patients.

    As :func:`autocorrelations`, for ordered pairs of labs and from lag 0.

    Returns
    -------
    DataFrame, shape (1 + lags, pairs)
        Column (a, b): b comes k months after a.
    """
    panel = Panel.of(cohort, schema)
    labs = {f.name: _deviations(panel[f.name]) for f in _labs(schema)}
    months = range(min(lags, panel.shape[1] - 1) + 1)
    return pd.DataFrame(
        {
            (a, b): [_lagged(labs[a], labs[b], k) for k in months]
            for a, b in permutations(labs, 2)
        },
        index=pd.Index(months, name="lag"),
    )


def acf_distance(
    real: Cohort, fake: Cohort, schema: Schema, lags: int = LAGS
) -> float:
    """Mean absolute difference of :func:`autocorrelations`; 0 to 2, 0 best.

    Source: Box & Jenkins (1970). Pitfall: a slow drift and a long memory
    look alike.
    """
    ours, theirs = fold_both(real, fake, schema)
    gaps = autocorrelations(ours, schema, lags)
    gaps -= autocorrelations(theirs, schema, lags)
    return float(gaps.abs().to_numpy().mean()) if gaps.size else np.nan


def ccf_distance(
    real: Cohort, fake: Cohort, schema: Schema, lags: int = LAGS
) -> float:
    """Mean absolute difference of :func:`cross_correlations`; 0 to 2, 0 best.

    Source and pitfall as for :func:`acf_distance`; NaN if there are fewer
    than two labs.
    """
    ours, theirs = fold_both(real, fake, schema)
    gaps = cross_correlations(ours, schema, lags)
    gaps -= cross_correlations(theirs, schema, lags)
    return float(gaps.abs().to_numpy().mean()) if gaps.size else np.nan


def summary_distances(
    real: Cohort, fake: Cohort, schema: Schema
) -> pd.DataFrame:
    """Kolmogorov-Smirnov distances of three numbers a patient.

    The mean over the months, the standard deviation, and the mean absolute
    step from a month to the next; compared over patients. 0 to 1, 0 is best.
    Source: MSAS of sdmetrics (Zhang et al. 2022), with absolute steps: its
    InterRowMSAS averages *signed* ones, which is (last - first) / steps and
    says nothing about roughness. Pitfall: blind to when things happen.

    Returns
    -------
    DataFrame, shape (labs, 3)
        Columns mean, sd and step.
    """
    ours, theirs = fold_both(real, fake, schema)
    rows = {}
    for feature in _labs(schema):
        a, b = ours[feature.name], theirs[feature.name]
        rows[feature.name] = {
            "mean": ks(a.mean(axis=1), b.mean(axis=1)),
            "sd": ks(a.std(axis=1), b.std(axis=1)),
            "step": ks(
                np.abs(np.diff(a)).mean(axis=1),
                np.abs(np.diff(b)).mean(axis=1),
            ),
        }
    return pd.DataFrame.from_dict(
        rows, orient="index", columns=["mean", "sd", "step"]
    )


def _labs(schema: Schema) -> list[Feature]:
    return [f for f in schema.reals if not f.static]


def _deviations(values: np.ndarray) -> np.ndarray:
    """Centre each patient, and scale to length one; NaN if constant."""
    deviations = values - values.mean(axis=1, keepdims=True)
    length = np.linalg.norm(deviations, axis=1, keepdims=True)
    moves = (values != values[:, :1]).any(axis=1, keepdims=True)
    return deviations / np.where(moves, length, np.nan)


def _lagged(early: np.ndarray, late: np.ndarray, lag: int) -> float:
    """Mean over patients of the correlation at one lag."""
    months = early.shape[1]
    r = np.einsum("pt,pt->p", early[:, : months - lag], late[:, lag:])
    return float(np.nanmean(r)) if np.isfinite(r).any() else np.nan


# --- Time to an outcome -----------------------------------------------------


class Times(NamedTuple):
    """When something happened, or how long it was seen not to happen.

    Attributes
    ----------
    months : ndarray of int, shape (n,)
    happened : ndarray of bool, shape (n,)
        False where the time is censored.
    """

    months: np.ndarray
    happened: np.ndarray


def times_to(
    cohort: Cohort, schema: Schema, outcome: Outcome | None, run: int = 2
) -> Times:
    """Find each patient's first month of `run` in a row with the outcome.

    Parameters
    ----------
    cohort : DataFrame or Panel
        A panel has to hold the outcome.
    schema : Schema
    outcome : callable or None
        Takes the tidy table, says which rows have the outcome, as
        ``lambda table: table["VL"] < 1000``; None with a panel.
    run : int
        How many months in a row make an event; two, for one can be chance.

    Returns
    -------
    Times
        Censored at the last month in which a run could begin.
    """
    holds = Panel.of(cohort, schema, outcome).outcome
    if holds is None:
        raise ValueError(NO_OUTCOME)
    if not 1 <= run <= holds.shape[1]:
        raise ValueError(
            f"run is 1 to the {holds.shape[1]} months there are, got {run}"
        )
    windows = np.lib.stride_tricks.sliding_window_view(holds, run, axis=1)
    begins = windows.all(axis=2)
    happened = begins.any(axis=1)
    last = begins.shape[1] - 1
    return Times(np.where(happened, begins.argmax(axis=1), last), happened)


def survival(times: Times, horizon: int) -> np.ndarray:
    """Kaplan-Meier estimate: the probability of no event up to each month.

    ``S(t) = prod over s <= t of (1 - events at s / patients at risk at s)``
    (Kaplan & Meier 1958), 1 to 0. Censored patients are at risk in the month
    of their censoring.

    Returns
    -------
    ndarray, shape (horizon,)
        S at months 0, 1, ..., horizon - 1.
    """
    ends = np.bincount(times.months, minlength=horizon)
    events = np.bincount(times.months[times.happened], minlength=horizon)
    at_risk = ends[::-1].cumsum()[::-1]
    return np.cumprod(1 - events / np.maximum(at_risk, 1))[:horizon]


def survival_distance(
    real: Cohort,
    fake: Cohort,
    schema: Schema,
    outcome: Outcome | None = None,
    run: int = 2,
) -> float:
    """Mean absolute difference of two Kaplan-Meier curves over the months.

    0 to 1, 0 is best: the months by which the mean time to the outcome,
    within the follow-up, is off if one curve lies above the other, as a
    share of the follow-up. `outcome` and `run` as in :func:`times_to`.
    Pitfall: curves that cross can have the same mean time, and a distance.
    """
    ours, theirs = fold_both(real, fake, schema, outcome)
    horizon = ours.shape[1] - run + 1
    return _gap(
        times_to(ours, schema, outcome, run),
        times_to(theirs, schema, outcome, run),
        horizon,
    )


def log_rank(
    real: Cohort,
    fake: Cohort,
    schema: Schema,
    outcome: Outcome | None = None,
    run: int = 2,
) -> pd.Series:
    """Test whether two cohorts reach the outcome at the same rate.

    The log-rank test (Mantel 1966). Pitfall: a p-value is no distance; with
    enough patients every synthetic cohort is refuted, and with few none, and
    curves that cross may be missed.

    Returns
    -------
    Series
        ``statistic``, the chi-square of one degree of freedom (0 is best),
        and ``p_value``.
    """
    ours, theirs = fold_both(real, fake, schema, outcome)
    found = stats.logrank(
        *(
            stats.CensoredData.right_censored(t.months, ~t.happened)
            for t in (
                times_to(ours, schema, outcome, run),
                times_to(theirs, schema, outcome, run),
            )
        )
    )
    return pd.Series(
        {"statistic": found.statistic**2, "p_value": found.pvalue}
    )


def _stays(codes: np.ndarray) -> Times:
    """Length of each stay on a class; (patients, months) to (stays,)."""
    begins = np.ones(codes.shape, dtype=bool)
    begins[:, 1:] = codes[:, 1:] != codes[:, :-1]
    start = np.flatnonzero(begins)
    end = np.append(start[1:], codes.size)
    return Times(end - start, end % codes.shape[1] != 0)


def _gap(ours: Times, theirs: Times, horizon: int) -> float:
    curves = survival(ours, horizon), survival(theirs, horizon)
    return float(np.abs(curves[0] - curves[1]).mean())
