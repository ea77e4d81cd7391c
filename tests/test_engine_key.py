"""The key of an engine: what it depends on, and what it does not."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from torch2trt import api
from torch2trt.converters import registry
from torch2trt.engine import digests, sources
from torch2trt.engine import key as keys
from torch2trt.engine.key import Key, NoKeyError, key_of_program
from torch2trt.partition.engines import key_of
from torch2trt.settings import Settings
from torch2trt.trt import flavour
from torch2trt.trt.flavour import Flavour

FLAVOUR = flavour.load()


class Net(nn.Module):
    """A convolution whose batch norm is folded, and a softmax."""

    def __init__(self, dim: int = 1, scale: Any = 2.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.dim, self.scale = dim, scale

    def forward(self, image: Tensor) -> Tensor:
        return torch.softmax(self.norm(self.conv(image * self.scale)), self.dim)


class Renamed(nn.Module):
    """The same, by other names."""

    def __init__(self) -> None:
        super().__init__()
        own = Net()
        self.inner = nn.Sequential(own.conv, own.norm)

    def forward(self, image: Tensor) -> Tensor:
        doubled = image * 2.0
        return self.inner(doubled).softmax(1)


class OtherInput(Net):
    def forward(self, picture: Tensor) -> Tensor:
        return super().forward(picture)


X = torch.randn(2, 3, 8, 8)


def key(
    module: nn.Module, args: tuple[Any, ...] = (X,), *, flavour: Flavour = FLAVOUR, settings: Any = None, **how: Any
) -> Key:
    chosen = Settings(**(settings or {}))
    return key_of(api.optimize(api.capture(module.eval(), args, **how), chosen), flavour, chosen)


def changed(one: Key, other: Key) -> set[str]:
    """The sections in which two keys differ; that their digests differ is implied."""
    found = {name for name in one.sections if one.sections[name].digest != other.sections[name].digest}
    assert bool(found) == (one.digest != other.digest)
    return found


PLAIN = key(Net())


# What makes no difference ---------------------------------------------------------------------------------------------


def test_names_of_modules_and_nodes() -> None:
    assert changed(PLAIN, key(Renamed(), name="Other")) == set()
    program = api.optimize(api.capture(Net().eval(), (X,)), Settings())
    for graph in (program.graph.graph, program.weights.graph.graph):
        for index, node in enumerate(graph.nodes):
            if node.op == "call_function":
                node._rename(f"renamed_{index}")
    assert changed(PLAIN, key_of_program(program, FLAVOUR, Settings())) == set()


def test_where_weights_are_in_memory() -> None:
    module = Net()
    module.conv.weight = nn.Parameter(module.conv.weight.detach().to(memory_format=torch.channels_last))
    assert changed(PLAIN, key(module)) == set()


def test_values_of_the_example() -> None:
    assert changed(PLAIN, key(Net(), (X + 1,))) == set()


def test_defaults_that_are_spelled_out() -> None:
    class Spelled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.aten.gelu.default(x, approximate="none")

    class Short(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.aten.gelu.default(x)

    assert changed(key(Spelled()), key(Short())) == set()


OTHER_SETTINGS: dict[str, tuple[Any, set[str]]] = {
    "precision": ("fp32", {"settings"}),
    "keep_io_dtypes": (False, set()),
    "keep_io_layouts": (False, set()),
    "flavour": (FLAVOUR.name, set()),
    "workspace": (1 << 30, {"settings"}),
    "optimization_level": (2, {"settings"}),
    "max_aux_streams": (0, {"settings"}),
    "profiling_verbosity": ("detailed", {"settings"}),
    "timing_cache": (False, set()),
    "engine_cache": (True, set()),
    "engine_cache_bytes": (1, set()),
    "cache_dir": (Path("elsewhere"), set()),
    "progress": ("none", set()),
    "build_in_subprocess": (True, set()),
    "build_timeout": (9.0, set()),
    "fallback": (False, set()),
    "run_in_torch": (("aten.nonzero",), set()),
    "min_segment": (1, set()),
    "skip_passes": (("fuse_conv_blocks",), set()),
    "extra_passes": (("merge_sibling_linears",), set()),
    "cuda_graphs": (False, set()),
    "max_concurrent_runs": (1, set()),
}


def test_settings() -> None:
    assert list(OTHER_SETTINGS) == [item.name for item in dataclasses.fields(Settings)]
    program = api.optimize(api.capture(Net().eval(), (X,)), Settings())
    for name, (value, sections) in OTHER_SETTINGS.items():
        found = key_of_program(program, FLAVOUR, Settings(**{name: value}))
        assert changed(PLAIN, found) == sections, name


def test_passes_are_seen_in_the_graph() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    fused = key(module)
    assert changed(fused, key(module, settings={"skip_passes": ("fuse_conv_blocks",)})) == {"graph"}
    assert changed(fused, key(module, settings={"skip_passes": ("fuse_linear_blocks",)})) == set()
    assert changed(fused, key(module, settings={"extra_passes": ("merge_sibling_linears",)})) == set()


# What makes one -------------------------------------------------------------------------------------------------------


def test_arguments() -> None:
    assert changed(PLAIN, key(Net(dim=2))) == {"graph"}
    assert changed(PLAIN, key(Net(scale=3.0))) == {"graph"}
    whole = torch.ones(2, 3, 8, 8, dtype=torch.int64)
    assert changed(key(Whole(2), (whole,)), key(Whole(2.0), (whole,))) == {"graph"}


class Whole(nn.Module):
    def __init__(self, number: Any) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        return x + x * self.number


def test_one_element_of_a_weight() -> None:
    module = Net()
    with torch.no_grad():
        module.conv.weight[3, 2, 1, 0] += 1e-6
    found = key(module)
    assert changed(PLAIN, found) == {"weights"}
    before, after = PLAIN.sections["weights"], found.sections["weights"]
    differing = [name for name, old, new in zip(after.names, before.lines, after.lines, strict=True) if old != new]
    assert differing == ["conv.weight"]


def test_which_weight_goes_where() -> None:
    class Two(nn.Module):
        def __init__(self, swapped: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            pair = nn.Linear(8, 8), nn.Linear(8, 8)
            self.first, self.second = reversed(pair) if swapped else pair

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu())

    x = torch.randn(2, 8)
    assert changed(key(Two(False), (x,)), key(Two(True), (x,))) == {"weights"}


def test_constants_inside_forward() -> None:
    class Constant(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: Tensor) -> Tensor:
            return (x + torch.tensor([self.value, 1.0] * 4)).relu()

    assert changed(key(Constant(1.0)), key(Constant(2.0))) == {"weights"}


def test_edges() -> None:
    class Minus(nn.Module):
        def __init__(self, swapped: bool) -> None:
            super().__init__()
            self.swapped = swapped

        def forward(self, x: Tensor) -> Tensor:
            a, b = x.exp(), x.sin()
            return b - a if self.swapped else a - b

    assert changed(key(Minus(False)), key(Minus(True))) == {"graph"}


def test_shapes_dtypes_and_names_of_inputs() -> None:
    assert changed(PLAIN, key(Net(), (torch.randn(3, 3, 8, 8),))) == {"graph", "inputs"}
    assert changed(PLAIN, key(OtherInput())) == {"inputs"}
    assert {"graph", "inputs", "weights"} <= changed(PLAIN, key(Net().half(), (X.half(),)))
    assert "inputs" not in changed(PLAIN, key(Net(), settings={"precision": "fp16"}))


def test_profiles() -> None:
    def dynamic(most: int = 8, batch: int = 2, **how: Any) -> Key:
        return key(Net(), (X[:batch],), dynamic_shapes=({0: Dim("batch", min=1, max=most)},), **how)

    wide = dynamic()
    assert {"inputs", "profiles"} <= changed(PLAIN, wide)
    assert changed(wide, dynamic(most=9)) == {"profiles"}
    assert changed(wide, dynamic(batch=1)) == {"profiles"}
    one, two = ([{"batch": 1}], [{"batch": 1}, {"batch": (2, 4, 8)}])
    assert changed(dynamic(profiles=one), dynamic(profiles=two)) == {"profiles"}
    assert changed(dynamic(profiles=two), dynamic(profiles=two[::-1])) == {"profiles"}


def test_flavour_version_and_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = dataclasses.replace(FLAVOUR, version=(*FLAVOUR.version[:-1], FLAVOUR.version[-1] + 1))
    assert changed(PLAIN, key(Net(), flavour=newer)) == {"flavour"}

    def on(name: str, processors: int) -> Key:
        found = types.SimpleNamespace(
            name=name, major=9, minor=0, multi_processor_count=processors, total_memory=141 << 30
        )
        program = api.optimize(api.capture(Net().eval(), (X,)), Settings())
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            patch.setattr(torch.cuda, "current_device", lambda: 0)
            patch.setattr(torch.cuda, "get_device_properties", lambda index: found)
            return key_of_program(program, FLAVOUR, Settings())

    assert changed(on("NVIDIA H200", 132), on("NVIDIA H100", 132)) == {"gpu"}
    assert changed(on("NVIDIA H200", 132), on("NVIDIA H200", 66)) == {"gpu"}


# Weights that torch computes ------------------------------------------------------------------------------------------


@torch.library.custom_op("t2t_key::scaled", mutates_args=())
def scaled(x: Tensor) -> Tensor:
    return x * SCALE[0]


@scaled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


SCALE = [2.0]


def test_what_an_operator_of_ones_own_makes_of_weights() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return (x + torch.ops.t2t_key.scaled(self.weight)).relu()

    try:
        before = key(Own())
        assert "t2t_key.scaled.default(x=s0)" in "".join(before.sections["weights graph"].lines)
        assert changed(before, key(Own())) == set()
        SCALE[0] = 3.0
        assert changed(before, key(Own())) == {"weights"}
    finally:
        SCALE[0] = 2.0


# Code -----------------------------------------------------------------------------------------------------------------

CONVERTER = "def convert(net, x):\n    return net.activation('RELU', x)\n"


class CallsOwn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.t2t_key.scaled(x)


@pytest.fixture
def plug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make a function of a new package, or of a module in none, the converter of an operator."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(helper: str, package: bool = True) -> None:
        registry._TABLE.pop(torch.ops.t2t_key.scaled.default, None)
        sources.code_of_package.cache_clear()
        files = {"__init__.py": "", "rules.py": CONVERTER, "helper.py": helper}
        where = tmp_path / "t2t_rules" if package else tmp_path
        where.mkdir(exist_ok=True)
        for name, text in files.items() if package else [("t2t_rule.py", CONVERTER)]:
            (where / name).write_text(text)
            os.utime(where / name, (1e9, 1e9))
        module = types.ModuleType("t2t_rules.rules" if package else "t2t_rule")
        exec(CONVERTER, module.__dict__)
        found = types.ModuleType("t2t_rules")
        found.__path__ = [str(where)]
        monkeypatch.setitem(sys.modules, "t2t_rules", found)
        registry.converter(torch.ops.t2t_key.scaled.default)(module.convert)

    yield make
    registry._TABLE.pop(torch.ops.t2t_key.scaled.default, None)
    sources.code_of_package.cache_clear()


def test_converters_of_other_packages(plug: Callable[..., None]) -> None:
    plug("number = 1")
    before = key(CallsOwn())
    assert "t2t_rules" in "".join(before.sections["code"].lines)
    plug("number = 1")
    assert changed(before, key(CallsOwn())) == set()
    plug("number = 2")
    assert changed(before, key(CallsOwn())) == {"code"}


def test_a_converter_in_no_package_has_no_key(plug: Callable[..., None]) -> None:
    plug("", package=False)
    with pytest.raises(NoKeyError, match="t2t_rule is in no package"):
        key(CallsOwn())


def test_code_that_changed_after_the_start_has_no_key(plug: Callable[..., None], tmp_path: Path) -> None:
    plug("number = 1")
    os.utime(tmp_path / "t2t_rules" / "helper.py")
    sources.code_of_package.cache_clear()
    with pytest.raises(NoKeyError, match=r"helper\.py has changed"):
        key(CallsOwn())


def test_own_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = tmp_path / "torch2trt"
    for name in ("converters/a.py", "engine/b.py", "graph/c.py", "trt/d.py", "sizes.py", "passes/e.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("before")
        os.utime(root / name, (1e9, 1e9))
    monkeypatch.setattr(sources, "_ROOT", root)
    own = sources.own_code.__wrapped__
    found = [own()]
    for name in ("passes/e.py", "trt/d.py", "sizes.py"):
        (root / name).write_text("after")
        os.utime(root / name, (1e9, 1e9))
        found.append(own())
    # Passes leave their mark in the graph.
    assert found[0] == found[1]
    assert len(set(found)) == 3


# Digests --------------------------------------------------------------------------------------------------------------


def test_a_key_survives_json() -> None:
    again = Key.from_json(json.loads(json.dumps(PLAIN.to_json())))
    assert again == PLAIN
    assert again.digest == PLAIN.digest


def test_digests_of_tensors_are_those_of_their_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_PIECE", 64)
    base = torch.randn(7, 5, 6)
    tensors = {
        "plain": base,
        "copy": base.clone(),
        "permuted": base.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "part of another": torch.cat([base, base])[7:],
        "negated twice": torch._neg_view(-base),
    }
    found = digests.of_tensors(tensors)
    assert len(set(found.values())) == 1
    for index in range(0, base.numel(), 13):
        other = base.clone()
        other.view(-1)[index] += 1
        assert digests.of_tensors({"": other})[""] != found["plain"]


def test_digests_of_tensors_tell_forms_apart() -> None:
    pair = torch.tensor([1.0, 2.0])
    tensors = [
        pair,
        pair.view(1, 2),
        pair.view(torch.int32),
        pair.expand(2, 2),
        pair.unsqueeze(1).expand(2, 2),
        pair[:1].expand(2),
        torch.complex(pair, pair),
        torch.complex(pair, pair).conj(),
        torch.empty(0),
        torch.empty(0, 3),
        torch.tensor(1.0),
        torch.tensor([True, False]),
        pair.bfloat16(),
    ]
    found = digests.of_tensors({str(index): tensor for index, tensor in enumerate(tensors)})
    assert len(set(found.values())) == len(tensors)


def test_memory_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    own = digests._parts
    monkeypatch.setattr(digests, "_parts", lambda tensor: reads.append(1) or own(tensor))
    weight = torch.randn(10)
    digests.of_tensors({"a": weight, "b": weight.view(10), "tied": weight, "other": weight + 1})
    assert len(reads) == 2


def test_digests_of_files_are_those_of_their_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(digests, "_PIECE", 10)
    for size in (0, 1, 10, 25):
        data = os.urandom(size)
        (tmp_path / "file").write_bytes(data)
        assert digests.of_file(tmp_path / "file") == digests.of_bytes(data)
    assert digests.of_bytes(b"a" * 20) != digests.of_bytes(b"a" * 30)


def test_an_argument_without_spelling_has_no_key() -> None:
    with pytest.raises(NoKeyError, match="object"):
        keys._value(object(), str)
