"""Attention that torch's kernels compute, as plugins, where TensorRT has plugins."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
from tests.attending import WIDTH, Attention
from tests.harness import check_module, compare, truth
from tests.passing import only, targets
from tests.plugging import Added, added, enterprise, optimized
from torch2trt import api
from torch2trt.converters.lower import lower
from torch2trt.graph.flops import flops
from torch2trt.graph.plugged_ops import FLASH_ATTENTION, PACKED_ATTENTION
from torch2trt.graph.program import Program
from torch2trt.passes import plug_attention
from torch2trt.passes.pipeline import plugging_by_default
from torch2trt.settings import Settings
from torch2trt.trt import flavour as flavours
from torch2trt.trt.flavour import Flavour

__all__ = ["added"]  # fixtures, which tests name

aten = torch.ops.aten
HALVES: dict[str, Any] = {"precision": "fp16"}
TOKENS = 16
TOLERANCE = 300.0  # of results in float32 that were computed in halves


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few keys are enough."""
    monkeypatch.setattr(plug_attention, "_LEAST_KEYS", 8)


X = torch.randn(2, TOKENS, 64, generator=torch.Generator().manual_seed(1))
CAUSAL = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()

MODULES: dict[str, tuple[nn.Module, bool]] = {
    "three projections": (Attention(), False),
    "one projection": (Attention(joint=True), False),
    "without biases": (Attention(bias=False), False),
    "causal": (Attention("causal"), True),
    "causal by a mask": (Attention(CAUSAL, joint=True), True),
    "turned": (Attention("causal", turned=True), True),
    "scaled": (Attention(scaled=True), False),
    "grouped": (Attention("causal", heads=8, groups=2), True),
    "grouped from one": (Attention("causal", heads=4, groups=1, joint=True), True),
    "grouped and turned": (Attention(heads=8, groups=2, turned=True), False),
}

KEPT: dict[str, nn.Module] = {
    "another mask": Attention(CAUSAL.T.contiguous()),
    "a mask that is added": Attention(torch.randn(TOKENS, TOKENS)),
}


@pytest.mark.parametrize("name", MODULES)
def test_it_is_a_plugin(name: str, added: Added) -> None:
    module, causal = MODULES[name]
    program = optimized(module.eval(), X, **HALVES)
    turned = "turned" in name
    assert targets(program).count(PACKED_ATTENTION) == 1
    # Nothing is moved behind it, nor before it where it is not computed with there.
    moves = sum(targets(program).count(move) for move in (aten.permute.default, aten.transpose.int, aten.slice.Tensor))
    assert moves == (6 if turned else 0)
    assert targets(program).count(aten.linear.default) == 2
    lower(program, enterprise())
    ((inputs, plugin),) = added
    assert plugin.call.target is PACKED_ATTENTION
    assert len(inputs) == (3 if turned else 1)
    assert [tuple(each.shape) for each in inputs] == [tuple(spec.shape) for spec in plugin.call.inputs]
    # Queries see what they should: values that name their places come back as the means of those that are seen.
    places = torch.arange(TOKENS, dtype=torch.float64)
    given = [
        places.reshape(1, -1, *(1 for _ in spec.shape[2:])).expand(tuple(spec.shape)).clone()
        for spec in plugin.call.inputs
    ]
    given[0][..., : WIDTH if turned else module.sizes[0]] = 0
    (made,) = plugin.call.run(given)
    seen = torch.arange(TOKENS) / 2 if causal else torch.full((TOKENS,), (TOKENS - 1) / 2)
    assert torch.allclose(made, seen.double().reshape(1, -1, 1, 1).expand(made.shape))


@pytest.mark.parametrize("name", [*MODULES, *KEPT])
def test_the_graph_with_it_is_right(name: str) -> None:
    module = {**KEPT, **{key: module for key, (module, _) in MODULES.items()}}[name].eval()
    compare(optimized(module, X, **HALVES)(X), truth(module, (X,)), TOLERANCE)


@pytest.mark.parametrize("name", ["one projection", "turned"])
def test_where_there_are_no_plugins_it_changes_nothing(name: str) -> None:
    module, settings = MODULES[name][0].eval(), Settings.make(optimization_level=0, progress="none", **HALVES)
    program = api.optimize(api.capture(module, (X,)), settings, flavours.load(flavours.TENSORRT_RTX))
    assert not {PACKED_ATTENTION, FLASH_ATTENTION} & {*targets(program)}
    check_module(module, (X,), settings, tolerance=TOLERANCE)


