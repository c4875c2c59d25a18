"""Compare all generations after the same processor time of training.

    python benchmarks/same_time.py [--seeds 42 7 3] [--seconds 120]

Trains v1, v2 and v2.5 with their settings, on the patients and lessons of
tools/train.py, until the time is up, whole epochs only; v3 gets as many epochs
as leave the time that calibration takes. Processor time of one thread is what
the clock of a quiet machine shows, and other work does not blur it. Each
result is added to healthgym_utils/results/same_time.csv at once; a run that
was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import pandas as pd
import torch
from ablation import PATIENTS, Data, circumstances, extended, rows_of, write

from healthgym_utils import pretrained

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from train import MILESTONES, loaders_of

MODELS = ("v1", "v2", "v2.5", "v3")
KEYS = ["variant", "seed"]


def trained(
    name: str, seed: int, seconds: float, data: Data
) -> tuple[pretrained.Model, float]:
    """Train one generation until the time is up, and say what it took."""
    model = pretrained.untrained(name, seed)
    loaders = loaders_of(name, data.x, seed)
    started = time.process_time()
    if name == "v3":
        model.fit(loaders, MILESTONES[name][-1])
        model.calibrate(data.x)
        return model, time.process_time() - started
    taken = longest = 0.0
    while taken + longest < seconds:
        model.fit(loaders, model.epoch + 1)
        before, taken = taken, time.process_time() - started
        longest = max(longest, taken - before)
    return model, taken


def conduct(seeds: list[int], seconds: float, folder: Path) -> pd.DataFrame:
    """Measure what still lacks, and return the whole table."""
    path = folder / "same_time.csv"
    table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=KEYS)
    done = set(table[KEYS].itertuples(index=False, name=None))
    note = circumstances() | {"seconds": seconds}
    write(path.with_suffix(".json"), json.dumps(note, indent=2) + "\n")
    data = Data.load()
    for seed in seeds:
        for name in MODELS:
            if (name, seed) in done:
                continue
            model, taken = trained(name, seed, seconds, data)
            fake = data.prep.inverse_transform(
                model.sample(PATIENTS, data.x.shape[1])
            )
            found = rows_of(data.figures(fake), name, model, taken)
            table = extended(table, found)
            write(path, table.to_csv(index=False))
            print(f"{name}, seed {seed}: {taken:.0f} s", flush=True)
    return table


def main() -> None:
    """Parse the command line, run, and print the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 7, 3])
    parser.add_argument("--seconds", type=float, default=120.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = conduct(options.seeds, options.seconds, pretrained.RESULTS)
    print(table.pivot_table("value", "figure", "variant", sort=False).round(3))


if __name__ == "__main__":
    main()
