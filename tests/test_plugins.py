"""Operators of torch inside an engine: what a call is, what TensorRT is told of it, and how it is computed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._sympy.functions import FloorDiv

from tests.plugging import N, layouts, spec, spreading
from tests.plugin_operators import MOOD, OPERATORS, SEEN, X, good_mood, plugged
from torch2trt.errors import EngineError, InterpreterError, NetworkError
from torch2trt.graph.operator_call import OperatorCall
from torch2trt.graph.plugged_ops import DEPTHWISE_CONV, SHORT_ATTENTION
from torch2trt.graph.writing import writing_overload
from torch2trt.reference.layers import LAYERS
from torch2trt.sizes import Size, TensorSpec, evaluate, symbol
from torch2trt.trt import flavour as flavours
from torch2trt.trt import plugins
from torch2trt.trt.flavour import Flavour

__all__ = ["good_mood", "layouts", "plugged"]  # fixtures, which tests name


# Calls ----------------------------------------------------------------------------------------------------------------


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
        TensorFormat=SimpleNamespace(LINEAR="LINEAR", HWC8="HWC8", CHW4="CHW4"),
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
    names = {torch.float32: "FLOAT", torch.float16: "HALF", torch.bfloat16: "BF16"}
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


IMAGES = spec(N, 16, 5, symbol("w"), dtype=torch.float16)


def add_norm(x: TensorSpec, *, channels_last: bool = True) -> OperatorCall:
    arguments = {"x": x, "rest": x, "weight": spec(16), "eps": 1e-5}
    return OperatorCall.make(OPERATORS.add_norm.default, arguments, [x, x], channels_last=channels_last)


def combinations(flavour: Flavour, call: OperatorCall) -> list[str]:
    """The formats that a plugin supports, as TensorRT finds out: each tensor's after those before it."""
    plugin, found = plugins.plugin(flavour, call), [""]
    for position in range(len(call.inputs) + len(call.outputs)):
        tried = [f"{before} {name}".strip() for before in found for name in ("LINEAR", "HWC8", "CHW4")]
        found = []
        for formats in tried:
            tensors = descs(call)
            for tensor, name in zip(tensors, [*formats.split(), *["unknown"] * len(tensors)], strict=False):
                tensor.desc.format = name
            if plugin.supports_format_combination(position, tensors, len(call.inputs)):
                found.append(formats)
    return found


def test_images_may_lie_channels_last(fake: Flavour) -> None:
    linear, last = "LINEAR LINEAR LINEAR LINEAR LINEAR", "HWC8 HWC8 LINEAR HWC8 HWC8"
    assert sorted(combinations(fake, add_norm(IMAGES))) == [last, linear]
    assert sorted(combinations(fake, add_norm(replace(IMAGES, dtype=torch.bfloat16)))) == [last, linear]
    assert combinations(fake, add_norm(IMAGES, channels_last=False)) == [linear]
    # No vectors to fill, and no convolutions that have them so.
    for other in (
        spec(N, 12, 5, 5, dtype=torch.float16),
        spec(2, N, 5, 5, dtype=torch.float16),
        spec(2, 16, 5, dtype=torch.float16),
        spec(2, 16, 5, 5),
    ):
        assert combinations(fake, add_norm(other)) == [linear]


def test_files_keep_that_images_lie_channels_last() -> None:
    call = add_norm(IMAGES)
    again = OperatorCall.from_json(json.loads(json.dumps(call.to_json())), ["t2t_plugins"])
    assert again == call
    plain = add_norm(IMAGES, channels_last=False)
    assert len({call.key, again.key, plain.key}) == 2
    # Files from before there was such a thing hold the numbers of their calls.
    assert "channels_last" not in plain.to_json()
    assert not OperatorCall.from_json(plain.to_json(), ["t2t_plugins"]).channels_last


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
    desc = [SimpleNamespace(dims=[3, 2], format="LINEAR")]
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


