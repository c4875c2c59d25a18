"""Samples are corrected as a whole, by training data alone."""

import copy

import numpy as np
import pytest
import torch
from cohorts import MADE_UP
from training import CPU

from healthgym_utils.calibration import (
    KNOTS,
    Calibration,
    class_shares,
    quantiles,
    switch_rates,
)
from healthgym_utils.diffusion import (
    ROUNDS,
    SHARPEST,
    Diffusion,
    DiffusionSettings,
)
from healthgym_utils.sequences import sequence_loader

TINY = DiffusionSettings(
    steps=40, hidden=16, time_width=8, levels=2, sampling_steps=10
)
REALS = [MADE_UP.spans[f.name].start for f in MADE_UP.reals]
AGE = MADE_UP.spans["age"].start


@pytest.fixture
def x(x):
    """Give the made-up stays an age that does not change."""
    x[..., AGE] = x[:, :1, AGE]
    return x


@pytest.fixture
def model(x):
    """Hardly trained: its samples are off."""
    model = Diffusion(MADE_UP, TINY, CPU)
    model.fit(sequence_loader(x, batch_size=4), epochs=1)
    return model


def gap(model, x, seed):
    """Largest distance of the quantiles of samples to those of the data."""
    statics = x[:, 0, model.static_columns].repeat(8, 1)
    rows = model.sample(len(statics), x.shape[1], seed, statics=statics)
    columns = model.real_columns
    return (quantiles(rows, columns) - quantiles(x, columns)).abs().mean()


def test_quantiles_are_numpys(x):
    found = quantiles(x, REALS)
    assert found.shape == (len(REALS), KNOTS)
    for row, column in zip(found, REALS, strict=True):
        values = x[..., column].double().numpy().ravel()
        expected = np.quantile(values, np.linspace(0, 1, KNOTS))
        np.testing.assert_allclose(row, expected)


def test_switches_are_counted():
    first = torch.tensor([0, 0, 1, 1, 2])
    second = torch.tensor([2, 2, 2, 2, 2])
    x = torch.nn.functional.one_hot(torch.stack([first, second]), 3)
    rates = switch_rates(x.float(), [slice(0, 3)])
    assert rates.tolist() == [2.5 / 8]


def test_mapping_gives_the_wanted_distribution_and_keeps_ranks():
    random = torch.Generator().manual_seed(0)
    x = torch.rand((40, 50, 2), generator=random)
    off = 0.3 + 0.4 * x**2
    nothing = torch.zeros(0)
    ends = quantiles(off, [0]), quantiles(x, [0])
    calibration = Calibration(nothing, nothing, *ends)
    mapped = calibration.mapped(off, [0])
    torch.testing.assert_close(mapped[..., 0], x[..., 0], atol=0.01, rtol=0)
    assert torch.equal(mapped[..., 1], off[..., 1])
    order = mapped[..., 0].ravel()[off[..., 0].ravel().argsort()]
    assert (order.diff() >= 0).all()


def test_values_beyond_go_to_the_ends():
    knots = torch.linspace(0.2, 0.8, KNOTS, dtype=torch.float64)[None]
    wide = torch.linspace(0.0, 1.0, KNOTS, dtype=torch.float64)[None]
    calibration = Calibration(torch.ones(0), torch.zeros(0), knots, wide)
    x = torch.tensor([[[-3.0], [0.5], [7.0]]])
    assert calibration.mapped(x, [0]).ravel().tolist() == [0.0, 0.5, 1.0]


def test_calibration_brings_labs_to_the_data(model, x):
    before = gap(model, x, seed=99)
    records = model.calibrate(x)
    assert gap(model, x, seed=99) < before / 2
    names = [f.name for f in model.dynamic.categoricals]
    assert [list(record) for record in records] == [names] * ROUNDS
    factors = model.calibration.sharpness
    assert ((factors >= 1 / SHARPEST) & (factors <= SHARPEST)).all()


def test_sharpness_goes_against_the_error(model, x):
    """Where all rounds switch too often, logits get sharper, and blunter."""
    for off in (4.0, 0.25):
        model.calibration = None
        model._twins = lambda x, seed, off=off: _with_rates(model, x, off)
        model.calibrate(x)
        factors = model.calibration.sharpness
        assert ((factors > 1) == (off > 1)).all()


def test_offsets_go_against_the_error(model, x):
    """A class that twins have alone gets less, and all others more."""
    model._twins = lambda x, seed: _with_rates(model, x, 0.25)
    model.calibrate(x)
    blocks = [MADE_UP.spans[f.name] for f in model.dynamic.categoricals]
    offsets = model.calibration.offsets.split(
        [b.stop - b.start for b in blocks]
    )
    shares = class_shares(x, blocks).split([b.stop - b.start for b in blocks])
    for offset, share in zip(offsets, shares, strict=True):
        assert offset[0] < 0
        assert (offset[1:][share[1:] > 0.01] > 0).all()


