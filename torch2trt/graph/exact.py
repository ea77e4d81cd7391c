"""The truth to which engines are compared, in float64: a module, or a Program without the module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from torch2trt.graph.copying import copy_of
from torch2trt.graph.devices import placed
from torch2trt.graph.program import Program
from torch2trt.graph.signature import Signature


class Exact(TorchDispatchMode):
    """Inside, every float that torch computes is float64, every complex number of two, whatever dtype a module asks."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        func = _WITHOUT_FLOAT64.get(func, func)
        wide = {name: _wide(value) for name, value in (kwargs or {}).items()}
        if func in _FILLED and wide.get("dtype") is None and isinstance(args[-1], float):
            # The largest number of float64 is none of float32, which is what it would be made of.
            wide["dtype"] = torch.float64
        # Factories have a dtype of their own by default.
        return pytree.tree_map_only(torch.Tensor, widened, func(*args, **wide))


_FILLED = frozenset({torch.ops.aten.full.default, torch.ops.aten.scalar_tensor.default})


def run_exact(
    program: Program, args: tuple[Any, ...], kwargs: dict[str, Any], state: Mapping[str, torch.Tensor] | None = None
) -> tuple[Any, list[torch.Tensor]]:
    """The module's result on these arguments, computed on the CPU in float64 from the original weights.

    Integers and booleans are computed as they are; floating-point results are float64.

    Args:
        state: the buffers that the module changes, by path; unset: as they were when it was captured.

    Returns:
        The result, and what the module writes into arguments and buffers, in the order of the signature's updates.
    """
    signature, cpu = program.signature, torch.device("cpu")
    leaves = signature.flatten(args, kwargs)
    held = [(state or program.state)[leaf.buffer] for leaf in signature.state]
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)] + held
    inputs = [widened(tensor.detach().cpu()) for tensor in tensors]
    sources = [widened(program.weights.sources[name].detach().cpu()) for name in program.weights.inputs.values()]
    with torch.no_grad(), Exact():  # type: ignore[no-untyped-call]
        computed = fx.Interpreter(placed(program.weights.graph, cpu)).run(*sources, enable_io_processing=False)
        weights = dict(zip(program.weights.outputs, computed, strict=True))
        arguments = [*inputs, *(weights[str(node.target)] for node in program.weight_placeholders)]
        results = fx.Interpreter(placed(program.graph, cpu)).run(*arguments, enable_io_processing=False)
    outputs = dict(zip(program.output_names, results, strict=True))
    result = signature.unflatten(outputs, leaves, program.sizes_of(inputs))
    return result, [outputs[update.name] for update in signature.updates]


def _wide(value: Any) -> Any:
    if not isinstance(value, torch.dtype):
        return value
    return torch.float64 if value.is_floating_point else torch.complex128 if value.is_complex else value


def _grouped_mm(
    input: torch.Tensor, mat2: torch.Tensor, offs: torch.Tensor | None = None, bias: None = None, out_dtype: Any = None
) -> torch.Tensor:
    """Rows [N, K] up to each offset by one of the matrices [groups, K, M]; without offsets, matrix by matrix."""
    if offs is None:
        return input @ mat2
    result = input.new_zeros(input.shape[0], mat2.shape[2])
    first = 0
    for last, matrix in zip(offs.tolist(), mat2, strict=True):
        result[first:last] = input[first:last] @ matrix
        first = last
    return result


_WITHOUT_FLOAT64: dict[Any, Callable[..., torch.Tensor]] = {torch.ops.aten._grouped_mm.default: _grouped_mm}


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """Floating-point and complex numbers with parts in float64, any others as they are."""
    return tensor.to(_wide(tensor.dtype))


class Truth:
    """A module, computed in float64; itself it stays as it is.

    Args:
        device: where it is computed.
    """

    def __init__(self, module: nn.Module, device: torch.device | str = "cpu") -> None:
        self._module = module
        self._device = device

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The result."""
        return self._run({}, args, kwargs)[0]

    def writing(
        self, signature: Signature, state: dict[str, torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, list[torch.Tensor]]:
        """The result, and what the module writes into arguments and buffers, in the order of the updates.

        Args:
            state: the buffers that the module changes, by path, as they are before.
        """
        result, module, moved = self._run(state, args, kwargs)
        leaves = signature.flatten(*moved) + [module.get_buffer(leaf.buffer) for leaf in signature.state]
        return result, [leaves[update.position] for update in signature.updates]

    def _run(
        self, state: dict[str, torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, nn.Module, Any]:
        exact = copy_of(self._module).to(self._device)._apply(widened)
        for path, value in state.items():
            exact.get_buffer(path).copy_(value)
        moved = pytree.tree_map_only(
            torch.Tensor, lambda tensor: _copied(widened(tensor.detach().to(self._device))), (args, kwargs)
        )
        with torch.no_grad(), Exact():  # type: ignore[no-untyped-call]
            return exact(*moved[0], **moved[1]), exact, moved


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    # Modules may write into their arguments.
    return tensor.clone()
