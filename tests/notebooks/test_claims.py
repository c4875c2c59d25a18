"""What notebooks claim of random results holds with every seed."""

import copy
import json
import shutil
import sys

import claims
import pytest

from notebooks import paths

# Nothing random stands behind their prose: tables, shapes and plain sums.
SETTLED = {"01", "02", "05"}
CLAIMING = [path for path in paths() if path.name[:2] not in SETTLED]


@pytest.fixture(params=CLAIMING, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def record(path):
    return json.loads(claims.measured(path).read_text())


def test_claims_hold_with_every_seed(path, record):
    assert claims.problems(path, record) == []


def test_enough_is_claimed(path):
    says = [claim["says"] for claim in claims.claims_of(path)]
    assert len(says) >= 2
    assert len(set(says)) == len(says)


def test_bands_can_be_missed(path, record):
    """No band is open on both sides, and seeds move what is random."""
    for claim in claims.claims_of(path):
        low, high = claim["band"]
        assert low <= high
        assert (low, high) != (float("-inf"), float("inf"))
    numbers = [
        tuple(seed[claim["says"]] for seed in record["seeds"].values())
        for claim in claims.claims_of(path)
    ]
    assert any(len(set(values)) > 1 for values in numbers)


def test_what_misses_is_named(path, record):
    claim = claims.claims_of(path)[0]
    low, high = claim["band"]
    wrong = copy.deepcopy(record)
    outside = high + 1 if high < float("inf") else low - 1
    wrong["seeds"]["1"][claim["says"]] = outside
    (problem,) = claims.problems(path, wrong)
    assert problem.startswith("seed 1: ")
    assert claim["says"] in problem
    del wrong["seeds"]["2"]
    assert "seed 2: not measured" in claims.problems(path, wrong)[-1]
    wrong["code_sha256"] = "of other code"
    assert claims.problems(path, wrong) == [
        "measured with other code: make claims"
    ]


@pytest.mark.parametrize("changed", [False, True])
def test_command_fails_if_a_band_is_missed(
    changed, monkeypatch, capsys, tmp_path
):
    """Measured anew, every number is what it was, or none is."""
    path = CLAIMING[0]
    for file in claims.CLAIMS.glob(f"{path.stem}.*"):
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(claims, "CLAIMS", tmp_path)
    numbers = json.loads(claims.measured(path).read_text())["seeds"]

    def measure(path, seed):
        return {k: v + 1e9 * changed for k, v in numbers[str(seed)].items()}

    monkeypatch.setattr(claims, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["claims.py", path.name[:2]])
    with pytest.raises(SystemExit) as end:
        claims.main()
    assert end.value.code == (f"not carried: {path.name}" if changed else 0)
    said = capsys.readouterr().out
    assert ("seed 42: " if changed else "all in their bands") in said


def test_no_file_is_left_over():
    stems = {path.stem for path in CLAIMING}
    assert {file.stem for file in claims.CLAIMS.iterdir()} == stems
