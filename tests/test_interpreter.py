"""How the interpreter walks a network: order, lifetimes, control flow, precision, checks, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import as_strided
from torch import Tensor

from tests.bare_network import BareNetwork, first, trt
from torch2trt.errors import InputDtypeError, InputShapeError, InputStructureError, InterpreterError
from torch2trt.reference.evaluation import Evaluation
from torch2trt.reference.registry import LAYERS, Rule

SUM, PROD, SUB, LESS = (getattr(trt.ElementWiseOperation, op) for op in ("SUM", "PROD", "SUB", "LESS"))
X = torch.arange(6, dtype=torch.float32).reshape(2, 3) - 2


def activation(net: BareNetwork, x: Any, kind: str) -> Any:
    return first(net.definition.add_activation(x, getattr(trt.ActivationType, kind)))


def elementwise(net: BareNetwork, a: Any, b: Any, op: Any) -> Any:
    return first(net.definition.add_elementwise(a, b, op))


def random(net: BareNetwork) -> Any:
    return first(net.definition.add_fill((2, 3), trt.FillOperation.RANDOM_UNIFORM, trt.float32))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each kind of layer was computed."""
    counts: dict[str, int] = {}

    def counted(kind: str, rule: Rule) -> Rule:
        def function(*arguments: Any) -> Any:
            counts[kind] = counts.get(kind, 0) + 1
            return rule.function(*arguments)

        return Rule(function, rule.wide)

    for kind, rule in LAYERS.items():
        monkeypatch.setitem(LAYERS, kind, counted(kind, rule))
    return counts


# Order and lifetimes -----------------------------------------------------------------------------------------


def test_layers_may_stand_in_front_of_what_they_need() -> None:
    net = BareNetwork()
    x = net.input("x", X)
    late = net.definition.add_activation(x, trt.ActivationType.RELU)
    late.set_input(0, first(net.definition.add_unary(x, trt.UnaryOperation.NEG)))
    net.output(first(late))
    assert torch.equal(net.run(X)[0], (-X).relu())


def test_a_network_deeper_than_the_recursion_limit() -> None:
    net = BareNetwork()
    y = net.input("x", X)
    for _ in range(2000):
        y = first(net.definition.add_unary(y, trt.UnaryOperation.NEG))
    net.output(y)
    assert torch.equal(net.run(X)[0], X)


def test_values_are_freed_after_their_last_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = []
    release = Evaluation._release
    monkeypatch.setattr(
        Evaluation, "_release", lambda self, node: (release(self, node), alive.append(len(self.values)))
    )
    net = BareNetwork()
    y = net.input("x", X)
    for _ in range(50):
        y = elementwise(net, activation(net, y, "RELU"), y, SUM)
    net.output(y)
    assert torch.equal(net.run(X)[0], X.relu() * 2.0**50 - (-X).relu())
    assert max(alive) <= 2


def test_layers_that_no_output_needs_are_not_computed(calls: dict[str, int]) -> None:
    net = BareNetwork()
    x = net.input("x", X)
    random(net)
    activation(net, x, "TANH")
    net.output(activation(net, x, "RELU"))
    net.run(X)
    assert calls == {"ACTIVATION": 1}


def test_outputs_share_no_memory_with_inputs_and_weights() -> None:
    net = BareNetwork()
    x = net.input("x", X)
    shuffled = first(net.definition.add_shuffle(x))
    net.output(shuffled, net.constant([1.0, 2.0]))
    interpreter, given = net.interpreter(), X.clone()
    for result in interpreter.run({"x": given}).values():
        result.zero_()
    assert torch.equal(given, X)
    assert interpreter.run({"x": given})["out1"].tolist() == [1.0, 2.0]


def test_any_tensor_by_name(calls: dict[str, int]) -> None:
    net = BareNetwork()
    x = net.input("x", X)
    middle = activation(net, x, "RELU")
    middle.name = "middle"
    net.output(activation(net, middle, "TANH"))
    values = net.interpreter().run_tensors({"x": X}, ["middle", "x"])
    assert calls == {"ACTIVATION": 1}
    assert torch.equal(values["middle"], X.relu())
    assert torch.equal(values["x"], X)
    with pytest.raises(InterpreterError, match="no tensor 'absent'"):
        net.interpreter().run_tensors({"x": X}, ["absent"])


