"""Random damage to files and tables: only our own errors come out.

A few seconds by default, always the same; ``FUZZ_EXAMPLES=20000 pytest
tests/unit/test_fuzz.py`` goes on for longer, and draws anew.
"""

import json
import os
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from cohorts import MADE_UP
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_format import RAW_NAMES, to_raw
from test_faults import GOOD, file_of, loaders, metadata, trained_models
from training import CPU

from healthgym_utils import checkpoint
from healthgym_utils.checkpoint import CheckpointError
from healthgym_utils.data import DataError, decode_table, load_art
from healthgym_utils.pretrained import rebuild
from healthgym_utils.schema import ART_FULL_SCHEMA
from healthgym_utils.simulate import simulate_art

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,  # the same in every test
    suppress_health_check=list(HealthCheck),
)

TIDY = simulate_art(2).query("Timestep < 3").reset_index(drop=True)
RAW = to_raw(TIDY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@st.composite
def damaged(draw, whole, tokens):
    """Cut, repeat, overwrite and insert pieces of one of some files."""
    content = bytearray(draw(st.sampled_from(whole)))
    pieces = st.sampled_from(tokens) | st.binary(max_size=8)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        end = min(at + draw(st.integers(0, 40)), len(content))
        what = draw(st.sampled_from(["cut", "repeat", "replace", "end"]))
        if what == "cut":
            del content[at:end]
        elif what == "repeat":
            content[at:at] = content[at:end] * draw(st.integers(1, 3))
        elif what == "replace":
            content[at:end] = draw(pieces)
        else:
            del content[at:]
    return bytes(content)


# Tables ---------------------------------------------------------------------


def as_csv(table, **options):
    return table.to_csv(index=False, **options).encode()


CSV = [
    as_csv(RAW),
    as_csv(TIDY),
    as_csv(RAW, quoting=1, lineterminator="\r\n"),
    b"\xef\xbb\xbf" + as_csv(RAW),
]
TOKENS = b"""" "" , ; \n \r \r\n \t \x00 \xef\xbb\xbf \xff\xfe # ' \\ NaN inf
-inf 1e999 -0 0x10 1_0 1j True 1e17 9007199254740993 VL PatientID Timestep
<html> \xe2\x82\xac""".split(b" ")


def is_right(table):
    """What is let through has to be a table that the schema takes."""
    ART_FULL_SCHEMA.validate(table)
    months = table.groupby("PatientID").cumcount()
    return months.equals(table["Timestep"].rename(None))


def read_table_or_refuse(path, content):
    """Bytes are a right table, or our error names the file."""
    path.write_bytes(content)
    try:
        table = load_art(path)
    except DataError as refusal:
        assert str(path) in str(refusal)
    else:
        assert is_right(table)


@fuzz
@given(content=damaged(CSV, TOKENS), suffix=st.sampled_from(["csv", "csv.gz"]))
def test_damaged_csv(content, suffix, folder):
    read_table_or_refuse(folder / f"cohort.{suffix}", content)


@fuzz
@given(
    content=st.binary(max_size=60),
    suffix=st.sampled_from(["csv", "gz", "zip", "bz2", "xz", "tar", "zst"]),
)
def test_anything_as_csv(content, suffix, folder):
    path = folder / f"anything.{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError):
        load_art(path)


cells = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.dates(),
    st.timedeltas(),
    st.decimals(),
    st.fractions(),
    st.complex_numbers(),
    st.lists(st.integers(), max_size=2),
    st.lists(st.integers(), max_size=2).map(np.array),
    st.sampled_from(["1", " 2 ", "1.0", "Male", "1e400", "９"]),
)


@fuzz
@given(
    column=st.sampled_from(list(RAW_NAMES.values())),
    row=st.integers(0, len(RAW) - 1),
    value=cells,
    whole_column=st.booleans(),
)
def test_any_cell(column, row, value, whole_column):
    raw = RAW.copy()
    rows = raw.index if whole_column else [row]
    values = raw[column].tolist()
    for k in rows:
        values[k] = value
    filled = np.fromiter(values, dtype=object, count=len(values))
    raw[column] = pd.Series(filled, dtype=object)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            table = decode_table(raw)
        except DataError:
            return
    assert is_right(table)


# Checkpoints ----------------------------------------------------------------


def whole_checkpoint(path):
    tensors = {
        "w": torch.arange(6.0).reshape(2, 3),
        "half": torch.zeros(2, dtype=torch.float16),
        "steps": torch.tensor(7),
    }
    checkpoint.save(path, tensors, {"history": {"loss": [1.0, float("nan")]}})
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole(folder):
    return whole_checkpoint(folder / "whole.safetensors")


def mended(content):
    """Let the length of the header be right, to get past it."""
    end = max(8, content.rfind(b"}") + 1)
    end += len(content[end:]) - len(content[end:].lstrip(b" "))  # padding
    return (end - 8).to_bytes(8, "little") + content[8:]


def read_or_refuse(path, content):
    """Both ways of reading give a checkpoint, or our error that names it."""
    path.write_bytes(content)
    for read in (checkpoint.load, checkpoint.read_header):
        try:
            found = read(path)
        except CheckpointError as refusal:
            assert str(path) in str(refusal)
            continue
        header = found if read is checkpoint.read_header else found[1]
        assert header["format_version"] == checkpoint.FORMAT_VERSION


JSON_TOKENS = [
    *(f'"{word}"'.encode() for word in [*GOOD, *metadata(), "F64", "BF16"]),
    *b'{ } [ ] , : " \\ \\" \\ud800 NaN null -1 1e400 0.5 true'.split(),
    str(2**64).encode(),
    (2**63).to_bytes(8, "little"),
]


def test_a_whole_file_needs_no_mending(whole):
    assert mended(whole) == whole


