"""All of torchvision: classification, segmentation, detection, video and optical flow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models import detection, optical_flow, segmentation, video
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.vision_transformer import VisionTransformer

from tests.model_suite.model import Inputs, Model, tensors
from tests.models.narrow import narrow


def _make(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None, **options)


def _vit(patch: int, heads: int, width: int) -> Callable[[], nn.Module]:
    return lambda: VisionTransformer(
        2 * patch, patch, num_layers=2, num_heads=heads, hidden_dim=width, mlp_dim=4 * width, num_classes=10
    )


def _regnet(width: int, se: float | None = 0.25) -> Callable[[], nn.Module]:
    """One block a stage."""

    def make() -> nn.Module:
        options = BlockParams.from_init_params(depth=27, w_0=456, w_a=160.83, w_m=2.52, group_width=width, se_ratio=se)
        options = dataclasses.replace(options) if dataclasses.is_dataclass(options) else options
        options.depths = [1] * len(options.depths)
        options.widths = [size // 4 for size in options.widths]
        options.group_widths = [size // 4 for size in options.group_widths]
        return RegNet(options, num_classes=10)

    return make


# The largest, with the same layers in smaller numbers.
_SMALLER: dict[str, Callable[[], nn.Module]] = {
    **{
        name: narrow(name) for name in ("alexnet", *(f"vgg{n}{norm}" for n in (11, 13, 16, 19) for norm in ("", "_bn")))
    },
    "vit_b_16": _vit(16, 12, 192),
    "vit_b_32": _vit(32, 12, 192),
    "vit_l_16": _vit(16, 16, 256),
    "vit_l_32": _vit(32, 16, 256),
    "vit_h_14": _vit(14, 16, 320),
    "regnet_y_128gf": _regnet(264),
    "regnet_y_32gf": _regnet(232),
    "regnet_x_32gf": _regnet(168, None),
}
_SIZES = {"inception_v3": 80, "maxvit_t": 224, "vit_h_14": 28, "vit_b_16": 32, "vit_l_16": 32}


def _classifiers() -> list[Model]:
    found = []
    for name in torchvision.models.list_models(module=torchvision.models):
        size = _SIZES.get(name, 64)
        make = _SMALLER.get(name, _make(name, num_classes=10))
        found.append(Model(f"torchvision:{name}", make, tensors((1, 3, size, size)), "classification"))
    return found


def _segmenters() -> list[Model]:
    return [
        Model(
            f"torchvision:{name}",
            _make(name, weights_backbone=None, num_classes=5),
            tensors((1, 3, 64, 64)),
            "segmentation",
        )
        for name in torchvision.models.list_models(module=segmentation)
    ]


def _picture() -> Inputs:
    generator = torch.Generator().manual_seed(1)
    return ([torch.rand(3, 80, 96, generator=generator)],), {}


# With random weights all scores are low: at their own thresholds these would find nothing.
_THRESHOLDS = {"fcos": 0.05, "retinanet": 0.005}


def _detectors() -> list[Model]:
    found = []
    for name in torchvision.models.list_models(module=detection):
        options: dict[str, Any] = {} if name.startswith("ssd") else {"min_size": 64, "max_size": 96}
        if (threshold := _THRESHOLDS.get(name.partition("_")[0])) is not None:
            options["score_thresh"] = threshold
        make = _make(name, weights_backbone=None, num_classes=5, **options)
        found.append(Model(f"torchvision:{name}", make, _picture, "detection"))
    return found


_CLIPS = {
    "s3d": ((1, 3, 16, 224, 224), {}),
    "mvit_v1_b": ((1, 3, 16, 224, 224), {}),
    "mvit_v2_s": ((1, 3, 16, 224, 224), {}),
}


def _videos() -> list[Model]:
    found = []
    for name in torchvision.models.list_models(module=video):
        shape, options = _CLIPS.get(name, ((1, 3, 4, 32, 32), {}))
        found.append(Model(f"torchvision:{name}", _make(name, num_classes=10, **options), tensors(shape), "video"))
    return found


class _Flow(nn.Module):
    """Two refinements instead of twelve."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> list[torch.Tensor]:
        return self.net(first, second, num_flow_updates=2)


def _flows() -> list[Model]:
    return [
        Model(
            f"torchvision:{name}",
            lambda name=name: _Flow(torchvision.models.get_model(name, weights=None)),
            tensors((1, 3, 128, 128), (1, 3, 128, 128)),
            "optical flow",
        )
        for name in torchvision.models.list_models(module=optical_flow)
    ]


MODELS = [*_classifiers(), *_segmenters(), *_detectors(), *_videos(), *_flows()]
