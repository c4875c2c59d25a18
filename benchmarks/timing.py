"""Time several ways of doing one thing in one process, by turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np


def by_turns(
    ways: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, np.ndarray]:
    """Seconds of each way, round by round; a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: np.array(times) for name, times in seconds.items()}


def report(what: str, literal: np.ndarray, ours: np.ndarray) -> None:
    """Print medians, and the ratio with its spread over the rounds."""
    ratios = literal / ours
    print(
        f"{what}: {np.median(literal):.3f} s and {np.median(ours):.3f} s, "
        f"ratio {np.median(ratios):.2f} "
        f"({ratios.min():.2f} to {ratios.max():.2f})"
    )
