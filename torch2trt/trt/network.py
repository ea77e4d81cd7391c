"""The typed network builder that converters write to: TensorRT's layers with torch's shapes, ranks and defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torch2trt.sizes import Size
from torch2trt.trt.arithmetic import Arithmetic, mask_of
from torch2trt.trt.shaping import bytes_as_half, is_static
from torch2trt.trt.tensor import Tensor


def _has_odd_groups(weight: Tensor, groups: int) -> bool:
    """Whether a convolution has groups, not of one channel each, whose channels do not come in fours."""
    channels = weight.shape[1], weight.shape[0] // groups
    return groups > 1 and channels != (1, 1) and any(count % 4 != 0 for count in channels)


class Network(Arithmetic):
    """The layers of neural networks, beside those of :class:`Shaping` and :class:`Arithmetic`."""

    # -- convolutions -------------------------------------------------------------------------------------------------

    def convolution(
        self,
        tensor: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int = 1,
        padding_after: Sequence[int] | None = None,
    ) -> Tensor:
        """A convolution over 1 to 3 spatial dimensions.

        Args:
            tensor: [N, C, *spatial]; a missing batch dimension is added and removed.
            weight: [K, C // groups, *window], constant or computed.
            bias: [K] or None.
            padding: zeros before (and, unless ``padding_after`` says otherwise, after) each spatial dimension.
        """
        return self._convolution(
            "add_convolution_nd",
            tensor,
            weight,
            bias,
            stride,
            padding,
            padding_after or padding,
            dilation,
            groups,
        )

    def deconvolution(
        self,
        tensor: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int = 1,
        output_padding: Sequence[int] = (),
    ) -> Tensor:
        """A transposed convolution; weight [C, K // groups, *window], otherwise as :meth:`convolution`."""
        if max(stride) > 1 and max(dilation) > 1:
            # TensorRT has none that is both.
            weight, dilation = self._spread(weight, dilation), [1] * len(dilation)
        extra = output_padding or (0,) * len(padding)
        # What is wanted beyond the padding comes from zeros behind the input.
        zeros = [max(0, -(-(e - p) // s)) for e, p, s in zip(extra, padding, stride, strict=True)]
        if any(zeros):
            outer = [0] * (tensor.rank - len(zeros))
            tensor = self.pad(tensor, [0] * tensor.rank, [*outer, *zeros])
        after = [p - e + z * s for p, e, z, s in zip(padding, extra, zeros, stride, strict=True)]
        return self._convolution("add_deconvolution_nd", tensor, weight, bias, stride, padding, after, dilation, groups)

    def _convolution(
        self,
        method: str,
        tensor: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        before: Sequence[int],
        after: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Tensor:
        spatial = weight.rank - 2
        if tensor.dtype != torch.float32 and self._needs_float32(method, tensor.dtype, weight, groups):
            wide = self._widened(tensor, weight, bias)
            return self.cast(self._convolution(method, *wide, stride, before, after, dilation, groups), tensor.dtype)
        if tensor.rank == weight.rank - 1:
            batched = self.unsqueeze(tensor, 0)
            result = self._convolution(method, batched, weight, bias, stride, before, after, dilation, groups)
            return self.squeeze(result, 0)
        if spatial == 1:
            # TensorRT has 2-D and 3-D windows only.
            result = self._convolution(
                method,
                self.unsqueeze(tensor, 2),
                self.unsqueeze(weight, 2),
                bias,
                (1, *stride),
                (0, *before),
                (0, *after),
                (1, *dilation),
                groups,
            )
            return self.squeeze(result, 2)
        window = weight.shape[2:]
        maps = weight.shape[0] if method == "add_convolution_nd" else weight.shape[1] * groups
        kernel, offset = self._inner_weights(weight), self._inner_weights(bias)
        layer = self.add(method, tensor.itensor, maps, window, *(self._weights_or_empty(w) for w in (kernel, offset)))
        layer.stride_nd, layer.dilation_nd, layer.num_groups = tuple(stride), tuple(dilation), groups
        layer.pre_padding, layer.post_padding = tuple(before), tuple(after)
        for slot, part, inner, operand in ((1, "kernel", kernel, weight), (2, "bias", offset, bias)):
            if inner is not None:
                self.constants[f"{layer.name}.{part}"] = inner
            elif operand is not None:
                layer.set_input(slot, operand.itensor)
        transposed = method == "add_deconvolution_nd"
        sizes: list[Size] = []
        for axis in range(spatial):
            size, reach = tensor.shape[axis + 2], dilation[axis] * (int(window[axis]) - 1) + 1
            padding = before[axis] + after[axis]
            if transposed:
                sizes.append((size - 1) * stride[axis] - padding + reach)
            elif isinstance(size, int):
                sizes.append((size + padding - reach) // stride[axis] + 1)
            else:
                sizes = []
                break
        shape = (tensor.shape[0], maps, *sizes) if sizes else None
        return self.output_of(layer, shape)

    def _spread(self, weight: Tensor, dilation: Sequence[int]) -> Tensor:
        """A kernel with zeros where a dilated one has nothing."""
        sizes = [(int(size) - 1) * step + 1 for size, step in zip(weight.shape[2:], dilation, strict=True)]
        if weight.value is not None:
            kernel = weight.value.new_zeros((*weight.value.shape[:2], *sizes))
            every = tuple(slice(None, None, step) for step in (1, 1, *dilation))
            kernel[every] = weight.value
            return self.constant(kernel, weight.label)
        for axis, (step, size) in enumerate(zip(dilation, sizes, strict=True), 2):
            rows = self.unsqueeze(weight, axis + 1)
            rows = self.pad(rows, [0] * rows.rank, [(step - 1) * (other == axis + 1) for other in range(rows.rank)])
            joined = (*weight.shape[:axis], weight.shape[axis] * step, *weight.shape[axis + 1 :])
            weight = self.narrow(self.reshape(rows, joined), axis, 0, size)
        return weight

    def _needs_float32(self, method: str, dtype: torch.dtype, weight: Tensor, groups: int) -> bool:
        """Whether TensorRT lacks the 16-bit kernels."""
        if method == "add_deconvolution_nd":
            return dtype == torch.bfloat16
        # Of FP16, 10.6 has no kernel for groups that make 3 channels of 2, and one for every kind in FP32.
        return _has_odd_groups(weight, groups) and not self.flavour.has("odd_groups_of_halves")

    def _widened(self, tensor: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The operands in float32; what is constant stays so."""
        tensor, weight = self.cast(tensor, torch.float32), self._constant_or_cast(weight)
        return tensor, weight, None if bias is None else self._constant_or_cast(bias)

    def _constant_or_cast(self, weight: Tensor) -> Tensor:
        if weight.value is None:
            return self.cast(weight, torch.float32)
        return self.constant(weight.value.float(), weight.label)

    def _inner_weights(self, tensor: Tensor | None) -> torch.Tensor | None:
        """The value of a weight that can live inside a layer: a constant."""
        return None if tensor is None or tensor.value is None else tensor.value.cpu().contiguous()

    def _weights_or_empty(self, value: torch.Tensor | None) -> Any:
        return self.trt.Weights() if value is None else self.weights(value)

    # -- pooling ------------------------------------------------------------------------------------------------------

    def pooling(
        self,
        kind: str,
        tensor: Tensor,
        *,
        window: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        padding_after: Sequence[int] | None = None,
        round_up: bool = False,
        count_include_pad: bool = True,
    ) -> Tensor:
        """MAX or AVERAGE pooling over 1 to 3 spatial dimensions of [N, C, *spatial] or [C, *spatial].

        Args:
            padding: before (and, unless ``padding_after`` says otherwise, after) each spatial dimension.
            round_up: add the window that hangs over the end.
        """
        spatial = len(window)
        after = padding if padding_after is None else padding_after
        added = [0] * (tensor.rank == spatial + 1) + [2] * (spatial == 1)
        if added:
            # TensorRT wants a batch, and two or three spatial dimensions.
            for axis in added:
                tensor = self.unsqueeze(tensor, axis)
            more = int(spatial == 1)
            result = self.pooling(
                kind,
                tensor,
                window=[*[1] * more, *window],
                stride=[*[1] * more, *stride],
                padding=[*[0] * more, *padding],
                padding_after=[*[0] * more, *after],
                round_up=round_up,
                count_include_pad=count_include_pad,
            )
            for axis in reversed(added):
                result = self.squeeze(result, axis)
            return result
        layer = self.add("add_pooling_nd", tensor.itensor, getattr(self.trt.PoolingType, kind), tuple(window))
        layer.stride_nd, layer.pre_padding, layer.post_padding = tuple(stride), tuple(padding), tuple(after)
        layer.average_count_excludes_padding = not count_include_pad
        if round_up:
            layer.padding_mode = self.trt.PaddingMode.EXPLICIT_ROUND_UP
        if not is_static(tensor.shape[2:]):
            return self.output_of(layer)
        free = [size + padding[axis] + after[axis] - window[axis] for axis, size in enumerate(tensor.shape[2:])]
        steps = [-(-size // step) if round_up else size // step for size, step in zip(free, stride, strict=True)]
        return self.output_of(layer, (*tensor.shape[:2], *(count + 1 for count in steps)))

    # -- normalisation ------------------------------------------------------------------------------------------------

    def normalization(self, tensor: Tensor, scale: Tensor, bias: Tensor, axes: Sequence[int], eps: float) -> Tensor:
        """``(x - mean) / sqrt(variance + eps) * scale + bias`` over dimensions; statistics in float32.

        Args:
            scale, bias: of the input's rank, broadcastable to it.
        """
        layer = self.add(
            "add_normalization",
            tensor.itensor,
            scale.itensor,
            bias.itensor,
            mask_of([axis % tensor.rank for axis in axes]),
        )
        layer.epsilon = eps
        return self.output_of(layer, tensor.shape)

    def group_normalization(self, tensor: Tensor, groups: int, eps: float) -> Tensor:
        """Each of several groups of channels of [N, C, *spatial] to mean 0 and variance 1; statistics in float32."""
        # The layer takes one scale and bias a group, not one a channel: neutral ones here.
        shape = (1, groups, *(1,) * (tensor.rank - 2))
        scale, bias = (self.constant(torch.full(shape, value, dtype=tensor.dtype)).itensor for value in (1.0, 0.0))
        layer = self.add("add_normalization", tensor.itensor, scale, bias, mask_of(range(2, tensor.rank)))
        layer.epsilon, layer.num_groups = eps, groups
        return self.output_of(layer, tensor.shape)

    # -- sampling -----------------------------------------------------------------------------------------------------

    @bytes_as_half
    def resize(
        self, tensor: Tensor, shape: Sequence[Size], *, mode: str, coordinates: str, rounding: str = "FLOOR"
    ) -> Tensor:
        """Interpolation to a shape, dimension by dimension; coordinates scale by the ratio of the sizes.

        Args:
            mode: NEAREST, LINEAR or CUBIC (an ``InterpolationMode``).
            coordinates: a ``ResizeCoordinateTransformation``: ALIGN_CORNERS, ASYMMETRIC or HALF_PIXEL.
            rounding: a ``ResizeRoundMode``, which says what is nearest.
        """
        if tuple(shape) == tuple(tensor.shape):
            return tensor
        if tensor.dtype == torch.bfloat16 and not self.flavour.has("resize_of_bfloat16"):
            wide = self.cast(tensor, torch.float32)
            result = self.resize(wide, shape, mode=mode, coordinates=coordinates, rounding=rounding)
            return self.cast(result, torch.bfloat16)
        layer = self.add("add_resize", tensor.itensor)
        layer.resize_mode = getattr(self.trt.InterpolationMode, mode)
        layer.coordinate_transformation = getattr(self.trt.ResizeCoordinateTransformation, coordinates)
        if mode == "NEAREST":
            layer.nearest_rounding = getattr(self.trt.ResizeRoundMode, rounding)
        if is_static(shape):
            layer.shape = tuple(shape)
        else:
            layer.set_input(1, self.cast(self.shape_tensor(shape), torch.int32).itensor)
        return self.output_of(layer, shape)

    def grid_sample(self, tensor: Tensor, grid: Tensor, *, mode: str, outside: str, align_corners: bool) -> Tensor:
        """Samples of [N, C, H, W] where a grid [N, H', W', 2] of coordinates from -1 to 1 says.

        Args:
            mode: NEAREST, LINEAR or CUBIC (an ``InterpolationMode``).
            outside: FILL (with zeros), CLAMP or REFLECT (a ``SampleMode``).
            align_corners: whether -1 and 1 are the centres of the outermost elements, not their outer edges.
        """
        layer = self.add("add_grid_sample", tensor.itensor, grid.itensor)
        layer.interpolation_mode = getattr(self.trt.InterpolationMode, mode)
        layer.sample_mode = getattr(self.trt.SampleMode, outside)
        layer.align_corners = align_corners
        return self.output_of(layer, (*tensor.shape[:2], *grid.shape[1:3]))
