"""A Program as JSON and tensors: both graphs over registered operators, without pickle.

Reading one executes nothing that it names: operators are looked up in ``torch.ops`` among the namespaces that are
allowed, Python functions in a fixed list, and every name that ends up in generated code is a plain identifier.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import keyword
import math
import operator
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import fx

from torch2trt.errors import ArtifactError, ArtifactWriteError, ContractError
from torch2trt.graph import ops, plugged_ops  # noqa: F401  # registers the operators of this package
from torch2trt.graph.contract import check
from torch2trt.graph.module import graph_module
from torch2trt.graph.program import Program, provenance
from torch2trt.graph.rewrite import IN_TORCH
from torch2trt.graph.schema import TensorOp, name_of
from torch2trt.graph.signature import Signature, dtype_from_json, dtype_to_json, spec_from_json, spec_to_json
from torch2trt.graph.storages import dump_tensors, restore_tensors
from torch2trt.graph.weights import WeightsGraph
from torch2trt.sizes import TensorSpec, size_from_json, size_to_json

FORMAT = 1
NAMESPACES = frozenset({"aten", "prims", "torch2trt", "torchvision"})
"""The operator namespaces that are always allowed."""

PROGRAM_FILE = "program.json"
WEIGHTS_FILE = "weights.safetensors"

# torchvision registers its operators when it is imported.
_PACKAGES = {"torchvision": "torchvision"}
# Reads, and even creates, files.
_REFUSED = frozenset({"from_file"})
_FUNCTIONS = {
    name_of(function): function
    for function in (
        *(operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv),
        *(operator.mod, operator.pow, operator.neg, operator.and_, operator.or_, operator.not_),
        *(operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
        *(torch.sym_float, torch.sym_int, torch.sym_ite, torch.sym_max, torch.sym_min, torch.sym_not, torch.sym_sum),
        *(math.ceil, math.floor, math.trunc),
    )
}
# What damaged JSON leads to, here and in what torch makes of it.
_DAMAGE = (LookupError, TypeError, ValueError, AttributeError, SyntaxError, RuntimeError, AssertionError)
_ENUMS = {"memory_format": torch.memory_format, "layout": torch.layout}


def dump(program: Program, *, namespaces: Collection[str] = ()) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A Program as JSON values, and its weights as contiguous tensors that share no memory.

    Args:
        program: at any stage; its parameters are not copied.
        namespaces: operator namespaces to allow beside :data:`NAMESPACES`.

    Raises:
        ArtifactError: an operator or argument that no file can hold.
    """
    sources, tensors = dump_tensors(program.weights.sources)
    data = {
        "format": FORMAT,
        "name": program.name,
        "captured_nodes": program.captured_nodes,
        "signature": program.signature.to_json(),
        "graph": [_node_to_json(program, node, namespaces) for node in program.nodes],
        "weights": {
            "sources": sources,
            "graph": [_node_to_json(program, node, namespaces) for node in program.weights.graph.graph.nodes],
            "inputs": dict(program.weights.inputs),
            "outputs": list(program.weights.outputs),
        },
    }
    return data, tensors


def namespaces_of(program: Program) -> set[str]:
    """The namespaces of a Program's operators."""
    graphs = (program.graph.graph, program.weights.graph.graph)
    targets = [node.target for graph in graphs for node in graph.nodes if node.op == "call_function"]
    return {name_of(target).partition(".")[0] for target in targets if isinstance(target, TensorOp)}


def restore(
    data: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], *, namespaces: Collection[str] = ()
) -> Program:
    """The Program that :func:`dump` took apart; what was on a GPU that is not here comes back on one that is.

    Its nodes know their specs and sizes, and carry no fake tensors: it runs, lowers and refits, and is past the
    passes.

    Raises:
        ArtifactError: damaged data, or an operator that is unknown or not allowed.
    """
    if data.get("format") != FORMAT:
        raise ArtifactError(f"a program of format {data.get('format')!r}; this version reads format {FORMAT}")
    try:
        program = Program(
            name=data["name"],
            graph=_graph_from_json(data["graph"], namespaces),
            weights=_weights_from_json(data["weights"], tensors, namespaces),
            signature=Signature.from_json(data["signature"]),
            captured_nodes=data["captured_nodes"],
        )
        check(program, "loading")
    except (*_DAMAGE, ContractError) as error:
        raise ArtifactError(f"damaged program: {type(error).__name__}: {error}") from error
    return program


