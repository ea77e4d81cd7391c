"""Operators that become plugins: torch goes on computing them, inside the engine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree

from torch2trt.converters.registry import Converter, converter
from torch2trt.errors import ArtifactError, NetworkError
from torch2trt.graph.operator_call import OperatorCall
from torch2trt.graph.schema import TensorOp, name_of, parameters_of
from torch2trt.sizes import TensorSpec
from torch2trt.trt.flavour import Flavour
from torch2trt.trt.network import Network
from torch2trt.trt.plugins import CARRIED
from torch2trt.trt.plugins import plugin as make_plugin
from torch2trt.trt.tensor import Tensor

Operator = TypeVar("Operator")


@dataclass(frozen=True)
class Made:
    """How an operator was made a plugin.

    Attributes:
        module: the name of the module that did.
        half, channels_last: as of :func:`plugin`.
    """

    module: str
    half: bool
    channels_last: bool


_MADE: dict[Callable[..., Any], Made] = {}


def plugin(operator: Operator, *, half: bool = False, channels_last: bool = False) -> Operator:
    """Let engines call an operator: where TensorRT has plugins it is a layer that torch computes on TensorRT's stream.

    It serves as a decorator, too, above ``torch.library.custom_op`` or ``triton_op``. Where there are no plugins
    (TensorRT-RTX), the operator goes on running in torch, between engines.

    Args:
        operator: ``torch.ops.mylib.swish`` with all its overloads, one overload, or what ``custom_op`` returned. It
            has a fake kernel and a kernel for CUDA tensors that are contiguous, and writes into none of its arguments.
        half: whether it may get FP16 and BF16 where the model is compiled to compute in them; off: float32.
        channels_last: whether its kernel would rather have images in ``torch.channels_last``, as convolutions of
            TensorRT's in halves leave and read them. Tensors [N, C, H, W] in FP16 or BF16 whose C is a multiple of 8
            may then come so or contiguous, all of a call alike, and are best yielded as they came; others are
            contiguous.

    Returns:
        The operator.

    Raises:
        TypeError: it is no operator, writes into its arguments, or already has a converter.
    """
    module = str(sys._getframe(1).f_globals.get("__name__"))
    for target in _overloads(operator):
        _MADE[_register(target, half, channels_last)] = Made(module, half, channels_last)
    return operator


def call_in_engine(
    net: Network,
    target: TensorOp,
    arguments: Mapping[str, Any],
    results: Sequence[TensorSpec],
    *,
    channels_last: bool = False,
) -> list[Tensor]:
    """Add a plugin that calls an operator.

    Args:
        net: of a flavour that has plugins.
        arguments: by the names of :func:`torch2trt.graph.schema.bind`.
        results: what the operator yields.
        channels_last: as of :func:`plugin`.
    """
    leaves = pytree.tree_leaves([arguments[name] for name in parameters_of(target)])
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    specs = pytree.tree_map_only(Tensor, lambda tensor: TensorSpec(tuple(tensor.shape), tensor.dtype), dict(arguments))
    made = make_plugin(net.flavour, OperatorCall.make(target, specs, results, channels_last=channels_last))
    net.plugins.append(made)
    given = [net.cast(tensor, CARRIED.get(tensor.dtype, tensor.dtype)) for tensor in tensors]
    layer = net.add("add_plugin_v3", [tensor.itensor for tensor in given], [], made)
    found = [net.output_of(layer, spec.shape, index) for index, spec in enumerate(results)]
    return [net.cast(tensor, spec.dtype) for tensor, spec in zip(found, results, strict=True)]


def is_plugin(found: Converter) -> bool:
    """Whether a converter makes plugins."""
    return found.function in _MADE


def how_made(found: Converter) -> Made:
    """How the operator of a converter that makes plugins was made one."""
    return _MADE[found.function]


def _overloads(operator: Any) -> list[TensorOp]:
    if isinstance(operator, torch._library.custom_ops.CustomOpDef):
        operator = operator._opoverload
    if isinstance(operator, torch._ops.OpOverloadPacket):
        found = [getattr(operator, name) for name in operator.overloads()]
        # Those that write into ``out`` have a twin that does not.
        found = [each for each in found if not each._schema.is_mutable] or found
    else:
        found = [operator]
    for each in found:
        if not isinstance(each, TensorOp):
            raise TypeError(f"{each!r} is no operator of torch: register it with torch.library.custom_op")
        if each._schema.is_mutable:
            raise TypeError(f"{name_of(each)} writes into its arguments, which a plugin cannot: return a new tensor")
    return found


def _register(target: TensorOp, half: bool, channels_last: bool) -> Callable[..., Any]:
    def unsupported(flavour: Flavour, results: list[Any], **arguments: Any) -> str | None:
        if not flavour.has("plugins"):
            return f"{flavour.name} has no plugins"
        inputs = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, TensorSpec)]
        if not inputs or not results:
            return "a plugin takes at least one tensor, and yields one"
        if not all(isinstance(spec, TensorSpec) for spec in results):
            return "a plugin yields tensors and nothing else"
        try:
            OperatorCall.make(target, arguments, results)
        except (ArtifactError, NetworkError) as error:
            return f"{error.subject}: {error.reason}" if error.subject else error.reason
        return None

    def convert(net: Network, /, **arguments: Any) -> Tensor | list[Tensor]:
        results = [spec for spec in net.results if spec is not None]
        outputs = call_in_engine(net, target, arguments, results, channels_last=channels_last)
        returned = [each.type.kind() for each in target._schema.returns]
        return outputs[0] if returned == ["TensorType"] else outputs

    return converter(target, unsupported=unsupported, float32=not half)(convert)
