"""Plugins: layers of an engine that torch computes, between TensorRT's own and on TensorRT's stream.

The plan holds a number for each, and the artifact what the number stands for: a plan can name no operator by itself.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch

from torch2trt.errors import EngineError
from torch2trt.sizes import TensorSpec
from torch2trt.trt.dtypes import NAMES
from torch2trt.trt.flavour import Flavour
from torch2trt.trt.logger import make_logger

NAMESPACE, NAME, VERSION = "torch2trt", "TorchOperator", "1"
"""How the plugin registry of TensorRT knows them."""

_FIELD = "key"
_FORMATS = {
    torch.float32: "<f4",
    torch.float16: "<f2",
    torch.bfloat16: "<i2",  # numpy's notation has no such type
    torch.int64: "<i8",
    torch.int32: "<i4",
}
CARRIED = {torch.bool: torch.int32, torch.uint8: torch.int32, torch.int8: torch.int32}
"""TensorRT's plugins take and yield no booleans and no bytes: in the network, these go in another dtype."""

_CHANNELS_LAST = "HWC8"
IMAGE_FORMATS = (_CHANNELS_LAST, "LINEAR")
"""TensorRT's names of the formats that it may choose from for the images of a call that wants them channels-last."""
# TensorRT's convolutions in halves have this format, in which channels are filled up to a multiple of 8.
_VECTOR = 8


class Call(Protocol):
    """What a plugin computes."""

    @property
    def name(self) -> str:
        """What errors call it."""

    @property
    def key(self) -> int:
        """The number by which a plan knows it."""

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """The tensors that it takes."""

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """The tensors that it yields."""

    @property
    def channels_last(self) -> bool:
        """Whether images should lie channels-last in memory."""

    def output_shapes(
        self, shapes: Sequence[Any], constant: Callable[[int], Any], apply: Callable[[str, Any, Any], Any]
    ) -> list[list[Any]]:
        """The shapes of the outputs, computed from those of the inputs."""

    def run(
        self, inputs: Sequence[torch.Tensor], places: Sequence[torch.Tensor] | None = None
    ) -> Sequence[torch.Tensor]:
        """The outputs; the places themselves, if the operator wrote into these."""


_CALLS: dict[int, Call] = {}
_LOCK = threading.Lock()


def register(flavour: Flavour, calls: Iterable[Call]) -> None:
    """Let TensorRT find what the numbers in a plan stand for; before the plan is deserialised.

    Args:
        flavour: one with plugins.
    """
    with _LOCK:  # TensorRT takes a name once
        _creator(flavour)
    _CALLS.update((call.key, call) for call in calls)


def plugin(flavour: Flavour, call: Call) -> Any:
    """The ``IPluginV3`` of a call, for ``INetworkDefinition.add_plugin_v3``; its attribute ``call`` is the call.

    Whoever adds it to a network keeps it alive as long.
    """
    register(flavour, [call])
    return _plugin_class(flavour)(call, runs=False)


@functools.cache
def _plugin_class(flavour: Flavour) -> Any:
    trt = flavour.trt
    interfaces = (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)
    dtypes = {dtype: getattr(trt.DataType, name) for dtype, name in NAMES.items()}

    class TorchOperator(*interfaces):  # type: ignore[misc]
        def __init__(self, call: Call, *, runs: bool) -> None:
            for interface in interfaces:
                interface.__init__(self)
            self.plugin_namespace, self.plugin_name, self.plugin_version = NAMESPACE, NAME, VERSION
            self.num_outputs = len(call.outputs)
            self.timing_cache_id = ""
            self.call = call
            self._runs = runs
            specs = (*call.inputs, *call.outputs)
            self._types = [dtypes[CARRIED.get(spec.dtype, spec.dtype)] for spec in specs]
            self._images = [at for at, spec in enumerate(specs) if call.channels_last and is_image(spec)]
            # TensorRT copies the pointer and not the number. Only the first entry of a field's data can be read back
            # where the bindings are older than numpy 2, which is why there is but one number.
            self._key = np.array([call.key], dtype=np.int64)
            self._fields = [trt.PluginField(_FIELD, self._key, trt.PluginFieldType.INT64)]
            self._collection = trt.PluginFieldCollection(self._fields)

        def clone(self) -> Any:
            return TorchOperator(self.call, runs=self._runs)

        def get_capability_interface(self, type: Any) -> Any:
            return self

        # -- building -------------------------------------------------------------------------------------------------

        def get_output_data_types(self, input_types: Any) -> list[Any]:
            return self._types[len(self.call.inputs) :]

        def get_output_shapes(self, inputs: Any, shape_inputs: Any, expr_builder: Any) -> list[Any]:
            def apply(operation: str, first: Any, second: Any) -> Any:
                return expr_builder.operation(getattr(trt.DimensionOperation, operation), first, second)

            with _reported(flavour, self.call.name):
                known = [[dims[axis] for axis in range(len(dims))] for dims in inputs]
                return [trt.DimsExprs(shape) for shape in self.call.output_shapes(known, expr_builder.constant, apply)]

        def supports_format_combination(self, position: int, tensors: Any, inputs: int) -> bool:
            desc = tensors[position].desc
            if position not in self._images:
                formats = [trt.TensorFormat.LINEAR]
            elif position == self._images[0]:
                formats = [getattr(trt.TensorFormat, name) for name in IMAGE_FORMATS]
            else:
                formats = [tensors[self._images[0]].desc.format]
            return desc.format in formats and bool(desc.type == self._types[position])

        def configure_plugin(self, inputs: Any, outputs: Any) -> None:
            pass

        # -- running --------------------------------------------------------------------------------------------------

        def get_fields_to_serialize(self) -> Any:
            return self._collection

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def set_tactic(self, tactic: int) -> None:
            pass

        def on_shape_change(self, inputs: Any, outputs: Any) -> None:
            pass

        def enqueue(
            self, input_desc: Any, output_desc: Any, inputs: Any, outputs: Any, workspace: int, stream: int
        ) -> None:
            # A build times it on whatever lies in memory, which indices would not survive. There is but one way to
            # compute it, so there is nothing to time.
            if not self._runs:
                return
            with _reported(flavour, self.call.name), _on_stream(stream) as device:
                given = [
                    place_of(address, desc, spec, device).to(spec.dtype)
                    for address, desc, spec in zip(inputs, input_desc, self.call.inputs, strict=True)
                ]
                specs = self.call.outputs
                places = [
                    place_of(address, desc, spec, device)
                    for address, desc, spec in zip(outputs, output_desc, specs, strict=True)
                ]
                fit = not any(spec.dtype in CARRIED for spec in specs)
                for result, place, spec in zip(
                    self.call.run(given, places if fit else None), places, specs, strict=True
                ):
                    copy_result(result, place, spec.dtype)

    def place_of(address: int, desc: Any, spec: TensorSpec, device: torch.device) -> torch.Tensor:
        dtype, shape = CARRIED.get(spec.dtype, spec.dtype), tuple(desc.dims)
        if desc.format != getattr(trt.TensorFormat, _CHANNELS_LAST):
            return tensor_at(address, shape, dtype, device)
        count, channels, height, width = shape
        return tensor_at(address, (count, height, width, channels), dtype, device).permute(0, 3, 1, 2)

    return TorchOperator


