"""Our own nets, from the published architectures."""

from __future__ import annotations

import torch

from benchmarks.models.diffusion import Autoencoder, DiffusionUNet
from benchmarks.models.graphs import AttentionLayer, GraphNet, MeanLayer
from benchmarks.models.tagger import Tagger
from benchmarks.models.yolov5 import YOLOv5
from benchmarks.models.yolov8 import YOLOv8
from tests.model_suite.model import Inputs, Model, ids, tensors
from tests.models.unet import UNet
from tests.models.vit import ViT


def _graph() -> Inputs:
    generator = torch.Generator().manual_seed(1)
    edges = torch.randint(0, 12, (2, 40), generator=generator)
    return (torch.randn(12, 8, generator=generator), edges), {}


def _diffusion() -> Inputs:
    (latents, text), _ = tensors((2, 4, 16, 16), (2, 7, 24))()
    return (latents, torch.tensor([3, 700]), text), {}


MODELS = [
    Model("own:yolov5", lambda: YOLOv5(width=16), tensors((1, 3, 64, 96))),
    Model("own:yolov8", YOLOv8, tensors((1, 3, 64, 96))),
    Model("own:lstm_tagger", Tagger, lambda: ((ids(2, 9),), {})),
    Model("own:gnn_mean", lambda: GraphNet(MeanLayer), _graph),
    Model("own:gnn_attention", lambda: GraphNet(AttentionLayer), _graph),
    Model("own:diffusion_unet", DiffusionUNet, _diffusion),
    Model("own:autoencoder", Autoencoder, tensors((1, 3, 32, 32), (1, 4, 8, 8))),
    Model("own:unet", lambda: UNet("group", "bilinear"), tensors((1, 3, 32, 32))),
    Model("own:vit", lambda: ViT("module"), tensors((1, 3, 32, 32))),
]
