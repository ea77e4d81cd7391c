"""Training in eager, evaluation on an engine: one line in an ordinary training script.

    python examples/train_and_evaluate.py --epochs 5 --precision fp16

With gradients enabled the model stays in eager. Under torch.no_grad() it runs on an engine, which is built at the first
evaluation and again when the weights have changed since. On a machine without a GPU the network runs in the reference
interpreter.
"""

from __future__ import annotations

import argparse
import logging
import time

import torch
import torch.nn.functional as F
from torch import nn

from torch2trt.tools import digits


def make_model(width: int = 32) -> nn.Module:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    features = [*block(1, width), *block(width, width), nn.MaxPool2d(2), *block(width, 2 * width)]
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description="Train on handwritten digits, evaluate with TensorRT.")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--precision", choices=("fp32", "tf32", "fp16", "bf16"))
    options = parser.parse_args(arguments)

    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("torch2trt.backend").setLevel(logging.INFO)  # says when an engine is built

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = digits.load()
    images, labels = data.train_images.to(device), data.train_labels.to(device)
    held_out = data.test_images.to(device)

    model = make_model().to(device)
    model.compile(backend="torch2trt", options={"precision": options.precision})

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    accuracy = 0.0
    for epoch in range(options.epochs):
        model.train()
        # Batches of one size: torch.compile captures the model anew for others.
        for batch in torch.randperm(len(labels), device=device).split(64)[:-1]:
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        model.eval()
        start = time.perf_counter()
        with torch.no_grad():
            logits = model(held_out)
        accuracy = digits.accuracy(logits, data.test_labels)
        print(f"epoch {epoch}: {accuracy:.1%} of the held-out digits, in {time.perf_counter() - start:.1f} s")
    return accuracy


if __name__ == "__main__":
    main()
