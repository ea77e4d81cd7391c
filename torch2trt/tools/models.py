"""Models by name: ``torchvision:resnet50``, ``transformers:BertModel``, ``module:callable``, a ``.pt2`` file."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import safetensors.torch
import torch
from torch import nn

from torch2trt.errors import ExampleInputError, MissingPackageError, ModelNameError, WeightError
from torch2trt.tools import inputs
from torch2trt.tools.inputs import Example, InputSpec, Span

_FORMS = "torchvision:NAME, timm:NAME, transformers:CLASS, package.module:CALLABLE, FILE.py:CALLABLE or FILE.pt2"
_TOKENS = 128
_FRAMES = 16


@dataclass(frozen=True)
class Model:
    """A module in evaluation mode, and how to call it."""

    name: str
    module: nn.Module
    default: tuple[InputSpec, ...] | Example = ()
    """The inputs that it takes where none are described; empty: unknown."""
    random: bool = False
    """Whether its weights are initial ones."""

    def example(
        self, specs: Sequence[InputSpec] = (), *, seed: int = 0, spans: Mapping[str, Span] | None = None
    ) -> Example:
        """The inputs described, or the model's own where none are; the rest is :func:`torch2trt.tools.inputs.draw`'s.

        Raises:
            ExampleInputError: none are described and none known, or forward does not take them.
        """
        if isinstance(self.default, Example) and not specs:
            return self.default
        specs = specs or self.default  # type: ignore[assignment]
        if not specs:
            forward = inputs.describe_forward(self.module)
            hint = f"pass one --input for each argument of {forward}, as in --input 1x3x224x224"
            raise ExampleInputError("has no inputs of its own", subject=self.name, hint=hint)
        return inputs.draw(self.module, specs, seed=seed, spans=spans)


def resolve(
    name: str, *, seed: int = 0, weights: Path | None = None, arguments: Mapping[str, Any] | None = None
) -> Model:
    """The model that a name means.

    torchvision's, timm's and transformers' models have their initial weights, which
    :func:`torch2trt.tools.weights.randomize` makes worth computing with.

    Args:
        seed: of the initial weights.
        weights: a file that holds the model's state_dict, from safetensors or ``torch.save``.
        arguments: keywords for what makes the model; for transformers, of its configuration.

    Raises:
        ModelNameError: the name means nothing, or what it means is no module.
        MissingPackageError: the package that it names is not installed.
        WeightError: the weights cannot be read or do not fit.
    """
    torch.manual_seed(seed)
    arguments = dict(arguments or {})
    source, _, item = name.rpartition(":")
    if name.endswith(".pt2"):
        model = _load_exported(name)
    elif not source or not item:
        raise ModelNameError("names no model", subject=name, hint=_FORMS)
    elif source in _LIBRARIES:
        model = _LIBRARIES[source](item, arguments)
    else:
        model = _call(_import(source), item, arguments)
    if weights is not None:
        load_weights(model.module, weights)
        return dataclasses.replace(model, random=False)
    return model


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a state_dict from a file; no code in it runs.

    Raises:
        WeightError: the file cannot be read, or holds other names or shapes than the module has.
    """
    try:
        if path.suffix == ".safetensors":
            safetensors.torch.load_model(module, path)
        else:
            module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # files that are none of these fail in every way
        hint = "pass a state_dict of this model, as torch.save or safetensors wrote it"
        raise WeightError(str(error), subject=str(path), hint=hint) from error


# The libraries --------------------------------------------------------------------------------------------------------


