"""Hybrids: what TensorRT cannot do runs in torch, in few segments, and the whole is right, saved, and explained."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
from tests.harness import compare, truth
from tests.threads import in_threads
from torch2trt import api
from torch2trt.errors import ArtifactError, NetworkError, SettingError, UnsupportedOpsError
from torch2trt.graph.program import Program
from torch2trt.partition.explain import Explanation, Placement, explain
from torch2trt.partition.partitioner import Partition, is_engine, partition
from torch2trt.partition.split import split
from torch2trt.runtime.artifact import Artifact, to_bytes
from torch2trt.runtime.module import EngineModule
from torch2trt.settings import Settings
from torch2trt.trt import flavour as flavours

aten = torch.ops.aten
QUICK: dict[str, Any] = {"precision": "fp32", "optimization_level": 0, "progress": "none", "min_segment": 1}


@torch.library.custom_op("t2t_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    """An operator that nothing converts."""
    return 2 * x


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Call(nn.Module):
    """A function of its inputs and two linear layers."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def check(module: nn.Module, *inputs: Tensor, others: tuple[Tensor, ...] = (), **keywords: Any) -> EngineModule:
    """Compile, compare with float64 eager here and after saving and loading, and on the GPU where there is one."""
    compiled = torch2trt.compile(module, inputs, **{**QUICK, **keywords})
    loaded = torch2trt.load(to_bytes(compiled.artifact, program=compiled.program()))
    for each in (compiled, loaded):
        for arguments in (inputs, *((other,) for other in others)):
            expected = truth(module, arguments)
            compare(each.reference(*arguments), expected, 1.0)
            if torch.cuda.is_available():
                found = each(*(value.cuda() for value in arguments))
                compare(torch.utils._pytree.tree_map_only(Tensor, Tensor.cpu, found), expected, 2.0)
    return compiled


def kinds(compiled: EngineModule) -> list[str]:
    return ["engine" if isinstance(part, Artifact) else "torch" for part in compiled.artifact.parts]


def optimized(module: nn.Module, *inputs: Tensor, **settings: Any) -> tuple[Program, Partition]:
    chosen = Settings.make(**{**QUICK, **settings})
    program = api.optimize(api.capture(module, inputs), chosen)
    return program, partition(program, flavours.load(), chosen)


# What runs where ------------------------------------------------------------------------------------------------------


def test_an_operator_without_converter_runs_in_torch(caplog: pytest.LogCaptureFixture) -> None:
    module = Call(lambda m, x: m.second(doubled(m.first(x)).relu()))
    with caplog.at_level(logging.WARNING, logger="torch2trt"):
        compiled = torch2trt.compile(module, (X,), **QUICK)
    assert kinds(compiled) == ["engine", "torch", "engine"]
    assert "1 of 4 calls run in torch" in caplog.text
    assert "t2t_tests.doubled.default" in caplog.text
    assert compiled.report["engines"] == 2
    assert compiled.report["calls_in_torch"] == 1
    assert compiled.report["engine_bytes"] == compiled.artifact.engine_bytes > 1000
    assert "engine → torch → engine" in compiled._repr_html_()
    found = compiled.verify(X)
    assert found.passed
    data = to_bytes(compiled.artifact, program=compiled.program())
    with pytest.raises(ArtifactError, match=r"(?s)not allowed in a file.*t2t_tests"):
        torch2trt.load(data)
    loaded = torch2trt.load(data, namespaces=["t2t_tests"])
    assert loaded.verify(X).passed
    copied = pickle.loads(pickle.dumps(loaded))
    assert torch.equal(copied.reference(X), compiled.reference(X))
    copied.load_state_dict(compiled.state_dict())


def test_what_converts_whole_is_one_engine() -> None:
    module = Call(lambda m, x: m.second(m.first(x)))
    parted = optimized(module, X)[1]
    assert parted.is_whole
    assert set(parted.phases.values()) == {0}
    compiled = check(module, X)
    assert compiled.artifact.parts == ()
    assert compiled.report["engines"] == 1


