"""Executes a TensorRT network definition with torch, layer by layer, on any machine.

It reads the network that TensorRT will really be given, so it tests what was built from a model and not what
was meant; after every layer it compares the value with the dtype and shape that TensorRT inferred.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from torch2trt.errors import InputDtypeError, InputShapeError, InputStructureError, InterpreterError
from torch2trt.reference.evaluation import Evaluation, fits
from torch2trt.reference.readback import Readback
from torch2trt.trt.flavour import Flavour


class Interpreter:
    """A network, ready to run.

    Args:
        flavour: the TensorRT package that the network belongs to.
        network: an ``INetworkDefinition``, strongly typed. It is read once, here, and its weights are shared.
        constants: values of weights by layer name, or ``layer.kernel``, ``layer.bias``, … where a layer holds
            several. They are used in place of what the network holds, and needed where Python cannot read
            that: BF16, FP8 and INT4 (as int8, one value in each).
        dtype_of_float: the dtype that FLOAT tensors have; ``torch.float64`` tells wrong results from rounded.

    Raises:
        InterpreterError: the network holds an invalid layer.
    """

    def __init__(
        self,
        flavour: Flavour,
        network: Any,
        constants: Mapping[str, torch.Tensor] | None = None,
        dtype_of_float: torch.dtype = torch.float32,
    ) -> None:
        self._network = Readback(flavour, network, constants or {}, dtype_of_float)
        self._assertions = {
            number: node
            for node in self._network.nodes
            if node.kind == "ASSERTION"
            for number in node.inputs
            if number is not None
        }

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The network's outputs by name.

        Args:
            inputs: one tensor for each network input, by name, on one device, which is where everything runs.

        Raises:
            InputStructureError, InputDtypeError, InputShapeError: inputs that are not the network's.
            InterpreterError: a layer that cannot be executed, whose value is not what TensorRT inferred, or
                an assertion of the network that does not hold.
        """
        outputs = self._network.outputs
        values = self._evaluate(inputs, [*outputs, *self._assertions])
        for condition, node in self._assertions.items():
            if not values[condition].all():
                raise node.error(node.api.message or "the assertion does not hold")
        return {self._network.declared[number].name: values[number].clone() for number in outputs}

    def run_tensors(self, inputs: Mapping[str, torch.Tensor], names: Collection[str]) -> dict[str, torch.Tensor]:
        """Any tensors of the network by name, for debugging layer by layer; only what they need is evaluated.

        Raises:
            InputStructureError, InputDtypeError, InputShapeError: as for :meth:`run`.
            InterpreterError: as for :meth:`run`; also for a name that the network does not have, and for a
                tensor that exists only while a loop runs.
        """
        unknown = [name for name in names if name not in self._network.numbers]
        if unknown:
            raise InterpreterError(f"the network has no tensor {', '.join(map(repr, unknown))}")
        numbers = {name: self._network.numbers[name] for name in names}
        values = self._evaluate(inputs, numbers.values())
        return {name: values[number].clone() for name, number in numbers.items()}

    def _evaluate(self, inputs: Mapping[str, torch.Tensor], targets: Iterable[int]) -> dict[int, torch.Tensor]:
        targets = list(targets)
        evaluation = Evaluation(self._network, self._bind(inputs), targets)
        with torch.no_grad():
            evaluation.demand(targets)
        return evaluation.values

    def _bind(self, inputs: Mapping[str, torch.Tensor]) -> dict[int, torch.Tensor]:
        expected = {self._network.declared[number].name: number for number in self._network.inputs}
        if expected.keys() != inputs.keys():
            raise InputStructureError(f"the network's inputs are {sorted(expected)}, not {sorted(inputs)}")
        values = {}
        for name, number in expected.items():
            declared, value = self._network.declared[number], inputs[name].detach()
            if declared.dtype_name == "FLOAT" and value.dtype == torch.float32:
                value = value.to(declared.dtype)
            if value.dtype != declared.dtype:
                raise InputDtypeError(f"expected {declared.dtype_name}, got {value.dtype}", subject=name)
            if not fits(value.shape, declared.shape):
                reason = f"expected shape {list(declared.shape)}, got {list(value.shape)}"
                raise InputShapeError(reason, subject=name)
            values[number] = value
        return values
