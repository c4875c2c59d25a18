"""Benchmarks run; a training resumes, is measured and shipped."""

import json
import subprocess
import sys
from dataclasses import replace

import ablation
import pandas as pd
import pytest
import same_time
import sampling
import scoreboard
import scoreboard_page
import ship
import torch
import train
from simulated_cohort import section

from healthgym_utils import (
    ART_SCHEMA,
    Diffusion,
    baselines,
    curriculum_loaders,
    load_art,
    load_results,
    metrics,
    sequence_loader,
)
from healthgym_utils.checkpoint import read_header
from healthgym_utils.diffusion import DiffusionSettings
from healthgym_utils.gan import WGANGP, Settings
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
    models = [
        (DiffusionSettings(**study.common | changes), name in study.calibrated)
        for name, changes in study.variants.items()
    ]
    assert len(set(models)) == len(models)
    assert set(study.calibrated) <= set(study.variants)
    assert study.variants["ours"] == {}
    # What is called published is, but for width and budget of sampling.
    preset = DiffusionSettings.published()
    for name, value in study.variants["published"].items():
        assert getattr(preset, name) == value


@pytest.mark.slow
def test_diffusion_study_is_put_on_the_scoreboard(tmp_path, monkeypatch):
    study = ablation.STUDIES["diffusion"]
    calibrated = "ours, less fresh noise, calibrated"
    names = ("published", "ours", calibrated)
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
    assert found[calibrated, "KS"] < found["ours", "KS"]
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
def test_same_time_trains_whole_epochs(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "PATIENTS", 80)
    monkeypatch.setattr(same_time, "PATIENTS", 80)
    monkeypatch.setattr(same_time, "MODELS", ("v1",))
    settings = Settings(latent=8, hidden=8, critic_steps=1)
    tiny = WGANGP(ART_SCHEMA, settings=settings, device=torch.device("cpu"))
    monkeypatch.setattr(
        same_time.pretrained, "untrained", lambda name, seed: tiny
    )
    monkeypatch.setattr(
        same_time,
        "loaders_of",
        lambda name, x, seed: curriculum_loaders(x, (6,), 64, seed=seed),
    )
    table = same_time.conduct([42], 0.5, tmp_path)
    assert set(table["epoch"]) == {tiny.epoch}
    assert tiny.epoch >= 1
    assert table["cpu_seconds"].max() < 5
    assert "KS" in set(table["figure"])


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


# --- The scoreboard ----------------------------------------------------------


@pytest.fixture
def tiny_board(tmp_path, monkeypatch):
    """Few patients, one seed, one model, one baseline and no repetition."""
    for module in (ablation, scoreboard):
        monkeypatch.setattr(module, "PATIENTS", 80)
    monkeypatch.setattr(scoreboard, "OTHERS", 240)
    monkeypatch.setattr(scoreboard, "DRAWS", 2)
    monkeypatch.setattr(scoreboard, "BOOTSTRAP", 2)
    monkeypatch.setattr(scoreboard, "SEEDS", (0,))
    monkeypatch.setattr(scoreboard, "shipped", lambda: ["v1-100"])
    some = {"training copy": baselines.copy}
    monkeypatch.setattr(scoreboard, "BASELINES", some)
    return tmp_path


@pytest.fixture
def foreign(tmp_path):
    """Another generator's file: patients have words for names."""
    path = tmp_path / "foreign.csv"
    train = load_art("simulated", 80)
    fake = baselines.markov_walk(train, ART_SCHEMA)
    fake["PatientID"] = "patient " + fake["PatientID"].astype(str)
    fake.to_csv(path, index=False)
    return path


@pytest.mark.slow
def test_scoreboard_goes_on_where_it_stopped(tiny_board, foreign, monkeypatch):
    first = scoreboard.conduct([], tiny_board)
    assert list(first["name"].unique()) == ["training copy", "v1-100"]
    assert first["value"].notna().all()
    copied = first[first["name"] == "training copy"].set_index("figure")
    assert copied.loc["exact copies", "value"] == 1
    more = scoreboard.conduct([("theirs", foreign)], tiny_board)
    assert list(more["name"].unique()) == ["training copy", "theirs", "v1-100"]
    old = more[more["name"] != "theirs"].reset_index(drop=True)
    pd.testing.assert_frame_equal(old, first)
    # Results of a file that is not given again stay, those of a model that
    # was trained anew or is not shipped do not.
    monkeypatch.setattr(scoreboard, "measure", refuse)
    again = scoreboard.conduct([], tiny_board)
    pd.testing.assert_frame_equal(again, more)
    monkeypatch.setattr(scoreboard, "digest", lambda path: "another file")
    with pytest.raises(AssertionError, match="v1-100"):
        scoreboard.conduct([], tiny_board)
    monkeypatch.setattr(scoreboard, "shipped", list)
    none = scoreboard.conduct([], tiny_board)
    assert list(none["name"].unique()) == ["training copy", "theirs"]


