"""Capture: an ``nn.Module`` and example inputs become a Program, through ``torch.export``."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    OutputKind,
    SymIntArgument,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from torch2trt.errors import (
    CaptureError,
    DynamicShapeError,
    ExampleInputError,
    RandomOpError,
    TrainingModeError,
    WeightError,
)
from torch2trt.graph.program import Program, provenance
from torch2trt.graph.schema import name_of
from torch2trt.graph.signature import ConstantLeaf, InputLeaf, Leaf, Signature, SizeLeaf, TensorLeaf
from torch2trt.graph.weights import WeightsGraph
from torch2trt.sizes import DimRange, symbol, to_shape

Keep = Callable[[Any], bool]


def capture(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    keep: Keep = lambda target: True,
    name: str | None = None,
) -> Program:
    """Capture a module as a Program of ATen operators.

    Args:
        module: in evaluation mode.
        args, kwargs: example inputs; where a dimension is dynamic, their size is the one to tune for.
        dynamic_shapes: as ``torch.export.export`` takes it.
        keep: says for an operator whether it stays as it is; others are decomposed where torch can.
        name: what to call it; unset: the module's class.

    Raises:
        TrainingModeError, WeightError, ExampleInputError: what was passed cannot be compiled.
        CaptureError: ``torch.export`` failed.
        DynamicShapeError: a dynamic dimension does not take every size in its range.
        RandomOpError: the module draws random numbers.
    """
    kwargs = kwargs or {}
    check_module(module)
    check_inputs(args, kwargs)
    axes_of = dynamic_axes(module, args, kwargs, dynamic_shapes)
    exported = _export(module, *_away_from_one(args, kwargs, axes_of), dynamic_shapes)
    program, differs_at_one = _to_program(
        exported,
        args,
        kwargs,
        axes_of=axes_of,
        keep=keep,
        name=name or type(module).__name__,
        parameters=positional_parameters(module),
    )
    if differs_at_one:
        _compare_at_one(module, program, args, kwargs, axes_of)
    return program


def _compare_at_one(
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


def check_module(module: nn.Module) -> None:
    """Refuse what no engine can hold.

    Raises:
        TrainingModeError: a submodule is in training mode.
        WeightError: a float64, complex or NaN parameter or buffer.
    """
    for path, child in module.named_modules():
        if child.training and (path == "" or _differs_in_training(child)):
            raise TrainingModeError(
                "is in training mode", subject=path or type(module).__name__, hint="call module.eval() first"
            )
    for path, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.dtype == torch.float64 or tensor.is_complex():
            raise WeightError(f"is {tensor.dtype}, which TensorRT has not", subject=path, hint="call module.float()")
        if tensor.is_floating_point() and tensor.device.type != "meta" and bool(torch.isnan(tensor).any()):
            raise WeightError("holds NaN", subject=path, hint="no answer of this model would be a number")


def _differs_in_training(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd)


def check_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse example inputs that cannot become engine inputs.

    Raises:
        ExampleInputError: args is no tuple, no tensor among them, float64 or complex ones, several devices.
    """
    if not isinstance(args, tuple):
        raise ExampleInputError(
            f"takes a tuple of the module's positional arguments, got {type(args).__name__}",
            subject="args",
            hint="for one tensor x, pass (x,)",
        )
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if not tensors:
        raise ExampleInputError("no tensor among the example inputs", subject="args")
    for position, tensor in enumerate(tensors):
        if tensor.dtype == torch.float64 or tensor.is_complex():
            raise ExampleInputError(f"tensor {position} is {tensor.dtype}", subject="args", hint="pass float32")
    if len(devices := {str(tensor.device) for tensor in tensors}) > 1:
        raise ExampleInputError(f"tensors on several devices: {', '.join(sorted(devices))}", subject="args")


