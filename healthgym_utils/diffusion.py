"""Health Gym v3: a diffusion model of patients' histories.

Ho et al. (2020): add noise to real sequences step by step until nothing is
left of them, teach a network to tell what the noise hides, and walk back
from pure noise. Steps count from 1 (a trace of noise) to T; step 0 is clean.
"""

from __future__ import annotations

import copy
import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from healthgym_utils import checkpoint, training
from healthgym_utils.calibration import (
    Calibration,
    class_shares,
    quantiles,
    switch_rates,
)
from healthgym_utils.guardrails import LIMITS, limited
from healthgym_utils.runtime import (
    check_choice,
    check_fields,
    get_device,
    progress,
)
from healthgym_utils.schema import Schema
from healthgym_utils.unet import UNet1D

SCHEDULES = ("linear", "cosine")
TARGETS = ("noise", "x0", "v")
CLASS_LOSSES = ("mse", "cross_entropy")
SAMPLERS = ("ddpm", "ddim")
SPACINGS = ("trailing", "leading")
MAX_STEPS = 1_000_000  # more are a slip, and take long to lay out
MAX_MONTHS = 100_000  # to which to pad, for the same reason
HEADER = training.PROGRESS | {"network", "weights_only"}
ROUNDS = 8  # of samples that a calibration looks at
SHARPNESS_GAIN = 0.5  # log sharpness a log rate, as moved the trained v3
OFFSET_GAIN = 0.4  # logit a log share
SHARPEST = 4.0  # calibration multiplies or divides logits by no more


class NoiseSchedule:
    """How much of the signal is left at each step.

    Parameters
    ----------
    alpha_bars : Tensor, float64, shape (T + 1,)
        Share of the variance that is signal, from 1 at step 0 downwards.

    Raises
    ------
    ValueError
        If it is not float64, does not start at 1, does not fall at every
        step, or leaves [0, 1].
    """

    def __init__(self, alpha_bars: Tensor) -> None:
        if alpha_bars.dtype != torch.float64 or alpha_bars.ndim != 1:
            raise ValueError("alpha_bars is a float64 tensor of one axis")
        if len(alpha_bars) < 3 or alpha_bars[0] != 1:
            raise ValueError(
                "alpha_bars starts with 1, at step 0, and has two steps or "
                f"more; got {len(alpha_bars) - 1}, from {alpha_bars[0]:g}"
            )
        falls = alpha_bars[1:] < alpha_bars[:-1]  # False for NaN as well
        if not falls.all():
            at = int((~falls).int().argmax()) + 1
            raise ValueError(
                f"alpha_bars falls at every step; at step {at} it goes from "
                f"{alpha_bars[at - 1]:g} to {alpha_bars[at]:g}"
            )
        if alpha_bars[-1] < 0:
            raise ValueError(f"alpha_bars ends below 0: {alpha_bars[-1]:g}")
        self.alpha_bars = alpha_bars

    @classmethod
    def linear(
        cls, steps: int = 500, low: float = 1e-4, high: float = 0.01
    ) -> NoiseSchedule:
        """Betas in equal steps; the defaults are the published v3's.

        They leave ``alpha_bars[500]`` at 0.079: 28 % of the amplitude is
        signal still, where sampling starts from noise alone.
        """
        betas = torch.linspace(low, high, steps, dtype=torch.float64)
        return cls._from_betas(betas)

    @classmethod
    def cosine(cls, steps: int = 500, offset: float = 0.008) -> NoiseSchedule:
        """Alpha-bar along a squared cosine (Nichol & Dhariwal 2021, eq. 17).

        As there, no beta is above 0.999.
        """
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        curve = ((t + offset) / (1 + offset) * math.pi / 2).cos().square()
        betas = 1 - curve[1:] / curve[:-1]
        return cls._from_betas(betas.clamp(max=0.999))

    @classmethod
    def _from_betas(cls, betas: Tensor) -> NoiseSchedule:
        one = torch.ones(1, dtype=torch.float64)
        return cls(torch.cat([one, (1 - betas).cumprod(0)]))

    def zero_terminal_snr(self) -> NoiseSchedule:
        """Rescale, so that nothing is left of the signal at the last step.

        Lin et al. (2024), algorithm 1: the amplitudes are shifted to end at
        0, and scaled to keep the first one.
        """
        a = self.alpha_bars[1:].sqrt()
        a = (a - a[-1]) * a[0] / (a[0] - a[-1])
        return NoiseSchedule(torch.cat([self.alpha_bars[:1], a.square()]))

    @property
    def steps(self) -> int:
        """Number of steps, T."""
        return len(self.alpha_bars) - 1

    @property
    def betas(self) -> Tensor:
        """Variance that each single step adds, shape (T,)."""
        return 1 - self.alpha_bars[1:] / self.alpha_bars[:-1]

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio, shape (T + 1,); infinite at step 0."""
        return self.alpha_bars / (1 - self.alpha_bars)

    def amplitudes(self, t: Tensor | int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Amplitudes of signal and noise at t, one a sequence, like x."""
        left = self.alpha_bars[t].reshape(-1, *[1] * (x.ndim - 1))
        # Rounded before it moves: not every device has float64.
        signal, spread = left.sqrt().to(x.dtype), (1 - left).sqrt().to(x.dtype)
        return signal.to(x.device), spread.to(x.device)

    def q_sample(self, x0: Tensor, t: Tensor | int, noise: Tensor) -> Tensor:
        """Jump to step t at once (Ho et al. 2020, eq. 4).

        Parameters
        ----------
        x0, noise : Tensor, shape (batch, ...)
        t : int, or Tensor of int on the CPU, shape (batch,)
        """
        signal, spread = self.amplitudes(t, x0)
        return signal * x0 + spread * noise

    def target(
        self, x0: Tensor, t: Tensor | int, noise: Tensor, kind: str
    ) -> Tensor:
        """Return what is to be predicted: the noise, x0, or v.

        ``v = signal * noise - spread * x0`` (Salimans & Ho 2022, appendix
        D) is the noise at small steps and -x0 at large ones.
        """
        if kind == "v":
            signal, spread = self.amplitudes(t, x0)
            return signal * noise - spread * x0
        return {"noise": noise, "x0": x0}[kind]

    def to_x0(
        self, prediction: Tensor, x: Tensor, t: Tensor | int, kind: str
    ) -> Tensor:
        """Turn a prediction at x, of step t, into an estimate of x0.

        Exact where the prediction is. From noise, its error grows by
        ``sqrt((1 - alpha_bar) / alpha_bar)``.
        """
        signal, spread = self.amplitudes(t, x)
        if kind == "noise":
            return (x - spread * prediction) / signal
        return signal * x - spread * prediction if kind == "v" else prediction


