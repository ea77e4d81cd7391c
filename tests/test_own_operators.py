"""Builds in a process of their own, of models with operators that only this process has registered so far."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
from tests.harness import compare, truth
from tests.plugging import Added, added, enterprise
from tests.plugin_operators import OPERATORS, QUICK, Block, Function, X, gate, good_mood, plugged, recast, spread
from torch2trt import api
from torch2trt.converters import own_operators as owning
from torch2trt.converters import plugins, registry
from torch2trt.converters.lower import lower
from torch2trt.converters.own_operators import own_operators
from torch2trt.engine.child import Job, OwnOperators, build_in_child
from torch2trt.errors import BuildError, BuildImportError, UnsupportedOpsError
from torch2trt.graph.program import Program
from torch2trt.graph.serialize import load_program, save_program
from torch2trt.settings import Settings
from torch2trt.trt import flavour as flavours

__all__ = ["added", "good_mood", "plugged"]  # fixtures, which tests name

QUIET = Settings(optimization_level=0, progress="none")

# Operators of three origins, converters for two of them; a child is refused where it says so.
OWN = """
import os
import sys
import torch
import torch2trt

if os.environ.get("T2T_NO_LICENCE") and "build_worker" in sys.argv[0]:
    raise OSError("no licence")


@torch.library.custom_op("t2t_own::third", mutates_args=())
def third(x: torch.Tensor) -> torch.Tensor:
    return x / 3


third.register_fake(torch.empty_like)

library = torch.library.Library("t2t_own", "FRAGMENT")
library.define("doubled(Tensor x) -> Tensor")
library.impl("doubled", lambda x: x * 2, "CompositeExplicitAutograd")
library.impl("doubled", torch.empty_like, "Meta")


@torch2trt.converter(torch.ops.t2t_own.third.default)
def convert_third(net, x):
    return net.binary("DIV", x, 3.0)


@torch2trt.converter(torch.ops.t2t_own.doubled.default)
def convert_doubled(net, x):
    return net.binary("PROD", x, 2.0)


@torch.library.custom_op("t2t_own::late", mutates_args=())
def late(x: torch.Tensor) -> torch.Tensor:
    return x + 1


