"""Loading the cohort: every source, over real HTTP, and what is refused."""

import gzip
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from raw_format import RAW_CODES, RAW_NAMES, to_raw

from healthgym_utils import data
from healthgym_utils.data import DataError, announce, decode_table, load_art
from healthgym_utils.schema import ART_FULL_SCHEMA
from healthgym_utils.simulate import simulate_art

RAW_HEADER = (
    "VL,CD4,Rel CD4,Gender,Ethnic,Base Drug Combo,Comp. INI,Comp. NNRTI,"
    "Extra PI,Extra pk-En,VL (M),CD4 (M),Drug (M),PatientID,Timestep"
)


@pytest.fixture(autouse=True)
def own_surroundings(monkeypatch, tmp_path):
    """Neither the user's settings and cache nor a proxy reach a test."""
    for name in ("HEALTHGYM_ART_SOURCE", "HEALTHGYM_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(
        data.pooch, "os_cache", lambda project: tmp_path / "user" / project
    )


# The published download, over HTTP from a server of our own -----------------


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """Write a file of the published format in full: 534,960 rows."""
    tidy = simulate_art()
    path = tmp_path_factory.mktemp("published") / "published.csv"
    to_raw(tidy).to_csv(path, index=False)
    return path, tidy


@pytest.fixture(scope="session")
def small():
    """Two patients of sixty months, and the bytes of their raw file."""
    tidy = simulate_art(2)
    return tidy, to_raw(tidy).to_csv(index=False).encode()


class Server(ThreadingHTTPServer):
    """A loopback server that answers every request by ``answer``."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/files/40584980"
        self.paths = []
        self.over = threading.Event()
        self.answer = None
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    def stop(self):
        if not self.over.is_set():
            self.over.set()
            self.shutdown()
            self.thread.join()
            self.server_close()

    def handle_error(self, request, client_address):
        """Keep quiet about clients that hang up."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.paths.append(self.path)
        self.server.answer(self)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setattr(data, "FIGSHARE_URL", server.url)
    yield server
    server.stop()


@pytest.fixture
def small_is_all(monkeypatch):
    """Let the two patients count as the whole published file."""
    monkeypatch.setattr(data, "FIGSHARE_ROWS", 120)


def answer(body=b"", status=200, length=None, **headers):
    """Make an answer; ``length=-1`` sends no Content-Length."""

    def send(handler):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        if length != -1:
            size = len(body) if length is None else length
            handler.send_header("Content-Length", str(size))
        handler.end_headers()
        handler.wfile.write(body)

    return send


def redirect(address, then=None):
    """Send the first request on to another path, answered by ``then``."""

    def send(handler):
        if then is not None and handler.path == address:
            then(handler)
        else:
            answer(status=302, Location=address)(handler)

    return send


def hang(body=b""):
    """Send a part of the file, if any, and then nothing for ever."""

    def send(handler):
        if body:
            answer(body, length=10 * len(body))(handler)
            handler.wfile.flush()
        handler.server.over.wait(60)

    return send


def assert_nothing_cached(cache):
    assert not cache.exists() or list(cache.iterdir()) == []


def assert_says_what_to_do(message):
    assert "https://ndownloader.figshare.com/files/40584980" in message
    assert 'load_art("path/to/file.csv")' in message
    assert 'load_art("simulated")' in message


def part_of_a_file(cache):
    """Whether a download is under way and has written something."""
    return any(path.stat().st_size for path in cache.glob("tmp*"))


def refused_download(cache):
    """Load from figshare, which has to fail and to leave nothing behind."""
    with pytest.raises(DataError) as refusal:
        load_art("figshare", cache=cache)
    assert_nothing_cached(cache)
    assert_says_what_to_do(str(refusal.value))
    return str(refusal.value)


def test_the_helper_writes_the_published_header(small):
    assert small[1].decode().splitlines()[0] == RAW_HEADER


