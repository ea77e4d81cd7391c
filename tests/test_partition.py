"""Hybrids: what TensorRT cannot do runs in torch, in few segments, and the whole is right and explained."""

from __future__ import annotations

import inspect
import json
import logging
import pickle
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
from tests.hybrids import QUICK, TORCH, Call, Rows, X, check, doubled, kinds, optimized
from torch2trt import api
from torch2trt.errors import ArtifactError, NetworkError, SettingError, UnsupportedOpsError
from torch2trt.partition.explain import Explanation, Placement, explain
from torch2trt.partition.partitioner import is_engine
from torch2trt.partition.split import split
from torch2trt.runtime.artifact import Artifact, to_bytes
from torch2trt.settings import Settings
from torch2trt.trt import flavour as flavours

aten = torch.ops.aten


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
    assert all(inspect.getfile(Call) in node.source for node in caught.value.nodes)


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


# Explaining -----------------------------------------------------------------------------------------------------------


def explained() -> Explanation:
    module = nn.Sequential(nn.Linear(8, 8), Call(lambda m, x: m.second(doubled(m.first(x)))), nn.Linear(8, 8)).eval()
    return torch2trt.explain(module, (X,), **QUICK)


def test_explain_says_where_and_why() -> None:
    found = explained()
    assert found.segments == [("engine", 2), ("torch", 1), ("engine", 2)]
    (foreign,) = found.in_torch
    assert (foreign.op, foreign.reason, foreign.module) == ("t2t_tests.doubled.default", "no converter", "1")
    assert inspect.getfile(Call) in foreign.source
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
