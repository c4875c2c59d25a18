"""Tables become tensors and come back; bad input does not get in."""

import json
from decimal import Decimal, getcontext

import numpy as np
import pandas as pd
import pytest
import torch
from cohorts import MADE_UP, made_up_table
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from healthgym_utils.preprocess import EPSILON, Preprocessor, Scaling
from healthgym_utils.schema import ART_FULL_SCHEMA, Feature, Schema, TableError

# Printed by the published pre-processing notebook for the whole cohort.
PUBLISHED = {
    "VL": {
        "lambda": -0.10280050659808612,
        "min": -2.5667126025418563,
        "range": 9.308206289656969,
    },
    "CD4": {
        "lambda": -0.15837078646408756,
        "min": 1.768426319414879,
        "range": 3.3780829615538304,
    },
    "Rel_CD4": {
        "lambda": -0.07011648493830457,
        "min": 0.613685356331402,
        "range": 4.526683845025821,
    },
}
# Patient 0, month 0 of the published table, and the published extremes.
FIRST_ROW = {
    "VL": 29.944271,
    "CD4": 793.45830,
    "Rel_CD4": 30.834505,
    "Gender": "Male",
    "Ethnic": "Caucasian",
    "Base_Drug_Combo": "FTC + TDF",
    "Comp_INI": "DTG",
    "Comp_NNRTI": "Not Applied",
    "Extra_PI": "Not Applied",
    "Extra_pk_En": "False",
    "PatientID": 0,
    "Timestep": 0,
}
PUBLISHED_RANGE = {
    "VL": (0.1, 97566.41),
    "CD4": (7.96, 42475.2),
    "Rel_CD4": (1.871, 586.635),
}


@pytest.fixture
def published() -> Preprocessor:
    """Return a preprocessor with the published parameters."""
    return Preprocessor.from_dict(
        {"schema": ART_FULL_SCHEMA.to_dict(), "scalings": PUBLISHED}
    )


def in_decimal(value: float, key: dict) -> float:
    """Box-Cox and min-max in 40-digit arithmetic, apart from NumPy."""
    getcontext().prec = 40
    x, power = Decimal(value) + Decimal("0.001"), Decimal(key["lambda"])
    y = ((power * x.ln()).exp() - 1) / power
    return float((y - Decimal(key["min"])) / Decimal(key["range"]))


def test_published_first_row(published):
    row = pd.DataFrame([FIRST_ROW])
    codes = published.codes(row).iloc[0]
    for name, key in PUBLISHED.items():
        assert abs(codes[name] - in_decimal(FIRST_ROW[name], key)) < 1e-6
    assert list(codes[ART_FULL_SCHEMA.names[3:]]) == [0, 2, 0, 0, 3, 5, 0]
    x = published.transform(row)
    assert x.shape == (1, 1, ART_FULL_SCHEMA.width)
    assert x.dtype == torch.float32
    back = published.inverse_transform(x).iloc[0]
    assert all(back[n] == FIRST_ROW[n] for n in ART_FULL_SCHEMA.names[3:])


def test_published_extremes_are_zero_and_one(published):
    """The published minima and maxima are printed to a few digits."""
    for name, (low, high) in PUBLISHED_RANGE.items():
        edges = published.scalings[name].forward(np.array([low, high]))
        # The minimum of VL is printed as 0.10, so 0.095 to 0.105.
        assert np.allclose(edges, [0, 1], atol=0.006)


@pytest.mark.parametrize("name", PUBLISHED)
def test_float32_round_trip_over_the_published_range(published, name):
    """Within 1e-4 relative, through float32; the largest values lose most.

    The inverse stretches a float32 step near 1 (6e-8) by the range times
    x ** -lambda, so no smaller error than about 1e-6 can be had there.
    """
    scaling = published.scalings[name]
    values = np.geomspace(*PUBLISHED_RANGE[name], 200_001)
    scaled = scaling.forward(values).astype(np.float32)
    error = np.abs(scaling.backward(scaled.astype(float)) / values - 1)
    assert error.max() < 1e-4
    assert error.max() > 1e-8  # float32 really was in the way


def test_near_zero_the_error_is_absolute(published):
    """Below EPSILON no relative accuracy can be promised: x + EPSILON."""
    values = np.array([0.0, 1e-9, 1e-6, 1e-4])
    scaling = published.scalings["VL"]
    scaled = scaling.forward(values).astype(np.float32).astype(float)
    assert np.abs(scaling.backward(scaled) - values).max() < 1e-8


