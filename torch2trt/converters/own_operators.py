"""Operators that are neither torch's nor this package's, as another process has to learn of them before it builds."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys

import torch
from torch import fx

from torch2trt.converters import plugins, registry
from torch2trt.engine.child import OwnOperators
from torch2trt.errors import ArtifactError, BuildImportError
from torch2trt.graph.program import Program
from torch2trt.graph.schema import TensorOp, name_of
from torch2trt.graph.serialize import NAMESPACES, operator_of

_PACKAGE = __name__.partition(".")[0]


def own_operators(program: Program) -> OwnOperators:
    """A Program's own operators, and the modules that register them and their converters.

    Raises:
        BuildImportError: such a module cannot be imported elsewhere, or is not known.
    """
    operators: list[str] = []
    converted: list[str] = []
    made_plugins: dict[str, bool] = {}
    places: dict[str, str] = {}
    for target in _targets(program.graph, program.weights.graph):
        name, converter = name_of(target), registry.find(target)
        modules: list[str | None] = []
        if name.partition(".")[0] not in NAMESPACES:
            operators.append(name)
            modules.append(_origin(target))
        if converter is not None and plugins.is_plugin(converter):
            made_plugins[name] = not converter.float32
            if modules == [None]:
                modules.append(plugins.made_by(converter))
        elif converter is not None and converter.function.__module__.partition(".")[0] != _PACKAGE:
            converted.append(name)
            modules.append(converter.function.__module__)
        if modules and not any(modules):
            raise _refused(name, "is registered by a module that is not known")
        places.update(_place(module, name) for module in modules if module is not None)
    return OwnOperators(operators, places, converted, made_plugins, list(sys.path) if places else [])


def register(own: OwnOperators) -> None:
    """Make this process know operators of another one.

    Raises:
        BuildImportError: a module cannot be imported here, or does not register what it did there.
    """
    sys.path[:] = own.path or sys.path
    for module, file in own.modules.items():
        try:
            _load(module, file)
        except Exception as error:
            raise BuildImportError(
                f"cannot be imported in the build process: {type(error).__name__}: {error}",
                subject=module,
                hint="it registers an operator of the model; build without build_in_subprocess and build_timeout",
            ) from error
    imported = ", ".join(own.modules)
    namespaces = own.namespaces
    for name in dict.fromkeys((*own.operators, *own.converted, *own.plugins)):
        try:
            target = operator_of(name, namespaces)
        except ArtifactError as error:
            raise _refused(name, f"is not registered when its module is imported ({imported})") from error
        if name in own.plugins and not registry.has_converter(target):
            plugins.plugin(target, half=own.plugins[name])
        if name in own.converted and not registry.has_converter(target):
            raise _refused(name, f"gets no converter when its module is imported ({imported})")


def _targets(*graphs: fx.GraphModule) -> dict[TensorOp, None]:
    found = (node.target for graph in graphs for node in graph.graph.nodes if node.op == "call_function")
    return dict.fromkeys(target for target in found if isinstance(target, TensorOp))


def _origin(target: TensorOp) -> str | None:
    """The module that registered an operator, None where torch does not tell."""
    name = target._schema.name
    definition = torch._library.custom_ops.OPDEFS.get(name)
    # What triton_op registers is a function of torch's own, and its fake kernel the user's.
    for function in () if definition is None else (definition._init_fn, definition._abstract_fn):
        module = getattr(function, "__module__", None)
        if module and module.partition(".")[0] != "torch":
            return str(module)
    registered = re.search(r"^debug: registered at (.+):\d+$", torch._C._dispatch_dump(name), re.MULTILINE)
    if registered:
        path = os.path.abspath(registered[1])
        for module, found in list(sys.modules.items()):
            if (file := getattr(found, "__dict__", {}).get("__file__")) and os.path.abspath(file) == path:
                return module
    # In C++: the package that loads it is often called like it.
    namespace = name.partition("::")[0]
    return namespace if namespace in sys.modules else None


def _place(module: str, operator: str) -> tuple[str, str]:
    """A module's name, and its file where it is not found by the name."""
    if module == "__main__":
        raise _refused(operator, "is registered, or its converter is, by the program itself (__main__)")
    if _is_found(module):
        return module, ""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or not os.path.exists(file):
        raise _refused(operator, f"is registered, or its converter is, by {module}, which is no module of a file")
    return module, os.path.abspath(file)


def _is_found(module: str) -> bool:
    """Whether another process finds a module by its name."""
    parent = module.rpartition(".")[0]
    path = getattr(sys.modules.get(parent), "__path__", None)
    if parent and path is None:
        return False
    finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
    return any(find(module, path) is not None for find in finders if find is not None)


def _load(module: str, file: str) -> None:
    if not file:
        importlib.import_module(module)
        return
    spec = importlib.util.spec_from_file_location(module, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    found = sys.modules[module] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)


def _refused(operator: str, reason: str) -> BuildImportError:
    return BuildImportError(
        f"{reason}, so that a build in a process of its own does not know it",
        subject=operator,
        hint="register it when a module of its own is imported, or build without build_in_subprocess and build_timeout",
    )
