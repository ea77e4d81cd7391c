"""What an engine depends on: two compilations with the same key would build the same engine.

The key is taken of an optimised Program and not of the network that it is lowered to. A network exists only once
TensorRT's builder does, whose start alone takes seconds, and it cannot be read back whole: the values of BF16 weights
cannot. What lies between the Program and the network is code, so a digest of that code is a part of the key
(:mod:`torch2trt.engine.sources`), and an upgrade misses.

It is made of sections, each of lines in a fixed order, so that two keys can be compared and the difference shown
(:mod:`torch2trt.engine.differences`). Names of nodes and parameters are no part of it: calls and weights are known by
their places. Names of inputs, outputs and dimensions are, because the plan has them inside.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from torch2trt.engine import digests, sources
from torch2trt.graph.program import Program
from torch2trt.graph.schema import bind, name_of
from torch2trt.graph.signature import Signature, TensorLeaf, dtype_to_json
from torch2trt.graph.weights import WeightsGraph
from torch2trt.settings import Settings
from torch2trt.sizes import TensorSpec, spell
from torch2trt.trt.flavour import Flavour

# Whose kernels are those of this torch and this package; what other operators make of weights only they can tell.
_KNOWN_KERNELS = frozenset({"aten", "prims", "torch2trt"})


class NoKeyError(Exception):
    """There is no telling what an engine depends on; the text says why."""


@dataclass(frozen=True)
class Section:
    """One part of a key."""

    lines: tuple[str, ...]
    names: tuple[str, ...] = field(default=(), compare=False)
    """What the lines are called by whoever reads them; the key does not depend on it."""

    @functools.cached_property
    def digest(self) -> str:
        """A digest of the lines."""
        return digests.of_text(self.lines)

    @classmethod
    def of(cls, named: Iterable[tuple[str, str]]) -> Section:
        """A section from names and lines."""
        pairs = list(named)
        return cls(tuple(line for _, line in pairs), tuple(name for name, _ in pairs))


@dataclass(frozen=True)
class Key:
    """All that an engine depends on."""

    sections: Mapping[str, Section]

    @functools.cached_property
    def digest(self) -> str:
        """A digest of all sections: 32 hexadecimal digits, half of SHA-256."""
        return digests.of_text(f"{name} {section.digest}" for name, section in self.sections.items())[:32]

    def to_json(self) -> dict[str, Any]:
        """JSON values from which :meth:`from_json` makes an equal key."""
        return {
            name: {"lines": list(section.lines), "names": list(section.names)}
            for name, section in self.sections.items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Key:
        """The key that :meth:`to_json` wrote."""
        return cls({name: Section(tuple(item["lines"]), tuple(item["names"])) for name, item in data.items()})


def key_of_program(
    program: Program, flavour: Flavour, settings: Settings, *, other_code: Mapping[str, str] | None = None
) -> Key:
    """The key of a Program that is one engine.

    Args:
        program: after the passes.
        other_code: what is to be said of converters that are not this package's, such as digests of their code.

    Raises:
        NoKeyError: an argument that has no spelling, or code that is not known.
    """
    try:
        return Key(
            {
                "graph": _graph(program),
                "weights graph": _weights_graph(program.weights),
                "weights": _weights(program.weights),
                **_surroundings(program.signature, flavour, settings, other_code or {}),
            }
        )
    except sources.UnknownCodeError as error:
        raise NoKeyError(str(error)) from error


def key_of_model(
    parts: Mapping[str, Mapping[str, str]], signature_of_inputs: Signature, flavour: Flavour, settings: Settings
) -> Key:
    """The key of a model that TensorRT's own parser reads.

    Args:
        parts: by the names of sections, digests of what the model consists of, each with its name.
        signature_of_inputs: its inputs and their sizes; outputs follow from the model.

    Raises:
        NoKeyError: code that is not known.
    """
    try:
        surroundings = _surroundings(signature_of_inputs, flavour, settings, {})
    except sources.UnknownCodeError as error:
        raise NoKeyError(str(error)) from error
    return Key({**{name: Section.of(part.items()) for name, part in parts.items()}, **surroundings})


# Around the graph -----------------------------------------------------------------------------------------------------


def _surroundings(
    signature: Signature, flavour: Flavour, settings: Settings, other_code: Mapping[str, str]
) -> dict[str, Section]:
    ranges = [f"dimensions: {spell(signature.dims)}"] if signature.dims else []
    ranges += [spell(profile) for profile in signature.profiles]
    code = {"torch2trt": sources.own_code(), "torch": str(torch.__version__), **other_code}
    return {
        "inputs": Section(tuple(f"{leaf.name}: {_stored(leaf)}" for leaf in signature.tensor_inputs)),
        "profiles": Section(tuple(ranges)),
        "settings": _table(settings.builder_settings()),
        "flavour": Section((f"{flavour.name} {flavour.version_text}",)),
        "gpu": _gpu(),
        "code": _table(code),
    }


def _table(values: Mapping[str, Any]) -> Section:
    return Section(tuple(f"{name}: {json.dumps(value)}" for name, value in values.items()))


def _gpu() -> Section:
    """What TensorRT sees of a GPU when it chooses kernels."""
    if not torch.cuda.is_available():
        return Section(("none",))
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return _table(
        {
            "name": found.name,
            "compute capability": f"{found.major}.{found.minor}",
            "multiprocessors": found.multi_processor_count,
            # To the byte it would differ between drivers.
            "memory in GiB": round(found.total_memory / (1 << 30)),
        }
    )


# The graph ------------------------------------------------------------------------------------------------------------


def _graph(program: Program) -> Section:
    """Each call with all its arguments, as a converter is given them, and what it yields."""
    known: dict[fx.Node, str] = {}
    weights = {name: f"w{index}" for index, name in enumerate(program.weights.outputs)}
    found: list[tuple[str, str]] = []
    for index, node in enumerate(program.input_placeholders):
        known[node] = f"x{index}"
    for node in program.weight_placeholders:
        known[node] = weights[str(node.target)]
        found.append((str(node.target), f"{known[node]}: {_spec(program.spec(node))}"))

    def argument(node: fx.Node) -> str:
        return f"size {program.size(node)}" if program.is_size(node) else known[node]

    for node in program.calls:
        # Sizes are known where they are used.
        if not program.is_size(node):
            known[node] = f"%{len(known)}"
            found.append((node.name, f"{known[node]} = {_call(node, argument)} -> {_result(program.result(node))}"))
    returned: Sequence[fx.Node] = program.output_node.args[0]  # type: ignore[assignment]
    leaves = {leaf.name: leaf for leaf in program.signature.tensor_outputs}
    for name, node in zip(program.output_names, returned, strict=True):
        found.append(("", f"{name} = {known[node]} as {_stored(leaves[name])}"))
    return Section.of(found)


def _weights_graph(weights: WeightsGraph) -> Section:
    """How the engine's weights are computed from parameters; empty where they are the parameters."""
    known: dict[fx.Node, str] = {}
    found: list[tuple[str, str]] = []
    for node in weights.graph.graph.nodes:
        if node.op == "placeholder":
            known[node] = f"s{len(known)}"
        elif node.op == "call_function":
            known[node] = f"%{len(known)}"
            found.append((node.name, f"{known[node]} = {_call(node, known.__getitem__)}"))
    returned: Sequence[fx.Node] = weights.graph.graph.output_node().args[0]  # type: ignore[assignment]
    for index, (name, node) in enumerate(zip(weights.outputs, returned, strict=True)):
        found.append((name, f"w{index} = {known[node]}"))
    return Section.of(found)


