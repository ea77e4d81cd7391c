"""Operators of torch inside an engine: what a call is, what TensorRT is told of it, and what files hold."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._sympy.functions import FloorDiv

import torch2trt
from tests.harness import compare, truth
from tests.plugin_operators import (
    BATCH,
    MOOD,
    OPERATORS,
    QUICK,
    SEEN,
    Block,
    Function,
    X,
    gate,
    good_mood,
    kept,
    plugged,
    recast,
    spread,
)
from tests.test_artifact import make_artifact, with_manifest
from torch2trt import api
from torch2trt.converters import plugins as converters
from torch2trt.converters import registry
from torch2trt.converters.lower import lower, unsupported_nodes
from torch2trt.errors import (
    ArtifactError,
    ArtifactWriteError,
    EngineError,
    InterpreterError,
    NetworkError,
)
from torch2trt.graph.operator_call import OperatorCall
from torch2trt.graph.program import Program
from torch2trt.partition.explain import explain
from torch2trt.reference.layers import LAYERS
from torch2trt.runtime.artifact import Artifact, load, to_bytes
from torch2trt.runtime.bare_plan import export_plan
from torch2trt.settings import Settings
from torch2trt.sizes import Size, TensorSpec, evaluate, symbol
from torch2trt.trt import flavour as flavours
from torch2trt.trt import plugins
from torch2trt.trt.flavour import Flavour
from torch2trt.trt.network import Network

__all__ = ["good_mood", "plugged"]  # fixtures, which tests name

ENTERPRISE = Flavour(flavours.TENSORRT, (10, 6), trt=None)
N = symbol("n")


def spec(*shape: Size, dtype: torch.dtype = torch.float32) -> TensorSpec:
    return TensorSpec(shape, dtype)


def optimized(module: nn.Module, *inputs: Tensor, shapes: Any = None, **settings: Any) -> Program:
    return api.optimize(api.capture(module, inputs, dynamic_shapes=shapes), Settings.make(**settings))


def reasons(function: Any, *inputs: Tensor) -> list[str]:
    """Why enterprise TensorRT refuses the operators of this namespace."""
    program = optimized(Function(function), *inputs)
    return [each.reason for each in unsupported_nodes(program, ENTERPRISE) if each.op.startswith("t2t_plugins")]


# Calls ----------------------------------------------------------------------------------------------------------------


def spreading() -> OperatorCall:
    arguments = {"xs": [spec(2 * N + 1, 3), spec(4, 3)], "rows": FloorDiv(N, 2), "mode": "ones"}
    return OperatorCall.make(OPERATORS.spread.default, arguments, [spec(2 * N + 5 + FloorDiv(N, 2), 3)])


@pytest.mark.parametrize("again", [False, True])
def test_a_call_runs(again: bool) -> None:
    call = spreading()
    if again:
        call = OperatorCall.from_json(json.loads(json.dumps(call.to_json())), ["t2t_plugins"])
        assert call == spreading()
        assert call.key == spreading().key
    xs = [torch.randn(9, 3), torch.randn(4, 3)]
    (result,) = call.run(xs)
    torch.testing.assert_close(result, torch.cat([*xs, torch.ones(2, 3)]))
    assert (call.name, call.namespace) == ("t2t_plugins.spread.default", "t2t_plugins")


def test_arguments_of_every_kind_are_kept() -> None:
    arguments = {"x": spec(2, 3), "rest": spec(2, 3), "weight": None, "eps": float("inf")}
    call = OperatorCall.make(OPERATORS.add_norm.default, arguments, [spec(2, 3)] * 2)
    total, normed = OperatorCall.from_json(call.to_json(), ["t2t_plugins"]).run([torch.ones(2, 3)] * 2)
    assert total.eq(2).all()
    assert normed.eq(0).all()


def test_calls_differ_in_their_numbers() -> None:
    def key(slope: float, *shape: Size) -> int:
        call = OperatorCall.make(OPERATORS.gate.default, {"x": spec(*shape), "slope": slope}, [spec(*shape)])
        return call.key

    keys = {key(1.0, 2), key(2.0, 2), key(1.0, 3), key(1.0, N)}
    assert len(keys) == 4
    assert all(0 <= each < 2**62 for each in keys)
    assert key(1.0, N) in keys


@pytest.mark.parametrize(
    "size",
    [
        *(5, N, 2 * N + 1, 3 * N - 1, FloorDiv(3 * N, 2), FloorDiv(N - 1, 2) + 1),
        *(N**2, N * (N + 1), torch.utils._sympy.functions.Mod(N, 3)),
    ],
)
@pytest.mark.parametrize("given", [N, 2 * N + 3])
def test_sizes_follow_from_the_inputs(size: Size, given: Size) -> None:
    call = OperatorCall.make(OPERATORS.gate.default, {"x": spec(given, 7), "slope": 1.0}, [spec(7, size)])
    for n in (1, 2, 9):
        shape = [evaluate(given, {"n": n}), 7]
        assert call.output_shapes([shape], int, apply_to_numbers) == [[7, evaluate(size, {"n": n})]]


def apply_to_numbers(operation: str, first: int, second: int) -> int:
    match operation:
        case "SUM":
            return first + second
        case "SUB":
            return first - second
        case "PROD":
            return first * second
        case "FLOOR_DIV":
            return first // second
        case "MAX":
            return max(first, second)
        case "MIN":
            return min(first, second)
    raise AssertionError(operation)


def test_a_size_that_is_an_inputs_own_needs_no_symbol() -> None:
    odd = FloorDiv(N, 2)
    call = OperatorCall.make(OPERATORS.gate.default, {"x": spec(odd), "slope": 1.0}, [spec(odd + 1)])
    assert call.output_shapes([[6]], int, apply_to_numbers) == [[7]]
    with pytest.raises(NetworkError, match="do not tell") as caught:
        OperatorCall.make(OPERATORS.gate.default, {"x": spec(odd), "slope": 1.0}, [spec(N)])
    assert caught.value.subject == "n"


# What TensorRT is told ------------------------------------------------------------------------------------------------


class Interface:
    """Stands for TensorRT's classes."""


