"""The engine cache: hits, and misses that say why."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
import torch2trt.backend
from tests.caching import DEVICE, Compile, X, cache, compiling, key, net, put
from tests.plugin_operators import plugged
from torch2trt.engine import builder, cached, differences
from torch2trt.engine.cache import EngineCache
from torch2trt.engine.cached import is_on
from torch2trt.engine.key import Section
from torch2trt.errors import BuildError
from torch2trt.runtime.module import EngineModule
from torch2trt.settings import Settings
from torch2trt.trt import flavour as flavours
from torch2trt.trt.flavour import Flavour

__all__ = ["cache", "compiling", "plugged"]  # fixtures, which tests name

FLAVOUR = flavours.load()
ROOT = Path(__file__).parents[1]


@pytest.fixture
def no_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("TensorRT's builder is not needed")

    monkeypatch.setattr("torch2trt.converters.lower.Network", refuse)
    monkeypatch.setattr("torch2trt.trt.core.NetworkCore.__init__", refuse)
    monkeypatch.setattr(builder, "build", refuse)


def same(one: EngineModule, other: EngineModule) -> bool:
    return one.artifact.plan == other.artifact.plan and torch.equal(one.reference(X), other.reference(X))


# Hits -----------------------------------------------------------------------------------------------------------------


def test_a_hit_is_the_engine_that_was_built(compiling: Compile, cache: EngineCache) -> None:
    first, second = compiling(net()), compiling(net())
    assert [each.report["cache"] for each in (first, second)] == ["miss", "hit"]
    assert same(first, second)
    (stored,) = cache.entries()
    assert stored.hits == 1
    assert stored.entry.seconds == pytest.approx(first.report["lower_s"] + first.report["build_s"], rel=0.2, abs=0.05)
    assert second.report["layers"] == first.report["layers"] > 0
    assert second.report["build_s"] == second.report["lower_s"] == 0
    assert "found in the engine cache" in second._repr_html_()


def test_a_hit_needs_no_builder(compiling: Compile, request: pytest.FixtureRequest) -> None:
    compiling(net())
    request.getfixturevalue("no_builder")
    assert compiling(net(), fallback=False, timing_cache=False).report["cache"] == "hit"
    with pytest.raises(AssertionError, match="not needed"):
        compiling(net(), optimization_level=1)


def test_the_name_of_a_hit_is_the_callers(compiling: Compile) -> None:
    compiling(net(), name="first")
    assert compiling(net(), name="second").artifact.name == "second"


def test_segments_are_found_one_by_one(compiling: Compile, cache: EngineCache) -> None:
    how = {"run_in_torch": ("aten.relu",), "min_segment": 1}
    first = compiling(net(), **how)
    assert len(cache.entries()) == first.report["engines"] == 2
    second = compiling(net(), **how)
    assert second.report["cache"] == "hit"
    assert torch.equal(first.reference(X), second.reference(X))
    other = net()
    with torch.no_grad():
        other[3].weight[0] += 1
    assert compiling(other, **how).report["cache"] == "miss"
    # The first engine is the same, only the last one is new.
    assert len(cache.entries()) == 3
    assert sorted(stored.hits for stored in cache.entries()) == [0, 1, 2]


def test_builds_in_a_child_fill_it_too(compiling: Compile, no_child: list[str]) -> None:
    compiling(net(), build_in_subprocess=True)
    assert no_child == ["built"]
    assert compiling(net(), build_in_subprocess=True).report["cache"] == "hit"
    assert compiling(net()).report["cache"] == "hit"
    assert no_child == ["built"]


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Counts the builds in children."""
    built: list[str] = []
    own = torch2trt.partition.engines.build_in_child  # type: ignore[attr-defined]

    def count(*args: Any, **how: Any) -> bytes:
        built.append("built")
        return own(*args, **how)  # type: ignore[no-any-return]

    monkeypatch.setattr("torch2trt.partition.engines.build_in_child", count)
    return built


def test_the_backend_of_torch_compile(tmp_path: Path, cache: EngineCache) -> None:
    options = {"engine_cache": True, "cache_dir": str(tmp_path), "progress": "none"}
    for _ in range(2):
        torch._dynamo.reset()
        with torch.no_grad():
            torch.compile(net(), backend="torch2trt", options=options)(X)
    assert [stored.hits for stored in cache.entries()] == [1]
    torch._dynamo.reset()


def test_dynamic_shapes(compiling: Compile) -> None:
    shapes = ({0: Dim("batch", min=1, max=8)},)
    first, second = (compiling(_Dynamic().eval().to(DEVICE), X, dynamic_shapes=shapes) for _ in range(2))
    assert second.report["cache"] == "hit"
    for batch in (1, 5):
        x = torch.randn(batch, 3, 8, 8)
        assert torch.equal(first.reference(x), second.reference(x))


class _Dynamic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x.flatten(2).transpose(1, 2), 1)


