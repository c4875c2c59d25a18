"""Noise is added and taken away as the formulas say, and trainings resume."""

import copy
from collections import deque
from functools import partial

import numpy as np
import pytest
import torch
from cohorts import MADE_UP
from scipy import stats
from torch import nn
from training import CPU

from healthgym_utils import checkpoint
from healthgym_utils.checkpoint import CheckpointError
from healthgym_utils.diffusion import (
    Diffusion,
    DiffusionSettings,
    NoiseSchedule,
    ddim_step,
    ddpm_step,
    reverse_walk,
    timesteps,
)
from healthgym_utils.preprocess import Preprocessor
from healthgym_utils.schema import ART_SCHEMA, Feature, Schema
from healthgym_utils.sequences import curriculum_loaders, sequence_loader

TINY = {"steps": 40, "hidden": 16, "time_width": 8, "levels": 2}
TINY |= {"sampling_steps": 10}
PUBLISHED = DiffusionSettings.published(
    **TINY | {"pad_to": 24, "sampling_steps": 40}
)
OURS = DiffusionSettings(**TINY)
AGE = MADE_UP.spans["age"].start
# Statics of both kinds, and none of them in the first columns.
STAYS = Schema(
    (
        Feature("lactate", "real", transform="identity"),
        Feature("sex", "binary", ("female", "male"), static=True),
        Feature("ward", "categorical", ("A", "B", "C")),
        Feature("age", "real", transform="identity", static=True),
    ),
    patient="stay",
    month="hour",
)


@pytest.fixture
def x(x):
    """Give the made-up stays an age that does not change."""
    x[..., AGE] = x[:, :1, AGE]
    return x


@pytest.fixture
def stays():
    """Eight stays of 16 hours: two women aged 0.25, six men aged 0.75."""
    random = torch.Generator().manual_seed(0)
    x = torch.zeros(8, 16, STAYS.width)
    x[..., 0] = torch.rand(8, 16, generator=random)
    x[:2, :, 1], x[2:, :, 2] = 1, 1
    ward = torch.randint(3, (8, 16), generator=random)
    x[..., 3:6] = torch.eye(3)[ward]
    x[:2, :, 6], x[2:, :, 6] = 0.25, 0.75
    return x


def tiny(settings=OURS, schema=MADE_UP):
    return Diffusion(schema, settings, CPU)


def changed(**choices):
    return DiffusionSettings(**TINY | choices)


def loader_of(x, **choices):
    return sequence_loader(x, batch_size=4, seed=1, **choices)


def trained(x, settings=OURS, schema=MADE_UP, epochs=1):
    model = tiny(settings, schema)
    model.fit(loader_of(x), epochs=epochs)
    return model


# The schedule


@pytest.mark.parametrize(
    "schedule",
    [
        NoiseSchedule.linear(),
        NoiseSchedule.cosine(),
        NoiseSchedule.linear().zero_terminal_snr(),
        NoiseSchedule.cosine(100).zero_terminal_snr(),
    ],
)
def test_schedules_fall_from_one(schedule):
    left = schedule.alpha_bars
    assert left.dtype == torch.float64
    assert left[0] == 1
    assert (left.diff() < 0).all()
    assert left[-1] >= 0
    assert ((schedule.betas > 0) & (schedule.betas <= 1)).all()
    torch.testing.assert_close((1 - schedule.betas).cumprod(0), left[1:])
    assert (schedule.snr.diff()[1:] < 0).all()


def test_published_schedule_ends_with_signal_left():
    schedule = NoiseSchedule.linear()
    betas = np.linspace(1e-4, 0.01, 500)
    np.testing.assert_allclose(schedule.betas, betas, rtol=1e-9)
    last = float(schedule.alpha_bars[-1])
    assert last == pytest.approx(0.0794, abs=1e-4)
    assert last**0.5 == pytest.approx(0.28, abs=5e-3)


def test_cosine_is_the_formula():
    f = np.cos((np.arange(501) / 500 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(
        NoiseSchedule.cosine(500).alpha_bars[:499], (f / f[0])[:499]
    )
    assert NoiseSchedule.cosine(500).betas.max() == pytest.approx(0.999)


@pytest.mark.parametrize("plain", [NoiseSchedule.linear, NoiseSchedule.cosine])
def test_rescaling_keeps_the_first_step_and_empties_the_last(plain):
    schedule = plain(200).zero_terminal_snr()
    assert schedule.alpha_bars[-1] == 0
    assert schedule.snr[-1] == 0
    torch.testing.assert_close(
        schedule.alpha_bars[1], plain(200).alpha_bars[1]
    )
    again = schedule.zero_terminal_snr()
    torch.testing.assert_close(again.alpha_bars, schedule.alpha_bars)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([1.0, 0.5, 0.5], "at step 2 it goes from 0.5 to 0.5"),
        ([1.0, 0.5, float("nan")], "at step 2"),
        ([0.9, 0.5, 0.1], "starts with 1"),
        ([1.0, 0.5], "two steps or more; got 1"),
        ([1.0, 0.5, -0.1], "ends below 0"),
    ],
)
def test_impossible_schedules_are_refused(values, why):
    with pytest.raises(ValueError, match=why):
        NoiseSchedule(torch.tensor(values, dtype=torch.float64))


