"""Good settings for a model on the GPU that is there: ``torch2trt.tune`` and ``torch2trt tune``."""

from torch2trt.tools.tune.tuning import tune

__all__ = ["tune"]
