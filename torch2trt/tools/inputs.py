"""Example inputs from the command line: ``[name:][dtype:]shape``, and the tensors drawn for them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from torch2trt.errors import ExampleInputError
from torch2trt.graph.signature import Signature, TensorLeaf, dtype_to_json

_GRAMMAR = "[name:][dtype:]shape, as in 1x3x224x224, ids:int64:1x128 or x:batch=1..8..64x3x224x224"
_AXIS = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<sizes>\d+(?:\.\.\d+\.\.\d+)?)(?:x(?=\w)|$)")
_RANGE = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<low>-?\d+):(?P<high>-?\d+)")

Span = tuple[int, int]
"""Integers from the first to below the second."""
_UNKNOWN_SPAN: Span = (0, 100)


@dataclass(frozen=True)
class Axis:
    """One dimension: the sizes it may have, and the one that the example has."""

    min: int
    opt: int
    max: int
    name: str = ""
    """Axes of one name have one size; a dynamic axis without is on its own."""

    @property
    def dynamic(self) -> bool:
        """Whether it has more than one size."""
        return self.min < self.max


@dataclass(frozen=True)
class InputSpec:
    """What one ``--input`` says."""

    shape: tuple[Axis, ...]
    name: str = ""
    """The parameter of forward that it is for; empty: by position."""
    dtype: torch.dtype | None = None
    """None: the module's own floating point dtype."""

    @classmethod
    def parse(cls, text: str) -> InputSpec:
        """Read ``[name:][dtype:]shape``; sizes are ``N``, or ``[name=]MIN..OPT..MAX`` where they are dynamic.

        Raises:
            ExampleInputError: it is not of this form, or a range is empty.
        """
        *heads, shape = text.split(":")
        dtype = _dtype(heads[-1]) if heads else None
        if dtype is not None:
            heads.pop()
        name = heads[0] if heads else ""
        if len(heads) > 1 or not text or not (name.isidentifier() or not heads):
            raise ExampleInputError("does not describe an input", subject=f"input {text!r}", hint=_GRAMMAR)
        return cls(_shape(shape, text), name, dtype)


@dataclass(frozen=True)
class Example:
    """A call's arguments, in the form that :func:`torch2trt.compile` takes."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    dynamic_shapes: dict[str, Any] | None = None


def parse_span(text: str) -> tuple[str, Span]:
    """Read ``[name=]LOW:HIGH``: the input that it is for (empty: all of integers), and the span.

    Raises:
        ExampleInputError: it is not of this form, or empty.
    """
    found = _RANGE.fullmatch(text)
    if found is None or int(found["low"]) >= int(found["high"]):
        hint = "[name=]LOW:HIGH with LOW below HIGH, as in ids=0:30522"
        raise ExampleInputError("is no range of integers", subject=f"int-range {text!r}", hint=hint)
    return found["name"] or "", (int(found["low"]), int(found["high"]))


def parse_profile(text: str) -> dict[str, int | tuple[int, int, int]]:
    """Read ``NAME=SIZES,…``: an optimization profile, whose sizes are ``N`` or ``MIN..OPT..MAX``.

    Raises:
        ExampleInputError: it is not of this form.
    """
    profile: dict[str, int | tuple[int, int, int]] = {}
    for part in text.split(","):
        found = _AXIS.fullmatch(part)
        if found is None or not found["name"]:
            hint = "NAME=N or NAME=MIN..OPT..MAX, several with commas between, as in batch=2..16..64,length=128"
            raise ExampleInputError("is no profile", subject=f"profile {text!r}", hint=hint)
        sizes = [int(size) for size in found["sizes"].split("..")]
        profile[found["name"]] = (sizes[0], sizes[1], sizes[2]) if len(sizes) == 3 else sizes[0]
    return profile


def parse_sizes(text: str) -> dict[str, int]:
    """Read ``NAME=N,…``: sizes of dynamic dimensions.

    Raises:
        ExampleInputError: it is not of this form.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        found = _AXIS.fullmatch(part)
        if found is None or not found["name"] or not found["sizes"].isdigit():
            hint = "NAME=N, several with commas between, as in batch=64,length=128"
            raise ExampleInputError("gives no sizes", subject=f"at {text!r}", hint=hint)
        sizes[found["name"]] = int(found["sizes"])
    return sizes


def draw(
    module: nn.Module, specs: Sequence[InputSpec], *, seed: int = 0, spans: Mapping[str, Span] | None = None
) -> Example:
    """Draw the inputs that the specs describe, for forward's parameters by name or position.

    Floating point inputs are normal. Integers are uniform over ``spans[name]``, else ``spans[""]``, else the rows of
    the module's first embedding. Booleans, and integers whose name ends in "mask", are ones.

    Returns:
        An example whose tensors lie on the module's device.

    Raises:
        ExampleInputError: forward does not take them, or two axes of one name differ.
    """
    bound = _bind(module, specs)
    parameters = list(module.parameters())
    device = parameters[0].device if parameters else torch.device("cpu")
    own = next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)
    spans = {"": _embedding_rows(module), **(spans or {})}
    generator = torch.Generator().manual_seed(seed)

    def tensor(name: str, spec: InputSpec) -> torch.Tensor:
        return _random(name, [axis.opt for axis in spec.shape], spec.dtype or own, spans, generator).to(device)

    dynamic_shapes = _dynamic_shapes(bound.arguments)
    for name, spec in list(bound.arguments.items()):
        bound.arguments[name] = pytree.tree_map(lambda leaf, name=name: tensor(leaf.name or name, leaf), spec)
    return Example(bound.args, bound.kwargs, dynamic_shapes)