def timesteps(total: int, count: int, spacing: str = "trailing") -> list[int]:
    """Choose the steps that a sampler visits, from late to early.

    Parameters
    ----------
    total, count : int
        Steps of the schedule, and how many of them to visit.
    spacing : {"trailing", "leading"}
        Trailing starts at the last step, where training ends and noise
        begins (Lin et al. 2024, table 2); leading, which DDIM made common,
        ends at step 1 and starts short of the last.
    """
    check_choice("spacing", spacing, SPACINGS)
    if not 1 <= count <= total:
        raise ValueError(f"1 to {total} sampling steps, got {count}")
    if spacing == "trailing":
        return [total - i * total // count for i in range(count)]
    return [1 + i * (total // count) for i in reversed(range(count))]


def ddpm_step(
    schedule: NoiseSchedule,
    x: Tensor,
    x0: Tensor,
    t: int,
    s: int,
    z: Tensor,
    variance: float = 0.0,
) -> Tensor:
    """Step from t back to s < t by the posterior given x0.

    Ho et al. (2020), eq. 6 and 7, also over several steps at once.

    Parameters
    ----------
    x, x0, z : Tensor, same shape
        Where the walk is, the estimate of its end, and fresh noise.
    variance : float
        Which variance the noise has, from the posterior's (0), which is
        right if the end is known, to beta (1), which is right if it is
        standard normal; between them the logarithm is interpolated (Nichol
        & Dhariwal 2021, eq. 15). With few steps the choice matters: a
        perfect denoiser of Gaussian data of variance 0.03 keeps 84 % of it
        in 100 steps at 0, all of it at 0.8, and 105 % at 1.
    """
    here, there = (float(schedule.alpha_bars[i]) for i in (t, s))
    alpha = here / there
    from_x0 = math.sqrt(there) * (1 - alpha) / (1 - here)
    from_x = math.sqrt(alpha) * (1 - there) / (1 - here)
    # The posterior's share of beta is 0 at the last step, to clean rows.
    share = ((1 - there) / (1 - here)) ** (1 - variance) if s else 0.0
    spread = math.sqrt((1 - alpha) * share)
    return from_x0 * x0 + from_x * x + spread * z


def ddim_step(
    schedule: NoiseSchedule,
    x: Tensor,
    x0: Tensor,
    t: int,
    s: int,
    z: Tensor,
    eta: float = 0.0,
) -> Tensor:
    """Step from t back to s < t along the noise that x0 implies.

    Song et al. (2021), eq. 12 and 16: with eta 0 no noise is added, with
    eta 1 this is :func:`ddpm_step`.
    """
    here, there = (float(schedule.alpha_bars[i]) for i in (t, s))
    noise = (x - math.sqrt(here) * x0) / math.sqrt(1 - here)
    fresh = eta**2 * (1 - there) / (1 - here) * (1 - here / there)
    kept = math.sqrt(max(1 - there - fresh, 0.0))  # rounding may go below
    return math.sqrt(there) * x0 + kept * noise + math.sqrt(fresh) * z


def reverse_walk(
    denoise: Callable[[Tensor, int], Tensor],
    step: Callable[[Tensor, Tensor, int, int, Tensor], Tensor],
    x: Tensor,
    steps: list[int],
    random: torch.Generator,
) -> Iterator[tuple[int, Tensor]]:
    """Walk from noise to data, and show every place on the way.

    Parameters
    ----------
    denoise : callable
        Estimates x0 from x and its step.
    step : callable
        :func:`ddpm_step` or :func:`ddim_step`, with their schedule bound by
        ``functools.partial``.
    x : Tensor
        Standard normal noise.
    steps : list of int
        Steps to visit, as :func:`timesteps` gives them.
    random : torch.Generator
        On the CPU.

    Yields
    ------
    int, Tensor
        The step arrived at, and the place; the last ones are 0 and a sample.
    """
    for t, s in zip(steps, [*steps[1:], 0], strict=True):
        z = torch.randn(x.shape, generator=random, dtype=x.dtype)
        x = step(x, denoise(x, t), t, s, z.to(x.device))
        yield s, x


@dataclass(frozen=True)
class DiffusionSettings:
    """Choices of a diffusion model; the defaults are this package's.

    Parameters
    ----------
    steps : int
        Steps of the schedule, T, a million or less.
    schedule : {"cosine", "linear"}
    beta_min, beta_max : float
        Of the linear schedule.
    zero_terminal : bool
        Rescale the schedule to end in noise alone.
    target : {"v", "x0", "noise"}
        What is predicted of columns that are treated as numbers.
    categorical_loss : {"cross_entropy", "mse"}
        Whether class columns are predicted as logits, or are numbers too.
    class_weight : float
        Of the cross-entropy, against the mean squared error.
    evidence_weight : float
        Of what a month's own noisy class columns say, in the logits. Bayes'
        rule adds a class's log likelihood to what the rest of the history
        lets expect; with 0 the network has to learn that, too, and smooths
        short changes away, with 1 it has only the rest to learn, and until it
        has, takes noise for changes. Between them lies what works.
    reconstruction_weight : float
        Of the mean squared error of x0's estimate, from the predicted
        target; published 20.
    noise_blend : bool
        As published, reconstruct x0 from a random blend of the true noise
        and the predicted one, and not from the latter alone.
    condition_on_statics : bool
        Draw static features once a patient and condition on them, in place
        of diffusing them month by month.
    pad_to : int, optional
        Months that sequences are padded to with 0; published 100.
    hidden, time_width, levels : int
        Of :class:`UNet1D`.
    dropout : float
        Of :class:`UNet1D`, in training: against learning patients by heart.
    patient_jitter : float
        Standard deviation of the shift that a patient's reals get in
        training, on the [0, 1] scale: one a real and patient, the same in all
        months, drawn anew at every update. It blurs who is who.
    learning_rate, beta1, beta2 : float
        Adam's.
    gradient_clip : float, optional
        Largest norm of a gradient.
    ema : float
        Decay of the running mean of the weights, which then samples; 0 for
        none.
    sampling_steps : int
    spacing : {"trailing", "leading"}
        As in :func:`timesteps`.
    variance : float
        Of ancestral sampling, as in :func:`ddpm_step`.
    limit : {"clip", "dynamic", "none"}
        As in :func:`limited`, at every step of sampling.
    bf16 : bool, optional
        Whether the network computes in bfloat16; None is yes on a CUDA
        device that has it, and no elsewhere.
    seed : int
        Of the weights and of every draw in training.

    Raises
    ------
    ValueError
        If choices are unknown, or contradict each other.
    """

    steps: int = 500
    schedule: str = "cosine"
    beta_min: float = 1e-4
    beta_max: float = 0.01
    zero_terminal: bool = True
    target: str = "v"
    categorical_loss: str = "cross_entropy"
    class_weight: float = 1.0
    evidence_weight: float = 0.2
    reconstruction_weight: float = 0.0
    noise_blend: bool = False
    condition_on_statics: bool = True
    pad_to: int | None = None
    hidden: int = 64
    time_width: int = 96
    levels: int = 3
    dropout: float = 0.3
    patient_jitter: float = 0.08
    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    gradient_clip: float | None = 1.0
    ema: float = 0.999
    sampling_steps: int = 100
    spacing: str = "trailing"
    variance: float = 0.3
    limit: str = "clip"
    bf16: bool | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("target", self.target, TARGETS)
        check_choice("categorical_loss", self.categorical_loss, CLASS_LOSSES)
        check_choice("limit", self.limit, LIMITS)
        for name, most in (("steps", MAX_STEPS), ("pad_to", MAX_MONTHS)):
            if (getattr(self, name) or 0) > most:
                raise ValueError(
                    f"{name} is {most:,} or less, got {getattr(self, name):,}"
                )
        timesteps(self.steps, self.sampling_steps, self.spacing)
        if self.target == "noise" and self.zero_terminal:
            raise ValueError(
                "the last step of a zero-terminal schedule is noise alone, "
                'from which target="noise" cannot return to x0; predict '
                '"v" or "x0", or set zero_terminal=False'
            )
        if self.noise_blend and (
            self.target != "noise" or not self.reconstruction_weight
        ):
            raise ValueError(
                'noise_blend needs target="noise" and a reconstruction_weight'
            )
        if not 0 <= self.variance <= 1:
            raise ValueError(f"variance is in [0, 1], got {self.variance}")
        for name in ("ema", "dropout"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is in [0, 1), got {value}")
        for name in ("evidence_weight", "patient_jitter"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{name} is 0 or more, got {value}")

    @classmethod
    def published(cls, **changes: Any) -> DiffusionSettings:
        """Return the published v3's settings, changed where asked for.

        Its batch of 128 is the loader's matter. Its mixed precision on CUDA
        is float16 with a scaler, and bfloat16 here.
        """
        choices = {
            "schedule": "linear",
            "zero_terminal": False,
            "target": "noise",
            "categorical_loss": "mse",
            "evidence_weight": 0.0,
            "reconstruction_weight": 20.0,
            "noise_blend": True,
            "condition_on_statics": False,
            "pad_to": 100,
            "hidden": 256,
            "time_width": 128,
            "dropout": 0.0,
            "patient_jitter": 0.0,
            "ema": 0.0,
            "sampling_steps": 500,
            "variance": 0.0,
            "limit": "none",
        }
        return cls(**choices | changes)

    def noise_schedule(self) -> NoiseSchedule:
        """Build the schedule that is asked for."""
        if self.schedule == "linear":
            plain = NoiseSchedule.linear(
                self.steps, self.beta_min, self.beta_max
            )
        else:
            plain = NoiseSchedule.cosine(self.steps)
        return plain.zero_terminal_snr() if self.zero_terminal else plain


def _parts(
    schema: Schema, settings: DiffusionSettings
) -> tuple[Schema, Schema | None]:
    """Split features into those diffused, and those given with each row."""
    statics = []
    if settings.condition_on_statics:
        statics = [feature.name for feature in schema.statics]
    rest = [name for name in schema.names if name not in statics]
    if not rest:
        raise ValueError(
            f"{schema.name}: all features are static, which leaves "
            "nothing to diffuse; set condition_on_statics=False"
        )
    return schema.subset(rest), schema.subset(statics) if statics else None


def _unet(schema: Schema, settings: DiffusionSettings) -> UNet1D:
    """Make the network that settings ask for."""
    dynamic, static = _parts(schema, settings)
    return UNet1D(
        dynamic,
        settings.hidden,
        settings.time_width,
        settings.levels,
        static.width if static else 0,
        settings.dropout,
    )


class Diffusion:
    """A denoiser, trained on noised sequences and walked back from noise.

    Rows are recentred from [0, 1] to [-1, 1]. With cross-entropy, the
    network's output means two things: a real column of it is the target
    (v, x0 or noise), from which that column's x0 is computed; a block of
    class columns is logits, and its x0 is their softmax, recentred. Both
    make one estimate of the clean row, which is all that a sampler needs;
    noise is added to classes and reals alike.

    Parameters
    ----------
    schema : Schema
        What a row means.
    settings : DiffusionSettings, optional
        Ours if not given; :meth:`published` has the published ones.
    device : torch.device, optional
        The fastest at hand if not given.
    network : module, optional
        Called with noisy rows of the features that are diffused
        (``schema`` of :attr:`dynamic`), steps, and statics or None;
        :class:`UNet1D` if not given. Another one has to be given again when
        loading.

    Attributes
    ----------
    dynamic, static : Schema or None
        The features that are diffused, and those conditioned on.
    average : module
        The running mean of the network's weights; without one, the network.
    joint : tuple of Tensor
        The rows of statics that occur in the training data, shape (rows,
        static width), and how many patients have each. They are saved with
        the model: a static real, such as an age, is stored as it was.
    calibration : Calibration or None
        What samples are corrected by, if :meth:`calibrate` was called; set
        it to None to see them as they are. Training ends it.
    provenance : dict
        Facts about the data, JSON types only, as for :class:`WGANGP`.

    Raises
    ------
    ValueError
        If all features are static: there is nothing to diffuse.

    Examples
    --------
    >>> model = Diffusion(ART_SCHEMA)
    >>> model.fit(sequence_loader(x, batch_size=64), steps=1500)
    >>> women = model.sample(100, months=60, statics={"Gender": "Female"})
    """

    def __init__(
        self,
        schema: Schema,
        settings: DiffusionSettings | None = None,
        device: torch.device | None = None,
        network: nn.Module | None = None,
    ) -> None:
        s = self.settings = settings or DiffusionSettings()
        self.schema = schema
        self.device = device or get_device()
        self.schedule = s.noise_schedule()
        self._split_features()
        # Weights follow the seed, and nobody else's random numbers move.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(s.seed)
            self.network = network or _unet(schema, s)
        # Without dropout, but for the moment of a training step.
        self.network.to(self.device).eval()
        self.average = self.network
        if s.ema:
            self.average = copy.deepcopy(self.network).requires_grad_(False)
        adam = torch.optim.Adam(
            self.network.parameters(),
            s.learning_rate,
            (s.beta1, s.beta2),
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.adams = {"network": adam}
        # On the CPU whatever the device, so that draws are the same.
        self.random = torch.Generator().manual_seed(s.seed)
        self.epoch = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.fingerprint = ""
        self.provenance: dict[str, Any] = {}
        self.loader_states: dict[int, Tensor] = {}
        self.calibration: Calibration | None = None
        self.joint = (
            torch.zeros(0, len(self.static_columns)),
            torch.zeros(0, dtype=torch.int64),
        )

    @classmethod
    def published(
        cls,
        schema: Schema,
        device: torch.device | None = None,
        **changes: Any,
    ) -> Diffusion:
        """Build the published v3; ``changes`` are of its settings."""
        return cls(schema, DiffusionSettings.published(**changes), device)

    def _split_features(self) -> None:
        """Find which columns are diffused, and how each is predicted."""
        self.dynamic, self.static = _parts(self.schema, self.settings)
        index = self.schema.columns.index
        self.dynamic_columns = [index(c) for c in self.dynamic.columns]
        self.static_columns = [
            index(c) for c in (self.static.columns if self.static else ())
        ]
        self.real_columns = [
            self.schema.spans[f.name].start for f in self.dynamic.reals
        ]
        self.blocks: list[slice] = []
        if self.settings.categorical_loss == "cross_entropy":
            spans = self.dynamic.spans
            self.blocks = [spans[f.name] for f in self.dynamic.categoricals]
        as_logits = {k for b in self.blocks for k in range(b.start, b.stop)}
        self.numbers = [
            k for k in range(self.dynamic.width) if k not in as_logits
        ]

    def fit(
        self,
        loaders: DataLoader | Mapping[int, DataLoader],
        epochs: int | None = None,
        steps: int | None = None,
        checkpoint_path: str | os.PathLike | None = None,
        save_every: int = 1,
    ) -> list[dict[str, float]]:
        """Train until so many epochs, or updates, have been done in all.

        Parameters
        ----------
        loaders : DataLoader, or dict of int to DataLoader
            As :func:`sequence_loader` makes them; diffusion needs no
            curriculum, and takes one.
        epochs, steps : int
            One of the two, global: a model resumed at 100 and told 200 does
            100 more. The epoch in which the last of ``steps`` falls is
            finished.
        checkpoint_path : path, optional
            Where to save.
        save_every : int
            Epochs between two saves; the last one is always saved.

        Returns
        -------
        list of dict
            One record an update, of all epochs so far.
        """
        if (epochs is None) == (steps is None):
            raise ValueError("say how long to train: epochs, or steps")
        if isinstance(loaders, DataLoader):
            loaders = {training.length_of(loaders): loaders}
        self._check_data(loaders)
        training.continue_loaders(self, loaders)
        self._learn_statics(loaders)
        if epochs is None:
            lacking = max(0, steps - len(self.history))
            # Rounded up, to whole epochs.
            epochs = self.epoch - (-lacking // sum(map(len, loaders.values())))
        bar = progress(range(self.epoch, epochs), "training", "epoch")
        for _ in bar:
            started = time.perf_counter()
            for length, loader in loaders.items():
                for real, lengths in loader:
                    record = self.train_step(real, lengths)
                    self.history.append(
                        {"epoch": self.epoch + 1, "length": length} | record
                    )
            bar.set_postfix(loss=f"{record['loss']:.3f}")
            self.epoch += 1
            self.seconds += time.perf_counter() - started
            self.loader_states = training.states_of(loaders)
            due = self.epoch % save_every == 0 or self.epoch == epochs
            if checkpoint_path is not None and due:
                self.save(checkpoint_path)
        return self.history

    def _check_data(self, loaders: Mapping[int, DataLoader]) -> None:
        width = training.sequences_of(loaders[max(loaders)]).shape[-1]
        if width != self.schema.width:
            raise ValueError(
                f"rows of {width} columns, and the schema "
                f"{self.schema.name!r} has {self.schema.width}"
            )
        pad_to = self.settings.pad_to
        if pad_to is not None and max(loaders) > pad_to:
            raise ValueError(
                f"{max(loaders)} months do not fit pad_to={pad_to}"
            )

    def _learn_statics(self, loaders: Mapping[int, DataLoader]) -> None:
        """Count which combinations of statics occur, first month for all."""
        if self.static is None:
            return
        longest = training.sequences_of(loaders[max(loaders)])
        x = longest[..., self.static_columns]
        rows = x[:, 0]
        changing = (x != rows.unsqueeze(1)).flatten(1).any(dim=1)
        if changing.any():
            warnings.warn(
                f"{int(changing.sum())} of {len(x)} patients change in "
                f"{', '.join(self.static.names)}, which the schema calls "
                "static; their first month is taken",
                stacklevel=3,
            )
        self.joint = torch.unique(rows, dim=0, return_counts=True)

    def train_step(self, real: Tensor, lengths: Tensor) -> dict[str, float]:
        """Update the network once.

        Parameters
        ----------
        real : Tensor, shape (batch, months, schema.width)
        lengths : Tensor of int, shape (batch,)
            Months of each sequence that are real, from the first on.
        """
        s = self.settings
        self.calibration = None  # of what the network was before
        x0, mask, statics = self.prepare(self._jittered(real), lengths)
        t = torch.randint(1, s.steps + 1, (len(real),), generator=self.random)
        noise = torch.randn(x0.shape, generator=self.random).to(self.device)
        self.network.train()
        with self._dropout_draws():
            losses = self.losses(x0, mask, statics, t, noise)
        self.network.eval()
        self.adams["network"].zero_grad()
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(
            self.network.parameters(),
            math.inf if s.gradient_clip is None else s.gradient_clip,
            error_if_nonfinite=True,
        )
        self.adams["network"].step()
        self._update_average()
        record = {name: loss.item() for name, loss in losses.items()}
        return record | {"gradient_norm": norm.item()}

    def _jittered(self, real: Tensor) -> Tensor:
        """Shift each patient's reals, and keep them in [0, 1]."""
        spread = self.settings.patient_jitter
        if not spread:
            return real
        shifted = real.clone()
        for j in self.real_columns:
            shift = torch.randn((len(real), 1), generator=self.random)
            moved = real[..., j] + spread * shift.to(real.device)
            shifted[..., j] = moved.clamp(0, 1)
        return shifted

    @contextmanager
    def _dropout_draws(self) -> Iterator[None]:
        """Draw what falls out from the model's own random numbers.

        Dropout draws from PyTorch's, which a resumed training would not find
        as it left them, and which are the caller's.
        """
        if not self.settings.dropout:
            yield
            return
        seed = int(torch.randint(2**31, (), generator=self.random))
        is_cuda = self.device.type == "cuda"
        with torch.random.fork_rng([self.device] if is_cuda else []):
            torch.manual_seed(seed)
            yield

    def prepare(
        self, real: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Recentre, pad, mask, and set the statics apart.

        Returns
        -------
        x0 : Tensor, shape (batch, padded months, dynamic.width)
            In [-1, 1], and 0 where padded.
        mask : Tensor, bool, shape (batch, padded months)
            True where a month is real.
        statics : Tensor, shape (batch, static width)
            In [0, 1].
        """
        real = real.to(self.device)
        x0 = 2 * real[..., self.dynamic_columns] - 1
        padding = self._padded(real.shape[1]) - real.shape[1]
        x0 = F.pad(x0, (0, 0, 0, padding))
        months = torch.arange(x0.shape[1], device=self.device)
        mask = months < lengths.to(self.device).unsqueeze(1)
        x0 = x0.masked_fill(~mask.unsqueeze(-1), 0)
        return x0, mask, real[:, 0, self.static_columns]

    def _padded(self, months: int) -> int:
        return max(months, self.settings.pad_to or 0)

    def losses(
        self,
        x0: Tensor,
        mask: Tensor,
        statics: Tensor,
        t: Tensor,
        noise: Tensor,
    ) -> dict[str, Tensor]:
        """Compute the loss of one batch, and its parts.

        Months that are not in the mask have no part in it: whatever is
        predicted there changes nothing. What the network *reads* there
        matters all the same: a convolution reads across the edge, and a
        GroupNorm averages over all months.

        Parameters
        ----------
        x0, mask, statics
            As :meth:`prepare` gives them.
        t : Tensor of int, on the CPU, shape (batch,)
        noise : Tensor, like x0
        """
        s = self.settings
        x = self.schedule.q_sample(x0, t, noise)
        output = self._predict(self.network, x, t, statics)
        losses = {}
        if self.numbers:
            aim = self.schedule.target(x0, t, noise, s.target)
            error = (output - aim)[..., self.numbers]
            losses["target_loss"] = error[mask].square().mean()
        if self.blocks:
            losses["class_loss"] = self._surprise(output, x0)[mask].mean()
        if s.reconstruction_weight and self.numbers:
            guess = output
            if s.noise_blend:
                share = torch.rand((len(x), 1, 1), generator=self.random)
                guess = torch.lerp(output, noise, share.to(self.device))
            estimate = self.schedule.to_x0(guess, x, t, s.target)
            error = (estimate - x0)[..., self.numbers]
            losses["reconstruction_loss"] = error[mask].square().mean()
        whole = (
            losses.get("target_loss", 0)
            + s.class_weight * losses.get("class_loss", 0)
            + s.reconstruction_weight * losses.get("reconstruction_loss", 0)
        )
        return {"loss": whole} | losses

    def _surprise(self, output: Tensor, x0: Tensor) -> Tensor:
        """Cross-entropy of each block, shape (batch, months, blocks)."""
        terms = [
            (x0[..., b] + 1) / 2 * output[..., b].log_softmax(-1)
            for b in self.blocks
        ]
        return -torch.stack([term.sum(-1) for term in terms], -1)

    def _predict(
        self, network: nn.Module, x: Tensor, t: Tensor, statics: Tensor
    ) -> Tensor:
        """Ask a network, in float32 whatever it computes in."""
        condition = 2 * statics - 1 if self.static_columns else None
        with self._precision():
            output = network(x, t.to(self.device), condition).float()
        if self.settings.evidence_weight and self.blocks:
            output = output + self._evidence(x, t)
        return output

    def _evidence(self, x: Tensor, t: Tensor) -> Tensor:
        """Weighted log likelihood of each class, 0 for columns of numbers.

        Rows of a block are a class's row of 1 and -1, shrunk, plus noise:
        ``-|x - signal row|^2 / (2 spread^2)`` is ``2 signal x / spread^2`` in
        the class's own column, but for what all classes have in common.
        """
        signal, spread = self.schedule.amplitudes(t, x)
        likelihood = 2 * signal / spread.square() * x
        likelihood[..., self.numbers] = 0
        return self.settings.evidence_weight * likelihood

    def _precision(self) -> torch.autocast:
        bf16 = self.settings.bf16
        if bf16 is None:
            bf16 = self.device.type == "cuda" and (
                torch.cuda.is_bf16_supported(including_emulation=False)
            )
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    @torch.no_grad()
    def _update_average(self) -> None:
        """Move the mean of the weights; early on it follows closely."""
        if self.average is self.network:
            return
        done = len(self.history)
        decay = min(self.settings.ema, (1 + done) / (10 + done))
        pairs = zip(
            self.average.parameters(), self.network.parameters(), strict=True
        )
        for mean, weight in pairs:
            mean.lerp_(weight, 1 - decay)

    @torch.no_grad()
    def denoise(
        self, x: Tensor, t: int, statics: Tensor, limit: str | None = None
    ) -> Tensor:
        """Estimate the clean rows behind x, shape (batch, months, width).

        Parameters
        ----------
        x : Tensor, shape (batch, months, dynamic.width)
        t : int
            The step that x is at.
        statics : Tensor, shape (batch, static width)
        limit : {"clip", "dynamic", "none"}, optional
            That of the settings if not given.
        """
        s = self.settings
        output = self._predict(self.average, x, torch.tensor([t]), statics)
        x0 = self.schedule.to_x0(output, x, t, s.target)
        x0 = limited(x0, limit or s.limit)
        if self.calibration is not None:
            output = self.calibration.corrected(output, self.blocks)
        for block in self.blocks:
            x0[..., block] = 2 * output[..., block].softmax(-1) - 1
        return x0

    def calibrate(self, x: Tensor, seed: int = 0) -> list[dict[str, float]]:
        """Measure what samples are off by, as a whole, and correct for it.

        Samples a twin of each training patient, with their statics, eight
        times. After each, a variable that changes class too often gets
        sharper logits, and a class that occurs too seldom a larger offset, in
        steps that shrink (Robbins & Monro 1951); the mean of the last four
        stays (Polyak & Juditsky 1992). All rounds together give the quantiles
        that labs are mapped from: as few patients as there are to train on
        differ too much from each other by chance. Call it when training is
        done; it looks at training data only, and holds for sampling as the
        settings say.

        Parameters
        ----------
        x : Tensor, shape (patients, months, schema.width)
            The training data, or some hundred patients of it.
        seed : int
            Of the samples.

        Returns
        -------
        list of dict
            One record a round: by variable with classes, the rate of
            changes over that of the training data.

        Raises
        ------
        ValueError
            If x is of another width, or has one month only.
        """
        if x.ndim != 3 or x.shape[-1] != self.schema.width or x.shape[1] < 2:
            raise ValueError(
                "x has shape (patients, 2 months or more, "
                f"{self.schema.width}), got {tuple(x.shape)}"
            )
        started = time.perf_counter()
        names = [f.name for f in self.dynamic.categoricals if self.blocks]
        blocks = [self.schema.spans[name] for name in names]
        rates, shares = switch_rates(x, blocks), class_shares(x, blocks)
        truth = quantiles(x, self.real_columns)
        sharpness, offsets = torch.ones_like(rates), torch.zeros_like(shares)
        records, sampled, tried = [], [], []
        for i in range(ROUNDS):
            self.calibration = Calibration(sharpness, offsets, truth, truth)
            tried.append(self.calibration)
            rows = self._twins(x, seed + i)
            sampled.append(rows[..., self.real_columns])
            off = switch_rates(rows, blocks) / rates
            records.append(dict(zip(names, off.tolist(), strict=True)))
            lacking = (shares / class_shares(rows, blocks)).log()
            step = (i + 1) ** -0.5
            sharpness = sharpness * off ** (step * SHARPNESS_GAIN)
            sharpness = sharpness.clamp(1 / SHARPEST, SHARPEST)
            offsets = offsets + step * OFFSET_GAIN * lacking
        last = tried[ROUNDS // 2 :]
        self.calibration = Calibration(
            torch.stack([c.sharpness for c in last]).log().mean(0).exp(),
            torch.stack([c.offsets for c in last]).mean(0),
            # Labs hardly feel what is done to drugs: all rounds count.
            quantiles(torch.cat(sampled), range(len(self.real_columns))),
            truth,
        )
        self.seconds += time.perf_counter() - started
        return records

    def _twins(self, x: Tensor, seed: int) -> Tensor:
        """Sample as many patients as x has, with their statics."""
        statics = x[:, 0, self.static_columns]
        return self.sample(len(x), x.shape[1], seed, statics=statics)

    def sample(
        self,
        patients: int,
        months: int,
        seed: int = 0,
        steps: int | None = None,
        sampler: str = "ddpm",
        eta: float = 0.0,
        statics: Tensor | Mapping[str, str] | None = None,
        limit: str | None = None,
        batch_size: int = 256,
    ) -> Tensor:
        """Generate sequences, shape (patients, months, schema.width).

        With cross-entropy, a block is probabilities; otherwise it need not
        be, and its largest entry counts. Reals leave [0, 1] only if nothing
        limits them; :func:`sample_accepted` then keeps what stays inside.

        Parameters
        ----------
        patients, months : int
            As few months as the network can take, 8, and as many as wanted.
        seed : int
            Of all draws; another batch size draws otherwise.
        steps : int, optional
            Steps to take; those of the settings if not given.
        sampler : {"ddpm", "ddim"}
            Ancestral sampling, or DDIM.
        eta : float
            DDIM's share of fresh noise, 0 to 1.
        statics : Tensor or dict, optional
            Whom to generate. Rows, shape (patients, static width), one-hot
            and scaled as in training; or labels such as ``{"Gender":
            "Female"}``, of which all that is left open follows the training
            data. If not given, all of it does.
        limit : {"clip", "dynamic", "none"}, optional
            What to do about estimates outside the range; that of the
            settings if not given.
        batch_size : int
            Sequences walked back together.

        Raises
        ------
        ValueError
            If a choice is unknown, or statics do not fit the model.
        RuntimeError
            If statics are to be drawn before the model has seen data.
        """
        if patients < 1 or months < 1:
            raise ValueError(
                "patients and months are 1 or more, got "
                f"{patients} and {months}"
            )
        random = torch.Generator().manual_seed(seed)
        rows = self.draw_statics(patients, random, statics)
        parts = []
        for part in rows.split(batch_size):
            walk = self.walk(months, random, part, steps, sampler, eta, limit)
            ((_, x),) = deque(walk, maxlen=1)  # the last place only
            parts.append(x)
        return torch.cat(parts)

    def walk(
        self,
        months: int,
        random: torch.Generator,
        statics: Tensor,
        steps: int | None = None,
        sampler: str = "ddpm",
        eta: float = 0.0,
        limit: str | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Walk a batch from noise to data, and show every place.

        Parameters
        ----------
        statics : Tensor, shape (patients, static width)
            As :meth:`draw_statics` gives them.
        months, random, steps, sampler, eta, limit
            As in :meth:`sample`.

        Yields
        ------
        int, Tensor
            The step arrived at, and rows (patients, months, schema.width)
            on the scale of the data; noisy ones, until step 0.
        """
        s = self.settings
        count = s.sampling_steps if steps is None else steps
        visited = timesteps(s.steps, count, s.spacing)
        shape = (len(statics), self._padded(months), self.dynamic.width)
        x = torch.randn(shape, generator=random).to(self.device)
        known = statics.to(self.device)
        places = reverse_walk(
            lambda x, t: self.denoise(x, t, known, limit),
            self._step(sampler, eta),
            x,
            visited,
            random,
        )
        for step, x in places:
            rows = self._rows(x[:, :months], statics)
            if step == 0 and self.calibration is not None:
                rows = self.calibration.mapped(rows, self.real_columns)
            yield step, rows

    def _step(self, sampler: str, eta: float) -> Callable[..., Tensor]:
        """Choose how to step back."""
        check_choice("sampler", sampler, SAMPLERS)
        if sampler == "ddim":
            return partial(ddim_step, self.schedule, eta=eta)
        if eta:
            raise ValueError('eta belongs to sampler="ddim"')
        variance = self.settings.variance
        return partial(ddpm_step, self.schedule, variance=variance)

    def _rows(self, x: Tensor, statics: Tensor) -> Tensor:
        """Put recentred rows and statics together again, in [0, 1]."""
        rows = torch.empty(*x.shape[:2], self.schema.width)
        rows[..., self.dynamic_columns] = (x.cpu() + 1) / 2
        rows[..., self.static_columns] = statics.cpu().unsqueeze(1)
        return rows

    def draw_statics(
        self,
        patients: int,
        random: torch.Generator,
        statics: Tensor | Mapping[str, str] | None = None,
    ) -> Tensor:
        """Decide who the patients are, shape (patients, static width).

        Parameters
        ----------
        statics : Tensor or dict, optional
            As in :meth:`sample`; a tensor is checked and returned.
        """
        if isinstance(statics, Tensor):
            return self._checked(statics, patients)
        if self.static is None:
            if statics:
                raise ValueError("this model is not conditioned on statics")
            return torch.zeros(patients, 0)
        rows, counts = self.joint
        if not len(rows):
            raise RuntimeError(
                "this model has seen no patients to draw statics from: call "
                "fit, or pass statics as a tensor"
            )
        fits = torch.ones(len(rows), dtype=torch.bool)
        for name, label in (statics or {}).items():
            column = f"{name}={label}"
            if column not in self.static.columns:
                raise ValueError(
                    f"{column}: no static class; there are "
                    f"{', '.join(self.static.columns)}"
                )
            fits &= rows[:, self.static.columns.index(column)] == 1
        if not fits.any():
            raise ValueError(
                f"no patient of the training data has {dict(statics)}; pass "
                "rows as a tensor to go beyond the data"
            )
        shares = counts * fits / counts.sum()
        drawn = torch.multinomial(shares, patients, True, generator=random)
        return rows[drawn]

    def _checked(self, statics: Tensor, patients: int) -> Tensor:
        """Refuse statics of another shape, or that are no valid rows."""
        shape = (patients, len(self.static_columns))
        if statics.shape != shape:
            raise ValueError(
                f"statics of shape {shape} are needed, one row a patient and "
                f"a column each of "
                f"{self.static.columns if self.static else 'none'}; "
                f"got {tuple(statics.shape)}"
            )
        if not statics.isfinite().all():
            raise ValueError("statics has a value that is not finite")
        for feature in self.static.categoricals if self.static else ():
            block = statics[:, self.static.spans[feature.name]]
            hot = ((block == 0) | (block == 1)).all(1) & (block.sum(1) == 1)
            if not hot.all():
                at = int((~hot).int().argmax())
                raise ValueError(
                    f"{feature.name}: statics row {at} is "
                    f"{block[at].tolist()}, and exactly one class is 1"
                )
        return statics

    def save(
        self, path: str | os.PathLike, weights_only: bool = False
    ) -> None:
        """Write a checkpoint, whole or not at all.

        Parameters
        ----------
        path : path
            Where to, such as ``"v3.safetensors"``.
        weights_only : bool
            Leave out what only resuming needs, and store the weights that
            sample in half precision: a small file to sample from.
        """
        networks = self._networks()
        if weights_only:
            networks = {"network": copy.deepcopy(self.average).half()}
        tensors = {
            f"{name}.{key}": value
            for name, network in networks.items()
            for key, value in network.state_dict().items()
        }
        tensors["joint.rows"], tensors["joint.counts"] = self.joint
        if self.calibration is not None:
            for name, tensor in vars(self.calibration).items():
                tensors[f"calibration.{name}"] = tensor
        if not weights_only:
            tensors |= training.resumable_tensors(self)
        header = {
            "network": type(self.network).__name__,
            "weights_only": weights_only,
        } | training.header_of(self)
        checkpoint.save(path, tensors, header)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        schema: Schema,
        device: torch.device | None = None,
        network: nn.Module | None = None,
    ) -> Diffusion:
        """Rebuild a saved model; on the CPU, training goes on bit for bit.

        Parameters
        ----------
        path : path
            As given to :meth:`save`.
        schema : Schema
            What the caller expects the columns to mean.
        device : torch.device, optional
        network : module, optional
            As given to the model that was saved.

        Raises
        ------
        CheckpointError
            If the file is damaged or foreign, or holds another model,
            another schema, or another network.
        """
        tensors, header = checkpoint.load(path)
        checkpoint.check(path, header, cls.__name__, schema, HEADER)
        given = type(network).__name__ if network else UNet1D.__name__
        if header["network"] != given:
            raise checkpoint.CheckpointError(
                f"{path}: its network is a {header['network']}, not a "
                f"{given}; build one and pass it as network="
            )
        with checkpoint.rebuilding(path):
            settings = checkpoint.settings_of(path, header, DiffusionSettings)
            only = header["weights_only"]

            def make() -> nn.Module:
                return network or _unet(schema, settings)

            parts = ["network"]
            if settings.ema and not only:
                parts.append("average")
            for name in parts:
                weights = training.part(tensors, name)
                checkpoint.check_weights(path, name, make, weights)
            model = cls(schema, settings, device, network)
            for name, part in model._networks().items():
                weights = training.part(tensors, "network" if only else name)
                part.load_state_dict(weights)
            training.load_progress(model, header)
            model._load_joint(path, tensors)
            model._load_calibration(path, tensors)
            if not only:
                training.load_resumable(path, model, tensors)
        return model

    def _load_joint(
        self, path: str | os.PathLike, tensors: Mapping[str, Tensor]
    ) -> None:
        """Take over which statics occur, and how often."""
        rows, counts = tensors["joint.rows"], tensors["joint.counts"]
        checkpoint.check_tensor(path, "joint.rows", rows, torch.float32)
        checkpoint.check_tensor(path, "joint.counts", counts, torch.int64)
        if counts.shape != rows.shape[:1] or not (counts > 0).all():
            raise ValueError("joint.counts is above 0, one number a row")
        self.joint = self._checked(rows, len(rows)), counts

    def _load_calibration(
        self, path: str | os.PathLike, tensors: Mapping[str, Tensor]
    ) -> None:
        """Take over a calibration, if there is one."""
        stored = training.part(tensors, "calibration")
        if not stored:
            return
        calibration = Calibration(**stored)
        for name, tensor in stored.items():
            name = f"calibration.{name}"
            checkpoint.check_tensor(path, name, tensor, torch.float64)
        classes = [block.stop - block.start for block in self.blocks]
        calibration.check(classes, len(self.real_columns))
        self.calibration = calibration

    def _networks(self) -> dict[str, nn.Module]:
        networks = {"network": self.network}
        if self.average is not self.network:
            networks["average"] = self.average
        return networks