class Expressions:
    """An ``IExprBuilder`` of texts."""

    def constant(self, value: int) -> str:
        return str(value)

    def operation(self, operation: str, first: str, second: str) -> str:
        return f"{operation}({first}, {second})"


class Registry:
    """An ``IPluginRegistry``."""

    def __init__(self) -> None:
        self.creators: list[Any] = []

    def register_creator(self, creator: Any, namespace: str) -> bool:
        assert namespace == creator.plugin_namespace
        self.creators.append(creator)
        return len(self.creators) == 1


class Log:
    ERROR = 1


class StandIn(SimpleNamespace):
    """Hashed, as modules are, by identity."""

    __hash__ = object.__hash__


def stand_in() -> Any:
    """As much of enterprise TensorRT as plugins use."""
    kinds = ("FLOAT", "HALF", "BF16", "INT64", "INT32", "INT8", "UINT8", "BOOL")
    steps = ("SUM", "SUB", "PROD", "FLOOR_DIV", "MAX", "MIN")
    plugin_registry = Registry()
    return StandIn(
        **{f"IPluginV3{part}": type(f"I{part}", (), {}) for part in ("", "OneCore", "OneBuild", "OneRuntime")},
        IPluginCreatorV3One=Interface,
        ILogger=Log,
        DataType=SimpleNamespace(**{kind: kind for kind in kinds}),
        TensorFormat=SimpleNamespace(LINEAR="LINEAR", CHW4="CHW4"),
        TensorRTPhase=SimpleNamespace(BUILD="BUILD", RUNTIME="RUNTIME"),
        DimensionOperation=SimpleNamespace(**{step: step for step in steps}),
        DimsExprs=list,
        PluginField=lambda name, data, kind: SimpleNamespace(name=name, data=data, kind=kind),
        PluginFieldType=SimpleNamespace(INT64="INT64"),
        PluginFieldCollection=list,
        get_plugin_registry=lambda: plugin_registry,
    )