def test_single_precision_is_refused():
    with pytest.raises(ValueError, match="float64"):
        NoiseSchedule(torch.tensor([1.0, 0.5, 0.1]))


# The way forward


@pytest.mark.parametrize("jump", [1, 20, 50])
def test_closed_form_is_the_distribution_of_single_steps(jump):
    """Twenty thousand walks of single steps, and as many jumps."""
    schedule = NoiseSchedule.linear(50, 1e-3, 0.1)
    random = torch.Generator().manual_seed(0)
    n, start = 20_000, torch.tensor([0.8, -0.3], dtype=torch.float64)
    x = start.repeat(n, 1)
    for beta in schedule.betas[:jump]:
        z = torch.randn(x.shape, generator=random, dtype=x.dtype)
        x = (1 - beta).sqrt() * x + beta.sqrt() * z
    z = torch.randn(x.shape, generator=random, dtype=x.dtype)
    leap = schedule.q_sample(start.expand(n, -1), jump, z)
    left = float(schedule.alpha_bars[jump])
    for walked, leapt, at in zip(x.T, leap.T, start.tolist(), strict=True):
        assert stats.ks_2samp(walked, leapt).pvalue > 1e-3
        exact = stats.norm(left**0.5 * at, (1 - left) ** 0.5)
        assert stats.kstest(walked.numpy(), exact.cdf).pvalue > 1e-3
        assert stats.kstest(leapt.numpy(), exact.cdf).pvalue > 1e-3


@pytest.mark.parametrize("kind", ["noise", "x0", "v"])
def test_a_true_prediction_gives_x0_back_exactly(kind):
    schedule = NoiseSchedule.linear()
    x0 = torch.rand(500, 6, 3, dtype=torch.float64) * 2 - 1
    noise, t = torch.randn_like(x0), torch.arange(1, 501)
    noisy = schedule.q_sample(x0, t, noise)
    truth = schedule.target(x0, t, noise, kind)
    found = schedule.to_x0(truth, noisy, t, kind)
    torch.testing.assert_close(found, x0, rtol=0, atol=1e-13)


def test_v_and_x0_survive_the_last_step_of_a_zero_terminal_schedule():
    schedule = NoiseSchedule.cosine(50).zero_terminal_snr()
    x0 = torch.rand(4, 6, 3) * 2 - 1
    noise = torch.randn_like(x0)
    noisy = schedule.q_sample(x0, 50, noise)
    assert torch.equal(noisy, noise)  # nothing is left
    assert torch.equal(schedule.target(x0, 50, noise, "v"), -x0)
    for kind in ("v", "x0"):
        truth = schedule.target(x0, 50, noise, kind)
        assert torch.equal(schedule.to_x0(truth, noisy, 50, kind), x0)


def test_an_error_of_the_noise_grows_in_x0():
    schedule = NoiseSchedule.linear()
    x, off = torch.zeros(1, 1, 1).double(), torch.ones(1, 1, 1).double()
    growth = schedule.to_x0(off, x, 500, "noise").abs().item()
    left = schedule.alpha_bars[500]
    assert growth == pytest.approx(float(((1 - left) / left).sqrt()))
    assert growth > 3


# The way back

MEAN = torch.tensor([0.5, -0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.30, 0.12], [0.12, 0.10]], dtype=torch.float64)


def gaussian_denoiser(schedule):
    """E[x0 | x_t] of Gaussian data, known in closed form."""

    def denoise(x, t):
        left = schedule.alpha_bars[t]
        spread = left * COVARIANCE + (1 - left) * torch.eye(2).double()
        gain = left.sqrt() * COVARIANCE @ torch.linalg.inv(spread)
        return MEAN + (x - left.sqrt() * MEAN) @ gain.T

    return denoise


def walked(schedule, step, count=None, n=20_000, **choices):
    """Let the exact denoiser walk n points back from noise."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn((n, 2), generator=random, dtype=torch.float64)
    places = reverse_walk(
        gaussian_denoiser(schedule),
        partial(step, schedule, **choices),
        x,
        timesteps(schedule.steps, count or schedule.steps),
        random,
    )
    return deque(places, maxlen=1)[0][1]


@pytest.mark.parametrize(
    ("step", "choices"),
    [
        (ddpm_step, {}),
        (ddpm_step, {"variance": 1.0}),
        (ddim_step, {}),
        (ddim_step, {"eta": 0.5}),
    ],
)
def test_samplers_recover_a_gaussian(step, choices):
    """Mean and covariance of the data, to 4 standard errors and 3 %."""
    x = walked(NoiseSchedule.cosine(500).zero_terminal_snr(), step, **choices)
    deviation = COVARIANCE.diag().sqrt()
    error = deviation / len(x) ** 0.5
    assert ((x.mean(0) - MEAN).abs() < 4 * error).all()
    scale = deviation.outer(deviation)
    bound = (4 * (2 / len(x)) ** 0.5 + 0.03) * scale
    assert ((x.T.cov() - COVARIANCE).abs() < bound).all()
    for column, m, d in zip(x.T, MEAN, deviation, strict=True):
        assert stats.kstest((column - m) / d, "norm").statistic < 0.02


def test_published_schedule_moves_the_mean():
    """Sampling from pure noise where signal should be left: a bias."""
    x = walked(NoiseSchedule.linear(), ddim_step, n=4_000)
    y = walked(NoiseSchedule.linear().zero_terminal_snr(), ddim_step, n=4_000)
    error = (COVARIANCE.diag() / 4_000).sqrt()
    assert (x.mean(0) - MEAN).abs()[0] > 5 * error[0]
    assert ((y.mean(0) - MEAN).abs() < 5 * error).all()


def test_few_steps_lose_variance_unless_told_not_to():
    """A fifth of it in 50 steps with the posterior's, next to none at 0.8."""
    schedule = NoiseSchedule.cosine(500).zero_terminal_snr()
    ratios = [
        walked(schedule, ddpm_step, 50, variance=v).var(0) / COVARIANCE.diag()
        for v in (0.0, 0.8)
    ]
    assert (ratios[0] < 0.9).all()
    assert ((ratios[1] - 1).abs() < 0.05).all()


