"""Look for bytes that break the readers, guided by the lines they reach.

    python tests/unit/fuzz.py table|checkpoint|header [libFuzzer's options]

``make fuzz`` does so, a minute each. The damage of test_fuzz.py is drawn
blindly; this one, by atheris, keeps what took a new branch in our code and
damages it further. Anything but our own errors stops it, and the bytes stay
in _build/fuzz, for a test to be written from.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import warnings
from pathlib import Path

import atheris
from safetensors.torch import save

FOUND = Path(__file__).parents[2] / "_build" / "fuzz"

# Our own lines only: pandas and PyTorch are others' to fuzz.
with atheris.instrument_imports(include=["healthgym_utils"]):
    from test_faults import trained_models
    from test_fuzz import (
        CSV,
        JSON_TOKENS,
        TOKENS,
        mended,
        read_or_refuse,
        read_table_or_refuse,
        rebuild_or_refuse,
        whole_checkpoint,
    )

    from healthgym_utils import checkpoint


class Table:
    """Bytes are a CSV of the cohort."""

    seeds = CSV
    tokens = TOKENS

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cohort.csv"

    def read(self, content: bytes) -> None:
        """Load a table, or be refused."""
        read_table_or_refuse(self.path, content)


class Checkpoint:
    """Bytes are a checkpoint; the first says whether to mend its length."""

    tokens = JSON_TOKENS

    def __init__(self, folder: Path) -> None:
        self.path = folder / "whole.safetensors"
        whole = whole_checkpoint(self.path)
        self.seeds = [b"\x00" + whole, b"\x80" + whole]

    def read(self, content: bytes) -> None:
        """Load tensors and a header, or be refused."""
        first, content = content[:1], content[1:]
        if first < b"\x80":
            content = mended(content)
        read_or_refuse(self.path, content)


class Header:
    """Bytes are the header of a trained model; the first says of which."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model.safetensors"
        models = trained_models(folder).values()
        self.tensors, headers = zip(*models, strict=True)
        self.seeds = [
            bytes([k]) + json.dumps(header).encode()
            for k, header in enumerate(headers)
        ]
        keys = {key for h in headers for key in [*h, *h["settings"]]}
        self.tokens = [*JSON_TOKENS, *(f'"{key}"'.encode() for key in keys)]

    def read(self, content: bytes) -> None:
        """Rebuild a model, or be refused."""
        tensors = self.tensors[(content or b"\x00")[0] % len(self.tensors)]
        header = content[1:].decode(errors="replace")
        metadata = {"format": checkpoint.FORMAT, "header": header}
        self.path.write_bytes(save(tensors, metadata))
        # Settings may ask for what takes long, such as 10**8 critic steps.
        rebuild_or_refuse(self.path, train=False)


TARGETS = {"table": Table, "checkpoint": Checkpoint, "header": Header}


def entry(token: bytes) -> str:
    """Write a token as a line of libFuzzer's dictionary."""
    return '"' + "".join(f"\\x{byte:02X}" for byte in token) + '"\n'


def main() -> None:
    """Fuzz one reader until libFuzzer's options or a finding end it."""
    name, *options = sys.argv[1:]
    FOUND.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        target = TARGETS[name](folder)
        corpus = folder / "corpus"
        corpus.mkdir()
        for k, seed in enumerate(target.seeds):
            (corpus / str(k)).write_bytes(seed)
        words = folder / "words"
        words.write_text("".join(map(entry, filter(None, target.tokens))))

        def once(content: bytes) -> None:
            with (
                warnings.catch_warnings(action="ignore"),
                contextlib.redirect_stdout(io.StringIO()),
            ):
                target.read(content)

        atheris.Setup(
            [
                sys.argv[0],
                f"-artifact_prefix={FOUND}/{name}-",
                f"-dict={words}",
                "-print_final_stats=1",
                "-timeout=20",
                *options,
                str(corpus),
            ],
            once,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
