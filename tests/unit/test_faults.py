"""Full disks, cut lines, kills and crowds: refused in words, nothing lost.

What a server or a file can get wrong by itself is in test_data.py; random
damage is in test_fuzz.py.
"""

import json
import multiprocessing
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import test_data
import torch
from cohorts import MADE_UP, made_up_table
from load_csv import write_csv
from pandas.testing import assert_frame_equal
from raw_format import to_raw
from test_data import (
    answer,
    assert_says_what_to_do,
    refusal_of,
    refused_download,
)
from test_diffusion import AGE, loader_of, tiny
from test_memory import small_memory
from training import small_loaders, small_model

from healthgym_utils import checkpoint, data
from healthgym_utils.checkpoint import CheckpointError
from healthgym_utils.data import DataError, decode_table, load_art
from healthgym_utils.gan import WGANGP
from healthgym_utils.preprocess import Preprocessor
from healthgym_utils.pretrained import rebuild

own_surroundings = test_data.own_surroundings
server, small = test_data.server, test_data.small
small_is_all = test_data.small_is_all
FORK = multiprocessing.get_context("fork")  # PyTorch is imported already


# Disks ----------------------------------------------------------------------


@contextmanager
def largest_file(size):
    """Let no file grow past a size, as on a disk with no more room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def mount(tmp_path):
    """Mount a disk in memory; skips where only an administrator may."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mounted(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no right to mount a disk here")
        return folder

    yield mounted
    if folder.is_mount():
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def full_disk(mount):
    """A disk of 64 KiB."""
    return mount("size=64k")


@pytest.fixture
def read_only(tmp_path, mount):
    """A function that makes a folder with some files read-only."""

    def locked(files):
        if os.geteuid() == 0:  # whom permissions do not stop
            folder = mount("size=1m")
        else:
            folder = tmp_path / "locked"
            folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        if os.geteuid() == 0:
            command = ["mount", "-o", "remount,ro", folder]
            subprocess.run(command, check=True)
        else:
            folder.chmod(0o555)
        return folder

    yield locked
    if (tmp_path / "locked").exists():
        (tmp_path / "locked").chmod(0o755)


def assert_old_one_is_left(folder, before):
    assert [p.name for p in folder.iterdir()] == ["m.safetensors"]
    assert (folder / "m.safetensors").read_bytes() == before


SMALL, BIG = {"w": torch.arange(100.0)}, {"w": torch.zeros(100_000)}


def test_checkpoint_on_a_full_disk(full_disk):
    path = full_disk / "m.safetensors"
    checkpoint.save(path, SMALL, {"epoch": 3})
    before = path.read_bytes()
    with pytest.raises(OSError, match="Make room on the disk") as refusal:
        checkpoint.save(path, BIG, {"epoch": 4})
    assert str(path) in str(refusal.value)
    assert "No space left" in str(refusal.value)
    assert_old_one_is_left(full_disk, before)


def test_checkpoint_past_a_limit(tmp_path):
    path = tmp_path / "m.safetensors"
    checkpoint.save(path, SMALL, {"epoch": 3})
    before = path.read_bytes()
    with (
        largest_file(65536),
        pytest.raises(OSError, match="as before. Make room"),
    ):
        checkpoint.save(path, BIG, {"epoch": 4})
    assert_old_one_is_left(tmp_path, before)


def test_checkpoint_in_a_read_only_folder(read_only, tmp_path):
    path = tmp_path / "m.safetensors"
    checkpoint.save(path, SMALL, {"epoch": 3})
    before = path.read_bytes()
    folder = read_only({"m.safetensors": before})
    with pytest.raises(OSError, match="save into another folder"):
        checkpoint.save(folder / "m.safetensors", SMALL, {})
    assert_old_one_is_left(folder, before)
    assert checkpoint.load(folder / "m.safetensors")[1]["epoch"] == 3