@pytest.mark.parametrize(("t", "s"), [(40, 39), (40, 20), (30, 7), (1, 0)])
def test_ddim_with_eta_one_is_ddpm(t, s):
    schedule = NoiseSchedule.cosine(40).zero_terminal_snr()
    x, x0, z = torch.randn(3, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(
        ddim_step(schedule, x, x0, t, s, z, eta=1.0),
        ddpm_step(schedule, x, x0, t, s, z),
    )


def test_eta_is_the_share_of_ddpms_noise():
    schedule = NoiseSchedule.cosine(40)
    x, x0, z = torch.randn(3, 5, 4, dtype=torch.float64)
    full, third, none = (
        ddim_step(schedule, x, x0, 30, 7, z, eta)
        - ddim_step(schedule, x, x0, 30, 7, torch.zeros_like(z), eta)
        for eta in (1.0, 0.3, 0.0)
    )
    torch.testing.assert_close(third, 0.3 * full)
    assert not none.any()


def test_ddpm_step_is_the_posterior():
    """From Bayes' rule, by products of Gaussian densities on a grid."""
    schedule = NoiseSchedule.linear(30, 1e-3, 0.2)
    t, s, x0, x = 20, 12, 0.4, -0.7
    here, there = schedule.alpha_bars[[t, s]].tolist()
    grid = np.linspace(-8, 8, 200_001)
    prior = stats.norm.pdf(grid, there**0.5 * x0, (1 - there) ** 0.5)
    ahead = here / there
    likelihood = stats.norm.pdf(x, ahead**0.5 * grid, (1 - ahead) ** 0.5)
    weight = prior * likelihood / (prior * likelihood).sum()
    mean = (weight * grid).sum()
    deviation = (weight * (grid - mean) ** 2).sum() ** 0.5
    place = [torch.tensor(v, dtype=torch.float64) for v in (x, x0)]
    still = ddpm_step(schedule, *place, t, s, torch.tensor(0.0))
    moved = ddpm_step(schedule, *place, t, s, torch.tensor(1.0))
    assert float(still) == pytest.approx(mean, abs=1e-6)
    assert float(moved - still) == pytest.approx(deviation, abs=1e-6)


@pytest.mark.parametrize("count", [1, 3, 7, 66, 99, 100])
def test_trailing_steps_begin_at_the_end(count):
    steps = timesteps(100, count)
    assert len(steps) == count
    assert steps[0] == 100
    assert (np.diff(steps) < 0).all()
    assert steps[-1] >= 1


def test_leading_steps_begin_short_of_the_end():
    assert timesteps(500, 50, "leading")[:2] == [491, 481]
    assert timesteps(500, 50, "leading")[-1] == 1
    assert timesteps(500, 50)[:2] == [500, 490]
    assert timesteps(9, 9) == timesteps(9, 9, "leading")
    for count in (0, 501):
        with pytest.raises(ValueError, match="1 to 500 sampling steps, got"):
            timesteps(500, count)
    with pytest.raises(ValueError, match="spacing is one of"):
        timesteps(500, 5, "even")


# Settings


def test_published_configuration():
    model = Diffusion.published(ART_SCHEMA, CPU)
    s = model.settings
    assert (s.steps, s.schedule, s.beta_min, s.beta_max) == (
        500,
        "linear",
        1e-4,
        0.01,
    )
    assert (s.hidden, s.time_width, s.levels, s.pad_to) == (256, 128, 3, 100)
    assert (s.learning_rate, s.beta1, s.beta2) == (1e-3, 0.9, 0.999)
    assert (s.gradient_clip, s.reconstruction_weight) == (1.0, 20)
    assert s.noise_blend
    assert model.network.mix_in[0].in_features == 22
    assert model.network.mix_in[0].out_features == 256
    assert not model.static_columns
    assert float(model.schedule.alpha_bars[-1]) == pytest.approx(0.079, 1e-2)


def test_default_is_small_and_conditioned():
    model = Diffusion(ART_SCHEMA, device=CPU)
    count = sum(p.numel() for p in model.network.parameters())
    assert 380_000 < count < 450_000
    assert model.static.names == ["Gender", "Ethnic"]
    assert model.network.condition.in_features == 6
    assert model.network.mix_in[0].in_features == 16


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        ({"target": "noise"}, "zero_terminal=False"),
        ({"noise_blend": True}, "noise_blend needs"),
        ({"target": "epsilon"}, "target is one of"),
        ({"schedule": "sigmoid"}, "schedule is one of"),
        ({"categorical_loss": "ce"}, "categorical_loss is one of"),
        ({"limit": "clamp"}, "limit is one of"),
        ({"spacing": "even"}, "spacing is one of"),
        ({"sampling_steps": 501}, "1 to 500 sampling steps"),
        ({"ema": 1.0}, "ema is in"),
        ({"dropout": 1.0}, "dropout is in"),
        ({"evidence_weight": -1.0}, "evidence_weight is 0 or more"),
        ({"patient_jitter": -0.1}, "patient_jitter is 0 or more"),
        ({"patient_jitter": float("nan")}, "patient_jitter is finite"),
        ({"evidence_weight": float("inf")}, "evidence_weight is finite"),
        ({"steps": 100.0}, "steps is int, got 100.0"),
        ({"levels": True}, "levels is int, got True"),
        ({"bf16": "yes"}, "bf16 is bool or NoneType, got 'yes'"),
        ({"pad_to": 10**10}, "pad_to is 100,000 or less"),
        ({"variance": 1.5}, "variance is in"),
    ],
)
def test_contradictions_are_refused(choices, why):
    with pytest.raises(ValueError, match=why):
        DiffusionSettings(**choices)


