"""Networks that TensorRT's own ONNX parser writes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from torch2trt.errors import UnsupportedNode, UnsupportedOpsError
from torch2trt.trt.core import NetworkCore
from torch2trt.trt.flavour import Flavour


class ParsedNetwork(NetworkCore):
    """An ONNX model as a strongly typed network.

    Args:
        flavour: the TensorRT package that parses and builds it.
        data: a serialized ``ModelProto``.
        path: the file that it comes from, beside which its external weights are.

    Raises:
        UnsupportedOpsError: lists every node that the parser refuses.
    """

    def __init__(self, flavour: Flavour, data: bytes, path: Path | None = None) -> None:
        super().__init__(flavour)
        # The network's weights are the parser's.
        self._parser = flavour.trt.OnnxParser(self.definition, self.logger)
        with self.logger.capture() as logged:
            where = () if path is None else (os.fspath(path),)
            parsed = self._parser.parse(data, *where)
        if not parsed:
            nodes = [_refused(self._parser.get_error(index)) for index in range(self._parser.num_errors)]
            raise UnsupportedOpsError(nodes or [UnsupportedNode("model", "onnx", "; ".join(logged))])


def _refused(error: Any) -> UnsupportedNode:
    """One of the parser's errors, whose text is a condition in its source, with or without an explanation."""
    condition = error.desc()
    explained = re.search(r'"(.+)"', condition)
    detail = explained.group(1) if explained else condition
    # In TensorRT 10 the code's `name` is a method of another kind than enum's.
    reason = str(error.code()).rpartition(".")[2].lower().replace("_", " ")
    if detail not in ("", "false"):
        reason += f": {detail}"
    return UnsupportedNode(error.node_name() or f"node {error.node()}", error.node_operator() or "onnx", reason)