@pytest.mark.parametrize(
    "name", ["none/m.safetensors", "file/m.safetensors", "folder", "n" * 255]
)
def test_checkpoint_to_where_no_file_can_be(name, tmp_path):
    (tmp_path / "file").write_text("taken")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="cannot be saved .*another folder"):
        checkpoint.save(tmp_path / name, SMALL, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_cache_on_a_full_disk(full_disk, server, small, small_is_all):
    server.answer = answer(small[1] * 20)
    message = refused_download(full_disk)
    assert f"cache folder {full_disk}: " in message
    assert "No space left" in message and "HEALTHGYM_CACHE" in message


def test_cache_past_a_limit(server, small, small_is_all, tmp_path):
    server.answer = answer(small[1] * 20)
    with largest_file(65536):
        message = refused_download(tmp_path / "cache")
    assert "cannot write to the cache folder" in message
    server.answer = answer(small[1])  # there is room again
    assert len(load_art("figshare", cache=tmp_path / "cache")) == 120


def test_read_only_cache_with_the_file(read_only, server, small, small_is_all):
    """As a lecturer may have prepared one for a class."""
    folder = read_only({data.FIGSHARE_NAME: small[1]})
    table = load_art("figshare", cache=folder)
    assert_frame_equal(table, small[0], rtol=1e-12)
    assert server.paths == []


def test_read_only_cache_without_the_file(
    read_only, server, small, small_is_all
):
    server.answer = answer(small[1])
    message = refused_download(read_only({}))
    assert "cannot write to the cache folder" in message
    assert "HEALTHGYM_CACHE" in message


def test_folder_in_place_of_the_cached_file(server, tmp_path):
    (tmp_path / data.FIGSHARE_NAME).mkdir()
    with pytest.raises(DataError, match="is damaged") as refusal:
        load_art("figshare", cache=tmp_path)
    assert_says_what_to_do(str(refusal.value))


# The line to the server -----------------------------------------------------


def hang_up(handler):
    """Close the connection without a word."""
    handler.close_connection = True


def gibberish(handler):
    """Answer in no protocol at all."""
    handler.wfile.write(b"\x00\x01 this is not HTTP\r\n\r\n")
    handler.close_connection = True


LINES = {
    "hangs up at once": (lambda body: hang_up, "no connection"),
    "speaks no HTTP": (lambda body: gibberish, "no connection"),
    "announces too little": (
        lambda body: answer(body, length=len(body) // 2),
        "it has 60 rows",
    ),
    "announces a word": (
        lambda body: answer(body[:99], length="x"),
        "invalid literal for int",
    ),
    "announces less than nothing": (
        lambda body: answer(body[:99], length=-5),
        "columns are not the published",
    ),
    "packs what is no gzip": (
        lambda body: answer(body, **{"Content-Encoding": "gzip"}),
        "failed to decode",
    ),
}


@pytest.mark.parametrize("case", LINES)
def test_faulty_line(case, server, small, small_is_all, tmp_path):
    make, why = LINES[case]
    server.answer = make(small[1])
    start = time.monotonic()
    message = refused_download(tmp_path / "cache")
    assert why in message
    assert time.monotonic() - start < 10


# Several processes ----------------------------------------------------------


def load_in_child(cache, results):
    """Load from figshare and report; for a process of its own."""
    try:
        results.put(len(load_art("figshare", cache=cache)))
    except DataError as error:
        results.put(str(error))


def started(target, *arguments):
    process = FORK.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


@pytest.mark.parametrize("cut", [False, True])
def test_two_processes_fill_the_cache(
    cut, server, small, small_is_all, tmp_path
):
    """Both are half-way at the same time; one of them may break off."""
    body = small[1]
    both = threading.Barrier(2, timeout=20)
    first = threading.Lock()

    def send(handler):
        broken = cut and first.acquire(blocking=False)
        answer(body[:5000], length=len(body))(handler)
        handler.wfile.flush()
        if len(server.paths) <= 2:
            both.wait()
        if not broken:
            handler.wfile.write(body[5000:])

    server.answer = send
    results = FORK.Queue()
    children = [started(load_in_child, tmp_path, results) for _ in range(2)]
    assert [results.get(timeout=30) for _ in children] == [120, 120]
    for child in children:
        child.join(10)
    (kept,) = tmp_path.iterdir()
    assert kept.name == data.FIGSHARE_NAME and kept.read_bytes() == body


def save_for_ever(path):
    """Save one checkpoint after another, each with its own number."""
    torch.set_num_threads(1)  # a fork has none of its parent's threads
    epoch = 0
    while True:
        epoch += 1
        tensors = {"w": torch.full((50_000,), float(epoch))}
        checkpoint.save(path, tensors, {"epoch": epoch})


def whole_epoch(path):
    """Check that header and tensors are of one saving; return its number."""
    tensors, header = checkpoint.load(path)
    assert tensors["w"].shape == (50_000,)
    assert (tensors["w"] == header["epoch"]).all()
    return header["epoch"]


def test_kill_while_saving(tmp_path):
    path = tmp_path / "m.safetensors"
    dice = random.Random(0)
    for _ in range(15):
        child = started(save_for_ever, path)
        deadline = time.monotonic() + 20
        before = path.stat().st_mtime_ns if path.exists() else None
        while time.monotonic() < deadline and (
            not path.exists() or path.stat().st_mtime_ns == before
        ):
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.02))
        os.kill(child.pid, signal.SIGKILL)
        child.join(10)
        assert child.exitcode == -signal.SIGKILL
        assert whole_epoch(path) >= 1
    checkpoint.save(path, SMALL, {"epoch": 0})
    assert torch.equal(checkpoint.load(path)[0]["w"], SMALL["w"])