def test_download_then_cache_hit(published, server, tmp_path):
    path, tidy = published
    server.answer = answer(path.read_bytes())
    cache = tmp_path / "new" / "cache"
    table = load_art("figshare", cache=cache)
    assert table.shape == (534_960, 15)
    assert table.attrs["source"] == "figshare"
    # assert_frame_equal takes 10 s for a tolerance on so many labels.
    labs = ["VL", "CD4", "Rel_CD4"]
    np.testing.assert_allclose(table[labs], tidy[labs], rtol=1e-12)
    assert table.drop(columns=labs).equals(tidy.drop(columns=labs))
    server.stop()
    first = load_art("figshare", n_patients=300, cache=cache)
    assert first.attrs["source"] == "figshare"
    assert_frame_equal(first, table[table.PatientID < 300])
    assert len(server.paths) == 1
    (kept,) = cache.iterdir()
    assert kept.read_bytes() == path.read_bytes()
    assert kept.stat().st_mode & 0o444 == 0o444  # a class may share it


def test_full_file_with_fewer_rows_than_published(published, server, tmp_path):
    whole = published[0].read_bytes()
    cut = whole[: whole.rindex(b"\n", 0, -1) + 1]  # the last month is gone
    server.answer = answer(cut)
    message = refused_download(tmp_path / "cache")
    assert "534,959 rows" in message and "534,960" in message


def refusals():
    page = b"<!DOCTYPE html><html><body>Just a moment</body></html>"
    csv = {"Content_Type": "text/csv"}
    return {
        "html": (answer(page), "web page"),
        "html called csv": (answer(b"\n\n " + page, **csv), "web page"),
        "empty body": (answer(), "cannot be read as CSV"),
        "binary": (answer(bytes(range(256)) * 9), "CSV|columns"),
        "json": (answer(b'{"message": "slow down"}'), "columns"),
        "202 with no body": (answer(status=202), "answered 202 Accepted"),
        "204": (answer(status=204), "answered 204"),
        "403": (answer(page, status=403), "answered 403 Forbidden"),
        "404": (answer(page, status=404), "answered 404"),
        "429": (answer(page, status=429), "answered 429"),
        "500": (answer(page, status=500), "answered 500"),
        "503": (answer(page, status=503), "answered 503"),
        "redirect nowhere": (answer(status=302), "answered 302"),
        "redirect to html": (redirect("/x", answer(page)), "web page"),
        "redirect to 403": (
            redirect("/x", answer(status=403)),
            "answered 403",
        ),
        "redirect in a circle": (redirect("/x"), "redirects"),
    }


@pytest.mark.parametrize("case", refusals())
def test_answers_that_are_not_the_file(case, server, tmp_path):
    server.answer, why = refusals()[case]
    message = refused_download(tmp_path / "cache")
    assert any(words in message for words in why.split("|")), message


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("length", ["announced", "unknown"])
def test_truncated_body(share, length, small, server, tmp_path, small_is_all):
    whole = small[1]
    part = whole[: int(share * len(whole))]
    size = len(whole) if length == "announced" else -1
    server.answer = answer(part, length=size)
    message = refused_download(tmp_path / "cache")
    words = ("broke off", "cut short", "columns are not", "cannot be read")
    assert any(word in message for word in words), message
    if length == "announced":
        assert "broke off" in message
        assert len(server.paths) == 2  # tried once more


def test_truncated_in_the_last_row(small, server, tmp_path, small_is_all):
    """As many rows as published, and still not all of the file."""
    server.answer = answer(small[1][: -len("0.0,0.0,1,59\n")], length=-1)
    message = refused_download(tmp_path / "cache")
    assert "row 119" in message


def test_wrong_row_count(small, server, tmp_path):
    server.answer = answer(small[1])
    message = refused_download(tmp_path / "cache")
    assert "120 rows" in message and "534,960" in message


def test_columns_in_another_order(small, server, tmp_path, small_is_all):
    raw = to_raw(small[0])
    body = raw[raw.columns[::-1]].to_csv(index=False).encode()
    server.answer = answer(body)
    assert "columns are not the published" in refused_download(tmp_path / "c")


def test_right_size_but_breaks_the_schema(
    small, server, tmp_path, small_is_all
):
    raw = to_raw(small[0])
    raw.loc[67, "Comp. INI"] = 9
    server.answer = answer(raw.to_csv(index=False).encode())
    message = refused_download(tmp_path / "cache")
    assert "Comp_INI: '9.0' in row 67 (patient 1, month 7)" in message