def test_shares_are_counted():
    codes = torch.tensor([[0, 0, 1, 1, 2], [2, 2, 2, 2, 2]])
    x = torch.nn.functional.one_hot(codes, 4).float()
    found = class_shares(x, [slice(0, 4), slice(2, 4)])
    # Among the last two columns, rows of zeros count as the first of them.
    assert found.tolist() == [0.25, 0.25, 0.65, 0.05, 1.05, 0.05]
    assert class_shares(x, []).shape == (0,)


def test_logits_are_multiplied_and_shifted():
    output = torch.arange(10.0).reshape(1, 2, 5)
    calibration = Calibration(
        torch.tensor([2.0, 0.5]),
        torch.tensor([1.0, 0.0, 0.0, -1.0]),
        *torch.zeros(2, 0, KNOTS),
    )
    found = calibration.corrected(output, [slice(1, 3), slice(3, 5)])
    expected = [[0.0, 3.0, 4.0, 1.5, 1.0], [5.0, 13.0, 14.0, 4.0, 3.5]]
    assert found.tolist() == [expected]


def test_a_calibration_has_no_part_in_the_loss(model, x):
    parts = model.prepare(x, torch.full((len(x),), x.shape[1]))
    t, noise = torch.full((len(x),), 20), torch.zeros_like(parts[0])
    before = model.losses(*parts, t, noise)
    model.calibrate(x)
    assert model.losses(*parts, t, noise) == before


def _with_rates(model, x, factor):
    """Rows whose first months alternate, or that never change."""
    rows = x.clone()
    for feature in model.dynamic.categoricals:
        block = MADE_UP.spans[feature.name]
        rows[..., block] = 0.0
        rows[..., block.start] = 1.0
        if factor > 1:
            rows[:, ::2, block.start] = 0.0
            rows[:, ::2, block.start + 1] = 1.0
    return rows


def test_data_is_corrected_only_in_what_is_sampled(model, x):
    model.calibrate(x)
    fake = model.sample(6, 17)
    ages = fake[..., AGE]
    assert (ages == ages[:, :1]).all()
    for feature in MADE_UP.categoricals:
        block = fake[..., MADE_UP.spans[feature.name]]
        sums = block.sum(dim=-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))
    random = torch.Generator().manual_seed(0)
    statics = model.draw_statics(6, random)
    *_, (_, last) = model.walk(17, random, statics)
    assert torch.equal(last, fake)


def test_calibration_is_saved_with_the_model(model, x, tmp_path):
    model.calibrate(x)
    for weights_only in (False, True):
        path = tmp_path / "v3.safetensors"
        model.save(path, weights_only)
        again = Diffusion.load(path, MADE_UP, CPU)
        for name, tensor in vars(model.calibration).items():
            assert torch.equal(getattr(again.calibration, name), tensor)
    plain = copy.deepcopy(model)
    plain.calibration = None
    plain.save(path)
    assert Diffusion.load(path, MADE_UP, CPU).calibration is None


def test_training_ends_a_calibration(model, x):
    loader = sequence_loader(x, batch_size=4)
    fresh = copy.deepcopy(model)
    model.calibrate(x)
    model.fit(loader, epochs=1)  # nothing to do
    assert model.calibration is not None
    model.fit(loader, epochs=2)
    assert model.calibration is None
    # And it leaves no trace in what is learned.
    fresh.fit(loader, epochs=2)
    assert torch.equal(model.sample(2, 9), fresh.sample(2, 9))


def test_numbers_for_classes_get_the_labs_alone(x):
    settings = DiffusionSettings(
        steps=40,
        hidden=16,
        time_width=8,
        levels=2,
        sampling_steps=10,
        categorical_loss="mse",
    )
    model = Diffusion(MADE_UP, settings, CPU)
    model.fit(sequence_loader(x, batch_size=4), epochs=1)
    assert model.calibrate(x) == [{}] * ROUNDS
    assert len(model.calibration.sharpness) == 0
    assert len(model.calibration.offsets) == 0
    assert model.sample(3, 17).isfinite().all()


@pytest.mark.parametrize("shape", [(9, 17), (9, 17, 3), (9, 1, None)])
def test_wrong_data_is_refused(model, shape):
    shape = tuple(MADE_UP.width if n is None else n for n in shape)
    with pytest.raises(ValueError, match="x has shape"):
        model.calibrate(torch.zeros(shape))