def test_reading_while_another_process_saves(tmp_path):
    """A header of one epoch never comes with tensors of the next."""
    path = tmp_path / "m.safetensors"
    child = started(save_for_ever, path)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not path.exists():
            time.sleep(0.01)
        epochs = [whole_epoch(path) for _ in range(200)]
        assert child.is_alive()
    finally:
        child.kill()
        child.join(10)
    assert epochs == sorted(epochs) and epochs[0] < epochs[-1]


# Checkpoints from strangers -------------------------------------------------


GOOD = {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}


def metadata(text='{"format_version": 1}'):
    return {"format": checkpoint.FORMAT, "header": text}


def file_of(description, body=bytes(64), length=None):
    """Write a safetensors file by hand; a str is JSON already."""
    if not isinstance(description, str):
        description = json.dumps(description)
    text = description.encode()
    size = len(text) if length is None else length
    return struct.pack("<Q", size) + text + body


def with_tensor(**changes):
    return file_of({"__metadata__": metadata(), "w": GOOD | changes})


def with_header(text):
    return file_of({"__metadata__": metadata(text)}, b"")


PLAIN = {"__metadata__": metadata(), "w": GOOD}
NOT_WHOLE, DAMAGED = "not a whole safetensors file", "its header is damaged"
STRANGE = {
    "length 2^64 - 1": (file_of(PLAIN, length=2**64 - 1), NOT_WHOLE),
    "length 2^63": (file_of(PLAIN, length=2**63), NOT_WHOLE),
    "length 100 MB": (file_of(PLAIN, length=10**8), NOT_WHOLE),
    "length 0": (file_of(PLAIN, length=0), NOT_WHOLE),
    "length one off": (
        file_of(PLAIN, length=len(json.dumps(PLAIN)) - 1),
        NOT_WHOLE,
    ),
    "overlap": (file_of(PLAIN | {"v": GOOD}), NOT_WHOLE),
    "gap": (
        file_of(PLAIN | {"v": GOOD | {"data_offsets": [68, 132]}}, bytes(132)),
        NOT_WHOLE,
    ),
    "offsets backwards": (with_tensor(data_offsets=[64, 0]), NOT_WHOLE),
    "offsets outside": (
        with_tensor(data_offsets=[0, 128], shape=[32]),
        NOT_WHOLE,
    ),
    "offsets negative": (with_tensor(data_offsets=[-64, 0]), NOT_WHOLE),
    "offsets past 64 bits": (
        with_tensor(data_offsets=[0, 2**64]),
        NOT_WHOLE,
    ),
    "offsets fractional": (with_tensor(data_offsets=[0.5, 64.5]), NOT_WHOLE),
    "bytes to spare": (file_of(PLAIN, bytes(65)), NOT_WHOLE),
    "shape too big": (with_tensor(shape=[17]), NOT_WHOLE),
    "shape overflows": (with_tensor(shape=[2**40, 2**40]), NOT_WHOLE),
    "shape past 63 bits": (
        file_of(
            PLAIN
            | {"v": GOOD | {"shape": [0, 2**63], "data_offsets": [64, 64]}}
        ),
        NOT_WHOLE,
    ),
    "shape negative": (with_tensor(shape=[-16]), NOT_WHOLE),
    "dtype too wide": (with_tensor(dtype="F64"), NOT_WHOLE),
    "dtype unknown": (with_tensor(dtype="PICKLE"), NOT_WHOLE),
    "dtype null": (with_tensor(dtype=None), NOT_WHOLE),
    "dtype of six bits": (with_tensor(dtype="F6_E2M3"), NOT_WHOLE),
    "metadata NaN": (
        file_of({"__metadata__": {"format": float("nan")}}, b""),
        NOT_WHOLE,
    ),
    "metadata a number": (
        file_of({"__metadata__": {"format": 1}}, b""),
        NOT_WHOLE,
    ),
    "metadata a list": (file_of({"__metadata__": []}, b""), NOT_WHOLE),
    "metadata twice": (
        file_of(json.dumps(PLAIN)[:-1] + ', "__metadata__": {}}'),
        NOT_WHOLE,
    ),
    "metadata none": (file_of({"w": GOOD}), "no checkpoint of this"),
    "deep outside": (
        file_of('{"__metadata__":' + '{"a":' * 100_000, b""),
        NOT_WHOLE,
    ),
    "deep lists": (with_header("[" * 100_000), DAMAGED),
    "deep objects": (
        with_header('{"format_version": 1, "a": ' + '{"a":' * 100_000),
        DAMAGED,
    ),
    "deep and whole": (
        with_header(
            '{"format_version": 1, "a": ' + "[" * 100_000 + "]" * 100_000 + "}"
        ),
        DAMAGED,
    ),
    "version -1": (with_header('{"format_version": -1}'), DAMAGED),
    "version 0": (with_header('{"format_version": 0}'), DAMAGED),
    "version NaN": (with_header('{"format_version": NaN}'), "update"),
    "version of 5,000 digits": (
        with_header('{"format_version": ' + "9" * 5000 + "}"),
        DAMAGED,
    ),
    "half a character": (
        with_header('{"format_version": "\\ud800"}'),
        "update",
    ),
}