def test_patients_of_unequal_length(small, server, tmp_path, small_is_all):
    tidy = simulate_art(3)
    months = tidy.PatientID.map({0: 60, 1: 30, 2: 30})
    raw = to_raw(tidy[tidy.Timestep < months])
    server.answer = answer(raw.to_csv(index=False).encode())
    assert "60 months" in refused_download(tmp_path / "cache")


@pytest.mark.parametrize("address", ["/elsewhere", "absolute"])
def test_redirect_is_followed(address, small, server, tmp_path, small_is_all):
    if address == "absolute":
        address = server.url + "/signed"
        path = "/files/40584980/signed"
    else:
        path = address

    def send(handler):
        if handler.path == path:
            answer(small[1])(handler)
        else:
            answer(status=302, Location=address)(handler)

    server.answer = send
    table = load_art("figshare", cache=tmp_path)
    assert_frame_equal(table, small[0], rtol=1e-12)
    assert server.paths == ["/files/40584980", path]


def test_a_hiccup_is_tried_once_more(small, server, tmp_path, small_is_all):
    def send(handler):
        broken = len(server.paths) == 1
        body = small[1][:999] if broken else small[1]
        answer(body, length=len(small[1]))(handler)

    server.answer = send
    table = load_art("figshare", cache=tmp_path)
    assert_frame_equal(table, small[0], rtol=1e-12)
    assert len(server.paths) == 2


def test_a_refusal_is_not_tried_again(server, tmp_path):
    server.answer = answer(status=403)
    refused_download(tmp_path / "cache")
    assert len(server.paths) == 1


def test_no_network(server, tmp_path):
    server.stop()  # its port is closed now
    assert "no connection" in refused_download(tmp_path / "cache")


def test_server_that_never_answers(server, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "TIMEOUT", (0.3, 0.3))
    server.answer = hang()
    start = time.monotonic()
    assert "did not answer in time" in refused_download(tmp_path / "cache")
    assert time.monotonic() - start < 5


def test_server_that_falls_silent(small, server, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "TIMEOUT", (0.3, 0.3))
    server.answer = hang(small[1][:5000])
    start = time.monotonic()
    assert "fell silent" in refused_download(tmp_path / "cache")
    assert time.monotonic() - start < 5


