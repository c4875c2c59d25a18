"""Checkpoints are whole or refused, each fault with its own message."""

import json

import pytest
import torch
from safetensors.torch import save_file

import healthgym_utils as hg
from healthgym_utils import checkpoint
from healthgym_utils.checkpoint import CheckpointError, load, read_header, save
from healthgym_utils.diffusion import DiffusionSettings


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "m.safetensors"
    save(path, {"w": torch.arange(100.0)}, {"epoch": 3})
    return path


def test_round_trip(path):
    tensors, header = load(path)
    assert torch.equal(tensors["w"], torch.arange(100.0))
    assert header["epoch"] == 3
    assert read_header(path) == header


def test_no_such_file(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load(tmp_path / "nothing.safetensors")


def test_every_truncation_is_refused(path, tmp_path):
    whole = path.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for size in range(len(whole)):
        cut.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="cut short"):
            load(cut)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\x80\x04\x95 a pickle, say, or anything else at all")
    with pytest.raises(CheckpointError, match="not a whole safetensors"):
        load(path)
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="no checkpoint of this package"):
        load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"x"', "null"])
def test_damaged_headers_are_refused(tmp_path, text):
    path = tmp_path / "x.safetensors"
    metadata = {"format": checkpoint.FORMAT, "header": text}
    save_file({"w": torch.zeros(2)}, path, metadata)
    with pytest.raises(CheckpointError, match="header is damaged"):
        load(path)


@pytest.mark.parametrize("version", [2, 99, "1", None])
def test_newer_formats_are_refused(tmp_path, version):
    path = tmp_path / "x.safetensors"
    header = json.dumps({"format_version": version})
    metadata = {"format": checkpoint.FORMAT, "header": header}
    save_file({"w": torch.zeros(2)}, path, metadata)
    with pytest.raises(CheckpointError, match="update healthgym-utils"):
        load(path)


def test_failed_save_keeps_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def full_disk(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(path, {"w": torch.zeros(2)}, {})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"patient_jitter": None}, "settings lack patient_jitter, unlike"),
        ({"patient_noise": 0.1}, "settings know patient_noise, unlike"),
        (
            {"patient_jitter": None, "patient_noise": 0.1},
            "lack patient_jitter and know patient_noise, unlike",
        ),
    ],
)
def test_settings_of_another_version_are_refused(tmp_path, change, problem):
    """A default of today may not be what an older model learned with."""
    path = tmp_path / "v3.safetensors"
    model = hg.Diffusion(hg.ART_SCHEMA, DiffusionSettings(hidden=16))
    model.save(path)
    tensors, header = load(path)
    for name, value in change.items():
        header["settings"].pop(name, None)
        if value is not None:
            header["settings"][name] = value
    save(path, tensors, header)
    with pytest.raises(CheckpointError, match=problem) as refusal:
        hg.Diffusion.load(path, hg.ART_SCHEMA)
    assert f"healthgym-utils {header['package_version']}" in str(refusal.value)
