"""Capture: an ``nn.Module`` and example inputs become a Program, through ``torch.export``."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import _meta_registrations, fx, nn
from torch.export import ExportedProgram, ShapesCollection
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    OutputKind,
    SymBoolArgument,
    SymFloatArgument,
    SymIntArgument,
    TensorArgument,
)
from torch.fx.experimental import _config as symbolic_config
from torch.utils import _pytree as pytree

from torch2trt.errors import CaptureError, DataDependentError, DynamicShapeError
from torch2trt.frontend.assumptions import check_shapes_at_one, compare_at_one, drop_checks
from torch2trt.frontend.checks import check_inputs, check_module, refuse_effects, refuse_random, refuse_subgraphs
from torch2trt.frontend.copies import refuse_writes_that_differ
from torch2trt.frontend.decompositions import Keep, decompose, replaced
from torch2trt.frontend.dynamic_functions import dynamic_functions
from torch2trt.frontend.dynamic_shapes import (
    Axes,
    at_one,
    away_from_one,
    dimensions,
    dynamic_axes,
    positional_parameters,
)
from torch2trt.frontend.layouts import layouts_of_cudnn
from torch2trt.frontend.memory import refuse_writes_in_part
from torch2trt.frontend.recurrent import involves_packed_sequences, whole_recurrences
from torch2trt.graph.copying import copy_of
from torch2trt.graph.devices import unify_devices
from torch2trt.graph.kernels import shapes_of_quantiles
from torch2trt.graph.module import graph_module, without_code
from torch2trt.graph.program import Program, is_within_torch
from torch2trt.graph.signature import (
    ConstantLeaf,
    InputLeaf,
    Leaf,
    Signature,
    SizeLeaf,
    StateLeaf,
    TensorLeaf,
    Update,
    channels_last,
)
from torch2trt.graph.weights import WeightsGraph
from torch2trt.sizes import Size

# In torch's errors; the last is of a size taken from a tensor, when the graph is traced once more.
_SIGNS_OF_DATA = ("data-dependent", "could not guard", "unbacked symbol", "should have been constant")
_PACKAGE = str(Path(__file__).parents[1])
_STATE = "state:"  # before a buffer's path, which could be the name of an argument


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
    check_inputs(module, args, kwargs)
    if isinstance(dynamic_shapes, ShapesCollection):
        dynamic_shapes = dynamic_shapes.dynamic_shapes(module, args, kwargs)
    axes_of = dynamic_axes(module, args, kwargs, dynamic_shapes)
    # Tracing takes two arguments for one where they are the same tensor.
    args, kwargs = pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs))
    exported = _export(module, *away_from_one(args, kwargs, axes_of), dynamic_shapes)
    program, differs_at_one = _to_program(
        exported,
        args,
        kwargs,
        axes_of=axes_of,
        keep=keep,
        name=name or type(module).__name__,
        parameters=positional_parameters(module),
    )
    check_shapes_at_one(program)
    if differs_at_one:
        # It runs the module, which may change it.
        module = copy_of(module) if program.signature.updates else module
        compare_at_one(module, program, *at_one(args, kwargs, axes_of))
    return program


def _export(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any) -> ExportedProgram:
    # Where it chooses the order of products, it looks at the sizes, and so fixes them.
    ordering = torch.backends.opt_einsum.flags(enabled=False) if dynamic_shapes else contextlib.nullcontext()
    try:
        with _export_mode(), ordering:
            return torch.export.export(
                module,
                args,
                kwargs,
                dynamic_shapes=dynamic_shapes,
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except Exception as error:
        raise _capture_error(type(module).__name__, error) from error


@contextlib.contextmanager
def _export_mode() -> Iterator[None]:
    """No gradients, no fast paths that are opaque to export, and sizes that are specialised by nothing."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.no_grad(),
            _divisions_without_remainders(),
            dynamic_functions(),
            whole_recurrences(),
            shapes_of_quantiles(),
            layouts_of_cudnn(),
            without_code(),
            symbolic_config.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _divisions_without_remainders() -> contextlib.AbstractContextManager[None]:
    """Up to torch 2.11 the sizes of pooling depend on whether a division has a remainder, and so does the trace."""
    return replaced(_meta_registrations, "div_rtn", operator.floordiv)