def test_server_that_sends_too_much(small, server, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MOST_BYTES", 100_000)
    server.answer = answer(small[1] * 40, length=-1)
    message = refused_download(tmp_path / "cache")
    assert "the server sent more than 100,000 bytes" in message
    assert len(server.paths) == 1


def test_interrupt_leaves_nothing(small, server, tmp_path):
    """Ctrl-C, or Interrupt kernel, in the middle of the body."""
    server.answer = hang(small[1] * 40)
    cache = tmp_path / "cache"
    seen = []
    over = threading.Event()

    def interrupt():
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not part_of_a_file(cache):
            time.sleep(0.02)
        seen.append(part_of_a_file(cache))
        # Again, as people do: Python drops what reaches a finaliser.
        while not over.is_set():
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            over.wait(1)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        try:
            load_art("figshare", cache=cache)
        finally:
            over.set()
    assert seen == [True]
    assert_nothing_cached(cache)


def test_kill_leaves_no_cached_file(small, server, tmp_path, small_is_all):
    """A killed process cannot tidy up; what it leaves is never taken."""
    server.answer = hang(small[1] * 40)
    code = (
        "import sys; from healthgym_utils import data\n"
        "data.FIGSHARE_URL = sys.argv[1]\n"
        "data.load_art('figshare', cache=sys.argv[2])"
    )
    command = [sys.executable, "-c", code, server.url, str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 50
        while time.monotonic() < deadline and not part_of_a_file(tmp_path):
            time.sleep(0.02)
        process.kill()
    assert part_of_a_file(tmp_path)
    assert not (tmp_path / data.FIGSHARE_NAME).exists()
    server.answer = answer(small[1])
    table = load_art("figshare", cache=tmp_path)
    assert_frame_equal(table, small[0], rtol=1e-12)


def first_patient(whole):
    """Cut a file after its first patient: what is left is a right table."""
    return b"".join(whole.splitlines(keepends=True)[:61])


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda whole: whole[: len(whole) // 2], "it has 60 rows"),
        (first_patient, "it has 60 rows"),
        (lambda whole: b"", "cannot be read"),
        (lambda whole: b"<html>", "web page"),
        (lambda whole: whole.replace(b",0,7\n", b",0,6\n"), "occurs twice"),
        (lambda whole: whole.replace(b",1,7\n", b",,7\n"), "row 67"),
    ],
)
def test_damaged_cache_is_found(
    damage, why, small, server, tmp_path, small_is_all
):
    path = tmp_path / data.FIGSHARE_NAME
    path.write_bytes(damage(small[1]))
    with pytest.raises(DataError) as refusal:
        load_art("figshare", cache=tmp_path)
    message = str(refusal.value)
    assert str(path) in message and "damaged" in message and why in message
    assert_says_what_to_do(message)
    assert server.paths == []
    path.unlink()  # as the message advises
    server.answer = answer(small[1])
    assert len(load_art("figshare", cache=tmp_path)) == 120


def test_cache_folder_that_is_a_file(server, tmp_path):
    cache = tmp_path / "file"
    cache.write_text("taken")
    with pytest.raises(DataError, match="cache folder") as refusal:
        load_art("figshare", cache=cache)
    assert "HEALTHGYM_CACHE" in str(refusal.value)
    assert_says_what_to_do(str(refusal.value))
    assert cache.read_text() == "taken"


def test_where_the_cache_is(
    small, server, tmp_path, monkeypatch, small_is_all
):
    server.answer = answer(small[1])
    load_art("figshare")
    assert [p.name for p in (tmp_path / "user" / "healthgym").iterdir()]
    monkeypatch.setenv("HEALTHGYM_CACHE", str(tmp_path / "set"))
    load_art("figshare")
    assert (tmp_path / "set" / data.FIGSHARE_NAME).exists()
    load_art("figshare", cache=str(tmp_path / "argument"))
    assert (tmp_path / "argument" / data.FIGSHARE_NAME).exists()
    assert len(server.paths) == 3
    load_art("figshare")
    assert len(server.paths) == 3


# Which source is taken ------------------------------------------------------


@pytest.fixture
def colab(monkeypatch):
    """Pretend that this is Colab, whose kernel has google.colab."""
    module = ModuleType("google.colab")
    module.__spec__ = ModuleSpec("google.colab", None)
    monkeypatch.setitem(sys.modules, "google.colab", module)


def test_auto_outside_colab_is_simulated(capsys):
    assert not data.in_colab()
    table = load_art(n_patients=3)
    assert table.attrs["source"] == "simulated"
    assert_frame_equal(table, simulate_art(3))
    out = capsys.readouterr().out
    assert out == "Cohort: simulated stand-in, not the published data\n"


def test_announcement_says_cohort_device_and_time(capsys, monkeypatch):
    assert announce("auto", 50) == "simulated"
    assert capsys.readouterr().out == (
        "Cohort: simulated stand-in, not the published data | "
        "Device: CPU | About 50 seconds\n"
    )
    monkeypatch.setattr(data, "get_device", lambda: torch.device("cuda"))
    assert announce("mine.csv", 90) == Path("mine.csv")
    assert capsys.readouterr().out == (
        "Cohort: local file mine.csv | "
        "Device: CPU (no need of the GPU) | About 90 seconds\n"
    )


def test_announcement_in_colab_is_of_what_is_loaded(colab, capsys):
    assert announce("auto", 50) == "figshare"
    assert "published data, from figshare | " in capsys.readouterr().out


def test_announcement_refuses_an_unknown_source():
    with pytest.raises(DataError, match="unknown source"):
        announce("nowhere", 50)


def test_auto_in_colab_is_figshare(colab, small, server, capsys, small_is_all):
    assert data.in_colab()
    server.answer = answer(small[1])
    assert load_art().attrs["source"] == "figshare"
    out = capsys.readouterr().out
    assert out == "Cohort: published data, from figshare\n"


def test_auto_in_colab_never_falls_back(colab, server, tmp_path):
    server.answer = answer(status=403)
    with pytest.raises(DataError, match="403") as refusal:
        load_art()
    assert_says_what_to_do(str(refusal.value))


def test_variable_overrides_auto(
    colab, small, server, tmp_path, monkeypatch, capsys, small_is_all
):
    server.answer = answer(small[1])
    monkeypatch.setenv("HEALTHGYM_ART_SOURCE", "simulated")
    assert load_art(n_patients=1).attrs["source"] == "simulated"
    assert "simulated" in capsys.readouterr().out
    monkeypatch.setenv("HEALTHGYM_ART_SOURCE", "figshare")
    assert load_art().attrs["source"] == "figshare"
    assert "figshare" in capsys.readouterr().out
    path = tmp_path / "mine.csv"
    path.write_bytes(small[1])
    monkeypatch.setenv("HEALTHGYM_ART_SOURCE", str(path))
    assert load_art().attrs["source"] == "local file"
    assert capsys.readouterr().out == f"Cohort: local file {path}\n"


@pytest.mark.parametrize("value", ["", "auto"])
def test_variable_that_says_nothing(value, monkeypatch):
    monkeypatch.setenv("HEALTHGYM_ART_SOURCE", value)
    assert load_art(n_patients=1).attrs["source"] == "simulated"


def test_variable_leaves_an_explicit_source_alone(
    server, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HEALTHGYM_ART_SOURCE", "figshare")
    assert load_art("simulated", 2).attrs["source"] == "simulated"
    assert server.paths == [] and capsys.readouterr().out == ""


def test_unknown_variable_is_refused(monkeypatch):
    monkeypatch.setenv("HEALTHGYM_ART_SOURCE", "figshr")
    with pytest.raises(DataError, match="figshr.*HEALTHGYM_ART_SOURCE"):
        load_art()


@pytest.mark.parametrize(
    "source", ["Simulated", "real", "", "figshare ", None, 3, pd.DataFrame()]
)
def test_unknown_source_is_refused(source):
    with pytest.raises(DataError, match="auto, figshare, simulated, or the"):
        load_art(source)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("~nosuchuser/x.csv", "no such home folder; give the whole"),
        ("https://example.org/x.csv", "addresses are not taken; download"),
        ("s3://bucket/x", "addresses are not taken; download"),
    ],
)
def test_what_is_no_path_here(source, why):
    with pytest.raises(DataError, match=f"^{source}: .*{why}"):
        load_art(source)


