"""A TensorRT network definition read back into nodes: typed layers, numbered tensors, weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided

from torch2trt.errors import InterpreterError
from torch2trt.trt.flavour import Flavour

LOOP = "LOOP"
"""Kind of the node that stands for all outputs of one loop."""

# INT4 values are held unpacked, one in each int8: torch computes with no four-bit type.
_DTYPES = {
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "FP8": torch.float8_e4m3fn,
    "INT4": torch.int8,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Declared:
    """What the network says of one tensor."""

    name: str
    dtype: torch.dtype | None
    """None for a type that torch does not have, such as FP4."""
    dtype_name: str
    shape: tuple[int, ...]
    """Sizes; -1 for one that only a run knows."""

    def __str__(self) -> str:
        return f"{self.dtype_name}{list(self.shape)}"


@dataclass(eq=False)
class Node:
    """One layer, its tensors known by number."""

    kind: str
    """The name of its ``LayerType``."""
    name: str
    api: Any
    """The layer itself, of its own class: its attributes are TensorRT's."""
    inputs: tuple[int | None, ...]
    """Tensor numbers; None for an optional input that is not set."""
    outputs: tuple[int, ...]
    declared: tuple[Declared, ...]
    """One for each output."""
    constants: Mapping[str, torch.Tensor]
    lazy: bool = False
    """Whether the inputs are evaluated while it runs, and not before."""
    loop: Loop | None = None
    """The loop that a LOOP node runs."""
    _weights: dict[tuple[str, torch.device | None], torch.Tensor] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """How errors call it."""
        return f"layer '{self.name}' ({self.kind})"

    def error(self, reason: str) -> InterpreterError:
        """An error that names the layer; the caller raises it."""
        return InterpreterError(reason, subject=self.subject)

    def dtype(self, output: int = 0) -> torch.dtype:
        """The declared dtype of an output.

        Raises:
            InterpreterError: torch has no such type.
        """
        declared = self.declared[output]
        if declared.dtype is None:
            raise self.error(f"torch cannot compute with {declared.dtype_name}")
        return declared.dtype

    def weights(self, role: str, shape: Sequence[int], like: torch.Tensor) -> torch.Tensor | None:
        """The weights that the layer itself holds, without a copy where that is possible.

        Args:
            role: the attribute that holds them: ``kernel``, ``bias``, ``weights``, ….
            shape: their shape; the bindings only know them flat.
            like: a tensor of the device, and where the weights are floating point the dtype, to have them in.

        Returns:
            The weights, or None where they are empty.

        Raises:
            InterpreterError: the bindings cannot read their values, and they are not among the constants.
        """
        value = self._stored(role, like.device)
        if value is None:
            return None
        if value.is_floating_point() and like.is_floating_point():
            value = value.to(like.dtype)
        return value.reshape(tuple(shape))

    def constant(self) -> torch.Tensor:
        """The value of a CONSTANT layer, in its shape.

        Raises:
            InterpreterError: as for :meth:`weights`.
        """
        value = self._stored("weights", None)
        if value is None:
            raise self.error("it has no values")
        if self.declared[0].dtype_name == "FLOAT":
            value = value.to(self.dtype())
        return value.reshape(tuple(self.api.shape))

    def _stored(self, role: str, device: torch.device | None) -> torch.Tensor | None:
        if (role, device) in self._weights:
            return self._weights[role, device]
        key = self.name if role == "weights" else f"{self.name}.{role}"
        value = self.constants.get(key)
        if value is None:
            held = getattr(self.api, role)
            if held.size == 0:
                return None
            if not isinstance(held, np.ndarray):
                raise InterpreterError(
                    f"TensorRT's Python bindings do not show the values of {held.dtype.name} weights",
                    subject=self.subject,
                    hint=f"pass them as constants[{key!r}]",
                )
            # Bindings compiled for NumPy 1, TensorRT 10.6's, give arrays of stride 0 under NumPy 2.
            value = torch.from_numpy(as_strided(held, strides=(held.itemsize,)))
        self._weights[role, device] = value = value.detach().to(device)
        return value


@dataclass(eq=False)
class Loop:
    """The boundary layers of one loop."""

    limits: list[Node] = field(default_factory=list)
    recurrences: list[Node] = field(default_factory=list)
    iterators: list[Node] = field(default_factory=list)
    outputs: list[Node] = field(default_factory=list)

    def __iter__(self) -> Iterator[Node]:
        yield from (*self.limits, *self.recurrences, *self.iterators, *self.outputs)


