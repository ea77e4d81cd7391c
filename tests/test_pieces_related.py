"""Pieces of a module that take in sizes which tell each other, such as n and 2*n: one engine for all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
from tests.passing import Function
from tests.piecewise import Counts, counting
from tests.test_pieces import QUICK
from torch2trt.pieces import PiecewiseModule
from torch2trt.sizes import DimRange, symbol

N, M = Dim("n", min=2, max=16), Dim("m", min=3, max=40)
RANGE = {"n": DimRange(2, 4, 16)}


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    return counting(monkeypatch)


def rows(count: int) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(count))


def compiled_for(module: nn.Module, args: tuple[Tensor, ...], dynamic: Any, **options: Any) -> PiecewiseModule:
    shapes = (dynamic,) if isinstance(module, Function) else dynamic
    compiled = torch2trt.compile(module.eval(), args, dynamic_shapes=shapes, **{**QUICK, **options})
    assert isinstance(compiled, PiecewiseModule)
    return compiled


def check(compiled: PiecewiseModule, *calls: tuple[Tensor, ...]) -> None:
    for args in calls:
        with torch.no_grad():
            torch.testing.assert_close(compiled.reference(*args), compiled._held[0](*args), rtol=1e-4, atol=1e-5)
        assert compiled.verify(*args).passed


def cut(x: Tensor) -> Tensor:
    """What cannot be captured: a piece of its own in which the sum is computed."""
    return x * 2 if x.sum() > 1e9 else x


class Row(NamedTuple):
    """A function, what is dynamic about its arguments, their numbers of rows, and those that its last piece takes."""

    function: Callable[..., Any]
    dynamic: tuple[dict[int, Any], ...]
    counts: Callable[[int], tuple[int, ...]]
    last: tuple[Any, ...]


def of_a_multiple(x: Tensor, y: Tensor) -> Tensor:
    x, y = cut(x.exp().sin()), y.cos().tanh()
    return (x.unflatten(0, (-1, 2)).sum(1) + y).tanh() * 2


def of_one_more(x: Tensor, y: Tensor) -> Tensor:
    x, y = cut(x.exp().sin()), y.cos().tanh()
    return (x[1:] + y).tanh() * 2


def beside_its_double(x: Tensor) -> Any:
    double = torch.cat([x.exp(), x.sin()])
    x = cut(x)
    return x.tanh() * 2 + 1, double.sin() * 2 + 1


def with_its_double(x: Tensor) -> Tensor:
    double = torch.cat([x.exp(), x.sin()])
    x = cut(x)
    return torch.cat([x.tanh() * 2, x.cos()]) + double


def double_alone(x: Tensor) -> Tensor:
    return cut(torch.cat([x.exp(), x.sin()])).tanh().unflatten(0, (2, -1)).sum(0) * 2


def double_and_its_number(x: Tensor) -> Tensor:
    """Python hands over how many there were."""
    count = x.shape[0]
    double = cut(torch.cat([x.exp(), x.sin()]))
    return double.tanh()[:count] * 2 + double[count:] + count


def of_one_less(x: Tensor) -> Tensor:
    fewer = x.exp()[1:]
    x = cut(x)
    return (x[:-1].tanh() + fewer).sin() * 2


n = symbol("n")
ROWS = {
    "a multiple": Row(of_a_multiple, ({0: 2 * N}, {0: N}), lambda n: (2 * n, n), (2 * n, n)),
    "one more": Row(of_one_more, ({0: N + 1}, {0: N}), lambda n: (n + 1, n), (n + 1, n)),
    "beside its double": Row(beside_its_double, ({0: N},), lambda n: (n,), (n, 2 * n)),
    "with its double": Row(with_its_double, ({0: N},), lambda n: (n,), (n, 2 * n)),
    "its double alone": Row(double_alone, ({0: N},), lambda n: (n,), (2 * n,)),
    "the double of a multiple": Row(double_alone, ({0: 2 * N},), lambda n: (2 * n,), (4 * n,)),
}


@pytest.mark.parametrize("name", ROWS)
def test_one_engine_has_sizes_that_tell_each_other(name: str, counts: Counts) -> None:
    row = ROWS[name]
    compiled = compiled_for(Function(row.function), tuple(map(rows, row.counts(4))), row.dynamic)
    assert [dict(engine.artifact.signature.dims) for engine in compiled.engines] == [RANGE] * 3
    # Dynamo says in which order a piece takes them.
    shapes = {leaf.spec.shape for leaf in compiled.engines[-1].artifact.signature.inputs}
    assert shapes == {(size, 8) for size in row.last}
    before = counts.built
    check(compiled, *(tuple(map(rows, row.counts(size))) for size in (2, 3, 4, 16)))
    assert counts.built == before


def test_one_less_has_an_engine_from_two_on(counts: Counts) -> None:
    """Where one row is left, torch traces it apart."""
    compiled = compiled_for(Function(of_one_less), (rows(4),), ({0: N},))
    last = [dict(engine.artifact.signature.dims) for engine in compiled.engines]
    assert {"n": DimRange(3, 4, 16)} in last
    before = counts.built
    check(compiled, (rows(2),), (rows(3),), (rows(16),))
    assert counts.built == before


def test_numbers_beside_a_double(counts: Counts) -> None:
    compiled = compiled_for(Function(double_and_its_number), (rows(4),), ({0: N},))
    check(compiled, (rows(5),))  # a number is seen to differ the second time
    before = counts.built
    check(compiled, (rows(2),), (rows(9),), (rows(16),))
    assert counts.built == before
    assert [leaf.spec.shape for leaf in compiled.engines[-1].artifact.signature.inputs] == [(2 * n, 8)]


def test_profiles_of_sizes_that_tell_each_other(counts: Counts) -> None:
    profiles = [{"n": 2}, {"n": (4, 8, 16)}]
    compiled = compiled_for(Function(with_its_double), (rows(4),), ({0: N},), profiles=profiles)
    expected = ({"n": DimRange(2, 2, 2)}, {"n": DimRange(4, 8, 16)})
    assert [engine.artifact.signature.profiles for engine in compiled.engines] == [expected] * 3
    before = counts.built
    check(compiled, (rows(2),), (rows(4),), (rows(16),))
    assert counts.built == before


def test_two_names_that_a_piece_makes_one(counts: Counts) -> None:
    """The caller says that they differ, and the piece is right for those alone that agree."""

    def function(x: Tensor, y: Tensor) -> Tensor:
        x, y = cut(x.exp()), y.cos()
        return torch.cat([x.tanh() * 2, x.cos()]) + y

    compiled = compiled_for(Function(function), (rows(4), rows(8)), ({0: N}, {0: M}))
    # From 3 to 40 rows of y are 2 to 20 of x.
    assert dict(compiled.engines[-1].artifact.signature.dims) == RANGE
    before = counts.built
    check(compiled, (rows(2), rows(4)), (rows(16), rows(32)))
    assert counts.built == before


def test_a_condition_on_a_double_is_one_on_the_size(counts: Counts) -> None:
    def function(x: Tensor) -> Tensor:
        double = cut(torch.cat([x.exp(), x.sin()]))
        return double.relu() + 1 if double.shape[0] < 11 else double.cos() - 1

    compiled = compiled_for(Function(function), (rows(4),), ({0: N},))
    check(compiled, *((rows(size),) for size in (2, 5, 6, 16)))
    last = [dict(engine.artifact.signature.dims) for engine in compiled.engines[2:]]
    assert last == [{"n": DimRange(2, 4, 5)}, {"n": DimRange(6, 6, 16)}]


def test_sizes_that_are_related_in_no_line_have_ranges_of_their_own() -> None:
    """Of every second row and every row nothing tells the number but each itself; of their double it is the half."""

    def function(x: Tensor) -> Any:
        half = x[::2].exp()
        double = torch.cat([half, half])
        x = cut(x)
        return x.tanh() * 2, torch.cat([half.sin(), half.cos()]) + double

    compiled = compiled_for(Function(function), (rows(4),), ({0: N},))
    dims = dict(compiled.engines[-1].artifact.signature.dims)
    assert dims.pop("n") == DimRange(2, 4, 16)
    assert all(span.opt == 2 and span.max == 8 for span in dims.values())
    check(compiled, *((rows(size),) for size in (4, 5, 16)))


def test_sizes_that_have_to_agree_in_no_line_have_an_engine_each() -> None:
    def function(x: Tensor) -> Tensor:
        half = x[: x.shape[0] // 2].exp()
        x = cut(x)
        return (x[: x.shape[0] // 2].tanh() + half).sin() * 2

    compiled = compiled_for(Function(function), (rows(8),), ({0: N},))
    check(compiled, *((rows(size),) for size in (8, 9, 16)))
    assert dict(compiled.engines[-1].artifact.signature.dims) == {}


class Shared(nn.Module):
    """Two ways lead into one graph of Dynamo's, with sizes that are related in two ways."""

    def forward(self, x: Tensor) -> Any:
        double = torch.cat([x.exp(), x.sin()])
        torch._dynamo.graph_break()
        return shared(x, double if x.sum() > 0 else double[1:])