def test_all_static_is_refused():
    with pytest.raises(ValueError, match="nothing to diffuse"):
        Diffusion(STAYS.subset(["sex", "age"]), OURS, CPU)


# Training


def fixed_batch(model, x):
    """Everything that a loss needs, drawn once."""
    random = torch.Generator().manual_seed(0)
    parts = model.prepare(x, torch.full((len(x),), x.shape[1]))
    t = torch.randint(1, 41, (len(x),), generator=random)
    return *parts, t, torch.randn(parts[0].shape, generator=random)


@pytest.mark.parametrize("settings", [OURS, PUBLISHED])
def test_one_batch_can_be_learned_by_heart(x, settings):
    model = tiny(settings)
    batch = fixed_batch(model, x[:3])
    adam = torch.optim.Adam(model.network.parameters(), lr=1e-2)
    start = model.losses(*batch)["loss"].item()
    for _ in range(160):
        adam.zero_grad()
        loss = model.losses(*batch)["loss"]
        loss.backward()
        adam.step()
    assert loss.item() < 0.1 * start


def test_losses_are_what_they_say(x):
    """By hand: squared errors of reals, surprise at classes, valid months."""
    choices = {"class_weight": 0.5, "evidence_weight": 0.3}
    model = tiny(changed(reconstruction_weight=2.0, **choices))
    lengths = torch.tensor([17, 12, 8])
    x0, mask, statics = model.prepare(x[:3], lengths)
    t, noise = torch.tensor([3, 20, 40]), torch.randn_like(x0)
    found = model.losses(x0, mask, statics, t, noise)
    noisy = model.schedule.q_sample(x0, t, noise)
    out = model.network(noisy, t, 2 * statics - 1).detach()
    v = model.schedule.target(x0, t, noise, "v")
    guess = model.schedule.to_x0(out, noisy, t, "v")
    real = [model.dynamic.spans[f.name].start for f in model.dynamic.reals]
    square, rebuilt, surprise = [], [], []
    for i, length in enumerate(lengths):
        for m in range(length):
            square += [(out - v)[i, m, k].item() ** 2 for k in real]
            rebuilt += [(guess - x0)[i, m, k].item() ** 2 for k in real]
            for f in model.dynamic.categoricals:
                block = model.dynamic.spans[f.name]
                truth = x0[i, m, block].argmax()
                signal = model.schedule.alpha_bars[t[i]].sqrt()
                noise_var = 1 - signal**2
                own = 2 * signal / noise_var * noisy[i, m, block]
                logs = (out[i, m, block] + 0.3 * own).log_softmax(0)
                surprise.append(-logs[truth].item())
    parts = [np.mean(v) for v in (square, surprise, rebuilt)]
    assert found["target_loss"].item() == pytest.approx(parts[0], rel=1e-4)
    assert found["class_loss"].item() == pytest.approx(parts[1], rel=1e-4)
    assert found["reconstruction_loss"].item() == pytest.approx(
        parts[2], rel=1e-3
    )
    whole = parts[0] + 0.5 * parts[1] + 2 * parts[2]
    assert found["loss"].item() == pytest.approx(whole, rel=1e-3)


class Prior(torch.nn.Module):
    """Predicts the same logarithms of shares, whatever it is shown."""

    def __init__(self, width, block, shares):
        super().__init__()
        self.logs = torch.nn.Parameter(torch.zeros(width))
        self.logs.data[block] = shares.log()

    def forward(self, x, t, condition):
        return self.logs.expand(x.shape)


