"""Training on several processes, and streaming from Parquet.

The tools are an example for large cohorts, and pyarrow is an extra of the
package: without it these tests are skipped, and `.ci/run` fails, as for a
browser that is missing.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from cohorts import MADE_UP, made_up_table
from filelock import FileLock
from torch.utils.data import DataLoader

import healthgym_utils as hg
from healthgym_utils.diffusion import DiffusionSettings
from healthgym_utils.schema import TableError

if os.environ.get("CI") != "true":
    pytest.importorskip("pyarrow")

import pyarrow as pa
import pyarrow.parquet as pq
from parquet_stream import (
    ParquetCohort,
    ParquetPatients,
    fit_preprocessor,
    mixed,
)
from scaling import PAGE, measured_table, planned_table
from simulated_cohort import section
from train_distributed import Diffusion, check_shares, fit, main

TOOL = Path(__file__).parents[2] / "tools" / "train_distributed.py"
MONTHS = 17
SMALL = DiffusionSettings(steps=20, sampling_steps=5, hidden=16, time_width=8)


def ragged_table(patients=23, seed=0):
    """Patients with 9 to 17 hours each, two of them with one long history."""
    table = made_up_table(MADE_UP, patients, MONTHS, seed)
    rng = np.random.default_rng(seed)
    last = np.repeat(rng.integers(9, MONTHS + 1, patients), MONTHS)
    return table[table["hour"] < last].reset_index(drop=True)


def written(folder, table, rows=10, cut=None, convert=lambda part: part):
    """Write a table to two files, in row groups that cut patients.

    With a conversion, the second file is of other types than the first.
    """
    cut = len(table) // 2 if cut is None else cut
    paths = [folder / "a.parquet", folder / "b.parquet"]
    parts = table[:cut], convert(table[cut:])
    for path, part in zip(paths, parts, strict=True):
        arrow = pa.Table.from_pandas(part, preserve_index=False)
        pq.write_table(arrow, path, row_group_size=rows)
    return paths


def cohort_of(folder, table, **options):
    return ParquetCohort(written(folder, table, **options), MADE_UP)


def expected(table, prep):
    """Each patient, transformed without a stream, as hashable bytes."""
    whole = Counter()
    for _, rows in table.groupby("stay"):
        x = prep.transform(rows, clip=True)[0]
        padded = torch.zeros(MONTHS, MADE_UP.width)
        padded[: len(x)] = x
        whole[padded.numpy().tobytes(), len(x)] += 1
    return whole


def is_writable(kind):
    try:
        table = pa.table({"any": pa.array([], kind)})
        pq.write_table(table, pa.BufferOutputStream())
    except pa.ArrowNotImplementedError:
        return False
    return True


def served(data):
    return Counter((x.numpy().tobytes(), int(n)) for x, n in data)


# --- Streaming --------------------------------------------------------------


@pytest.mark.parametrize("rows", [4, 10, 1000])
def test_two_ranks_serve_each_patient_once_as_transform_gives_it(
    tmp_path, rows
):
    # With 4 rows a group, a patient is spread over up to five of them.
    table = ragged_table()
    prep = hg.Preprocessor(MADE_UP).fit(table)
    cohort = cohort_of(tmp_path, table, rows=rows)
    ranks = [
        ParquetPatients(cohort, prep, MONTHS, 5, rank=r, ranks=2)
        for r in range(2)
    ]
    for epoch in range(2):
        for data in ranks:
            data.set_epoch(epoch)
        parts = [served(data) for data in ranks]
        assert sum(parts, Counter()) == expected(table, prep)
        assert rows == 1000 or all(parts)


def test_months_of_a_patient_may_come_in_any_order(tmp_path):
    table = ragged_table()
    prep = hg.Preprocessor(MADE_UP).fit(table)
    mixed_up = table.sample(frac=1, random_state=0).sort_values(
        "stay", kind="stable"
    )
    data = ParquetPatients(cohort_of(tmp_path, mixed_up), prep, MONTHS)
    assert served(data) == expected(table, prep)


@pytest.mark.parametrize(
    "types",
    [
        {"ward": "category", "ventilated": object},
        {"stay": "int32", "hour": "int8"},
        {"stay": "Int64", "hour": "Int32", "lactate": "Float64"},
        {"ward": pd.ArrowDtype(pa.large_string())},
        pytest.param(
            {"ward": pd.ArrowDtype(pa.string_view())},
            marks=pytest.mark.skipif(
                not is_writable(pa.string_view()),
                reason="this pyarrow cannot write it",
            ),
        ),
    ],
)
def test_files_may_differ_in_types_where_they_cut_a_patient(tmp_path, types):
    table = ragged_table()
    prep = hg.Preprocessor(MADE_UP).fit(table)
    cohort = cohort_of(tmp_path, table, convert=lambda t: t.astype(types))
    data = ParquetPatients(cohort, prep, MONTHS)
    assert served(data) == expected(table, prep)


def test_a_file_without_rows_is_passed_over(tmp_path):
    """Whatever types its columns are taken for."""
    table = ragged_table()
    cohort = cohort_of(
        tmp_path,
        table,
        cut=len(table),
        convert=lambda t: t.astype(object),
    )
    prep = hg.Preprocessor(MADE_UP).fit(table)
    data = ParquetPatients(cohort, prep, MONTHS)
    assert served(data) == expected(table, prep)


def test_workers_of_a_loader_share_what_a_rank_serves(tmp_path):
    table = ragged_table()
    prep = hg.Preprocessor(MADE_UP).fit(table)
    cohort = cohort_of(tmp_path, table)
    whole = Counter()
    for rank in range(2):
        data = ParquetPatients(cohort, prep, MONTHS, rank=rank, ranks=2)
        for x, lengths in DataLoader(data, batch_size=4, num_workers=2):
            whole += served(zip(x, lengths, strict=True))
    assert whole == expected(table, prep)


def test_an_epoch_is_the_same_whenever_it_is_asked_for(tmp_path):
    table = ragged_table()
    prep = hg.Preprocessor(MADE_UP).fit(table)
    cohort = cohort_of(tmp_path, table)

    def order(epoch, seed=0, before=()):
        data = ParquetPatients(cohort, prep, MONTHS, 8, seed)
        for earlier in before:
            data.set_epoch(earlier)
            list(data)
        data.set_epoch(epoch)
        return [x.numpy().tobytes() for x, _ in data]

    assert order(2) == order(2, before=(0, 1))
    assert order(2) != order(1) and order(2) != order(2, seed=1)


def test_the_buffer_mixes_beyond_a_row_group():
    random = np.random.default_rng(0)
    shuffled = list(mixed(range(1000), 100, random))
    assert sorted(shuffled) == list(range(1000))
    moved = np.abs(np.array(shuffled) - np.arange(1000))
    assert moved.mean() > 50
    assert list(mixed(range(5), 1, random)) == list(range(5))


def test_a_preprocessor_of_all_patients_is_that_of_the_table(tmp_path):
    table = ragged_table()
    prep = fit_preprocessor(cohort_of(tmp_path, table))
    assert prep.to_dict() == hg.Preprocessor(MADE_UP).fit(table).to_dict()


def test_a_preprocessor_of_a_sample_knows_all_extremes(tmp_path):
    table = made_up_table(MADE_UP, 200, MONTHS, seed=1)
    exact = hg.Preprocessor(MADE_UP).fit(table).scalings
    cohort = cohort_of(tmp_path, table, rows=10 * MONTHS)
    sampled = fit_preprocessor(cohort, patients=50).scalings
    assert sampled["lactate"].power != exact["lactate"].power
    assert sampled["lactate"].power == pytest.approx(
        exact["lactate"].power, abs=0.05
    )
    for name, scaling in sampled.items():
        ends = scaling.forward(
            np.array([table[name].min(), table[name].max()])
        )
        assert ends == pytest.approx([0, 1], abs=1e-12)


def swapped(table):
    return table.iloc[::-1].reset_index(drop=True)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (swapped, "begins with stay"),
        (lambda t: t.drop(columns="ward"), "column ward is missing"),
        (lambda t: t[:0], "no rows"),
        (
            lambda t: t.assign(ventilated=t["ventilated"] == "yes"),
            r"ventilated is bool; .*table\[\"ventilated\"\].astype\(str\)",
        ),
        (lambda t: t.assign(lactate=t["lactate"].astype(str)), "astype.float"),
        (lambda t: t.assign(stay=t["stay"] + 0.5), "astype.int"),
    ],
)
def test_a_file_that_cannot_be_streamed_is_refused(tmp_path, broken, message):
    with pytest.raises(TableError, match=message):
        cohort_of(tmp_path, broken(ragged_table()))


def test_a_file_without_statistics_is_refused(tmp_path):
    table = pa.Table.from_pandas(ragged_table())
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, write_statistics=False)
    with pytest.raises(TableError, match="no minimum and maximum of stay"):
        ParquetCohort([path], MADE_UP)


def test_a_file_that_was_cut_short_is_named(tmp_path):
    paths = written(tmp_path, ragged_table())
    paths[1].write_bytes(paths[1].read_bytes()[:-100])
    with pytest.raises(TableError, match="b.parquet: not a whole Parquet"):
        ParquetCohort(paths, MADE_UP)


def test_row_groups_that_memory_may_not_hold_bring_a_warning(tmp_path):
    path = tmp_path / "a.parquet"
    table = made_up_table(MADE_UP, 10_000, MONTHS, seed=0)
    table.to_parquet(path)
    with pytest.warns(UserWarning, match="row group 0 has 170,000 rows"):
        ParquetCohort([path], MADE_UP)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("lactate", -1.0, "lactate: below 0 value -1 in row 7 "),
        ("lactate", np.inf, "lactate: infinite value inf in row 7 "),
        ("base_excess", -np.inf, "base_excess: infinite value -inf in row 7 "),
        ("lactate", None, "lactate: missing value nan in row 7 "),
        ("ward", None, "ward: unknown label (nan|None) in row 7 "),
    ],
)
def test_the_footer_leads_to_a_bad_row_before_training(
    tmp_path, column, value, message
):
    table = ragged_table()
    table.loc[57, column] = value
    where = r"a.parquet: row group 5: "
    patient = rf"\(patient {table['stay'][57]}, month {table['hour'][57]}\)"
    with pytest.raises(TableError, match=where + message + patient):
        cohort_of(tmp_path, table)


def test_a_column_without_any_value_is_refused(tmp_path):
    table = ragged_table().assign(lactate=np.nan)
    with pytest.raises(TableError, match="group 0: lactate: missing value"):
        cohort_of(tmp_path, table)


@pytest.mark.parametrize("month", [-1, MONTHS, 202412])
def test_a_month_out_of_range_is_refused_before_training(tmp_path, month):
    table = ragged_table()
    prep = hg.Preprocessor(MADE_UP).fit(table)
    table.loc[57, "hour"] = month
    cohort = cohort_of(tmp_path, table)
    wrong = rf"a.parquet: row group 5: hour: .* 0 to 16 .*in row 7 .*{month}\)"
    with pytest.raises(TableError, match=wrong):
        ParquetPatients(cohort, prep, MONTHS)


def test_as_many_months_as_asked_for_are_accepted(tmp_path):
    cohort = cohort_of(tmp_path, ragged_table())
    cohort.check_months(MONTHS)
    with pytest.raises(TableError, match="0 to 15 are expected"):
        cohort.check_months(MONTHS - 1)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (swapped, "stay 26 comes after 27"),
        (lambda t: t.drop(index=3), "row group 0: hour: stay 5 lacks a month"),
        (lambda t: t[t["hour"] > 0], "stay 5 lacks a month"),
        (lambda t: t.replace("W03", "W99"), "row group 0: ward: unknown lab"),
    ],
)
def test_a_table_that_cannot_be_folded_is_refused(tmp_path, broken, message):
    table = ragged_table()
    prep = hg.Preprocessor(MADE_UP).fit(table)
    broken = broken(table)
    cohort = cohort_of(tmp_path, broken, rows=10_000, cut=len(broken))
    with pytest.raises(TableError, match=f"a.parquet: .*{message}"):
        list(ParquetPatients(cohort, prep, MONTHS))


def test_a_sample_that_breaks_the_schema_is_refused_by_row_group(tmp_path):
    table = ragged_table().replace("W03", "W99")
    with pytest.raises(TableError, match=r"parquet: row group \d+: ward: unk"):
        fit_preprocessor(cohort_of(tmp_path, table))


def test_the_fingerprint_is_that_of_all_values(tmp_path):
    table = ragged_table()
    others = {"yes": "no", "no": "yes"}
    tables = {
        "first": table,
        "moved": table,
        "swapped": table.assign(ventilated=table["ventilated"].map(others)),
    }
    prints = {}
    for name, content in tables.items():
        (tmp_path / name).mkdir()
        cohort = cohort_of(tmp_path / name, content, rows=1000)
        prints[name] = cohort.fingerprint()
    assert prints["first"] == prints["moved"] != prints["swapped"]


def test_a_rank_that_is_none_and_an_empty_buffer_are_refused(tmp_path):
    cohort = cohort_of(tmp_path, ragged_table())
    prep = fit_preprocessor(cohort)
    for options in ({"rank": 2, "ranks": 2}, {"buffer": 0}):
        with pytest.raises(ValueError, match="1 patient or more"):
            ParquetPatients(cohort, prep, MONTHS, **options)


LEARNT = """
import sys
import healthgym_utils as hg
from cohorts import MADE_UP
from load_csv import peak
from parquet_stream import ParquetCohort, ParquetPatients, fit_preprocessor
import pandas as pd

