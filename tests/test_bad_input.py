"""Bad input through the public calls: each gets its error class and number, and names what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

import torch2trt
from tests.refusals import X, compiling, no_gpu, refused
from torch2trt import errors
from torch2trt.runtime.module import EngineModule


class Net(nn.Module):
    """Two inputs, one of them integers, and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5))
        self.embed = nn.Embedding(5, 4)

    def forward(self, x: torch.Tensor, ids: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
        return self.layers(x) * scale + self.embed(ids)


# The call to compile --------------------------------------------------------------------------------------------------


def test_a_model_in_training_mode() -> None:
    net = Net()
    refused(errors.TrainingModeError, lambda: torch2trt.compile(net, (X, torch.ones(2).long())), "Net", ".eval()")
    net.eval()
    net.layers[1].train()
    refused(errors.TrainingModeError, lambda: torch2trt.compile(net, (X, torch.ones(2).long())), "layers.1")
    net.eval()
    net.layers[3].train()
    refused(errors.TrainingModeError, lambda: torch2trt.compile(net, (X, torch.ones(2).long())), "layers.3")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda net: net.layers[0].double(), ("layers.0.weight", "float64", ".float()")),
        (lambda net: net.layers[0].to(torch.complex128), ("layers.0.weight", "complex128")),
        (lambda net: net.layers[0].weight.data[1, 2].fill_(torch.nan), ("layers.0.weight", "NaN")),
        (lambda net: net.layers[1].running_var.fill_(torch.nan), ("layers.1.running_var", "NaN")),
        (lambda net: net.embed.to("meta"), ("embed.weight", "meta")),
        (lambda net: setattr(net, "embed", nn.LazyLinear(4)), ("embed.weight", "initialised")),
    ],
    ids=["float64", "complex", "NaN", "NaN-buffer", "meta", "lazy"],
)
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_weights_that_no_engine_can_hold(change: Callable[[Net], Any], words: tuple[str, ...]) -> None:
    net = Net()
    change(net)
    refused(errors.WeightError, compiling(net, X, torch.ones(2).long()), *words)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((X.double(), torch.ones(2).long()), ("args[0]", "float64")),
        ((X.to(torch.complex64), torch.ones(2).long()), ("args[0]", "complex64")),
        ((X, torch.ones(2, device="meta").long()), ("args[1] on meta", "on cpu")),
        ((X,), ("missing", "'ids'")),
        ((X, torch.ones(2).long(), 2.0, 3.0), ("too many", "ids")),
    ],
    ids=["float64", "complex", "devices", "too-few", "too-many"],
)
def test_examples_that_cannot_be_inputs(args: tuple[Any, ...], words: tuple[str, ...]) -> None:
    refused(errors.ExampleInputError, compiling(Net(), *args), *words)


def test_examples_that_are_no_tuple_or_hold_no_tensor() -> None:
    net = nn.Linear(3, 4).eval()
    refused(errors.ExampleInputError, lambda: torch2trt.compile(net, X), "tuple", "(x,)")  # type: ignore[arg-type]
    refused(errors.ExampleInputError, lambda: torch2trt.compile(net, (1.0,)), "no tensor")


