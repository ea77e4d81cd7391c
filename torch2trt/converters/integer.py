"""Division with rounding, its remainders, and arithmetic on the bits of integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from torch2trt.converters.elementwise import div, trunc
from torch2trt.converters.registry import converter, refuse
from torch2trt.sizes import DimRange, TensorSpec, largest, volume
from torch2trt.trt.arithmetic import Operand
from torch2trt.trt.core import FLOAT_DTYPES
from torch2trt.trt.dims import broadcast
from torch2trt.trt.flavour import Flavour
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor

aten = torch.ops.aten

refuse("aten.gcd.default", "aten.lcm.default", reason="how many steps Euclid's algorithm takes depends on the values")


def _floor_quotient_and_rest(net: Network, input: Operand, other: Operand) -> tuple[Tensor, Tensor]:
    """``floor(a / b)`` and ``a - floor(a / b) * b``, which has the sign of b.

    Of floats the quotient is rounded before the floor is taken: where that made it one too large the rest has the
    wrong sign, which both results make good. Both are then torch's wherever ``floor(a / b) * b`` is exact.
    """
    a, b = net.promote(input, other)
    if a.dtype not in FLOAT_DTYPES:
        quotient = net.elementwise("FLOOR_DIV", a, b)
        return quotient, net.elementwise("SUB", a, net.elementwise("PROD", quotient, b))
    a, b = (net.cast(operand, torch.float32) for operand in (a, b))
    zero, one = (net.tensor(number, a.dtype) for number in (0.0, 1.0))
    quotient = net.unary("FLOOR", net.elementwise("DIV", a, b))
    rest = net.elementwise("SUB", a, net.elementwise("PROD", quotient, b))
    beyond = net.elementwise("LESS", rest, zero)
    if not isinstance(other, int | float):
        above = net.elementwise("GREATER", rest, zero)
        beyond = net.select(net.elementwise("LESS", b, zero), above, beyond)
    elif other < 0:
        beyond = net.elementwise("GREATER", rest, zero)
    quotient = net.select(beyond, net.elementwise("SUB", quotient, one), quotient)
    rest = net.select(beyond, net.elementwise("SUM", rest, b), rest)
    return quotient, rest


@converter(aten.floor_divide.default, aten.floor_divide.Scalar)
def floor_divide(net: Network, input: Operand, other: Operand) -> Tensor:
    """floor_divide(Tensor self, Tensor other) -> Tensor"""
    quotient, _ = _floor_quotient_and_rest(net, input, other)
    return net.cast(quotient, net.promoted_dtype(input, other))


def _truncated_quotient(net: Network, input: Operand, other: Operand) -> Tensor:
    dtype = net.promoted_dtype(input, other)
    if dtype not in FLOAT_DTYPES:
        return net.binary("DIV", input, other)
    a, b = (net.tensor(operand, torch.float32) for operand in (input, other))
    return trunc(net, net.elementwise("DIV", a, b))


@converter(aten.div.Tensor_mode, aten.div.Scalar_mode)
def div_mode(net: Network, input: Operand, other: Operand, rounding_mode: str | None) -> Tensor:
    """div.Tensor_mode(Tensor self, Tensor other, *, str? rounding_mode) -> Tensor"""
    match rounding_mode:
        case None:
            return div(net, input, other)
        case "floor":
            return floor_divide(net, input, other)
        case _:
            return net.cast(_truncated_quotient(net, input, other), net.promoted_dtype(input, other))


@converter(aten.remainder.Tensor, aten.remainder.Scalar, aten.remainder.Scalar_Tensor)
def remainder(net: Network, input: Operand, other: Operand) -> Tensor:
    """remainder.Tensor(Tensor self, Tensor other) -> Tensor"""
    _, rest = _floor_quotient_and_rest(net, input, other)
    return net.cast(rest, net.promoted_dtype(input, other))


@converter(aten.fmod.Tensor, aten.fmod.Scalar)
def fmod(net: Network, input: Operand, other: Operand) -> Tensor:
    """fmod.Tensor(Tensor self, Tensor other) -> Tensor"""
    # The rest of the absolute values, with the sign of the dividend.
    a, b = net.promote(input, other)
    dtype = a.dtype
    _, rest = _floor_quotient_and_rest(net, net.unary("ABS", a), net.unary("ABS", b))
    negative = net.elementwise("LESS", a, net.tensor(0, dtype))
    return net.cast(net.select(negative, net.unary("NEG", rest), rest), dtype)


# -- bits --------------------------------------------------------------------------------------------------------------


def _places(net: Network, input: Tensor, other: Operand) -> tuple[Tensor, Tensor, int]:
    """Both operands by torch's promotion, 8-bit ones as int32, and the number of bits.

    Places that are negative, or as many as there are bits and more, become that many: to torch they are the same.
    """
    dtype = net.promoted_dtype(input, other)
    wide = dtype if dtype == torch.int64 else torch.int32
    a, places = (net.tensor(operand, wide) for operand in (input, other))
    bits = torch.iinfo(wide).bits
    if places.value is not None:
        value = places.value
        return a, net.constant(value.where((value >= 0) & (value < bits), bits)), bits
    too_many = net.tensor(bits, wide)
    negative = net.elementwise("LESS", places, net.tensor(0, wide))
    return a, net.select(negative, too_many, net.elementwise("MIN", places, too_many)), bits


def _look_up(net: Network, table: list[int], places: Tensor) -> Tensor:
    """The table's entry for each number of places."""
    entries = torch.tensor(table, dtype=places.dtype)
    if places.value is not None:
        return net.constant(entries[places.value.long()])
    return net.gather(net.constant(entries), places, 0)


