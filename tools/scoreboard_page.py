"""Write the scoreboard's page from its results: the figure and all tables.

python tools/scoreboard_page.py

Reads healthgym_utils/results/scoreboard.csv and the tables of several
trainings beside it; writes what stands between the markers in
book/scoreboard.md, and book/_figures/scoreboard.html. ``make scoreboard``
runs it after the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd
from simulated_cohort import ROOT, replaced

from healthgym_utils import load_results, pretrained

PAGE = ROOT / "book" / "scoreboard.md"
FIGURE = ROOT / "book" / "_figures" / "scoreboard.html"
GROUPS = {
    "One variable at a time": ["KS", "Wasserstein", "TV"],
    "Groups of people": ["statics' joint TV", "mass lost", "statics vary"],
    "Relations, all months pooled": [
        "rank correlation",
        "Pearson",
        "Cramér's V",
        "correlation ratio",
    ],
    "Relations within patients": ["trend", "cycle", "CCF"],
    "Drugs over time": ["transition TV", "switch rate", "dwell time"],
    "Labs over time": [
        "ACF",
        "patient mean",
        "patient sd",
        "patient step",
        "Kaplan-Meier",
    ],
    "Judges": ["C2ST", "utility gap"],
    "Privacy": [
        "membership",
        "closest record",
        "distance ratio",
        "neighbour ratio",
        "exact copies",
    ],
}
# On this side of its best value a figure says nothing against a cohort: it is
# as hard to tell apart, as useful and as far from everybody as can be.
HARMLESS = {
    "C2ST": -1,
    "utility gap": -1,
    "membership": -1,
    "closest record": -1,
    "distance ratio": 1,
    "neighbour ratio": 1,
}
FIDELITY = [
    name
    for group, names in GROUPS.items()
    if group != "Privacy"
    for name in names
]
FLOOR = ["floor", "worst"]  # heads of two columns
PLAIN = "Markov walk"  # what a trained model should beat
# Where long words may break on a phone.
BREAKS = {
    "correlation": "corre&shy;lation",
    "membership": "mem&shy;ber&shy;ship",
    "neighbour": "neigh&shy;bour",
    "transition": "transi&shy;tion",
    "Wasserstein": "Wasser&shy;stein",
}
DARKEST = 30  # times the floor, and above
CAPTION = """\
Distance of each cohort from a perfect one, as a multiple of what chance alone
does to samples of real patients: the mean of three seeds{fewer}. <span
class="real">Blue</span>: no further off than the worst of 20 samples of real
patients. <span class="synthetic">Vermillion</span>: further, the stronger the
more. Grey: off on the harmless side, such as too far away from everybody."""


def cells(board: pd.DataFrame, floors: pd.DataFrame) -> pd.DataFrame:
    """Average over seeds, and say how each figure stands to chance.

    Returns
    -------
    DataFrame
        One row a (name, figure): the means, ``worst``, the draw of the floor
        that is furthest off, ``verdict``, "chance", "harmless" or "off", and
        the ``kind`` of cohort.
    """
    columns = ["value", "low", "high", "floor", "ratio", "best"]
    keys = ["name", "figure"]
    table = board.groupby(keys, sort=False)[columns].mean()
    figure = table.index.get_level_values("figure")
    best = table["best"].groupby("figure", sort=False).first()
    draws = floors[best.index]
    worst = {
        name: draws[name][(draws[name] - best[name]).abs().idxmax()]
        for name in draws
    }
    table["worst"] = figure.map(worst)
    off = table["value"] - table["best"]
    side = figure.map(HARMLESS).fillna(0.0)
    verdict = np.where(off * side > 0, "harmless", "off")
    like = off.abs() <= (table["worst"] - table["best"]).abs()
    table["verdict"] = np.where(like, "chance", verdict)
    table["kind"] = board.groupby(keys, sort=False)["kind"].first()
    return table


# --- The figure --------------------------------------------------------------


def heat_map(board: pd.DataFrame, floors: pd.DataFrame) -> str:
    """Draw the ratios as coloured tables, one for each group of figures."""
    table = cells(board, floors)
    seeds = board.groupby("name", sort=False)["seed"].nunique()
    fewer = [f" ({n} of {name})" for name, n in seeds.items() if n < 3]
    caption = CAPTION.format(fewer="".join(fewer))
    panels = "\n".join(_panel(group, table) for group in GROUPS)
    return (
        '<figure class="scores" id="fig-scoreboard">\n'
        f'<div class="panels">\n{panels}\n</div>\n'
        f"<figcaption>{caption}</figcaption>\n</figure>\n"
    )


def _panel(group: str, table: pd.DataFrame) -> str:
    figures = GROUPS[group]
    heads = "".join(f'<th scope="col">{_head(name)}</th>' for name in figures)
    bodies = []
    for _, rows in table.groupby("kind", sort=False):
        lines = [
            f'<tr><th scope="row">{escape(name)}</th>'
            + "".join(_cell(rows.loc[name, figure]) for figure in figures)
            + "</tr>"
            for name in rows.index.unique("name")
        ]
        bodies += ["<tbody>", *lines, "</tbody>"]
    return "\n".join(
        [
            "<table>",
            f"<caption>{group}</caption>",
            f"<thead><tr><td></td>{heads}</tr></thead>",
            *bodies,
            "</table>",
        ]
    )


def _head(figure: str) -> str:
    text = escape(figure)
    for word, parts in BREAKS.items():
        text = text.replace(word, parts)
    return text


def _cell(row: pd.Series) -> str:
    """Colour a ratio by how far it is, on a logarithmic scale."""
    heat = np.log(np.clip(row["ratio"], 1, DARKEST)) / np.log(DARKEST)
    style = f' style="--heat: {heat:.2f}"' if row["verdict"] == "off" else ""
    text = _times(row["ratio"])
    return f'<td class="{row["verdict"]}"{style}>{text}</td>'


# --- Tables ------------------------------------------------------------------


def like_chance(table: pd.DataFrame, name: str) -> int:
    """Count the figures of fidelity that a cohort is no further off in."""
    return int((table.loc[name].loc[FIDELITY, "verdict"] != "off").sum())


def summary(table: pd.DataFrame) -> str:
    """Count, for each cohort, what it gets right; a Markdown table."""
    off = (table["value"] - table["best"]).abs().round(3)
    plain = off[PLAIN][FIDELITY]
    lines = []
    for name in table.index.unique("name"):
        rows = table.loc[name]
        judged = rows.loc[FIDELITY]
        nearer = (off[name][FIDELITY] < plain).sum()
        lines.append(
            [
                name,
                str(like_chance(table, name)),
                "–" if name == PLAIN else str(nearer),
                _times(judged["ratio"].median()),
                _number(rows.loc["C2ST", "value"]),
                _number(rows.loc["membership", "value"]),
            ]
        )
    heads = ["cohort", "like chance", f"nearer than the {PLAIN}"]
    return _markdown([*heads, "median ratio", "C2ST", "membership"], lines)


def values(table: pd.DataFrame, names: Sequence[str]) -> str:
    """Lay figures (rows) and cohorts (columns) out; a Markdown table."""
    lines = []
    for figure in table.index.unique("figure"):
        rows = [table.loc[name, figure] for name in names]
        numbers = [
            f"**{_number(row['value'])}**"
            if row["verdict"] == "chance"
            else _number(row["value"])
            for row in rows
        ]
        lines.append([figure, *_floor(rows[0]), *numbers])
    return _markdown(["figure", *FLOOR, *names], lines)


def spreads(board: pd.DataFrame) -> str:
    """Compare seeds of sampling with seeds of training; a Markdown table."""
    lines = []
    for name in board["name"].unique():
        trained = trainings(name)
        if trained.empty:
            continue
        sampled = board[board["name"] == name].pivot(
            index="seed", columns="figure", values="value"
        )
        ranges = [
            _range(seeds[figure])
            for figure in ("KS", "TV")
            for seeds in (sampled, trained)
        ]
        lines.append([name, *ranges, str(len(trained))])
    heads = [
        f"{f}, {s}" for f in ("KS", "TV") for s in ("samples", "trainings")
    ]
    return _markdown(["model", *heads, "trainings"], lines)


def details(table: pd.DataFrame, board: pd.DataFrame) -> str:
    """Fold up, for each cohort, all that is known of it."""
    blocks = []
    for name in table.index.unique("name"):
        ours = board[board["name"] == name]
        sampled = ours.pivot(index="seed", columns="figure", values="value")
        trained = trainings(name)
        heads = ["figure", "mean", "seeds", "interval"]
        heads += [] if trained.empty else [f"{len(trained)} trainings"]
        lines = []
        for figure, row in table.loc[name].iterrows():
            cell = [figure, _number(row["value"]), _range(sampled[figure])]
            cell.append(_span(row["low"], row["high"]))
            if not trained.empty:
                known = figure in trained
                cell.append(_range(trained[figure]) if known else "–")
            lines.append([*cell, *_floor(row), _times(row["ratio"])])
        text = _markdown([*heads, *FLOOR, "ratio"], lines)
        blocks.append(
            f"<details>\n<summary>{name}</summary>\n\n{text}\n\n</details>"
        )
    return "\n\n".join(blocks)


def trainings(name: str) -> pd.DataFrame:
    """Look figures of a model's several trainings up.

    Returns
    -------
    DataFrame
        One row a seed of the training, one column a figure of the board;
        without rows if there is one training only.
    """
    source = f"fidelity_{name.rpartition('-')[0]}"
    if not (pretrained.RESULTS / f"{source}.csv").exists():
        return pd.DataFrame()
    table = load_results(source)
    table = table[table["name"] == name].pivot(
        index="seed", columns="figure", values="value"
    )
    if len(table) < 2:
        return pd.DataFrame()
    for mean in ("KS", "TV"):
        # Cards of GANs have them for each variable only.
        if mean not in table:
            parts = table.filter(regex=f"^{mean} ")
            table[mean] = parts.mean(axis=1)
    return table


# --- Shared ------------------------------------------------------------------


def _markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Write a table, its first column of words and the others of numbers."""
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _number(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _span(low: float, high: float) -> str:
    if np.isnan(low):
        return "–"
    return f"{_number(low)} to {_number(high)}"


def _range(seeds: pd.Series) -> str:
    return _span(seeds.min(), seeds.max())


def _floor(row: pd.Series) -> tuple[str, str]:
    return _number(row["floor"]), _number(row["worst"])


def _times(ratio: float) -> str:
    if np.isinf(ratio):
        return "∞"
    return f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}"


def sections() -> dict[str, str]:
    """Write all tables of the page, by the name of their markers."""
    board = load_results("scoreboard")
    table = cells(board, load_results("scoreboard_floor"))
    trained = board["kind"] == "generation"
    return {
        "summary": summary(table),
        "generations": values(table, board[trained]["name"].unique()),
        "baselines": values(table, board[~trained]["name"].unique()),
        "spreads": spreads(board),
        "details": details(table, board),
    }


def figure() -> str:
    """Draw the page's figure."""
    return heat_map(
        load_results("scoreboard"), load_results("scoreboard_floor")
    )


def main() -> None:
    """Put everything in its place."""
    text = PAGE.read_text("utf-8")
    for name, table in sections().items():
        text = replaced(name, table, text)
    PAGE.write_text(text, "utf-8")
    FIGURE.write_text(figure(), "utf-8")


if __name__ == "__main__":
    main()