def test_another_release_of_scipy_changes_no_bit(made_up, monkeypatch):
    """1.13 and 1.17 find lambdas that differ by 1e-8 on the cohort."""
    x = Preprocessor(MADE_UP).fit(made_up).transform(made_up)
    boxcox = stats.boxcox

    def another(values):
        y, power = boxcox(values)
        return y, power + 1e-8

    monkeypatch.setattr(stats, "boxcox", another)
    again = Preprocessor(MADE_UP).fit(made_up).transform(made_up)
    assert torch.equal(x, again)


def test_fit_is_scipys_maximum_likelihood(made_up):
    prep = Preprocessor(MADE_UP).fit(made_up)
    values = made_up["lactate"].to_numpy() + EPSILON
    power = round(stats.boxcox(values)[1], 6)
    y = stats.boxcox(values, power)
    assert prep.scalings["lactate"] == Scaling(
        power, y.min(), y.max() - y.min()
    )
    negatives = prep.scalings["base_excess"]
    assert negatives.power is None
    assert negatives.low == made_up["base_excess"].min() < 0


def test_design_matrix(made_up):
    prep = Preprocessor(MADE_UP).fit(made_up)
    matrix = prep.design_matrix(made_up)
    assert list(matrix.columns) == MADE_UP.columns
    assert matrix.min().min() >= 0
    assert matrix.max().max() <= 1 + 1e-9
    for feature in MADE_UP.categoricals:
        block = matrix.iloc[:, MADE_UP.spans[feature.name]]
        assert (block.sum(axis=1) == 1).all()


def test_absent_class_keeps_its_column(made_up):
    table = made_up[made_up["ward"] != "W03"].copy()
    table["hour"] = table.groupby("stay").cumcount()
    prep = Preprocessor(MADE_UP).fit(table)
    matrix = prep.design_matrix(table)
    assert matrix.shape[1] == MADE_UP.width
    assert (matrix["ward=W03"] == 0).all()


def test_rows_in_any_order_and_other_dtypes(made_up):
    prep = Preprocessor(MADE_UP).fit(made_up)
    x = prep.transform(made_up)
    assert torch.equal(prep.transform(made_up.sample(frac=1)), x)
    backwards = sorted(set(made_up["ward"]), reverse=True)
    as_categories = made_up.assign(
        ward=pd.Categorical(made_up["ward"], backwards)
    )
    assert torch.equal(prep.transform(as_categories), x)


def test_one_patient_is_transformed_but_not_fitted(made_up):
    prep = Preprocessor(MADE_UP).fit(made_up)
    one = made_up[made_up["stay"] == 5]
    assert prep.transform(one).shape == (1, 17, MADE_UP.width)
    with pytest.raises(TableError, match="two patients or more, got one"):
        Preprocessor(MADE_UP).fit(one)


def test_constant_column_is_refused(made_up):
    with pytest.raises(TableError, match="age: all 153 values are 40"):
        Preprocessor(MADE_UP).fit(made_up.assign(age=40.0))


def test_missing_month_is_refused(made_up):
    prep = Preprocessor(MADE_UP).fit(made_up)
    with pytest.raises(TableError, match="patient 6 lacks month 3"):
        prep.transform(made_up.drop(index=20))


@pytest.mark.parametrize("method", ["fit", "codes", "transform"])
def test_bad_tables_are_refused_by_every_door(made_up, method):
    prep = Preprocessor(MADE_UP).fit(made_up)
    made_up.loc[20, "ward"] = "W99"
    with pytest.raises(TableError, match="ward.*W99.*patient 6, month 3"):
        getattr(prep, method)(made_up)


def test_outside_the_fitted_range(made_up):
    prep = Preprocessor(MADE_UP).fit(made_up)
    odd = made_up.copy()
    odd.loc[20, "lactate"] = 1e9
    with pytest.warns(UserWarning, match="lactate: 1 of 153 values"):
        kept = prep.transform(odd)
    assert kept[..., 0].max() > 1
    back = prep.inverse_transform(kept, patients=odd["stay"].unique())
    assert back.loc[20, "lactate"] == pytest.approx(1e9, rel=1e-3)
    clipped = prep.transform(odd, clip=True)
    assert clipped[..., 0].max() == 1


def test_not_fitted():
    with pytest.raises(RuntimeError, match="not fitted: call fit"):
        Preprocessor(MADE_UP).to_dict()


def a_tensor(value=0.5, shape=(2, 3, MADE_UP.width)):
    return torch.full(shape, value)


