"""Measure v3 on several processes and from Parquet, and plan for more.

    python benchmarks/scaling.py [--patients 1024] [--rounds 3] [--write]

Trains and streams in processes of their own, by turns, on a simulated cohort
that is written to a temporary folder, and prints two tables: what was
measured, and what follows for 5 million patients under the assumptions that
are constants below. With --write they are put into book/growing.md.

Processor time is what other work on the machine blurs least; it is that of
all processes together, without what starting them takes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.distributed as dist
from load_csv import peak
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import healthgym_utils as hg
from healthgym_utils.diffusion import DiffusionSettings

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from parquet_stream import (
    ParquetCohort,
    ParquetPatients,
    fit_preprocessor,
    pa,
    pq,
)
from simulated_cohort import ROOT, replaced
from train import DIFFUSION_BATCH, MILESTONES
from train import PATIENTS as SHIPPED_PATIENTS
from train_distributed import fit, prepared

PAGE = ROOT / "book" / "growing.md"
CPU = torch.device("cpu")
MONTHS = 60
GROUP = 256  # patients a row group
BATCHES = (64, 256)  # of all processes together; the first is v3's
TIMES = 8  # how much larger the larger file is
WIDTHS = (64, 256)  # of the network: ours, and the published v3's
LAYOUTS = {"1 process": 1, "2 processes": 2}  # of one thread each

# The plan. Nothing from here on was measured.
PATIENTS = 5_000_000
PLANNED_EPOCHS = 3
PLANNED_BATCH = 1024
GPU_FLOPS = 20e12  # a second, sustained, of which large GPUs promise 50 times
GPU_UPDATE = 0.015  # seconds to launch an update, without drawing for it
CORES = 16  # that read for a GPU, or that train without one
NETWORK = 10e9  # bits a second between two computers
CORE_PRICE = 0.05  # dollars an hour
GPU_PRICE = 4.00  # dollars an hour, with its cores
COPIES = 4  # of the weights in a checkpoint: they, their mean, Adam's two


class Run(NamedTuple):
    """What processes printed, a line each, and the peak of the largest.

    Each process says its own: the system counts for a new one what the one
    that started it had.
    """

    figures: list[list[float]]
    megabytes: float


def child(what: str, *arguments: str, layout: str = "") -> Run:
    """Measure in processes of their own, that their memory be their own."""
    launcher = ["-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", str(LAYOUTS.get(layout))]
    command = [*launcher * bool(layout), __file__]
    command += ["--child", what, *arguments]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "TQDM_DISABLE": "1",
    }
    done = subprocess.run(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    if done.returncode:
        raise SystemExit(f"this failed: {' '.join(command)}")
    lines = [[*map(float, line.split())] for line in done.stdout.splitlines()]
    figures = [figures for *figures, _ in lines]
    return Run(figures, max(line[-1] for line in lines) / 2**20)


def say(*figures: float) -> None:
    """Print figures and this process's peak; whole lines, for all write."""
    line = " ".join(map(str, [*figures, peak()]))
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def write_cohort(path: Path, patients: int) -> None:
    """Simulate a cohort piece by piece, a row group each."""
    writer = None
    for start in range(0, patients, GROUP):
        size = min(GROUP, patients - start)
        table = hg.simulate_art(size, MONTHS, seed=start)
        table[hg.ART_SCHEMA.patient] += start
        table = table[[*hg.ART_SCHEMA.ids, *hg.ART_SCHEMA.names]]
        arrow = pa.Table.from_pandas(table, preserve_index=False)
        writer = writer or pq.ParquetWriter(path, arrow.schema)
        writer.write_table(arrow)
    writer.close()


def train(path: str, batch: str) -> None:
    """Train one epoch, and print seconds by the clock and the processor."""
    dist.init_process_group("gloo")
    cohort = ParquetCohort([path], hg.ART_SCHEMA)
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "v3.safetensors"
        model, prep = prepared(cohort, state, CPU, seed=42)
        rank, ranks = dist.get_rank(), dist.get_world_size()
        data = ParquetPatients(cohort, prep, MONTHS, rank=rank, ranks=ranks)
        clock = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            fit(model, data, int(batch), 1, state)
    say(model.seconds, time.process_time() - clock)
    dist.destroy_process_group()


def stream(path: str) -> None:
    """Read a file once, and print the seconds that it took."""
    cohort = ParquetCohort([path], hg.ART_SCHEMA)
    prep = fit_preprocessor(cohort, GROUP)
    data = ParquetPatients(cohort, prep, MONTHS)
    started, clock = time.perf_counter(), time.process_time()
    months = sum(length for _, length in data)
    assert months == cohort.rows
    say(time.perf_counter() - started, time.process_time() - clock)


