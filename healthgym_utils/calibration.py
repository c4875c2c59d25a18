"""Correct what a trained diffusion model's samples are off by, as a whole.

A short training leaves labs drawn to their middle, and some drugs changed
too often or too seldom. Both show in the training data alone, without a look
at held-out patients, and both can be corrected after training: labs by a
monotone map, drugs by how much a month's own evidence weighs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

KNOTS = 65  # quantiles that describe a distribution, both ends included


@dataclass(frozen=True)
class Calibration:
    """What a model's samples are corrected by.

    Quantile mapping, as climate models' output is corrected (Panofsky &
    Brier 1968): a value is replaced by the training data's at the same
    quantile. Ranks stay, and so does what depends on them alone. It cannot
    mend what is wrong between variables or over time.

    Parameters
    ----------
    evidence : Tensor, shape (blocks,)
        Factors of the weight of evidence, one a variable with classes.
    sampled, wanted : Tensor, float64, shape (reals, KNOTS)
        Quantiles of the model's samples, and of the training data. As a
        lab's scaling does, they tell its smallest and its largest value.
    """

    evidence: Tensor
    sampled: Tensor
    wanted: Tensor

    def mapped(self, x: Tensor, columns: Sequence[int]) -> Tensor:
        """Map real columns to the training data's distribution.

        Parameters
        ----------
        x : Tensor, shape (batch, months, width)
        columns : sequence of int
            Of the reals, in the order of the quantiles. Values beyond the
            ends go to the ends.

        Returns
        -------
        Tensor, like x
        """
        y = x.clone()
        for j, old, new in zip(
            columns, self.sampled, self.wanted, strict=True
        ):
            values = np.interp(x[..., j].cpu().numpy(), old, new)
            y[..., j] = torch.from_numpy(values).to(x)
        return y


def quantiles(x: Tensor, columns: Sequence[int]) -> Tensor:
    """Describe the distribution of columns, float64, shape (columns, KNOTS).

    Parameters
    ----------
    x : Tensor, shape (batch, months, width)
    columns : sequence of int
    """
    at = np.linspace(0, 1, KNOTS)
    values = x[..., list(columns)].flatten(0, -2).double().cpu().numpy()
    return torch.from_numpy(np.quantile(values, at, axis=0).T.copy())


def switch_rates(x: Tensor, blocks: Sequence[slice]) -> Tensor:
    """Count changes of class a patient and month, float64, shape (blocks,).

    With half a change more than there are, so that none at all is finite.

    Parameters
    ----------
    x : Tensor, shape (batch, months, width)
    blocks : sequence of slice
        Columns of each variable; the largest entry counts.
    """
    rates = []
    for block in blocks:
        codes = x[..., block].argmax(dim=-1)
        changes = (codes[:, 1:] != codes[:, :-1]).sum()
        rates.append((changes + 0.5) / codes[:, 1:].numel())
    return torch.tensor(rates, dtype=torch.float64)
