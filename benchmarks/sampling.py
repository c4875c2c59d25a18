"""Measure quality against sampling steps, for the trained v3 of this book.

    python benchmarks/sampling.py [--seeds 42 7 3]

Samples each seed's model, which tools/train.py left in _build/training, with
few and with many steps, ancestral and by DDIM, and puts every sample on the
scoreboard. Each result is added to healthgym_utils/results/sampling_v3.csv at
once; a run that was interrupted goes on. ``make sampling`` runs it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pandas as pd
import torch
from ablation import PATIENTS, SCHEMA, Data, circumstances, extended, write

import healthgym_utils as hg
from healthgym_utils import pretrained

EPOCHS = 250
STEPS = (20, 50, 100, 250, 500)
FOLDER = Path(__file__).resolve().parents[1] / "_build" / "training"
KEYS = ["seed", "sampler", "steps"]


def measure(
    model: hg.Diffusion, sampler: str, steps: int, data: Data
) -> pd.DataFrame:
    """Sample as many patients as were held out, and compare."""
    started = time.process_time()
    rows = model.sample(
        PATIENTS, data.x.shape[1], steps=steps, sampler=sampler
    )
    seconds = time.process_time() - started
    fake = data.prep.inverse_transform(rows)
    values = data.figures(fake)
    return pd.DataFrame(
        {
            "seed": model.settings.seed,
            "sampler": sampler,
            "steps": steps,
            "cpu_seconds": round(seconds, 1),
            "figure": values.index,
            "value": values.to_numpy().round(5),
        }
    )


def conduct(seeds: list[int], folder: Path) -> pd.DataFrame:
    """Measure what still lacks, and return the whole table."""
    path = folder / "sampling_v3.csv"
    table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=KEYS)
    done = set(table[KEYS].itertuples(index=False, name=None))
    note = circumstances() | {"model": f"v3-{EPOCHS}"}
    write(path.with_suffix(".json"), json.dumps(note, indent=2) + "\n")
    data = Data.load()
    for seed in seeds:
        trained = FOLDER / f"v3-{EPOCHS}-seed{seed}.safetensors"
        model = pretrained.rebuild(trained, SCHEMA, torch.device("cpu"))
        for sampler in ("ddpm", "ddim"):
            for steps in STEPS:
                if (seed, sampler, steps) in done:
                    continue
                found = measure(model, sampler, steps, data)
                table = extended(table, found)
                write(path, table.to_csv(index=False))
                print(f"seed {seed}, {sampler}, {steps} steps", flush=True)
    return table


def main() -> None:
    """Parse the command line, run, and print the switch rates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 7, 3])
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = conduct(options.seeds, pretrained.RESULTS)
    switch = table[table["figure"] == "switch rate"]
    print(switch.pivot_table("value", "steps", "sampler").round(3))


if __name__ == "__main__":
    main()
