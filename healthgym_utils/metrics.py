"""How far a synthetic cohort is from a real one, in numbers.

Every figure is 0 (or 1, where it is a ratio) when two cohorts cannot be told
apart by it, and every figure has a floor: what two disjoint samples of the
*same* cohort reach, by chance alone. A figure without its floor says little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from healthgym_utils.schema import Schema

SHRUNK = 0.25  # a group that keeps less than this share of itself is lost


def ks_distances(
    real: pd.DataFrame, fake: pd.DataFrame, schema: Schema
) -> pd.Series:
    """Kolmogorov-Smirnov distance of each lab.

    The largest gap between two cumulative distribution functions, over all
    rows: 0 is the same distribution, 1 no overlap. It does not change when
    the unit or the scale of an axis changes, and it is blind to time.

    Parameters
    ----------
    real, fake : DataFrame
        Tidy tables, labs in their units.
    schema : Schema

    Returns
    -------
    Series
        One distance a real variable.
    """
    return pd.Series(
        {
            f.name: stats.ks_2samp(real[f.name], fake[f.name]).statistic
            for f in schema.reals
        },
        dtype=float,
    )


def total_variations(
    real: pd.DataFrame, fake: pd.DataFrame, schema: Schema
) -> pd.Series:
    """Total variation distance of each variable with classes.

    Half the summed absolute differences of the shares: the share of rows
    that would have to change class. 0 is the same, 1 nothing in common.

    Parameters
    ----------
    real, fake : DataFrame
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
                _shares(real, [f.name]), _shares(fake, [f.name])
            )
            for f in schema.categoricals
        },
        dtype=float,
    )


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


def floor(
    metric: Callable[[pd.DataFrame, pd.DataFrame], pd.Series],
    cohort: pd.DataFrame,
    patients: int,
    draws: int = 20,
    seed: int = 0,
    patient: str = "PatientID",
) -> pd.DataFrame:
    """Measure what chance alone does to a metric.

    Draws two disjoint samples of patients from one cohort, again and again,
    and compares them as if one were synthetic.

    Parameters
    ----------
    metric : callable
        Takes two tables, returns a Series, as those of this module do.
    cohort : DataFrame
        Tidy table with at least twice as many patients.
    patients : int
        In each sample; floors fall as samples grow, so take the size of
        the comparison that the floor is for.
    draws : int
        How many pairs of samples.
    seed : int
        Of the draws.
    patient : str
        Column that identifies patients.

    Returns
    -------
    DataFrame
        One row a draw, one column a figure.

    Raises
    ------
    ValueError
        If the cohort has too few patients for two samples.
    """
    ids = cohort[patient].unique()
    if not 1 <= patients <= len(ids) // 2:
        raise ValueError(
            f"a floor for {patients} patients needs twice as many, and the "
            f"cohort has {len(ids)}; load more, or compare fewer"
        )
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(draws):
        drawn = random.permutation(ids)[: 2 * patients]
        halves = (
            cohort[cohort[patient].isin(part)] for part in np.split(drawn, 2)
        )
        rows.append(metric(*halves))
    return pd.DataFrame(rows).reset_index(drop=True)


def _shares(table: pd.DataFrame, columns: Iterable[str]) -> pd.Series:
    """Share of rows in each combination of classes that occurs."""
    return table.value_counts(list(columns), normalize=True)


def _total_variation(a: pd.Series, b: pd.Series) -> float:
    """Half the summed absolute differences of two sets of shares."""
    return a.sub(b, fill_value=0.0).abs().sum() / 2
