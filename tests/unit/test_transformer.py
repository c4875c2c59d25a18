"""Attention is what it is said to be, and the swap is one argument."""

import pytest
import torch
from cohorts import MADE_UP
from training import assert_same, small_loaders, small_model

from healthgym_utils.checkpoint import CheckpointError
from healthgym_utils.gan import WGANGP, TransformerGenerator
from healthgym_utils.layers import AttentionBlock
from healthgym_utils.schema import ART_SCHEMA


def small_generator(**choices):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return TransformerGenerator(MADE_UP, latent=6, heads=2, **choices)


def test_block_is_textbook_attention():
    """Heads one by one: softmax(Q K' / scale) V, joined, added, normed."""
    torch.manual_seed(0)
    block = AttentionBlock(12, heads=3, scale=5.0)
    x = torch.randn(2, 7, 12)
    q, k, v = block.project_in(x).chunk(3, dim=-1)
    heads = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / 5.0
        heads.append(scores.softmax(dim=-1) @ v[..., part])
        torch.testing.assert_close(
            block.weights(x)[:, head], scores.softmax(dim=-1)
        )
    mixed = block.project_out(torch.cat(heads, dim=-1))
    expected = torch.layer_norm(x + mixed, (12,), eps=1e-6)
    torch.testing.assert_close(block(x), expected)


def test_a_larger_divisor_flattens_attention():
    torch.manual_seed(0)
    x = torch.randn(2, 7, 12)
    entropies = []
    for scale in (2.0, 12**0.5):
        torch.manual_seed(1)
        weights = AttentionBlock(12, 3, scale).weights(x)
        entropies.append(torch.special.entr(weights).sum(dim=-1).mean())
    assert entropies[0] < entropies[1]


def test_published_architecture():
    generator = TransformerGenerator(ART_SCHEMA)
    assert len(generator.blocks) == 3
    for block in generator.blocks:
        assert (block.heads, block.scale) == (8, 128**0.5)
        assert block.feed_forward is None
        assert block.norm.eps == 1e-6
    assert generator.positions.weight.shape == (100, 128)
    assert generator(torch.rand(2, 60, 128)).shape == (2, 60, 22)


@pytest.mark.parametrize("feed_forward", [False, True])
def test_rows_are_valid_at_any_length(feed_forward):
    generator = small_generator(feed_forward=feed_forward)
    for months in (1, 8, 100):
        rows = generator(torch.rand(3, months, 6))
        assert rows.shape == (3, months, MADE_UP.width)
        assert rows.min() >= 0
        assert rows.max() <= 1


def test_longer_than_the_positions_is_refused():
    with pytest.raises(ValueError, match="101 months asked for.*for 100"):
        small_generator()(torch.rand(1, 101, 6))
    assert small_generator(max_months=101)(torch.rand(1, 101, 6)).shape


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="4 heads do not divide"):
        TransformerGenerator(MADE_UP, latent=6, heads=4)


def test_every_month_sees_every_month():
    generator = small_generator()
    z = torch.rand(1, 9, 6)
    bumped = z.clone()
    bumped[0, 4] += 1
    moved = (generator(z) - generator(bumped)).abs()[0].amax(dim=1)
    assert (moved > 0).all()


def test_one_swap_trains_and_resumes(x, tmp_path):
    straight = small_model(generator=small_generator())
    straight.fit(small_loaders(x), epochs=2)
    first = small_model(generator=small_generator())
    first.fit(small_loaders(x), epochs=1)
    path = tmp_path / "m.safetensors"
    first.save(path)
    with pytest.raises(CheckpointError, match="is a TransformerGenerator"):
        WGANGP.load(path, MADE_UP)
    second = WGANGP.load(path, MADE_UP, generator=small_generator())
    second.fit(small_loaders(x), epochs=2)
    assert_same(second, straight)
