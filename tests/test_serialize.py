"""Programs written and read back: the same arithmetic, the same memory shared, and nothing executed on the way."""

from __future__ import annotations

import copy
import functools
import json
import math
import operator
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from torch2trt.errors import ArtifactError, ArtifactWriteError
from torch2trt.frontend.export import capture
from torch2trt.graph import serialize
from torch2trt.graph.program import Program, provenance
from torch2trt.graph.serialize import dump, load_program, restore, save_program
from torch2trt.graph.signature import Signature
from torch2trt.graph.storages import dump_tensors, restore_tensors
from torch2trt.passes.pipeline import run_passes
from torch2trt.settings import Settings
from torch2trt.sizes import evaluate


class Mixed(nn.Module):
    """Tied weights, an expanded buffer, sizes computed from the batch, several results of one operator."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.register_buffer("shift", torch.randn(1, 1).expand(8, 8))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.add(x, self.shift, alpha=0.5)
        low, high = x.split([1, 3], dim=1)
        tokens = self.second(self.first(high)).reshape(x.shape[0] * 3, -1)
        return tokens.masked_fill(tokens < 0, -math.inf), low.to(torch.float16)


@functools.cache
def make(*, passes: bool = True) -> Program:
    """The program that the tests read; those that change it copy it first."""
    model = Mixed().eval()
    batch = {0: Dim("batch", min=1, max=8)}
    program = capture(model, (torch.randn(2, 3, 8, 8),), dynamic_shapes={"x": batch})
    return run_passes(program, Settings()) if passes else program


def through_json(program: Program) -> Program:
    data, tensors = dump(program)
    return restore(json.loads(json.dumps(data, allow_nan=False)), tensors)


@pytest.mark.parametrize("passes", [False, True])
def test_same_program(passes: bool) -> None:
    program = make(passes=passes)
    again = through_json(program)
    for batch in (2, 5):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(again.run(x), program.run(x), rtol=0, atol=0)
        torch.testing.assert_close(again(x), program(x), rtol=0, atol=0)
    assert (again.name, again.captured_nodes) == (program.name, program.captured_nodes)
    assert again.signature == program.signature
    for old, new in zip(program.nodes, again.nodes, strict=True):
        assert (new.op, new.name) == (old.op, old.name)
        assert provenance(new) == provenance(old)
        assert again.is_size(new) == program.is_size(old)
        if old.op == "output":
            continue
        if program.is_size(old):
            assert again.size(new) == program.size(old)
        else:
            assert again.result(new) == program.result(old)
    # A second round changes nothing any more.
    assert dump(again)[0] == dump(program)[0]


def test_refit_of_a_loaded_program() -> None:
    program = make()
    again = through_json(program)
    new = {name: torch.rand_like(tensor) for name, tensor in program.weights.sources.items()}
    torch.testing.assert_close(again.weights.evaluate(new), program.weights.evaluate(new), rtol=0, atol=0)


def test_folder(tmp_path: Path) -> None:
    program = make()
    save_program(program, tmp_path)
    again = load_program(tmp_path)
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(again.run(x), program.run(x), rtol=0, atol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["program.json", "weights.safetensors"]


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, scale_factor=1.5, mode="nearest") + x.shape[2] % 3


def test_sizes_that_are_rounded() -> None:
    program = capture(Scaled().eval(), (torch.randn(1, 2, 8, 6),), dynamic_shapes={"x": {2: Dim("h", max=64)}})
    again = through_json(program)
    for height in (5, 8):
        x = torch.randn(1, 2, height, 6)
        torch.testing.assert_close(again.run(x), program.run(x), rtol=0, atol=0)
    shape = again.spec(again.output_node.args[0][0]).shape
    assert shape == program.spec(program.output_node.args[0][0]).shape
    assert evaluate(shape[2], {"h": 7}) == 10


def test_arguments_of_every_kind() -> None:
    graph = fx.Graph()
    node = graph.placeholder("x")
    values = [
        *(None, True, 0, -3, 1.0, 0.1, -0.0, math.inf, -math.inf, "text", node),
        *([1, [node, None]], (1, (node,)), slice(None, 2, None)),
        *(torch.float16, torch.float8_e4m3fn, torch.device("cpu"), torch.channels_last, torch.strided),
    ]
    for value in values:
        text = json.dumps(serialize.argument_to_json(value), allow_nan=False)
        again = serialize.argument_from_json(json.loads(text), {"x": node})
        assert again == value
        assert type(again) is type(value)
    assert math.isnan(serialize.argument_from_json(serialize.argument_to_json(math.nan), {}))
    with pytest.raises(ArtifactError, match="complex"):
        serialize.argument_to_json(1j)


def test_device_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert serialize._available("cuda:1") == torch.device("cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert serialize._available("cuda:1") == torch.device("cuda")
    assert serialize._available("cuda:0") == torch.device("cuda:0")
    assert serialize._available("cpu") == torch.device("cpu")


# Tensors ----------------------------------------------------------------------------------------------------


def test_shared_memory_is_written_once(tmp_path: Path) -> None:
    weight = torch.randn(64, 64)
    tensors = {
        "weight": nn.Parameter(weight),
        "tied": weight,
        "transposed": weight.t(),
        "row": weight[3],
        "expanded": torch.randn(1).expand(1000, 1000),
        "part of much": torch.randn(1_000_000)[500:510:3],
        "scalar": torch.tensor(2),
        "empty": torch.empty(0, 3),
        "bits": weight.view(torch.int32)[0],
    }
    views, flats = dump_tensors(tensors)
    safetensors.torch.save_file(flats, tmp_path / "flats")
    assert (tmp_path / "flats").stat().st_size < 20_000
    flats = safetensors.torch.load_file(tmp_path / "flats")
    again = restore_tensors(json.loads(json.dumps(views)), flats, torch.device)
    assert list(again) == list(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(again[name], tensor), name
        assert again[name].dtype == tensor.dtype
        assert again[name].stride() == tensor.stride()
        assert not again[name].requires_grad
    again["weight"][3, 0] = 7
    assert again["tied"][3, 0] == again["transposed"][0, 3] == again["row"][0] == 7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.int8])
def test_dtypes_of_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    # Odd lengths, so that the next tensor in the file is not aligned by chance.
    tensors = {"a": torch.arange(3).to(dtype), "b": torch.arange(5.0), "c": torch.arange(7).to(dtype)}
    views, flats = dump_tensors(tensors)
    safetensors.torch.save_file(flats, tmp_path / "flats")
    again = restore_tensors(views, safetensors.torch.load_file(tmp_path / "flats"), torch.device)
    assert all(torch.equal(again[name].float(), tensors[name].float()) for name in tensors)


@pytest.mark.gpu
def test_weights_on_the_gpu() -> None:
    program = capture(Mixed().eval().cuda(), (torch.randn(2, 3, 8, 8, device="cuda"),))
    again = through_json(run_passes(program, Settings()))
    x = torch.randn(2, 3, 8, 8, device="cuda")
    torch.testing.assert_close(again.run(x), program.run(x))


# What is refused --------------------------------------------------------------------------------------------


@torch.library.custom_op("elsewhere::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@twice.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def test_foreign_namespace_must_be_allowed() -> None:
    class Foreign(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.elsewhere.twice(x)

    program = capture(Foreign().eval(), (torch.randn(3),))
    with pytest.raises(ArtifactError, match="not allowed") as caught:
        dump(program)
    assert caught.value.subject == "elsewhere.twice.default"
    data, tensors = dump(program, namespaces=("elsewhere",))
    with pytest.raises(ArtifactError, match="not allowed"):
        restore(data, tensors)
    again = restore(data, tensors, namespaces=("elsewhere",))
    torch.testing.assert_close(again.run(torch.ones(3))[0], torch.full((3,), 2.0))


def test_torchvision_operators() -> None:
    torchvision = pytest.importorskip("torchvision")

    class Nms(nn.Module):
        def forward(self, boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return torchvision.ops.roi_align(boxes[None, None], [scores[:, :4]], 2)

    inputs = torch.rand(8, 8), torch.rand(3, 4).cumsum(1)
    program = capture(Nms().eval(), inputs)
    torch.testing.assert_close(through_json(program).run(*inputs), program.run(*inputs))


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "posix.system",
        "builtins.eval",
        "operator.methodcaller",
        "torch.load",
        "aten.from_file.default",
        "aten.no_such_operator.default",
        "aten.add.no_such_overload",
        "aten.__class__.__mro__",
        "aten.add",
        "aten",
        "",
    ],
)
def test_targets_that_are_no_operators(name: str) -> None:
    data, tensors = dump(make())
    call = next(item for item in data["graph"] if item["op"] == "call_function")
    call["target"] = name
    with pytest.raises(ArtifactError):
        restore(data, tensors)


def test_mutable_operator() -> None:
    data, tensors = dump(make())
    call = next(item for item in data["graph"] if item["op"] == "call_function")
    call["target"] = "aten.relu_.default"
    with pytest.raises(ArtifactError, match="functional"):
        restore(data, tensors)


INJECTION = "x=__import__('sys').modules.update(injected=1)"


@pytest.mark.parametrize("where", ["name", "target", "kwarg", "source"])
def test_names_cannot_smuggle_code(where: str) -> None:
    data, tensors = dump(make())
    placeholder, call = data["graph"][0], next(item for item in data["graph"] if item["op"] == "call_function")
    if where == "kwarg":
        call["kwargs"] = {INJECTION: 1}
    elif where == "source":
        call["source"] = f"a.py\n{INJECTION}\n:1 in f"
    else:
        placeholder[where] = INJECTION
    with pytest.raises(ArtifactError):
        restore(data, tensors)
    assert "injected" not in sys.modules


def test_signature_imports_nothing() -> None:
    class Nested(nn.Module):
        def forward(self, x: dict[str, torch.Tensor]) -> torch.Tensor:
            return x["a"] + 1

    program = capture(Nested().eval(), (defaultdict(list, a=torch.randn(2)),))
    data, tensors = dump(program)
    assert restore(data, tensors).signature == program.signature

    evil = copy.deepcopy(data)
    evil["signature"]["in_spec"] = json.dumps(
        change(json.loads(data["signature"]["in_spec"]), "default_factory_module", "this")
    )
    assert evil != data
    with pytest.raises(ArtifactError, match="code to call"):
        restore(evil, tensors)
    enum = json.dumps([{"__enum__": True, "fqn": "this:c", "name": "d"}])
    evil["signature"]["in_spec"] = json.dumps(
        [1, {"type": "builtins.dict", "context": enum, "children_spec": [json.loads(LEAF)[1]]}]
    )
    with pytest.raises(ArtifactError, match="not imported"):
        restore(evil, tensors)
    assert "this" not in sys.modules


LEAF = pytree.treespec_dumps(pytree.tree_flatten(0)[1])


def change(value: Any, key: str, new: Any) -> Any:
    """The JSON value with what every such key holds replaced."""
    if isinstance(value, list):
        return [change(item, key, new) for item in value]
    if isinstance(value, dict):
        return {name: new if name == key else change(item, key, new) for name, item in value.items()}
    return value


def remove(path: str) -> Any:
    def damage(data: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        *outer, last = path.split(".")
        for key in outer:
            data = data[key]
        del data[last]

    return damage


def set_first_view(**changes: Any) -> Any:
    def damage(data: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        next(iter(data["weights"]["sources"].values())).update(changes)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        *(remove(path) for path in ("name", "signature", "graph", "weights", "weights.sources", "format")),
        lambda data, tensors: data.update(format=99),
        lambda data, tensors: data.update(graph=None),
        lambda data, tensors: data["graph"].pop(),
        lambda data, tensors: data["graph"].insert(0, data["graph"][-1]),
        lambda data, tensors: data["graph"].append(data["graph"][0]),
        lambda data, tensors: data["weights"]["inputs"].popitem(),
        lambda data, tensors: data["weights"]["outputs"].pop(),
        lambda data, tensors: data["graph"][0]["spec"].update(shape=["9**"]),
        lambda data, tensors: data["graph"][0]["spec"].update(dtype="load"),
        lambda data, tensors: tensors.popitem(),
        set_first_view(shape=[1000, 1000]),
        set_first_view(offset=-1),
        set_first_view(stride=[-1, 1, 1, 1]),
        set_first_view(storage="other"),
        set_first_view(device="moon"),
    ],
)
def test_damage(damage: Any) -> None:
    data, tensors = dump(make())
    damage(data, tensors)
    with pytest.raises(ArtifactError):
        restore(data, tensors)


@pytest.mark.parametrize("name", ["program.json", "weights.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_damaged_files(tmp_path: Path, name: str, content: bytes | None) -> None:
    save_program(make(), tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError):
        load_program(tmp_path)


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ArtifactWriteError):
        save_program(make(), tmp_path / "missing")


def test_other_kinds_of_node() -> None:
    program = through_json(make())
    with program.graph.graph.inserting_before(program.output_node):
        program.graph.graph.call_method("numpy", (program.input_placeholders[0],))
    with pytest.raises(ArtifactError, match="only operator calls"):
        dump(program)


def test_python_functions_are_the_ones_that_sizes_need() -> None:
    assert serialize._FUNCTIONS["operator.floordiv"] is operator.floordiv
    assert serialize._FUNCTIONS["torch.sym_max"] is torch.sym_max
    assert len(set(serialize._FUNCTIONS.values())) == len(serialize._FUNCTIONS)


def test_signature_alone() -> None:
    signature = make().signature
    assert Signature.from_json(json.loads(json.dumps(signature.to_json()))) == signature
