"""The adversarial game is played by its rules, and can be resumed."""

import copy
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cohorts import MADE_UP, made_up_table
from torch import nn
from training import (
    CPU,
    assert_same,
    small_loaders,
    small_model,
)

from healthgym_utils import checkpoint
from healthgym_utils.checkpoint import CheckpointError
from healthgym_utils.gan import (
    HEADER,
    WGANGP,
    Critic,
    Generator,
    Settings,
    correlation,
    correlation_loss,
    gradient_penalty,
    to_valid,
)
from healthgym_utils.preprocess import Preprocessor
from healthgym_utils.schema import ART_SCHEMA
from healthgym_utils.sequences import curriculum_loaders


def test_outputs_are_valid_by_construction():
    raw = 20 * torch.randn(4, 6, MADE_UP.width)
    rows = to_valid(raw, MADE_UP)
    assert rows.min() >= 0
    assert rows.max() <= 1
    for feature in MADE_UP.categoricals:
        sums = rows[..., MADE_UP.spans[feature.name]].sum(dim=-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        ({"critic_steps": 0}, "critic_steps is 1 or more, got 0"),
        ({"latent": 12.0}, "latent is int, got 12.0"),
        ({"hidden": "wide"}, "hidden is int, got 'wide'"),
        ({"penalty_weight": float("nan")}, "penalty_weight is finite"),
        ({"learning_rate": 10**400}, "learning_rate is finite"),
        ({"bf16": 1}, "bf16 is bool, got 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(choices, why):
    with pytest.raises(ValueError, match=why):
        Settings(**choices)


def test_published_architecture():
    generator, critic = Generator(ART_SCHEMA), Critic(ART_SCHEMA)
    assert generator(torch.rand(3, 9, 128)).shape == (3, 9, 22)
    assert critic.body[0].in_features == 18
    assert critic.score.in_features == 256
    assert critic(torch.rand(3, 9, 22)).shape == (3,)
    settings = Settings()
    assert (settings.critic_steps, settings.penalty_weight) == (5, 10)
    assert (settings.learning_rate, settings.beta1, settings.beta2) == (
        1e-3,
        0.9,
        0.99,
    )


def test_critic_paths_agree(x):
    critic = Critic(MADE_UP, hidden=8)
    gap = (critic(x) - critic(x, unrolled=True)).abs().max()
    assert gap < 1e-6


class Linear(nn.Module):
    """A critic whose slope is known: the same everywhere."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x, unrolled=False):
        return (x * self.weight).flatten(1).sum(dim=1)


def test_penalty_of_a_known_slope(x):
    weight = torch.randn(x.shape[1:])
    penalty, norms = gradient_penalty(
        Linear(weight), x, torch.rand_like(x), torch.rand(len(x), 1, 1)
    )
    torch.testing.assert_close(norms, weight.norm().expand(len(x)))
    torch.testing.assert_close(penalty, (weight.norm() - 1).square())


def test_penalty_slope_equals_a_finite_difference(x):
    torch.manual_seed(0)
    critic = Critic(MADE_UP, hidden=8).double()
    x = x[:1].double()
    _, norms = gradient_penalty(critic, x, x, torch.ones(1, 1, 1).double())
    slope = torch.zeros_like(x)
    step = 1e-6
    for index in np.ndindex(*x.shape):
        up, down = x.clone(), x.clone()
        up[index] += step
        down[index] -= step
        slope[index] = (critic(up) - critic(down)).item() / (2 * step)
    torch.testing.assert_close(norms[0], slope.norm(), rtol=1e-6, atol=1e-8)


def test_critic_step_leaves_the_generator_alone(x):
    model = small_model()
    before = copy.deepcopy(model.generator.state_dict())
    model.critic_step(x)
    for name, value in model.generator.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in model.generator.parameters())


def test_detached_fakes_give_the_same_critic_gradients(x):
    """What a penalty through the generator's graph would give, and no more."""
    model = small_model()
    noise, alpha = torch.rand(9, 17, 6), torch.rand(9, 1, 1)
    fake = model.generator(noise)
    point = alpha * x + (1 - alpha) * fake  # the generator's graph kept
    scores = model.critic(point, unrolled=True)
    (slope,) = torch.autograd.grad(scores.sum(), point, create_graph=True)
    (slope.flatten(1).norm(dim=1) - 1).square().mean().backward()
    kept = [
        p.grad.clone() for p in model.critic.parameters() if p.grad is not None
    ]
    model.critic.zero_grad()
    gradient_penalty(model.critic, x, fake, alpha)[0].backward()
    ours = [p.grad for p in model.critic.parameters() if p.grad is not None]
    for a, b in zip(kept, ours, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_generator_step_leaves_the_critic_alone(x):
    model = small_model()
    before = copy.deepcopy(model.critic.state_dict())
    model.generator_step(9, 17, correlation(x))
    for name, value in model.critic.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in model.critic.parameters())
    assert all(p.requires_grad for p in model.critic.parameters())
    assert any(p.grad.abs().sum() > 0 for p in model.generator.parameters())


def test_correlation_is_numpys(x):
    rows = torch.rand(7, 11, 5).double() ** 3
    expected = np.corrcoef(rows.reshape(-1, 5).numpy(), rowvar=False)
    np.testing.assert_allclose(correlation(rows), expected, atol=1e-12)


def test_correlation_is_accurate_in_float32():
    rows = torch.rand(300, 60, 4) ** 3
    exact = correlation(rows.double()).float()
    assert (correlation(rows) - exact).abs().max() < 1e-5


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e4])
def test_constant_columns_correlate_with_nothing(value):
    rows = torch.rand(50, 60, 3)
    rows[..., 1] = value
    found = correlation(rows)
    assert (found[1] == 0).all()
    assert (found[:, 1] == 0).all()
    assert found.isfinite().all()
    assert found[0, 0] == pytest.approx(1, abs=1e-5)
    rows.requires_grad_()
    correlation(rows).sum().backward()
    assert rows.grad.isfinite().all()


