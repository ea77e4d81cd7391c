"""torch2trt: compile a PyTorch module into a TensorRT engine that is called like the module."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from torch2trt import errors
from torch2trt.errors import (
    ArtifactError,
    ArtifactMismatchError,
    ArtifactWriteError,
    BuildCrashError,
    BuildError,
    BuildImportError,
    BuildTimeoutError,
    CaptureError,
    ContractError,
    DataDependentError,
    DynamicShapeError,
    EngineError,
    ExampleInputError,
    FlavourNotFoundError,
    FlavourTooOldError,
    FrozenModuleError,
    InputDeviceError,
    InputDtypeError,
    InputShapeError,
    InputStructureError,
    InterpreterError,
    MissingPackageError,
    ModelNameError,
    NetworkError,
    NoCandidateError,
    NoFailureError,
    NoGPUError,
    ProgramMissingError,
    RandomOpError,
    SettingError,
    TooSmallError,
    Torch2TRTError,
    TrainingModeError,
    UnsupportedGPUError,
    UnsupportedNode,
    UnsupportedOpsError,
    WeightError,
)
from torch2trt.settings import Settings

if TYPE_CHECKING:
    from torch2trt import onnx
    from torch2trt.api import compile, explain, export, load
    from torch2trt.compat import TRTModule, torch2trt
    from torch2trt.converters.plugins import plugin
    from torch2trt.converters.registry import converter
    from torch2trt.examples import record
    from torch2trt.graph.program import Program
    from torch2trt.runtime.module import EngineModule
    from torch2trt.tools.compare import compare
    from torch2trt.tools.profile import profile
    from torch2trt.tools.reduce import reduce
    from torch2trt.tools.tune import tune

__version__ = "0.1.0"

# Loading an engine needs neither capture nor converters: names are imported when they are first used.
_LAZY = {
    "EngineModule": "torch2trt.runtime.module",
    "Program": "torch2trt.graph.program",
    "TRTModule": "torch2trt.compat",
    "compare": "torch2trt.tools.compare",
    "compile": "torch2trt.api",
    "converter": "torch2trt.converters.registry",
    "explain": "torch2trt.api",
    "export": "torch2trt.api",
    "load": "torch2trt.api",
    "onnx": "torch2trt.onnx",
    "plugin": "torch2trt.converters.plugins",
    "profile": "torch2trt.tools.profile",
    "record": "torch2trt.examples",
    "reduce": "torch2trt.tools.reduce",
    "torch2trt": "torch2trt.compat",
    "tune": "torch2trt.tools.tune",
}

__all__ = [
    "ArtifactError",
    "ArtifactMismatchError",
    "ArtifactWriteError",
    "BuildCrashError",
    "BuildError",
    "BuildImportError",
    "BuildTimeoutError",
    "CaptureError",
    "ContractError",
    "DataDependentError",
    "DynamicShapeError",
    "EngineError",
    "EngineModule",
    "ExampleInputError",
    "FlavourNotFoundError",
    "FlavourTooOldError",
    "FrozenModuleError",
    "InputDeviceError",
    "InputDtypeError",
    "InputShapeError",
    "InputStructureError",
    "InterpreterError",
    "MissingPackageError",
    "ModelNameError",
    "NetworkError",
    "NoCandidateError",
    "NoFailureError",
    "NoGPUError",
    "Program",
    "ProgramMissingError",
    "RandomOpError",
    "SettingError",
    "Settings",
    "TRTModule",
    "TooSmallError",
    "Torch2TRTError",
    "TrainingModeError",
    "UnsupportedGPUError",
    "UnsupportedNode",
    "UnsupportedOpsError",
    "WeightError",
    "__version__",
    "compare",
    "compile",
    "converter",
    "errors",
    "explain",
    "export",
    "load",
    "onnx",
    "plugin",
    "profile",
    "record",
    "reduce",
    "torch2trt",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_LAZY[name])
    value = module if _LAZY[name] == f"{__name__}.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
