"""Products with a constant for each channel, as layer scale is one, as part of the convolution or linear before."""

from __future__ import annotations

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import call, erase_unused, only_user
from torch2trt.graph.schema import bind
from torch2trt.passes.channel_scales import LAYERS, cast, channel_of, scaled
from torch2trt.passes.constants import constants, value_of
from torch2trt.passes.set_precision import DTYPES
from torch2trt.passes.views import axes_of, order_of
from torch2trt.settings import Settings

aten = torch.ops.aten


def fold_channel_scales(program: Program, settings: Settings) -> None:
    """Multiply the weights of a layer, in float32, where its result is multiplied by a constant for each channel.

    Permutations between the two stay. This comes before the precision is set, and is done only where the precision
    holds the new weights as well as the old: layer scale starts at 1e-6, with which weights in halves would be zero.
    """
    constant = constants(program)
    for node in program.calls:
        if node.target is not aten.mul.Tensor or len(node.all_input_nodes) != 2:
            continue
        first, second = node.all_input_nodes
        for factor, source in ((first, second), (second, first)):
            if factor in constant and _fold(program, settings, node, factor, source, constant):
                # The new weights may take the next scale.
                constant = constants(program)
                break
    erase_unused(program.graph.graph)


def _fold(
    program: Program, settings: Settings, node: fx.Node, factor: fx.Node, source: fx.Node, constant: set[fx.Node]
) -> bool:
    chain = _chain(program, node, source)
    if chain is None or program.spec(node) != program.spec(source):
        return False
    layer, bound = chain[0], bind(chain[0])
    if not _is_of_channels(program, factor, chain):
        return False
    weights, own = [item for item in (bound["weight"], bound["bias"]) if item is not None], channel_of(bound)
    if not constant.issuperset(weights) or own is None or program.spec(weights[0]).rank < 2:
        return False
    dtype = program.spec(node).dtype if settings.precision is None else DTYPES[settings.precision]
    if not _holds(program, weights, factor, own, dtype):
        return False
    graph = program.graph.graph
    with graph.inserting_before(node):
        vector = call(graph, aten.view.default, cast(factor, torch.float32, node), [-1], like=node)
        result = scaled(layer, vector, None, like=node)
        for item in chain[1:]:
            result = call(graph, item.target, result, *item.args[1:], like=item)
    node.replace_all_uses_with(result)
    return True


def _chain(program: Program, node: fx.Node, source: fx.Node) -> list[fx.Node] | None:
    """The layer and the permutations behind it that lead to a node and nowhere else, in order."""
    chain = [source]
    while order_of(program, chain[0]) is not None and only_user(chain[0]) is not None:
        chain.insert(0, chain[0].all_input_nodes[0])
    alone = all(only_user(item) is following for item, following in zip(chain, [*chain[1:], node], strict=True))
    return chain if alone and chain[0].target in LAYERS else None


def _is_of_channels(program: Program, factor: fx.Node, chain: list[fx.Node]) -> bool:
    """Whether a factor of a chain's result has a number for each of its layer's channels."""
    rank = program.spec(chain[0]).rank
    channel = rank - 1 if chain[0].target is aten.linear.default else 1
    for item in chain[1:]:
        channel = axes_of(item, rank).index(channel)
    shape = program.spec(factor).shape
    count = program.spec(chain[-1]).shape[channel]
    return (*[1] * (rank - len(shape)), *shape) == tuple(count if axis == channel else 1 for axis in range(rank))


def _holds(program: Program, weights: list[fx.Node], factor: fx.Node, channel: int, dtype: torch.dtype) -> bool:
    """Whether a dtype rounds the scaled weights no more than any, all channels taken together."""
    if torch.finfo(dtype).smallest_normal <= torch.finfo(torch.float32).smallest_normal:
        return True
    scale = value_of(program, factor).float().flatten()
    rows = [value_of(program, item).float().movedim(channel if item is weights[0] else 0, 0) for item in weights]
    exact = torch.cat([row.reshape(len(scale), -1) * scale[:, None] for row in rows], 1)
    lost = (exact.to(dtype).float() - exact).norm()
    return bool(lost <= torch.finfo(dtype).eps / 2 * exact.norm())
