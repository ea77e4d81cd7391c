"""One run through a network: what is evaluated when, how long it lives, what loops and conditionals do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch

from torch2trt.errors import InterpreterError
from torch2trt.reference.layers import LAYERS
from torch2trt.reference.readback import LOOP, Declared, Loop, Node, Readback
from torch2trt.reference.registry import NARROW


class Evaluation:
    """The values that exist at the moment, each until its last consumer is done.

    Args:
        network: what to evaluate.
        inputs: the values of the network's inputs by tensor number.
        targets: the tensors that will be demanded; they are kept.
    """

    def __init__(self, network: Readback, inputs: Mapping[int, torch.Tensor], targets: Sequence[int]) -> None:
        self.values = dict(inputs)
        self._network = network
        self._device = next((value.device for value in inputs.values()), torch.device("cpu"))
        self._uses = _count_uses(network, targets)
        # Membership in a loop is not written anywhere: a value belongs to the loops that it changes with.
        self._running: list[Loop] = []
        self._varies: dict[int, frozenset[Loop]] = {}
        # While a loop or conditional runs nothing is released, since its next iteration may ask again.
        self._depth = 0
        self._executed: set[Node] = set()

    def demand(self, targets: Iterable[int]) -> None:
        """Evaluate tensors and all that they need; the network's own order is not topological."""
        stack = list(targets)
        while stack:
            if stack[-1] in self.values:
                stack.pop()
                continue
            node = self._network.producers[stack[-1]]
            missing = [] if node.lazy else [n for n in node.inputs if n is not None and n not in self.values]
            if missing:
                stack.extend(missing)
            else:
                self._execute(node)

    def _value(self, number: int | None) -> torch.Tensor:
        assert number is not None
        self.demand([number])
        return self.values[number]

    def _execute(self, node: Node) -> None:
        if node.lazy:
            self._depth += 1
            results = self._run_loop(node) if node.kind == LOOP else self._run_conditional(node)
            self._depth -= 1
        else:
            results = self._compute(node)
        for number, declared, result in zip(node.outputs, node.declared, results, strict=True):
            _check(node, declared, result)
            self.values[number] = result
            if self._running:
                changing = (self._varies.get(n, frozenset()) for n in node.inputs if n is not None)
                self._varies[number] = frozenset().union(*changing).intersection(self._running)
        self._executed.add(node)
        if self._depth == 0:
            for done in self._executed:
                self._release(done)
            self._executed.clear()

    def _release(self, node: Node) -> None:
        inputs = [number for number in node.inputs if number is not None]
        self._uses.subtract(inputs)
        for number in (*inputs, *node.outputs):
            if self._uses[number] <= 0:
                self.values.pop(number, None)

    def _compute(self, node: Node) -> Sequence[torch.Tensor]:
        inputs = [None if number is None else self.values[number] for number in node.inputs]
        if node.kind in ("RECURRENCE", "ITERATOR"):
            raise node.error("it has a value only while its loop runs")
        if node.kind not in LAYERS:
            raise node.error(f"the interpreter does not execute {node.kind} layers")
        rule = LAYERS[node.kind]
        narrow = next((x.dtype for x in inputs if x is not None and x.dtype in NARROW), None)
        if rule.wide and narrow is not None:
            wide = self._network.dtypes["FLOAT"]
            inputs = [x.to(wide) if x is not None and x.dtype in NARROW else x for x in inputs]
        try:
            result = rule.function(node, *inputs)
        except InterpreterError:
            raise
        except Exception as error:
            given = ", ".join("unset" if x is None else f"{x.dtype}{list(x.shape)}" for x in inputs)
            text = f"{type(error).__name__}: {error} (inputs: {given})"
            raise node.error(text) from error
        results = result if isinstance(result, tuple) else (result,)
        if rule.wide and narrow is not None:
            results = tuple(y.to(narrow) if y.is_floating_point() else y for y in results)
        return results if node.inputs else [y.to(self._device) for y in results]

    # -- control flow --------------------------------------------------------------------------------------

    def _run_conditional(self, node: Node) -> Sequence[torch.Tensor]:
        condition, then, otherwise = node.inputs
        return [self._value(then if self._value(condition).item() else otherwise)]

    def _run_loop(self, node: Node) -> Sequence[torch.Tensor]:
        assert node.loop is not None
        loop = node.loop
        counts = [int(self._value(part.inputs[0])) for part in loop.limits if part.api.kind.name == "COUNT"]
        conditions = [part.inputs[0] for part in loop.limits if part.api.kind.name == "WHILE"]
        count = min(counts) if counts else None
        scanned = [self._value(part.inputs[0]) for part in loop.iterators]
        lengths = [int(self._value(part.inputs[1])) if len(part.inputs) > 1 else None for part in loop.outputs]
        carried = [self._value(part.inputs[0]) for part in loop.recurrences]
        stacked: list[list[torch.Tensor]] = [[] for _ in loop.outputs]

        self._running.append(loop)
        iteration = 0
        while count is None or iteration < count:
            for part, value in zip(loop.recurrences, carried, strict=True):
                self._set(part, value, loop)
            if not all(self._value(condition).item() for condition in conditions):
                break
            for part, whole in zip(loop.iterators, scanned, strict=True):
                self._set(part, _slice_of(part, whole, iteration, count), loop)
            for part, values in zip(loop.outputs, stacked, strict=True):
                if part.api.kind.name != "LAST_VALUE":
                    values.append(self._value(part.inputs[0]))
            carried = [self._value(part.inputs[1]) for part in loop.recurrences]
            self._forget(loop)
            iteration += 1
        self._forget(loop)
        self._running.pop()

        last = {part.outputs[0]: value for part, value in zip(loop.recurrences, carried, strict=True)}
        return [
            _last(part, last) if length is None else _concatenated(part, values, length).to(self._device)
            for part, values, length in zip(loop.outputs, stacked, lengths, strict=True)
        ]

    def _set(self, part: Node, value: torch.Tensor, loop: Loop) -> None:
        (number,) = part.outputs
        _check(part, part.declared[0], value)
        self.values[number] = value
        self._varies[number] = frozenset({loop})

    def _forget(self, loop: Loop) -> None:
        """Drop what changes with a loop, before its next iteration and after its last."""
        for number, loops in self._varies.items():
            if loop in loops:
                self.values.pop(number, None)