@pytest.mark.parametrize("case", STRANGE)
def test_strange_checkpoint(case, tmp_path):
    content, why = STRANGE[case]
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    start = time.monotonic()
    for read in (checkpoint.load, checkpoint.read_header):
        if case == "shape past 63 bits" and read is checkpoint.read_header:
            continue  # only the tensors are wrong
        with pytest.raises(CheckpointError, match=why) as refusal:
            read(path)
        message = str(refusal.value)
        message.encode()  # so that it can be printed
        assert str(path) in message and len(message) < 1000
    assert time.monotonic() - start < 5


GREEDY = {
    "v1, hidden": ("v1", "settings", {"hidden": 10**7}, "its generator is"),
    "v1, latent": ("v1", "settings", {"latent": 10**9}, "its generator is"),
    "v2, capacity": ("v2", "memory", {"capacity": 10**12}, "its memory is"),
    "v2, hidden": ("v2", "memory", {"hidden": 10**7}, "its memory is"),
    "v3, hidden": ("v3", "settings", {"hidden": 8 * 10**6}, "its network is"),
    "v3, time": ("v3", "settings", {"time_width": 10**8}, "its network is"),
    "v3, levels": ("v3", "settings", {"levels": 10**9}, "levels is 1 to 16"),
    "v3, steps": ("v3", "settings", {"steps": 10**10}, "steps is 1,000,000"),
}


TABLE = made_up_table(MADE_UP, 9, 17, seed=0)
X = Preprocessor(MADE_UP).fit(TABLE).transform(TABLE)
X[..., AGE] = X[:, :1, AGE]


def loaders(model):
    return small_loaders(X) if isinstance(model, WGANGP) else loader_of(X)


def trained_models(folder):
    """Train a small model of each kind; their tensors and headers."""
    models = {
        "v1": small_model(),
        "v2": small_model(memory=small_memory()),
        "v3": tiny(),
    }
    for model in models.values():
        model.fit(loaders(model), epochs=1)
    models["v3"].calibrate(X)
    path = folder / "trained.safetensors"
    found = {}
    for kind, model in models.items():
        model.save(path)
        rebuild(path, MADE_UP)
        found[kind] = checkpoint.load(path)
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return trained_models(tmp_path_factory.mktemp("trained"))


def refused_with(trained, tmp_path, why):
    path = tmp_path / "m.safetensors"
    checkpoint.save(path, *trained)
    with pytest.raises(CheckpointError, match=why):
        rebuild(path, MADE_UP)


