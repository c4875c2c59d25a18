"""Benchmarks run; a training resumes, is measured and shipped."""

import subprocess
import sys

import pandas as pd
import pytest
import ship
import train

from healthgym_utils.checkpoint import read_header
from notebooks import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["v2", "--bf16"], ["v2.5"]])
def test_step_benchmark(options):
    """It checks that both versions give the same gradients, then times."""
    command = [sys.executable, "benchmarks/gan_step.py", "--months", "3"]
    done = subprocess.run(
        [*command, "--rounds", "1", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "critic gradients: relative difference" in done.stdout
    assert "ratio" in done.stdout


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Short lessons, and everything written to a folder of the test's."""
    monkeypatch.setattr(train, "FOLDER", tmp_path)
    monkeypatch.setattr(ship, "FOLDER", tmp_path)
    monkeypatch.setattr(ship, "PACKAGED", tmp_path / "packaged")
    monkeypatch.setattr(ship, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(train, "LENGTHS", (2, 4))
    return tmp_path


def run(command, monkeypatch, milestones, *options):
    """Call a command's main with other milestones."""
    for module in (train, ship):
        monkeypatch.setattr(module, "MILESTONES", {"v1": milestones})
    monkeypatch.setattr(sys, "argv", [command.__name__, "v1", *options])
    command.main()


@pytest.mark.slow
def test_training_resumes_and_is_shipped_with_a_card(folder, monkeypatch):
    run(train, monkeypatch, (1,))
    run(train, monkeypatch, (1, 2))
    run(train, monkeypatch, (1, 2), "--seed", "7")
    header = read_header(folder / "v1-seed42.safetensors")
    assert header["history"]["epoch"] == [1, 1, 2, 2]
    assert header["provenance"]["source"] == "simulated"
    run(ship, monkeypatch, (1, 2))
    for epochs in (1, 2):
        packaged = folder / "packaged" / f"v1-{epochs}"
        header = read_header(packaged.with_suffix(".safetensors"))
        assert (header["epoch"], header["weights_only"]) == (epochs, True)
        card = packaged.with_suffix(".md").read_text(encoding="utf-8")
        assert f'load_pretrained("v1-{epochs}")' in card
        assert "seeds 7, 42: mean" in card
    table = pd.read_csv(folder / "results" / "fidelity_v1.csv")
    assert set(table["name"]) == {"v1-1", "v1-2", "floor"}
    assert set(table.loc[table["name"] == "v1-2", "seed"]) == {7, 42}
    assert table["value"].notna().all()
