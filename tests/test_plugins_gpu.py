"""Engines that call torch: with and without CUDA graphs, from threads, with kernels in Triton, in another process."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
from tests.harness import compare, truth
from tests.plugin_operators import (
    BATCH,
    MOOD,
    QUICK,
    SEEN,
    Block,
    Function,
    X,
    good_mood,
    halves,
    moody,
    pick,
    plugged,
    recast,
    spread,
)
from tests.threads import in_threads
from torch2trt.converters import registry
from torch2trt.errors import EngineError
from torch2trt.runtime.artifact import to_bytes

__all__ = ["good_mood", "plugged"]  # fixtures, which tests name

pytestmark = pytest.mark.gpu

FRESH = """
import sys
import torch
import torch2trt

if "define" in sys.argv:
    @torch.library.custom_op("t2t_fresh::tripled", mutates_args=())
    def tripled(x: torch.Tensor, by: float) -> torch.Tensor:
        return x * by

    @tripled.register_fake
    def _(x, by):
        return torch.empty_like(x)

class Net(torch.nn.Module):
    def forward(self, x):
        return torch.ops.t2t_fresh.tripled(x.relu() + 1, 3.0) - 1

path = sys.argv[1]
if "save" in sys.argv:
    torch2trt.plugin(tripled)
    x = torch.ones(4, 8, device="cuda")
    compiled = torch2trt.compile(Net().eval(), (x,), fallback=False, progress="none", optimization_level=0)
    compiled.save(path)
else:
    trusted = ["t2t_fresh"] if "trust" in sys.argv else []
    loaded = torch2trt.load(path, namespaces=trusted)
    print(loaded(torch.full((4, 8), 2.0, device="cuda")).unique().tolist())
