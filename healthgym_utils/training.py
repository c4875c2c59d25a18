"""What the trainers share: data they know again, and a state to resume."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from healthgym_utils.sequences import RandomWindows

Loaders = Mapping[int, DataLoader]
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
        If the model was trained on other data.
    """
    fingerprint = fingerprint_of(loaders)
    if model.fingerprint and fingerprint != model.fingerprint:
        raise ValueError(
            f"this model was trained for {model.epoch} epochs on other "
            "data; resume with the same patients, lengths and "
            "preprocessing, or start a new model"
        )
    model.fingerprint = fingerprint
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


def load_resumable(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`resumable_tensors` collected."""
    model.random.set_state(tensors["random"])
    model.loader_states = {
        int(length): state for length, state in part(tensors, "loader").items()
    }
    for name, adam in model.adams.items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in part(tensors, f"adam.{name}").items():
            index, _, moment = key.partition(".")
            state.setdefault(int(index), {})[moment] = value
        adam.load_state_dict(adam.state_dict() | {"state": state})


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
    """Put back what :func:`header_of` described."""
    model.epoch = header["epoch"]
    model.seconds = header["seconds"]
    model.fingerprint = header["fingerprint"]
    model.provenance = header["provenance"]
    columns = header["history"]
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
