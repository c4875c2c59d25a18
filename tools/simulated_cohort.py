"""Maintainers' commands for the simulated cohort, needed if it changes.

python tools/simulated_cohort.py calibrate    match the labs' quantiles again
python tools/simulated_cohort.py card         measure, and write its model card

Published numbers are read from tests/data/cohort_facts.json; each of them
says where it was printed and how exact it is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import signal, stats

from healthgym_utils.schema import ART_FLAGS, ART_FULL_SCHEMA
from healthgym_utils.simulate import (
    DRUGS,
    SimulatorParameters,
    _Cohort,
    simulate_art,
    true_effects,
)

ROOT = Path(__file__).resolve().parents[1]
CARD = ROOT / "book" / "simulated_cohort.md"
KNOTS = ROOT / "healthgym_utils" / "tables" / "calibration.csv"
FACTS = {
    fact["id"]: fact["value"]
    for fact in json.loads(
        (ROOT / "tests" / "data" / "cohort_facts.json").read_text("utf-8")
    )
}
LABS = {"VL": "VL", "CD4": "CD4", "Rel_CD4": "Rel CD4"}  # tidy, published
FULL_SIZE = FACTS["shape"]["patients"]
MONTHS = FACTS["shape"]["months"]
CALIBRATION_SEEDS = range(20)
SPREAD_SEEDS = range(101, 106)  # neither the default nor calibrated on

Numbers = dict[str, float]

QUANTILES = {
    "minimum": 0.0,
    "lower quartile": 0.25,
    "median": 0.5,
    "upper quartile": 0.75,
    "maximum": 1.0,
}
BOUNDS = {
    "VL": (1682, 5046, 19500),
    "CD4": (732, 2196),
    "Rel_CD4": (10.1, 30.3, 50.4),
}
CORRELATIONS = {
    "VL-month": ("vl", "time"),
    "CD4-month": ("cd4", "time"),
    "Rel_CD4-month": ("relcd4", "time"),
    "VL-CD4": ("vl", "cd4"),
    "VL-Rel_CD4": ("vl", "relcd4"),
    "CD4-Rel_CD4": ("cd4", "relcd4"),
}


# --- What was published ------------------------------------------------------


def published() -> Numbers:
    """Collect the published numbers, under the same names as `measure`."""
    rows = {}
    for lab, raw in LABS.items():
        values = FACTS[f"{raw}.min_q25_q50_q75_max"]
        for name, value in zip(QUANTILES, values, strict=True):
            rows[f"{lab} {name}"] = value
        rows[f"{lab} mean"] = FACTS[f"{raw}.mean"]
        fit = FACTS["boxcox"][raw]
        rows[f"{lab} Box-Cox lambda"] = fit["lambda"]
        rows[f"{lab} Box-Cox minimum"] = fit["min"]
        rows[f"{lab} Box-Cox range"] = fit["range"]
    below = [f"P({lab} < {b:g})" for lab in LABS for b in BOUNDS[lab]]
    rows |= dict(zip(below, FACTS["cdf"].values(), strict=True))
    shares = FACTS["category_shares"].values()
    for feature, share in zip(
        ART_FULL_SCHEMA.categoricals, shares, strict=True
    ):
        for label, value in zip(feature.classes, share.values(), strict=True):
            rows[f"{feature.name} = {label}"] = value
    rows |= _cells(np.array(FACTS["derived.gender_x_ethnic"]))
    for flag, raw in zip(
        ART_FLAGS, ("VL (M)", "CD4 (M)", "Drug (M)"), strict=True
    ):
        rows[f"{flag} = True"] = FACTS["code_means"][raw]
    for count, value in FACTS["derived.active_classes"].items():
        rows[f"{count} of INI, NNRTI, PI"] = value
    rows["month 0: VL > 1000"] = FACTS["t0"]["P(VL>1000)"]
    rows["month 0: CD4 < 500"] = FACTS["t0"]["P(CD4<500)"]
    rows["patients with a regimen change"] = FACTS["regimen_change"]["share"]
    rows["changes before first VL <= 1000"] = FACTS[
        "regimen_change_before_first_VL<=1000 (starters VL>1000)"
    ]
    matrix, index = published_correlations()
    for name, (a, b) in CORRELATIONS.items():
        rows[f"correlation {name}"] = matrix[index[a], index[b]]
    for name, value in FACTS["corr.dynamic"].items():
        name = name.replace("CD4 (M)", "CD4_M").replace("Rel CD4", "Rel_CD4")
        rows[name] = value
    return rows


def published_correlations() -> tuple[np.ndarray, dict[str, int]]:
    """Read the published one-hot correlations: matrix, row of a label."""
    fact = FACTS["corr.onehot_pearson"]
    index = {label: k for k, label in enumerate(fact["labels"])}
    return np.array(fact["matrix"]), index


def _cells(shares: np.ndarray) -> Numbers:
    """Name the shares of gender (rows) and ethnicity (columns)."""
    return {
        f"{gender} and {ethnic}": shares[i, j]
        for i, gender in enumerate(ART_FULL_SCHEMA["Gender"].classes)
        for j, ethnic in enumerate(ART_FULL_SCHEMA["Ethnic"].classes)
    }


# --- What is simulated -------------------------------------------------------


def measure(table: pd.DataFrame) -> Numbers:
    """Measure on a full tidy table what was published, and the misfit.

    The keys are those of `published`, in the same order, and a few more.
    """
    rows = {}
    for lab in LABS:
        values = np.quantile(table[lab], list(QUANTILES.values()))
        for name, value in zip(QUANTILES, values, strict=True):
            rows[f"{lab} {name}"] = value
        rows[f"{lab} mean"] = table[lab].mean()
        # 1e-3 is what the published fit added.
        powered, power = stats.boxcox(table[lab].to_numpy() + 1e-3)
        rows[f"{lab} Box-Cox lambda"] = power
        rows[f"{lab} Box-Cox minimum"] = powered.min()
        rows[f"{lab} Box-Cox range"] = np.ptp(powered)
    for lab, bounds in BOUNDS.items():
        for bound in bounds:
            rows[f"P({lab} < {bound:g})"] = (table[lab] < bound).mean()
    for feature in ART_FULL_SCHEMA.categoricals:
        for label in feature.classes:
            share = (table[feature.name] == label).mean()
            rows[f"{feature.name} = {label}"] = share
    cells = pd.crosstab(table["Gender"], table["Ethnic"], normalize=True)
    rows |= _cells(cells.to_numpy())
    for flag in ART_FLAGS:
        rows[f"{flag} = True"] = table[flag].mean()
    active = _active_classes(table)
    for count in range(3):
        rows[f"{count} of INI, NNRTI, PI"] = (active == count).mean()
    first = table[table["Timestep"] == 0]
    rows["month 0: VL > 1000"] = (first["VL"] > 1000).mean()
    rows["month 0: CD4 < 500"] = (first["CD4"] < 500).mean()
    rows |= _changes(table)
    rows |= _correlations(table)
    rows |= _dynamics(table)
    return rows | _histogram_misfit(table)


def by_patient(values: pd.Series) -> np.ndarray:
    """Fold a column of a sorted table into (patients, months)."""
    return values.to_numpy().reshape(-1, MONTHS)


def regimens(table: pd.DataFrame) -> np.ndarray:
    """Give each drug combination a number; shape (patients, months)."""
    code = np.zeros(len(table), dtype=int)
    for drug in DRUGS:
        code = code * 10 + table[drug].cat.codes.to_numpy()
    return code.reshape(-1, MONTHS)


def _active_classes(table: pd.DataFrame) -> pd.Series:
    """Count INI, NNRTI and PI in each month's regimen."""
    pi_bases = ["DRV + FTC + TDF", "FTC + RTVB + TDF"]
    pi = table["Extra_PI"] != "Not Applied"
    pi |= table["Base_Drug_Combo"].isin(pi_bases)
    ini = table["Comp_INI"] != "Not Applied"
    nnrti = table["Comp_NNRTI"] != "Not Applied"
    return pi.astype(int) + ini + nnrti


