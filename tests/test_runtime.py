"""Compiled modules apart from their engines: calls checked, results put together, nesting, saving, comparing."""

from __future__ import annotations

import copy
import io
import json
import math
import pickle
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torch2trt.errors import (
    ArtifactError,
    ArtifactMismatchError,
    FrozenModuleError,
    InputDeviceError,
    InputDtypeError,
    InputShapeError,
    InputStructureError,
    NoGPUError,
    ProgramMissingError,
    UnsupportedGPUError,
)
from torch2trt.frontend.export import capture
from torch2trt.graph.program import Program
from torch2trt.graph.signature import ConstantLeaf, InputLeaf, Leaf, Signature, SizeLeaf, TensorLeaf
from torch2trt.runtime import context, inputs
from torch2trt.runtime.artifact import Artifact
from torch2trt.runtime.context import ALIGNMENT
from torch2trt.runtime.cuda_graphs import CAPACITY, Graph, GraphCache, _NotCapturable
from torch2trt.runtime.module import EngineModule
from torch2trt.runtime.outputs import Results
from torch2trt.runtime.recent import Recent
from torch2trt.runtime.verification import compare
from torch2trt.settings import Settings
from torch2trt.sizes import DimRange, TensorSpec, symbol
from torch2trt.tolerance import effective_precision, tolerance

BATCH, HEIGHT = symbol("batch"), symbol("h")

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="what happens on a machine without a GPU")


def leaf(name: str, *shape: Any, dtype: torch.dtype = torch.float32) -> TensorLeaf:
    return TensorLeaf(name, TensorSpec(shape, dtype))


def make_signature(
    inputs: Sequence[TensorLeaf | ConstantLeaf],
    outputs: Sequence[Leaf],
    call: Any = None,
    result: Any = None,
    **dims: tuple[int, int, int],
) -> Signature:
    """A signature; by default called by position, and returning one tensor or a tuple."""
    call = (tuple(range(len(inputs))), {}) if call is None else call
    result = (0 if len(outputs) == 1 else tuple(outputs)) if result is None else result
    return Signature(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        in_spec=pytree.tree_structure(call),
        out_spec=pytree.tree_structure(result, is_leaf=lambda node: isinstance(node, Leaf)),
        dims={name: DimRange(*span) for name, span in dims.items()},
        parameters=tuple(item.name for item in inputs if isinstance(item, TensorLeaf)),
    )


DOUBLE = make_signature([leaf("x", BATCH, 3)], [leaf("y", BATCH, 3)], batch=(1, 4, 16))


def make_module(signature: Signature = DOUBLE, plan: bytes = b"plan", **options: Any) -> EngineModule:
    settings = {"settings": options.pop("settings", Settings(precision="fp32"))}
    values = {"flavour": "tensorrt_rtx", "flavour_version": "1.7.1", "gpu": None, "report": {}} | settings
    for key in values:
        values[key] = options.pop(key, values[key])
    return EngineModule(Artifact(name="net", plan=plan, signature=signature, **values), **options)


class CPUSession:
    """Stands for an engine: runs a function of torch where the engine would run."""

    def __init__(self, function: Callable[..., Any], artifact: Artifact | None = None) -> None:
        self.function = function
        self.artifact = artifact
        self.device = torch.device("cpu")
        self.host_inputs: frozenset[str] = frozenset()
        self.shapes: list[Any] = []

    def open(self) -> CPUSession:
        return self

    def run(self, inputs: Sequence[Tensor], shapes: Any) -> list[Tensor]:
        self.shapes.append(shapes)
        with torch.no_grad():
            result = self.function(*inputs)
        return list(result) if isinstance(result, tuple) else [result]


def running(module: EngineModule, function: Callable[..., Any]) -> EngineModule:
    module._session = CPUSession(function, module.artifact)  # type: ignore[assignment]
    return module


# Calls --------------------------------------------------------------------------------------------------------------


def test_a_call_by_position_by_name_and_again() -> None:
    module = running(make_module(), lambda x: 2 * x)
    x = torch.randn(4, 3)
    assert torch.equal(module(x), 2 * x)
    assert torch.equal(module(x=x), 2 * x)
    assert torch.equal(module(x[:2]), 2 * x[:2])
    assert torch.equal(module(x), 2 * x)
    assert module._session.shapes == [((4, 3),), ((4, 3),), ((2, 3),), ((4, 3),)]  # type: ignore[attr-defined]
    assert len(module._calls) == 2


