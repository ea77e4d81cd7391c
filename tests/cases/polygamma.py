"""Rows of torch2trt/converters/polygamma.py."""

from __future__ import annotations

import math
from functools import partial

import torch

from tests.cases import together
from tests.cases.special import GAMMA, POSITIVE
from tests.harness import OpCase

special = torch.special
ORDERS = together(*(partial(torch.polygamma, order) for order in (0, 1, 2, 3, 6)))
ZETAS = together(*(partial(special.zeta, order) for order in (2, 3.0, 6)))
VALUES = {name: values for name, values in GAMMA.items() if name not in ("small", "negative")}
VALUES["tiny"] = torch.tensor([1e-3, 0.01, 0.1, 0.5])
VALUES["below"] = torch.tensor([-0.5, -1.25, -2.75, -10.5, -0.3])

CASES = [
    *(OpCase(f"polygamma-{name}", ORDERS, (values,)) for name, values in VALUES.items() if name != "near"),
    *(
        OpCase(f"polygamma-{order}-{name}", partial(torch.polygamma, order), (values,), tolerance=3)
        for order in (1, 2, 11, 20)
        for name, values in VALUES.items()
    ),
    OpCase("polygamma-half", partial(torch.polygamma, 1), (POSITIVE.half(),)),
    OpCase("polygamma-int", ORDERS, (torch.arange(1, 9),)),
    OpCase("polygamma-scalar", ORDERS, (torch.tensor(1.5),)),
    OpCase("polygamma-dynamic", ORDERS, (POSITIVE,), dynamic={0: {0: (1, 5), 1: (2, 60)}}),
    OpCase(
        "polygamma-ends",
        together(*(partial(torch.polygamma, order) for order in (0, 1))),
        (torch.tensor([0.5, math.inf, math.nan]),),
    ),
    OpCase("polygamma-poles", together(*(partial(torch.polygamma, order) for order in (2, 3))), (-torch.arange(4.0),)),
    OpCase("polygamma-high", partial(torch.polygamma, 21), (POSITIVE,), unsupported="of order 21: 20 at most"),
    OpCase("zeta", ZETAS, (POSITIVE,)),
    OpCase("zeta-below", ZETAS, (torch.tensor([-0.5, -1.25, -2.75, -10.5, -0.3, -2.0, 0.0]),)),
    OpCase("zeta-int", ZETAS, (torch.arange(-2, 9),)),
    OpCase("zeta-fraction", partial(special.zeta, 2.5), (POSITIVE,), unsupported="the zeta function of 2.5"),
    OpCase("zeta-tensors", special.zeta, (POSITIVE + 2, POSITIVE), unsupported="how many terms"),
    OpCase("gammainc", special.gammainc, (POSITIVE, POSITIVE), unsupported="how many terms"),
]