def _changes(table: pd.DataFrame) -> Numbers:
    change = np.diff(regimens(table), axis=1) != 0
    low = by_patient(table["VL"] <= 1000)
    first = np.where(low.any(axis=1), low.argmax(axis=1), MONTHS)
    # A change in column k happens in month k + 1.
    before = change & (np.arange(1, MONTHS) < first[:, None])
    starters = ~low[:, 0]
    return {
        "patients with a regimen change": change.any(axis=1).mean(),
        "changes before first VL <= 1000": before[starters].sum(axis=1).mean(),
        "starters who reach VL <= 1000": low[starters].any(axis=1).mean(),
    }


def _histogram_misfit(table: pd.DataFrame) -> Numbers:
    """Total variation distance to the published histograms."""
    rows = {}
    for lab in LABS:
        fact = FACTS[f"hist.{lab.replace('_', '')}"]
        share = np.array(fact["p"])
        edges = fact["bin_width"] * (np.arange(len(share) + 1) - 0.5)
        counts, _ = np.histogram(table[lab], edges)
        distance = np.abs(counts / len(table) - share).sum() / 2
        rows[f"{lab} histogram, distance"] = distance
    return rows


def one_hot(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Lay out the 38 columns of the published correlation matrix."""
    names = {
        "Gender": ["gender_male", "gender_female"],
        "Ethnic": [
            f"ethnic_{e}" for e in ("asian", "afro", "caucasian", "other")
        ],
        "Base_Drug_Combo": [f"bdc{k}" for k in range(1, 7)],
        "Comp_INI": [f"ini_{d}" for d in ("dtg", "ral", "evg", "na")],
        "Comp_NNRTI": [f"nnrti_{d}" for d in ("nvp", "efv", "rpv", "na")],
        "Extra_PI": [f"pi{k}" for k in range(1, 7)],
        "Extra_pk_En": ["pk0", "pk1"],
    }
    columns = {
        "vl": table["VL"],
        "cd4": table["CD4"],
        "relcd4": table["Rel_CD4"],
        "time": table["Timestep"],
    }
    for feature, labels in names.items():
        codes = table[feature].cat.codes
        columns |= {label: codes == k for k, label in enumerate(labels)}
    for flag, label in zip(ART_FLAGS, ("vlm", "cd4m", "drugm"), strict=True):
        columns |= {f"{label}0": ~table[flag], f"{label}1": table[flag]}
    return {name: c.to_numpy(dtype=float) for name, c in columns.items()}


def _correlations(table: pd.DataFrame) -> Numbers:
    target, index = published_correlations()
    columns = one_hot(table)
    matrix = np.corrcoef(np.stack([columns[label] for label in index]))
    rows = {
        f"correlation {name}": matrix[index[a], index[b]]
        for name, (a, b) in CORRELATIONS.items()
    }
    pairs = np.triu_indices(len(index), 1)
    off = matrix[pairs] - target[pairs]
    rows["one-hot correlations, rmse"] = np.sqrt(np.mean(off**2))
    rows["one-hot correlations, largest error"] = np.abs(off).max()
    agreement = np.corrcoef(matrix[pairs], target[pairs])[0, 1]
    rows["one-hot correlations, agreement"] = agreement
    return rows


def _dynamics(table: pd.DataFrame) -> Numbers:
    """Correlate detrended labs, and vote on the signs of trends.

    Cycle: Fisher mean over patients of the correlation of the detrended
    values. Trend: mean over patients of the product of the slopes' signs.
    """
    values = {c: by_patient(table[c].astype(float)) for c in (*LABS, "CD4_M")}
    cycles = {c: stats.zscore(signal.detrend(values[c]), 1) for c in LABS}
    month = np.arange(MONTHS) - np.mean(np.arange(MONTHS))
    slopes = {c: np.sign(v @ month) for c, v in values.items()}
    rows = {}
    for a, b in (("VL", "CD4"), ("VL", "Rel_CD4"), ("CD4", "Rel_CD4")):
        r = np.mean(cycles[a] * cycles[b], axis=1).clip(-0.999999, 0.999999)
        rows[f"cycle {a}-{b}"] = np.tanh(np.arctanh(r).mean())
    for a, b in (("VL", "CD4"), ("CD4_M", "Rel_CD4")):
        rows[f"trend {a}-{b}"] = np.mean(slopes[a] * slopes[b])
    return rows


# --- Commands ----------------------------------------------------------------


def knots() -> pd.DataFrame:
    """Compute the calibration table for the present simulator.

    At each level: the quantile of the simulated, uncalibrated labs of twenty
    cohorts. The two ends are the extreme that nine cohorts in ten reach, so
    that most cohorts have the published minimum and maximum.
    """
    table = pd.read_csv(KNOTS)
    cohorts = [
        _Cohort(FULL_SIZE, seed, SimulatorParameters()).labs
        for seed in CALIBRATION_SEEDS
    ]
    for lab in LABS:
        values = np.stack([labs[lab].ravel() for labs in cohorts])
        rows = table["lab"] == lab
        latent = np.quantile(values, table.loc[rows, "level"])
        latent[0] = np.quantile(values.min(axis=1), 0.9)
        latent[-1] = np.quantile(values.max(axis=1), 0.1)
        table.loc[rows, "latent"] = latent.round(4)
        if not (np.diff(latent) > 0).all():
            raise ValueError(f"{lab}: knots out of order, drop a level")
    return table


def comparison() -> str:
    """Write the table of published and simulated numbers as Markdown."""
    target = published()
    here = measure(simulate_art())
    others = [measure(simulate_art(seed=seed)) for seed in SPREAD_SEEDS]
    lines = [
        "| fact | published | seed 42 | spread |",
        "|---|---:|---:|---:|",
    ]
    for name, value in here.items():
        spread = np.std([other[name] for other in others], ddof=1)
        known = _number(target[name], 4) if name in target else "–"
        cells = [known, _number(value, 4), _number(spread, 1)]
        label = name.replace("<=", "≤").replace("_", r"\_")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def effects() -> str:
    """Write the true effects as a Markdown table."""
    lines = ["| effect | of | value | scale |", "|---|---|---:|---|"]
    for row in true_effects().itertuples():
        of = f"{row.feature}: {row.level}" if row.feature else "everybody"
        of = of.replace("_", r"\_")
        lines.append(f"| {row.effect} | {of} | {row.value:g} | {row.scale} |")
    return "\n".join(lines)


def _number(value: float, digits: int) -> str:
    """Round to significant digits, never in exponents; 0 for next to 0."""
    if abs(value) < 1e-9:
        return "0"
    decimals = max(digits - 1 - int(np.floor(np.log10(abs(value)))), 0)
    return f"{value:.{min(decimals, 4)}f}"


def section(name: str, text: str) -> str:
    """Cut out of a page what stands between a section's two markers."""
    start, end = _markers(name)
    return text.split(start)[1].split(end)[0].strip()


def replaced(name: str, table: str, text: str) -> str:
    """Put a table between a section's two markers, for what was there."""
    start, end = _markers(name)
    old = section(name, text)
    return text.replace(
        f"{start}\n\n{old}\n\n{end}", f"{start}\n\n{table}\n\n{end}"
    )


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: start -->", f"<!-- {name}: end -->"


def write_card() -> None:
    """Measure, and put both tables between their markers in the page."""
    text = CARD.read_text("utf-8")
    for name, table in (("comparison", comparison()), ("effects", effects())):
        text = replaced(name, table, text)
    CARD.write_text(text, "utf-8")


def main() -> None:
    """Run the command asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("calibrate", "card"))
    if parser.parse_args().command == "calibrate":
        knots().to_csv(KNOTS, index=False, lineterminator="\n")
    else:
        write_card()


if __name__ == "__main__":
    main()