@pytest.fixture
def fake() -> Flavour:
    return Flavour(flavours.TENSORRT, (10, 6), stand_in())


def descs(call: OperatorCall, format: str = "LINEAR") -> list[Any]:
    names = {torch.float32: "FLOAT", torch.bfloat16: "BF16"}
    types = [names[each.dtype] for each in (*call.inputs, *call.outputs)]
    return [SimpleNamespace(desc=SimpleNamespace(format=format, type=kind)) for kind in types]


def test_what_a_plugin_says_of_itself(fake: Flavour) -> None:
    call = spreading()
    plugin = plugins.plugin(fake, call)
    clone = plugin.clone()
    assert clone is not plugin
    for each in (plugin, clone, plugin.attach_to_context(None)):
        assert each.call is call
        assert each.get_capability_interface("CORE") is each
        assert (each.plugin_namespace, each.plugin_name, each.plugin_version) == ("torch2trt", "TorchOperator", "1")
        assert each.num_outputs == 1
        assert each.get_output_data_types(["FLOAT", "FLOAT"]) == ["FLOAT"]
        (shape,) = each.get_output_shapes([["a", "b"], ["4", "b"]], [], Expressions())
        half = "FLOOR_DIV(FLOOR_DIV(SUB(a, 1), 2), 2)"
        assert half in shape[0]
        assert shape[1] == "3"
        (field,) = each.get_fields_to_serialize()
        assert field.data.tolist() == [call.key]
    assert all(plugin.supports_format_combination(position, descs(call), 2) for position in range(3))
    assert not plugin.supports_format_combination(0, descs(call, "CHW4"), 2)
    other = descs(call)
    other[2].desc.type = "HALF"
    assert plugin.supports_format_combination(1, other, 2)
    assert not plugin.supports_format_combination(2, other, 2)


def test_the_creator_is_registered_once_and_knows_the_calls(fake: Flavour, caplog: pytest.LogCaptureFixture) -> None:
    call = spreading()
    plugins.register(fake, [call])
    plugins.register(fake, [])
    (creator,) = fake.trt.get_plugin_registry().creators
    assert (creator.name, creator.plugin_version) == ("TorchOperator", "1")
    fields = plugins.plugin(fake, call).get_fields_to_serialize()
    assert creator.create_plugin("swish", fields, "RUNTIME").call == call
    with pytest.raises(EngineError, match="does not name"):
        creator.create_plugin("swish", [SimpleNamespace(data=np.array([5]))], "RUNTIME")
    assert "swish: EngineError" in caplog.text