def test_prior_and_whole_evidence_are_the_posterior():
    """Bayes' rule, from normal densities of every class's row."""
    settings = changed(evidence_weight=1.0, condition_on_statics=False)
    block = MADE_UP.spans["ward"]
    shares = torch.arange(1.0, 13.0) / 78
    network = Prior(MADE_UP.width, block, shares)
    model = Diffusion(MADE_UP, settings, CPU, network)
    t, x = 20, torch.randn(4, 9, MADE_UP.width)
    found = model.denoise(x, t, torch.zeros(4, 0))[..., block]
    signal, spread = (float(a) for a in model.schedule.amplitudes(t, x[:1]))
    rows = 2 * torch.eye(12) - 1
    density = torch.distributions.Normal(signal * rows, spread)
    logs = density.log_prob(x[..., None, block]).sum(-1)
    posterior = (logs + shares.log()).softmax(-1)
    torch.testing.assert_close(found, 2 * posterior - 1)


def test_dropout_is_for_training_only_and_nobody_elses(x):
    """Sampling has none; the caller's random numbers stay where they were."""
    with_it, without = tiny(changed(dropout=0.5)), tiny(changed(dropout=0.0))
    for model in (with_it, without):
        model.fit(loader_of(x), epochs=1)
    assert with_it.history[0]["loss"] != without.history[0]["loss"]
    for module in with_it.network.modules():
        assert not module.training
    before = torch.get_rng_state()
    with_it.fit(loader_of(x), epochs=2)
    assert torch.equal(torch.get_rng_state(), before)
    rows = with_it.sample(2, 9, seed=1)
    assert torch.equal(with_it.sample(2, 9, seed=1), rows)


def seen_in_a_step(model, x):
    """Rows that a training step shows to the network, before any noise."""
    seen = []
    model.prepare = lambda real, lengths: (
        seen.append(real) or Diffusion.prepare(model, real, lengths)
    )
    model.train_step(x, torch.full((len(x),), x.shape[1]))
    return seen[0]


def test_jitter_shifts_a_patients_reals_alike_in_all_months(x):
    before = x.clone()
    model = tiny(changed(patient_jitter=0.05))
    rows = seen_in_a_step(model, x)
    assert torch.equal(x, before)  # the loader's data stays as it is
    inside = ((rows > 0) & (rows < 1))[..., model.real_columns]
    moved = (rows - x)[..., model.real_columns]
    for shifts, kept in zip(moved.mT, inside.mT, strict=True):
        for shift, where in zip(shifts, kept, strict=True):
            torch.testing.assert_close(
                shift[where], shift[where][:1].expand(where.sum())
            )
    first = moved[:, 0]
    assert len(first.unique()) > first.numel() / 2  # each its own
    assert ((rows >= 0) & (rows <= 1)).all()
    others = [c for c in range(x.shape[-1]) if c not in model.real_columns]
    assert torch.equal(rows[..., others], x[..., others])
    assert not torch.equal(seen_in_a_step(model, x), rows)  # drawn anew


def test_without_jitter_nothing_is_drawn_and_nothing_moved(x):
    model = tiny(changed(patient_jitter=0.0))
    state = model.random.get_state()
    assert model._jittered(x) is x
    assert torch.equal(model.random.get_state(), state)
    assert DiffusionSettings.published().patient_jitter == 0


def test_reconstruction_is_a_weighted_noise_loss(x):
    """(1 - alpha_bar) / alpha_bar times it, at each step."""
    model = tiny(
        DiffusionSettings.published(**TINY, pad_to=None, noise_blend=False)
    )
    for t in (1, 20, 40):
        *batch, _, noise = fixed_batch(model, x[:4])
        losses = model.losses(*batch, torch.full((4,), t), noise)
        left = float(model.schedule.alpha_bars[t])
        ratio = losses["reconstruction_loss"] / losses["target_loss"]
        assert ratio.item() == pytest.approx((1 - left) / left, rel=1e-2)


def test_blend_leaks_two_thirds_of_the_reconstruction(x):
    """E[(1 - b)^2] = 1/3 for a share b of true noise, uniform."""
    blended, plain = (
        tiny(
            DiffusionSettings.published(**TINY, pad_to=None, noise_blend=blend)
        )
        for blend in (True, False)
    )
    *batch, _, noise = fixed_batch(plain, x[:1])
    name, t = "reconstruction_loss", torch.tensor([20])
    with torch.no_grad():
        whole = plain.losses(*batch, t, noise)[name]
        draws = [blended.losses(*batch, t, noise)[name] for _ in range(500)]
    shares = torch.stack(draws) / whole
    error = shares.std() / len(shares) ** 0.5
    assert abs(shares.mean() - 1 / 3) < 5 * error


def test_what_is_padded_has_no_part_in_the_loss(x):
    """Neither values in padded months, nor what is predicted there."""
    model = tiny(PUBLISHED)
    lengths = torch.tensor([17, 11, 9])
    spoilt = x[:3].clone()
    spoilt[1, 11:], spoilt[2, 9:] = 7.0, float("nan")
    x0, mask, statics = model.prepare(x[:3], lengths)
    assert x0.shape == (3, 24, MADE_UP.width)
    assert mask.sum(dim=1).tolist() == [17, 11, 9]
    assert torch.equal(model.prepare(spoilt, lengths)[0], x0)
    # The loss and its gradient, as functions of what the network says.
    t, noise = torch.tensor([1, 20, 40]), torch.randn_like(x0)
    says = torch.randn_like(x0, requires_grad=True)
    model._predict = lambda *_: says
    settings = copy.copy(model.settings)
    object.__setattr__(settings, "noise_blend", False)
    model.settings = settings
    loss = model.losses(x0, mask, statics, t, noise)["loss"]
    (slope,) = torch.autograd.grad(loss, says)
    assert (slope[mask] != 0).all()
    assert (slope[~mask] == 0).all()
    other = torch.where(mask.unsqueeze(-1), says, 100.0)
    model._predict = lambda *_: other
    assert torch.equal(model.losses(x0, mask, statics, t, noise)["loss"], loss)


