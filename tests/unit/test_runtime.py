"""Seeds reproduce, and the runtime knows where it is."""

import random
import sys
import types

import numpy as np
import pytest
import torch

from healthgym_utils.runtime import (
    get_device,
    in_colab,
    progress,
    seed_everything,
)


def test_seeds_reproduce_everything():
    def draw():
        seed_everything(7)
        legacy = np.random.rand()  # noqa: NPY002
        return random.random(), legacy, torch.rand(3).tolist()

    assert draw() == draw()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(ValueError, match="a seed is 0 to"):
        seed_everything(seed)


def test_device_is_usable():
    assert torch.zeros(2, device=get_device()).sum().item() == 0


def test_colab_is_told_apart(monkeypatch):
    assert not in_colab()
    google = types.ModuleType("google")
    google.__path__ = []
    monkeypatch.setitem(sys.modules, "google", google)
    assert not in_colab()
    colab = types.ModuleType("google.colab")
    colab.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    assert in_colab()


def test_progress_passes_everything_through():
    assert list(progress(range(4), "counting")) == [0, 1, 2, 3]
