"""The call and the class of NVIDIA's project of this name, whose scripts so go on running."""

from __future__ import annotations

import dataclasses
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from torch2trt import api
from torch2trt.errors import ArtifactError, DynamicShapeError, ExampleInputError, SettingError
from torch2trt.graph.program import Program
from torch2trt.graph.signature import Leaf, TensorLeaf
from torch2trt.runtime.module import EngineModule
from torch2trt.settings import Settings
from torch2trt.sizes import DimRange
from torch2trt.trt import flavour as flavours

__all__ = ["TRTModule", "torch2trt"]

# Arguments that change nothing here, and why.
_IGNORED = {
    "strict_type_constraints": "every layer computes in the precision asked for",
    "keep_network": "compiled.reference() and compiled.verify() read the network",
    "use_onnx": "modules are captured by torch.export",
    "onnx_opset": "modules are captured by torch.export",
    "avg_timing_iterations": "TensorRT decides",
    "gpu_fallback": "everything runs on the GPU",
    "dla_core": "everything runs on the GPU",
    "int8_calib_dataset": "without int8_mode there is nothing to calibrate",
    "int8_calib_algorithm": "without int8_mode there is nothing to calibrate",
    "int8_calib_batch_size": "without int8_mode there is nothing to calibrate",
}


def torch2trt(
    module: nn.Module,
    inputs: Any,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    log_level: Any = None,
    fp16_mode: bool = False,
    max_workspace_size: int | None = None,
    *,
    int8_mode: bool = False,
    max_batch_size: int | None = None,
    min_shapes: Any = None,
    opt_shapes: Any = None,
    max_shapes: Any = None,
    default_device_type: Any = None,
    device_types: Mapping[nn.Module, Any] | None = None,
    **settings: Any,
) -> TRTModule:
    """Compile a module; :func:`torch2trt.compile` is the call to prefer in new code.

    Args:
        module: in evaluation mode, on the device where it is to run.
        inputs: the module's arguments: a list or tuple by position, a dict by name; or a data set, an object with
            ``__len__`` and ``__getitem__`` that yields such. Sizes that differ within a data set become dynamic.
        input_names, output_names: names of the engine's tensors; unset: ``input_0``, …, ``output_0``, ….
        log_level: ignored: TensorRT's log goes to the logger ``torch2trt.tensorrt`` of Python's ``logging``.
        fp16_mode: compute in float16; inputs and outputs keep the dtypes that the module has.
        max_workspace_size: in bytes; unset: all of the GPU's memory.
        max_batch_size: makes the first dimension of every input dynamic, from 1 to this.
        min_shapes, opt_shapes, max_shapes: a shape for each input, in the order and structure of ``inputs``; sizes
            that differ between the first and the last become dynamic.
        settings: further fields of :class:`torch2trt.Settings`.

    Raises:
        SettingError: what is not supported (``int8_mode``, DLA) or not known.
        Torch2TRTError: whatever :func:`torch2trt.compile` raises.
    """
    _refuse(int8_mode, default_device_type, device_types or {})
    if log_level is not None:
        _warn("log_level", "TensorRT's log goes to logging.getLogger('torch2trt.tensorrt')")
    for name in settings.keys() & _IGNORED.keys():
        if settings.pop(name):
            _warn(name, _IGNORED[name])
    if fp16_mode:
        settings.setdefault("precision", "fp16")
    if max_workspace_size is not None:
        settings.setdefault("workspace", max_workspace_size)
    # Who binds the engine's tensors expects them as NVIDIA's project has them.
    chosen = Settings.make(**{"keep_io_layouts": False, **settings})
    flavour = flavours.load(chosen.flavour)
    samples = _samples(inputs)
    spans = _spans(samples, min_shapes, opt_shapes, max_shapes, max_batch_size)
    args, kwargs, dynamic_shapes = _example(samples[0], spans)
    program = api.optimize(api.capture(module, args, kwargs, dynamic_shapes=dynamic_shapes), chosen, flavour)
    _rename(program, input_names, output_names)
    return TRTModule(api.build(program, flavour, chosen, truth=api.truth_of(module)))


