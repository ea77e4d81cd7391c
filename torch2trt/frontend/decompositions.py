"""Functionalising an exported graph, and taking apart what no converter keeps."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx
from torch._export import utils as export_utils
from torch.export import ExportedProgram, exported_program
from torch.export.graph_signature import InputKind, TensorArgument

from torch2trt.frontend.functional import functionalize, is_composite
from torch2trt.frontend.own_decompositions import OWN
from torch2trt.frontend.splicing import splice

Keep = Callable[[Any], bool]

_DEVICES = ("CPU", "CUDA", "Meta")
# What asks a tensor for a number is arithmetic on sizes: torch lists it, and takes nothing apart.
_OF_SIZES = frozenset(
    {
        torch.ops.aten.sym_numel.default,
        torch.ops.aten.sym_size.int,
        torch.ops.aten.sym_storage_offset.default,
        torch.ops.aten.sym_stride.int,
    }
)
_ONE_AT_A_TIME = threading.RLock()


def decompose(exported: ExportedProgram, keep: Keep) -> ExportedProgram:
    """An exported program without mutation, of operators that are kept, or that torch cannot take apart.

    Args:
        keep: says for an operator whether it stays as it is.
    """
    tried: set[Any] = set()
    functional = functionalize(exported, keep)
    with _quick_preparations():
        while True:
            present = {node.target for node in exported.graph.nodes if node.op == "call_function"}
            operators = {target for target in present if isinstance(target, torch._ops.OpOverload)}
            refused = {target for target in operators if not keep(target)} - tried - _OF_SIZES
            if functional and not refused:
                return exported
            tried |= refused
            wanted = {target: found for target in refused if (found := _decomposition(target)) is not None}
            if functional and wanted and splice(exported.graph, wanted):
                functional = functionalize(exported, keep)
            elif wanted or not functional:
                _name_results(exported)
                exported, functional = _without_effects(exported, wanted), True


def _decomposition(target: torch._ops.OpOverload) -> Callable[..., Any] | None:
    found = OWN.get(target) or _table().get(target)
    if found is None and target.namespace != "aten":
        # It may be newer than the table.
        found = {**torch.export.default_decompositions()}.get(target)
    # Of composite operators torch lists those alone that it can keep whole.
    return target.decompose if found is None and is_composite(target) else found


@functools.cache
def _table() -> dict[Any, Callable[..., Any]]:
    return {**torch.export.default_decompositions()}


def _name_results(exported: ExportedProgram) -> None:
    """Tell the signature which nodes are returned now."""
    for spec, node in zip(exported.graph_signature.output_specs, exported.graph.output_node().args[0], strict=True):
        if isinstance(node, fx.Node) and isinstance(spec.arg, TensorArgument):
            spec.arg.name = node.name


def _without_effects(exported: ExportedProgram, wanted: Mapping[Any, Callable[..., Any]]) -> ExportedProgram:
    """Decompose, except operators that would then check their operands at run time: torch runs those as they are."""
    decomposed: ExportedProgram = exported.run_decompositions({**wanted})
    if not wanted or not _has_effects(decomposed):
        return decomposed
    exported = exported.run_decompositions({})
    for target, function in wanted.items():
        decomposed = exported.run_decompositions({target: function})
        exported = exported if _has_effects(decomposed) else decomposed
    return exported


def _has_effects(exported: ExportedProgram) -> bool:
    return any(spec.kind is InputKind.TOKEN for spec in exported.graph_signature.input_specs)


@contextlib.contextmanager
def _quick_preparations() -> Iterator[None]:
    """Inside, what torch prepares for a decomposition, which takes most of the time, is no more than is needed.

    It searches all operators once for each namespace, and gives 500 composite ones kernels for 21 backends each.
    """
    with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:
        search = getattr(export_utils, "_materialize_cpp_cia_ops", None)
        stack.enter_context(replaced(export_utils, "_materialize_cpp_cia_ops", search and functools.cache(search)))
        for name, prefix in (
            ("_BACKEND_KEYS_TO_OVERRIDE", ""),
            ("_AUTOGRAD_ALIAS_BACKEND_KEYS_TO_OVERRIDE", "Autograd"),
        ):
            keys = [getattr(torch._C.DispatchKey, f"{prefix}{device}") for device in _DEVICES]
            stack.enter_context(replaced(exported_program, name, keys))
        yield


@contextlib.contextmanager
def replaced(module: Any, name: str, value: object) -> Iterator[None]:
    """Inside, a module of torch's has this under a name, if it has that name: versions of torch differ."""
    if not hasattr(module, name):
        yield
        return
    own = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, own)
