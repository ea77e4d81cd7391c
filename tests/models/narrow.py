"""torchvision's nets with classifiers whose weights fit anywhere."""

from __future__ import annotations

from collections.abc import Callable

import torchvision
from torch import nn


def narrow(name: str) -> Callable[[], nn.Module]:
    """AlexNet and VGG with hidden layers of 64 instead of 4096, which is where nearly all of their weights are."""

    def make() -> nn.Module:
        module = torchvision.models.get_model(name, weights=None, num_classes=10)
        for index, layer in enumerate(module.classifier):
            if isinstance(layer, nn.Linear):
                sizes = (64 if size == 4096 else size for size in (layer.in_features, layer.out_features))
                module.classifier[index] = nn.Linear(*sizes)
        return module

    return make
