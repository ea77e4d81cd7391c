"""Graphs of dynamic sizes that are functionalised by rewriting: what torch makes of them by tracing once more."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from tests import torch_can
from tests.functionalizing import captured, plain
from tests.passing import Function, targets
from tests.rewriting import Net, drawn
from torch2trt import api
from torch2trt.frontend.functional import functionalize
from torch2trt.graph.program import Program

aten = torch.ops.aten

BATCH, WIDE, HALF = Dim("batch", min=1, max=8), Dim("wide", min=2, max=9), Dim("half", min=1, max=4)


class Row(NamedTuple):
    """A module, what is dynamic about its arguments, and these in several sizes, the example's first."""

    module: nn.Module
    dynamic: tuple[dict[int, Any], ...]
    shapes: tuple[tuple[tuple[int, ...], ...], ...]


def batched(function: Callable[..., Any] | nn.Module, *rest: int) -> Row:
    """Of one tensor with a dynamic batch."""
    module = function if isinstance(function, nn.Module) else Function(function)
    return Row(module, ({0: BATCH},), tuple(((size, *(rest or (4, 6, 6))),) for size in (3, 1, 2, 8)))


def two(function: Callable[..., Any]) -> Row:
    """Of one tensor with two dynamic dimensions."""
    sizes = ((3, 5), (2, 2), (8, 9), (4, 3))
    return Row(Function(function), ({0: WIDE, 2: Dim("high", min=2, max=9)},), tuple(((n, 4, m),) for n, m in sizes))


def doubled(function: Callable[..., Any]) -> Row:
    """Of a tensor twice as long as another."""
    dynamic = ({0: 2 * HALF}, {0: HALF})
    return Row(Function(function), dynamic, tuple(((2 * size, 4), (size, 4)) for size in (3, 1, 2, 4)))


def longer(function: Callable[..., Any]) -> Row:
    """Of a tensor one longer than another."""
    dynamic = ({1: WIDE + 1}, {1: WIDE})
    return Row(Function(function), dynamic, tuple(((4, size + 1), (4, size)) for size in (3, 2, 5, 9)))


