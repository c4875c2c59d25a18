"""How far a synthetic cohort is from a real one, in numbers.

Every figure is 0 (or 1, where it is a ratio) when two cohorts cannot be told
apart by it, and every figure has a floor: what two disjoint samples of the
*same* cohort reach, by chance alone. A figure without its floor says little.

Figures of trajectories are defined in :mod:`healthgym_utils.trajectories`,
those that train a judge or look for neighbours in
:mod:`healthgym_utils.judges`; all are names of this module too. The real
cohort should be patients that the generator has not seen: a copy of its
training patients is then at the floor of every figure but those of privacy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from healthgym_utils.judges import privacy, two_sample_score, utility_gap
from healthgym_utils.schema import Feature, Schema
from healthgym_utils.trajectories import (
    Cohort,
    Outcome,
    Panel,
    Times,
    acf_distance,
    agreement_distance,
    autocorrelations,
    ccf_distance,
    correlation,
    cross_correlations,
    cycle_distance,
    cycles,
    dwell_distances,
    fold_both,
    ks,
    log_rank,
    numbers,
    smooth_trend_distance,
    smooth_trends,
    statics_vary,
    summary_distances,
    survival,
    survival_distance,
    switch_distances,
    times_to,
    transition_distances,
    transitions,
    trend_agreements,
    trend_distance,
    trends,
)

__all__ = [
    "Panel",
    "Times",
    "acf_distance",
    "agreement_distance",
    "association_distances",
    "associations",
    "autocorrelations",
    "ccf_distance",
    "coverage",
    "cross_correlations",
    "cycle_distance",
    "cycles",
    "dwell_distances",
    "figures",
    "floor",
    "ks_distances",
    "log_rank",
    "privacy",
    "rank_correlation_distance",
    "rank_correlations",
    "scoreboard",
    "smooth_trend_distance",
    "smooth_trends",
    "static_coverage",
    "statics_vary",
    "summary_distances",
    "survival",
    "survival_distance",
    "switch_distances",
    "times_to",
    "total_variations",
    "transition_distances",
    "transitions",
    "trend_agreements",
    "trend_distance",
    "trends",
    "two_sample_score",
    "usual_classes",
    "utility_gap",
    "wasserstein_distances",
]

SHRUNK = 0.25  # a group that keeps less than this share of itself is lost
# What a figure is when two cohorts are one; 0 for all others.
BEST = {"distance ratio": 1.0, "neighbour ratio": 1.0}


# --- One variable at a time -------------------------------------------------


def ks_distances(real: Cohort, fake: Cohort, schema: Schema) -> pd.Series:
    """Kolmogorov-Smirnov distance of each lab.

    The largest gap between two cumulative distribution functions, over all
    rows: 0 is the same distribution, 1 no overlap. It does not change when
    the unit or the scale of an axis changes, and it is blind to time.

    Parameters
    ----------
    real, fake : DataFrame or Panel
        Tidy tables, labs in their units.
    schema : Schema

    Returns
    -------
    Series
        One distance a real variable.
    """
    return pd.Series(
        {f.name: ks(real[f.name], fake[f.name]) for f in schema.reals},
        dtype=float,
    )


def wasserstein_distances(
    real: Cohort, fake: Cohort, schema: Schema
) -> pd.Series:
    """Wasserstein distance of each lab, also called earth mover's.

    The area between two cumulative distribution functions, over all rows: by
    how much values have to move, on average, in log10 where the schema says
    Box-Cox and in the lab's unit otherwise. 0 to infinity, 0 is best. Source:
    ``scipy.stats.wasserstein_distance``. Pitfall: blind to time, and units
    differ, so that labs on other scales cannot be averaged.

    Returns
    -------
    Series
        One distance a real variable.
    """
    return pd.Series(
        {
            f.name: stats.wasserstein_distance(
                _scaled(real, f), _scaled(fake, f)
            )
            for f in schema.reals
        },
        dtype=float,
    )


def total_variations(real: Cohort, fake: Cohort, schema: Schema) -> pd.Series:
    """Total variation distance of each variable with classes.

    Half the summed absolute differences of the shares: the share of rows
    that would have to change class. 0 is the same, 1 nothing in common.

    Parameters
    ----------
    real, fake : DataFrame or Panel
        Tidy tables, labels decoded.
    schema : Schema

    Returns
    -------
    Series
        One distance a variable with classes.
    """
    return pd.Series(
        {
            f.name: _total_variation(
                _class_shares(real, f), _class_shares(fake, f)
            )
            for f in schema.categoricals
        },
        dtype=float,
    )


# --- Groups of people -------------------------------------------------------


def coverage(
    real: pd.DataFrame,
    fake: pd.DataFrame,
    columns: Sequence[str],
    min_share: float = 0.01,
) -> pd.Series:
    """Ask whether every group of people is still there.

    A group, or cell, is a combination of classes, such as Asian women. One
    variable at a time can look right while cells vanish.

    Parameters
    ----------
    real, fake : DataFrame
        Tidy tables. Rows are counted; with as many months for every
        patient, that is counting patients.
    columns : sequence of str
        Which variables to cross, such as Gender and Ethnic.
    min_share : float
        Smaller real cells are left out of ``cells_covered``,
        ``minority_recall`` and ``mass_lost``: chance empties them.

    Returns
    -------
    Series
        ``joint_tv``: total variation of the joint shares (0 is best).
        ``cells_covered``: share of the real cells that keep at least a
        quarter of their share (1 is best). ``mass_lost``: share of real
        rows in the cells that do not (0). ``entropy_ratio``: entropy of
        the joint shares, fake over real (1; below it is collapse; missing
        if the real cohort is one group).
        ``minority_recall``: how much of its share a cell keeps, at most 1,
        averaged over all cells but the largest (1).
    """
    ours, theirs = _shares(real, columns), _shares(fake, columns)
    ours, theirs = ours.align(theirs, fill_value=0.0)
    entropy = stats.entropy(ours)
    cells = ours[ours >= min_share]
    kept = (theirs[cells.index] / cells).clip(upper=1)
    minorities = cells.index != cells.idxmax()
    return pd.Series(
        {
            "joint_tv": _total_variation(ours, theirs),
            "cells_covered": (kept >= SHRUNK).mean(),
            "mass_lost": cells[kept < SHRUNK].sum(),
            "entropy_ratio": (
                stats.entropy(theirs) / entropy if entropy else np.nan
            ),
            "minority_recall": kept[minorities].mean(),
        }
    )


def static_coverage(
    real: Cohort,
    fake: Cohort,
    schema: Schema,
    crossed_with: Sequence[str] = (),
) -> pd.Series:
    """Ask of patients, not of rows, whether every group is still there.

    A patient belongs to the class that they have in most months: where
    statics change from month to month, everybody ends up in the largest
    group, which counting rows would not show.

    Parameters
    ----------
    real, fake : DataFrame or Panel
    schema : Schema
    crossed_with : sequence of str
        Variables to cross with the static ones, such as a drug.

    Returns
    -------
    Series
        As :func:`coverage`.

    Raises
    ------
    ValueError
        If there is nothing to cross.
    """
    statics = [f.name for f in schema.categoricals if f.static]
    groups = [*statics, *crossed_with]
    if not groups:
        raise ValueError(
            f"{schema.name}: no static variable has classes; name variables "
            "to cross instead"
        )
    return coverage(
        usual_classes(real, schema), usual_classes(fake, schema), groups
    )


def usual_classes(cohort: Cohort, schema: Schema) -> pd.DataFrame:
    """Find the class in which each patient spends most months.

    Returns
    -------
    DataFrame of int, shape (patients, variables with classes)
        Codes; of classes with as many months, the first.
    """
    panel = Panel.of(cohort, schema)
    months = {
        f.name: panel.design([f]).sum(axis=1) for f in schema.categoricals
    }
    return pd.DataFrame({n: m.argmax(axis=1) for n, m in months.items()})


# --- Relations between variables, rows pooled -------------------------------


def rank_correlations(cohort: Cohort, schema: Schema) -> pd.DataFrame:
    """Spearman's correlation of the model's columns, over all rows.

    Returns
    -------
    DataFrame, shape (schema.width, schema.width)
        -1 to 1; NaN where a column is constant.
    """
    x = Panel.of(cohort, schema).design(schema).reshape(-1, schema.width)
    for feature in schema.reals:
        column = schema.spans[feature.name].start
        x[:, column] = stats.rankdata(x[:, column])
    # Ranks of 0 and 1 are a straight line through them: no need to rank.
    return pd.DataFrame(correlation(x), schema.columns, schema.columns)


def rank_correlation_distance(
    real: Cohort, fake: Cohort, schema: Schema
) -> float:
    """Mean absolute difference of :func:`rank_correlations`.

    Over pairs of columns of two different variables that both change in the
    real cohort; a column that is constant in the synthetic one counts as
    related to nothing. 0 to 2, 0 is best. Pitfalls: rows are pooled, so it
    mixes differences between patients with changes within them; sdmetrics'
    CorrelationSimilarity halves the difference.
    """
    ours = rank_correlations(real, schema).to_numpy()
    theirs = rank_correlations(fake, schema).fillna(0.0).to_numpy()
    widths = [f.width for f in schema]
    owner = np.repeat(np.arange(len(schema)), widths)
    return _mean(np.abs(ours - theirs)[owner[:, None] != owner])


def associations(cohort: Cohort, schema: Schema) -> pd.DataFrame:
    """Strength of the relation of each pair of variables, over all rows.

    Pearson's r of two reals, -1 to 1, in log10 where the schema says
    Box-Cox; Cramér's V of two variables with classes,
    ``sqrt(chi2 / n / (k - 1))`` with k the fewer classes that occur, 0 to 1;
    the correlation ratio of a real and a variable with classes,
    ``sqrt(between / total sum of squares)``, 0 to 1. Sources: Cramér 1946,
    Fisher 1925. Pitfall: V and the ratio have no sign, and grow with the
    number of classes in small cohorts.

    Returns
    -------
    DataFrame, shape (features, features)
        NaN where a variable is constant.
    """
    panel = Panel.of(cohort, schema)
    table = pd.DataFrame(np.eye(len(schema)), schema.names, schema.names)
    for a, b in combinations(schema, 2):
        x, y = panel[a.name].ravel(), panel[b.name].ravel()
        if a.is_real and b.is_real:
            value = correlation(np.stack([x, y], axis=1))[0, 1]
        elif a.is_real:
            value = _correlation_ratio(x, y)
        elif b.is_real:
            value = _correlation_ratio(y, x)
        else:
            value = _cramers_v(x, y)
        table.loc[a.name, b.name] = table.loc[b.name, a.name] = value
    return table


def association_distances(
    real: Cohort, fake: Cohort, schema: Schema
) -> pd.Series:
    """Mean absolute difference of :func:`associations`, by kind of pair.

    What is constant in the synthetic cohort counts as related to nothing.

    Returns
    -------
    Series
        ``pearson`` (0 to 2), ``cramers_v`` and ``correlation_ratio`` (0 to
        1); 0 is best, missing if there is no such pair.
    """
    ours = associations(real, schema).to_numpy()
    theirs = associations(fake, schema).fillna(0.0).to_numpy()
    gaps = np.abs(ours - theirs)
    is_real = np.array([f.is_real for f in schema])
    pair = ~np.eye(len(schema), dtype=bool)
    both = pair & is_real & is_real[:, None]
    neither = pair & ~is_real & ~is_real[:, None]
    return pd.Series(
        {
            "pearson": _mean(gaps[both]),
            "cramers_v": _mean(gaps[neither]),
            "correlation_ratio": _mean(gaps[pair & ~both & ~neither]),
        }
    )


def _cramers_v(x: np.ndarray, y: np.ndarray) -> float:
    """Cramér's V of two columns of codes, shape (rows,); NaN if constant."""
    counts = _crossed(x, y)
    counts = counts[counts.any(axis=1)][:, counts.any(axis=0)]
    fewest = min(counts.shape)
    if fewest < 2:
        return np.nan
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / len(x)
    chi2 = ((counts - expected) ** 2 / expected).sum()
    return float(np.sqrt(chi2 / len(x) / (fewest - 1)))


