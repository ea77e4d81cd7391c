"""Dynamic dimensions: from the caller's ``Dim`` to named ranges, and what the trace assumed about them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument
from torch.utils import _pytree as pytree

from torch2trt.errors import DynamicShapeError
from torch2trt.graph.program import Program, provenance
from torch2trt.sizes import DimRange, symbol, to_shape


def positional_parameters(module: nn.Module) -> tuple[str, ...]:
    """Names of forward's parameters that may be passed by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(module.forward).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)


def dynamic_axes(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> list[dict[int, Any]]:
    """For each flattened leaf of the arguments, its dynamic axes with their ``Dim`` (or hint)."""
    leaves = pytree.tree_leaves((args, kwargs))
    if dynamic_shapes is None:
        return [{} for _ in leaves]
    # As torch.export counts them: what a parameter *args takes is one value.
    values = {**inspect.signature(module.forward).bind_partial(*args).arguments, **kwargs}
    if not isinstance(dynamic_shapes, Mapping):
        dynamic_shapes = dict(zip(values, dynamic_shapes, strict=False))

    def walk(value: Any, shape: Any) -> Iterator[dict[int, Any]]:
        if isinstance(value, torch.Tensor):
            axes = shape.items() if isinstance(shape, Mapping) else enumerate(shape or ())
            yield {axis: dim for axis, dim in axes if dim is not None and dim is not Dim.STATIC}
        elif isinstance(value, Mapping):
            for key, item in value.items():
                yield from walk(item, (shape or {}).get(key))
        elif isinstance(value, list | tuple):
            for item, part in zip(value, shape or [None] * len(value), strict=True):
                yield from walk(item, part)
        else:
            yield from ({} for _ in pytree.tree_leaves(value))

    return [axes for name, value in values.items() for axes in walk(value, dynamic_shapes.get(name))]


def away_from_one(
    args: tuple[Any, ...], kwargs: dict[str, Any], axes_of: list[dict[int, Any]]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs whose dynamic dimensions are not 1, because tracing treats that size specially."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    for position, axes in enumerate(axes_of):
        for axis, dim in axes.items():
            largest = getattr(dim, "max", None)
            if leaves[position].shape[axis] == 1 and (largest is None or largest >= 2):
                size = max(2, getattr(dim, "min", 0) or 0)
                leaves[position] = leaves[position].repeat_interleave(size, dim=axis)
    return pytree.tree_unflatten(leaves, spec)  # type: ignore[no-any-return]


def dimensions(
    exported: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any], axes_of: list[dict[int, Any]]
) -> tuple[dict[sympy.Symbol, sympy.Symbol], dict[str, DimRange]]:
    """The user's names of the graph's symbols, and each name's range; opt is the size in the examples."""
    names: dict[sympy.Symbol, sympy.Symbol] = {}
    dims: dict[str, DimRange] = {}
    leaves = pytree.tree_leaves((args, kwargs))
    nodes = {str(node.target): node for node in exported.graph.nodes if node.op == "placeholder"}
    position = 0
    for spec in exported.graph_signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT:
            continue
        value, axes = leaves[position], axes_of[position]
        position += 1
        if not isinstance(spec.arg, TensorArgument):
            continue
        for axis, size in enumerate(to_shape(nodes[spec.arg.name].meta["val"].shape)):
            if isinstance(size, int) or not isinstance(size, sympy.Symbol) or size in names:
                continue
            bounds = exported.range_constraints[size]
            opt = int(value.shape[axis])
            if not (bounds.upper.is_number and bounds.upper.is_finite) or int(bounds.upper) > 2**31:
                raise DynamicShapeError(
                    f"dimension {axis} of {spec.arg.name!r} has no upper bound",
                    hint="give the Dim a max: TensorRT tunes for a range",
                )
            name = getattr(axes.get(axis), "__name__", None) or size.name
            names[size] = symbol(name)
            dims[name] = DimRange(int(bounds.lower), opt, int(bounds.upper))
    return names, dims


def drop_checks(exported: ExportedProgram) -> bool:
    """Remove assertions that hold for every size in range from 2 on; returns whether one fails for 1.

    Raises:
        DynamicShapeError: one that does not.
    """
    graph = exported.graph_module.graph
    ranges = exported.range_constraints
    differs_at_one = False
    for node in list(graph.nodes):
        if node.target in (
            torch.ops.aten._assert_tensor_metadata.default,
            torch.ops.aten.sym_constrain_range.default,
            torch.ops.aten.sym_constrain_range_for_size.default,
        ):
            graph.erase_node(node)
        elif node.target is torch.ops.aten._assert_scalar.default:
            condition = node.args[0]
            value = condition.meta["val"] if isinstance(condition, fx.Node) else condition
            if isinstance(value, torch.SymBool):
                failing = _smallest_failing(value.node.expr, ranges)
                if failing is not None and failing != "1":
                    raise DynamicShapeError(
                        f"the module needs {value.node.expr}, which fails for {failing}",
                        source=provenance(node)[1],
                        hint="narrow the Dim, leave the dimension static, or declare what it is a multiple of",
                    )
                differs_at_one |= failing == "1"
            graph.erase_node(node)
    graph.eliminate_dead_code()
    return differs_at_one


def _smallest_failing(condition: sympy.Basic, ranges: Mapping[sympy.Symbol, Any]) -> str | None:
    """A size in range at which a condition is false, 1 only where there is no other; None where it always holds."""
    if condition == sympy.true:
        return None
    symbols = list(condition.free_symbols)
    if len(symbols) != 1 or symbols[0] not in ranges:
        return "some sizes"
    low, high = int(ranges[symbols[0]].lower), ranges[symbols[0]].upper
    # Far beyond any size at which a condition on shapes would first fail.
    high = min(int(high), low + 4096) if high.is_number and high.is_finite else low + 4096
    sizes = [*range(max(low, 2), high + 1), *range(low, min(2, high + 1))]
    return next((str(size) for size in sizes if condition.subs({symbols[0]: size}) != sympy.true), None)


def compare_at_one(
    module: nn.Module,
    program: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    axes_of: list[dict[int, Any]],
) -> None:
    """Run module and Program where the dynamic dimensions are 1: the trace assumed that they are not.

    Raises:
        DynamicShapeError: they differ.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    for position, axes in enumerate(axes_of):
        for axis, dim in axes.items():
            if (getattr(dim, "min", None) or 1) == 1:
                leaves[position] = leaves[position].narrow(axis, 0, 1)
    small_args, small_kwargs = pytree.tree_unflatten(leaves, spec)
    with torch.no_grad():
        wanted = pytree.tree_leaves(module(*small_args, **small_kwargs))
        try:
            found = pytree.tree_leaves(program(*small_args, **small_kwargs))
            same = all(
                _close(one, other) if isinstance(one, torch.Tensor) else one == other
                for one, other in zip(found, wanted, strict=True)
            )
        except (RuntimeError, ValueError):
            same = False
    if not same:
        raise DynamicShapeError(
            "the module computes something else where a dynamic dimension is 1",
            subject=program.name,
            hint="declare the Dim with min=2, or compile that size on its own",
        )


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True)