def test_arguments_that_are_no_tensors() -> None:
    signature = make_signature(
        [leaf("x", 2), ConstantLeaf(3), leaf("z", 2), ConstantLeaf(None)],
        [leaf("y", 2)],
        call=((0, 1), {"z": [2, 3]}),
    )
    module = running(make_module(signature), lambda x, z: x + z)
    x, z = torch.randn(2), torch.randn(2)
    assert torch.equal(module(x, 3, z=[z, None]), x + z)
    with pytest.raises(InputStructureError, match="compiled for the value 3, called with 4"):
        module(x, 4, z=[z, None])
    with pytest.raises(InputStructureError):
        module(x, 3, z=[z])


def test_every_way_to_name_the_same_arguments() -> None:
    signature = make_signature([leaf("x", 2), leaf("y", 2)], [leaf("z", 2)], call=((0,), {"y": 1}))
    module = running(make_module(signature), lambda x, y: x - y)
    x, y = torch.randn(2), torch.randn(2)
    for _ in range(3):
        for result in (module(x, y=y), module(x, y), module(x=x, y=y), module(y=y, x=x)):
            assert torch.equal(result, x - y)
        assert torch.equal(module(x, x), torch.zeros(2))
    for wrong in (lambda: module([x], y), lambda: module(x, y=3), lambda: module(x, z=y), lambda: module(x, y, y=y)):
        with pytest.raises(InputStructureError):
            wrong()


def test_results_of_every_kind() -> None:
    signature = make_signature(
        [leaf("x", BATCH, 3)],
        [leaf("b", BATCH), leaf("a", BATCH), ConstantLeaf("s"), InputLeaf(0), SizeLeaf(2 * BATCH), leaf("b", BATCH)],
        result={"first": 0, "rest": [1, (2, 3), 4], "again": 5},
        batch=(1, 4, 16),
    )
    module = running(make_module(signature), lambda x: (x[:, 0], x[:, 1]))
    for count in (4, 2, 4):
        x = torch.randn(count, 3)
        result = module(x)
        assert torch.equal(result["first"], x[:, 0])
        assert torch.equal(result["rest"][0], x[:, 1])
        assert result["rest"][1][0] == "s"
        assert result["rest"][1][1] is x
        assert result["rest"][2] == 2 * count
        assert result["again"] is result["first"]


def test_plain_structures_of_results() -> None:
    tensors = [torch.zeros(1), torch.ones(1)]
    outputs = [leaf("a", 1), leaf("b", 1)]
    for structure in ((0, 1), [0, 1], {"k": 0, "l": 1}):
        assemble = Results(make_signature([], outputs, result=structure)).at({})
        expected = pytree.tree_unflatten(tensors, pytree.tree_structure(structure))
        assert type(assemble(tensors, [])) is type(expected)
        assert pytree.tree_leaves(assemble(tensors, [])) == tensors
    assert Results(make_signature([], outputs[:1], result=(0,))).at({})(tensors[:1], []) == (tensors[0],)
    assert Results(make_signature([], outputs[:1], result=0)).at({})(tensors[:1], []) is tensors[0]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda m, x: m(), r"T2T501.*called with \(\), compiled for \(·\)"),
        (lambda m, x: m(x, x), "T2T501.*called with"),
        (lambda m, x: m([x]), "T2T501.*called with"),
        (lambda m, x: m(z=x), "T2T501.*called with"),
        (lambda m, x: m(3), "T2T501.*takes a tensor, got int"),
        (lambda m, x: m(x.numpy()), "T2T501.*takes a tensor, got ndarray"),
    ],
)
def test_calls_of_another_structure(call: Callable[..., Any], reason: str) -> None:
    module = running(make_module(), lambda x: x)
    module(torch.zeros(1, 3))
    with pytest.raises(InputStructureError, match=reason):
        call(module, torch.zeros(1, 3))


def test_an_input_of_another_dtype() -> None:
    module = running(make_module(), lambda x: x)
    with pytest.raises(InputDtypeError, match=r"\[T2T502\] input 'x': is float16, the engine takes float32") as caught:
        module(torch.zeros(1, 3, dtype=torch.float16))
    assert "x.to(torch.float32)" in caught.value.hint
    assert isinstance(caught.value, TypeError)


