"""Resize, against torch where torch can do it and against ONNX's reference where it cannot; grid sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx
import onnx.reference
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.bare_network import BareNetwork, first, trt
from tests.layers.row import Row, normal

X = normal(2, 3, 5, 6)
NAMES = {
    "ALIGN_CORNERS": "align_corners",
    "ASYMMETRIC": "asymmetric",
    "HALF_PIXEL": "half_pixel",
    "HALF_UP": "round_prefer_ceil",
    "HALF_DOWN": "round_prefer_floor",
    "FLOOR": "floor",
    "CEIL": "ceil",
}
ENUMS = {
    "resize_mode": trt.InterpolationMode,
    "coordinate_transformation": trt.ResizeCoordinateTransformation,
    "nearest_rounding": trt.ResizeRoundMode,
    "selector_for_single_pixel": trt.ResizeSelector,
    "interpolation_mode": trt.InterpolationMode,
    "sample_mode": trt.SampleMode,
}


def attributes_of(layer: Any, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        setattr(layer, name, getattr(ENUMS[name], value) if name in ENUMS else value)


def resize(size: Sequence[int] | None, **attributes: Any) -> Callable[..., Any]:
    def build(net: BareNetwork, x: Any) -> Any:
        layer = net.definition.add_resize(x)
        attributes_of(layer, attributes)
        if size is not None:
            layer.shape = tuple(size)
        return first(layer)

    return build


def resize_by_input(net: BareNetwork, x: Any) -> Any:
    layer = net.definition.add_resize(x)
    layer.resize_mode = trt.InterpolationMode.LINEAR
    layer.set_input(1, net.ints(2, 3, 7, 9))
    return first(layer)


def onnx_resize(x: Tensor, size: Sequence[int], mode: str, **attributes: Any) -> Tensor:
    node = onnx.helper.make_node("Resize", ["x", "", "", "size"], ["y"], mode=mode, **attributes)
    graph = onnx.helper.make_graph(
        [node],
        "resize",
        [
            onnx.helper.make_tensor_value_info("x", onnx.TensorProto.DOUBLE, None),
            onnx.helper.make_tensor_value_info("size", onnx.TensorProto.INT64, None),
        ],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, None)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)])
    run = onnx.reference.ReferenceEvaluator(model).run
    (y,) = run(None, {"x": x.numpy(), "size": torch.tensor(list(size)).numpy()})
    return torch.from_numpy(y)


def interpolate(size: Sequence[int], **options: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: F.interpolate(x, tuple(size), **options)


def against_onnx(name: str, size: Sequence[int], mode: str, onnx_options: dict[str, Any], **attributes: Any) -> Row:
    return Row(
        f"resize-{name}",
        resize(
            (2, 3, *size), resize_mode={"nearest": "NEAREST", "linear": "LINEAR", "cubic": "CUBIC"}[mode], **attributes
        ),
        (X,),
        lambda x: onnx_resize(x, (2, 3, *size), mode, **onnx_options),
    )


RESIZES = [
    Row("resize-nearest", resize((2, 3, 9, 4)), (X,), interpolate((9, 4), mode="nearest")),
    Row("resize-nearest-scales", resize(None, scales=[1, 1, 2, 1.5]), (X,), interpolate((10, 9), mode="nearest")),
    *(
        Row(
            f"resize-{torch_mode}{'-aligned' if aligned else ''}",
            resize(
                (2, 3, 9, 4),
                resize_mode=mode,
                coordinate_transformation="ALIGN_CORNERS" if aligned else "HALF_PIXEL",
            ),
            (X,),
            interpolate((9, 4), mode=torch_mode, align_corners=aligned),
        )
        for mode, torch_mode in (("LINEAR", "bilinear"), ("CUBIC", "bicubic"))
        for aligned in (False, True)
    ),
    Row(
        "resize-trilinear",
        resize((1, 2, 6, 3, 7), resize_mode="LINEAR", coordinate_transformation="HALF_PIXEL"),
        (normal(1, 2, 4, 5, 3),),
        interpolate((6, 3, 7), mode="trilinear", align_corners=False),
    ),
    *(
        against_onnx(
            f"nearest-{rounding}-{transformation}",
            (8, 13),
            "nearest",
            {"nearest_mode": NAMES[rounding], "coordinate_transformation_mode": NAMES[transformation]},
            nearest_rounding=rounding,
            coordinate_transformation=transformation,
        )
        for rounding in ("HALF_UP", "HALF_DOWN", "FLOOR", "CEIL")
        for transformation in ("ASYMMETRIC", "HALF_PIXEL", "ALIGN_CORNERS")
    ),
    against_onnx("linear-asymmetric", (8, 4), "linear", {"coordinate_transformation_mode": "asymmetric"}),
    against_onnx(
        "cubic-coefficient",
        (8, 4),
        "cubic",
        {"coordinate_transformation_mode": "half_pixel", "cubic_coeff_a": -0.5, "exclude_outside": 1},
        coordinate_transformation="HALF_PIXEL",
        cubic_coeff=-0.5,
        exclude_outside=True,
    ),
    Row(
        "resize-single-pixel-upper",
        resize(
            (2, 3, 1, 1),
            coordinate_transformation="HALF_PIXEL",
            selector_for_single_pixel="UPPER",
            nearest_rounding="HALF_UP",
        ),
        (X,),
        lambda x: x[:, :, :1, :1],
    ),
    Row(
        "resize-shape-input",
        resize_by_input,
        (X,),
        lambda x: onnx_resize(x, (2, 3, 7, 9), "linear", coordinate_transformation_mode="asymmetric"),
    ),
]


def sample(**attributes: Any) -> Callable[..., Any]:
    def build(net: BareNetwork, x: Any, grid: Any) -> Any:
        layer = net.definition.add_grid_sample(x, grid)
        attributes_of(layer, attributes)
        return first(layer)

    return build


GRID = normal(2, 4, 3, 2)
SAMPLES = [
    Row(
        f"grid_sample-{mode}-{padding}{'-aligned' if aligned else ''}",
        sample(interpolation_mode=mode, sample_mode=padding, align_corners=aligned),
        (X, GRID),
        lambda x, grid, options=(torch_mode, torch_padding, aligned): F.grid_sample(x, grid, *options),
    )
    for mode, torch_mode in (("NEAREST", "nearest"), ("LINEAR", "bilinear"), ("CUBIC", "bicubic"))
    for padding, torch_padding in (("FILL", "zeros"), ("CLAMP", "border"), ("REFLECT", "reflection"))
    for aligned in (False, True)
]

ROWS = [*RESIZES, *SAMPLES]