def _crossed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Count rows in each pair of codes."""
    shape = x.max() + 1, y.max() + 1
    counts = np.bincount(x * shape[1] + y, minlength=shape[0] * shape[1])
    return counts.reshape(shape)


def _correlation_ratio(values: np.ndarray, codes: np.ndarray) -> float:
    """Correlation ratio of a real by classes; NaN if one is constant."""
    if (values == values[0]).all() or (codes == codes[0]).all():
        return np.nan
    counts = np.bincount(codes)
    deviations = values - values.mean()
    sums = np.bincount(codes, weights=deviations)
    between = (sums**2 / np.maximum(counts, 1)).sum()
    return float(np.sqrt(between / (deviations @ deviations)))


# --- Chance -----------------------------------------------------------------


def floor(
    metric: Callable[..., pd.Series],
    cohort: pd.DataFrame,
    patients: int,
    draws: int = 20,
    seed: int = 0,
    patient: str = "PatientID",
    samples: int = 2,
) -> pd.DataFrame:
    """Measure what chance alone does to a metric.

    Draws disjoint samples of patients from one cohort, again and again, and
    compares them as if one were synthetic.

    Parameters
    ----------
    metric : callable
        Takes two tables, returns a Series, as those of this module do.
    cohort : DataFrame
        Tidy table with enough patients for all samples of a draw.
    patients : int
        In each sample; floors fall as samples grow, so take the size of
        the comparison that the floor is for.
    draws : int
        How many times.
    seed : int
        Of the draws.
    patient : str
        Column that identifies patients.
    samples : int
        Tables that `metric` takes: 3 for figures of privacy, which compare
        with training patients too.

    Returns
    -------
    DataFrame
        One row a draw, one column a figure.

    Raises
    ------
    ValueError
        If the cohort has too few patients for the samples.
    """
    ids = cohort[patient].unique()
    if not 1 <= patients <= len(ids) // samples:
        raise ValueError(
            f"a floor for {patients} patients needs {samples} times as "
            f"many, and the cohort has {len(ids)}; load more, or compare "
            "fewer"
        )
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(draws):
        drawn = random.permutation(ids)[: samples * patients]
        tables = (
            cohort[cohort[patient].isin(part)]
            for part in np.split(drawn, samples)
        )
        rows.append(metric(*tables))
    return pd.DataFrame(rows).reset_index(drop=True)


# --- All of them ------------------------------------------------------------


def figures(
    real: Cohort,
    fake: Cohort,
    schema: Schema,
    train: Cohort | None = None,
    outcome: Outcome | None = None,
    run: int = 2,
    ahead: int = 6,
    seed: int = 0,
) -> pd.Series:
    """Compute the figures of the scoreboard, in its order.

    Parameters
    ----------
    real, fake, schema, train, outcome, run, ahead, seed
        As in :func:`scoreboard`.

    Returns
    -------
    Series
        Without those that the schema has no variables for.
    """
    ours, theirs = fold_both(real, fake, schema, outcome)
    seen = None if train is None else Panel.of(train, schema)
    return pd.concat(
        [
            _quick_figures(ours, theirs, schema, run),
            _slow_figures(ours, theirs, schema, seen, ahead, seed),
        ]
    )


def scoreboard(
    real: pd.DataFrame,
    fake: pd.DataFrame,
    schema: Schema,
    train: pd.DataFrame | None = None,
    outcome: Outcome | None = None,
    floors: pd.DataFrame | None = None,
    run: int = 2,
    ahead: int = 6,
    bootstrap: int = 30,
    seed: int = 0,
) -> pd.DataFrame:
    """Lay all figures of a synthetic cohort out, next to their floors.

    Parameters
    ----------
    real : DataFrame
        Patients that the generator has not seen.
    fake : DataFrame
        As many synthetic ones, for floors hold for a size.
    schema : Schema
    train : DataFrame, optional
        The patients that the generator has seen; figures of privacy need
        them.
    outcome : callable, optional
        Takes the tidy table, says which rows have the outcome, as
        :func:`healthgym_utils.schema.suppressed` does; the utility gap and
        the Kaplan-Meier distance need it.
    floors : DataFrame, optional
        One row a draw, as :func:`floor` makes it from :func:`figures`; see
        the example. It costs a scoreboard a draw, so keep it.
    run, ahead : int
        Months in a row that make the outcome an event, and months from the
        month that predicts to the outcome.
    bootstrap : int
        Resamples of the patients, for the intervals; 0 for none.
    seed : int
        Of the judges and the resamples.

    Returns
    -------
    DataFrame
        One row a figure. ``value``; ``low`` and ``high``, a 95 % interval;
        ``floor``, the mean over the draws; ``ratio``, the distance of the
        value from its best over the mean distance of the draws from theirs,
        so that 1 is chance; ``best``, what the figure is for a perfect
        cohort, 0 or 1. What is not known is NaN.

    Notes
    -----
    The interval is the value plus and minus 1.96 standard deviations over
    resamples of the patients of both cohorts, cut at 0. Only their spread is
    used: a resample repeats patients, which takes it further from everything
    else, and so all distances of resamples are too large. The classifier,
    the utility gap and privacy have no interval; the spread of their floors
    says how much they vary.

    Examples
    --------
    >>> def chance(real, fake, train):
    ...     return figures(real, fake, schema, train, outcome)
    >>> floors = floor(chance, cohort, 300, samples=3)
    >>> scoreboard(real, fake, schema, train, outcome, floors)
    """
    ours, theirs = fold_both(real, fake, schema, outcome)
    value = figures(ours, theirs, schema, train, outcome, run, ahead, seed)
    best = value.index.map(lambda name: BEST.get(name, 0.0))
    board = pd.DataFrame({"value": value}).rename_axis("figure")
    spread = 1.96 * _resampled(ours, theirs, schema, run, bootstrap, seed)
    spread = spread.reindex(value.index)
    board["low"] = (value - spread).clip(lower=0.0)
    board["high"] = value + spread
    draws = pd.DataFrame() if floors is None else floors
    draws = draws.reindex(columns=value.index)
    board["floor"] = draws.mean()
    off, typical = (value - best).abs(), (draws - best).abs().mean()
    # Chance never leaves the best value of some figures.
    board["ratio"] = (off / typical).mask((off == 0) & (typical == 0), 1.0)
    board["best"] = best
    return board.reset_index()


def _quick_figures(
    real: Panel, fake: Panel, schema: Schema, run: int
) -> pd.Series:
    """Figures that cost milliseconds, all from 0, best, upwards."""
    kinds = association_distances(real, fake, schema)
    summaries = summary_distances(real, fake, schema).mean()
    values = {
        "KS": ks_distances(real, fake, schema).mean(),
        "Wasserstein": wasserstein_distances(real, fake, schema).mean(),
        "TV": total_variations(real, fake, schema).mean(),
        **_group_figures(real, fake, schema),
        "rank correlation": rank_correlation_distance(real, fake, schema),
        "Pearson": kinds["pearson"],
        "Cramér's V": kinds["cramers_v"],
        "correlation ratio": kinds["correlation_ratio"],
        "trend": trend_distance(real, fake, schema),
        "cycle": cycle_distance(real, fake, schema),
        "transition TV": transition_distances(real, fake, schema).mean(),
        "switch rate": switch_distances(real, fake, schema).mean(),
        "statics vary": statics_vary(fake, schema),
        "dwell time": dwell_distances(real, fake, schema).mean(),
        "ACF": acf_distance(real, fake, schema),
        "CCF": ccf_distance(real, fake, schema),
        "patient mean": summaries["mean"],
        "patient sd": summaries["sd"],
        "patient step": summaries["step"],
    }
    if real.outcome is not None:
        values["Kaplan-Meier"] = survival_distance(real, fake, schema, run=run)
    return pd.Series(values, dtype=float).dropna()


def _group_figures(
    real: Panel, fake: Panel, schema: Schema
) -> dict[str, float]:
    """Cross the statics, and the statics with the first changing variable."""
    statics = [f.name for f in schema.categoricals if f.static]
    changing = [f.name for f in schema.categoricals if not f.static]
    ours, theirs = usual_classes(real, schema), usual_classes(fake, schema)
    values = {}
    if statics:
        values["statics' joint TV"] = coverage(ours, theirs, statics)[
            "joint_tv"
        ]
    if crossed := [*statics, *changing[:1]]:
        values["mass lost"] = coverage(ours, theirs, crossed)["mass_lost"]
    return values


def _slow_figures(
    real: Panel,
    fake: Panel,
    schema: Schema,
    train: Panel | None,
    ahead: int,
    seed: int,
) -> pd.Series:
    """Figures that cost seconds."""
    values = {"C2ST": two_sample_score(real, fake, schema, seed=seed)}
    if real.outcome is not None:
        values["utility gap"] = utility_gap(
            real, fake, schema, ahead=ahead, seed=seed
        )
    found = pd.Series(values)
    if train is None:
        return found
    return pd.concat([found, privacy(train, real, fake, schema)])


def _resampled(
    real: Panel,
    fake: Panel,
    schema: Schema,
    run: int,
    times: int,
    seed: int,
) -> pd.Series:
    """Resample patients; standard deviation of the quick figures."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(times):
        samples = (
            panel.take(random.integers(panel.shape[0], size=panel.shape[0]))
            for panel in (real, fake)
        )
        rows.append(_quick_figures(*samples, schema, run))
    return pd.DataFrame(rows).std()


# --- Shared -----------------------------------------------------------------


def _scaled(cohort: Cohort, feature: Feature) -> np.ndarray:
    """Values of a real variable over all rows, as panels hold them."""
    if isinstance(cohort, Panel):
        return cohort[feature.name].ravel()
    return numbers(cohort[feature.name], feature)


def _class_shares(cohort: Cohort, feature: Feature) -> pd.Series:
    """Share of rows in each class that occurs."""
    if isinstance(cohort, Panel):
        codes = cohort[feature.name].ravel()
        cohort = pd.DataFrame({feature.name: codes})
    return _shares(cohort, [feature.name])


def _mean(values: np.ndarray) -> float:
    """Mean of what is defined; NaN if nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else np.nan


def _shares(table: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """Share of rows in each combination of classes that occurs."""
    return table.value_counts(list(columns), normalize=True)


def _total_variation(a: pd.Series, b: pd.Series) -> float:
    """Half the summed absolute differences of two sets of shares."""
    return a.sub(b, fill_value=0.0).abs().sum() / 2