# Shapes that only a run knows --------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_dynamic_batch(batch: int) -> None:
    kernel, bias = torch.randn(4, 3, 3, 3), torch.randn(4)
    net = BareNetwork()
    x = torch.randn(batch, 3, 8, 8)
    layer = net.definition.add_convolution_nd(
        net.input("x", x, (-1, 3, 8, 8)), 4, (3, 3), net.weights(kernel), net.weights(bias)
    )
    flat = net.definition.add_shuffle(activation(net, first(layer), "RELU"))
    flat.reshape_dims = (0, -1)
    net.output(first(flat))
    torch.testing.assert_close(net.run(x)[0], F.conv2d(x, kernel, bias).relu().flatten(1))


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (2, 7)])
def test_shape_arithmetic(batch: int, tokens: int) -> None:
    """[batch, tokens, 12] to [batch, 3, tokens, 4], with the sizes computed in the network."""
    net = BareNetwork()
    x = torch.randn(batch, tokens, 12)
    given = net.input("x", x, (-1, -1, 12))
    shape = first(net.definition.add_shape(given))
    sizes = [first(net.definition.add_slice(shape, (i,), (1,), (1,))) for i in range(2)]
    heads, size = (net.constant(torch.tensor([n])) for n in (3, 4))
    split = net.definition.add_shuffle(given)
    split.set_input(1, first(net.definition.add_concatenation([*sizes, heads, size])))
    split.second_transpose = (0, 2, 1, 3)
    net.output(first(split))
    assert torch.equal(net.run(x)[0], x.reshape(batch, tokens, 3, 4).transpose(1, 2))


# Precision ---------------------------------------------------------------------------------------------------


def test_half_precision_rounds_between_layers_and_not_inside() -> None:
    net = BareNetwork(torch.float16)
    x = torch.full((1, 1000), 300.0, dtype=torch.float16)
    given = net.input("x", x)
    mean = first(net.definition.add_reduce(given, trt.ReduceOperation.AVG, 2, True))
    total = first(net.definition.add_reduce(given, trt.ReduceOperation.SUM, 2, True))
    third = elementwise(net, given, net.constant([[3.0]]), trt.ElementWiseOperation.DIV)
    net.output(mean, elementwise(net, total, net.constant([[0.5]]), PROD), third)
    results = net.run(x * 1.001)
    assert [result.dtype for result in results] == [torch.float16] * 3
    assert results[0].item() == 300.25
    assert results[1].item() == torch.inf  # 300250 is more than FP16 holds
    assert results[2][0, 0].item() == (torch.tensor(300.25) / 3).half().item()


def test_float64_in_place_of_float32() -> None:
    net = BareNetwork()
    net.output(activation(net, net.input("x", X), "TANH"))
    (result,) = net.run(X, dtype_of_float=torch.float64)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, X.double().tanh(), rtol=1e-15, atol=0)


# Weights that Python cannot read -----------------------------------------------------------------------------


def bfloat16_convolution() -> tuple[BareNetwork, Tensor, Tensor, Tensor]:
    net = BareNetwork(torch.bfloat16)
    x, kernel, bias = (torch.randn(s).bfloat16() for s in ((1, 3, 5, 5), (4, 3, 3, 3), (4,)))
    weights = net.weights(kernel), net.weights(bias)
    layer = net.definition.add_convolution_nd(net.input("x", x), 4, (3, 3), *weights)
    layer.name = "conv"
    net.output(first(layer))
    return net, x, kernel, bias


def test_weights_come_from_the_constants() -> None:
    net, x, kernel, bias = bfloat16_convolution()
    net.constants.update({"conv.kernel": kernel, "conv.bias": bias})
    truth = F.conv2d(x.double(), kernel.double(), bias.double())
    torch.testing.assert_close(net.run(x)[0].double(), truth, rtol=4e-3, atol=1e-5)


