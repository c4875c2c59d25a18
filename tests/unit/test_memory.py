"""The memory encodes, keeps and draws what it says."""

import pytest
import torch
import torch.nn.functional as F
from cohorts import MADE_UP
from torch import distributions
from training import CPU, SMALL, assert_same, small_loaders, small_model

from healthgym_utils.checkpoint import CheckpointError
from healthgym_utils.gan import WGANGP
from healthgym_utils.memory import LatentMemory

WIDTH = MADE_UP.embedding_width


def small_memory(**choices):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return LatentMemory(
            MADE_UP, latent=6, hidden=8, **{"capacity": 20} | choices
        )


@pytest.fixture
def embedded():
    torch.manual_seed(0)
    return torch.randn(5, 7, WIDTH)


@pytest.fixture
def random():
    return torch.Generator().manual_seed(0)


def test_encoder_is_the_published_one(embedded):
    memory = small_memory()
    x = F.relu(memory.first(embedded) + memory.skip(embedded))
    x = F.relu(memory.second(x) + x)
    x = F.relu(memory.third(x) + x)
    torch.testing.assert_close(memory.encode(embedded), memory.latent(x))


def test_published_loss_draws_batch_moments(embedded, random):
    memory = small_memory()
    latent = memory.encode(embedded).flatten(0, 1)
    normal = distributions.Normal(
        latent.mean(dim=0), latent.std(dim=0, correction=0)
    )
    standard = distributions.Normal(torch.zeros(6), torch.ones(6))
    divergence = distributions.kl_divergence(normal, standard).sum()
    error = F.mse_loss(memory.decoder(memory.encode(embedded)), embedded)
    torch.testing.assert_close(
        memory.loss(embedded, random), error + divergence
    )


@pytest.mark.parametrize("variance", [None, 0.05])
def test_true_vae_has_a_divergence_for_every_month(embedded, variance):
    """The negative evidence bound, without its constants."""
    memory = small_memory(encoder="vae", decoder_variance=variance)
    features = memory._features(embedded)
    deviation = (memory.log_variance(features) / 2).exp()
    normal = distributions.Normal(memory.latent(features), deviation)
    standard = distributions.Normal(torch.zeros(6), torch.ones(6))
    divergence = distributions.kl_divergence(normal, standard)
    noise = torch.randn(
        deviation.shape, generator=torch.Generator().manual_seed(0)
    )
    latent = normal.loc + noise * deviation
    likelihood = distributions.Normal(
        memory.decoder(latent), (variance or WIDTH / 2) ** 0.5
    )
    constant = likelihood.log_prob(likelihood.loc)
    surprise = constant - likelihood.log_prob(embedded)
    torch.testing.assert_close(
        memory.loss(embedded, torch.Generator().manual_seed(0)),
        surprise.sum(dim=-1).mean() + divergence.sum(dim=-1).mean(),
    )


@pytest.mark.parametrize(
    "choices",
    [
        {"encoder": "vae", "decoder_variance": 0.0},
        {"encoder": "moments", "decoder_variance": 1.0},
    ],
)
def test_a_decoder_variance_is_the_vae_s(choices):
    with pytest.raises(ValueError, match="decoder_variance is positive"):
        small_memory(**choices)


def test_autoencoder_learns_to_reconstruct(embedded, random):
    memory = small_memory()
    adam = torch.optim.Adam(memory.parameters(), lr=1e-2)
    start = memory.loss(embedded, random).item()
    for _ in range(200):
        adam.zero_grad()
        loss = memory.loss(embedded, random)
        loss.backward()
        adam.step()
    assert loss.item() < start / 2


def test_remembers_patient_means_in_order(embedded, random):
    memory = small_memory()
    memory.remember(embedded, random)
    means = memory.encode(embedded).mean(dim=1)
    assert memory.filled == 5
    torch.testing.assert_close(memory.entries[:5], means)
    assert not memory.entries[5:].any()


def test_scale_halves_its_way(embedded, random):
    memory = small_memory()
    spread = memory.encode(embedded).flatten(0, 1).std(dim=0, correction=0)
    memory.remember(embedded, random)
    torch.testing.assert_close(memory.scale, (1 + spread) / 2)
    memory.remember(embedded, random)
    torch.testing.assert_close(memory.scale, 0.25 + 0.75 * spread)


@pytest.mark.parametrize("downsampling", ["replacement", "reservoir"])
def test_never_more_than_capacity_and_all_from_patients(
    downsampling, embedded, random
):
    memory = small_memory(downsampling=downsampling)
    for _ in range(9):
        memory.remember(embedded, random)
    assert memory.filled == 20
    assert memory.seen == 45
    means = memory.encode(embedded).mean(dim=1)
    gaps = (memory.entries.unsqueeze(1) - means).abs().amax(dim=-1)
    assert gaps.min(dim=1).values.max() < 1e-6


