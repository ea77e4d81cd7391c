"""The pages of operators and of models, as Markdown."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch2trt.converters import registry
from torch2trt.converters.registry import Converter
from torch2trt.graph.schema import name_of
from torch2trt.tools.coverage import Coverage
from torch2trt.trt import flavour as flavours
from torch2trt.trt.network import Network

_WRITTEN = "<!-- Written by `torch2trt coverage`: change the code or the results, then run it. -->\n\n"

_OPERATORS = """# Operators

Every operator that has a converter; how many of PyTorch's own samples and of the rows in the tests' tables reach it and
are right or refused; and why it refuses: such a call runs in torch, beside the engine. An operator that is not here is
taken apart by torch into some that are, where torch can do so, and else runs in torch too. `torch2trt explain` says
which calls of a model do.

Whatever the operator, TensorRT has no float64, complex or 16-bit integer tensors, and none of more than 8 dimensions;
enterprise TensorRT has int8 for quantized numbers alone. Its extremes and some activations turn NaN into a number, and
what is the largest of nothing but negative infinities may be the lowest finite number. The last column names what a
converter makes use of where a flavour has it.

{core}

{table}"""

_MODELS = """# Models

Models of torchvision, timm and transformers, and nets of our own from published architectures
(`benchmarks/models/`), in float32, with random weights and, where a library lets it be said, small: what becomes of
each when it is built for TensorRT-RTX, and how far its network, run on the CPU by the reference interpreter, is from
float64 eager, relative to the scale of the output; and what becomes of it on a GPU with enterprise TensorRT, where the
error is the engine's. *Whole* is one engine; *hybrid* has some calls in torch, between engines.
`python -m tests.model_suite` makes these results.

