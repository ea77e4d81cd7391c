"""One operator or module checked on every stage: float64 eager, reference interpreter, a real build, the engine."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

import torch2trt
from torch2trt import api
from torch2trt.converters.lower import lower, unsupported_nodes
from torch2trt.graph.exact import widened
from torch2trt.graph.program import Program
from torch2trt.graph.schema import name_of
from torch2trt.partition import engines
from torch2trt.reference.interpreter import Interpreter
from torch2trt.runtime.module import EngineModule
from torch2trt.settings import Settings
from torch2trt.trt import flavour as flavours
from torch2trt.trt.network import Network

# Largest error relative to the scale of the output, by dtype of the output.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class OpCase:
    """One row: an operator with arguments. Tensors among the arguments become engine inputs.

    Attributes:
        dynamic: (min, max), or a ``Dim`` where several are equal, by argument position and axis.
        weights: positions of tensor arguments that are the module's parameters instead of inputs.
        unsupported: part of the reason with which it must be refused.
        raises: number of the error that compiling it must raise.
        tensorrt: part of the reason with which enterprise TensorRT must refuse it.
        rtx: why TensorRT-RTX cannot build it, where it cannot ("no runner").
        tolerance: times the dtype's own, for operators that amplify rounding.
        needs: what torch has to be able to do (``tests/torch_can.py``), or the row is left out.
    """

    name: str
    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic: Mapping[int, Mapping[int, tuple[int, int] | Dim]] = field(default_factory=dict)
    weights: Sequence[int] = ()
    unsupported: str = ""
    raises: str = ""
    tensorrt: str = ""
    rtx: str = ""
    tolerance: float = 1.0
    needs: Callable[[], bool] | None = None


class OpModule(nn.Module):
    """A row as a module of its tensor inputs."""

    def __init__(self, case: OpCase) -> None:
        super().__init__()
        self.function = case.function
        leaves, self.spec = pytree.tree_flatten((tuple(case.args), dict(case.kwargs)))
        owner = [position for position, arg in enumerate(case.args) for _ in pytree.tree_leaves(arg)] + [-1] * len(
            pytree.tree_leaves(dict(case.kwargs))
        )
        self.leaves: list[Any] = []
        self.inputs: list[int] = []
        for index, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor) and owner[index] in case.weights:
                self.register_buffer(f"weight{index}", leaf)
                self.leaves.append(None)
            elif isinstance(leaf, torch.Tensor):
                self.inputs.append(index)
                self.leaves.append(None)
            else:
                self.leaves.append(leaf)
        self.owner = owner

    def forward(self, *tensors: torch.Tensor) -> Any:
        leaves = list(self.leaves)
        for index in range(len(leaves)):
            if hasattr(self, f"weight{index}"):
                leaves[index] = getattr(self, f"weight{index}")
        for index, tensor in zip(self.inputs, tensors, strict=True):
            leaves[index] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return self.function(*args, **kwargs)


def check_case(case: OpCase, settings: Settings | None = None) -> None:
    """Run a row on every stage there is here, at every size that its dynamic dimensions name."""
    module = OpModule(case).eval()
    flat = pytree.tree_leaves((tuple(case.args), dict(case.kwargs)))
    inputs = tuple(flat[index] for index in module.inputs)
    shapes = None
    if case.dynamic:
        shapes = (
            tuple(
                {
                    axis: bounds if isinstance(bounds, Dim) else Dim(f"d{index}_{axis}", min=bounds[0], max=bounds[1])
                    for axis, bounds in case.dynamic.get(module.owner[index], {}).items()
                }
                for index in module.inputs
            ),
        )
    enterprise = flavours.load().name == flavours.TENSORRT
    others = _at_other_sizes(case, module, inputs)
    check_module(
        module,
        inputs,
        settings or _exact_settings(flat),
        dynamic_shapes=shapes,
        others=others[:2],
        outside=others[2:],
        unsupported=(case.tensorrt if enterprise else "") or case.unsupported,
        raises=case.raises,
        rtx=case.rtx,
        tolerance=case.tolerance,
    )


def _exact_settings(leaves: list[Any]) -> Settings:
    """No TF32, which GPUs have by default, unless the row is about 16-bit arithmetic; and quick builds."""
    half = any(isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.float16, torch.bfloat16) for leaf in leaves)
    return Settings(precision=None if half else "fp32", optimization_level=0)


def _at_other_sizes(case: OpCase, module: OpModule, inputs: tuple[torch.Tensor, ...]) -> list[tuple[torch.Tensor, ...]]:
    """The inputs with all dynamic dimensions at their min, and at their max."""
    others = []
    for end in (0, 1) if case.dynamic else ():
        resized = []
        for index, tensor in zip(module.inputs, inputs, strict=True):
            for axis, bounds in case.dynamic.get(module.owner[index], {}).items():
                low, high = (bounds.min, bounds.max) if isinstance(bounds, Dim) else bounds
                size = (low, high, high + 1)[end]
                indices = torch.arange(size) % tensor.shape[axis]
                tensor = tensor.index_select(axis, indices)
            resized.append(tensor)
        others.append(tuple(resized))
    return others


def check_module(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    settings: Settings,
    *,
    dynamic_shapes: Any = None,
    others: Sequence[tuple[torch.Tensor, ...]] = (),
    outside: Sequence[tuple[torch.Tensor, ...]] = (),
    unsupported: str = "",
    raises: str = "",
    rtx: str = "",
    tolerance: float = 1.0,
) -> None:
    """Compile a module and compare the interpreter, and the engine where it can run, with eager float64."""
    flavour = flavours.load()

    def optimized() -> Program:
        return api.optimize(api.capture(module, inputs, dynamic_shapes=dynamic_shapes), settings, flavour)

    if unsupported:
        with pytest.raises(torch2trt.UnsupportedOpsError, match=re.escape(unsupported)):
            lower(optimized(), flavour)
        return
    if raises:
        with pytest.raises(torch2trt.Torch2TRTError, match=re.escape(raises)):
            lower(optimized(), flavour)
        return
    unbuildable = rtx and flavour.name == flavours.TENSORRT_RTX
    if unbuildable:
        with pytest.raises(torch2trt.UnsupportedOpsError, match=re.escape(rtx)):
            lower(optimized(), flavour)
        flavour = as_enterprise(flavour)
    program = optimized()
    compiled = None if unbuildable else build(program, flavour, settings)
    for arguments in [inputs, *others]:
        expected = truth(module, arguments)
        if compiled is None:
            compare(_interpreted(program, flavour, arguments), expected, tolerance)
            continue
        compare(compiled.reference(*arguments), expected, tolerance)
        if torch.cuda.is_available():
            found = compiled(*pytree.tree_map_only(torch.Tensor, torch.Tensor.cuda, arguments))
            compare(pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, found), expected, 2 * tolerance)
    for arguments in outside if compiled is not None else ():
        with pytest.raises(torch2trt.InputShapeError):
            compiled.reference(*arguments)


def build(program: Program, flavour: flavours.Flavour, settings: Settings) -> EngineModule:
    """Build an engine of all of a Program, and hold its network to the ranks that every TensorRT takes.

    Raises:
        UnsupportedOpsError: as lowering does, and not as what would be left to torch.
    """
    if found := unsupported_nodes(program, flavour):
        raise torch2trt.UnsupportedOpsError(found)

    def lowered(*args: Any) -> Network:
        network = lower(*args)
        check_ranks(network)
        return network

    with mock.patch.object(engines, "lower", lowered):
        return api.build(program, flavour, dataclasses.replace(settings, fallback=False))


def check_ranks(network: Network) -> None:
    """Hold a network to 7 dimensions everywhere: TensorRT 10.6 gathers no more, TensorRT-RTX takes 8."""
    layers = [network.definition.get_layer(number) for number in range(network.definition.num_layers)]
    outputs = [layer.get_output(number) for layer in layers for number in range(layer.num_outputs)]
    assert not [tensor.name for tensor in outputs if len(tensor.shape) > 7]


@contextlib.contextmanager
def operators_reached() -> Iterator[set[str]]:
    """Inside, notes the operators of every graph: as torch exports it, as a captured Program, and optimised.

    So an operator counts that torch takes apart before the converters see it, or that a pass rewrites: it is served.
    """
    reached: set[str] = set()

    def exporting(*args: Any, **kwargs: Any) -> ExportedProgram:
        exported: ExportedProgram = export(*args, **kwargs)
        reached.update(name_of(node.target) for node in exported.graph.nodes if node.op == "call_function")
        return exported

    def noting(stage: Callable[..., Program]) -> Callable[..., Program]:
        def run(*args: Any, **kwargs: Any) -> Program:
            program = stage(*args, **kwargs)
            reached.update(name_of(node.target) for node in program.calls)
            return program

        return run

    export = torch.export.export
    with (
        mock.patch.object(torch.export, "export", exporting),
        mock.patch.object(api, "capture", noting(api.capture)),
        mock.patch.object(api, "optimize", noting(api.optimize)),
    ):
        yield reached


def as_enterprise(flavour: flavours.Flavour) -> flavours.Flavour:
    """A flavour that says it can do what enterprise TensorRT can, of which at least the networks can be made."""
    return dataclasses.replace(flavour, name=flavours.TENSORRT, version=(10, 6))


def _interpreted(program: Program, flavour: flavours.Flavour, arguments: tuple[Any, ...]) -> Any:
    net = lower(program, flavour)
    check_ranks(net)
    names = [leaf.name for leaf in program.signature.tensor_inputs]
    found = Interpreter(flavour, net.definition, net.constants).run(dict(zip(names, arguments, strict=True)))
    return program.signature.unflatten(found, list(arguments), program.sizes_of(list(arguments)))


def truth(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """Eager, in float64, with the dtypes that the module returns."""
    with torch.no_grad():
        returned = module(*inputs)
        exact = copy.deepcopy(module)._apply(widened)(*pytree.tree_map_only(torch.Tensor, widened, inputs))
    return pytree.tree_map(
        lambda item, like: (item, like.dtype) if isinstance(item, torch.Tensor) else item, exact, returned
    )


def compare(found: Any, expected: Any, tolerance: float) -> None:
    """Dtype, shape, and the largest error relative to the scale of the output."""
    values = pytree.tree_leaves(found)
    truths = pytree.tree_leaves(expected, is_leaf=lambda item: isinstance(item, tuple) and _is_pair(item))
    assert len(values) == len(truths)
    for position, (value, exact) in enumerate(zip(values, truths, strict=True)):
        if not _is_pair(exact):
            assert value == exact
            continue
        exact, dtype = exact
        assert value.dtype == dtype, f"output {position} is {value.dtype}, eager's is {dtype}"
        assert value.shape == exact.shape, f"output {position} is {value.shape}, eager's is {exact.shape}"
        if not dtype.is_floating_point:
            assert torch.equal(value, exact.to(dtype)), f"output {position} differs: {value} {exact}"
            continue
        exact = exact.double()  # of integers, eager's own result is no float64
        exact = torch.where(exact.to(dtype).isfinite(), exact, exact.to(dtype).double())  # or too large for the dtype
        finite = exact.isfinite()
        other = ~finite
        assert torch.equal(value[other].double().nan_to_num(1e99), exact[other].nan_to_num(1e99)), (
            "infinities or NaN differ"
        )
        if finite.any():
            error = (value.double() - exact)[finite].abs().max().item()
            scale = exact[finite].abs().max().item()
            limit = TOLERANCES[dtype] * tolerance
            assert error <= limit * scale or error <= 1e-30, f"output {position}: error {error:.3g}, scale {scale:.3g}"


def _is_pair(item: Any) -> bool:
    return (
        isinstance(item, tuple)
        and len(item) == 2
        and isinstance(item[0], torch.Tensor)
        and isinstance(item[1], torch.dtype)
    )


def product(**choices: Sequence[Any]) -> list[dict[str, Any]]:
    """All combinations of keyword values."""
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