def test_an_input_on_another_device() -> None:
    module = running(make_module(), lambda x: x)
    with pytest.raises(InputDeviceError, match=r"\[T2T504\] input 'x': is on meta, the engine is on cpu"):
        module(torch.zeros(1, 3, device="meta"))


def test_shape_inputs_may_come_from_the_host() -> None:
    signature = make_signature([leaf("x", 2), leaf("size", dtype=torch.int64)], [leaf("y", 2)])
    values = [torch.zeros(2, device="meta"), torch.tensor(3)]
    with pytest.raises(InputDeviceError):
        inputs.check_devices(signature, values, torch.device("meta"), frozenset())
    inputs.check_devices(signature, values, torch.device("meta"), frozenset({"size"}))


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((17, 3), r"\[T2T503\] input 'x' axis 0: 'batch' is 17, the engine takes 1 to 16"),
        ((0, 3), "'batch' is 0, the engine takes 1 to 16"),
        ((4, 2), r"input 'x': axis 1 is 2, the engine takes 3: \[batch, 3\]"),
        ((4,), r"has 1 dimension\(s\) \[4\], the engine takes \[batch, 3\]"),
        ((4, 3, 1), r"has 3 dimension\(s\)"),
    ],
)
def test_shapes_outside_the_profile(shape: tuple[int, ...], reason: str) -> None:
    module = running(make_module(), lambda x: x)
    with pytest.raises(InputShapeError, match=reason):
        module(torch.zeros(shape))
    assert not module._session.shapes  # type: ignore[attr-defined]


def test_the_ends_of_the_profile() -> None:
    module = running(make_module(), lambda x: x)
    assert module(torch.zeros(1, 3)).shape == (1, 3)
    assert module(torch.zeros(16, 3)).shape == (16, 3)


def test_one_dimension_in_two_inputs() -> None:
    signature = make_signature([leaf("x", BATCH, 3), leaf("y", 2, BATCH)], [leaf("z", BATCH)], batch=(1, 4, 16))
    assert inputs.check(signature, [torch.zeros(5, 3), torch.zeros(2, 5)]) == {"batch": 5}
    with pytest.raises(InputShapeError, match=r"input 'y': axis 1 \(batch\) is 6, but it is 5 in input 'x' axis 0"):
        inputs.check(signature, [torch.zeros(5, 3), torch.zeros(2, 6)])


def test_sizes_that_are_expressions() -> None:
    signature = make_signature([leaf("x", 2 * HEIGHT), leaf("y", HEIGHT + 1)], [leaf("z", HEIGHT)], h=(2, 4, 8))
    assert inputs.check(signature, [torch.zeros(8), torch.zeros(5)]) == {"h": 4}
    with pytest.raises(InputShapeError, match=r"axis 0 is 7, which is not 2\*h for any h"):
        inputs.check(signature, [torch.zeros(7), torch.zeros(5)])
    with pytest.raises(InputShapeError, match=r"input 'y': axis 0 is 6, the engine takes h \+ 1 = 5"):
        inputs.check(signature, [torch.zeros(8), torch.zeros(6)])
    with pytest.raises(InputShapeError, match="'h' is 9, the engine takes 2 to 8"):
        inputs.check(signature, [torch.zeros(18), torch.zeros(10)])


def test_zero_dimensional_and_empty_tensors() -> None:
    signature = make_signature([leaf("x"), leaf("e", 0, 3)], [leaf("y")])
    module = running(make_module(signature), lambda x, e: x + e.sum())
    assert module(torch.tensor(2.0), torch.zeros(0, 3)) == 2


def test_remembered_calls_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch2trt.runtime.module._CALLS_KEPT", 3)
    module = running(make_module(), lambda x: x)
    for count in (1, 2, 3, 4, 5, 1):
        assert module(torch.zeros(count, 3)).shape == (count, 3)
        assert len(module._calls) <= 3


def test_gradients_are_refused_where_they_are_asked_for() -> None:
    module = running(make_module(), lambda x: x * 2)
    x = torch.ones(1, 3, requires_grad=True)
    with torch.no_grad():
        assert not module(x).requires_grad
    assert not module(x.detach()).requires_grad
    result = module(x)
    assert torch.equal(result, 2 * x)
    with pytest.raises(FrozenModuleError, match="computes no gradients"):
        result.sum().backward()


