"""Stream a cohort that no memory holds from Parquet, whole patients at a time.

A Parquet file is made of row groups, and its footer says which values lie in
which. Row groups are dealt out to processes and loader workers, read one by
one, and mixed in a buffer. The table is sorted by patient and month; a patient
may be spread over several row groups, and over several files.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from healthgym_utils import Preprocessor, Schema
from healthgym_utils.preprocess import Scaling
from healthgym_utils.schema import TableError
from healthgym_utils.sequences import Sequences, to_sequences

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "streaming reads Parquet with pyarrow, which is not installed: "
        "pip install pyarrow"
    ) from error

# Rows read at a time, where a patient's last ones are looked for.
GLANCE = 1024
# A reader holds a whole row group, at some 700 bytes a row on its way to
# tensors. Groups of the first size take 10 MB; above the second we warn.
GROUP_ROWS = 15_360
LARGE_GROUP = 150_000


@dataclass(frozen=True)
class RowGroup:
    """A row group, and what the footer says of it.

    Parameters
    ----------
    path : str
    index : int
        In its file.
    rows : int
    first, last : int
        Patients with the smallest and the largest identifier.
    months : tuple of int
        The first month and the last.
    low, high : tuple of float
        Extremes of the schema's reals, in their order.
    """

    path: str
    index: int
    rows: int
    first: int
    last: int
    months: tuple[int, int]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Say of a table that is refused where it was read."""
        try:
            yield
        except TableError as error:
            raise TableError(
                f"{self.path}: row group {self.index}: {error}"
            ) from None