def refuse(entry, data, chance):
    """Stand in for a measurement that must not happen."""
    raise AssertionError(entry.name)


@pytest.mark.slow
def test_scoreboard_does_not_mix_settings(tiny_board, monkeypatch):
    scoreboard.conduct([], tiny_board)
    monkeypatch.setattr(scoreboard, "BOOTSTRAP", 3)
    with pytest.raises(SystemExit, match="made with other settings"):
        scoreboard.conduct([], tiny_board)


def test_scoreboard_refuses_what_does_not_fit(tiny_board, foreign):
    data = ablation.Data.load()
    table = scoreboard.read_cohort(foreign, data)
    assert metrics.Panel.of(table, ART_SCHEMA).shape == (80, 60)
    raw = pd.read_csv(foreign)
    raw[:-60].to_csv(foreign, index=False)
    with pytest.raises(SystemExit, match="79 patients of 60 months"):
        scoreboard.read_cohort(foreign, data)
    raw.drop(columns="CD4").to_csv(foreign, index=False)
    with pytest.raises(SystemExit, match="foreign.csv: CD4: this column"):
        scoreboard.read_cohort(foreign, data)
    with pytest.raises(Exception, match="not NAME=PATH"):
        scoreboard.peer("just-a-name")


def test_scoreboard_is_of_the_models_that_come_with_the_package():
    """A model that was trained anew has to be measured anew."""
    board = load_results("scoreboard")
    board = board[board["kind"] != scoreboard.PEER]
    found = set(board[scoreboard.KEYS].itertuples(index=False, name=None))
    listed = scoreboard.entries([])
    assert found <= {entry.key for entry in listed}
    assert set(board["name"]) == {entry.name for entry in listed}
    assert board["value"].notna().all()


def test_scoreboards_page_shows_the_results():
    page = scoreboard_page.PAGE.read_text(encoding="utf-8")
    for name, table in scoreboard_page.sections().items():
        assert section(name, page) == table
    drawn = scoreboard_page.FIGURE.read_text(encoding="utf-8")
    assert drawn == scoreboard_page.figure()
    grouped = [f for names in scoreboard_page.GROUPS.values() for f in names]
    assert set(grouped) == set(load_results("scoreboard")["figure"])


def test_scoreboards_controls_hold():
    """A copy is like chance and private to nobody; shuffled rows are not."""
    table = scoreboard_page.cells(
        load_results("scoreboard"), load_results("scoreboard_floor")
    )
    privacy = scoreboard_page.GROUPS["Privacy"]
    verdict = table["verdict"].unstack("name")
    copied = verdict["training copy"]
    assert (copied[privacy] == "off").all()
    fidelity = verdict.drop(index=privacy)
    assert (fidelity["training copy"] != "off").all()
    shuffled = fidelity["rows shuffled"] == "off"
    over_time = [
        *scoreboard_page.GROUPS["Drugs over time"],
        *scoreboard_page.GROUPS["Labs over time"],
        *scoreboard_page.GROUPS["Judges"],
        "statics vary",
    ]
    assert shuffled[over_time].all()
    assert not shuffled[scoreboard_page.GROUPS["One variable at a time"]].any()


def test_scoreboard_tells_chance_harm_and_harmless_apart():
    keys = {"name": "a", "kind": "generation", "seed": 0}
    rows = [
        {"figure": "KS", "value": 0.06, "ratio": 1.5, "best": 0},
        {"figure": "TV", "value": 0.3, "ratio": 9.0, "best": 0},
        {"figure": "distance ratio", "value": 1.3, "ratio": 9.0, "best": 1},
        {"figure": "neighbour ratio", "value": 0.7, "ratio": 9.0, "best": 1},
    ]
    board = pd.DataFrame([keys | row for row in rows])
    board = board.assign(low=0.0, high=0.0, floor=0.0)
    figures = list(board["figure"])
    floors = pd.DataFrame([[0.03, 0.1, 0.9, 1.1], [0.07, 0.1, 1, 1]])
    table = scoreboard_page.cells(board, floors.set_axis(figures, axis=1))
    verdicts = ["chance", "off", "harmless", "off"]
    assert list(table["verdict"]) == verdicts
    assert list(table["worst"]) == [0.07, 0.1, 0.9, 1.1]
