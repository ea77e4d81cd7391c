"""Complex tensors as pairs of real ones: TensorRT has none."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import call
from torch2trt.graph.schema import TensorOp, bind
from torch2trt.passes.complex_algebra import Algebra, Complex
from torch2trt.passes.complex_rules import RULES
from torch2trt.passes.remove_dead_code import remove_dead_code
from torch2trt.settings import Settings

aten = torch.ops.aten

ONLY_COMPLEX = frozenset(
    {
        *(aten.view_as_complex.default, aten.view_as_real.default, aten.complex.default, aten.polar.default),
        *(aten._conj.default, aten._conj_physical.default, aten.conj_physical.default, aten._neg_view.default),
        *(aten.resolve_conj.default, aten.resolve_neg.default),
        *(aten._fft_r2c.default, aten._fft_c2r.default, aten._fft_c2c.default),
    }
)
"""The operators on complex numbers alone that this pass leaves none of, but beside those without a rule."""


def split_complex(program: Program, settings: Settings) -> None:
    """Rewrite what computes with complex numbers in real ones.

    Complex weights are split by the weights graph. An operator without a rule stays, and gets complex numbers made for
    it; so does an output.
    """
    splitter = _Splitter(program)
    for node in program.calls:
        if _is_complex(node) or any(_is_complex(argument) for argument in node.all_input_nodes):
            with program.graph.graph.inserting_before(node):
                splitter.split(node)
    if splitter.parts:
        with program.graph.graph.inserting_before(program.output_node):
            splitter.make_whole(program.output_node)
        remove_dead_code(program, settings)


def _is_complex(node: fx.Node) -> bool:
    leaves = pytree.tree_leaves(node.meta.get("val"))
    return any(isinstance(value, torch.Tensor) and value.is_complex() for value in leaves)


class _Splitter:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.parts: dict[fx.Node, Complex] = {}
        self.whole: dict[fx.Node, fx.Node] = {}

    def split(self, node: fx.Node) -> None:
        """Put real arithmetic in the place of a call, or complex numbers into its arguments."""
        found = self._rewritten(node)
        match found:
            case None:
                self.make_whole(node)
            case Complex():
                self.parts[node] = found
            case _:
                node.replace_all_uses_with(found)

    def make_whole(self, node: fx.Node) -> None:
        """Let a node that must see complex numbers have them."""

        def whole(argument: fx.Node) -> fx.Node:
            if argument in self.parts and argument not in self.whole:
                self.whole[argument] = call(node.graph, aten.complex.default, *self.parts[argument], like=argument)
            return self.whole.get(argument, argument)

        node.args, node.kwargs = fx.map_arg((node.args, node.kwargs), whole)

    def _rewritten(self, node: fx.Node) -> Complex | fx.Node | None:
        rule = RULES.get(node.target)
        if node.target is operator.getitem:
            source = self.parts.get(node.args[0])  # type: ignore[arg-type]
            return source and Complex(
                *(call(node.graph, node.target, part, node.args[1], like=node) for part in source)
            )
        if rule is None:
            return None
        assert isinstance(node.target, TensorOp)
        arguments = [self._with_parts(value) for value in node.args]
        keywords = {name: self._with_parts(value) for name, value in node.kwargs.items()}
        bound = {name: self._with_parts(value) for name, value in bind(node).items()}
        return rule(Algebra(node, tuple(arguments), keywords), **bound)

    def _with_parts(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [self._with_parts(item) for item in value]
        if isinstance(value, complex):
            return Complex(value.real, value.imag)
        if isinstance(value, fx.Node) and _is_complex(value):
            return self._parts_of(value)
        return value

    def _parts_of(self, node: fx.Node) -> Complex:
        if node not in self.parts:
            # A weight, or the result of an operator without a rule.
            anchor = self.program.calls[0] if node.op == "placeholder" else node.next
            with node.graph.inserting_before(anchor):
                pair = call(node.graph, aten.view_as_real.default, node, like=node)
                self.parts[node] = Complex(
                    *(call(node.graph, aten.select.int, pair, -1, which, like=node) for which in (0, 1))
                )
            self.whole[node] = node
        return self.parts[node]