class ParquetCohort:
    """Row groups of a tidy table in Parquet, in the order of patients.

    Only footers are read until rows are asked for, and a row group in which
    a footer finds fault, to name the row. A row group so large that memory
    may not hold it brings a warning.

    Parameters
    ----------
    paths : sequence of path
        One file or more, in the order of their patients.
    schema : Schema
        What the table holds.

    Raises
    ------
    TableError
        If a file is no Parquet, a column, a value or a column's statistics
        are missing, a column is of another type, a real is not finite or
        below its minimum, or patients are not in ascending order from row
        group to row group.
    """

    def __init__(
        self, paths: Sequence[str | os.PathLike], schema: Schema
    ) -> None:
        self.schema = schema
        self._footers = {os.fspath(path): _footer(path) for path in paths}
        self.groups = [
            group
            for path, footer in self._footers.items()
            for group in _row_groups(path, footer, schema)
        ]
        if not self.groups:
            raise TableError(f"no rows in {', '.join(map(str, paths))}")
        for before, group in zip(self.groups, self.groups[1:], strict=False):
            if group.first < before.last:
                raise TableError(
                    f"{group.path}: row group {group.index} begins with "
                    f"{schema.patient} {group.first}, after {before.last}; "
                    f"sort by {schema.patient} and {schema.month} before "
                    "writing, and name files in that order"
                )
        largest = max(self.groups, key=lambda group: group.rows)
        if largest.rows > LARGE_GROUP:
            warnings.warn(
                f"{largest.path}: row group {largest.index} has "
                f"{largest.rows:,} rows, all of which a reader holds at "
                "once; write the file with smaller ones: "
                f"to_parquet(..., row_group_size={GROUP_ROWS:_})",
                stacklevel=2,
            )

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def rows(self) -> int:
        """Rows of all row groups."""
        return sum(group.rows for group in self.groups)

    def fingerprint(self) -> str:
        """Hash all bytes of all files, so that mix-ups are found.

        Footers would not do: two labels that change places in all rows leave
        every size and every extreme as it was.
        """
        whole = hashlib.sha256()
        for path in self._footers:
            with open(path, "rb") as stream:
                whole.update(hashlib.file_digest(stream, "sha256").digest())
        return whole.hexdigest()

    def check_months(self, months: int) -> None:
        """Refuse months outside 0 to months - 1, by the footers.

        Raises
        ------
        TableError
            Naming row group, row and patient.
        """
        name = self.schema.month
        for group in self.groups:
            if group.months[0] >= 0 and group.months[1] < months:
                continue
            table = _frame(self._read(group))
            bad = ~table[name].between(0, months - 1).to_numpy()
            with group.refusing():
                raise TableError(
                    f"{name}: {group.months[0]} to {group.months[1]}, and 0 "
                    f"to {months - 1} are expected; the first one outside is "
                    f"in {self.schema.locate(table, bad)}. Count each "
                    "patient's months from 0, and ask for as many as the "
                    "longest history has"
                )

    def patients_of(self, k: int) -> pd.DataFrame:
        """Read all rows of the patients that begin in row group k.

        So each patient belongs to one row group, wherever the cuts are. The
        table is empty if none begins there.
        """
        group = self.groups[k]
        table = self._read(group)
        ids = self._ids(table, group)
        begun = k > 0 and self.groups[k - 1].last == group.first
        if begun:  # and read with the row group before
            start = int(np.searchsorted(ids, group.first, side="right"))
            table = table.slice(start)
        parts = [_frame(table)]
        if len(table):
            parts += self._rest_of(group.last, k + 1)
        # pandas puts together what Arrow does not: files may differ in how
        # wide a number is, or whether labels are categories or text.
        return pd.concat(parts, ignore_index=True)

    def _rest_of(self, patient: int, k: int) -> Iterator[pd.DataFrame]:
        """Read on where a patient's rows go past the end of a row group."""
        while k < len(self.groups) and self.groups[k].first == patient:
            group = self.groups[k]
            batches = self._open(group).iter_batches(
                GLANCE, [group.index], self._columns, use_threads=False
            )
            for batch in batches:
                table = pa.Table.from_batches([batch])
                ids = self._ids(table, group)
                stop = int(np.searchsorted(ids, patient, side="right"))
                yield _frame(table.slice(0, stop))
                if stop < len(ids):
                    return
            k += 1

    @property
    def _columns(self) -> list[str]:
        return [*self.schema.ids, *self.schema.names]

    def _read(self, group: RowGroup) -> pa.Table:
        return self._open(group).read_row_group(
            group.index, self._columns, use_threads=False
        )

    def _open(self, group: RowGroup) -> pq.ParquetFile:
        return pq.ParquetFile(group.path, metadata=self._footers[group.path])

    def _ids(self, table: pa.Table, group: RowGroup) -> np.ndarray:
        """Return the patient of each row, and refuse any other order."""
        ids = table[self.schema.patient].to_numpy()
        if (ids[1:] < ids[:-1]).any():
            at = int((ids[1:] < ids[:-1]).argmax())
            raise TableError(
                f"{group.path}: in row group {group.index}, "
                f"{self.schema.patient} {ids[at + 1]} comes after {ids[at]}; "
                f"sort by {self.schema.patient} and {self.schema.month} "
                "before writing"
            )
        return ids


def _footer(path: str | os.PathLike) -> pq.FileMetaData:
    """Read a footer; Arrow's own errors do not name the file."""
    try:
        return pq.read_metadata(path)
    except pa.ArrowInvalid as error:
        raise TableError(
            f"{path}: not a whole Parquet file ({error}); it may have been "
            "cut short: copy or write it again"
        ) from None


def _row_groups(
    path: str, footer: pq.FileMetaData, schema: Schema
) -> Iterator[RowGroup]:
    """Describe the row groups of a file by its footer."""
    if not footer.num_rows:  # pandas knows no type of text without any rows
        return
    _check_types(path, footer.schema.to_arrow_schema(), schema)
    at = {footer.schema.column(k).path: k for k in range(len(footer.schema))}
    for index in range(footer.num_row_groups):
        group = footer.row_group(index)
        if not group.num_rows:
            continue
        facts = {
            name: group.column(at[name]).statistics
            for name in (*schema.ids, *schema.names)
        }
        if fault := _fault(facts, schema):
            raise _refusal(path, index, schema, fault)
        patient, month = (facts[name] for name in schema.ids)
        reals = [facts[feature.name] for feature in schema.reals]
        yield RowGroup(
            path=path,
            index=index,
            rows=group.num_rows,
            first=patient.min,
            last=patient.max,
            months=(month.min, month.max),
            low=tuple(real.min for real in reals),
            high=tuple(real.max for real in reals),
        )


