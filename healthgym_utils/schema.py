"""The schema: one source of truth for names, classes, units and columns.

Every other module asks a :class:`Schema` what a variable is called, which
classes it has, and which columns of the design matrix it owns. Nothing else
in the package knows about HIV: another cohort is another ``Schema``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

KINDS = ("real", "binary", "categorical")
TRANSFORMS = ("boxcox", "identity")
# Kuo et al. (2022), Scientific Data: the published embedding sizes.
EMBEDDING_SIZES = {"real": 1, "binary": 2, "categorical": 4}


class SchemaError(ValueError):
    """A schema contradicts itself; the message names the feature."""


class TableError(ValueError):
    """A table breaks its schema; the message names column, row and patient."""


@dataclass(frozen=True)
class Feature:
    """One variable of a cohort.

    Parameters
    ----------
    name : str
        Column of the tidy table, such as ``"Base_Drug_Combo"``.
    kind : {"real", "binary", "categorical"}
        A binary variable is a categorical one with exactly two classes.
    classes : tuple of str
        Labels in code order, so that ``classes[k]`` is code ``k``.
    unit : str
        Unit of a real variable, for axes: ``"copies/mL"``.
    title : str
        The variable in words, for axes and tables; the name if not given.
    transform : {"boxcox", "identity"}
        What a real variable goes through before min-max scaling.
    minimum : float or None
        Smallest value that makes sense; None if there is no such bound.
        Box-Cox needs a bound of zero or more.
    static : bool
        True if the variable never changes within a patient.
    embedding_size : int or None
        Width of the variable once embedded; the kind's default if None.

    Raises
    ------
    SchemaError
        If the description contradicts itself.
    """

    name: str
    kind: str
    classes: tuple[str, ...] = ()
    unit: str = ""
    title: str = ""
    transform: str = "boxcox"
    minimum: float | None = 0.0
    static: bool = False
    embedding_size: int | None = None

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise SchemaError(f"a feature needs a name, got {self.name!r}")
        if self.kind not in KINDS:
            self._refuse(f"kind {self.kind!r} is none of {', '.join(KINDS)}")
        # Frozen, so defaults that depend on other fields are set this way.
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "title", self.title or self.name)
        if self.embedding_size is None:
            size = EMBEDDING_SIZES[self.kind]
            object.__setattr__(self, "embedding_size", size)
        if self.embedding_size < 1:
            self._refuse(f"embedding size {self.embedding_size} is below 1")
        if self.is_real:
            self._check_real()
        else:
            self._check_classes()

    def _refuse(self, why: str) -> None:
        raise SchemaError(f"{self.name}: {why}")

    def _check_real(self) -> None:
        if self.classes:
            self._refuse("a real feature has no classes")
        if self.transform not in TRANSFORMS:
            allowed = ", ".join(TRANSFORMS)
            self._refuse(f"transform {self.transform!r} is none of {allowed}")
        bounded = self.minimum is not None and self.minimum >= 0
        if self.transform == "boxcox" and not bounded:
            self._refuse(
                "Box-Cox needs a minimum of zero or more; set the minimum, "
                'or transform="identity" for values that may be negative'
            )

    def _check_classes(self) -> None:
        count = len(self.classes)
        if self.kind == "binary" and count != 2:
            self._refuse(f"a binary feature has 2 classes, got {count}")
        if count < 2:
            self._refuse(f"a categorical feature has 2 or more, got {count}")
        for label in self.classes:
            if not isinstance(label, str):
                self._refuse(f"class {label!r} is not a string")
        if len(set(self.classes)) != count:
            twice = [c for c in self.classes if self.classes.count(c) > 1]
            self._refuse(f"class {twice[0]!r} is listed twice")

    @property
    def is_real(self) -> bool:
        """True for a number, False for a label."""
        return self.kind == "real"

    @property
    def width(self) -> int:
        """Number of columns in the design matrix: 1, or one a class."""
        return 1 if self.is_real else len(self.classes)

    @property
    def columns(self) -> list[str]:
        """Column names in the design matrix, such as ``"Gender=Male"``."""
        if self.is_real:
            return [self.name]
        return [f"{self.name}={label}" for label in self.classes]

    @property
    def axis_label(self) -> str:
        """Title with the unit in brackets, for a figure's axis."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