def test_what_is_read_in_padded_months_does_matter(x):
    """GroupNorm spans all months, so noise in the padding is felt."""
    model = tiny(PUBLISHED)
    x0, mask, statics = model.prepare(x[:2], torch.tensor([17, 17]))
    other = x0.masked_fill(~mask.unsqueeze(-1), 1.0)
    with torch.no_grad():
        out = model._predict(model.network, x0, torch.tensor([5]), statics)
        far = model._predict(model.network, other, torch.tensor([5]), statics)
    assert (out - far)[:, 0].abs().max() > 1e-6


def test_fit_records_every_update(x):
    model = tiny()
    history = model.fit(loader_of(x), epochs=2)
    assert [r["epoch"] for r in history] == [1] * 3 + [2] * 3
    assert {r["length"] for r in history} == {17}
    assert all(np.isfinite(list(r.values())).all() for r in history)
    assert model.fit(loader_of(x), steps=7)[-1]["epoch"] == 3
    assert len(model.fit(loader_of(x), steps=9)) == 9
    with pytest.raises(ValueError, match="epochs, or steps"):
        model.fit(loader_of(x))


def test_a_curriculum_and_random_windows_are_taken_too(x):
    lessons = curriculum_loaders(x, (9, 17), 4, window="random")
    history = tiny(PUBLISHED).fit(lessons, epochs=1)
    assert [r["length"] for r in history] == [9] * 3 + [17] * 3
    history = tiny().fit(loader_of(x, length=9, window="random"), epochs=1)
    assert {r["length"] for r in history} == {9}


def test_wrong_data_is_refused(x):
    with pytest.raises(ValueError, match="rows of 15 columns"):
        tiny().fit(loader_of(x[..., :15]), epochs=1)
    with pytest.raises(ValueError, match="do not fit pad_to=24"):
        tiny(PUBLISHED).fit(loader_of(x.repeat(1, 2, 1)), epochs=1)
    model = trained(x)
    with pytest.raises(ValueError, match="1 epochs on other data"):
        model.fit(loader_of(x.flip(0)), epochs=2)
    x[0, 5, 0] = float("nan")
    with pytest.raises(RuntimeError, match="non-finite"):
        trained(x)


def test_average_follows_the_weights(x):
    model = tiny(changed(ema=0.99))
    mean = [p.clone() for p in model.network.parameters()]
    for step in range(3):
        model.history.append(model.train_step(x, torch.full((9,), 17)))
        decay = min(0.99, (1 + step) / (10 + step))
        mean = [
            decay * m + (1 - decay) * p
            for m, p in zip(mean, model.network.parameters(), strict=True)
        ]
    for m, p in zip(mean, model.average.parameters(), strict=True):
        torch.testing.assert_close(m, p)
    off = tiny(changed(ema=0.0))
    assert off.average is off.network


def test_seed_decides_everything_and_touches_nothing(x):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    runs = [trained(x) for _ in range(2)]
    samples = [model.sample(3, 17) for model in runs]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(*samples)


def test_gradients_are_clipped(x):
    model = tiny(changed(gradient_clip=1e-3))
    record = model.train_step(x, torch.full((9,), 17))
    assert record["gradient_norm"] > 1e-2
    norms = [p.grad.norm() for p in model.network.parameters()]
    assert torch.stack(norms).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_bf16_is_near_and_not_equal(x):
    near = tiny(changed(bf16=True)).train_step(x, torch.full((9,), 17))
    full = tiny().train_step(x, torch.full((9,), 17))
    assert near["loss"] == pytest.approx(full["loss"], rel=0.05)
    assert near["loss"] != full["loss"]


# Sampling


@pytest.mark.parametrize(
    "settings",
    [
        OURS,
        PUBLISHED,
        changed(target="x0", categorical_loss="mse", limit="dynamic"),
        changed(target="noise", zero_terminal=False, spacing="leading"),
    ],
)
def test_every_kind_trains_samples_and_decodes(made_up, x, settings):
    model = trained(x, settings)
    fake = model.sample(5, months=19, batch_size=3)
    assert fake.shape == (5, 19, MADE_UP.width)
    assert fake.isfinite().all()
    assert not fake.requires_grad
    assert torch.equal(fake, model.sample(5, months=19, batch_size=3))
    assert not torch.equal(fake, model.sample(5, months=19, seed=1))
    table = (
        Preprocessor(MADE_UP).fit(made_up).inverse_transform(fake, clip=True)
    )
    MADE_UP.validate(table)


