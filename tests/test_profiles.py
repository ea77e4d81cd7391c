"""Several optimization profiles: asked for, found in examples, recorded, built, saved, and picked when a call comes."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import torch2trt
from tests.profiled import BATCH, MANY, ONE, PARTS, PARTS_PROFILES, QUICK, TWO, Linear, Parts, Taken, taken
from tests.threads import in_threads
from torch2trt import api
from torch2trt.errors import DynamicShapeError, ExampleInputError, InputShapeError
from torch2trt.examples import FEW, Calls
from torch2trt.graph.signature import Signature
from torch2trt.runtime.artifact import Artifact, to_bytes
from torch2trt.runtime.module import EngineModule
from torch2trt.runtime.profiles import Profile, Shapes, nearest
from torch2trt.sizes import DimRange
from torch2trt.tools import cli
from torch2trt.tools.inputs import parse_profile

__all__ = ["taken"]  # a fixture, which tests name


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        return self.function(x) if y is None else self.function(x, y)


def captured(module: nn.Module, examples: Any, **keywords: Any) -> Signature:
    calls = Calls.of(examples)
    args, kwargs = calls.example(module)
    return api.capture(module, args, kwargs, calls=calls, **keywords).signature


def exact(*sizes: int, name: str = "x_0") -> list[dict[str, DimRange]]:
    return [{name: DimRange(size, size, size)} for size in sizes]


# Picking --------------------------------------------------------------------------------------------------------------


def profile(*sizes: int, width: int = 3) -> Profile:
    low, opt, high = sizes if len(sizes) == 3 else sizes * 3
    return ((low, width),), ((opt, width),), ((high, width),)


@pytest.mark.parametrize(
    ("profiles", "picked"),
    [
        ([profile(1), profile(2, 16, 64)], {1: 0, 2: 1, 16: 1, 64: 1, 65: None}),
        # The nearest usual size, by ratio.
        ([profile(1, 4, 64), profile(1, 32, 64)], {1: 0, 8: 0, 16: 1, 64: 1}),
        # Of equally near ones the narrowest, then the first.
        ([profile(1, 8, 64), profile(8), profile(8)], {8: 1, 7: 0, 9: 0}),
        ([profile(4), profile(9)], {4: 0, 5: None, 9: 1}),
        ([profile(0, 4, 8), profile(1)], {0: 0, 1: 1}),
    ],
)
def test_the_profile_that_is_tuned_for_the_nearest_sizes(
    profiles: list[Profile], picked: dict[int, int | None]
) -> None:
    assert {size: nearest(profiles, ((size, 3),)) for size in picked} == picked


def test_all_inputs_have_to_fit() -> None:
    def shapes(x: int, y: int) -> Shapes:
        return (x, 3), (y,)

    known = [(shapes(1, 1),) * 3, (shapes(1, 2), shapes(4, 8), shapes(8, 16))]
    assert [nearest(known, shapes(*each)) for each in ((1, 1), (1, 2), (2, 1), (8, 16))] == [0, 1, None, 1]


# Asked for ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two() -> EngineModule:
    return torch2trt.compile(Linear(), (torch.randn(8, 8),), dynamic_shapes=BATCH, profiles=TWO, **QUICK)


def test_tensorrt_takes_them_all(taken: Taken) -> None:
    built = torch2trt.compile(
        Linear(),
        (torch.randn(8, 8), torch.randn(8, 1)),
        dynamic_shapes={"x": BATCH["x"], "mask": BATCH["x"]},
        profiles=[*TWO, {}],
        **QUICK,
    )
    ranges = [{"batch": ONE}, {"batch": MANY}, {"batch": DimRange(1, 8, 64)}]
    assert taken == ranges
    assert built.artifact.signature.ranges == ranges
    assert built.report["profiles"] == ["batch 1", "batch 2…16…32", "batch 1…8…64"]
    assert len(built.artifact.plan) > 1000


def test_right_within_refused_without(two: EngineModule) -> None:
    for size in (1, 2, 16, 32):
        x, expected = torch.randn(size, 8), Linear()
        torch.testing.assert_close(two.reference(x), expected(x).detach())
    for size in (33, 64, 65):
        with pytest.raises(InputShapeError, match=f"holds batch {size}: it has batch 1; batch 2…16…32"):
            two.reference(torch.randn(size, 8))


def test_they_are_shown_and_saved(two: EngineModule, tmp_path: Path) -> None:
    assert "batch 1; batch 2…16…32" in two._repr_html_()
    two.save(tmp_path / "two.t2t", program=True)
    loaded = torch2trt.load(tmp_path / "two.t2t")
    assert loaded.artifact.signature == two.artifact.signature
    assert loaded.program().signature.profiles == two.artifact.signature.profiles
    with pytest.raises(InputShapeError):
        loaded.reference(torch.randn(33, 8))


def test_files_from_before_there_were_several(two: EngineModule) -> None:
    data = json.loads(json.dumps(two.artifact.signature.to_json()))
    assert Signature.from_json(data) == two.artifact.signature
    del data["profiles"]
    assert Signature.from_json(data).ranges == [{"batch": DimRange(1, 8, 64)}]


def test_a_bare_plan_lists_them(tmp_path: Path) -> None:
    path = tmp_path / "two.engine"
    torch2trt.export(Linear(), (torch.randn(8, 8),), path, dynamic_shapes=BATCH, profiles=TWO, **QUICK)
    assert json.loads(path.with_name("two.engine.json").read_text())["profiles"] == [
        {
            "dims": {"batch": {"min": 1, "opt": 1, "max": 1}},
            "inputs": {"x": {"min": [1, 8], "opt": [1, 8], "max": [1, 8]}},
        },
        {
            "dims": {"batch": {"min": 2, "opt": 16, "max": 32}},
            "inputs": {"x": {"min": [2, 8], "opt": [16, 8], "max": [32, 8]}},
        },
    ]


def test_a_child_builds_them(two: EngineModule) -> None:
    built = torch2trt.compile(
        Linear(), (torch.randn(8, 8),), dynamic_shapes=BATCH, profiles=TWO, build_in_subprocess=True, **QUICK
    )
    assert built.artifact.signature == two.artifact.signature
    if torch.cuda.is_available():
        assert built._session.open().handle.num_optimization_profiles == 2
    else:
        # As much as what is built here: each profile has kernels of its own.
        assert abs(len(built.artifact.plan) - len(two.artifact.plan)) < 0.05 * len(two.artifact.plan)


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        ([{"bach": 1}], "'bach' is no dynamic dimension.*\n.*'batch'"),
        ([{}, {"batch": 65}], r"profiles\[1\]: 'batch' of 65 is not in order within 1 to 64"),
        ([{"batch": 0}], "not in order"),
        ([{"batch": (4, 2, 8)}], "not in order"),
        ([{"batch": (1, 2)}], "smallest, the usual and the largest"),
        ([{"batch": True}], "'batch' is True"),
        ([{"batch": 2.0}], "'batch' is 2.0"),
        ([], "takes a list of dicts"),
        ({"batch": 1}, "takes a list of dicts"),
        ([1], "takes a list of dicts"),
    ],
)
def test_profiles_that_are_none(profiles: Any, message: str) -> None:
    with pytest.raises(DynamicShapeError, match=message):
        api.capture(Linear(), (torch.randn(8, 8),), dynamic_shapes=BATCH, profiles=profiles)


def hybrid() -> EngineModule:
    return torch2trt.compile(
        Parts(),
        (torch.randn(4, 8, 8),),
        dynamic_shapes=PARTS,
        profiles=PARTS_PROFILES,
        min_segment=1,
        run_in_torch=["aten.sigmoid"],
        **QUICK,
    )


def test_the_engines_of_a_hybrid_have_their_own() -> None:
    built = hybrid()
    loaded = torch2trt.load(to_bytes(built.artifact, program=built.program()))
    for each in (built, loaded):
        first, last = (part.signature for part in each.artifact.parts if isinstance(part, Artifact))
        assert list(first.ranges) == built.artifact.signature.ranges
        assert last.ranges == [{"batch": ONE}, {"batch": DimRange(2, 4, 16)}]
        x = torch.randn(16, 32, 8)
        torch.testing.assert_close(each.reference(x), Parts()(x).detach())


# Examples -------------------------------------------------------------------------------------------------------------


def test_few_sizes_have_a_profile_each_and_one_for_what_lies_between() -> None:
    found = captured(Linear(), [(torch.randn(n, 8),) for n in (8, 2, 2, 5)])
    assert found.dims == {"x_0": DimRange(2, 2, 8)}
    assert found.ranges == [*exact(2, 8, 5), {"x_0": DimRange(2, 2, 8)}]


def test_many_sizes_have_one_profile_for_the_usual() -> None:
    found = captured(Linear(), [torch.randn(n, 8) for n in (*range(1, FEW + 2), 3)])
    assert found.profiles == ()
    assert found.dims == {"x_0": DimRange(1, 3, FEW + 1)}


def test_what_does_not_differ_is_static() -> None:
    assert captured(Linear(), [torch.randn(3, 8)] * 3).dims == {}


def test_sizes_that_agree_have_one_name() -> None:
    found = captured(Linear(), [{"x": torch.randn(n, 8), "mask": torch.randn(n, 1)} for n in (4, 7)])
    assert [leaf.spec.shape[0].name for leaf in found.tensor_inputs] == ["x_0", "x_0"]  # type: ignore[union-attr]


def test_a_data_loader() -> None:
    loader = DataLoader(TensorDataset(torch.randn(10, 8)), batch_size=4)
    built = torch2trt.compile(Linear(), examples=loader, **QUICK)
    assert built.report["profiles"] == ["x_0 4", "x_0 2", "x_0 2…4…4"]
    x = torch.randn(3, 8)
    torch.testing.assert_close(built.reference(x), Linear()(x).detach())
    labelled = DataLoader(TensorDataset(torch.randn(10, 8), torch.zeros(10, 1), torch.zeros(10)), batch_size=4)
    with pytest.raises(ExampleInputError, match="such as labels"):
        torch2trt.compile(Linear(), examples=labelled, **QUICK)


@pytest.mark.parametrize(
    ("module", "sizes", "shapes"),
    [
        (Call(lambda x, y: x.repeat(2) + y), [(3, 6), (4, 8)], ["x_0", "2*x_0"]),
        (Call(lambda x, y: x[1:] + y), [(5, 4), (9, 8)], ["y_0 + 1", "y_0"]),
        (Call(lambda x: x.reshape(-1, 4).sum(1)), [(8,), (24,)], ["8*x_0"]),
    ],
    ids=["twice", "one-more", "multiple"],
)
def test_sizes_that_have_to_be_related(module: nn.Module, sizes: list[tuple[int, ...]], shapes: list[str]) -> None:
    examples = [tuple(torch.randn(size) for size in each) for each in sizes]
    found = captured(module, examples)
    assert [str(leaf.spec.shape[0]) for leaf in found.tensor_inputs] == shapes
    assert len(found.profiles) == 3


def test_nothing_among_the_examples() -> None:
    for first, second in ((0, 3), (3, 0)):
        with pytest.raises(DynamicShapeError, match="'x_0' is 0 in one and 3 in another"):
            captured(Linear(), [torch.randn(first, 8), torch.randn(second, 8)])


def test_sizes_that_the_module_fixes() -> None:
    module = Call(lambda x: torch.cat([x, x]) if x.shape[0] == 4 else x)
    with pytest.raises(DynamicShapeError):
        captured(module, [torch.randn(4), torch.randn(5)])


def test_what_is_given_wins() -> None:
    examples = [torch.randn(n, 8) for n in (4, 16, 16)]
    found = captured(Linear(), examples, dynamic_shapes=BATCH)
    assert found.ranges == [*exact(16, 4, name="batch"), {"batch": DimRange(1, 16, 64)}]
    assert captured(Linear(), examples, profiles=[{"x_0": (4, 8, 16)}]).ranges == [{"x_0": DimRange(4, 8, 16)}]
    with pytest.raises(DynamicShapeError, match="an example does not fit"):
        captured(Linear(), [*examples, torch.randn(65, 8)], dynamic_shapes=BATCH)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "there are no calls"),
        (torch.randn(3, 8), "takes a list of calls, got one Tensor"),
        ({"x": torch.randn(3, 8)}, "got one dict"),
        ([torch.randn(3, 8), torch.randn(3, 8).half()], r"examples\[1\].*float16 of 2.*float32 of 2"),
        ([torch.randn(3, 8), torch.randn(3, 8, 1)], "of 3 dimension"),
        ([torch.randn(3, 8), (torch.randn(3, 8), torch.randn(3, 1))], "has other arguments"),
        ([(torch.randn(3, 8), None), (torch.randn(3, 8), torch.randn(3, 1))], "in the first call it is None"),
    ],
)
def test_calls_that_do_not_belong_together(examples: Any, message: str) -> None:
    with pytest.raises(ExampleInputError, match=message):
        torch2trt.compile(Linear(), examples=examples)


def test_examples_stand_in_place_of_arguments() -> None:
    with pytest.raises(ExampleInputError, match="in place of args"):
        torch2trt.compile(Linear(), (torch.randn(3, 8),), examples=[torch.randn(3, 8)])
    shown = torch2trt.explain(Linear(), examples=[torch.randn(3, 8), torch.randn(4, 8)])
    assert not shown.refusal


def test_calls_are_recorded_and_let_go() -> None:
    module = nn.Sequential(Linear())
    xs = [torch.randn(n, 8) for n in (2, 6, 6)]
    gone = [weakref.ref(x) for x in xs]
    with torch2trt.record(module[0]) as calls:
        for x in xs:
            module(x)
    module(torch.randn(30, 8))
    xs.clear()
    del x
    gc.collect()
    assert [each() for each in gone] == [None] * 3
    assert repr(calls) == "<3 calls of 2 combinations of shapes>"
    assert captured(module[0], calls).ranges == [*exact(6, 2), {"x_0": DimRange(2, 6, 6)}]
    with torch2trt.record(module) as nothing:
        pass
    with pytest.raises(ExampleInputError, match="no calls"):
        torch2trt.compile(module, examples=nothing)


def test_recording_ends_with_an_error() -> None:
    module = Linear()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), torch2trt.record(module) as calls:
        module(torch.randn(2, 7))
    module(torch.randn(2, 8))
    assert len(calls) == 1


# The command line -----------------------------------------------------------------------------------------------------


def test_profiles_are_read() -> None:
    assert parse_profile("batch=2..16..64,length=128") == {"batch": (2, 16, 64), "length": 128}
    for text in ("", "batch", "2..16..64", "batch=", "batch=2..16", "batch=1,", "batch=1x3"):
        with pytest.raises(ExampleInputError, match="is no profile"):
            parse_profile(text)


def test_profiles_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text("from tests.profiled import Linear\n")
    argv = [
        *("compile", f"{tmp_path / 'net.py'}:Linear", "-o", str(tmp_path / "net.t2t"), "--json"),
        *("--input", "batch=1..8..64x8", "--profile", "batch=1", "--profile", "batch=2..16..64"),
    ]
    assert cli.main([*argv, "--optimization-level", "0", "--progress", "none"]) == 0
    assert json.loads(capsys.readouterr().out)["profiles"] == ["batch 1", "batch 2…16…64"]
    assert cli.main(["inspect", str(tmp_path / "net.t2t")]) == 0
    assert "batch 1; batch 2…16…64" in capsys.readouterr().out


# On the GPU -----------------------------------------------------------------------------------------------------------


def agrees(compiled: Callable[..., Any], module: nn.Module, *inputs: Tensor) -> None:
    found, wanted = compiled(*(value.cuda() for value in inputs)), module(*inputs)
    torch.testing.assert_close(found.cpu(), wanted.detach(), rtol=0, atol=1e-4)


@pytest.fixture(params=[True, False], ids=["graphs", "plain"])
def cuda_graphs(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.gpu
def test_each_profile_is_right_in_turns(cuda_graphs: bool) -> None:
    compiled = torch2trt.compile(
        Linear(), (torch.randn(8, 8),), dynamic_shapes=BATCH, profiles=TWO, cuda_graphs=cuda_graphs, **QUICK
    )
    engine = compiled._session.open()
    assert engine.handle.num_optimization_profiles == 2
    module = Linear()
    for _ in range(3):
        for size in (1, 2, 32, 1, 16, 3, 1, 31):
            agrees(compiled, module, torch.randn(size, 8))
    (contexts,) = compiled._session.contexts
    profiles = {shapes[0][0]: engine.profile_of(shapes) for shapes in (((size, 8),) for size in (1, 2, 16, 32))}
    assert profiles == {1: 0, 2: 1, 16: 1, 32: 1}
    # Each context stays in its profile.
    own = {index: context._context.active_optimization_profile for index, context in contexts._plain.items()}
    assert own == {index: index for index in own}
    for graph in contexts.graphs:
        shapes = tuple(tuple(value.shape) for value in graph.inputs)
        assert graph.context._context.active_optimization_profile == engine.profile_of(shapes)
    assert len(contexts.graphs) == (6 if cuda_graphs else 0)
    for size in (33, 64, 65):
        with pytest.raises(InputShapeError, match="no profile"):
            compiled(torch.randn(size, 8, device="cuda"))
    agrees(compiled, module, torch.randn(1, 8))


@pytest.mark.gpu
def test_gaps_and_overlaps_between_profiles() -> None:
    profiles = [{"batch": 4}, {"batch": (8, 8, 16)}, {"batch": (1, 16, 16)}]
    compiled = torch2trt.compile(Linear(), (torch.randn(8, 8),), dynamic_shapes=BATCH, profiles=profiles, **QUICK)
    engine = compiled._session.open()
    assert [engine.profile_of(((size, 8),)) for size in (1, 4, 8, 9, 16)] == [2, 0, 1, 1, 2]
    for size in (16, 1, 4, 8, 9, 16, 3, 4):
        agrees(compiled, Linear(), torch.randn(size, 8))


@pytest.mark.gpu
def test_a_loaded_artifact_picks_too(two: EngineModule, cuda_graphs: bool) -> None:
    loaded = torch2trt.load(to_bytes(two.artifact))
    object.__setattr__(loaded.artifact.settings, "cuda_graphs", cuda_graphs)
    for size in (32, 1, 2, 1, 32):
        agrees(loaded, Linear(), torch.randn(size, 8))


@pytest.mark.gpu
def test_threads_and_streams_in_several_profiles(cuda_graphs: bool) -> None:
    compiled = torch2trt.compile(
        Linear(), (torch.randn(8, 8),), dynamic_shapes=BATCH, profiles=[*TWO, {}], cuda_graphs=cuda_graphs, **QUICK
    )
    module = Linear()

    def work(number: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
            for step in range(40):
                agrees(compiled, module, torch.randn((1, 16, 64, 5)[(number + step) % 4], 8))

    in_threads(work, 4)


@pytest.mark.gpu
def test_a_graph_of_the_callers_in_a_second_profile() -> None:
    compiled = torch2trt.compile(Linear(), (torch.randn(8, 8),), dynamic_shapes=BATCH, profiles=TWO, **QUICK)
    module, stream, x = Linear(), torch.cuda.Stream(), torch.randn(16, 8, device="cuda")
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        compiled(x[:1])
        compiled(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            y = compiled(x)
    torch.cuda.synchronize()
    agrees(compiled, module, torch.randn(1, 8))
    agrees(compiled, module, torch.randn(30, 8))
    x.normal_()
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(y.cpu(), module(x.cpu()).detach(), rtol=0, atol=1e-4)


@pytest.mark.gpu
def test_a_hybrid_in_every_profile(cuda_graphs: bool) -> None:
    built = hybrid()
    loaded = torch2trt.load(to_bytes(built.artifact))
    for each in (built, loaded):
        for part in each.artifact.parts:
            if isinstance(part, Artifact):
                object.__setattr__(part.settings, "cuda_graphs", cuda_graphs)
        for _ in range(2):
            for batch, length in ((1, 2), (16, 32), (1, 32), (2, 2), (4, 8), (2, 32), (1, 8)):
                agrees(each, Parts(), torch.randn(batch, length, 8))
        with pytest.raises(InputShapeError, match="batch 17"):
            each(torch.randn(17, 2, 8, device="cuda"))


@pytest.mark.gpu
def test_examples_from_a_loader_run() -> None:
    loader = DataLoader(TensorDataset(torch.randn(10, 8)), batch_size=4)
    module = Linear().cuda()
    compiled = torch2trt.compile(module, examples=loader, **QUICK)
    assert compiled._session.open().handle.num_optimization_profiles == 3
    for size in (4, 2, 3):
        agrees(compiled, Linear(), torch.randn(size, 8))
    assert compiled.verify(torch.randn(4, 8, device="cuda")).passed