@dataclass(frozen=True)
class Schema:
    """Ordered features of a cohort, and the columns each of them owns.

    Parameters
    ----------
    features : tuple of Feature
        In the order of the design matrix.
    name : str
        Name of the cohort, for messages and checkpoints.
    patient, month : str
        The two identifier columns of the tidy table.

    Raises
    ------
    SchemaError
        If there is no feature, or two features share a name.

    Examples
    --------
    >>> ART_SCHEMA.width
    22
    >>> ART_SCHEMA.spans["Gender"]
    slice(2, 4, None)
    """

    features: tuple[Feature, ...]
    name: str = "cohort"
    patient: str = "PatientID"
    month: str = "Timestep"

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        if not self.features:
            raise SchemaError(f"{self.name}: a schema needs a feature")
        seen = [self.patient, self.month]
        for feature in self.features:
            if feature.name in seen:
                raise SchemaError(f"{feature.name}: this name is used twice")
            seen.append(feature.name)

    def __iter__(self) -> Iterator[Feature]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, name: str) -> Feature:
        for feature in self.features:
            if feature.name == name:
                return feature
        known = ", ".join(self.names)
        raise SchemaError(f"{name}: no such feature; there are {known}")

    @property
    def names(self) -> list[str]:
        """Feature names in order."""
        return [feature.name for feature in self.features]

    @property
    def ids(self) -> list[str]:
        """The patient and the month column."""
        return [self.patient, self.month]

    @property
    def reals(self) -> list[Feature]:
        """The real features."""
        return [f for f in self.features if f.is_real]

    @property
    def categoricals(self) -> list[Feature]:
        """The features with classes, binary ones among them."""
        return [f for f in self.features if not f.is_real]

    @property
    def statics(self) -> list[Feature]:
        """The features that never change within a patient."""
        return [f for f in self.features if f.static]

    @cached_property
    def spans(self) -> dict[str, slice]:
        """Columns of the design matrix that each feature owns."""
        spans, start = {}, 0
        for feature in self.features:
            spans[feature.name] = slice(start, start + feature.width)
            start += feature.width
        return spans

    @property
    def columns(self) -> list[str]:
        """Names of all design-matrix columns in order."""
        return [column for f in self.features for column in f.columns]

    @property
    def width(self) -> int:
        """Number of design-matrix columns."""
        return sum(feature.width for feature in self.features)

    @property
    def embedding_width(self) -> int:
        """Width of one month once every feature is embedded."""
        return sum(feature.embedding_size for feature in self.features)

    def subset(self, names: Iterable[str], name: str | None = None) -> Schema:
        """Keep some of the features, in the order asked for."""
        features = tuple(self[n] for n in names)
        return Schema(features, name or self.name, self.patient, self.month)

    def to_frame(self) -> pd.DataFrame:
        """Lay the schema out as a table with one row a feature."""
        rows = [
            {
                "feature": f.name,
                "kind": f.kind,
                "unit": f.unit,
                "classes": len(f.classes),
                "embedding": f.embedding_size,
                "start": self.spans[f.name].start,
                "stop": self.spans[f.name].stop,
            }
            for f in self.features
        ]
        return pd.DataFrame(rows).set_index("feature")

    def to_dict(self) -> dict[str, Any]:
        """Describe the schema in plain JSON types, spans included."""
        records = []
        for f in self.features:
            record = {k: getattr(f, k) for k in Feature.__dataclass_fields__}
            record["classes"] = list(f.classes)
            span = self.spans[f.name]
            records.append(record | {"span": [span.start, span.stop]})
        return {
            "name": self.name,
            "patient": self.patient,
            "month": self.month,
            "features": records,
        }

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> Schema:
        """Rebuild a schema, checking the spans that it states.

        Parameters
        ----------
        description : dict
            As made by :meth:`to_dict`. Each feature may state its ``span``
            ``[start, stop]``; a stated span has to be the right one.

        Raises
        ------
        SchemaError
            If spans leave a gap, overlap, or are wider or narrower than the
            number of classes; or a field is missing or unknown.
        """
        try:
            records = [dict(r) for r in description["features"]]
            ids = {k: description[k] for k in ("name", "patient", "month")}
        except KeyError as missing:
            raise SchemaError(f"the schema lacks {missing}") from None
        except (TypeError, ValueError):
            raise SchemaError("this is no description of a schema") from None
        features, start = [], 0
        for record in records:
            span = record.pop("span", None)
            try:
                feature = Feature(**record)
            except TypeError as wrong:
                name = record.get("name", "a feature")
                raise SchemaError(f"{name}: {wrong}") from None
            if span is not None:
                _check_span(feature, span, start)
            features.append(feature)
            start += feature.width
        return cls(tuple(features), **ids)

    def validate(self, table: pd.DataFrame) -> None:
        """Refuse a tidy table that breaks the schema.

        Parameters
        ----------
        table : DataFrame
            One row a (patient, month); labels decoded.

        Raises
        ------
        TableError
            If the table is empty, lacks a column, has a wrong dtype, a
            missing or infinite value, a value below the minimum, an unknown
            label, or the same (patient, month) twice. The message names the
            column, the row and the patient.
        """
        if not isinstance(table, pd.DataFrame):
            kind = type(table).__name__
            raise TableError(f"expected a pandas DataFrame, got {kind}")
        if table.empty:
            raise TableError("the table is empty: it has no rows")
        for column in (*self.ids, *self.names):
            count = list(table.columns).count(column)
            if count == 0:
                raise TableError(
                    f"{column}: this column is missing; "
                    f"the table has {', '.join(map(str, table.columns))}"
                )
            if count > 1:
                raise TableError(f"{column}: {count} columns have this name")
        self._validate_ids(table)
        for feature in self.features:
            if feature.is_real:
                self._validate_real(feature, table)
            else:
                self._validate_labels(feature, table)

    def _validate_ids(self, table: pd.DataFrame) -> None:
        for column in self.ids:
            if not pd.api.types.is_integer_dtype(table[column].dtype):
                raise TableError(
                    f"{column}: identifiers must be integers, "
                    f"this column is {table[column].dtype}"
                )
            missing = table[column].isna().to_numpy()  # nullable integers
            if missing.any():
                row = table.index[int(missing.argmax())]
                raise TableError(f"{column}: missing in row {row}")
        twice = table.duplicated(self.ids).to_numpy()
        if twice.any():
            where = self.locate(table, twice)
            raise TableError(
                f"{self.patient}, {self.month}: {where} occurs twice "
                f"({int(twice.sum())} such rows); keep one row a month"
            )

    def _validate_real(self, feature: Feature, table: pd.DataFrame) -> None:
        column = table[feature.name]
        numeric = pd.api.types.is_numeric_dtype(column.dtype)
        if not numeric or pd.api.types.is_bool_dtype(column.dtype):
            raise TableError(
                f"{feature.name}: expected numbers, this column is "
                f"{column.dtype}; convert it with pandas.to_numeric"
            )
        values = column.to_numpy(dtype=float, na_value=np.nan)
        checks = {
            "missing": np.isnan(values),
            "infinite": np.isinf(values),
        }
        if feature.minimum is not None:
            name = f"below {feature.minimum:g}"
            checks[name] = values < feature.minimum
        for what, bad in checks.items():
            if bad.any():
                first = values[int(bad.argmax())]
                raise TableError(
                    f"{feature.name}: {what} value {first:g} in "
                    f"{self.locate(table, bad)} ({int(bad.sum())} in all)"
                )

    def _validate_labels(self, feature: Feature, table: pd.DataFrame) -> None:
        column = table[feature.name]
        bad = ~column.isin(feature.classes).to_numpy()
        if not bad.any():
            return
        first = column.iloc[int(bad.argmax())]
        known = ", ".join(feature.classes)
        hint = ""
        if isinstance(first, (int, float, np.number)) and first == first:
            hint = "; raw codes are decoded by load_art"
        raise TableError(
            f"{feature.name}: unknown label {first!r} in "
            f"{self.locate(table, bad)} ({int(bad.sum())} in all); "
            f"the classes are {known}{hint}"
        )

    def locate(self, table: pd.DataFrame, bad: np.ndarray) -> str:
        """Name the first bad row as people would look for it.

        Parameters
        ----------
        table : DataFrame
            A table with the identifier columns.
        bad : ndarray of bool, shape (rows,)
            True where something is wrong.
        """
        position = int(np.argmax(bad))
        row = table.iloc[position]
        return (
            f"row {table.index[position]} (patient {row[self.patient]}, "
            f"month {row[self.month]})"
        )


