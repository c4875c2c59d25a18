"""Building blocks of the networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


class SoftEmbedding(nn.Module):
    """Embed design-matrix rows, hard or soft, so that gradients flow.

    A block of class columns is multiplied by its embedding matrix: a one-hot
    block picks a row of the matrix, a softmax block mixes rows. Reals pass
    through as they are.

    Parameters
    ----------
    schema : Schema
        Spans and embedding sizes.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.schema = schema
        self.tables = nn.ModuleDict(
            {
                f.name: nn.Linear(f.width, f.embedding_size, bias=False)
                for f in schema.categoricals
            }
        )
        for table in self.tables.values():
            nn.init.normal_(table.weight)  # as nn.Embedding starts

    def forward(self, x: Tensor) -> Tensor:
        """Embed x, shape (..., schema.width), to (..., embedding_width)."""
        parts = []
        for feature in self.schema:
            block = x[..., self.schema.spans[feature.name]]
            if not feature.is_real:
                block = self.tables[feature.name](block)
            parts.append(block)
        return torch.cat(parts, dim=-1)


class LSTM(nn.Module):
    """A bidirectional LSTM that can be differentiated twice.

    Hochreiter & Schmidhuber (1997), with forget gates: gates i, f, o are
    sigmoids, g is a tanh, ``c_t = f c + i g`` and ``h_t = o tanh(c_t)``. The
    backward direction is flipped back, so that month t of the output has
    read months 0..t forwards and months T-1..t backwards.

    The weights are those of :class:`torch.nn.LSTM`, whose fused kernels are
    several times faster and cannot be differentiated twice on every device.
    A gradient penalty needs that, and takes :meth:`unrolled`: the same
    arithmetic, month by month.

    Parameters
    ----------
    inputs, hidden : int
        Width of the input, and of each direction's state.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.fused = nn.LSTM(
            inputs, hidden, batch_first=True, bidirectional=True
        )

    def forward(self, x: Tensor, unrolled: bool = False) -> Tensor:
        """Read x, shape (batch, months, inputs).

        Returns
        -------
        Tensor, shape (batch, months, 2 * hidden)
            Forward states, then backward states.
        """
        return self.unrolled(x) if unrolled else self.fused(x)[0]

    def unrolled(self, x: Tensor) -> Tensor:
        """Do the same by an explicit loop over the months."""
        ahead, back = torch.stack(self._states(x), dim=2)
        return torch.cat([ahead, back.flip(1)], dim=-1)

    def final(self, x: Tensor, unrolled: bool = False) -> Tensor:
        """Return each direction's last state, when it has read all months.

        Parameters
        ----------
        x : Tensor, shape (batch, months, inputs)
        unrolled : bool
            Take the path that can be differentiated twice.

        Returns
        -------
        Tensor, shape (batch, 2 * hidden)
            The forward state at the last month, and the backward one at
            the first.
        """
        last = self._states(x)[-1] if unrolled else self.fused(x)[1][0]
        return torch.cat([last[0], last[1]], dim=-1)

    def _states(self, x: Tensor) -> list[Tensor]:
        """Step through the months; both directions in one batched product.

        One tensor (2, batch, hidden) a step t: the forward direction has
        read months 0..t, the backward one months T-1 down to T-1-t.
        """
        w = self.fused
        batch, months, _ = x.shape
        # All input projections at once: only the recurrence needs a loop.
        x = x.transpose(0, 1)
        both = torch.stack([x, x.flip(0)]).flatten(1, 2)
        bias = torch.stack(
            [
                w.bias_ih_l0 + w.bias_hh_l0,
                w.bias_ih_l0_reverse + w.bias_hh_l0_reverse,
            ]
        )
        into = torch.stack([w.weight_ih_l0.T, w.weight_ih_l0_reverse.T])
        recurrent = torch.stack([w.weight_hh_l0.T, w.weight_hh_l0_reverse.T])
        projected = torch.baddbmm(bias.unsqueeze(1), both, into)
        h = c = None
        states = []
        for gates in projected.view(2, months, batch, -1).unbind(1):
            if h is not None:
                gates = torch.baddbmm(gates, h, recurrent)
            i, f, g, o = gates.chunk(4, dim=-1)
            new = i.sigmoid() * g.tanh()
            c = new if c is None else f.sigmoid() * c + new
            h = o.sigmoid() * c.tanh()
            states.append(h)
        return states


class AttentionBlock(nn.Module):
    """Multi-head self-attention over months, a residual, a normalisation.

    Vaswani et al. (2017), eq. 1, with the scale as an argument.

    Parameters
    ----------
    width, heads : int
        Width of the input, split evenly over the heads.
    scale : float
        What dot products are divided by.
    feed_forward : bool
        Add two layers, four times as wide, with their own residual and
        normalisation.

    Raises
    ------
    ValueError
        If the heads do not divide the width.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        scale: float,
        feed_forward: bool = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.scale = scale
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.feed_forward = None
        if feed_forward:
            self.feed_forward = nn.Sequential(
                nn.Linear(width, 4 * width),
                nn.ReLU(),
                nn.Linear(4 * width, width),
            )
            self.feed_forward_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, months, width) to the same shape."""
        q, k, v = self._split(x)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=1 / self.scale)
        x = self.norm(x + self.project_out(mixed.transpose(1, 2).flatten(2)))
        if self.feed_forward is not None:
            x = self.feed_forward_norm(x + self.feed_forward(x))
        return x

    def weights(self, x: Tensor) -> Tensor:
        """Show who attends to whom, shape (batch, heads, months, months)."""
        q, k, _ = self._split(x)
        return (q @ k.transpose(-1, -2) / self.scale).softmax(dim=-1)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project to queries, keys, values: (batch, heads, months, width)."""
        parts = self.project_in(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        return q, k, v
