"""Which optimization profiles TensorRT took, for tests of what becomes of profiles."""

from __future__ import annotations

from typing import Any

import pytest

from torch2trt.engine import builder
from torch2trt.sizes import DimRange

Taken = list[dict[str, DimRange]]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    """The ranges of each profile that came into a builder's configuration, in order."""
    found: Taken = []
    add = builder._add_profile

    def watched(network: Any, config: Any, inputs: Any, ranges: Any) -> bool:
        before = config.num_optimization_profiles
        assert add(network, config, inputs, ranges)
        assert config.num_optimization_profiles == before + 1
        found.append(dict(ranges))
        return True

    monkeypatch.setattr(builder, "_add_profile", watched)
    return found
