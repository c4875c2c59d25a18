"""Keep a sample of the published v3, which takes too long for a notebook.

    python benchmarks/published_sample.py

Draws 300 patients with 500 steps and the published filter, from the weights
that come with the package, and writes them to healthgym_utils/results, labs
to four digits and classes as codes, to be read by ``hg.load_results``. It is
the sample behind ``fidelity_v3-published.csv``. Takes some ten minutes.
"""

from __future__ import annotations

import json
import time

import pandas as pd
import torch
from ablation import CPU, PATIENTS, SCHEMA, Data, circumstances, write

import healthgym_utils as hg
from healthgym_utils import pretrained
from healthgym_utils.guardrails import sample_accepted

MODEL = "v3-published-1000"
NAME = "sample_v3-published"


def coded(table: pd.DataFrame) -> pd.DataFrame:
    """Write labs to four digits, and classes as their place in the schema."""
    columns = {name: table[name] for name in SCHEMA.ids}
    for feature in SCHEMA:
        column = table[feature.name]
        columns[feature.name] = (
            column.map(lambda value: float(f"{value:.4g}"))
            if feature.is_real
            else pd.Index(feature.classes).get_indexer(column)
        )
    return pd.DataFrame(columns)


def main() -> None:
    """Sample, and write the table with what it was made with."""
    torch.set_num_threads(1)
    data = Data.load()
    model = hg.load_pretrained(MODEL, device=CPU)
    started = time.process_time()
    rows, report = sample_accepted(model, PATIENTS, data.x.shape[1])
    note = circumstances() | {
        "model": MODEL,
        "sampling_steps": model.settings.sampling_steps,
        "seed": 0,
        "cpu_seconds": round(time.process_time() - started),
        "filter": str(report),
    }
    path = pretrained.RESULTS / f"{NAME}.csv"
    table = coded(data.prep.inverse_transform(rows))
    write(path.with_suffix(".json"), json.dumps(note, indent=2) + "\n")
    write(path, table.to_csv(index=False))
    print(f"{path.name}: {report}")


if __name__ == "__main__":
    main()
