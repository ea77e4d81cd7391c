"""One call of a torch operator apart from any graph: what an engine needs to make it in its midst."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.utils import _pytree as pytree

from torch2trt.errors import ArtifactError
from torch2trt.graph.schema import TensorOp, name_of, parameters_of
from torch2trt.graph.serialize import argument_from_json, argument_to_json, operator_of
from torch2trt.graph.signature import spec_from_json, spec_to_json
from torch2trt.graph.writing import writing_overload
from torch2trt.sizes import TensorSpec, Value, derived, size_from_json, size_to_json

_STEPS: dict[str, Callable[[int, int], int]] = {
    "SUM": operator.add,
    "SUB": operator.sub,
    "PROD": operator.mul,
    "FLOOR_DIV": operator.floordiv,
    "MAX": max,
    "MIN": min,
}


@dataclass(frozen=True)
class OperatorCall:
    """An operator, its arguments but for the tensors, and the specs of what it takes and yields."""

    target: TensorOp
    inputs: tuple[TensorSpec, ...]
    """The tensors among the arguments, in their order."""
    outputs: tuple[TensorSpec, ...]
    arguments: str
    """The arguments in the schema's order as JSON, in which an input has its position as a name, a size its formula."""
    channels_last: bool = False
    """Whether images lie channels-last in memory, of what it takes and yields."""

    @classmethod
    def make(
        cls,
        target: TensorOp,
        arguments: Mapping[str, Any],
        results: Sequence[TensorSpec],
        *,
        channels_last: bool = False,
    ) -> OperatorCall:
        """The call of an operator.

        Args:
            arguments: by the names of :func:`torch2trt.graph.schema.bind`, with the specs of tensors for tensors.
            results: what the operator yields.
            channels_last: whether images should lie so in memory.

        Raises:
            ArtifactError: an argument that cannot be written down.
            NetworkError: a size among the arguments or results that the shapes of the inputs do not tell.
        """
        inputs: list[TensorSpec] = []

        def leaf(value: Any) -> Any:
            if isinstance(value, TensorSpec):
                inputs.append(value)
                return {"node": len(inputs) - 1}
            if isinstance(value, sympy.Expr):
                return {"node": size_to_json(value)}
            return argument_to_json(value)

        # Converters may ignore what they like, a call needs all.
        written = pytree.tree_map(leaf, [arguments[name] for name in parameters_of(target)])
        call = cls(target, tuple(inputs), tuple(results), json.dumps(written), channels_last)
        ones = [[1] * spec.rank for spec in inputs]
        call.output_shapes(ones, int, lambda *step: 1)
        derived(call._sizes.values(), call._known(ones), int, lambda *step: 1)
        return call

    @property
    def name(self) -> str:
        """The operator's name, ``mylib.swish.default``."""
        return name_of(self.target)

    @property
    def namespace(self) -> str:
        """The namespace of the operator, ``mylib``."""
        return self.name.partition(".")[0]

    @functools.cached_property
    def key(self) -> int:
        """A number for this call and none other: 62 bits of a digest."""
        return int.from_bytes(hashlib.sha256(json.dumps(self.to_json()).encode()).digest()[:8], "big") >> 2

    def output_shapes(
        self,
        shapes: Sequence[Sequence[Value]],
        constant: Callable[[int], Value],
        apply: Callable[[str, Value, Value], Value],
    ) -> list[list[Value]]:
        """The shapes of the results.

        Args:
            shapes: those of the inputs, in numbers of some kind.
            constant: gives an integer the form of these numbers.
            apply: computes with them, as :func:`torch2trt.sizes.computed` says.
        """
        known = self._known(shapes)
        return [derived(spec.shape, known, constant, apply) for spec in self.outputs]

    def run(
        self, inputs: Sequence[torch.Tensor], places: Sequence[torch.Tensor] | None = None
    ) -> Sequence[torch.Tensor]:
        """The results of the operator for these inputs.

        Args:
            places: tensors of the results' shapes and dtypes. An operator that has an overload for that writes into
                them, and they are returned.

        Raises:
            Exception: whatever the operator raises.
            TypeError: results of other shapes than the places that they were written to.
        """
        known = self._known([value.shape for value in inputs])
        sizes = zip(self._sizes, derived(self._sizes.values(), known, int, _step), strict=True)
        values = argument_from_json(json.loads(self.arguments), {**dict(enumerate(inputs)), **dict(sizes)})
        schema = self.target._schema.arguments
        named = {each.name: value for each, value in zip(schema, values, strict=True) if each.kwarg_only}
        plain = [value for each, value in zip(schema, values, strict=True) if not each.kwarg_only]
        with torch.no_grad():
            if places is not None and self._writing is not None:
                return self._write(self._writing, plain, named, places)
            result = self.target(*plain, **named)
        return [result] if isinstance(result, torch.Tensor) else list(result)

    @functools.cached_property
    def _writing(self) -> TensorOp | None:
        return writing_overload(self.target)

    def _write(
        self, writing: TensorOp, plain: list[Any], named: Mapping[str, Any], places: Sequence[torch.Tensor]
    ) -> Sequence[torch.Tensor]:
        shapes = [place.shape for place in places]
        names = [each.name for each in writing._schema.arguments if each.is_out]
        writing(*plain, **named, **dict(zip(names, places, strict=True)))
        for place, shape in zip(places, shapes, strict=True):
            if place.shape != shape:
                raise TypeError(f"it returned {list(place.shape)} where its fake kernel says {list(shape)}")
        return places

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "operator": self.name,
            "inputs": [spec_to_json(spec) for spec in self.inputs],
            "outputs": [spec_to_json(spec) for spec in self.outputs],
            "arguments": self.arguments,
            **({"channels_last": True} if self.channels_last else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], namespaces: Collection[str] = ()) -> OperatorCall:
        """The inverse of :meth:`to_json`.

        Args:
            namespaces: of operators that are allowed beside torch's own and torchvision's.

        Raises:
            ArtifactError: an operator that is unknown or not allowed.
        """
        inputs, outputs = (tuple(spec_from_json(spec) for spec in data[key]) for key in ("inputs", "outputs"))
        target = operator_of(data["operator"], namespaces)
        if not isinstance(target, TensorOp) or len(json.loads(data["arguments"])) != len(target._schema.arguments):
            raise ArtifactError("not a call of an operator", subject=data["operator"])
        return cls(target, inputs, outputs, data["arguments"], bool(data.get("channels_last", False)))

    @functools.cached_property
    def _sizes(self) -> dict[str, Any]:
        """The sizes among the arguments by their formulas."""
        leaves = pytree.tree_leaves(json.loads(self.arguments), is_leaf=lambda item: isinstance(item, dict))
        names = [leaf["node"] for leaf in leaves if isinstance(leaf, dict) and "node" in leaf]
        return {name: size_from_json(name) for name in names if isinstance(name, str)}

    def _known(self, shapes: Sequence[Sequence[Value]]) -> list[tuple[Any, Value]]:
        return [
            pair
            for spec, shape in zip(self.inputs, shapes, strict=True)
            for pair in zip(spec.shape, shape, strict=True)
        ]


def _step(operation: str, first: int, second: int) -> int:
    return _STEPS[operation](first, second)
