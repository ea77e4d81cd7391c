"""The arithmetic of the whole model, as explicit casts: networks are strongly typed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from torch2trt.graph.ops import DFT, REAL_INVERSE_DFT
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import FOREIGN, IN_TORCH, call, refresh
from torch2trt.graph.schema import name_of
from torch2trt.graph.signature import TensorLeaf
from torch2trt.settings import Settings
from torch2trt.sizes import TensorSpec

aten = torch.ops.aten

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def _overloads(*packets: Any) -> frozenset[Any]:
    return frozenset(getattr(packet, name) for packet in packets for name in packet.overloads())


# Sums, what amplifies rounding and what compares with boundaries: these keep float32, whatever the model's precision.
# Normalisation layers are not among them, because TensorRT keeps their statistics in float32 itself.
SENSITIVE = _overloads(
    *(aten.softmax, aten._softmax, aten.log_softmax, aten._log_softmax, aten.logsumexp),
    *(aten.exp, aten.exp2, aten.expm1, aten.log, aten.log2, aten.log10, aten.log1p),
    *(aten.pow, aten.square, aten.rsqrt, aten.sqrt, aten.reciprocal),
    *(aten.sum, aten.mean, aten.prod, aten.var, aten.std, aten.var_mean, aten.cumsum, aten.cumprod),
    *(aten.linalg_vector_norm, aten.norm),
    *(aten.scatter_add, aten.scatter_reduce, aten.index_add, aten.index_reduce, aten.segment_reduce),
    *(aten.histc, aten.bincount, aten.bucketize, aten.searchsorted, aten.quantile, aten.nanquantile),
    *(aten.grid_sampler, aten.grid_sampler_2d, aten.grid_sampler_3d, aten.affine_grid_generator),
    *(aten.cdist, aten._cdist_forward, aten._pdist_forward, aten.dist, aten.logcumsumexp),
    *(
        aten.linalg_inv,
        aten.linalg_inv_ex,
        aten.inverse,
        aten.linalg_solve,
        aten._linalg_solve_ex,
        aten.linalg_solve_ex,
    ),
    *(aten._linalg_det, aten._linalg_slogdet, aten.linalg_cholesky, aten.linalg_cholesky_ex, aten.linalg_matrix_exp),
    *(aten.linalg_lu, aten.linalg_lu_factor, aten.linalg_lu_factor_ex, aten.linalg_lu_solve, aten.lu_unpack),
    *(aten.geqrf, aten.ormqr, aten.linalg_householder_product),
    *(aten.linalg_qr, aten.linalg_solve_triangular, aten.triangular_solve, aten.cholesky_solve, aten.cholesky_inverse),
) | {DFT, REAL_INVERSE_DFT}
# Coordinates in images of more than 2048 pixels are not even whole numbers in float16.
_LOCATING = frozenset(
    f"torchvision.{name}.default" for name in ("roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "nms")
)
# These only move data: their result has the dtype of what they move, or that of the module's own cast.
_MOVING = _overloads(
    *(aten.view, aten._unsafe_view, aten.reshape, aten.permute, aten.transpose, aten.t, aten.unsqueeze),
    *(aten.squeeze, aten.slice, aten.select, aten.expand, aten.split, aten.split_with_sizes, aten.unbind),
    *(aten.chunk, aten.roll, aten.flip, aten.index, aten.index_select, aten.gather, aten.repeat, aten.alias),
    *(aten.clone, aten.unfold, aten.movedim, aten.diagonal, aten.as_strided, aten.triu, aten.tril, aten._to_copy),
    *(aten.nonzero, aten.masked_select, aten.unique_consecutive, aten._unique2, aten.unique_dim),
)
_JOINING = _overloads(aten.cat, aten.stack, aten.where, aten.masked_fill)
_FILLING = _overloads(aten.pad, aten.constant_pad_nd, aten.full, aten.full_like, aten.new_full, aten.fill)


def set_precision(program: Program, settings: Settings) -> None:
    """Insert the casts that make the model compute in ``settings.precision``.

    Inputs and outputs keep their dtypes unless ``keep_io_dtypes`` is off. What depends on parameters alone stays in
    its own dtype and is cast where it is used, so that weights are folded in float32.
    """
    if settings.precision is None:
        return
    _Caster(program, DTYPES[settings.precision], settings.keep_io_dtypes).run()


class _Caster:
    def __init__(self, program: Program, dtype: torch.dtype, keep_io: bool) -> None:
        self.program = program
        self.dtype = dtype
        self.keep_io = keep_io
        self.casts: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}
        self.large: set[fx.Node] = set()
        """Values that may exceed the range of ``dtype`` by design, such as masks of -3.4e38."""
        self.small: set[fx.Node] = set()
        """Values that stay away from zero by an amount that ``dtype`` rounds to it, such as norms plus 1e-12."""

    def run(self) -> None:
        program = self.program
        if not self.keep_io:
            self._retype_inputs()
        constant = set(program.weight_placeholders)
        for node in filter(self._is_float, constant):
            self._note_range_of_weight(node)
        for node in program.calls:
            if program.is_size(node):
                continue
            if node.all_input_nodes and all(argument in constant for argument in node.all_input_nodes):
                constant.add(node)
            elif self._has_floats(node):
                self._set(node)
            self._note_range(node)
        self._set_outputs()

    def _has_floats(self, node: fx.Node) -> bool:
        values = pytree.tree_leaves([argument.meta.get("val") for argument in node.all_input_nodes])
        return any(isinstance(value, torch.Tensor) and value.dtype in _FLOATS for value in values)

    def _is_float(self, node: fx.Node) -> bool:
        value = node.meta.get("val")
        return isinstance(value, torch.Tensor) and value.dtype in _FLOATS

    def _set(self, node: fx.Node) -> None:
        """Give one call the inputs that its precision asks for."""
        if node.target in _MOVING or not isinstance(node.target, torch._ops.OpOverload):
            refresh(node)
        elif (
            node.target in SENSITIVE
            or name_of(node.target) in _LOCATING
            or FOREIGN in node.meta
            or IN_TORCH in node.meta
            or self._needs_range(node)
        ):
            # Torch lacks many operators in half precision.
            self._with_inputs(node, torch.float32)
        elif self._is_pointwise(node) and all(
            argument.meta["val"].dtype == torch.float32 for argument in node.all_input_nodes if self._is_float(argument)
        ):
            refresh(node)  # inside an island of float32
        else:
            self._with_inputs(node, self.dtype)

    def _is_pointwise(self, node: fx.Node) -> bool:
        return torch.Tag.pointwise in getattr(node.target, "tags", ()) or node.target in _JOINING

    def _with_inputs(self, node: fx.Node, dtype: torch.dtype) -> None:
        def cast(argument: fx.Node) -> fx.Node:
            return self._cast(argument, dtype) if self._is_float(argument) else argument

        node.args = fx.map_arg(node.args, cast)
        node.kwargs = fx.map_arg(node.kwargs, cast)
        if node.kwargs.get("dtype") in _FLOATS:
            node.update_kwarg("dtype", dtype)
        refresh(node)

    def _cast(self, node: fx.Node, dtype: torch.dtype) -> fx.Node:
        if node.meta["val"].dtype == dtype:
            return node
        if (node, dtype) not in self.casts:
            graph = self.program.graph.graph
            following = next(iter(self.program.calls), graph.output_node()) if node.op == "placeholder" else node.next
            with graph.inserting_before(following):
                source = node
                if node in self.large and dtype != torch.float32:
                    limit = torch.finfo(dtype).max
                    source = call(graph, aten.clamp.default, node, -limit, limit, like=node)
                self.casts[node, dtype] = call(graph, aten._to_copy.default, source, dtype=dtype, like=node)
        return self.casts[node, dtype]

    def _needs_range(self, node: fx.Node) -> bool:
        """Whether what a call computes with does not fit into the range of the precision."""
        if self._is_pointwise(node) and any(argument in self.small for argument in node.all_input_nodes):
            return True
        return self._has_large(node) or self._has_small(node)

    def _has_large(self, node: fx.Node) -> bool:
        return any(abs(value) > torch.finfo(self.dtype).max for value in self._numbers(node))

    def _has_small(self, node: fx.Node) -> bool:
        return any(0 < abs(value) < torch.finfo(self.dtype).smallest_normal for value in self._numbers(node))

    def _numbers(self, node: fx.Node) -> list[float]:
        """The finite numbers that a call computes with; others are sizes, axes or TensorRT's to look after."""
        if not (self._is_pointwise(node) or node.target in _FILLING):
            return []
        leaves = pytree.tree_leaves((node.args, node.kwargs))
        return [value for value in leaves if isinstance(value, int | float) and math.isfinite(value)]

    def _note_range_of_weight(self, node: fx.Node) -> None:
        weights, info = self.program.weights, torch.finfo(self.dtype)
        value = weights.sources[weights.inputs[str(node.target)]]
        if value.numel() == 0:
            return
        low, high = torch.aminmax(value)
        if low.isinf() or high.isinf():
            low, high = torch.aminmax(value.nan_to_num(posinf=0.0, neginf=0.0))
        largest = float(torch.maximum(-low, high))
        if largest > info.max:
            self.large.add(node)
        if 0 < largest < info.smallest_normal:
            self.small.add(node)

    def _note_range(self, node: fx.Node) -> None:
        sources = node.all_input_nodes
        passes_on = node.target in _MOVING or self._is_pointwise(node)
        if self._has_large(node) or (passes_on and any(source in self.large for source in sources)):
            self.large.add(node)
        if self._has_small(node) or (passes_on and len(sources) == 1 and sources[0] in self.small):
            self.small.add(node)

    def _retype_inputs(self) -> None:
        leaves: list[Any] = []
        by_name = {str(node.target): node for node in self.program.input_placeholders}
        for leaf in self.program.signature.inputs:
            if isinstance(leaf, TensorLeaf) and leaf.spec.dtype in _FLOATS:
                node = by_name[leaf.name]
                node.meta["val"] = node.meta["val"].to(self.dtype)
                leaf = dataclasses.replace(leaf, spec=TensorSpec(leaf.spec.shape, self.dtype))
            leaves.append(leaf)
        self.program.signature = dataclasses.replace(self.program.signature, inputs=tuple(leaves))

    def _set_outputs(self) -> None:
        """Cast the outputs back, or let the signature say what they are now."""
        program, output = self.program, self.program.output_node
        wanted = {leaf.name: leaf.spec.dtype for leaf in program.signature.tensor_outputs}
        kept = {update.name for update in program.signature.updates}
        returned: list[fx.Node] = []
        for name, node in zip(program.output_names, output.args[0], strict=True):  # type: ignore[arg-type]
            dtype = wanted[name]
            if dtype in _FLOATS:
                dtype = dtype if self.keep_io or name in kept else self.dtype
                node = self._cast(node, dtype)
            returned.append(node)
        output.args = (tuple(returned),)
        if not self.keep_io:
            dtypes = {name: program.spec(node).dtype for name, node in zip(program.output_names, returned, strict=True)}
            outputs = tuple(
                dataclasses.replace(leaf, spec=TensorSpec(leaf.spec.shape, dtypes[leaf.name]))
                if isinstance(leaf, TensorLeaf)
                else leaf
                for leaf in program.signature.outputs
            )
            program.signature = dataclasses.replace(program.signature, outputs=outputs)