def test_softmax_of_another_dimension_is_another_engine(compiling: Compile) -> None:
    for dim in (0, 1):
        compiled = compiling(nn.Softmax(dim).eval())
        assert compiled.report["cache"] == "miss"
        assert torch.allclose(compiled.reference(X), X.cpu().softmax(dim))


# On and off -----------------------------------------------------------------------------------------------------------


def test_where_nothing_is_set_it_depends_on_the_flavour(monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests themselves have another default.
    monkeypatch.setitem(flavours._CAPABILITIES, "quick_builds", {"tensorrt_rtx": ((1, 0), None)})
    enterprise, rtx = Flavour("tensorrt", (10, 6), None), Flavour("tensorrt_rtx", (1, 7), None)
    assert [is_on(each, Settings()) for each in (enterprise, rtx)] == [True, False]
    assert [is_on(each, Settings(engine_cache=True)) for each in (enterprise, rtx)] == [True, True]
    assert [is_on(each, Settings(engine_cache=False)) for each in (enterprise, rtx)] == [False, False]


def test_off_touches_nothing(compiling: Compile, cache: EngineCache) -> None:
    compiling(net())
    (before,) = cache.entries()
    assert compiling(net(), engine_cache=False).report["cache"] == "off"
    assert cache.entries() == [before]


def test_an_engine_without_key_is_built(
    compiling: Compile, cache: EngineCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(*_: Any, **__: Any) -> None:
        raise cached.NoKeyError("a converter nobody knows")

    monkeypatch.setattr("torch2trt.partition.engines.key_of_program", unknown)
    assert compiling(net()).report["cache"] == "off"
    assert "a converter nobody knows" in caplog.text
    assert not cache.entries()


def test_a_build_that_fails_leaves_nothing(
    compiling: Compile, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise BuildError("no engine")

    with monkeypatch.context() as patch:
        patch.setattr(builder, "build", fail)
        with pytest.raises(BuildError):
            compiling(net())
    assert not cache.entries()
    assert compiling(net()).report["cache"] == "miss"


# Damage ---------------------------------------------------------------------------------------------------------------


def test_a_damaged_engine_is_built_again(
    compiling: Compile, cache: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    first = compiling(net())
    path = cache.entries()[0].folder / "plan"
    path.write_bytes(path.read_bytes()[:-7])
    states = [compiling(net()) for _ in range(2)]
    assert [each.report["cache"] for each in states] == ["miss", "hit"]
    assert "built again" in caplog.text
    assert torch.equal(first.reference(X), states[1].reference(X))


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"graph": 3}', b'{"graph": {"lines": ["a"], "names": []}}'])
def test_a_damaged_key_spoils_no_hit_and_no_reason(
    compiling: Compile, cache: EngineCache, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    compiling(net())
    (cache.entries()[0].folder / "key.json").write_bytes(damage)
    caplog.set_level(logging.INFO, "torch2trt.engine")
    assert compiling(net()).report["cache"] == "hit"
    assert compiling(net(), optimization_level=1).report["cache"] == "miss"
    assert "settings (its details are damaged)" in caplog.text


def test_a_folder_that_is_none(tmp_path: Path, compiling: Compile, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    for _ in range(2):
        assert compiling(net(), cache_dir=tmp_path / "file").report["cache"] == "miss"
    assert "could not be kept" in caplog.text


def test_a_full_disk(
    compiling: Compile, cache: EngineCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name == "plan":
            own(path, data[:10])
            raise OSError(28, "No space left on device")
        return own(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert compiling(net()).report["cache"] == "miss"
    assert "No space left" in caplog.text
    assert [path.name for path in cache.folder.iterdir()] == [".lock"] or not list(cache.folder.iterdir())
    assert compiling(net()).report["cache"] == "miss"
    assert compiling(net()).report["cache"] == "hit"


# Why it is a miss -----------------------------------------------------------------------------------------------------


def said(caplog: pytest.LogCaptureFixture) -> str:
    text = " ".join(record.getMessage() for record in caplog.records if "engine cache" in record.getMessage())
    caplog.clear()
    return text


def test_the_log_says_what_differs(compiling: Compile, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "torch2trt.engine")
    compiling(net())
    assert "has nothing of this model" in said(caplog)
    compiling(net(), optimization_level=1)
    assert "settings (optimization_level: null → 1)" in said(caplog)
    other = net()
    with torch.no_grad():
        other[3].bias[2] += 1
    compiling(other)
    text = said(caplog)
    assert "with another weights (3.bias float32[5])" in text
    compiling(net(nn.SiLU()))
    text = said(caplog)
    assert "with another graph (%5 = torch2trt.conv_block.default: activation='relu' → activation='silu')" in text
    caplog.set_level(logging.WARNING, "torch2trt.engine")
    compiling(net(nn.Tanh()))
    assert said(caplog) == ""


def test_lines_that_only_moved_are_not_shown() -> None:
    def line(n: int, input: int, op: str = "op", shape: str = "[2]") -> str:
        return f"%{n} = {op}(input=%{input}, scales=[1, 2]) -> float32{shape}"

    old = [line(n, n - 1, f"op{n}") for n in range(1, 40)]

    def changes(new: list[str]) -> list[str]:
        return list(differences._lines(Section(tuple(old)), Section(tuple(new))))

    added = line(21, 20, "new")
    assert changes([*old[:20], added, *(line(n + 1, n, f"op{n}") for n in range(21, 40))]) == [f"+ {added}"]
    assert changes([*old[:-1], line(39, 1, "op39")]) == ["%39 = op39: input=%38 → input=%1"]
    assert changes([*old[:-1], line(39, 38, "op39", "[3]")]) == ["%39 = op39: float32[2] → float32[3]"]
    assert changes([*old[:-1], line(39, 38, "other")]) == [f"- {old[-1]}", f"+ {line(39, 38, 'other')}"]
    assert changes(old) == []


def test_the_nearest_entry_is_of_the_same_model(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines", 1 << 20)
    put(cache, "a")
    assert differences.nearest(cache, key("b"), "b") is None
    found = differences.nearest(cache, key("b"), "a")
    assert found is not None
    assert [str(each) for each in differences.differences(cache, found, key("b"))] == ["graph: - a; + b"]


# ONNX -----------------------------------------------------------------------------------------------------------------


def test_onnx_models(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnx_graphsurgeon")
    from onnx import TensorProto, helper, numpy_helper

    def model(weight: Tensor) -> Any:
        graph = helper.make_graph(
            [helper.make_node("Add", ["x", "w"], ["y"]), helper.make_node("Shape", ["y"], ["s"])],
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
            [
                helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3]),
                helper.make_tensor_value_info("s", TensorProto.INT64, [2]),
            ],
            [numpy_helper.from_array(weight.numpy(), "w")],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)

    def build(model: Any, most: int = 4) -> EngineModule:
        shapes = {"x": ((1, 3), (2, 3), (most, 3))}
        how = {"engine_cache": True, "cache_dir": tmp_path, "progress": "none"}
        return torch2trt.onnx.compile(model, shapes=shapes, **how)

    weight, x = torch.randn(3), torch.randn(2, 3)
    first = build(model(weight))
    assert [build(model(weight + 1)).report["cache"], build(model(weight), 5).report["cache"]] == ["miss", "miss"]
    onnx.save_model(model(weight), tmp_path / "net.onnx", save_as_external_data=True, size_threshold=0, location="data")
    found = build(tmp_path / "net.onnx")
    assert torch.equal(found.reference(x)[0], first.reference(x)[0])
    request.getfixturevalue("no_builder")
    again = build(model(weight))
    assert again.report["cache"] == "hit"
    assert again.artifact.plan == first.artifact.plan
    assert again.artifact.signature.to_json() == first.artifact.signature.to_json()


# On a GPU -------------------------------------------------------------------------------------------------------------

GPU_SCRIPT = """
import sys, torch, torchvision, torch2trt
torch.manual_seed(0)
module = torchvision.models.resnet18().eval().cuda()
x = torch.randn(4, 3, 96, 96, device="cuda")
compiled = torch2trt.compile(module, (x,), fallback=False, cache_dir=sys.argv[1], progress="none")
found = compiled.verify(x)
built = compiled.report["build_s"] > 0
print("cache", compiled.report["cache"], built, found.passed, found.ran, float(compiled(x).double().sum()))
"""


@pytest.mark.gpu
def test_a_hit_of_another_process_runs_and_is_right(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    found = []
    for _ in range(2):
        command = [sys.executable, "-c", GPU_SCRIPT, str(tmp_path)]
        output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
        assert output.returncode == 0, output.stderr
        found.append(output.stdout.strip().splitlines()[-1].split())
    assert [line[:5] for line in found] == [
        ["cache", "miss", "True", "True", "engine"],
        ["cache", "hit", "False", "True", "engine"],
    ]
    # The same kernels.
    assert float(found[0][5]) == pytest.approx(float(found[1][5]), rel=1e-5)


@pytest.mark.gpu
def test_a_hit_that_calls_torch(compiling: Compile, plugged: None) -> None:
    if not FLAVOUR.has("plugins"):
        pytest.skip(f"{FLAVOUR.name} has no plugins")
    first, second = (compiling(Gated().eval().cuda(), fallback=False) for _ in range(2))
    assert [each.report["cache"] for each in (first, second)] == ["miss", "hit"]
    assert second.artifact.calls == first.artifact.calls != ()
    assert torch.equal(first(X), second(X))
    assert torch.allclose(second(X), Gated()(X), rtol=1e-3, atol=1e-3)


class Gated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.t2t_plugins.gate(x.exp() + 1, 2.0) - 1
