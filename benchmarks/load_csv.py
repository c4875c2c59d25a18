"""Measure time and peak memory of loading a large CSV file.

    python benchmarks/load_csv.py [--rows 10000000] [--path FILE]

Loads a file that is given, or writes one of that many rows first, for as long
as it takes. ``make bench BENCH=load_csv`` runs it. Prints JSON: what the
process held at most while it loaded, less what it held before, is
``bytes_a_row`` for each row of the file.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import sys
import tempfile
import time
from pathlib import Path

from healthgym_utils.data import FIRST_CODE, load_art
from healthgym_utils.simulate import simulate_art

PATIENTS, MONTHS = 1000, 60  # that are simulated, and then repeated


def write_csv(path: Path, rows: int) -> None:
    """Write simulated patients as raw codes, in all so many rows.

    The same thousand patients come again and again under new numbers.
    """
    table = simulate_art(PATIENTS)
    for column in table.select_dtypes("category"):
        codes = table[column].cat.codes + FIRST_CODE.get(column, 0)
        table[column] = codes.astype(float)
    flags = table.select_dtypes("bool").columns
    table[flags] = table[flags].astype(float)
    values = table.drop(columns=["PatientID", "Timestep"])
    header, *lines = values.to_csv(index=False).splitlines()
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{header},PatientID,Timestep\n")
        for row in range(rows):
            patient, month = divmod(row, MONTHS)
            line = lines[row % len(lines)]
            file.write(f"{line},{patient},{month}\n")


def peak() -> int:
    """Bytes that this process has held at most so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # On Linux, what getrusage says starts at what the process had that
        # forked this one: a large test run would hide all that comes.
        kilobytes = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]
        return int(kilobytes) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(path: Path) -> dict[str, float]:
    """Load a file once."""
    before, started = peak(), time.perf_counter()
    table = load_art(path)
    return {
        "rows": len(table),
        "seconds": round(time.perf_counter() - started, 1),
        "peak_gib": round(peak() / 2**30, 2),
        "bytes_a_row": round((peak() - before) / len(table)),
    }


def main() -> None:
    """Parse the command line, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--path", type=Path)
    options = parser.parse_args()
    if options.path:
        print(json.dumps(measure(options.path)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.csv"
        write_csv(path, options.rows)
        print(json.dumps(measure(path)))


if __name__ == "__main__":
    main()