late.register_fake(torch.empty_like)
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    folder = tmp_path_factory.mktemp("own")
    (folder / "t2t_own_operators.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("t2t_own_operators")


class Net(nn.Module):
    """Own operators on what is computed, and on a weight alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.rand(8) + 1)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.ops.t2t_own.third(self.linear(x)).relu()
        return torch.ops.t2t_own.doubled(y) * torch.ops.t2t_own.late(self.scale)


def optimized(module: nn.Module, *inputs: Tensor) -> Program:
    return api.optimize(api.capture(module, inputs), QUIET)


# What is found out ----------------------------------------------------------------------------------------------------


def test_what_has_no_own_operators_tells_nothing() -> None:
    assert own_operators(optimized(nn.Sequential(nn.Linear(16, 4), nn.ReLU()).eval(), X)) == OwnOperators()


def test_modules_of_operators_and_converters(own: ModuleType) -> None:
    found = own_operators(optimized(Net(), X))
    assert set(found.operators) == {f"t2t_own.{name}.default" for name in ("third", "doubled", "late")}
    assert found.modules == {"t2t_own_operators": ""}
    assert set(found.converted) == {"t2t_own.third.default", "t2t_own.doubled.default"}
    assert found.plugins == {}
    assert found.path == sys.path
    assert found.namespaces == {"t2t_own"}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_plugins_are_told_apart(half: bool, channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
    torch2trt.plugin(gate, half=half, channels_last=channels_last)
    found = own_operators(optimized(Function(lambda x: gate(x, 2.0) + 1), X))
    assert found.plugins == {"t2t_plugins.gate.default": {"half": half, "channels_last": channels_last}}
    assert found.modules == {"tests.plugin_operators": ""}
    assert found.converted == []


def test_plugins_of_torchs_own_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
    torch2trt.plugin(torch.ops.aten.special_airy_ai.default)
    found = own_operators(optimized(Function(torch.special.airy_ai), X))
    assert found == OwnOperators(plugins={"aten.special_airy_ai.default": {"half": False, "channels_last": False}})


def test_where_operators_come_from(own: ModuleType) -> None:
    assert owning._origin(torch.ops.t2t_own.third.default) == "t2t_own_operators"
    assert owning._origin(torch.ops.t2t_own.doubled.default) == "t2t_own_operators"
    assert owning._origin(OPERATORS.spread.default) == "tests.plugin_operators"
    pytest.importorskip("torchvision")
    assert owning._origin(torch.ops.torchvision.nms.default) == "torchvision"


def test_where_an_operator_in_triton_comes_from() -> None:
    pytest.importorskip("triton")
    from tests.triton_operator import swish

    assert owning._origin(swish._opoverload) == "tests.triton_operator"


def test_a_plugin_of_unknown_origin_is_where_it_was_made_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
    monkeypatch.setattr(owning, "_origin", lambda target: None)
    program = optimized(Function(lambda x: gate(x, 2.0) + 1), X)
    with pytest.raises(
        BuildImportError, match=r"t2t_plugins.gate.default: is registered by a module that is not known"
    ):
        own_operators(program)
    torch2trt.plugin(gate)
    assert own_operators(program).modules == {__name__: ""}


def test_a_module_that_no_name_finds_is_told_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text("x = 1\n")
    spec = importlib.util.spec_from_file_location("net.py", path)
    assert spec is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "net.py", importlib.util.module_from_spec(spec))
        assert owning._place("net.py", "mylib.op.default") == ("net.py", str(path))
        assert owning._place("torch2trt.errors", "mylib.op.default") == ("torch2trt.errors", "")
        path.unlink()
        with pytest.raises(BuildImportError, match=r"T2T404.*by net\.py, which is no module of a file"):
            owning._place("net.py", "mylib.op.default")
    assert issubclass(BuildImportError, BuildError)


def test_they_travel_in_the_job(tmp_path: Path, own: ModuleType) -> None:
    job = Job("net", "tensorrt", Settings(), None, 10, own_operators(optimized(Net(), X)))
    job.write(tmp_path)
    assert Job.read(tmp_path) == job


# Builds ---------------------------------------------------------------------------------------------------------------


def build(module: nn.Module, **settings: Any) -> Any:
    return torch2trt.compile(module, (X,), fallback=False, precision="fp32", **QUICK, **settings)


def test_a_child_knows_own_converters(own: ModuleType) -> None:
    here, there = build(Net()), build(Net(), build_in_subprocess=True)
    assert abs(len(there.artifact.plan) - len(here.artifact.plan)) < 0.02 * len(here.artifact.plan)
    compare(there.reference(X), truth(Net(), (X,)), 1.0)


def test_a_child_knows_own_operators_of_a_file_on_the_command_line(tmp_path: Path) -> None:
    text = OWN.replace("t2t_own", "t2t_filed") + "\n\nclass Net(torch.nn.Module):\n"
    text += "    def forward(self, x):\n        return torch.ops.t2t_filed.third(x.relu() + 1) - 1\n"
    (tmp_path / "filed.py").write_text(text)
    command = [sys.executable, "-m", "torch2trt.tools.cli", "compile", f"{tmp_path / 'filed.py'}:Net"]
    command += ["-o", str(tmp_path / "net.t2t"), "--input", "4x8", "--build-in-subprocess", "--no-fallback"]
    ran = subprocess.run([*command, "--progress", "none"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert torch2trt.load(tmp_path / "net.t2t").report["engines"] == 1


@pytest.mark.usefixtures("plugged")
def test_a_child_knows_plugins() -> None:
    flavour = flavours.load()
    if flavour.has("plugins"):
        pytest.skip("this flavour has plugins: the tests on GPUs build such an engine")
    program = optimized(Block(), X)
    with pytest.raises(UnsupportedOpsError) as caught:
        build_in_child(program, QUIET, flavour.name, name="block", own=own_operators(program))
    # The child's words, which knows that the operators are plugins where there are some.
    assert {node.op: node.reason for node in caught.value.nodes} == {
        "t2t_plugins.gate.default": "tensorrt_rtx has no plugins",
        "t2t_plugins.add_norm.default": "tensorrt_rtx has no plugins",
    }


@pytest.mark.usefixtures("plugged")
def test_the_numbers_of_calls_are_the_childs_too(added: Added, tmp_path: Path) -> None:
    def spreads(x: Tensor, y: Tensor) -> Tensor:
        return recast(spread([x, y, x], (x.shape[0] + 1) // 2 + x.shape[0], mode="ones") > 0.5, torch.uint8)

    shapes = {"inputs": ({0: Dim("n", min=1, max=9)}, {0: 2 * Dim("m", min=1, max=4)})}
    program = api.optimize(api.capture(Function(spreads), (X, X), dynamic_shapes=shapes), QUIET)
    lower(program, enterprise())
    save_program(program, tmp_path, namespaces=["t2t_plugins"])
    lower(load_program(tmp_path, namespaces=["t2t_plugins"]), enterprise())
    keys = [plugin.call.key for _, plugin in added]
    assert len(keys) == 4
    assert keys[:2] == keys[2:]
    assert keys[0] != keys[1]


REGISTERED = """
import json, sys
from torch2trt.converters import plugins, registry
from torch2trt.converters.own_operators import register
from torch2trt.engine.child import OwnOperators
from torch2trt.graph.serialize import load_program, operator_of

own = OwnOperators(**json.loads(sys.argv[1]))
register(own)
register(own)  # what is registered stays so
found = {name: registry.find(operator_of(name, own.namespaces)) for name in own.plugins}
print(json.dumps({name: [each.float32, plugins.how_made(each).channels_last] for name, each in found.items()}))
"""


def test_a_process_registers_plugins_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
    torch2trt.plugin(gate, half=True, channels_last=True)
    torch2trt.plugin(torch.ops.aten.special_airy_ai.default)
    found = own_operators(optimized(Function(lambda x: gate(torch.special.airy_ai(x), 2.0)), X))
    environment = {**os.environ, "PYTHONPATH": str(Path(torch2trt.__file__).parents[1])}
    ran = subprocess.run(
        [sys.executable, "-c", REGISTERED, json.dumps(dataclasses.asdict(found))],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {
        "t2t_plugins.gate.default": [False, True],
        "aten.special_airy_ai.default": [True, False],
    }


# Refusals -------------------------------------------------------------------------------------------------------------


def test_what_the_child_cannot_import(own: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2T_NO_LICENCE", "1")
    with pytest.raises(BuildImportError, match=r"t2t_own_operators: cannot be imported.*OSError: no licence") as caught:
        build(Net(), build_in_subprocess=True)
    assert "without build_in_subprocess" in caught.value.hint


def refused(register: Callable[[], object], module: nn.Module) -> BuildImportError:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_TABLE", dict(registry._TABLE))
        register()
        with pytest.raises(BuildImportError) as caught:
            build(module, build_timeout=250.0)
    return caught.value


def test_a_converter_that_importing_does_not_register(own: ModuleType) -> None:
    def convert(net: Any, x: Any) -> Any:
        return net.binary("SUM", x, 1.0)

    error = refused(
        lambda: torch2trt.converter(torch.ops.t2t_own.late.default)(convert),
        Function(lambda x: torch.ops.t2t_own.late(x.relu()) + 1),
    )
    assert error.subject == "t2t_own.late.default"
    assert f"gets no converter when its module is imported (t2t_own_operators, {__name__})" in error.reason
    assert "module of its own" in error.hint


def test_an_operator_that_importing_does_not_register() -> None:
    @torch.library.custom_op("t2t_own::inner", mutates_args=())
    def inner(x: Tensor) -> Tensor:
        return x + 1

    inner.register_fake(torch.empty_like)

    def convert(net: Any, x: Any) -> Any:
        return net.binary("SUM", x, 1.0)

    error = refused(lambda: torch2trt.converter(inner._opoverload)(convert), Function(lambda x: inner(x.relu()) + 1))
    assert error.subject == "t2t_own.inner.default"
    assert f"is not registered when its module is imported ({__name__})" in error.reason


MAIN = """
import torch
import torch2trt

@torch.library.custom_op("t2t_main::plus", mutates_args=())
def plus(x: torch.Tensor) -> torch.Tensor:
    return x + 1

plus.register_fake(torch.empty_like)

@torch2trt.converter(torch.ops.t2t_main.plus.default)
def convert(net, x):
    return net.binary("SUM", x, 1.0)

class Net(torch.nn.Module):
    def forward(self, x):
        return plus(x.relu()) - 1

torch2trt.compile(Net().eval(), (torch.ones(2),), fallback=False, build_in_subprocess=True, progress="none")
"""


def test_what_the_program_itself_registers(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(MAIN)
    environment = {**os.environ, "PYTHONPATH": str(Path(torch2trt.__file__).parents[1])}
    ran = subprocess.run(
        [sys.executable, str(tmp_path / "main.py")], env=environment, capture_output=True, text=True, check=False
    )
    assert "[T2T404] t2t_main.plus.default: is registered, or its converter is, by the program itself" in ran.stderr
    assert "what to do: register it when a module of its own is imported" in ran.stderr


def test_plugins_know_who_made_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
    torch2trt.plugin(gate)
    found = registry.find(OPERATORS.gate.default)
    assert found is not None
    assert plugins.is_plugin(found)
    assert plugins.how_made(found) == plugins.Made(__name__, half=False, channels_last=False)
    other = registry.find(torch.ops.aten.relu.default)
    assert other is not None
    assert not plugins.is_plugin(other)