@functools.cache
def _creator(flavour: Flavour) -> Any:
    """What makes the plugins of a plan that is deserialised; registered, and alive, as long as the process."""
    trt, make = flavour.trt, _plugin_class(flavour)

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_namespace, self.plugin_version = NAME, NAMESPACE, VERSION
            self._none = np.zeros(1, dtype=np.int64)
            self.field_names = trt.PluginFieldCollection(
                [trt.PluginField(_FIELD, self._none, trt.PluginFieldType.INT64)]
            )

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            with _reported(flavour, name):
                key = int(fields[0].data[0])
                if key not in _CALLS:
                    raise EngineError("the plan calls an operator of torch that its artifact does not name")
                return make(_CALLS[key], runs=phase == trt.TensorRTPhase.RUNTIME)

    creator = Creator()
    if not trt.get_plugin_registry().register_creator(creator, NAMESPACE):
        raise EngineError(f"TensorRT refused the plugin {NAME!r}", subject=NAMESPACE)
    return creator


@contextmanager
def _reported(flavour: Flavour, subject: str) -> Iterator[None]:
    """Log what is raised inside: of an exception TensorRT learns no more than that there was one."""
    try:
        yield
    except Exception as error:
        make_logger(flavour).log(flavour.trt.ILogger.ERROR, f"{subject}: {type(error).__name__}: {error}")
        raise


@contextmanager
def _on_stream(handle: int) -> Iterator[torch.device]:
    """Make a CUDA stream the current one; yields its device.

    Torch's allocator then takes the memory from what belongs to that stream, or to the graph that it captures.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    # The handle 0 is the default stream, of which ExternalStream knows nothing.
    stream = torch.cuda.ExternalStream(handle, device) if handle else torch.cuda.default_stream(device)
    with torch.cuda.stream(stream):
        yield device


class _Memory:
    """Memory that is another's, as the CUDA array interface describes it."""

    def __init__(self, address: int, shape: Sequence[int], format: str) -> None:
        self.__cuda_array_interface__ = {
            "shape": tuple(shape),
            "typestr": format,
            "data": (address, False),
            "version": 2,
        }


def tensor_at(address: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Contiguous memory on a CUDA device as a tensor, without a copy; what is empty has no address.

    Args:
        dtype: one that a plugin can have.
    """
    if 0 in shape:
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    return torch.as_tensor(_Memory(address, shape, _FORMATS[dtype]), device=device).view(dtype)


def is_image(spec: TensorSpec) -> bool:
    """Whether a tensor is one that TensorRT's convolutions in halves can have channels-last, with no channels added."""
    halves = spec.dtype in (torch.float16, torch.bfloat16)
    return halves and spec.rank == 4 and isinstance(spec.shape[1], int) and spec.shape[1] % _VECTOR == 0


def copy_result(result: torch.Tensor, place: torch.Tensor, dtype: torch.dtype) -> None:
    """Write an operator's result where TensorRT wants it, if it is not there already.

    Args:
        dtype: the one that it should have.

    Raises:
        TypeError: it is not what the operator's fake kernel says.
    """
    if result.shape != place.shape or result.dtype != dtype:
        found, wanted = f"{result.dtype}{list(result.shape)}", f"{dtype}{list(place.shape)}"
        raise TypeError(f"it returned {found} where its fake kernel says {wanted}")
    if result is not place:
        place.copy_(result)
