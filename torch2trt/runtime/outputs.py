"""The module's own result structure, put together from the engine's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torch2trt.graph.signature import ConstantLeaf, InputLeaf, Signature, SizeLeaf, TensorLeaf
from torch2trt.sizes import evaluate

Assemble = Callable[[Sequence[torch.Tensor], Sequence[Any]], Any]
"""Engine outputs in order and the call's leaves, followed by the state, to the module's result; what the module writes
into them is written."""


class Results:
    """How results are put together; what can be decided before a call is decided here.

    Args:
        signature: names the engine outputs; :attr:`names` is their order.
    """

    def __init__(self, signature: Signature) -> None:
        self.names = tuple(dict.fromkeys(leaf.name for leaf in signature.tensor_outputs))
        self._leaves = signature.outputs
        self._spec = signature.out_spec
        own = tuple(leaf.name for leaf in self._leaves if isinstance(leaf, TensorLeaf))
        self._plain = own == self.names and len(own) == len(self._leaves)
        self._updates = [(self.names.index(update.name), update.position) for update in signature.updates]

    def at(self, dims: Mapping[str, int]) -> Assemble:
        """The assembly for calls whose named dimensions have these sizes."""
        spec, updates = self._spec, self._updates
        if self._plain and not updates:
            if spec == pytree.tree_structure(0):
                return lambda outputs, leaves: outputs[0]
            if spec == pytree.tree_structure((0,) * len(self.names)):
                return lambda outputs, leaves: tuple(outputs)
            return lambda outputs, leaves: pytree.tree_unflatten(outputs, spec)
        fixed: list[Any] = [None] * len(self._leaves)
        from_engine: list[tuple[int, int]] = []
        from_call: list[tuple[int, int]] = []
        for position, leaf in enumerate(self._leaves):
            match leaf:
                case TensorLeaf(name=name):
                    from_engine.append((position, self.names.index(name)))
                case InputLeaf(index=index):
                    from_call.append((position, index))
                case ConstantLeaf(value=value):
                    fixed[position] = value
                case SizeLeaf(size=size):
                    fixed[position] = evaluate(size, dims)

        def assemble(outputs: Sequence[torch.Tensor], leaves: Sequence[Any]) -> Any:
            values = fixed.copy()
            with torch.no_grad():
                for index, position in updates:
                    leaves[position].copy_(outputs[index])
            for position, index in from_engine:
                values[position] = outputs[index]
            for position, index in from_call:
                values[position] = leaves[index]
            return pytree.tree_unflatten(values, spec)

        return assemble
