"""Where a notebook runs: seeds, device, budgets and progress."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from collections.abc import Iterable
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
from tqdm.auto import tqdm


def in_colab() -> bool:
    """Whether this Python runs in Google Colab."""
    try:
        return importlib.util.find_spec("google.colab") is not None
    except ModuleNotFoundError:  # not even the parent package is there
        return False


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators.

    Raises
    ------
    ValueError
        If the seed is not in 0 to 2**32 - 1, the range NumPy takes.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"a seed is 0 to 2**32 - 1, got {seed}")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (libraries still draw from it)
    torch.manual_seed(seed)


def get_device() -> torch.device:
    """Return the fastest device at hand: CUDA, then MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def progress(steps: Iterable, description: str, unit: str = "step") -> tqdm:
    """Show a progress bar that is gone once the loop is done.

    Set the environment variable ``TQDM_DISABLE=1`` to switch bars off, as is
    done when the outputs of the book are made.

    Parameters
    ----------
    steps : iterable
        What to loop over.
    description : str
        What the loop does, in front of the bar.
    unit : str
        What one step is called.
    """
    # The notebook flavour of tqdm does not read the variable by itself.
    disable = os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
    return tqdm(
        steps, desc=description, unit=unit, leave=False, disable=disable
    )


def check_fields(settings: Any) -> None:
    """Refuse a field of a dataclass of another type than it is declared.

    Whole numbers do where any number does.

    Raises
    ------
    ValueError
        Naming the field; also if a number is not finite.
    """
    for name, hint in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        kinds = get_args(hint) or (hint,)
        if isinstance(value, bool):  # which is an int to Python
            fits = bool in kinds
        elif isinstance(value, int) and float in kinds:
            fits = True
        else:
            fits = isinstance(value, kinds)
        if not fits:
            names = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{name} is {names}, got {value!r}")
        largest = sys.float_info.max  # NaN is not between, either
        number = float in kinds and value is not None
        if number and not -largest <= value <= largest:
            raise ValueError(f"{name} is finite, got {value}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices.

    Raises
    ------
    ValueError
        Naming the argument, the choices and the value.
    """
    if value not in choices:
        raise ValueError(f"{name} is one of {choices}, got {value!r}")