@contextmanager
def on_cpu(memory: dict[int, Tensor], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Addresses are keys of a table of CPU tensors."""

    @contextmanager
    def stream(handle: int) -> Iterator[torch.device]:
        assert handle == 77
        yield torch.device("cpu")

    def tensor_at(address: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        assert (tuple(memory[address].shape), memory[address].dtype) == (shape, dtype)
        return memory[address]

    with monkeypatch.context() as patch:
        patch.setattr(plugins, "_on_stream", stream)
        patch.setattr(plugins, "tensor_at", tensor_at)
        yield


def test_it_computes_at_run_time_alone(
    fake: Flavour, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    call = OperatorCall.make(OPERATORS.moody.default, {"x": spec(N, 2)}, [spec(N, 2)])
    plugin = plugins.plugin(fake, call)
    plugins.register(fake, [call])
    (creator,) = fake.trt.get_plugin_registry().creators
    built, running = (
        creator.create_plugin("moody", plugin.get_fields_to_serialize(), phase) for phase in ("BUILD", "RUNTIME")
    )
    x, y = torch.randn(3, 2), torch.zeros(3, 2)
    desc = [SimpleNamespace(dims=[3, 2])]
    with on_cpu({256: x, 512: y}, monkeypatch):
        for each in (plugin, built, plugin.clone()):
            each.enqueue(desc, desc, [256], [512], 0, 77)
        assert not SEEN
        for each in (running, running.clone(), running.attach_to_context(None)):
            y.zero_()
            each.enqueue(desc, desc, [256], [512], 0, 77)
            assert y.equal(x + 1)
        MOOD["lies"] = True
        with pytest.raises(TypeError, match="float64"):
            running.enqueue(desc, desc, [256], [512], 0, 77)
        assert y.equal(x + 1)
        MOOD["raises"] = True
        with pytest.raises(ValueError, match="not today"):
            running.enqueue(desc, desc, [256], [512], 0, 77)
    assert "t2t_plugins.moody.default: ValueError: not today" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_booleans_and_bytes_go_as_integers(dtype: torch.dtype, fake: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    call = OperatorCall.make(
        OPERATORS.recast.default, {"x": spec(3, dtype=torch.bool), "dtype": dtype}, [spec(3, dtype=dtype)]
    )
    plugin = plugins.plugin(fake, call)
    assert plugin.get_output_data_types([]) == ["INT32"]
    (creator,) = fake.trt.get_plugin_registry().creators
    running = creator.create_plugin("recast", plugin.get_fields_to_serialize(), "RUNTIME")
    x, y = torch.tensor([0, 1, 1], dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    desc = [SimpleNamespace(dims=[3])]
    with on_cpu({256: x, 512: y}, monkeypatch):
        running.enqueue(desc, desc, [256], [512], 0, 77)
    assert y.tolist() == [0, 1, 1]


def test_results_of_another_shape_are_no_results() -> None:
    with pytest.raises(
        TypeError, match=r"returned torch.float32\[3\] where its fake kernel says torch.float32\[2, 3\]"
    ):
        plugins.copy_result(torch.ones(3), torch.zeros(2, 3), torch.float32)


# The converter --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("plugged")
def test_all_of_a_module_is_one_engine_where_there_are_plugins() -> None:
    program = optimized(Block(), X, shapes=BATCH, min_segment=1)
    explained = explain(program, ENTERPRISE, Settings())
    assert not explained.in_torch
    assert [where for where, _ in explained.segments] == ["engine"]


@pytest.mark.usefixtures("plugged")
def test_where_there_are_none_it_runs_in_torch() -> None:
    if flavours.load().has("plugins"):
        pytest.skip("this flavour has plugins")
    explained = torch2trt.explain(Block(), (X,), min_segment=1)
    assert {each.op: each.reason for each in explained.in_torch if each.op != "operator.getitem"} == {
        "t2t_plugins.gate.default": "tensorrt_rtx has no plugins",
        "t2t_plugins.add_norm.default": "tensorrt_rtx has no plugins",
    }
    compiled = torch2trt.compile(Block(), (X,), dynamic_shapes=BATCH, min_segment=1, precision="fp32", **QUICK)
    assert compiled.artifact.parts
    assert not compiled.artifact.calls
    compare(compiled.reference(X), truth(Block(), (X,)), 1.0)
    # Had one of its engines calls, its file would name them.
    first, *others = compiled.artifact.parts
    mixed = dataclasses.replace(compiled.artifact, parts=(dataclasses.replace(first, calls=(spreading(),)), *others))
    again = load(to_bytes(mixed), namespaces=["t2t_plugins"]).artifact.parts[0]
    assert isinstance(again, Artifact)
    assert again.calls == (spreading(),)


def test_an_operator_that_is_none_is_as_before() -> None:
    assert reasons(gate, X) == ["no converter"]


@pytest.mark.usefixtures("plugged")
def test_what_is_refused_says_why() -> None:
    assert reasons(gate, X) == []
    assert reasons(gate, X.to(torch.int8)) == [
        "TensorRT has no torch.int8 but for quantized numbers, pass torch.int32 or torch.uint8"
    ]
    assert reasons(lambda x: recast(x, torch.float64).float(), X) == ["TensorRT has no torch.float64"]
    assert reasons(lambda x: kept(x) + 1, X) == ["u0: a size that the shapes of its inputs do not tell"]


def test_what_is_no_plugin_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
    with pytest.raises(TypeError, match=r"t2t_plugins.bump.default writes into its arguments"):
        torch2trt.plugin(OPERATORS.bump)
    with pytest.raises(TypeError, match="is no operator of torch"):
        torch2trt.plugin(torch.sigmoid)
    torch2trt.plugin(OPERATORS.gate)
    with pytest.raises(TypeError, match="already has the converter"):
        torch2trt.plugin(OPERATORS.gate.default)
    with pytest.raises(TypeError, match="already has the converter"):
        torch2trt.plugin(torch.ops.aten.sigmoid)


@pytest.mark.parametrize("half", [False, True])
def test_precision_leaves_it_in_float32_unless_told(half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
    torch2trt.plugin(gate, half=half)
    program = optimized(Block(), X, precision="fp16")
    (node,) = [node for node in program.calls if node.target is OPERATORS.gate.default]
    wanted = torch.float16 if half else torch.float32
    assert [program.spec(each).dtype for each in (node, *node.all_input_nodes)] == [wanted] * 2
    own = optimized(Block().half(), X.half())
    (node,) = [node for node in own.calls if node.target is OPERATORS.gate.default]
    assert own.spec(node).dtype == torch.float16


class Layer:
    """A plugin layer, with other layers' outputs for its own."""

    def __init__(self, outputs: list[Any]) -> None:
        self.name = self.metadata = ""
        self.outputs = outputs

    def get_output(self, index: int) -> Any:
        return self.outputs[index]


Added = list[tuple[list[Any], Any]]


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Added:
    """The inputs and plugins of the layers that are added; their outputs are copies of their first inputs."""
    found: Added = []
    add = Network.add

    def recorded(net: Network, method: str, *args: Any) -> Any:
        if method != "add_plugin_v3":
            return add(net, method, *args)
        inputs, shape_inputs, plugin = args
        assert not shape_inputs
        found.append((inputs, plugin))
        outputs = [add(net, "add_identity", inputs[0]).get_output(0) for _ in plugin.call.outputs]
        return net.adopt(Layer(outputs), method)

    monkeypatch.setattr(Network, "add", recorded)
    monkeypatch.setattr(converters, "make_plugin", lambda flavour, call: SimpleNamespace(call=call))
    return found


def enterprise() -> Flavour:
    """What is here, as if it had plugins."""
    return dataclasses.replace(flavours.load(), name=flavours.TENSORRT, version=(10, 6))


@pytest.mark.usefixtures("plugged")
def test_the_layer_gets_the_tensors_and_the_call(added: Added) -> None:
    net = lower(optimized(Block(), X, shapes=BATCH), enterprise())
    assert net.plugins == [plugin for _, plugin in added]
    first, second = (plugin.call for plugin in net.plugins)
    batch = symbol("batch")
    assert first.inputs == first.outputs == (spec(batch, 32),)
    assert json.loads(first.arguments) == [{"node": 0}, 2.0]
    assert second.inputs == (spec(batch, 32), spec(batch, 32), spec(32))
    assert second.outputs == (spec(batch, 32),) * 2
    assert json.loads(second.arguments) == [{"node": 0}, {"node": 1}, {"node": 2}, 1e-5]
    assert [tuple(tensor.shape) for tensor in added[1][0]] == [(-1, 32), (-1, 32), (32,)]
    assert net.definition.num_outputs == 2


@pytest.mark.usefixtures("plugged")
def test_booleans_and_bytes_are_cast_around_the_layer(added: Added) -> None:
    lower(optimized(Function(lambda x: recast(x > 0, torch.uint8)), X), enterprise())
    ((inputs, plugin),) = added
    assert [tensor.dtype.name for tensor in inputs] == ["INT32"]
    assert plugin.call.inputs == (spec(4, 16, dtype=torch.bool),)
    assert plugin.call.outputs == (spec(4, 16, dtype=torch.uint8),)


@pytest.mark.usefixtures("plugged")
def test_lists_of_tensors_and_sizes(added: Added) -> None:
    def listed(x: Tensor) -> Tensor:
        return spread([x, x + 1], x.shape[0] - 1)[0]

    lower(optimized(Function(listed), X, shapes=(({0: torch.export.Dim("n", min=2, max=9)},),)), enterprise())
    ((_, plugin),) = added
    call = plugin.call
    assert call.outputs == (spec(3 * N - 1, 16),)
    assert json.loads(call.arguments) == [[{"node": 0}, {"node": 1}], {"node": "n - 1"}, "zeros"]


# The reference --------------------------------------------------------------------------------------------------------


def node_of(call: Any, *dtypes: torch.dtype) -> Any:
    return SimpleNamespace(
        api=SimpleNamespace(plugin=SimpleNamespace(call=call) if call else object()),
        dtype=lambda output: dtypes[output],
        error=lambda reason: InterpreterError(reason, subject="layer 'swish' (PLUGIN_V3)"),
    )


def test_the_interpreter_runs_the_operator() -> None:
    call = OperatorCall.make(OPERATORS.gate.default, {"x": spec(N), "slope": 1.0}, [spec(N)])
    (result,) = LAYERS["PLUGIN_V3"].function(node_of(call, torch.float64), X[0].double())  # type: ignore[misc]
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, torch.nn.functional.silu(X[0].double()))