@converter(
    *(aten.bitwise_left_shift.Tensor, aten.bitwise_left_shift.Tensor_Scalar, aten.bitwise_left_shift.Scalar_Tensor),
    *(aten.__lshift__.Tensor, aten.__lshift__.Scalar),
)
def left_shift(net: Network, input: Tensor, other: Operand) -> Tensor:
    """bitwise_left_shift.Tensor(Tensor self, Tensor other) -> Tensor"""
    a, places, bits = _places(net, input, other)
    # The last bit is the sign's.
    factors = [*(2**place for place in range(bits - 1)), -(2 ** (bits - 1)), 0]
    shifted = net.elementwise("PROD", a, _look_up(net, factors, places))
    return net.cast(shifted, net.promoted_dtype(input, other))


@converter(
    *(aten.bitwise_right_shift.Tensor, aten.bitwise_right_shift.Tensor_Scalar, aten.bitwise_right_shift.Scalar_Tensor),
    *(aten.__rshift__.Tensor, aten.__rshift__.Scalar),
)
def right_shift(net: Network, input: Tensor, other: Operand) -> Tensor:
    """bitwise_right_shift.Tensor(Tensor self, Tensor other) -> Tensor"""
    a, places, bits = _places(net, input, other)
    # The type holds no divisor for the last two numbers of places: what is beyond goes into a second one.
    most = bits - 2
    for divisors in ([2 ** min(place, most) for place in range(bits + 1)], [*[1] * (most + 1), 2, 4]):
        divisor = _look_up(net, divisors, places)
        if divisor.value is None or (divisor.value != 1).any():
            a = net.elementwise("FLOOR_DIV", a, divisor)
    return net.cast(a, net.promoted_dtype(input, other))


def _are_low_bits(mask: Any) -> bool:
    """Whether a number is one of 1, 3, 7, …."""
    return isinstance(mask, int) and mask > 0 and mask & (mask + 1) == 0


_PLANES = {torch.uint8: 8, torch.int8: 7, torch.int32: 31, torch.int64: 63}  # bits beside the sign's
_MOST_BITS = 2**26  # of one operand: 512 MB of int64


def _is_flag(operand: Any) -> bool:
    return isinstance(operand, bool) or (isinstance(operand, TensorSpec) and operand.dtype == torch.bool)