def _fault(facts: dict[str, Any], schema: Schema) -> str:
    """Say what the footer of a valid table would not have; "" for nothing.

    Parameters
    ----------
    facts : dict of str to pq.Statistics or None
        Of each column, in one row group.
    schema : Schema
    """
    for name, column in facts.items():
        if column is not None and column.null_count:
            return f"{name}: {column.null_count} values are missing"
    for name in (*schema.ids, *(feature.name for feature in schema.reals)):
        if facts[name] is None or not facts[name].has_min_max:
            return (
                f"no minimum and maximum of {name} in the footer; write the "
                "file with statistics"
            )
    for feature in schema.reals:
        low, high = facts[feature.name].min, facts[feature.name].max
        least = -math.inf if feature.minimum is None else feature.minimum
        if not (least <= low and math.isfinite(low) and math.isfinite(high)):
            return (
                f"{feature.name}: {low:g} to {high:g} by the footer, but not "
                "by the rows; write the file again"
            )
    return ""


def _refusal(path: str, index: int, schema: Schema, fault: str) -> TableError:
    """Find the row that a footer finds fault with; else repeat the fault."""
    names = [*schema.ids, *schema.names]
    table = pq.ParquetFile(path).read_row_group(index, names)
    try:
        schema.validate(_frame(table))
    except TableError as error:
        fault = str(error)
    return TableError(f"{path}: row group {index}: {fault}")


