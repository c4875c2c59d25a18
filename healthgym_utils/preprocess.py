"""Make a tidy table numeric, and undo it: Box-Cox, min-max, one-hot."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import special, stats
from torch import Tensor

from healthgym_utils.schema import Feature, Schema, TableError
from healthgym_utils.sequences import to_sequences

# Added to a value before Box-Cox, so that a viral load of zero has a
# logarithm; the published series uses the same.
EPSILON = 1e-3
# Of lambda. Where the likelihood is flat, releases of SciPy differ in the
# eighth; rounded, the same patients have the same scaled values in all.
DECIMALS = 6


@dataclass(frozen=True)
class Scaling:
    """What one real variable goes through, and how to undo it.

    Box-Cox (Box & Cox 1964, eq. 1): ``((x + eps)**lambda - 1) / lambda``,
    then ``(y - low) / span``, which is 0 to 1 on the fitted values.

    Parameters
    ----------
    power : float or None
        Box-Cox's lambda; None for values that are only min-max scaled.
    low, span : float
        Minimum and range of the values after the power transform.
    """

    power: float | None
    low: float
    span: float

    @classmethod
    def fit(cls, values: np.ndarray, feature: Feature) -> Scaling:
        """Fit to values, shape (rows,), by maximum likelihood.

        Raises
        ------
        TableError
            If all values are the same: such a column cannot be scaled.
        """
        if values.min() == values.max():
            raise TableError(
                f"{feature.name}: all {len(values)} values are "
                f"{values[0]:g}; a constant column cannot be scaled"
            )
        power = None
        if feature.transform == "boxcox":
            _, power = stats.boxcox(values + EPSILON)
            power = round(float(power), DECIMALS)
        powered = cls(power, 0.0, 1.0).forward(values)
        low = float(powered.min())
        return cls(power, low, float(powered.max()) - low)

    def forward(self, values: np.ndarray) -> np.ndarray:
        """Scale values in clinical units; float64, any shape."""
        if self.power is not None:
            values = special.boxcox(values + EPSILON, self.power)
        return (values - self.low) / self.span

    def backward(self, scaled: np.ndarray) -> np.ndarray:
        """Return to clinical units; NaN where no value maps to there."""
        powered = scaled * self.span + self.low
        if self.power is None:
            return powered
        # With a negative lambda Box-Cox has an upper asymptote, -1/lambda:
        # beyond it there is no x, and inv_boxcox gives NaN or infinity.
        return special.inv_boxcox(powered, self.power) - EPSILON


class Preprocessor:
    """Everything between a tidy table and a tensor, and the way back.

    Parameters
    ----------
    schema : Schema
        What the table holds.

    Examples
    --------
    >>> prep = Preprocessor(ART_SCHEMA).fit(train)
    >>> x = prep.transform(train)           # (patients, months, 22)
    >>> prep.inverse_transform(x)           # the same tidy table
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.scalings: dict[str, Scaling] = {}

    def fit(self, table: pd.DataFrame) -> Preprocessor:
        """Estimate lambda, minimum and range of every real feature.

        Fit on training patients only; a test patient that takes part in the
        fit has leaked.

        Parameters
        ----------
        table : DataFrame
            A valid tidy table of at least two patients.

        Raises
        ------
        TableError
            If the table breaks the schema, a column is constant, or there
            is one patient only.
        """
        self.schema.validate(table)
        if table[self.schema.patient].nunique() < 2:
            raise TableError(
                "fit needs two patients or more, got one; one patient can "
                "be transformed once the preprocessor is fitted"
            )
        self.scalings = {
            f.name: Scaling.fit(table[f.name].to_numpy(float), f)
            for f in self.schema.reals
        }
        return self

    def codes(self, table: pd.DataFrame, clip: bool = False) -> pd.DataFrame:
        """Scale the reals, and number the labels.

        Parameters
        ----------
        table : DataFrame
            A valid tidy table.
        clip : bool
            Whether values outside the fitted range are moved to its edge.
            If not, they land outside [0, 1], and a warning counts them.

        Returns
        -------
        DataFrame, shape (rows, features)
            Rows as in the table; code k stands for ``classes[k]``.
        """
        self._check_fitted()
        self.schema.validate(table)
        columns = {}
        for feature in self.schema:
            column = table[feature.name]
            if feature.is_real:
                columns[feature.name] = self._scale(feature, column, clip)
            else:
                index = pd.Index(feature.classes)
                columns[feature.name] = index.get_indexer(column)
        return pd.DataFrame(columns, index=table.index)

    def design_matrix(
        self, table: pd.DataFrame, clip: bool = False
    ) -> pd.DataFrame:
        """Scale the reals, and give every class a column of 0 and 1.

        Returns
        -------
        DataFrame, float64, shape (rows, schema.width)
            Columns as in ``schema.columns``, also for absent classes.
        """
        codes = self.codes(table, clip)
        blocks = []
        for feature in self.schema:
            column = codes[feature.name].to_numpy()
            if feature.is_real:
                blocks.append(column[:, None])
            else:
                blocks.append(np.eye(feature.width)[column])
        return pd.DataFrame(
            np.hstack(blocks), columns=self.schema.columns, index=table.index
        )

    def transform(self, table: pd.DataFrame, clip: bool = False) -> Tensor:
        """Turn a tidy table into sequences; rows may come in any order.

        Returns
        -------
        Tensor, float32, shape (patients, months, schema.width)
            Patients and months in ascending order.

        Raises
        ------
        TableError
            If the table breaks the schema, or a patient lacks a month.
        """
        matrix = self.design_matrix(table, clip)
        ids = table[self.schema.ids]
        return to_sequences(
            pd.concat([matrix, ids], axis=1),
            self.schema.columns,
            self.schema.patient,
            self.schema.month,
        ).values

    def inverse_transform(
        self,
        x: Tensor,
        patients: Sequence[int] | None = None,
        clip: bool = False,
    ) -> pd.DataFrame:
        """Turn sequences back into a tidy table.

        Reals go back to clinical units (never below the feature's minimum);
        a block of class columns becomes the label of its largest entry.

        Parameters
        ----------
        x : Tensor, shape (patients, months, schema.width)
        patients : sequence of int or None
            Identifiers of the patients; 0, 1, 2, ... if None.
        clip : bool
            Whether scaled reals are moved into [0, 1] first, which models
            without a sigmoid need. If not, a value beyond the reach of
            Box-Cox is refused.

        Raises
        ------
        ValueError
            If the shape does not fit the schema, a value is not finite, or
            a real has no counterpart in clinical units.
        """
        self._check_fitted()
        flat = self._check_shape(x)
        n_patients, n_months = x.shape[:2]
        ids = np.arange(n_patients) if patients is None else patients
        if len(ids) != n_patients:
            raise ValueError(
                f"{len(ids)} identifiers for {n_patients} patients"
            )
        columns: dict[str, Any] = {}
        for feature in self.schema:
            block = flat[:, self.schema.spans[feature.name]]
            if feature.is_real:
                scaled = block[:, 0].clip(0, 1) if clip else block[:, 0]
                columns[feature.name] = self._unscale(feature, scaled)
            else:
                columns[feature.name] = pd.Categorical.from_codes(
                    block.argmax(axis=1), categories=list(feature.classes)
                )
        columns[self.schema.patient] = np.repeat(ids, n_months)
        columns[self.schema.month] = np.tile(np.arange(n_months), n_patients)
        return pd.DataFrame(columns)

    def to_dict(self) -> dict[str, Any]:
        """Describe the fitted preprocessor in plain JSON types."""
        self._check_fitted()
        scalings = {
            name: {"lambda": s.power, "min": s.low, "range": s.span}
            for name, s in self.scalings.items()
        }
        return {"schema": self.schema.to_dict(), "scalings": scalings}

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> Preprocessor:
        """Rebuild what :meth:`to_dict` described.

        Raises
        ------
        SchemaError
            If the schema is not valid.
        ValueError
            If a real feature's parameters are missing or not usable.
        """
        try:
            schema = description["schema"]
            stated = description.get("scalings", {})
        except (AttributeError, KeyError, TypeError):
            raise ValueError(
                "this is no description of a preprocessor: a dict with "
                "schema and scalings is needed, as to_dict makes it"
            ) from None
        prep = cls(Schema.from_dict(schema))
        for feature in prep.schema.reals:
            try:
                record = stated[feature.name]
                low, span = float(record["min"]), float(record["range"])
                power = record["lambda"]
                power = None if power is None else float(power)
            except (KeyError, OverflowError, TypeError, ValueError):
                raise ValueError(
                    f"{feature.name}: needs the numbers lambda, min and range"
                ) from None
            if (power is None) != (feature.transform == "identity"):
                raise ValueError(
                    f"{feature.name}: lambda {power} does not fit the "
                    f"transform {feature.transform!r}"
                )
            if not (np.isfinite([low, span, power or 0]).all() and span > 0):
                raise ValueError(
                    f"{feature.name}: needs finite parameters and a range "
                    f"above 0, got min {low} and range {span}"
                )
            prep.scalings[feature.name] = Scaling(power, low, span)
        return prep

    def _check_fitted(self) -> None:
        if self.schema.reals and not self.scalings:
            raise RuntimeError("this Preprocessor is not fitted: call fit")

    def _scale(
        self, feature: Feature, column: pd.Series, clip: bool
    ) -> np.ndarray:
        """Scale one real column, shape (rows,)."""
        scaled = self.scalings[feature.name].forward(column.to_numpy(float))
        # Rounding in the power transform may put an edge value past 0 or 1.
        outside = (scaled < -1e-9) | (scaled > 1 + 1e-9)
        if clip:
            return scaled.clip(0, 1)
        if outside.any():
            warnings.warn(
                f"{feature.name}: {int(outside.sum())} of {len(scaled)} "
                "values lie outside the fitted range, and land outside "
                "[0, 1]; clip=True moves them to its edge",
                stacklevel=4,
            )
        return scaled

    def _unscale(self, feature: Feature, scaled: np.ndarray) -> np.ndarray:
        """Return one scaled column to clinical units, shape (rows,)."""
        values = self.scalings[feature.name].backward(scaled)
        lost = ~np.isfinite(values)
        if lost.any():
            first = scaled[int(lost.argmax())]
            raise ValueError(
                f"{feature.name}: {int(lost.sum())} scaled values, such as "
                f"{first:.3g}, have no counterpart in clinical units; "
                "clip=True moves them into [0, 1]"
            )
        if feature.minimum is not None:
            values = np.maximum(values, feature.minimum)
        return values

    def _check_shape(self, x: Tensor) -> np.ndarray:
        """Return the rows of x as float64, or say what is wrong with it."""
        if not isinstance(x, torch.Tensor):
            raise ValueError(f"expected a tensor, got {type(x).__name__}")
        if x.ndim != 3 or x.shape[2] != self.schema.width or 0 in x.shape:
            raise ValueError(
                "expected shape (patients, months, "
                f"{self.schema.width}), got {tuple(x.shape)}"
            )
        flat = x.detach().cpu().double().numpy().reshape(-1, x.shape[2])
        bad = ~np.isfinite(flat)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            patient, month = divmod(int(row), x.shape[1])
            raise ValueError(
                f"{self.schema.columns[column]}: value {flat[row, column]} "
                f"at patient {patient}, month {month} of the tensor"
            )
        return flat