@pytest.mark.parametrize("case", GREEDY)
def test_header_that_asks_for_more_than_memory(case, trained, tmp_path):
    """Refused by the sizes, and not because the memory was not to be had."""
    kind, part, change, why = GREEDY[case]
    tensors, header = trained[kind]
    header = header | {part: header[part] | change}
    refused_with((tensors, header), tmp_path, why)


def filled_with(value):
    return lambda t: torch.full_like(t, value)


NONE, NAN = torch.zeros(0), float("nan")
ADAM, BIAS = "adam.network.0", "critic.score.bias"
HOSTILE = {
    # Adam's fused steps would write past the end of these.
    "moments empty": ("v3", f"{ADAM}.exp_avg", lambda t: NONE, "has shapes"),
    "moments short": ("v3", f"{ADAM}.exp_avg_sq", lambda t: t[:1], "shapes"),
    "moments gone": ("v3", f"{ADAM}.exp_avg", None, "has shapes"),
    "moments below 0": ("v3", f"{ADAM}.exp_avg_sq", filled_with(-1), "below"),
    "moments NaN": ("v3", f"{ADAM}.exp_avg", filled_with(NAN), "finite"),
    "step a vector": ("v3", f"{ADAM}.step", lambda t: NONE, "has shapes"),
    "step below 0": ("v3", f"{ADAM}.step", filled_with(-1), "is below 0"),
    "moments of GAN": ("v1", "adam.critic.1.exp_avg", lambda t: NONE, "shape"),
    "weight NaN": ("v3", "average.mix_out.2.bias", filled_with(NAN), "dive"),
    "weight inf": ("v1", BIAS, filled_with(np.inf), "diverged"),
    "weight whole": ("v1", BIAS, torch.Tensor.int, "is of"),
    "weight wide": ("v1", BIAS, torch.Tensor.double, "is of"),
    "weight gone": ("v1", BIAS, None, "None in the file"),
    "filled too far": ("v2", "memory.filled", filled_with(10**12), "filled"),
    "filled below 0": ("v2", "memory.filled", filled_with(-5), "filled"),
    "entries NaN": ("v2", "memory.entries", filled_with(NAN), "finite"),
    "lesson unknown": ("v1", "loader.x", lambda t: t, "invalid literal"),
    "lesson empty": ("v1", "loader.5", lambda t: t[:0], "RNG state"),
    "joint wide": ("v3", "joint.rows", lambda t: t.repeat(1, 9), "of shape"),
    "joint NaN": ("v3", "joint.rows", filled_with(NAN), "not finite"),
    "joint no row": ("v3", "joint.rows", lambda t: t[0, 0], "joint"),
    "counts short": ("v3", "joint.counts", lambda t: t[:1], "joint.counts"),
    "counts below 1": ("v3", "joint.counts", filled_with(-1), "joint.counts"),
    "quantiles fall": (
        "v3", "calibration.wanted", lambda t: t.flip(1), "wanted rise",
    ),
    "quantiles high": (
        "v3", "calibration.wanted", lambda t: t + 1e6, "wanted are in",
    ),
    "quantiles few": (
        "v3", "calibration.sampled", lambda t: t[:, :5], "sampled has shape",
    ),
    "sharpness 0": ("v3", "calibration.sharpness", filled_with(0), "above 0"),
    "offsets NaN": ("v3", "calibration.offsets", filled_with(NAN), "finite"),
    "random short": ("v3", "random", lambda t: t[:9], "RNG state"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_tensors_that_no_training_leaves(case, trained, tmp_path):
    kind, name, change, why = HOSTILE[case]
    tensors, header = dict(trained[kind][0]), trained[kind][1]
    tensor = tensors.pop(name, torch.zeros(1))
    if change is not None:
        tensors[name] = change(tensor)
    refused_with((tensors, header), tmp_path, why)


WRONG = {
    "epoch a word": ({"epoch": "x"}, "epoch is 'x'"),
    "epoch below 0": ({"epoch": -1}, "epoch is -1"),
    "epoch 2^70": ({"epoch": 2**70}, "epoch is 1180591620717411303424"),
    "epoch true": ({"epoch": True}, "epoch is True"),
    "seconds none": ({"seconds": None}, "seconds is None"),
    "seconds NaN": ({"seconds": float("nan")}, "seconds is nan"),
    "provenance 5": ({"provenance": 5}, "provenance is 5"),
    "weights_only no": ({"weights_only": "no"}, "weights_only is 'no'"),
    "history a word": ({"history": {"loss": "abc"}}, "history has loss"),
    "history deep": ({"history": {"loss": [{}]}}, "history has loss"),
    "model long": (
        {"model": "\x1b[2J" * 10**6},
        r"holds a [^\x1b]{700,3500}$",
    ),
    "model odd": ({"model": "\ud800"}, r"holds a \\ud800, not a"),
}


@pytest.mark.parametrize("case", WRONG)
def test_header_values_that_no_training_leaves(case, trained, tmp_path):
    tensors, header = trained["v1"]
    change, why = WRONG[case]
    refused_with((tensors, header | change), tmp_path, why)


def test_lessons_of_another_training_are_refused(trained, tmp_path):
    tensors, header = trained["v1"]
    path, state = tmp_path / "m.safetensors", tensors["random"].clone()
    checkpoint.save(path, tensors | {"loader.999": state}, header)
    model = rebuild(path, MADE_UP)
    with pytest.raises(ValueError, match=r"lessons of \[5, 10, 999\]"):
        model.fit(loaders(model), 2)


def test_checkpoints_can_be_read_by_others_and_links_stay(tmp_path):
    path, link = tmp_path / "m.safetensors", tmp_path / "latest.safetensors"
    umask = os.umask(0o027)
    try:
        checkpoint.save(path, SMALL, {})
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o664)
    link.symlink_to(path)
    checkpoint.save(link, SMALL, {"epoch": 7})
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o664
    assert checkpoint.load(path)[1]["epoch"] == 7


def test_header_of_other_than_json_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(TypeError, match="of JSON types, such as int"):
        checkpoint.save(path, SMALL, {"provenance": {"n": np.int64(1)}})
    assert not [*tmp_path.iterdir()]


def test_last_of_equal_names_counts(tmp_path):
    """As everywhere in JSON; header and tensors go by one reading."""
    path = tmp_path / "m.safetensors"
    text = json.dumps(PLAIN)
    twice = text[:-1] + ', "w": ' + json.dumps(GOOD | {"shape": [4, 4]}) + "}"
    path.write_bytes(file_of(twice))
    assert checkpoint.load(path)[0]["w"].shape == (4, 4)
    path.write_bytes(with_header('{"format_version": 9, "format_version": 1}'))
    assert checkpoint.load(path)[1]["format_version"] == 1


def test_losses_that_are_nan_come_back(tmp_path):
    """A training that diverged is a result, too."""
    path = tmp_path / "m.safetensors"
    checkpoint.save(path, SMALL, {"history": {"loss": [1.0, float("nan")]}})
    assert np.isnan(checkpoint.load(path)[1]["history"]["loss"][1])


@pytest.mark.parametrize(
    "change",
    [
        {"span": [float("inf"), 1]},
        {"classes": 7},
        {"minimum": "low"},
        {"embedding_size": "wide"},
    ],
    ids=str,
)
def test_damaged_schema_in_a_checkpoint(change):
    schema = data.ART_FULL_SCHEMA
    description = json.loads(json.dumps(schema.to_dict()))
    description["features"][0] |= change
    header = {"model": "WGANGP", "schema": description}
    with pytest.raises(CheckpointError, match="its schema is damaged"):
        checkpoint.check("m", header, "WGANGP", schema, set())


# Tables ---------------------------------------------------------------------


def test_everything_unusual_at_once(small, tmp_path):
    """A byte order mark, CRLF, quotes, more columns, rows in any order."""
    raw = to_raw(small[0]).sample(frac=1, random_state=3)
    raw.insert(4, "Site, or ward", "Zoë's")
    path = tmp_path / "cohort.csv"
    dialect = {"encoding": "utf-8-sig", "lineterminator": "\r\n"}
    raw.to_csv(path, quoting=1, **dialect)  # row names as well
    assert_frame_equal(load_art(path), small[0], rtol=1e-12)


def other_formats(text):
    """Give what spreadsheets and archives make of a file."""
    decimal = text.replace(",", ";").replace(".", ",")
    zoe = text.replace("VL,", "Zoë,VL,", 1).replace("\n", "\n1,")
    return {
        "semicolons.csv": text.replace(",", ";").encode(),
        "tabs.csv": text.replace(",", "\t").encode(),
        "decimal commas.csv": decimal.encode(),
        "utf-16.csv": text.encode("utf-16"),
        "latin-1.csv": zoe.encode("latin-1"),
        "title.csv": b"My cohort\n" + text.encode(),
        "separator.csv": b"sep=,\n" + text.encode(),
        "no archive.zip": text.encode(),
        "no archive.xz": text.encode(),
        "no archive.tar": text.encode(),
        "no archive.csv.gz": text.encode(),
    }


@pytest.mark.parametrize("name", other_formats(""))
def test_other_formats_are_told_what_to_do(name, small, tmp_path):
    content = other_formats(small[1].decode())[name]
    message = refusal_of(content, tmp_path, name)
    hint = "save it as comma-separated text in UTF-8, with decimal points"
    assert (hint in message) == (not name.endswith(".gz")), message


@pytest.mark.parametrize("table", [None, [1], "x.csv", pd.Series([1])])
def test_what_is_no_table(table):
    with pytest.raises(DataError, match="expected a pandas DataFrame"):
        decode_table(table)


ids = ["PatientID", "Timestep"]
INDEXES = {
    "two files below one another": lambda raw: pd.concat(
        [raw[:60], raw[60:].reset_index(drop=True)]
    ),
    "all alike": lambda raw: raw.set_axis([0] * len(raw)),
    "patient": lambda raw: raw.set_index("PatientID", drop=False),
    "both": lambda raw: raw.set_index(ids, drop=False),
}


@pytest.mark.parametrize("case", INDEXES)
def test_any_index_will_do(case, small):
    raw = INDEXES[case](to_raw(small[0]))
    assert_frame_equal(decode_table(raw), small[0], rtol=1e-12)


ODD = {
    "list": [1],
    "dict": {"a": 1},
    "array": np.array([1, 2]),
    "date": pd.Timestamp("2020"),
    "object": object(),
    "complex": 1j,
    "huge number": 10**400,
    "signaling": Decimal("sNaN"),
}


@pytest.mark.parametrize("column", ["VL", "Gender", "PatientID", "VL (M)"])
@pytest.mark.parametrize("case", ODD)
def test_odd_cell(column, case, small):
    raw = to_raw(small[0]).astype(object)
    raw.at[67, column] = ODD[case]
    with pytest.raises(DataError, match=r"in row 67 \(patient ") as refusal:
        decode_table(raw)
    assert str(refusal.value).startswith(data._tidy_name(column))


@pytest.mark.parametrize("column", ["VL", "Gender", "Timestep", "VL (M)"])
@pytest.mark.parametrize(
    "value", [pd.Timestamp("2020"), pd.Timedelta(1)], ids=str
)
def test_columns_of_dates_are_no_numbers(column, value, small):
    raw = to_raw(small[0]).assign(**{column: value})
    with pytest.raises(DataError, match=r"in row 0 \(patient 0"):
        decode_table(raw)


@pytest.mark.parametrize("column", ["VL", "Gender", "PatientID", "Timestep"])
def test_a_long_cell_is_clipped(column, small, tmp_path):
    raw = to_raw(small[0]).astype(object)
    raw.at[67, column] = "x" * 10**6
    message = refusal_of(raw.to_csv(index=False), tmp_path)
    assert "... (1,000,000 characters)" in message and len(message) < 2000


def test_a_long_list_of_columns_is_clipped(small, tmp_path):
    raw = to_raw(small[0]).drop(columns="VL")
    more = pd.DataFrame(0, index=raw.index, columns=range(2000))
    text = pd.concat([raw, more], axis=1).to_csv(index=False)
    message = refusal_of(text, tmp_path)
    assert "VL: this column is missing; got CD4, " in message
    assert "and 1,974 more" in message and len(message) < 1000


def test_a_header_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "LONGEST_HEADER", 1000)
    message = refusal_of("x" * 2000, tmp_path)
    assert "its first line does not end within 1,000 bytes" in message


