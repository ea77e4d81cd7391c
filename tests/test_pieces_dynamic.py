"""Modules in pieces whose inputs have dynamic dimensions and optimization profiles."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
from tests.artifacts import with_manifest
from tests.piecewise import Counts, counting
from tests.test_pieces import QUICK, Detector, X
from torch2trt.errors import ArtifactError, DynamicShapeError, InputShapeError
from torch2trt.frontend.marking import Marks, clear, marked, sizes_of
from torch2trt.graph.dynamic_inputs import DynamicInputs
from torch2trt.pieces import PiecewiseModule
from torch2trt.sizes import DimRange, symbol

BATCH = Dim("batch", min=2, max=64)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    return counting(monkeypatch)


class Steady(nn.Module):
    """Takes one way for all of :func:`rows`, however many."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8)
        self.up = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.first(x).relu()
        y = self.up(x).tanh() * 2 if x.mean() < 10 else x.sin()
        return {"y": y, "rows": y[y.sum(1) > 0]}


class Strided(nn.Module):
    """The sizes of the second piece are computed from those of the input, and Python hands one over."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.head = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        count = image.shape[0]
        x = self.conv(image).relu()
        if x.sum() > 1e9:
            x = x * 2
        y = self.head(x).view(count, 2, -1)
        return y.softmax(-1) + 1


def compiled_for(module: nn.Module, *args: Any, **options: Any) -> PiecewiseModule:
    compiled = torch2trt.compile(module.eval(), args, **{**QUICK, **options})
    assert isinstance(compiled, PiecewiseModule)
    return compiled


def check(compiled: PiecewiseModule, module: nn.Module, *inputs: Any) -> None:
    for each in inputs:
        with torch.no_grad():
            torch.testing.assert_close(compiled.reference(each), module(each), rtol=1e-4, atol=1e-5)


def rows(count: int) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(count))


def dims_of(compiled: PiecewiseModule) -> list[dict[str, DimRange]]:
    return [dict(engine.artifact.signature.dims) for engine in compiled.engines]


# Ranges ---------------------------------------------------------------------------------------------------------------


def test_one_engine_of_each_piece_serves_a_range(counts: Counts) -> None:
    module = Steady()
    compiled = compiled_for(module, rows(4), dynamic_shapes={"x": {0: BATCH}})
    assert dims_of(compiled) == [{"batch": DimRange(2, 4, 64)}] * 2
    before = counts.built
    check(compiled, module, *(rows(count) for count in (2, 3, 31, 64)))
    assert counts.built == before
    assert compiled.report["profiles"] == ["batch 2…4…64"]
    with pytest.raises(InputShapeError, match=r"'batch' is 65, the engines take 2 to 64") as caught:
        compiled.reference(rows(65))
    assert "max=65" in caught.value.hint


def test_size_1_has_engines_of_its_own(counts: Counts) -> None:
    module = Steady()
    compiled = compiled_for(module, rows(4), dynamic_shapes={"x": {0: Dim("batch", min=1, max=8)}})
    # The smallest sizes are built for at once.
    assert sorted(map(len, dims_of(compiled))) == [0, 0, 1, 1]
    before = counts.built
    check(compiled, module, *(rows(count) for count in (1, 2, 8)))
    assert counts.built == before


def test_sizes_are_computed_from_sizes(counts: Counts) -> None:
    module = Strided()
    height, width = Dim("height", min=8, max=64), Dim("width", min=4, max=32)
    shapes = {"image": {0: BATCH, 2: height, 3: 2 * width}}
    compiled = compiled_for(module, torch.randn(2, 3, 16, 20), dynamic_shapes=shapes)
    first, *others = [engine.artifact.signature for engine in compiled.engines]
    assert first.dims == {
        "batch": DimRange(2, 2, 64),
        "height": DimRange(8, 16, 64),
        "width": DimRange(4, 10, 32),
    }
    # Where Python's number is found to differ, the piece behind the cut has all three dimensions.
    second = next(each for each in others if len(each.dims) == 3)
    spans = {span for name, span in second.dims.items() if name != "batch"}
    # Convolutions of few images run in other kernels on the CPU, so that torch traces those of more once again.
    assert (second.dims["batch"].min, second.dims["batch"].opt) == (2, 2)
    assert spans == {DimRange(4, 8, 32), DimRange(4, 10, 32)}
    before = counts.built
    check(compiled, module, *(torch.randn(*shape) for shape in ((5, 3, 9, 8), (15, 3, 8, 64), (3, 3, 33, 22))))
    assert counts.built == before
    with pytest.raises(InputShapeError, match=r"axis 3 is 9, which is not 2\*width for any width"):
        compiled.reference(torch.randn(2, 3, 16, 9))


def test_sizes_that_a_piece_tells_apart_have_a_graph_each(counts: Counts) -> None:
    class Sized(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.exp().sin()
            if x.sum() > 1e9:
                x = x * 2
            return x.relu() + 1 if x.shape[0] < 10 else x.cos() - 1

    module = Sized()
    compiled = compiled_for(module, rows(4), dynamic_shapes={"x": {0: BATCH}})
    check(compiled, module, *(rows(count) for count in (9, 10, 2, 64, 30)))
    assert dims_of(compiled) == [
        {"batch": DimRange(2, 4, 64)},
        {"batch": DimRange(2, 4, 9)},
        {"batch": DimRange(10, 10, 64)},
    ]


def test_impossible_ranges_are_sizes(caplog: pytest.LogCaptureFixture) -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 1e9:
                x = x * 2
            return x.view(x.shape[0] // 2, 16).tanh() * 2

    module = Halves()
    compiled = compiled_for(module, rows(4), dynamic_shapes={"x": {0: BATCH}})
    check(compiled, module, rows(6), rows(8))
    assert "a range is impossible" in caplog.text
    assert sorted(map(len, dims_of(compiled)))[:2] == [0, 0]


def test_two_inputs_of_one_dimension() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, *, pair: dict[str, Tensor]) -> Tensor:
            y = x.exp() + pair["a"]
            return y.sin() if y.sum() > 1e9 else y.cos() * pair["a"]

    module = Two().eval()
    shapes = {"x": {0: BATCH}, "pair": {"a": {0: BATCH}}}
    compiled = torch2trt.compile(module, (rows(4),), {"pair": {"a": rows(4)}}, dynamic_shapes=shapes, **QUICK)
    assert isinstance(compiled, PiecewiseModule)
    assert dims_of(compiled) == [{"batch": DimRange(2, 4, 64)}] * 2
    with torch.no_grad():
        # By name as well as by position.
        torch.testing.assert_close(
            compiled.reference(x=rows(7), pair={"a": rows(7)}), module(rows(7), pair={"a": rows(7)})
        )
    assert len(compiled.engines) == 2
    with pytest.raises(InputShapeError, match=r"makes 'batch' 5, but it is 7 in 'x' axis 0"):
        compiled.reference(rows(7), pair={"a": rows(5)})


def test_lists_of_images(counts: Counts) -> None:
    module, side = Detector(), Dim("side", min=4, max=32)
    draw = torch.Generator().manual_seed(0)

    def images(*sizes: int) -> list[Tensor]:
        return [torch.randn(3, size, 8, generator=draw).abs() for size in sizes]

    compiled = compiled_for(module, images(8), dynamic_shapes={"images": [{1: side}]})
    assert any("side" in dims for dims in dims_of(compiled))
    found = images(20)
    with torch.no_grad():
        torch.testing.assert_close(compiled.reference(found), module(found), rtol=2e-3, atol=2e-3)
    assert compiled.verify(images(5)).passed


def test_what_is_a_view(counts: Counts) -> None:
    module = Steady()
    compiled = compiled_for(module, rows(4), dynamic_shapes={"x": {0: BATCH}})
    before = counts.built
    check(compiled, module, rows(40)[:7], rows(40)[3:33])
    assert counts.built == before


def test_no_range_is_said(caplog: pytest.LogCaptureFixture) -> None:
    compiled = compiled_for(Steady(), rows(4), dynamic_shapes={"x": {0: Dim.AUTO}})
    assert compiled.dynamic is None
    assert "name no range of sizes" in caplog.text


# Profiles -------------------------------------------------------------------------------------------------------------

PROFILES = [{"batch": 2}, {"batch": (4, 16, 64)}]


def test_pieces_have_profiles_of_their_own(counts: Counts) -> None:
    module = Steady()
    compiled = compiled_for(module, rows(4), dynamic_shapes={"x": {0: BATCH}}, profiles=PROFILES)
    expected = ({"batch": DimRange(2, 2, 2)}, {"batch": DimRange(4, 16, 64)})
    assert [engine.artifact.signature.profiles for engine in compiled.engines] == [expected] * 2
    assert compiled.report["profiles"] == ["batch 2", "batch 4…16…64"]
    before = counts.built
    check(compiled, module, *(rows(count) for count in (2, 4, 64)))
    assert counts.built == before
    with pytest.raises(InputShapeError, match=r"no profile holds batch 3: there are batch 2; batch 4…16…64"):
        compiled.reference(rows(3))


def test_profiles_of_sizes_that_are_computed() -> None:
    compiled = compiled_for(
        Strided(),
        torch.randn(2, 3, 16, 20),
        dynamic_shapes={"image": {2: Dim("height", min=8, max=64)}},
        profiles=[{"height": 32}, {"height": (8, 17, 64)}],
    )
    first, second = (engine.artifact.signature.profiles for engine in compiled.engines)
    assert first == ({"height": DimRange(32, 32, 32)}, {"height": DimRange(8, 17, 64)})
    assert [list(each.values()) for each in second] == [[DimRange(16, 16, 16)], [DimRange(4, 9, 32)]]


def test_profiles_of_other_sizes_are_for_other_graphs() -> None:
    shapes = {"x": {0: Dim("batch", min=1, max=64)}}
    compiled = compiled_for(Steady(), rows(4), dynamic_shapes=shapes, profiles=[{"batch": 1}, {"batch": (2, 8, 64)}])
    signatures = [engine.artifact.signature for engine in compiled.engines]
    # One profile is no more than a range.
    assert [dict(each.dims) for each in signatures] == [{"batch": DimRange(2, 8, 64)}] * 2 + [{}] * 2
    assert not any(each.profiles for each in signatures)


def test_examples_within_ranges_have_profiles(counts: Counts) -> None:
    module = Steady()
    calls = [rows(4), rows(9), rows(9)]
    compiled = torch2trt.compile(module.eval(), examples=calls, dynamic_shapes={"x": {0: BATCH}}, **QUICK)
    assert isinstance(compiled, PiecewiseModule)
    assert compiled.dynamic is not None
    assert len(compiled.dynamic.profiles) == 3
    before = counts.built
    check(compiled, module, rows(9), rows(30))
    assert counts.built == before


@pytest.mark.parametrize("sizes", [8, (8, 16, 64)])
def test_an_example_in_no_profile_is_run_in_the_first(sizes: Any, counts: Counts) -> None:
    module = Steady()
    compiled = compiled_for(module, rows(4), dynamic_shapes={"x": {0: BATCH}}, profiles=[{"batch": sizes}])
    before = counts.built
    check(compiled, module, rows(8))
    assert counts.built == before
    assert len(compiled.engines) >= 2
    with pytest.raises(InputShapeError, match="no profile holds batch 4"):
        compiled.reference(rows(4))


def test_unknown_dimensions_are_refused() -> None:
    with pytest.raises(DynamicShapeError, match=r"'bath' is no dynamic dimension") as caught:
        compiled_for(Steady(), rows(4), dynamic_shapes={"x": {0: BATCH}}, profiles=[{"bath": 3}])
    assert "batch" in caught.value.hint
    with pytest.raises(DynamicShapeError, match=r"'batch' is no dynamic dimension"):
        compiled_for(Steady(), rows(4), profiles=[{"batch": 3}])


def test_explain_shows_ranges_and_profiles() -> None:
    found = torch2trt.explain(
        Steady().eval(), (rows(4),), dynamic_shapes={"x": {0: BATCH}}, profiles=PROFILES, min_segment=1
    )
    assert len(found.pieces) == 2
    assert [each.profiles for each in found.pieces] == [("batch 2", "batch 4…16…64")] * 2


# Files ----------------------------------------------------------------------------------------------------------------


def test_saved_and_loaded(tmp_path: Path, counts: Counts) -> None:
    module, path = Steady(), tmp_path / "steady.t2t"
    compiled = compiled_for(module, rows(4), dynamic_shapes={"x": {0: BATCH}}, profiles=PROFILES)
    compiled.save(path, program=True)
    before = dataclasses.replace(counts)
    torch._dynamo.reset()
    loaded = torch2trt.load(path, module=module)
    assert loaded.dynamic == compiled.dynamic
    check(loaded, module, rows(2), rows(33))
    assert counts == before
    with pytest.raises(InputShapeError):
        loaded.reference(rows(3))
    loaded.save(tmp_path / "again.t2t", program=True)
    assert (tmp_path / "again.t2t").read_bytes() == path.read_bytes()


def test_engines_of_other_profiles_are_not_taken(tmp_path: Path, counts: Counts) -> None:
    module, path = Steady(), tmp_path / "steady.t2t"
    compiled_for(module, rows(4), dynamic_shapes={"x": {0: BATCH}}, profiles=PROFILES).save(path)
    other = DynamicInputs({"x": {0: symbol("batch")}}, {"batch": DimRange(2, 4, 64)})
    before = counts.built
    torch._dynamo.reset()
    check(torch2trt.load(with_manifest(path.read_bytes(), dynamic=other.to_json()), module=module), module, rows(3))
    assert counts.built == before + 2


@pytest.mark.parametrize(
    "change",
    [
        {"dims": {"batch": [4, 2, 64]}},
        {"dims": {"batch": ["2", 4, 64]}},
        {"dims": {}},
        {"axes": {"x": {"0": "batch**2"}}},
        {"axes": {"x": {"-1": "batch"}}},
        {"profiles": [{"other": [1, 1, 1]}]},
    ],
)
def test_dimensions_that_are_none(tmp_path: Path, change: dict[str, Any]) -> None:
    module, path = Steady().eval(), tmp_path / "steady.t2t"
    good = {"axes": {"x": {"0": "batch"}}, "dims": {"batch": [2, 4, 64]}, "profiles": []}
    torch2trt.compile(module, (X,), **QUICK).save(path)
    assert torch2trt.load(with_manifest(path.read_bytes(), dynamic=good), module=module).dynamic is not None
    with pytest.raises(ArtifactError):
        torch2trt.load(with_manifest(path.read_bytes(), dynamic=good | change), module=module)


def test_json_holds_all() -> None:
    batch, side = symbol("batch"), symbol("side")
    dynamic = DynamicInputs(
        {"x": {0: batch, 2: 2 * side + 1}, "y[0]": {1: side}},
        {"batch": DimRange(1, 2, 3), "side": DimRange(4, 5, 60)},
        ({"batch": DimRange(1, 1, 1)}, {}),
    )
    assert DynamicInputs.from_json(json.loads(json.dumps(dynamic.to_json()))) == dynamic


def test_spans_hold_every_size() -> None:
    height = symbol("height")
    ranges = {"height": DimRange(5, 9, 40)}
    dynamic = DynamicInputs({"x": {0: height}}, ranges)
    from torch.utils._sympy.functions import FloorDiv, Mod

    for size in (
        height,
        2 * height + 1,
        FloorDiv(height - 1, 2) + 1,
        64 - height,
        Mod(height, 4),
        height - FloorDiv(height, 2),
    ):
        span = dynamic.span(size, ranges)
        values = [int(size.subs(height, each)) for each in range(5, 41)]
        assert span.min <= min(values)
        assert max(values) <= span.max
        assert span.opt == int(size.subs(height, 9))


# Marks ----------------------------------------------------------------------------------------------------------------


def test_marks_leave_nothing_behind() -> None:
    module, x = Steady(), rows(4)
    compiled = compiled_for(module, rows(4), dynamic_shapes={"x": {0: BATCH}})
    found = compiled.reference(x)
    assert x.__dict__ == {}
    assert all(value.__dict__ == {} for value in found.values())
    torch._dynamo.mark_dynamic(x, 0)
    own = dict(x.__dict__)
    with marked([(x, Marks({0: symbol("batch")}))]):
        assert sizes_of(x) == {0: symbol("batch")}
    assert x.__dict__ == own
    clear(x)
    assert x.__dict__ == own


def test_an_error_leaves_no_marks() -> None:
    x = rows(4)
    with pytest.raises(ZeroDivisionError), marked([(x, Marks({0: symbol("batch")}))]):
        raise ZeroDivisionError
    assert x.__dict__ == {}


# On a GPU -------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_ranges_and_profiles_on_the_gpu(counts: Counts, caplog: pytest.LogCaptureFixture) -> None:
    module = Strided().eval().cuda()
    shapes = {"image": {0: BATCH, 2: Dim("height", min=8, max=64)}}
    compiled = compiled_for(
        module,
        torch.randn(2, 3, 16, 20).cuda(),
        dynamic_shapes=shapes,
        profiles=[{"height": 32}, {"batch": (2, 8, 64)}],
    )
    before = counts.built
    with caplog.at_level(logging.WARNING, logger="torch2trt"), torch.no_grad():
        for shape in ((5, 3, 9, 20), (64, 3, 8, 20), (3, 3, 32, 20)):
            image = torch.randn(*shape).cuda()
            torch.testing.assert_close(compiled(image), module(image), rtol=1e-3, atol=1e-3)
    assert counts.built == before
    assert compiled.verify(torch.randn(7, 3, 40, 20).cuda()).passed
