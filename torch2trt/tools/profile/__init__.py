"""Where the time of a call goes: ``torch2trt.profile`` and ``torch2trt profile``."""

from torch2trt.tools.profile.profiling import profile

__all__ = ["profile"]
