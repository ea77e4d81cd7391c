"""Capture: what becomes of a module's calling convention, weights and operators."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import ExportedProgram

from tests.capturing import BATCH, Function, Pair, X, Y, captured, kinds, same, targets
from torch2trt import api
from torch2trt.errors import CaptureError, DataDependentError, RandomOpError, TrainingModeError
from torch2trt.frontend import decompositions
from torch2trt.frontend.export import capture
from torch2trt.graph.signature import ConstantLeaf, InputLeaf, SizeLeaf, TensorLeaf
from torch2trt.settings import Settings

aten = torch.ops.aten


# Arguments and results ------------------------------------------------------------------------------------------------


def nested(pair: Pair, items: list[Any], table: dict[str, Any], none: Any = None, flag: bool = True) -> Any:
    total = pair.first + items[0] * items[1][0]
    return {"pair": Pair(total, pair.second), "rest": [table["y"] - 1, None, 3], "flag": flag, "text": "text"}


def test_nested_arguments_and_results() -> None:
    module = Function(nested)
    program = captured(module, Pair(X, Y), [X, (Y,)], {"y": Y, "x": X}, flag=False)
    assert kinds(program) == [TensorLeaf, InputLeaf, TensorLeaf, *[ConstantLeaf] * 4]
    same(program, module, Pair(Y, X), [Y, (X,)], {"y": X, "x": Y}, flag=False)


def test_a_missing_field_of_a_dataclass() -> None:
    program = captured(Function(nested), Pair(X), [X, (Y,)], {"y": Y, "x": X}, None)
    assert [type(leaf) for leaf in program.signature.inputs] == [TensorLeaf] * 5 + [ConstantLeaf]


def test_python_scalars_are_constants() -> None:
    def scaled(x: torch.Tensor, count: int, factor: float, flag: bool, mode: str) -> torch.Tensor:
        return x * count + factor if flag and mode == "plus" else x

    program = captured(Function(scaled), X, 3, 0.5, True, "plus")
    assert targets(program) == [aten.mul.Tensor, aten.add.Tensor]
    assert len(program.input_placeholders) == 1


def test_keyword_only_and_variable_arguments() -> None:
    def summed(*tensors: torch.Tensor, scale: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
        return (tensors[0] - tensors[1]) * scale + more["shift"]

    program = captured(Function(summed), X, Y, scale=X, shift=Y)
    assert len(program.input_placeholders) == 4
    same(program, Function(summed), Y, X, scale=Y, shift=X)


def test_results_that_are_inputs_duplicates_constants_and_sizes() -> None:
    def several(x: torch.Tensor) -> Any:
        twice = x * 2
        return x, twice, (twice, x), x.shape[0], x.shape[1], 7, x.shape[0] * 3

    module = Function(several)
    program = captured(module, X, dynamic_shapes={"x": {0: BATCH}})
    assert kinds(program) == [
        InputLeaf, TensorLeaf, TensorLeaf, InputLeaf, SizeLeaf, ConstantLeaf, ConstantLeaf, SizeLeaf
    ]  # fmt: skip
    assert program.output_names == ["output0"]
    same(program, module, torch.ones(5, 3))


def test_a_module_that_only_hands_its_input_on_copies_it() -> None:
    program = captured(nn.Identity().eval(), X)
    assert kinds(program) == [TensorLeaf], "an engine has something to compute"
    assert program.calls == []
    assert kinds(captured(Function(lambda x: (x, x + 1)), X)) == [InputLeaf, TensorLeaf]


def test_views_of_inputs_are_results_of_their_own() -> None:
    def views(x: torch.Tensor) -> Any:
        return x.view(-1), x[0], x.t(), x.detach()

    assert kinds(captured(Function(views), X)) == [TensorLeaf] * 4


def test_constants_made_inside() -> None:
    def made(x: torch.Tensor) -> Any:
        return x + torch.tensor([1.0, 2.0, 3.0]), torch.arange(3), torch.ones(2, 2)

    assert kinds(captured(Function(made), X)) == [TensorLeaf] * 3


def test_inputs_that_nothing_reads() -> None:
    def first(x: torch.Tensor, unused: torch.Tensor) -> torch.Tensor:
        return x + 1

    program = captured(Function(first), X, Y)
    assert [node.target for node in program.input_placeholders] == ["x", "unused"]


@pytest.mark.parametrize("dynamic", [False, True])
def test_one_tensor_for_two_arguments(dynamic: bool) -> None:
    def differing(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x * 2 - y

    module = Function(differing)
    program = captured(module, X, X, dynamic_shapes=({0: BATCH}, {0: BATCH}) if dynamic else None)
    same(program, module, X, Y)


def test_a_weight_for_an_argument() -> None:
    module = nn.Linear(3, 2, bias=False).eval()
    program = captured(module, module.weight)
    same(program, module, Y)


def test_writing_in_place_becomes_functional() -> None:
    def written(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y[:, 1] = 5
        y.add_(1)
        return y

    captured(Function(written), X)


def test_the_inputs_stay_as_they_are() -> None:
    before = X.clone()
    captured(Function(lambda x: (x * 2).add_(1)), X)
    assert torch.equal(X, before)


# Weights --------------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """An embedding that is the output layer too, a layer that nothing uses, and tensors held in three ways."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight
        self.unused = nn.Linear(3, 3)
        self.register_buffer("shift", torch.randn(10))
        self.register_buffer("scale", torch.randn(10), persistent=False)
        self.plain = torch.randn(10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids)) * self.scale + self.shift + self.plain


