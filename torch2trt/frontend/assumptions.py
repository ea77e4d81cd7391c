"""What a trace assumed about dynamic dimensions: kept where it holds for every size, refused where it does not."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from torch2trt.errors import CaptureError, DynamicShapeError
from torch2trt.graph.program import Program, provenance
from torch2trt.sizes import DimRange, Size, TensorSpec, evaluate, linear, spell, symbols, to_shape

_AT_ONE = "the module fails, or computes something else, where a dynamic dimension is 1"
_AT_ONE_HINT = "declare the Dim with min=2, or compile that size on its own"
_WITHIN_HINT = "declare the Dim without it, or compile that size on its own"
# Far beyond any size at which a condition on shapes would first fail.
_SIZES_TRIED = 1024
_INEQUALITIES = (sympy.Ge, sympy.Gt, sympy.Le, sympy.Lt)


def drop_checks(
    exported: ExportedProgram, names: Mapping[sympy.Symbol, sympy.Expr], dims: Mapping[str, DimRange]
) -> bool:
    """Remove assertions that hold for every size in range from 2 on; returns whether one fails for 1.

    Args:
        names, dims: of the graph's symbols, see :func:`torch2trt.frontend.dynamic_shapes.dimensions`.

    Raises:
        DynamicShapeError: one that does not hold.
        CaptureError: one on the values of tensors.
    """
    graph = exported.graph_module.graph
    spans = ranges(exported, names, dims)
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
                named = value.node.expr.subs(names)
                failing = _failing(named, spans)
                if failing is not None and not failing.keys() <= dims.keys():
                    if any(_is_size_of_a_slice(sliced, failing.keys(), names) for sliced in graph.nodes):
                        raise CaptureError(
                            "torch.export cannot tell the size of a slice whose ends are computed from sizes",
                            source=provenance(node)[1],
                            hint="torch 2.12 and newer can",
                        )
                    raise CaptureError(
                        f"the module needs {named}, which depends on the values of tensors",
                        source=provenance(node)[1],
                        hint="compile the parts before and after it",
                    )
                if failing is not None and 1 not in failing.values():
                    sizes = " and ".join(f"{name} = {size}" for name, size in failing.items())
                    raise DynamicShapeError(
                        f"the module needs {named}, which fails for {sizes}",
                        source=provenance(node)[1],
                        hint="narrow the Dim, leave the dimension static, or declare what it is a multiple of",
                    )
                differs_at_one |= failing is not None
            graph.erase_node(node)
    graph.eliminate_dead_code()
    return differs_at_one


def ranges(
    exported: ExportedProgram, names: Mapping[sympy.Symbol, sympy.Expr], dims: Mapping[str, DimRange]
) -> dict[str, DimRange]:
    """The ranges of dynamic dimensions and of numbers that depend on data.

    Args:
        names, dims: as :func:`drop_checks` takes them.
    """
    spans = dict(dims)
    for item, bounds in exported.range_constraints.items():
        if isinstance(item, sympy.Symbol) and item not in names:
            # A number taken from a tensor, or a count such as nonzero's.
            low, high = int(max(bounds.lower, -(2**31))), int(min(bounds.upper, 2**31))
            spans[item.name] = DimRange(low, low, high)
    return spans


def _is_size_of_a_slice(node: fx.Node, numbers: Collection[str], names: Mapping[sympy.Symbol, sympy.Expr]) -> bool:
    """Whether a node is a slice from and to known places whose size is one of these numbers, which are not known."""
    if node.target is not torch.ops.aten.slice.Tensor:
        return False
    places = to_shape([arg.meta["val"] if isinstance(arg, fx.Node) else arg or 0 for arg in node.args[2:4]])
    known = all(place.free_symbols <= names.keys() for place in places if isinstance(place, sympy.Expr))
    sizes = to_shape(node.meta["val"].shape)
    return known and any(str(size) in numbers for size in sizes)


def _failing(condition: sympy.Basic, spans: Mapping[str, DimRange]) -> dict[str, int] | None:
    """Sizes in range for which a condition is false, None where there are none; 1 is among them only where it must."""
    if condition == sympy.true:
        return None
    symbols = {item.name: item for item in condition.free_symbols}
    if isinstance(condition, _INEQUALITIES) and linear(condition.lhs - condition.rhs) is not None:
        # It holds everywhere where it holds at both ends.
        ((name, item),) = symbols.items()
        if all(condition.subs(item, end) == sympy.true for end in (spans[name].min, spans[name].max)):
            return None
    for sizes in sizes_tried(symbols, spans):
        if condition.subs({symbols[name]: size for name, size in sizes.items()}) != sympy.true:
            return sizes
    return None


def sizes_tried(names: Collection[str], spans: Mapping[str, DimRange]) -> list[dict[str, int]]:
    """Sizes of these dimensions within their ranges: the smallest and the ends of each; those with a 1 come last."""
    each = [_sizes(spans[name], _SIZES_TRIED ** (1 / len(names))) for name in sorted(names)]
    combinations = sorted(itertools.product(*each), key=lambda sizes: 1 in sizes)
    return [dict(zip(sorted(names), sizes, strict=True)) for sizes in combinations]


def _sizes(span: DimRange, count: float) -> list[int]:
    """So many sizes of a range: the smallest, and its ends."""
    return sorted({*range(span.min, min(span.max, span.min + int(count)) + 1), span.opt, span.max})


def check_shapes_at_one(program: Program) -> None:
    """Follow the shapes where dynamic dimensions, or sizes that follow from them, are 1: squeeze drops those.

    Raises:
        DynamicShapeError: a result has another shape than the graph says.
    """
    dims = program.signature.dims
    if not dims:
        return
    if 1 in (span.min for span in dims.values()):
        sizes = {name: 1 if span.min == 1 else span.opt for name, span in dims.items()}
        _check_shapes(program, sizes, _AT_ONE, _AT_ONE_HINT)
    for found in _where_sizes_are_one(program):
        reason = f"the module fails, or computes something else, for {spell(found)}, where a size within it is 1"
        _check_shapes(program, {name: span.opt for name, span in dims.items()} | found, reason, _WITHIN_HINT)


def _where_sizes_are_one(program: Program) -> list[dict[str, int]]:
    """Sizes of dynamic dimensions, other than 1, at which a size that follows from them is 1."""
    dims = program.signature.dims
    found = {tuple(sizes.items()): sizes for size in _sizes_within(program) for sizes in _is_one(size, dims)}
    return list(found.values())


def _sizes_within(program: Program) -> set[Size]:
    """The sizes of tensors that follow from dynamic dimensions, and are none themselves."""
    results = (program.result(node) for node in program.calls if not program.is_size(node))
    specs = (leaf for leaf in pytree.tree_leaves([*results]) if isinstance(leaf, TensorSpec))
    sizes = {size for spec in specs for size in spec.shape if not isinstance(size, int | sympy.Symbol)}
    return {size for size in sizes if symbols([size]) <= program.signature.dims.keys()}


def _is_one(size: Size, dims: Mapping[str, DimRange]) -> Iterator[dict[str, int]]:
    """The smallest sizes in range at which one that follows from them is 1; it grows with them, or none are found."""
    sizes = {name: dims[name].min for name in sorted(symbols([size]))}
    if len(sizes) == 1:
        ((name, least),) = sizes.items()
        while evaluate(size, sizes) < 1 and sizes[name] < min(dims[name].max, least + _SIZES_TRIED):
            sizes[name] += 1
    if evaluate(size, sizes) == 1 and 1 not in sizes.values():
        yield sizes


def _check_shapes(program: Program, sizes: Mapping[str, int], reason: str, hint: str) -> None:
    values: dict[fx.Node, Any] = {}
    with FakeTensorMode(), torch.no_grad():
        for node in program.nodes:
            if node.op == "placeholder":
                spec = program.spec(node)
                values[node] = torch.empty(spec.at(sizes), dtype=spec.dtype, device=node.meta["val"].device)
            elif node.op == "call_function" and all(source in values for source in node.all_input_nodes):
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                try:
                    values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
                    same = _same_shapes(values[node], _expected(program, node), sizes)
                except (DataDependentOutputException, DynamicOutputShapeException):
                    continue
                except (RuntimeError, ValueError):
                    same = False
                if not same:
                    raise DynamicShapeError(reason, subject=program.name, source=provenance(node)[1], hint=hint)


def _expected(program: Program, node: fx.Node) -> Any:
    if program.is_size(node):
        return None
    expected = program.result(node)
    if isinstance(expected, list):
        # Results that nobody reads depend on the kernel: a batch norm's statistics are empty in some.
        read = {user.args[1] for user in node.users if user.target is operator.getitem}
        return [each if place in read else None for place, each in enumerate(expected)]
    return expected


def _same_shapes(found: Any, expected: Any, sizes: Mapping[str, int]) -> bool:
    if isinstance(found, list | tuple):
        return all(_same_shapes(one, other, sizes) for one, other in zip(found, expected, strict=True))
    if isinstance(found, torch.Tensor) and isinstance(expected, TensorSpec):
        return tuple(found.shape) == expected.at(sizes)
    return True


def compare_at_one(module: nn.Module, program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run module and Program with inputs whose dynamic dimensions are 1: the trace assumed that they are not.

    Raises:
        DynamicShapeError: they differ.
    """
    with torch.no_grad():
        try:
            # It may write into its arguments.
            own_args, own_kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
            wanted = pytree.tree_leaves(module(*own_args, **own_kwargs))
            found = pytree.tree_leaves(program(*args, **kwargs))
            same = all(
                _close(one, other) if isinstance(one, torch.Tensor) else one == other
                for one, other in zip(found, wanted, strict=True)
            )
        except (RuntimeError, ValueError, IndexError):
            same = False
    if not same:
        raise DynamicShapeError(_AT_ONE, subject=program.name, hint=_AT_ONE_HINT)


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True)
