"""Some calls of a captured graph as a Python script of their own, with the values that the other calls gave them."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import fx, nn

from torch2trt.graph.program import Program, provenance
from torch2trt.graph.schema import TensorOp
from torch2trt.runtime.files import atomic_file

_PACKAGES = {"torchvision": "torchvision"}  # what registers a namespace of operators

_TEMPLATE = '''\
"""{title}

The tensors lie in the file of the same name that ends in .safetensors.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
{imports}
import torch2trt

SETTINGS = {settings}
DYNAMIC_SHAPES = {shapes}
PROFILES = {profiles}
TOLERANCE = {tolerance}  # None: as verify has it


class Reduced(torch.nn.Module):
    def __init__(self, weights):
        super().__init__()
        for name, value in weights.items():
            self.register_buffer(name, value)

    def forward({parameters}):
{body}


def check(inputs, weights, example=None):
    """Compile it, for an example of other sizes where there is one, and compare it with float64 eager."""
    module = Reduced(weights).eval()
    compiled = torch2trt.compile(
        module, example or inputs, dynamic_shapes=DYNAMIC_SHAPES, profiles=PROFILES, **SETTINGS
    )
    found = compiled.verify(*inputs)
    return found, found.passed if TOLERANCE is None else found.max_rel_error <= TOLERANCE


if __name__ == "__main__":
    tensors = load_file(Path(__file__).with_suffix(".safetensors"))
    inputs = tuple(tensors[name] for name in {inputs})
    weights = {{name: tensors[name] for name in {weights}}}
    found, passed = check(inputs, weights{example})
    print(found)
    raise SystemExit(0 if passed else 1)
