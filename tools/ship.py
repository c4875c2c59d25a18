"""Measure trained models, and put one seed's into the package with a card.

    python tools/ship.py v1

Takes what tools/train.py left in _build/training, of every seed. Writes
healthgym_utils/results/fidelity_<model>.csv (all seeds, with the floor) and,
for each milestone, the weights of seed 42 and a card in
healthgym_utils/checkpoints.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor
from train import (
    DIFFUSION_BATCH,
    FOLDER,
    LENGTHS,
    MILESTONES,
    PATIENTS,
    snapshot_path,
)

import healthgym_utils as hg
from healthgym_utils import checkpoint, metrics, pretrained
from healthgym_utils.guardrails import sample_accepted
from healthgym_utils.schema import suppressed

PACKAGED = pretrained.FOLDER
RESULTS = pretrained.RESULTS
SHIPPED_SEED = 42
MONTHS = 60
FLOOR = "floor"

GAN_LESSONS = (
    f"{', '.join(map(str, LENGTHS))} months, batches of 256, the rest dropped"
)
REMEMBERS = (
    "Its buffer holds codes of the patients it was trained on, and the\n"
    "newest of them can be linked to their patients (notebook 16).\n"
)


@dataclass(frozen=True)
class Generation:
    """What a card says of every model of a generation."""

    what: str
    contents: str
    lessons: str = GAN_LESSONS
    warning: str = ""
    is_filtered: bool = False  # sampled by accept-reject, as published
    is_judged: bool = False  # on the whole scoreboard, privacy included


GENERATIONS = {
    "v1": Generation(
        "Health Gym v1, a recurrent WGAN-GP", "generator and critic"
    ),
    "v2": Generation(
        "Health Gym v2, a recurrent WGAN-GP with a latent memory",
        "generator, critic and memory",
        warning=REMEMBERS,
    ),
    "v2.5": Generation(
        "Health Gym v2.5, a WGAN-GP with a transformer and a memory",
        "generator, critic and memory",
        warning=REMEMBERS,
    ),
    "v3": Generation(
        "Health Gym v3 with this book's settings, a diffusion model",
        "a calibration, and the mean of the network's weights",
        lessons=f"{MONTHS} months, batches of {DIFFUSION_BATCH}; then "
        "calibrated on the same patients",
        is_judged=True,
    ),
    "v3-published": Generation(
        "Health Gym v3 with the published settings, a diffusion model",
        "the network's weights",
        lessons=f"{MONTHS} months, batches of 128, the rest dropped",
        warning="The published model was trained for 3,000 epochs: this is "
        "a third of that.\nIts samples are those that the published filter "
        "keeps.\n",
        is_filtered=True,
        is_judged=True,
    ),
}
TITLES = {
    "joint_tv": "Gender x Ethnic: total variation",
    "cells_covered": "Gender x Ethnic: cells covered",
    "mass_lost": "Gender x Ethnic: mass lost",
    "entropy_ratio": "Gender x Ethnic: entropy ratio",
    "minority_recall": "Gender x Ethnic: minority recall",
}

# A ratio is worst where it is smallest, a distance where it is largest.
BEST_IS_ONE = {
    "cells_covered",
    "entropy_ratio",
    "minority_recall",
    "distance ratio",
    "neighbour ratio",
}

CARD = """\
# {name}

{what}, after {epochs} epochs of training on
**simulated** patients: the first {patients} of `load_art("simulated")`,
{months} months each. No published and no real patient was used. Load it with
`hg.load_pretrained("{name}")`.

| Fact | Value |
|---|---|
| made by | `make train MODEL={model}{options}`, `make ship MODEL={model}` |
| settings | {settings} |{memory}
| lessons | {lessons} |
| cost | {cost} |
| package version | {package_version} |
| data fingerprint | `{fingerprint}` |
| in the file | {contents} in half precision, the whole history |

## How good it is

{patients} generated patients of {months} months against {patients} simulated
patients that it was not trained on. "Floor" is what two disjoint samples of
{patients} simulated patients reach against each other: mean, and worst of 20
draws.

| figure | this file | seeds {seeds}: mean (range) | floor: mean (worst) |
|---|---|---|---|
{rows}

KS is the Kolmogorov-Smirnov distance of a lab, TV the total variation of a
variable's classes: 0 is best for both. What the other figures mean is in
`healthgym_utils/metrics.py`.

## What it is for, and what not