def test_weights_by_name_tied_and_unused() -> None:
    program = captured(Tied().eval(), torch.tensor([[1, 7], [0, 9]]))
    names = set(program.weights.inputs.values())
    assert {"shift", "scale", "plain"} <= names
    assert not any("unused" in name for name in names)
    assert len(names) - len({"shift", "scale", "plain"}) == 1, "tied weights are one"
    assert len(program.weight_placeholders) == len(names)


def test_weights_are_not_copied() -> None:
    module = nn.Linear(3, 4).eval()
    program = captured(module, X)
    assert program.weights.sources["weight"].data_ptr() == module.weight.data_ptr()


def test_weights_as_results() -> None:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3))

        def forward(self, x: torch.Tensor) -> Any:
            return self.weight, x + self.weight

    program = captured(Held().eval(), X)
    assert kinds(program) == [TensorLeaf] * 2


def test_the_module_stays_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    captured(module, X)
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad for parameter in module.parameters())


# Operators ------------------------------------------------------------------------------------------------------------


def test_operators_that_are_kept_stay_whole() -> None:
    def attention(q: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(F.scaled_dot_product_attention(q, q, q), (4,))

    q = torch.randn(1, 2, 3, 4)
    kept = targets(captured(Function(attention), q))
    assert kept == [aten.scaled_dot_product_attention.default, aten.layer_norm.default]


def test_only_what_is_not_kept_is_decomposed() -> None:
    def both(x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(F.silu(x), (3,))

    program = capture(Function(both), (X,), keep=lambda target: target is not aten.silu.default)
    assert aten.silu.default not in targets(program)
    assert aten.layer_norm.default in targets(program)
    torch.testing.assert_close(program(X), both(X))


def test_decomposition_goes_as_deep_as_it_must() -> None:
    refused = {aten.mish.default, aten.softplus.default}
    program = capture(Function(lambda x: F.mish(x)), (X,), keep=lambda target: target not in refused)
    assert not refused & set(targets(program))
    torch.testing.assert_close(program(X), F.mish(X))


def test_the_fast_path_of_transformer_layers_is_not_taken() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    program = capture(layer, (torch.randn(2, 3, 8),))
    assert aten.scaled_dot_product_attention.default in targets(program)
    assert torch.backends.mha.get_fastpath_enabled()


def test_autocast_is_inlined() -> None:
    def halved(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return x @ x.t()

    program = captured(Function(halved), X)
    assert program.signature.tensor_outputs[0].spec.dtype == torch.bfloat16


def test_dropout_in_evaluation_and_attention_without_it_draw_nothing() -> None:
    def quiet(q: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(F.dropout(q, 0.5, training=False), q, q, dropout_p=0.0)

    captured(Function(quiet), torch.randn(1, 2, 3, 4))


@pytest.mark.parametrize(
    "function",
    [
        torch.rand_like,
        torch.bernoulli,
        lambda x: F.dropout(x, 0.5, training=True),
        lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
    ],
    ids=["rand_like", "bernoulli", "dropout", "attention"],
)
def test_random_operators_are_refused(function: Callable[..., Any]) -> None:
    class Random(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return function(x * x)

    with pytest.raises(RandomOpError, match="aten") as info:
        capture(Random().eval(), (torch.rand(1, 2, 2, 3),))
    assert __file__ in info.value.source


def test_state_is_an_input_and_an_output() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count += 1
            return x.mul_(self.count) + 0

    module = Counter().eval()
    program = capture(module, (X.clone(),))
    (held,), (count, x) = program.signature.state, program.signature.updates
    assert held.buffer == "count"
    assert (count.position, x.position) == (1, 0)
    assert program.state.keys() == {"count"}
    assert float(module.count) == 0  # type: ignore[arg-type]
    assert len(program.output_names) == 3


def test_what_would_check_its_operands_when_it_runs_stays_whole() -> None:
    def keep(target: Any) -> bool:
        return target not in (torch.ops.aten.linalg_inv.default, torch.ops.aten.mT.default, torch.ops.aten.sinc.default)

    module = Function(lambda x: torch.linalg.inv(x @ x.mT).sinc())
    program = capture(module, (torch.eye(3),), keep=keep)
    targets = {node.target for node in program.calls}
    # Up to torch 2.11 what it is made of checks nothing.
    assert targets & {torch.ops.aten.linalg_inv.default, torch.ops.aten.linalg_inv_ex.default}
    assert torch.ops.aten.sinc.default not in targets
    torch.testing.assert_close(program(2 * torch.eye(3)), module(2 * torch.eye(3)))


def test_operators_with_graphs_of_their_own_are_refused() -> None:
    def chosen(x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))

    with pytest.raises(CaptureError, match=r"cond.*graphs of its own"):
        capture(Function(chosen), (X,))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a size that torch cannot tell", CaptureError),
        ("should have been constant, but got -TruncToInt(zuf0) - 1", DataDependentError),
    ],
)
@pytest.mark.parametrize(
    ("place", "function"),
    [
        ((decompositions, "splice"), F.hardswish),
        # A view of what is written into is not taken apart on its own.
        ((ExportedProgram, "run_decompositions"), lambda x: (x * 2).relu_().swapaxes(0, 1)),
    ],
    ids=["one by one", "as a whole"],
)
def test_what_fails_in_decomposing_is_numbered(
    text: str, kind: type[Exception], place: Any, function: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: Any) -> Any:
        raise AssertionError(text)

    monkeypatch.setattr(*place, failing)
    with pytest.raises(CaptureError, match=re.escape(text)) as caught:
        capture(Function(function), (X,), keep=lambda target: False)
    assert type(caught.value) is kind


def test_quantiles_are_checked() -> None:
    with pytest.raises(CaptureError, match=r"range \[0, 1\]"):
        capture(Function(lambda x: x.quantile(1.5)), (X,))
    with pytest.raises(CaptureError, match="of one dtype"):
        capture(Function(lambda x: x.quantile(torch.tensor([0.5], dtype=torch.float16))), (X,))


# While a graph is made ------------------------------------------------------------------------------------------------


def test_no_cycles_of_objects_are_searched_while_a_graph_is_made_and_are_again_after_it() -> None:
    seen: list[bool] = []

    class Watching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(gc.isenabled())
            return x * 2

    program = api.capture(Watching().eval(), (torch.rand(2),))
    assert seen == [False]
    assert gc.isenabled()
    with pytest.raises(TrainingModeError):
        api.capture(Watching(), (torch.rand(2),))
    assert gc.isenabled()
    gc.disable()
    try:
        api.optimize(program, Settings())
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_graph_that_passes_change_is_called_as_it_is_then() -> None:
    x = torch.rand(2)
    program = api.capture(Function(lambda x: torch.sin(x.view(2, 1).view(2))), (x,))
    torch.testing.assert_close(program.graph(x)[0], torch.sin(x.view(2)))
    api.optimize(program, Settings())
    assert "view" not in program.graph.code
    torch.testing.assert_close(program.graph(x)[0], torch.sin(x))
