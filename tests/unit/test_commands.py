"""Benchmarks run; a training resumes, is measured and shipped."""

import json
import subprocess
import sys
from dataclasses import replace

import ablation
import pandas as pd
import pytest
import ship
import train

from healthgym_utils.checkpoint import read_header
from healthgym_utils.gan import Settings
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


@pytest.fixture
def tiny_study(monkeypatch):
    """The memory's study, of few patients and few updates."""
    study = ablation.STUDIES["memory"]
    names = ("no memory (v1)", "buffer alone")
    tiny = replace(
        study,
        variants={name: study.variants[name] for name in names},
        settings={"latent": 8, "hidden": 8},
        lengths=(3,),
        milestones=(1, 2),
    )
    monkeypatch.setitem(ablation.STUDIES, "memory", tiny)
    monkeypatch.setattr(ablation, "PATIENTS", 70)
    return tiny


def test_ablation_goes_on_where_it_stopped(tiny_study, tmp_path):
    first = ablation.conduct("memory", [1], tmp_path)
    assert set(first["variant"]) == set(tiny_study.variants)
    assert set(first["epoch"]) == {1, 2}
    assert set(first["updates"]) == {2, 4}
    both = ablation.conduct("memory", [1, 2], tmp_path)
    assert set(both["seed"]) == {1, 2}
    old = both[both["seed"] == 1]
    pd.testing.assert_frame_equal(old, first, check_dtype=False)
    table = pd.read_csv(tmp_path / "ablation_memory.csv")
    assert len(table) == len(both)
    note = json.loads((tmp_path / "ablation_memory.json").read_text())
    assert (note["patients"], note["cohort"]) == (70, "simulated")


def test_ablation_does_not_mix_settings(tiny_study, tmp_path, monkeypatch):
    ablation.conduct("memory", [1], tmp_path)
    other = replace(tiny_study, batch_size=32)
    monkeypatch.setitem(ablation.STUDIES, "memory", other)
    with pytest.raises(SystemExit, match="made with other settings"):
        ablation.conduct("memory", [2], tmp_path)


def test_every_variant_of_a_study_can_be_built():
    for study in ablation.STUDIES.values():
        for build in study.variants.values():
            model = build(Settings(**study.settings))
            assert model.sample(2, 3).shape == (2, 3, 22)
