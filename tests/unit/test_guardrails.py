"""Guardrails keep, count and refuse as they say."""

import pytest
import torch
from cohorts import MADE_UP

from healthgym_utils.guardrails import (
    AcceptanceError,
    limited,
    outside,
    sample_accepted,
)

REALS = [MADE_UP.spans[f.name].start for f in MADE_UP.reals]


class Dice:
    """A model whose sequences leave the range with a known probability."""

    schema = MADE_UP

    def __init__(self, chance):
        self.chance = chance
        self.calls = []

    def sample(self, patients, months, seed=0, statics=None):
        random = torch.Generator().manual_seed(seed)
        x = torch.rand(patients, months, MADE_UP.width, generator=random)
        leaves = torch.rand(patients, generator=random) < self.chance
        x[leaves, months // 2, REALS[1]] = 1.01
        if statics is not None:
            x[..., REALS[2]] = statics
        self.calls.append((patients, seed))
        return x


def test_clipping_moves_to_the_edge():
    x = torch.tensor([[[-1.5], [0.2], [3.0]]])
    assert limited(x, "clip").flatten().tolist() == pytest.approx([-1, 0.2, 1])
    assert limited(x, "none") is x
    with pytest.raises(ValueError, match="limit is one of"):
        limited(x, "clamp")


def test_dynamic_thresholding_squeezes_extremes_only():
    torch.manual_seed(0)
    x = torch.randn(3, 200, 2)
    x[..., 1] = x[..., 1] / x[..., 1].abs().max()  # inside: left alone
    squeezed = limited(x, "dynamic")
    assert torch.equal(squeezed[..., 1], x[..., 1])
    size = x[..., 0].abs().quantile(0.995, dim=1, keepdim=True)
    assert (size > 2).all()
    expected = (x[..., 0] / size).clamp(-1, 1)
    torch.testing.assert_close(squeezed[..., 0], expected)
    # Far fewer values at the edge than clipping leaves there.
    piled = (limited(x, "clip")[..., 0].abs() == 1).float().mean()
    assert (squeezed[..., 0].abs() >= 1).float().mean() < piled / 10


def test_outside_names_the_variables(x):
    inside = x.clone()
    assert not outside(inside, MADE_UP).any()
    inside[2, 3, REALS[0]] = 1.001
    inside[4, 0, REALS[1]] = -0.001
    inside[5, 16, REALS[2]] = float("nan")
    expected = torch.zeros(9, 3, dtype=torch.bool)
    expected[2, 0] = expected[4, 1] = expected[5, 2] = True
    assert torch.equal(outside(inside, MADE_UP), expected)
    classes = x.clone()
    classes[..., MADE_UP.spans["ward"]] = 5  # no business of this filter
    assert not outside(classes, MADE_UP).any()


def test_sampling_goes_on_until_all_are_accepted():
    model = Dice(chance=0.5)
    x, report = sample_accepted(model, 40, 10, seed=3)
    assert x.shape == (40, 10, MADE_UP.width)
    assert not outside(x, MADE_UP).any()
    assert len(x.unique(dim=0)) == 40
    assert report.kept == 40
    assert report.tried == sum(count for count, _ in model.calls)
    names = [f.name for f in MADE_UP.reals]
    assert report.outside == {
        names[0]: 0,
        names[1]: report.tried - 40,
        names[2]: 0,
    }
    assert 0.35 < report.acceptance < 0.65
    assert f"40 of {report.tried} sequences kept" in str(report)
    again, _ = sample_accepted(Dice(chance=0.5), 40, 10, seed=3)
    assert torch.equal(x, again)


def test_attempts_have_seeds_of_their_own():
    """Two cohorts with neighbouring seeds share no sequence."""
    seeds = []
    for seed in (0, 1):
        model = Dice(chance=0.5)
        sample_accepted(model, 40, 10, seed)
        seeds += [seed for _, seed in model.calls]
    assert len(set(seeds)) == len(seeds)


def test_everyone_keeps_the_statics_asked_for():
    wanted = torch.linspace(0, 1, 30).unsqueeze(1)
    x, report = sample_accepted(Dice(chance=0.5), 30, 10, statics=wanted)
    assert report.tried > 30
    assert torch.equal(x[..., REALS[2]], wanted.expand(-1, 10))


def test_hopeless_sampling_stops_with_the_rate():
    model = Dice(chance=1.0)
    with pytest.raises(AcceptanceError, match=r"0 of 15 .*0\.0%") as caught:
        sample_accepted(model, 5, 10, max_attempts=3)
    assert len(model.calls) == 3
    report = caught.value.report
    assert (report.tried, report.kept) == (15, 0)
    assert report.outside[MADE_UP.reals[1].name] == 15
    with pytest.raises(ValueError, match="max_attempts is 1 or more, got 0"):
        sample_accepted(model, 5, 10, max_attempts=0)