def _check_types(path: str, found: pa.Schema, schema: Schema) -> None:
    """Refuse columns that are missing, or hold something else."""
    wanted = dict.fromkeys(schema.ids, (pa.types.is_integer, "int"))
    for feature in schema:
        number, label = (_is_number, "float"), (_is_text, "str")
        wanted[feature.name] = number if feature.is_real else label
    for name, (is_right, kind) in wanted.items():
        if name not in found.names:
            raise TableError(
                f"{path}: column {name} is missing; there are "
                f"{', '.join(found.names)}"
            )
        if not is_right(found.field(name).type):
            raise TableError(
                f"{path}: column {name} is {found.field(name).type}; before "
                f'writing, convert it with table["{name}"].astype({kind})'
            )


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _is_text(kind: pa.DataType) -> bool:
    """Say whether a column is text, or categories of text."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
    )


def _frame(table: pa.Table) -> pd.DataFrame:
    """Convert to plain types, whatever pandas noted in the file."""
    return table.to_pandas(ignore_metadata=True)


def fit_preprocessor(
    cohort: ParquetCohort, patients: int = 10_000, seed: int = 0
) -> Preprocessor:
    """Fit to a cohort without reading it.

    Box-Cox's lambda comes from a sample of whole row groups: its error is
    small long before memory is full, if row groups resemble each other.
    Minimum and range do not: the largest value is one patient's, whom a sample
    misses. They come from the footers, which have those of every row.

    Parameters
    ----------
    cohort : ParquetCohort
        Training patients only, as in :meth:`Preprocessor.fit`.
    patients : int
        Row groups are drawn until they hold so many patients.
    seed : int
        Of the draw.

    Raises
    ------
    TableError
        As :meth:`Preprocessor.fit`.
    """
    patient = cohort.schema.patient
    drawn: dict[int, pd.DataFrame] = {}
    count = 0
    for k in np.random.default_rng(seed).permutation(len(cohort)):
        if count >= patients:
            break
        table = cohort.patients_of(int(k))
        if table.empty:
            continue
        with cohort.groups[k].refusing():
            cohort.schema.validate(table)
        drawn[int(k)] = table
        count += table[patient].nunique()
    sample = pd.concat([drawn[k] for k in sorted(drawn)], ignore_index=True)
    prep = Preprocessor(cohort.schema).fit(sample)
    for j, feature in enumerate(cohort.schema.reals):
        power = prep.scalings[feature.name].power
        # Box-Cox keeps the order: the extremes stay the extremes.
        ends = np.array(
            [
                min(group.low[j] for group in cohort.groups),
                max(group.high[j] for group in cohort.groups),
            ]
        )
        low, high = map(float, Scaling(power, 0.0, 1.0).forward(ends))
        prep.scalings[feature.name] = Scaling(power, low, high - low)
    return prep


class ParquetPatients(IterableDataset):
    """Serve each patient of a cohort once an epoch, over all processes.

    Row groups are shuffled and dealt out; patients are mixed in a buffer. The
    order follows from the seed, the epoch, the buffer, and how many processes
    and workers share the cohort. It does not follow from epochs before, so
    that a training resumes at the start of any without having read them.

    Parameters
    ----------
    cohort : ParquetCohort
    prep : Preprocessor
        Fitted; values outside its range are moved to its edge.
    months : int
        Months of a sequence, with zeros after a patient's last one.
    buffer : int
        Patients that the buffer of each worker holds.
    seed : int
    rank, ranks : int
        Which process this is, and of how many.

    Raises
    ------
    ValueError
        If the buffer holds nobody, or there is no such rank.
    TableError
        If a footer has months outside 0 to months - 1; and while reading, if
        a table cannot be folded.

    Yields
    ------
    Tensor, int
        A patient, float32, shape (months, schema.width), and how many months
        are real, from the first on: what ``Diffusion.train_step`` takes.
    """

    def __init__(
        self,
        cohort: ParquetCohort,
        prep: Preprocessor,
        months: int,
        buffer: int = 1024,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if buffer < 1 or not 0 <= rank < ranks:
            raise ValueError(
                "a buffer of 1 patient or more, and a rank below the number "
                f"of ranks; got {buffer}, and rank {rank} of {ranks}"
            )
        cohort.check_months(months)
        self.cohort = cohort
        self.prep = prep
        self.months = months
        self.buffer = buffer
        self.seed = seed
        self.rank, self.ranks = rank, ranks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next pass is; persistent workers miss it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        shard, shards = self.rank * workers + worker, self.ranks * workers
        seeds = [self.seed, self.epoch]
        order = np.random.default_rng(seeds).permutation(len(self.cohort))
        mine = map(int, order[shard::shards])
        random = np.random.default_rng([*seeds, shard])
        patients = (p for k in mine for p in self._sequences(k))
        return mixed(patients, self.buffer, random)

    def _sequences(self, k: int) -> Iterator[tuple[Tensor, int]]:
        """Turn the patients of a row group into tensors."""
        table = self.cohort.patients_of(k)
        if table.empty:
            return
        with self.cohort.groups[k].refusing():
            folded = self._folded(table)
        padding = self.months - len(folded.months)
        values = F.pad(folded.values, (0, 0, 0, padding))
        for value, length in zip(values, folded.lengths.tolist(), strict=True):
            yield value.clone(), length  # or one patient keeps all in memory

    def _folded(self, table: pd.DataFrame) -> Sequences:
        """Fold a table, of which each patient has all months from 0 on."""
        schema = self.cohort.schema
        matrix = self.prep.design_matrix(table, clip=True)
        folded = to_sequences(
            pd.concat([matrix, table[schema.ids]], axis=1),
            schema.columns,
            schema.patient,
            schema.month,
            ragged="pad",
        )
        mask = folded.mask
        gaps = (mask[:, 1:] & ~mask[:, :-1]).any(dim=1) | ~mask[:, 0]
        gaps |= bool(folded.months[0] > 0)  # then all begin late
        if gaps.any():
            patient = folded.patients[int(gaps.int().argmax())]
            raise TableError(
                f"{schema.month}: {schema.patient} {patient} lacks a month "
                "before the last one; each needs all from 0 on"
            )
        return folded


def mixed(
    items: Iterable[Any], size: int, random: np.random.Generator
) -> Iterator[Any]:
    """Shuffle a stream in a buffer: each item leaves by the draw."""
    held: list[Any] = []
    for item in items:
        if len(held) < size:
            held.append(item)
            continue
        place = int(random.integers(size))
        yield held[place]
        held[place] = item
    for place in random.permutation(len(held)):
        yield held[place]
