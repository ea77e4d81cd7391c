"""Operators that are neither torch's nor this package's, as another process has to learn of them before it builds."""

from __future__ import annotations

import importlib
import importlib.util
import mmap
import os
import re
import sys
from collections.abc import Sequence

import psutil
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
    """A Program's own operators, and the modules and libraries that register them and their converters.

    Raises:
        BuildImportError: such a module cannot be imported elsewhere, or is not known.
    """
    operators: list[str] = []
    converted: list[str] = []
    made_plugins: dict[str, dict[str, bool]] = {}
    places: dict[str, str] = {}
    libraries: dict[str, None] = {}
    for target in _targets(program.graph, program.weights.graph):
        name, converter = name_of(target), registry.find(target)
        modules: list[str | None] = []
        native: list[str] = []
        if name.partition(".")[0] not in NAMESPACES:
            operators.append(name)
            modules.append(_origin(target))
            if native := _libraries(target):
                libraries.update(dict.fromkeys(native))
                modules = [*modules, *map(_package, native)]
        if converter is not None and plugins.is_plugin(converter):
            made = plugins.how_made(converter)
            made_plugins[name] = {"half": made.half, "channels_last": made.channels_last}
            if modules and not any(modules):
                modules.append(made.module)
        elif converter is not None and converter.function.__module__.partition(".")[0] != _PACKAGE:
            converted.append(name)
            modules.append(converter.function.__module__)
        if modules and not any(modules) and not native:
            raise _refused(name, "is registered by a module that is not known")
        places.update(_place(module, name) for module in modules if module is not None)
    path = list(sys.path) if places else []
    return OwnOperators(operators, places, [*libraries], converted, made_plugins, path)


def register(own: OwnOperators) -> None:
    """Make this process know operators of another one.

    Raises:
        BuildImportError: a module or library cannot be loaded here, or does not register what it did there.
    """
    sys.path[:] = own.path or sys.path
    # A converter's module may look its operator up; a package may load before what its library needs.
    failed = [library for library in own.libraries if _library_error(library) is not None]
    for module, file in own.modules.items():
        try:
            _load(module, file)
        except Exception as error:
            raise BuildImportError(
                f"cannot be imported in the build process: {type(error).__name__}: {error}",
                subject=module,
                hint="it registers an operator of the model; build without build_in_subprocess and build_timeout",
            ) from error
    for library in failed:
        if (reason := _library_error(library)) is not None:
            raise BuildImportError(
                f"cannot be loaded in the build process: {reason}",
                subject=library,
                hint="it registers an operator of the model; build without build_in_subprocess and build_timeout",
            )
    imported = ", ".join([*own.modules, *own.libraries])
    namespaces = own.namespaces
    for name in dict.fromkeys((*own.operators, *own.converted, *own.plugins)):
        try:
            target = operator_of(name, namespaces)
        except ArtifactError as error:
            raise _refused(name, f"is not registered when its module is imported ({imported})") from error
        if name in own.plugins and not registry.has_converter(target):
            plugins.plugin(target, **own.plugins[name])
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
    if module := _module_of(_registered_at(name)):
        return module
    # In C++: the package that loads it is often called like it, or gives it a fake kernel in Python.
    namespace = name.partition("::")[0]
    if namespace in sys.modules:
        return namespace
    fake = torch._library.simple_registry.singleton.find(name).fake_impl.kernel
    return None if fake is None else _module_of(fake.source.rpartition(":")[0])


def _module_of(path: str) -> str | None:
    """The module whose file is at a path."""
    path = os.path.abspath(path)
    return next((module for module, file in _files() if os.path.abspath(file) == path), None)


def _registered_at(name: str) -> str:
    """The file of the source code that registered an operator; empty where torch does not tell."""
    found = re.search(r"^debug: registered at (.+):\d+$", torch._C._dispatch_dump(name), re.MULTILINE)
    return found[1] if found else ""


def _files() -> list[tuple[str, str]]:
    """The modules of this process that have a file."""
    found = [(name, getattr(module, "__dict__", {}).get("__file__")) for name, module in list(sys.modules.items())]
    return [(name, file) for name, file in found if isinstance(file, str)]


def _libraries(target: TensorOp) -> list[str]:
    """The shared libraries that may have registered an operator in C++: those that name it and its namespace."""
    name = target._schema.name
    if _registered_at(name).endswith(".py"):
        return []
    loaded = [*torch.ops.loaded_libraries, *(file for _, file in _files() if file.endswith(_LIBRARIES))]
    words = [word.encode() for word in name.split("::")]
    # Others are loaded by none of torch's or Python's ways, as by an extension that is built where it is used.
    for paths in (loaded, _mapped()):
        own = [path for path in dict.fromkeys(map(os.path.abspath, paths)) if not _is_torchs(path)]
        if found := [path for path in own if _has(path, words)]:
            return found
    return []


_LIBRARIES = (".so", ".pyd", ".dll", ".dylib")
# Large, and none of them registers an operator that is not torch's.
_OTHERS = re.compile(r"[/\\](nvidia|tensorrt\w*|usr[/\\]lib\w*)[/\\]")


def _mapped() -> list[str]:
    """The shared libraries in this process's memory, as far as the system tells."""
    try:
        paths = [mapped.path for mapped in psutil.Process().memory_maps()]
    except (AttributeError, psutil.Error, OSError):
        return []
    return [path for path in paths if path.endswith(_LIBRARIES) and not _OTHERS.search(path)]


def _is_torchs(path: str) -> bool:
    return path.startswith(os.path.dirname(os.path.abspath(torch.__file__)) + os.sep)


def _has(path: str, words: Sequence[bytes]) -> bool:
    """Whether a file has all of some words in it."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(word) >= 0 for word in words)
    except (OSError, ValueError):
        return False


def _package(library: str) -> str | None:
    """The module that a library is, or the innermost package of which it lies in the folder."""
    found: tuple[int, str] | None = None
    for module, file in _files():
        path = os.path.abspath(file)
        if path == library:
            return module
        folder, name = os.path.split(path)
        if name == "__init__.py" and library.startswith(folder + os.sep):
            found = max(found or (0, ""), (len(folder), module))
    return found[1] if found else None


def _library_error(library: str) -> str | None:
    """Load a library; the reason why it cannot be loaded."""
    try:
        torch.ops.load_library(library)
    except OSError as error:
        # What torch says itself is the path.
        return str(error.__cause__ or error)
    return None


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