def stream(path):
    cohort = ParquetCohort([path], MADE_UP)
    prep = fit_preprocessor(cohort, 200)
    return prep, sum(1 for _ in ParquetPatients(cohort, prep, 17, 100))

few, many = sys.argv[1:]
stream(few)
warm = peak()
prep, patients = stream(many)
streamed = peak()
prep.transform(pd.read_parquet(many), clip=True)
print(patients, (streamed - warm) / 2**20, (peak() - streamed) / 2**20)
"""


def test_memory_does_not_grow_with_the_file(tmp_path):
    # 30,000 patients are 41 MB as tensors, and more as a table.
    table = made_up_table(MADE_UP, 500, MONTHS, seed=0)
    paths = [tmp_path / "few.parquet", tmp_path / "many.parquet"]
    for path, copies in zip(paths, (2, 60), strict=True):
        schema = pa.Schema.from_pandas(table, preserve_index=False)
        with pq.ParquetWriter(path, schema) as writer:
            for k in range(copies):
                part = table.assign(stay=table["stay"] + 500 * k)
                writer.write_table(pa.Table.from_pandas(part, schema))
    done = subprocess.run(
        [sys.executable, "-c", LEARNT, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    patients, streamed, whole = map(float, done.stdout.split())
    as_tensors = 30_000 * MONTHS * MADE_UP.width * 4 / 2**20
    assert patients == 30_000
    assert streamed < as_tensors / 3
    assert whole > as_tensors, "the measure sees what is held whole"


# --- Several processes ------------------------------------------------------


def batches():
    """Three batches of 8 patients, of several lengths."""
    table = made_up_table(MADE_UP, 24, MONTHS, seed=3)
    x = hg.Preprocessor(MADE_UP).fit(table).transform(table).double()
    lengths = torch.randint(
        9, MONTHS + 1, (24,), generator=torch.Generator().manual_seed(0)
    )
    return list(zip(x.split(8), lengths.split(8), strict=True))


def weights(model):
    parts = [*model.network.parameters(), *model.average.parameters()]
    return torch.cat([p.detach().flatten() for p in parts])


def doubled(model):
    """Let a new model compute in double precision.

    Sums in another order differ in the last digits, which Adam's first steps,
    about the gradient's sign, enlarge.
    """
    model.network.double()
    model.average.double()
    return model


def learn(model, shares=None):
    """Train on all batches; with shares, on a rank's rows of each."""
    for real, lengths in batches():
        if shares is not None:
            real = real.split(shares)[dist.get_rank()]
            lengths = lengths.split(shares)[dist.get_rank()]
        record = model.train_step(real, lengths)
        model.history.append({"epoch": 1, "length": MONTHS} | record)
    return model


