"""The schema describes itself rightly and refuses contradictions."""

import json

import numpy as np
import pandas as pd
import pytest
from cohorts import MADE_UP, made_up_table
from hypothesis import given
from hypothesis import strategies as st

from healthgym_utils.schema import (
    ART_FULL_SCHEMA,
    ART_SCHEMA,
    Feature,
    Schema,
    SchemaError,
    TableError,
)


def test_model_view_has_the_published_columns():
    assert ART_SCHEMA.width == 22
    assert ART_SCHEMA.embedding_width == 18
    spans = {name: (s.start, s.stop) for name, s in ART_SCHEMA.spans.items()}
    assert spans == {
        "VL": (0, 1),
        "CD4": (1, 2),
        "Gender": (2, 4),
        "Ethnic": (4, 8),
        "Base_Drug_Combo": (8, 14),
        "Extra_PI": (14, 20),
        "Extra_pk_En": (20, 22),
    }


def test_full_view_has_ten_variables():
    assert len(ART_FULL_SCHEMA) == 10
    assert ART_FULL_SCHEMA.embedding_width == 27
    assert [f.name for f in ART_FULL_SCHEMA.statics] == ["Gender", "Ethnic"]


def test_column_names():
    assert ART_SCHEMA.columns[:4] == [
        "VL",
        "CD4",
        "Gender=Male",
        "Gender=Female",
    ]
    assert len(set(ART_FULL_SCHEMA.columns)) == ART_FULL_SCHEMA.width


REFUSED_FEATURES = {
    "no name": (dict(name="", kind="real"), "needs a name"),
    "kind": (dict(name="a", kind="ordinal"), "a: kind 'ordinal'"),
    "binary with three": (
        dict(name="a", kind="binary", classes=("x", "y", "z")),
        "a: a binary feature has 2 classes, got 3",
    ),
    "one class": (
        dict(name="a", kind="categorical", classes=("x",)),
        "a: a categorical feature has 2 or more, got 1",
    ),
    "class twice": (
        dict(name="a", kind="categorical", classes=("x", "y", "x")),
        "a: class 'x' is listed twice",
    ),
    "class no string": (
        dict(name="a", kind="binary", classes=(0, 1)),
        "a: class 0 is not a string",
    ),
    "real with classes": (
        dict(name="a", kind="real", classes=("x", "y")),
        "a: a real feature has no classes",
    ),
    "transform": (
        dict(name="a", kind="real", transform="log"),
        "a: transform 'log'",
    ),
    "Box-Cox of negatives": (
        dict(name="a", kind="real", minimum=None),
        "a: Box-Cox needs a minimum",
    ),
    "embedding size": (
        dict(name="a", kind="real", embedding_size=0),
        "a: embedding size 0",
    ),
}


@pytest.mark.parametrize("case", REFUSED_FEATURES)
def test_feature_refuses(case):
    fields, message = REFUSED_FEATURES[case]
    with pytest.raises(SchemaError, match=message):
        Feature(**fields)


def test_schema_refuses_names_twice_and_no_features():
    with pytest.raises(SchemaError, match="a: this name is used twice"):
        Schema((Feature("a", "real"), Feature("a", "real")))
    with pytest.raises(SchemaError, match="PatientID: this name"):
        Schema((Feature("PatientID", "real"),))
    with pytest.raises(SchemaError, match="needs a feature"):
        Schema(())
    with pytest.raises(SchemaError, match="bmi: no such feature"):
        ART_SCHEMA["bmi"]


def described(schema=ART_SCHEMA):
    """Go through JSON, so that only plain types survive."""
    return json.loads(json.dumps(schema.to_dict()))


@pytest.mark.parametrize("schema", [ART_SCHEMA, ART_FULL_SCHEMA, MADE_UP])
def test_dict_round_trip(schema):
    assert Schema.from_dict(described(schema)) == schema


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ([3, 5], "Gender: starts at column 3, which leaves a gap"),
        ([1, 3], "Gender: starts at column 1, which overlaps"),
        ([2, 5], "Gender: 2 columns are needed, the span 2:5 has 3"),
        ([2], "Gender: a span is"),
        ("no", "Gender: a span is"),
    ],
)
def test_stated_spans_are_checked(span, message):
    description = described()
    description["features"][2]["span"] = span
    with pytest.raises(SchemaError, match=message):
        Schema.from_dict(description)


def test_wrong_class_count_is_found_through_the_span():
    description = described()
    description["features"][3]["classes"].remove("Asian")
    with pytest.raises(SchemaError, match="Ethnic: 3 columns are needed"):
        Schema.from_dict(description)