def test_simulated_takes_seed_and_size():
    other = load_art("simulated", n_patients=4, seed=7)
    assert_frame_equal(other, simulate_art(4, seed=7))
    assert not other.equals(load_art("simulated", n_patients=4))


@pytest.mark.parametrize("count", [0, -1, 2.5, "3", np.nan])
@pytest.mark.parametrize("source", ["simulated", "figshare", "mine.csv"])
def test_bad_number_of_patients(count, source, server):
    with pytest.raises(DataError, match="n_patients is 1 or more"):
        load_art(source, n_patients=count)
    assert server.paths == []


def test_first_patients_of_a_file(tmp_path):
    tidy = simulate_art(6)
    tidy = tidy[tidy.Timestep <= tidy.PatientID].reset_index(drop=True)
    tidy["PatientID"] = tidy.PatientID * 10 + 5  # numbers need not be 0, 1, ..
    path = tmp_path / "six.csv"
    to_raw(tidy.iloc[::-1]).to_csv(path, index=False)
    for count, rows in {1: 1, np.int64(4): 10, 6: 21}.items():
        table = load_art(path, n_patients=count)
        assert_frame_equal(table, tidy.iloc[:rows], rtol=1e-12)
    with pytest.raises(DataError, match="n_patients is 7, the cohort has 6"):
        load_art(path, n_patients=7)


# Local files ----------------------------------------------------------------


def as_it_is(tidy):
    return tidy


def labels_raw_names(tidy):
    return tidy.rename(columns=RAW_NAMES)


def codes_tidy_names(tidy):
    return to_raw(tidy).set_axis(list(RAW_NAMES), axis=1)


def whole_codes(tidy):
    return to_raw(tidy).astype({RAW_NAMES[c]: int for c in RAW_CODES})


def float_ids(tidy):
    return to_raw(tidy).astype({"PatientID": float, "Timestep": float})


def half_labels(tidy):
    return to_raw(tidy).assign(Gender=tidy.Gender)


def mixed_in_one_column(tidy):
    raw = to_raw(tidy)
    raw["Ethnic"] = raw.Ethnic.astype(object)
    raw.loc[::2, "Ethnic"] = tidy.Ethnic.astype(str)[::2]
    return raw


def shuffled(tidy):
    return to_raw(tidy).sample(frac=1, random_state=1)


