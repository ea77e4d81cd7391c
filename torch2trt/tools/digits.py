"""scikit-learn's handwritten digits, and a small network that learns to read them in seconds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Digits:
    """Images, [N, 1, 8, 8] float32 from 0 to 1, and their labels, [N] int64."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def load() -> Digits:
    """The 1,797 images, a quarter of them held out; the same split every time."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(data.target).long()
    train, test = train_test_split(torch.arange(len(labels)), test_size=0.25, random_state=0, stratify=labels)
    return Digits(images[train], labels[train], images[test], labels[test])


class DigitsCNN(nn.Module):
    """Convolutions with batch norm and a residual block: what fusion has to do in a small place."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = _conv(1, width)
        self.block = _conv(width, width)
        self.out = _conv(width, width)
        self.wide = _conv(width, 2 * width)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, 10] of images [N, 1, 8, 8]."""
        x = F.relu(self.stem(images))
        x = F.relu(self.out(F.relu(self.block(x))) + x)
        x = F.relu(self.wide(F.max_pool2d(x, 2)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))


def train(digits: Digits, *, epochs: int = 8, seed: int = 0) -> DigitsCNN:
    """Train on the CPU; the model comes back in evaluation mode."""
    torch.manual_seed(seed)
    model = DigitsCNN().train()
    batches = -(-len(digits.train_labels) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=epochs * batches)
    with _one_thread():
        for _ in range(epochs):
            for batch in torch.randperm(len(digits.train_labels)).split(64):
                loss = F.cross_entropy(model(digits.train_images[batch]), digits.train_labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Steps of a millisecond: on a busy machine, threads that wait for each other make them tens of times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The fraction of images, logits [N, 10], that are read as their labels [N]."""
    return float((logits.cpu().argmax(1) == labels).double().mean())