def test_integers_beside_results_that_would_want_gradients() -> None:
    signature = make_signature([leaf("x", 3)], [leaf("y", 3), leaf("i", 3, dtype=torch.int64)])
    module = running(make_module(signature), lambda x: (x * 2, x.long()))
    y, i = module(torch.ones(3, requires_grad=True))
    assert y.requires_grad
    assert not i.requires_grad


def test_dynamo_leaves_the_engine_alone() -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.engine = running(make_module(), lambda x: 2 * x.sin())

        def forward(self, x: Tensor) -> Tensor:
            return self.engine(x + 1) + 1

    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, example: Any) -> Any:
        graphs.append(graph.code)
        return graph

    parent, x = Parent(), torch.randn(2, 3)
    compiled = torch.compile(parent, backend=backend)
    with torch.no_grad():
        assert torch.equal(compiled(x), 2 * (x + 1).sin() + 1)
    assert graphs
    assert not any("sin" in code for code in graphs), graphs


# Machines without a GPU, or with another one -------------------------------------------------------------------------


@no_gpu
def test_a_call_without_a_gpu() -> None:
    module = make_module()
    with pytest.raises(NoGPUError, match=r"\[T2T304\] net: .*none on this machine") as caught:
        module(torch.zeros(2, 3))
    assert ".reference(" in caught.value.hint
    # What is wrong with the call itself is said there too.
    with pytest.raises(InputShapeError):
        module(torch.zeros(99, 3))


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that the machine has a GPU, a TensorRT package and its version."""

    def pretend(name: str, capability: tuple[int, int], version: str) -> None:
        parts = tuple(int(part) for part in version.split("."))
        monkeypatch.setattr(context.flavours, "gpu", lambda: (name, capability))
        monkeypatch.setattr(context.flavours, "_installed_version", lambda _: parts)
        monkeypatch.setattr(
            context.flavours, "load", lambda flavour: context.Flavour(flavour, parts, types.SimpleNamespace())
        )

    return pretend


def test_an_engine_of_another_version(a_gpu: Callable[..., None]) -> None:
    a_gpu("NVIDIA H200", (9, 0), "10.15.1")
    artifact = make_module(flavour="tensorrt", flavour_version="10.6.0", gpu="NVIDIA H200 (9.0)").artifact
    with pytest.raises(ArtifactMismatchError, match=r"T2T602.*built by tensorrt 10.6.0, this machine has 10.15.1"):
        context._flavour(artifact)


def test_an_engine_of_another_gpu(a_gpu: Callable[..., None]) -> None:
    a_gpu("NVIDIA L4", (8, 9), "10.6.0")
    artifact = make_module(flavour="tensorrt", flavour_version="10.6.0", gpu="NVIDIA H200 (9.0)").artifact
    with pytest.raises(
        ArtifactMismatchError, match=r"built for NVIDIA H200 \(9.0\), this machine has NVIDIA L4 \(8.9\)"
    ):
        context._flavour(artifact)


def test_an_rtx_engine_on_a_gpu_that_it_does_not_serve(a_gpu: Callable[..., None]) -> None:
    a_gpu("NVIDIA H200", (9, 0), "1.7.1")
    with pytest.raises(UnsupportedGPUError, match=r"T2T303.*does not serve NVIDIA H200 \(compute capability 9.0\)"):
        context._flavour(make_module().artifact)


def test_an_engine_that_fits(a_gpu: Callable[..., None]) -> None:
    a_gpu("NVIDIA L4", (8, 9), "1.7.1")
    assert context._flavour(make_module().artifact).version_text == "1.7.1"
    assert context._flavour(make_module(gpu="NVIDIA L4 (8.9)").artifact).version_text == "1.7.1"


# A module among others ----------------------------------------------------------------------------------------------


def test_train_and_eval_change_nothing() -> None:
    module = make_module()
    assert module.train() is module
    assert module.eval() is module
    assert not module.training
    parent = nn.Sequential(module, nn.Dropout())
    parent.train()
    assert parent[1].training
    assert not module.training


def test_no_parameters_and_one_state() -> None:
    module = make_module(truth=nn.Linear(3, 3))
    assert not list(module.parameters())
    assert not list(module.children())
    assert list(module.state_dict()) == ["_extra_state"]
    assert module.state_dict()["_extra_state"].dtype == torch.uint8


def test_the_engine_travels_in_a_parents_state() -> None:
    source = nn.Sequential(nn.Linear(3, 3), make_module(plan=b"trained"))
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    target = nn.Sequential(nn.Linear(3, 3), make_module(plan=b"other", program=lambda: None, truth=lambda x: x))
    target.load_state_dict(torch.load(buffer, weights_only=True))
    assert target[1].artifact == source[1].artifact
    assert target[1].artifact.plan == b"trained"
    assert torch.equal(target[0].weight, source[0].weight)
    # What the old engine came from is not what the new one came from.
    with pytest.raises(ProgramMissingError):
        target[1].reference(torch.zeros(1, 3))
    with pytest.raises(ProgramMissingError):
        target[1].verify(torch.zeros(1, 3))


def test_its_own_state_keeps_what_it_came_from() -> None:
    module = make_module(truth=lambda x: x)
    session = module._session
    module.load_state_dict(module.state_dict())
    assert module._session is session
    assert module._truth[0] is not None


def test_the_state_of_another_module() -> None:
    other = make_module(make_signature([leaf("image", 1, 3)], [leaf("y", 1, 3)]))
    with pytest.raises(ArtifactMismatchError, match=r"image: float32\[1×3\].*this is .*x: float32\[batch×3\]"):
        make_module().load_state_dict(other.state_dict())
    with pytest.raises(ArtifactError, match="no tensor of bytes"):
        make_module().load_state_dict({"_extra_state": torch.ones(3)})
    with pytest.raises(ArtifactError):
        make_module().load_state_dict({"_extra_state": torch.ones(3, dtype=torch.uint8)})
    with pytest.raises(RuntimeError, match="Missing key"):
        make_module().load_state_dict({})


def test_copies_share_the_engine() -> None:
    module = running(make_module(), lambda x: 2 * x)
    parent = nn.Sequential(module, module, nn.Linear(3, 3))
    copied = copy.deepcopy(parent)
    assert copied[0] is copied[1]
    assert copied[0] is not module
    assert copied[0].artifact is module.artifact
    assert copied[0]._session is module._session
    assert copied[2].weight is not parent[2].weight
    assert torch.equal(copied(torch.ones(1, 3)), parent(torch.ones(1, 3)))
    handle = copied[0].register_forward_hook(lambda *_: None)
    assert not module._forward_hooks
    handle.remove()


def test_pickles_go_through_the_artifact() -> None:
    module = make_module(truth=lambda x: x)
    module.note = "kept"
    pickled = pickle.loads(pickle.dumps(nn.Sequential(module)))[0]
    assert pickled.artifact == module.artifact
    assert pickled.note == "kept"
    with pytest.raises(ProgramMissingError):
        pickled.verify(torch.zeros(1, 3))


def test_save_and_load(tmp_path: Path) -> None:
    module = make_module()
    module.save(tmp_path / "net.t2t")
    loaded = EngineModule.load(tmp_path / "net.t2t")
    assert loaded.artifact == module.artifact
    with pytest.raises(ProgramMissingError):
        module.save(tmp_path / "more.t2t", program=True)
    assert not (tmp_path / "more.t2t").exists()


CHANGES: list[tuple[str, Callable[[nn.Module], Any]]] = [
    ("half", lambda m: m.half()),
    ("bfloat16", lambda m: m.bfloat16()),
    ("double", lambda m: m.double()),
    ("to-dtype", lambda m: m.to(torch.float16)),
    ("cpu", lambda m: m.cpu()),
    ("to-cpu", lambda m: m.to("cpu")),
    ("to-both", lambda m: m.to("cuda", torch.float16)),
]


@pytest.mark.parametrize("change", [change for _, change in CHANGES], ids=[name for name, _ in CHANGES])
def test_changes_are_refused(change: Callable[[nn.Module], Any]) -> None:
    for module in (make_module(), nn.Sequential(make_module())):
        with pytest.raises(FrozenModuleError, match=r"\[T2T505\] net: cannot (become|move)") as caught:
            change(module)
        assert isinstance(caught.value, TypeError)


def test_float_is_refused_where_it_would_change_something() -> None:
    half = make_signature([leaf("x", 3, dtype=torch.float16)], [leaf("y", 3, dtype=torch.float16)])
    inside = make_module(settings=Settings(precision="fp16"))
    for module in (make_module(half, settings=Settings()), inside):
        with pytest.raises(FrozenModuleError, match="cannot become float32"):
            module.float()
    with pytest.raises(FrozenModuleError, match="cannot become float16"):
        inside.half()


def test_what_changes_nothing_is_fine() -> None:
    module = make_module()
    for same in (module.float(), module.to("cuda:0"), module.to(torch.float32), module.to("cuda:0", torch.float32)):
        assert same is module
    half = make_signature([leaf("x", 3, dtype=torch.float16)], [leaf("y", 3, dtype=torch.float16)])
    make_module(half, settings=Settings()).half()
    integers = make_signature([leaf("x", 3, dtype=torch.int64)], [leaf("y", 3, dtype=torch.int64)])
    make_module(integers, settings=Settings()).to("cuda:0")
    nn.Sequential(module).requires_grad_(False).zero_grad()


def test_a_module_that_has_not_run_may_choose_its_gpu() -> None:
    module = make_module()
    module.to("cuda:1")
    assert module._session.device == torch.device("cuda:1")
    assert not module._session.is_open
    with pytest.raises(FrozenModuleError, match="cannot move from cuda:1 to cuda:2"):
        module.to("cuda:2")
    with pytest.raises(FrozenModuleError, match="cannot move from cuda:3 to cuda:1"):
        make_module(device="cuda:3").to("cuda:1")


def test_how_it_shows_itself() -> None:
    module = make_module(
        name_in_html := make_signature([leaf("<x>", BATCH, 3)], [leaf("y", BATCH, 3)], batch=(1, 4, 16)),
        report={"nodes": 9, "layers": 7, "fused_blocks": 2, "build_s": 1.25},
        gpu="NVIDIA H200 (9.0)",
    )
    assert name_in_html is module.artifact.signature
    assert (
        repr(module) == "EngineModule(net, tensorrt_rtx 1.7.1, fp32, (<x>: float32[batch×3]) → (y: float32[batch×3]))"
    )
    shown = module._repr_html_()
    for text in (
        "<caption>net</caption>",
        "tensorrt_rtx 1.7.1",
        "fp32",
        "9 → 7",
        "1.2 s",
        "batch 1…4…16",
        "H200",
        "0.0 MB",
    ):
        assert text in shown
    assert "&lt;x&gt;: float32[batch×3]" in shown
    assert "<x>" not in shown
    assert module.report == {**module.artifact.report, "engine_bytes": 4}
    assert "table" in make_module()._repr_html_()


# Reference and verify -----------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor, *, scale: float = 2.0) -> dict[str, Any]:
        y = self.linear(x) * scale
        return {"y": y, "best": y.argmax(-1)}


def interpret(program: Program, flavour: str, settings: Settings) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Stands for the reference interpreter: the Program itself, executed by torch."""
    assert flavour == "tensorrt_rtx"
    names = [leaf.name for leaf in program.signature.tensor_inputs]
    return lambda named: dict(zip(program.output_names, program.run(*(named[name] for name in names)), strict=True))


