"""What the project measures itself on."""

from __future__ import annotations

from torch2trt.settings import Precision
from torch2trt.tools.bench.case import Case

_IMAGES = ("1x3x224x224",)
_TOKENS = ("input_ids:int64:1x128", "attention_mask:int64:1x128")


def _cases(
    name: str, model: str, inputs: tuple[str, ...], batches: tuple[int, ...], precision: Precision = "fp16"
) -> list[Case]:
    return [Case(name, model, batch, precision, inputs) for batch in batches]


SUITES: dict[str, list[Case]] = {
    "road": [
        *_cases("resnet50", "torchvision:resnet50", _IMAGES, (1, 32, 256)),
        *_cases("efficientnet_b0", "torchvision:efficientnet_b0", _IMAGES, (1, 32)),
        *_cases("mobilenet_v3_large", "torchvision:mobilenet_v3_large", _IMAGES, (1,)),
        *_cases("convnext_tiny", "torchvision:convnext_tiny", _IMAGES, (32,)),
        *_cases("vit_b_16", "torchvision:vit_b_16", _IMAGES, (1, 32)),
        *_cases("swin_t", "torchvision:swin_t", _IMAGES, (32,)),
        *_cases("bert-base", "transformers:BertModel", _TOKENS, (1, 32)),
    ],
}