def joined(settings=SMALL):
    model = Diffusion(MADE_UP, settings, torch.device("cpu"))
    model.share()
    return model


def process(rank, folder, results):
    """What each of two processes does; rank 0 tells of it."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    found = {}
    # Half and half, one and seven, and a rank that has nobody.
    for name, shares in (("4+4", [4, 4]), ("1+7", [1, 7]), ("8+0", [8, 0])):
        model = doubled(Diffusion(MADE_UP, SMALL, torch.device("cpu")))
        model.share()
        learn(model, shares)
        found[name] = weights(model), model.history
    found["blend"] = refused(
        lambda: joined(
            replace(
                SMALL,
                target="noise",
                zero_terminal=False,
                noise_blend=True,
                reconstruction_weight=1.0,
            )
        )
    )
    cohort = ParquetCohort(
        [folder / "a.parquet", folder / "b.parquet"], MADE_UP
    )
    prep = fit_preprocessor(cohort)
    data = ParquetPatients(cohort, prep, MONTHS, 8, rank=rank, ranks=2)
    straight, resumed = folder / "straight", folder / "resumed"
    fit(joined(), data, 4, 2, straight)
    fit(joined(), data, 4, 1, resumed)
    again = Diffusion.load(resumed, MADE_UP, torch.device("cpu"))
    again.share()
    found["odd"] = refused(lambda: fit(again, data, 3, 2, resumed))
    fit(again, data, 4, 2, resumed)
    other = Diffusion.load(resumed, MADE_UP, torch.device("cpu"))
    other.fingerprint = "of other files"
    found["other"] = refused(lambda: fit(other, data, 4, 3, resumed))
    if rank == 0:
        torch.save(found, results)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture
def alone(tmp_path):
    """Be the only process of a group, with a cohort to train on."""
    place = f"file://{tmp_path}/rendezvous"
    dist.init_process_group("gloo", place, rank=0, world_size=1)
    yield cohort_of(tmp_path, ragged_table())
    dist.destroy_process_group()


def patients_in(cohort, **options):
    prep = fit_preprocessor(cohort)
    return ParquetPatients(cohort, prep, **{"months": MONTHS} | options)


def test_fit_shuffles_each_epoch_and_keeps_a_record_of_it(
    alone, tmp_path, monkeypatch
):
    model, data = joined(), patients_in(alone)
    seen, records = [], []
    step = model.train_step

    def noted(real, lengths):
        record = step(real, lengths)
        seen.extend(x.numpy().tobytes() for x in real)
        records.extend([record] * bool(record))
        return record

    monkeypatch.setattr(model, "train_step", noted)
    fit(model, data, 8, 2, tmp_path / "new" / "folder" / "v3")
    first, second = seen[:23], seen[23:]
    assert first != second and sorted(first) == sorted(second)
    assert [record["updates"] for record in model.history] == [3, 3]
    assert [record["epoch"] for record in model.history] == [1, 2]
    for record, updates in zip(
        model.history, (records[:3], records[3:]), strict=True
    ):
        mean = np.mean([update["loss"] for update in updates])
        assert record["loss"] == pytest.approx(mean)


def test_a_finished_training_says_that_there_is_nothing_to_do(
    alone, tmp_path, capsys
):
    model, data = joined(), patients_in(alone)
    fit(model, data, 23, 1, tmp_path / "v3")
    capsys.readouterr()
    fit(model, data, 23, 1, tmp_path / "v3")
    assert "nothing to do: " in capsys.readouterr().out
    assert model.epoch == 1


def test_a_training_stopped_in_its_first_epoch_begins_again(
    alone, tmp_path, monkeypatch
):
    model, data = joined(), patients_in(alone)
    monkeypatch.setattr(model, "train_step", lambda *batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(model, data, 8, 1, tmp_path / "stopped")
    again = Diffusion.load(tmp_path / "stopped", MADE_UP, torch.device("cpu"))
    again.share()
    straight = joined()
    fit(again, data, 8, 1, tmp_path / "stopped")
    fit(straight, data, 8, 1, tmp_path / "straight")
    assert torch.equal(weights(again), weights(straight))


def test_a_place_that_takes_no_checkpoint_costs_no_epoch(alone, tmp_path):
    model = joined()
    (tmp_path / "v3").mkdir()
    for path in (tmp_path / "v3", tmp_path / "a.parquet" / "v3"):
        with pytest.raises(OSError, match=str(path.parent)):
            fit(model, patients_in(alone), 8, 1, path)
    assert model.epoch == 0 and not model.history


def test_readers_without_a_row_group_are_refused(alone, tmp_path):
    fits = len(alone)
    check_shares(fits, 8, fits)
    with pytest.raises(ValueError, match="row_group_size=15_360"):
        fit(joined(), patients_in(alone), 8, 1, tmp_path / "v3", fits + 1)


@pytest.mark.parametrize(
    ("choice", "value"),
    [("months", MONTHS + 1), ("buffer", 7), ("seed", 7), ("batch_size", 7)],
)
def test_a_training_is_not_resumed_in_another_way(
    alone, tmp_path, choice, value
):
    model = joined()
    fit(model, patients_in(alone), 23, 1, tmp_path / "v3")
    again = Diffusion.load(tmp_path / "v3", MADE_UP, torch.device("cpu"))
    options = {choice: value}
    batch_size = options.pop("batch_size", 23)
    with pytest.raises(ValueError, match=f"1 epochs with {choice} .*{value}"):
        fit(again, patients_in(alone, **options), batch_size, 2, tmp_path)


def test_a_training_is_not_resumed_on_other_data(alone, tmp_path):
    model = joined()
    fit(model, patients_in(alone), 23, 1, tmp_path / "v3")
    (tmp_path / "other").mkdir()
    other = cohort_of(tmp_path / "other", ragged_table(seed=1))
    with pytest.raises(ValueError, match="1 epochs on other data"):
        fit(model, patients_in(other), 23, 2, tmp_path / "v3")


def refused(act):
    try:
        act()
    except ValueError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Results of two processes, and where they left their checkpoints.

    Test processes that run side by side share them.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if base.name.startswith("popen-") else base
    folder = shared / "two_processes"
    results = folder / "results"
    with FileLock(shared / "two_processes.lock"):
        if not results.exists():
            folder.mkdir()
            table = ragged_table()
            table["age"] = 20.0 + table["stay"]  # it is static
            written(folder, table)
            torch.multiprocessing.spawn(process, (folder, results), nprocs=2)
    return folder, torch.load(results)


@pytest.fixture(scope="module")
def one():
    """The package's own model, that learns from the same batches."""
    return learn(doubled(hg.Diffusion(MADE_UP, SMALL, torch.device("cpu"))))