@pytest.fixture(scope="module")
def scaled() -> tuple[Scaled, Program]:
    module = Scaled().eval()
    return module, capture(module, (torch.randn(4, 3),), {"scale": 2.0})


def test_reference_has_the_modules_signature(scaled: tuple[Scaled, Program], tmp_path: Path) -> None:
    original, program = scaled
    module = make_module(program.signature, program=program, interpret=interpret)
    x = torch.randn(4, 3, requires_grad=True)
    expected = original(x, scale=2.0)
    for each in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        result = each.reference(x, scale=2.0)
        torch.testing.assert_close(result, {key: value.detach() for key, value in expected.items()})
        assert not result["y"].requires_grad
    module.save(tmp_path / "net.t2t", program=True)
    loaded = EngineModule.load(tmp_path / "net.t2t", interpret=interpret)
    torch.testing.assert_close(loaded.reference(x, scale=2.0)["y"], expected["y"].detach())
    with pytest.raises(InputStructureError):
        module.reference(x, scale=3.0)
    with pytest.raises(InputShapeError):
        module.reference(x[:2], scale=2.0)


def test_reference_without_a_program() -> None:
    with pytest.raises(ProgramMissingError, match=r"\[T2T604\] net: the artifact does not carry its Program"):
        make_module(interpret=interpret).reference(torch.zeros(1, 3))
    with pytest.raises(ProgramMissingError, match="without the reference interpreter"):
        make_module().reference(torch.zeros(1, 3))


