"""Few and large segments: which calls share an engine, and which run in torch between the engines."""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from torch2trt.errors import TooSmallError, UnsupportedNode, UnsupportedOpsError
from torch2trt.graph.program import Program, provenance
from torch2trt.graph.rewrite import call
from torch2trt.graph.schema import name_of
from torch2trt.partition.support import reasons_for_torch
from torch2trt.settings import Settings
from torch2trt.trt.flavour import Flavour

aten = torch.ops.aten
log = logging.getLogger(__name__)

# What an engine gains: nothing where it only looks at memory in another way, most where there is much to compute.
_NOTHING, _LITTLE, _MUCH = 0, 1, 3
_VIEWS = frozenset(
    {
        *(aten.reshape, aten.permute, aten.transpose, aten.t, aten.unsqueeze, aten.squeeze, aten.slice, aten.select),
        *(aten.expand, aten.split, aten.split_with_sizes, aten.unbind, aten.chunk, aten.clone, aten._to_copy),
    }
)
_HEAVY = frozenset(
    {
        *(aten.linear, aten.addmm, aten.mm, aten.bmm, aten.baddbmm, aten.matmul, aten.convolution, aten.einsum),
        *(
            aten.scaled_dot_product_attention,
            torch.ops.torch2trt.attention,
            torch.ops.torch2trt.flash_attention,
            torch.ops.torch2trt.conv_block,
            torch.ops.torch2trt.depthwise_conv,
            torch.ops.torch2trt.group_norm,
        ),
        *(
            torch.ops.torch2trt.packed_attention,
            torch.ops.torch2trt.linear_block,
            aten.layer_norm,
            aten.group_norm,
            aten.softmax,
        ),
    }
)


Names = Mapping[fx.Node, set[str]]


@dataclass(frozen=True)
class Partition:
    """Where each call of a Program runs."""

    phases: Mapping[fx.Node, int]
    """The segment of each call by its place in the order of running; even ones are engines, odd ones torch. What is
    computed from constants and sizes alone is in none: each segment computes what it needs of it."""
    reasons: Mapping[fx.Node, str] = field(default_factory=dict)
    """Why a call runs in torch."""

    @property
    def is_whole(self) -> bool:
        """Whether all of the Program is one engine."""
        return not self.reasons and set(self.phases.values()) <= {0}

    @property
    def operators_in_torch(self) -> list[str]:
        """The names of the operators that run in torch, each once."""
        return list(dict.fromkeys(name_of(node.target) for node in self.reasons if node.target is not operator.getitem))


def check_worth(program: Program, flavour: Flavour, settings: Settings) -> None:
    """Refuse a whole Program that is not worth an engine between other code.

    Raises:
        TooSmallError: it converts whole, and gains less than ``settings.min_segment``.
    """
    gained = sum(map(_gain, program.calls))
    if gained < settings.min_segment and not reasons_for_torch(program, flavour, settings):
        raise TooSmallError(
            f"an engine of so few operators does not pay (min_segment is {settings.min_segment})", subject=program.name
        )


def is_engine(phase: int) -> bool:
    """Whether the segment of a phase is an engine."""
    return phase % 2 == 0


def partition(
    program: Program, flavour: Flavour, settings: Settings, refused: Mapping[str, str] | None = None
) -> Partition:
    """Decide for each call whether it runs in an engine or in torch.

    A call joins the earliest segment of its kind that none of its arguments comes after, so that segments never wait
    for each other in a circle and alternate as seldom as the graph allows. An engine whose calls gain too little goes
    to torch as a whole (``settings.min_segment``).

    Args:
        refused: further calls for torch: the reason by the node's name.

    Raises:
        UnsupportedOpsError: nothing is left that an engine is worth, or ``settings.fallback`` is off.
    """
    reasons = reasons_for_torch(program, flavour, settings)
    reasons |= {node: (refused or {})[node.name] for node in program.calls if node.name in (refused or {})}
    reasons |= _split_with_their_items(program, reasons)
    unsupported = [
        UnsupportedNode(node.name, name_of(node.target), reason, *reversed(provenance(node)))
        for node, reason in reasons.items()
        if node.target is not operator.getitem
    ]
    if unsupported and not settings.fallback:
        raise UnsupportedOpsError(unsupported)
    by_data = _sizes_from_data(program)
    if reasons:
        _copy_what_is_handed_back(program, reasons, by_data)
    too_few: dict[fx.Node, str] = {}
    while True:
        phases = _phases(program, reasons, by_data)
        moved = _sizes_from_elsewhere(phases, by_data)
        if not moved and reasons:
            moved = _small_engines(program, phases, settings.min_segment)
            too_few |= moved
        if not moved:
            break
        reasons |= moved
        reasons |= _split_with_their_items(program, reasons)
    if reasons and not any(is_engine(phase) for phase in phases.values()):
        at_all = "; min_segment=1 builds one all the same" if any(_gain(node) for node in too_few) else ""
        raise UnsupportedOpsError(unsupported, hint=f"what is left is not worth an engine{at_all}")
    return Partition(phases, reasons)