def test_examples_that_the_module_itself_refuses() -> None:
    with pytest.raises(errors.CaptureError, match="T2T104") as info:
        compiling(Net(), torch.randn(2, 7), torch.ones(2).long())()
    assert f"{__file__}:" in info.value.source, "the user's own line"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"precison": "fp16"}, ("precison", "precision")),
        ({"precision": "fp17"}, ("precision", "'fp16'")),
        ({"optimization_level": 6}, ("optimization_level", "0 to 5")),
        ({"workspace": -1}, ("workspace", "positive")),
        ({"max_aux_streams": -1}, ("max_aux_streams", "negative")),
        ({"build_timeout": "long"}, ("build_timeout", "float")),
        ({"flavour": "onnx"}, ("flavour", "tensorrt_rtx")),
        ({"run_in_torch": "aten.relu"}, ("run_in_torch", "a list of str", "'aten.relu'")),
        ({"skip_passes": ["merge_view"]}, ("skip_passes", "a list of", "'merge_views'")),
        ({"skip_passes": "merge_views"}, ("skip_passes", "a list of")),
        ({"skip_passes": ["merge_sibling_linears"]}, ("skip_passes", "'fuse_conv_blocks'")),
        ({"skip_passes": [1]}, ("skip_passes", "(1,)")),
        ({"extra_passes": ["merge_views"]}, ("extra_passes", "'merge_sibling_linears'")),
    ],
    ids=str,
)
def test_unknown_settings_and_values(settings: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(errors.SettingError, match="T2T101") as info:
        compiling(nn.Linear(3, 4), X, **settings)()
    assert all(word in str(info.value) for word in words)


# The module -----------------------------------------------------------------------------------------------------------


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x + 1
        return x - 1


class Sampling(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.function(x)


def test_control_flow_on_data() -> None:
    error = refused(errors.DataDependentError, compiling(Branching(), X), "Branching", "torch.where")
    assert f"{__file__}:" in error.source


@pytest.mark.parametrize(
    "number",
    [lambda x: x.sum().item(), lambda x: x.sum().long().item() + x.shape[0], lambda x: (x.sum() > 0).item()],
    ids=["float", "int", "bool"],
)
def test_results_that_are_numbers_from_tensors(number: Callable[..., Any]) -> None:
    class Numbers(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return x * 2, number(x)

    refused(errors.CaptureError, compiling(Numbers(), X), "Numbers", "a number taken from a tensor")


@pytest.mark.parametrize(
    "function",
    [lambda x: x.narrow(0, x[0, 0].long(), 1), lambda x: x.tensor_split(x[0, 0].long())[0]],
    ids=["narrow", "tensor_split"],
)
def test_sizes_and_places_that_are_data(function: Callable[..., Any]) -> None:
    error = refused(
        errors.DataDependentError, compiling(Sampling(function), X), "Sampling", "depend on the values of tensors"
    )
    assert f"{__file__}:" in error.source


@pytest.mark.parametrize(
    "function",
    [torch.rand_like, torch.bernoulli, lambda x: torch.randn(2, 3), lambda x: F.dropout(x, training=True)],
    ids=["rand_like", "bernoulli", "randn", "dropout"],
)
def test_random_numbers(function: Callable[..., Any]) -> None:
    error = refused(errors.RandomOpError, compiling(Sampling(function), X.sigmoid()), "aten.", "input")
    assert f"{__file__}:" in error.source


def test_dropout_of_a_model_in_evaluation_is_nothing() -> None:
    assert compiling(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)), X)().report["layers"] > 0


class Unsupported(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return (
            torch.linalg.svdvals(x) + torch.special.airy_ai(x[:, 0]),
            torch.unique(x),
            torch.add(x, x, alpha=x.sum().item()),
        )


def test_operators_without_a_converter_are_all_listed() -> None:
    with pytest.raises(errors.UnsupportedOpsError) as info:
        compiling(Unsupported(), X)()
    assert info.value.code == "T2T201"
    ops = {node.op for node in info.value.nodes}
    assert {"aten.special_airy_ai.default", "aten._unique2.default"} <= ops
    assert any("svd" in op for op in ops)
    assert any("values of a tensor" in node.reason or "taken from a tensor" in node.reason for node in info.value.nodes)
    assert all(node.reason for node in info.value.nodes)
    assert sum(f"{__file__}:" in node.source for node in info.value.nodes) >= 2


def test_dimensions_that_are_not_dynamic() -> None:
    class Folding(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(x.shape[0] // 2, 6)

    shapes = {"x": {0: Dim("batch", max=8)}}
    refused(errors.DynamicShapeError, compiling(Folding(), X, dynamic_shapes=shapes), "batch = 3")
    refused(errors.DynamicShapeError, compiling(Folding(), X, dynamic_shapes={"x": {0: Dim("b")}}), "upper bound")

    refused(errors.DynamicShapeError, compiling(Folding(), X, dynamic_shapes=(8,)), "has a tensor there", "nest")

    class Scaling(nn.Module):
        def forward(self, x: torch.Tensor, n: int) -> torch.Tensor:
            return x * n

    shapes = {"x": None, "n": Dim.DYNAMIC}
    refused(errors.DynamicShapeError, compiling(Scaling(), X, 3, dynamic_shapes=shapes), "n", "Python number")


class Sized(nn.Module):
    def forward(self, x: torch.Tensor) -> int:
        return x.shape[0]


def test_a_module_that_computes_nothing() -> None:
    with pytest.raises(torch2trt.CaptureError, match="computes nothing"):
        torch2trt.compile(Sized().eval(), (torch.ones(2),))


# The call of a compiled module ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled() -> EngineModule:
    shapes = {"x": {0: Dim("batch", min=2, max=8)}, "ids": {0: Dim("batch", min=2, max=8)}, "scale": None}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    args = (X.to(device), torch.ones(2, device=device).long(), 0.5)
    return torch2trt.compile(Net().eval().to(device), args, dynamic_shapes=shapes, progress="none")


IDS = torch.tensor([1, 4])
CALLS: dict[str, tuple[type[torch2trt.Torch2TRTError], tuple[Any, ...], tuple[str, ...]]] = {
    "dtype": (errors.InputDtypeError, (X.half(), IDS, 0.5), ("'x'", "float16", "float32")),
    "integer-dtype": (errors.InputDtypeError, (X, IDS.float(), 0.5), ("'ids'", "int64")),
    "below": (errors.InputShapeError, (X[:1], IDS[:1], 0.5), ("'batch'", "is 1", "2 to 8")),
    "above": (errors.InputShapeError, (X.repeat(5, 1), IDS.repeat(5), 0.5), ("'batch'", "is 10", "2 to 8")),
    "empty": (errors.InputShapeError, (X[:0], IDS[:0], 0.5), ("'batch'", "is 0")),
    "static": (errors.InputShapeError, (X[:, :2], IDS, 0.5), ("'x'", "axis 1 is 2")),
    "rank": (errors.InputShapeError, (X[0], IDS, 0.5), ("'x'", "1 dimension")),
    "disagreeing": (errors.InputShapeError, (X, IDS.repeat(2), 0.5), ("'ids'", "batch", "is 4")),
    "too-few": (errors.InputStructureError, (X,), ("inputs", "compiled for")),
    "too-many": (errors.InputStructureError, (X, IDS, 0.5, X), ("inputs", "compiled for")),
    "no-tensor": (errors.InputStructureError, (X, [1, 4], 0.5), ("inputs",)),
    "other-number": (errors.InputStructureError, (X, IDS, 0.25), ("0.5", "0.25", "compile again")),
    "missing-number": (errors.InputStructureError, (X, IDS), ("compiled for",)),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_with_other_inputs(compiled: EngineModule, name: str) -> None:
    kind, args, words = CALLS[name]
    refused(kind, lambda: compiled.reference(*args), *words)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    moved = [value.to(device) if isinstance(value, torch.Tensor) else value for value in args]
    refused(kind, lambda: compiled(*moved), *words)


@no_gpu
def test_calls_without_a_gpu(compiled: EngineModule) -> None:
    refused(errors.NoGPUError, lambda: compiled(X, IDS, 0.5), "Net", ".reference(")


@pytest.mark.gpu
def test_inputs_on_another_device(compiled: EngineModule) -> None:
    refused(errors.InputDeviceError, lambda: compiled(X, IDS.cuda(), 0.5), "'x'", "cpu", "cuda:0")


def test_changes_after_the_build(compiled: EngineModule) -> None:
    with pytest.raises(errors.FrozenModuleError, match="T2T505"):
        compiled.half()
    with pytest.raises(errors.FrozenModuleError, match="T2T505"):
        compiled.double()
    with pytest.raises(errors.FrozenModuleError, match="T2T505"):
        compiled.cpu()