def columns_reversed(tidy):
    return to_raw(tidy)[list(RAW_NAMES.values())[::-1]]


def extra_columns(tidy):
    raw = to_raw(tidy)
    raw.insert(0, "Unnamed", range(len(raw)))
    return raw.assign(Note="free text", Age=np.nan)


def padded_names(tidy):
    return to_raw(tidy).rename(columns="  {} ".format)


def padded_labels(tidy):
    return tidy.assign(Gender=tidy.Gender.astype(str) + " ")


VARIANTS = (
    to_raw,
    as_it_is,
    labels_raw_names,
    codes_tidy_names,
    whole_codes,
    float_ids,
    half_labels,
    mixed_in_one_column,
    shuffled,
    columns_reversed,
    extra_columns,
    padded_names,
    padded_labels,
)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.__name__)
def test_variants_read_alike(variant, small, tmp_path):
    tidy = small[0]
    path = tmp_path / "cohort.csv"
    variant(tidy).to_csv(path, index=False)
    table = load_art(path)
    assert table.attrs["source"] == "local file"
    assert_frame_equal(table, tidy, rtol=1e-12)
    in_memory = variant(tidy)
    before = in_memory.copy(deep=True)
    assert_frame_equal(decode_table(in_memory), tidy, rtol=1e-12)
    assert_frame_equal(in_memory, before)  # the caller's table is untouched


@pytest.mark.parametrize(
    "options",
    [
        {"quoting": 1},
        {"lineterminator": "\r\n"},
        {"encoding": "utf-8-sig"},
        {"index": True},
        {"compression": "gzip"},
    ],
    ids=str,
)
@pytest.mark.parametrize("variant", [to_raw, labels_raw_names])
def test_dialects_read_alike(variant, options, small, tmp_path):
    suffix = ".csv.gz" if "compression" in options else ".csv"
    path = tmp_path / f"cohort{suffix}"
    variant(small[0]).to_csv(path, **({"index": False} | options))
    assert_frame_equal(load_art(str(path)), small[0], rtol=1e-12)


def test_row_names_without_a_header_name_are_refused(small, tmp_path):
    """R's write.table does so; read on, every column would be off by one."""
    lines = small[1].decode().splitlines()
    rows = [f"{k},{line}" for k, line in enumerate(lines[1:])]
    path = tmp_path / "r.csv"
    path.write_text("\n".join([lines[0], *rows]))
    with pytest.raises(DataError, match="Expected 15 fields in line 2"):
        load_art(path)


def test_tidy_dtypes(small, tmp_path):
    path = tmp_path / "cohort.csv"
    path.write_bytes(small[1])
    table = load_art(path)
    assert list(table.columns) == list(RAW_NAMES)
    assert isinstance(table.index, pd.RangeIndex)
    for feature in ART_FULL_SCHEMA.categoricals:
        column = table[feature.name]
        assert tuple(column.cat.categories) == feature.classes
        assert not column.cat.ordered
    assert (table[["VL", "CD4", "Rel_CD4"]].dtypes == "float64").all()
    assert (table[["VL_M", "CD4_M", "Drug_M"]].dtypes == "bool").all()
    assert (table[["PatientID", "Timestep"]].dtypes == "int64").all()


def test_every_published_code_is_decoded(small):
    """Each code of each column, one at a time, against the dictionary."""
    raw = to_raw(small[0])
    for column, codes in RAW_CODES.items():
        for label, code in codes.items():
            table = decode_table(raw.assign(**{RAW_NAMES[column]: code}))
            assert set(table[column]) == {label}


def test_patients_may_have_other_and_unequal_months(tmp_path):
    tidy = simulate_art(3)
    months = tidy.PatientID.map({0: 17, 1: 60, 2: 1})
    tidy = tidy[tidy.Timestep < months].reset_index(drop=True)
    path = tmp_path / "ragged.csv"
    to_raw(tidy).to_csv(path, index=False)
    assert_frame_equal(load_art(path), tidy, rtol=1e-12)


def test_a_path_beginning_at_home(small, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "cohort.csv").write_bytes(small[1])
    assert len(load_art("~/cohort.csv")) == 120


# Bad input, through a file --------------------------------------------------


