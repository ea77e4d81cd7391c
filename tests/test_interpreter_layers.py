"""Every layer of the interpreter against an independent truth in float64, in each floating-point type."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.bare_network import FLAVOUR, BareNetwork, build, run_engine, trt
from tests.layers import attention, index, neural, pointwise, quantization, resample, shape, windows
from tests.layers.row import Row
from torch2trt.reference.layers import LAYERS

# What one rounding to a type is off, relative to the largest value; in float64 nothing is rounded.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 3e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}
# An engine may compute in TF32, and in FP16 with FP16 sums.
ENGINE_TOLERANCES = {torch.float32: 2e-3, torch.float16: 5e-3}
# Boundaries of loops, conditionals and attention: see test_interpreter.py; plugins: see test_plugins.py.
CONTROL = {
    "ASSERTION",
    "ATTENTION_INPUT",
    "CONDITION",
    "CONDITIONAL_INPUT",
    "CONDITIONAL_OUTPUT",
    "ITERATOR",
    "LOOP_OUTPUT",
    "PLUGIN_V3",
    "RECURRENCE",
    "TRIP_LIMIT",
}
# Code of others, several GPUs, and what has no type in torch.
REFUSED = {"DIST_COLLECTIVE", "DYNAMIC_QUANTIZE", "MOE", "PLUGIN", "PLUGIN_V2"}
FAMILIES = (attention, index, neural, pointwise, quantization, resample, shape, windows)
ROWS = [row for family in FAMILIES for row in family.ROWS]


def cases(*dtypes: torch.dtype) -> list[Any]:
    return [
        pytest.param(row, dtype, id=f"{row.name}-{str(dtype).removeprefix('torch.')}")
        for row in ROWS
        for dtype in dtypes
        if dtype in row.floats
        if dtype == torch.float32 or any(x.is_floating_point() for x in row.inputs)
    ]


def built(row: Row, dtype: torch.dtype) -> tuple[BareNetwork, list[torch.Tensor]]:
    """The row's network with inputs and constants in a type, and the inputs."""
    if row.needs and not FLAVOUR.has(row.needs):
        pytest.skip(f"{FLAVOUR.name} {FLAVOUR.version_text} has no {row.needs}")
    inputs = [x.to(dtype) if x.is_floating_point() else x for x in row.inputs]
    net = BareNetwork(dtype)
    outputs = row.build(net, *(net.input(f"in{i}", x) for i, x in enumerate(inputs)))
    net.output(*(outputs if isinstance(outputs, list) else [outputs]))
    return net, inputs


def skip_refused(row: Row, dtype: torch.dtype) -> None:
    if row.refused and dtype in row.refused_in:
        pytest.skip(row.refused)


def assert_near(result: torch.Tensor, truth: torch.Tensor, error: float) -> None:
    """Equal up to an error relative to the largest finite value; integers are equal."""
    error = error if result.is_floating_point() else 0.0
    truth = truth.to(result.device, torch.float64)
    finite = truth[truth.isfinite()]
    largest = finite.abs().max().item() if finite.numel() else 0.0
    torch.testing.assert_close(result.double(), truth, rtol=error, atol=error * largest, equal_nan=True)


@pytest.mark.parametrize(("row", "dtype"), cases(*TOLERANCES))
def test_layer_gives_its_truth(row: Row, dtype: torch.dtype) -> None:
    in_float64 = dtype == torch.float64
    net, inputs = built(row, torch.float32 if in_float64 else dtype)
    results = net.run(*inputs, dtype_of_float=torch.float64 if in_float64 else torch.float32)
    truths = row.truth(*(x.double() if x.is_floating_point() else x for x in inputs))
    for result, truth in zip(results, truths if isinstance(truths, list) else [truths], strict=True):
        assert_near(result, truth, TOLERANCES[dtype])


@pytest.mark.parametrize("row", [row for row in ROWS if row.engine != index.BY_DATA], ids=lambda row: row.name)
def test_tensorrt_builds_the_row(row: Row) -> None:
    skip_refused(row, torch.float32)
    build(built(row, torch.float32)[0])


def test_every_layer_type_is_executed_or_refused() -> None:
    kinds = set(trt.LayerType.__members__)
    assert kinds - LAYERS.keys() - CONTROL <= REFUSED
    assert not REFUSED & LAYERS.keys()


def test_every_layer_type_has_a_row() -> None:
    seen = set()
    for row in ROWS:
        if not row.needs or FLAVOUR.has(row.needs):
            net, _ = built(row, torch.float32)
            seen |= {net.definition.get_layer(i).type.name for i in range(net.definition.num_layers)}
    assert LAYERS.keys() & trt.LayerType.__members__.keys() - CONTROL <= seen


@pytest.mark.gpu
@pytest.mark.parametrize(("row", "dtype"), cases(torch.float32, torch.float16))
def test_engine_agrees_with_the_interpreter(row: Row, dtype: torch.dtype) -> None:
    if row.engine:
        pytest.skip(row.engine)
    skip_refused(row, dtype)
    net, inputs = built(row, dtype)
    for result, truth in zip(run_engine(net, inputs), net.run(*inputs), strict=True):
        assert_near(result, truth, ENGINE_TOLERANCES[dtype])