def save_program(program: Program, folder: Path, *, namespaces: Collection[str] = ()) -> None:
    """Write ``program.json`` and ``weights.safetensors`` into an existing folder.

    Raises:
        ArtifactError: an operator or argument that no file can hold.
        ArtifactWriteError: the folder cannot be written to.
    """
    data, tensors = dump(program, namespaces=namespaces)
    try:
        safetensors.torch.save_file(tensors, folder / WEIGHTS_FILE)
        (folder / PROGRAM_FILE).write_text(json.dumps(data, allow_nan=False), encoding="utf-8")
    except (OSError, safetensors.SafetensorError) as error:
        raise ArtifactWriteError(
            f"could not be written: {error}",
            subject=str(folder),
            hint="look at the folder's free space and permissions",
        ) from error


def load_program(folder: Path, *, namespaces: Collection[str] = ()) -> Program:
    """Read what :func:`save_program` wrote.

    Raises:
        ArtifactError: a file that is missing or damaged, or an operator that is unknown or not allowed.
    """
    try:
        data = json.loads((folder / PROGRAM_FILE).read_text(encoding="utf-8"))
        tensors = safetensors.torch.load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"no readable program: {error}", subject=str(folder)) from error
    if not isinstance(data, dict):
        raise ArtifactError("no program", subject=str(folder / PROGRAM_FILE))
    return restore(data, tensors, namespaces=namespaces)


# Nodes ------------------------------------------------------------------------------------------------------


def _node_to_json(program: Program, node: fx.Node, namespaces: Collection[str]) -> dict[str, Any]:
    data: dict[str, Any] = {"op": node.op, "name": node.name}
    if node.op == "call_function":
        data["target"] = name_of(node.target)
        # What could not be read again is refused now.
        operator_of(data["target"], namespaces)
        data["kwargs"] = {name: argument_to_json(value) for name, value in node.kwargs.items()}
    elif node.op == "placeholder":
        data["target"] = str(node.target)
    elif node.op != "output":
        raise ArtifactError("only operator calls can be written", subject=node.format_node() or node.name)
    if node.op != "placeholder":
        data["args"] = [argument_to_json(value) for value in node.args]
    if node.op != "output":
        data |= _result_to_json(program, node)
    module, source = provenance(node)
    texts = (("module", module), ("source", source), (IN_TORCH, node.meta.get(IN_TORCH)))
    return data | {key: text for key, text in texts if text}


def _result_to_json(program: Program, node: fx.Node) -> dict[str, Any]:
    if program.is_size(node):
        value = node.meta.get("size", node.meta.get("val"))
        whole = "size" in node.meta or isinstance(value, int | torch.SymInt)
        # A condition, or a fraction on the way to a size, is no size itself.
        return {"size": size_to_json(program.size(node)) if whole and value is not None else None}
    result = program.result(node)
    if isinstance(result, TensorSpec):
        return {"spec": spec_to_json(result)}
    return {"spec": [None if item is None else spec_to_json(item) for item in result]}


def _graph_from_json(items: Sequence[Mapping[str, Any]], namespaces: Collection[str]) -> fx.GraphModule:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for item in items:
        op, name = item["op"], _identifier(item["name"])
        if name in nodes:
            raise ArtifactError("two nodes have this name", subject=name)
        args = tuple(argument_from_json(value, nodes) for value in item.get("args", ()))
        kwargs = {_identifier(key): argument_from_json(value, nodes) for key, value in item.get("kwargs", {}).items()}
        match op:
            case "placeholder":
                target: Any = _identifier(item["target"])
            case "call_function":
                target = operator_of(item["target"], namespaces)
            case "output":
                target = op
            case _:
                raise ArtifactError(f"not a kind of node: {op!r}", subject=name)
        node = graph.create_node(op, target, args, kwargs, name=name)
        node.meta.update(_meta_from_json(item))
        nodes[name] = node
    return graph_module(graph)


def _weights_from_json(
    data: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], namespaces: Collection[str]
) -> WeightsGraph:
    sources = restore_tensors(data["sources"], tensors, _available)
    graph = _graph_from_json(data["graph"], namespaces)
    inputs = dict(data["inputs"])
    if list(inputs) != [node.target for node in graph.graph.nodes if node.op == "placeholder"]:
        raise ArtifactError("the weights graph has other inputs than the program says")
    if missing := set(inputs.values()) - set(sources):
        raise ArtifactError(f"weights are missing: {', '.join(sorted(missing))}")
    return WeightsGraph(sources, graph, inputs, tuple(data["outputs"]))


