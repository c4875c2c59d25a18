"""A made-up cohort that has nothing to do with HIV, for many tests."""

import numpy as np
import pandas as pd

from healthgym_utils.schema import Feature, Schema

# Another cohort than HIV: nothing in the package may know about the latter.
MADE_UP = Schema(
    name="made up",
    patient="stay",
    month="hour",
    features=(
        Feature("lactate", "real", unit="mmol/L"),
        Feature("base_excess", "real", transform="identity", minimum=None),
        Feature("age", "real", transform="identity", minimum=18, static=True),
        Feature("ward", "categorical", tuple(f"W{k:02d}" for k in range(12))),
        Feature("ventilated", "binary", ("no", "yes")),
    ),
)


def made_up_table(
    schema: Schema, n_patients: int, n_months: int, seed: int
) -> pd.DataFrame:
    """Draw a valid table of any schema; no structure, only valid values."""
    rng = np.random.default_rng(seed)
    rows = n_patients * n_months
    table = pd.DataFrame(
        {
            schema.patient: np.repeat(np.arange(n_patients) + 5, n_months),
            schema.month: np.tile(np.arange(n_months), n_patients),
        }
    )
    for feature in schema:
        if not feature.is_real:
            codes = rng.integers(feature.width, size=rows)
            table[feature.name] = np.asarray(feature.classes)[codes]
        elif feature.transform == "boxcox":
            table[feature.name] = rng.lognormal(1, 2, rows)
        else:
            low = feature.minimum if feature.minimum is not None else -50
            table[feature.name] = low + rng.gamma(2, 20, rows)
    return table


def by_hand(**columns) -> pd.DataFrame:
    """Build a table of the made-up cohort from (stays, hours) arrays.

    Variables that are not given stay at one value; labels may be codes.
    """
    shape = np.shape(next(iter(columns.values())))
    still = {"lactate": 1.0, "base_excess": 0.0, "age": 40.0}
    still |= {"ward": 0, "ventilated": 0}
    table = pd.DataFrame(
        {
            MADE_UP.patient: np.repeat(np.arange(shape[0]), shape[1]),
            MADE_UP.month: np.tile(np.arange(shape[1]), shape[0]),
        }
    )
    for name, value in (still | columns).items():
        values = np.broadcast_to(value, shape).ravel()
        feature = MADE_UP[name]
        if not feature.is_real:
            values = np.asarray(feature.classes)[values]
        table[name] = values
    return table
