"""Activations written as formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.harness import check_module
from tests.passing import targets
from tests.rewriting import Net, drawn, rewritten
from torch2trt import api
from torch2trt.passes.unify_activations import unify_activations
from torch2trt.settings import Settings

aten = torch.ops.aten
ROOT = math.sqrt(2 / math.pi)
X = drawn(4, 8) * 3

TANH: dict[str, Callable[[Tensor], Tensor]] = {
    "new": lambda x: 0.5 * x * (1.0 + torch.tanh(ROOT * (x + 0.044715 * torch.pow(x, 3.0)))),
    "fast": lambda x: 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x))),
    "last": lambda x: (torch.tanh(ROOT * x * (1 + x * x * 0.044715)) + 1) * x * 0.5,
    "halved": lambda x: x / 2 * (1 + torch.tanh(ROOT * (x + 0.044715 * x * x * x))),
}
ERF: dict[str, Callable[[Tensor], Tensor]] = {
    "divided": lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))),
    "times": lambda x: 0.5 * (x * (torch.erf(x * 0.7071067811865476) + 1)),
}
SILU: dict[str, Callable[[Tensor], Tensor]] = {
    "after": lambda x: x * torch.sigmoid(x),
    "before": lambda x: torch.sigmoid(x) * x,
}


@pytest.mark.parametrize("name", TANH)
def test_the_tanh_form_of_gelu(name: str) -> None:
    program = rewritten(Net(TANH[name]), X, passes=(unify_activations,), tolerance=1e-8)
    assert targets(program) == [aten.gelu.default]
    assert program.calls[0].kwargs == {"approximate": "tanh"}
    check_module(Net(TANH[name]), (X,), Settings(precision="fp32", optimization_level=0))


@pytest.mark.parametrize(
    ("forms", "wanted"), [(ERF, aten.gelu.default), (SILU, aten.silu.default)], ids=["erf", "silu"]
)
def test_other_forms(forms: dict[str, Callable[[Tensor], Tensor]], wanted: object) -> None:
    for function in forms.values():
        program = rewritten(Net(function), X, passes=(unify_activations,), tolerance=1e-8)
        assert targets(program) == [wanted]
        assert program.calls[0].kwargs == {}


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "another-cube": lambda x: 0.5 * x * (1.0 + torch.tanh(ROOT * (x + 0.0447 * torch.pow(x, 3.0)))),
    "another-half": lambda x: 0.49 * x * (1.0 + torch.tanh(ROOT * (x + 0.044715 * torch.pow(x, 3.0)))),
    "another-sign": lambda x: 0.5 * x * (1.0 + torch.tanh(-ROOT * (x + 0.044715 * torch.pow(x, 3.0)))),
    "a-square": lambda x: 0.5 * x * (1.0 + torch.tanh(ROOT * (x + 0.044715 * torch.pow(x, 2.0)))),
    "two-instead-of-one": lambda x: 0.5 * x * (2.0 + torch.erf(x / math.sqrt(2.0))),
    "tanh-of-the-erf-form": lambda x: 0.5 * x * (1.0 + torch.tanh(x / math.sqrt(2.0))),
    "squared": lambda x: 0.5 * x * x * (1.0 + torch.erf(x / math.sqrt(2.0))),
    "another-tensor": lambda x: 0.5 * x.cos() * (1.0 + torch.erf(x / math.sqrt(2.0))),
    "by-a-tensor": lambda x: x / x.exp() * (1.0 + torch.erf(x / math.sqrt(2.0))),
    "quick-gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "a-gate": lambda x: x.cos() * torch.sigmoid(x),
    "by-zero": lambda x: x / 0 * (1.0 + torch.erf(x / math.sqrt(2.0))),
    "broadcast": lambda x: x[:1] * torch.sigmoid(x),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_another_function(name: str) -> None:
    program = rewritten(Net(OTHERS[name]), X, passes=(unify_activations,))
    assert not {aten.gelu.default, aten.silu.default} & set(targets(program))


def test_what_else_reads_a_part_keeps_it() -> None:
    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        gate = torch.sigmoid(x)
        return x * gate, gate

    program = rewritten(Net(both), X, passes=(unify_activations,))
    assert targets(program) == [aten.sigmoid.default, aten.silu.default]


def test_before_the_precision_is_set() -> None:
    # A cube alone would be computed in float32, between two casts.
    module = Net(
        lambda self, x: F.linear(TANH["new"](self.first(x)), self.w), first=torch.nn.Linear(8, 8), w=drawn(4, 8)
    )
    program = rewritten(module, X, precision="fp16", tolerance=1e-8)
    assert all(program.spec(node).dtype == torch.float16 for node in program.calls[:-1])


@pytest.mark.parametrize(
    "function", [SILU["after"], ERF["divided"], lambda x: x * (x > 2) * torch.sigmoid(x)], ids=["silu", "gelu", "mask"]
)
def test_whole_numbers_are_left_alone(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.arange(-4, 4)
    program = rewritten(Net(function), x, passes=(unify_activations,), tolerance=1e-6)
    assert not {aten.silu.default, aten.gelu.default} & set(targets(program))


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        *((SILU["after"], name) for name in ("aten.sigmoid", "aten.mul")),
        *((TANH["new"], name) for name in ("aten.tanh", "aten.add", "aten.pow", "aten.mul")),
    ],
)
def test_what_is_to_run_in_torch_is_left_alone(function: Callable[[Tensor], Tensor], operator: str) -> None:
    program = api.optimize(api.capture(Net(function), (X,)), Settings(run_in_torch=(operator,), min_segment=1))
    assert not {aten.silu.default, aten.gelu.default} & set(targets(program))


def test_squares_of_squares() -> None:
    # As many factors as no computer could list.
    def power(x: Tensor) -> Tensor:
        y, z = x, x
        for _ in range(60):
            y, z = y * y, z + z
        return y + 0.5 * x * (1 + torch.tanh(y)) + 0.5 * x * (1 + torch.tanh(z))

    program = rewritten(Net(power), drawn(4).sign(), passes=(unify_activations,))
    assert aten.gelu.default not in targets(program)