class TRTModule(nn.Module):
    """A compiled module, or an empty one that :meth:`load_state_dict` fills.

    Args:
        compiled: what it runs.
        names: not looked at: where an engine and its tensors' names are passed, the engine is refused.
    """

    def __init__(self, compiled: EngineModule | None = None, *names: Any) -> None:
        super().__init__()
        if compiled is not None and not isinstance(compiled, EngineModule):
            raise ArtifactError(
                f"takes what torch2trt.compile returns, got {type(compiled).__name__}",
                subject="TRTModule",
                hint="an engine alone does not say how the module was called: convert the module again",
            )
        self.compiled = compiled

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the engine as the module was called that it was made from.

        Raises:
            Torch2TRTError: as :meth:`torch2trt.EngineModule.forward` says.
        """
        return self._filled(*args, **kwargs)

    @property
    def engine(self) -> _Plan:
        """The engine, of which ``engine.serialize()`` gives the bytes for trtexec, Triton or DeepStream."""
        return _Plan(self._filled.artifact.plan)

    @property
    def input_names(self) -> list[str]:
        """Names of the engine's inputs."""
        return [leaf.name for leaf in self._filled.artifact.signature.tensor_inputs]

    @property
    def output_names(self) -> list[str]:
        """Names of the engine's outputs."""
        return list(dict.fromkeys(leaf.name for leaf in self._filled.artifact.signature.tensor_outputs))

    @property
    def _filled(self) -> EngineModule:
        if self.compiled is None:
            raise ArtifactError("is empty", subject="TRTModule", hint="load_state_dict(torch.load(path)) fills it")
        return self.compiled

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        state = state_dict.get(f"{prefix}compiled._extra_state")
        if isinstance(state, torch.Tensor):
            self.compiled = api.load(state.cpu().numpy().tobytes())
        elif f"{prefix}engine" in state_dict:
            raise ArtifactError(
                "was saved by NVIDIA's torch2trt, and such engines run only with the TensorRT that built them",
                subject=prefix or "state_dict",
                hint="convert the module again and save that",
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)


@dataclasses.dataclass(frozen=True)
class _Plan:
    plan: bytes

    def serialize(self) -> bytes:
        """The serialized engine."""
        return self.plan


# Arguments ------------------------------------------------------------------------------------------------------------


def _refuse(int8_mode: bool, default_device_type: Any, device_types: Mapping[nn.Module, Any]) -> None:
    if int8_mode:
        raise SettingError(
            "is not supported: TensorRT's own calibrators are gone from its newer versions",
            subject="int8_mode",
            hint="fp16_mode=True is",
        )
    for name, kinds in (("default_device_type", [default_device_type]), ("device_types", device_types.values())):
        if any(getattr(kind, "name", kind) not in (None, "GPU") for kind in kinds):
            raise SettingError("engines run on the GPU, the DLA is not supported", subject=name)


def _warn(name: str, reason: str) -> None:
    # The level of whoever called torch2trt(); Python shows a warning once for each place.
    warnings.warn(f"torch2trt ignores {name}: {reason}", UserWarning, stacklevel=3)


