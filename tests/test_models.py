"""Whole models, every family of torchvision's classifiers among them, against float64 eager."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
import torch
import torchvision
from torch import fx, nn
from torch.export import Dim
from torch.utils import _pytree as pytree
from torchvision.models.maxvit import MaxVit
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.vision_transformer import VisionTransformer

import torch2trt
from tests.models.bert import bert, bert_inputs
from tests.models.narrow import narrow
from tests.models.nested import Boxes, Detector, Features
from tests.models.unet import UNet
from tests.models.vit import ViT
from torch2trt import api
from torch2trt.graph.program import Program
from torch2trt.runtime.module import EngineModule
from torch2trt.settings import Precision, Settings
from torch2trt.tools.weights import randomize

LIMITS: dict[Precision, float] = {"fp32": 5e-6, "fp16": 6e-3, "bf16": 6e-2}
"""Largest error of the reference interpreter, relative to the output's scale: three times the largest measured."""

IMAGE = (2, 3, 64, 64)


@dataclass(frozen=True)
class Model:
    """A model and an example call."""

    name: str
    make: Callable[[], nn.Module]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def module(self, device: str = "cpu") -> nn.Module:
        """The model with seeded weights that keep activations at unit scale."""
        torch.manual_seed(0)
        module = self.make().eval()
        randomize(module, self.args, self.kwargs)
        return module.to(device)


def classifier(name: str, shape: tuple[int, ...] = IMAGE, make: Callable[[], nn.Module] | None = None) -> Model:
    def library() -> nn.Module:
        with warnings.catch_warnings():
            # GoogLeNet and Inception say that their initialisation is slow.
            warnings.simplefilter("ignore")
            return torchvision.models.get_model(name, weights=None, num_classes=10)

    return Model(name, make or library, (torch.randn(shape, generator=torch.Generator().manual_seed(1)),))


def residual(**options: int) -> Callable[[], nn.Module]:
    """A residual network of one bottleneck a stage."""
    return lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, **options)


def small_vit() -> nn.Module:
    return VisionTransformer(64, 16, num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10)


def small_maxvit() -> nn.Module:
    return MaxVit((64, 64), 16, 4, [16, 32], [1, 1], head_dim=8, stochastic_depth_prob=0.1, num_classes=10)


CLASSIFIERS = {
    model.name: model
    for model in (
        classifier("alexnet", make=narrow("alexnet")),
        classifier("vgg11_bn", make=narrow("vgg11_bn")),
        classifier("googlenet"),
        classifier("inception_v3", (2, 3, 80, 80)),
        classifier("densenet121"),
        classifier("squeezenet1_1"),
        classifier("shufflenet_v2_x0_5"),
        classifier("mobilenet_v2"),
        classifier("mobilenet_v3_small"),
        classifier("mnasnet0_5"),
        classifier("resnet18"),
        classifier("resnext", make=residual(groups=32, width_per_group=4)),
        classifier("wide_resnet", make=residual(width_per_group=128)),
        classifier("efficientnet_b0"),
        classifier("efficientnet_v2_s"),
        classifier("regnet_x_400mf"),
        classifier("regnet_y_400mf"),
        classifier("convnext_tiny"),
        classifier("vit", make=small_vit),
        classifier("swin_t"),
        classifier("swin_v2_t"),
        classifier("maxvit", make=small_maxvit),
    )
}

SQUARE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
IDS, MASK = bert_inputs()

OWN = {
    model.name: model
    for model in (
        Model("vit-module", lambda: ViT("module"), (SQUARE,)),
        Model("vit-function", lambda: ViT("function"), (SQUARE,)),
        Model("unet", UNet, (SQUARE,)),
        Model("unet-group-bilinear", lambda: UNet("group", "bilinear"), (SQUARE,)),
        Model("bert", bert, (), {"input_ids": IDS, "attention_mask": MASK}),
    )
}

MODELS = CLASSIFIERS | OWN


def compiled(model: Model, precision: Precision, **options: Any) -> EngineModule:
    return torch2trt.compile(model.module(), model.args, model.kwargs, precision=precision, progress="none", **options)


def verify(module: EngineModule, precision: Precision, *args: Any, **kwargs: Any) -> None:
    """Compare the network that TensorRT was given with float64 eager."""
    found = module.verify(*args, **kwargs)
    assert found.passed, str(found)
    if found.ran == "reference":
        assert found.max_rel_error <= LIMITS[precision], str(found)


# torchvision's classifiers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_family_of_classifiers(name: str) -> None:
    model = CLASSIFIERS[name]
    module = compiled(model, "fp32")
    assert len(module.artifact.plan) > 10_000
    assert module.report["layers"] > 10
    verify(module, "fp32", *model.args)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "convnext_tiny", "swin_v2_t", "vit"])
def test_classifiers_in_16_bits(name: str, precision: Precision) -> None:
    model = CLASSIFIERS[name]
    verify(compiled(model, precision), precision, *model.args)


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "swin_t", "maxvit"])
def test_classifiers_with_a_dynamic_batch(name: str) -> None:
    model = CLASSIFIERS[name]
    module = compiled(model, "fp32", dynamic_shapes=({0: Dim("batch", min=1, max=5)},))
    for batch in (1, 2, 5):
        verify(module, "fp32", torch.randn(batch, *IMAGE[1:]))


def test_classifiers_made_in_16_bits() -> None:
    model = CLASSIFIERS["resnet18"]
    images = model.args[0].half()
    module = torch2trt.compile(model.module().half(), (images,), progress="none")
    assert module.artifact.precision == "fp16"
    assert module.reference(images).dtype == torch.float16
    verify(module, "fp16", images)