@pytest.fixture(scope="session")
def rows():
    """Three patients of four months, as lists of text; header first."""
    tidy = simulate_art(3)
    tidy = tidy[tidy.Timestep < 4]
    lines = to_raw(tidy).to_csv(index=False).splitlines()
    return [line.split(",") for line in lines]


def refusal_of(content, tmp_path, name="bad.csv"):
    path = tmp_path / name
    if isinstance(content, list):
        content = "\n".join(",".join(row) for row in content) + "\n"
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content)
    with pytest.raises(DataError) as refusal:
        load_art(path)
    assert str(path) in str(refusal.value)
    return str(refusal.value)


LABS = ("VL", "CD4", "Rel_CD4")
FLAGS = ("VL_M", "CD4_M", "Drug_M")
LAB_CELLS = {
    "": "missing value",
    "NaN": "missing value",
    "NA": "missing value",
    "-0.01": "below 0",
    "-5": "(1 in all); correct it, or leave the patient out",
    "inf": "infinite",
    "-inf": "infinite",
    "<50": "is no number; correct it, or leave the patient out",
    "12 copies": "is no number",
    '"1,234"': "is no number",
    "12;5": "is no number",
    "True": "is no number",
}
CODE_CELLS = ("", "-1", "7", "0.5", "1e6", "inf", "Unknown", "True ?")
FLAG_CELLS = ("", "2", "-1", "0.5", "yes")
ID_CELLS = {
    "": "an empty cell",
    "1.5": "no whole number",
    "inf": "no whole number",
    "P-07": "is no number",
    "1e17": "is beyond 2**53, where neighbours read alike; number them anew",
    "9007199254740993": "is beyond 2**53",
    "-1000000000000000000": "is beyond 2**53",
}
CELLS = [
    *((lab, cell, why) for lab in LABS for cell, why in LAB_CELLS.items()),
    *((name, c, "no known code") for name in RAW_CODES for c in CODE_CELLS),
    *((flag, c, "no known code") for flag in FLAGS for c in FLAG_CELLS),
    *((name, "0", "no known code") for name in ("Gender", "Ethnic")),
    *((name, "true", "no known code") for name in ("Gender", "Comp_INI")),
]


@pytest.mark.parametrize(("column", "cell", "why"), CELLS)
def test_bad_cell(column, cell, why, rows, tmp_path):
    """One bad cell, in the third month of the second patient."""
    bad = [list(row) for row in rows]
    bad[1 + 6][list(RAW_NAMES).index(column)] = cell
    message = refusal_of(bad, tmp_path)
    assert f": {column}: " in message
    assert "row 6 (patient 1, month 2)" in message
    assert why in message


@pytest.mark.parametrize("column", RAW_CODES)
@pytest.mark.parametrize("cell", ["False", "True"])
def test_column_of_booleans(column, cell, rows, tmp_path):
    """What readers parse as booleans are labels of one column only."""
    at = list(RAW_NAMES).index(column)
    bad = [rows[0], *([*r[:at], cell, *r[at + 1 :]] for r in rows[1:])]
    if column == "Extra_pk_En":
        (tmp_path / "good.csv").write_text("\n".join(map(",".join, bad)))
        table = load_art(tmp_path / "good.csv")
        assert set(table.Extra_pk_En) == {cell}
    else:
        message = refusal_of(bad, tmp_path)
        assert f"{column}: '{cell}' in row 0 (patient 0, month 0)" in message


@pytest.mark.parametrize("lab", LABS)
def test_lab_of_booleans(lab, rows, tmp_path):
    at = list(RAW_NAMES).index(lab)
    bad = [rows[0], *([*r[:at], "True", *r[at + 1 :]] for r in rows[1:])]
    message = refusal_of(bad, tmp_path)
    assert f"{lab}: 'True' in row 0 (patient 0, month 0)" in message


@pytest.mark.parametrize(("cell", "why"), ID_CELLS.items())
@pytest.mark.parametrize("column", ["PatientID", "Timestep"])
def test_bad_identifier(column, cell, why, rows, tmp_path):
    bad = [list(row) for row in rows]
    bad[1 + 6][list(RAW_NAMES).index(column)] = cell
    message = refusal_of(bad, tmp_path)
    assert f"{column}: " in message and "in row 6 (patient " in message
    other = "month 2" if column == "PatientID" else "patient 1"
    assert other in message and why in message


