"""A Program: the module as a graph of ATen operators that plain torch can execute at every stage."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils import _pytree as pytree

from torch2trt.graph.signature import Signature, TensorLeaf
from torch2trt.graph.weights import WeightsGraph
from torch2trt.sizes import Size, TensorSpec, evaluate, simplify, symbols, to_shape, to_size
from torch2trt.tolerance import HALVES


@dataclass
class Program:
    """One captured module on its way to an engine.

    The main graph's placeholders are the tensor inputs, in the signature's order, then the weights; it returns the
    tuple of the engine's distinct outputs.
    """

    name: str
    graph: fx.GraphModule
    weights: WeightsGraph
    signature: Signature
    dim_names: dict[sympy.Symbol, sympy.Expr] = field(default_factory=dict)
    """The user's name for each symbol of the captured graph, or the one number that it can be."""
    captured_nodes: int = 0
    """Operators in the graph as captured, before any pass."""
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    """The buffers that the module changes, by their paths, as they were when it was captured."""
    _known_names: dict[Any, Size] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def nodes(self) -> Iterator[fx.Node]:
        """The nodes of the main graph."""
        return iter(self.graph.graph.nodes)

    @property
    def calls(self) -> list[fx.Node]:
        """The operator calls of the main graph."""
        return [node for node in self.nodes if node.op == "call_function"]

    @property
    def input_placeholders(self) -> list[fx.Node]:
        """The placeholders of the tensor inputs."""
        names = {leaf.name for leaf in self.signature.tensor_inputs}
        return [node for node in self.nodes if node.op == "placeholder" and node.target in names]

    @property
    def weight_placeholders(self) -> list[fx.Node]:
        """The placeholders of the weights."""
        names = {leaf.name for leaf in self.signature.tensor_inputs}
        return [node for node in self.nodes if node.op == "placeholder" and node.target not in names]

    @property
    def output_node(self) -> fx.Node:
        """The output node, whose argument is a tuple of nodes."""
        return self.graph.graph.output_node()

    @property
    def output_names(self) -> list[str]:
        """Names of the distinct engine outputs, in the order of the returned tuple."""
        return list(dict.fromkeys(leaf.name for leaf in self.signature.tensor_outputs))

    @property
    def halves(self) -> list[str]:
        """The dtypes of 16 bits, by name, in which something is computed."""
        values = (leaf for node in self.calls for leaf in pytree.tree_leaves(node.meta.get("val")))
        dtypes = {value.dtype for value in values if isinstance(value, torch.Tensor)}
        return [name for name, dtype in HALVES.items() if dtype in dtypes]

    def spec(self, node: fx.Node) -> TensorSpec:
        """Shape and dtype of a node that yields one tensor."""
        if "spec" in node.meta:
            return node.meta["spec"]  # type: ignore[no-any-return]
        value = node.meta["val"]
        return TensorSpec(tuple(self._named(size) for size in to_shape(value.shape)), value.dtype)

    def size(self, node: fx.Node) -> Size:
        """The size that a node stands for, when it yields an integer."""
        if "size" in node.meta:
            return node.meta["size"]
        return self._named(to_size(node.meta["val"]))

    def usual(self, size: Size) -> int | None:
        """The size that the engine is tuned for first; None where only data tell."""
        opt = {name: span.opt for name, span in self.signature.dims.items()}
        return evaluate(size, opt) if symbols([size]) <= opt.keys() else None

    def result(self, node: fx.Node) -> TensorSpec | list[Any]:
        """What a node yields: the spec of its tensor, or a list of them, None for what is no tensor."""
        value = node.meta.get("spec", node.meta.get("val"))
        if isinstance(value, list | tuple):
            return [
                item
                if item is None or isinstance(item, TensorSpec)
                else TensorSpec(tuple(self._named(size) for size in to_shape(item.shape)), item.dtype)
                for item in value
            ]
        return self.spec(node)

    def symbols(self, node: fx.Node) -> set[str]:
        """The names of the sizes, dynamic or dependent on data, in what a node yields."""
        if self.is_size(node):
            return symbols([self.size(node)])
        result = self.result(node)
        specs = result if isinstance(result, list) else [result]
        return {name for spec in specs if isinstance(spec, TensorSpec) for name in symbols(spec.shape)}

    @staticmethod
    def is_size(node: fx.Node) -> bool:
        """Whether a node yields a number (a size, or a condition on sizes) and not a tensor."""
        if "spec" in node.meta:
            return False
        return "size" in node.meta or isinstance(
            node.meta.get("val"), torch.SymInt | torch.SymBool | torch.SymFloat | int | float | bool
        )

    def _named(self, size: Size) -> Size:
        if isinstance(size, int) or not self.dim_names:
            return size
        # A network has few sizes, and asks for each of them over and over.
        found = self._known_names.get(size)
        if found is None:
            found = self._known_names[size] = simplify(size.subs(self.dim_names))
        return found

    def run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Execute both graphs with torch: tensor inputs in, engine outputs out."""
        values = self.weights.evaluate()
        arguments = [*inputs, *(values[str(node.target)] for node in self.weight_placeholders)]
        with torch.no_grad():
            return fx.Interpreter(self.graph).run(*arguments, enable_io_processing=False)  # type: ignore[no-any-return]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Execute with the module's own signature; what the module changes stays as it is."""
        leaves = self.signature.flatten(args, kwargs)
        inputs = [
            value for leaf, value in zip(self.signature.inputs, leaves, strict=True) if isinstance(leaf, TensorLeaf)
        ]
        inputs += [self.state[leaf.buffer] for leaf in self.signature.state]
        outputs = dict(zip(self.output_names, self.run(*inputs), strict=True))
        return self.signature.unflatten(outputs, leaves, self.sizes_of(inputs))

    def sizes_of(self, inputs: list[torch.Tensor]) -> dict[str, int]:
        """The sizes of the named dimensions in these inputs."""
        return sizes_of(self.signature, inputs)


def sizes_of(signature: Signature, inputs: list[torch.Tensor]) -> dict[str, int]:
    """The sizes of the signature's named dimensions in these tensor inputs."""
    found: dict[str, int] = {}
    for leaf, value in zip(signature.tensor_inputs, inputs, strict=True):
        for size, actual in zip(leaf.spec.shape, value.shape, strict=True):
            if isinstance(size, sympy.Symbol):
                found[size.name] = int(actual)
    return found


def is_within_torch(path: str) -> bool:
    """Whether a source file is torch's own, or one that it generated."""
    return path.startswith("<") or "/torch/" in "/" + path.replace("\\", "/")


def provenance(node: fx.Node) -> tuple[str, str]:
    """The module path and the user's source line that a node comes from, empty where unknown."""
    stack = node.meta.get("nn_module_stack") or {}
    module = next((path for path, _ in reversed(list(stack.values())) if path), "")
    trace = node.meta.get("stack_trace") or ""
    frames = re.findall(r'^\s*File "(.+)", line (\d+), in (.+)$', trace, re.MULTILINE)
    # Frames of torch itself only say how an operator was reached; the last one outside it is the user's. A layer of
    # torch.nn that is compiled on its own has no other than those.
    own = [frame for frame in frames if not is_within_torch(frame[0])]
    own = own or [frame for frame in frames if "/torch/nn/" in frame[0].replace("\\", "/")]
    return module, "{}:{} in {}".format(*own[-1]) if own else ""