For the lessons of this book. It is a small model with known faults, kept so
that they can be studied: do not use its output in place of data. It was
trained on simulated patients, so it holds nobody's record; a file trained on
a real cohort would have to be examined for leaks before it is passed on.
{warning}"""


def figures(real: pd.DataFrame, fake: pd.DataFrame) -> pd.Series:
    """All figures of a card, in its order."""
    ks = metrics.ks_distances(real, fake, hg.ART_SCHEMA)
    tv = metrics.total_variations(real, fake, hg.ART_SCHEMA)
    return pd.concat(
        [
            ks.add_prefix("KS "),
            tv.add_prefix("TV "),
            metrics.coverage(real, fake, ["Gender", "Ethnic"]),
        ]
    )


def judged(
    real: pd.DataFrame, fake: pd.DataFrame, train: pd.DataFrame
) -> pd.Series:
    """Compute the figures of a card, and those of the scoreboard."""
    whole = metrics.figures(real, fake, hg.ART_SCHEMA, train, suppressed)
    mine = figures(real, fake)
    # Two figures of groups go by one name, and ask about other groups.
    return pd.concat([mine, whole.drop(labels="mass lost")])


def sampled(model: str, trained: pretrained.Model) -> Tensor:
    """Draw as many patients as there are to compare with."""
    if GENERATIONS[model].is_filtered:
        return sample_accepted(trained, PATIENTS, MONTHS)[0]
    return trained.sample(PATIENTS, MONTHS)


def snapshots(model: str) -> dict[tuple[int, int], Path]:
    """Find what was trained, by epochs and seed."""
    pattern = re.compile(rf"{re.escape(model)}-(\d+)-seed(\d+)\.safetensors")
    found = {}
    for path in sorted(FOLDER.glob("*.safetensors")):
        if match := pattern.fullmatch(path.name):
            epochs, seed = map(int, match.groups())
            found[epochs, seed] = path
    return found


def measure(model: str) -> pd.DataFrame:
    """Compare every snapshot's samples, and the floor, in one long table."""
    cohort = hg.load_art("simulated")
    order = cohort["PatientID"].rank(method="dense")
    train = cohort[order <= PATIENTS]
    prep = hg.Preprocessor(hg.ART_SCHEMA).fit(train)
    # Held-out patients: a model that copies must not look better than chance.
    real = cohort[(order > PATIENTS) & (order <= 2 * PATIENTS)]
    is_judged = GENERATIONS[model].is_judged
    tables = []
    for (epochs, seed), path in snapshots(model).items():
        rows = sampled(model, pretrained.rebuild(path, hg.ART_SCHEMA))
        fake = prep.inverse_transform(rows)
        values = (
            judged(real, fake, train) if is_judged else figures(real, fake)
        )
        tables.append(_long(values, f"{model}-{epochs}", seed))
    metric, samples = (judged, 3) if is_judged else (figures, 2)
    floors = metrics.floor(metric, cohort, PATIENTS, samples=samples)
    for draw, row in floors.iterrows():
        tables.append(_long(row, FLOOR, draw))
    return pd.concat(tables, ignore_index=True)


def _long(values: pd.Series, name: str, seed: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "name": name,
            "seed": seed,
            "figure": values.index,
            "value": values.to_numpy().round(4),
        }
    )


def card(name: str, header: Mapping[str, Any], table: pd.DataFrame) -> str:
    """Write a checkpoint's card from its header and the measurements."""
    model, _, epochs = name.rpartition("-")
    settings = header["settings"]
    plain = {k: v for k, v in settings.items() if k not in ("bf16", "seed")}
    generation = GENERATIONS[model]
    memory = header.get("memory")
    ours = table[table["name"] == name]
    return CARD.format(
        name=name,
        model=model,
        what=generation.what,
        epochs=epochs,
        patients=PATIENTS,
        months=MONTHS,
        settings=_listed(plain | {"seed": settings["seed"]}),
        memory=f"\n| memory | {_listed(memory)} |" if memory else "",
        options=" OPTIONS=--bf16" if settings["bf16"] else "",
        lessons=generation.lessons,
        contents=generation.contents,
        warning=generation.warning,
        cost=_cost(header),
        package_version=header["package_version"],
        fingerprint=header["fingerprint"][:16],
        seeds=", ".join(str(s) for s in sorted(ours["seed"].unique())),
        rows="\n".join(_card_rows(ours, table[table["name"] == FLOOR])),
    )


def _listed(facts: Mapping[str, Any]) -> str:
    """Write names and values in one line."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _cost(header: Mapping[str, Any]) -> str:
    """Say what the training took, in words."""
    text = (
        f"{header['seconds'] / 60:.0f} minutes by the clock, one thread of a "
        "server CPU that had other work too"
    )
    if header["settings"]["bf16"]:
        network = "network" if header["model"] == "Diffusion" else "critic"
        text += f"; the {network}'s matrix products in bfloat16"
    return text


def _card_rows(ours: pd.DataFrame, floors: pd.DataFrame) -> list[str]:
    """One line a figure: the shipped seed, all seeds, the floor."""
    lines = []
    for figure, rows in ours.groupby("figure", sort=False):
        values = rows.set_index("seed")["value"]
        chance = floors.loc[floors["figure"] == figure, "value"]
        worst = chance.min() if figure in BEST_IS_ONE else chance.max()
        lines.append(
            f"| {TITLES.get(figure, figure)} | {values[SHIPPED_SEED]:.3f} "
            f"| {values.mean():.3f} ({values.min():.3f}–{values.max():.3f}) "
            f"| {chance.mean():.3f} ({worst:.3f}) |"
        )
    return lines


def main() -> None:
    """Measure, write the table, copy the weights, write the cards."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=sorted(MILESTONES))
    model = parser.parse_args().model
    table = measure(model)
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / f"fidelity_{model}.csv", index=False)
    PACKAGED.mkdir(exist_ok=True)
    for epochs in MILESTONES[model]:
        source = snapshot_path(model, epochs, SHIPPED_SEED)
        name = f"{model}-{epochs}"
        header = checkpoint.read_header(source)
        shutil.copyfile(source, PACKAGED / f"{name}.safetensors")
        text = card(name, header, table)
        (PACKAGED / f"{name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
