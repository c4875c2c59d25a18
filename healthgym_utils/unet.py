"""The one-dimensional U-Net that Health Gym v3 denoises with.

Ronneberger et al. (2015), along months instead of pixels: halve the months
a few times, look at the whole history at once, and double them back, adding
what was seen at each resolution on the way down. The diffusion step enters
by FiLM (Perez et al. 2018).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from healthgym_utils.schema import Schema

GROUPS = 8  # of every GroupNorm (Wu & He 2018), as published
MAX_LEVELS = 16  # which halve 65,536 months


class ResBlock1D(nn.Module):
    """GroupNorm, FiLM, SiLU, Conv3, GroupNorm, SiLU, Conv3, and a skip.

    Dropout, if any, stands before the second convolution, as in Ho et al.
    (2020); the published v3 has none.

    GroupNorm takes its mean and variance over all months, so a block sees
    the whole sequence, faintly, and not three months only.

    Parameters
    ----------
    hidden : int
        Channels in and out, a multiple of 8.
    time_width : int
        Width of the embedding that gamma and beta are read from.
    dropout : float
        Share of values set to 0 in training.
    """

    def __init__(
        self, hidden: int, time_width: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, hidden)
        self.film = nn.Linear(time_width, 2 * hidden)
        self.conv1 = nn.Conv1d(hidden, hidden, 3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, hidden)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv1d(hidden, hidden, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map (batch, hidden, months) to the same shape.

        ``embedding`` is (batch, time_width), or (1, time_width) for all.
        """
        gamma, beta = self.film(embedding).unsqueeze(-1).chunk(2, dim=1)
        h = self.norm1(x) * (1 + gamma) + beta
        h = self.conv1(F.silu(h))
        return x + self.conv2(self.dropout(F.silu(self.norm2(h))))


class UNet1D(nn.Module):
    """Predict, from noisy rows and the step, what the noise hides.

    Parameters
    ----------
    schema : Schema
        Its width is the width of a row, in and out.
    hidden : int
        Channels at every resolution, a multiple of 8, from 16 on.
    time_width : int
        Width of the embedding of the step, an even number.
    levels : int
        How often the months are halved, 1 to 16 times. Any length from
        ``2**levels`` on works; an odd length loses a month by halving, which
        zero padding puts back on the way up.
    condition : int
        Width of a vector that is known of each patient and added to the
        embedding; 0 for none.
    dropout : float
        Of every :class:`ResBlock1D`.

    Raises
    ------
    ValueError
        If a width does not fit; in the forward pass, if there are too few
        months, or a condition lacks, is too many, or is of another width.
    """

    def __init__(
        self,
        schema: Schema,
        hidden: int = 256,
        time_width: int = 128,
        levels: int = 3,
        condition: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        # One channel a group would be normalised to 0 where the middle is
        # a single month long.
        if hidden < 2 * GROUPS or hidden % GROUPS:
            raise ValueError(
                f"hidden is a multiple of {GROUPS}, from {2 * GROUPS} on, "
                f"got {hidden}"
            )
        if time_width < 4 or time_width % 2:
            raise ValueError(
                f"time_width is an even number from 4, got {time_width}"
            )
        if not 1 <= levels <= MAX_LEVELS:
            raise ValueError(f"levels is 1 to {MAX_LEVELS}, got {levels}")
        self.levels = levels
        self.time_width = time_width
        self.time = _two_layers(time_width, time_width, time_width)
        self.condition = None
        if condition:
            self.condition = nn.Linear(condition, time_width)

        def blocks(count: int) -> nn.ModuleList:
            return nn.ModuleList(
                ResBlock1D(hidden, time_width, dropout) for _ in range(count)
            )

        self.mix_in = _two_layers(schema.width, hidden, hidden)
        self.down_blocks = blocks(levels)
        self.downs = nn.ModuleList(
            nn.Conv1d(hidden, hidden, 4, stride=2, padding=1)
            for _ in range(levels)
        )
        self.middle = blocks(2)
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(hidden, hidden, 4, stride=2, padding=1)
            for _ in range(levels)
        )
        self.up_blocks = blocks(levels)
        self.mix_out = _two_layers(hidden, hidden, schema.width)

    def forward(
        self, x: Tensor, t: Tensor, condition: Tensor | None = None
    ) -> Tensor:
        """Map noisy rows to a prediction of the same shape.

        Parameters
        ----------
        x : Tensor, shape (batch, months, schema.width)
        t : Tensor of int, shape (batch,) or (1,)
            The diffusion step of each sequence, or of all of them.
        condition : Tensor, shape (batch, condition), optional
        """
        if x.shape[1] < 2**self.levels:
            raise ValueError(
                f"{self.levels} levels halve the months {self.levels} times: "
                f"{2**self.levels} months or more are needed, "
                f"got {x.shape[1]}"
            )
        embedding = self.embed(t, condition)
        h = self.mix_in(x).transpose(1, 2)
        skips = []
        for block, down in zip(self.down_blocks, self.downs, strict=True):
            h = block(h, embedding)
            skips.append(h)
            h = down(h)
        for block in self.middle:
            h = block(h, embedding)
        for up, block in zip(self.ups, self.up_blocks, strict=True):
            skip = skips.pop()
            h = align(up(h), skip.shape[-1])
            h = block(h + skip, embedding)
        return self.mix_out(h.transpose(1, 2))

    def embed(self, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Embed steps and what is known, shape (batch or 1, time_width)."""
        wanted = self.condition.in_features if self.condition else 0
        given = 0 if condition is None else condition.shape[-1]
        if given != wanted:
            raise ValueError(
                f"this network is conditioned on {wanted} columns, got {given}"
            )
        waves = sinusoidal(t, self.time_width).to(self.time[0].weight)
        embedding = self.time(waves)
        if condition is not None:
            embedding = embedding + self.condition(condition)
        return embedding


def _two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, SiLU, Linear: along rows, it mixes the columns of a month."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs)
    )


def sinusoidal(t: Tensor, width: int) -> Tensor:
    """Turn steps into waves: sines, then cosines, from fast to slow.

    Vaswani et al. (2017), section 3.5: wavelengths from 2 pi to 10,000
    times that, in geometric progression.

    Parameters
    ----------
    t : Tensor, shape (batch,)
    width : int
        Even.

    Returns
    -------
    Tensor, float32, shape (batch, width)
    """
    places = torch.arange(width // 2, device=t.device) / (width // 2 - 1)
    angles = t.unsqueeze(-1) * torch.exp(-math.log(10_000) * places)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def align(x: Tensor, months: int) -> Tensor:
    """Pad x, shape (..., shorter), with zeros at the end up to months.

    A length that was halved and doubled is never longer than it was, so
    there is nothing to crop.
    """
    return F.pad(x, (0, months - x.shape[-1]))
