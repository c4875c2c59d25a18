"""Checkpoints: safetensors with a JSON header, written whole or not at all.

A checkpoint from a stranger can be wrong, and cannot run code: tensors and
JSON are all that is read. See :func:`save` for the layout.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor, nn

from healthgym_utils.schema import Schema

FORMAT = "healthgym-checkpoint"
FORMAT_VERSION = 1
LONGEST = 800  # characters of an error; a file may hold a text without end
T = TypeVar("T")


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says why.

    It may quote the file, so that it is cut, and holds no character that a
    terminal would obey.
    """

    def __init__(self, message: str) -> None:
        half = LONGEST // 2
        if len(message) > LONGEST:
            message = f"{message[:half]} [...] {message[-half:]}"
        text = "".join(
            c if c.isprintable() else ascii(c)[1:-1] for c in message
        )
        super().__init__(text)


def save(
    path: str | os.PathLike, tensors: dict[str, Tensor], header: dict[str, Any]
) -> None:
    """Write tensors and a header to one file, atomically.

    The file is written beside its place, flushed to the disk, and moved
    over the old one. A kill at any moment leaves the old file or the new
    one, never half of either; and at most a hidden file beside it, with a
    name of its own, which may be deleted.

    Parameters
    ----------
    path : path
        Where to, such as ``"v1.safetensors"``.
    tensors : dict of str to Tensor
        Weights, optimiser moments, states of random generators.
    header : dict
        JSON types only: schema, settings, seed, epoch, history. The
        versions of the format and of the package are added.

    Raises
    ------
    OSError
        If there is no room, or no right to write; an old file is as before.
    TypeError
        If the header holds what JSON has not.
    """
    # What a link leads to is replaced, and not the link.
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    versions = {
        "format_version": FORMAT_VERSION,
        "package_version": version("healthgym-utils"),
    }
    try:
        text = json.dumps(header | versions)
    except TypeError as error:
        raise TypeError(
            f"{path}: provenance and all else in a header are of JSON types, "
            f"such as int(...) of a NumPy number ({error})"
        ) from None
    whole = {k: t.detach().cpu().contiguous() for k, t in tensors.items()}
    content = save_bytes(whole, {"format": FORMAT, "header": text})
    try:
        # Not by save_file, whose files nobody else may read.
        with open(partial, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if path.exists():
            shutil.copymode(path, partial)
        os.replace(partial, path)
    except OSError as error:
        raise OSError(
            f"{path}: this checkpoint cannot be saved ({error}). A file that "
            "was there is as before. Make room on the disk, or save into "
            "another folder"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()


def read_header(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint's header without its tensors.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated, foreign, or of a newer format.
    """
    with _refusing(path), safetensors.safe_open(path, "pt") as stream:
        metadata = stream.metadata()
    return _header(path, metadata or {})


def load(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and header; raises as :func:`read_header` does."""
    read_header(path)  # before all of a large file that is none of ours
    with _refusing(path):
        # At once, for a training may be saving over it: safe_open opens a
        # file twice, and could pair one epoch's header and another's tensors.
        content = Path(path).read_bytes()
        tensors = load_bytes(content)
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size]).get("__metadata__")
    return tensors, _header(path, metadata or {})


@contextmanager
def _refusing(path: str | os.PathLike) -> Iterator[None]:
    """Refuse whatever cannot be read as a safetensors file."""
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: there is no such file")
    try:
        yield
    except Exception as error:  # sizes past 64 bits are no SafetensorError
        why = str(error).partition("\n")[0]  # PyTorch adds a stack trace
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({why}); it may have "
            "been cut short: copy or download it again"
        ) from None


def _header(
    path: str | os.PathLike, metadata: dict[str, str]
) -> dict[str, Any]:
    """Read our header, refusing a foreign, damaged or newer one."""
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: a safetensors file, but no checkpoint of this package"
        )
    try:
        header = json.loads(metadata["header"])
        format_version = header["format_version"]
        if isinstance(format_version, int) and format_version < 1:
            raise ValueError
    except (KeyError, TypeError, ValueError, RecursionError):
        raise CheckpointError(
            f"{path}: its header is damaged; copy or download it again"
        ) from None
    if format_version not in range(1, FORMAT_VERSION + 1):
        raise CheckpointError(
            f"{path}: format {format_version!r} is newer than this package "
            f"can read ({FORMAT_VERSION}); update healthgym-utils"
        )
    return header


