"""One layer of a recurrent net over all its steps, as a torch operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

State = list[torch.Tensor]


@torch.library.custom_op("torch2trt::recurrence", mutates_args=())
def recurrence(
    projected: torch.Tensor,
    state: Sequence[torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    projection: torch.Tensor | None,
    cell: str,
) -> list[torch.Tensor]:
    """A recurrent layer after the product of its inputs with their weights.

    Layers that run side by side, as the two directions of a bidirectional one, have one more, leading dimension D.

    Args:
        projected: [*D, T, B, G·H], what each step adds to the gates: T steps, G gates (lstm 4, gru 3, rnn 1).
        state: before the first step: of an LSTM the hidden [*D, B, P] and the cell [*D, B, H], else the hidden alone.
        weight: [*D, G·H, P], of the hidden state, whose size P is H unless there is a projection.
        bias: [H] or [D, 1, H], what a GRU adds before its reset gate.
        projection: [*D, P, H], from an LSTM's output to its hidden state.
        cell: a key of :data:`STEPS`.

    Returns:
        The hidden state after every step, [*D, T, B, P], then the state after the last.
    """
    step, state = STEPS[cell], list(state)
    hidden: list[torch.Tensor] = []
    for element in projected.unbind(-3):
        state = step(element, state, weight, bias, projection)
        hidden.append(state[0])
    return [torch.stack(hidden, -3), state[0].clone(), *state[1:]]


@recurrence.register_fake
def _(
    projected: torch.Tensor,
    state: Sequence[torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    projection: torch.Tensor | None,
    cell: str,
) -> list[torch.Tensor]:
    hidden = projected.new_empty((*projected.shape[:-1], state[0].shape[-1]))
    return [hidden, *(torch.empty_like(each) for each in state)]


Step = Callable[[torch.Tensor, State, torch.Tensor, torch.Tensor | None, torch.Tensor | None], State]


def _lstm(
    element: torch.Tensor,
    state: State,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    projection: torch.Tensor | None,
) -> State:
    hidden, cell = state
    i, f, g, o = (element + hidden @ weight.mT).chunk(4, -1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    hidden = o.sigmoid() * cell.tanh()
    return [hidden if projection is None else hidden @ projection.mT, cell]


def _gru(
    element: torch.Tensor,
    state: State,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    projection: torch.Tensor | None,
) -> State:
    (hidden,) = state
    (r, z, n), (hr, hz, hn) = element.chunk(3, -1), (hidden @ weight.mT).chunk(3, -1)
    if bias is not None:
        hn = hn + bias
    new = (n + (r + hr).sigmoid() * hn).tanh()
    return [(hidden - new) * (z + hz).sigmoid() + new]


def _rnn(activation: Callable[[torch.Tensor], torch.Tensor]) -> Step:
    def step(
        element: torch.Tensor,
        state: State,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        projection: torch.Tensor | None,
    ) -> State:
        return [activation(element + state[0] @ weight.mT)]

    return step


STEPS: dict[str, Step] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": _rnn(torch.tanh),
    "rnn_relu": _rnn(torch.relu),
}
"""One step of each kind of cell: the state after it."""

RECURRENCE = torch.ops.torch2trt.recurrence.default
