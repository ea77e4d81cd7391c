"""Recurrent layers in capture: one operator for all steps of a layer, in place of torch's operators for each step."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import PackedSequence

from torch2trt.graph.kernels import replaced_kernels
from torch2trt.graph.recurrence import RECURRENCE

aten = torch.ops.aten
Tensor = torch.Tensor


def whole_recurrences() -> contextlib.AbstractContextManager[None]:
    """Within, LSTMs, GRUs and plain recurrent layers become products and :data:`RECURRENCE`.

    Torch's own decompositions repeat the layer for each step, which also fixes the number of steps.
    """
    return replaced_kernels(_KERNELS)


def involves_packed_sequences(error: Exception) -> bool:
    """Whether an error came through a function that had a packed sequence at hand."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(isinstance(value, PackedSequence) for frame, _ in frames for value in frame.f_locals.values())


def _run(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    params: list[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """The output of the last layer, and the states of all layers after the last step, [layers·D, B, *]."""
    directions = 2 if bidirectional else 1
    count = len(params) // (num_layers * directions)
    if batch_first:
        input = input.transpose(0, 1)
    after: list[list[Tensor]] = []
    for layer in range(num_layers):
        if layer > 0 and dropout > 0:
            input = torch.dropout(input, dropout, train)
        lanes = slice(layer * directions, (layer + 1) * directions)
        given = [state[lanes] if bidirectional else state[layer] for state in states]
        own = params[lanes.start * count : lanes.stop * count]
        weights = [torch.stack(own[i::count]) if bidirectional else own[i] for i in range(count)]
        projection = weights.pop() if count in (3, 5) else None
        input, *last = _layer(cell, input, given, weights[:2], weights[2:] if has_biases else None, projection)
        after.append(last)
    output = input.transpose(0, 1) if batch_first else input
    stack = torch.cat if bidirectional else torch.stack
    return output, *(stack(list(states)) for states in zip(*after, strict=True))


def _layer(
    cell: str,
    input: Tensor,
    state: list[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    projection: Tensor | None,
) -> list[Tensor]:
    """One layer, of [T, B, I]; what belongs to its two directions, if it has them, is stacked."""
    of_input, of_hidden = weights
    size = of_hidden.shape[-2] // 3  # of a GRU's gates
    bias = inner = None
    if biases is not None:
        bias, hidden_bias = biases
        if cell == "gru":
            # The last of its gates adds this bias before the reset gate, and so in every step.
            inner, hidden_bias = hidden_bias[..., 2 * size :], F.pad(hidden_bias[..., : 2 * size], (0, size))
        bias = bias + hidden_bias
    if of_input.dim() == 2:
        projected = F.linear(input, of_input, bias)
        return RECURRENCE(projected, state, of_hidden, inner, projection, cell)  # type: ignore[no-any-return]
    steps, batch, _ = input.shape
    rows = torch.stack([input, input.flip(0)]).flatten(1, 2)
    columns = of_input.transpose(1, 2)
    projected = torch.bmm(rows, columns) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, columns)
    projected = projected.view(2, steps, batch, -1)
    inner = inner if inner is None else inner.unsqueeze(1)
    hidden, *last = RECURRENCE(projected, state, of_hidden, inner, projection, cell)
    forward, backward = hidden.unbind(0)
    return [torch.cat([forward, backward.flip(0)], -1), *last]


def _lstm(input: Tensor, hx: Sequence[Tensor], *arguments: Any) -> tuple[Tensor, ...]:
    return _run("lstm", input, hx, *arguments)


def _one_state(cell: str) -> Callable[..., tuple[Tensor, ...]]:
    return lambda input, hx, *arguments: _run(cell, input, [hx], *arguments)


_KERNELS: dict[Any, Callable[..., tuple[Tensor, ...]]] = {
    aten.lstm.input: _lstm,
    aten.gru.input: _one_state("gru"),
    aten.rnn_tanh.input: _one_state("rnn_tanh"),
    aten.rnn_relu.input: _one_state("rnn_relu"),
}