def test_a_bare_plan_calls_nothing_of_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Settings] = []
    optimize = api.optimize

    def noted(program: Program, settings: Settings, flavour: Flavour | None = None) -> Program:
        asked.append(settings)
        return optimize(program, settings, flavour)

    monkeypatch.setattr(api, "optimize", noted)
    module = MODULES["one projection"][0].eval()
    chosen = {"skip_passes": ["simplify_masks"], "optimization_level": 0, "progress": "none", **HALVES}
    torch2trt.export(module, (X,), tmp_path / "plan", settings=chosen)
    assert asked[0].skip_passes == ("simplify_masks", *plugging_by_default())
    program = api.optimize(api.capture(module, (X,)), asked[0], enterprise())
    assert not {PACKED_ATTENTION, FLASH_ATTENTION} & {*targets(program)}


@pytest.mark.parametrize("name", KEPT)
def test_other_masks_are_tensorrts(name: str, added: Added) -> None:
    lower(optimized(KEPT[name].eval(), X, **HALVES), enterprise())
    assert not added


def test_what_it_does_not_pay_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def plugged(module: nn.Module, **settings: Any) -> bool:
        found = targets(optimized(module.eval(), X, **settings))
        return bool({PACKED_ATTENTION, FLASH_ATTENTION} & {*found})

    assert plugged(Attention(), **HALVES)
    assert not plugged(Attention(), **HALVES, skip_passes=["plug_attention"])
    assert not plugged(Attention(), **HALVES | {"precision": "fp32"})
    assert not plugged(Attention(), **HALVES, run_in_torch=["aten.scaled_dot_product_attention"])
    monkeypatch.setattr(plug_attention, "_WIDEST_HEAD", WIDTH - 1)
    assert not plugged(Attention(), **HALVES)
    monkeypatch.undo()
    assert not plugged(Attention(), **HALVES)  # of fewer keys than pay


