"""Put every trained generation, and plain baselines, on one scoreboard.

    python benchmarks/scoreboard.py [--csv NAME=PATH ...]

Samples each model that comes with the package as many patients as were held
out, makes the baselines from the training patients, and computes all figures
of each, over three seeds, with intervals and with the floor of other patients
of the simulated cohort. With ``--csv``, a synthetic cohort that another
generator made from the same training patients is put beside them; give a NAME
again for another seed. Each result is added to
healthgym_utils/results/scoreboard.csv at once; a run that was interrupted
goes on, and a model that was trained anew is measured anew. ``make
scoreboard`` runs it, and then writes the page of the book.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from ablation import (
    CPU,
    PATIENTS,
    SCHEMA,
    Data,
    circumstances,
    extended,
    write,
)

import healthgym_utils as hg
from healthgym_utils import baselines, metrics, pretrained
from healthgym_utils.guardrails import sample_accepted
from healthgym_utils.schema import TableError, suppressed

KINDS = BASELINE, PEER, GENERATION = "baseline", "peer", "generation"
# The book's order; the last is this book's own.
GENERATIONS = ("v1", "v2", "v2.5", "v3-published", "v3")
BASELINES = {
    "training copy": baselines.copy,
    "rows shuffled": baselines.shuffle_rows,
    "histories exchanged": baselines.exchange_trajectories,
    "Markov walk": baselines.markov_walk,
}
SEEDS = (0, 1, 2)  # of sampling, or of drawing
BOOTSTRAP = 30
DRAWS = 20  # of the floor
OTHERS = 8316  # patients of the floor: all that are left of the cohort
KEYS = ["name", "seed", "made_from"]
NAME = "scoreboard"


@dataclass(frozen=True)
class Entry:
    """One synthetic cohort, not made yet."""

    name: str
    kind: str
    seed: int
    made_from: str  # a file, by its hash
    make: Callable[[Data], pd.DataFrame]

    @property
    def key(self) -> tuple[str, int, str]:
        """What a result of this entry is known by."""
        return self.name, self.seed, self.made_from


def entries(peers: Sequence[tuple[str, Path]]) -> list[Entry]:
    """List all cohorts of the board, in its order."""
    found = [
        Entry(name, BASELINE, seed, "training data", _drawn(make, seed))
        for name, make in BASELINES.items()
        for seed in SEEDS
    ]
    times: dict[str, int] = {}
    for name, path in peers:
        seed = times[name] = times.get(name, 0) + 1
        found.append(Entry(name, PEER, seed, digest(path), _read(path)))
    for name in shipped():
        sha = digest(pretrained.FOLDER / f"{name}.safetensors")
        found += [
            Entry(name, GENERATION, seed, sha, _sampled(name, seed))
            for seed in SEEDS
        ]
    return found


def digest(path: Path) -> str:
    """Name a file by the first half of its SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def shipped() -> list[str]:
    """Name the models that come with the package, in the book's order."""

    def place(name: str) -> tuple[int, int]:
        generation, _, epochs = name.rpartition("-")
        return GENERATIONS.index(generation), int(epochs)

    return sorted(pretrained.trained_names(), key=place)


def _drawn(
    make: Callable[..., pd.DataFrame], seed: int
) -> Callable[[Data], pd.DataFrame]:
    return lambda data: make(data.train, SCHEMA, seed)


def _sampled(name: str, seed: int) -> Callable[[Data], pd.DataFrame]:
    return lambda data: sample(name, seed, data)


def _read(path: Path) -> Callable[[Data], pd.DataFrame]:
    return lambda data: read_cohort(path, data)


def sample(name: str, seed: int, data: Data) -> pd.DataFrame:
    """Sample a trained model, the published v3 through its filter."""
    model = hg.load_pretrained(name, SCHEMA, CPU)
    months = data.x.shape[1]
    if isinstance(model, hg.Diffusion) and model.settings.limit == "none":
        rows, _ = sample_accepted(model, PATIENTS, months, seed=seed)
    else:
        rows = model.sample(PATIENTS, months, seed=seed)
    return data.prep.inverse_transform(rows)


def read_cohort(path: Path, data: Data) -> pd.DataFrame:
    """Read another generator's cohort, whatever it calls its patients.

    Raises
    ------
    SystemExit
        If it is not a table of the schema, with as many patients and months
        as were held out.
    """
    labels = {feature.name: str for feature in SCHEMA.categoricals}
    table = pd.read_csv(path, dtype=labels)
    if SCHEMA.patient in table:
        number = pd.factorize(table[SCHEMA.patient])[0]
        table = table.assign(**{SCHEMA.patient: number})
    try:
        shape = metrics.Panel.of(table, SCHEMA).shape
    except TableError as error:
        raise SystemExit(f"{path}: {error}") from error
    if shape != (PATIENTS, data.x.shape[1]):
        raise SystemExit(
            f"{path} has {shape[0]} patients of {shape[1]} months; floors "
            f"are for {PATIENTS} of {data.x.shape[1]}: make as many"
        )
    return table


