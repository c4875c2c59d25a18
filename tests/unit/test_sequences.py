"""Rows fold into the right patient and month, and loaders serve them all."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from healthgym_utils.schema import TableError
from healthgym_utils.sequences import (
    curriculum_loaders,
    sequence_loader,
    to_sequences,
)


def numbered(n_patients=4, n_months=5, first=10):
    """Make a table whose value spells its place: 1000 * patient + month."""
    ids = np.repeat(np.arange(n_patients) + first, n_months)
    months = np.tile(np.arange(n_months), n_patients)
    return pd.DataFrame(
        {"PatientID": ids, "Timestep": months, "v": 1000.0 * ids + months}
    )


def test_values_are_in_their_place():
    folded = to_sequences(numbered(), ["v", "Timestep"])
    assert folded.values.shape == (4, 5, 2)
    assert folded.values.dtype == torch.float32
    assert folded.values[2, 3].tolist() == [12003, 3]
    assert folded.patients.tolist() == [10, 11, 12, 13]
    assert folded.mask.all()
    assert folded.lengths.tolist() == [5] * 4


def test_equals_a_groupby():
    table = numbered()
    by_group = np.stack(
        [g[["v"]].to_numpy() for _, g in table.groupby("PatientID")]
    )
    folded = to_sequences(table, ["v"])
    assert np.array_equal(folded.values.numpy(), by_group)


@settings(deadline=None)
@given(
    n_patients=st.integers(1, 6),
    n_months=st.integers(1, 8),
    seed=st.integers(0, 999),
)
def test_row_order_does_not_matter(n_patients, n_months, seed):
    table = numbered(n_patients, n_months)
    shuffled = table.sample(frac=1, random_state=seed)
    assert torch.equal(
        to_sequences(shuffled, ["v"]).values, to_sequences(table, ["v"]).values
    )


@settings(deadline=None)
@given(data=st.data())
def test_padding_marks_exactly_what_is_missing(data):
    table = numbered(3, 6)
    keep = data.draw(
        st.lists(st.booleans(), min_size=18, max_size=18).filter(any)
    )
    ragged = table[keep]
    folded = to_sequences(ragged, ["v"], ragged="pad")
    assert int(folded.mask.sum()) == len(ragged)
    assert folded.values[folded.mask].flatten().tolist() == list(ragged["v"])
    assert (folded.values[~folded.mask] == 0).all()


def test_unsorted_rows_can_be_refused():
    table = numbered().iloc[::-1]
    with pytest.raises(TableError, match="patient 13, month 3.*comes after"):
        to_sequences(table, ["v"], unsorted="refuse")


BAD_TABLES = {
    "missing month": (
        lambda t: t.drop(index=7),
        r"patient 11 lacks month 2; months 0 to 4.*1 patient\(s\).*: 11\.",
    ),
    "late start": (lambda t: t.drop(index=0), "patient 10 lacks month 0"),
    "two ragged": (lambda t: t.drop(index=[7, 19]), "incomplete: 11, 13"),
    "gap for all": (
        lambda t: t[t["Timestep"] != 3],
        "patient 10 lacks month 3",
    ),
    "month twice": (
        lambda t: pd.concat([t, t.iloc[[7]]]),
        "patient 11, month 2 occurs twice",
    ),
    "no rows": (lambda t: t.iloc[:0], "table is empty"),
    "no column": (lambda t: t.drop(columns="v"), "v: this column is missing"),
    "no id": (
        lambda t: t.drop(columns="Timestep"),
        "Timestep: this column is missing",
    ),
    "text": (lambda t: t.assign(v="x"), "v: expected numbers.*encode labels"),
    "nan": (
        lambda t: t.assign(v=t["v"].where(t.index != 7)),
        r"v: value nan in row 7 \(patient 11.*month 2",
    ),
    "float id": (
        lambda t: t.assign(PatientID=t["PatientID"] + 0.5),
        "PatientID: identifiers must be integers",
    ),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables_are_refused(case):
    change, message = BAD_TABLES[case]
    with pytest.raises(TableError, match=message):
        to_sequences(change(numbered()), ["v"])


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match='unsorted is "sort" or "refuse"'):
        to_sequences(numbered(), ["v"], unsorted="maybe")
    with pytest.raises(ValueError, match='ragged is "refuse" or "pad"'):
        to_sequences(numbered(), ["v"], ragged="maybe")
    with pytest.raises(ValueError, match='window is "first" or "random"'):
        sequence_loader(torch.zeros(2, 3, 1), window="last")


def test_loader_serves_everybody_once():
    x = torch.arange(300.0).reshape(300, 1, 1).repeat(1, 60, 1)
    loader = sequence_loader(x, batch_size=256)
    batches = list(loader)
    assert [len(values) for values, _ in batches] == [256, 44]
    seen = torch.cat([values[:, 0, 0] for values, _ in batches])
    assert sorted(seen.tolist()) == list(range(300))
    assert batches[0][1].tolist() == [60] * 256
    dropped = list(sequence_loader(x, batch_size=256, drop_last=True))
    assert len(dropped) == 1
    with pytest.raises(ValueError, match="300 patients and batch_size 301"):
        sequence_loader(x, batch_size=301, drop_last=True)


def test_loader_order_follows_the_seed():
    x = torch.arange(50.0).reshape(50, 1, 1)

    def order(seed):
        loader = sequence_loader(x, batch_size=50, seed=seed)
        return [next(iter(loader))[0].flatten().tolist() for _ in range(2)]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1)[0] != order(1)[1]  # each pass has its own order


def test_first_windows_nest():
    x = torch.rand(20, 60, 3)
    loaders = curriculum_loaders(x, shuffle=False)
    assert list(loaders) == [10, 20, 30, 40, 50, 60]
    longest = next(iter(loaders[60]))[0]
    for length, loader in loaders.items():
        values, lengths = next(iter(loader))
        assert torch.equal(values, longest[:, :length])
        assert (lengths == length).all()


def test_random_windows_are_stretches_of_the_patient():
    months = torch.arange(60.0).reshape(1, 60, 1)
    x = months + 100 * torch.arange(30.0).reshape(30, 1, 1)
    loader = sequence_loader(x, length=10, window="random", seed=3)
    starts = set()
    for _ in range(20):
        values, _ = next(iter(loader))
        assert (values.diff(dim=1) == 1).all()
        starts |= set((values[:, 0, 0] % 100).tolist())
    assert min(starts) == 0
    assert max(starts) == 50


def test_short_horizons_have_their_own_lessons():
    assert list(curriculum_loaders(torch.zeros(2, 17, 1))) == [10, 17]
    assert list(curriculum_loaders(torch.zeros(2, 7, 1))) == [7]
    with pytest.raises(ValueError, match="length 20 does not fit.*17"):
        curriculum_loaders(torch.zeros(2, 17, 1), lengths=[20])


@pytest.mark.parametrize("x", [torch.zeros(3, 4), torch.zeros(0, 4, 2), [1]])
def test_loaders_want_a_batch_of_sequences(x):
    with pytest.raises(ValueError, match="expected a tensor of shape"):
        sequence_loader(x)
