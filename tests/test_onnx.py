"""ONNX models: exported, written by hand, external, refused; against the module and the ONNX evaluator."""

from __future__ import annotations

import copy
import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.export import Dim
from torch.nn import functional as F

import torch2trt
from torch2trt.frontend import onnx_exact
from torch2trt.runtime.bare_plan import export_plan


class Net(nn.Module):
    """Two inputs, three outputs, one of them of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.LayerNorm(144)
        self.head = nn.Linear(144, 5)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.norm(F.gelu(self.conv(x)).flatten(1))
        return self.head(features) + y, features.view(x.shape[0], 2, -1), features.softmax(1).argmax(1)


def export(module: nn.Module, args: tuple[torch.Tensor, ...], dynamic_shapes: Any = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, of itself
        return torch.onnx.export(module.eval(), args, dynamo=True, dynamic_shapes=dynamic_shapes, verbose=False)


def names_of(program: Any) -> tuple[list[str], list[str]]:
    graph = program.model_proto.graph
    return [value.name for value in graph.input], [value.name for value in graph.output]


def pair(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, 8, 8), torch.randn(batch, 5)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def dynamic(net: nn.Module) -> Any:
    batch = Dim("batch", min=1, max=64)
    return export(net, pair(2), {"x": {0: batch}, "y": {0: batch}})


RANGE = {"x": ((1, 3, 8, 8), (4, 3, 8, 8), (16, 3, 8, 8))}


def model(nodes: list[Any], *, inputs: Any = None, outputs: Any = None, weights: Any = ()) -> onnx.ModelProto:
    """A model written by hand, from x to y of shape [n, 3] unless said otherwise."""
    given = inputs or {"x": (TensorProto.FLOAT, ["n", 3])}
    wanted = outputs or {"y": (TensorProto.FLOAT, ["n", 3])}
    graph = helper.make_graph(
        nodes,
        "by hand",
        [helper.make_tensor_value_info(name, *kind) for name, kind in given.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in wanted.items()],
        [numpy_helper.from_array(value.numpy(), name) for name, value in weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_dynamic_batch(net: nn.Module, dynamic: Any) -> None:
    compiled = torch2trt.onnx.compile(dynamic, shapes=RANGE, name="net")
    assert isinstance(compiled, torch2trt.EngineModule)
    assert {name: (span.min, span.opt, span.max) for name, span in compiled.artifact.signature.dims.items()} == {
        "batch": (1, 4, 16)
    }
    for batch in (1, 3, 16):
        x, y = pair(batch)
        wanted = net(x, y)
        for found in (compiled.reference(x, y), compiled.reference(y=y, x=x)):
            assert isinstance(found, tuple)
            torch.testing.assert_close(found, wanted)
    with pytest.raises(torch2trt.InputShapeError, match="1 to 16"):
        compiled.reference(*pair(17))
    with pytest.raises(torch2trt.InputStructureError):
        compiled.reference(x)
    assert compiled.report["nodes"] == len(dynamic.model_proto.graph.node)
    assert compiled.report["layers"] > 5


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_calling_it_without_a_gpu_says_so(dynamic: Any) -> None:
    with pytest.raises(torch2trt.NoGPUError):
        torch2trt.onnx.compile(dynamic, shapes=RANGE)(*pair(2))


@pytest.mark.gpu
def test_the_engine(net: nn.Module, dynamic: Any) -> None:
    compiled = torch2trt.onnx.compile(dynamic, shapes=RANGE, precision="fp32")
    for batch in (1, 3, 16):
        x, y = pair(batch)
        for have, want in zip(compiled(x.cuda(), y.cuda()), net(x, y), strict=True):
            torch.testing.assert_close(have.cpu(), want, rtol=1e-3, atol=1e-3)
    assert compiled.verify(*pair(4)).passed


def test_from_a_file_with_external_weights(net: nn.Module, dynamic: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    dynamic.save(path, external_data=True)
    assert (tmp_path / "net.onnx.data").exists()
    before = path.read_bytes()
    compiled = torch2trt.onnx.compile(path, shapes={"x": (2, 3, 8, 8)})
    assert path.read_bytes() == before
    assert compiled.artifact.name == "net"
    assert not compiled.artifact.signature.dims, "the shape of x says what the batch of y is"
    x, y = pair(2)
    torch.testing.assert_close(compiled.reference(x, y), net(x, y))
    assert compiled.verify(x, y).passed
    compiled.save(tmp_path / "net.t2t")
    with pytest.raises(torch2trt.ProgramMissingError, match="ONNX model"):
        compiled.save(tmp_path / "whole.t2t", program=True)
    assert not (tmp_path / "whole.t2t").exists()
    loaded = torch2trt.load(tmp_path / "net.t2t")
    assert loaded.artifact.signature.to_json() == compiled.artifact.signature.to_json()
    with pytest.raises(torch2trt.ProgramMissingError):
        loaded.reference(x, y)


def test_the_truth_is_in_float64(tmp_path: Path) -> None:
    class Exact(nn.Sequential):
        """No constant of its own, which the exporter would round to float32."""

        def forward(self, x: torch.Tensor) -> Any:
            probabilities = super().forward(x).flatten(1).softmax(-1)
            return probabilities, probabilities.argmax(-1)

    module = Exact(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.LayerNorm(6), nn.MaxPool2d(2)).eval()
    x = torch.randn(2, 3, 8, 8)
    program = export(module, (x,))
    program.save(path := tmp_path / "net.onnx", external_data=True)
    wanted = copy.deepcopy(module).double()(x.double())
    for source in (program, path):
        inputs, outputs = names_of(program)
        found = onnx_exact.evaluate(source, {inputs[0]: x}, outputs)
        for have, want in zip(found, wanted, strict=True):
            assert have.dtype == want.dtype
            torch.testing.assert_close(have, want, rtol=0, atol=1e-10)


def test_the_truth_rounds_nowhere() -> None:
    branch = [
        helper.make_graph(
            [helper.make_node("Mul", ["c", factor], [f"{name}_out"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT16, ["n", 3])],
            [numpy_helper.from_array(torch.full((3,), value).half().numpy(), factor)],
        )
        for name, factor, value in (("then", "two", 2.0), ("else", "four", 4.0))
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], to=TensorProto.FLOAT16),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(torch.zeros(()).numpy())),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["i"], then_branch=branch[0], else_branch=branch[1]),
        helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ]
    proto = model(nodes)
    before = proto.SerializeToString()
    for sign, factor in ((1, 2), (-1, 4)):
        x = sign * torch.rand(2, 3)
        (found,) = onnx_exact.evaluate(proto, {"x": x}, ["y"])
        assert torch.equal(found, x.double() * factor)
    assert proto.SerializeToString() == before


def test_one_output_and_no_names() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    proto = export(module, (torch.randn(2, 3),)).model_proto
    compiled = torch2trt.onnx.compile(proto.SerializeToString())
    x = torch.randn(2, 3)
    torch.testing.assert_close(compiled.reference(x), module(x))
    assert compiled.verify(x).passed


def test_half_precision_is_the_models_own() -> None:
    proto = export(nn.Linear(8, 4).half(), (torch.randn(2, 8).half(),)).model_proto
    compiled = torch2trt.onnx.compile(proto)
    assert compiled.artifact.precision == "fp16"
    x = torch.randn(2, 8).half()
    assert compiled.reference(x).dtype == torch.float16
    assert compiled.verify(x).passed
    with pytest.raises(torch2trt.SettingError, match="computes in fp16"):
        torch2trt.onnx.compile(proto, precision="fp32")
    with pytest.raises(torch2trt.SettingError, match="unknown"):
        torch2trt.onnx.compile(proto, precison="fp16")


def test_what_nothing_needs_is_removed() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["dead"]), helper.make_node("Add", ["x", "w"], ["y"])]
    proto = model(nodes, weights=[("w", torch.ones(3))])
    before = proto.SerializeToString()
    compiled = torch2trt.onnx.compile(proto, shapes={"x": (2, 3)})
    assert proto.SerializeToString() == before
    assert compiled.report["nodes"] == 2
    lone = torch2trt.onnx.compile(model(nodes[1:], weights=[("w", torch.ones(3))]), shapes={"x": (2, 3)})
    assert compiled.report["layers"] == lone.report["layers"]
    x = torch.randn(2, 3)
    torch.testing.assert_close(compiled.reference(x), x + 1)


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs onnxruntime")
def test_constants_are_folded() -> None:
    nodes = [helper.make_node("Mul", ["w", "w"], ["ww"]), helper.make_node("Add", ["x", "ww"], ["y"])]
    compiled = torch2trt.onnx.compile(model(nodes, weights=[("w", torch.full((3,), 2.0))]), shapes={"x": (2, 3)})
    alone = model(nodes[1:], weights=[("ww", torch.full((3,), 4.0))])
    assert compiled.report["layers"] == torch2trt.onnx.compile(alone, shapes={"x": (2, 3)}).report["layers"]
    assert compiled.reference(torch.zeros(2, 3)).eq(4).all()


def test_outputs_whose_sizes_the_model_does_not_name(tmp_path: Path) -> None:
    proto = model(
        [helper.make_node("Concat", ["x", "x"], ["y"], axis=0)], outputs={"y": (TensorProto.FLOAT, [None, 3])}
    )
    compiled = torch2trt.onnx.compile(proto, shapes={"x": ((1, 3), (2, 3), (4, 3))})
    for count in (1, 3):
        x = torch.randn(count, 3)
        torch.testing.assert_close(compiled.reference(x), torch.cat([x, x]))
    compiled.save(tmp_path / "odd.t2t")
    torch2trt.load(tmp_path / "odd.t2t")
    export_plan(compiled.artifact, tmp_path / "odd.engine")
    description = json.loads((tmp_path / "odd.engine.json").read_text())
    assert description["inputs"][0]["profile"]["max"] == [4, 3]
    assert description["outputs"][0]["profile"]["max"] == [None, 3]


def test_dimensions_with_odd_names() -> None:
    nodes = [helper.make_node("Add", ["x", "in.2"], ["y"])]
    inputs = {"x": (TensorProto.FLOAT, ["batch size", 3]), "in.2": (TensorProto.FLOAT, [None, 3])}
    with pytest.raises(torch2trt.DynamicShapeError, match=r"in\.2: axis 0 \(unnamed\)"):
        torch2trt.onnx.compile(model(nodes, inputs=inputs), shapes={"x": ((1, 3), (2, 3), (4, 3))})
    shapes = dict.fromkeys(inputs, ((1, 3), (2, 3), (4, 3)))
    compiled = torch2trt.onnx.compile(model(nodes, inputs=inputs), shapes=shapes)
    assert set(compiled.artifact.signature.dims) == {"batch_size", "in_2_0"}
    x = torch.randn(3, 3)
    torch.testing.assert_close(compiled.reference(x, x), x + x)


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({}, r"x: axis 0 \(n\) is dynamic"),
        ({"z": (1, 3)}, "no such input; it has x"),
        ({"x": (1, 2, 3)}, "of 2 dimension"),
        ({"x": ((1, 3), (2, 3))}, "the smallest, the usual and the largest"),
        ({"x": ((2, 3), (1, 3), (4, 3))}, "is false"),
        ({"x": (2, 4)}, "axis 1 is 3 in the model"),
        ({"x": ((1, 3), (1, 3), (1, 4))}, "axis 1 is 3 in the model"),
    ],
)
def test_shapes_that_do_not_fit(shapes: Any, reason: str) -> None:
    with pytest.raises(torch2trt.DynamicShapeError, match=reason):
        torch2trt.onnx.compile(model([helper.make_node("Relu", ["x"], ["y"])]), shapes=shapes)


def test_one_dimension_has_one_range() -> None:
    proto = model(
        [helper.make_node("Add", ["x", "z"], ["y"])],
        inputs={name: (TensorProto.FLOAT, ["n", 3]) for name in ("x", "z")},
    )
    with pytest.raises(torch2trt.DynamicShapeError, match="another range"):
        torch2trt.onnx.compile(proto, shapes={"x": (2, 3), "z": (3, 3)})


def test_built_in_a_child_process(net: nn.Module, dynamic: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    dynamic.save(path, external_data=True)
    here = torch2trt.onnx.compile(path, shapes=RANGE, precision="fp32")
    there = torch2trt.onnx.compile(path, shapes=RANGE, precision="fp32", build_in_subprocess=True)
    assert there.artifact.signature.to_json() == here.artifact.signature.to_json()
    assert abs(len(there.artifact.plan) - len(here.artifact.plan)) < 0.01 * len(here.artifact.plan)
    with pytest.raises(torch2trt.BuildTimeoutError, match="net"):
        torch2trt.onnx.compile(path, shapes=RANGE, precision="fp32", build_timeout=0.01)


def test_every_refused_node_is_listed() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Foo", ["a"], ["b"], name="first"),
        helper.make_node("Bar", ["b"], ["y"], name="second"),
    ]
    with pytest.raises(torch2trt.UnsupportedOpsError, match="Plugin not found") as caught:
        torch2trt.onnx.compile(model(nodes), shapes={"x": (2, 3)})
    assert [(node.node, node.op) for node in caught.value.nodes] == [("first", "Foo"), ("second", "Bar")]


def test_what_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (b"no model at all", b""):
        (tmp_path / "broken.onnx").write_bytes(data)
        with pytest.raises(torch2trt.CaptureError, match=r"broken\.onnx"):
            torch2trt.onnx.compile(tmp_path / "broken.onnx")
    with pytest.raises(FileNotFoundError):
        torch2trt.onnx.compile(tmp_path / "missing.onnx")
    double = {name: (TensorProto.DOUBLE, [2, 3]) for name in ("x",)}
    with pytest.raises(torch2trt.CaptureError, match="DOUBLE"):
        torch2trt.onnx.compile(model([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)], inputs=double))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name))
    with pytest.raises(torch2trt.MissingPackageError, match=r"torch2trt\[onnx\]"):
        torch2trt.onnx.compile("model.onnx")