def test_limits_keep_the_range(x):
    model = trained(x)
    reals = [MADE_UP.spans[f.name].start for f in MADE_UP.reals]
    for limit in ("clip", "dynamic"):
        rows = model.sample(6, 17, limit=limit)[..., reals]
        assert rows.min() >= 0
        assert rows.max() <= 1
    free = model.sample(6, 17, limit="none")[..., reals]
    assert free.min() < 0 or free.max() > 1


def test_classes_are_probabilities(x):
    rows = trained(x).sample(4, 17)
    for feature in MADE_UP.categoricals:
        block = rows[..., MADE_UP.spans[feature.name]]
        assert block.min() >= 0
        sums = block.sum(dim=-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))


@pytest.mark.parametrize(
    "choices", [{"sampler": "ddpm"}, {"sampler": "ddim", "eta": 0.5}]
)
def test_samplers_count_their_steps(x, choices):
    model = tiny()
    asked = []
    model.denoise = lambda x, t, *_: asked.append(t) or torch.zeros_like(x)
    statics = torch.zeros(2, 1)
    rows = model.sample(2, 9, steps=4, statics=statics, **choices)
    assert asked == [40, 30, 20, 10]
    assert (rows[..., model.dynamic_columns] == 0.5).all()  # 0, recentred


def test_padded_months_are_cut_off():
    """A denoiser that says which month it is, of 24 made and 9 wanted."""
    model = tiny(PUBLISHED)
    months = torch.linspace(-1, 1, 24).view(1, 24, 1)
    model.denoise = lambda x, *_: months.expand_as(x)
    rows = model.sample(2, 9)
    expected = ((months + 1) / 2)[:, :9].expand_as(rows)
    torch.testing.assert_close(rows, expected)


def test_the_average_samples_and_not_the_network(x):
    model = trained(x)
    before = model.sample(2, 9)
    for parameter in model.network.parameters():
        parameter.data.zero_()
    assert torch.equal(model.sample(2, 9), before)
    for parameter in model.average.parameters():
        parameter.data.zero_()
    assert not torch.equal(model.sample(2, 9), before)


def test_a_walk_ends_in_the_sample(x):
    model = trained(x)
    random = torch.Generator().manual_seed(0)
    statics = model.draw_statics(3, random)
    places = list(model.walk(17, random, statics))
    assert [step for step, _ in places] == [*range(36, 0, -4), 0]
    assert torch.equal(places[-1][1], model.sample(3, 17))


def test_sampling_nonsense_is_refused(x):
    model = trained(x)
    for wrong in ((0, 9), (9, 0)):
        with pytest.raises(ValueError, match="1 or more, got"):
            model.sample(*wrong)
    with pytest.raises(ValueError, match="sampler is one of"):
        model.sample(1, 9, sampler="euler")
    with pytest.raises(ValueError, match='eta belongs to sampler="ddim"'):
        model.sample(1, 9, eta=0.5)
    with pytest.raises(ValueError, match="1 to 40 sampling steps, got 0"):
        model.sample(1, 9, steps=0)
    with pytest.raises(ValueError, match="4 months or more are needed"):
        model.sample(1, 3)


def test_training_teaches(stays):
    """Two stays, learned by heart, come back when asked for by age."""
    x = stays[[0, 7]]
    model = tiny(changed(learning_rate=5e-3, ema=0.9), STAYS)
    loader = sequence_loader(x.repeat(8, 1, 1), batch_size=16)
    model.fit(loader, steps=350)
    assert model.history[-1]["loss"] < 0.3 * model.history[0]["loss"]
    statics = x[:, 0, model.static_columns]
    fake = model.sample(2, 16, statics=statics)
    ward = STAYS.spans["ward"]
    right = fake[..., ward].argmax(-1) == x[..., ward].argmax(-1)
    assert right.float().mean() > 0.9
    assert (fake - x)[..., 0].abs().mean() < 0.1


# Statics


