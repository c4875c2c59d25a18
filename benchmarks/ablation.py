"""Take models apart: one change at a time, equal compute, several seeds.

    python benchmarks/ablation.py memory [--seeds 42 43 44]
    python benchmarks/ablation.py generator
    python benchmarks/ablation.py diffusion

Every variant of a study is trained on the same patients, with the same
settings and as many updates, once for each seed, and measured at several
points on the way against patients that were held out. Each finished training
is added to healthgym_utils/results/ablation_<study>.csv at once, and what it
was made with is noted beside it, so that an interrupted study goes on where
it stopped. ``make ablation STUDY=memory`` runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

import healthgym_utils as hg
from healthgym_utils import metrics, pretrained
from healthgym_utils.diffusion import DiffusionSettings
from healthgym_utils.gan import WGANGP, Settings
from healthgym_utils.guardrails import outside
from healthgym_utils.schema import suppressed

SCHEMA = hg.ART_SCHEMA
GROUP = ("Gender", "Ethnic")
PATIENTS = 300  # to train on, and as many more to compare with
CPU = torch.device("cpu")

Variant = Callable[[Settings], WGANGP]


def with_memory(**choices: object) -> Variant:
    """Build a recurrent model with a latent memory of these choices."""

    def build(s: Settings) -> WGANGP:
        memory = hg.LatentMemory(SCHEMA, s.latent, s.hidden, **choices)
        return WGANGP(SCHEMA, settings=s, memory=memory, device=CPU)

    return build


def with_strangers(s: Settings) -> WGANGP:
    """Fill the buffer, once and for all, with vectors that mean nobody."""
    memory = hg.LatentMemory(
        SCHEMA, s.latent, s.hidden, encoder="projection", buffer=False
    )
    memory.entries.normal_()
    memory.filled.fill_(memory.capacity)
    return WGANGP(SCHEMA, settings=s, memory=memory, device=CPU)


def with_transformer(
    standard_scale: bool = False, **choices: object
) -> Variant:
    """Build a transformer with a memory: v2.5, or one of its variants."""

    def build(s: Settings) -> WGANGP:
        heads = 8
        scale = (s.latent / heads) ** 0.5 if standard_scale else None
        generator = hg.TransformerGenerator(
            SCHEMA, s.latent, heads=heads, scale=scale, **choices
        )
        memory = hg.LatentMemory(SCHEMA, s.latent, s.hidden)
        return WGANGP(SCHEMA, generator, s, CPU, memory)

    return build


def at_rate(learning_rate: float, variant: Variant) -> Variant:
    """Train a variant at another learning rate than the study's."""
    return lambda s: variant(replace(s, learning_rate=learning_rate))


@dataclass(frozen=True)
class Data:
    """Patients to train on, and patients to compare with."""

    x: Tensor
    train: pd.DataFrame
    held_out: pd.DataFrame
    prep: hg.Preprocessor

    @classmethod
    def load(cls) -> Data:
        """Take the first patients of the simulated cohort."""
        cohort = hg.load_art("simulated", 2 * PATIENTS)
        order = cohort["PatientID"].rank(method="dense")
        train = cohort[order <= PATIENTS]
        prep = hg.Preprocessor(SCHEMA).fit(train)
        held_out = cohort[order > PATIENTS]
        return cls(prep.transform(train), train, held_out, prep)

    def figures(self, fake: pd.DataFrame) -> pd.Series:
        """Put a synthetic cohort on the scoreboard."""
        return metrics.figures(
            self.held_out, fake, SCHEMA, self.train, suppressed
        )


@dataclass(frozen=True)
class Study:
    """What is compared, and at which budget."""

    variants: Mapping[str, Variant] = field(repr=False)
    settings: Mapping[str, float]
    lengths: tuple[int, ...]
    batch_size: int
    milestones: tuple[int, ...]  # epochs after which to measure

    def describe(self) -> dict[str, object]:
        """Say in JSON types what a result was made with."""
        budget = {
            "lengths": self.lengths,
            "batch_size": self.batch_size,
            "milestones": self.milestones,
        }
        return asdict(Settings(**self.settings)) | budget | circumstances()

    def run(self, variant: str, seed: int, data: Data) -> pd.DataFrame:
        """Train one variant on one seed, and measure at every milestone."""
        torch.manual_seed(seed)
        model = self.variants[variant](Settings(**self.settings, seed=seed))
        loaders = hg.curriculum_loaders(
            data.x, self.lengths, self.batch_size, seed=seed
        )
        weights = sum(p.numel() for p in model.generator.parameters())
        tables, seconds = [], 0.0
        for epochs in self.milestones:
            started = time.process_time()
            model.fit(loaders, epochs)
            seconds += time.process_time() - started
            values = measure(model, data, max(self.lengths))
            values["generator_weights"] = weights
            tables.append(rows_of(values, variant, model, seconds))
        return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class DiffusionStudy:
    """The published diffusion model and ours, one choice after the other.

    The published one is trained and sampled at the same width, in as many
    updates and steps as all others, and not at its own.
    """

    variants: Mapping[str, Mapping[str, object]] = field(repr=False)
    common: Mapping[str, object]
    batch_size: int
    updates: int
    calibrated: tuple[str, ...] = ()  # variants that are, after training

    def describe(self) -> dict[str, object]:
        """Say in JSON types what a result was made with."""
        return {
            "common": dict(self.common),
            "variants": {k: dict(v) for k, v in self.variants.items()},
            "batch_size": self.batch_size,
            "updates": self.updates,
            "calibrated": self.calibrated,
        } | circumstances()

    def run(self, variant: str, seed: int, data: Data) -> pd.DataFrame:
        """Train one variant on one seed, and put it on the scoreboard."""
        settings = DiffusionSettings(
            **self.common | self.variants[variant], seed=seed
        )
        model = hg.Diffusion(SCHEMA, settings, CPU)
        loader = hg.sequence_loader(data.x, self.batch_size, seed=seed)
        started = time.process_time()
        model.fit(loader, steps=self.updates)
        if variant in self.calibrated:
            model.calibrate(data.x)
        seconds = time.process_time() - started
        values = scores(model, data, data.x.shape[1])
        return rows_of(values, variant, model, seconds)


