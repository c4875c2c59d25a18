"""Train a public peer, mostlyai ARGN, on the patients of this book's models.

    python benchmarks/peer_argn.py train.csv peer.csv --seed 1

Needs `mostlyai-engine` (Apache-2.0), which this project does not depend on:
run it in an environment of its own, and give the result to the scoreboard.
The training table is `hg.load_art("simulated", 300).to_csv("train.csv",
index=False)`. Gender and Ethnic come from a model of the patients, all else
from a sequential model with them as its context; settings are the engine's
defaults, and rare classes are drawn, not starred out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import mostlyai.engine as engine
import pandas as pd
import torch

PATIENT, MONTH = "PatientID", "Timestep"
STATICS = ["Gender", "Ethnic"]


def fitted(folder: Path, table: pd.DataFrame, **keys: object) -> None:
    """Train with the defaults, in a folder of its own."""
    folder.mkdir()
    engine.split(table, model_type="TABULAR", workspace_dir=folder, **keys)
    engine.analyze(workspace_dir=folder)
    engine.encode(workspace_dir=folder)
    engine.train(workspace_dir=folder, device="cpu")


def sampled(folder: Path, **what: object) -> pd.DataFrame:
    """Draw from what was trained."""
    engine.generate(
        workspace_dir=folder,
        device="cpu",
        rare_category_replacement_method="SAMPLE",
        **what,
    )
    return pd.read_parquet(folder / "SyntheticData")


def synthesise(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Train on a tidy table, and return one with as many patients."""
    people = table.groupby(PATIENT, as_index=False)[STATICS].first()
    months = table.drop(columns=[*STATICS, MONTH])
    started = time.process_time()
    fitted(folder / "people", people, tgt_primary_key=PATIENT)
    fitted(
        folder / "months",
        months,
        ctx_data=people,
        ctx_primary_key=PATIENT,
        tgt_context_key=PATIENT,
    )
    print(f"training: {time.process_time() - started:.0f} s")
    who = sampled(folder / "people", sample_size=len(people))
    fake = sampled(folder / "months", ctx_data=who)
    fake[MONTH] = fake.groupby(PATIENT).cumcount()
    fake = fake.merge(who, on=PATIENT)
    fake[PATIENT] = fake[PATIENT].astype("category").cat.codes
    return fake[table.columns].sort_values([PATIENT, MONTH])


def main() -> None:
    """Parse the command line, train, and write the synthetic table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine.set_random_state(options.seed)
    flags = ["VL_M", "CD4_M", "Drug_M"]
    table = pd.read_csv(options.train)
    table = table.astype(dict.fromkeys({*flags} & {*table.columns}, str))
    with tempfile.TemporaryDirectory() as folder:
        synthesise(table, Path(folder)).to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
