"""A bare plan for trtexec and a model repository for Triton, from the JSON that torch2trt writes beside a plan.

    python examples/export_for_triton.py --model resnet50 --precision fp16 repository
    tritonserver --model-repository repository

Plans run on the GPU and the TensorRT version they were built with, so build where Triton runs, with the flavour
`tensorrt`: Triton has no backend for TensorRT-RTX. The layout and the JSON are the same everywhere.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch.export import Dim

import torch2trt

TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Export a torchvision model as a plan and for Triton.")
    parser.add_argument("repository", type=Path)
    parser.add_argument("--model", default="resnet50", help="a model of torchvision that takes images")
    parser.add_argument("--weights", type=Path, help="a state_dict; unset: random weights")
    parser.add_argument("--precision", choices=("fp32", "tf32", "fp16", "bf16"))
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=8, help="the batch to tune for")
    options = parser.parse_args(arguments)

    model = torchvision.models.get_model(options.model, weights=None)
    if options.weights:
        model.load_state_dict(torch.load(options.weights, weights_only=True))
    folder = options.repository / options.model
    plan = folder / "1" / "model.plan"
    plan.parent.mkdir(parents=True, exist_ok=True)

    torch2trt.export(
        model.eval(),
        (torch.randn(options.batch, 3, options.size, options.size),),
        plan,
        dynamic_shapes=({0: Dim("batch", min=1, max=4 * options.batch)},),
        precision=options.precision,
        name=options.model,
    )
    description = json.loads(Path(f"{plan}.json").read_text())
    (folder / "config.pbtxt").write_text(triton_config(description))
    print(f"{plan}: {plan.stat().st_size / 1e6:.1f} MB for {description['gpu'] or 'any RTX GPU'}")
    print(trtexec_command(description, plan))


def triton_config(description: dict[str, Any]) -> str:
    """Triton's config.pbtxt; max_batch_size 0 says that the shapes below are whole, batch included."""

    def tensors(title: str) -> str:
        entries = ", ".join(
            f'{{ name: "{item["name"]}" data_type: {TYPES[item["dtype"]]} dims: {dims(item["shape"])} }}'
            for item in description[title]
        )
        return f"{title.removesuffix('s')} [ {entries} ]"

    def dims(shape: list[int | str]) -> str:
        return str([size if isinstance(size, int) else -1 for size in shape])

    lines = (f'name: "{description["name"]}"', 'backend: "tensorrt"', "max_batch_size: 0")
    return "\n".join((*lines, tensors("inputs"), tensors("outputs"))) + "\n"


def trtexec_command(description: dict[str, Any], plan: Path) -> str:
    """What measures the plan at the shapes it is tuned for."""
    shapes = (f"{item['name']}:{'x'.join(map(str, item['profile']['opt']))}" for item in description["inputs"])
    program = "trtexec" if description["flavour"] == "tensorrt" else "tensorrt_rtx"
    return f"{program} --loadEngine={plan} --shapes={','.join(shapes)} --useCudaGraph"


if __name__ == "__main__":
    main()