def test_fallback_can_be_switched_off() -> None:
    module = Call(lambda m, x: m.second(doubled(m.first(x)) + torch.special.gammaln(x)))
    with pytest.raises(UnsupportedOpsError) as caught:
        torch2trt.compile(module, (X,), fallback=False, **QUICK)
    assert caught.value.nodes[0].op == "t2t_tests.doubled.default"
    assert all("test_partition.py" in node.source for node in caught.value.nodes)


def test_engines_that_do_not_pay_are_not_built() -> None:
    module = Call(lambda m, x: doubled(m.first(x)).relu())
    settings = {**QUICK, "min_segment": 3}
    assert kinds(torch2trt.compile(module, (X,), **settings)) == ["engine", "torch"]
    with pytest.raises(UnsupportedOpsError, match="min_segment=1 builds one all the same"):
        torch2trt.compile(module, (X,), **{**QUICK, "min_segment": 4})
    with pytest.raises(UnsupportedOpsError) as caught:
        torch2trt.compile(Call(lambda m, x: doubled(x).reshape(-1)), (X,), **QUICK)
    assert "min_segment" not in str(caught.value)
    with pytest.raises(SettingError, match="min_segment"):
        Settings(min_segment=0)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["aten.relu"], ["engine", "torch", "engine"]),
        (["aten.relu.default"], ["engine", "torch", "engine"]),
        (["second"], ["engine", "torch"]),
        (["first"], ["torch", "engine"]),
        (["fir"], []),
        (["aten.rel"], []),
    ],
)
def test_operators_and_modules_can_be_sent_to_torch(names: list[str], expected: list[str]) -> None:
    module = Call(lambda m, x: m.second(m.first(x).sin().relu()))
    assert kinds(check(module, X, run_in_torch=names)) == expected


def test_a_module_sends_its_children_too() -> None:
    inner = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Tanh(), nn.Linear(8, 8)))
    module = nn.Sequential(nn.Linear(8, 8), inner, nn.Linear(8, 8)).eval()
    compiled = check(module, X, run_in_torch=["1"])
    assert kinds(compiled) == ["engine", "torch", "engine"]
    assert compiled.report["calls_in_torch"] == 3


def test_parallel_branches_share_segments() -> None:
    def branches(m: Any, x: Tensor) -> Tensor:
        a, b = m.first(x), m.second(x)
        return m.first(a.tanh()) + m.second(b.tanh()) + x.tanh()

    module = Call(branches)
    assert kinds(check(module, X, run_in_torch=["aten.tanh"])) == ["engine", "torch", "engine"]


def test_segments_never_wait_for_each_other_in_a_circle() -> None:
    def diamond(m: Any, x: Tensor) -> Tensor:
        a = m.first(x)
        b = a.tanh()
        return m.second(a + b).tanh() + m.first(b.tanh() * a)

    parted = optimized(Call(diamond), X, run_in_torch=["aten.tanh"])[1]
    for node, phase in parted.phases.items():
        for source in node.all_input_nodes:
            if source in parted.phases:
                assert parted.phases[source] <= phase
    assert kinds(check(Call(diamond), X, run_in_torch=["aten.tanh"])) == [
        "engine",
        "torch",
        "engine",
        "torch",
        "engine",
    ]


def test_what_tensorrt_refuses_while_it_is_lowered_goes_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch2trt.converters import registry

    def refuse(net: Any, input: Any) -> Any:
        raise net.error("no")

    table = registry._TABLE
    known = table[aten.sin.default]
    monkeypatch.setitem(table, aten.sin.default, registry.Converter(known.target, refuse, known.unsupported))
    module = Call(lambda m, x: m.second(m.first(x).sin()))
    compiled = check(module, X)
    assert kinds(compiled) == ["engine", "torch", "engine"]
    with pytest.raises(NetworkError, match="no"):
        torch2trt.compile(module, (X,), fallback=False, **QUICK)


# Values between segments ----------------------------------------------------------------------------------------------

TORCH = ["aten.tanh"]