"""


def fresh_process(script: Path, *arguments: str) -> str:
    script.write_text(FRESH)
    path = os.pathsep.join([str(Path(torch2trt.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, str(script), *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    return ran.stdout + ran.stderr


def engine_of(module: nn.Module, *inputs: Tensor, **keywords: Any) -> Any:
    """Compiled whole, on the GPU."""
    compiled = torch2trt.compile(module.cuda(), tuple(x.cuda() for x in inputs), **{**QUICK, **keywords})
    assert not compiled.artifact.parts, torch2trt.explain(module, tuple(x.cuda() for x in inputs))
    return compiled


@pytest.mark.usefixtures("plugged")
@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_engine_calls_torch(dtype: torch.dtype, cuda_graphs: bool) -> None:
    module = Block().to(dtype)
    precision = "fp32" if dtype == torch.float32 else None
    compiled = engine_of(
        module, X.to(dtype), dynamic_shapes=BATCH, precision=precision, cuda_graphs=cuda_graphs, fallback=False
    )
    assert [call.name for call in compiled.artifact.calls] == [
        "t2t_plugins.gate.default",
        "t2t_plugins.add_norm.default",
    ]
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    for turn in range(4):  # the same memory, again and again, for graphs to be captured and replayed
        for batch in (4, 1, 64, 7):
            x = torch.randn(batch, 16, device="cuda", dtype=dtype)
            with torch.no_grad():
                expected = module(x)
            found = compiled(x)
            # What torch allocates next must not lie where a graph computes.
            torch.full((1 << 20,), float("nan"), device="cuda")
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, msg=f"{turn} {batch}")


@pytest.mark.usefixtures("plugged")
def test_an_engine_calls_torch_from_threads_and_streams() -> None:
    module = Block()
    compiled = engine_of(module, X, dynamic_shapes=BATCH, precision="fp32")

    def work(seed: int) -> None:
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            for turn in range(20):
                x = torch.randn(1 + (seed + turn) % 9, 16, device="cuda")
                torch.testing.assert_close(compiled(x), module(x), rtol=1e-4, atol=1e-4)

    in_threads(work, 4)


@pytest.mark.usefixtures("plugged")
def test_the_interpreter_executes_plugins() -> None:
    compiled = engine_of(Block(), X, dynamic_shapes=BATCH, precision="fp32")
    expected = truth(Block(), (X,))
    compare(compiled.reference(X), expected, 1.0)
    compare([each.cpu() for each in compiled(X.cuda())], list(expected), 2.0)
    assert compiled.verify(X).passed


@pytest.mark.usefixtures("plugged")
def test_an_engine_knows_shapes_lists_and_sizes() -> None:
    def spreads(x: Tensor, y: Tensor) -> Tensor:
        return spread([x * 2, y + 1, x], x.shape[0] + 1, mode="ones") * 3

    module, y = Function(spreads), torch.randn(2, 16)
    compiled = engine_of(module, X, y, dynamic_shapes=(({0: Dim("n", min=1, max=9)}, None),), precision="fp32")
    for rows in (1, 4, 9):
        x = torch.randn(rows, 16)
        found = compiled(x.cuda(), y.cuda())
        assert found.shape == (3 * rows + 3, 16)
        torch.testing.assert_close(found.cpu(), spreads(x, y))


@pytest.mark.usefixtures("plugged")
@pytest.mark.parametrize(
    ("given", "made"),
    [
        (torch.float32, torch.float16),
        (torch.float16, torch.bfloat16),
        (torch.bfloat16, torch.int32),
        (torch.int32, torch.int64),
        (torch.int64, torch.bool),
        (torch.bool, torch.uint8),
        (torch.uint8, torch.int64),
        (torch.bool, torch.float32),
    ],
)
def test_an_engine_knows_dtypes(given: torch.dtype, made: torch.dtype) -> None:
    def recasts(x: Tensor) -> Tensor:
        inner = recast(x.relu().to(given), made)
        return inner.logical_not() if made == torch.bool else inner + 1

    compiled = engine_of(Function(recasts), X)
    found = compiled(X.cuda())
    assert found.dtype == made
    torch.testing.assert_close(found.cpu(), recasts(X), rtol=1e-3, atol=0)


@pytest.mark.usefixtures("plugged")
def test_an_engine_knows_scalars_indices_and_lists_of_results() -> None:
    def picks(x: Tensor, index: Tensor) -> Any:
        rows, largest = pick(x * 2, index)
        left, right = halves(x)
        return rows + 1, largest - 1, left - right

    index = torch.tensor([3, 0, 3])
    compiled = engine_of(Function(picks), X, index, precision="fp32")
    for found, expected in zip(compiled(X.cuda(), index.cuda()), picks(X, index), strict=True):
        torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.usefixtures("plugged")
def test_in_a_model_of_halves_it_sees_float32() -> None:
    compiled = engine_of(Function(lambda x: moody(x.relu()) * 2), X, precision="fp16")
    SEEN.clear()
    compiled(X.cuda())
    assert set(SEEN) == {torch.float32}


def test_a_triton_kernel_in_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from tests.triton_operator import swish

    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
    torch2trt.plugin(swish)
    layers = nn.Sequential(nn.Linear(16, 300), Function(lambda x: swish(x, 1.5)), nn.Linear(300, 16)).eval().half()
    compiled = engine_of(layers, X.half(), dynamic_shapes=({0: Dim("n", min=1, max=64)},))
    for _ in range(4):
        for rows in (4, 33, 1):
            x = torch.randn(rows, 16, device="cuda", dtype=torch.float16)
            with torch.no_grad():
                torch.testing.assert_close(compiled(x), layers(x), rtol=1e-2, atol=1e-2)


@pytest.mark.usefixtures("plugged")
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_what_an_operator_raises_is_an_error_with_its_words(cuda_graphs: bool) -> None:
    compiled = engine_of(Function(lambda x: moody(x.relu()) * 2), X, precision="fp32", cuda_graphs=cuda_graphs)
    MOOD["raises"] = True
    with pytest.raises(EngineError, match=r"t2t_plugins.moody.default: ValueError: not today"):
        compiled(X.cuda())
    MOOD.update(raises=False, lies=True)
    with pytest.raises(EngineError, match="its fake kernel says"):
        compiled(X.cuda())
    MOOD["lies"] = False
    torch.testing.assert_close(compiled(X.cuda()).cpu(), (X.relu() + 1) * 2)


@pytest.mark.usefixtures("plugged")
def test_an_operator_that_looks_at_values_runs_without_graphs(caplog: pytest.LogCaptureFixture) -> None:
    compiled = engine_of(Function(lambda x: moody(x.relu()) * 2), X, precision="fp32")
    MOOD["looks"] = True
    for _ in range(4):
        torch.testing.assert_close(compiled(X.cuda()).cpu(), X.relu() * 2)
    assert "cannot be captured" in caplog.text


@pytest.mark.usefixtures("plugged")
def test_an_operator_that_draws_random_numbers_runs_without_graphs(caplog: pytest.LogCaptureFixture) -> None:
    compiled = engine_of(Function(lambda x: moody(x.relu()) * 2), X, precision="fp32")
    MOOD["draws"] = True
    found = [(compiled(X.cuda()).cpu() / 2 - X.relu()) for _ in range(6)]
    assert "cannot be captured" in caplog.text
    for number, noise in enumerate(found):
        assert float(noise.min()) > -1e-4
        assert float(noise.max()) < 1 + 1e-4
        assert not any(torch.allclose(noise, other) for other in found[:number])
    assert torch.rand(8, device="cuda").unique().numel() > 1


@pytest.mark.usefixtures("plugged")
def test_copies_know_the_operators() -> None:
    compiled = engine_of(Block(), X, precision="fp32")
    expected = compiled(X.cuda())
    again = pickle.loads(pickle.dumps(compiled))
    torch.testing.assert_close(again(X.cuda()), expected)
    compiled.load_state_dict(compiled.state_dict())
    torch.testing.assert_close(compiled(X.cuda()), expected)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("plugged")
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_an_engine_that_calls_torch_is_built_by_a_child(cuda_graphs: bool) -> None:
    module = Block()
    compiled = engine_of(
        module,
        X,
        dynamic_shapes=BATCH,
        precision="fp32",
        fallback=False,
        cuda_graphs=cuda_graphs,
        build_in_subprocess=True,
        build_timeout=600.0,
    )
    assert [call.name for call in compiled.artifact.calls] == [
        "t2t_plugins.gate.default",
        "t2t_plugins.add_norm.default",
    ]
    again = torch2trt.load(to_bytes(compiled.artifact), namespaces=["t2t_plugins"])
    for engine in (compiled, again):
        for batch in (4, 1, 64, 4):
            x = torch.randn(batch, 16, device="cuda")
            with torch.no_grad():
                torch.testing.assert_close(engine(x), module(x), rtol=1e-4, atol=1e-4)
    assert compiled.verify(X).passed


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("plugged")
def test_a_child_knows_shapes_lists_and_sizes_of_plugins() -> None:
    def spreads(x: Tensor, y: Tensor) -> Tensor:
        return spread([x * 2, y + 1, x], (x.shape[0] + 1) // 2, mode="ones") * 3

    module, y = Function(spreads), torch.randn(2, 16)
    compiled = engine_of(
        module,
        X,
        y,
        dynamic_shapes=(({0: Dim("n", min=1, max=9)}, None),),
        precision="fp32",
        build_in_subprocess=True,
    )
    for rows in (1, 4, 9):
        x = torch.randn(rows, 16)
        found = compiled(x.cuda(), y.cuda())
        torch.testing.assert_close(found.cpu(), spreads(x, y))


@pytest.mark.timeout(900)
def test_a_child_knows_a_triton_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from tests.triton_operator import swish

    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
    torch2trt.plugin(swish, half=True)
    layers = nn.Sequential(nn.Linear(16, 300), Function(lambda x: swish(x, 1.5)), nn.Linear(300, 16)).eval().half()
    compiled = engine_of(layers, X.half(), build_in_subprocess=True)
    x = torch.randn(4, 16, device="cuda", dtype=torch.float16)
    for _ in range(3):
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), layers(x), rtol=1e-2, atol=1e-2)


@pytest.mark.timeout(900)
def test_a_fresh_process_runs_what_was_saved(tmp_path: Path) -> None:
    script, path = tmp_path / "fresh.py", str(tmp_path / "net.t2t")
    saved = fresh_process(script, path, "define", "save")
    assert Path(path).exists(), saved
    assert "[8.0]" in fresh_process(script, path, "define", "trust")
    assert "not allowed in a file: t2t_fresh.tripled.default" in fresh_process(script, path, "define")
    assert "no such operator: t2t_fresh.tripled.default" in fresh_process(script, path, "trust")