def floors() -> pd.DataFrame:
    """Compare samples of patients that no other comparison has seen."""
    cohort = hg.load_art("simulated", 2 * PATIENTS + OTHERS)
    order = cohort[SCHEMA.patient].rank(method="dense")

    def chance(
        real: pd.DataFrame, fake: pd.DataFrame, train: pd.DataFrame
    ) -> pd.Series:
        return metrics.figures(real, fake, SCHEMA, train, suppressed)

    others = cohort[order > 2 * PATIENTS]
    return metrics.floor(chance, others, PATIENTS, DRAWS, samples=3)


def measure(entry: Entry, data: Data, chance: pd.DataFrame) -> pd.DataFrame:
    """Make a cohort and put it on the board."""
    board = metrics.scoreboard(
        data.held_out,
        entry.make(data),
        SCHEMA,
        data.train,
        suppressed,
        chance,
        bootstrap=BOOTSTRAP,
    )
    board.insert(0, "name", entry.name)
    board.insert(1, "kind", entry.kind)
    board.insert(2, "seed", entry.seed)
    board.insert(3, "made_from", entry.made_from)
    return board.round(5)


def describe() -> dict[str, object]:
    """Say in JSON types what the board is made with."""
    return circumstances() | {
        "seeds": list(SEEDS),
        "bootstrap": BOOTSTRAP,
        "floor_draws": DRAWS,
        "floor_patients": OTHERS,
    }


def in_order(table: pd.DataFrame, listed: Sequence[Entry]) -> pd.DataFrame:
    """Sort results: baselines, other generators, generations, by seed.

    Other generators that are not listed stay: their files do not come with
    the package.
    """
    names = dict.fromkeys(entry.name for entry in listed)
    rank = {name: place for place, name in enumerate(names)}
    key = {kind: place for place, kind in enumerate(KINDS)}
    return (
        table.assign(
            _kind=table["kind"].map(key), _name=table["name"].map(rank)
        )
        .sort_values(["_kind", "_name", "name", "seed"], kind="stable")
        .drop(columns=["_kind", "_name"])
        .reset_index(drop=True)
    )


def conduct(peers: Sequence[tuple[str, Path]], folder: Path) -> pd.DataFrame:
    """Measure what still lacks, and return the whole table."""
    path, chance_path = folder / f"{NAME}.csv", folder / f"{NAME}_floor.csv"
    note, made_with = path.with_suffix(".json"), describe()
    listed = entries(peers)
    table = pd.DataFrame(columns=[*KEYS, "kind"])
    if path.exists():
        if json.loads(note.read_text(encoding="utf-8")) != made_with:
            raise SystemExit(
                f"{path} was made with other settings ({note.name}); remove "
                f"both, and {chance_path.name}, to begin anew"
            )
        table = pd.read_csv(path)
    write(note, json.dumps(made_with, indent=2) + "\n")
    if not chance_path.exists():
        write(chance_path, floors().round(5).to_csv(index=False))
    chance = pd.read_csv(chance_path)
    data = Data.load()
    table = still_good(table, listed)
    done = set(table[KEYS].itertuples(index=False, name=None))
    for entry in listed:
        if entry.key in done:
            continue
        found = measure(entry, data, chance)
        table = in_order(extended(table, found), listed)
        write(path, table.to_csv(index=False))
        print(f"{entry.name}, seed {entry.seed}", flush=True)
    return table


def still_good(table: pd.DataFrame, listed: Sequence[Entry]) -> pd.DataFrame:
    """Drop what a model has left that was trained anew, or is not shipped."""
    keys = pd.MultiIndex.from_frame(table[KEYS])
    is_listed = keys.isin([entry.key for entry in listed])
    named = table["name"].isin([entry.name for entry in listed])
    return table[is_listed | ((table["kind"] == PEER) & ~named)]


def peer(text: str) -> tuple[str, Path]:
    """Take NAME=PATH apart."""
    name, found, path = text.partition("=")
    if not (name and found) or not Path(path).is_file():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=PATH with the path of a file"
        )
    return name, Path(path)


def main() -> None:
    """Parse the command line, run, and print how far each one is off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--csv",
        type=peer,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a synthetic cohort of another generator; may come again",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = conduct(options.csv, pretrained.RESULTS)
    print(table.pivot_table("ratio", "figure", "name", sort=False).round(1))


if __name__ == "__main__":
    main()
