"""Loops: layers that run once for every element along a dimension, or as long as a condition holds."""

from __future__ import annotations

from typing import Any

import torch

from torch2trt.sizes import Size
from torch2trt.trt.arithmetic import Arithmetic
from torch2trt.trt.tensor import Tensor


class Loop:
    """A loop of a network; what is computed from its elements and carried tensors is computed in every round.

    Args:
        net: the network.
        rounds: how often it runs; unset: as long as :meth:`go_on` says.
    """

    def __init__(self, net: Arithmetic, rounds: Size | None = None) -> None:
        self._net = net
        self._loop = net.definition.add_loop()
        self._carried: dict[Tensor, Any] = {}
        self._size = rounds
        if rounds is not None:
            # Of the two integer types, all versions take INT32 for the number of rounds.
            self._rounds = net.reshape(net.cast(net.shape_tensor([rounds]), torch.int32), ())
            self._add("add_trip_limit", self._rounds.itensor, net.trt.TripLimit.COUNT)

    def _add(self, method: str, *args: Any) -> Any:
        return self._net.adopt(getattr(self._loop, method)(*args), method)

    def go_on(self, condition: Tensor) -> None:
        """Begin a round only where a carried BOOL scalar is True."""
        self._add("add_trip_limit", condition.itensor, self._net.trt.TripLimit.WHILE)

    def element(self, tensor: Tensor, axis: int) -> Tensor:
        """What lies at the round's own place along a dimension, which is gone from the shape."""
        axis %= tensor.rank
        layer = self._add("add_iterator", tensor.itensor, axis, False)
        return self._net.output_of(layer, (*tensor.shape[:axis], *tensor.shape[axis + 1 :]))

    def carry(self, first: Tensor) -> Tensor:
        """A tensor that one round hands to the next: ``first`` at the start, then what :meth:`follow` says."""
        layer = self._add("add_recurrence", first.itensor)
        carried = self._net.output_of(layer, first.shape)
        self._carried[carried] = layer
        return carried

    def follow(self, carried: Tensor, following: Tensor) -> Tensor:
        """Say what a carried tensor is in the next round; returns what it is after the last."""
        self._carried[carried].set_input(1, following.itensor)
        layer = self._add("add_loop_output", carried.itensor, self._net.trt.LoopOutput.LAST_VALUE, 0)
        return self._net.output_of(layer, carried.shape)

    def stack(self, tensor: Tensor, axis: int) -> Tensor:
        """What a tensor is in each round, along a new dimension; negative axes count in the result."""
        axis %= tensor.rank + 1
        assert self._size is not None
        layer = self._add("add_loop_output", tensor.itensor, self._net.trt.LoopOutput.CONCATENATE, axis)
        layer.set_input(1, self._rounds.itensor)
        return self._net.output_of(layer, (*tensor.shape[:axis], self._size, *tensor.shape[axis:]))