def test_broken_descriptions_are_refused():
    description = described()
    del description["patient"]
    with pytest.raises(SchemaError, match="lacks 'patient'"):
        Schema.from_dict(description)
    description = described()
    description["features"][0]["colour"] = "red"
    with pytest.raises(SchemaError, match="VL: .*colour"):
        Schema.from_dict(description)
    description = described()
    description["features"][0]["span"] = [float("inf"), 1]
    with pytest.raises(SchemaError, match="VL: a span is"):
        Schema.from_dict(description)
    with pytest.raises(SchemaError, match="no description"):
        Schema.from_dict(
            {"features": 3, "name": "", "patient": "", "month": ""}
        )


def spoil(column, value, row=20):
    """Make a change of one cell, as a function of a table."""

    def change(table):
        table[column] = table[column].astype(object)
        table.loc[row, column] = value
        if not isinstance(value, str):
            table[column] = table[column].infer_objects()
        return table

    return change


# Row 20 of nine stays of 17 hours is stay 6, hour 3.
PLACE = r"row 20 \(patient 6, month 3\)"
REFUSED_TABLES = {
    "not a frame": (lambda t: [1, 2], "expected a pandas DataFrame, got list"),
    "empty": (lambda t: t.iloc[:0], "the table is empty"),
    "missing column": (
        lambda t: t.drop(columns="ward"),
        "ward: this column is missing",
    ),
    "missing id": (
        lambda t: t.drop(columns="stay"),
        "stay: this column is missing",
    ),
    "column twice": (
        lambda t: pd.concat([t, t["ward"]], axis=1),
        "ward: 2 columns have this name",
    ),
    "id of text": (
        lambda t: t.assign(stay=t["stay"].astype(str)),
        "stay: identifiers must be integers",
    ),
    "id of floats": (
        lambda t: t.assign(hour=t["hour"].astype(float)),
        "hour: identifiers must be integers, this column is float64",
    ),
    "missing id value": (
        lambda t: t.assign(stay=t["stay"].astype("Int64").mask(t.index == 20)),
        "stay: missing in row 20",
    ),
    "same month twice": (
        lambda t: t.assign(hour=t["hour"].where(t.index != 20, 2)),
        r"row 20 \(patient 6, month 2\) occurs twice",
    ),
    "missing value": (spoil("lactate", np.nan), f"lactate: missing.*{PLACE}"),
    "infinite value": (spoil("lactate", np.inf), f"lactate: inf.*{PLACE}"),
    "negative lab": (
        spoil("lactate", -2.5),
        f"lactate: below 0.*-2.5.*{PLACE}",
    ),
    "below minimum": (spoil("age", 17.0), f"age: below 18 value 17.*{PLACE}"),
    "text for number": (spoil("age", "old"), "age: expected numbers"),
    "bool for number": (
        lambda t: t.assign(age=t["age"] > 40),
        "age: expected numbers, this column is bool",
    ),
    "unknown label": (
        spoil("ward", "W99"),
        f"ward: unknown label 'W99' in {PLACE} .*classes are W00",
    ),
    "unknown code": (
        lambda t: t.assign(ward=3),
        "ward: unknown label.*decoded by load_art",
    ),
    "missing label": (spoil("ward", None), f"ward: unknown label.*{PLACE}"),
    "case of label": (spoil("ventilated", "Yes"), "unknown label 'Yes'"),
}


@pytest.mark.parametrize("case", REFUSED_TABLES)
def test_validate_refuses(case, made_up):
    change, message = REFUSED_TABLES[case]
    with pytest.raises(TableError, match=message):
        MADE_UP.validate(change(made_up))


@given(
    kinds=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    n_patients=st.integers(1, 5),
    n_months=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_any_schema_tiles_its_columns(kinds, n_patients, n_months, seed):
    """Spans are contiguous and valid tables pass, whatever the features."""
    features = tuple(
        Feature(f"f{k}", "real")
        if count == 1
        else Feature(f"f{k}", "categorical", tuple(map(str, range(count))))
        for k, count in enumerate(kinds)
    )
    schema = Schema(features)
    covered = [
        i for s in schema.spans.values() for i in range(s.start, s.stop)
    ]
    assert covered == list(range(schema.width)) == list(range(sum(kinds)))
    assert len(schema.columns) == schema.width
    assert Schema.from_dict(schema.to_dict()) == schema
    schema.validate(made_up_table(schema, n_patients, n_months, seed))
