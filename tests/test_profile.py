"""Profiles: how times and FLOPs are shared out, and the pages; engines are interpreted, or come from samples."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils.flop_counter import FlopCounterMode

import torch2trt
from tests import inspector_samples as samples
from tests.inspector_samples import Net, X, program_of
from torch2trt import api
from torch2trt.errors import ExampleInputError, InputShapeError, NoGPUError, SettingError
from torch2trt.graph.program import Program, provenance
from torch2trt.partition import engines
from torch2trt.runtime.layers import LayerTimes
from torch2trt.runtime.module import EngineModule
from torch2trt.tools import cli
from torch2trt.tools.inputs import InputSpec, draw_for
from torch2trt.tools.profile import command, profiling
from torch2trt.tools.profile.attribution import Call, calls_of, claimed, flops_of_kernels, shares
from torch2trt.tools.profile.report import OWN, Kernel, Limits, Memory, Profile
from torch2trt.trt import flavour as flavours
from torch2trt.trt.inspector import Layer, LayerTensor, layers, mark

SVG = "{http://www.w3.org/2000/svg}"
LIMITS = Limits(gb_per_s=1000.0, tflops=100.0)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


# Sharing out ----------------------------------------------------------------------------------------------------------

A, B, C, D = Call("a", flops=30), Call("b", flops=10), Call("c", flops=0), Call("d")


def test_time_goes_by_flops_or_equally() -> None:
    assert shares([A, B, C]) == [0.75, 0.25, 0.0]
    assert shares([C, D]) == [0.5, 0.5]


def test_flops_of_a_call_go_to_the_kernels_that_multiply() -> None:
    kernels = [Layer("copy", "Reformat"), Layer("a", "kgen"), Layer("q", "gemm"), Layer("r", "gemm"), Layer("b")]
    claims = [[A], [A, C], [A], [A, B], [B]]
    # Of b's two kernels the one called gemm multiplies.
    assert flops_of_kernels(kernels, [9.0, 9.0, 1.0, 2.0, 5.0], claims) == [0, 0, 10, 30, 0]
    assert flops_of_kernels([Layer("a"), Layer("b")], [1.0, 3.0], [[B], [B]]) == [2, 8]
    assert flops_of_kernels([Layer("a"), Layer("b")], [0.0, 0.0], [[B], [B]]) == [5, 5]
    assert flops_of_kernels([Layer("a"), Layer("b", "Reformat")], [1.0, 3.0], [[D], []]) == [None, 0]
    assert flops_of_kernels([Layer("b", "Reformat")], [1.0], [[B]]) == [10]


def test_kernels_find_their_calls() -> None:
    calls = calls_of(program_of(Net(), X), {})
    by_mark = claimed(layers(samples.CONVOLUTIONS), calls)
    names = [[call.node for call in each] for each in by_mark]
    # A copy is its call's, by its name; so are all where there are names alone.
    assert names == [["conv_block_default"], ["conv_block_default"], ["conv_block_default_1"], ["mean"], ["mean"]]
    plain = [Layer(layer.name) for layer in layers(samples.CONVOLUTIONS)]
    assert [[call.node for call in each] for each in claimed(plain, calls)] == names
    assert [call.module for each in by_mark[:3] for call in each] == ["stem", "stem", "blocks.0.conv"]
    assert "inspector_samples.py" in by_mark[1][0].source
    assert by_mark[1][0].flops == 2 * 2 * 64 * 8 * 27


def test_a_range_of_layers_is_all_the_calls_between() -> None:
    calls = {name: Call(name) for name in ("a", "b", "c", "d")}
    (found,) = claimed([Layer("{ForeignNode[b.1...d]}")], calls)
    assert [call.node for call in found] == ["b", "c", "d"]


def test_without_a_graph_layers_tell_what_they_know() -> None:
    found = claimed(layers(samples.COMPILED), None)
    assert [[(call.node, call.module) for call in each] for each in found] == [
        [("layer_norm", "norm"), ("add_1", "")],
        [("linear_block_default", "mlp.0")],
        [],
    ]
    assert claimed([Layer("conv + relu")], None) == [[Call("conv"), Call("relu")]]


# Roll-ups and pages ---------------------------------------------------------------------------------------------------


def profile_of(*kernels: Kernel, **changes: Any) -> Profile:
    known = {
        "name": "Net",
        "flavour": "tensorrt 10.6.0",
        "gpu": "Fake 9000",
        "precision": "fp16",
        "shapes": {"x": (2, 3, 10, 10)},
        "kernels": kernels,
        "run_ms": 0.05,
        "in_cuda_graph": True,
        "runs": 20,
        "limits": LIMITS,
        "memory": Memory(plan=3_000_000, weights=None, activations=4096, io=2048),
    }
    return Profile(**{**known, **changes})


@pytest.fixture(scope="module")
def convolutions() -> Profile:
    """Of the sample, with times."""
    found = LayerTimes(samples.CONVOLUTIONS, _times(samples.CONVOLUTIONS), [], [])
    return profile_of(*profiling._kernels(found, calls_of(program_of(Net(), X), {}), 0))


def _times(information: str) -> dict[str, float]:
    """Milliseconds: 0.004, 0.008, 0.016, …"""
    return {layer.name: 0.004 * 2**number for number, layer in enumerate(layers(information))}


def test_times_are_rolled_up_by_module(convolutions: Profile) -> None:
    assert convolutions.kernels_ms == pytest.approx(0.124)
    assert convolutions.own_ms == 0
    found = {part.name: part.ms for part in convolutions.modules}
    assert list(found) == ["", "stem", "blocks", "blocks.0", "blocks.0.conv"]
    assert found == pytest.approx({"": 0.124, "stem": 0.012, **dict.fromkeys(list(found)[2:], 0.016)})
    assert {part.name: part.calls for part in convolutions.modules} == {
        "": 3,
        "stem": 1,
        **dict.fromkeys(list(found)[2:], 1),
    }


def test_times_are_rolled_up_by_line(convolutions: Profile) -> None:
    lines = convolutions.lines
    assert [round(part.ms, 6) for part in lines] == sorted((round(part.ms, 6) for part in lines), reverse=True)
    assert sum(part.ms for part in lines) == pytest.approx(0.124)
    assert all(re.fullmatch(r".*inspector_samples\.py:\d+ in forward", part.name) for part in lines)
    assert dataclasses.replace(convolutions, has_program=False).lines == []


def test_a_module_that_is_entered_again_stays_with_its_parent() -> None:
    calls = [Call("a", module="x.y"), Call("b", module="z"), Call("c", module="x.w")]
    kernels = [Kernel(call.node, "", "", 0, 1.0, calls=(call,)) for call in calls]
    assert [part.name for part in profile_of(*kernels).modules] == ["", "x", "x.y", "x.w", "z"]


def test_rates_stand_beside_the_limits(convolutions: Profile) -> None:
    stem = convolutions.kernels[1]
    assert stem.tflops == pytest.approx(stem.flops / 8e-6 / 1e12)  # type: ignore[operator]
    assert stem.gb_per_s == pytest.approx(stem.bytes / 8e-6 / 1e9)  # type: ignore[operator]
    assert convolutions.of_limit(stem) == pytest.approx(max(stem.tflops / 100, stem.gb_per_s / 1000))  # type: ignore[operator, type-var]
    assert convolutions.kernels[0].tflops is None
    unknown = Kernel("?", "", "", 0, 0.0)
    assert (unknown.tflops, unknown.gb_per_s, unknown.module) == (None, None, "")
    assert profile_of(unknown).of_limit(unknown) is None


def test_a_kernel_is_in_the_module_that_holds_all_its_calls() -> None:
    calls = tuple(Call(path, module=path) for path in ("a.bc.d", "a.bc", "a.bcd"))
    assert Kernel("", "", "", 0, 1.0, calls=calls[:2]).module == "a.bc"
    assert Kernel("", "", "", 0, 1.0, calls=calls).module == "a"


def test_layers_that_only_one_side_knows_are_kept() -> None:
    times = {"mean": 1.0, "someone else's\x1e": 2.0}
    kernels = profiling._kernels(LayerTimes(samples.CONVOLUTIONS, times, [], []), {}, 3)
    assert [kernel.ms for kernel in kernels] == [0, 0, 0, 1.0, 0, 2.0]
    assert kernels[-1].name == "someone else's "
    assert {kernel.segment for kernel in kernels} == {3}
    found = profile_of(*kernels)
    assert found.own_ms == 3.0
    assert found.modules == []
    assert OWN in str(found)


def test_json_is_for_tools(convolutions: Profile) -> None:
    data = json.loads(json.dumps(convolutions.to_json(), allow_nan=False))
    assert set(data) == {
        *("name", "flavour", "gpu", "precision", "inputs", "run_ms", "in_cuda_graph", "runs", "kernels_ms", "own_ms"),
        *("flops", "limits", "memory", "kernels", "calls", "modules", "lines"),
    }
    assert data["inputs"] == {"x": [2, 3, 10, 10]}
    assert data["memory"] == {"plan": 3_000_000, "weights": None, "activations": 4096, "io": 2048}
    assert data["limits"] == {"gb_per_s": 1000.0, "tflops": 100.0}
    assert set(data["kernels"][0]) == {
        *("name", "kind", "tactic", "segment", "module", "calls", "ms", "flops", "bytes", "tflops", "gb_per_s"),
        *("of_limit", "inputs", "outputs"),
    }
    shapes = [each["shape"] for each in data["kernels"][0]["inputs"]]
    assert shapes == [[2, 3, 10, 10]]
    assert set(data["calls"][0]) == {"node", "op", "module", "source", "flops", "ms", "kernels"}
    assert [(each["node"], each["kernels"]) for each in data["calls"]] == [
        ("conv_block_default", 2),
        ("conv_block_default_1", 1),
        ("mean", 2),
    ]
    assert set(data["modules"][0]) == set(data["lines"][0]) == {"name", "ms", "calls", "flops"}


def test_a_table_has_the_slowest_kernels(convolutions: Profile) -> None:
    text = str(convolutions)
    assert "0.050 ms, in a CUDA graph" in text
    assert "100.0 TFLOP/s, 1000 GB/s" in text
    assert text.index(samples.FROM_HEAD) < text.index("conv_block_default_1 + ")
    many = profile_of(*(Kernel(f"kernel {number}", "", "", 0, 0.001 * number) for number in range(40)))
    assert "24 others" in str(many)
    assert "kernel 39" in str(many)
    assert "kernel 3 " not in str(many)


EVIL = "<script>alert('&')</script>\"]"


def evil() -> Profile:
    """Names that are no good in a page."""
    call = Call(EVIL, EVIL, f"{EVIL}.b", f"/x/{EVIL}.py:3 in {EVIL}", 5)
    read = LayerTensor(EVIL, (2, 3), "fp16", EVIL)
    first = Kernel("first", EVIL, EVIL, 0, 0.5, (), (read,))
    return profile_of(first, Kernel(EVIL, EVIL, EVIL, 0, 1.0, (read,), (read,), 5, 5, (call,)), name=EVIL, gpu=EVIL)


def test_the_page_is_well_formed_and_escapes_names(convolutions: Profile) -> None:
    for found in (convolutions, evil(), profile_of()):
        page = found.to_html()
        assert page.startswith("<!DOCTYPE html>\n")
        root = ET.fromstring(page)
        # The only script is the page's own, and nothing is fetched.
        (script,) = root.iter("script")
        assert "alert" not in (script.text or "")
        assert not any({"src", "href"} & set(element.keys()) for element in root.iter())
        assert len(list(root.iter(f"{SVG}svg"))) == 1
    text = " ".join(ET.fromstring(evil().to_html()).itertext())
    assert text.count(EVIL) > 5
    headings = [element.text for element in ET.fromstring(convolutions.to_html()).iter("summary")]
    assert headings  # modules that have others in them
    assert EVIL not in evil().to_html()


def test_the_picture_has_a_box_for_each_kernel_and_lines_between(convolutions: Profile) -> None:
    root = ET.fromstring(convolutions.to_svg())
    groups = root.findall(f"{SVG}g")
    assert [group.findtext(f"{SVG}text") for group in groups][3] == "mean"
    tops = [int(group.find(f"{SVG}rect").get("y", "")) for group in groups]  # type: ignore[union-attr]
    assert tops == sorted(tops)
    assert [len(group.findall(f"{SVG}text")) for group in groups] == [3] * 5
    assert "fp16[2×3×10×10] linear → fp16[2×3×10×10] HWC8" in "".join(groups[0].itertext())
    # Each kernel reads what the one before it wrote, the residual sum too.
    assert len(root.findall(f"{SVG}path")) == 4
    bars = [float(bar.get("width", "")) for bar in root.findall(f"{SVG}rect")]
    assert bars == pytest.approx([220 / 16, 220 / 8, 220 / 4, 220 / 2, 220], abs=0.1)
    width, height = int(root.get("width", "")), int(root.get("height", ""))
    assert max(tops) + 58 < height
    assert width > 640 + 220


def test_lines_that_pass_kernels_do_not_overlap() -> None:
    def kernel(name: str, *read: str) -> Kernel:
        return Kernel(name, "", "", 0, 1.0, tuple(LayerTensor(each) for each in read), (LayerTensor(name),))

    found = profile_of(kernel("a"), kernel("b", "a"), kernel("c", "a", "b"), kernel("d", "b"), kernel("e", "c", "a"))
    paths = [path.get("d", "") for path in ET.fromstring(found.to_svg()).findall(f"{SVG}path")]
    # a to b and b to c are neighbours; a to c, b to d, c to e, a to e pass one another or some kernel.
    spans: dict[str, list[tuple[int, int]]] = {}
    for path in paths:
        if match := re.fullmatch(r"M \d+ (\d+) H (\d+) V (\d+) H \d+", path):
            spans.setdefault(match[2], []).append((int(match[1]), int(match[3])))
    assert sum(map(len, spans.values())) == 4
    for lane in spans.values():
        lane.sort()
        assert all(before[1] < after[0] for before, after in itertools.pairwise(lane))
    assert len(paths) == 6


# Without a GPU --------------------------------------------------------------------------------------------------------


@no_gpu
def test_without_a_gpu_it_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NoGPUError, match="kernels are timed on NVIDIA GPUs") as caught:
        torch2trt.profile(Net(), (X,))
    assert "torch2trt inspect" in caught.value.hint
    assert cli.main(["profile", "torchvision:resnet18", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == NoGPUError.code


def test_inputs_of_an_artifact_are_drawn() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            return x * 2 + ids

    shapes = {"x": {0: Dim("batch", min=1, max=8)}, "ids": None}
    signature = program_of(Pair(), torch.randn(3, 4), torch.zeros(4, dtype=torch.int64), shapes=shapes).signature
    x, ids = draw_for(signature, spans={"": (5, 7)})
    assert (x.shape, ids.shape, ids.dtype) == ((3, 4), (4,), torch.int64)
    assert set(ids.tolist()) <= {5, 6}
    assert draw_for(signature, [InputSpec.parse("8x4")])[0].shape == (8, 4)
    assert draw_for(signature, [InputSpec.parse("x:float32:2x4")])[0].shape == (2, 4)
    for text in ("y:1x4", "x:float16:1x4"):
        with pytest.raises(ExampleInputError, match="does not fit"):
            draw_for(signature, [InputSpec.parse(text)])
    with pytest.raises(ExampleInputError):
        draw_for(signature, [InputSpec.parse("1x4")] * 3)


class FakeMachine:
    """Every call takes a millisecond."""

    device, name = torch.device("cpu"), "Fake 9000"

    def gpu_ms(self, call: Callable[[int], Any], calls: int, *, lead_in: int) -> float:
        call(0)
        return 1.0

    def host_us(self, call: Callable[[int], Any], calls: int) -> float:
        return 7.0


@dataclasses.dataclass
class FakeEngine:
    """The interpreter in an engine's place."""

    artifact: Any
    device: torch.device

    weight_bytes = 100
    scratch_bytes = 64


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that are interpreted on the CPU; each call of theirs is a kernel that takes a millisecond."""
    programs: dict[int, Program] = {}
    build = engines.engine_of

    def remembered(program: Program, *args: Any) -> Any:
        artifact = build(program, *args)
        programs[id(artifact.plan)] = program
        return artifact

    def time(engine: FakeEngine, inputs: Sequence[Tensor], *, runs: int) -> LayerTimes:
        program = programs[id(engine.artifact.plan)]
        nodes = [node for node in program.calls if not program.is_size(node)]
        items = [
            samples.layer(node.name, "kgen", [], [], mark(node.name, provenance(node)[0]))
            if engine.artifact.settings.profiling_verbosity == "detailed"
            else node.name
            for node in nodes
        ]
        outputs = api._interpreted(program, flavours.load())(inputs)
        return LayerTimes(samples.information(*items), {node.name: 1.0 for node in nodes}, list(inputs), list(outputs))

    class FakeSession:
        def __init__(self, artifact: Any, device: Any) -> None: ...

        def run(self, inputs: Any, shapes: Any) -> None: ...

    monkeypatch.setattr(engines, "engine_of", remembered)
    for each in (profiling, command):
        monkeypatch.setattr(each, "check_gpu", lambda: None)
    monkeypatch.setattr(profiling, "CudaMachine", FakeMachine)
    monkeypatch.setattr(profiling, "Engine", FakeEngine)
    monkeypatch.setattr(profiling, "time_layers", time)
    monkeypatch.setattr(profiling, "measure_limits", lambda machine, precision: LIMITS)
    monkeypatch.setattr(profiling, "_whole", lambda engine, inputs, machine: (0.5, True))
    monkeypatch.setattr(profiling, "open_session", FakeSession)


@pytest.mark.usefixtures("interpreted")
def test_a_profile_is_put_together() -> None:
    found = torch2trt.profile(Net(), (X,), name="mine", runs=3)
    assert (found.name, found.gpu, found.runs, found.run_ms, found.in_cuda_graph) == ("mine", "Fake 9000", 3, 0.5, True)
    assert found.shapes == {"x": (2, 3, 10, 10)}
    assert [kernel.name for kernel in found.kernels] == [each.call.node for each in found.calls]
    assert found.memory.weights == 100
    assert found.memory.activations == 64
    assert found.memory.io == X.nbytes + 2 * 5 * 4
    with FlopCounterMode(display=False) as counter:
        Net()(X)
    assert found.flops == counter.get_total_flops()
    assert {part.name for part in found.modules} >= {"", "stem", "blocks.0", "head"}


@pytest.mark.usefixtures("interpreted")
def test_a_hybrid_has_a_row_for_what_runs_in_torch() -> None:
    found = torch2trt.profile(Net(), (X,), run_in_torch=["blocks"], min_segment=1)
    kinds = [(kernel.segment, kernel.kind) for kernel in found.kernels]
    assert list(dict.fromkeys(kinds)) == [(0, "kgen"), (1, "torch"), (2, "kgen")]
    (row,) = [kernel for kernel in found.kernels if kernel.kind == "torch"]
    assert row.module == "blocks.0"
    assert row.flops == 2 * 2 * 64 * 8 * 72
    assert (row.ms, found.run_ms, found.in_cuda_graph) == (1.0, 1.0, False)
    assert "engines, in CUDA graphs where they can be, and torch between them" in str(found)
    assert {part.name: part.ms for part in found.modules}["blocks"] == 1.0
    # What one segment writes another reads, in the picture too.
    assert row.inputs[0].shape == (2, 8, 8, 8)
    ET.fromstring(found.to_html())


@pytest.mark.usefixtures("interpreted")
def test_a_compiled_module_is_profiled_with_what_it_knows() -> None:
    compiled = torch2trt.compile(Net(), (X,), fallback=False)
    found = torch2trt.profile(compiled, (X,))
    assert {part.name for part in found.modules} >= {"", "stem", "head"}
    assert found.flops > 0
    bare = EngineModule(compiled.artifact)
    without = torch2trt.profile(bare, (X,))
    assert [each.call.node for each in without.calls] == [each.call.node for each in found.calls]
    assert without.lines == []
    assert without.flops == 0
    with pytest.raises(SettingError, match="compiled before"):
        torch2trt.profile(compiled, (X,), precision="fp16")
    with pytest.raises(SettingError, match="positive"):
        torch2trt.profile(compiled, (X,), runs=0)


@pytest.mark.usefixtures("interpreted")
def test_the_command_writes_what_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, picture = tmp_path / "page.html", tmp_path / "engine.svg"
    argv = ["profile", f"{samples.__file__}:Net", "--input", "2x3x10x10", "--html", str(page), "--svg", str(picture)]
    assert cli.main([*argv, "--runs", "2", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["name"], data["runs"]) == ("Net", 2)
    ET.fromstring(page.read_text(encoding="utf-8"))
    ET.fromstring(picture.read_text(encoding="utf-8"))
    assert cli.main(argv[:4]) == 0
    assert "module, with its children" in capsys.readouterr().out
    assert cli.main([*argv[:5], str(tmp_path / "missing" / "page.html")]) == 2


@pytest.mark.usefixtures("interpreted")
def test_the_example_says_which_optimization_profile_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dynamic: dict[str, Any] = {"x": {0: torch.export.Dim("batch", min=1, max=8)}}
    profiles: list[dict[str, Any]] = [{"batch": 1}, {"batch": (2, 4, 8)}]
    found = torch2trt.profile(Net(), (X,), dynamic_shapes=dynamic, profiles=profiles)
    assert found.shapes == {"x": (2, 3, 10, 10)}
    assert torch2trt.profile(Net(), examples=[X, X[:1]]).shapes == found.shapes
    with pytest.raises(InputShapeError, match="no profile"):
        torch2trt.profile(Net(), (X,), dynamic_shapes=dynamic, profiles=profiles[:1])
    argv = ["profile", f"{samples.__file__}:Net", "--input", "batch=1..4..8x3x10x10", "--profile", "batch=2..4..8"]
    assert cli.main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["inputs"] == {"x": [4, 3, 10, 10]}
    compiled = torch2trt.compile(Net(), (X,))
    with pytest.raises(SettingError, match="compiled before"):
        torch2trt.profile(compiled, (X,), profiles=profiles)
    compiled.save(tmp_path / "net.t2t")
    assert cli.main(["profile", str(tmp_path / "net.t2t"), "--profile", "batch=1"]) == 2
    assert "has its own profiles" in capsys.readouterr().err
