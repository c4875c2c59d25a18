"""Time v3's training step and sampling against the published configuration.

    python benchmarks/diffusion_step.py [--rounds 5] [--bf16]

All run in one process, by turns, with one thread. Before any timing, a fused
and a plain Adam are checked to take the same step from the same gradients.

Training: the literal version pads 60 months to 100 and has a plain Adam; ours
does neither, with the same network of width 256, loss and batch of 128.
Sampling 100 patients: the published one takes 500 steps at width 256, padded;
ours is the v3 that comes with the package, with its own number of steps. What
each step costs is measured on a few, and multiplied.
"""

from __future__ import annotations

import argparse

import torch
from timing import by_turns, report
from torch import Tensor

import healthgym_utils as hg

CPU = torch.device("cpu")
BATCH = 128
PATIENTS = 100
TIMED_STEPS = 4


def published(**changes: object) -> hg.Diffusion:
    """Build the published v3, changed where asked for."""
    return hg.Diffusion.published(hg.ART_SCHEMA, CPU, **changes)


def with_plain_adam(model: hg.Diffusion) -> hg.Diffusion:
    """Exchange the optimiser for one that updates tensor by tensor."""
    s = model.settings
    model.adams["network"] = torch.optim.Adam(
        model.network.parameters(),
        s.learning_rate,
        (s.beta1, s.beta2),
        foreach=False,
        fused=False,
    )
    return model


def largest_difference(real: Tensor, lengths: Tensor) -> float:
    """Weights after a step by either Adam, relative to the step's size."""
    models = published(hidden=32), with_plain_adam(published(hidden=32))
    before = torch.cat([p.flatten() for p in models[0].network.parameters()])
    before = before.detach().clone()
    for model in models:
        model.train_step(real, lengths)
    a, b = (
        torch.cat([p.detach().flatten() for p in m.network.parameters()])
        for m in models
    )
    return ((a - b).abs().max() / (b - before).abs().max()).item()


def main() -> None:
    """Check, time by turns, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cohort = hg.load_art("simulated", BATCH)
    x = hg.Preprocessor(hg.ART_SCHEMA).fit(cohort).transform(cohort)
    lengths = torch.full((BATCH,), x.shape[1])
    difference = largest_difference(x, lengths)
    print(f"plain and fused Adam: relative difference {difference:.1e}")
    if difference > 1e-3:
        raise SystemExit("not the same arithmetic")

    literal = with_plain_adam(published())
    ours = published(pad_to=None, bf16=options.bf16)
    times = by_turns(
        {
            "literal": lambda: literal.train_step(x, lengths),
            "ours": lambda: ours.train_step(x, lengths),
        },
        options.rounds,
    )
    report("training step", *times.values())

    v3 = hg.load_pretrained("v3-250", device=CPU)
    months, few = x.shape[1], TIMED_STEPS
    times = by_turns(
        {
            "published": lambda: literal.sample(PATIENTS, months, steps=few),
            "same network": lambda: ours.sample(PATIENTS, months, steps=few),
            "v3-250": lambda: v3.sample(PATIENTS, months, steps=few),
        },
        options.rounds,
    )
    whole = times["published"] * literal.settings.sampling_steps / few
    own = v3.settings.sampling_steps / few
    report("sampling, v3-250", whole, times["v3-250"] * own)
    report("sampling, one step", times["published"], times["same network"])


if __name__ == "__main__":
    main()