{summary}
"""


def operators_page(coverage: Coverage) -> str:
    """Every converter of this package with what it refuses."""
    rows = []
    own = __name__.partition(".")[0]
    for converter in registry.all_converters():
        if converter.function.__module__.partition(".")[0] != own:
            continue
        name = name_of(converter.target)
        right, refused, wrong = coverage.of_operator(name)
        rows.append(
            (
                f"`{name}`",
                "yes" if name in coverage.core else "",
                *(str(count or "") for count in (right, refused)),
                f"**{wrong}**" if wrong else "",
                "; ".join(refusals(converter)),
                "; ".join(capabilities(converter)),
            )
        )
    counts = coverage.counts["core_aten"]
    missing = [f"`{name}`" for name in coverage.core if not coverage.is_converted(name)]
    core = (
        f"Of {counts['total']} Core ATen operators {counts['converted']} convert. Not, or not yet shown: "
        f"{', '.join(missing)}.\n\n{_share(coverage.counts['samples'])}"
    )
    titles = ("operator", "Core ATen", "right", "refused", "wrong", "refuses", "makes use of")
    return _WRITTEN + _OPERATORS.format(core=core, table=_table(titles, rows))


def _share(samples: Mapping[str, int]) -> str:
    share = 100 * samples["right"] / max(1, samples["total"])
    return (
        f"Of the {samples['total']:,} samples that PyTorch has of them {samples['right']:,} are right ({share:.2f} %), "
        f"{samples['refused']:,} refused and {samples['wrong']:,} wrong. What makes a tensor of none is checked beside "
        "an input, and what TensorRT-RTX has no runner for as the network that enterprise TensorRT is given."
    )


def models_page(coverage: Coverage) -> str:
    """Every model of the suite."""
    counts = coverage.counts["models"]
    parts = [
        _WRITTEN
        + _MODELS.format(
            summary=f"{counts['total']} models: {counts['whole']} whole, {counts['hybrid']} hybrid, "
            f"{counts['failed']} failed."
        )
    ]
    titles = ("model", "on RTX", "nodes", "layers", "engines", "error", "on TensorRT", "error", "in torch, or why not")
    libraries: dict[tuple[str, str], dict[str, dict[str, Mapping[str, Any]]]] = {}
    for model in coverage.models:
        library, _, name = model["name"].partition(":")
        rows = libraries.setdefault((library, model.get("family", "")), {})
        rows.setdefault(name, {})[model["flavour"]] = model
    for (library, family), models in sorted(libraries.items()):
        rows_of_it = [_model_row(name, found) for name, found in models.items()]
        parts.append(f"## {library}{f', {family}' if family else ''}\n\n{_table(titles, rows_of_it)}")
    return "\n".join(parts)


PAGES: dict[str, Callable[[Coverage], str]] = {"operators.md": operators_page, "models.md": models_page}
"""The generated pages by the names of their files."""


def _model_row(name: str, found: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    rtx, tensorrt = (found.get(flavour, {}) for flavour in (flavours.TENSORRT_RTX, flavours.TENSORRT))
    numbers = (str(rtx.get(key, "")) for key in ("nodes", "layers", "engines"))
    reasons = [
        model.get("detail", "")
        or "; ".join(f"`{op}` ({count}): {reason}" for op, count, reason in model.get("in_torch", ()))
        for model in (rtx, tensorrt)
    ]
    why = " / ".join(dict.fromkeys(filter(None, reasons)))
    return f"`{name}`", _status(rtx), *numbers, _error(rtx), _status(tensorrt), _error(tensorrt), _cell(why)


def _status(model: Mapping[str, Any]) -> str:
    return str(model.get("status", ""))


def _error(model: Mapping[str, Any]) -> str:
    return f"{model['error']:.0e}" if "error" in model else ""


def refusals(converter: Converter) -> list[str]:
    """Why a converter refuses calls, as far as the code that decides spells it out; ``…`` depends on the call."""
    if converter.unsupported is None:
        return []
    return list(dict.fromkeys(map(_cell, _reasons(converter.unsupported, set()))))


def capabilities(converter: Converter) -> list[str]:
    """What a converter, or what it calls of the builder, asks of the flavour by name, and who has it."""
    functions = [converter.function, *filter(None, (converter.unsupported,))]
    asked = dict.fromkeys(name for function in functions for name in _asked(_plain(function), set()))
    return [f"{name} ({flavours.who_has(name)})" for name in asked]


def _asked(function: Callable[..., Any], seen: set[Any]) -> Iterator[str]:
    if function in seen or not inspect.isfunction(function):
        return
    seen.add(function)
    source = inspect.getsource(function)
    yield from re.findall(r'\.has\("(\w+)"\)', source)
    for name in re.findall(r"\b(?:net|self)\.(\w+)\(", source):
        yield from _asked(getattr(Network, name, None), seen)  # type: ignore[arg-type]


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _reasons(function: Callable[..., Any], seen: set[Any]) -> Iterator[str]:
    """The texts that a function may return; functions that it hands the question on to are looked into."""
    function = _plain(function)
    if function in seen or not inspect.isfunction(function):
        return
    seen.add(function)
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    assigned: dict[str, list[ast.expr]] = {}
    returned: list[ast.expr] = []
    for node in ast.walk(tree):
        match node:
            case ast.Return(value=ast.expr() as value):
                returned.append(value)
            case ast.Assign(targets=[ast.Name(id=name)], value=value) | ast.NamedExpr(ast.Name(id=name), value):
                assigned.setdefault(name, []).append(value)
    captured = inspect.getclosurevars(function)
    known = {**captured.globals, **captured.nonlocals}
    for value in returned:
        yield from _texts(value, assigned, known, seen)


def _texts(
    value: ast.expr, assigned: Mapping[str, Sequence[ast.expr]], known: Mapping[str, Any], seen: set[Any]
) -> Iterator[str]:
    def texts(values: Iterable[ast.expr]) -> Iterator[str]:
        for each in values:
            yield from _texts(each, assigned, known, seen)

    match value:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
        case ast.IfExp(body=body, orelse=orelse):
            yield from texts((body, orelse))
        case ast.BoolOp(values=values):
            yield from texts(values)
        case ast.GeneratorExp(elt=element):
            yield from texts((element,))
        case ast.Name(id=name):
            yield from texts(assigned.get(name, ()))
        case ast.Call(func=ast.Name(id="next"), args=[first, *_]):
            yield from texts((first,))
        case ast.Call(func=ast.Name(id=name)) if callable(known.get(name)):
            yield from _reasons(known[name], seen)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