@pytest.mark.parametrize("shares", ["4+4", "1+7", "8+0"])
def test_two_processes_learn_what_one_learns(two, one, shares):
    # Jitter, dropout, clipping and the running mean included.
    found, history = two[1][shares]
    start = weights(hg.Diffusion(MADE_UP, SMALL, torch.device("cpu")))
    step = (weights(one) - start).norm()
    assert found.dtype == torch.float64
    assert (found - weights(one)).norm() < 1e-10 * step
    for ours, theirs in zip(history, one.history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)  # shared as float32


def test_the_settings_under_test_draw_and_clip(one):
    assert SMALL.dropout and SMALL.patient_jitter and SMALL.ema
    assert any(r["gradient_norm"] > SMALL.gradient_clip for r in one.history)
    lengths = torch.cat([lengths for _, lengths in batches()])
    assert len(lengths.unique()) > 3


def test_a_resumed_training_is_the_one_that_was_not_interrupted(two):
    folder, _ = two
    straight, resumed = (
        hg.Diffusion.load(folder / name, MADE_UP, torch.device("cpu"))
        for name in ("straight", "resumed")
    )
    assert straight.epoch == resumed.epoch == 2
    assert straight.history == resumed.history
    assert torch.equal(weights(straight), weights(resumed))
    assert torch.equal(straight.random.get_state(), resumed.random.get_state())