def _slice_of(part: Node, whole: torch.Tensor, iteration: int, count: int | None) -> torch.Tensor:
    if part.api.reverse:
        if count is None:
            raise part.error("going backwards needs a trip count")
        iteration = count - 1 - iteration
    if iteration >= whole.shape[part.api.axis]:
        raise part.error(f"iteration {iteration} reads past the end of {list(whole.shape)}")
    return whole.select(part.api.axis, iteration)


def _last(part: Node, carried: Mapping[int, torch.Tensor]) -> torch.Tensor:
    (number,) = part.inputs
    if number is None or number not in carried:
        raise part.error("only a recurrence has a last value")
    return carried[number]


def _concatenated(part: Node, values: list[torch.Tensor], length: int) -> torch.Tensor:
    if len(values) > length:
        raise part.error(f"{len(values)} iterations do not fit into a length of {length}")
    if not values:
        shape = [length if axis == part.api.axis else n for axis, n in enumerate(part.declared[0].shape)]
        if -1 in shape:
            raise part.error(f"the loop did not run, which leaves the shape {shape} open")
        return torch.zeros(shape, dtype=part.dtype())
    if part.api.kind.name == "REVERSE":
        values = values[::-1]
    # What lies behind the last iteration is arbitrary in TensorRT.
    values = values + [torch.zeros_like(values[0])] * (length - len(values))
    return torch.stack(values, part.api.axis)


# Checks ---------------------------------------------------------------------------------------------------


def fits(shape: Sequence[int], declared: Sequence[int]) -> bool:
    """Whether a shape is one that the network declares; -1 there stands for any size."""
    return len(shape) == len(declared) and all(d in (-1, n) for n, d in zip(shape, declared, strict=True))


def _check(node: Node, declared: Declared, value: torch.Tensor) -> None:
    if value.dtype != declared.dtype or not fits(value.shape, declared.shape):
        text = f"it gave {value.dtype}{list(value.shape)} where TensorRT declares {declared}"
        raise node.error(text)


def _count_uses(network: Readback, targets: Sequence[int]) -> Counter[int]:
    """How many nodes consume each tensor on the way to the targets, which count as used once more."""
    uses: Counter[int] = Counter(targets)
    seen: set[Node] = set()
    stack = list(targets)
    while stack:
        node = network.producers.get(stack.pop())
        if node is None or node in seen:
            continue
        seen.add(node)
        inputs = [number for number in node.inputs if number is not None]
        uses.update(inputs)
        stack.extend(inputs)
    return uses
