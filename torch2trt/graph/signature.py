"""How a module is called and what it returns, apart from what it computes: enough to run an engine in its place."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree

from torch2trt.errors import ArtifactError, InputStructureError
from torch2trt.sizes import DimRange, Shape, Size, TensorSpec, size_from_json, size_to_json, to_shape

_Item = TypeVar("_Item")

Scalar = None | bool | int | float | str
"""A leaf that is no tensor: its value is part of the compiled module."""


@dataclass(frozen=True)
class TensorLeaf:
    """A tensor among the leaves of the arguments or results, bound to an engine input or output by name."""

    name: str
    spec: TensorSpec
    order: tuple[int, ...] = ()
    """Its axes as they lie in the engine's memory, the outermost first; empty where that is their own order."""

    @property
    def stored(self) -> TensorSpec:
        """The shape as the engine has it."""
        return replace(self.spec, shape=ordered(self.spec.shape, self.order)) if self.order else self.spec

    @functools.cached_property
    def axes(self) -> tuple[int, ...]:
        """The engine's axes in the caller's order; empty where the order is the same."""
        return tuple(self.order.index(axis) for axis in range(len(self.order)))

    def store(self, value: torch.Tensor) -> torch.Tensor:
        """A view of the caller's tensor with its axes as the engine has them."""
        return value.permute(self.order) if self.order else value

    def show(self, value: torch.Tensor) -> torch.Tensor:
        """A view of the engine's tensor with its axes as the caller has them."""
        return value.permute(self.axes) if self.order else value


@dataclass(frozen=True)
class ConstantLeaf:
    """A leaf fixed at compile time: an argument that must come again, or a result that is always the same."""

    value: Scalar


@dataclass(frozen=True)
class InputLeaf:
    """A result that is one of the arguments, handed back as it came."""

    index: int
    """Position among the flattened arguments."""


@dataclass(frozen=True)
class SizeLeaf:
    """An integer result that depends on the sizes of the arguments."""

    size: Size


@dataclass(frozen=True)
class StateLeaf:
    """A buffer that the module changes: an engine input that the compiled module holds."""

    name: str
    buffer: str
    """Its path in the module."""
    spec: TensorSpec


@dataclass(frozen=True)
class Update:
    """What the module writes into one of its arguments or buffers: an engine output that is copied there."""

    name: str
    spec: TensorSpec
    position: int
    """Among the flattened arguments, followed by the state."""


# The factories that a defaultdict in a file may have; the first is what anything else has.
_FACTORIES = ((None, None), *(("builtins", kind.__name__) for kind in (list, dict, set, tuple, int, float, str)))

Leaf = TensorLeaf | ConstantLeaf | InputLeaf | SizeLeaf