def test_a_pipe_is_no_file(tmp_path):
    """Refused at once: opening it would wait for a writer for ever."""
    path = tmp_path / "pipe.csv"
    os.mkfifo(path)
    child = started(load_from_pipe, path)
    child.join(60)
    over = not child.is_alive()
    child.kill()
    assert over and child.exitcode == 0


def load_from_pipe(path):
    """Load in a process of its own, which may hang."""
    with pytest.raises(DataError, match="a pipe or a device; save the table"):
        load_art(path)


@pytest.mark.parametrize(
    "error", [MemoryError(), pd.errors.ParserError("C error: out of memory")]
)
def test_a_table_that_does_not_fit(error, small, tmp_path, monkeypatch):
    def short_of_memory(*_, **__):
        raise error

    monkeypatch.setattr(data.pd, "read_csv", short_of_memory)
    message = refusal_of(small[1], tmp_path)
    assert "does not fit into memory. What to do: take" in message
    assert "comma-separated" not in message


# Large files ----------------------------------------------------------------


PIECES = {
    "numbers": ("CD4", lambda k: "350" if k < 50 else "350.5"),
    "labels": ("Gender", lambda k: "1" if k < 50 else "Male"),
    "booleans": ("Extra pk-En", lambda k: "True" if k < 50 else "1"),
}


