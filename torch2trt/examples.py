"""Compiling from several calls: dynamic dimensions and optimization profiles out of the shapes that they have."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.export import Dim
from torch.export.dynamic_shapes import refine_dynamic_shapes_from_suggested_fixes
from torch.utils import _pytree as pytree

from torch2trt.errors import DynamicShapeError, ExampleInputError, InputShapeError
from torch2trt.frontend.dynamic_shapes import resized
from torch2trt.graph.program import Program
from torch2trt.graph.signature import Signature
from torch2trt.runtime import inputs as checks
from torch2trt.sizes import DimRange

Shapes = tuple[tuple[int, ...] | None, ...]
"""The shapes of a call's leaves, None for what is no tensor."""

FEW = 4
"""Combinations of sizes up to which each has a profile of its own."""

_SCALARS = (type(None), bool, int, float, str)


class Span(NamedTuple):
    """The shapes that one tensor of a call had."""

    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    """Of the most frequent call."""
    largest: tuple[int, ...]


class Calls:
    """Calls of one module, for ``torch2trt.compile(module, examples=calls)``.

    Kept are the shapes that came, how often, and a copy of the first call's tensors.
    """

    def __init__(self) -> None:
        self.shapes: Counter[Shapes] = Counter()
        """How often each combination of shapes came."""
        self._first: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    @classmethod
    def of(cls, examples: Iterable[Any] | Calls) -> Calls:
        """The calls that are the items of an iterable: tuples or lists of arguments, dicts of keywords, or one tensor.

        Raises:
            ExampleInputError: there are none, or they differ in more than their sizes.
        """
        if isinstance(examples, torch.Tensor | Mapping):
            raise ExampleInputError(f"takes a list of calls, got one {type(examples).__name__}", subject="examples")
        calls = examples if isinstance(examples, Calls) else cls()
        for example in () if isinstance(examples, Calls) else examples:
            calls.add(*checks.as_call(example))
        if not calls.shapes:
            raise ExampleInputError("there are no calls", subject="examples")
        return calls

    def add(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take in one more call.

        Raises:
            ExampleInputError: it differs from the first in more than its sizes.
        """
        if self._first is None:
            # Whoever made it may go on writing to it.
            self._first = pytree.tree_map_only(torch.Tensor, lambda value: value.detach().clone(), (args, kwargs))
        leaves, spec = pytree.tree_flatten((args, kwargs))
        first, first_spec = pytree.tree_flatten(self._first)
        number = self.shapes.total()
        if spec != first_spec:
            raise ExampleInputError("has other arguments than the first call", subject=f"examples[{number}]")
        for position, (leaf, value) in enumerate(zip(leaves, first, strict=True)):
            if (found := _kind(leaf)) != (wanted := _kind(value)):
                raise ExampleInputError(
                    f"argument {position} is {found}, in the first call it is {wanted}",
                    subject=f"examples[{number}]",
                    hint="calls may differ in the sizes of their tensors alone: compile for each of the others",
                )
        self.shapes[tuple(tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else None for leaf in leaves)] += 1

    def __len__(self) -> int:
        return self.shapes.total()

    def __repr__(self) -> str:
        return f"<{len(self)} calls of {len(self.shapes)} combinations of shapes>"

    def example(self, module: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The first call, on the module's device: data loaders yield tensors on the CPU."""
        assert self._first is not None
        return _beside(module, *self._first)

    def others(self, module: nn.Module) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        """The first call in each of the few most frequent combinations of sizes that are not its own, as above.

        Values repeat, or are left out.
        """
        leaves, spec = pytree.tree_flatten(self._first)
        for shapes, _ in self.shapes.most_common(FEW):
            found = list(leaves)
            for index, shape in enumerate(shapes):
                for axis, size in enumerate(shape or ()):
                    found[index] = resized(found[index], axis, size)
            if any(map(operator.is_not, found, leaves)):
                yield _beside(module, *pytree.tree_unflatten(found, spec))

    def dynamic_shapes(self, module: nn.Module, *, multiples: bool = False) -> dict[str, Any] | None:
        """``torch.export``'s form of what differs: dimensions that agree in every call have one name.

        A dimension is called after the argument and axis where it first occurs, as ``x_0``.

        Args:
            multiples: only sizes that divide by what all of the sizes that came divide by.

        Raises:
            ExampleInputError: forward does not take these calls.
        """
        _, spec = pytree.tree_flatten(self._first)
        args, kwargs = pytree.tree_unflatten(range(spec.num_leaves), spec)
        try:
            bound = inspect.signature(module.forward).bind(*args, **kwargs)
        except TypeError as error:
            hint = "an example is what one call takes: leave out of a batch what is not, such as labels"
            raise ExampleInputError(f"forward does not take it: {error}", subject="examples", hint=hint) from error
        known: dict[tuple[int, ...], Any] = {}

        def dims(path: str, index: int) -> dict[int, Any] | None:
            found: dict[int, Any] = {}
            for axis, sizes in enumerate(zip(*(shapes[index] or () for shapes in self.shapes), strict=True)):
                if len(set(sizes)) > 1:
                    if sizes not in known:
                        known[sizes] = _dim(f"{path}_{axis}", sizes, math.gcd(*sizes) if multiples else 1)
                    found[axis] = known[sizes]
            return found or None

        shapes = {
            name: pytree.tree_map_with_path(
                lambda path, index, name=name: dims(_identifier(name + pytree.keystr(path)), index), value
            )
            for name, value in bound.arguments.items()
        }
        return shapes if known else None

    def capture(self, module: nn.Module, captured: Callable[[Any], Program], dynamic_shapes: Any = None) -> Program:
        """Capture a module with dimensions and optimization profiles for the sizes that came.

        Where the module needs dimensions to be related in another way than being equal, they are related as
        ``torch.export`` says, or else are multiples of what all of their sizes divide by.

        Args:
            captured: captures the first call with dynamic shapes.
            dynamic_shapes: unset: what differs among the calls is dynamic, from the smallest to the largest size.

        Raises:
            DynamicShapeError: the module does not take all of the sizes, or one that came.
        """
        if dynamic_shapes is not None:
            return self._with_profiles(captured(dynamic_shapes), narrow=False)
        shapes = self.dynamic_shapes(module)
        try:
            return self._with_profiles(captured(shapes))
        except DynamicShapeError as error:
            for related in (_as_suggested(error, shapes), self.dynamic_shapes(module, multiples=True)):
                if related is not None:
                    with contextlib.suppress(DynamicShapeError):
                        return self._with_profiles(captured(related))
            raise

    def spans(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, with a :class:`Span` in the place of each tensor."""
        leaves, spec = pytree.tree_flatten(self._first)
        (usual, _), *_ = self.shapes.most_common(1)
        for index, shape in enumerate(usual):
            if shape is not None:
                sizes = list(zip(*(shapes[index] or () for shapes in self.shapes), strict=True))
                leaves[index] = Span(tuple(map(min, sizes)), shape, tuple(map(max, sizes)))
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        return args, kwargs

    def _with_profiles(self, program: Program, *, narrow: bool = True) -> Program:
        program.signature = self.profiled(program.signature, narrow=narrow)
        return program

    def profiled(self, signature: Signature, *, narrow: bool = True) -> Signature:
        """A signature with ranges and profiles for what came; the first profile is for the most frequent sizes.

        Args:
            narrow: ranges end at the smallest and largest sizes that came.

        Raises:
            DynamicShapeError: a call that does not fit the signature.
        """
        seen = [self._sizes(signature, shapes) for shapes, _ in self.shapes.most_common()]
        dims = {
            name: DimRange(
                min(sizes[name] for sizes in seen) if narrow else span.min,
                seen[0][name],
                max(sizes[name] for sizes in seen) if narrow else span.max,
            )
            for name, span in signature.dims.items()
        }
        exact = [{name: DimRange(size, size, size) for name, size in sizes.items()} for sizes in seen]
        profiles = (*exact, {}) if dims and len(exact) <= FEW else ()
        return dataclasses.replace(signature, dims=dims, profiles=profiles)

    def _sizes(self, signature: Signature, shapes: Shapes) -> dict[str, int]:
        """The sizes of the named dimensions in a call of these shapes."""
        leaves, spec = pytree.tree_flatten(self._first)
        marks = [
            value if shape is None else torch.empty(shape, dtype=value.dtype, device="meta")
            for value, shape in zip(leaves, shapes, strict=True)
        ]
        own = dataclasses.replace(signature, state=())
        inputs = [leaf for leaf in own.flatten(*pytree.tree_unflatten(marks, spec)) if isinstance(leaf, torch.Tensor)]
        try:
            return checks.check(own, inputs)
        except InputShapeError as error:
            hint = "leave it out, or declare dynamic_shapes"
            reason = f"an example does not fit: {error.reason}"
            raise DynamicShapeError(reason, subject=error.subject, hint=hint) from error


@contextlib.contextmanager
def record(module: nn.Module) -> Iterator[Calls]:
    """Record the shapes of the calls that a module gets, or one inside another, while the block runs.

    Yields:
        What ``torch2trt.compile(module, examples=…)`` takes.

    Raises:
        ExampleInputError: in a call that differs from the first one in more than its sizes.
    """
    calls = Calls()
    handle = module.register_forward_pre_hook(lambda _, args, kwargs: calls.add(args, kwargs), with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def _beside(module: nn.Module, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments on the module's device."""
    weight = next(itertools.chain(module.parameters(), module.buffers()), None)
    if weight is None:
        return args, kwargs
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda value: value.to(weight.device), (args, kwargs))
    return args, kwargs


def _kind(leaf: Any) -> Any:
    """What of a leaf is the same in all calls."""
    if isinstance(leaf, torch.Tensor):
        return f"{leaf.dtype} of {leaf.dim()} dimension(s)"
    return repr(leaf) if isinstance(leaf, _SCALARS) else type(leaf).__name__


def _identifier(path: str) -> str:
    return re.sub(r"\W+", "_", path).strip("_")


def _dim(name: str, sizes: tuple[int, ...], factor: int) -> Any:
    if 0 in sizes:
        raise DynamicShapeError(
            f"{name!r} is 0 in one and {max(sizes)} in another, dynamic sizes are at least 1",
            subject="examples",
            hint="leave empty calls out",
        )
    dim = Dim(name, min=min(sizes) // factor, max=max(sizes) // factor)
    return dim if factor == 1 else factor * dim


def _as_suggested(error: DynamicShapeError, shapes: Any) -> Any:
    """The dynamic shapes with what ``torch.export`` suggests in an error; None where it makes some of them static."""
    message = str(error.__cause__).split("\n\nThe error above")[0]
    if "Suggested fixes:" not in message:
        return None
    found = refine_dynamic_shapes_from_suggested_fixes(message, shapes)
    before, after = (sum(isinstance(leaf, Dim) for leaf in pytree.tree_leaves(each)) for each in (shapes, found))
    return found if before == after else None