def _torchvision(name: str, arguments: dict[str, Any]) -> Model:
    models = _library("torchvision.models")
    if name not in models.list_models():
        raise _unknown(f"torchvision:{name}", name, models.list_models())
    builder = models.get_model_builder(name)
    family = builder.__module__
    own: dict[str, Any] = {}
    if "weights_backbone" in inspect.signature(builder).parameters:
        own["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        own["init_weights"] = True  # without it they warn that this will change
    module = builder(weights=None, **{**own, **arguments})
    transforms = models.get_model_weights(name).DEFAULT.transforms()
    default = ""
    if ".video." in family:
        height, width = transforms.crop_size
        default = f"1x3x{_FRAMES}x{height}x{width}"
    elif ".segmentation." in family:
        default = f"1x3x{transforms.resize_size[0]}x{transforms.resize_size[0]}"
    elif hasattr(transforms, "crop_size"):
        default = f"1x3x{transforms.crop_size[0]}x{transforms.crop_size[0]}"
    return Model(name, module.eval(), (InputSpec.parse(default),) if default else (), random=True)


def _timm(name: str, arguments: dict[str, Any]) -> Model:
    timm = _library("timm")
    if not timm.is_model(name):
        raise _unknown(f"timm:{name}", name, timm.list_models())
    module = timm.create_model(name, pretrained=False, **arguments)
    size = "x".join(map(str, module.pretrained_cfg["input_size"]))
    return Model(name, module.eval(), (InputSpec.parse(f"1x{size}"),), random=True)


def _transformers(name: str, arguments: dict[str, Any]) -> Model:
    transformers = _library("transformers")
    kind: Any = getattr(transformers, name, None)
    if getattr(kind, "config_class", None) is None:
        raise _unknown(f"transformers:{name}", name, dir(transformers))
    config = kind.config_class(**arguments)
    if not config.is_encoder_decoder:
        config.use_cache = False
    module = kind(config)
    texts = []
    match module.main_input_name:
        case "input_ids":
            tokens = min(_TOKENS, getattr(config, "max_position_embeddings", _TOKENS))
            texts = [f"{ids}:int64:1x{tokens}" for ids in ("input_ids", "attention_mask")]
            if config.is_encoder_decoder:
                texts.append(f"decoder_input_ids:int64:1x{tokens}")
        case "pixel_values":
            size = getattr(config, "image_size", 224)
            height, width = (size, size) if isinstance(size, int) else size
            texts = [f"pixel_values:1x{getattr(config, 'num_channels', 3)}x{height}x{width}"]
    return Model(name, module.eval(), tuple(map(InputSpec.parse, texts)), random=True)


_LIBRARIES: dict[str, Callable[[str, dict[str, Any]], Model]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
}


def _library(name: str) -> Any:
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingPackageError("is not installed", subject=package, hint=f"pip install {package}") from error


def _unknown(full: str, name: str, known: Iterable[str]) -> ModelNameError:
    near = difflib.get_close_matches(name, list(known), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the names are {full.partition(':')[0]}'s own"
    return ModelNameError("is not known", subject=full, hint=hint)


# Files and the user's own code ----------------------------------------------------------------------------------------


def _load_exported(path: str) -> Model:
    try:
        exported = torch.export.load(path)
    except (OSError, RuntimeError, ValueError) as error:
        hint = "pass a file that torch.export.save wrote"
        raise ModelNameError(f"cannot be read: {error}", subject=path, hint=hint) from error
    module = exported.module()
    for node in module.graph.find_nodes(
        op="call_function", target=torch.ops.aten._assert_tensor_metadata.default, sort=False
    ):
        # They hold the dtypes of the export against verify's float64.
        module.graph.erase_node(node)
    module.recompile()
    for child in module.modules():
        child.training = False  # .eval() is refused; what was exported is fixed
    args, kwargs = exported.example_inputs or ((), {})
    return Model(Path(path).stem, module, Example(args, kwargs) if args or kwargs else ())


def _import(source: str) -> ModuleType:
    """A module of the user's by file or by its dotted name, which may lie in the current folder."""
    if source.endswith(".py"):
        path = Path(source)
        spec = importlib.util.spec_from_file_location(path.name, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise ModelNameError("is no file", subject=source, hint=_FORMS)
        # As when Python runs the file: it finds its neighbours, and its classes find it.
        sys.path.insert(0, str(path.resolve().parent))
        module = sys.modules[path.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(source)
    except ModuleNotFoundError as error:
        # What the user's own module fails to import is the user's error, shown as it is.
        if error.name is None or not f"{source}.".startswith(f"{error.name}."):
            raise
        raise ModelNameError(str(error), subject=source, hint=_FORMS) from error


def _call(module: ModuleType, item: str, arguments: dict[str, Any]) -> Model:
    subject = f"{module.__name__}:{item}"
    found = getattr(module, item, None)
    if found is None:
        raise _unknown(subject, item, dir(module))
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise ModelNameError("is neither a module nor callable", subject=subject, hint=_FORMS)
        found = found(**arguments)
    if not isinstance(found, nn.Module):
        raise ModelNameError(f"made a {type(found).__name__}, not an nn.Module", subject=subject)
    return Model(item, found.eval())