def _export(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any) -> ExportedProgram:
    try:
        with _export_mode():
            return torch.export.export(
                module,
                args,
                kwargs,
                dynamic_shapes=dynamic_shapes,
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except Exception as error:
        raise _capture_error(module, error) from error


@contextlib.contextmanager
def _export_mode() -> Iterator[None]:
    """No gradients, no fast paths that are opaque to export, and sizes that are not specialised where they are 1."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.no_grad(),
            torch.fx.experimental._config.patch(backed_size_oblivious=True),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _capture_error(module: nn.Module, error: Exception) -> CaptureError | DynamicShapeError:
    text = str(error).strip()
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    name = type(module).__name__
    if "Constraints violated" in text or "specialized" in text:
        details = " ".join(line.strip() for line in text.splitlines()[1:6])
        return DynamicShapeError(
            f"{first} {details}",
            subject=name,
            hint="narrow the Dim, leave the dimension static, or declare what it is a multiple of (2 * Dim('half'))",
        )
    hint = "see the traceback above for the line"
    if "data-dependent" in text.lower() or "Could not guard" in text:
        hint = (
            "control flow or sizes that depend on the values of tensors cannot be captured: use torch.where or "
            "torch.cond, or compile the parts before and after it"
        )
    return CaptureError(f"torch.export failed: {type(error).__name__}: {first}", subject=name, hint=hint)


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
    parameters = positional_parameters(module)
    if isinstance(dynamic_shapes, Mapping):
        shapes = [dynamic_shapes.get(name) for name in [*parameters[: len(args)], *kwargs]]
    else:
        shapes = list(dynamic_shapes)

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

    pairs = zip([*args, *kwargs.values()], shapes, strict=False)
    return [axes for value, shape in pairs for axes in walk(value, shape)]


def _away_from_one(
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


def _to_program(
    exported: ExportedProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    axes_of: list[dict[int, Any]],
    keep: Keep,
    name: str,
    parameters: tuple[str, ...],
) -> tuple[Program, bool]:
    """A Program from an exported one, functionalised, with only what ``keep`` refuses decomposed.

    Also returns whether the trace assumed that a dynamic dimension is not 1.
    """
    captured = sum(node.op == "call_function" for node in exported.graph.nodes)
    exported = _decompose(exported, keep)
    graph = exported.graph_module
    differs_at_one = _drop_checks(exported)
    _refuse_state(exported)
    _refuse_random(graph)
    dim_names, dims = _dimensions(exported, args, kwargs, axes_of)
    placeholders = {str(node.target): node for node in graph.graph.nodes if node.op == "placeholder"}
    sources: dict[str, torch.Tensor] = {}
    weights: dict[str, fx.Node] = {}
    inputs: list[TensorLeaf | ConstantLeaf] = []
    leaf_of: dict[str, int] = {}
    leaves = pytree.tree_leaves((args, kwargs))
    program = Program(name, graph, None, None, dim_names, captured)  # type: ignore[arg-type]  # both set below
    for spec in exported.graph_signature.input_specs:
        node = placeholders[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            if isinstance(spec.arg, TensorArgument):
                leaf_of[node.name] = len(inputs)
                inputs.append(TensorLeaf(str(node.target), program.spec(node)))
            else:
                inputs.append(ConstantLeaf(leaves[len(inputs)]))
                graph.graph.erase_node(node)
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            assert spec.target is not None
            tensor = exported.state_dict.get(spec.target, exported.constants.get(spec.target))
            assert isinstance(tensor, torch.Tensor)
            sources[spec.target] = tensor.detach()
            weights[spec.target] = node
        else:
            raise CaptureError(f"an input of kind {spec.kind.name} cannot be compiled", subject=str(spec.target))
    program.signature = Signature(
        inputs=tuple(inputs),
        outputs=(),
        in_spec=exported.call_spec.in_spec,
        out_spec=exported.call_spec.out_spec,
        dims=dims,
        parameters=parameters,
    )
    _order_placeholders(program, weights)
    outputs = _outputs(program, exported, leaf_of)
    program.signature = Signature(**{**vars(program.signature), "outputs": outputs})
    program.weights = WeightsGraph.identity(sources, weights)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return program, differs_at_one


def _decompose(exported: ExportedProgram, keep: Keep) -> ExportedProgram:
    with _export_mode():
        exported = exported.run_decompositions({})
        present = {node.target for node in exported.graph.nodes if node.op == "call_function"}
        refused = {target for target in present if isinstance(target, torch._ops.OpOverload) and not keep(target)}
        if refused:
            table = torch.export.default_decompositions()
            wanted = {target: table[target] for target in refused if target in table}
            if wanted:
                exported = exported.run_decompositions(wanted)
    return exported


def _drop_checks(exported: ExportedProgram) -> bool:
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


def _refuse_state(exported: ExportedProgram) -> None:
    for spec in exported.graph_signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            raise CaptureError(
                f"the module changes {spec.target or spec.arg.name!r} when it runs ({spec.kind.name.lower()})",
                hint="return the new value instead",
            )


def _refuse_random(graph: fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        if node.op == "call_function" and torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            if node.target is torch.ops.aten.dropout.default or _is_inert(node):
                continue
            raise RandomOpError(
                "draws random numbers when the module runs",
                subject=name_of(node.target),
                source=provenance(node)[1],
                hint="pass the random tensor in as an input",
            )


def _is_inert(node: fx.Node) -> bool:
    """Whether a seeded operator draws nothing in evaluation: attention without dropout."""
    from torch2trt.graph.schema import bind

    arguments = bind(node)
    return not arguments.get("dropout_p", 1) or arguments.get("train") is False or not node.users


def _dimensions(
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


def _order_placeholders(program: Program, weights: Mapping[str, fx.Node]) -> None:
    """Inputs first, then weights; weights that nothing reads are dropped."""
    graph = program.graph.graph
    for source, node in list(weights.items()):
        if not node.users:
            graph.erase_node(node)
            del weights[source]  # type: ignore[attr-defined]
    anchor = next((node for node in graph.nodes if node.op != "placeholder"), graph.output_node())
    for node in weights.values():
        anchor.prepend(node)


def _outputs(program: Program, exported: ExportedProgram, leaf_of: Mapping[str, int]) -> tuple[Leaf, ...]:
    output = program.output_node
    returned = output.args[0]
    leaves: list[Leaf] = []
    engine: dict[fx.Node, str] = {}
    for spec, node in zip(exported.graph_signature.output_specs, returned, strict=True):  # type: ignore[arg-type]
        match spec.arg:
            case TensorArgument() if isinstance(node, fx.Node) and node.name in leaf_of:
                leaves.append(InputLeaf(leaf_of[node.name]))
            case TensorArgument():
                assert isinstance(node, fx.Node)
                name = engine.setdefault(node, f"output{len(engine)}")
                leaves.append(TensorLeaf(name, program.spec(node)))
            case SymIntArgument():
                leaves.append(SizeLeaf(program.size(node)))  # type: ignore[arg-type]
            case ConstantArgument(value=value):
                leaves.append(ConstantLeaf(value))
            case _:
                raise CaptureError(f"a result of kind {type(spec.arg).__name__} cannot be compiled")
    output.args = (tuple(engine),)
    return tuple(leaves)
