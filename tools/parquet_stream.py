"""Stream a cohort that no memory holds from Parquet, whole patients at a time.

A Parquet file is made of row groups, and its footer says which values lie in
which. Row groups are dealt out to processes and loader workers, read one by
one, and mixed in a buffer. The table is sorted by patient and month; a patient
may be spread over several row groups, and over several files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from healthgym_utils import Preprocessor, Schema
from healthgym_utils.preprocess import Scaling
from healthgym_utils.schema import TableError
from healthgym_utils.sequences import to_sequences

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "streaming reads Parquet with pyarrow, which is not installed: "
        "pip install pyarrow"
    ) from error

GLANCE = (
    1024  # rows read at a time, where a patient's last ones are looked for
)


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
    low, high : tuple of float
        Extremes of the schema's reals, in their order.
    """

    path: str
    index: int
    rows: int
    first: int
    last: int
    low: tuple[float, ...]
    high: tuple[float, ...]


class ParquetCohort:
    """Row groups of a tidy table in Parquet, in the order of patients.

    Only footers are read until rows are asked for.

    Parameters
    ----------
    paths : sequence of path
        One file or more, in the order of their patients.
    schema : Schema
        What the table holds.

    Raises
    ------
    TableError
        If a column or its statistics are missing, or patients are not in
        ascending order from row group to row group.
    """

    def __init__(
        self, paths: Sequence[str | os.PathLike], schema: Schema
    ) -> None:
        self.schema = schema
        self._footers = {
            os.fspath(path): pq.read_metadata(path) for path in paths
        }
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

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def rows(self) -> int:
        """Rows of all row groups."""
        return sum(group.rows for group in self.groups)

    @property
    def fingerprint(self) -> str:
        """Hash of what the footers say, so that mix-ups are found."""
        facts = [astuple(group)[1:] for group in self.groups]  # files may move
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def patients_of(self, k: int) -> pd.DataFrame:
        """Read all rows of the patients that begin in row group k.

        So each patient belongs to one row group, wherever the cuts are. The
        table is empty if none begins there.
        """
        group = self.groups[k]
        table = self._open(group).read_row_group(
            group.index, self._columns, use_threads=False
        )
        ids = self._ids(table, group)
        begun = k > 0 and self.groups[k - 1].last == group.first
        if begun:  # and read with the row group before
            start = int(np.searchsorted(ids, group.first, side="right"))
            table = table.slice(start)
        parts = [table]
        if len(table):
            parts += self._rest_of(group.last, k + 1)
        return pa.concat_tables(parts).to_pandas()

    def _rest_of(self, patient: int, k: int) -> Iterator[pa.Table]:
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
                yield table.slice(0, stop)
                if stop < len(ids):
                    return
            k += 1

    @property
    def _columns(self) -> list[str]:
        return [*self.schema.ids, *self.schema.names]

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


def _row_groups(
    path: str, footer: pq.FileMetaData, schema: Schema
) -> Iterator[RowGroup]:
    """Describe the row groups of a file by its footer."""
    at = {name: k for k, name in enumerate(footer.schema.names)}
    for name in (*schema.ids, *schema.names):
        if name not in at:
            raise TableError(
                f"{path}: column {name} is missing; there are {', '.join(at)}"
            )
    for index in range(footer.num_row_groups):
        group = footer.row_group(index)
        if not group.num_rows:
            continue

        def extremes(name: str, group: Any = group) -> tuple[Any, Any]:
            statistics = group.column(at[name]).statistics
            if statistics is None or not statistics.has_min_max:
                raise TableError(
                    f"{path}: no minimum and maximum of {name} in the "
                    "footer; write the file with statistics"
                )
            return statistics.min, statistics.max

        reals = [extremes(feature.name) for feature in schema.reals]
        first, last = extremes(schema.patient)
        low, high = zip(*reals, strict=True) if reals else ((), ())
        yield RowGroup(path, index, group.num_rows, first, last, low, high)


def fit_preprocessor(
    cohort: ParquetCohort, patients: int = 10_000, seed: int = 0
) -> Preprocessor:
    """Fit to a cohort without reading it.

    Box-Cox's lambda comes from a sample: its error shrinks with the root of
    the number of rows, and is small long before memory is full. Minimum and
    range do not: the largest value is one patient's, whom a sample misses.
    They come from the footers, which have those of every row.

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
        drawn[int(k)] = cohort.patients_of(int(k))
        count += drawn[int(k)][patient].nunique()
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

    Row groups are shuffled and dealt out; patients are mixed in a buffer. Both
    follow the seed and the epoch alone, so that a training resumes at the
    start of any epoch without having read those before.

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
        schema = self.cohort.schema
        matrix = self.prep.design_matrix(table, clip=True)
        folded = to_sequences(
            pd.concat([matrix, table[schema.ids]], axis=1),
            schema.columns,
            schema.patient,
            schema.month,
            ragged="pad",
        )
        lengths = folded.lengths
        self._check_months(folded.patients, folded.months, folded.mask)
        padding = self.months - len(folded.months)
        values = F.pad(folded.values, (0, 0, 0, padding))
        for value, length in zip(values, lengths.tolist(), strict=True):
            yield value.clone(), length  # or one patient keeps all in memory

    def _check_months(
        self, patients: np.ndarray, months: np.ndarray, mask: Tensor
    ) -> None:
        """Refuse gaps, a late first month, and months past the last one."""
        month = self.cohort.schema.month
        if months[0] != 0 or months[-1] >= self.months:
            raise TableError(
                f"{month}: months 0 to {self.months - 1} are expected, and "
                f"there are {months[0]} to {months[-1]}"
            )
        gaps = (mask[:, 1:] & ~mask[:, :-1]).any(dim=1) | ~mask[:, 0]
        if gaps.any():
            patient = patients[int(gaps.int().argmax())]
            raise TableError(
                f"{month}: {self.cohort.schema.patient} {patient} lacks a "
                "month before the last one; each needs all from 0 on"
            )


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