def _capture_error(name: str, error: Exception) -> CaptureError | DynamicShapeError:
    text = str(error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    source = _users_line(error)
    if involves_packed_sequences(error):
        return CaptureError(
            "packs sequences, whose layout depends on the values of the lengths",
            subject=name,
            source=source,
            hint="give the recurrent layer the padded sequences, and mask what it yields behind each one's end",
        )
    depends_on_data = any(sign in text.lower() for sign in _SIGNS_OF_DATA)
    if not depends_on_data and ("Constraints violated" in text or "specialized" in text):
        # The first line says that something is wrong, those that begin with a dash what it is.
        reasons = [line.removeprefix("- ") for line in lines if line.startswith("- ")] or lines[:1]
        return DynamicShapeError(
            " ".join(reasons),
            subject=name,
            source=source,
            hint="narrow the Dim, leave the dimension static, or declare what it is a multiple of (2 * Dim('half'))",
        )
    reason = f"torch.export failed: {type(error).__name__}: {lines[0]}"
    if depends_on_data:
        hint = (
            "control flow or sizes that depend on the values of tensors cannot be captured: use torch.where, "
            "or compile the parts before and after it"
        )
        return DataDependentError(reason, subject=name, source=source, hint=hint)
    return CaptureError(reason, subject=name, source=source)


def _users_line(error: Exception) -> str:
    """The last line outside torch and this package that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    users = [each for each in frames if not is_within_torch(each.filename) and not each.filename.startswith(_PACKAGE)]
    return f"{users[-1].filename}:{users[-1].lineno} in {users[-1].name}" if users else ""


def _to_program(
    exported: ExportedProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    axes_of: Axes,
    keep: Keep,
    name: str,
    parameters: tuple[str, ...],
) -> tuple[Program, bool]:
    """A Program from an exported one, functionalised, with only what ``keep`` refuses decomposed.

    Also returns whether the trace assumed that a dynamic dimension is not 1.
    """
    captured = sum(node.op == "call_function" for node in exported.graph.nodes)
    refuse_writes_in_part(exported.graph)
    refuse_writes_that_differ(exported, args, kwargs, axes_of)
    try:
        with _export_mode():
            exported = decompose(exported, keep)
    except Exception as error:
        raise _capture_error(name, error) from error
    graph = exported.graph_module
    leaves = pytree.tree_leaves((args, kwargs))
    device = next(leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor))
    unify_devices(graph.graph, device)
    dim_names, dims = dimensions(exported, args, kwargs, axes_of)
    differs_at_one = drop_checks(exported, dim_names, dims)
    refuse_effects(exported)
    refuse_subgraphs(graph)
    refuse_random(graph)
    placeholders = {str(node.target): node for node in graph.graph.nodes if node.op == "placeholder"}
    sources: dict[str, torch.Tensor] = {}
    weights: dict[str, fx.Node] = {}
    inputs: list[TensorLeaf | ConstantLeaf] = []
    leaf_of: dict[str, int] = {}
    program = Program(name, graph_module(graph.graph), None, None, dim_names, captured)  # type: ignore[arg-type]  # both set below
    changed = set(exported.graph_signature.buffers_to_mutate.values())
    state: dict[str, fx.Node] = {}
    for spec in exported.graph_signature.input_specs:
        node = placeholders[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            if isinstance(spec.arg, TensorArgument):
                leaf_of[node.name] = len(inputs)
                order = channels_last(leaves[len(inputs)])
                inputs.append(TensorLeaf(str(node.target), program.spec(node), order))
            elif isinstance(spec.arg, ConstantArgument):
                inputs.append(ConstantLeaf(leaves[len(inputs)]))
                graph.graph.erase_node(node)
            else:
                raise DynamicShapeError(
                    "is a Python number, which is fixed at compile time", subject=spec.arg.name, hint="pass a tensor"
                )
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            assert spec.target is not None
            tensor = exported.state_dict.get(spec.target, exported.constants.get(spec.target))
            assert isinstance(tensor, torch.Tensor)
            tensor = tensor.to(device)
            if spec.target in changed:
                program.state[spec.target] = tensor.detach().clone()
                state[spec.target] = node
                continue
            # The bit of a lazy conjugate is the module's own; from here on weights are what they hold.
            sources[spec.target] = tensor.detach().resolve_conj()
            node.meta["val"] = node.meta["val"].resolve_conj()
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
        state=tuple(StateLeaf(str(node.target), path, program.spec(node)) for path, node in state.items()),
    )
    _order_placeholders(program, state, weights)
    leaf_of |= {f"{_STATE}{path}": len(inputs) + number for number, path in enumerate(state)}
    outputs, updates = _outputs(program, exported, leaf_of)
    program.signature = dataclasses.replace(program.signature, outputs=outputs, updates=updates)
    program.weights = WeightsGraph.identity(sources, weights)
    graph.graph.eliminate_dead_code()
    return program, differs_at_one


def _order_placeholders(program: Program, state: dict[str, fx.Node], weights: dict[str, fx.Node]) -> None:
    """Inputs first, then the state, then weights; weights that nothing reads are dropped."""
    graph = program.graph.graph
    for source, node in list(weights.items()):
        if not node.users:
            graph.erase_node(node)
            del weights[source]
    anchor = next((node for node in graph.nodes if node.op != "placeholder"), graph.output_node())
    for node in (*state.values(), *weights.values()):
        anchor.prepend(node)


def _outputs(
    program: Program, exported: ExportedProgram, leaf_of: Mapping[str, int]
) -> tuple[tuple[Leaf, ...], tuple[Update, ...]]:
    """What the module returns, and what it writes where; the graph then returns each of the tensors once.

    Args:
        leaf_of: positions of arguments and state by the names of their placeholders, those of the state by path.
    """
    output = program.output_node
    returned: Sequence[Any] = output.args[0]  # type: ignore[assignment]
    leaves: list[Leaf] = []
    updates: list[tuple[fx.Node, int]] = []
    engine: dict[fx.Node, str] = {}
    # Arguments are returned as they are, beside what is computed: an engine that computes nothing copies them.
    passed = leaf_of if any(_is_computed(node, leaf_of) for node in returned) else {}
    for spec, node in zip(exported.graph_signature.output_specs, returned, strict=True):
        if spec.kind is not OutputKind.USER_OUTPUT:
            # They come first in the graph, and last in the engine.
            assert isinstance(node, fx.Node)
            own = f"{_STATE}{spec.target}" if spec.kind is OutputKind.BUFFER_MUTATION else str(spec.target)
            updates.append((node, leaf_of[own]))
            continue
        match spec.arg:
            case TensorArgument() if isinstance(node, fx.Node) and node.name in passed:
                leaves.append(InputLeaf(leaf_of[node.name]))
            case TensorArgument():
                assert isinstance(node, fx.Node)
                name = engine.setdefault(node, f"output{len(engine)}")
                leaves.append(TensorLeaf(name, program.spec(node), channels_last(node.meta["val"])))
            case SymIntArgument() if _is_made_of_sizes(size := program.size(node), program.signature):
                leaves.append(SizeLeaf(size))
            case ConstantArgument(value=value):
                leaves.append(ConstantLeaf(value))
            case SymIntArgument() | SymFloatArgument() | SymBoolArgument():
                raise CaptureError(
                    "a result is a number taken from a tensor, or no integer made of dynamic sizes",
                    subject=program.name,
                    hint="return it as a tensor",
                )
            case _:
                raise CaptureError(f"a result of kind {type(spec.arg).__name__} cannot be compiled")
    written = []
    for node, position in updates:
        name = engine.setdefault(node, f"output{len(engine)}")
        written.append(Update(name, program.spec(node), position))
    output.args = (tuple(engine),)
    # What is written somewhere is copied there.
    plain = {update.name for update in written}
    return (
        tuple(
            dataclasses.replace(leaf, order=()) if isinstance(leaf, TensorLeaf) and leaf.name in plain else leaf
            for leaf in leaves
        ),
        tuple(written),
    )


def _is_computed(returned: Any, leaf_of: Mapping[str, int]) -> bool:
    is_tensor = isinstance(returned, fx.Node) and isinstance(returned.meta.get("val"), torch.Tensor)
    return is_tensor and returned.name not in leaf_of


def _is_made_of_sizes(size: Size, signature: Signature) -> bool:
    return isinstance(size, int) or {symbol.name for symbol in size.free_symbols} <= signature.dims.keys()
