"""What the project measures itself on."""

from __future__ import annotations

from torch2trt.settings import Precision
from torch2trt.tools.bench.case import Case

_IMAGES = ("1x3x224x224",)
_LARGER = ("1x3x299x299",)
_OWN = "benchmarks.models"
_TOKENS = ("input_ids:int64:1x128", "attention_mask:int64:1x128")
_IDS, _LONG_IDS = ("input_ids:int64:1x128",), ("input_ids:int64:1x512",)


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
    "speed": [
        *_cases("resnet50", "torchvision:resnet50", _IMAGES, (1, 32, 256)),
        *_cases("mobilenet_v3_large", "torchvision:mobilenet_v3_large", _IMAGES, (1,)),
        *_cases("efficientnet_b0", "torchvision:efficientnet_b0", _IMAGES, (1, 32)),
        *_cases("densenet121", "torchvision:densenet121", _IMAGES, (32,)),
        *_cases("inception_v3", "torchvision:inception_v3", _LARGER, (32,)),
        *_cases("convnext_tiny", "torchvision:convnext_tiny", _IMAGES, (32,)),
        *_cases("vit_b_16", "torchvision:vit_b_16", _IMAGES, (1, 32)),
        *_cases("swin_t", "torchvision:swin_t", _IMAGES, (32,)),
        *_cases("deeplabv3_resnet50", "torchvision:deeplabv3_resnet50", ("1x3x520x520",), (1,)),
        *_cases("yolov5s", f"{_OWN}.yolov5:YOLOv5", ("1x3x640x640",), (1,)),
        *_cases("bert-base", "transformers:BertModel", _TOKENS, (1, 32)),
        *_cases("gpt2", f"{_OWN}.language:gpt2", _LONG_IDS, (8,)),
        *_cases("llama-1b", f"{_OWN}.language:llama_1b", _LONG_IDS, (1,)),
        *_cases("whisper-tiny-encoder", f"{_OWN}.language:whisper_encoder", ("1x80x3000",), (1,)),
        *_cases("sd-unet-block", f"{_OWN}.diffusion:DownBlock", ("1x320x64x64", "1x1280", "1x77x768"), (2,)),
        *(
            case
            for precision in ("tf32", "bf16")
            for case in (
                *_cases("resnet50", "torchvision:resnet50", _IMAGES, (32,), precision),
                *_cases("bert-base", "transformers:BertModel", _TOKENS, (32,), precision),
            )
        ),
    ],
    # What each pass is worth: one model of each kind that some pass is for.
    "passes": [
        *_cases("resnet50", "torchvision:resnet50", _IMAGES, (32,)),
        *_cases("googlenet", "torchvision:googlenet", _IMAGES, (1, 32)),
        *_cases("inception_v3", "torchvision:inception_v3", _LARGER, (1, 32)),
        *_cases("densenet121", "torchvision:densenet121", _IMAGES, (32,)),
        *_cases("convnext_tiny", "torchvision:convnext_tiny", _IMAGES, (32,)),
        *_cases("vit_b_16", "torchvision:vit_b_16", _IMAGES, (1, 32)),
        *_cases("swin_t", "torchvision:swin_t", _IMAGES, (1, 32)),
        *_cases("bert-base", "transformers:BertModel", _TOKENS, (1, 32)),
        *_cases("gpt2-4-layers", f"{_OWN}.language:gpt2_4_layers", _IDS, (1, 32)),
        *_cases("llama-2-layers", f"{_OWN}.language:llama_2_layers", _IDS, (1, 8)),
        *_cases("t5-2-layers", f"{_OWN}.language:t5_2_layers", (*_IDS, "decoder_input_ids:int64:1x128"), (1, 32)),
    ],
}