@no_gpu
def test_verify_against_float64(scaled: tuple[Scaled, Program]) -> None:
    original, program = scaled
    exact = copy.deepcopy(original).double()
    module = make_module(
        program.signature, program=program, interpret=interpret, truth=lambda x, scale: exact(x.double(), scale=scale)
    )
    found = module.verify(torch.randn(4, 3), scale=2.0)
    assert found.passed
    assert found.ran == "reference"
    assert [row.name for row in found.rows] == [leaf.name for leaf in program.signature.tensor_outputs]
    assert 0 < found.rows[0].max_rel_error <= 1e-6
    assert found.rows[1].max_rel_error == 0
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["passed"] is True
    text = str(found)
    assert "net: passed (reference interpreter, fp32)" in text
    assert all(row.name in text for row in found.rows)


@no_gpu
def test_verify_finds_a_wrong_network(scaled: tuple[Scaled, Program]) -> None:
    original, program = scaled
    module = make_module(
        program.signature,
        program=program,
        interpret=interpret,
        truth=lambda x, scale: original(x, scale=scale * 1.01),
    )
    found = module.verify(torch.randn(4, 3), scale=2.0)
    assert not found.passed
    assert found.rows[0].max_rel_error == pytest.approx(0.01 / 1.01, rel=1e-3)
    assert "failed" in str(found)