@pytest.mark.sweep
@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_every_classifier(name: str) -> None:
    size = {"inception_v3": 96, "maxvit_t": 224}.get(name, 224 if name.startswith("vit") else 64)
    model = classifier(name, (1, 3, size, size))
    with torch.device("meta"):
        weights = sum(value.numel() for value in model.make().parameters()) * 4
    if psutil.virtual_memory().available < 6 * weights:
        pytest.skip(f"its weights are {weights / 2**30:.1f} GiB, for which this machine has too little memory")
    verify(compiled(model, "fp32"), "fp32", *model.args)


# Our own models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("name", OWN)
def test_own_models(name: str, precision: Precision) -> None:
    model = OWN[name]
    shapes: Any = ({0: Dim("batch", min=1, max=5)},)
    sizes: list[tuple[int, ...]] = [(1,), (2,), (5,)]
    if name == "bert":
        axes = {0: Dim("batch", min=1, max=5), 1: Dim("length", min=2, max=64)}
        shapes = {"input_ids": axes, "attention_mask": axes}
        sizes = [(1, 2), (2, 10), (5, 64), (1, 64)]
    module = compiled(model, precision, dynamic_shapes=shapes)
    for size in sizes:
        if name == "bert":
            ids, mask = bert_inputs(*size)
            verify(module, precision, input_ids=ids, attention_mask=mask)
        else:
            verify(module, precision, torch.randn(*size, *SQUARE.shape[1:]))


@pytest.mark.parametrize("precision", LIMITS)
def test_nested_arguments_and_results(precision: Precision) -> None:
    torch.manual_seed(0)
    args = (
        torch.randn(2, 3, 16, 16),
        (torch.randn(2, 8, 4, 4), [torch.randn(2, 8)]),
        {"gain": 1 + torch.rand(1), "mode": "centred"},
    )
    kwargs = {"mask": torch.rand(2, 8, 8, 8) > 0.5, "normalise": False}
    model = Model("nested", Detector, args, kwargs)
    axis = {0: Dim("batch", min=1, max=4)}
    shapes = {
        "image": axis,
        "extra": (axis, [axis]),
        "options": {"gain": None, "mode": None},
        "mask": axis,
        "normalise": None,
    }
    module = compiled(model, precision, dynamic_shapes=shapes)
    for batch in (1, 2, 4):
        call = pytree.tree_map_only(torch.Tensor, lambda value, batch=batch: resized(value, batch), (args, kwargs))
        verify(module, precision, *call[0], **call[1])
        result = module.reference(*call[0], **call[1])
        assert isinstance(result["features"], Features)
        assert result["features"].image is call[0][0]
        assert result["features"].mask is call[1]["mask"]
        assert isinstance(result["boxes"], Boxes)
        assert result["best"][1:] == (None, batch)
        assert result["options"] == [False, "centred", 3]
    without = Model("nested", Detector, args)
    result = compiled(without, precision).reference(*args)
    assert result["features"].mask is None
    assert torch.allclose(result["boxes"].scores.sum(1), torch.ones(2), atol=1e-2)


def resized(value: torch.Tensor, batch: int) -> torch.Tensor:
    return value if value.numel() == 1 else value[torch.arange(batch) % len(value)]


# What holds of every Program ------------------------------------------------------------------------------------------


class Checking(fx.Interpreter):
    """Runs a Program and compares every result with what the graph says of it."""

    def __init__(self, program: Program, sizes: dict[str, int]) -> None:
        super().__init__(program.graph)
        self.program = program
        self.sizes = sizes

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_function" and not self.program.is_size(n):
            found, expected = pytree.tree_leaves(value), self.program.result(n)
            for one, spec in zip(found, expected if isinstance(expected, list) else [expected], strict=True):
                assert one.dtype == spec.dtype, n.format_node()
                assert tuple(one.shape) == spec.at(self.sizes), n.format_node()
        return value


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "maxvit", "vit-module", "unet-group-bilinear"])
def test_every_node_is_what_the_graph_says(name: str, precision: Precision) -> None:
    model = MODELS[name]
    shapes = ({0: Dim("batch", min=1, max=5)},)
    program = api.capture(model.module(), model.args, dynamic_shapes=shapes)
    program = api.optimize(program, Settings(precision=precision))
    weights = program.weights.evaluate()
    for batch in (1, 5):
        images = torch.randn(batch, *model.args[0].shape[1:])
        inputs = [images, *(weights[str(node.target)] for node in program.weight_placeholders)]
        with torch.no_grad():
            Checking(program, {"batch": batch}).run(*inputs, enable_io_processing=False)


# On a GPU -------------------------------------------------------------------------------------------------------------

ENGINES: list[tuple[str, Precision]] = [
    ("resnet18", "fp32"),
    ("resnet18", "fp16"),
    ("mobilenet_v3_small", "fp16"),
    ("shufflenet_v2_x0_5", "fp32"),
    ("vit-module", "fp16"),
    ("unet", "bf16"),
    ("unet-group-bilinear", "fp16"),
    ("bert", "fp16"),
    ("maxvit", "fp32"),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "precision"), ENGINES)
def test_engines(name: str, precision: Precision) -> None:
    model = MODELS[name]
    shapes = ({0: Dim("batch", min=1, max=5)},) if model.args else None
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda value: value.cuda(), (model.args, model.kwargs))
    module = torch2trt.compile(
        model.module("cuda"),
        args,
        kwargs,
        dynamic_shapes=shapes,
        precision=precision,
        optimization_level=1,
        build_in_subprocess=True,
        build_timeout=300,
        progress="none",
    )
    for batch in (1, 2, 5) if model.args else (2,):
        call = [resized(value, batch) for value in args]
        found = module.verify(*call, **kwargs)
        assert found.ran == "engine"
        assert found.passed, str(found)
        assert math.isfinite(found.max_abs_error)