def _weights(weights: WeightsGraph) -> Section:
    """The content of the parameters, or of what is made of them where only evaluating tells what that is."""
    calls = [node.target for node in weights.graph.graph.nodes if node.op == "call_function"]
    if {name_of(target).partition(".")[0] for target in calls if isinstance(target, torch._ops.OpOverload)} <= (
        _KNOWN_KERNELS
    ):
        values = {f"s{index}": weights.sources[name] for index, name in enumerate(weights.inputs.values())}
        names = list(weights.inputs.values())
    else:
        made = weights.evaluate()
        values = {f"w{index}": made[name] for index, name in enumerate(weights.outputs)}
        names = list(weights.outputs)
    found = digests.of_tensors(values)
    forms = {place: _spec(TensorSpec(tuple(tensor.shape), tensor.dtype)) for place, tensor in values.items()}
    lines = (f"{place}: {forms[place]} {digest}" for place, digest in found.items())
    return Section(tuple(lines), tuple(names))


def _call(node: fx.Node, argument: Callable[[fx.Node], str]) -> str:
    given = ", ".join(f"{name}={_value(value, argument)}" for name, value in bind(node).items())
    return f"{name_of(node.target)}({given})"


def _value(value: Any, argument: Callable[[fx.Node], str]) -> str:
    match value:
        case fx.Node():
            return argument(value)
        case list() | tuple():
            return f"[{', '.join(_value(item, argument) for item in value)}]"
        case None | bool() | int() | float() | complex() | str():
            return repr(value)
        case torch.dtype() | torch.memory_format() | torch.layout():
            return str(value)
        case torch.device():
            # Engines run on the GPU that they were built for, wherever the module was.
            return "device"
        case slice():
            ends = (value.start, value.stop, value.step)
            return f"slice({', '.join(_value(end, argument) for end in ends)})"
    raise NoKeyError(f"an argument of type {type(value).__name__} has no spelling")


def _result(result: TensorSpec | list[Any]) -> str:
    if isinstance(result, TensorSpec):
        return _spec(result)
    return f"[{', '.join('None' if item is None else _spec(item) for item in result)}]"


def _stored(leaf: TensorLeaf) -> str:
    """An input or output as the engine has it."""
    return f"{_spec(leaf.stored)}{f' of axes {leaf.order}' if leaf.order else ''}"


def _spec(spec: TensorSpec) -> str:
    return f"{dtype_to_json(spec.dtype)}[{', '.join(map(str, spec.shape))}]"
