"""Graphs that are functionalised by rewriting: the same as torch makes of them by tracing once more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.functionalizing import captured, plain
from tests.passing import Function, targets
from tests.rewriting import Net, drawn
from torch2trt import api
from torch2trt.errors import CaptureError
from torch2trt.frontend.functional import functionalize

aten = torch.ops.aten

X = drawn(2, 4, 6, 6)


class Block(nn.Module):
    """What vision models are written like."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.act, self.drop, self.head = nn.ReLU(inplace=True), nn.Dropout(0.2, inplace=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y += x
        y = self.act(y)
        return self.head(self.drop(torch.flatten(F.adaptive_avg_pool2d(y, 1), 1)))  # type: ignore[no-any-return]


def row_of_expanded(x: Tensor) -> Any:
    y = (x * 2).expand(3, *x.shape)
    y[-1] = 1.0
    return y + 0


def part_of_expanded(x: Tensor) -> Any:
    y = (x * 2).unsqueeze(1).expand(2, 3, *x.shape[1:])
    y.select(1, 0)[:, 2].mul_(3.0)
    return y + 0


def all_of_expanded(x: Tensor) -> Any:
    y = (x * 2).expand(3, *x.shape)
    y.fill_(2.0)
    y[:, 1].zero_()
    return y + x


def written_after_a_copy(x: Tensor) -> Any:
    y = x + 1
    z = y.clone()
    y.mul_(2)
    return y - z


def read_before_and_after(x: Tensor) -> Any:
    y = x * 2
    before = y.sum()
    y.add_(1)
    return before, y, y.reshape(-1)


def views_of_what_was_written(x: Tensor) -> Any:
    y = (x * 2).relu_()
    return y.transpose(1, 2).contiguous().flatten(1), y[0]


def casts(x: Tensor) -> Any:
    return x.to(torch.float32) + 1, x.to(torch.int64), x.to("cpu", torch.float16), x.to(x.dtype), x.type_as(x.int())


def part_written(x: Tensor) -> Any:
    y = x + 1
    y[0] = 3.0
    return y


def parts_written(x: Tensor) -> Any:
    mask, count = x.new_zeros((6, 6)), 0
    for rows in (slice(0, -2), slice(-2, None)):
        for columns in (slice(0, -4), slice(-4, -2), slice(-2, None)):
            mask[rows, columns] = count
            count += 1
    y = x + mask
    return mask.view(3, 2, 6), y


def part_of_what_was_written(x: Tensor) -> Any:
    y = (x * 2).relu_()
    y[1, :, ::2].mul_(3)
    y[0, 1:3].sub_(1)
    return y, y[1]


def channels_last_written(x: Tensor) -> Any:
    y = (x + 1).contiguous(memory_format=torch.channels_last)
    y[:, 1] = 0.0
    return y


def part_of_a_cast(x: Tensor) -> Any:
    y = x.half()
    y[0] = 3.0
    return y * 2


REWRITTEN: dict[str, nn.Module] = {
    "a block": Block(),
    "after a copy": Function(written_after_a_copy),
    "before and after": Function(read_before_and_after),
    "views of what was written": Function(views_of_what_was_written),
    "casts": Function(casts),
    "twice": Function(lambda x: (x + 1).mul_(2).sub_(x).relu_()),
    "chunks": Function(lambda x: [part.sin() for part in x.chunk(4, 2)]),
    "expanded": Function(lambda x: x[:, :1].expand_as(x) * 1 + x.unflatten(1, (2, 2)).flatten(1, 2)),
    "dropout": Function(lambda x: F.dropout(x, 0.5, False) + F.dropout(x + 1, 0.5, False, True)),
    "contiguous": Function(lambda x: x.permute(0, 2, 3, 1).contiguous().reshape(2, -1)),
    "channels last": Function(lambda x: (x + 1).contiguous(memory_format=torch.channels_last)),
    "norms of norms": nn.Sequential(
        nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU(True), nn.Dropout(0.1), nn.ReLU(True)
    ),
    "norms of casts": nn.Sequential(Function(lambda x: x.to("cpu").contiguous()), nn.BatchNorm2d(4)),
    "without affine weights": nn.BatchNorm2d(4, affine=False),
    "a part is written": Function(part_written),
    "parts are written": Function(parts_written),
    "a part of what was written": Function(part_of_what_was_written),
    "a part of channels last": Function(channels_last_written),
    "differences": Function(lambda x: [x.diff(dim=2), x.diff(prepend=x[..., :1] - 1), x.int().diff(append=x.int())]),
    "a part of a cast": Function(part_of_a_cast),
    "operators that are taken apart": Function(
        lambda x: [F.threshold(x.swapaxes(1, 2), 0.1, 2.0), F.hardshrink(x.mT), torch.outer(x[0, 0, 0], x[0, 0, 1])]
    ),
    "channels are dropped in place": nn.Sequential(nn.Dropout2d(0.5), nn.Tanh(), nn.Dropout2d(0.5, inplace=True)),
    "a vector added in place": Net(lambda self, x: (x * 2).add_(self.bias), bias=drawn(6)),
}