def whole(path: str) -> None:
    """Read a file as one table, and turn it into one tensor."""
    table = pd.read_parquet(path)
    prep = hg.Preprocessor(hg.ART_SCHEMA).fit(table)
    started, clock = time.perf_counter(), time.process_time()
    prep.transform(pd.read_parquet(path))
    say(time.perf_counter() - started, time.process_time() - clock)


class Draws(TorchDispatchMode):
    """Count the processor's seconds that go into random numbers."""

    seconds = 0.0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and take its time if it draws."""
        clock = time.process_time()
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.seconds += time.process_time() - clock
        return result


def drawing(settings: DiffusionSettings, x: Tensor, lengths: Tensor) -> float:
    """Processor seconds a patient that an update takes to draw."""
    model = hg.Diffusion(hg.ART_SCHEMA, settings, CPU)
    model.train_step(x, lengths)
    seconds = []
    for _ in range(5):
        with Draws() as draws:
            model.train_step(x, lengths)
        seconds.append(draws.seconds)
    return statistics.median(seconds) / len(x)


def updates(width: str) -> None:
    """Print processor seconds a patient of an update, and of its draws.

    Then those of its draws without dropout, which a GPU draws itself;
    operations a patient; and parameters.
    """
    settings = DiffusionSettings(hidden=int(width))
    model = hg.Diffusion(hg.ART_SCHEMA, settings, CPU)
    cohort = hg.simulate_art(BATCHES[0])
    x = hg.Preprocessor(hg.ART_SCHEMA).fit(cohort).transform(cohort)
    lengths = torch.full((BATCHES[0],), MONTHS)
    with FlopCounterMode(display=False) as counter:
        model.train_step(x, lengths)
    clocks = []
    for _ in range(5):
        clock = time.process_time()
        model.train_step(x, lengths)
        clocks.append(time.process_time() - clock)
    size = sum(p.numel() for p in model.network.parameters())
    seconds = statistics.median(clocks) / BATCHES[0]
    drawn = drawing(settings, x, lengths)
    noise = drawing(replace(settings, dropout=0.0), x, lengths)
    say(seconds, drawn, noise, counter.get_total_flops() / BATCHES[0], size)


CHILDREN = {
    "train": train,
    "stream": stream,
    "whole": whole,
    "updates": updates,
}


def training(path: Path, layout: str, batch: int) -> dict[str, float]:
    """Train a new model for an epoch."""
    run = child("train", str(path), str(batch), layout=layout)
    seconds, clocks = zip(*run.figures, strict=True)
    patients = pq.read_metadata(path).num_rows / MONTHS
    return {
        "patients_a_second": patients / max(seconds),
        "processor_ms": sum(clocks) / patients * 1000,
        "megabytes": run.megabytes,
    }


def reading(path: Path, way: str) -> dict[str, float]:
    """Read a file in one of two ways."""
    run = child(way, str(path))
    ((seconds, clock),) = run.figures
    rows = pq.read_metadata(path).num_rows
    return {
        "rows": rows,
        "rows_a_second": rows / seconds,
        "processor_s_a_million": clock / rows * 1e6,
        "megabytes": run.megabytes,
    }


def median(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Take the median of each figure, to four digits."""
    return {
        name: float(f"{statistics.median(r[name] for r in rounds):.4g}")
        for name in rounds[0]
    }


def measure(patients: int, rounds: int) -> dict[str, Any]:
    """Measure everything by turns; plain JSON types."""
    load = round(os.getloadavg()[1], 1)  # of others: we have not begun
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small, large = folder / "small.parquet", folder / "large.parquet"
        write_cohort(small, patients)
        write_cohort(large, TIMES * patients)
        ways = {
            f"streamed, {patients:,} patients": (small, "stream"),
            f"streamed, {TIMES * patients:,} patients": (large, "stream"),
            f"whole, {TIMES * patients:,} patients": (large, "whole"),
        }
        layouts = {
            f"{layout}, batch of {batch}": (layout, batch)
            for batch in BATCHES
            for layout in LAYOUTS
        }
        trained: dict[str, list] = {name: [] for name in layouts}
        read: dict[str, list] = {way: [] for way in ways}
        for _ in range(rounds):
            for name, (layout, batch) in layouts.items():
                trained[name].append(training(large, layout, batch))
            for way, (path, kind) in ways.items():
                read[way].append(reading(path, kind))
        table = pd.read_parquet(small)
        in_pandas = int(table.memory_usage(deep=True).sum()) / len(table)
        in_parquet = large.stat().st_size / (TIMES * len(table))
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "load": load,
        "torch": torch.__version__,
        "patients": patients,
        "rounds": rounds,
        "training": {k: median(v) for k, v in trained.items()},
        "reading": {k: median(v) for k, v in read.items()},
        "pandas_bytes_a_row": round(in_pandas, 1),
        "parquet_bytes_a_row": round(in_parquet, 1),
        "networks": {str(width): network(width) for width in WIDTHS},
    }


