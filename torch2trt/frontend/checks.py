"""What is refused before and after capture: what no engine can hold or do."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.utils import _pytree as pytree

from torch2trt.errors import CaptureError, ExampleInputError, RandomOpError, TrainingModeError, WeightError
from torch2trt.graph.program import provenance
from torch2trt.graph.schema import bind, name_of


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


def refuse_state(exported: ExportedProgram) -> None:
    """Refuse modules that change a buffer or an input when they run.

    Raises:
        CaptureError: names what is changed.
    """
    for spec in exported.graph_signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            raise CaptureError(
                f"the module changes {spec.target or spec.arg.name!r} when it runs ({spec.kind.name.lower()})",
                hint="return the new value instead",
            )


def refuse_random(graph: fx.GraphModule) -> None:
    """Refuse operators that draw random numbers.

    Raises:
        RandomOpError: names the operator and the user's line.
    """
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
    arguments = bind(node)
    return not arguments.get("dropout_p", 1) or arguments.get("train") is False or not node.users