def _split_with_their_items(program: Program, reasons: Mapping[fx.Node, str]) -> dict[fx.Node, str]:
    """The items of results that are lists go where the lists are."""
    return {
        node: reasons[node.all_input_nodes[0]]
        for node in program.calls
        if node.target is operator.getitem and node.all_input_nodes[0] in reasons
    }


def _copy_what_is_handed_back(program: Program, reasons: dict[fx.Node, str], by_data: Names) -> None:
    """Results that are inputs, or depend on none, get a call that makes them."""
    output, graph, free = program.output_node, program.graph.graph, _free(program, reasons, by_data)
    returned = []
    for node in output.args[0]:  # type: ignore[union-attr]
        assert isinstance(node, fx.Node)
        source = node.all_input_nodes[0] if node.target is aten.clone.default else node
        if source.op == "placeholder" or source in free:
            if source is node:
                with graph.inserting_before(output):
                    node = call(graph, aten.clone.default, node, like=node)
            reasons[node] = "it only hands back what is there"
        returned.append(node)
    output.args = (tuple(returned),)


def _free(program: Program, reasons: Mapping[fx.Node, str], by_data: Names) -> set[fx.Node]:
    """The weights, and the calls that depend on constants and sizes alone: each segment may compute them anew."""
    found = set(program.weight_placeholders)
    for node in program.calls:
        if not program.is_size(node) and node not in reasons and node not in by_data:
            sources = [argument for argument in node.all_input_nodes if not program.is_size(argument)]
            if all(argument in found for argument in sources):
                found.add(node)
    return found


def _phases(program: Program, reasons: Mapping[fx.Node, str], by_data: Names) -> dict[fx.Node, int]:
    phases: dict[fx.Node, int] = {}
    free = _free(program, reasons, by_data)
    for node in program.calls:
        if program.is_size(node) or node in free:
            continue
        kind = int(node in reasons)
        before = [phases[source] for source in _sources(program, node, by_data) if source in phases]
        phases[node] = max((phase + (phase % 2 != kind) for phase in before), default=kind)
    return phases


def _sizes_from_data(program: Program) -> Names:
    """The names of the sizes that depend on data in what calls take and yield, where there are such."""
    own = {node: program.symbols(node) - program.signature.dims.keys() for node in program.nodes if node.op != "output"}
    named = {node: own[node].union(*(own[source] for source in node.all_input_nodes)) for node in program.calls}
    return {node: names for node, names in named.items() if names}


def _sources(program: Program, node: fx.Node, by_data: Names) -> Iterator[fx.Node]:
    """The tensors that a call reads, and those that tell the sizes which it reads where these depend on data."""
    for argument in node.all_input_nodes:
        if not program.is_size(argument):
            yield argument
        elif argument in by_data:
            yield from _sources(program, argument, by_data)


def _sizes_from_elsewhere(phases: Mapping[fx.Node, int], by_data: Names) -> dict[fx.Node, str]:
    """The calls of engines with sizes that another segment finds out, and the reason to run them in torch.

    TensorRT would need the most that such an input can have, and take its time for the least.
    """
    found_in: dict[str, int] = {}
    found: dict[fx.Node, str] = {}
    for node, phase in phases.items():
        names = by_data.get(node, set())
        if is_engine(phase) and any(found_in.get(name, phase) != phase for name in names):
            found[node] = "a size that depends on data, of which another segment knows"
        for name in names:
            found_in.setdefault(name, phase)
    return found


def _small_engines(program: Program, phases: Mapping[fx.Node, int], least: int) -> dict[fx.Node, str]:
    """The calls of engines that gain too little, with the reason to run them in torch."""
    gains: dict[int, int] = {}
    for node, phase in phases.items():
        if is_engine(phase):
            gains[phase] = gains.get(phase, 0) + _gain(node)
    return {
        node: f"an engine of so few operators does not pay (min_segment is {least})"
        for node, phase in phases.items()
        if is_engine(phase) and gains[phase] < least
    }


def _gain(node: fx.Node) -> int:
    packet = getattr(node.target, "overloadpacket", None)
    if packet is None or packet in _VIEWS:
        return _NOTHING
    return _MUCH if packet in _HEAVY else _LITTLE