def shared(x: Tensor, other: Tensor) -> Any:
    x = x.exp()
    torch._dynamo.graph_break()
    return x.tanh() * 2 + 1, other.sin() * 2 + 1


def test_other_relations_of_the_same_graph_have_engines_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    compiled = compiled_for(Shared(), (rows(4).abs(),), ({0: N},))
    before = len(compiled.engines)
    with caplog.at_level(logging.WARNING, logger="torch2trt"):
        check(compiled, *((-rows(size).abs(),) for size in (4, 3)), (rows(9).abs(),))
    assert "engines of one size each for other sizes: axis 0 is 7" in caplog.text
    assert [dict(engine.artifact.signature.dims) for engine in compiled.engines[before:]] == [{}, {}]


def test_saved_and_loaded(tmp_path: Path, counts: Counts) -> None:
    module, path = Function(with_its_double).eval(), tmp_path / "double.t2t"
    compiled_for(module, (rows(4),), ({0: N},)).save(path, program=True)
    before = counts.built
    torch._dynamo.reset()
    loaded = torch2trt.load(path, module=module)
    check(loaded, (rows(2),), (rows(16),))
    assert counts.built == before


def test_other_relations_are_other_engines(tmp_path: Path) -> None:
    """Equal graphs of other relations between their sizes have other keys."""
    keys = []
    for dynamic in (({0: 2 * N}, {0: N}), ({0: M}, {0: N})):
        torch._dynamo.reset()
        module = Function(lambda x, y: (cut(x.exp()).tanh() * 2, y.cos() + 1))
        compiled = compiled_for(module, (rows(8), rows(4)), dynamic)
        keys.append({key.graph for key in compiled._store._by_key})
    assert not keys[0] & keys[1]