def test_reservoir_keeps_everyone_alike():
    """Each of 40 patients is kept with probability 10 / 40."""
    random = torch.Generator().manual_seed(1)
    kept = torch.zeros(40)
    for _ in range(400):
        memory = small_memory(downsampling="reservoir", capacity=10)
        means = torch.arange(40.0).unsqueeze(1).expand(-1, 6)
        for part in means.split(7):
            memory._store_reservoir(part, random)
        kept[memory.entries[:, 0].long()] += 1
    share = kept / 400
    assert share.sum() == pytest.approx(10)
    # 5 standard errors of a share of a quarter in 400 draws
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / 400) ** 0.5


def test_replacement_loses_entries_sooner_than_a_reservoir():
    """Distinct patients left after one overflow."""
    random = torch.Generator().manual_seed(2)
    means = torch.arange(40.0).unsqueeze(1).expand(-1, 6)
    left = {}
    for downsampling in ("replacement", "reservoir"):
        memory = small_memory(downsampling=downsampling, capacity=20)
        store = {
            "replacement": memory._store_replacing,
            "reservoir": memory._store_reservoir,
        }[downsampling]
        store(means, random)
        left[downsampling] = memory.entries[:, 0].unique().numel()
    assert left["reservoir"] == 20
    assert left["replacement"] < 20


def test_draws_are_remembered_means(embedded, random):
    memory = small_memory()
    assert not memory.draw(4, random).any()
    memory.remember(embedded, random)
    drawn = memory.draw(200, random)
    same = (drawn.unsqueeze(1) == memory.entries[:5]).all(dim=-1)
    assert (same.sum(dim=1) == 1).all()
    assert same.any(dim=0).all()


def test_shift_scales_and_moves_whole_patients(embedded, random):
    memory = small_memory()
    memory.remember(embedded, random)
    z = torch.rand(3, 4, 6)
    moved = memory.shift(z, random) - z * memory.scale
    assert (moved - moved[:, :1]).abs().max() < 1e-6


def test_without_a_buffer_only_the_scale_is_kept(embedded, random):
    memory = small_memory(buffer=False)
    memory.remember(embedded, random)
    assert memory.filled == 0
    assert not memory.draw(4, random).any()
    assert (memory.scale != 1).all()


def test_projection_has_nothing_to_learn(embedded, random):
    memory = small_memory(encoder="projection")
    assert not memory.learns
    assert not list(memory.parameters())
    torch.testing.assert_close(
        memory.encode(embedded), embedded @ memory.projection
    )


@pytest.mark.parametrize(
    "choice", [{"encoder": "VAE"}, {"downsampling": "random"}]
)
def test_unknown_choices_are_refused(choice):
    (name,) = choice
    with pytest.raises(ValueError, match=f"{name} is one of"):
        small_memory(**choice)


@pytest.mark.parametrize("encoder", ["moments", "vae", "projection"])
@pytest.mark.parametrize("downsampling", ["replacement", "reservoir"])
def test_resume_is_exact(x, tmp_path, encoder, downsampling):
    """Everything the memory holds is in the checkpoint."""
    choices = {"encoder": encoder, "downsampling": downsampling}
    straight = small_model(memory=small_memory(**choices))
    straight.fit(small_loaders(x), epochs=4)
    first = small_model(memory=small_memory(**choices))
    first.fit(small_loaders(x), epochs=2)
    first.save(tmp_path / "m.safetensors")
    second = WGANGP.load(
        tmp_path / "m.safetensors",
        MADE_UP,
        device=CPU,
        memory=LatentMemory(MADE_UP, **first.memory.arguments),
    )
    second.fit(small_loaders(x), epochs=4)
    assert straight.memory.seen > 20  # so that the buffer has overflowed
    assert_same(second, straight)
    assert torch.equal(second.sample(9, 5), straight.sample(9, 5))


def test_memory_changes_what_is_generated(x):
    model = small_model(memory=small_memory())
    model.fit(small_loaders(x), epochs=1)
    z = model._noise(4, 5, torch.Generator().manual_seed(0))
    plain = torch.rand((4, 5, 6), generator=torch.Generator().manual_seed(0))
    assert (z - plain).abs().max() > 0.1
    assert "memory_loss" in model.history[0]


def test_another_memory_is_refused(x, tmp_path):
    path = tmp_path / "m.safetensors"
    small_model(memory=small_memory()).save(path)
    with pytest.raises(CheckpointError, match="its memory is"):
        WGANGP.load(path, MADE_UP)
    with pytest.raises(CheckpointError, match="its memory is"):
        WGANGP.load(path, MADE_UP, memory=small_memory(encoder="vae"))
    small_model(SMALL).save(path)
    with pytest.raises(CheckpointError, match="its memory is None"):
        WGANGP.load(path, MADE_UP, memory=small_memory())


def test_the_critics_embedding_is_not_trained_by_the_memory(x):
    model = small_model(memory=small_memory())
    before = [p.clone() for p in model.critic.parameters()]
    model.memory_step(x)
    for old, new in zip(before, model.critic.parameters(), strict=True):
        assert torch.equal(old, new)
