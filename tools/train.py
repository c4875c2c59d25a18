"""Train a shipped model, or go on where it was interrupted.

    python tools/train.py v1 [--seed 42] [--epochs 100] [--bf16]

The resumable state is saved after every epoch in _build/training, which git
ignores; run the same command again after any interruption. Reproduces the
published settings: 300 patients, batches of 256 with the rest dropped, lessons
of 10 to 60 months.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import healthgym_utils as hg
from healthgym_utils.gan import WGANGP, Settings

LENGTHS = (10, 20, 30, 40, 50, 60)  # months a lesson
FOLDER = Path(__file__).resolve().parents[1] / "_build" / "training"


def main() -> None:
    """Parse the command line, and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=["v1"])
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cohort = hg.load_art("simulated", 300)
    x = hg.Preprocessor(hg.ART_SCHEMA).fit(cohort).transform(cohort)
    loaders = hg.curriculum_loaders(
        x, LENGTHS, batch_size=256, drop_last=True, seed=options.seed
    )
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{options.model}-seed{options.seed}.safetensors"
    if path.exists():
        model = WGANGP.load(path, hg.ART_SCHEMA)
    else:
        settings = Settings(seed=options.seed, bf16=options.bf16)
        model = WGANGP(hg.ART_SCHEMA, settings=settings)
    model.fit(loaders, options.epochs, checkpoint_path=path)
    print(f"{path}: {model.epoch} epochs, {model.seconds:.0f} s")


if __name__ == "__main__":
    main()