def test_the_model_knows_whom_it_saw_and_samples(two):
    model = hg.Diffusion.load(two[0] / "straight", MADE_UP)
    rows, counts = model.joint
    assert len(rows) == 23 and counts.tolist() == [1] * 23
    assert model.sample(2, MONTHS).shape == (2, MONTHS, MADE_UP.width)


def test_what_cannot_be_shared_is_refused(two):
    found = two[1]
    assert "noise_blend is drawn" in found["blend"]
    assert "batch of 3 cannot be dealt out to 2" in found["odd"]
    assert "2 epochs on other data" in found["other"]


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Run the tool as torchrun does with one process; the model it leaves."""
    path = tmp_path / "art.parquet"
    hg.load_art("simulated", 40).to_parquet(path, row_group_size=500)
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # Port 0 is any that is free.
    for name, value in [("RANK", 0), ("WORLD_SIZE", 1), ("MASTER_PORT", 0)]:
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")

    def run(state, epochs):
        line = f"{TOOL} {path} --epochs {epochs} --checkpoint {state}"
        monkeypatch.setattr(sys, "argv", [*line.split(), "--batch-size", "20"])
        main()
        return hg.Diffusion.load(state, hg.ART_SCHEMA, cpu)

    return run


def test_the_same_command_resumes_a_training(command, tmp_path, capsys):
    command(tmp_path / "resumed", 1)
    assert "epoch 1: 40 patients" in capsys.readouterr().out
    resumed = command(tmp_path / "resumed", 2)
    printed = capsys.readouterr().out
    assert "epoch 2: 40 patients" in printed and "epoch 1" not in printed
    straight = command(tmp_path / "straight", 2)
    assert torch.equal(weights(straight), weights(resumed))
    assert straight.history == resumed.history and len(resumed.history) == 2
    choices = {"batch_size": 20, "months": 60, "buffer": 4096, "seed": 42}
    assert resumed.provenance["training"] == choices


@pytest.mark.slow
def test_torchrun_trains_on_the_cohort_of_the_book(tmp_path):
    path, state = tmp_path / "art.parquet", tmp_path / "v3.safetensors"
    hg.load_art("simulated", 40).to_parquet(path, row_group_size=500)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--standalone", "--nproc-per-node", "2", TOOL, path),
            *("--checkpoint", state, "--batch-size", "20"),
        ],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    line = r"epoch 1: 40 patients in \d updates and .* s, mean loss"
    assert re.search(line, done.stdout)
    model = hg.Diffusion.load(state, hg.ART_SCHEMA)
    assert model.joint[1].sum() == 40 and model.history[0]["updates"] >= 2
    fake = model.sample(2, 60, steps=2)
    prep = hg.Preprocessor.from_dict(
        {"schema": hg.ART_SCHEMA.to_dict()} | model.provenance
    )
    assert isinstance(prep.inverse_transform(fake), pd.DataFrame)


# --- The page ---------------------------------------------------------------


def test_the_plan_on_the_page_follows_from_what_was_measured():
    text = PAGE.read_text("utf-8")
    (line,) = re.findall(r"<!-- measured: (\{.*\}) -->", text)
    measured = json.loads(line)
    assert section("measured", text) == measured_table(measured)
    assert section("planned", text) == planned_table(measured)
