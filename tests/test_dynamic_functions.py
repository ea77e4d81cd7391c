"""What torch would trace with fixed sizes, or not at all, and numbers that are no integers: whole, in every size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
from tests import torch_can
from tests.harness import check_module
from tests.passing import Function
from tests.rewriting import drawn
from torch2trt import api
from torch2trt.settings import Settings
from torch2trt.sizes import DimRange, are_same, size_from_json

SINCE_212 = pytest.mark.skipif(not torch_can.compute_ends_of_slices(), reason="torch 2.11 cannot trace it")
EXACT = Settings(precision="fp32", optimization_level=0, progress="none", min_segment=1, fallback=False)
SIZE = Dim("size", min=1, max=32)
ROWS = {0: SIZE}
SIDES = {2: Dim("high", min=4, max=32), 3: Dim("wide", min=4, max=32)}


def rows(count: int) -> Tensor:
    return drawn(count, 8)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: torch.linspace(-1, 1, x.shape[0])[:, None] + x, id="linspace"),
        pytest.param(lambda x: torch.linspace(0.5, x.shape[0] - 0.5, steps=x.shape[0]) + x.sum(), id="linspace-ends"),
        pytest.param(
            lambda x: torch.linspace(3, -7, x.shape[0] + 2, dtype=torch.float32) + x.sum(), id="linspace-down"
        ),
        pytest.param(lambda x: torch.cdist(x, torch.ones(5, 8).to(x)), id="cdist"),
        pytest.param(lambda x: torch.take_along_dim(x, x.argsort(1), 1), id="take-along"),
        pytest.param(lambda x: torch.take_along_dim(x, torch.tensor([[3, 1]]), -1), id="take-along-broadcast"),
        pytest.param(lambda x: torch.take_along_dim(x, torch.tensor([3, 1])), id="take-along-none"),
        pytest.param(lambda x: x / math.sqrt(x.shape[0]), id="sqrt"),
        pytest.param(lambda x: x * x.shape[0] ** -0.5, id="power"),
        pytest.param(lambda x: x * (1 / x.shape[0]) + (x.shape[0] * 0.5 - 1), id="inverse"),
        pytest.param(lambda x: 1.5 * x.shape[0] - x, id="reversed"),
        pytest.param(lambda x: x.masked_fill(x > 0, x.shape[0] / 7), id="masked-fill"),
        pytest.param(lambda x: torch.where(x > 0, x.shape[0] / 7, x), id="where"),
        pytest.param(lambda x: torch.where(x > 0, x.shape[0] / 7, 2), id="where-numbers"),
        pytest.param(lambda x: x.clamp(0, x.shape[0] / 20), id="clamp"),
        pytest.param(lambda x: x.clamp(max=x.shape[0] / 20), id="clamp-max"),
        pytest.param(lambda x: x.abs() ** (1 / x.shape[0]), id="exponent", marks=SINCE_212),
        pytest.param(lambda x: (1 / (x.shape[0] + 1)) ** x, id="base"),
        pytest.param(lambda x: torch.full((2,), x.shape[0] / 7) + x.sum(), id="full"),
        pytest.param(lambda x: x.new_full((2,), -x.shape[0] / 7) + x.sum(), id="new-full"),
        pytest.param(lambda x: torch.tensor(x.shape[0] / 3) + x, id="tensor"),
        pytest.param(lambda x: (x > x.shape[0] / 64).float(), id="comparison"),
        pytest.param(lambda x: (x * 9).long() * (x.shape[0] / 2), id="of-integers"),
        pytest.param(lambda x: x.long().sum() * (x.shape[0] / 2) + x.sum() * (x.shape[0] / 2), id="no-dimensions"),
        pytest.param(lambda x: x / x.abs().max().item(), id="item"),
        pytest.param(lambda x: x * x.abs().sum().item() / x.shape[0] + 2 * x.std().item(), id="items"),
        pytest.param(lambda x: x * (x > 0).sum().item(), id="integer-item"),
    ],
)
def test_every_size(function: Callable[..., Any]) -> None:
    others = [(rows(count),) for count in (1, 2, 7, 32)]
    check_module(Function(function), (rows(6),), EXACT, dynamic_shapes=(({**ROWS},),), others=others)


def test_halves_stay_halves() -> None:
    program = api.optimize(
        api.capture(
            Function(lambda x: (x * (x.shape[0] / 3), x.sum() * (x.shape[0] / 3))),
            (rows(6).half(),),
            dynamic_shapes=(({**ROWS},),),
        ),
        Settings(),
    )
    assert {leaf.spec.dtype for leaf in program.signature.tensor_outputs} == {torch.float16}
    x = rows(9).half()
    for found, wanted in zip(program(x), (x * 3, x.sum() * 3), strict=True):
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3)


def test_what_has_no_tensor_for_the_number_is_refused() -> None:
    module = Function(lambda x: torch.add(x, x, alpha=x.shape[0] / 3))
    with pytest.raises(torch2trt.UnsupportedOpsError, match="no integer"):
        torch2trt.compile(module, (rows(6),), dynamic_shapes=(({**ROWS},),), settings=EXACT)


def test_chunks_of_what_is_a_multiple() -> None:
    module = Function(lambda x: x.chunk(2)[0] - x.chunk(2)[1])
    others = [(rows(2),), (rows(16),)]
    dynamic = (({0: 2 * Dim("half", min=1, max=8)},),)
    check_module(module, (rows(6),), EXACT, dynamic_shapes=dynamic, others=others)


def padded(x: Tensor) -> Tensor:
    return F.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4))


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(
            lambda x: F.interpolate(F.max_pool2d(padded(x), 2), scale_factor=2)[..., : x.shape[2], : x.shape[3]],
            marks=SINCE_212,
        ),
        lambda x: F.avg_pool2d(F.interpolate(padded(x), scale_factor=2), 2),
        lambda x: F.interpolate(x, size=(-(-x.shape[2] // 4), -(-x.shape[3] // 3))),
    ],
    ids=["cropped", "larger", "rounded-up"],
)
def test_images_padded_to_a_multiple(function: Callable[..., Any]) -> None:
    others = [(drawn(1, 3, high, wide),) for high, wide in ((4, 4), (5, 31), (32, 6))]
    check_module(Function(function), (drawn(1, 3, 8, 8),), EXACT, dynamic_shapes=(({**SIDES},),), others=others)


def test_sizes_are_compared_by_value() -> None:
    ranges = {"n": DimRange(1, 8, 100), "m": DimRange(1, 8, 100)}
    same, other = size_from_json("Min(n, 4*((n + 3)//4))"), size_from_json("Min(n, 4*((n + 2)//4))")
    assert are_same(same, size_from_json("n"), ranges)
    assert not are_same(other, size_from_json("n"), ranges)
    assert not are_same(size_from_json("n*m"), size_from_json("n*n"), ranges)
    assert not are_same(same, size_from_json("n"), {})


def test_nothing_negative_is_divided() -> None:
    assert str(size_from_json("n + PythonMod(-n, 4)")) == "4*(((n + 3)//4))"
    assert str(size_from_json("-FloorDiv(-n, 4)")) == "((n + 3)//4)"
    assert str(size_from_json("PythonMod(n, 4)")) == "PythonMod(n, 4)"


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Transformer(16, 4, 1, 1, 32, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Any:
        mask = self.layers.generate_square_subsequent_mask(target.shape[1])
        return self.layers(source, target, tgt_mask=mask)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_transformer_with_a_mask_of_its_own(dynamic: bool) -> None:
    shapes = ({1: SIZE}, {1: Dim("words", min=1, max=32)}) if dynamic else None
    others = [(drawn(2, 1, 16), drawn(2, 32, 16)), (drawn(2, 9, 16), drawn(2, 1, 16))] if dynamic else []
    inputs = (drawn(2, 5, 16), drawn(2, 4, 16, seed=1))
    check_module(Translator().eval(), inputs, EXACT, dynamic_shapes=shapes, others=others)


def test_modules_that_are_moved_where_they_are() -> None:
    class Moving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Any:
            self.layer = self.layer.to(x.dtype).to(x.device)
            return self.layer(x)

    module = Moving().eval()
    program = api.capture(module, (rows(6),))
    torch.testing.assert_close(program(rows(6)), module(rows(6)))


def test_batched_functions() -> None:
    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(drawn(5, 8, 4))

        def forward(self, x: Tensor) -> Any:
            return torch.vmap(lambda weight: torch.tanh(x @ weight))(self.weight).mean(0)

    others = [(rows(1),), (rows(32),)]
    check_module(Ensemble().eval(), (rows(6),), EXACT, dynamic_shapes=({**ROWS},), others=others)


def test_python_keeps_its_own_root() -> None:
    before = math.sqrt, nn.Module.to
    api.capture(Function(lambda x: x * 2), (rows(6),))
    assert (math.sqrt, nn.Module.to) == before