@pytest.mark.parametrize("case", PIECES)
def test_pieces_read_as_the_whole(case, small, tmp_path, monkeypatch):
    """Though a column looks like another kind in each of them."""
    column, cell = PIECES[case]
    raw = to_raw(small[0]).assign(Note="free text")
    raw[column] = [cell(k) for k in range(len(raw))]
    path = tmp_path / "pieces.csv"
    raw.to_csv(path, index=False)
    whole = load_art(path)
    monkeypatch.setattr(data, "PIECE", 16 * 50)
    assert_frame_equal(load_art(path), whole, check_exact=True)


def test_text_is_not_taken_for_codes_in_a_piece(small, tmp_path, monkeypatch):
    """In a column of labels "01" is text, wherever it stands."""
    monkeypatch.setattr(data, "PIECE", 15 * 60)
    raw = to_raw(small[0]).assign(Gender=["01"] * 60 + ["Male"] * 60)
    message = refusal_of(raw.to_csv(index=False), tmp_path)
    assert "Gender: '01' in row 0 (patient 0, month 0)" in message


@pytest.mark.parametrize("row", [49, 50, 51, 100, 101, 119])
def test_a_long_row_in_any_piece(row, small, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "PIECE", 15 * 50)
    lines = small[1].decode().splitlines()
    lines[1 + row] += ",9"
    message = refusal_of("\n".join(lines), tmp_path)
    assert f"Expected 15 fields in line {row + 2}, saw 16" in message


