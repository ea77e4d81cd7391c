"""What is refused before and after capture: what no engine can hold or do."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from torch2trt.errors import CaptureError, ExampleInputError, RandomOpError, TrainingModeError, WeightError
from torch2trt.graph.program import provenance
from torch2trt.graph.schema import bind, name_of

_SUMMED = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.complex64})


def check_module(module: nn.Module) -> None:
    """Refuse what no engine can hold.

    Raises:
        TrainingModeError: a submodule is in training mode.
        WeightError: a float64, complex128 or NaN parameter or buffer, or one without values.
    """
    for path, child in module.named_modules():
        if child.training and (path == "" or _differs_in_training(child)):
            raise TrainingModeError(
                "is in training mode", subject=path or type(module).__name__, hint="call module.eval() first"
            )
    for path, tensor in _held(module):
        if tensor.dtype in (torch.float64, torch.complex128):
            raise WeightError(f"is {tensor.dtype}, which TensorRT has not", subject=path, hint="call module.float()")
        if is_lazy(tensor):
            raise WeightError("is not initialised", subject=path, hint="call the module once first")
        if tensor.device.type == "meta":
            raise WeightError("is on the meta device, without values", subject=path, hint="load the weights first")
        if (tensor.is_floating_point() or tensor.is_complex()) and _holds_nan(tensor):
            raise WeightError("holds NaN", subject=path, hint="no answer of this model would be a number")


def _holds_nan(tensor: torch.Tensor) -> bool:
    # The sum is NaN where an element is, or where infinities of both signs meet, and takes a tenth of the time.
    if tensor.dtype in _SUMMED and not bool(torch.isnan(tensor.detach().sum())):
        return False
    return bool(torch.isnan(tensor).any())


def _held(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _differs_in_training(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd)


def check_inputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse example inputs that cannot become engine inputs.

    Raises:
        ExampleInputError: args is no tuple, the module does not take them, no tensor among them, float64 or complex
            ones, or not all on the module's device.
    """
    if not isinstance(args, tuple):
        raise ExampleInputError(
            f"takes a tuple of the module's positional arguments, got {type(args).__name__}",
            subject="args",
            hint="for one tensor x, pass (x,)",
        )
    signature = inspect.signature(module.forward)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        name = f"{type(module).__name__}.forward"
        raise ExampleInputError(f"{name}: {error}", subject="args", hint=f"it takes {signature}") from None
    tensors = {
        f"{kind}{pytree.keystr(path)}": leaf
        for kind, tree in (("args", args), ("kwargs", kwargs))
        for path, leaf in pytree.tree_flatten_with_path(tree)[0]
        if isinstance(leaf, torch.Tensor)
    }
    if not tensors:
        raise ExampleInputError(
            "no tensor among the example inputs", subject="args", hint="an engine takes at least one tensor"
        )
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float64:
            raise ExampleInputError(f"is {tensor.dtype}, which TensorRT has not", subject=name, hint="pass float32")
        if tensor.is_complex():
            raise ExampleInputError(
                f"is {tensor.dtype}, which TensorRT has not",
                subject=name,
                hint="pass torch.view_as_real(x), and let the module call torch.view_as_complex",
            )
    places = {tensor.device: name for name, tensor in tensors.items()}
    places |= {tensor.device: f"the module's {name}" for name, tensor in _held(module)}
    if len(places) > 1:
        spelled = ", ".join(f"{name} on {device}" for device, name in places.items())
        raise ExampleInputError(
            f"the module and its inputs are on several devices: {spelled}",
            subject="args",
            hint="move all of them to the GPU that is to run the engine, with .to(device)",
        )


_RESULTS = (OutputKind.USER_OUTPUT, OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION)


def refuse_effects(exported: ExportedProgram) -> None:
    """Refuse modules that do more than return results and write into buffers and arguments.

    Raises:
        CaptureError: names what is done.
    """
    for spec in exported.graph_signature.output_specs:
        if spec.kind is OutputKind.TOKEN:
            raise CaptureError(
                "an operator with an effect beside its result, such as a check of it, cannot be compiled"
            )
        if spec.kind not in _RESULTS:
            raise CaptureError(
                f"the module changes {spec.target or spec.arg.name!r} when it runs ({spec.kind.name.lower()})",
                hint="return the new value instead",
            )


def refuse_subgraphs(graph: fx.GraphModule) -> None:
    """Refuse operators that hold graphs of their own, such as ``torch.cond``.

    Raises:
        CaptureError: names the operator and the user's line.
    """
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            user = next(iter(node.users))
            raise CaptureError(
                "holds graphs of its own, which cannot be compiled",
                subject=name_of(user.target),
                source=provenance(user)[1],
                hint="use torch.where, or compile the parts before and after it",
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
    in_training = [arguments[name] for name in ("train", "training") if name in arguments]
    return not arguments.get("dropout_p", 1) or in_training == [False] or not node.users