def test_dynamic_lengths_count_as_they_usually_are(added: Added, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = ({1: Dim("length", min=2, max=64)},)
    for name in ("one projection", "turned"):
        module = MODULES[name][0].eval()
        monkeypatch.setattr(plug_attention, "_LEAST_KEYS", TOKENS + 1)
        lower(optimized(module, X, shapes=shapes, **HALVES), enterprise())
        assert not added
        monkeypatch.setattr(plug_attention, "_LEAST_KEYS", TOKENS)
        lower(optimized(module, X, shapes=shapes, **HALVES), enterprise())
        _, plugin = added.pop()
        given = [(2, 5, *spec.shape[2:]) for spec in plugin.call.inputs]
        assert plugin.call.output_shapes(given, int, lambda *_: pytest.fail("no arithmetic")) == [[2, 5, 4, WIDTH]]
        program = optimized(module, X, shapes=shapes, **HALVES)
        compare(program(X[:, :5]), truth(module, (X[:, :5],)), TOLERANCE)


class Twice(nn.Module):
    """Attention, and attention to its result that has a projection in common with it."""

    def __init__(self, shared: int) -> None:
        super().__init__()
        self.first, self.second = Attention(), Attention()
        self.second.projections[shared] = self.first.projections[shared]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("shared", range(3))
def test_weights_that_serve_elsewhere_stay_apart(shared: int) -> None:
    module = Twice(shared).eval()
    program = optimized(module, X, **HALVES)
    assert targets(program).count(FLASH_ATTENTION) == 2
    assert PACKED_ATTENTION not in targets(program)
    compare(program(X), truth(module, (X,)), TOLERANCE)


def test_what_is_queries_and_keys_alike_is_projected_once() -> None:
    module = Attention()
    module.projections[1] = module.projections[0]
    program = optimized(module.eval(), X, **HALVES)
    assert targets(program).count(aten.linear.default) == 2
    assert only(program, PACKED_ATTENTION).args[1:3] == ([0, 0, 0], [0, 0, 64])
    compare(program(X), truth(module, (X,)), TOLERANCE)


class Beside(nn.Module):
    """Attention from one projection that makes other channels too.

    Args:
        before, after: how many, on both sides of queries, keys and values.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.sizes = [before, 64, 64, 64, after]
        self.project = nn.Linear(64, sum(self.sizes))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first, *parts, last = self.project(x).split(self.sizes, -1)
        made = F.scaled_dot_product_attention(*(part.unflatten(-1, (-1, WIDTH)).transpose(1, 2) for part in parts))
        return made.transpose(1, 2).flatten(2), first.sin(), last.cos()


@pytest.mark.parametrize(("before", "after", "reads"), [(8, 16, True), (4, 4, False), (8, 1, False), (4, 1, False)])
def test_kernels_read_aligned_rows(before: int, after: int, reads: bool) -> None:
    module = Beside(before, after).eval()
    program = optimized(module, X, **HALVES)
    assert targets(program).count(PACKED_ATTENTION) == reads
    assert targets(program).count(FLASH_ATTENTION) == (not reads)
    compare(program(X), truth(module, (X,)), TOLERANCE)


class Across(Attention):
    """Attention of one tensor to another; keys and values are projected first, and values are returned."""

    def forward(self, x: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        heads = [
            layer(each).unflatten(-1, (-1, WIDTH)).transpose(1, 2)
            for layer, each in zip(reversed(self.projections), (text, text, x), strict=True)
        ]
        made = F.scaled_dot_product_attention(*reversed(heads))
        return self.out(made.transpose(1, 2).flatten(2)), heads[0].sin()


def test_keys_and_values_of_another_tensor_are_one_projection(added: Added) -> None:
    module, text = Across().eval(), X.flip(0)[:, 4:]
    program = optimized(module, X, text, **HALVES)
    assert targets(program).count(aten.linear.default) == 3
    (queries, both), *where = only(program, PACKED_ATTENTION).args[:3]
    assert where == [[0, 1, 1], [0, 0, 64]]
    assert program.spec(queries).shape == (2, TOKENS, 4, WIDTH)
    assert program.spec(both).shape == (2, TOKENS - 4, 128)
    compare(program(X, text), truth(module, (X, text)), TOLERANCE)
    lower(program, enterprise())
    assert len(added) == 1


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_operators_are_attention(grouped: bool, causal: bool) -> None:
    query, key, value = (torch.randn(2, 9, heads, 16) for heads in (4, 2 if grouped else 4, 2 if grouped else 4))
    repeated = (each.repeat_interleave(4 // each.shape[2], 2).transpose(1, 2) for each in (query, key, value))
    wanted = F.scaled_dot_product_attention(*repeated, is_causal=causal, scale=0.3).transpose(1, 2)
    packed = torch.cat([each.flatten(2) for each in (value, query, key)], -1)
    groups, size = key.shape[2], 16
    sizes = 4, groups, size, size
    starts = [groups * size, (groups + 4) * size, 0]
    for found in (
        FLASH_ATTENTION(query, key, value, causal, 0.3),
        PACKED_ATTENTION([packed], [0, 0, 0], starts, *sizes, causal, 0.3),
        PACKED_ATTENTION([key, torch.cat([value, query], 2)], [1, 0, 1], [groups * size, 0, 0], *sizes, causal, 0.3),
    ):
        assert torch.allclose(found, wanted, atol=1e-6)
        assert found.is_contiguous()


@pytest.mark.parametrize("name", ["one projection", "turned"])
def test_its_operations_are_counted(name: str) -> None:
    module = MODULES[name][0].eval()
    plain, plugged = (
        sum(flops(optimized(module, X, **each), {}).values())
        for each in ({"skip_passes": ["plug_attention"], **HALVES}, HALVES)
    )
    assert plain == plugged


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODULES)
def test_engines_with_it_are_right(name: str) -> None:
    # A copy: the tests share the modules.
    module, x = copy.deepcopy(MODULES[name][0]).eval().cuda(), X.cuda()
    compiled = torch2trt.compile(module, (x,), optimization_level=0, progress="none", **HALVES)
    assert len(compiled.artifact.calls) == (compiled.artifact.flavour == flavours.TENSORRT)
    for _ in range(3):
        compare(compiled(x), truth(module, (x,)), TOLERANCE)