def test_verify_on_tensors_moves_them_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    module = running(make_module(truth=lambda x: 2 * x.double()), lambda x: 2 * x)
    found = module.verify(torch.randn(4, 3))
    assert (found.ran, found.passed) == ("engine", True)


def test_verify_compares_sizes_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    signature = make_signature([leaf("x", BATCH)], [SizeLeaf(BATCH), ConstantLeaf(3)], result=(0, 1), batch=(1, 2, 8))
    right = running(make_module(signature, truth=lambda x: (len(x), 3)), lambda x: ())
    assert right.verify(torch.zeros(5)).passed
    wrong = running(make_module(signature, truth=lambda x: (len(x) + 1, 3)), lambda x: ())
    assert not wrong.verify(torch.zeros(5)).passed


def test_errors_are_relative_to_the_scale_of_the_truth() -> None:
    row = compare("y", torch.tensor([100.0, 0.5]), torch.tensor([100.0, 0.0], dtype=torch.float64), 1e-2)
    assert (row.max_abs_error, row.max_rel_error, row.passed) == (0.5, 0.005, True)
    zeros = compare("y", torch.tensor([1e-6]), torch.zeros(1), 1e-4)
    assert zeros.max_rel_error == pytest.approx(1e-6)
    assert compare("y", torch.zeros(0, 3), torch.zeros(0, 3), 0.0).passed


def test_numbers_that_are_not_finite() -> None:
    inf, nan = math.inf, math.nan
    same = compare("y", torch.tensor([nan, inf, -inf, 1.0]), torch.tensor([nan, inf, -inf, 1.0]), 0.0)
    assert same.passed
    for result, truth in ((nan, 1.0), (1.0, nan), (inf, 1.0), (1.0, inf), (inf, -inf)):
        row = compare("y", torch.tensor([result, 1.0]), torch.tensor([truth, 1.0]), 1e9)
        assert row.max_rel_error == inf
        assert not row.passed


def test_integers_and_booleans_count_the_elements_that_differ() -> None:
    row = compare("i", torch.tensor([1, 2, 3, 9]), torch.tensor([1, 2, 3, 4]), 1e-1)
    assert (row.max_abs_error, row.max_rel_error, row.passed) == (5.0, 0.25, False)
    assert compare("b", torch.tensor([True, False]), torch.tensor([True, False]), 0.0).passed
    assert not compare("s", torch.zeros(2), torch.zeros(3), 1e9).passed