def _meta_from_json(item: Mapping[str, Any]) -> dict[str, Any]:
    meta: dict[str, Any] = {}
    if "size" in item:
        meta["size"] = None if item["size"] is None else size_from_json(item["size"])
    if "spec" in item:
        spec = item["spec"]
        if isinstance(spec, list):
            meta["spec"] = [None if each is None else spec_from_json(each) for each in spec]
        else:
            meta["spec"] = spec_from_json(spec)
    # In the form in which capture leaves them, so that passes and errors need to know no other.
    if module := item.get("module"):
        meta["nn_module_stack"] = {"": (module, "")}
    if reason := item.get(IN_TORCH):
        meta[IN_TORCH] = str(reason)
    if source := item.get("source"):
        if len(source.splitlines()) != 1:
            raise ArtifactError("a source location is one line", subject=item["name"])
        location, _, function = source.rpartition(" in ")
        path, _, line = location.rpartition(":")
        meta["stack_trace"] = f'File "{path}", line {line}, in {function}'
    return meta


def _identifier(text: str) -> str:
    """The text, which fx writes into the Python code that it generates."""
    if not text.isidentifier() or keyword.iskeyword(text):
        raise ArtifactError(f"not a name: {text!r}")
    return text


# Operators --------------------------------------------------------------------------------------------------


def operator_of(name: str, namespaces: Collection[str]) -> Any:
    """The operator overload or the Python function of a name.

    Args:
        namespaces: of operators that are allowed, beside :data:`NAMESPACES`.

    Raises:
        ArtifactError: there is none, or it is not allowed.
    """
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    namespace, _, rest = name.partition(".")
    base, _, overload = rest.rpartition(".")
    if namespace not in NAMESPACES.union(namespaces) or base in _REFUSED:
        hint = "" if base in _REFUSED else f"allow the operators of {namespace!r} with namespaces="
        raise ArtifactError("this operator is not allowed in a file", subject=name, hint=hint)
    target = _lookup(namespace, base, overload)
    if target is None and namespace in _PACKAGES and importlib.util.find_spec(_PACKAGES[namespace]):
        importlib.import_module(_PACKAGES[namespace])
        target = _lookup(namespace, base, overload)
    if target is None:
        hint = f"import the package that registers the operators of {namespace!r} first"
        raise ArtifactError("no such operator", subject=name, hint=hint)
    return target


def _lookup(namespace: str, base: str, overload: str) -> TensorOp | None:
    target = getattr(getattr(getattr(torch.ops, namespace), base, None), overload, None)
    return target if isinstance(target, TensorOp) else None


# Arguments --------------------------------------------------------------------------------------------------


def argument_to_json(value: Any) -> Any:
    """JSON of one argument; an object's only key names what JSON has no type for."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"float": str(value)}
        case fx.Node():
            return {"node": value.name}
        case tuple():
            return {"tuple": [argument_to_json(item) for item in value]}
        case list():
            return [argument_to_json(item) for item in value]
        case slice():
            return {"slice": [argument_to_json(item) for item in (value.start, value.stop, value.step)]}
        case torch.dtype():
            return {"dtype": dtype_to_json(value)}
        case torch.device():
            return {"device": str(value)}
        case torch.memory_format() | torch.layout():
            return {type(value).__name__: str(value).removeprefix("torch.")}
    raise ArtifactError(f"an argument of type {type(value).__name__} cannot be written: {value!r}")


def argument_from_json(value: Any, nodes: Mapping[Any, Any]) -> Any:
    """The inverse of :func:`argument_to_json`.

    Args:
        nodes: what to put in the place of nodes, by their names.

    Raises:
        ArtifactError, LookupError: it is none.
    """
    if isinstance(value, list):
        return [argument_from_json(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "float":
            return float(content)
        case "node":
            return nodes[content]
        case "tuple":
            return tuple(argument_from_json(item, nodes) for item in content)
        case "slice":
            return slice(*(argument_from_json(item, nodes) for item in content))
        case "dtype":
            return dtype_from_json(content)
        case "device":
            return _available(content)
        case "memory_format" | "layout":
            found = getattr(torch, content, None)
            if isinstance(found, _ENUMS[kind]):
                return found
    raise ArtifactError(f"not an argument: {value!r}")


def _available(name: str) -> torch.device:
    """The device, or what takes its place on a machine without it."""
    device = torch.device(name)
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return device if (device.index or 0) < torch.cuda.device_count() else torch.device("cuda")