class Readback:
    """All nodes of a network.

    Args:
        flavour: the package that the network belongs to.
        network: its ``INetworkDefinition``; it must outlive this object, which shares its memory.
        constants: values of weights by layer name, see :class:`~torch2trt.reference.interpreter.Interpreter`.
        dtype_of_float: the dtype that stands for FLOAT.

    Raises:
        InterpreterError: a layer of a kind that this flavour does not describe, or an invalid layer.
    """

    def __init__(
        self,
        flavour: Flavour,
        network: Any,
        constants: Mapping[str, torch.Tensor],
        dtype_of_float: torch.dtype,
    ) -> None:
        self.network = network
        self.trt = flavour.trt
        self.constants = constants
        self.dtypes = {**_DTYPES, "FLOAT": dtype_of_float}
        self._classes = {name.lower(): value for name, value in vars(flavour.trt).items()}
        # The bindings give the same object for the same tensor as long as someone holds it: the keys hold it.
        self._numbers: dict[Any, int] = {}
        self.declared: list[Declared] = []
        self.inputs = [self._number(network.get_input(i), "input") for i in range(network.num_inputs)]
        layers = [self._node(network.get_layer(i)) for i in range(network.num_layers)]
        self.nodes = _with_control(layers, self._number)
        self.outputs = [self._number(network.get_output(i), "output") for i in range(network.num_outputs)]
        self.producers = {number: node for node in self.nodes for number in node.outputs}
        self.numbers = {declared.name: number for number, declared in enumerate(self.declared)}

    def _number(self, tensor: Any, subject: str) -> int:
        if tensor not in self._numbers:
            try:
                shape = tuple(tensor.shape)
            except RuntimeError as error:
                text = f"tensor '{tensor.name}' has no valid shape: {error}"
                raise InterpreterError(text, subject=subject) from error
            name = tensor.dtype.name
            self._numbers[tensor] = len(self.declared)
            self.declared.append(Declared(tensor.name, self.dtypes.get(name), name, shape))
        return self._numbers[tensor]

    def _node(self, layer: Any) -> Node:
        # get_layer gives a bare ILayer; some layer classes hide its `type` behind one of their own.
        kind: str = self.trt.ILayer.type.__get__(layer).name
        name = f"I{kind.replace('_', '')}Layer".replace("CONDITIONAL", "IFCONDITIONAL").lower()
        layer.__class__ = self._classes.get(name, self.trt.ILayer)
        subject = f"layer '{layer.name}' ({kind})"
        inputs = (layer.get_input(i) for i in range(layer.num_inputs))
        numbers = tuple(None if tensor is None else self._number(tensor, subject) for tensor in inputs)
        outputs = tuple(self._number(layer.get_output(i), subject) for i in range(layer.num_outputs))
        declared = tuple(self.declared[number] for number in outputs)
        return Node(kind, layer.name, layer, numbers, outputs, declared, self.constants)


def _with_control(nodes: Sequence[Node], number: Any) -> list[Node]:
    """Give nodes behind a boundary their real inputs, and each loop one node that yields all its outputs."""
    conditions = {node.api.conditional: node.inputs[0] for node in nodes if node.kind == "CONDITION"}
    loops: defaultdict[Any, Loop] = defaultdict(Loop)
    kept = []
    for node in nodes:
        if node.kind == "CONDITIONAL_OUTPUT":
            node.inputs = (conditions[node.api.conditional], *node.inputs)
            node.lazy = True
        elif node.kind == "ATTENTION_OUTPUT":
            node.inputs = tuple(
                None if tensor is None else number(tensor, node.subject)
                for tensor in _attention_inputs(node.api.attention)
            )
        elif node.kind in _LOOP_PARTS:
            getattr(loops[node.api.loop], _LOOP_PARTS[node.kind]).append(node)
            if node.kind not in ("RECURRENCE", "ITERATOR"):
                continue
            node = replace(node, inputs=())  # the running loop gives their values
        kept.append(node)
    return kept + [_loop_node(loop) for loop in loops.values()]


_LOOP_PARTS = {
    "TRIP_LIMIT": "limits",
    "RECURRENCE": "recurrences",
    "ITERATOR": "iterators",
    "LOOP_OUTPUT": "outputs",
}


def _attention_inputs(attention: Any) -> list[Any]:
    """Query, key, value, and the optional mask, scale of the normalization, lengths of the keys."""
    # IAttention.get_input logs an error where it is asked for the mask.
    optional = ("mask", "normalization_quantize_scale", "key_value_lengths")
    return [attention.get_input(i) for i in range(3)] + [getattr(attention, name, None) for name in optional]


def _loop_node(loop: Loop) -> Node:
    """One node that needs what the boundary layers need and yields what the loop yields."""
    first = next(iter(loop))
    inputs = tuple(number for part in loop for number in part.inputs)
    outputs = tuple(part.outputs[0] for part in loop.outputs)
    declared = tuple(part.declared[0] for part in loop.outputs)
    return Node(LOOP, first.api.loop.name, first.api.loop, inputs, outputs, declared, {}, lazy=True, loop=loop)
