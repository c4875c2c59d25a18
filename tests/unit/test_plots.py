"""The player is one piece of text that works by itself."""

import re
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from colorspacious import cspace_convert, deltaE
from matplotlib.colors import to_rgb

from healthgym_utils import plots

ALT = 'A dot that moves from left to right, "slowly"'


def frames(count):
    for k in range(count):
        figure, ax = plt.subplots(figsize=(2, 1), dpi=50)
        ax.plot(k, 0, "o")
        ax.set_xlim(-1, count)
        yield figure


def test_player_holds_all_frames_and_no_address():
    captions = [f"Step {k}" for k in range(3)]
    page = plots.player(frames(3), captions, ALT, start=1).data
    pictures = re.search(r"const pictures = (\[.+\]);", page)[1].split(", ")
    assert len(set(pictures)) == 3
    assert page.count(pictures[1].strip('"[]')) == 2  # shown, and in the list
    assert "http" not in page
    assert 'max="2" value="1"' in page
    assert not plt.get_fignums()


def test_player_is_the_same_every_time():
    captions = ["a", "b"]
    once, again = (plots.player(frames(2), captions, ALT) for _ in range(2))
    assert once.data == again.data


def test_player_escapes_what_it_is_given():
    captions = ["</script><b>", "b"]
    page = plots.player(frames(2), captions, ALT).data
    assert "&quot;slowly&quot;" in page
    assert page.count("</script>") == 1
    assert "<b>" not in page


def test_player_refuses_frames_without_captions():
    with pytest.raises(ValueError, match="3 frames and 2 captions"):
        plots.player(frames(3), ["a", "b"], ALT)
    with pytest.raises(ValueError, match="no frame 3 among 3"):
        plots.player(frames(3), ["a", "b", "c"], ALT, start=3)


PALETTE = [to_rgb(c) for c in (plots.REAL, plots.SYNTHETIC, *plots.SERIES)]
# About 1 is what a trained eye can just tell apart, side by side.
APART, FAR_APART = 10, 40


@pytest.mark.parametrize(
    "sight", [None, "deuteranomaly", "protanomaly", "tritanomaly"]
)
def test_palette_is_told_apart_whatever_the_sight(sight):
    """By everybody; real from synthetic at a glance (Machado et al. 2009)."""
    seen = np.array(PALETTE)
    if sight:
        space = {"name": "sRGB1+CVD", "cvd_type": sight, "severity": 100}
        seen = cspace_convert(seen, space, "sRGB1").clip(0, 1)
    gaps = {
        (i, j): deltaE(seen[i], seen[j], input_space="sRGB1")
        for i, j in combinations(range(len(seen)), 2)
    }
    assert min(gaps.values()) > APART
    assert gaps[0, 1] > FAR_APART


def test_real_and_synthetic_differ_in_a_photocopy():
    lightness = cspace_convert(PALETTE, "sRGB1", "CAM02-UCS")[:, 0]
    assert abs(lightness[0] - lightness[1]) > APART
    # What is neither comes with a line style of its own.
    assert len(set(plots.LINE_STYLES)) == len(plots.SERIES)