def test_statics_follow_the_data_and_never_change(stays):
    model = trained(stays, schema=STAYS)
    assert model.joint[1].tolist() == [6, 2]
    fake = model.sample(400, 9, steps=1)
    statics = fake[..., model.static_columns]
    assert torch.equal(statics, statics[:, :1].expand_as(statics))
    women = statics[:, 0, 0] == 1
    # A quarter, to 4 standard errors; and with them their age.
    assert abs(women.float().mean() - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5
    assert torch.equal(statics[:, 0, 2] == 0.25, women)


def test_statics_can_be_asked_for(stays):
    model = trained(stays, schema=STAYS)
    fake = model.sample(20, 9, statics={"sex": "female"})
    assert (fake[..., 1] == 1).all()
    assert (fake[..., 6] == 0.25).all()
    rows = torch.tensor([[1, 0, 0.9], [0, 1, 0.1]])  # nobody is like that
    fake = model.sample(2, 9, statics=rows, batch_size=1)
    assert torch.equal(fake[:, 4, model.static_columns], rows)


def test_statics_that_cannot_be_are_refused(stays):
    model = tiny(schema=STAYS)
    with pytest.raises(RuntimeError, match="seen no patients"):
        model.sample(1, 9)
    model.fit(loader_of(stays[2:]), epochs=1)
    for wrong, why in [
        ({"sex": "neither"}, "sex=neither: no static class"),
        ({"ward": "A"}, "ward=A: no static class"),
        ({"sex": "female"}, "no patient of the training data has"),
        (torch.zeros(3, 3), r"shape \(2, 3\) are needed"),
        (torch.tensor([[1.0, 1, 0.5]] * 2), "sex: statics row 0"),
        (torch.tensor([[1.0, 0, float("nan")]] * 2), "not finite"),
    ]:
        with pytest.raises(ValueError, match=why):
            model.sample(2, 9, statics=wrong)
    free = tiny(changed(condition_on_statics=False), STAYS)
    with pytest.raises(ValueError, match="not conditioned"):
        free.sample(2, 9, statics={"sex": "female"})


def test_statics_that_change_are_reported(stays):
    stays[3, 5, 1:3] = torch.tensor([1.0, 0.0])
    with pytest.warns(UserWarning, match="1 of 8 patients change in sex, age"):
        trained(stays, schema=STAYS)


def test_nothing_static_is_nothing_to_condition_on(stays):
    schema = STAYS.subset(["lactate", "ward"])
    model = trained(stays[..., [0, 3, 4, 5]], schema=schema)
    assert model.sample(3, 9).shape == (3, 9, 4)


@pytest.mark.parametrize("names", [["lactate"], ["ward"]])
def test_reals_alone_and_classes_alone(stays, names):
    schema = STAYS.subset(names)
    x = stays[..., STAYS.spans[names[0]]]
    assert trained(x, schema=schema).sample(2, 9).shape[2] == schema.width


# Checkpoints


def assert_same(one, other, tmp_path):
    """Compare everything that a checkpoint holds, bit for bit."""
    held = []
    for number, model in enumerate((one, other)):
        path = tmp_path / f"compared{number}.safetensors"
        model.save(path)
        held.append(checkpoint.load(path))
    (ours, header), (theirs, other_header) = held
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    assert header["history"] == other_header["history"]
    assert header["epoch"] == other_header["epoch"]


@pytest.mark.parametrize("settings", [OURS, PUBLISHED])
@pytest.mark.parametrize("window", ["first", "random"])
def test_resume_is_exact(x, tmp_path, settings, window):
    """Two epochs, save, load, two more: as four straight, bit for bit."""
    path = tmp_path / "m.safetensors"
    choices = {"length": 10, "window": window}
    straight, first = tiny(settings), tiny(settings)
    straight.fit(loader_of(x, **choices), epochs=4)
    first.fit(loader_of(x, **choices), epochs=2, checkpoint_path=path)
    second = Diffusion.load(path, MADE_UP, CPU)
    second.fit(loader_of(x, **choices), epochs=4)
    assert_same(second, straight, tmp_path)
    assert torch.equal(second.sample(2, 9), straight.sample(2, 9))
    first.fit(loader_of(x, **choices), epochs=4)  # in the same process
    assert_same(first, straight, tmp_path)


def test_saves_come_when_asked_for(x, tmp_path):
    path = tmp_path / "m.safetensors"
    model = tiny()
    epochs = []
    model.save = lambda _: epochs.append(model.epoch)
    model.fit(loader_of(x), 5, checkpoint_path=path, save_every=2)
    assert epochs == [2, 4, 5]


@pytest.mark.parametrize("settings", [OURS, PUBLISHED])
def test_weights_only_is_small_and_samples_alike(x, tmp_path, settings):
    model = trained(x, settings)
    model.provenance["source"] = "made up"
    model.save(tmp_path / "full.safetensors")
    model.save(tmp_path / "small.safetensors", weights_only=True)
    sizes = [
        (tmp_path / f"{name}.safetensors").stat().st_size
        for name in ("full", "small")
    ]
    assert sizes[1] < sizes[0] / 4
    again = Diffusion.load(tmp_path / "small.safetensors", MADE_UP, CPU)
    assert again.history == model.history
    assert again.provenance == {"source": "made up"}
    walks = [m.sample(3, 17, steps=3, limit="clip") for m in (again, model)]
    assert 0 < (walks[0] - walks[1]).abs().max() < 0.05


class Straight(nn.Module):
    """A network of a reader's own."""

    def __init__(self, width):
        super().__init__()
        self.map = nn.Linear(width, width)

    def forward(self, x, t, condition=None):
        return self.map(x)


def test_another_network_can_be_plugged_in(x, tmp_path):
    path = tmp_path / "m.safetensors"
    width = tiny().dynamic.width
    model = Diffusion(MADE_UP, OURS, CPU, Straight(width))
    model.fit(loader_of(x), 1, checkpoint_path=path)
    with pytest.raises(CheckpointError, match="its network is a Straight"):
        Diffusion.load(path, MADE_UP, CPU)
    with pytest.raises(CheckpointError, match="another architecture"):
        Diffusion.load(path, MADE_UP, CPU, Straight(width + 1))
    again = Diffusion.load(path, MADE_UP, CPU, Straight(width))
    assert torch.equal(again.sample(2, 9), model.sample(2, 9))


def test_other_schema_is_refused(x, tmp_path):
    path = tmp_path / "m.safetensors"
    trained(x).save(path)
    with pytest.raises(CheckpointError, match="another schema"):
        Diffusion.load(path, ART_SCHEMA)