def test_random_bound_has_its_expectation():
    """E[min(U, d)] = d - d**2 / 2 for a difference d in [0, 1]."""
    fake = torch.rand(4, 30, 3)
    target = correlation(fake) + torch.tensor([[0.0, 0.2, 0.5]]).T
    bounds = torch.rand(20_000, 3, 3)
    losses = torch.stack([correlation_loss(fake, target, b) for b in bounds])
    d = torch.tensor([0.0, 0.2, 0.5])
    expected = (d - d.square() / 2).mean()
    error = losses.std() / len(losses) ** 0.5
    assert abs(losses.mean() - expected) < 5 * error


def test_correlation_loss_can_be_learned(x):
    torch.manual_seed(0)
    raw = torch.randn(x.shape, requires_grad=True)
    adam = torch.optim.Adam([raw], lr=0.05)
    one = torch.ones(MADE_UP.width, MADE_UP.width)
    losses = []
    for _ in range(60):
        loss = correlation_loss(to_valid(raw, MADE_UP), correlation(x), one)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_fit_records_every_update(x):
    model = small_model()
    history = model.fit(small_loaders(x), epochs=2)
    assert model.epoch == 2
    # Nine patients in batches of four are three batches a lesson.
    assert [r["epoch"] for r in history] == [1] * 6 + [2] * 6
    assert [r["length"] for r in history[:6]] == [5, 5, 5, 10, 10, 10]
    assert all(np.isfinite(list(r.values())).all() for r in history)


def test_training_teaches_the_critic(x):
    """Against a fixed generator the critic tells reals from fakes."""
    model = small_model(Settings(latent=6, hidden=8, learning_rate=0.01))
    for _ in range(80):
        record = model.critic_step(x)
    assert record["score_real"] > record["score_fake"] + 0.05


def test_sample(x):
    model = small_model()
    fake = model.sample(7, months=23, batch_size=3)
    assert fake.shape == (7, 23, MADE_UP.width)
    assert not fake.requires_grad
    assert torch.equal(fake, model.sample(7, months=23, batch_size=3))
    assert not torch.equal(fake, model.sample(7, months=23, seed=1))
    for wrong in ((0, 5), (5, 0)):
        with pytest.raises(ValueError, match="1 or more, got"):
            model.sample(*wrong)


