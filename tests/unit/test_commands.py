"""Benchmarks run; a training resumes, is measured and shipped."""

import json
import subprocess
import sys
from dataclasses import replace

import ablation
import pandas as pd
import pytest
import sampling
import ship
import torch
import train

from healthgym_utils import ART_SCHEMA, Diffusion, sequence_loader
from healthgym_utils.checkpoint import read_header
from healthgym_utils.diffusion import DiffusionSettings
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


@pytest.mark.parametrize("name", ["memory", "generator"])
def test_every_gan_of_a_study_can_be_built(name):
    study = ablation.STUDIES[name]
    for build in study.variants.values():
        model = build(Settings(**study.settings))
        assert model.sample(2, 3).shape == (2, 3, 22)


def test_every_diffusion_of_a_study_is_another_one():
    study = ablation.STUDIES["diffusion"]
    settings = [
        DiffusionSettings(**study.common | changes)
        for changes in study.variants.values()
    ]
    assert len(set(settings)) == len(settings)
    assert study.variants["ours"] == {}
    # What is called published is, but for width and budget of sampling.
    preset = DiffusionSettings.published()
    for name, value in study.variants["published"].items():
        assert getattr(preset, name) == value


@pytest.mark.slow
def test_diffusion_study_is_put_on_the_scoreboard(tmp_path, monkeypatch):
    study = ablation.STUDIES["diffusion"]
    names = ("published", "ours")
    tiny = replace(
        study,
        variants={name: study.variants[name] for name in names},
        common={"hidden": 16, "time_width": 16, "sampling_steps": 3},
        updates=2,
    )
    monkeypatch.setitem(ablation.STUDIES, "diffusion", tiny)
    monkeypatch.setattr(ablation, "PATIENTS", 80)
    table = ablation.conduct("diffusion", [1], tmp_path)
    assert set(table["variant"]) == set(names)
    found = table.set_index(["variant", "figure"])["value"]
    assert found["ours", "statics vary"] == 0
    assert found["published", "statics vary"] > 0
    assert 0 <= found["ours", "accepted"] <= 1
    note = json.loads((tmp_path / "ablation_diffusion.json").read_text())
    assert note["variants"]["published"]["target"] == "noise"


@pytest.mark.slow
def test_sampling_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "PATIENTS", 80)
    monkeypatch.setattr(sampling, "PATIENTS", 80)
    monkeypatch.setattr(sampling, "FOLDER", tmp_path)
    monkeypatch.setattr(sampling, "STEPS", (1, 2))
    settings = DiffusionSettings(hidden=16, time_width=16, seed=5)
    model = Diffusion(ART_SCHEMA, settings, torch.device("cpu"))
    data = ablation.Data.load()
    model.fit(sequence_loader(data.x, 64), epochs=1)
    model.save(tmp_path / "v3-250-seed5.safetensors")
    first = sampling.conduct([5], tmp_path)
    assert set(first["sampler"]) == {"ddpm", "ddim"}
    assert set(first["steps"]) == {1, 2}
    monkeypatch.setattr(sampling, "STEPS", (1, 2, 3))
    more = sampling.conduct([5], tmp_path)
    old = more[more["steps"] < 3].reset_index(drop=True)
    pd.testing.assert_frame_equal(old, first, check_dtype=False)
    assert set(more["steps"]) == {1, 2, 3}


@pytest.mark.slow
def test_diffusion_benchmark():
    """It checks that both optimisers take one step, then times."""
    done = subprocess.run(
        [sys.executable, "benchmarks/diffusion_step.py", "--rounds", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ratio") == 3
