"""Benchmarks and the training command run, and resume."""

import subprocess
import sys

import pytest
import train

from healthgym_utils.checkpoint import read_header
from notebooks import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--bf16"]])
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


@pytest.mark.slow
def test_training_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "FOLDER", tmp_path)
    monkeypatch.setattr(train, "LENGTHS", (2, 4))
    for epochs in ("1", "2"):
        monkeypatch.setattr(sys, "argv", ["train", "v1", "--epochs", epochs])
        train.main()
    header = read_header(tmp_path / "v1-seed42.safetensors")
    assert header["epoch"] == 2
    assert header["history"]["epoch"] == [1, 1, 2, 2]