def test_inputs_and_constants_among_the_results() -> None:
    class Hands(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Any:
            return {"x": x, "weight": self.weight, "y": [(x @ self.weight).tanh() @ self.weight, None, 3]}

    compiled = check(Hands().eval(), X, run_in_torch=TORCH)
    assert "torch" in kinds(compiled)


def test_lists_between_segments() -> None:
    def pieces(m: Any, x: Tensor) -> Any:
        a, b = m.first(x).split([3, 5], 1)
        c, d = a.tanh().chunk(2, 1)
        return m.second(torch.cat([b, c, d], 1)), a

    check(Call(pieces), X, run_in_torch=TORCH)
    check(Call(pieces), X, run_in_torch=["aten.split_with_sizes"])


def test_a_weight_in_several_segments_is_saved_and_right() -> None:
    module = Call(lambda m, x: m.first(m.first(m.first(x)).tanh()))
    compiled = check(module, X, run_in_torch=TORCH)
    assert kinds(compiled) == ["engine", "torch", "engine"]


def test_constants_are_computed_where_they_are_needed() -> None:
    def ramps(m: Any, x: Tensor) -> Tensor:
        ramp = torch.arange(x.shape[0], dtype=x.dtype)[:, None]
        return m.second(((m.first(x) + ramp).tanh() * ramp) + ramp)

    compiled = check(Call(ramps), X, run_in_torch=TORCH)
    assert kinds(compiled) == ["engine", "torch", "engine"]


class Rows(nn.Module):
    """Sizes that only a sum of inputs tells."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        twice = torch.cat([self.line(x), x]).tanh()
        return self.line(twice).reshape(2, x.shape[0], 8).sum(0) + torch.full((x.shape[0], 1), 2.0, device=x.device)


def test_dynamic_sizes_cross_segments() -> None:
    others = (torch.randn(1, 8), torch.randn(9, 8))
    compiled = check(Rows().eval(), X, run_in_torch=TORCH, dynamic_shapes=({0: Dim("n", min=1, max=9)},), others=others)
    assert kinds(compiled) == ["engine", "torch", "engine"]
    last = compiled.artifact.parts[-1]
    assert isinstance(last, Artifact)
    # Its own input has 2n rows; the caller's tells it what n is.
    assert {str(leaf.spec.shape[0]) for leaf in last.signature.tensor_inputs} == {"2*n", "n"}
    with pytest.raises(torch2trt.InputShapeError):
        compiled.reference(torch.randn(10, 8))


def test_sizes_that_depend_on_data_stay_in_torch() -> None:
    def picked(m: Any, x: Tensor) -> Tensor:
        y = m.first(x)
        rows = y[y.sum(1) > 0]
        return m.second(y) + rows.sum(0)

    # Where TensorRT has layers of such sizes, that is asked for.
    keywords = {"run_in_torch": ["aten.index"]} if flavours.load().has("non_zero") else {}
    compiled = check(Call(picked), X, others=(-X,), **keywords)
    assert kinds(compiled) == ["engine", "torch", "engine"]
    reasons = {each.reason for each in torch2trt.explain(Call(picked), (X,), **QUICK, **keywords).in_torch}
    assert "a size that depends on data" in reasons


def test_half_precision_leaves_foreign_operators_in_float32() -> None:
    seen: list[torch.dtype] = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "doubled" in str(func):
                seen.append(args[0].dtype)
            return func(*args, **(kwargs or {}))

    module = Call(lambda m, x: m.second(doubled(m.first(x))))
    compiled = torch2trt.compile(module, (X,), **{**QUICK, "precision": "fp16"})
    with Spy():
        found = compiled.reference(X)
    assert seen == [torch.float32]
    assert found.dtype == torch.float32
    assert compiled.verify(X).passed


# Files ----------------------------------------------------------------------------------------------------------------


def hybrid() -> EngineModule:
    module = Call(lambda m, x: m.second(m.first(x).tanh()))
    return torch2trt.compile(module, (X,), run_in_torch=TORCH, **QUICK)


def test_a_hybrid_lives_in_a_state_dict_and_a_pickle() -> None:
    compiled = hybrid()
    parent, other = nn.ModuleDict({"net": compiled}), nn.ModuleDict({"net": hybrid()})
    other.load_state_dict(parent.state_dict())
    assert kinds(other["net"]) == ["engine", "torch", "engine"]  # type: ignore[arg-type]
    copied = pickle.loads(pickle.dumps(compiled))
    assert torch.equal(copied.reference(X), compiled.reference(X))


def test_a_bare_plan_is_refused(tmp_path: Path) -> None:
    module = Call(lambda m, x: m.second(m.first(x).tanh()))
    with pytest.raises(UnsupportedOpsError):
        torch2trt.export(module, (X,), tmp_path / "net.engine", run_in_torch=TORCH, **QUICK)
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_refused() -> None:
    data = to_bytes(hybrid().artifact)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert sorted(members) == ["manifest.json", "part0.t2t", "part1.json", "part1.safetensors", "part2.t2t"]

    def written(changes: dict[str, bytes], manifest: Callable[[Any], Any] = lambda data: data) -> bytes:
        import hashlib

        changed = {**members, **changes}
        told = manifest(json.loads(changed["manifest.json"]))
        told["members"] = {
            name: hashlib.sha256(text).hexdigest() for name, text in changed.items() if name != "manifest.json"
        }
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, text in {**changed, "manifest.json": json.dumps(told).encode()}.items():
                archive.writestr(name, text)
        return buffer.getvalue()

    assert torch2trt.load(written({})).artifact.results
    broken = [
        written({}, lambda told: {**told, "parts": ["engine", "torch"]}),
        written({}, lambda told: {**told, "parts": ["engine", "other", "engine"]}),
        written({}, lambda told: {**told, "parts": ["torch", "engine", "engine"]}),
        written({}, lambda told: {**told, "results": {"output0": "nothing"}}),
        written({}, lambda told: {**told, "results": {}}),
        written({"part0.t2t": members["part2.t2t"], "part2.t2t": members["part0.t2t"]}),
        written({"part0.t2t": data}),
        written({"part1.json": b"{}"}),
        written({"part1.json": b"["}),
    ]
    for number, bad in enumerate(broken):
        with pytest.raises(ArtifactError):
            pytest.fail(f"{number} was loaded: {torch2trt.load(bad)}")


# Explaining -----------------------------------------------------------------------------------------------------------


def explained() -> Explanation:
    module = nn.Sequential(nn.Linear(8, 8), Call(lambda m, x: m.second(doubled(m.first(x)))), nn.Linear(8, 8)).eval()
    return torch2trt.explain(module, (X,), **QUICK)


def test_explain_says_where_and_why() -> None:
    found = explained()
    assert found.segments == [("engine", 2), ("torch", 1), ("engine", 2)]
    (foreign,) = found.in_torch
    assert (foreign.op, foreign.reason, foreign.module) == ("t2t_tests.doubled.default", "no converter", "1")
    assert "test_partition.py" in foreign.source
    assert [each.module for each in found.placements] == ["0", "1.first", "1", "1.second", "2"]
    text = str(found)
    assert "engine (2) → torch (1) → engine (2)" in text
    assert "no converter" in text
    data = json.loads(json.dumps(found.to_json()))
    assert data["calls_in_torch"] == 1
    assert data["placements"][2]["where"] == "torch"
    assert ("1", 0, 1) in found.modules


def test_explain_as_html_is_escaped() -> None:
    page = explained().to_html()
    assert page == explained()._repr_html_()
    assert "t2t_tests.doubled" in page
    odd = Placement("n", "a<b>", "m<b>", "f.py:1 in <lambda>", 0, "torch", "x < y")
    page = Explanation("<b>", "rtx", (odd,)).to_html()
    assert "f.py:1 in &lt;lambda&gt;" in page
    assert "<b>" not in page


def test_explain_of_what_would_not_compile() -> None:
    module = Call(lambda m, x: doubled(x) + 1)
    found = torch2trt.explain(module, (X,))
    assert "nothing is compiled" in found.refusal
    assert all(each.where == "torch" for each in found.placements)
    assert "nothing is compiled" in str(found)


def test_explain_answers_fast() -> None:
    def long(m: Any, x: Tensor) -> Tensor:
        for number in range(330):
            x = (doubled(x) if number % 50 == 25 else x.sin()) * 1.5 + m.first.bias
        return x

    program = api.optimize(api.capture(Call(long), (X,)), Settings())
    assert len(program.calls) > 900
    start = time.perf_counter()
    found = explain(program, flavours.load(), Settings())
    assert time.perf_counter() - start < 5
    assert len(found.segments) == 15
    assert all(where == ("engine", "torch")[number % 2] for number, (where, _) in enumerate(found.segments))


def test_a_segments_program_is_sound_by_itself() -> None:
    module = Call(lambda m, x: m.second(m.first(x).tanh()) + x)
    program, parted = optimized(module, X, run_in_torch=TORCH)
    segments = split(program, parted)
    assert [segment.is_engine for segment in segments] == [True, False, True]
    assert [is_engine(phase) for phase in sorted(set(parted.phases.values()))] == [True, False, True]
    values = {"inputs_0": X}
    for segment in segments:
        made = segment.program
        inputs = [values[leaf.name] for leaf in made.signature.tensor_inputs]
        values |= dict(zip(made.output_names, made.run(*inputs), strict=True))
    torch.testing.assert_close(values[program.output_node.all_input_nodes[0].name], module(X))


# Through torch.compile -----------------------------------------------------------------------------------------------


def test_torch_compile_falls_back_too() -> None:
    module = Call(lambda m, x: m.second(doubled(m.first(x))))
    compiled = torch.compile(module, backend="torch2trt", options={**QUICK})
    with torch.no_grad():
        torch.testing.assert_close(compiled(X), module(X), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


# Converters of other packages -----------------------------------------------------------------------------------------


OTHER = """
import torch
import torch2trt

torch.library.define("t2t_other::thrice", "(Tensor x) -> Tensor")
torch.library.impl("t2t_other::thrice", "CompositeExplicitAutograd", lambda x: 3 * x)
torch.library.register_fake("t2t_other::thrice", lambda x: torch.empty_like(x))

@torch2trt.converter(torch.ops.t2t_other.thrice.default)
def thrice(net, x):
    return net.binary("PROD", x, 3.0)
"""
USES = """
import torch, torch2trt
class Thrice(torch.nn.Module):
    def forward(self, x):
        return torch.ops.t2t_other.thrice(x)
torch2trt.explain(torch.nn.ReLU().eval(), (torch.ones(2),))  # what first needs converters imports them
compiled = torch2trt.compile(Thrice().eval(), (torch.ones(2),), progress="none", fallback=False)
print(compiled.reference(torch.ones(2)).tolist())
"""


def test_packages_bring_their_converters(tmp_path: Path) -> None:
    for name, text in (("t2t_other", OTHER), ("t2t_broken", "raise RuntimeError('its own fault')")):
        (tmp_path / f"{name}.py").write_text(text)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[torch2trt.converters]\n{name} = {name}\n")
    path = os.pathsep.join([str(tmp_path), str(Path(torch2trt.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, "-c", USES],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.strip() == "[3.0, 3.0]", ran.stderr
    assert "t2t_broken" in ran.stderr
    assert "its own fault" in ran.stderr


# On the GPU -----------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_hybrids_run_on_any_stream_and_from_threads(cuda_graphs: bool) -> None:

    module = Rows().eval().cuda()
    compiled = torch2trt.compile(
        module,
        (X.cuda(),),
        dynamic_shapes=({0: Dim("n", min=1, max=9)},),
        run_in_torch=TORCH,
        cuda_graphs=cuda_graphs,
        **QUICK,
    )

    def work(seed: int) -> None:
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            for turn in range(20):
                x = torch.randn(1 + (seed + turn) % 9, 8, device="cuda")
                torch.testing.assert_close(compiled(x), module(x), rtol=1e-4, atol=1e-4)

    in_threads(work, 4)
    assert F.relu(compiled(X.cuda())).device == compiled._session.device
