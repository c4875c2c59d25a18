"""Small trainings that several test modules look into."""

import torch
from cohorts import MADE_UP

from healthgym_utils.gan import WGANGP, Settings
from healthgym_utils.sequences import curriculum_loaders

SMALL = Settings(latent=6, hidden=8, critic_steps=2)
CPU = torch.device("cpu")


def small_model(settings=SMALL, generator=None, memory=None):
    return WGANGP(MADE_UP, generator, settings, CPU, memory)


def small_loaders(x, window="first"):
    return curriculum_loaders(x, (5, 10), batch_size=4, window=window, seed=1)


def state_of(model):
    """Collect everything that training touches, as one flat dict."""
    state = {
        f"{name}.{key}": value.clone()
        for name, network in model._networks().items()
        for key, value in network.state_dict().items()
    }
    for name, adam in model.adams.items():
        for index, moments in adam.state_dict()["state"].items():
            for key, value in moments.items():
                state[f"adam.{name}.{index}.{key}"] = value.clone()
    state["random"] = model.random.get_state()
    for length, value in model.loader_states.items():
        state[f"loader.{length}"] = value
    return state


def assert_same(model, other):
    ours, theirs = state_of(model), state_of(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    assert model.history == other.history
    assert model.epoch == other.epoch