def network(width: int) -> dict[str, float]:
    """Take the figures of an update of a network."""
    (figures,) = child("updates", str(width)).figures
    *seconds, operations, size = figures
    names = ("processor_ms", "drawn_ms", "noise_ms")
    times = {
        name: float(f"{value * 1000:.4g}")
        for name, value in zip(names, seconds, strict=True)
    }
    counts = {"operations": int(operations), "parameters": int(size)}
    return times | counts


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Lay out a table, numbers to the right."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measured_table(measured: dict[str, Any]) -> str:
    """Show what was measured here."""
    training = [
        [
            layout,
            f"{m['patients_a_second']:,.0f}",
            f"{m['processor_ms']:.2f}",
            f"{m['megabytes']:.0f}",
        ]
        for layout, m in measured["training"].items()
    ]
    reading = [
        [
            way,
            f"{m['rows_a_second']:,.0f}",
            f"{m['processor_s_a_million']:.1f}",
            f"{m['megabytes']:.0f}",
        ]
        for way, m in measured["reading"].items()
    ]
    rounds = measured["rounds"]
    how = f"Medians of {rounds} rounds" if rounds > 1 else "One round"
    return "\n\n".join(
        [
            f"<!-- measured: {json.dumps(measured)} -->",
            f"{how}, {measured['machine']}, torch {measured['torch']}. The "
            f"load average was {measured['load']} before.",
            markdown(
                [
                    "training",
                    "patients a second",
                    "processor ms a patient",
                    "peak MB each",
                ],
                training,
            ),
            markdown(
                [
                    "reading",
                    "rows a second",
                    "processor s a million rows",
                    "peak MB",
                ],
                reading,
            ),
            _gains(measured),
        ]
    )


def _gains(measured: dict[str, Any]) -> str:
    """Say in words what two processes, and a larger file, change."""

    def change(before: float, after: float) -> str:
        return f"{100 * (after / before - 1):+.0f} %"

    def shared(name: str, batch: int) -> str:
        one, two = (
            measured["training"][f"{layout}, batch of {batch}"][name]
            for layout in LAYOUTS
        )
        return change(one, two)

    small, large = BATCHES
    few, many, _ = measured["reading"].values()
    return (
        "From one process to two, patients a second change by "
        f"{shared('patients_a_second', small)} with batches of {small}, and "
        f"by {shared('patients_a_second', large)} with batches of {large}; "
        "the processor's time a patient changes by "
        f"{shared('processor_ms', small)} and {shared('processor_ms', large)}."
        f" The streamed file grows {TIMES} times, and the peak changes by "
        f"{change(few['megabytes'], many['megabytes'])}."
    )


