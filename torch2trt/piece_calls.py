"""The calls that are run before a module in pieces is handed out, in the sizes for which it is to have engines."""

from __future__ import annotations

import contextlib
import enum
import inspect
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from torch2trt.errors import CaptureError
from torch2trt.examples import FEW, Calls
from torch2trt.frontend.dynamic_shapes import dynamic_inputs, named_leaves, resized_leaves
from torch2trt.frontend.marking import Marks, marked
from torch2trt.graph.dynamic_inputs import DynamicInputs
from torch2trt.settings import Settings
from torch2trt.sizes import DimRange

log = logging.getLogger(__name__)


def dynamic_of(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    recorded: Calls | None,
    dynamic_shapes: Any,
    profiles: Sequence[Mapping[str, Any]] | None,
    name: str,
) -> DynamicInputs | None:
    """The sizes with a range, and their profiles: those that the caller asks for, or the few that were recorded."""
    found = dynamic_inputs(module, args, dict(kwargs), dynamic_shapes, profiles)
    if not found.dims:
        if dynamic_shapes is not None:
            log.warning("%s: dynamic_shapes name no range of sizes, so each size has engines of its own", name)
        return None
    if recorded is None or profiles is not None or len(recorded.shapes) > FEW:
        return found
    seen = [found.sizes(_leaves(module, *call)) for call in ((args, kwargs), *recorded.others(module))]
    exact = [{each: DimRange(size, size, size) for each, size in sizes.items()} for sizes in seen]
    return replace(found, profiles=(*exact, {}))


def first_call(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic: DynamicInputs | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example call, in the usual sizes of the first profile where no profile holds its own."""
    if dynamic is None or dynamic.holds(replace(dynamic, profiles=()).sizes(_leaves(module, args, kwargs))):
        return args, dict(kwargs)
    sizes = {name: span.opt for name, span in dynamic.ranges[0].items()}
    return resized_leaves(dynamic, module, args, dict(kwargs), sizes)


def _leaves(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return named_leaves(inspect.signature(module.forward), args, kwargs)


def others(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    recorded: Calls | None,
    dynamic: DynamicInputs | None,
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Calls of the other sizes that are known to come."""
    if recorded is not None:
        yield from recorded.others(module)
    elif dynamic is not None:
        for sizes in _sizes_to_run(dynamic, dynamic.sizes(_leaves(module, args, kwargs))):
            yield resized_leaves(dynamic, module, args, dict(kwargs), sizes)


def _sizes_to_run(dynamic: DynamicInputs, first: Mapping[str, int]) -> list[dict[str, int]]:
    """The sizes that profiles are tuned for, or the smallest, beside those of the example.

    Of each dimension there are two sizes above 1 where that is possible: only from the second on does Dynamo take a
    number that Python computes for one that differs.
    """
    asked = [{name: span.opt if dynamic.profiles else span.min for name, span in own.items()} for own in dynamic.ranges]
    once = [name for name in first if len({sizes[name] for sizes in (first, *asked)} - {1}) < 2]
    more = {**first, **{name: _another(dynamic, name, {first[name], 1}) for name in once}}
    found: list[dict[str, int]] = []
    for sizes in (*asked, more):
        if sizes != first and sizes not in found and dynamic.holds(sizes):
            found.append(sizes)
    return found


def _another(dynamic: DynamicInputs, name: str, known: Collection[int]) -> int:
    """The smallest size of a dimension that is not among those that are known, else one of them."""
    low, high = dynamic.dims[name].min, dynamic.dims[name].max
    return next((size for size in range(low, min(high, low + len(known)) + 1) if size not in known), max(known))


@contextlib.contextmanager
def named(
    dynamic: DynamicInputs | None,
    marks: Mapping[str, Marks],
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Iterator[None]:
    """Inside, a call's tensors tell which of their sizes have names.

    Raises:
        InputShapeError: the sizes are not in their ranges.
    """
    if dynamic is None or not marks:
        yield
        return
    leaves = named_leaves(signature, args, kwargs)
    dynamic.sizes(leaves)
    with marked([(leaf, marks[path]) for path, leaf in leaves if path in marks]):
        yield


_PLAIN = (
    *(torch.Tensor, int, float, complex, str, bytes, type(None), enum.Enum),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
"""What arguments may hold: tensors, which are copied, and what nobody can change."""


def run_first(run: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], reason: CaptureError) -> None:
    """Run the example call, on copies: modules may write into their arguments.

    Raises:
        CaptureError: an argument holds what cannot be copied, or the call fails; it is ``reason``, with that.
    """
    for leaf in pytree.tree_leaves((args, dict(kwargs))):
        if not isinstance(leaf, _PLAIN):
            raise also(
                reason, f"a {type(leaf).__name__} among the arguments could be changed: torch cannot look into it"
            )
    own_args, own_kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (args, dict(kwargs)))
    try:
        run(*own_args, **own_kwargs)
    except Exception as error:
        # The module's own, or Dynamo's: there is no piecewise module either.
        raise also(reason, f"{type(error).__name__}: {error}") from error


def run_others(run: Callable[..., Any], calls: Iterable[tuple[tuple[Any, ...], dict[str, Any]]], name: str) -> None:
    """Run the calls of other sizes for which there are to be engines; say which of the sizes have none."""
    for args, kwargs in calls:
        try:
            own_args, own_kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
            run(*own_args, **own_kwargs)
        except Exception as error:
            # The values are another call's: the module may rightly refuse them.
            log.warning("%s: no engines are built before the call for some sizes: %s", name, error)


def too_few(calls: int, settings: Settings) -> str:
    """Why it is not worth while to compile so many calls; empty where it is."""
    if calls >= settings.min_segment:
        return ""
    return f"engines would get {calls} calls (min_segment is {settings.min_segment})"


def also(reason: CaptureError, why: str) -> CaptureError:
    """The error of the whole, with what became of its pieces."""
    first = " ".join(why.split())[:400]
    return type(reason)(
        f"{reason.reason} (in pieces: {first})", subject=reason.subject, source=reason.source, hint=reason.hint
    )


@contextlib.contextmanager
def without_limit() -> Iterator[None]:
    """For inference, and with the graphs that other modules of a class have not counted against one's own."""
    config = torch._dynamo.config
    with torch.no_grad(), config.patch(recompile_limit=config.accumulated_recompile_limit):
        yield