'''


@dataclass(frozen=True)
class Script:
    """A small graph, and what it is run on."""

    text: str
    inputs: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]
    example: dict[str, torch.Tensor] = field(default_factory=dict)
    """What it is compiled for, where that has other sizes than the inputs."""

    def load(self) -> dict[str, Any]:
        """The script's names, as when it is imported; nothing is compiled."""
        names: dict[str, Any] = {"__name__": "reduced"}
        exec(compile(self.text, "<reduced>", "exec"), names)
        return names

    def module(self) -> nn.Module:
        """The graph as a module in evaluation mode."""
        found: nn.Module = self.load()["Reduced"](self.weights).eval()
        return found

    def write(self, path: Path) -> None:
        """Write the script, and the tensors beside it.

        Raises:
            ArtifactWriteError: a file could not be written.
        """
        # Copies, because tensors in one file share no memory.
        named = self.inputs | self.weights | self.example
        tensors = {name: value.clone().contiguous() for name, value in named.items()}
        with atomic_file(path.with_suffix(".safetensors")) as file:
            file.write(safetensors.torch.save(tensors))
        with atomic_file(path) as file:
            file.write(self.text.encode())


class Recording(fx.Interpreter):
    """A captured Program that has run, with the value of every node, on the CPU.

    Args:
        program: as captured, before any pass.
        inputs: its tensor inputs.
    """

    def __init__(self, program: Program, inputs: Sequence[torch.Tensor]) -> None:
        super().__init__(program.graph)
        self.program = program
        self.values: dict[fx.Node, Any] = {}
        weights = program.weights.evaluate(device="cpu")
        arguments = [*inputs, *(weights[str(node.target)] for node in program.weight_placeholders)]
        with torch.no_grad():
            self.run(*arguments, enable_io_processing=False)
        self._free = set(program.weight_placeholders)
        for node in program.calls:
            if self._free.issuperset(node.all_input_nodes):
                self._free.add(node)
        self.calls = [node for node in program.calls if not program.is_size(node) and not _is_item(node)]
        """What can be left out: all but sizes, and the items of results that are lists."""

    def run_node(self, node: fx.Node) -> Any:
        """Execute one node and keep its value."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        if node.op == "call_function":
            args, kwargs = fx.node.map_aggregate((args, kwargs), _on_cpu)
        value = getattr(self, node.op)(node.target, args, kwargs)
        if node.op != "output":
            self.values[node] = value
        return value

    def script(
        self,
        calls: Sequence[fx.Node],
        *,
        title: str,
        settings: Mapping[str, Any],
        tolerance: float | None,
        static: bool,
        imports: Sequence[str] = (),
        example: Recording | None = None,
    ) -> Script | None:
        """Some calls as a script; what others gave them becomes an input, or a weight where it depends on no input.

        Args:
            calls: of :attr:`calls`, in order.
            static: whether sizes are those of the recording; else the inputs have the Program's dynamic dimensions,
                with their optimization profiles.
            imports: modules for the script to import.
            example: what to compile for where sizes are dynamic, if that has other sizes than this recording.

        Returns:
            None where the calls make no graph: nothing is computed, or a number is taken from what is left out.
        """
        kept, inputs, weights = self._gather(set(calls), static)
        returned = [node for node in kept if self._is_returned(node, set(kept))]
        if not returned or not all(isinstance(self.values[node], torch.Tensor) for node in (*inputs, *weights)):
            return None
        names = {node: node.name for node in (*kept, *inputs)}
        names |= {node: f"self.{_attribute(node.name)}" for node in weights}
        if static:
            names |= {node: _text(value, {}) for node, value in self.values.items() if self.program.is_size(node)}
        lines = [_line(node, names) for node in kept] + [f"return ({', '.join(names[node] for node in returned)},)"]
        targets = [str(node.target).partition(".")[0] for node in kept]
        packages = [_PACKAGES[target] for target in dict.fromkeys(targets) if target in _PACKAGES]
        shapes, profiles = ("None", None) if static else self._shapes(inputs)
        body = "\n".join(f"        {line}" for line in lines)
        used = [f"import {name}" for name in ("math", "operator") if f"{name}." in body]
        used += ["from torch.export import Dim"] if "Dim(" in shapes else []
        used += [f"import {name}  # registers operators" for name in (*packages, *imports)]
        compiled_for = (
            {} if example is None or profiles is None else {f"example.{n.name}": example.values[n] for n in inputs}
        )
        input_values = {node.name: self.values[node] for node in inputs}
        weight_values = {_attribute(node.name): self.values[node] for node in weights}
        text = _TEMPLATE.format(
            title=title,
            imports="".join(f"{line}\n" for line in used),
            settings=dict(settings),
            tolerance=tolerance,
            shapes=shapes,
            profiles=profiles,
            parameters=", ".join(("self", *input_values)),
            body=body,
            inputs=list(input_values),
            weights=list(weight_values),
            example=f", tuple(tensors[name] for name in {list(compiled_for)})" if compiled_for else "",
        )
        return Script(text, input_values, weight_values, compiled_for)

    def _gather(self, calls: set[fx.Node], static: bool) -> tuple[list[fx.Node], list[fx.Node], list[fx.Node]]:
        """The calls with all that they need, in order; and what they are given: inputs, and weights."""
        kept = {node for node in self.program.calls if node in calls or (_is_item(node) and node.args[0] in calls)}
        given: set[fx.Node] = set()
        pending = [argument for node in kept for argument in node.all_input_nodes]
        while pending:
            node = pending.pop()
            if node in kept or (static and self.program.is_size(node)):
                continue
            if node.op == "call_function" and self.program.is_size(node):
                kept.add(node)
                pending += node.all_input_nodes
            else:
                given.add(node)
        ordered = [node for node in self.program.nodes if node in given]
        free = [node for node in ordered if node in self._free]
        return [node for node in self.program.calls if node in kept], [n for n in ordered if n not in self._free], free

    def _is_returned(self, node: fx.Node, kept: set[fx.Node]) -> bool:
        """Whether a value would be lost: nothing else is computed from it, or the whole returns it."""
        if not isinstance(self.values[node], torch.Tensor):
            return False
        users = {user for user in node.users if not self.program.is_size(user)}
        return users.isdisjoint(kept) or self.program.output_node in users

    def _shapes(self, inputs: Sequence[fx.Node]) -> tuple[str, list[dict[str, tuple[int, int, int]]] | None]:
        """The inputs' dynamic dimensions, as Python, and the profiles of these; None where there are no dimensions."""
        symbols: set[str] = set()
        rows = []
        for node in inputs:
            axes = {axis: size for axis, size in enumerate(self.program.spec(node).shape) if not isinstance(size, int)}
            symbols |= {symbol.name for size in axes.values() for symbol in size.free_symbols}
            rows.append("{" + ", ".join(f"{axis}: {size}" for axis, size in axes.items()) + "}")
        own = self.program.signature.over(symbols)
        made = ", ".join(
            f"Dim({name!r}, min={own.dims[name].min}, max={own.dims[name].max})" for name in sorted(symbols)
        )
        # All of each, since a dimension that is left out would be tuned for the size of the recording.
        profiles = [{name: (span.min, span.opt, span.max) for name, span in ranges.items()} for ranges in own.ranges]
        # As a function's arguments, sizes such as 2*batch + 1 are written as they are.
        return f"(lambda {', '.join(sorted(symbols))}: ({', '.join(rows)},))({made})", profiles if symbols else None


def _is_item(node: fx.Node) -> bool:
    return node.target is operator.getitem


def _on_cpu(value: Any) -> Any:
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _attribute(name: str) -> str:
    """The name of a weight; modules have attributes of their own."""
    return f"{name}_" if hasattr(nn.Module, name) else name


def _line(node: fx.Node, names: Mapping[fx.Node, str]) -> str:
    arguments = [_text(value, names) for value in node.args]
    arguments += [f"{name}={_text(value, names)}" for name, value in node.kwargs.items()]
    module, source = provenance(node)
    origin = ", ".join(filter(None, (module, source)))
    call = "{}[{}]".format(*arguments) if _is_item(node) else f"{_function(node.target)}({', '.join(arguments)})"
    return f"{names[node]} = {call}" + (f"  # {origin}" if origin else "")


def _function(target: Any) -> str:
    if isinstance(target, TensorOp):
        return f"torch.ops.{target}"
    return f"{target.__module__.lstrip('_')}.{target.__name__}"


def _text(value: Any, names: Mapping[fx.Node, str]) -> str:
    """A call's argument as Python."""
    match value:
        case fx.Node():
            return names[value]
        case bool() | int() | str() | None:
            return repr(value)
        case float():
            return repr(value) if math.isfinite(value) else f"float({str(value)!r})"
        case list():
            return f"[{', '.join(_text(item, names) for item in value)}]"
        case tuple():
            return f"({''.join(f'{_text(item, names)}, ' for item in value)})"
        case slice():
            return f"slice({_text(value.start, names)}, {_text(value.stop, names)}, {_text(value.step, names)})"
        case torch.device():
            return 'torch.device("cpu")'
    return str(value)  # torch's enums: torch.float32, torch.contiguous_format