@pytest.mark.parametrize("column", RAW_NAMES)
def test_missing_column(column, rows, tmp_path):
    at = list(RAW_NAMES).index(column)
    bad = [row[:at] + row[at + 1 :] for row in rows]
    message = refusal_of(bad, tmp_path)
    assert f"{column}: this column is missing" in message
    assert message.endswith("; rename or add it")


@pytest.mark.parametrize("second", ["VL (M)", "VL_M", "VL..M."])
def test_column_there_twice(second, rows, tmp_path):
    extra = [second, *["0.0"] * 12]
    bad = [[*row, cell] for row, cell in zip(rows, extra, strict=True)]
    message = refusal_of(bad, tmp_path)
    assert "VL_M: this column is there 2 times" in message
    assert message.endswith("; keep one of them")


def test_duplicate_row(rows, tmp_path):
    message = refusal_of([*rows, rows[1 + 6]], tmp_path)
    assert "PatientID, Timestep: row 12 (patient 1, month 2)" in message
    assert "twice" in message


@pytest.mark.parametrize(
    ("gone", "month", "where"),
    [
        (4, 0, "row 4 (patient 1, month 1)"),  # rows after it move up by one
        (6, 2, "row 6 (patient 1, month 3)"),
        (9, 1, "row 9 (patient 2, month 2)"),
    ],
)
def test_missing_month(gone, month, where, rows, tmp_path):
    bad = [row for at, row in enumerate(rows) if at != gone + 1]
    message = refusal_of(bad, tmp_path)
    assert f"Timestep: month {month} is missing before {where}" in message


@pytest.mark.parametrize("start", [1, 12, -1])
def test_months_that_do_not_start_at_zero(start, rows, tmp_path):
    bad = [rows[0], *([*r[:-1], str(int(r[-1]) + start)] for r in rows[1:])]
    message = refusal_of(bad, tmp_path)
    assert f"row 0 (patient 0, month {start})" in message


def test_rows_are_named_as_in_the_file_though_unsorted(rows, tmp_path):
    bad = [list(row) for row in [rows[0], *rows[:0:-1]]]
    bad[1 + 2][list(RAW_NAMES).index("CD4")] = "-1"
    message = refusal_of(bad, tmp_path)
    assert "CD4: below 0 value -1 in row 2 (patient 2, month 1)" in message


def broken_files(text):
    header, body = text.split("\n", 1)
    row = body.split("\n", 1)[0]
    whole = gzip.compress(text.encode())
    return {
        "empty file": (b"", "cannot be read as CSV"),
        "blank lines": (b"\n\n\n", "cannot be read as CSV"),
        "header only": (header + "\n", "empty: it has no rows"),
        "no header": (body, "VL: this column is missing"),
        "semicolons": (text.replace(",", ";"), "VL: this column is missing"),
        "tabs": (text.replace(",", "\t"), "VL: this column is missing"),
        "one long row": (text + row + ",9\n", "Expected 15 fields"),
        "one short row": (text + "1.0,2.0\n", "an empty cell in row 12"),
        "web page": ("<html>" + text, "web page"),
        "utf-16": (text.encode("utf-16"), "cannot be read as CSV"),
        "not text": (os.urandom(64).join([b"\x80\xff"] * 9), "CSV|missing"),
        "open quote": (text + '"', "cannot be read as CSV"),
        "gzip cut": (whole[:-20], "cannot be read as CSV"),
        "gzip damaged": (
            whole[:10] + b"\7" + whole[11:],  # no such type of block
            "cannot be read as CSV",
        ),
        "gzip is none": (text.encode(), "cannot be read as CSV"),
    }


@pytest.mark.parametrize("case", broken_files("a\nb\n"))
def test_broken_file(case, rows, tmp_path):
    text = "\n".join(",".join(row) for row in rows) + "\n"
    content, why = broken_files(text)[case]
    name = "bad.csv.gz" if "gzip" in case else "bad.csv"
    message = refusal_of(content, tmp_path, name)
    assert any(words in message for words in why.split("|")), message


@pytest.mark.parametrize("source", ["nowhere.csv", Path("nowhere/x.csv")])
def test_no_such_file(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"nowhere.*No such file"):
        load_art(source)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(DataError, match="directory"):
        load_art(tmp_path)
