"""The player is one piece of text that works by itself."""

import re

import matplotlib.pyplot as plt
import pytest

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
