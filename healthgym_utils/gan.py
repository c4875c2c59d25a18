"""Health Gym v1: a recurrent WGAN with gradient penalty.

Kuo et al. (2022), Scientific Data: a biLSTM generator against a biLSTM
critic; Gulrajani et al. (2017) for the penalty. Later generations swap the
generator or add a memory, and keep this trainer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from healthgym_utils import checkpoint, training
from healthgym_utils.layers import LSTM, AttentionBlock, SoftEmbedding
from healthgym_utils.memory import LatentMemory
from healthgym_utils.runtime import check_fields, get_device, progress
from healthgym_utils.schema import Schema

BESIDE = ThreadPoolExecutor(1, "penalty")  # its thread starts when needed
SLOPE = 0.1  # of every LeakyReLU, as published
HEADER = training.PROGRESS | {
    "generator",
    "memory",
    "weights_only",
}


class Generator(nn.Module):
    """Turn noise into rows that are valid by construction.

    Parameters
    ----------
    schema : Schema
        Which columns are reals (sigmoid) and which are blocks (softmax).
    latent, hidden : int
        Width of the noise, and of each direction's state.
    """

    def __init__(
        self, schema: Schema, latent: int = 128, hidden: int = 128
    ) -> None:
        super().__init__()
        self.schema = schema
        self.latent = latent
        self.lstm = LSTM(latent, hidden)
        self.body = nn.Sequential(
            nn.Linear(2 * hidden, hidden),
            nn.LeakyReLU(SLOPE),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(SLOPE),
            nn.Linear(hidden, schema.width),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Map noise (batch, months, latent) to (batch, months, width)."""
        return to_valid(self.body(self.lstm(z)), self.schema)


class TransformerGenerator(nn.Module):
    """Turn noise into valid rows by attention: Health Gym v2.5's swap.

    Every month attends to every other (Vaswani et al. 2017). As published,
    a block is attention, a residual and a normalisation, and has no
    feed-forward part.

    Parameters
    ----------
    schema : Schema
        Which columns are reals (sigmoid) and which are blocks (softmax).
    latent : int
        Width of the noise, and of all layers.
    blocks, heads : int
        How many attention blocks, and heads in each.
    max_months : int
        Longest sequence; each month has a learned position.
    scale : float, optional
        What dot products are divided by. The published square root of the
        whole width if not given; the standard one is the square root of a
        head's width, ``(latent / heads) ** 0.5``.
    feed_forward : bool
        Add the standard encoder's two layers, four times as wide, to each
        block.
    """

    def __init__(
        self,
        schema: Schema,
        latent: int = 128,
        blocks: int = 3,
        heads: int = 8,
        max_months: int = 100,
        scale: float | None = None,
        feed_forward: bool = False,
    ) -> None:
        super().__init__()
        self.schema = schema
        self.latent = latent
        self.max_months = max_months
        self.positions = nn.Embedding(max_months, latent)
        self.blocks = nn.ModuleList(
            AttentionBlock(latent, heads, scale or latent**0.5, feed_forward)
            for _ in range(blocks)
        )
        self.mix = nn.Linear(latent, latent)
        self.norm = nn.LayerNorm(latent, eps=1e-6)
        self.head = nn.Linear(latent, schema.width)

    def forward(self, z: Tensor) -> Tensor:
        """Map noise (batch, months, latent) to (batch, months, width).

        Raises
        ------
        ValueError
            If there are more months than learned positions.
        """
        months = z.shape[1]
        if months > self.max_months:
            raise ValueError(
                f"{months} months asked for, and this generator has learned "
                f"positions for {self.max_months}: build it with a larger "
                "max_months and train it on sequences as long"
            )
        x = z + self.positions.weight[:months]
        for block in self.blocks:
            x = block(x)
        x = torch.relu(self.norm(self.mix(x) + x))
        return to_valid(self.head(x), self.schema)


def to_valid(raw: Tensor, schema: Schema) -> Tensor:
    """Squash reals into [0, 1] and blocks onto the simplex.

    Parameters
    ----------
    raw : Tensor, shape (..., schema.width)
        Unbounded outputs of a network.
    """
    parts = []
    for feature in schema:
        block = raw[..., schema.spans[feature.name]]
        valid = block.sigmoid() if feature.is_real else block.softmax(dim=-1)
        parts.append(valid)
    return torch.cat(parts, dim=-1)


