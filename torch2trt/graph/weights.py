"""The weights graph: everything that depends on parameters alone, as a graph that can be evaluated again.

Building an engine evaluates it; so does refitting one with new parameters.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from torch2trt.graph.devices import placed
from torch2trt.graph.module import graph_module


@dataclass
class WeightsGraph:
    """Parameters by name in, engine weights out."""

    sources: dict[str, torch.Tensor]
    """Parameters, buffers and lifted constants by their names in the module; tied ones share storage."""
    graph: fx.GraphModule
    """A placeholder for each source it reads; returns one tuple."""
    inputs: dict[str, str]
    """Source name by placeholder."""
    outputs: tuple[str, ...]
    """Names of the main graph's weight placeholders, in the order of the returned tuple."""

    @classmethod
    def identity(cls, sources: dict[str, torch.Tensor], placeholders: Mapping[str, fx.Node]) -> WeightsGraph:
        """The graph that hands every source through.

        Args:
            sources: tensors by name.
            placeholders: the main graph's placeholder for each source name.
        """
        graph = fx.Graph()
        inputs: dict[str, str] = {}
        returned: list[fx.Node] = []
        for source, user in placeholders.items():
            node = graph.placeholder(str(user.target))
            node.meta = dict(user.meta)
            inputs[str(node.target)] = source
            returned.append(node)
        graph.output(tuple(returned))
        return cls(sources, graph_module(graph), inputs, tuple(inputs))

    def evaluate(
        self, sources: Mapping[str, torch.Tensor] | None = None, device: torch.device | str | None = None
    ) -> dict[str, torch.Tensor]:
        """The engine weights by name; intermediates are freed on the way.

        Args:
            sources: parameters to use in place of the module's own (refitting).
            device: where to compute; unset: where the sources are.
        """
        values = self.sources if sources is None else {**self.sources, **sources}
        arguments = [values[source].detach() for source in self.inputs.values()]
        graph = self.graph
        if device is not None:
            arguments = [argument.to(device) for argument in arguments]
            graph = placed(graph, torch.device(device))
        with torch.no_grad():
            results = fx.Interpreter(graph).run(*arguments, enable_io_processing=False)
        return dict(zip(self.outputs, results, strict=True))

    def keep_outputs(self, names: Collection[str]) -> None:
        """Drop the outputs that the main graph no longer reads, and whatever led only to them."""
        output = self.graph.graph.output_node()
        kept = [(name, node) for name, node in zip(self.outputs, output.args[0], strict=True) if name in names]  # type: ignore[arg-type]
        self.outputs = tuple(name for name, _ in kept)
        output.args = (tuple(node for _, node in kept),)
        for node in reversed(list(self.graph.graph.nodes)):
            if node.op != "output" and not node.users:
                self.graph.graph.erase_node(node)
                if node.op == "placeholder":
                    del self.inputs[str(node.target)]
        used = set(self.inputs.values())
        self.sources = {name: tensor for name, tensor in self.sources.items() if name in used}
        self.graph.recompile()

    @property
    def source_bytes(self) -> int:
        """Bytes of the sources, tied ones counted once."""
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in self.sources.values()}
        return sum(storage.nbytes() for storage in storages.values())
