"""What TensorRT's inspector says of an engine's layers, and which calls of the graph each of them computes.

The inspector's words differ between versions, so whatever is not understood here is left empty; nothing raises.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

_MARK = re.compile(r"\[t2t (\S+?) ([^\]]*)\]")

# The bits of what TensorRT calls "Half" in one place and "FP16" in another, and the name that it has here.
_DTYPES: dict[str, tuple[str, int]] = {
    **dict.fromkeys(("float", "fp32", "float32"), ("fp32", 32)),
    **dict.fromkeys(("half", "fp16", "float16"), ("fp16", 16)),
    **dict.fromkeys(("bf16", "bfloat16"), ("bf16", 16)),
    **{name: (name, 8) for name in ("int8", "uint8", "bool", "fp8")},
    "int32": ("int32", 32),
    "int64": ("int64", 64),
    **{name: (name, 4) for name in ("int4", "fp4")},
}
_BITS = dict(_DTYPES.values())
_WIDTHS = {"two": 2, "four": 4, "eight": 8, "sixteen": 16, "thirty-two": 32}

_WORD = re.compile(r"[^\s+(){}\[\],]+")
# The network's own inputs and outputs are no calls, whatever their names.
_REFORMATTED = re.compile(
    r"^Reformatting CopyNode for (Network (Input|Output) .*|(Input|Output) Tensor \d+ (to|from) )"
)
_FOREIGN = re.compile(r"\{ForeignNode\[(.+?)\.\.\.(.+?)\]\}")
_NETWORK_LAYER = re.compile(r"[a-z_]\w*")


def mark(node: str, module: str) -> str:
    """What a network layer's ``metadata`` says of the call that it is a part of.

    TensorRT hands it on to the inspector, and joins that of layers which it fuses, by signs that differ.

    Args:
        node: the call's name in the graph.
        module: path of the module that it is in.
    """
    return f"[t2t {node} {module}]"


@dataclass(frozen=True)
class LayerTensor:
    """What a layer of an engine reads or writes."""

    name: str
    shape: tuple[int, ...] | None = None
    """None where it is not known."""
    dtype: str = ""
    """Such as ``fp16``; empty where it is not known."""
    format: str = ""
    """Such as ``HWC8``, or ``linear``; empty where it is not known."""
    vector: int = 1
    """Channels that are kept together; their number is rounded up to a multiple."""
    on_host: bool = False

    @property
    def bytes(self) -> int | None:
        """Of GPU memory, padding of channels included; None where shape or dtype are not known."""
        if self.on_host:
            return 0
        if self.shape is None or self.dtype not in _BITS:
            return None
        shape = list(self.shape)
        if len(shape) > 1:
            shape[1] = -(-shape[1] // self.vector) * self.vector
        return math.prod(shape) * _BITS[self.dtype] // 8


@dataclass(frozen=True)
class Layer:
    """A layer of an engine, in most cases one kernel."""

    name: str
    kind: str = ""
    """Its type as TensorRT calls it, such as ``CaskConvolution`` or ``kgen``."""
    tactic: str = ""
    """The kernel that TensorRT chose."""
    inputs: tuple[LayerTensor, ...] = ()
    outputs: tuple[LayerTensor, ...] = ()
    weight_bytes: int = 0
    """Of weights that are none of its inputs."""
    origins: dict[str, str] = field(default_factory=dict)
    """The calls that it computes, as :func:`mark` named them, each with the path of its module."""

    @property
    def is_reformat(self) -> bool:
        """Whether it only copies a tensor into another layout or dtype, which no call asks for."""
        return self.kind == "Reformat" or bool(_REFORMATTED.match(self.name))

    @property
    def bytes(self) -> int | None:
        """GPU memory that it reads and writes if each element is moved once; None where it is not known."""
        sizes = [tensor.bytes for tensor in (*self.inputs, *self.outputs)]
        if not sizes or None in sizes:
            return None
        return sum(size for size in sizes if size is not None) + self.weight_bytes


def layers(information: str) -> list[Layer]:
    """The layers of an engine in the order of running, as far as its inspector tells.

    Args:
        information: the inspector's JSON: objects where the engine was built with detailed verbosity, else names.
    """
    try:
        # Separators of metadata come as they are, too.
        found = json.loads(information, strict=False)
    except ValueError:
        return []
    items = found.get("Layers") if isinstance(found, dict) else found
    return [_layer(item) for item in items] if isinstance(items, list) else []


def names_in(name: str, known: Container[str] | None = None) -> list[str]:
    """The calls of a graph whose layers TensorRT names in that of a layer which it made of them.

    It joins names by ``+``, wraps them as in ``PWN(…)``, gives copies a text in front of the name that they are for,
    and lets the layers of its compiler end in ``_myl0_12``. A graph's call may be several layers, as ``name.1``.

    Args:
        known: names of calls; None: whatever could be one.
    """
    words = _WORD.findall(_REFORMATTED.sub("", name).replace("...", " "))
    found: dict[str, None] = {}
    for word in words:
        short = re.sub(r"_myl\d+(_\d+)*$", "", word)
        for each in (word, re.sub(r"\.\d+$", "", word), short, re.sub(r"\.\d+$", "", short)):
            if each in known if known is not None else (_NETWORK_LAYER.fullmatch(each) and not each.startswith("__")):
                found[each] = None
                break
    return list(found)


def range_in(name: str) -> tuple[str, str] | None:
    """The first and last layer of those that ``{ForeignNode[first...last]}`` stands for."""
    found = _FOREIGN.search(name)
    return (found[1], found[2]) if found else None


def _layer(item: Any) -> Layer:
    if not isinstance(item, dict):
        return Layer(str(item))
    return Layer(
        name=_text(item, "Name"),
        kind=_text(item, "LayerType"),
        tactic=_text(item, "TacticName"),
        inputs=_tensors(item.get("Inputs")),
        outputs=_tensors(item.get("Outputs")),
        weight_bytes=sum(_weights(item.get(key)) for key in ("Weights", "Bias")),
        origins=dict(_MARK.findall(_text(item, "Metadata"))),
    )


def _text(item: dict[str, Any], key: str) -> str:
    value = item.get(key)
    return value if isinstance(value, str) else ""


def printable(text: str) -> str:
    """A name without control characters, which no page can hold."""
    return re.sub(r"[\x00-\x1f\x7f]", " ", text)


def _tensors(items: Any) -> tuple[LayerTensor, ...]:
    return tuple(_tensor(item) for item in items if isinstance(item, dict)) if isinstance(items, list) else ()


def _tensor(item: dict[str, Any]) -> LayerTensor:
    # One text up to 10.x, two from 11 on.
    layout = _text(item, "Format/Datatype") or _text(item, "Format")
    dtype, _ = _dtype(f"{_text(item, 'Datatype')} {layout}")
    sizes = item.get("Dimensions")
    known = isinstance(sizes, list) and all(isinstance(size, int) and size >= 0 for size in sizes)
    format, vector = _format(layout)
    return LayerTensor(
        _text(item, "Name"),
        tuple(sizes) if known else None,  # type: ignore[arg-type]
        dtype,
        format,
        vector,
        on_host=_text(item, "Location") == "Host",
    )


def _dtype(text: str) -> tuple[str, int]:
    words = re.findall(r"[a-z]+\d*", text.lower())
    return next((_DTYPES[word] for word in words if word in _DTYPES), ("", 0))


def _format(text: str) -> tuple[str, int]:
    """Short for a layout in words, and the number of channels that lie together."""
    lower = text.lower()
    if found := re.search(r"channel % (\d+)", lower):
        return f"HWC{found[1]}", int(found[1])
    if (found := re.match(r"(\S+) wide channel vectorized", lower)) and found[1] in _WIDTHS:
        return f"CHW{_WIDTHS[found[1]]}", _WIDTHS[found[1]]
    if lower.startswith("channel major"):
        return "HWC", 1
    if lower.startswith("row major linear"):
        return "linear", 1
    # TensorRT's compiler tells the dtype alone; anything else is shown as it is.
    return ("", 1) if lower in _DTYPES or lower.startswith("n/a") else (text, 1)


def _weights(item: Any) -> int:
    if not isinstance(item, dict) or not isinstance(item.get("Count"), int):
        return 0
    return int(item["Count"]) * _dtype(_text(item, "Type"))[1] // 8