class Critic(nn.Module):
    """Score sequences; only differences between scores mean anything.

    Parameters
    ----------
    schema : Schema
    hidden : int
        Width of the layers, and of each direction's state.
    """

    def __init__(self, schema: Schema, hidden: int = 128) -> None:
        super().__init__()
        self.embed = SoftEmbedding(schema)
        self.body = nn.Sequential(
            nn.Linear(schema.embedding_width, hidden),
            nn.LeakyReLU(SLOPE),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(SLOPE),
        )
        self.lstm = LSTM(hidden, hidden)
        self.score = nn.Linear(2 * hidden, 1)

    def forward(self, x: Tensor, unrolled: bool = False) -> Tensor:
        """Score x, shape (batch, months, width), to shape (batch,).

        ``unrolled`` takes the path that can be differentiated twice.
        """
        final = self.lstm.final(self.body(self.embed(x)), unrolled)
        return self.score(final).squeeze(-1)


def gradient_penalty(
    critic: nn.Module, real: Tensor, fake: Tensor, alpha: Tensor
) -> tuple[Tensor, Tensor]:
    """Penalise critic slopes other than 1 between real and fake.

    Gulrajani et al. (2017), eq. 3: ``(norm - 1)^2`` of the gradient at
    ``alpha * real + (1 - alpha) * fake``, where the norm is taken over all
    months and columns of a sample. Both ends are detached: the penalty
    teaches the critic, so a path into the generator would cost time and
    change nothing.

    Parameters
    ----------
    critic : module
        Called with ``unrolled=True``.
    real, fake : Tensor, shape (batch, months, width)
    alpha : Tensor, shape (batch, 1, 1)
        Places between them, uniform on [0, 1).

    Returns
    -------
    penalty : Tensor, shape ()
        To be multiplied by its weight.
    norms : Tensor, shape (batch,)
        Detached, for watching.
    """
    x = alpha * real.detach() + (1 - alpha) * fake.detach()
    x.requires_grad_()
    scores = critic(x, unrolled=True)
    (slope,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    norms = slope.flatten(1).norm(dim=1)
    return (norms - 1).square().mean(), norms.detach()


def correlation(x: Tensor) -> Tensor:
    """Pearson correlation of columns, over all patients and months.

    Parameters
    ----------
    x : Tensor, shape (..., columns)

    Returns
    -------
    Tensor, shape (columns, columns)
        As ``numpy.corrcoef``, but 0 where a column is constant.
    """
    flat = x.flatten(0, -2)
    centred = flat - flat.mean(dim=0)
    # Not norm(dim=0), whose float32 sums lose three digits on long columns.
    squares = centred.square().sum(dim=0)
    # A constant column keeps rounding noise, whose correlation means nothing.
    noise = 1e-10 * flat.square().sum(dim=0).clamp(min=1e-12)
    varies = squares > noise
    # Replaced before the root, whose slope at 0 would be infinite.
    norms = torch.where(varies, squares, 1.0).sqrt()
    unit = centred * varies / norms
    return unit.T @ unit


def correlation_loss(fake: Tensor, target: Tensor, bound: Tensor) -> Tensor:
    """L1 distance of correlations, each difference clipped at a bound.

    Parameters
    ----------
    fake : Tensor, shape (batch, months, width)
    target : Tensor, shape (width, width)
        Correlations of the data, over the same months.
    bound : Tensor, shape (width, width)
        Fresh uniforms on [0, 1), as published. A clipped entry has no
        gradient, so a difference d is corrected with probability 1 - d:
        small ones nearly always, large ones seldom, from 1 on never. In
        expectation d becomes ``d - d**2 / 2`` (for d up to 1).
    """
    difference = (correlation(fake) - target).abs()
    return torch.minimum(difference, bound).mean()


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of a WGAN-GP; the defaults are the published ones.

    Parameters
    ----------
    latent, hidden : int
        Width of the noise, and of layers and states.
    learning_rate, beta1, beta2 : float
        Adam's, for both networks.
    critic_steps : int
        Critic updates for each generator update.
    penalty_weight, correlation_weight : float
        Weights of the gradient penalty and of the correlation loss.
    bf16 : bool
        Whether the critic's matrix products run in bfloat16; faster where
        the processor has it, and no longer equal to the last bits.
    seed : int
        Of the weights and of every draw in training.

    Raises
    ------
    ValueError
        If a value is of another type, not finite, or a count below 1.
    """

    latent: int = 128
    hidden: int = 128
    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.99
    critic_steps: int = 5
    penalty_weight: float = 10.0
    correlation_weight: float = 10.0
    bf16: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("latent", "hidden", "critic_steps"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is 1 or more, got {value}")


class WGANGP:
    """A generator and a critic, trained against each other.

    Parameters
    ----------
    schema : Schema
        What a row means.
    generator : module, optional
        Maps (batch, months, latent) to valid rows; :class:`Generator` if
        not given. Another one has to be given again when loading.
    settings : Settings, optional
        Hyper-parameters; the published ones if not given.
    device : torch.device, optional
        The fastest at hand if not given.
    memory : LatentMemory, optional
        Where the noise starts from: with it, this is Health Gym v2. As with
        a generator, it has to be given again when loading.

    Attributes
    ----------
    provenance : dict
        Facts about the data, JSON types only, for whoever opens a
        checkpoint later: where the cohort came from, how many patients,
        the fitted preprocessor.

    Examples
    --------
    >>> model = WGANGP(ART_SCHEMA)
    >>> model.provenance["source"] = cohort.attrs["source"]
    >>> model.fit(curriculum_loaders(x), epochs=100)
    >>> fake = model.sample(300, months=60)
    """

    def __init__(
        self,
        schema: Schema,
        generator: nn.Module | None = None,
        settings: Settings | None = None,
        device: torch.device | None = None,
        memory: LatentMemory | None = None,
    ) -> None:
        s = self.settings = settings or Settings()
        self.schema = schema
        self.device = device or get_device()
        # Weights follow the seed, and nobody else's random numbers move.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(s.seed)
            own = _own_networks(schema, s)
            self.generator = generator or own["generator"]()
            self.critic = own["critic"]()
        self.memory = memory
        for network in self._networks().values():
            network.to(self.device)
        options = {"lr": s.learning_rate, "betas": (s.beta1, s.beta2)}
        self.adams = {
            name: torch.optim.Adam(weights, **options)
            for name, network in self._networks().items()
            if (weights := list(network.parameters()))
        }
        # On the CPU whatever the device, so that draws are the same.
        self.random = torch.Generator().manual_seed(s.seed)
        self.epoch = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.fingerprint = ""
        self.provenance: dict[str, Any] = {}
        self.loader_states: dict[int, Tensor] = {}

    def fit(
        self,
        loaders: Mapping[int, DataLoader],
        epochs: int,
        checkpoint_path: str | os.PathLike | None = None,
    ) -> list[dict[str, float]]:
        """Train until so many epochs have been done in all.

        Parameters
        ----------
        loaders : dict of int to DataLoader
            Lessons by length, as :func:`curriculum_loaders` makes them.
        epochs : int
            Global: a model resumed at 100 and told 200 does 100 more.
        checkpoint_path : path, optional
            Where to save after every epoch.

        Returns
        -------
        list of dict
            One record a generator update, of all epochs so far.
        """
        targets = self._target_correlations(loaders)
        training.continue_loaders(self, loaders)
        bar = progress(range(self.epoch, epochs), "training", "epoch")
        for _ in bar:
            started = time.perf_counter()
            for length, loader in loaders.items():
                for real, _ in loader:
                    record = self._train_batch(
                        real.to(self.device), targets[length]
                    )
                    self.history.append(
                        {"epoch": self.epoch + 1, "length": length} | record
                    )
            bar.set_postfix(
                critic=f"{record['critic_loss']:.2f}",
                generator=f"{record['generator_loss']:.2f}",
            )
            self.epoch += 1
            self.seconds += time.perf_counter() - started
            self.loader_states = training.states_of(loaders)
            if checkpoint_path is not None:
                self.save(checkpoint_path)
        return self.history

    def sample(
        self, patients: int, months: int, seed: int = 0, batch_size: int = 256
    ) -> Tensor:
        """Generate sequences, shape (patients, months, schema.width)."""
        if patients < 1 or months < 1:
            raise ValueError(
                "patients and months are 1 or more, got "
                f"{patients} and {months}"
            )
        random = torch.Generator().manual_seed(seed)
        parts = []
        with torch.no_grad():
            for start in range(0, patients, batch_size):
                size = min(batch_size, patients - start)
                z = self._noise(size, months, random)
                parts.append(self.generator(z).float().cpu())
        return torch.cat(parts)

    def _noise(
        self, batch: int, months: int, random: torch.Generator
    ) -> Tensor:
        """Draw noise, uniform on [0, 1) as the published code does."""
        shape = (batch, months, self.settings.latent)
        z = torch.rand(shape, generator=random).to(self.device)
        return z if self.memory is None else self.memory.shift(z, random)

    def _target_correlations(
        self, loaders: Mapping[int, DataLoader]
    ) -> dict[int, Tensor]:
        """Correlations of the data over the months that a lesson draws on."""
        return {
            length: correlation(training.sequences_of(loader)).to(self.device)
            for length, loader in loaders.items()
        }

    def _train_batch(self, real: Tensor, target: Tensor) -> dict[str, float]:
        """Take the critic steps and the generator step of one batch."""
        for _ in range(self.settings.critic_steps):
            record = self.critic_step(real)
        if self.memory is not None:
            record |= self.memory_step(real)
        return record | self.generator_step(len(real), real.shape[1], target)

    def critic_step(self, real: Tensor) -> dict[str, float]:
        """Update the critic once on a batch and as many fakes.

        The loss has two terms, which share nothing but the weights: the gap
        of the scores and the penalty. On a CPU their gradients are found
        side by side, which two cores do better than sharing every product.
        """
        s = self.settings
        with torch.no_grad():  # the critic's lesson ends at the critic
            z = self._noise(len(real), real.shape[1], self.random)
            fake = self.generator(z)
        alpha = torch.rand((len(real), 1, 1), generator=self.random)
        penalty_of = self._beside(
            self._penalty_gradients, real, fake, alpha.to(self.device)
        )
        with self._precision():
            scores = self.critic(torch.cat([real, fake])).float()
        on_real, on_fake = scores.chunk(2)
        gap = on_fake.mean() - on_real.mean()
        of_gap = self._critic_gradients(gap)
        penalty, norms, of_penalty = penalty_of()
        for weight, *parts in zip(
            self._critic_weights(), of_gap, of_penalty, strict=True
        ):
            found = [part for part in parts if part is not None]
            weight.grad = sum(found) if found else None
        self.adams["critic"].step()
        return {
            "critic_loss": (gap + s.penalty_weight * penalty).item(),
            "penalty": penalty.item(),
            "score_real": on_real.mean().item(),
            "score_fake": on_fake.mean().item(),
            "gradient_norm": norms.mean().item(),
        }

    def _penalty_gradients(
        self, real: Tensor, fake: Tensor, alpha: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
        """Return the penalty, the norms, and the weighted gradients."""
        with self._precision():
            penalty, norms = gradient_penalty(self.critic, real, fake, alpha)
        weighted = self.settings.penalty_weight * penalty
        return penalty, norms, self._critic_gradients(weighted)

    def _critic_weights(self) -> list[nn.Parameter]:
        return [w for w in self.critic.parameters() if w.requires_grad]

    def _critic_gradients(self, loss: Tensor) -> tuple[Tensor | None, ...]:
        """Differentiate; unlike ``backward``, two threads may at once."""
        return torch.autograd.grad(
            loss, self._critic_weights(), allow_unused=True
        )

    def _beside(
        self, task: Callable[..., Any], *arguments: Any
    ) -> Callable[[], Any]:
        """Start a task on another core if there may be one; return its end."""
        if self.device.type == "cpu":
            return BESIDE.submit(task, *arguments).result
        return partial(task, *arguments)

    def memory_step(self, real: Tensor) -> dict[str, float]:
        """Train the memory's autoencoder once, and remember the batch."""
        with torch.no_grad():  # the embedding is the critic's to train
            embedded = self.critic.embed(real)
        record = {}
        if self.memory.learns:
            loss = self.memory.loss(embedded, self.random)
            self._update("memory", loss)
            record["memory_loss"] = loss.item()
        self.memory.remember(embedded, self.random)
        return record

    def generator_step(
        self, batch: int, months: int, target: Tensor
    ) -> dict[str, float]:
        """Update the generator once, against a frozen critic."""
        s = self.settings
        z = self._noise(batch, months, self.random)
        bound = torch.rand(target.shape, generator=self.random)
        self.critic.requires_grad_(False)
        fake = self.generator(z)
        with self._precision():
            score = self.critic(fake).mean()
        matched = correlation_loss(fake, target, bound.to(self.device))
        loss = s.correlation_weight * matched - score
        self._update("generator", loss)
        self.critic.requires_grad_(True)
        return {
            "generator_loss": loss.item(),
            "correlation_loss": matched.item(),
        }

    def _precision(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.settings.bf16
        )

    def _update(self, name: str, loss: Tensor) -> None:
        adam = self.adams[name]
        adam.zero_grad()
        loss.backward()
        adam.step()

    def save(
        self, path: str | os.PathLike, weights_only: bool = False
    ) -> None:
        """Write a checkpoint, whole or not at all.

        Parameters
        ----------
        path : path
            Where to, such as ``"v1.safetensors"``.
        weights_only : bool
            Leave out what only resuming needs, and store weights in half
            precision: a small file to sample from.
        """
        dtype = torch.float16 if weights_only else None
        tensors = {
            f"{name}.{key}": (
                value.to(dtype)
                if dtype and value.is_floating_point()
                else value
            )
            for name, network in self._networks().items()
            for key, value in network.state_dict().items()
        }
        if not weights_only:
            tensors |= training.resumable_tensors(self)
        header = {
            "generator": type(self.generator).__name__,
            "memory": self.memory and self.memory.arguments,
            "weights_only": weights_only,
        } | training.header_of(self)
        checkpoint.save(path, tensors, header)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        schema: Schema,
        generator: nn.Module | None = None,
        device: torch.device | None = None,
        memory: LatentMemory | None = None,
    ) -> WGANGP:
        """Rebuild a saved model; on the CPU, training goes on bit for bit.

        Parameters
        ----------
        path : path
            As given to :meth:`save`.
        schema : Schema
            What the caller expects the columns to mean.
        generator : module, optional
            As given to the model that was saved.
        device : torch.device, optional
        memory : LatentMemory, optional
            As given to the model that was saved.

        Raises
        ------
        CheckpointError
            If the file is damaged or foreign, or holds another model or
            another schema.
        """
        tensors, header = checkpoint.load(path)
        checkpoint.check(path, header, cls.__name__, schema, HEADER)
        _check_parts(path, header, generator, memory)
        with checkpoint.rebuilding(path):
            settings = checkpoint.settings_of(path, header, Settings)
            parts = _own_networks(schema, settings)
            if generator is not None:
                parts["generator"] = lambda: generator
            if memory is not None:
                parts["memory"] = lambda: memory
            for name, make in parts.items():
                weights = training.part(tensors, name)
                checkpoint.check_weights(path, name, make, weights)
            model = cls(schema, generator, settings, device, memory)
            for name, network in model._networks().items():
                network.load_state_dict(training.part(tensors, name))
            if memory is not None:
                memory.check()
            training.load_progress(model, header)
            if not header["weights_only"]:
                training.load_resumable(path, model, tensors)
        return model

    def _networks(self) -> dict[str, nn.Module]:
        networks = {"generator": self.generator, "critic": self.critic}
        if self.memory is not None:
            networks["memory"] = self.memory
        return networks


def _own_networks(
    schema: Schema, settings: Settings
) -> dict[str, Callable[[], nn.Module]]:
    """Say how the networks are made that settings ask for."""
    return {
        "generator": partial(
            Generator, schema, settings.latent, settings.hidden
        ),
        "critic": partial(Critic, schema, settings.hidden),
    }


def _check_parts(
    path: str | os.PathLike,
    header: Mapping[str, Any],
    generator: nn.Module | None,
    memory: LatentMemory | None,
) -> None:
    """Refuse to rebuild a model from other parts than it was made of."""
    given = type(generator).__name__ if generator else Generator.__name__
    if header["generator"] != given:
        raise checkpoint.CheckpointError(
            f"{path}: its generator is a {header['generator']}, not a "
            f"{given}; build one and pass it as generator="
        )
    arguments = memory and memory.arguments
    if header["memory"] != arguments:
        raise checkpoint.CheckpointError(
            f"{path}: its memory is {header['memory']}, and the one given "
            f"is {arguments}; pass memory=LatentMemory(schema, ...) alike"
        )
