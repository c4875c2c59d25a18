"""What comes with the package: trained models, and results of experiments."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from healthgym_utils import checkpoint, training
from healthgym_utils.diffusion import Diffusion, DiffusionSettings
from healthgym_utils.gan import WGANGP, Settings, TransformerGenerator
from healthgym_utils.memory import LatentMemory
from healthgym_utils.runtime import check_choice
from healthgym_utils.schema import ART_SCHEMA, Schema

Model = WGANGP | Diffusion
GENERATIONS = ("v1", "v2", "v2.5", "v3", "v3-published")
FOLDER = Path(__file__).parent / "checkpoints"
RESULTS = Path(__file__).parent / "results"


def load_pretrained(
    name: str,
    schema: Schema = ART_SCHEMA,
    device: torch.device | None = None,
) -> Model:
    """Load a trained model that comes with the package.

    All were trained on simulated patients, none on the published cohort.
    The card beside each file, ``checkpoints/<name>.md``, says how, at what
    cost, and how good it is.

    Parameters
    ----------
    name : str
        Such as ``"v1-200"``: the generation, and its epochs of training.
    schema : Schema
        What the caller expects the columns to mean.
    device : torch.device, optional
        The fastest at hand if not given.

    Returns
    -------
    WGANGP or Diffusion
        With its history; weights in half precision on disk, float32 here.

    Raises
    ------
    ValueError
        If there is no such model; the message lists those there are.
    """
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        names = ", ".join(trained_names())
        raise ValueError(
            f"there is no trained model {name!r}; there are {names}"
        )
    return rebuild(path, schema, device)


def trained_names() -> list[str]:
    """Name the models that :func:`load_pretrained` can load, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def untrained(name: str, seed: int = 42, bf16: bool = False) -> Model:
    """Build a generation as it comes with the package, before training.

    Parameters
    ----------
    name : {"v1", "v2", "v2.5", "v3", "v3-published"}
        v2 is v1 with a latent memory, v2.5 has a transformer as well, and v3
        is the diffusion model, with this book's settings or the published.
    seed : int
        Of the weights and of every draw in training.
    bf16 : bool
        Whether to train in bfloat16; v3 does so by itself where it pays.
    """
    check_choice("name", name, GENERATIONS)
    if name == "v3":
        settings = DiffusionSettings(seed=seed, bf16=bf16 or None)
        return Diffusion(ART_SCHEMA, settings)
    if name == "v3-published":
        return Diffusion.published(ART_SCHEMA, seed=seed, bf16=bf16 or None)
    generator = memory = None
    torch.manual_seed(seed)
    if name != "v1":
        memory = LatentMemory(ART_SCHEMA)
    if name == "v2.5":
        generator = TransformerGenerator(ART_SCHEMA)
    settings = Settings(seed=seed, bf16=bf16)
    return WGANGP(ART_SCHEMA, generator, settings, memory=memory)


def load_results(name: str) -> pd.DataFrame:
    """Load the table of an experiment that took too long for a notebook.

    Parameters
    ----------
    name : str
        Such as ``"ablation_memory"``. The command that made it, and with
        what, is in ``results/<name>.json`` beside it or on a model's card.

    Returns
    -------
    DataFrame
        One row a measured value; what it was made with, if that is noted,
        in ``attrs["provenance"]``.

    Raises
    ------
    ValueError
        If there is no such table; the message lists those there are.
    """
    path = RESULTS / f"{name}.csv"
    if not path.is_file():
        names = sorted(p.stem for p in RESULTS.glob("*.csv"))
        raise ValueError(
            f"there are no results {name!r}; there are {', '.join(names)}"
        )
    table = pd.read_csv(path)
    note = path.with_suffix(".json")
    if note.is_file():
        table.attrs["provenance"] = json.loads(note.read_text("utf-8"))
    return table


def rebuild(
    path: str | os.PathLike,
    schema: Schema,
    device: torch.device | None = None,
) -> Model:
    """Load a model of any generation, with the parts its header names.

    Parameters
    ----------
    path : path
        A checkpoint, of the package or of one's own.
    schema : Schema
    device : torch.device, optional

    Raises
    ------
    CheckpointError
        As :meth:`WGANGP.load` and :meth:`Diffusion.load` do, which take
        parts of one's own, too.
    """
    header = checkpoint.read_header(path)
    if header.get("model") == Diffusion.__name__:
        return Diffusion.load(path, schema, device)
    generator = memory = None
    if header.get("generator") == TransformerGenerator.__name__:
        generator = TransformerGenerator(schema)
    if header.get("memory"):
        with checkpoint.rebuilding(path):
            make = partial(LatentMemory, schema, **header["memory"])
            weights = training.part(checkpoint.load(path)[0], "memory")
            checkpoint.check_weights(path, "memory", make, weights)
            memory = make()
    return WGANGP.load(path, schema, generator, device, memory)