@contextmanager
def rebuilding(path: str | os.PathLike) -> Iterator[None]:
    """Refuse a header or tensors of which no model can be made.

    Parameters
    ----------
    path : path
        For the message.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        why = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path}: no model can be rebuilt from it: its header or its "
            f"tensors are damaged ({type(error).__name__}: {why})"
        ) from error


def settings_of(
    path: str | os.PathLike, header: dict[str, Any], kind: type[T]
) -> T:
    """Rebuild the settings that a model was trained with, all of them.

    Parameters
    ----------
    path : path
        For the message.
    header : dict
        As :func:`read_header` returns it.
    kind : type
        The dataclass of the settings.

    Raises
    ------
    CheckpointError
        If a setting lacks or is unknown, as in a file of another version of
        the package: today's default may not be what the model learned with.
    """
    stored = header["settings"]
    names = {field.name for field in fields(kind)}
    faults = [
        f"{what} {', '.join(sorted(differing))}"
        for what, differing in [
            ("lack", names - {*stored}),
            ("know", {*stored} - names),
        ]
        if differing
    ]
    if faults:
        raise CheckpointError(
            f"{path}: its settings {' and '.join(faults)}, unlike those of "
            f"this package; load it with healthgym-utils "
            f"{header['package_version']}, which saved it"
        )
    return kind(**stored)


def check_weights(
    path: str | os.PathLike,
    name: str,
    make: Callable[[], nn.Module],
    weights: Mapping[str, Tensor],
) -> None:
    """Refuse weights that a network could not use, before it is made.

    A damaged header can ask for a network larger than memory, and making it
    would then end the process. So its shapes are found on PyTorch's meta
    device, which holds no numbers.

    Parameters
    ----------
    path : path
        For the message.
    name : str
        Of the network, for the message.
    make : callable
        Makes the network.
    weights : dict of str to Tensor
        What the file has for it.

    Raises
    ------
    CheckpointError
        Naming a tensor that lacks, is unknown, has another shape or type, or
        is not finite.
    """
    with torch.device("meta"):
        state = make().state_dict()
    wanted, stored = (
        {key: list(tensor.shape) for key, tensor in tensors.items()}
        for tensors in (state, weights)
    )
    for key in [*wanted, *stored]:
        if wanted.get(key) != stored.get(key):
            raise CheckpointError(
                f"{path}: its {name} is of another architecture: shape of "
                f"{key}: {stored.get(key)} in the file, {wanted.get(key)} by "
                "its settings"
            )
        tensor = weights[key]
        halves = [torch.float16] * state[key].is_floating_point()
        check_tensor(path, f"{name}.{key}", tensor, state[key].dtype, *halves)


def check_tensor(
    path: str | os.PathLike, name: str, tensor: Tensor, *dtypes: torch.dtype
) -> None:
    """Refuse a tensor of another type than those, or that is not finite.

    Raises
    ------
    CheckpointError
        Naming the tensor.
    """
    if tensor.dtype not in dtypes:
        raise CheckpointError(
            f"{path}: {name} is of {tensor.dtype}, and {dtypes[0]} is needed; "
            "the file is damaged"
        )
    if not tensor.isfinite().all():
        raise CheckpointError(
            f"{path}: {name} is not finite: the training diverged, or the "
            "file is damaged"
        )


def check(
    path: str | os.PathLike,
    header: dict[str, Any],
    model: str,
    schema: Schema,
    needed: set[str],
) -> None:
    """Refuse a checkpoint of another model or schema, or one that lacks facts.

    Parameters
    ----------
    path : path
        For the message.
    header : dict
        As :func:`read_header` returns it.
    model : str
        Name of the class that is to be rebuilt.
    schema : Schema
        What the caller expects the columns to mean.
    needed : set of str
        Keys that the header has to have.

    Raises
    ------
    CheckpointError
        Naming the keys that lack, or the feature that differs first.
    """
    if header.get("model") != model:
        raise CheckpointError(
            f"{path}: holds a {header.get('model')}, not a {model}"
        )
    missing = needed - header.keys()
    if missing:
        raise CheckpointError(
            f"{path}: its header lacks {', '.join(sorted(missing))}"
        )
    try:
        saved = Schema.from_dict(header["schema"])
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: its schema is damaged ({error})"
        ) from None
    if saved == schema:
        return
    pairs = zip(saved, schema, strict=False)
    differing = [theirs.name for theirs, ours in pairs if theirs != ours]
    what = differing[0] if differing else "the number of features"
    raise CheckpointError(
        f"{path}: was trained with another schema, {saved.name!r}: "
        f"{what} differs from {schema.name!r}"
    )
