"""Building blocks of the networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from healthgym_utils.schema import Feature, Schema


class FeatureEmbedding(nn.Module):
    """Turn a month of mixed variables into one dense vector.

    A real variable goes through an affine map of one number, a variable
    with classes through an embedding table; the results are joined in the
    order of the schema.

    Parameters
    ----------
    schema : Schema
        Kinds, classes and embedding sizes.

    Raises
    ------
    ValueError
        In the forward pass, if a real is not finite or a code is not one of
        0 to K - 1. Clamping it instead, as the published series does, would
        turn a data error into a valid but wrong class.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.schema = schema
        self.parts = nn.ModuleDict(
            {feature.name: _embed(feature) for feature in schema}
        )

    def forward(self, codes: Tensor) -> Tensor:
        """Embed codes, shape (..., features), to (..., embedding_width)."""
        if codes.shape[-1] != len(self.schema):
            raise ValueError(
                f"expected {len(self.schema)} features in the last axis, "
                f"got {codes.shape[-1]}"
            )
        embedded = []
        for index, feature in enumerate(self.schema):
            column, part = codes[..., index], self.parts[feature.name]
            if feature.is_real:
                column = _as_numbers(feature, column, part.weight.dtype)
            else:
                column = _as_codes(feature, column)
            embedded.append(part(column))
        return torch.cat(embedded, dim=-1)


def _embed(feature: Feature) -> nn.Module:
    """Choose the module that fits the feature's kind."""
    if feature.is_real:
        return nn.Linear(1, feature.embedding_size)
    return nn.Embedding(feature.width, feature.embedding_size)


def _as_numbers(
    feature: Feature, column: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return reals as a last axis of width 1, or refuse what is no number."""
    if not column.isfinite().all():
        bad = column[~column.isfinite()][0].item()
        raise ValueError(f"{feature.name}: value {bad} is not finite")
    return column.unsqueeze(-1).to(dtype)


def _as_codes(feature: Feature, column: Tensor) -> Tensor:
    """Return whole-number codes as int64, or name the first bad one."""
    bad = (column != column.round()) | (column < 0)
    bad |= column >= feature.width
    if bad.any():
        code = column[bad][0].item()
        raise ValueError(
            f"{feature.name}: code {code:g} is none of 0 to "
            f"{feature.width - 1} ({', '.join(feature.classes)})"
        )
    return column.long()
