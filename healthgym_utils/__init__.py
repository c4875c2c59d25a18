"""The thin package under the Health Gym book."""

import sys

# While Python looks for what `python -m` is to run, here the doctor, which
# has to run where the packages below are missing.
if sys.argv[:1] != ["-m"]:
    from healthgym_utils import baselines, metrics, plots, structural
    from healthgym_utils.data import announce, load_art
    from healthgym_utils.diffusion import Diffusion, NoiseSchedule
    from healthgym_utils.gan import (
        WGANGP,
        Critic,
        Generator,
        TransformerGenerator,
        correlation,
        gradient_penalty,
    )
    from healthgym_utils.layers import LSTM, FeatureEmbedding
    from healthgym_utils.memory import LatentMemory
    from healthgym_utils.metrics import scoreboard
    from healthgym_utils.preprocess import Preprocessor
    from healthgym_utils.pretrained import load_pretrained, load_results
    from healthgym_utils.runtime import get_device, seed_everything
    from healthgym_utils.schema import (
        ART_FULL_SCHEMA,
        ART_SCHEMA,
        Feature,
        Schema,
    )
    from healthgym_utils.sequences import (
        curriculum_loaders,
        sequence_loader,
        to_sequences,
    )
    from healthgym_utils.simulate import simulate_art
    from healthgym_utils.unet import UNet1D

__version__ = "0.1.0"

__all__ = [
    "ART_FULL_SCHEMA",
    "ART_SCHEMA",
    "LSTM",
    "WGANGP",
    "Critic",
    "Diffusion",
    "Feature",
    "FeatureEmbedding",
    "Generator",
    "LatentMemory",
    "NoiseSchedule",
    "Preprocessor",
    "Schema",
    "TransformerGenerator",
    "UNet1D",
    "announce",
    "baselines",
    "correlation",
    "curriculum_loaders",
    "get_device",
    "gradient_penalty",
    "load_art",
    "load_pretrained",
    "load_results",
    "metrics",
    "plots",
    "scoreboard",
    "seed_everything",
    "sequence_loader",
    "simulate_art",
    "structural",
    "to_sequences",
]
