"""Plain baselines: what a generator has to beat before it is worth training.

Each takes the training patients as a tidy table and makes a synthetic cohort
of as many patients and months from it, with nothing but counting and drawing.
Each breaks something else, so that a figure that should notice can be seen to
notice: :func:`copy` breaks privacy, :func:`shuffle_rows` time,
:func:`exchange_trajectories` relations between variables, and
:func:`markov_walk` all relations but those of a month with the next one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from healthgym_utils.preprocess import EPSILON
from healthgym_utils.schema import Feature, Schema
from healthgym_utils.trajectories import Panel, transitions


def copy(train: pd.DataFrame, schema: Schema, seed: int = 0) -> pd.DataFrame:
    """Hand the training patients out again, in another order.

    As faithful as can be, and nobody's privacy is kept: it has to be at the
    floor of every figure but those of privacy.

    Parameters
    ----------
    train : DataFrame
        Tidy table, as many months for each patient.
    schema : Schema
        Which columns are taken over.
    seed : int
        Of the order of the patients.

    Returns
    -------
    DataFrame
        Patients are numbered from 0; the months are those of `train`.

    Raises
    ------
    TableError
        If the table breaks the schema, or a patient lacks a month.
    """
    patients, months = Panel.of(train, schema).shape
    random = np.random.default_rng(seed)
    rows = _histories(random.permutation(patients), months)
    return _taken(train, dict.fromkeys(schema.names, rows), schema)


def shuffle_rows(
    train: pd.DataFrame, schema: Schema, seed: int = 0
) -> pd.DataFrame:
    """Deal the rows of all patients out anew, whole rows at random.

    Each variable, and each relation within a row, stays exactly as it was;
    nobody has a history any more.

    Parameters
    ----------
    train, schema
        As in :func:`copy`.
    seed : int
        Of the shuffle.

    Returns
    -------
    DataFrame
        As :func:`copy`.

    Raises
    ------
    TableError
        As :func:`copy`.
    """
    Panel.of(train, schema)
    rows = np.random.default_rng(seed).permutation(len(train))
    return _taken(train, dict.fromkeys(schema.names, rows), schema)


def exchange_trajectories(
    train: pd.DataFrame, schema: Schema, seed: int = 0
) -> pd.DataFrame:
    """Put patients together from histories of different people.

    Each variable's whole history comes from a patient of its own: every
    single history is a real one, and no two of them belong together, given
    more patients than variables.

    Parameters
    ----------
    train, schema
        As in :func:`copy`.
    seed : int
        Of who gets whose history; each is given once.

    Returns
    -------
    DataFrame
        As :func:`copy`.

    Raises
    ------
    TableError
        As :func:`copy`.
    """
    patients, months = Panel.of(train, schema).shape
    order = np.random.default_rng(seed).permutation(patients)
    # Each variable one place further on in a ring: never from one person.
    rows = {
        name: _histories(np.roll(order, place), months)
        for place, name in enumerate(schema.names)
    }
    return _taken(train, rows, schema)


def markov_walk(
    train: pd.DataFrame, schema: Schema, seed: int = 0
) -> pd.DataFrame:
    """Start each patient as somebody, then let each variable go its own way.

    The first month is that of a training patient, drawn with replacement,
    so that statics and first drugs go together. From there statics stay; a
    variable with classes follows a first-order Markov chain, with the
    transition matrix of the training patients; a real one takes steps drawn
    from all steps that training patients took, on log10 where the schema
    says Box-Cox, and turns back at the ends of the observed range.

    Parameters
    ----------
    train, schema
        As in :func:`copy`.
    seed : int
        Of all draws.

    Returns
    -------
    DataFrame
        As :func:`copy`.

    Raises
    ------
    TableError
        As :func:`copy`.
    """
    panel = Panel.of(train, schema)
    patients, months = panel.shape
    random = np.random.default_rng(seed)
    start = random.integers(patients, size=patients)
    columns = {}
    for feature in schema:
        seen = panel[feature.name]
        first = seen[start, 0]
        if feature.static:
            path = np.repeat(first[:, None], months, axis=1)
        elif feature.is_real:
            path = _walk(first, seen, random)
        else:
            counts = transitions(panel, schema, feature.name).to_numpy()
            path = _chain(first, counts, months, random)
        columns[feature.name] = _column(path, feature, train[feature.name])
    return _grid(train, schema).assign(**columns)


def _chain(
    first: np.ndarray,
    counts: np.ndarray,
    months: int,
    random: np.random.Generator,
) -> np.ndarray:
    """Draw Markov chains from counts of steps; shape (patients, months)."""
    # Who is in a class that nobody was seen to leave or to stay in, stays.
    counts = counts + np.diag(counts.sum(axis=1) == 0)
    reached = counts.cumsum(axis=1) / counts.sum(axis=1, keepdims=True)
    path = [first]
    for _ in range(months - 1):
        draw = random.random((len(first), 1))
        path.append((draw >= reached[path[-1]]).sum(axis=1))
    return np.stack(path, axis=1)


def _walk(
    first: np.ndarray, seen: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Walk by steps that were seen, within the range that was seen.

    Shapes (patients,) and (patients, months) to (patients, months).
    """
    steps = np.diff(seen, axis=1).ravel()
    low, high = seen.min(), seen.max()
    path = [first]
    for step in random.choice(steps, size=(seen.shape[1] - 1, len(first))):
        place = path[-1] + step
        # No step is longer than the range, so that one reflection is enough.
        place = np.where(place < low, 2 * low - place, place)
        path.append(np.where(place > high, 2 * high - place, place))
    return np.stack(path, axis=1)


def _column(
    path: np.ndarray, feature: Feature, train: pd.Series
) -> pd.Categorical | np.ndarray:
    """Bring a path back to labels, or to a lab's unit."""
    if not feature.is_real:
        return pd.Categorical.from_codes(path.ravel(), feature.classes)
    values = path.ravel()
    if feature.transform == "boxcox":
        values = 10**values - EPSILON
    # Rounding may leave the observed range, and so what the schema allows.
    return values.clip(train.min(), train.max())


def _histories(patients: np.ndarray, months: int) -> np.ndarray:
    """Positions of all rows of some patients, in a sorted table."""
    return (patients[:, None] * months + np.arange(months)).ravel()


def _grid(train: pd.DataFrame, schema: Schema) -> pd.DataFrame:
    """Give as many patients and months as in training, numbered from 0."""
    ids = train[schema.ids].sort_values(schema.ids, ignore_index=True)
    number = pd.factorize(ids[schema.patient])[0]
    return ids.assign(**{schema.patient: number})


def _taken(
    train: pd.DataFrame, rows: Mapping[str, np.ndarray], schema: Schema
) -> pd.DataFrame:
    """Fill the grid with rows of the sorted table, variable by variable."""
    table = train.sort_values(schema.ids)
    columns = {name: table[name].array[rows[name]] for name in schema.names}
    return _grid(train, schema).assign(**columns)
