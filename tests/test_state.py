"""Modules that change their buffers or their arguments when they run."""

from __future__ import annotations

import copy
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
from torch2trt.errors import ArtifactError, CaptureError
from torch2trt.runtime.artifact import to_bytes
from torch2trt.runtime.module import EngineModule

QUICK: dict[str, Any] = {"precision": "fp32", "optimization_level": 0, "progress": "none"}


class Window(nn.Module):
    """The last rows that it saw, how many those were, and an argument that it doubles."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(4, 4)
        self.inner = nn.Module()
        self.inner.register_buffer("rows", torch.zeros(6, 4))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("unchanged", torch.ones(4))
        self.eval()

    def forward(self, x: Tensor, y: Tensor) -> Any:
        rows = torch.cat([self.inner.rows, self.line(x)])[-6:]  # type: ignore[list-item]
        self.inner.rows.copy_(rows)  # type: ignore[operator]
        self.seen += x.shape[0]  # type: ignore[operator]
        y.mul_(2)
        return {"mean": rows.mean(0) * self.unchanged, "seen": self.seen, "y": y}


class KeyValueCache(nn.Module):
    """One step of attention over the keys and values so far, written in place at a position."""

    def __init__(self, steps: int = 8, size: int = 4) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.qkv = nn.Linear(size, 3 * size)
        self.register_buffer("keys", torch.zeros(steps, size))
        self.register_buffer("values", torch.zeros(steps, size))
        self.eval()

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, -1)
        self.keys.index_copy_(0, position, key)  # type: ignore[operator]
        self.values.index_copy_(0, position, value)  # type: ignore[operator]
        seen = torch.arange(len(self.keys)) <= position  # type: ignore[arg-type]
        scores = torch.where(seen, query @ self.keys.T, -1e9)  # type: ignore[operator]
        return scores.softmax(-1) @ self.values  # type: ignore[no-any-return]


def arguments() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(2)), torch.ones(3)


@pytest.fixture
def window() -> tuple[Window, EngineModule]:
    module = Window()
    return module, torch2trt.compile(module, arguments(), **QUICK)


def same(compiled: EngineModule, module: Window) -> None:
    held = dict(compiled.state.named_buffers())
    assert held.keys() == {"inner.rows", "seen"}
    for name, value in held.items():
        torch.testing.assert_close(value.cpu(), module.get_buffer(name))


def test_buffers_change_from_call_to_call(window: tuple[Window, EngineModule]) -> None:
    module, compiled = window
    assert int(module.seen) == 0  # type: ignore[arg-type]
    same(compiled, module)
    for _ in range(4):
        (x, mine), (_, theirs) = arguments(), arguments()
        with torch.no_grad():
            expected, found = module(x, theirs), compiled.reference(x, mine)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(mine, theirs)
        same(compiled, module)


def test_capture_changes_nothing() -> None:
    module, (x, y) = Window(), arguments()
    batch = Dim("batch", min=1, max=6)
    torch2trt.compile(module, (x, y), dynamic_shapes={"x": {0: batch}, "y": None}, **QUICK)
    assert int(module.seen) == 0  # type: ignore[arg-type]
    assert torch.equal(y, torch.ones(3))


def test_verify_looks_at_what_is_written_and_leaves_it(window: tuple[Window, EngineModule]) -> None:
    module, compiled = window
    x, y = arguments()
    compiled.reference(x, y.clone())
    found = compiled.verify(x, y)
    assert found.passed
    names = {row.name for row in found.rows}
    assert names >= {"inner.rows afterwards", "seen afterwards", "argument 1 afterwards"}
    assert torch.equal(y, torch.ones(3))
    assert int(compiled.state.seen) == 2  # type: ignore[arg-type]
    assert int(module.seen) == 0  # type: ignore[arg-type]


def test_verify_sees_a_wrong_update(window: tuple[Window, EngineModule]) -> None:
    compiled = window[1]
    interpreted = compiled._interpreter()

    def wrong(named: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = interpreted(named)
        rows = next(u.name for u in compiled.artifact.signature.updates if u.spec.shape == (6, 4))
        return {**outputs, rows: outputs[rows] + 1}

    compiled._reference = wrong
    if not torch.cuda.is_available():
        assert [row.name for row in compiled.verify(*arguments()).rows if not row.passed] == ["inner.rows afterwards"]


def test_the_state_is_saved_as_it_is(window: tuple[Window, EngineModule], tmp_path: Path) -> None:
    module, compiled = window
    compiled.reference(*arguments())
    compiled.save(tmp_path / "window.t2t", program=True)
    loaded = torch2trt.load(tmp_path / "window.t2t")
    assert int(loaded.state.seen) == 2  # type: ignore[arg-type]
    assert loaded.verify(*arguments()).passed
    with torch.no_grad():
        for _ in range(2):
            expected = module(*arguments())
    torch.testing.assert_close(loaded.reference(*arguments()), expected)


def test_state_dicts_copies_and_pickles_have_their_own(window: tuple[Window, EngineModule]) -> None:
    compiled = window[1]
    compiled.reference(*arguments())
    copied, pickled = copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))
    fresh = torch2trt.compile(Window(), arguments(), **QUICK)
    fresh.load_state_dict(compiled.state_dict())
    assert {"_extra_state", "state.seen", "state.inner.rows"} == compiled.state_dict().keys()
    compiled.reference(*arguments())
    for other in (copied, pickled, fresh):
        assert int(other.state.seen) == 2


def test_what_has_no_state_has_no_such_entry() -> None:
    compiled = torch2trt.compile(nn.Linear(4, 4).eval(), (torch.randn(2, 4),), **QUICK)
    assert compiled.state_dict().keys() == {"_extra_state"}
    assert not hasattr(compiled, "state")


def test_a_file_with_another_state_is_refused(window: tuple[Window, EngineModule]) -> None:
    data = to_bytes(window[1].artifact)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert "state.safetensors" in members
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in members.items():
            if name != "state.safetensors":
                archive.writestr(name, text)
    with pytest.raises(ArtifactError):
        torch2trt.load(buffer.getvalue())


def test_a_cache_of_keys_and_values() -> None:
    module = KeyValueCache()
    compiled = torch2trt.compile(copy.deepcopy(module), (torch.randn(1, 4), torch.tensor([0])), **QUICK)
    for step in range(8):
        x = torch.randn(1, 4, generator=torch.Generator().manual_seed(step))
        with torch.no_grad():
            torch.testing.assert_close(compiled.reference(x, torch.tensor([step])), module(x, torch.tensor([step])))
    torch.testing.assert_close(compiled.state.keys, module.keys)


def test_a_hybrid_has_state_too() -> None:
    module = Window()
    compiled = torch2trt.compile(copy.deepcopy(module), arguments(), run_in_torch=["aten.mean"], min_segment=1, **QUICK)
    assert compiled.artifact.parts
    for _ in range(3):
        with torch.no_grad():
            torch.testing.assert_close(compiled.reference(*arguments()), module(*arguments()))
    same(compiled, module)


def test_half_precision_keeps_the_states_dtype() -> None:
    compiled = torch2trt.compile(Window(), arguments(), **{**QUICK, "precision": "fp16", "keep_io_dtypes": False})
    (x, y) = arguments()
    compiled.reference(x.half(), y.half())
    assert compiled.state.inner.rows.dtype == torch.float32  # type: ignore[union-attr]


def test_torch_compile_leaves_state_to_eager() -> None:
    module, own = Window(), Window()
    with torch.no_grad():
        compiled = torch.compile(module, backend="torch2trt", options={**QUICK})
        for _ in range(3):
            torch.testing.assert_close(compiled(*arguments()), own(*arguments()))
        assert int(module.seen) == 6  # type: ignore[arg-type]
        torch._dynamo.reset()
        refusing = torch.compile(Window(), backend="torch2trt", options={**QUICK, "fallback": False})
        with pytest.raises(CaptureError, match="hands back what it writes into"):
            refusing(*arguments())
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_state_lives_on_the_gpu(cuda_graphs: bool) -> None:
    module = Window().cuda()
    x, y = (value.cuda() for value in arguments())
    compiled = torch2trt.compile(copy.deepcopy(module), (x, y), cuda_graphs=cuda_graphs, **QUICK)
    for _ in range(8):
        mine, theirs = y.clone(), y.clone()
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, mine), module(x, theirs), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mine, theirs)
    assert int(compiled.state.seen) == 16  # type: ignore[arg-type]
    assert compiled.verify(x, y).passed