def view_from_before(x: Tensor) -> Any:
    y = x + 1
    view = y[0]
    y.mul_(2)
    return view + 1


def part_from_before(x: Tensor) -> Any:
    y = x + 1
    part = y[0, 1]
    y[0, 0] = 3.0
    y[0].mul_(2)
    return y, part + 1


def part_by_positions(x: Tensor) -> Any:
    y = x + 1
    y[torch.tensor([1, 0]), 0] = 3.0
    return y


def alias_from_before(x: Tensor) -> Any:
    y = x + 1
    same = F.dropout(y, 0.5, False)
    y.mul_(2)
    return same + 1


def written_and_returned(x: Tensor) -> Any:
    x.add_(1)
    return x * 2


TRACED: dict[str, nn.Module] = {
    "a view from before": Function(view_from_before),
    "a part from before": Function(part_from_before),
    "a part by positions": Function(part_by_positions),
    "second differences": Function(lambda x: x.diff(2)),
    "an argument is written": Function(written_and_returned),
    "its statistics are of the batch": Function(lambda x: F.batch_norm(x, None, None, training=True)),
    "a view that is taken apart of what is written": Function(lambda x: (x * 2).relu_().swapaxes(1, 2)),
}

# Versions of torch trace it differently.
EITHER: dict[str, nn.Module] = {"an alias from before": Function(alias_from_before)}


def test_what_is_written_into_half_stays_half() -> None:
    def run(x: Tensor) -> Tensor:
        return x.half().add_(x)

    assert torch.allclose(api.capture(Function(run), (X,))(X), run(X), atol=1e-2)


@pytest.mark.parametrize("name", [*REWRITTEN, *TRACED, *EITHER])
def test_it_is_what_tracing_makes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = {**REWRITTEN, **TRACED, **EITHER}[name]
    (quick, quickly), (slow, _) = (captured(module, quick, monkeypatch, X) for quick in (True, False))
    if name not in EITHER:
        assert quickly == (name in REWRITTEN)
    assert not any(getattr(target, "_schema", None) and target._schema.is_mutable for target in targets(quick))
    assert quick.signature.outputs == slow.signature.outputs
    with torch.no_grad():
        found, same, expected = quick(X.clone()), slow(X.clone()), module(X.clone())
    torch.testing.assert_close(found, same, rtol=0, atol=0)
    if name != "an argument is written" and name not in EITHER:
        torch.testing.assert_close(found, expected)
    assert plain(quick) == plain(slow)


def test_a_copy_that_is_laid_out_anew_has_memory_of_its_own() -> None:
    def written(x: Tensor) -> Any:
        turned = x.transpose(0, -1) + 1
        turned[turned > 0.3] = 0.125
        copied = turned.contiguous()
        copied.zero_()
        return turned * 1, copied * 1

    # Traced once more by torch, it would have zeroed both.
    program = api.capture(Function(written).eval(), (X.clone(),))
    torch.testing.assert_close(program(X), written(X))


@pytest.mark.parametrize("function", [row_of_expanded, part_of_expanded])
def test_writes_into_a_part_of_an_expanded_tensor_are_refused(function: Any) -> None:
    # In eager they change the other parts, too.
    with pytest.raises(CaptureError, match="part of an expanded tensor") as caught:
        api.capture(Function(function).eval(), (X,))
    assert "in forward" in str(caught.value.source)
    assert "clone" in caught.value.hint


def test_writes_into_all_of_an_expanded_tensor() -> None:
    program = api.capture(Function(all_of_expanded).eval(), (X,))
    torch.testing.assert_close(program(X), all_of_expanded(X))


def test_what_cannot_be_done_is_not_begun() -> None:
    module = Function(lambda x: (x * 2).relu_().swapaxes(1, 2))
    exported = torch.export.export(module, (X,), strict=False)
    before = str(exported.graph)
    assert not functionalize(exported, lambda target: target is not aten.swapaxes.default)
    assert str(exported.graph) == before
    assert not functionalize(exported, lambda target: True)
    assert str(exported.graph) == before
