"""Time our WGAN-GP updates against a literal version of the published loop.

    python benchmarks/gan_step.py [v1|v2|v2.5] [--months 20] [--rounds 5]
        [--bf16]

``make bench OPTIONS="v2 --bf16"`` runs it with the settings of memory that
``make train`` uses, for both. Both run in one process, by turns, from the
same weights and the same draws. Before any timing, the critic's gradients are
checked to be the same. A turn is a whole batch: five critic steps, the step of
the autoencoder where there is one, and the generator's.

The literal version does what the published worked example does: a Python
loop over months with one projection a month, directions one after the other,
and fakes whose generator graph is kept in every critic step, so that the
critic's backward pass runs through the generator too.
"""

from __future__ import annotations

import argparse

import torch
from timing import by_turns, report
from torch import Tensor, nn

import healthgym_utils as hg
from healthgym_utils.gan import (
    WGANGP,
    correlation_loss,
    to_valid,
)
from healthgym_utils.layers import AttentionBlock
from healthgym_utils.pretrained import untrained


def literal_direction(
    x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    """One direction of an LSTM, month by month."""
    hidden = w_hh.shape[1]
    h = c = x.new_zeros(len(x), hidden)
    states = []
    for month in range(x.shape[1]):
        gates = nn.functional.linear(x[:, month], w_ih, b_ih)
        gates = gates + nn.functional.linear(h, w_hh, b_hh)
        i, f, g, o = gates.chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        states.append(h)
    return torch.stack(states, dim=1)


def literal_lstm(lstm: nn.Module, x: Tensor) -> Tensor:
    """Both directions, one after the other, from the weights of ours."""
    w = lstm.fused
    ahead = literal_direction(
        x, w.weight_ih_l0, w.weight_hh_l0, w.bias_ih_l0, w.bias_hh_l0
    )
    back = literal_direction(
        x.flip(1),
        w.weight_ih_l0_reverse,
        w.weight_hh_l0_reverse,
        w.bias_ih_l0_reverse,
        w.bias_hh_l0_reverse,
    )
    return torch.cat([ahead, back.flip(1)], dim=2)


def literal_scores(critic: nn.Module, x: Tensor) -> Tensor:
    """Score sequences through the literal LSTM."""
    states = literal_lstm(critic.lstm, critic.body(critic.embed(x)))
    ahead, back = states.chunk(2, dim=2)
    final = torch.cat([ahead[:, -1], back[:, 0]], dim=1)
    return critic.score(final).squeeze(1)


def literal_block(block: AttentionBlock, x: Tensor) -> Tensor:
    """Attention of all heads spelled out, a residual and a norm."""
    q, k, v = (
        part.unflatten(-1, (block.heads, -1)).transpose(1, 2)
        for part in block.project_in(x).chunk(3, dim=-1)
    )
    weights = torch.softmax(q @ k.transpose(-1, -2) / block.scale, dim=-1)
    mixed = (weights @ v).transpose(1, 2).flatten(2)
    return block.norm(x + block.project_out(mixed))


def literal_fakes(generator: nn.Module, z: Tensor) -> Tensor:
    """Generate with the literal LSTM or attention; the graph is kept."""
    if isinstance(generator, hg.TransformerGenerator):
        x = z + generator.positions.weight[: z.shape[1]]
        for block in generator.blocks:
            x = literal_block(block, x)
        x = torch.relu(generator.norm(generator.mix(x) + x))
        raw = generator.head(x)
    else:
        raw = generator.body(literal_lstm(generator.lstm, z))
    return to_valid(raw, generator.schema)


def literal_critic_loss(model: WGANGP, real: Tensor) -> Tensor:
    """Compute the published critic loss from the draws that ours makes."""
    s = model.settings
    z = model._noise(len(real), real.shape[1], model.random)
    fake = literal_fakes(model.generator, z)
    alpha = torch.rand((len(real), 1, 1), generator=model.random)
    on_real = literal_scores(model.critic, real)
    on_fake = literal_scores(model.critic, fake)
    x = alpha * real + (1 - alpha) * fake
    scores = literal_scores(model.critic, x)
    (slope,) = torch.autograd.grad(
        scores, x, torch.ones_like(scores), create_graph=True
    )
    norms = slope.reshape(len(real), -1).norm(2, dim=1)
    penalty = s.penalty_weight * ((norms - 1) ** 2).mean()
    return on_fake.mean() - on_real.mean() + penalty


def literal_critic_step(model: WGANGP, real: Tensor) -> None:
    """Update the critic once, as the published loop does."""
    model.adams["critic"].zero_grad()
    model.adams["generator"].zero_grad()
    literal_critic_loss(model, real).backward()
    model.adams["critic"].step()


def literal_generator_step(model: WGANGP, real: Tensor) -> None:
    """Update the generator once; the critic gathers gradients in vain."""
    s = model.settings
    z = model._noise(len(real), real.shape[1], model.random)
    fake = literal_fakes(model.generator, z)
    bound = torch.rand((real.shape[2],) * 2, generator=model.random)
    matched = correlation_loss(fake, hg.correlation(real), bound)
    score = literal_scores(model.critic, fake).mean()
    model.adams["generator"].zero_grad()
    (s.correlation_weight * matched - score).backward()
    model.adams["generator"].step()


def literal_batch(model: WGANGP, real: Tensor) -> None:
    """Do everything that one batch is for, the published way."""
    for _ in range(model.settings.critic_steps):
        literal_critic_step(model, real)
    if model.memory is not None:
        model.memory_step(real)
    literal_generator_step(model, real)


def our_batch(model: WGANGP, real: Tensor) -> None:
    """Do the same our way."""
    model._train_batch(real, hg.correlation(real))


def critic_gradients(model: WGANGP) -> Tensor:
    """All gradients of the critic in one row."""
    grads = [p.grad for p in model.critic.parameters()]
    return torch.cat([g.flatten() for g in grads if g is not None])


def relative_difference(real: Tensor, generation: str, bf16: bool) -> float:
    """Largest difference of critic gradients, relative to the largest."""
    ours, literal = untrained(generation, bf16=bf16), untrained(generation)
    if ours.memory is not None:  # so that there is something to draw
        for model in (ours, literal):
            model.memory_step(real)
    ours.critic_step(real)
    literal_critic_step(literal, real)
    a, b = critic_gradients(ours), critic_gradients(literal)
    return ((a - b).abs().max() / b.abs().max()).item()


def main() -> None:
    """Check, time by turns, and print the ratio with its spread."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "generation", nargs="?", default="v1", choices=["v1", "v2", "v2.5"]
    )
    parser.add_argument("--months", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    cohort = hg.load_art("simulated", 256)
    x = hg.Preprocessor(hg.ART_SCHEMA).fit(cohort).transform(cohort)
    real = x[:, : options.months].contiguous()
    difference = relative_difference(real, options.generation, options.bf16)
    print(f"critic gradients: relative difference {difference:.1e}")
    limit = 2e-2 if options.bf16 else 1e-5
    if difference > limit:
        raise SystemExit(f"above {limit:.0e}: not the same arithmetic")
    ours = untrained(options.generation, bf16=options.bf16)
    literal = untrained(options.generation)
    steps = {
        "literal": lambda: literal_batch(literal, real),
        "ours": lambda: our_batch(ours, real),
    }
    times = by_turns(steps, options.rounds)
    report("a batch, literal and ours", times["literal"], times["ours"])


if __name__ == "__main__":
    main()