@pytest.mark.parametrize("format", ["HWC8", "LINEAR"])
def test_channels_last_memory_is_read_and_written_where_it_is(
    format: str, fake: Flavour, layouts: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = spec(2, 16, 3, 5, dtype=torch.float16)
    call = OperatorCall.make(OPERATORS.moody.default, {"x": images}, [images], channels_last=True)
    plugin = plugins.plugin(fake, call)
    (creator,) = fake.trt.get_plugin_registry().creators
    running = creator.create_plugin("moody", plugin.get_fields_to_serialize(), "RUNTIME")
    x = torch.randn(2, 16, 3, 5).half()
    memory = x.permute(0, 2, 3, 1).contiguous() if format == "HWC8" else x
    result = torch.zeros_like(memory)
    desc = [SimpleNamespace(dims=[2, 16, 3, 5], format=format)]
    with on_cpu({256: memory, 512: result}, monkeypatch):
        running.enqueue(desc, desc, [256], [512], 0, 77)
    assert result.equal(memory + 1)
    assert layouts == [format == "HWC8"]


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
    desc = [SimpleNamespace(dims=[3], format="LINEAR")]
    with on_cpu({256: x, 512: y}, monkeypatch):
        running.enqueue(desc, desc, [256], [512], 0, 77)
    assert y.tolist() == [0, 1, 1]


LOWEST = OperatorCall.make(
    torch.ops.aten.aminmax.default, {"input": spec(N, 3), "dim": 1, "keepdim": False}, [spec(N), spec(N)]
)


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
def test_an_operator_that_can_writes_where_its_results_go() -> None:
    x, places = torch.randn(2, 3), [torch.zeros(2), torch.zeros(2)]
    found = LOWEST.run([x], places)
    assert all(result is place for result, place in zip(found, places, strict=True))
    assert [each.tolist() for each in places] == [x.amin(1).tolist(), x.amax(1).tolist()]
    assert LOWEST.run([x])[0] is not places[0]
    with pytest.raises(TypeError, match=r"returned \[2\] where its fake kernel says \[5\]"):
        LOWEST.run([x], [torch.zeros(5), torch.zeros(5)])


def test_an_operator_that_cannot_has_results_of_its_own() -> None:
    call = OperatorCall.make(OPERATORS.gate.default, {"x": spec(N), "slope": 1.0}, [spec(N)])
    place = torch.zeros(4)
    (found,) = call.run([X[0, :4]], [place])
    assert found is not place
    assert not place.any()


def test_which_overloads_write_results() -> None:
    aten = torch.ops.aten
    assert writing_overload(aten.addmm.default) is aten.addmm.out
    assert writing_overload(aten.addmm.dtype) is aten.addmm.dtype_out
    assert writing_overload(aten.relu_.default) is None
    assert writing_overload(aten._assert_async.default) is None
    assert writing_overload(DEPTHWISE_CONV) is torch.ops.torch2trt.depthwise_conv.out
    assert writing_overload(SHORT_ATTENTION) is torch.ops.torch2trt.short_attention.out


def test_a_plugin_has_its_results_where_tensorrt_wants_them(fake: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = plugins.plugin(fake, LOWEST)
    (creator,) = fake.trt.get_plugin_registry().creators
    running = creator.create_plugin("aminmax", plugin.get_fields_to_serialize(), "RUNTIME")
    x, low, high = torch.randn(2, 3), torch.zeros(2), torch.zeros(2)
    sizes = [SimpleNamespace(dims=[2], format="LINEAR")] * 2

    def copied(*tensors: Tensor) -> None:
        raise AssertionError("copied")

    with on_cpu({256: x, 512: low, 768: high}, monkeypatch):
        monkeypatch.setattr(Tensor, "copy_", copied)
        running.enqueue([SimpleNamespace(dims=[2, 3], format="LINEAR")], sizes, [256], [512, 768], 0, 77)
    assert (low.tolist(), high.tolist()) == (x.amin(1).tolist(), x.amax(1).tolist())


def test_results_of_another_shape_are_no_results() -> None:
    with pytest.raises(
        TypeError, match=r"returned torch.float32\[3\] where its fake kernel says torch.float32\[2, 3\]"
    ):
        plugins.copy_result(torch.ones(3), torch.zeros(2, 3), torch.float32)


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
