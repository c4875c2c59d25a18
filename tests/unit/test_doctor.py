"""The doctor finds what would spoil a class, and says what to do."""

import ast
import ctypes
import math
import os
import shutil
import subprocess
import sys
import threading
import tomllib
from functools import partial
from types import SimpleNamespace

import pytest
import requests
import torch

from healthgym_utils import data, doctor, pretrained, runtime
from healthgym_utils.doctor import Finding
from notebooks import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def assert_failed(finding, what, todo):
    assert finding.status == "failure"
    assert what in finding.what
    assert todo in finding.todo


# Python and packages --------------------------------------------------------


def test_this_python_will_do():
    finding = doctor.check_python()
    assert finding.status == "ok" and not finding.todo
    assert sys.executable in finding.what


def test_an_old_python_is_found(monkeypatch):
    old = SimpleNamespace(version_info=(3, 10, 4), executable="python3")
    monkeypatch.setattr(doctor, "sys", old)
    assert_failed(doctor.check_python(), "3.10.4, python3; 3.11", "Install")


def test_the_oldest_python_is_that_of_the_project():
    oldest = ".".join(map(str, doctor.OLDEST_PYTHON))
    assert PYPROJECT["requires-python"] == f">={oldest}"


def test_an_old_python_can_read_the_doctor():
    source = (ROOT / "healthgym_utils" / "doctor.py").read_text()
    tree = ast.parse(source, feature_version=(3, 9))
    imports = {
        (node.module if isinstance(node, ast.ImportFrom) else name.name)
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert {name.partition(".")[0] for name in imports} <= (
        sys.stdlib_module_names
    )


def test_the_packages_are_those_of_the_project():
    wanted = PYPROJECT["dependencies"]
    assert sorted(map("".join, doctor.requirements().items())) == wanted
    finding = doctor.check_packages()
    assert finding.status == "ok"
    assert f"all {len(wanted)} there" in finding.what


def test_a_missing_package_is_found(monkeypatch):
    needed = {"numpy": ">=2.0", "no-such-package": ">=1"}
    monkeypatch.setattr(doctor, "requirements", lambda: needed)
    finding = doctor.check_packages()
    assert_failed(finding, "no-such-package is not installed", "pip install")
    assert "numpy" not in finding.what


def test_a_package_too_old_is_found(monkeypatch):
    monkeypatch.setattr(doctor, "requirements", lambda: {"numpy": ">=99"})
    assert_failed(
        doctor.check_packages(), "needed is >=99", "pip install -e ."
    )


def test_a_broken_package_is_found(monkeypatch, tmp_path):
    (tmp_path / "brokenpackage.py").write_text("raise OSError('no DLL')")
    about = tmp_path / "brokenpackage-1.5.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: brokenpackage\nVersion: 1.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    needed = {"brokenpackage": ">=1.4"}
    monkeypatch.setattr(doctor, "requirements", lambda: needed)
    assert_failed(
        doctor.check_packages(),
        "cannot be imported (no DLL)",
        "--force-reinstall brokenpackage",
    )


def test_a_python_without_the_package_is_found(monkeypatch):
    monkeypatch.setattr(doctor, "PROJECT", "no-such-project")
    assert_failed(doctor.check_packages(), "not installed", ".venv")


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("2.6.0", ">=2.6", True),
        ("2.6", ">=2.6.0", True),
        ("2.10.1", ">=2.9", True),
        ("2.6.0+cpu", ">=2.6", True),
        ("10.0", ">=10", True),
        ("2.5.9", ">=2.6", False),
        ("1.0.4.post1", "<2,>=1.0.4", True),
        ("2.0rc1", "<2,>=1.0.4", False),
        ("1.0.3", "<2,>=1.0.4", False),
        ("0.1", "", True),
    ],
)
def test_ranges_of_versions(version, wanted, fits):
    assert doctor.in_range(version, wanted) is fits


def test_an_unknown_range_is_refused():
    with pytest.raises(ValueError, match="~=2.6"):
        doctor.in_range("2.6", "~=2.6")


# Memory and device ----------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "status", "todo"),
    [
        (2e9, "failure", "another computer"),
        (4e9, "warning", "Close other programs"),
        (8e9, "ok", ""),
        (0, "warning", "6 GB"),
    ],
)
def test_memory(monkeypatch, size, status, todo):
    monkeypatch.setattr(doctor, "memory", lambda: size)
    finding = doctor.check_memory()
    assert finding.status == status
    assert todo in finding.todo and bool(todo) == bool(finding.todo)


