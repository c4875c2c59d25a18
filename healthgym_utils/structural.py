"""Structural validity: does a synthetic cohort lead to the same conclusions.

The question of many studies of this cohort is how fast patients respond: how
likely a patient whose viral load is still high becomes suppressed, by drug
and by group of people. This module answers it as an analyst would, on any
cohort, and compares the answers of a real and a synthetic one with each other
and with the truth, which the simulated cohort knows
(:func:`healthgym_utils.simulate.true_effects`).

There are two truths to compare with, and they answer two questions. *The
ratios built in* act on one patient, given all that drives that patient. No
analyst sees those: patients differ in ways that no column holds (frailty),
which draws the ratios of a whole cohort towards 1; viral load falls below
the limit months after the drugs have won; and ART_SCHEMA leaves out drugs
that matter. Take them to judge the *analysis*. *What the same analysis finds
in a very large cohort* of another seed is what it can find at best. Take it
to judge a cohort of a few hundred patients, real or synthetic.

Intervals know of the patients in the table, and not of those that a
generator has learnt from. Ten thousand synthetic patients make them narrow,
and the estimates of a generator that saw three hundred no better.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from sklearn.linear_model import PoissonRegressor

from healthgym_utils.schema import (
    ART_FULL_SCHEMA,
    Feature,
    Schema,
    TableError,
    suppressed,
)
from healthgym_utils.trajectories import Cohort, Outcome, Panel, times_to

# The variables that drive response in the simulated cohort, each with the
# commonest of the classes that have the built-in ratio 1.
ART_REFERENCES = {
    "Comp_INI": "Not Applied",
    "Comp_NNRTI": "Not Applied",
    "Base_Drug_Combo": "FTC + TDF",
    "Ethnic": "Caucasian",
    "Gender": "Male",
}
# Response is seen late: nine in ten simulated patients who turn have a low
# viral load, twice in a row, within six months. Drugs of the months between
# may be a consequence of the response.
LAG = 6
MIN_EVENTS = 5  # Vittinghoff & McCulloch (2007)
PERIODS = 12  # of the baseline
RIDGE = 0.01  # on squared log ratios: keeps a class without events finite
Z = 1.959964  # of a 95 % interval
KEYS = ["feature", "level", "reference"]


# --- Estimates --------------------------------------------------------------


def person_months(
    cohort: Cohort,
    schema: Schema = ART_FULL_SCHEMA,
    features: Iterable[str] | None = None,
    outcome: Outcome = suppressed,
    run: int = 2,
    lag: int = LAG,
) -> pd.DataFrame:
    """List the months in which a first response was possible.

    At risk are patients without the outcome in the first month, from month
    `lag` to their event or, if they have none, to the last month in which
    one could begin. The event is that of
    :func:`healthgym_utils.trajectories.times_to`: the first of `run` months
    in a row with the outcome. One month can be chance; and were relapses
    counted too, most would be single high values, which pass by themselves
    and whatever the drug.

    Parameters
    ----------
    cohort : DataFrame or Panel
        A panel has to hold the outcome, and `outcome` is not asked again.
    schema : Schema
    features : iterable of str, optional
        Variables with classes; those of ``ART_REFERENCES`` that the schema
        has if not given.
    outcome : callable
        Takes the tidy table, says which rows have the outcome.
    run : int
        Months in a row that make an event.
    lag : int
        How many months before, 1 or more, the variables are looked up.
        With one, a drug may follow the response, not cause it: those which
        doctors give to patients who do well then look like good drugs.

    Returns
    -------
    DataFrame
        One row a patient and month at risk, sorted by both: the patient's
        position, the month, ``event``, and the features `lag` months before.

    Raises
    ------
    TableError
        If the table breaks the schema or lacks what the outcome asks for, or
        nobody is at risk.
    ValueError
        If a feature or the lag is impossible.
    """
    names = list(_references(None, schema) if features is None else features)
    panel = _fold(cohort, schema, outcome)
    times = times_to(panel, schema, None, run)
    months = panel.shape[1]
    if not 1 <= lag < months:
        raise ValueError(f"lag is 1 to {months - 1} months, got {lag}")
    month = np.arange(months)
    at_risk = ~panel.outcome[:, :1] & (month <= times.months[:, None])
    if not at_risk.any():
        raise TableError(
            f"nobody is at risk: all {panel.shape[0]} patients have the "
            "outcome in their first month. Viral loads are in copies/mL, "
            "not in log10; is the outcome the right one?"
        )
    patient, month = np.nonzero(at_risk & (month >= lag))
    event = times.happened[patient] & (month == times.months[patient])
    columns = {schema.patient: patient, schema.month: month, "event": event}
    for name in names:
        feature = _with_classes(schema, name)
        codes = panel[name][patient, month - lag]
        columns[name] = pd.Categorical.from_codes(codes, feature.classes)
    return pd.DataFrame(columns)


def effects(
    cohort: Cohort,
    schema: Schema = ART_FULL_SCHEMA,
    references: Mapping[str, str] | None = None,
    outcome: Outcome = suppressed,
    run: int = 2,
    lag: int = LAG,
    min_events: int = MIN_EVENTS,
) -> pd.DataFrame:
    r"""Estimate by how much each class speeds a first response up.

    Ratios of the monthly probability :math:`h` of an event, in the months of
    :func:`person_months`, each adjusted for all other variables and for the
    months at risk:

    .. math:: \log h_{im} = \beta_0 + \gamma_{period(m)} + x_{i,m-lag} \beta

    The baseline is constant in twelve periods with about as many events each.
    Fitted as a Poisson regression of the events (the piecewise-exponential
    model of Holford 1980 and Laird & Olivier 1981; for a probability, the
    modified Poisson regression of Zou 2004), by scikit-learn. Intervals are
    95 %, :math:`\exp(\hat\beta \pm 1.96\,s)`, with s from a jackknife
    that leaves out one patient at a time, in one Newton step (the CR3 of
    Bell & McCaffrey 2002): a patient's months go together, and a 0 or 1 has
    not the variance of a count. A ridge of 0.01 on squared log ratios keeps
    classes without an event finite, and moves the ratios that are reported
    by about a thousandth.

    Parameters
    ----------
    cohort, schema, outcome, run, lag
        As in :func:`person_months`.
    references : mapping of str to str, optional
        The variables, and of each the class that others are compared with;
        those of ``ART_REFERENCES`` that the schema has if not given. In
        ART_SCHEMA there is no INI: its base combinations stand for the INI
        that they come with, too.
    min_events : int
        A class with fewer events has no estimate, nor has any class of a
        variable with fewer in its reference. Its months stay in the fit, as
        a class of their own: pooled, they would blur another.

    Returns
    -------
    DataFrame
        One row a class that is no reference: ``feature``, ``level``,
        ``reference``; ``hazard_ratio``, ``low``, ``high``, NaN without an
        estimate; ``events``, and ``months`` at risk.

    Raises
    ------
    TableError, ValueError
        As in :func:`person_months`; or if there are too few events for any
        estimate, or a reference is none of the classes.

    Notes
    -----
    Pitfall: what an analyst would call a treatment effect is an adjusted
    association. It has the meaning of one only for the simulated cohort, of
    which it is known that nothing else confounds it.
    """
    if min_events < 1:
        raise ValueError(f"min_events is 1 or more, got {min_events}")
    chosen = _references(references, schema)
    table = person_months(cohort, schema, chosen, outcome, run, lag)
    event = table["event"].to_numpy()
    if event.sum() < min_events:
        raise TableError(
            f"{int(event.sum())} events from month {lag} on are too few for "
            f"any estimate, which takes {min_events}; use more patients or "
            "months"
        )
    found = _count(table, chosen, schema)
    x = np.stack([table[f] == level for f, level, *_ in found.to_numpy()], 1)
    log_ratio, error = _fit(x.astype(float), event, table)
    enough = found[["events", "against"]].min(axis=1) >= min_events
    for column, z in (("hazard_ratio", 0.0), ("low", -Z), ("high", Z)):
        ratio = np.exp(log_ratio + z * error)
        found[column] = np.where(enough, ratio, np.nan)
    return found[[*KEYS, "hazard_ratio", "low", "high", "events", "months"]]


def _count(
    table: pd.DataFrame, references: Mapping[str, str], schema: Schema
) -> pd.DataFrame:
    """Count events and months of each class, and events of its reference."""
    rows = []
    for name, reference in references.items():
        months = table[name].value_counts()
        events = table.loc[table["event"], name].value_counts()
        against = events[reference]
        rows += [
            (name, level, reference, events[level], months[level], against)
            for level in schema[name].classes
            if level != reference
        ]
    return pd.DataFrame(rows, columns=[*KEYS, "events", "months", "against"])


def _fold(cohort: Cohort, schema: Schema, outcome: Outcome) -> Panel:
    try:
        return Panel.of(cohort, schema, outcome)
    except KeyError as missing:
        raise TableError(
            f"{missing}: the outcome asks for this column, which the table "
            "lacks; pass an outcome that this cohort has"
        ) from missing


def _with_classes(schema: Schema, name: str) -> Feature:
    if schema[name].is_real:
        raise ValueError(f"{name}: a real variable has no classes to compare")
    return schema[name]


def _references(
    references: Mapping[str, str] | None, schema: Schema
) -> dict[str, str]:
    """Take the references that are given, or those that the schema has."""
    if references is None:
        names = set(schema.names)
        chosen = {k: v for k, v in ART_REFERENCES.items() if k in names}
    else:
        chosen = dict(references)
    if not chosen:
        raise ValueError(
            f"{schema.name}: name variables with classes to compare, as it "
            f"has none of {', '.join(ART_REFERENCES)}"
        )
    for name, reference in chosen.items():
        classes = _with_classes(schema, name).classes
        if reference not in classes:
            raise ValueError(
                f"{name}: the reference {reference!r} is none of its "
                f"classes, {', '.join(classes)}"
            )
    return chosen


def _fit(
    x: np.ndarray, event: np.ndarray, table: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray]:
    """Fit log ratios of columns, and their standard errors."""
    patient, month = (table.iloc[:, k].to_numpy() for k in (0, 1))
    shares = np.arange(1, PERIODS) / PERIODS
    # Periods end where events are, so that none is without.
    ends = np.unique(np.quantile(month[event], shares, method="higher"))
    period = np.searchsorted(ends, month)
    baseline = period[:, None] == np.arange(1, period.max() + 1)
    design = np.hstack([x, baseline])
    model = PoissonRegressor(
        alpha=RIDGE / len(event),  # scikit-learn averages the deviance
        solver="newton-cholesky",
        tol=1e-8,
        max_iter=1000,
    ).fit(design, event)
    error = _jackknife(design, event, model.predict(design), patient)
    width = x.shape[1]
    return model.coef_[:width], error[:width]


def _jackknife(
    x: np.ndarray, event: np.ndarray, rate: np.ndarray, patient: np.ndarray
) -> np.ndarray:
    """Leave out each patient, in one Newton step; errors of all columns."""
    x = np.hstack([x, np.ones((len(x), 1))])
    penalty = np.full(x.shape[1], RIDGE)
    penalty[-1] = 0.0  # as scikit-learn's intercept has none
    weighted = x * rate[:, None]
    first = np.flatnonzero(np.diff(patient, prepend=-1))
    scores = np.add.reduceat(x * (event - rate)[:, None], first)
    own = np.stack(
        [
            a.T @ b
            for a, b in zip(
                np.split(x, first[1:]),
                np.split(weighted, first[1:]),
                strict=True,
            )
        ]
    )
    information = x.T @ weighted + np.diag(penalty)
    steps = np.linalg.solve(information - own, scores[..., None])[..., 0]
    n = len(first)
    return np.sqrt((n - 1) / n * (steps**2).sum(axis=0))


# --- Comparison -------------------------------------------------------------


def compare_effects(
    real: pd.DataFrame, fake: pd.DataFrame, truth: pd.DataFrame
) -> pd.DataFrame:
    """Lay estimates of two cohorts out next to the truth.

    Parameters
    ----------
    real, fake : DataFrame
        From :func:`effects`, with the same schema and references.
    truth : DataFrame
        The ratios built in, as
        :func:`healthgym_utils.simulate.true_effects` lists them; or what
        :func:`effects` finds in a large cohort, with the same arguments:
        the module says which one to take.

    Returns
    -------
    DataFrame
        One row an effect with a truth; what has no estimate is missing.
        ``truth``, and whether it has a sign: it differs from 1, or its
        interval leaves 1 out. Then, once with ``real_`` and once with
        ``fake_`` in front, the estimates, and ``bias``: log ratio less that
        of the truth; ``covers``: whether the interval holds the truth;
        ``sign_kept``, missing where the truth has none. Last, ``shift``: log
        ratio of fake over real; and ``overlap`` of their two intervals, 1 if
        they are one and below 0 if they are apart (Karr et al. 2006).

    Raises
    ------
    ValueError
        If the tables list other effects, or the truth lacks one.
    """
    if not real[KEYS].equals(fake[KEYS]):
        raise ValueError(
            "the two tables list other effects; make both with the same "
            "schema and references"
        )
    table = real[KEYS].join(_truth(truth, real))
    for name, found in (("real", real), ("fake", fake)):
        ratio, low, high = (found[c] for c in ("hazard_ratio", "low", "high"))
        known, target = ratio.notna(), table["truth"]
        kept = (ratio > 1) == (target > 1)
        columns = {
            "ratio": ratio,
            "low": low,
            "high": high,
            "events": found["events"],
            "bias": np.log(ratio / target),
            "covers": _where(known, (low <= target) & (target <= high)),
            "sign_kept": _where(known & table["has_sign"], kept),
        }
        table = table.join(pd.DataFrame(columns).add_prefix(f"{name}_"))
    table["shift"] = np.log(fake["hazard_ratio"] / real["hazard_ratio"])
    table["overlap"] = _overlap(real, fake)
    return table[table["truth"].notna()].reset_index(drop=True)


def structural_validity(comparison: pd.DataFrame) -> pd.DataFrame:
    """Sum a comparison up: are effects there, right, and as sure as they say.

    Parameters
    ----------
    comparison : DataFrame
        From :func:`compare_effects`.

    Returns
    -------
    DataFrame
        Two rows, ``real`` and ``fake``. ``effects`` with a truth, and how
        many are ``estimated``; ``signs``: truths with one; ``signs_estimated``
        and ``signs_kept`` of these. Means over the estimated effects:
        ``log_bias``, absolute (0 is best; 0.69 is twice or half);
        ``coverage`` of the intervals (0.95). For the fake cohort over
        effects estimated in both: ``log_shift`` from the real one, absolute,
        and ``overlap``. Pitfalls: chance alone keeps half of the signs; a
        cohort that loses a class loses its bias, too, so look at
        ``estimated``.
    """
    rows = {}
    for name in ("real", "fake"):
        own = comparison.filter(regex=f"^{name}_")
        own.columns = own.columns.str.removeprefix(f"{name}_")
        rows[name] = {
            "effects": len(own),
            "estimated": own["ratio"].notna().sum(),
            "signs": comparison["has_sign"].sum(),
            "signs_estimated": own["sign_kept"].notna().sum(),
            "signs_kept": own["sign_kept"].sum(),
            "log_bias": own["bias"].abs().mean(),
            "coverage": own["covers"].astype(float).mean(),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    whole = ["effects", "estimated", "signs", "signs_estimated", "signs_kept"]
    table[whole] = table[whole].astype(int)
    shift = comparison["shift"].abs().mean()
    table["log_shift"] = [np.nan, shift]
    table["overlap"] = [np.nan, comparison["overlap"].mean()]
    return table


def _truth(truth: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Find the true ratio to the reference of each effect, and its sign."""
    if "value" in truth:
        values = truth.set_index(["feature", "level"])["value"]
        needed = pd.MultiIndex.from_frame(found[["feature", "level"]])
        against = pd.MultiIndex.from_frame(found[["feature", "reference"]])
        for keys in (needed, against):
            if len(missing := keys.difference(values.index)):
                raise ValueError(
                    f"the truth lacks {' '.join(missing[0])}; take another "
                    "truth, or leave the variable out of the references"
                )
        ratio = values[needed].to_numpy() / values[against].to_numpy()
        return pd.DataFrame({"truth": ratio, "has_sign": ratio != 1})
    if not truth[KEYS].equals(found[KEYS]):
        raise ValueError(
            "the truth lists other effects than the estimates; make it with "
            "the same schema and references"
        )
    sign = (truth["low"] > 1) | (truth["high"] < 1)
    return pd.DataFrame({"truth": truth["hazard_ratio"], "has_sign": sign})


def _where(known: pd.Series, value: pd.Series) -> pd.Series:
    """Make a truth value missing where nothing is known."""
    return value.astype("boolean").where(known)


def _overlap(real: pd.DataFrame, fake: pd.DataFrame) -> pd.Series:
    """Share of each of two intervals of log ratios in both, averaged."""
    bounds = [np.log(t[c]) for c in ("low", "high") for t in (real, fake)]
    low_a, low_b, high_a, high_b = bounds
    # NumPy's, which let what is missing through, as Series' would not.
    both = np.minimum(high_a, high_b) - np.maximum(low_a, low_b)
    return (both / (high_a - low_a) + both / (high_b - low_b)) / 2