@fuzz
@given(data=st.data())
def test_damaged_checkpoint(data, whole, folder):
    content = data.draw(damaged([whole], JSON_TOKENS))
    if data.draw(st.booleans()):
        content = mended(content)
    read_or_refuse(folder / "damaged.safetensors", content)


numbers = st.integers(-2, 70) | st.sampled_from([2**31, 2**63, 2**64, 0.5])
dtypes = "BOOL U8 F8_E5M2 F8_E4M3 F4 F6_E2M3 F16 BF16 U16 F32 C64 U64 F64 PY"
tensor = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(dtypes.split()) | st.none(),
        "shape": st.lists(numbers, max_size=3),
        "data_offsets": st.lists(numbers, min_size=1, max_size=3),
    }
)


@st.composite
def fitting(draw):
    """Describe a tensor of any type that fits into what it says."""
    name, bits = draw(
        st.sampled_from(
            [("U8", 8), ("F8_E8M0", 8), ("F4", 4), ("BF16", 16), ("C64", 64)]
        )
    )
    shape = draw(st.lists(st.integers(0, 2) | st.just(2**62), max_size=3))
    size = int(np.prod(np.array(shape, dtype=object), initial=1)) * bits // 8
    return {"dtype": name, "shape": shape, "data_offsets": [0, size]}


@fuzz
@given(
    tensors=st.dictionaries(
        st.text(max_size=2), tensor | fitting(), max_size=2
    ),
    length=st.none() | numbers.filter(lambda n: 0 <= n < 2**64),
)
def test_any_description(tensors, length, folder):
    ends = [t["data_offsets"][-1] for t in tensors.values()]
    body = bytes(int(min(256, max([0, *ends]))))
    size = None if length is None else int(length)
    description = tensors | {"__metadata__": metadata()}
    content = file_of(description, body, size)
    read_or_refuse(folder / "described.safetensors", content)


settings_values = (
    st.none()
    | st.booleans()
    | st.integers(-2, 40)
    | st.integers(1, 10**7).map(lambda n: 8 * n)  # widths of terabytes
    | st.sampled_from([2**31, 10**12, 2**63])
    | st.floats(-2, 2)
    | st.sampled_from(["x", [], [1], {}, {"a": 1}, float("nan")])
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@fuzz
@given(version=values, rest=st.dictionaries(st.text(), values, max_size=2))
def test_any_header(version, rest, folder):
    text = json.dumps(rest | {"format_version": version})
    content = file_of({"__metadata__": metadata(text)}, b"")
    read_or_refuse(folder / "header.safetensors", content)


@fuzz
@given(data=st.data())
def test_any_schema_in_a_checkpoint(data):
    """The true schema, with values of any kind put into it."""
    schema = ART_FULL_SCHEMA.to_dict()
    record = data.draw(st.sampled_from([schema, *schema["features"]]))
    record[data.draw(st.sampled_from(list(record)))] = data.draw(values)
    header = {"model": "WGANGP", "schema": json.loads(json.dumps(schema))}
    try:
        checkpoint.check("m", header, "WGANGP", ART_FULL_SCHEMA, set())
    except CheckpointError as refusal:
        assert str(refusal).startswith("m: ")


@pytest.fixture(scope="module")
def trained(folder):
    return list(trained_models(folder).values())


def rebuild_or_refuse(path, train=True):
    """A model that works comes out, or our error that names the file."""
    try:
        model = rebuild(path, MADE_UP, CPU)
    except CheckpointError as refusal:
        assert str(path) in str(refusal)
        return
    with warnings.catch_warnings(action="ignore"):
        assert model.sample(2, 17).isfinite().all()
        if not train:
            return
        try:
            model.fit(loaders(model), model.epoch + 1)
        except ValueError as refusal:
            assert "this model" in str(refusal)


HARMS_OF_FLOATS = ("not a number", "without end", "negative")
HARMS = {
    "another shape": lambda t, n: torch.zeros(n, dtype=t.dtype),
    "longer": lambda t, n: torch.cat([t.reshape(-1), t.reshape(-1)]),
    "another type": lambda t, n: t.to(
        [torch.float64, torch.float16, torch.int32, torch.bool][n]
    ),
    "not a number": lambda t, n: torch.full_like(t, float("nan")),
    "without end": lambda t, n: torch.full_like(t, float("inf")),
    "negative": lambda t, n: -1 - t.abs(),
    "backwards": lambda t, n: t.flip(-1),
}


@settings(fuzz, max_examples=max(EXAMPLES // 4, 1))
@given(data=st.data())
def test_any_header_of_a_model(data, trained, folder):
    """One value of the header, or one tensor, is of any kind or is gone."""
    tensors, header = data.draw(st.sampled_from(trained))
    tensors, header = dict(tensors), json.loads(json.dumps(header))
    whats = ["header", "settings", "tensor"]
    if header.get("memory"):
        whats.append("memory")
    what = data.draw(st.sampled_from(whats))
    if what == "tensor":
        name = data.draw(st.sampled_from(sorted(tensors)))
        tensor = tensors.pop(name)
        harm = data.draw(st.sampled_from([None, *HARMS]))
        whole = not tensor.is_floating_point() and harm in HARMS_OF_FLOATS
        if harm and not whole and (tensor.ndim or harm != "backwards"):
            tensors[name] = HARMS[harm](tensor, data.draw(st.integers(0, 3)))
    else:
        part = header if what == "header" else header[what]
        name = data.draw(st.sampled_from(sorted(part)))
        part[name] = data.draw(settings_values)
    path = folder / "model.safetensors"
    checkpoint.save(path, tensors, header)
    # Settings may ask for what takes long, such as 10**8 critic steps.
    rebuild_or_refuse(path, train=what != "settings")