def scores(model: hg.Diffusion, data: Data, months: int) -> pd.Series:
    """Figures of the scoreboard, the share of women, and of acceptance."""
    rows = model.sample(PATIENTS, months)
    fake = data.prep.inverse_transform(rows, clip=True)
    found = data.figures(fake)
    found["women"] = (fake["Gender"] == "Female").mean()
    # What the published filter would keep, were nothing clipped.
    loose = rows
    if model.settings.limit != "none":
        loose = model.sample(PATIENTS, months, limit="none")
    kept = ~outside(loose, SCHEMA).any(dim=1)
    found["accepted"] = kept.float().mean().item()
    return found


def rows_of(
    values: pd.Series, variant: str, model: pretrained.Model, seconds: float
) -> pd.DataFrame:
    """Write what was measured as rows of a study's table."""
    return pd.DataFrame(
        {
            "variant": variant,
            "seed": model.settings.seed,
            "epoch": model.epoch,
            "updates": len(model.history),
            "cpu_seconds": round(seconds, 1),
            "figure": values.index,
            "value": values.to_numpy().round(5),
        }
    )


def circumstances() -> dict[str, object]:
    """Say what all studies have in common."""
    return {
        "patients": PATIENTS,
        "held_out": PATIENTS,
        "cohort": "simulated",
        "package_version": hg.__version__,
        "torch": torch.__version__,
        "threads": 1,
        "machine": platform.machine(),
    }


PUBLISHED = {
    "schedule": "linear",
    "zero_terminal": False,
    "target": "noise",
    "categorical_loss": "mse",
    "evidence_weight": 0.0,
    "reconstruction_weight": 20.0,
    "noise_blend": True,
    "condition_on_statics": False,
    "dropout": 0.0,
    "ema": 0.0,
    "limit": "none",
}
NO_BLEND = PUBLISHED | {"noise_blend": False}
V = NO_BLEND | {"reconstruction_weight": 0.0, "target": "v"}
V_CLASSES = V | {"categorical_loss": "cross_entropy"}

STUDIES = {
    "memory": Study(
        variants={
            "no memory (v1)": lambda s: WGANGP(SCHEMA, settings=s, device=CPU),
            "autoencoder and buffer (v2)": with_memory(),
            "autoencoder alone": with_memory(buffer=False),
            "buffer alone": with_memory(encoder="projection"),
            "true VAE and buffer": with_memory(
                encoder="vae", decoder_variance=0.05
            ),
            "true VAE, v2's weights": with_memory(encoder="vae"),
            "reservoir": with_memory(downsampling="reservoir"),
            "random vectors": with_strangers,
        },
        # Faster than published, so that little training tells them apart.
        settings={
            "latent": 32,
            "hidden": 32,
            "learning_rate": 5e-3,
            "critic_steps": 3,
        },
        lengths=(6,),
        batch_size=64,
        milestones=(20, 40, 60, 80, 100),
    ),
    "generator": Study(
        variants={
            "LSTM (v2)": with_memory(),
            "transformer (v2.5)": with_transformer(),
            "standard scale": with_transformer(standard_scale=True),
            "with feed-forward": with_transformer(feed_forward=True),
            "LSTM, rate 0.003": at_rate(0.003, with_memory()),
            "transformer, rate 0.003": at_rate(0.003, with_transformer()),
        },
        settings={"latent": 64, "hidden": 64},
        lengths=(10,),
        batch_size=64,
        milestones=(5, 10, 15, 25, 35),
    ),
    "diffusion": DiffusionStudy(
        variants={
            # The published choices, and suspects one by one.
            "published": PUBLISHED | {"pad_to": 100},
            "published, not padded": PUBLISHED,
            "published, clipped": PUBLISHED | {"limit": "clip"},
            "published, cosine": PUBLISHED | {"schedule": "cosine"},
            "published, averaged": PUBLISHED | {"ema": 0.999},
            "published, no blend": NO_BLEND,
            "published, noise loss alone": NO_BLEND
            | {"reconstruction_weight": 0.0},
            "published, predicts v": V,
            "predicts v, cross-entropy": V_CLASSES,
            "predicts v, cross-entropy, statics given": V_CLASSES
            | {"condition_on_statics": True},
            # Ours, without one choice each.
            "ours": {},
            "ours, predicts noise": {
                "target": "noise",
                "zero_terminal": False,
            },
            "ours, predicts x0": {"target": "x0"},
            "ours, classes by squared error": {"categorical_loss": "mse"},
            "ours, statics diffused": {"condition_on_statics": False},
            "ours, signal left at the end": {"zero_terminal": False},
            "ours, linear schedule": {"schedule": "linear"},
            "ours, no evidence": {"evidence_weight": 0.0},
            "ours, no dropout": {"dropout": 0.0},
            "ours, not averaged": {"ema": 0.0},
            "ours, not clipped": {"limit": "none"},
            "ours, leading steps": {"spacing": "leading"},
            "ours, padded": {"pad_to": 100},
            # What comes last, after and in sampling.
            "ours, less fresh noise": {"variance": 0.3},
            "ours, less fresh noise, calibrated": {"variance": 0.3},
            "ours, less fresh noise, calibrated, jittered": {
                "variance": 0.3,
                "patient_jitter": 0.08,
            },
        },
        calibrated=(
            "ours, less fresh noise, calibrated",
            "ours, less fresh noise, calibrated, jittered",
        ),
        # Narrow networks learn less by heart: less drops out than by default.
        common={
            "hidden": 32,
            "time_width": 64,
            "dropout": 0.2,
            "variance": 0.8,
            "patient_jitter": 0.0,
        },
        batch_size=64,
        updates=800,
    ),
}


