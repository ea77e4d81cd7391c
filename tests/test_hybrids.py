"""Hybrids among others: in files, through torch.compile, with converters of other packages, on any stream."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

import torch2trt
from tests.hybrids import QUICK, TORCH, Call, Rows, X, doubled, kinds
from tests.threads import in_threads
from torch2trt.errors import ArtifactError, UnsupportedOpsError
from torch2trt.runtime.artifact import to_bytes
from torch2trt.runtime.module import EngineModule

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


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_engines_of_a_hybrid_share_activations(cuda_graphs: bool) -> None:
    module = Call(lambda m, x: m.second((m.first(x).relu() @ x.mT).relu().tanh() @ x)).cuda()
    compiled = torch2trt.compile(module, (X.cuda(),), run_in_torch=TORCH, cuda_graphs=cuda_graphs, **QUICK)
    assert kinds(compiled).count("engine") == 2
    xs = torch.randn(8, 20, *X.shape, device="cuda")
    with torch.no_grad():
        wanted = [[compiled(x) for x in own] for own in xs]
        torch.testing.assert_close(wanted[0][0], module(xs[0][0]), rtol=1e-4, atol=1e-4)
    (alone,) = compiled._session._pool._sets
    assert len(alone._of) == 2
    assert len({own._scratch.data_ptr() for own in alone._of.values()}) == 1
    assert alone._scratch.numel() == max(engine.scratch_bytes for engine in alone._of)
    torch.cuda.synchronize()
    found: list[list[torch.Tensor]] = [[] for _ in xs]

    def work(number: int) -> None:
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            found[number] += [compiled(x) for x in xs[number]]

    in_threads(work, 8)
    torch.cuda.synchronize()
    for own, expected in zip(found, wanted, strict=True):
        assert all(map(torch.equal, own, expected))
