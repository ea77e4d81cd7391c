"""Dynamic dimensions: from the caller's ``Dim`` to axes of the example inputs, and to named ranges."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument
from torch.utils import _pytree as pytree

from torch2trt.errors import DynamicShapeError, ExampleInputError
from torch2trt.graph.dynamic_inputs import DynamicInputs
from torch2trt.graph.signature import Signature, channels_last
from torch2trt.sizes import DimRange, Size, depends_on_data, evaluate, linear, symbol, to_shape

Axes = list[dict[int, Any]]
"""For each flattened leaf of the arguments, its dynamic axes with their ``Dim`` (or hint)."""


def positional_parameters(module: nn.Module) -> tuple[str, ...]:
    """Names of forward's parameters that may be passed by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(module.forward).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)


def dynamic_axes(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any) -> Axes:
    """What ``dynamic_shapes`` says of each flattened leaf of the arguments.

    Raises:
        DynamicShapeError: an axis that a tensor has not, or whose size in the example is not within its ``Dim``.
    """
    if dynamic_shapes is None:
        return [{} for _ in pytree.tree_leaves((args, kwargs))]
    # As torch.export counts them: what *args takes is one value, and **kwargs may go by its own name.
    signature = inspect.signature(module.forward)
    if not isinstance(dynamic_shapes, Mapping):
        dynamic_shapes = dict(zip(signature.bind(*args, **kwargs).arguments, dynamic_shapes, strict=False))
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD and isinstance(dynamic_shapes.get(name), Mapping):
            dynamic_shapes = {**dynamic_shapes, **dynamic_shapes[name]}
    values = {**signature.bind_partial(*args).arguments, **kwargs}
    return [axes for name, value in values.items() for axes in _walk(name, value, dynamic_shapes.get(name))]