def group_shares(rows: Tensor) -> Tensor:
    """Joint shares of the groups that soft rows promise."""
    first, second = (rows[..., SCHEMA.spans[name]] for name in GROUP)
    return (first.unsqueeze(-1) * second.unsqueeze(-2)).mean(dim=(0, 1))


def group_spread(rows: Tensor) -> Tensor:
    """How much patients differ in the groups' columns, before decoding."""
    columns = torch.cat([rows[..., SCHEMA.spans[n]] for n in GROUP], dim=-1)
    return columns.mean(dim=1).std(dim=0).mean()


def measure(model: WGANGP, data: Data, months: int) -> pd.Series:
    """Compare a model's samples with the held-out patients."""
    rows = model.sample(PATIENTS, months)
    fake = data.prep.inverse_transform(rows)
    early = data.held_out["Timestep"] < months
    real = data.held_out[early]
    truth = data.x[:, :months]
    gap = (group_shares(rows) - group_shares(truth)).abs().sum() / 2
    soft = {
        "soft_tv": gap.item(),
        "soft_spread": (group_spread(rows) / group_spread(truth)).item(),
    }
    return pd.concat(
        [
            metrics.coverage(real, fake, GROUP),
            pd.Series(soft),
            metrics.ks_distances(real, fake, SCHEMA).add_prefix("KS "),
            metrics.total_variations(real, fake, SCHEMA).add_prefix("TV "),
        ]
    )


def write(path: Path, text: str) -> None:
    """Replace a file by a whole one."""
    beside = path.with_suffix(path.suffix + ".partial")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def extended(table: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Add rows to a table that may have none, and no types, yet."""
    parts = [table, found] if len(table) else [found]
    return pd.concat(parts, ignore_index=True)


def conduct(name: str, seeds: list[int], folder: Path) -> pd.DataFrame:
    """Run what a study still lacks, and return the whole table."""
    study, data = STUDIES[name], Data.load()
    path = folder / f"ablation_{name}.csv"
    note = path.with_suffix(".json")
    made_with = json.loads(json.dumps(study.describe()))
    table = pd.DataFrame({"variant": [], "seed": []})
    if path.exists():
        if json.loads(note.read_text(encoding="utf-8")) != made_with:
            raise SystemExit(
                f"{path} was made with other settings ({note.name}); remove "
                "both to begin anew"
            )
        table = pd.read_csv(path)
    folder.mkdir(exist_ok=True)
    write(note, json.dumps(made_with, indent=2) + "\n")
    done = set(zip(table["variant"], table["seed"], strict=True))
    for seed in seeds:
        for variant in study.variants:
            if (variant, seed) in done:
                continue
            rows = study.run(variant, seed, data)
            table = extended(table, rows)
            write(path, table.to_csv(index=False))
            cost = rows["cpu_seconds"].max()
            print(f"{variant}, seed {seed}: {cost:.0f} s", flush=True)
    return table


def main() -> None:
    """Parse the command line, run, and print the last milestone's means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    options = parser.parse_args()
    # Processor seconds are compared: a second thread would blur them.
    torch.set_num_threads(1)
    table = conduct(options.study, options.seeds, pretrained.RESULTS)
    last = table[table["epoch"] == table["epoch"].max()]
    print(last.pivot_table("value", "figure", "variant", sort=False).round(3))


if __name__ == "__main__":
    main()