REFUSED_TENSORS = {
    "array": (np.zeros((2, 3, 17)), "expected a tensor"),
    "two axes": (a_tensor(shape=(6, MADE_UP.width)), "expected shape"),
    "width": (a_tensor(shape=(2, 3, 5)), r"17\), got \(2, 3, 5\)"),
    "no patients": (a_tensor(shape=(0, 3, MADE_UP.width)), "expected shape"),
    "nan": (
        a_tensor(float("nan")),
        "value nan at patient 0, month 0",
    ),
    "inf": (a_tensor(float("inf")), "lactate: value inf at patient 0"),
}


@pytest.mark.parametrize("case", REFUSED_TENSORS)
def test_inverse_refuses(case, made_up):
    x, message = REFUSED_TENSORS[case]
    prep = Preprocessor(MADE_UP).fit(made_up)
    with pytest.raises(ValueError, match=message):
        prep.inverse_transform(x)


def test_inverse_beyond_the_asymptote(published):
    """With a negative lambda no x maps above -1 / lambda."""
    x = torch.zeros(1, 1, ART_FULL_SCHEMA.width)
    x[..., 0] = 2.0
    with pytest.raises(ValueError, match="VL: 1 scaled values, such as 2"):
        published.inverse_transform(x)
    table = published.inverse_transform(x, clip=True)
    assert table.loc[0, "VL"] == pytest.approx(97566.41, rel=1e-3)


def test_inverse_never_goes_below_the_minimum(made_up):
    prep = Preprocessor(MADE_UP).fit(made_up)
    x = a_tensor(-0.5)
    assert prep.inverse_transform(x)["age"].min() == 18


def test_inverse_wants_one_identifier_a_patient(made_up):
    prep = Preprocessor(MADE_UP).fit(made_up)
    with pytest.raises(ValueError, match="1 identifiers for 2 patients"):
        prep.inverse_transform(a_tensor(), patients=[4])


def test_dict_round_trip(made_up):
    prep = Preprocessor(MADE_UP).fit(made_up)
    again = Preprocessor.from_dict(json.loads(json.dumps(prep.to_dict())))
    assert again.scalings == prep.scalings
    assert torch.equal(again.transform(made_up), prep.transform(made_up))


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"lambda": -0.1, "min": 0.0},
        {"lambda": -0.1, "min": 0.0, "range": 0.0},
        {"lambda": None, "min": 0.0, "range": 1.0},
        {"lambda": "x", "min": 0.0, "range": 1.0},
        {"lambda": float("nan"), "min": 0.0, "range": 1.0},
        {"lambda": -0.1, "min": 0.0, "range": 10**400},
        None,
    ],
)
def test_broken_parameters_are_refused(record):
    description = {
        "schema": ART_FULL_SCHEMA.to_dict(),
        "scalings": PUBLISHED | {"CD4": record},
    }
    with pytest.raises(ValueError, match="CD4: "):
        Preprocessor.from_dict(description)


@pytest.mark.parametrize("description", [{}, [], None, "prep"])
def test_what_describes_no_preprocessor_is_refused(description):
    with pytest.raises(ValueError, match="no description of a preprocessor"):
        Preprocessor.from_dict(description)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    n_patients=st.integers(2, 6),
    n_months=st.integers(1, 17),
    n_classes=st.integers(2, 12),
    reals=st.lists(st.booleans(), min_size=1, max_size=4),
)
def test_any_cohort_comes_back(seed, n_patients, n_months, n_classes, reals):
    """Table to tensor to table: labels identical, reals within float32."""
    labels = tuple(f"label {k}" for k in range(n_classes))
    features = [Feature("group", "categorical", labels)]
    for k, skewed in enumerate(reals):
        features.append(
            Feature(f"lab{k}", "real")
            if skewed
            else Feature(f"lab{k}", "real", transform="identity", minimum=None)
        )
    schema = Schema(tuple(features))
    table = made_up_table(schema, n_patients, n_months, seed)
    prep = Preprocessor(schema).fit(table)
    x = prep.transform(table)
    assert x.shape == (n_patients, n_months, schema.width)
    patients = table[schema.patient].unique()
    back = prep.inverse_transform(x, patients=patients)
    schema.validate(back)
    assert (back["group"] == table["group"]).all()
    assert (back[schema.ids] == table[schema.ids]).all().all()
    for feature in schema.reals:
        span = np.ptp(table[feature.name])
        np.testing.assert_allclose(
            back[feature.name],
            table[feature.name],
            rtol=1e-4,
            atol=1e-6 * span,
        )
