"""Models as others publish them, small and with random weights: each compiles, whole or with the rest in torch."""

from __future__ import annotations

from tests.model_suite import own, timm_nets, torchvision_nets, transformers_nets
from tests.model_suite.model import Model

MODELS: dict[str, Model] = {
    model.name: model for source in (own, torchvision_nets, timm_nets, transformers_nets) for model in source.MODELS
}
"""By name: ``timm:levit_128s``."""
