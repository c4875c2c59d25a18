"""One look for every figure, and the figures that notebooks share.

Figures are 5.6 inches wide at 150 dots an inch, so that ten-point type is
body-text size on a desktop page and can still be read at 390 pixels.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from string import Template

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython import get_ipython
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from healthgym_utils.schema import Feature, Schema

# Okabe & Ito's palette, told apart by colour-blind readers and in grey.
# Blue is real and vermillion is synthetic, all through the book.
REAL = "#0072B2"
SYNTHETIC = "#D55E00"
GREY = "#595959"
# Everything that is neither: variables, methods, seeds. Line styles differ
# too, so that curves survive a photocopier.
SERIES = ("#009E73", "#CC79A7", GREY, "#E69F00", "#56B4E9")
LINE_STYLES = ("-", "--", "-.", ":", (0, (6, 1)))

WIDTH = 5.6


def use_style() -> None:
    """Set the book's look for all figures that follow."""
    plt.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.4),
            "figure.dpi": 150,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": plt.cycler(color=SERIES)
            + plt.cycler(linestyle=LINE_STYLES),
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#E3E3E3",
            "grid.linewidth": 0.6,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "image.cmap": "cividis",
        }
    )
    if get_ipython() is not None:
        # The inline backend crops each figure to its content, which gives
        # every figure another width and another type size on the page.
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats(
            "png", bbox_inches=None, metadata={"Software": None}
        )


def footer(fig: Figure, cohort: pd.DataFrame) -> None:
    """Say under a figure which cohort it shows, and how large it is."""
    source = cohort.attrs.get("source", "unnamed")
    patients = cohort["PatientID"].nunique()
    fig.supxlabel(
        f"Cohort: {source}, {patients:,} patients",
        x=0.01,
        ha="left",
        fontsize=9.5,
        color=GREY,
    )


def lab_axis(ax: Axes, feature: Feature, axis: str = "x") -> None:
    """Label an axis with title and unit; log scale for skewed labs."""
    getattr(ax, f"set_{axis}label")(feature.axis_label)
    if feature.transform == "boxcox":
        getattr(ax, f"set_{axis}scale")("log")


def lab_histogram(
    ax: Axes,
    values: Sequence[float],
    feature: Feature,
    color: str = REAL,
    label: str | None = None,
    bins: int = 50,
) -> None:
    """Draw a lab's histogram as shares, on its log axis where it has one.

    Parameters
    ----------
    ax : Axes
    values : sequence of float, shape (rows,)
        In clinical units, above zero where the axis is logarithmic.
    feature : Feature
        Names the axis and its unit.
    color, label, bins
        As in matplotlib.
    """
    values = np.asarray(values, float)
    if feature.transform == "boxcox":
        edges = np.geomspace(values.min(), values.max(), bins + 1)
    else:
        edges = np.linspace(values.min(), values.max(), bins + 1)
    weights = np.full(len(values), 100 / len(values))
    ax.hist(values, edges, weights=weights, color=color, label=label)
    lab_axis(ax, feature)
    ax.set_ylabel("Share of months (%)")


def design_heatmap(ax: Axes, x: np.ndarray, schema: Schema) -> None:
    """Draw one patient's design matrix with a border around each feature.

    Parameters
    ----------
    ax : Axes
    x : array, shape (months, schema.width)
        One patient; values are drawn from 0 (dark) to 1 (light).
    schema : Schema
        Where the features begin and end.
    """
    ax.imshow(x, aspect="auto", vmin=0, vmax=1, interpolation="nearest")
    ax.grid(False)
    for feature in schema:
        span = schema.spans[feature.name]
        if span.start:
            ax.axvline(span.start - 0.5, color="white", linewidth=2)
    ax.set_xticks(
        [(s.start + s.stop - 1) / 2 for s in schema.spans.values()],
        schema.names,
        rotation=40,
        ha="right",
        rotation_mode="anchor",
    )
    ax.set_ylabel("Month")


def flow(
    ax: Axes,
    stages: Sequence[str],
    color: str = REAL,
    x: float = 0.5,
    width: float = 0.9,
) -> None:
    """Draw stages as boxes from top to bottom, an arrow between each two.

    Parameters
    ----------
    ax : Axes
        Its axes are hidden; the drawing fills x 0 to 1 and y 0 to 1.
    stages : sequence of str
        Text of each box; a second line after a line break is set smaller.
    color : str
        Colour of borders and arrows.
    x, width : float
        Centre and width of the boxes, so that two flows can share axes.
    """
    ax.set_axis_off()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    pitch = 1 / len(stages)
    height = 0.62 * pitch
    for k, stage in enumerate(stages):
        y = 1 - (k + 0.5) * pitch
        box = FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.02",
            facecolor=f"{color}14",
            edgecolor=color,
            linewidth=1.4,
        )
        ax.add_patch(box)
        name, _, detail = stage.partition("\n")
        offset = 0.17 * height if detail else 0
        ax.text(x, y + offset, name, ha="center", va="center")
        if detail:
            ax.text(
                x,
                y - 1.4 * offset,
                detail,
                ha="center",
                va="center",
                fontsize=9.5,
                color=GREY,
            )
        if k:
            ax.annotate(
                "",
                xy=(x, y + height / 2),
                xytext=(x, y + pitch - height / 2),
                arrowprops={"arrowstyle": "->", "color": color, "lw": 1.4},
            )


def player(
    frames: Iterable[Figure],
    captions: Sequence[str],
    alt: str,
    start: int = 0,
    milliseconds: int = 250,
) -> HTML:
    """Show figures one after the other, with a slider and a play button.

    Needs no network and no kernel. Nothing moves until the reader asks for
    it; the slider takes the arrow keys. Where scripts do not run, as on
    GitHub, the frame at ``start`` stands as a picture.

    Parameters
    ----------
    frames : iterable of Figure
        All of one size; each is drawn and closed, so a generator is best.
    captions : sequence of str
        What each frame shows, such as "Step 50 of 500". Shown beside the
        slider, and read out by screen readers.
    alt : str
        What the frames show, as a whole.
    start : int
        The frame shown first.
    milliseconds : int
        Pause between two frames; four times as long for readers who have
        asked their system for less motion.

    Raises
    ------
    ValueError
        If there is not one caption a frame, or no frame ``start``.
    """
    pictures = [_webp(figure) for figure in frames]
    if len(pictures) != len(captions):
        raise ValueError(
            f"{len(pictures)} frames and {len(captions)} captions: give each "
            "frame one"
        )
    if not 0 <= start < len(pictures):
        raise ValueError(f"no frame {start} among {len(pictures)}")
    # The same frames give the same page, whenever it is built.
    name = "player-" + hashlib.sha256("".join(pictures).encode()).hexdigest()
    template = resources.files("healthgym_utils") / "templates" / "player.html"
    page = Template(template.read_text(encoding="utf-8"))
    return HTML(
        page.substitute(
            name=name[:19],
            alt=html.escape(alt),
            picture=pictures[start],
            caption=html.escape(captions[start]),
            start=start,
            last=len(pictures) - 1,
            # A caption may not end the script that holds it.
            captions=json.dumps(list(captions)).replace("<", "\\u003c"),
            pictures=json.dumps(pictures),
            milliseconds=milliseconds,
        )
    )


def _webp(figure: Figure) -> str:
    """Draw a figure, close it, and return it as an address of data."""
    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba()))
    plt.close(figure)
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "WEBP", quality=70, method=6)
    code = base64.b64encode(stream.getvalue()).decode()
    return f"data:image/webp;base64,{code}"
