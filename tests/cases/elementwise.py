"""Rows of torch2trt/converters/elementwise.py."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch.export import Dim

from tests.cases import normal, together
from tests.harness import OpCase

HALF, BRAIN = torch.float16, torch.bfloat16
X, Y, ROW, COLUMN = normal(2, 3, 4), normal(2, 3, 4, seed=1), normal(4, seed=2), normal(3, 1, seed=3)
SCALAR = torch.tensor(1.5)
POSITIVE, UNIT = X.abs() + 0.1, X.tanh() * 0.9
INTS = torch.arange(-12, 12).reshape(2, 3, 4)
NARROW_INTS = INTS.to(torch.int32)
BYTES = torch.arange(240, 264).remainder(256).to(torch.uint8).reshape(2, 3, 4)
FLAGS, OTHER_FLAGS = X > 0, Y > 0
SMALL = torch.tensor([1e-7, -1e-6, 1e-4])
BATCH = {0: {0: (1, 5)}}

ARITHMETIC = together(torch.add, torch.mul, torch.maximum, torch.div, lambda x, y: x.minimum(y) if y.dim() else x + y)
# Every pair of dtypes that torch promotes in its own way.
PROMOTED = [
    OpCase(f"arithmetic-{text}", ARITHMETIC, args)
    for text, args in {
        "float": (X, POSITIVE),
        "broadcast": (ROW, COLUMN),
        "float-half": (X, Y.half()),
        "half": (X.half(), Y.half()),
        "bfloat16": (X.to(BRAIN), ROW.to(BRAIN)),
        "int-float": (INTS, Y),
        "int-half": (INTS, Y.half()),
        "int64-int32": (INTS, NARROW_INTS + 20),
        "bool-int": (FLAGS, INTS + 20),
        "bool": (FLAGS, torch.tensor(True)),
        "bool-float": (FLAGS, Y),
        "bytes": (BYTES, BYTES // 2 + 1),
        "half-scalar-float": (X.half(), SCALAR),
        "int-scalar-half": (INTS, SCALAR.half()),
        "scalars": (SCALAR, torch.tensor(3)),
        "int32-scalar-int64": (NARROW_INTS, torch.tensor(3)),
        "zeros": (X, torch.zeros(4)),
    }.items()
]

NUMBERS = [
    OpCase(f"numbers-{text}", together(*functions), (x,), tensorrt="torch.int8" if x.dtype == torch.int8 else "")
    for text, x, functions in (
        ("float", POSITIVE, (lambda x: x + 2, lambda x: 1 - x, lambda x: 2 / x, lambda x: x / 3, lambda x: 2 * x - 1)),
        ("half", POSITIVE.half(), (lambda x: x + 0.1, lambda x: 1 - x, lambda x: 2 / x, lambda x: x * 7)),
        ("int", INTS + 13, (lambda x: x + 2, lambda x: x + 2.5, lambda x: 1 - x, lambda x: x / 4, lambda x: x * 0.5)),
        ("bool", FLAGS, (lambda x: x + 2, lambda x: x + 0.5, lambda x: x * True, lambda x: 1 - x.int())),
        ("bytes", BYTES, (lambda x: x + 9, lambda x: x - 250, lambda x: (x * 2 + 1) * 0.5, lambda x: 255 - x)),
        (
            "int8",
            INTS.to(torch.int8),
            (lambda x: x + 2, lambda x: x * 50, lambda x: x * 0.5, lambda x: x.flip(0).abs()),
        ),
        ("scalar", SCALAR, (lambda x: x + 2, lambda x: 1 - x, lambda x: x * x)),
    )
]

COMBINED = [
    OpCase(
        "alpha",
        together(
            lambda x, y: x.add(y, alpha=-0.3), lambda x, y: x.sub(y, alpha=2), lambda x, y: torch.rsub(x, 3, alpha=2)
        ),
        (X, ROW),
    ),
    OpCase("alpha-int", lambda x, y: (x.add(y, alpha=3), x.sub(y, alpha=2)), (INTS, NARROW_INTS)),
    OpCase("alpha-half-int", torch.add, (X.half(), INTS), {"alpha": 0.5}),
    OpCase("add-weight", lambda x, y: (x + y, x - y, x * y, x / y), (X, ROW), weights=(1,)),
    OpCase("add-dynamic", lambda x, y: (x + y, x + x.mT[:, :1]), (normal(2, 4, 4), ROW), dynamic=BATCH),
    OpCase(
        "sizes",
        together(lambda x: x + x.shape[0], lambda x: x.half() / x.shape[0], lambda x: x.long() * (2 * x.shape[0] - 1)),
        (X,),
        dynamic=BATCH,
    ),
    OpCase("max-other", lambda x, y: (torch.max(x, y), torch.min(x, y)), (X, Y)),
    OpCase("addcmul", torch.addcmul, (X, Y, ROW), {"value": 0.5}),
    OpCase("addcmul-int", torch.addcmul, (INTS, INTS, INTS), {"value": 2}),
    OpCase("addcdiv", torch.addcdiv, (X, Y, POSITIVE), {"value": 2}),
    OpCase("lerp", lambda x, y, weight: (x.lerp(y, 0.3), x.lerp(y, weight)), (X, Y, UNIT.abs())),
    OpCase("lerp-half", torch.lerp, (X.half(), Y.half(), 0.7)),
    OpCase("type_as", lambda x, y: x.type_as(y), (X, INTS)),
    OpCase("hypot", torch.hypot, (X, Y)),
    OpCase("hypot-half", torch.hypot, ((X * 300).half(), ROW.half())),
    OpCase("atan2", torch.atan2, (X, Y)),
    OpCase("atan2-axes", torch.atan2, (torch.tensor([0, 0, 2.0, -2, 0, -0.5]), torch.tensor([2.0, -2, 0, 0, 0, -3]))),
    OpCase("atan2-int", torch.atan2, (INTS, INTS.flip(0))),
]

EXPONENTS = (0, 1, 2, 3, 0.5, -0.5, 2.5, 4, -1)
FAR_EXPONENTS = torch.tensor([-3, -2, -1, 0, 1, 5, 39, 62, 63, 64, 126, 255])
POWERS = [
    OpCase("powers", together(*(lambda x, n=n: x**n for n in EXPONENTS)), (POSITIVE,)),
    OpCase("powers-half", together(*(lambda x, n=n: x**n for n in EXPONENTS)), (POSITIVE.half(),)),
    OpCase("powers-int", together(*(lambda x, n=n: x**n for n in EXPONENTS[:-1])), (INTS.abs() + 1,)),
    OpCase("powers-int32", together(*(lambda x, n=n: x**n for n in (2, 4))), (NARROW_INTS,)),
    OpCase("powers-overflowing", together(*(lambda x, n=n: x**n for n in (7, 20, 63, 101))), (INTS,)),
    OpCase("powers-bytes", together(*(lambda x, n=n: x**n for n in (2, 5)), lambda x: x**x), (BYTES,)),
    OpCase("powers-bool", together(lambda x: x**2, lambda x: x**1.5, torch.square), (FLAGS,)),
    OpCase("powers-of-negative", together(lambda x: x**3.0, lambda x: x**4, lambda x: x ** torch.arange(4)), (X,)),
    OpCase("powers-tensor", together(torch.pow, lambda x, y: 2**y, lambda x, y: 2 ** y.abs().long()), (POSITIVE, Y)),
    OpCase("powers-tensor-int", lambda x, n: (x**n, 2**n), (INTS, torch.arange(4))),
    OpCase("powers-tensor-int-far", torch.pow, torch.meshgrid(torch.arange(-3, 4), FAR_EXPONENTS, indexing="ij")),
    OpCase("powers-tensor-int32", lambda x, n: (x**n, 3**n), (NARROW_INTS, NARROW_INTS.flip(0).abs())),
    OpCase(
        "powers-of-units", torch.pow, (torch.tensor([[-1], [0], [1], [2]]), torch.tensor([254, 255, 256, 2**40 + 1]))
    ),
]

WHOLE = together(torch.floor, torch.ceil, torch.round, torch.trunc, torch.fix, torch.abs, torch.neg, torch.sign)
FUNCTIONS = [
    OpCase(f"{text}{suffix}", functions, (x.to(dtype),))
    for suffix, dtype in (("", torch.float32), ("-half", HALF), ("-bfloat16", BRAIN))
    for text, x, functions in (
        ("whole", X * 3, together(WHOLE, torch.frac, torch.sgn, torch.square)),
        (
            "exponentials",
            X,
            together(torch.exp, torch.exp2, torch.expm1, torch.erf, torch.erfc, torch.sinh, torch.cosh),
        ),
        ("waves", X, together(torch.sin, torch.cos, torch.tan, torch.atan, torch.asinh, torch.arctan)),
        ("logarithms", POSITIVE, together(torch.log, torch.log2, torch.log10, torch.log1p)),
        ("roots", POSITIVE, together(torch.sqrt, torch.rsqrt, torch.reciprocal, lambda x: torch.acosh(x + 1))),
        ("arcs", UNIT, together(torch.asin, torch.acos, torch.atanh)),
    )
] + [
    OpCase("whole-int", WHOLE, (INTS,)),
    OpCase("whole-int32", WHOLE, (NARROW_INTS,)),
    OpCase("whole-bytes", together(torch.abs, torch.sign, torch.floor), (BYTES,)),
    OpCase("whole-scalar", WHOLE, (SCALAR,)),
    OpCase("whole-dynamic", WHOLE, (X,), dynamic=BATCH),
    OpCase("whole-infinite", WHOLE, (torch.tensor([math.inf, -math.inf, -0.5, 2.0]),)),
    OpCase("round-halves", torch.round, (torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]),)),
    OpCase("round-decimals", lambda x: (x.round(decimals=1), x.round(decimals=-1)), (X * 20,)),
    OpCase("sign-bool", torch.sign, (FLAGS,)),
    OpCase("functions-int", together(torch.exp, torch.sin, torch.expm1, torch.exp2, torch.erfc), (INTS,)),
    OpCase("logarithms-int", together(torch.log, torch.log2, torch.log1p, torch.sqrt, torch.rsqrt), (INTS.abs() + 1,)),
    OpCase("functions-scalar", together(torch.exp, torch.log1p, torch.rsqrt, torch.exp2), (SCALAR,)),
    OpCase("functions-dynamic", together(torch.exp, torch.log1p, torch.expm1), (POSITIVE,), dynamic=BATCH),
    OpCase("small", together(torch.expm1, torch.log1p), (SMALL,)),
    OpCase("log1p-ends", torch.log1p, (torch.tensor([-1.0, math.inf, 1e30, 0.0]),)),
    OpCase("expm1-ends", torch.expm1, (torch.tensor([-math.inf, math.inf, -100, 0.0]),)),
]

CASTS = [
    OpCase(
        f"casts-{text}",
        together(*(lambda x, dtype=dtype: x.to(dtype) for dtype in dtypes)),
        (x,),
        tensorrt="torch.int8" if torch.int8 in (x.dtype, *dtypes) else "",
    )
    for text, x, dtypes in (
        ("float", X * 3, (HALF, BRAIN, torch.int64, torch.int32, torch.bool)),
        ("fractions", torch.tensor([0.0, 0.25, -0.25, 2.0]), (torch.bool, torch.int64)),
        ("half", X.half(), (torch.float32, torch.int64, BRAIN)),
        ("int", INTS, (torch.float32, HALF, torch.int32, torch.bool, torch.uint8)),
        ("bool", FLAGS, (torch.float32, HALF, torch.int64, torch.uint8)),
        ("bytes", BYTES, (torch.float32, HALF, torch.int64, torch.bool)),
        ("to-bytes", POSITIVE * 50, (torch.uint8,)),
        ("int8", INTS.to(torch.int8), (torch.float32, HALF, torch.int32, torch.int64, torch.bool, torch.uint8)),
        ("to-int8", INTS * 1000, (torch.int8, torch.uint8)),
    )
]

SIGNS = torch.where(X.abs() < 0.5, -0.0 * X.sign(), X)
ENDS = torch.tensor([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan])

# What torch decomposes into the above, and what has to do with signs.
COMPOSITES = [
    OpCase("composites", together(torch.logaddexp, torch.xlogy, torch.heaviside), (X, POSITIVE)),
    OpCase("composites-of-one", together(torch.deg2rad, torch.sinc, F.tanhshrink, F.softsign, torch.positive), (X,)),
    OpCase(
        "thresholds", together(F.softshrink, F.hardshrink, lambda x: F.threshold(x, 0.1, 20), lambda x: x.clip(0)), (X,)
    ),
    OpCase("logit", torch.logit, (UNIT.abs(), 1e-6)),
    OpCase("true_divide", torch.true_divide, (INTS, 2)),
    OpCase("native_dropout", lambda x: torch.native_dropout(x * 2, 0.5, False), (X,)),
    OpCase(
        "signs", together(torch.signbit, lambda x: torch.copysign(Y, x), lambda x: torch.copysign(x, -2.0)), (SIGNS,)
    ),
    OpCase("signs-int", torch.signbit, (INTS,)),
    OpCase("real-angle", torch.angle, (SIGNS,)),
    OpCase("atan2-ends", lambda x: torch.atan2(ENDS[:, None], x), (ENDS,)),
    OpCase("hypot-ends", lambda x: torch.hypot(ENDS[:, None], x), (ENDS,)),
    OpCase("hypot-far", torch.hypot, (torch.tensor([3e30, 4e25]), torch.tensor([4e30, 3e25]))),
    OpCase("hypot-small", torch.hypot, (torch.tensor([3e-30]), torch.tensor([4e-30]))),
    OpCase("float_power-refused", torch.float_power, (X, 2), unsupported="float64"),
]

# Neighbours differ by less than the tolerance: here on which side they are, in test_neighbours.py their bits.
STEPS = together(
    torch.nextafter, *(lambda x, y, sign=sign: (torch.nextafter(x, y) - x).sign() == sign for sign in (-1, 1))
)
NEIGHBOURS = torch.tensor([1.0, -1.0, 0.1, 2.0, -3.7, 1e30, 1e-30, -1e-25, 2.0**-100, 65504, -1.0])
STEPPING = [
    OpCase("nextafter", STEPS, (NEIGHBOURS, NEIGHBOURS.flip(0))),
    OpCase("nextafter-broadcast", STEPS, (X, ROW)),
    OpCase(
        "nextafter-dynamic", STEPS, (X, Y), dynamic={0: {0: Dim("n", min=1, max=5)}, 1: {0: Dim("n", min=1, max=5)}}
    ),
    OpCase("nextafter-bfloat16", STEPS, (NEIGHBOURS.to(BRAIN), NEIGHBOURS.flip(0).to(BRAIN))),
]

CASES = [*STEPPING, *PROMOTED, *NUMBERS, *COMBINED, *POWERS, *FUNCTIONS, *CASTS, *COMPOSITES]
