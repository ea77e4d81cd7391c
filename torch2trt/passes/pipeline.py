"""The passes, in order."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable
from typing import Any, get_args

from torch2trt.graph.contract import check
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import FOREIGN, IN_TORCH, asked_for
from torch2trt.passes.averages_as_products import averages_as_products
from torch2trt.passes.defer_blind_queries import defer_blind_queries
from torch2trt.passes.flip_rotary import flip_rotary
from torch2trt.passes.fold_batch_norm import BATCH_NORMS, fold_batch_norm
from torch2trt.passes.fold_channel_scales import fold_channel_scales
from torch2trt.passes.fuse_conv_blocks import fuse_conv_blocks
from torch2trt.passes.fuse_linear_blocks import fuse_linear_blocks
from torch2trt.passes.group_attention import group_attention
from torch2trt.passes.hoist_weights import hoist_weights
from torch2trt.passes.merge_common_subexpressions import merge_common_subexpressions
from torch2trt.passes.merge_sibling_convolutions import merge_sibling_convolutions
from torch2trt.passes.merge_sibling_linears import merge_sibling_linears
from torch2trt.passes.merge_views import merge_views
from torch2trt.passes.numbers_as_tensors import numbers_as_tensors
from torch2trt.passes.patches_as_products import patches_as_products, small_patches_as_products
from torch2trt.passes.plug_attention import plug_attention
from torch2trt.passes.plug_depthwise import plug_depthwise
from torch2trt.passes.plug_group_norm import plug_group_norm
from torch2trt.passes.plug_short_attention import plug_short_attention
from torch2trt.passes.reduce_strength import reduce_strength
from torch2trt.passes.remove_dead_code import remove_dead_code
from torch2trt.passes.remove_noops import IDENTITIES, remove_noops
from torch2trt.passes.set_layouts import set_layouts
from torch2trt.passes.set_precision import set_precision
from torch2trt.passes.simplify_casts import simplify_casts
from torch2trt.passes.simplify_masks import simplify_masks
from torch2trt.passes.simplify_slices import simplify_slices
from torch2trt.passes.sink_expands import sink_expands
from torch2trt.passes.sink_permutes import sink_permutes
from torch2trt.passes.split_complex import ONLY_COMPLEX, split_complex
from torch2trt.passes.unify_activations import unify_activations
from torch2trt.passes.unify_convolutions import CONVOLUTIONS, unify_convolutions
from torch2trt.passes.unify_factories import unify_factories
from torch2trt.passes.unify_linears import unify_linears
from torch2trt.passes.unify_rotary import unify_rotary
from torch2trt.passes.unify_strides import unify_strides
from torch2trt.passes.unify_views import VIEWS, unify_views
from torch2trt.passes.widen_masked_writes import widen_masked_writes
from torch2trt.settings import ExtraPass, Settings, SkippablePass

log = logging.getLogger(__name__)

Pass = Callable[[Program, Settings], None]

PASSES: tuple[Pass, ...] = (
    set_layouts,
    numbers_as_tensors,
    unify_strides,
    split_complex,
    unify_views,
    unify_factories,
    remove_noops,
    unify_convolutions,
    unify_linears,
    unify_activations,
    fold_batch_norm,
    fold_channel_scales,
    set_precision,
    remove_noops,
    averages_as_products,
    reduce_strength,
    merge_common_subexpressions,
    widen_masked_writes,
    sink_expands,
    simplify_slices,
    simplify_casts,
    plug_depthwise,
    unify_rotary,
    sink_permutes,
    patches_as_products,
    small_patches_as_products,
    group_attention,
    merge_views,
    merge_common_subexpressions,
    hoist_weights,
    merge_sibling_linears,
    merge_sibling_convolutions,
    simplify_slices,
    simplify_masks,
    plug_attention,
    plug_short_attention,
    merge_common_subexpressions,
    plug_group_norm,
    hoist_weights,
    flip_rotary,
    defer_blind_queries,
    fuse_conv_blocks,
    fuse_linear_blocks,
    remove_dead_code,
)

MAKE_PLUGINS: tuple[Pass, ...] = (plug_attention, plug_short_attention, plug_depthwise, plug_group_norm)
"""The passes that make plugins, for which an engine needs torch when it runs."""

REWRITTEN = VIEWS | IDENTITIES | CONVOLUTIONS | BATCH_NORMS | ONLY_COMPLEX
"""The operators that the passes leave none of, so that no converter is needed for them."""


def plugging_by_default() -> list[str]:
    """The names of the passes on by default that make plugins."""
    return [each.__name__ for each in MAKE_PLUGINS if each.__name__ in get_args(SkippablePass)]


def passes_of(settings: Settings, *, plugins: bool = True) -> list[Pass]:
    """The passes that the settings ask for, in order.

    Args:
        plugins: whether engines may have plugins.
    """
    left_out = {*settings.skip_passes, *get_args(ExtraPass)} - {*settings.extra_passes}
    return [each for each in PASSES if each.__name__ not in left_out and (plugins or each not in MAKE_PLUGINS)]


def run_passes(
    program: Program,
    settings: Settings,
    *,
    keep: Callable[[Any], bool] = lambda target: True,
    plugins: bool = False,
) -> Program:
    """Bring a captured Program into the form that is lowered, checking the contract after each pass.

    The Program is changed in place, and returned.

    Args:
        keep: whether TensorRT computes an operator, in any precision; others are left to torch, and to float32.
        plugins: whether engines may have plugins.
    """
    check(program, "capture")
    _mark_for_torch(program, settings, keep)
    for each in passes_of(settings, plugins=plugins):
        before = len(program.calls)
        each(program, settings)
        check(program, each.__name__)
        log.debug("%s: %d → %d calls", each.__name__, before, len(program.calls))
    program.graph.recompile()
    return program


def _mark_for_torch(program: Program, settings: Settings, keep: Callable[[Any], bool]) -> None:
    """Mark what the user wants in torch, before anything is fused with it, and what cannot be converted."""
    for node in program.calls:
        if node.target is operator.getitem or program.is_size(node):
            continue
        if reason := asked_for(node, settings.run_in_torch):
            node.meta[IN_TORCH] = reason
        elif not keep(node.target):
            # Unless a pass can write it in other operators.
            node.meta[FOREIGN] = True
