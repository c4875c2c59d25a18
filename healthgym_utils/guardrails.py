"""Keep sampled sequences inside what can be: limits, and accept-reject.

A generator that ends in a sigmoid cannot leave the fitted range; diffusion
can. The published v3 throws away each sequence that does. Limiting the
estimate at every step of the walk throws nothing away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from healthgym_utils.runtime import check_choice
from healthgym_utils.schema import Schema

LIMITS = ("none", "clip", "dynamic")


class Sampler(Protocol):
    """Whatever samples rows: every model of this package does."""

    schema: Schema

    def sample(self, patients: int, months: int, seed: int = 0) -> Tensor:
        """Return rows, shape (patients, months, schema.width)."""


def limited(x0: Tensor, how: str, quantile: float = 0.995) -> Tensor:
    """Bring an estimate of clean rows back into [-1, 1].

    Parameters
    ----------
    x0 : Tensor, shape (batch, months, columns)
        Recentred rows.
    how : {"none", "clip", "dynamic"}
        ``"clip"`` moves what is outside to the edge. ``"dynamic"`` is
        dynamic thresholding (Saharia et al. 2022, section 2.3): clip at a
        quantile s of the absolute values, if that is above 1, and divide by
        s, so that extremes are squeezed instead of piled up at the edge.
        They take one s an image; here every column of a patient has its
        own, because columns are different variables.
    quantile : float
        Which one s is, over the months.

    Raises
    ------
    ValueError
        If there is no such way.
    """
    check_choice("limit", how, LIMITS)
    if how == "none":
        return x0
    if how == "clip":
        return x0.clamp(-1, 1)
    size = x0.abs().quantile(quantile, dim=1, keepdim=True).clamp(min=1)
    return x0.clamp(-size, size) / size


def outside(x: Tensor, schema: Schema) -> Tensor:
    """Find the real variables that leave the fitted range in any month.

    Parameters
    ----------
    x : Tensor, shape (patients, months, schema.width)
        Rows as models sample them. Their [0, 1] is the published filter's
        [-1, 1], before recentring is undone.

    Returns
    -------
    Tensor, bool, shape (patients, reals)
        In the order of ``schema.reals``. A value that is not a number is
        outside too.
    """
    columns = [schema.spans[feature.name].start for feature in schema.reals]
    reals = x[..., columns]
    return ~((reals >= 0) & (reals <= 1)).all(dim=1)


@dataclass(frozen=True)
class Report:
    """What became of the sequences that were sampled.

    Attributes
    ----------
    tried, kept : int
        Sequences sampled, and accepted.
    outside : dict of str to int
        For each real variable, the rejected sequences in which it left the
        range. A sequence with several such variables counts for each.
    """

    tried: int
    kept: int
    outside: dict[str, int]

    @property
    def acceptance(self) -> float:
        """Share of the sequences tried that was kept."""
        return self.kept / self.tried

    def __str__(self) -> str:
        reasons = ", ".join(f"{k} {n}" for k, n in self.outside.items())
        return (
            f"{self.kept} of {self.tried} sequences kept "
            f"({self.acceptance:.1%}); outside the range: {reasons}"
        )


class AcceptanceError(RuntimeError):
    """Too few sequences were accepted; ``report`` says why."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


def sample_accepted(
    model: Sampler,
    patients: int,
    months: int,
    seed: int = 0,
    max_attempts: int = 20,
    statics: Any = None,
    **options: Any,
) -> tuple[Tensor, Report]:
    """Sample until enough sequences pass the published filter.

    A sequence passes if every real variable stays inside the fitted range
    in all months. This is no free lunch: sequences with extreme values are
    the likeliest to fall, so tails become too short.

    Parameters
    ----------
    model : WGANGP, Diffusion, or alike
    patients, months : int
    seed : int
        Of all attempts together.
    max_attempts : int
        Each attempt samples as many sequences as still lack.
    statics : Tensor or dict, optional
        As :meth:`Diffusion.sample` takes them. Of a tensor, every row is
        tried until a sequence of its own is kept; other draws are made anew,
        and so lean towards groups that are accepted more often.
    **options
        Passed to ``model.sample``.

    Returns
    -------
    x : Tensor, shape (patients, months, schema.width)
    report : Report

    Raises
    ------
    AcceptanceError
        If sequences still lack after the last attempt.
    ValueError
        If ``max_attempts`` is below 1.
    """
    if max_attempts < 1:
        raise ValueError(f"max_attempts is 1 or more, got {max_attempts}")
    random = torch.Generator().manual_seed(seed)
    x = torch.empty(patients, months, model.schema.width)
    lacking = torch.arange(patients)
    fallen = torch.zeros(len(model.schema.reals), dtype=torch.int64)
    tried = 0
    for _ in range(max_attempts):
        # Not seed + 1, + 2: those are the seeds of other samples.
        attempt = int(torch.randint(2**31, (), generator=random))
        if isinstance(statics, Tensor):
            options["statics"] = statics[lacking]
        elif statics is not None:
            options["statics"] = statics
        rows = model.sample(len(lacking), months, seed=attempt, **options)
        out = outside(rows, model.schema)
        kept = ~out.any(dim=1)
        x[lacking[kept]] = rows[kept]
        tried += len(rows)
        fallen += out.sum(dim=0)
        lacking = lacking[~kept]
        if not len(lacking):
            break
    names = [feature.name for feature in model.schema.reals]
    reasons = dict(zip(names, fallen.tolist(), strict=True))
    report = Report(tried, patients - len(lacking), reasons)
    if len(lacking):
        raise AcceptanceError(
            f"{len(lacking)} of {patients} sequences still lack after "
            f"{max_attempts} attempts: {report}. Train longer, clip the "
            'estimate (limit="clip"), or allow more attempts',
            report,
        )
    return x, report
