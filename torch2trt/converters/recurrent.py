"""Recurrent layers: a loop over the steps, or the steps one after the other where they are few."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch2trt.converters.reasons import only_floats
from torch2trt.converters.registry import converter
from torch2trt.graph.recurrence import RECURRENCE
from torch2trt.trt.loops import Loop
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

UNROLLED = 8
"""So many steps, or fewer, are layers of their own; more are a loop, which cannot be part of a CUDA graph."""

# TensorRT-RTX makes one kernel of all steps where they multiply fewer numbers than this, and takes hours to.
_NARROWEST = 8


@converter(RECURRENCE, unsupported=only_floats)
def recurrence(
    net: Network,
    projected: Tensor,
    state: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    projection: Tensor | None,
    cell: str,
) -> list[Tensor]:
    """recurrence(Tensor projected, Tensor[] state, Tensor weight, Tensor? bias, Tensor? projection, str cell)"""
    axis = projected.rank - 3
    steps = projected.shape[axis]
    by_gate, by_projection = _widened(net, weight), None if projection is None else _widened(net, projection)

    def times(hidden: Tensor, factor: Tensor) -> Tensor:
        return net.matmul(_widened(net, hidden), factor, transpose_second=True)

    def step(element: Tensor, state: Sequence[Tensor]) -> list[Tensor]:
        hidden, *rest = _STEPS[cell](net, element, times(state[0], by_gate), state, bias)
        return [hidden if by_projection is None else times(hidden, by_projection), *rest]

    if isinstance(steps, int) and steps <= UNROLLED:
        hidden: list[Tensor] = []
        for index in range(steps):
            state = step(net.squeeze(net.narrow(projected, axis, index, 1), axis), state)
            hidden.append(net.unsqueeze(state[0], axis))
        return [net.concat(hidden, axis), *state]
    loop = Loop(net, steps)
    carried = [loop.carry(first) for first in state]
    following = step(loop.element(projected, axis), carried)
    last = [loop.follow(*pair) for pair in zip(carried, following, strict=True)]
    return [loop.stack(following[0], axis), *last]


def _widened(net: Network, tensor: Tensor) -> Tensor:
    """With zeros behind the last dimension, where it is too small."""
    others = [0] * (tensor.rank - 1)
    lacking = _NARROWEST - tensor.shape[-1]
    return net.pad(tensor, [*others, 0], [*others, lacking]) if lacking > 0 else tensor


def _chunk(net: Network, gates: Tensor, count: int) -> list[Tensor]:
    size = gates.shape[-1] // count
    return [net.narrow(gates, -1, index * size, size) for index in range(count)]


def _lstm(net: Network, element: Tensor, gates: Tensor, state: Sequence[Tensor], bias: Tensor | None) -> list[Tensor]:
    i, f, g, o = _chunk(net, net.elementwise("SUM", element, gates), 4)
    kept = net.elementwise("PROD", net.activation("SIGMOID", f), state[1])
    new = net.elementwise("PROD", net.activation("SIGMOID", i), net.activation("TANH", g))
    cell = net.elementwise("SUM", kept, new)
    return [net.elementwise("PROD", net.activation("SIGMOID", o), net.activation("TANH", cell)), cell]


def _gru(net: Network, element: Tensor, gates: Tensor, state: Sequence[Tensor], bias: Tensor | None) -> list[Tensor]:
    (r, z, n), (hr, hz, hn) = _chunk(net, element, 3), _chunk(net, gates, 3)
    if bias is not None:
        hn = net.elementwise("SUM", hn, bias)
    reset = net.activation("SIGMOID", net.elementwise("SUM", r, hr))
    kept = net.activation("SIGMOID", net.elementwise("SUM", z, hz))
    new = net.activation("TANH", net.elementwise("SUM", n, net.elementwise("PROD", reset, hn)))
    change = net.elementwise("PROD", kept, net.elementwise("SUB", state[0], new))
    return [net.elementwise("SUM", change, new)]


def _rnn(activation: str) -> Callable[..., list[Tensor]]:
    def step(
        net: Network, element: Tensor, gates: Tensor, state: Sequence[Tensor], bias: Tensor | None
    ) -> list[Tensor]:
        return [net.activation(activation, net.elementwise("SUM", element, gates))]

    return step


_STEPS: dict[str, Callable[..., list[Tensor]]] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": _rnn("TANH"),
    "rnn_relu": _rnn("RELU"),
}