def test_seed_decides_everything_and_touches_nothing(x):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    runs = [small_model() for _ in range(2)]
    for model in runs:
        model.fit(small_loaders(x), epochs=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_same(*runs)


@pytest.mark.parametrize("window", ["first", "random"])
def test_resume_is_exact(x, tmp_path, window):
    """Two epochs, save, load, two more: as four straight, bit for bit."""
    straight = small_model()
    straight.fit(small_loaders(x, window), epochs=4)
    first = small_model()
    first.fit(small_loaders(x, window), epochs=2)
    first.save(tmp_path / "m.safetensors")
    second = WGANGP.load(tmp_path / "m.safetensors", MADE_UP, device=CPU)
    second.fit(small_loaders(x, window), epochs=4)
    assert_same(second, straight)
    first.fit(small_loaders(x, window), epochs=4)  # in the same process
    assert_same(first, straight)


def test_resume_on_other_data_is_refused(x):
    model = small_model()
    model.fit(small_loaders(x), epochs=1)
    with pytest.raises(ValueError, match="trained for 1 epochs on other data"):
        model.fit(small_loaders(x.flip(0)), epochs=2)


def test_weights_only_is_small_and_samples_alike(x, tmp_path):
    model = small_model()
    model.fit(small_loaders(x), epochs=1)
    model.save(tmp_path / "full.safetensors")
    model.save(tmp_path / "small.safetensors", weights_only=True)
    again = WGANGP.load(tmp_path / "small.safetensors", MADE_UP, device=CPU)
    assert again.history == model.history
    gap = (again.sample(5, 17) - model.sample(5, 17)).abs().max()
    assert 0 < gap < 0.01


# Imports once, then forks a child a line read, which trains as many epochs.
TRAINER = """
import os, sys, torch
sys.path[:0] = {folders!r}
torch.set_num_threads(1)
from test_gan import train_on
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        train_on({path!r}, int(line))
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""
FOR_EVER = 1_000_000


def train_on(path, more):
    """Start or resume, save after each epoch, and report the first one."""
    table = made_up_table(MADE_UP, 9, 17, seed=0)
    x = Preprocessor(MADE_UP).fit(table).transform(table)
    model = small_model()
    if Path(path).exists():
        model = WGANGP.load(path, MADE_UP, device=CPU)
    loaders, goal = small_loaders(x), model.epoch + more
    model.fit(loaders, epochs=model.epoch + 1, checkpoint_path=path)
    print("under way", flush=True)
    model.fit(loaders, epochs=goal, checkpoint_path=path)


@pytest.mark.slow
def test_kill_at_any_moment(x, tmp_path):
    """Killed twenty times at random, training ends as if never disturbed."""
    path = tmp_path / "m.safetensors"
    folders = [p for p in sys.path if Path(p).name in ("tests", "unit")]
    trainer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            TRAINER.format(folders=folders, path=str(path)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )

    def run(more, kill_after=None):
        """Run one child; return how it ended."""
        trainer.stdin.write(f"{more}\n")
        child = int(trainer.stdout.readline())
        assert trainer.stdout.readline() == "under way\n"
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(int(trainer.stdout.readline()))

    dice = random.Random(0)
    for _ in range(20):
        assert run(FOR_EVER, dice.uniform(0, 0.15)) == -signal.SIGKILL
    assert run(more=2) == 0
    trainer.stdin.close()
    trainer.wait()
    killed = WGANGP.load(path, MADE_UP, device=CPU)
    assert killed.epoch >= 22
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    straight = small_model()
    straight.fit(small_loaders(x), epochs=killed.epoch)
    torch.set_num_threads(threads)
    assert_same(killed, straight)


@pytest.fixture
def saved(x, tmp_path):
    model = small_model()
    model.fit(small_loaders(x), epochs=1)
    path = tmp_path / "m.safetensors"
    model.save(path)
    return path


def test_other_schema_is_refused(saved):
    with pytest.raises(CheckpointError, match="trained with another schema"):
        WGANGP.load(saved, ART_SCHEMA)
    shorter = MADE_UP.subset(MADE_UP.names[:-1], name=MADE_UP.name)
    with pytest.raises(CheckpointError, match="number of features differs"):
        WGANGP.load(saved, shorter)


def test_other_architecture_is_refused(saved):
    other = Generator(MADE_UP, latent=6, hidden=9)
    with pytest.raises(CheckpointError, match="generator is of another"):
        WGANGP.load(saved, MADE_UP, generator=other)


@pytest.mark.parametrize("name", sorted(HEADER))
def test_incomplete_header_is_refused(saved, name):
    tensors, header = checkpoint.load(saved)
    del header[name]
    checkpoint.save(saved, tensors, header)
    with pytest.raises(CheckpointError, match=f"its header lacks {name}"):
        WGANGP.load(saved, MADE_UP)


def test_a_cohort_larger_than_a_batch_trains(made_up):
    table = made_up_table(MADE_UP, 20, 17, seed=3)
    x = Preprocessor(MADE_UP).fit(table).transform(table)
    model = small_model()
    model.fit(curriculum_loaders(x, (17,), batch_size=8), epochs=1)
    assert len(model.history) == 3