def note(axis: Axis, name: str, known: dict[str, Axis]) -> None:
    """Take down a dynamic axis under its name.

    Raises:
        ExampleInputError: one of this name is known, and has another range.
    """
    if known.setdefault(name, axis) != axis:
        hint = "give it the same MIN..OPT..MAX everywhere"
        raise ExampleInputError("has two ranges", subject=f"dimension {name!r}", hint=hint)


def draw_for(
    signature: Signature, specs: Sequence[InputSpec] = (), *, seed: int = 0, spans: Mapping[str, Span] | None = None
) -> list[torch.Tensor]:
    """Draw what an engine reads, but its state: tensors on the CPU, in the signature's order, in memory as it has them.

    Args:
        signature: tells names and dtypes, and the usual shapes.
        specs: other shapes, by name or position.
        spans: as for :func:`draw`.

    Raises:
        ExampleInputError: there is no such input, or it has another dtype.
    """
    leaves = [leaf for leaf in signature.inputs if isinstance(leaf, TensorLeaf)]
    names = [leaf.name for leaf in leaves]
    given = dict(zip(names, (spec for spec in specs if not spec.name), strict=False))
    given |= {spec.name: spec for spec in specs if spec.name}
    dtypes = {leaf.name: leaf.spec.dtype for leaf in leaves}
    fit = all(name in dtypes and spec.dtype in (None, dtypes[name]) for name, spec in given.items())
    if len(given) < len(specs) or not fit:
        hint = "it takes " + ", ".join(f"{name}:{dtype_to_json(dtype)}" for name, dtype in dtypes.items())
        raise ExampleInputError("does not fit the artifact", subject="input", hint=hint)
    usual = {name: span.opt for name, span in signature.ranges[0].items()}
    generator = torch.Generator().manual_seed(seed)
    spans = {"": _UNKNOWN_SPAN, **(spans or {})}
    drawn = []
    for leaf in leaves:
        own = given.get(leaf.name)
        sizes = [axis.opt for axis in own.shape] if own else list(leaf.spec.at(usual))
        value = _random(leaf.name, sizes, leaf.spec.dtype, spans, generator)
        drawn.append(leaf.show(leaf.store(value).contiguous()) if value.dim() == leaf.spec.rank else value)
    return drawn


def _random(
    name: str, sizes: list[int], dtype: torch.dtype, spans: Mapping[str, Span], generator: torch.Generator
) -> torch.Tensor:
    if dtype.is_floating_point:
        return torch.randn(sizes, generator=generator).to(dtype)
    if dtype == torch.bool or name.endswith("mask"):
        return torch.ones(sizes, dtype=dtype)
    low, high = spans.get(name, spans[""])
    return torch.randint(low, high, sizes, generator=generator, dtype=dtype)


def describe_forward(module: nn.Module) -> str:
    """What forward takes, as in ``forward(x, mask=None)``."""
    parameters = inspect.signature(module.forward).parameters.values()
    return f"forward({', '.join(str(item.replace(annotation=item.empty)) for item in parameters)})"


def _bind(module: nn.Module, specs: Sequence[InputSpec]) -> inspect.BoundArguments:
    names = [spec.name for spec in specs if spec.name]
    if len(set(names)) < len(names):
        raise ExampleInputError(f"two inputs of one name: {', '.join(names)}", subject="input")
    try:
        return inspect.signature(module.forward).bind(
            *(spec for spec in specs if not spec.name), **{spec.name: spec for spec in specs if spec.name}
        )
    except TypeError as error:
        hint = f"pass one --input for each argument of {describe_forward(module)}: {_GRAMMAR}"
        raise ExampleInputError(str(error), subject=type(module).__name__, hint=hint) from error


def _embedding_rows(module: nn.Module) -> Span:
    """The rows of the embedding that comes first: the words', in front of positions and types."""
    rows = [child.num_embeddings for child in module.modules() if isinstance(child, nn.Embedding)]
    return (0, rows[0]) if rows else _UNKNOWN_SPAN


def _dynamic_shapes(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """``torch.export``'s form of the dynamic axes: one Dim for each name, and for each axis without."""
    known: dict[str, Axis] = {}

    def dims(spec: InputSpec) -> dict[int, Any] | None:
        found = {}
        for position, axis in enumerate(spec.shape):
            if axis.dynamic:
                name = axis.name or f"dim{len(known)}"
                note(axis, name, known)
                found[position] = Dim(name, min=axis.min, max=axis.max)
        return found or None

    shapes = {name: pytree.tree_map(dims, spec) for name, spec in arguments.items()}
    return shapes if known else None


def _dtype(name: str) -> torch.dtype | None:
    found = getattr(torch, name, None)
    return found if isinstance(found, torch.dtype) else None


def _shape(text: str, whole: str) -> tuple[Axis, ...]:
    axes = []
    position = 0
    while position < len(text):
        found = _AXIS.match(text, position)
        if found is None:
            raise ExampleInputError(f"{text!r} is no shape", subject=f"input {whole!r}", hint=_GRAMMAR)
        sizes = [int(size) for size in found["sizes"].split("..")]
        low, opt, high = sizes if len(sizes) == 3 else sizes * 3
        if not low <= opt <= high:
            raise ExampleInputError(
                f"{found['sizes']} is no range", subject=f"input {whole!r}", hint="MIN..OPT..MAX, in rising order"
            )
        axes.append(Axis(low, opt, high, found["name"] or ""))
        position = found.end()
    return tuple(axes)
