"""Train a model that comes with the package, or go on where it stopped.

    python tools/train.py v1 [--seed 42] [--bf16]

The resumable state is saved in _build/training, which git ignores, after each
epoch of a GAN and every 25 of diffusion, which are short; run the same
command again after any interruption. At each milestone
(of v1, 100 and 200 epochs) the weights are saved beside it, for tools/ship.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import healthgym_utils as hg
from healthgym_utils.pretrained import rebuild, untrained
from healthgym_utils.training import Loaders

PATIENTS = 300
DIFFUSION_BATCH = 64
LENGTHS = (10, 20, 30, 40, 50, 60)  # months a lesson of a GAN
MILESTONES = {  # epochs
    "v1": (100, 200),
    "v2": (100,),
    "v2.5": (100,),
    "v3": (250,),
    "v3-published": (1000,),  # a third of the published number
}
CALIBRATED = {"v3"}  # on the training patients, when training is done
DIFFUSION_SAVES = {"save_every": 25}
FOLDER = Path(__file__).resolve().parents[1] / "_build" / "training"


def state_path(model: str, seed: int) -> Path:
    """Say where the resumable state of a training is kept."""
    return FOLDER / f"{model}-seed{seed}.safetensors"


def snapshot_path(model: str, epochs: int, seed: int) -> Path:
    """Say where the weights at a milestone are kept."""
    return FOLDER / f"{model}-{epochs}-seed{seed}.safetensors"


def loaders_of(model: str, x: Tensor, seed: int) -> Loaders:
    """Serve patients: in the published lessons, or all months to v3."""
    if model == "v3-published":
        loader = hg.sequence_loader(x, 128, drop_last=True, seed=seed)
        return {x.shape[1]: loader}
    if model == "v3":
        loader = hg.sequence_loader(x, DIFFUSION_BATCH, seed=seed)
        return {x.shape[1]: loader}
    return hg.curriculum_loaders(
        x, LENGTHS, batch_size=256, drop_last=True, seed=seed
    )


def train(model: str, seed: int, bf16: bool) -> None:
    """Train with the default settings, through all milestones."""
    cohort = hg.load_art("simulated", PATIENTS)
    prep = hg.Preprocessor(hg.ART_SCHEMA).fit(cohort)
    x = prep.transform(cohort)
    loaders = loaders_of(model, x, seed)
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = state_path(model, seed)
    if path.exists():
        trained = rebuild(path, hg.ART_SCHEMA)
    else:
        trained = untrained(model, seed, bf16)
        trained.provenance = {
            "source": cohort.attrs["source"],
            "patients": PATIENTS,
            "scalings": prep.to_dict()["scalings"],
        }
    options = DIFFUSION_SAVES if isinstance(trained, hg.Diffusion) else {}
    for epochs in MILESTONES[model]:
        if trained.epoch < epochs:
            trained.fit(loaders, epochs, checkpoint_path=path, **options)
        snapshot = snapshot_path(model, epochs, seed)
        # Also after a kill between the last epoch's save and this one.
        if trained.epoch == epochs and not snapshot.exists():
            if model in CALIBRATED:
                trained.calibrate(x)
            trained.save(snapshot, weights_only=True)
            print(f"{snapshot}: {trained.seconds:.0f} s of training")


def main() -> None:
    """Parse the command line, and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=sorted(MILESTONES))
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--bf16",
        action="store_true",
        help="quicker, not equal to the last bit",
    )
    options = parser.parse_args()
    # Seeds trained side by side, one thread each, beat one with two threads.
    torch.set_num_threads(1)
    train(options.model, options.seed, options.bf16)


if __name__ == "__main__":
    main()
