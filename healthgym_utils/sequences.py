"""From a table of (patient, month) rows to tensors, batches and lessons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from healthgym_utils.schema import TableError

Window = Literal["first", "random"]


class Sequences(NamedTuple):
    """Patients folded into a tensor.

    Attributes
    ----------
    values : Tensor, float32, shape (patients, months, columns)
        Zero where a month is missing.
    mask : Tensor, bool, shape (patients, months)
        True where the table has the month.
    patients, months : ndarray of int
        What the first two axes stand for, in ascending order.
    """

    values: Tensor
    mask: Tensor
    patients: np.ndarray
    months: np.ndarray

    @property
    def lengths(self) -> Tensor:
        """Months present a patient, shape (patients,).

        With a gap in the middle these are not the first months: the mask
        says which ones they are.
        """
        return self.mask.sum(dim=1)


def to_sequences(
    table: pd.DataFrame,
    columns: Sequence[str],
    patient: str = "PatientID",
    month: str = "Timestep",
    unsorted: Literal["sort", "refuse"] = "sort",
    ragged: Literal["refuse", "pad"] = "refuse",
) -> Sequences:
    """Fold a table of (patient, month) rows into one sequence a patient.

    Parameters
    ----------
    table : DataFrame
        One row a (patient, month).
    columns : sequence of str
        Numeric columns that become the last axis, in this order.
    patient, month : str
        The identifier columns, integers.
    unsorted : {"sort", "refuse"}
        What to do with rows out of (patient, month) order.
    ragged : {"refuse", "pad"}
        What to do when a patient lacks a month that another has: refuse,
        or leave zeros there and mark them False in the mask.

    Raises
    ------
    TableError
        If a column is missing or not numeric, a value is not finite, a
        (patient, month) occurs twice, or the two choices above say refuse.
    """
    if ragged not in ("refuse", "pad"):
        raise ValueError(f'ragged is "refuse" or "pad", not {ragged!r}')
    _check_columns(table, [patient, month], columns)
    table = _in_order(table, patient, month, unsorted)
    ids = table[patient].to_numpy()
    times = table[month].to_numpy()
    twice = (ids[1:] == ids[:-1]) & (times[1:] == times[:-1])
    if twice.any():
        at = int(twice.argmax())
        raise TableError(
            f"patient {ids[at]}, month {times[at]} occurs twice; "
            "keep one row a month"
        )
    patients, slot = np.unique(ids, return_inverse=True)
    n_months = int(times.max() - times.min()) + 1
    if ragged == "refuse" and len(table) != len(patients) * n_months:
        _refuse_ragged(ids, times)
    months = np.arange(times.min(), times.max() + 1)
    step = times - times.min()
    values = np.zeros((len(patients), n_months, len(columns)), np.float32)
    values[slot, step] = table[list(columns)].to_numpy(dtype=np.float64)
    mask = np.zeros((len(patients), n_months), bool)
    mask[slot, step] = True
    return Sequences(
        torch.from_numpy(values), torch.from_numpy(mask), patients, months
    )


def _check_columns(
    table: pd.DataFrame, ids: Sequence[str], columns: Sequence[str]
) -> None:
    """Refuse missing, non-numeric or non-finite columns."""
    for column in (*ids, *columns):
        if column not in table.columns:
            raise TableError(f"{column}: this column is missing")
    if table.empty:
        raise TableError("the table is empty: it has no rows")
    for column in ids:
        if not pd.api.types.is_integer_dtype(table[column].dtype):
            raise TableError(
                f"{column}: identifiers must be integers, "
                f"this column is {table[column].dtype}"
            )
    for column in columns:
        dtype = table[column].dtype
        if not pd.api.types.is_numeric_dtype(dtype):
            raise TableError(
                f"{column}: expected numbers, this column is {dtype}; "
                "encode labels first, with a Preprocessor"
            )
        values = table[column].to_numpy(dtype=float, na_value=np.nan)
        finite = np.isfinite(values)
        if not finite.all():
            at = int((~finite).argmax())
            row = table.iloc[at]
            raise TableError(
                f"{column}: value {values[at]} in row {table.index[at]} "
                f"(patient {row[ids[0]]}, month {row[ids[1]]})"
            )


def _in_order(
    table: pd.DataFrame, patient: str, month: str, unsorted: str
) -> pd.DataFrame:
    """Return the rows in (patient, month) order, or refuse them."""
    if unsorted not in ("sort", "refuse"):
        raise ValueError(f'unsorted is "sort" or "refuse", not {unsorted!r}')
    ids, times = table[patient].to_numpy(), table[month].to_numpy()
    back = (ids[1:] < ids[:-1]) | (
        (ids[1:] == ids[:-1]) & (times[1:] < times[:-1])
    )
    if not back.any():
        return table
    if unsorted == "refuse":
        at = int(back.argmax()) + 1
        raise TableError(
            f"row {table.index[at]} (patient {ids[at]}, month {times[at]}) "
            f"comes after patient {ids[at - 1]}, month {times[at - 1]}: "
            f'sort the table by {patient} and {month}, or pass unsorted="sort"'
        )
    return table.sort_values([patient, month], kind="stable")


def _refuse_ragged(ids: np.ndarray, times: np.ndarray) -> None:
    """Name the patients that lack a month, and the first month lacking."""
    wanted = np.arange(times.min(), times.max() + 1)
    counts = pd.Series(times).groupby(ids).count()
    short = counts.index[counts < len(wanted)]
    first = short[0]
    lacking = np.setdiff1d(wanted, times[ids == first])[0]
    names = ", ".join(map(str, short[:5])) + (", ..." * (len(short) > 5))
    raise TableError(
        f"patient {first} lacks month {lacking}; months "
        f"{wanted[0]} to {wanted[-1]} are needed and {len(short)} "
        f"patient(s) are incomplete: {names}. Complete or drop them, or "
        'let to_sequences pad them (ragged="pad")'
    )


class RandomWindows(Dataset):
    """Sequences cut to a random window of fixed length at every visit.

    Parameters
    ----------
    x : Tensor, shape (patients, months, columns)
    length : int
        Months a window.
    generator : torch.Generator
        Draws where each window starts.
    """

    def __init__(
        self, x: Tensor, length: int, generator: torch.Generator
    ) -> None:
        self.x = x
        self.length = length
        self.generator = generator

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        starts = self.x.shape[1] - self.length + 1
        start = int(torch.randint(starts, (), generator=self.generator))
        window = self.x[index, start : start + self.length]
        return window, torch.tensor(self.length)


def sequence_loader(
    x: Tensor,
    batch_size: int = 256,
    length: int | None = None,
    window: Window = "first",
    shuffle: bool = True,
    drop_last: bool = False,
    seed: int = 0,
) -> DataLoader:
    """Serve sequences in batches of (values, lengths).

    Parameters
    ----------
    x : Tensor, shape (patients, months, columns)
    batch_size : int
        Patients a batch.
    length : int or None
        Months a sequence; all of them if None.
    window : {"first", "random"}
        Which months: the first ones, or a random stretch at every visit.
    shuffle : bool
        Whether each pass has an order of its own.
    drop_last : bool
        Whether a last, smaller batch is thrown away. The published series
        does so, which costs 44 of 300 patients at batch size 256.
    seed : int
        Seed of the order and of the windows.

    Raises
    ------
    ValueError
        If x is not three-dimensional, the length does not fit, or
        ``drop_last`` would leave no batch.
    """
    _check_tensor(x)
    length = x.shape[1] if length is None else length
    if not 1 <= length <= x.shape[1]:
        raise ValueError(
            f"length {length} does not fit sequences of {x.shape[1]} months"
        )
    if window not in ("first", "random"):
        raise ValueError(f'window is "first" or "random", not {window!r}')
    if drop_last and batch_size > len(x):
        raise ValueError(
            f"drop_last with {len(x)} patients and batch_size {batch_size} "
            "would serve no batch at all"
        )
    generator = torch.Generator().manual_seed(seed)
    if window == "random":
        data = RandomWindows(x, length, generator)
    else:
        data = TensorDataset(x[:, :length], torch.full((len(x),), length))
    return DataLoader(
        data,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        generator=generator,
    )


def curriculum_loaders(
    x: Tensor,
    lengths: Iterable[int] | None = None,
    batch_size: int = 256,
    window: Window = "first",
    shuffle: bool = True,
    drop_last: bool = False,
    seed: int = 0,
) -> dict[int, DataLoader]:
    """One loader a lesson, from short sequences to long ones.

    An epoch walks the loaders in order, so that a model sees short histories
    before long ones: curriculum learning (Bengio et al. 2009), begun anew in
    every epoch, as the published series does.

    Parameters
    ----------
    x : Tensor, shape (patients, months, columns)
    lengths : iterable of int or None
        Months a lesson; if None every tenth month and the last, which is
        10, 20, ..., 60 for sixty months. A repeated length counts once.
    batch_size, window, shuffle, drop_last, seed
        As in :func:`sequence_loader`; lesson k uses ``seed + k``.

    Returns
    -------
    dict of int to DataLoader
        Keyed by length, in ascending order.
    """
    _check_tensor(x)
    if lengths is None:
        lengths = [*range(10, x.shape[1], 10), x.shape[1]]
    return {
        length: sequence_loader(
            x, batch_size, length, window, shuffle, drop_last, seed + k
        )
        for k, length in enumerate(sorted(set(lengths)))
    }


def _check_tensor(x: Tensor) -> None:
    """Refuse anything but a batch of sequences."""
    if not isinstance(x, Tensor) or x.ndim != 3 or 0 in x.shape:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"expected a tensor of shape (patients, months, columns), "
            f"got {got}"
        )
