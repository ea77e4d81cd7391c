"""The interpreter against TensorRT itself, without a GPU.

TensorRT computes what depends on small constants alone while it builds, and rejects a network with an assertion
that does not hold. So an assertion that a layer of constants equals what the interpreter says tells whether it does.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.bare_network import FLAVOUR, BareNetwork, build, first, trt
from tests.layers import index, neural, pointwise, shape
from tests.layers.row import Row

# What TensorRT computes while it builds, by the beginnings of the rows' names …
FOLDED = (
    "activation",
    "cast",
    "concatenation",
    "constant",
    "elementwise",
    "fill",
    "gather",
    "identity",
    "matmul-vector",
    "one_hot",
    "reduce",
    "shape",
    "shuffle",
    "slice",
    "squeeze",
    "unary",
    "unsqueeze",
    "vector",
)
# … and what of it not.
NOT_FOLDED = {
    "activation-RELU-int32": "only floating point is folded",
    "cast-float16": "only FLOAT is folded",
    "cast-from-uint8": "there are no constants of this type",
    "gather-nd": "too large",
    "gather-outside": "an error while building, zeros in an engine",
    **{f"reduce-{op}-of-nothing": "there are no empty constants" for op in ("MAX", "MIN", "SUM", "PROD")},
    "slice-FILL-value": "only integers are folded",
    **dict.fromkeys(("slice-empty", "slice-FILL-empty"), "there are no empty constants"),
}
ROWS = [
    row
    for family in (index, neural, pointwise, shape)
    for row in family.ROWS
    if row.name.startswith(FOLDED) and row.name not in NOT_FOLDED
]


def flat(net: BareNetwork, tensor: Any) -> Any:
    layer = net.definition.add_shuffle(tensor)
    layer.reshape_dims = (-1,)
    return first(layer)


def equal(net: BareNetwork, tensor: Any, value: Tensor) -> Any:
    """Whether a tensor has a value, element by element; floating point up to 1e-5 of the largest."""
    a, b = flat(net, tensor), net.constant(value.reshape(-1))
    operations = trt.ElementWiseOperation
    if not value.is_floating_point():
        return first(net.definition.add_elementwise(a, b, operations.EQUAL))
    difference = first(net.definition.add_elementwise(a, b, operations.SUB))
    error = first(net.definition.add_unary(difference, trt.UnaryOperation.ABS))
    bound = net.constant(1e-5 * value.abs().max().reshape(1) + 1e-7)
    return first(net.definition.add_elementwise(error, bound, operations.LESS))


def folded(row: Row) -> tuple[BareNetwork, Any]:
    """The row with constants in place of its inputs, in a network with an output of its own."""
    if row.needs and not FLAVOUR.has(row.needs):
        pytest.skip(f"{FLAVOUR.name} {FLAVOUR.version_text} has no {row.needs}")
    net = BareNetwork()
    net.output(net.input("other", torch.zeros(1)))
    return net, row.build(net, *(net.constant(x) for x in row.inputs))


def other(value: Tensor) -> Tensor:
    return ~value if value.dtype == torch.bool else value + 1


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_tensorrt_computes_the_same(row: Row) -> None:
    net, tensor = folded(row)
    net.output(tensor)
    value = net.run(torch.zeros(1))[-1]

    net, tensor = folded(row)
    net.definition.add_assertion(equal(net, tensor, value), "the interpreter is wrong")
    build(net)

    # TensorRT would also build what it cannot fold
    net, tensor = folded(row)
    net.definition.add_assertion(equal(net, tensor, other(value)), "which is as it should be")
    with pytest.raises(AssertionError, match=r"is false.*which is as it should be"):
        build(net)