def planned_table(measured: dict[str, Any]) -> str:
    """Work out what the planned cohort takes."""
    rows = PATIENTS * MONTHS
    visits = PATIENTS * PLANNED_EPOCHS
    streamed = list(measured["reading"].values())[1]
    read = streamed["processor_s_a_million"] * rows / 1e6 / 3600
    tensors = rows * hg.ART_SCHEMA.width * 4 / 1e9

    def gigabytes(name: str) -> str:
        return f"{measured[name] * rows / 1e9:.1f} GB"

    updates = -(-PATIENTS // PLANNED_BATCH) * PLANNED_EPOCHS
    shipped = MILESTONES["v3"][-1]  # epochs
    shipped_updates = -(-SHIPPED_PATIENTS // DIFFUSION_BATCH) * shipped
    data = markdown(
        ["data", "size", "from"],
        [
            ["patients", f"{PATIENTS:,}", "the task"],
            ["rows", f"{rows:,}", f"{MONTHS} months each"],
            ["as Parquet", gigabytes("parquet_bytes_a_row"), "measured a row"],
            [
                "as a table",
                gigabytes("pandas_bytes_a_row"),
                "measured a row, labels as categories",
            ],
            ["as tensors", f"{tensors:.1f} GB", "22 columns, float32"],
            ["reading once", f"{read:.2f} core-hours", "measured a row"],
            ["epochs", f"{PLANNED_EPOCHS}", "**assumed**"],
            ["batch", f"{PLANNED_BATCH:,}", "**assumed**"],
            [
                "visits to a patient",
                f"{visits:,}",
                f"shipped v3: {SHIPPED_PATIENTS * shipped:,}",
            ],
            ["updates", f"{updates:,}", f"shipped v3: {shipped_updates:,}"],
        ],
    )
    plans = [plan(measured, width) for width in WIDTHS]
    networks = markdown(
        ["network", *(f"width {width}" for width in WIDTHS)],
        [[name, *(p[name] for p in plans)] for name in plans[0]],
    )
    return f"{data}\n\n{networks}\n\n{_command(read)}"


def price_of_sharing(measured: dict[str, Any]) -> float:
    """How much of the processor two processes take, against one."""
    one, two = (
        measured["training"][f"{layout}, batch of {BATCHES[-1]}"]
        for layout in LAYOUTS
    )
    return two["processor_ms"] / one["processor_ms"]


def plan(measured: dict[str, Any], width: int) -> dict[str, str]:
    """Work out what training a network on the planned cohort takes."""
    network = measured["networks"][str(width)]
    visits = PATIENTS * PLANNED_EPOCHS
    updates = -(-PATIENTS // PLANNED_BATCH) * PLANNED_EPOCHS
    streamed = list(measured["reading"].values())[1]
    # Hours of a core for all visits, as everything else without a unit.
    read = visits * MONTHS / 1e6 * streamed["processor_s_a_million"] / 3600
    train, draw, noise = (
        visits * network[name] / 1000 / 3600
        for name in ("processor_ms", "drawn_ms", "noise_ms")
    )
    # What two processes take includes two draws; each further one adds one.
    two = train * price_of_sharing(measured) + read
    cores = two + (CORES - 2) * draw
    # n * draw is half of two + (n - 2) * draw.
    half = math.ceil(two / draw - 2)
    compute = visits * network["operations"] / GPU_FLOPS / 3600
    launch = updates * GPU_UPDATE / 3600
    gpu = max(noise + max(compute, launch), read / CORES)
    size = network["parameters"] * 4  # bytes of weights, or of gradients
    # A ring of two sends all gradients once each way.
    exchange = updates * size * 8 / NETWORK / 3600
    pair = max(noise + max(compute / 2, launch) + exchange, read / CORES / 2)
    on_cpus = f"at an **assumed** USD {CORE_PRICE:.2f} a core-hour"
    on_gpu = f"at an **assumed** USD {GPU_PRICE:.2f} a GPU-hour"
    return {
        "parameters": f"{network['parameters'] / 1e6:.2f} million",
        "checkpoint": f"{size * COPIES / 1e6:.0f} MB",
        "operations a patient and update": (
            f"{network['operations'] / 1e6:,.0f} million"
        ),
        "on one core": f"{train + read:,.1f} hours",
        f"on {CORES} cores, a process each": f"{cores / CORES:.1f} hours",
        on_cpus: f"USD {cores * CORE_PRICE:,.2f}",
        "drawing takes half of the time with": f"{half} processes",
        f"on a GPU, computing at an **assumed** {GPU_FLOPS / 1e12:.0f} "
        "trillion operations a second": f"{compute * 60:.1f} minutes",
        f"on a GPU, launching at an **assumed** {GPU_UPDATE * 1000:.0f} ms an "
        "update": f"{launch * 60:.1f} minutes",
        "on a GPU, a core drawing noise": f"{noise * 60:.1f} minutes",
        f"on a GPU, {CORES} cores reading": (
            f"{read / CORES * 60:.1f} minutes"
        ),
        "on a GPU, in all": f"{gpu * 60:.1f} minutes",
        on_gpu: f"USD {gpu * GPU_PRICE:,.2f}",
        "gradients an update": f"{size / 1e6:.1f} MB",
        f"on two computers, exchanging them at an **assumed** "
        f"{NETWORK / 1e9:.0f} Gbit/s": f"{exchange * 60:.1f} minutes",
        "on two computers, a GPU each, in all": f"{pair * 60:.1f} minutes",
    }


def _command(read: float) -> str:
    """Give the planned command; read: core-hours to read the cohort once."""
    batch = BATCHES[0]
    updates = -(-PATIENTS // batch) * PLANNED_EPOCHS
    launch = updates * GPU_UPDATE / 60
    tool = "tools/train_distributed.py part-*.parquet \\\n    "
    tool += f"--epochs {PLANNED_EPOCHS} --batch-size {PLANNED_BATCH}"
    return f"""For a cohort in several files, the first command is for a GPU, \
and the second for {CORES} cores:

```bash
torchrun --nproc-per-node 1 {tool} --workers {CORES}
torchrun --nproc-per-node {CORES} {tool}
```

On a GPU with the defaults, batches of {batch} and no workers, launching \
{updates:,} updates would take {launch:.0f} minutes, and reading on the same \
core {PLANNED_EPOCHS * read * 60:.0f} more."""


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, *arguments = options.child
        CHILDREN[what](*arguments)
        return
    measured = measure(options.patients, options.rounds)
    tables = {
        "measured": measured_table(measured),
        "planned": planned_table(measured),
    }
    print("\n\n".join(tables.values()))
    if options.write:
        text = PAGE.read_text("utf-8")
        for name, table in tables.items():
            text = replaced(name, table, text)
        PAGE.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
