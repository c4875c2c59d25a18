"""Correct what a trained diffusion model's samples are off by, as a whole.

A short training leaves labs drawn to their middle, rare drugs given too
seldom, and drugs changed too often or too seldom. All of that shows in the
training data alone, without a look at held-out patients, and can be corrected
after training: labs by a monotone map, classes in their logits.
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

    Logits are multiplied by a sharpness, which is one over a temperature (Guo
    et al. 2017), and an offset is added (logit adjustment: Menon et al.
    2021). Sharp logits decide early on the walk, and change less from month
    to month; an offset makes a class more frequent.

    Labs: quantile mapping, as climate models' output is corrected (Panofsky &
    Brier 1968): a value is replaced by the training data's at the same
    quantile. Ranks stay, and so does what depends on them alone. It cannot
    mend what is wrong between variables or over time.

    Parameters
    ----------
    sharpness : Tensor, float64, shape (blocks,)
        One a variable with classes.
    offsets : Tensor, float64, shape (classes,)
        One a class, of all blocks in a row.
    sampled, wanted : Tensor, float64, shape (reals, KNOTS)
        Quantiles of the model's samples, and of the training data. As a
        lab's scaling does, they tell its smallest and its largest value.
    """

    sharpness: Tensor
    offsets: Tensor
    sampled: Tensor
    wanted: Tensor

    def check(self, classes: Sequence[int], reals: int) -> None:
        """Refuse one of other variables, or that is none.

        Parameters
        ----------
        classes : sequence of int
            How many each variable with classes has.
        reals : int
            How many variables are real.

        Raises
        ------
        ValueError
            If a shape differs, a sharpness is not above 0, or quantiles fall
            or leave [0, 1].
        """
        shapes = {
            "sharpness": (len(classes),),
            "offsets": (sum(classes),),
            "sampled": (reals, KNOTS),
            "wanted": (reals, KNOTS),
        }
        for name, shape in shapes.items():
            if (found := tuple(getattr(self, name).shape)) != shape:
                raise ValueError(f"{name} has shape {found}, not {shape}")
        if not (self.sharpness > 0).all():
            raise ValueError("sharpness is above 0")
        for name in ("sampled", "wanted"):
            if (getattr(self, name).diff(dim=1) < 0).any():
                raise ValueError(
                    f"quantiles in {name} rise from left to right"
                )
        if ((self.wanted < 0) | (self.wanted > 1)).any():
            raise ValueError("quantiles in wanted are in [0, 1]")

    def corrected(self, output: Tensor, blocks: Sequence[slice]) -> Tensor:
        """Correct the logits in a network's output, of the same shape.

        Parameters
        ----------
        output : Tensor, shape (batch, months, width)
        blocks : sequence of slice
            Columns of each variable with classes.
        """
        y = output.clone()
        offsets = self.offsets.split([b.stop - b.start for b in blocks])
        for b, factor, offset in zip(
            blocks, self.sharpness, offsets, strict=True
        ):
            y[..., b] = float(factor) * output[..., b] + offset.to(output)
        return y

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


def class_shares(x: Tensor, blocks: Sequence[slice]) -> Tensor:
    """Count how often each class occurs, float64, shape (classes,).

    A share of all months, with half a month more than there are, so that the
    logarithm is finite.

    Parameters
    ----------
    x : Tensor, shape (batch, months, width)
    blocks : sequence of slice
        Columns of each variable; the largest entry counts.
    """
    shares = [torch.zeros(0, dtype=torch.float64)]
    for block in blocks:
        codes = x[..., block].argmax(dim=-1).flatten()
        counts = codes.bincount(minlength=block.stop - block.start)
        shares.append((counts.double() + 0.5) / len(codes))
    return torch.cat(shares).cpu()
