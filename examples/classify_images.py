"""Image classification end to end: a torchvision model, pretrained, compiled once, run on image files.

    python examples/classify_images.py cat.jpg dog.jpg
    python examples/classify_images.py --model mobilenet_v3_large --precision fp16 *.jpg

Without files it looks at scikit-learn's two photographs. The engine is kept in --artifact and used again the next time.
On a machine without a GPU the network runs in the reference interpreter.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torch.export import Dim

import torch2trt


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Classify images with a compiled torchvision model.")
    parser.add_argument("images", nargs="*", type=Path)
    parser.add_argument("--model", default="resnet50", help="a classifier of torchvision")
    parser.add_argument("--random", action="store_true", help="random weights in place of pretrained ones")
    parser.add_argument("--precision", choices=("fp32", "tf32", "fp16", "bf16"))
    parser.add_argument("--artifact", type=Path, help="where the compiled model is kept; unset: MODEL.t2t")
    options = parser.parse_args(arguments)

    weights = torchvision.models.get_model_weights(options.model).DEFAULT
    images = [Image.open(path).convert("RGB") for path in options.images] or photographs()
    batch = torch.stack([weights.transforms()(image) for image in images])

    artifact = options.artifact or Path(f"{options.model}.t2t")
    if artifact.exists():
        compiled = torch2trt.load(artifact)
    else:
        compiled = build(options, weights, batch)
        # With its Program it also runs, and checks itself, where there is no GPU.
        compiled.save(artifact, program=True)

    logits = compiled(batch.cuda()).cpu() if torch.cuda.is_available() else compiled.reference(batch)
    names = [str(path) for path in options.images] or ["china.jpg", "flower.jpg"]
    for name, chances in zip(names, logits.softmax(1), strict=True):
        best = chances.topk(3)
        guesses = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        print(name, *(f"{weights.meta['categories'][index]} {chance:.1%}" for chance, index in guesses), sep="  ")


def build(
    options: argparse.Namespace, weights: torchvision.models.WeightsEnum, batch: torch.Tensor
) -> torch2trt.EngineModule:
    model = torchvision.models.get_model(options.model, weights=None if options.random else weights).eval()
    compiled = torch2trt.compile(
        model,
        (batch,),
        dynamic_shapes=({0: Dim("batch", min=1, max=32)},),
        precision=options.precision,
        name=options.model,
    )
    verification = compiled.verify(batch)
    print(verification)
    if not verification.passed:
        raise SystemExit("the compiled model differs from eager")
    return compiled


def photographs() -> list[Image.Image]:
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(pixels) for pixels in load_sample_images().images]


if __name__ == "__main__":
    main()