def _check_span(feature: Feature, span: Any, expected_start: int) -> None:
    """Refuse a stated span that is not the one the order implies."""
    try:
        start, stop = (int(edge) for edge in span)
    except (OverflowError, TypeError, ValueError):
        raise SchemaError(
            f"{feature.name}: a span is [start, stop], got {span!r}"
        ) from None
    if start != expected_start:
        what = "leaves a gap" if start > expected_start else "overlaps"
        raise SchemaError(
            f"{feature.name}: starts at column {start}, which {what}; "
            f"the columns before it end at {expected_start}"
        )
    if stop - start != feature.width:
        raise SchemaError(
            f"{feature.name}: {feature.width} columns are needed, the span "
            f"{start}:{stop} has {stop - start}"
        )


# The Health Gym v2.0 ART-for-HIV cohort (Kuo 2023, figshare 22827878): the
# classes in code order, as the published data dictionary lists them.
ART_FULL_SCHEMA = Schema(
    name="ART for HIV, ten variables",
    features=(
        Feature("VL", "real", unit="copies/mL", title="Viral load"),
        Feature("CD4", "real", unit="cells/µL", title="CD4 count"),
        Feature("Rel_CD4", "real", title="Relative CD4"),
        Feature("Gender", "binary", ("Male", "Female"), static=True),
        Feature(
            "Ethnic",
            "categorical",
            ("Asian", "African", "Caucasian", "Other"),
            title="Ethnicity",
            static=True,
        ),
        Feature(
            "Base_Drug_Combo",
            "categorical",
            (
                "FTC + TDF",
                "3TC + ABC",
                "FTC + TAF",
                "DRV + FTC + TDF",
                "FTC + RTVB + TDF",
                "Other",
            ),
            title="Base drug combination",
        ),
        Feature(
            "Comp_INI",
            "categorical",
            ("DTG", "RAL", "EVG", "Not Applied"),
            title="Complementary INI",
        ),
        Feature(
            "Comp_NNRTI",
            "categorical",
            ("NVP", "EFV", "RPV", "Not Applied"),
            title="Complementary NNRTI",
        ),
        Feature(
            "Extra_PI",
            "categorical",
            ("DRV", "RTVB", "LPV", "RTV", "ATV", "Not Applied"),
            title="Extra PI",
        ),
        Feature(
            "Extra_pk_En",
            "binary",
            ("False", "True"),
            title="Extra pk enhancer",
        ),
    ),
)

ART_SCHEMA = ART_FULL_SCHEMA.subset(
    (
        "VL",
        "CD4",
        "Gender",
        "Ethnic",
        "Base_Drug_Combo",
        "Extra_PI",
        "Extra_pk_En",
    ),
    name="ART for HIV",
)

# Columns of the published table that are no features: whether the value was
# really measured, or the drugs really recorded, in that month.
ART_FLAGS = ("VL_M", "CD4_M", "Drug_M")


def suppressed(table: pd.DataFrame, limit: float = 1000.0) -> pd.Series:
    """Say in which rows the viral load is below a limit.

    An outcome for the scoreboard. Published analyses of this cohort ask when
    a patient gets to 1,000 copies/mL.

    Parameters
    ----------
    table : DataFrame
        Tidy table with ``VL`` in copies/mL.
    limit : float
        In copies/mL.

    Returns
    -------
    Series of bool
    """
    return table["VL"] < limit