def test_the_interpreter_says_which_kernel_is_missing() -> None:
    @torch.library.custom_op("t2t_plugins::far", mutates_args=(), device_types="cuda")
    def far(x: Tensor) -> Tensor:
        return x + 1

    call = OperatorCall.make(OPERATORS.far.default, {"x": spec(N)}, [spec(N)])
    with pytest.raises(InterpreterError, match=r"t2t_plugins.far.default has no kernel for cpu tensors"):
        LAYERS["PLUGIN_V3"].function(node_of(call, torch.float32), X[0])
    with pytest.raises(InterpreterError, match="plugins of others"):
        LAYERS["PLUGIN_V3"].function(node_of(None, torch.float32), X[0])


# Files ----------------------------------------------------------------------------------------------------------------


def test_files_name_the_operators_that_their_plans_call() -> None:
    artifact = make_artifact(calls=(spreading(),))
    data = to_bytes(artifact)
    assert load(data, namespaces=["t2t_plugins"]).artifact == artifact
    with pytest.raises(ArtifactError, match=r"not allowed in a file: t2t_plugins.spread.default") as caught:
        load(data)
    assert "namespaces=" in caught.value.hint
    with pytest.raises(ArtifactError, match="not a call"):
        load(with_manifest(data, calls=[spreading().to_json() | {"arguments": "[]"}]), namespaces=["t2t_plugins"])
    with pytest.raises(ArtifactError, match="malformed"):
        load(with_manifest(data, calls=[{}]))
    named = spreading().to_json() | {"operator": "t2t_absent.thing.default"}
    with pytest.raises(ArtifactError, match=r"no such operator: t2t_absent.thing.default") as caught:
        load(with_manifest(data, calls=[named]), namespaces=["t2t_absent"])
    assert "import the package" in caught.value.hint


def test_a_bare_plan_cannot_call_torch(tmp_path: Path) -> None:
    with pytest.raises(ArtifactWriteError, match=r"t2t_plugins.spread.default"):
        export_plan(make_artifact(calls=(spreading(),)), tmp_path / "net.engine")
    assert list(tmp_path.iterdir()) == []
