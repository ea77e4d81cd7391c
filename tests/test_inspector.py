"""What is read of an engine: its layers, their formats and bytes, and the calls that they compute."""

from __future__ import annotations

import pytest

from tests import inspector_samples as samples
from tests.inspector_samples import Net, X, program_of
from torch2trt.converters.lower import lower
from torch2trt.graph.program import provenance
from torch2trt.runtime.layers import _profiler_class
from torch2trt.tools.profile.attribution import claimed
from torch2trt.trt import flavour as flavours
from torch2trt.trt.inspector import Layer, layers, mark, names_in, range_in


def test_layers_of_convolutions() -> None:
    copy, stem, block, mean, last = layers(samples.CONVOLUTIONS)
    assert (stem.kind, stem.tactic[:9]) == ("CaskConvolution", "sm90_xmma")
    assert stem.origins == {"conv_block_default": "stem"}
    assert block.origins == {"conv_block_default_1": "blocks.0.conv"}
    assert mean.origins == {"mean": ""}
    assert [each.is_reformat for each in (copy, stem, block, mean, last)] == [True, False, False, False, True]
    assert (copy.inputs[0].dtype, copy.inputs[0].format, copy.outputs[0].format) == ("fp16", "linear", "HWC8")
    # Three channels lie in memory as eight.
    assert copy.bytes == 2 * (2 * 3 * 100 + 2 * 8 * 100)
    assert stem.bytes == 2 * (2 * 8 * 100 + 2 * 8 * 64 + 216 + 8)


def test_layers_of_the_compiler() -> None:
    first, product, move = layers(samples.COMPILED)
    assert first.origins == {"layer_norm": "norm", "add_1": ""}
    assert product.origins == {"linear_block_default": "mlp.0"}
    assert move.origins == {}
    assert [(each.dtype, each.format) for each in first.inputs] == [("fp32", ""), ("fp16", "")]
    assert first.bytes == 4 * 160 + 2 * 16 + 2 * 160
    # Shapes in host memory are no traffic of the GPU.
    assert move.bytes == 2 * 320 + 2 * 320


def test_layers_of_tensorrt_11() -> None:
    (only,) = layers(samples.ELEVEN)
    assert [(each.dtype, each.format) for each in (*only.inputs, *only.outputs)] == [
        ("bf16", "linear"),
        ("fp32", "linear"),
    ]
    assert only.bytes == 10 * 2 + 10 * 4


@pytest.mark.parametrize(
    ("format", "dtype", "short", "size"),
    [
        ("Thirty-two wide channel vectorized row major Int8 format", "int8", "CHW32", 2 * 32 * 4),
        ("Two wide channel vectorized row major FP16 format", "fp16", "CHW2", 2 * 4 * 4 * 2),
        ("Channel major FP32 format where channel % 4 == 0", "fp32", "HWC4", 2 * 4 * 4 * 4),
        ("Row major linear INT32", "int32", "linear", 2 * 3 * 4 * 4),
        ("BFloat16", "bf16", "", 2 * 3 * 4 * 2),
        ("Bool", "bool", "", 2 * 3 * 4),
        ("N/A due to dynamic shapes", "", "", None),
        ("Something new in FP8", "fp8", "Something new in FP8", 2 * 3 * 4),
        ("Something new", "", "Something new", None),
    ],
)
def test_formats_are_read(format: str, dtype: str, short: str, size: int | None) -> None:
    item = samples.layer("a", "b", [samples.tensor("x", [2, 3, 2, 2], format)], [])
    (only,) = layers(samples.information(item))
    assert (only.inputs[0].dtype, only.inputs[0].format, only.bytes) == (dtype, short, size)


def test_sizes_that_are_not_known_are_not_guessed() -> None:
    item = samples.layer("a", "b", [samples.tensor("x", [-1, 3], samples.LINEAR)], [])
    assert layers(samples.information(item))[0].bytes is None
    assert layers(samples.information("conv + relu")) == [Layer("conv + relu")]
    assert Layer("conv").bytes is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "3",
        "[]",
        "{}",
        '{"Layers": null}',
        '{"Layers": [null, 3, [], {}]}',
        '{"Layers": [{"Name": 3, "LayerType": null, "Inputs": {"a": 1}, "Outputs": [3, {"Dimensions": "?"}]}]}',
        '{"Layers": [{"Name": "a", "Weights": 5, "Bias": {"Type": 3, "Count": "?"}, "Metadata": ["x"]}]}',
        '{"Layers": [{"Name": "a", "Inputs": [{"Name": "x", "Dimensions": [], "Format/Datatype": 5}]}]}',
    ],
)
def test_what_is_not_understood_raises_nothing(text: str) -> None:
    for each in layers(text):
        assert each.bytes in (None, 0)
        assert claimed([each], {}) == [[]]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("conv2d", ["conv2d"]),
        ("conv2d + relu_1", ["conv2d", "relu_1"]),
        ("conv2d.2 + relu_1.1", ["conv2d", "relu_1"]),
        ("PWN(PWN(relu_1), add)", ["relu_1", "add"]),
        ("conv2d + PWN(PWN(relu_1, add.3))", ["conv2d", "relu_1", "add"]),
        ("[HostToDeviceCopy 0]", []),
        (samples.TO_STEM.replace("conv_block_default", "conv2d"), ["conv2d"]),
        ("Reformatting CopyNode for Network Input to", []),
        ("Reformatting CopyNode for Input Tensor 1 to to_3", []),
        ("conv2d_myl0_12", ["conv2d"]),
        ("conv2d.1_myl2", ["conv2d"]),
        ("__myl_MulAdd_myl0_3", []),
        ("{ForeignNode[conv2d...add]}", ["conv2d", "add"]),
        ("(Unnamed Layer* 3) [Shuffle]", []),
        ("", []),
    ],
)
def test_names_of_calls_are_found_in_those_of_layers(name: str, found: list[str]) -> None:
    assert names_in(name, {"conv2d", "relu_1", "add", "to"}) == found


def test_names_alone_are_taken_for_calls() -> None:
    assert names_in("conv2d + PWN(relu_1.1)") == ["conv2d", "relu_1"]
    assert names_in("__myl_MulAdd_myl0_3") == []
    assert range_in("{ForeignNode[a...b_1.2]}") == ("a", "b_1.2")
    assert range_in("a...b") is None


def test_every_layer_of_a_network_says_which_call_it_is_of() -> None:
    program = program_of(Net(), X)
    network = lower(program, flavours.load())
    wanted = {node.name: provenance(node)[0] for node in program.calls}
    weights = {str(node.target) for node in program.weight_placeholders}
    for index in range(network.definition.num_layers):
        one = network.definition.get_layer(index)
        (found,) = layers(samples.information({"Name": one.name, "Metadata": one.metadata}))
        node = one.name.partition(".")[0]
        assert found.origins == ({} if node in weights else {node: wanted[node]})
    assert mark("relu", "") == "[t2t relu ]"


def test_the_profiler_adds_up_the_iterations_of_a_run() -> None:
    profiler = _profiler_class(flavours.load().trt)()
    for _ in range(2):
        profiler.begin()
        for name, ms in (("body", 1.0), ("head", 0.5), ("body", 2.0)):
            profiler.report_layer_time(name, ms)
        assert profiler.ms == {"body": 3.0, "head": 0.5}