def test_weights_that_bindings_for_numpy_1_show_under_numpy_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take the size of an element from where it was, and find 0: every element looks like the first."""
    net = BareNetwork()
    net.output(net.constant([[1.0, 2.0], [3.0, 4.0]]))
    plain = trt.IConstantLayer.weights.__get__
    shown = property(lambda layer: as_strided(plain(layer), strides=(0,)))
    monkeypatch.setattr(trt.IConstantLayer, "weights", shown)
    (result,) = net.run()
    assert result.tolist() == [[1, 2], [3, 4]]


def test_weights_that_nobody_knows_are_an_error() -> None:
    net, x, _, _ = bfloat16_convolution()
    with pytest.raises(InterpreterError, match=r"do not show the values of BF16 weights") as caught:
        net.run(x)
    assert "'conv' (CONVOLUTION)" in str(caught.value)
    assert "constants['conv.kernel']" in caught.value.hint


def test_eight_bit_float_and_four_bit_integer_weights() -> None:
    net = BareNetwork()
    small = torch.tensor([[0.5, -2.0, 448.0, 0.0]]).to(torch.float8_e4m3fn)
    nibbles = torch.tensor([[-8, 7, 1, 0], [3, -1, 2, -2]], dtype=torch.int8)
    packed = torch.zeros(4, dtype=torch.uint8)  # TensorRT wants memory; the values come from the constants
    blocks = torch.tensor([[0.5, 2.0], [4.0, 0.25]])
    fp8 = net.definition.add_constant((1, 4), trt.Weights(trt.fp8, small.data_ptr(), 4))
    int4 = net.definition.add_constant((2, 4), trt.Weights(trt.int4, packed.data_ptr(), 8))
    net.constants.update({fp8.name: small, int4.name: nibbles})
    net.output(
        first(net.definition.add_dequantize(first(fp8), net.constant(0.5), trt.float32)),
        first(net.definition.add_dequantize(first(int4), net.constant(blocks), trt.float32)),
    )
    results = net.run()
    assert torch.equal(results[0], small.float() / 2)
    assert torch.equal(results[1], nibbles * blocks.repeat_interleave(2, 1))


# Loops -------------------------------------------------------------------------------------------------------


def loop_with(net: BareNetwork, count: Any) -> Any:
    loop = net.definition.add_loop()
    loop.add_trip_limit(count, trt.TripLimit.COUNT)
    return loop


def stacked(loop: Any, value: Any, length: Any, axis: int = 0, kind: str = "CONCATENATE") -> Any:
    layer = loop.add_loop_output(value, getattr(trt.LoopOutput, kind), axis)
    layer.set_input(1, length)
    return first(layer)


def test_a_loop_carries_scans_and_stacks(calls: dict[str, int]) -> None:
    """Running sums of the rows of x, scaled by what does not change in the loop."""
    net = BareNetwork()
    x = torch.randn(4, 3)
    given, count = net.input("x", x), net.int(4)
    factor = activation(net, net.constant([0.0, 1.0, 2.0]), "TANH")
    loop = loop_with(net, count)
    row, backwards = first(loop.add_iterator(given)), first(loop.add_iterator(given, 0, True))
    carried = loop.add_recurrence(net.constant([0.0, 0.0, 0.0]))
    total = elementwise(net, first(carried), elementwise(net, row, factor, PROD), SUM)
    carried.set_input(1, total)
    net.output(
        first(loop.add_loop_output(first(carried), trt.LoopOutput.LAST_VALUE)),
        stacked(loop, total, count),
        stacked(loop, total, count, axis=1, kind="REVERSE"),
        stacked(loop, backwards, count),
    )
    results = net.run(x)
    sums = (x * torch.tensor([0.0, 1.0, 2.0]).tanh()).cumsum(0)
    for result, truth in zip(results, (sums[-1], sums, sums.flip(0).T, x.flip(0)), strict=True):
        torch.testing.assert_close(result, truth)
    assert calls["ELEMENTWISE"] == 8
    assert calls["ACTIVATION"] == 1


def test_an_iterator_over_columns() -> None:
    net = BareNetwork()
    count = net.int(3)
    loop = loop_with(net, count)
    column = first(loop.add_iterator(net.input("x", X), 1))
    net.output(stacked(loop, activation(net, column, "RELU"), count))
    assert torch.equal(net.run(X)[0], X.relu().T)


@pytest.mark.parametrize(("limit", "doublings"), [(100.0, 7), (1.0, 0), (10.0, 4)])
def test_a_while_loop(limit: float, doublings: int) -> None:
    net = BareNetwork()
    loop = net.definition.add_loop()
    value = loop.add_recurrence(net.constant(1.0))
    loop.add_trip_limit(
        elementwise(net, first(value), net.input("limit", torch.tensor(limit)), LESS), trt.TripLimit.WHILE
    )
    value.set_input(1, elementwise(net, first(value), net.constant(2.0), PROD))
    net.output(first(loop.add_loop_output(first(value), trt.LoopOutput.LAST_VALUE)))
    assert net.run(torch.tensor(limit))[0].item() == 2**doublings


def test_what_is_stacked_behind_the_last_iteration_is_zero() -> None:
    net = BareNetwork()
    length = net.int(5)
    loop = loop_with(net, net.input("count", torch.tensor(3, dtype=torch.int32)))
    value = loop.add_recurrence(net.constant(1.0))
    value.set_input(1, elementwise(net, first(value), net.constant(2.0), PROD))
    net.output(stacked(loop, first(value), length))
    assert net.run(torch.tensor(3, dtype=torch.int32))[0].tolist() == [1, 2, 4, 0, 0]
    assert net.run(torch.tensor(0, dtype=torch.int32))[0].tolist() == [0] * 5
    with pytest.raises(InterpreterError, match="6 iterations do not fit"):
        net.run(torch.tensor(6, dtype=torch.int32))


@pytest.mark.parametrize("start_outside", [True, False])
def test_a_loop_in_a_loop(start_outside: bool) -> None:
    """For each row of x, powers of its elements; the inner loop starts from the row, or meets it only inside."""
    net = BareNetwork()
    rows, powers = net.int(2), net.int(3)
    outer = loop_with(net, rows)
    row = first(outer.add_iterator(net.input("x", X)))
    inner = loop_with(net, powers)
    power = inner.add_recurrence(net.constant([1.0, 1.0, 1.0]) if start_outside else row)
    following = elementwise(net, first(power), row, PROD)
    power.set_input(1, following)
    net.output(stacked(outer, stacked(inner, following, powers), rows))
    exponents = torch.arange(1, 4).reshape(1, 3, 1) + (0 if start_outside else 1)
    torch.testing.assert_close(net.run(X)[0], X[:, None] ** exponents)


def test_a_tensor_inside_a_loop_has_no_value_outside() -> None:
    net = BareNetwork()
    loop = loop_with(net, net.int(2))
    value = loop.add_recurrence(net.constant(1.0))
    value.set_input(1, elementwise(net, first(value), net.constant(2.0), PROD))
    net.output(first(loop.add_loop_output(first(value), trt.LoopOutput.LAST_VALUE)))
    with pytest.raises(InterpreterError, match="only while its loop runs"):
        net.interpreter().run_tensors({}, [value.get_output(0).name])


# Conditionals and assertions ---------------------------------------------------------------------------------


def conditional(net: BareNetwork, condition: Any, x: Any, then: Callable[[Any], Any], otherwise: Any) -> Any:
    choice = net.definition.add_if_conditional()
    choice.set_condition(condition)
    inside = first(choice.add_input(x))
    return first(choice.add_output(then(inside), otherwise(inside)))


def test_only_the_branch_that_is_taken_is_computed() -> None:
    net = BareNetwork()
    yes, x = net.input("yes", torch.tensor(True)), net.input("x", X)
    shared = activation(net, x, "RELU")
    chosen = conditional(
        net, yes, shared, lambda i: activation(net, i, "TANH"), lambda i: elementwise(net, i, random(net), SUM)
    )
    net.output(chosen, activation(net, shared, "SIGMOID"))
    taken, after = net.run(torch.tensor(True), X)
    torch.testing.assert_close(taken, X.relu().tanh())
    torch.testing.assert_close(after, X.relu().sigmoid())
    with pytest.raises(InterpreterError, match="RANDOM_UNIFORM draws other numbers"):
        net.run(torch.tensor(False), X)


def test_a_conditional_in_a_loop() -> None:
    """Collatz: halves what is even, and takes three times and one of what is odd."""
    net = BareNetwork()
    one, two, three = (net.constant(n) for n in (1.0, 2.0, 3.0))
    count = net.int(7)
    loop = loop_with(net, count)
    value = loop.add_recurrence(net.input("n", torch.tensor(6.0)))
    n = first(value)
    half = elementwise(net, n, two, trt.ElementWiseOperation.FLOOR_DIV)
    even = elementwise(net, elementwise(net, half, two, PROD), n, trt.ElementWiseOperation.EQUAL)
    following = conditional(
        net,
        even,
        n,
        lambda i: elementwise(net, i, two, trt.ElementWiseOperation.DIV),
        lambda i: elementwise(net, elementwise(net, i, three, PROD), one, SUM),
    )
    value.set_input(1, following)
    net.output(stacked(loop, n, count))
    assert net.run(torch.tensor(6.0))[0].tolist() == [6, 3, 10, 5, 16, 8, 4]


def test_assertions_are_checked() -> None:
    net = BareNetwork()
    x = net.input("x", X, (-1, 3))
    rows = first(net.definition.add_slice(first(net.definition.add_shape(x)), (0,), (1,), (1,)))
    two = net.constant(torch.tensor([2]))
    net.definition.add_assertion(elementwise(net, rows, two, trt.ElementWiseOperation.EQUAL), "two rows, please")
    net.output(activation(net, x, "RELU"))
    net.run(X)
    with pytest.raises(InterpreterError, match="two rows, please"):
        net.run(X[:1])


# Checks and errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "error", "text"),
    [
        ({}, InputStructureError, r"inputs are \['x'\], not \[\]"),
        ({"x": X, "y": X}, InputStructureError, "not"),
        ({"x": X.half()}, InputDtypeError, "expected FLOAT, got torch.float16"),
        ({"x": X.T}, InputShapeError, r"expected shape \[-1, 3\], got \[3, 2\]"),
        ({"x": X[0]}, InputShapeError, r"got \[3\]"),
    ],
)
def test_inputs_that_are_not_the_networks(inputs: dict[str, Tensor], error: type[Exception], text: str) -> None:
    net = BareNetwork()
    net.output(activation(net, net.input("x", X, (-1, 3)), "RELU"))
    with pytest.raises(error, match=text):
        net.interpreter().run(inputs)


@pytest.mark.parametrize("wrong", [lambda node, x: x.double(), lambda node, x: x[:1], lambda node, x: x[None]])
def test_a_value_that_is_not_what_tensorrt_declares(
    wrong: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LAYERS, "ACTIVATION", Rule(wrong, wide=False))
    net = BareNetwork()
    net.output(activation(net, net.input("x", X), "RELU"))
    with pytest.raises(InterpreterError, match=r"where TensorRT declares FLOAT\[2, 3\]"):
        net.run(X)


def test_a_failing_layer_is_named_with_its_inputs() -> None:
    net = BareNetwork()
    layer = net.definition.add_gather(net.input("x", X, (-1, 3)), net.input("i", torch.tensor([0.0]).int(), (-1,)), 0)
    layer.name = "my gather"
    outside = net.definition.add_slice(first(layer), (0, 0), (3, 3), (1, 1))
    outside.name = "my slice"
    net.output(first(outside))
    with pytest.raises(InterpreterError, match=r"slices \[0, 2\] of dimension 0, which has 1 elements") as caught:
        net.run(X, torch.tensor([0], dtype=torch.int32))
    assert "layer 'my slice' (SLICE)" in str(caught.value)


@pytest.mark.skipif(
    not hasattr(trt.INetworkDefinition, "add_dynamic_quantize"), reason="every layer here can be executed"
)
def test_layers_that_are_not_executable_are_refused() -> None:
    net = BareNetwork()
    x = torch.zeros(2, 32)
    layer = net.definition.add_dynamic_quantize(net.input("x", x), 1, 16, trt.fp4, trt.fp8)
    layer.set_input(1, net.constant(1.0))
    net.output(layer.get_output(1))
    with pytest.raises(InterpreterError, match="does not execute DYNAMIC_QUANTIZE layers"):
        net.run(x)


def test_an_invalid_layer_is_an_error_at_once() -> None:
    net = BareNetwork()
    x = net.input("x", X)
    net.definition.add_matrix_multiply(x, trt.MatrixOperation.NONE, x, trt.MatrixOperation.NONE)
    with pytest.raises(InterpreterError, match="has no valid shape"):
        net.interpreter()
