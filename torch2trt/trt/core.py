"""The core of the network builder: layers checked as they are added, names, constants, inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sympy
import torch

from torch2trt.errors import NetworkError
from torch2trt.sizes import DimRange, Shape, Size, TensorSpec
from torch2trt.trt.dims import Dims
from torch2trt.trt.dtypes import NAMES, torch_dtypes
from torch2trt.trt.flavour import Flavour
from torch2trt.trt.inspector import mark
from torch2trt.trt.logger import make_logger
from torch2trt.trt.tensor import Tensor

SUPPORTED_DTYPES = tuple(NAMES)
HALF_DTYPES = (torch.float16, torch.bfloat16)
FLOAT_DTYPES = (torch.float32, *HALF_DTYPES)
BYTES = (torch.uint8, torch.int8)
"""What TensorRT does little with but cast: UINT8 is for inputs and outputs, INT8 for quantized numbers."""


class NetworkCore:
    """A strongly typed ``INetworkDefinition`` under construction.

    Args:
        flavour: the TensorRT package that builds it.
    """

    def __init__(self, flavour: Flavour) -> None:
        self.flavour = flavour
        self.trt = flavour.trt
        self.logger = make_logger(flavour)
        self.builder = self.trt.Builder(self.logger)
        flag = 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.definition = self.builder.create_network(flag)
        self.dims = Dims(self)
        self.constants: dict[str, torch.Tensor] = {}
        """Values by layer name (``name.kernel`` and ``name.bias`` for weights inside a layer); they also keep alive
        the memory that the network points to."""
        self._torch_dtypes = torch_dtypes(flavour)
        self.plugins: list[Any] = []
        """From :func:`torch2trt.trt.plugins.plugin`, in the order of their layers, which they outlive."""
        self.ranges: Mapping[str, DimRange] = {}
        """The sizes that the dynamic dimensions may take, by name."""
        self.shared: dict[tuple[Any, ...], Any] = {}
        """What a converter made of tensors and others may need, by those tensors and what else it depends on."""
        self.results: list[TensorSpec | None] = []
        """What the node being lowered yields, tensor by tensor."""
        self.used: set[int] = set()
        """The positions of those that something reads, where the node yields several."""
        self._scope = "network"
        self._module: str | None = None
        self._source = ""
        self._errors: list[str] = []
        self._layer_counts: dict[str, int] = {}
        self._outputs: set[str] = set()

    @property
    def result(self) -> TensorSpec:
        """What the node being lowered yields, where it yields one tensor."""
        (result,) = self.results
        assert result is not None
        return result

    def release(self) -> None:
        """Give back the memory of the weights at once; all that can be done with the definition then is drop it."""
        self.constants.clear()

    # -- naming and checking ------------------------------------------------------------------------------------------

    @contextmanager
    def scope(self, name: str, *, module: str | None = None, source: str = "") -> Iterator[None]:
        """Name the layers added inside after a graph node, and blame it when TensorRT refuses one.

        Args:
            module: path of the module that the node is in; None where the name is no node's.
            source: the user's line.
        """
        outer = self._scope, self._module, self._source, self._errors
        with self.logger.capture() as errors:
            self._scope, self._module, self._source, self._errors = name, module, source, errors
            try:
                yield
            finally:
                self._scope, self._module, self._source, self._errors = outer

    def dtype(self, dtype: torch.dtype) -> Any:
        """The ``trt.DataType`` of a torch dtype.

        Raises:
            NetworkError: TensorRT has no such type.
        """
        if dtype not in NAMES:
            raise self.error(f"TensorRT has no {dtype}")
        return getattr(self.trt.DataType, NAMES[dtype])

    def error(self, reason: str) -> NetworkError:
        """The error for the node being lowered, with what TensorRT logged."""
        logged = "; ".join(dict.fromkeys(self._errors))
        return NetworkError(f"{reason}: {logged}" if logged else reason, subject=self._scope, source=self._source)

    def add(self, method: str, *args: Any) -> Any:
        """Call ``INetworkDefinition.<method>`` and name the layer.

        Raises:
            NetworkError: TensorRT refused it.
        """
        return self.adopt(getattr(self.definition, method)(*args), method)

    def adopt(self, layer: Any, method: str) -> Any:
        """Name a layer that a method has just added.

        Raises:
            NetworkError: there is none, TensorRT refused it.
        """
        if layer is None:
            raise self.error(f"TensorRT refused {method}")
        count = self._layer_counts.get(self._scope, 0)
        self._layer_counts[self._scope] = count + 1
        layer.name = f"{self._scope}.{count}" if count else self._scope
        if self._module is not None:
            layer.metadata = mark(self._scope, self._module)
        return layer

    def output_of(self, layer: Any, shape: Sequence[Size] | None = None, index: int = 0) -> Tensor:
        """A layer's output, checked.

        Args:
            shape: the shape it must have; sizes not known here are found by TensorRT.
        """
        itensor = layer.get_output(index)
        try:
            actual = tuple(itensor.shape)
        except (RuntimeError, AttributeError, ValueError) as error:
            raise self.error(f"TensorRT cannot tell the shape of {layer.name}") from error
        if shape is not None and (
            len(actual) != len(shape)
            or any(
                size >= 0 and isinstance(want, int) and size != want for size, want in zip(actual, shape, strict=True)
            )
        ):
            raise self.error(f"{layer.name} has shape {list(actual)}, not {list(shape)}")
        wanted: Sequence[Size | None] = shape if shape is not None else [None] * len(actual)
        sizes: list[Size] = []
        for size, want in zip(actual, wanted, strict=True):
            if size >= 0:
                sizes.append(int(size))
            elif want is not None:
                sizes.append(want)
            else:
                sizes.append(self.dims.fresh())
        tensor = Tensor(self, itensor, tuple(sizes), self._torch_dtypes[itensor.dtype])
        for axis, found in enumerate(sizes):
            if isinstance(found, sympy.Symbol):
                self.dims.bind(found, tensor, axis)
        return tensor

    # -- inputs, outputs, constants -----------------------------------------------------------------------------------

    def input(self, name: str, shape: Shape, dtype: torch.dtype) -> Tensor:
        """Add a network input; sizes that are symbols become dynamic and are bound to it."""
        dims = tuple(size if isinstance(size, int) else -1 for size in shape)
        itensor = self.definition.add_input(name, self.dtype(dtype), dims)
        if itensor is None:
            raise self.error(f"TensorRT refused the input {name!r}")
        tensor = Tensor(self, itensor, tuple(shape), dtype)
        for axis, size in enumerate(shape):
            if isinstance(size, sympy.Expr):
                self.dims.bind(size, tensor, axis)
            if isinstance(size, sympy.Symbol) and hasattr(itensor, "set_dimension_name"):
                itensor.set_dimension_name(axis, size.name)
        return tensor

    def mark_output(self, name: str, tensor: Tensor) -> None:
        """Make a tensor a network output of this name."""
        itensor = tensor.itensor
        # An input, a constant or an output already marked cannot be an output: it goes through an identity layer.
        if itensor.is_network_input or itensor.is_network_output or tensor.is_constant:
            itensor = self.add("add_identity", itensor).get_output(0)
        itensor.name = name
        self.definition.mark_output(itensor)
        itensor.dtype  # noqa: B018  # raises where the network is invalid

    def constant(self, value: torch.Tensor, label: str = "") -> Tensor:
        """A constant that becomes a layer when, and if, something reads it."""
        if value.dtype not in NAMES:
            raise self.error(f"TensorRT has no {value.dtype} constants")
        return Tensor(self, None, tuple(value.shape), value.dtype, value.detach(), label)

    def add_constant_layer(self, value: torch.Tensor, label: str = "") -> Any:
        """The layer behind a constant, and its ``ITensor``."""
        if label:
            with self.scope(label):
                return self.add_constant_layer(value)
        value = value.cpu().contiguous()
        if value.dtype in BYTES:
            # TensorRT has no constants of these but quantized ones; it casts to both types.
            return self.add_cast_layer(self.add_constant_layer(value.half()), value.dtype)
        if value.numel() == 0:
            # TensorRT has no empty constants: none of the elements of another one.
            whole = self.add_constant_layer(value.new_zeros([max(size, 1) for size in value.shape]))
            zeros, ones = [0] * value.dim(), [1] * value.dim()
            return self.add("add_slice", whole, zeros, tuple(value.shape), ones).get_output(0)
        layer = self.add("add_constant", tuple(value.shape), self.weights(value))
        self.constants[layer.name] = value
        return layer.get_output(0)

    def add_cast_layer(self, itensor: Any, dtype: torch.dtype) -> Any:
        """An ``ITensor`` in another dtype."""
        return self.add("add_cast", itensor, self.dtype(dtype)).get_output(0)

    def weights(self, value: torch.Tensor) -> Any:
        """``trt.Weights`` that point into a contiguous CPU tensor; the caller keeps it alive through ``constants``."""
        return self.trt.Weights(self.dtype(value.dtype), value.data_ptr(), value.numel())

    def elementwise(self, operation: str, first: Tensor, second: Tensor) -> Tensor:
        """Defined with the arithmetic; shape arithmetic needs it here."""
        raise NotImplementedError

    def cast(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """Defined with the arithmetic; bytes need it to be moved."""
        raise NotImplementedError

    def size_of(self, tensor: Tensor, axis: int) -> Tensor:
        """Defined with the shaping layers; shape arithmetic needs it here."""
        raise NotImplementedError