class Block(nn.Module):
    """What vision models are written like."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.act, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y += x
        y = self.act(y)
        return self.head(self.drop(torch.flatten(F.adaptive_avg_pool2d(y, 1), 1)))  # type: ignore[no-any-return]


def parts_written(x: Tensor) -> Any:
    y = (x * 2).relu_()
    y[1:, :, ::2].mul_(3)
    y[-1] = 0.5
    y[: x.shape[0] // 2, 1].add_(1)
    return y, y.flatten(1)


def rolled(x: Tensor) -> Tensor:
    """As windows are moved."""
    rows, columns = x.shape[0], x.shape[2]
    mask = x.new_zeros((rows, columns))
    mask[: rows - 1, 1:] = 1.0
    mask[rows - 1 :] = 2.0
    return x.roll((1, -1), (0, 2)) * mask.unsqueeze(1)


def halves(x: Tensor, y: Tensor) -> Any:
    pairs = x.unflatten(0, (-1, 2)) * 2
    pairs[:, 0].add_(y)
    return pairs.sum(1) + y, x.reshape(x.shape[0] // 2, 8), x[::2] + y, x[: x.shape[0] // 2].flatten()


def one_less(x: Tensor, y: Tensor) -> Any:
    inner = x[:, 1:].clone()
    inner.mul_(y)
    return x[:, :-1].reshape(-1, 2, y.shape[1]), y.expand_as(inner) + inner, inner.flatten(), inner.view_as(y)


def masked(x: Tensor) -> Any:
    y = x.transpose(1, 2).contiguous()
    y[y > 0.3] = 0.125
    return y * 2, y.shape[1]


def channels_last_written(x: Tensor) -> Tensor:
    y = (x + 1).contiguous(memory_format=torch.channels_last)
    y[:, 1] = 0.0
    return y


def numbers_of_sizes(x: Tensor) -> Any:
    y = x * x.shape[0]
    y.add_(x.shape[2])
    return y / (x.shape[0] + 1), x.numel(), x.shape[0] * x.shape[2]


def chosen(x: Tensor) -> Any:
    rows = x[x[:, 0, 0, 0] > 0]
    return rows.flatten(1), rows.reshape(-1, 6).relu(), rows.view_as(rows) + 1, torch.nonzero(x).flatten()


REWRITTEN = {
    "a block": batched(Block()),
    "parts are written": batched(parts_written),
    "channels last": batched(channels_last_written),
    "masked": batched(lambda x: masked(x)[0]),
    "flattened": batched(lambda x: (x.flatten(1), x.flatten(), x.flatten(0, 1) + 1, x[1:].flatten(0, 1))),
    "unflattened": batched(lambda x: (x.unflatten(1, (2, -1)) * 2, x.unflatten(0, (-1, 1)))),
    "chunks": batched(lambda x: [part.sin() for part in x.chunk(4, 2)]),
    "expanded": batched(lambda x: x[:, :1].expand_as(x) * 1 + x.mean(0, True).expand(x.shape[0], -1, -1, -1)),
    "casts": batched(lambda x: (x.to(torch.int64), x.half().add_(1), x.to("cpu").contiguous() + 1, x.type_as(x))),
    "dropout": batched(lambda x: F.dropout(x, 0.5, False) + F.dropout(x + 1, 0.5, False, True)),
    "a vector added in place": batched(Net(lambda self, x: (x * 2).add_(self.bias), bias=drawn(6))),
    "heads of attention": two(
        lambda x: (x.unflatten(1, (2, 2)).permute(0, 3, 1, 2) + 1).contiguous().flatten(2).transpose(1, 2).reshape_as(x)
    ),
    "both flattened": two(lambda x: (x.flatten(), x.transpose(1, 2).flatten(0, 1), x.transpose(0, 2).reshape(-1, 4))),
    "both masked": two(masked),
    "rolled": two(rolled),
    "numbers of sizes": two(numbers_of_sizes),
    "a multiple": doubled(halves),
    "one more": longer(one_less),
    "operators that are taken apart": batched(
        lambda x: (
            F.threshold(x.swapaxes(0, 1), 0.1, 2.0),
            F.hardshrink(x.mT),
            torch.outer(x[:, 0, 0, 0], x[:, 0, 0, 1]),
            F.unfold(x, 2),
        )
    ),
    "chosen by data": batched(chosen),
}


def written_rows(x: Tensor) -> Tensor:
    rows = x[x[:, 0, 0, 0] > 0]
    rows += 1
    return rows


def view_from_before(x: Tensor) -> Any:
    y = x + 1
    view = y[0]
    y.mul_(2)
    return view + 1


def turned_in_place(x: Tensor) -> Tensor:
    y = x + 1
    return y.transpose_(0, 1)


TRACED = {
    "rows chosen by a mask are written": batched(written_rows),
    "a view from before": batched(view_from_before),
    "turned in place": batched(turned_in_place),
    "differences": batched(lambda x: x.diff(dim=1)),
    "a view that is taken apart of what is written": batched(lambda x: (x * 2).relu_().swapaxes(1, 2)),
}


def inputs(row: Row) -> list[tuple[Tensor, ...]]:
    return [tuple(drawn(*shape, seed=len(shape) + k) for k, shape in enumerate(shapes)) for shapes in row.shapes]


@pytest.mark.parametrize("name", [*REWRITTEN, *TRACED])
def test_it_is_what_tracing_makes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in ("parts are written", "a multiple") and not torch_can.compute_ends_of_slices():
        pytest.skip("torch 2.11 does not tell the size of a slice whose end is computed")
    row = {**REWRITTEN, **TRACED}[name]
    example, *others = inputs(row)
    dynamic = (row.dynamic,) if isinstance(row.module, Function) else row.dynamic  # of *args, they are one
    (quick, quickly), (slow, _) = (
        captured(copy.deepcopy(row.module), quick, monkeypatch, *example, dynamic_shapes=dynamic)
        for quick in (True, False)
    )
    assert quickly == (name not in TRACED)
    assert not any(getattr(target, "_schema", None) and target._schema.is_mutable for target in targets(quick))
    assert (quick.signature.outputs, quick.signature.dims) == (slow.signature.outputs, slow.signature.dims)
    for values in (example, *others):
        same(quick, row.module, values)
    assert plain(quick) == plain(slow)
    for values in (example, *others):
        same(quick, row.module, values)


def test_a_copy_that_is_laid_out_anew_has_memory_of_its_own() -> None:
    def written(x: Tensor) -> Any:
        y = x * 2
        turned = y.transpose(1, 2).contiguous()
        turned[turned > 0.3] = 0.125
        copied = y.transpose(1, 2).contiguous().zero_()
        return y * 1, turned * 1, copied * 1

    row = batched(written)
    example, *others = inputs(row)
    program = api.capture(row.module.eval(), example, dynamic_shapes=(row.dynamic,))
    for values in (example, *others):
        same(program, row.module, values)


def test_what_cannot_be_done_is_not_begun() -> None:
    module = Function(lambda x: (x * 2).relu_().flatten(1).swapaxes(0, 1))
    dynamic = (({0: BATCH},),)
    exported = torch.export.export(module, (drawn(2, 3, 4),), dynamic_shapes=dynamic, strict=False)
    before = str(exported.graph)
    assert not functionalize(exported, lambda target: True)
    assert str(exported.graph) == before


def same(program: Program, module: nn.Module, values: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        wanted = module.eval()(*(value.clone() for value in values))
    torch.testing.assert_close(program(*values), wanted)