def test_a_containers_limit_counts(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(doctor, "CONTAINER_LIMIT", limit)
    whole = doctor.memory()
    assert whole > 1e9
    limit.write_text("max\n")
    assert doctor.memory() == whole
    limit.write_text("123456789\n")
    assert doctor.memory() == 123456789


def test_memory_on_windows(monkeypatch):
    def tell(reference):
        reference._obj.value = 8_000_000

    kernel = SimpleNamespace(GetPhysicallyInstalledSystemMemory=tell)
    windows = SimpleNamespace(kernel32=kernel)
    monkeypatch.setattr(ctypes, "windll", windows, raising=False)
    monkeypatch.setattr(doctor, "sys", SimpleNamespace(platform="win32"))
    assert doctor.memory() == 8_000_000 * 1024


@pytest.mark.parametrize(
    ("cores", "status"), [(8, "ok"), (2, "ok"), (1, "warning")]
)
def test_a_cpu(monkeypatch, cores, status):
    monkeypatch.setattr(runtime, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    finding = doctor.check_device()
    assert finding.status == status
    assert bool(finding.todo) == (status == "warning")


def test_a_device_that_does_not_compute_is_found(monkeypatch):
    # PyTorch's meta device, which has no data, stands for a broken one.
    monkeypatch.setattr(runtime, "get_device", lambda: torch.device("meta"))
    assert_failed(doctor.check_device(), "meta is there", "CUDA_VISIBLE")


def test_a_device_that_computes_is_named(monkeypatch):
    monkeypatch.setattr(runtime, "get_device", lambda: torch.device("meta"))
    monkeypatch.setattr(torch, "ones", lambda n, device: torch.zeros(n))
    finding = doctor.check_device()
    assert finding == Finding("ok", "meta; the notebooks will use it")


# Cache and network ----------------------------------------------------------


def test_a_cache_that_can_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv("HEALTHGYM_CACHE", str(tmp_path / "new" / "cache"))
    finding = doctor.check_cache()
    assert finding.status == "ok"
    assert str(tmp_path) in finding.what
    assert not list((tmp_path / "new" / "cache").iterdir())


def test_a_cache_that_cannot_be_written_is_found(monkeypatch, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("a file")
    monkeypatch.setenv("HEALTHGYM_CACHE", str(taken))
    finding = doctor.check_cache()
    assert finding.status == "warning"
    assert str(taken) in finding.what
    assert "HEALTHGYM_CACHE" in finding.todo
    with pytest.raises(data.DataError) as refusal:
        data.load_art("figshare")
    assert f"cache folder {doctor.cache_folder()}:" in str(refusal.value)


def test_the_cache_is_the_users_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("HEALTHGYM_CACHE", raising=False)
    monkeypatch.setattr(data.pooch, "os_cache", lambda name: tmp_path / name)
    assert doctor.cache_folder() == tmp_path / "healthgym"


def test_a_network(monkeypatch):
    asked = []
    monkeypatch.setattr(
        requests, "head", lambda url, timeout: asked.append(url)
    )
    assert doctor.check_network().status == "ok"
    assert "figshare answers" in doctor.check_network().what
    assert set(asked) == {data.FIGSHARE_URL}


def refuse(url, timeout):
    raise requests.ConnectionError("no route")


def hang(url, timeout):
    threading.Event().wait(2)


@pytest.mark.parametrize("silence", [refuse, hang])
def test_no_network_is_no_harm(monkeypatch, silence):
    monkeypatch.setattr(requests, "head", silence)
    monkeypatch.setattr(doctor, "PATIENCE", 0.05)
    finding = doctor.check_network()
    assert finding.status == "ok"
    assert "does not answer" in finding.what
    assert "DATA_SOURCE" in finding.todo


# Cohort, trained models, training -------------------------------------------


def test_the_cohort():
    finding = doctor.check_cohort()
    assert finding == Finding("ok", "300 simulated patients, 18,000 months")


def test_a_cohort_that_cannot_be_made_is_found(monkeypatch):
    def fail(source, n_patients):
        raise data.DataError("a table is missing")

    monkeypatch.setattr(data, "load_art", fail)
    finding = doctor.examine(doctor.check_cohort)
    assert_failed(finding, "DataError: a table is missing", "lecturer")


def test_the_trained_models():
    finding = doctor.check_models()
    assert finding.status == "ok"
    count = len(list(pretrained.FOLDER.glob("*.safetensors")))
    assert f"all {count} " in finding.what


def test_damaged_models_are_found(monkeypatch, tmp_path):
    whole = pretrained.FOLDER / "v1-100.safetensors"
    shutil.copy(whole, tmp_path)
    content = whole.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.safetensors").touch()
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    finding = doctor.check_models()
    assert_failed(finding, "cannot load cut, empty (", "git checkout")
    assert "cut short" in finding.what


def test_no_models_are_found(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    assert_failed(doctor.check_models(), "there are none", "git checkout")


@pytest.fixture
def briefly(monkeypatch):
    monkeypatch.setattr(doctor, "SECONDS", 0.0)


def test_a_training_trains(briefly):
    steps, seconds, before, after = doctor.train_briefly()
    assert steps == doctor.LEAST_STEPS
    assert seconds > 0
    assert after < 0.8 * before


def test_a_training_takes_its_time(monkeypatch):
    monkeypatch.setattr(doctor, "SECONDS", 0.3)
    monkeypatch.setattr(doctor, "LEAST_STEPS", 1)
    steps, seconds, _, _ = doctor.train_briefly()
    assert steps >= 1 and seconds >= 0.3


def learn_at(monkeypatch, rate):
    trained = partial(doctor.train_briefly, rate)
    monkeypatch.setattr(doctor, "train_briefly", trained)


def test_a_training_that_diverges_is_found(briefly, monkeypatch):
    learn_at(monkeypatch, 1e30)
    finding = doctor.check_training()
    assert_failed(finding, "broke off (The total norm", "PyTorch")
    assert "error_if_nonfinite" not in finding.what


def test_a_training_that_stands_still_is_found(briefly, monkeypatch):
    learn_at(monkeypatch, 0.0)
    assert_failed(doctor.check_training(), "does not learn", "PyTorch")


@pytest.mark.parametrize(
    ("seconds", "after", "status", "what"),
    [
        (5.0, 0.8, "ok", "90 steps in 5 s, loss 1.50 to 0.80"),
        (11.0, 0.8, "warning", "slow"),
        (5.0, 1.4, "failure", "does not learn"),
        (5.0, math.nan, "failure", "does not learn"),
    ],
)
def test_a_training_is_judged(monkeypatch, seconds, after, status, what):
    monkeypatch.setattr(
        doctor, "train_briefly", lambda: (90, seconds, 1.5, after)
    )
    finding = doctor.check_training()
    assert finding.status == status
    assert what in finding.what
    assert bool(finding.todo) == (status != "ok")


# The report -----------------------------------------------------------------


def crash():
    raise KeyError("unforeseen")


def lack():
    raise ModuleNotFoundError("No module named 'torch'")


def test_a_crash_is_a_failure():
    finding = doctor.examine(crash)
    assert_failed(finding, "KeyError: 'unforeseen'", "lecturer")


def test_what_cannot_be_tried_points_to_the_packages():
    assert_failed(doctor.examine(lack), "not tried: No module", "packages")


def test_a_finding_fits_80_columns():
    path = "/a/very/long-path" * 12
    todo = "Do this. " * 30 + "\npython -m pip install -e ."
    finding = Finding("failure", f"cannot read {path}", todo)
    lines = doctor.describe("Cache folder", finding).splitlines()
    assert lines[0].startswith("failure  Cache folder: cannot read")
    assert all(line.startswith(" " * 9) for line in lines[1:])
    assert sum(line.startswith(" " * 9 + "-> ") for line in lines) == 2
    assert lines[-1] == " " * 9 + "-> python -m pip install -e ."
    assert max(map(len, lines)) < 80


def test_a_finding_with_nothing_to_do_is_one_line():
    line = doctor.describe("Python", Finding("ok", "3.11.7"))
    assert line == "ok       Python: 3.11.7"


def good():
    return Finding("ok", "fine")


def poor():
    return Finding("warning", "so so", "Do this.")


def bad():
    return Finding("failure", "not at all", "Do that.")


@pytest.mark.parametrize(
    ("checks", "code", "last"),
    [
        ((good, good), 0, "Ready for class (failures: 0, warnings: 0)."),
        ((good, poor), 0, "Ready for class (failures: 0, warnings: 1)."),
        ((bad, poor, good), 1, "Not ready (failures: 1, warnings: 1)."),
        ((crash, good), 1, "Not ready (failures: 1, warnings: 0)."),
    ],
)
def test_exit_code_and_report(monkeypatch, capsys, checks, code, last):
    titled = tuple((check.__name__, check) for check in checks)
    monkeypatch.setattr(doctor, "CHECKS", titled)
    monkeypatch.setattr(sys, "argv", ["doctor"])
    assert doctor.main() == code
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[-1].startswith(last)
    for title, check in titled:
        expected = doctor.describe(title, doctor.examine(check))
        assert expected in printed.out
    assert "Traceback" not in printed.out + printed.err


def test_every_check_is_in_the_list():
    defined = {n for n in vars(doctor) if n.startswith("check_")}
    assert {check.__name__ for _, check in doctor.CHECKS} == defined


@pytest.mark.slow
def test_the_command_runs_without_a_network(tmp_path):
    """From another folder, into a pipe, with a proxy that is not there."""
    nowhere = "http://127.0.0.1:9"
    done = subprocess.run(
        [sys.executable, "-m", "healthgym_utils.doctor"],
        env=os.environ | {"HTTPS_PROXY": nowhere, "https_proxy": nowhere},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) < 80
    assert sum(line[:2] == "ok" for line in lines) >= len(doctor.CHECKS) - 2
    assert "figshare does not answer" in done.stdout
    assert lines[-1].startswith("Ready for class")


def test_the_command_runs_without_any_package():
    """With -S, Python leaves out what has been installed."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "healthgym_utils.doctor"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "not installed" in done.stdout
    assert done.stdout.count("failure  ") < len(doctor.CHECKS)
    assert done.stdout.splitlines()[-1].startswith("Not ready")