def _bits_unsupported(input: Any, other: Any, flavour: Flavour, ranges: Mapping[str, DimRange]) -> str | None:
    if _is_flag(input) and _is_flag(other):
        return None
    specs = [operand for operand in (input, other) if isinstance(operand, TensorSpec)]
    shape = broadcast(*(spec.shape for spec in specs))
    bits = max(_PLANES.get(spec.dtype, 63) for spec in specs)
    if bits > 8 and not flavour.has("exact_integers"):
        return "TensorRT rounds integers of more than 8 bits where it takes their bits"
    if len(shape) > 7:
        return "TensorRT tensors have at most 8 dimensions, and bits take one"
    if largest(volume(shape), ranges) * bits > _MOST_BITS:
        return f"the bits of more than {_MOST_BITS // bits} integers"
    return None


def _and_unsupported(input: Any, other: Any, flavour: Flavour, ranges: Mapping[str, DimRange]) -> str | None:
    return None if _are_low_bits(other) else _bits_unsupported(input, other, flavour, ranges)


def _common_bits(net: Network, a: Tensor, b: Tensor, planes: int) -> Tensor:
    """``a & b`` of int32 or int64, bit by bit: so many of them, and the sign's."""
    powers, two = net.constant(torch.tensor([2**place for place in range(planes)]).to(a.dtype)), net.tensor(2, a.dtype)

    def bits(tensor: Tensor) -> Tensor:
        # Division that rounds down leaves negative numbers the bits that they have.
        above = net.elementwise("FLOOR_DIV", net.unsqueeze(tensor, -1), powers)
        return net.elementwise("SUB", above, net.elementwise("PROD", net.elementwise("FLOOR_DIV", above, two), two))

    common = net.elementwise("PROD", net.elementwise("PROD", bits(a), bits(b)), powers)
    zero, below = net.tensor(0, a.dtype), net.tensor(-1, a.dtype)

    def sign(tensor: Tensor) -> Tensor:
        return net.elementwise("MIN", net.elementwise("MAX", tensor, below), zero)

    negative = net.elementwise(
        "PROD", net.elementwise("PROD", sign(a), sign(b)), net.tensor(torch.iinfo(a.dtype).min, a.dtype)
    )
    return net.elementwise("SUM", net.reduce("SUM", common, [-1], False), negative)


def _bitwise(operation: str) -> Callable[..., Tensor]:
    def converted(net: Network, input: Operand, other: Operand) -> Tensor:
        dtype = net.promoted_dtype(input, other)
        if dtype == torch.bool:
            return net.binary(operation, input, other)
        if operation == "AND" and _are_low_bits(other):
            # The low bits of an integer, a negative one too, are what remains after division by a power of 2.
            assert isinstance(other, int)
            return remainder(net, input, other + 1)
        wide = dtype if dtype == torch.int64 else torch.int32
        a, b = (net.tensor(operand, wide) for operand in (input, other))
        common = _common_bits(net, a, b, _PLANES[dtype])
        if operation == "AND":
            return net.cast(common, dtype)
        # Sums of numbers that have no bit in common.
        a, b = a if operation == "OR" else net.elementwise("SUB", a, common), net.elementwise("SUB", b, common)
        return net.cast(net.elementwise("SUM", a, b), dtype)

    return converted


for _name, _unsupported in (("and", _and_unsupported), ("or", _bits_unsupported), ("xor", _bits_unsupported)):
    _packets = getattr(aten, f"bitwise_{_name}"), getattr(aten, f"__{_name}__")
    _targets = [getattr(packet, overload) for packet in _packets for overload in ("Tensor", "Scalar")]
    converter(*_targets, _packets[0].Scalar_Tensor, unsupported=_unsupported)(_bitwise(_name.upper()))


@converter(aten.bitwise_not.default)
def bitwise_not(net: Network, input: Tensor) -> Tensor:
    """bitwise_not(Tensor self) -> Tensor"""
    return net.unary("NOT", input) if input.dtype == torch.bool else net.binary("SUB", -1, input)