ROWS = 480_000


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A file of 480,000 rows, as lines."""
    path = tmp_path_factory.mktemp("large") / "large.csv"
    write_csv(path, ROWS)
    return path.read_text().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("column", "cell", "why"),
    [
        (0, "<50", "VL: '<50' in {} is no number"),
        (1, "", "CD4: missing value nan in {}"),
        (3, "9.0", "Gender: '9.0' in {} is no known code"),
        (14, "200", "Timestep: {}"),
    ],
)
def test_one_bad_cell_in_row_400_000(column, cell, why, large, tmp_path):
    row, path = 400_000, tmp_path / "large.csv"
    cells = large[1 + row].rstrip("\n").split(",")
    patient, month = cells[-2:]
    cells[column] = cell
    bad = [*large[: 1 + row], ",".join(cells) + "\n", *large[2 + row :]]
    path.write_text("".join(bad))
    start = time.monotonic()
    with pytest.raises(DataError) as refusal:
        load_art(path)
    assert time.monotonic() - start < 20
    where = f"row {row} (patient {patient}, month {month})"
    if column == 14:
        where = f"month {month} is missing before row {row + 1} "
    assert why.format(where) in str(refusal.value)


@pytest.mark.parametrize("more", [0, 20], ids="{} columns more".format)
def test_memory_of_a_large_file(more, large, tmp_path):
    """Under 420 bytes a row at the peak, so that 10 million are possible.

    Columns that nobody wants come at no price. An older pandas takes more.
    """
    path = tmp_path / "large.csv"
    with open(path, "w") as file:
        file.write(large[0].rstrip() + ",x" * more + "\n")
        file.writelines(
            row.rstrip() + ",1.5" * more + "\n" for row in large[1:]
        )
    command = [sys.executable, "-m", "load_csv", "--path", str(path)]
    folders = os.pathsep.join(p for p in sys.path if p)
    run = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": folders},
        check=True,
        capture_output=True,
        text=True,
    )
    measured = json.loads(run.stdout)
    assert measured["rows"] == ROWS
    most = 600 if data.PANDAS_DROPS else 420
    assert 50 < measured["bytes_a_row"] < most, measured  # it does see it