def named_leaves(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[tuple[str, Any]]:
    """The leaves of a call by their path, such as ``images[0]``, in the order of :func:`dynamic_axes`.

    Args:
        signature: of the module's forward.
    """
    values = {**signature.bind_partial(*args).arguments, **kwargs}
    return [
        (name + pytree.keystr(path), leaf)
        for name, value in values.items()
        for path, leaf in pytree.tree_flatten_with_path(value)[0]
    ]


def dynamic_inputs(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
    profiles: Sequence[Mapping[str, Any]] | None,
) -> DynamicInputs:
    """The dimensions of an example call that have a name and a range, and profiles of these.

    A ``Dim`` without a max, and a hint such as ``Dim.AUTO``, is left out: no engine can be tuned for it.

    Raises:
        DynamicShapeError: as :func:`dynamic_axes` and :func:`resolve_profiles`.
    """
    leaves = named_leaves(inspect.signature(module.forward), args, kwargs)
    axes: dict[str, dict[int, Size]] = {}
    dims: dict[str, DimRange] = {}
    for (path, value), own in zip(leaves, dynamic_axes(module, args, kwargs, dynamic_shapes), strict=True):
        for axis, dim in own.items():
            root, (low, high) = _root(dim), _bounds(dim)
            name = getattr(root, "__name__", None)
            if name is None or high == math.inf:
                continue
            factor, offset = _line(dim)
            axes.setdefault(path, {})[axis] = factor * symbol(name) + offset
            dims[name] = DimRange(max(low, 1), int(_root_size(dim, int(value.shape[axis]))), int(high))
    return DynamicInputs(axes, dims, () if profiles is None else resolve_profiles(profiles, dims))


def resized_leaves(
    dynamic: DynamicInputs, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], sizes: Mapping[str, int]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call with other sizes of the named dimensions; values repeat, or are left out."""
    signature = inspect.signature(module.forward)
    spec = pytree.tree_structure((args, kwargs))
    # The leaves of a call by path are in the order of its leaves.
    found = []
    for path, value in named_leaves(signature, args, kwargs):
        for axis, size in dynamic.axes.get(path, {}).items():
            value = resized(value, axis, evaluate(size, sizes))
        found.append(value)
    return pytree.tree_unflatten(found, spec)  # type: ignore[no-any-return]


def _walk(path: str, value: Any, shape: Any) -> Iterator[dict[int, Any]]:
    if isinstance(value, torch.Tensor):
        if not isinstance(shape, Mapping | list | tuple | None):
            raise _mismatch(path, "a tensor", shape)
        axes = dict(shape.items() if isinstance(shape, Mapping) else enumerate(shape or ()))
        yield {axis: dim for axis, dim in axes.items() if _is_dynamic(path, value, axis, dim)}
    elif isinstance(value, Mapping):
        if not isinstance(shape, Mapping | None):
            raise _mismatch(path, "a mapping", shape)
        for key, item in value.items():
            yield from _walk(f"{path}[{key!r}]", item, (shape or {}).get(key))
    else:
        items = pytree.tree_flatten(value, is_leaf=lambda item: item is not value)[0]
        if len(items) == 1 and items[0] is value:
            yield {}
            return
        if not isinstance(shape, list | tuple | None):
            raise _mismatch(path, f"a {type(value).__name__}", shape)
        parts = list(shape or [None] * len(items))
        if len(parts) != len(items):
            raise DynamicShapeError(
                f"dynamic_shapes has {len(parts)} entries for it, the example {len(items)}", subject=path
            )
        for position, (item, part) in enumerate(zip(items, parts, strict=True)):
            yield from _walk(f"{path}[{position}]", item, part)


def _mismatch(path: str, what: str, shape: Any) -> DynamicShapeError:
    return DynamicShapeError(
        f"the example has {what} there, and dynamic_shapes {shape!r}",
        subject=path,
        hint="nest dynamic_shapes as the arguments are: a dict of dimensions by axis for each tensor",
    )


def _is_dynamic(path: str, value: torch.Tensor, axis: int, dim: Any) -> bool:
    if dim is None or isinstance(dim, int) or dim == Dim.STATIC:
        return False
    if not 0 <= axis < value.dim():
        raise DynamicShapeError(
            f"axis {axis} is declared dynamic, the example has {value.dim()} dimension(s)", subject=path
        )
    size, (low, high) = int(value.shape[axis]), _bounds(dim)
    root = _root_size(dim, size)
    if root != int(root) or not low <= root <= high:
        name = getattr(dim, "__name__", "Dim")
        raise DynamicShapeError(
            f"axis {axis} of the example is {size}, which is not within {name} of {_spell(low, high)}",
            subject=path,
            hint="the example's size is the one to tune for: take one in range",
        )
    return True


def _spell(low: int, high: float) -> str:
    return f"at least {low}" if high == math.inf else f"{low} to {high:.0f}"


# A derived dimension such as 2*h + 1 is a linear function of its root.


def _root(dim: Any) -> Any:
    return getattr(dim, "root", dim)


def _root_size(dim: Any, size: int) -> float:
    """The root's size where a dimension has this one, a whole number where there is such."""
    if _root(dim) is dim:
        return size
    offset = dim.fn(0)
    return float(size - offset) / float(dim.fn(1) - offset)


def _bounds(dim: Any) -> tuple[int, float]:
    """The smallest and the largest size of a dimension's root."""
    root = _root(dim)
    low, high = getattr(root, "min", None), getattr(root, "max", None)
    return int(low or 0), math.inf if high is None or high > 2**31 else int(high)


def _line(dim: Any) -> tuple[int, int]:
    """Factor and offset of a dimension in terms of its root."""
    return (1, 0) if _root(dim) is dim else (int(dim.fn(1) - dim.fn(0)), int(dim.fn(0)))


def _shift(size: Size, dim: Any) -> int:
    """By how much torch.export's symbol is more than the root of a dimension: where that of ``n - 1`` is one, -1."""
    found = linear(size)
    if found is None or getattr(_root(dim), "__name__", None) is None:
        return 0
    (_, factor, offset), (own_factor, own_offset) = found, _line(dim)
    shift, rest = divmod(own_offset - offset, factor)
    return shift if factor == own_factor and not rest else 0


def away_from_one(
    args: tuple[Any, ...], kwargs: dict[str, Any], axes_of: Axes
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs whose dynamic dimensions are not 1, because tracing treats that size specially."""

    def choose(size: int, low: int, high: float) -> int:
        return max(2, low) if size == 1 and high >= 2 else size

    return _resized(args, kwargs, axes_of, choose)


def at_one(args: tuple[Any, ...], kwargs: dict[str, Any], axes_of: Axes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs whose dynamic dimensions are 1 where they may be."""
    return _resized(args, kwargs, axes_of, lambda size, low, high: 1 if low <= 1 else size)


def batch_axes(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any) -> Axes:
    """The axes of each flattened leaf that grow with the batch, each with its ``Dim``.

    The batch is the dynamic dimension that is some tensor's first. Where none is, it is the first dimension of the
    first tensor that has one, and of all whose first dimension is as large.

    Raises:
        DynamicShapeError: as :func:`dynamic_axes`.
        ExampleInputError: no tensor has a dimension.
    """
    axes_of = dynamic_axes(module, args, kwargs, dynamic_shapes)
    first = next((axes[0] for axes in axes_of if 0 in axes), None)
    # Hints such as Dim.AUTO have no name, and do not say which are the same.
    name = getattr(_root(first), "__name__", None)
    if name is not None:
        own = [
            {axis for axis, dim in axes.items() if getattr(_root(dim), "__name__", None) == name} for axes in axes_of
        ]
        return [{axis: axes[axis] for axis in mine} for axes, mine in zip(axes_of, own, strict=True)]
    leaves = pytree.tree_leaves((args, kwargs))
    batched = [leaf.shape[0] if isinstance(leaf, torch.Tensor) and leaf.dim() else None for leaf in leaves]
    size = next((size for size in batched if size is not None), None)
    if size is None:
        raise ExampleInputError("no tensor has a dimension that could be the batch", subject="example")
    return [{0: Dim("batch")} if own == size else {} for own in batched]


def at_batch(
    args: tuple[Any, ...], kwargs: dict[str, Any], axes_of: Axes, size: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments in another batch size, from :func:`batch_axes`; items repeat, or are left out."""
    return _resized(args, kwargs, axes_of, lambda *_: size)


def batch_of(args: tuple[Any, ...], kwargs: dict[str, Any], axes_of: Axes) -> int:
    """The batch size of the arguments."""
    leaves = pytree.tree_leaves((args, kwargs))
    sizes = (_root_size(dim, leaves[i].shape[axis]) for i, axes in enumerate(axes_of) for axis, dim in axes.items())
    return int(next(sizes))


def batch_bounds(axes_of: Axes) -> tuple[int, float]:
    """The smallest and the largest batch that the dimension allows; 1 and infinity where it does not say."""
    low, high = _bounds(next(dim for axes in axes_of for dim in axes.values()))
    return max(low, 1), high


def _resized(
    args: tuple[Any, ...], kwargs: dict[str, Any], axes_of: Axes, choose: Callable[[int, int, float], int]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with other sizes, chosen for the roots from their size and bounds; values repeat."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    for position, axes in enumerate(axes_of):
        for axis, dim in axes.items():
            size = int(leaves[position].shape[axis])
            root = choose(int(_root_size(dim, size)), *_bounds(dim))
            wanted = root if _root(dim) is dim else int(dim.fn(root))
            leaves[position] = resized(leaves[position], axis, wanted)
    return pytree.tree_unflatten(leaves, spec)  # type: ignore[no-any-return]


def resized(value: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """A tensor with another size of one dimension, itself where it has that; values repeat, or are left out.

    Where its channels come last in memory, they still do.
    """
    if value.shape[axis] == size:
        return value
    chosen = value.index_select(axis, torch.arange(size, device=value.device) % max(value.shape[axis], 1))
    if not channels_last(value):
        return chosen
    return chosen.contiguous(memory_format=torch.channels_last if value.dim() == 4 else torch.channels_last_3d)


def dimensions(
    exported: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any], axes_of: Axes
) -> tuple[dict[sympy.Symbol, sympy.Expr], dict[str, DimRange]]:
    """The user's names of the graph's symbols, and each name's range; opt is the size in the examples.

    A symbol that ``torch._check`` fixes has its number in the place of a name.

    Sizes start at 1 unless the ``Dim`` has a larger min.

    Raises:
        DynamicShapeError: a dimension without an upper bound.
    """
    names: dict[sympy.Symbol, sympy.Expr] = {}
    dims: dict[str, DimRange] = {}
    leaves = pytree.tree_leaves((args, kwargs))
    nodes = {str(node.target): node for node in exported.graph.nodes if node.op == "placeholder"}
    users = [spec for spec in exported.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    for spec, value, axes in zip(users, leaves, axes_of, strict=True):
        if not isinstance(spec.arg, TensorArgument):
            continue
        for axis, size in enumerate(to_shape(nodes[spec.arg.name].meta["val"].shape)):
            if isinstance(size, int):
                continue
            for free in size.free_symbols - names.keys():
                bounds, dim = exported.range_constraints[free], axes.get(axis)
                if bounds.upper > 2**31:
                    raise DynamicShapeError(
                        f"dimension {axis} of {spec.arg.name!r} has no upper bound",
                        hint="give the Dim a max: TensorRT tunes for a range",
                    )
                low, shift = max(int(bounds.lower), 1), _shift(size, dim)
                if dim is not None and low == 2 and _bounds(dim)[0] + shift <= 1:
                    low = 1  # torch.export takes 2 for the roots of derived dimensions, whatever their min
                name = getattr(_root(dim), "__name__", None) or free.name
                if depends_on_data(name):
                    raise DynamicShapeError(
                        f"a Dim is called {name!r}, as torch.export calls sizes that depend on data",
                        hint="give the Dim another name",
                    )
                solutions = sympy.solve(size - int(value.shape[axis]), free)
                names[free] = symbol(name) + shift
                dims[name] = DimRange(low - shift, int(solutions[0]) - shift, int(bounds.upper) - shift)
    for item, bounds in exported.range_constraints.items():
        if item not in names and isinstance(item, sympy.Symbol) and bounds.is_singleton():
            names[item] = sympy.Integer(bounds.lower)  # it depends on data, and the module says what it is
    return names, dims


def with_profiles(signature: Signature, profiles: Sequence[Mapping[str, Any]] | None) -> Signature:
    """A signature with the optimization profiles that the caller asks for; as it is where none are.

    Raises:
        DynamicShapeError: as :func:`resolve_profiles`.
    """
    return signature if profiles is None else replace(signature, profiles=resolve_profiles(profiles, signature.dims))


def resolve_profiles(
    profiles: Sequence[Mapping[str, Any]], dims: Mapping[str, DimRange]
) -> tuple[dict[str, DimRange], ...]:
    """What the caller says of each optimization profile, as ranges of the dimensions that it names.

    Raises:
        DynamicShapeError: an unknown dimension, or sizes that are not in order or not within the dimension.
    """
    if isinstance(profiles, Mapping) or not profiles or not all(isinstance(item, Mapping) for item in profiles):
        raise DynamicShapeError(f"takes a list of dicts, got {profiles!r}", subject="profiles", hint=_PROFILE_HINT)
    return tuple(
        {name: _profile_range(f"profiles[{number}]", name, sizes, dims) for name, sizes in profile.items()}
        for number, profile in enumerate(profiles)
    )


_PROFILE_HINT = 'one size, or the smallest, the usual and the largest: [{"batch": 1}, {"batch": (2, 16, 64)}]'


def check_name(subject: str, name: str, dims: Mapping[str, DimRange]) -> None:
    """Refuse the name of a dimension that there is not.

    Raises:
        DynamicShapeError: says which there are.
    """
    if name not in dims:
        near = difflib.get_close_matches(name, dims, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the dynamic dimensions are: {', '.join(dims) or 'none'}"
        raise DynamicShapeError(f"{name!r} is no dynamic dimension of the inputs", subject=subject, hint=hint)


def _profile_range(subject: str, name: str, sizes: Any, dims: Mapping[str, DimRange]) -> DimRange:
    check_name(subject, name, dims)
    given = (sizes,) * 3 if isinstance(sizes, int) else sizes
    if not isinstance(given, list | tuple) or list(map(type, given)) != [int] * 3:
        raise DynamicShapeError(f"{name!r} is {sizes!r}", subject=subject, hint=_PROFILE_HINT)
    span, whole = DimRange(*given), dims[name]
    if not whole.min <= span.min <= span.opt <= span.max <= whole.max:
        raise DynamicShapeError(
            f"{name!r} of {span} is not in order within {whole.min} to {whole.max}",
            subject=subject,
            hint=f"let {name!r} range from the smallest to the largest size of all profiles",
        )
    return span