def _samples(inputs: Any) -> list[Any]:
    """The samples of a data set, or the one that the inputs are."""
    if isinstance(inputs, list | tuple | dict):
        return [inputs]
    if isinstance(inputs, torch.Tensor) or not (hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__")):
        raise ExampleInputError(
            f"takes a list, a tuple, a dict or a data set, got {type(inputs).__name__}",
            subject="inputs",
            hint="for one tensor x, pass [x]",
        )
    if not len(inputs):
        raise ExampleInputError("the data set is empty", subject="inputs")
    return [inputs[index] for index in range(len(inputs))]


def _tensors(sample: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(sample) if isinstance(leaf, torch.Tensor)]


def _spans(
    samples: Sequence[Any], min_shapes: Any, opt_shapes: Any, max_shapes: Any, max_batch_size: int | None
) -> list[list[DimRange]]:
    """The range of each dimension of each tensor: as said, or as met in the samples."""
    met = list(zip(*([tuple(tensor.shape) for tensor in _tensors(sample)] for sample in samples), strict=True))
    low = _shapes(min_shapes, met, min, "min_shapes")
    opt = _shapes(opt_shapes, met, statistics.median_low, "opt_shapes")
    high = _shapes(max_shapes, met, max, "max_shapes")
    if max_batch_size is not None:
        low = [(1, *shape[1:]) for shape in low]
        high = [(max_batch_size, *shape[1:]) for shape in high]
    spans = [[DimRange(*sizes) for sizes in zip(*shapes, strict=True)] for shapes in zip(low, opt, high, strict=True)]
    for position, tensor in enumerate(spans):
        for axis, span in enumerate(tensor):
            if not span.min <= span.opt <= span.max:
                raise DynamicShapeError(
                    f"axis {axis}: {span.min} ≤ {span.opt} ≤ {span.max} is false",
                    subject=f"input {position}",
                    hint="the usual size is that of opt_shapes, or of the inputs",
                )
    return spans


def _shapes(given: Any, met: Sequence[Sequence[tuple[int, ...]]], summary: Any, name: str) -> list[tuple[int, ...]]:
    if given is None:
        return [tuple(summary(sizes) for sizes in zip(*shapes, strict=True)) for shapes in met]
    shapes = [tuple(int(size) for size in shape) for shape in pytree.tree_leaves(given, is_leaf=_is_shape)]
    ranks = [len(shapes_of_one[0]) for shapes_of_one in met]
    if [len(shape) for shape in shapes] != ranks:
        raise DynamicShapeError(f"takes a shape for each input, of ranks {ranks}; got {given}", subject=name)
    return shapes


def _is_shape(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(size, int) for size in value)


def _example(sample: Any, spans: Sequence[Sequence[DimRange]]) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Positional and named arguments of the usual sizes, and their dynamic dimensions for ``torch.export``."""
    remaining = iter(spans)
    leaves, structure = pytree.tree_flatten(sample if isinstance(sample, dict) else tuple(sample))
    values: list[Any] = []
    axes: list[dict[int, Any] | None] = []
    for leaf in leaves:
        if not isinstance(leaf, torch.Tensor):
            values.append(leaf)
            axes.append(None)
            continue
        sizes = next(remaining)
        for axis, span in enumerate(sizes):
            if leaf.shape[axis] != span.opt:
                indices = torch.arange(span.opt, device=leaf.device) % leaf.shape[axis]
                leaf = leaf.index_select(axis, indices)
        values.append(leaf)
        # Relations between dimensions, such as one batch for all inputs, are found by the export.
        axes.append({axis: Dim.DYNAMIC(min=s.min, max=s.max) for axis, s in enumerate(sizes) if s.min < s.max} or None)
    example, shapes = pytree.tree_unflatten(values, structure), pytree.tree_unflatten(axes, structure)
    dynamic_shapes = shapes if any(axes) else None
    return ((), example, dynamic_shapes) if isinstance(example, dict) else (example, {}, dynamic_shapes)


# Names ----------------------------------------------------------------------------------------------------------------


def _rename(program: Program, input_names: Sequence[str] | None, output_names: Sequence[str] | None) -> None:
    """Give the engine's tensors other names; unset ones are numbered as NVIDIA's project numbers them."""
    signature = program.signature
    inputs = _names([leaf.name for leaf in signature.tensor_inputs], input_names, "input")
    outputs = _names([leaf.name for leaf in signature.tensor_outputs], output_names, "output")
    taken = {str(node.target) for node in program.weight_placeholders}
    if clash := taken.intersection(inputs.values()):
        raise SettingError(f"a weight is called {min(clash)!r} too", subject="input_names")
    for node in program.input_placeholders:
        node.target = inputs[str(node.target)]
    program.graph.recompile()
    program.signature = dataclasses.replace(
        signature,
        inputs=tuple(_renamed(leaf, inputs) for leaf in signature.inputs),  # type: ignore[misc]
        outputs=tuple(_renamed(leaf, outputs) for leaf in signature.outputs),
    )


def _names(old: list[str], given: Sequence[str] | None, kind: str) -> dict[str, str]:
    new = [f"{kind}_{number}" for number in range(len(old))] if given is None else list(given)
    if len(new) != len(old) or len(set(new)) != len(new):
        raise SettingError(f"takes {len(old)} different name(s), got {new}", subject=f"{kind}_names")
    # A tensor that the module returns twice has the first of its names.
    return dict(reversed(list(zip(old, new, strict=True))))


def _renamed(leaf: Leaf, names: Mapping[str, str]) -> Leaf:
    return dataclasses.replace(leaf, name=names[leaf.name]) if isinstance(leaf, TensorLeaf) else leaf
