"""Draw what stands for the whole book: its cover and its social preview.

python tools/cover.py

Samples patients from the trained models that come with the package, counts
on the scoreboard what each model gets right, and writes
book/_figures/cover.html, book/_assets/social.png and, from favicon.svg,
book/_assets/apple-touch-icon.png. ``make cover`` runs it, within a minute;
run it again after a model or the scoreboard has changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple
from xml.etree import ElementTree

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scoreboard_page
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from simulated_cohort import ROOT

import healthgym_utils as hg
from healthgym_utils.plots import GREY, REAL, SYNTHETIC

COVER = ROOT / "book" / "_figures" / "cover.html"
ASSETS = ROOT / "book" / "_assets"
SOCIAL = ASSETS / "social.png"
FAVICON = ASSETS / "favicon.svg"
TOUCH_ICON = ASSETS / "apple-touch-icon.png"

TRAINED_ON = 300  # patients; see the models' cards
DRAWN = 10  # patients a panel: the first ones, none of them picked
MONTHS = 60
SEED = 42
DECADES = (-1, 5)  # of the axis: 0.1 to 100,000 copies/mL
TICKS = {1: "10", 3: "1,000", 5: "100,000"}
HEIGHT = 300  # of a panel, in units of its own
TABLE_MONTHS = 4
SHEET_MONTHS = 12
SHADES = 5
MARKUP = {
    "real": '<span class="real">Blue</span>',
    "synthetic": '<span class="synthetic">Vermillion</span>',
}


class Generation(NamedTuple):
    """One trained model, and what is new in it."""

    model: str
    name: str
    idea: str


GENERATIONS = (
    Generation("v1-200", "v1", "recurrent WGAN-GP"),
    Generation("v2-100", "v2", "with a memory"),
    Generation("v2.5-100", "v2.5", "with a transformer"),
    Generation("v3-250", "v3", "diffusion"),
)


# --- What is drawn -----------------------------------------------------------


def loads(cohort: pd.DataFrame) -> np.ndarray:
    """Return the viral loads of a cohort's first patients.

    Returns
    -------
    array, shape (DRAWN, MONTHS)
        As decimal logarithms of copies/mL.
    """
    table = cohort.pivot(index="PatientID", columns="Timestep", values="VL")
    return np.log10(table.to_numpy()[:DRAWN])


def sampled(model: str, preprocessor: hg.Preprocessor) -> np.ndarray:
    """Let a trained model make patients; return their viral loads."""
    generator = hg.load_pretrained(model)
    hg.seed_everything(SEED)
    x = generator.sample(DRAWN, MONTHS)
    return loads(preprocessor.inverse_transform(x))


def verdicts() -> tuple[dict[str, int], int]:
    """Count what each model gets right, and out of how many figures."""
    table = scoreboard_page.cells(
        hg.load_results("scoreboard"), hg.load_results("scoreboard_floor")
    )
    counts = {
        generation.model: scoreboard_page.like_chance(table, generation.model)
        for generation in GENERATIONS
    }
    return counts, len(scoreboard_page.FIDELITY)


# --- The cover ---------------------------------------------------------------


def outline(decades: Sequence[float]) -> str:
    """Write one trajectory as path data: a step right for each month."""
    low, high = DECADES
    shares = (np.asarray(decades) - low) / (high - low)
    heights = np.round(HEIGHT * (1 - np.clip(shares, 0, 1))).astype(int)
    steps = " ".join(f"1 {step}" for step in np.diff(heights))
    return f"M0 {heights[0]}l{steps}".replace(" -", "-")


def grid() -> str:
    """Write the lines of the axis' labelled values as path data."""
    low, high = DECADES
    heights = [HEIGHT * (high - tick) // (high - low) for tick in TICKS]
    return "".join(f"M0 {y}h{MONTHS - 1}" for y in heights)


def plot(kind: str, lines: Iterable[Sequence[float]], label: str) -> str:
    """Draw trajectories; the drawing stretches to any width and height."""
    paths = "\n".join(f'<path d="{outline(line)}"/>' for line in lines)
    return (
        f'<svg class="plot" viewBox="0 0 {MONTHS - 1} {HEIGHT}" '
        f'preserveAspectRatio="none" role="img" aria-label="{label}">\n'
        f'<path class="grid" d="{grid()}"/>\n'
        f'<g class="{kind}">\n{paths}\n</g>\n</svg>'
    )


def in_words(lines: np.ndarray) -> str:
    """Say where trajectories go, and how restless they are."""
    first, last = 10 ** np.median(lines[:, [0, -1]], axis=0)
    change = 10 ** np.median(np.abs(np.diff(lines)))
    return (
        f"the median goes from {first:,.0f} to {last:,.0f} copies/mL, and a "
        f"month differs from the next by a factor of {change:.1f}"
    )


def ticks() -> str:
    """Label the values of the grid."""
    low, high = DECADES
    labels = [
        f'<span style="top:{100 * (high - tick) / (high - low):.0f}%">'
        f"{text}</span>"
        for tick, text in TICKS.items()
    ]
    return f'<div class="ticks" aria-hidden="true">{"".join(labels)}</div>'


def tally(right: int, total: int) -> str:
    """Draw a row of marks, one a figure, filled for those like chance."""
    full = "".join(f"M{3 * i} 0h2v4h-2z" for i in range(right))
    empty = "".join(f"M{3 * i} 0h2v4h-2z" for i in range(right, total))
    return (
        f'<svg class="tally" viewBox="0 0 {3 * total - 1} 4" role="img" '
        f'aria-label="{right} of {total} marks are filled">'
        f'<path class="full" d="{full}"/><path class="empty" d="{empty}"/>'
        "</svg>"
    )


def panel(
    generation: Generation, lines: np.ndarray, right: int, total: int
) -> str:
    """Write the panel of one generation."""
    label = (
        f"{DRAWN} synthetic viral loads over {MONTHS} months, made by "
        f"{generation.name}: {in_words(lines)}"
    )
    return (
        '<div class="panel">\n'
        f"<p><b>{generation.name}</b> {generation.idea}</p>\n"
        f"{plot('synthetic', lines, label)}\n{tally(right, total)}\n"
        f'<p class="score">{right} of {total} within chance</p>\n</div>'
    )


def real_panel(lines: np.ndarray) -> str:
    """Write the panel of the patients that the models learn from."""
    label = (
        f"{DRAWN} simulated viral loads over {MONTHS} months: "
        f"{in_words(lines)}"
    )
    return (
        '<div class="panel origin">\n'
        "<p><b>Real</b> a simulated cohort plays the part</p>\n"
        f'<div class="axes">{ticks()}{plot("real", lines, label)}</div>\n'
        f'<p class="months"><span>month 0</span><span>month {MONTHS - 1}'
        "</span></p>\n</div>"
    )


def raw_table(cohort: pd.DataFrame) -> str:
    """Write the first patient's first months, as they come."""
    rows = "\n".join(
        f"<tr><td>{row.Timestep}</td><td>{row.VL:,.0f}</td>"
        f"<td>{row.CD4:,.0f}</td>"
        f"<td>{escape(row.Base_Drug_Combo)}</td></tr>"
        for row in cohort.head(TABLE_MONTHS).itertuples()
    )
    heads = "".join(
        f'<th scope="col">{head}</th>'
        for head in ("Month", "Viral load", "CD4", "Drugs")
    )
    return (
        f"<table>\n<thead><tr>{heads}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody>\n</table>"
    )


def tensor(x: np.ndarray) -> str:
    """Draw a patient's matrix in front of those of two others.

    Parameters
    ----------
    x : array, shape (months, columns)
        From 0 to 1.
    """
    side, shift = 6, 7
    months, columns = x.shape
    width, height = side * columns, side * months
    sheets = "".join(
        f'<rect class="sheet" x="{shift * (2 - i) + 1}" y="{shift * i + 1}" '
        f'width="{width}" height="{height}"/>'
        for i in range(3)
    )
    # The last sheet is in front, at the left and below.
    shades = np.ceil(x * SHADES).astype(int)
    cells = []
    for shade in range(1, SHADES + 1):
        data = "".join(
            f"M{1 + side * column} {1 + 2 * shift + side * month}"
            f"h{side}v{side}h-{side}z"
            for month, column in np.argwhere(shades == shade)
        )
        if data:
            opacity = f"{0.15 + 0.85 * shade / SHADES:.2f}"
            cells.append(f'<path style="opacity:{opacity}" d="{data}"/>')
    label = (
        f"Three sheets, one behind the other; the first shows {columns} "
        f"columns and {months} months of one patient as shades of blue"
    )
    box = f"0 0 {width + 2 * shift + 2} {height + 2 * shift + 2}"
    return (
        f'<svg class="tensor real" viewBox="{box}" role="img" '
        f'aria-label="{label}">\n{sheets}\n' + "\n".join(cells) + "\n</svg>"
    )


def step(number: int, text: str) -> str:
    """Write the heading of one of the cover's steps."""
    return f'<p class="step"><b>{number}</b> <span>{text}</span></p>'


def cover(
    cohort: pd.DataFrame,
    x: np.ndarray,
    drawn: dict[str, np.ndarray],
    counts: dict[str, int],
    total: int,
) -> str:
    """Write the whole figure.

    Parameters
    ----------
    cohort : DataFrame
        What the models learned from.
    x : array, shape (months, columns)
        Its first patient, preprocessed.
    drawn : dict
        Viral loads of ``"real"`` and of each model.
    counts : dict of str to int
        How many of ``total`` figures are like chance, for each model.
    """
    columns = x.shape[1]
    panels = "\n".join(
        panel(g, drawn[g.model], counts[g.model], total) for g in GENERATIONS
    )
    return f"""\
<figure class="cover" id="fig-cover">
{step(1, "A table of patients becomes tensors.")}
<div class="making">
{raw_table(cohort)}
<div class="becomes" aria-hidden="true">→</div>
<div class="made">
{tensor(x)}
<p>patients × months × {columns} columns</p>
</div>
</div>
{step(2, "Four generations of models learn to make new ones.")}
<div class="panels">
{real_panel(drawn["real"])}
{panels}
</div>
{step(3, f"Each is judged by {total} measures: the rows of marks.")}
<figcaption>{MARKUP["real"]} is real, {MARKUP["synthetic"]} is synthetic, here
and in every figure. Viral load in copies/mL on a logarithmic axis, the same
in all five panels: {DRAWN} patients each, the first that came. A filled mark:
a measure of the <a href="scoreboard.html">scoreboard</a> on which the model's
patients are no further from real ones than other real patients are. The
cohort is simulated.</figcaption>
</figure>
"""


# --- The social preview and the icon -----------------------------------------


def social(drawn: dict[str, np.ndarray]) -> None:
    """Draw the picture that a shared link shows, 1200 × 630 pixels."""
    with mpl.rc_context({"font.family": "DejaVu Sans"}):
        fig = plt.figure(figsize=(12, 6.3), dpi=100, facecolor="white")
        fig.text(0.045, 0.83, "Health Gym", size=54, weight="bold")
        fig.text(
            0.047,
            0.725,
            "Synthetic longitudinal health data, made and judged",
            size=24,
        )
        names = {"real": "simulated cohort"}
        names |= {g.model: f"{g.name} {_short(g)}" for g in GENERATIONS}
        axes = fig.subplots(
            1,
            len(names),
            sharey=True,
            gridspec_kw={
                "left": 0.045,
                "right": 0.97,
                "bottom": 0.14,
                "top": 0.58,
                "wspace": 0.1,
            },
        )
        for ax, (key, name) in zip(axes, names.items(), strict=True):
            color = REAL if key == "real" else SYNTHETIC
            _small_plot(ax, drawn[key], color)
            ax.set_title(name, loc="left", size=15, weight="bold", color=color)
        fig.text(
            0.047,
            0.06,
            "Viral load of ten patients over five years. Blue: what models "
            "learn from; vermillion: what they make.",
            size=16,
            color=GREY,
        )
        fig.savefig(SOCIAL, metadata={"Software": None})
        plt.close(fig)


def _short(generation: Generation) -> str:
    return generation.idea.rpartition(" ")[2]


def _small_plot(ax: Axes, lines: np.ndarray, color: str) -> None:
    ax.plot(lines.T, color=color, linewidth=1.4, alpha=0.85)
    ax.set(ylim=DECADES, yticks=list(TICKS), xlim=(0, MONTHS - 1), xticks=[])
    ax.tick_params(length=0, labelleft=False)
    ax.grid(axis="y", color="#E3E3E3")
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def touch_icon() -> None:
    """Draw the favicon for home screens, which take no SVG."""
    size = 180
    fig = plt.figure(figsize=(1, 1), dpi=size, facecolor="white")
    ax = fig.add_axes((0.12, 0.12, 0.76, 0.76))
    ax.set(xlim=(0, 32), ylim=(32, 0))
    ax.axis("off")
    points = 72 * 0.76 / 32  # a unit of the drawing in points
    colors = {"real": REAL, "synthetic": SYNTHETIC}
    for path in ElementTree.parse(FAVICON).iterfind("{*}path"):
        ax.add_patch(
            PathPatch(
                _curve(path.get("d")),
                fill=False,
                edgecolor=colors[path.get("class")],
                linewidth=float(path.get("stroke-width")) * points,
                capstyle="round",
            )
        )
    fig.savefig(TOUCH_ICON, metadata={"Software": None})
    plt.close(fig)


def _curve(data: str) -> Outline:
    """Read path data of one move and cubic curves, all absolute."""
    numbers = np.array(re.findall(r"[\d.]+", data), float).reshape(-1, 2)
    codes = [Outline.MOVETO] + [Outline.CURVE4] * (len(numbers) - 1)
    return Outline(numbers, codes)


def main() -> None:
    """Sample, count, and write all three pictures."""
    cohort = hg.load_art("simulated", n_patients=TRAINED_ON)
    preprocessor = hg.Preprocessor(hg.ART_SCHEMA).fit(cohort)
    x = preprocessor.transform(cohort)[0, :SHEET_MONTHS].numpy()
    drawn = {"real": loads(cohort)}
    drawn |= {g.model: sampled(g.model, preprocessor) for g in GENERATIONS}
    COVER.write_text(cover(cohort, x, drawn, *verdicts()), encoding="utf-8")
    social(drawn)
    touch_icon()


if __name__ == "__main__":
    main()
