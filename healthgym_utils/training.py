"""What the trainers share: data they know again, and a state to resume."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from healthgym_utils import checkpoint
from healthgym_utils.sequences import RandomWindows

Loaders = Mapping[int, DataLoader]
MAX_EPOCHS = 10**9  # more are damage
# What the header of a checkpoint says of a training.
PROGRESS = {
    "settings",
    "epoch",
    "seconds",
    "fingerprint",
    "provenance",
    "history",
}


def sequences_of(loader: DataLoader) -> Tensor:
    """Return what a loader draws from, in the order of its patients."""
    data = loader.dataset
    return data.x if isinstance(data, RandomWindows) else data.tensors[0]


def length_of(loader: DataLoader) -> int:
    """Months of the sequences that a loader serves."""
    data = loader.dataset
    if isinstance(data, RandomWindows):
        return data.length
    return data.tensors[0].shape[1]


def fingerprint_of(loaders: Loaders) -> str:
    """Hash lessons and the longest one's data, so that mix-ups are found."""
    digest = hashlib.sha256(repr(sorted(loaders)).encode())
    longest = loaders[max(loaders)]
    digest.update(sequences_of(longest).contiguous().numpy().tobytes())
    return digest.hexdigest()


def continue_loaders(model: Any, loaders: Loaders) -> None:
    """Take up the loaders where a model's last epoch left them.

    Parameters
    ----------
    model : WGANGP or Diffusion
        Its ``fingerprint`` is set, or compared; its ``loader_states`` are
        given to the loaders.
    loaders : dict of int to DataLoader

    Raises
    ------
    ValueError
        If the model was trained on other data, or in other lessons.
    """
    fingerprint = fingerprint_of(loaders)
    if model.fingerprint and fingerprint != model.fingerprint:
        raise ValueError(
            f"this model was trained for {model.epoch} epochs on other "
            "data; resume with the same patients, lengths and "
            "preprocessing, or start a new model"
        )
    model.fingerprint = fingerprint
    if not {*model.loader_states} <= {*loaders}:
        raise ValueError(
            f"this model stopped in lessons of {sorted(model.loader_states)} "
            f"months, and is to go on with {sorted(loaders)}"
        )
    for length, state in model.loader_states.items():
        loaders[length].generator.set_state(state)


def states_of(loaders: Loaders) -> dict[int, Tensor]:
    """Note where the loaders are, for :func:`continue_loaders`."""
    return {
        length: loader.generator.get_state()
        for length, loader in loaders.items()
    }


def resumable_tensors(model: Any) -> dict[str, Tensor]:
    """Collect what only resuming needs, under flat names.

    Random state, the loaders' states, and the moments of each optimiser in
    ``model.adams``.
    """
    tensors = {"random": model.random.get_state()}
    for length, state in model.loader_states.items():
        tensors[f"loader.{length}"] = state
    for name, adam in model.adams.items():
        for index, state in adam.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"adam.{name}.{index}.{key}"] = value
    return tensors


def load_resumable(
    path: str | os.PathLike, model: Any, tensors: Mapping[str, Tensor]
) -> None:
    """Put back what :func:`resumable_tensors` collected.

    Raises
    ------
    ValueError
        If a state does not fit the model.
    """
    model.random.set_state(tensors["random"])
    model.loader_states = {
        int(length): state for length, state in part(tensors, "loader").items()
    }
    for state in model.loader_states.values():
        torch.Generator().set_state(state)  # which refuses what is none
    for name, adam in model.adams.items():
        (group,) = adam.param_groups
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in part(tensors, f"adam.{name}").items():
            index, _, moment = key.partition(".")
            state.setdefault(int(index), {})[moment] = value
        for index, moments in state.items():
            place = f"adam.{name}.{index}"
            weight = group["params"][index]
            check_moments(path, place, weight, moments)
        adam.load_state_dict(adam.state_dict() | {"state": state})


def check_moments(
    path: str | os.PathLike,
    name: str,
    weight: Tensor,
    moments: Mapping[str, Tensor],
) -> None:
    """Refuse a state that Adam could not use.

    Its fused steps take sizes from the weight, and would read and write past
    the end of a moment that is smaller.

    Raises
    ------
    ValueError
        Naming what lacks, or whose shape differs.
    """
    shapes = {
        "step": (),
        "exp_avg": tuple(weight.shape),
        "exp_avg_sq": tuple(weight.shape),
    }
    found = {key: tuple(moment.shape) for key, moment in moments.items()}
    if found != shapes:
        raise ValueError(f"{name} has shapes {found}, not {shapes}")
    for key, moment in moments.items():
        checkpoint.check_tensor(path, f"{name}.{key}", moment, torch.float32)
        if key != "exp_avg" and (moment < 0).any():
            raise ValueError(f"{name}.{key} is below 0")


def header_of(model: Any) -> dict[str, Any]:
    """Describe a model and how far its training is, in JSON types."""
    history = model.history
    names = history[0] if history else {}
    return {
        "model": type(model).__name__,
        "schema": model.schema.to_dict(),
        "settings": asdict(model.settings),
        "epoch": model.epoch,
        "seconds": model.seconds,
        "fingerprint": model.fingerprint,
        "provenance": model.provenance,
        # Columns, not records, which would repeat the names.
        "history": {n: [record[n] for record in history] for n in names},
    }


def load_progress(model: Any, header: Mapping[str, Any]) -> None:
    """Put back what :func:`header_of` described.

    Raises
    ------
    ValueError
        Naming what is of another kind.
    """
    kinds = {
        "epoch": {int},
        "seconds": {int, float},
        "fingerprint": {str},
        "provenance": {dict},
        "history": {dict},
        "weights_only": {bool},
    }
    for name, known in kinds.items():
        value = header[name]
        if type(value) not in known:  # a bool would be an instance of int
            raise ValueError(f"{name} is {value!r}")
    if not 0 <= header["epoch"] <= MAX_EPOCHS:
        raise ValueError(f"epoch is {header['epoch']}")
    if not 0 <= header["seconds"] < math.inf:
        raise ValueError(f"seconds is {header['seconds']}")
    columns = header["history"]
    for name, values in columns.items():
        # Losses of a training that diverged are NaN, and a result, too.
        if not all(isinstance(v, (int, float)) for v in values):
            raise ValueError(f"history has {name} that are no numbers")
    model.epoch = header["epoch"]
    model.seconds = header["seconds"]
    model.fingerprint = header["fingerprint"]
    model.provenance = header["provenance"]
    rows = zip(*columns.values(), strict=True)
    model.history = [dict(zip(columns, row, strict=True)) for row in rows]


def part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Pick the tensors under a name, without it."""
    start = f"{name}."
    return {
        key.removeprefix(start): value
        for key, value in tensors.items()
        if key.startswith(start)
    }
