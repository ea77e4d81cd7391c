"""``torch2trt bench``: eager, ``torch.compile``, ONNX through TensorRT and this project, measured in one run."""

from torch2trt.tools.bench.command import main_from_cli

__all__ = ["main_from_cli"]
