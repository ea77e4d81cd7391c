"""Builds in a process of their own, of models with operators that a library in C++ registers."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.cpp_extension import include_paths, library_paths

import torch2trt
from tests.harness import compare, truth
from torch2trt import api
from torch2trt.converters import own_operators as owning
from torch2trt.converters.own_operators import own_operators
from torch2trt.engine.child import OwnOperators
from torch2trt.errors import BuildImportError
from torch2trt.graph.program import Program
from torch2trt.settings import Settings

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")

NATIVE = """
#include <torch/library.h>

at::Tensor thrice(const at::Tensor& x) { return x.mul(3); }

TORCH_LIBRARY(t2t_native_1, m) {
  m.def("thrice(Tensor x) -> Tensor");
  m.impl("thrice", c10::DispatchKey::CompositeExplicitAutograd, TORCH_FN(thrice));
}
"""

# A package whose name says nothing of the operator's, and that loads its library as packages do.
LOADING = """
from pathlib import Path
import torch
torch.ops.load_library(Path(__file__).parent / "_native.so")
"""

FAKE = """
import torch

@torch.library.register_fake("t2t_native_1::thrice")
def thrice(x):
    return torch.empty_like(x)
"""

CONVERTER = """
import torch
import torch2trt

@torch2trt.converter(torch.ops.{namespace}.thrice.default)
def convert(net, x):
    return net.binary("PROD", x, 3.0)
"""


class Native(nn.Module):
    def __init__(self, namespace: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 8)
        self.thrice = getattr(torch.ops, namespace).thrice
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.thrice(self.linear(x).relu())
        return found - 1


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    (folder / "native.cpp").write_text(NATIVE)
    paths = [f"-I{path}" for path in include_paths()]
    links = [*(f"-L{path}" for path in library_paths()), "-lc10", "-ltorch", "-ltorch_cpu"]
    command = ["g++", "-O0", "-std=c++20", "-shared", "-fPIC", *paths, "native.cpp", *links, "-o", "native.so"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "native.so"


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as found:
        yield found


@pytest.fixture(scope="module")
def packaged(library: Path, tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> ModuleType:
    """A package with the library, its fake kernel and its converter."""
    folder = tmp_path_factory.mktemp("packaged")
    package = folder / "t2t_gadgets"
    package.mkdir()
    shutil.copy(library, package / "_native.so")
    (package / "__init__.py").write_text(LOADING)
    (package / "fakes.py").write_text(FAKE)
    (package / "converters.py").write_text(CONVERTER.format(namespace="t2t_native_1"))
    patch.syspath_prepend(str(folder))
    importlib.import_module("t2t_gadgets.fakes")
    importlib.import_module("t2t_gadgets.converters")
    return importlib.import_module("t2t_gadgets")


@pytest.fixture(scope="module")
def lone(library: Path, tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Path:
    """The library under another namespace in no package, loaded by nobody that is known; a converter needs it first."""
    folder = tmp_path_factory.mktemp("lone")
    copied = folder / "lone.so"
    copied.write_bytes(library.read_bytes().replace(b"t2t_native_1", b"t2t_native_2"))
    torch.ops.load_library(str(copied))
    (folder / "t2t_lone_converters.py").write_text(CONVERTER.format(namespace="t2t_native_2"))
    patch.syspath_prepend(str(folder))
    importlib.import_module("t2t_lone_converters")
    return copied


def optimized(module: nn.Module) -> Program:
    return api.optimize(api.capture(module, (torch.randn(2, 8),)), Settings(progress="none"))


def build(module: nn.Module, **settings: Any) -> Any:
    quick: dict[str, Any] = {"precision": "fp32", "optimization_level": 0, "progress": "none"}
    return torch2trt.compile(module, (torch.randn(2, 8),), fallback=False, **quick, **settings)


def test_of_a_package(packaged: ModuleType) -> None:
    found = own_operators(optimized(Native("t2t_native_1")))
    assert found.operators == ["t2t_native_1.thrice.default"]
    assert set(found.modules) == {"t2t_gadgets.fakes", "t2t_gadgets", "t2t_gadgets.converters"}
    assert found.libraries == [str(Path(packaged.__path__[0]) / "_native.so")]


def test_a_child_knows_them_of_a_package(packaged: ModuleType) -> None:
    module, x = Native("t2t_native_1"), torch.randn(2, 8)
    compare(build(module, build_in_subprocess=True).reference(x), truth(module, (x,)), 1.0)


def test_a_child_knows_them_of_a_library_alone(lone: Path) -> None:
    module, x = Native("t2t_native_2"), torch.randn(2, 8)
    found = own_operators(optimized(module))
    assert found.libraries == [str(lone)]
    assert found.modules == {"t2t_lone_converters": ""}
    compare(build(module, build_in_subprocess=True).reference(x), truth(module, (x,)), 1.0)


def test_a_library_that_only_the_system_knows(lone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an extension of Python's that is built and imported where it is used, and that no module of a name is."""
    monkeypatch.setattr(torch.ops, "loaded_libraries", set())
    expected = [str(lone)] if sys.platform == "linux" else []
    assert owning._libraries(torch.ops.t2t_native_2.thrice.default) == expected


def test_a_library_that_is_gone(lone: Path, tmp_path: Path) -> None:
    own = OwnOperators(["t2t_native_2.thrice.default"], {}, [str(tmp_path / "gone.so")])
    with pytest.raises(BuildImportError, match=r"gone\.so: cannot be loaded in the build process") as caught:
        owning.register(own)
    assert "without build_in_subprocess" in caught.value.hint


def test_python_is_no_library(packaged: ModuleType) -> None:
    @torch.library.custom_op("t2t_native_1::inner", mutates_args=())
    def inner(x: Tensor) -> Tensor:
        return x + 1

    assert owning._libraries(inner._opoverload) == []
    assert owning._origin(inner._opoverload) == __name__