def test_tolerances() -> None:
    assert tolerance("tf32") == 5e-3
    assert tolerance("tf32", reference=True) == tolerance("fp32") == 1e-4
    assert tolerance("fp16", reference=True) == 2e-2
    assert effective_precision(None, [torch.float32, torch.int64]) == "tf32"
    assert effective_precision(None, [torch.float32, torch.float16]) == "fp16"
    assert effective_precision(None, [torch.float16, torch.bfloat16]) == "bf16"
    assert effective_precision("fp32", [torch.float16]) == "fp32"


# Which shapes keep a CUDA graph --------------------------------------------------------------------------------------


class CountingCache(GraphCache):
    """Captures nothing and counts."""

    def __init__(self, *, enabled: bool = True, host_inputs: frozenset[str] = frozenset()) -> None:
        engine: Any = types.SimpleNamespace(name="net", device=torch.device("cuda:0"), host_inputs=host_inputs)
        super().__init__(engine, torch.empty(0), enabled=enabled)
        self.captured: list[Any] = []

    def _capture(self, inputs: Any) -> Any:
        self.captured += inputs
        return object()


def shapes_of(count: int) -> tuple[tuple[int, ...], ...]:
    return ((count, 3),)


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = types.SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: idle)


def test_each_shape_is_captured_once() -> None:
    cache = CountingCache()
    for count in (1, 2, 1, 2, 1):
        assert cache.get(shapes_of(count), [count]) is not None
    assert cache.captured == [1, 2]


@pytest.mark.usefixtures("stream")
def test_the_least_recently_used_is_displaced() -> None:
    cache = CountingCache()
    for count in range(1, CAPACITY + 1):
        cache.get(shapes_of(count), [])
    cache.get(shapes_of(1), [])
    while cache.get(shapes_of(99), []) is None:
        pass
    assert len(cache) == CAPACITY
    assert cache.peek(shapes_of(1)) is not None
    assert cache.peek(shapes_of(2)) is None


@pytest.mark.usefixtures("stream")
def test_shapes_that_always_change_do_not_capture_always() -> None:
    cache = CountingCache()
    for _ in range(32):
        for count in range(1, 2 * CAPACITY + 1):
            cache.get(shapes_of(count), [count])
    calls = 32 * 2 * CAPACITY
    assert len(cache.captured) < calls / 10


def test_what_is_never_captured() -> None:
    for cache in (CountingCache(enabled=False), CountingCache(host_inputs=frozenset({"n"}))):
        assert cache.get(shapes_of(1), [1]) is None
        assert not cache.captured
    cache = CountingCache()
    assert cache.get(shapes_of(0), [0]) is None
    assert not cache.captured


def test_a_capture_in_place_that_fails_is_tried_once(caplog: pytest.LogCaptureFixture) -> None:
    class Placed(Graph):
        """Captures the run over its buffers, and none in place."""

        tries = 0

        def _capture(self, inputs: Any, *, warm: bool) -> Any:
            if warm:
                return types.SimpleNamespace(replay=lambda: self.outputs[0].copy_(self.inputs[0] + 1))
            self.tries += 1
            raise _NotCapturable("no memory")

    engine: Any = types.SimpleNamespace(name="net", device=torch.device("cpu"), output_dtypes=(torch.float32,))
    shapes: Any = types.SimpleNamespace(output_shapes=lambda inputs, given: given)
    memory = torch.zeros(128)
    x = next(memory[start:][:64] for start in range(64) if memory[start:].data_ptr() % ALIGNMENT == 0)
    graph = Placed(engine, shapes, [x])
    for number in range(40):
        x.fill_(number)
        assert graph.replay([x])[0].eq(number + 1).all()
    assert graph.tries == 1
    assert ["goes on copying" in record.message for record in caplog.records] == [True]


def test_what_comes_once_makes_nothing() -> None:
    kept: Recent[int, str] = Recent(2, first=3, later=5)
    assert [kept.missed(1) for _ in range(4)] == [False, False, True, True]
    kept.put(1, "one")
    assert (kept.get(1), kept.get(2), kept.full) == ("one", None, False)
    assert [kept.missed(2) for _ in range(3)] == [False, False, True]
    kept.put(2, "two")
    assert kept.full
    assert [kept.missed(3) for _ in range(5)] == [False, False, False, False, True]
    kept.get(1)
    kept.displace()
    kept.put(3, "three")
    assert list(kept) == ["one", "three"]
    # One that was displaced starts from nothing.
    assert not kept.missed(2)
