"""The cohort as one tidy table: published, from a file, or simulated.

Every source ends in the same table: one row a (patient, month), the columns
of :data:`COLUMNS`, labels decoded, checked against ``ART_FULL_SCHEMA``. The
published file is the Health Gym v2.0 ART-for-HIV data set (Kuo 2023,
doi:10.6084/m9.figshare.22827878, CC BY 4.0).
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pooch
import requests

from healthgym_utils.runtime import get_device, in_colab
from healthgym_utils.schema import ART_FLAGS, ART_FULL_SCHEMA, TableError
from healthgym_utils.simulate import simulate_art

SOURCES = ("auto", "figshare", "simulated")
COLUMNS = [*ART_FULL_SCHEMA.names, *ART_FLAGS, *ART_FULL_SCHEMA.ids]
# Raw codes count from 0, but for these two, which count from 1.
FIRST_CODE = {"Gender": 1, "Ethnic": 1}

FIGSHARE_URL = "https://ndownloader.figshare.com/files/40584980"
FIGSHARE_NAME = "HealthGymV2_CbdrhDatathon_ART4HIV.csv"
FIGSHARE_ROWS = 534_960
FIGSHARE_MONTHS = 60  # for each of 8,916 patients
MOST_BYTES = 2**28  # of a download; several times the published file
TIMEOUT = (10, 30)  # seconds to connect, and between two pieces of the body
WAYS_OUT = (
    f"What to do: try again later; or get {FIGSHARE_URL} with a browser and "
    'call load_art("path/to/file.csv"); or call load_art("simulated"), the '
    "stand-in cohort that needs no network."
)
WANTED_FORMAT = (
    "What to do: save it as comma-separated text in UTF-8, with decimal "
    "points, one header line and nothing above it; or read it with "
    "pandas.read_csv and your own options, and pass the table to "
    "healthgym_utils.data.decode_table"
)
MEND_CELL = "correct it, or leave the patient out"
LONGEST_HEADER = 2**22  # bytes
PIECE = 2**20  # cells of a file that are read at a time
# Before 3.1, pandas drops the surplus cells of a row that begins a piece.
PANDAS_DROPS = tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1)


class DataError(ValueError):
    """A cohort cannot be had; the message says why and what to do."""


class _ParseError(DataError):
    """A file is there, and is no CSV as it is wanted."""


def load_art(
    source: str | os.PathLike = "auto",
    n_patients: int | None = None,
    seed: int = 42,
    cache: str | os.PathLike | None = None,
) -> pd.DataFrame:
    """Load the ART-for-HIV cohort as a tidy table.

    Parameters
    ----------
    source : str or path
        ``"figshare"``: the published cohort, downloaded once and kept.
        ``"simulated"``: the stand-in cohort, which needs no network.
        A path: a CSV file as :func:`decode_table` takes it, gzip too.
        ``"auto"``: what the environment variable ``HEALTHGYM_ART_SOURCE``
        says, else figshare on Colab and simulated elsewhere; prints which.
    n_patients : int, optional
        Keep the first so many patients; all if not given.
    seed : int
        Seed of the simulated cohort; no other source is random.
    cache : path, optional
        Folder of the downloaded file; else the environment variable
        ``HEALTHGYM_CACHE``, else the user's cache folder.

    Returns
    -------
    DataFrame
        One row a (patient, month), sorted by both: three labs (float64),
        seven labels (categorical, classes in the schema's order), three
        flags (bool), two identifiers (int64). ``attrs["source"]`` is
        ``"figshare"``, ``"local file"`` or ``"simulated"``.

    Raises
    ------
    DataError
        If the source is unknown, cannot be had, or breaks the format. No
        other source is ever taken in its place.

    Notes
    -----
    Memory grows with the rows of a file, and not with the columns that are
    left out: 10 million rows need 3.5 GB at the peak, and a minute; 5 GB with
    pandas before 3.1, as measured by ``benchmarks/load_csv.py``.
    """
    whole = isinstance(n_patients, Integral) and n_patients > 0
    if n_patients is not None and not whole:
        raise DataError(f"n_patients is 1 or more, or None; got {n_patients}")
    source = _choose(source)
    if source == "simulated":
        size = {} if n_patients is None else {"n_patients": int(n_patients)}
        return simulate_art(**size, seed=seed)
    try:
        if source == "figshare":
            table, name = _load_figshare(cache), "figshare"
        else:
            table, name = _load_file(source), "local file"
        if n_patients is not None:
            table = _first_patients(table, int(n_patients))
    except MemoryError as error:
        raise DataError(
            f"{source}: this table does not fit into memory. What to do: take "
            "a machine with more of it; or split the file by patients, and "
            "load one part at a time"
        ) from error
    table.attrs["source"] = name
    return table


def decode_table(raw: pd.DataFrame) -> pd.DataFrame:
    """Turn a table of the published format into the tidy one.

    Parameters
    ----------
    raw : DataFrame
        One row a (patient, month) in any order, with the 15 columns in any
        order under raw or tidy names; other columns are left out. Labels may
        be raw codes or decoded. Each patient has all months from 0 to a last
        one, which may differ between patients.

    Returns
    -------
    DataFrame
        As :func:`load_art` returns it: sorted by patient and month, with a
        fresh index.

    Raises
    ------
    DataError
        If a column or a month is missing, a code is unknown, text stands for
        a number, or the table breaks the schema. The message names the
        column, the row (as in the index of ``raw``; in a file, counted from
        0 below the header) and the patient.
    """
    if not isinstance(raw, pd.DataFrame):
        kind = type(raw).__name__
        raise DataError(f"expected a pandas DataFrame, got {kind}")
    _check_columns(list(raw.columns))
    table = raw.rename(columns=_tidy_name)
    if table.empty:
        raise DataError("the table is empty: it has no rows")
    table = table[COLUMNS]
    # Texts, as nothing else can be done with a signalling NaN of decimal.
    odd = [name for name in COLUMNS if _is_incomparable(table[name])]
    table = table.assign(**{name: table[name].map(str) for name in odd})
    # An index may share its name with a column, which pandas cannot sort by.
    table.index = table.index.set_names([None] * table.index.nlevels)
    ids = ART_FULL_SCHEMA.ids
    table = table.assign(**{name: _whole(table, name) for name in ids})
    table = table.sort_values(ids, kind="stable")
    columns = {}
    for feature in ART_FULL_SCHEMA:
        if feature.is_real:
            columns[feature.name] = _numbers(table, feature.name)
        else:
            codes = _codes(table, feature.name, feature.classes)
            labels = pd.Categorical.from_codes(codes, feature.classes)
            columns[feature.name] = labels
    for name in ART_FLAGS:
        columns[name] = _codes(table, name, ("False", "True")) == 1
    columns |= {name: table[name] for name in ids}
    tidy = pd.DataFrame(columns, index=table.index)
    try:
        ART_FULL_SCHEMA.validate(tidy)
    except TableError as error:
        raise DataError(f"{error}; {MEND_CELL}") from error
    _check_months(tidy)
    return tidy.reset_index(drop=True)


def announce(source: str | os.PathLike, seconds: int) -> str | Path:
    """Say in one line what a notebook runs on; each begins with it.

    The models of the notebooks stay on the CPU, GPU or not, so that results
    can be held against those of the book.

    Parameters
    ----------
    source : str or path
        As for :func:`load_art`.
    seconds : int
        What the notebook takes on two CPU cores.

    Returns
    -------
    str or path
        The source that "auto" stands for here, or the one that was given;
        give it to :func:`load_art`.

    Raises
    ------
    DataError
        If the source is unknown.
    """
    choice = _settle(source)
    device = "CPU"
    if get_device().type != "cpu":
        device += " (no need of the GPU)"
    print(f"{_words(choice)} | Device: {device} | About {seconds} seconds")
    return choice


def _choose(source: str | os.PathLike) -> str | Path:
    """Settle on "figshare", "simulated" or a path; "auto" says on which."""
    choice = _settle(source)
    if isinstance(source, str) and source == "auto":
        print(_words(choice))
    return choice


def _settle(source: str | os.PathLike) -> str | Path:
    """Replace "auto" by what it stands for here, and refuse the unknown."""
    if not isinstance(source, str) or source != "auto":
        return _known(source)
    wish = os.environ.get("HEALTHGYM_ART_SOURCE", "auto")
    if wish not in ("", "auto"):
        return _known(wish, " in HEALTHGYM_ART_SOURCE")
    return "figshare" if in_colab() else "simulated"


def _words(choice: str | Path) -> str:
    words = {
        "figshare": "published data, from figshare",
        "simulated": "simulated stand-in, not the published data",
    }
    return f"Cohort: {words.get(choice, f'local file {choice}')}"


def _known(source: str | os.PathLike, where: str = "") -> str | Path:
    """Refuse what is neither a source nor looks like a path."""
    if isinstance(source, os.PathLike):
        return Path(source)
    if isinstance(source, str):
        if source in SOURCES:
            return source
        try:
            path = Path(source).expanduser()
        except RuntimeError as error:  # ~name, and there is no such user
            raise DataError(
                f"{_clip(source)}{where}: there is no such home folder; "
                "give the whole path"
            ) from error
        is_there = bool(source) and os.path.exists(path)
        if "://" in source and not is_there:
            raise DataError(
                f"{_clip(source)}{where}: addresses are not taken; download "
                "the file first, and give its path"
            )
        if path.suffix or is_there:
            return path
    raise DataError(
        f"unknown source {source!r}{where}: choose one of "
        f"{', '.join(SOURCES)}, or the path of a CSV file"
    )


def _first_patients(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """Cut a sorted table after its first patients."""
    column = table[ART_FULL_SCHEMA.patient]
    patients = column.unique()
    if count > len(patients):
        raise DataError(
            f"n_patients is {count:,}, the cohort has {len(patients):,}"
        )
    stop = column.searchsorted(patients[count - 1], side="right")
    return table.iloc[:stop].copy()


def _load_file(path: Path) -> pd.DataFrame:
    try:
        return decode_table(_read_csv(path))
    except _ParseError as error:
        raise DataError(f"{path}: {error}. {WANTED_FORMAT}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def figshare_store(cache: str | os.PathLike | None = None) -> pooch.Pooch:
    """Say where the published file is kept, and where it comes from.

    Parameters
    ----------
    cache : path, optional
        A folder; if not given, that of the environment variable
        HEALTHGYM_CACHE, or else the user's.
    """
    return pooch.create(
        path=pooch.os_cache("healthgym") if cache is None else cache,
        env="HEALTHGYM_CACHE" if cache is None else None,
        base_url="",
        registry={FIGSHARE_NAME: None},
        urls={FIGSHARE_NAME: FIGSHARE_URL},
    )


def _load_figshare(cache: str | os.PathLike | None) -> pd.DataFrame:
    """Read the published file, downloading it if the cache has none."""
    store = figshare_store(cache)
    try:
        path = store.fetch(FIGSHARE_NAME, downloader=_CheckedDownloader())
    except (ValueError, requests.RequestException) as error:
        raise DataError(
            f"could not download {FIGSHARE_URL}: {_why(error)}. {WAYS_OUT}"
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot write to the cache folder {store.abspath}: {error}. Name "
            f"another one with HEALTHGYM_CACHE or cache=. {WAYS_OUT}"
        ) from error
    try:
        return _read_published(path)
    except DataError as error:
        raise DataError(
            f"the cached file {path} is damaged: {error}. Delete it, and the "
            f"next load downloads it again. {WAYS_OUT}"
        ) from error


class _CheckedDownloader(pooch.HTTPDownloader):
    """Refuse what is not the published file before it becomes the cache.

    Pooch downloads to a temporary file in the cache folder and moves it into
    place once the downloader returns; if it raises, the file is deleted.
    """

    def __init__(self) -> None:
        super().__init__(
            progressbar=True,
            chunk_size=2**16,
            timeout=TIMEOUT,
            hooks={"response": _check_status},
        )

    def __call__(self, url: str, output_file: str, *args: Any) -> None:
        try:
            self._download(url, output_file, *args)
        except requests.RequestException:  # once more, as networks hiccup
            self._download(url, output_file, *args)
        _read_published(output_file)
        # Temporary files are private; a cache may serve a whole classroom.
        os.chmod(output_file, 0o644)

    def _download(self, url: str, output_file: str, *args: Any) -> None:
        with _CappedFile(open(output_file, "wb", buffering=0)) as file:
            super().__call__(url, file, *args)


class _CappedFile(io.BufferedWriter):
    """Take no more than a download may have, or it would fill the disk."""

    def write(self, piece: bytes) -> int:
        if self.tell() + len(piece) > MOST_BYTES:
            raise DataError(
                f"the server sent more than {MOST_BYTES:,} bytes, which the "
                "published file does not have"
            )
        return super().write(piece)


def _check_status(response: requests.Response, **_: Any) -> None:
    """Refuse any answer but 200, such as figshare's 202 with no body."""
    if response.status_code != 200 and not response.is_redirect:
        raise DataError(
            f"the server answered {response.status_code} {response.reason} "
            "instead of 200 OK"
        )


def _why(error: Exception) -> str:
    """Say in words why a download failed."""
    if isinstance(error, requests.Timeout):
        return "the server did not answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off before the end of the file"
    if isinstance(error, requests.ConnectionError):
        return "there is no connection to the server, or it fell silent"
    return str(error)


def _read_published(path: str | os.PathLike) -> pd.DataFrame:
    """Read the file that figshare serves, and nothing less."""
    header = _read_header(path)
    if list(map(_tidy_name, header)) != COLUMNS:
        raise DataError(
            f"its columns are not the published 15: {_listed(header)}"
        )
    raw = _read_rows(path, header)
    if len(raw) != FIGSHARE_ROWS:
        raise DataError(
            f"it has {len(raw):,} rows, the published file has "
            f"{FIGSHARE_ROWS:,}; it was cut short or is another file"
        )
    table = decode_table(raw)
    months = table[ART_FULL_SCHEMA.patient].value_counts()
    if (months != FIGSHARE_MONTHS).any():
        raise DataError(f"not every patient has {FIGSHARE_MONTHS} months")
    return table


def _read_csv(path: str | os.PathLike) -> pd.DataFrame:
    """Read what is wanted of a CSV file, equal column names included."""
    header = _read_header(path)
    _check_columns(header)
    return _read_rows(path, header)


@contextmanager
def _reading() -> Iterator[None]:
    """Say in words why a file cannot be read."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:  # every decompressor has errors of its own
        why = _clip(str(error).strip())
        if "out of memory" in why:  # as the parser of pandas says it
            raise MemoryError(why) from error
        refusal = DataError if isinstance(error, OSError) else _ParseError
        raise refusal(f"this cannot be read as CSV: {why}") from error


def _read_header(path: str | os.PathLike) -> list[str]:
    """Read the names of the columns, as they are in the file."""
    with _reading():
        is_plain = os.path.isfile(path) or os.path.isdir(path)
        if os.path.exists(path) and not is_plain:  # a pipe waits for ever
            raise DataError(
                "this is no file, but a pipe or a device; save the table to a "
                "file, and give its path"
            )
        with open(path, "rb") as file:
            start = file.read(LONGEST_HEADER)
        if start[:512].lstrip().startswith(b"<"):
            raise DataError("this is a web page, not a CSV table")
        if len(start) == LONGEST_HEADER and not re.search(rb"[\r\n]", start):
            raise _ParseError(
                f"its first line does not end within {len(start):,} bytes"
            )
        # Two lines, so that rows longer than the header are refused here;
        # pandas would take their first value for the name of the row.
        first = pd.read_csv(path, header=None, nrows=2, dtype=str)
        return first.iloc[0].fillna("").tolist()


def _read_rows(path: str | os.PathLike, header: list[str]) -> pd.DataFrame:
    """Read the wanted columns, each as if all were read at once.

    In pieces, as pandas holds all cells of what it reads as text first. Not
    with ``usecols``, under which it takes rows that are too long.
    """
    tidy = list(map(_tidy_name, header))
    wanted = [k for k, name in enumerate(tidy) if name in COLUMNS]
    rows = max(PIECE // len(header), 2)
    with _reading():
        pieces = _pieces(path, wanted, rows, {})
        if PANDAS_DROPS and len(pieces) > 1:
            _check_starts(path, rows)
        kinds = _kinds(pieces)
        if kinds:
            pieces.clear()
            pieces = _pieces(path, wanted, rows, kinds)
        raw = pd.concat(pieces, ignore_index=True)
    # pandas renames the second of two equal names, which would hide it.
    raw.columns = [header[k] for k in wanted]
    return raw


def _pieces(
    path: str | os.PathLike, wanted: list[int], rows: int, kinds: dict
) -> list[pd.DataFrame]:
    """Read the wanted columns of a file a number of rows at a time."""
    options = {"low_memory": False, "chunksize": rows, "dtype": kinds}
    with pd.read_csv(path, **options) as reader:
        return [piece.iloc[:, wanted] for piece in reader]


def _check_starts(path: str | os.PathLike, rows: int) -> None:
    """Read a file again in pieces that begin elsewhere, to have it refused."""
    with pd.read_csv(path, low_memory=False, chunksize=rows) as reader:
        reader.get_chunk(1)
        for _ in reader:
            pass


def _kinds(pieces: list[pd.DataFrame]) -> dict[str, type]:
    """Say as what to read the columns whose pieces differ in kind.

    As pandas would take the whole column: numbers if all are, else text.
    """
    kinds = {}
    for name in pieces[0]:
        found = {piece[name].dtype for piece in pieces}
        if len(found) > 1:
            are_numbers = all(dtype.kind in "iuf" for dtype in found)
            kinds[name] = float if are_numbers else str
    return kinds


def _check_columns(header: list) -> None:
    """Refuse a table in which a wanted column is missing or there twice."""
    names = list(map(_tidy_name, header))
    for name in COLUMNS:
        count = names.count(name)
        if count == 1:
            continue
        what = "missing" if count == 0 else f"there {count} times"
        hint = "; rename or add it" if count == 0 else "; keep one of them"
        if len(header) == 1:
            hint = f". {WANTED_FORMAT}"
        raise DataError(
            f"{name}: this column is {what}; got {_listed(header)}{hint}"
        )


def _clip(value: Any, longest: int = 200) -> str:
    """Give a value as text that fits into a message."""
    text = str(value)
    if len(text) <= longest:
        return text
    return f"{text[:longest]}... ({len(text):,} characters)"


def _listed(names: Iterable[Any], most: int = 40) -> str:
    """List names in so many words that they fit into a message."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(_clip(name, 80) for name in names[:most]) + more


def _is_incomparable(column: pd.Series) -> bool:
    """Whether pandas cannot even look for the gaps of a column."""
    try:
        column.isna()
    except ArithmeticError:
        return True
    return False


def _tidy_name(name: Any) -> str:
    """Turn "Comp. INI" into "Comp_INI"; a tidy name stays as it is."""
    return re.sub(r"[^0-9A-Za-z]+", "_", str(name)).strip("_")


def _numbers(table: pd.DataFrame, name: str) -> pd.Series:
    """Read a column as float64, refusing text; gaps stay NaN."""
    column = table[name]
    is_text = pd.api.types.is_string_dtype(column.dtype)
    if column.dtype.kind not in "iuf" and not is_text:
        column = column.astype(str)  # or True would pass for 1, a date too
    try:
        numbers = pd.to_numeric(column, errors="coerce")
        is_odd = numbers.dtype.kind == "c"
    except (OverflowError, TypeError, ValueError):  # cells such as arrays
        is_odd = True
    if is_odd:
        numbers = pd.to_numeric(column.astype(str), errors="coerce")
    numbers = numbers.astype("float64")
    bad = (numbers.isna() & table[name].notna()).to_numpy()
    _refuse(table, name, bad, f"is no number; {MEND_CELL}")
    return numbers


def _whole(table: pd.DataFrame, name: str) -> pd.Series:
    """Read a column of identifiers as int64; whole floats will do."""
    numbers = _numbers(table, name)
    bad = (numbers % 1 != 0).to_numpy()
    _refuse(table, name, bad, f"is no whole number; {MEND_CELL}")
    bad = (numbers.abs() >= 2**53).to_numpy()
    what = "is beyond 2**53, where neighbours read alike; number them anew"
    _refuse(table, name, bad, what)
    return numbers.astype("int64")


def _codes(
    table: pd.DataFrame, name: str, classes: tuple[str, ...]
) -> np.ndarray:
    """Read raw codes or labels as positions in the classes."""
    first = FIRST_CODE.get(name, 0)
    known = {str(k + first): k for k in range(len(classes))}
    choices = ", ".join(f"{c} {classes[k]}" for c, k in known.items())
    known |= {label: k for k, label in enumerate(classes)}
    try:
        occurring, values = pd.factorize(table[name])
    except (OverflowError, TypeError):  # cells such as lists, or 10**400
        occurring, values = pd.factorize(table[name].astype(str))
    # "1.0" is code 1; a gap is -1, which picks the -1 at the end.
    texts = (re.sub(r"\.0+$", "", str(v).strip()) for v in values)
    codes = np.array([*(known.get(t, -1) for t in texts), -1])[occurring]
    what = f"is no known code or label; there are {choices}"
    _refuse(table, name, codes < 0, what)
    return codes


def _refuse(
    table: pd.DataFrame, name: str, bad: np.ndarray, what: str
) -> None:
    """Refuse a column if any row is bad, naming the first one."""
    if bad.any():
        row = table.iloc[[int(bad.argmax())]]
        value = repr(_clip(row[name].iloc[0]))
        if row[name].isna().all():
            value = "an empty cell"
        ids = row[ART_FULL_SCHEMA.ids].astype(object).map(_clip)
        where = ART_FULL_SCHEMA.locate(ids, np.array([True]))
        raise DataError(f"{name}: {value} in {where} {what}")


def _check_months(tidy: pd.DataFrame) -> None:
    """Refuse a sorted table in which a patient lacks a month."""
    patient, month = ART_FULL_SCHEMA.ids
    expected = tidy.groupby(patient).cumcount().to_numpy()
    bad = tidy[month].to_numpy() != expected
    if bad.any():
        raise DataError(
            f"{month}: month {expected[bad.argmax()]} is missing before "
            f"{ART_FULL_SCHEMA.locate(tidy, bad)}; each patient needs all "
            "months from 0 on"
        )