@dataclass(frozen=True)
class Signature:
    """The calling convention of a module: flattened ``(args, kwargs)`` in, flattened results out."""

    inputs: tuple[TensorLeaf | ConstantLeaf, ...]
    outputs: tuple[Leaf, ...]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    dims: Mapping[str, DimRange] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
    """Names of forward's positional parameters, so that a call may name what the example gave by position."""
    state: tuple[StateLeaf, ...] = ()
    updates: tuple[Update, ...] = ()
    profiles: tuple[Mapping[str, DimRange], ...] = ()
    """Of an engine with optimization profiles of its own: the dimensions of each that differ from ``dims``."""

    @property
    def ranges(self) -> list[dict[str, DimRange]]:
        """The ranges of all named dimensions in each optimization profile, of which there is at least one."""
        return [{**self.dims, **profile} for profile in self.profiles or ({},)]

    def over(self, names: Collection[str]) -> Signature:
        """The same with the dimensions of these names alone: each profile once, none where no others are left."""
        profiles: list[Mapping[str, DimRange]] = []
        for profile in self.profiles:
            if (own := _of(profile, names)) not in profiles:
                profiles.append(own)
        return replace(self, dims=_of(self.dims, names), profiles=() if profiles == [{}] else tuple(profiles))

    @property
    def tensor_inputs(self) -> list[TensorLeaf]:
        """The inputs that the engine reads, in order: the caller's, and then the state."""
        own = [leaf for leaf in self.inputs if isinstance(leaf, TensorLeaf)]
        return own + [TensorLeaf(leaf.name, leaf.spec) for leaf in self.state]

    @property
    def tensor_outputs(self) -> list[TensorLeaf]:
        """The outputs that the engine writes, in order: the caller's, and then the updates."""
        own = [leaf for leaf in self.outputs if isinstance(leaf, TensorLeaf)]
        return own + [TensorLeaf(update.name, update.spec) for update in self.updates]

    def flatten(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The leaves of a call, in the example's order.

        Raises:
            InputStructureError: another number or nesting of arguments, or another constant.
        """
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if spec != self.in_spec:
            args, kwargs = self._as_example(args, kwargs)
            leaves, spec = pytree.tree_flatten((args, kwargs))
            if spec != self.in_spec:
                raise InputStructureError(
                    f"called with {_describe(spec)}, compiled for {_describe(self.in_spec)}",
                    subject="inputs",
                    hint="call it as in the example that it was compiled with, or compile it again with this call",
                )
        for position, (leaf, value) in enumerate(zip(self.inputs, leaves, strict=True)):
            if isinstance(leaf, ConstantLeaf):
                if type(value) is not type(leaf.value) or value != leaf.value:
                    raise InputStructureError(
                        f"compiled for the value {leaf.value!r}, called with {value!r}",
                        subject=f"input {position}",
                        hint="Python values are fixed at compile time: compile again, or pass a tensor",
                    )
            elif not isinstance(value, torch.Tensor):
                raise InputStructureError(f"takes a tensor, got {type(value).__name__}", subject=f"input {leaf.name!r}")
        return leaves

    def unflatten(self, outputs: Mapping[str, torch.Tensor], leaves: list[Any], dims: Mapping[str, int]) -> Any:
        """The module's result from the engine's outputs by name, the call's leaves and the sizes of this call."""
        from torch2trt.sizes import evaluate

        values: list[Any] = []
        for leaf in self.outputs:
            match leaf:
                case TensorLeaf(name=name):
                    values.append(outputs[name])
                case ConstantLeaf(value=value):
                    values.append(value)
                case InputLeaf(index=index):
                    values.append(leaves[index])
                case SizeLeaf(size=size):
                    values.append(evaluate(size, dims))
        return pytree.tree_unflatten(values, self.out_spec)

    def _as_example(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same call with its arguments by position and by name as the example had them."""
        example_args, example_kwargs = pytree.tree_unflatten(list(range(self.in_spec.num_leaves)), self.in_spec)
        if len(args) > len(self.parameters):
            return args, kwargs
        named = dict(zip(self.parameters, args, strict=False)) | kwargs
        order = [*self.parameters[: len(example_args)], *example_kwargs]
        if len(named) != len(args) + len(kwargs) or set(named) != set(order):
            return args, kwargs
        return (
            tuple(named[name] for name in self.parameters[: len(example_args)]),
            {name: named[name] for name in example_kwargs},
        )

    def flat(self) -> Signature:
        """The same inputs and outputs one beside the other, for who runs no calls and may not know their classes."""
        in_spec, out_spec = (pytree.tree_structure((0,) * len(leaves)) for leaves in (self.inputs, self.outputs))
        return replace(self, in_spec=in_spec, out_spec=out_spec)

    def to_json(self) -> dict[str, Any]:
        """JSON values from which :meth:`from_json` makes an equal signature."""
        return {
            "inputs": [_leaf_to_json(leaf) for leaf in self.inputs],
            "outputs": [_leaf_to_json(leaf) for leaf in self.outputs],
            "in_spec": pytree.treespec_dumps(self.in_spec),
            "out_spec": pytree.treespec_dumps(self.out_spec),
            "dims": _dims_to_json(self.dims),
            "parameters": list(self.parameters),
            "state": [{"name": leaf.name, "buffer": leaf.buffer, **spec_to_json(leaf.spec)} for leaf in self.state],
            "updates": [
                {"name": update.name, "position": update.position, **spec_to_json(update.spec)}
                for update in self.updates
            ],
            "profiles": [_dims_to_json(profile) for profile in self.profiles],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Signature:
        """The signature that :meth:`to_json` wrote.

        Raises:
            ArtifactError: a container type in it is not registered in this process, or names code to import.
        """
        inputs = tuple(_leaf_from_json(item) for item in data["inputs"])
        if not all(isinstance(leaf, TensorLeaf | ConstantLeaf) for leaf in inputs):
            raise ArtifactError("an input is neither a tensor nor a constant")
        try:
            in_spec, out_spec = (_tree_from_json(data[key]) for key in ("in_spec", "out_spec"))
        except NotImplementedError as error:
            named = re.match(r"Deserializing (\S+) in pytree", str(error))
            name = named.group(1) if named else str(error)
            raise ArtifactError(
                f"the inputs or outputs hold a class that is not registered with torch's pytree here: {name}",
                hint=f"import {name.rpartition('.')[0] or 'the module that defines it'} before",
            ) from error
        return cls(
            inputs=inputs,  # type: ignore[arg-type]
            outputs=tuple(_leaf_from_json(item) for item in data["outputs"]),
            in_spec=in_spec,
            out_spec=out_spec,
            dims=_dims_from_json(data["dims"]),
            parameters=tuple(data["parameters"]),
            state=tuple(StateLeaf(item["name"], item["buffer"], spec_from_json(item)) for item in data["state"]),
            updates=tuple(Update(item["name"], spec_from_json(item), item["position"]) for item in data["updates"]),
            profiles=tuple(_dims_from_json(item) for item in data.get("profiles", ())),
        )


def ordered(items: Sequence[_Item], order: Sequence[int]) -> tuple[_Item, ...]:
    """What belongs to the axes of a tensor, in the order of its memory; empty: its own."""
    return tuple(items[axis] for axis in order or range(len(items)))


def channels_last(value: torch.Tensor) -> tuple[int, ...]:
    """The order of a tensor's axes in memory where they lie densely with the channels last, else empty.

    Images ``[n, c, h, w]`` and volumes ``[n, c, d, h, w]`` have channels.
    """
    own = tuple(range(value.dim()))
    order = (0, *own[2:], 1)
    if value.dim() not in (4, 5) or value.layout is not torch.strided:
        return ()
    shape, strides = to_shape(value.shape), to_shape(value.stride())
    return order if _is_dense(shape, strides, order) and not _is_dense(shape, strides, own) else ()


def _is_dense(shape: Shape, strides: Shape, order: Sequence[int]) -> bool:
    expected: Size = 1
    for axis in reversed(order):
        # How far apart the elements of a single one are says nothing.
        if shape[axis] != 1 and strides[axis] != expected:
            return False
        expected = expected * shape[axis]
    return True


def dtype_to_json(dtype: torch.dtype) -> str:
    """``torch.float16`` as ``"float16"``."""
    return str(dtype).removeprefix("torch.")


def dtype_from_json(name: str) -> torch.dtype:
    """The inverse of :func:`dtype_to_json`."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ArtifactError(f"not a dtype: {name!r}")
    return dtype


def spec_to_json(spec: TensorSpec) -> dict[str, Any]:
    """A tensor's spec as JSON values."""
    return {"shape": [size_to_json(size) for size in spec.shape], "dtype": dtype_to_json(spec.dtype)}


def spec_from_json(data: Mapping[str, Any]) -> TensorSpec:
    """The inverse of :func:`spec_to_json`."""
    return TensorSpec(tuple(size_from_json(size) for size in data["shape"]), dtype_from_json(data["dtype"]))


def _of(ranges: Mapping[str, DimRange], names: Collection[str]) -> dict[str, DimRange]:
    return {name: span for name, span in ranges.items() if name in names}


def _dims_to_json(dims: Mapping[str, DimRange]) -> dict[str, list[int]]:
    return {name: [span.min, span.opt, span.max] for name, span in dims.items()}


def _dims_from_json(data: Mapping[str, Any]) -> dict[str, DimRange]:
    return {name: DimRange(*span) for name, span in data.items()}


def _tree_from_json(text: str) -> pytree.TreeSpec:
    """The nesting that ``pytree.treespec_dumps`` wrote.

    pytree itself would import the module of an enum (a dict's key) or of a defaultdict's factory.
    """

    def look(item: dict[str, Any]) -> dict[str, Any]:
        if "__enum__" in item and item["fqn"].partition(":")[0] not in sys.modules:
            raise ArtifactError(f"the inputs or outputs name an enum that is not imported: {item['fqn']}")
        factory = item.get("default_factory_module"), item.get("default_factory_name")
        if factory not in _FACTORIES:
            raise ArtifactError(f"the inputs or outputs name code to call: {factory[0]}.{factory[1]}")
        if isinstance(item.get("context"), str):
            json.loads(item["context"], object_hook=look)
        return item

    json.loads(text, object_hook=look)
    return pytree.treespec_loads(text)


def _leaf_to_json(leaf: Leaf) -> dict[str, Any]:
    match leaf:
        case TensorLeaf(name=name, spec=spec, order=order):
            stored = {"order": list(order)} if order else {}
            return {"kind": "tensor", "name": name, **spec_to_json(spec), **stored}
        case ConstantLeaf(value=value):
            return {"kind": "constant", "value": value}
        case InputLeaf(index=index):
            return {"kind": "input", "index": index}
        case SizeLeaf(size=size):
            return {"kind": "size", "size": size_to_json(size)}


def _leaf_from_json(data: Mapping[str, Any]) -> Leaf:
    match data["kind"]:
        case "tensor":
            spec, order = spec_from_json(data), tuple(data.get("order", ()))
            if order and (len(order) != spec.rank or not all(axis in order for axis in range(spec.rank))):
                raise ArtifactError(f"no order of {spec.rank} axes: {list(order)}")
            return TensorLeaf(data["name"], spec, order)
        case "constant":
            return ConstantLeaf(data["value"])
        case "input":
            return InputLeaf(data["index"])
        case "size":
            return SizeLeaf(size_from_json(data["size"]))
    raise ArtifactError(f"unknown kind of leaf: {data['kind']!r}")


def _describe(spec: pytree.TreeSpec) -> str:
    args, kwargs = pytree.tree_unflatten(["·"] * spec.num_leaves, spec)
    inside = [*(str(arg) for arg in args), *(f"{name}={value}" for name, value in kwargs.items())]
    return f"({', '.join(inside)})".replace("'", "")
