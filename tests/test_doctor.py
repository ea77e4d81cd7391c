"""What ``torch2trt doctor`` says of machines of every kind."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from torch2trt.tools import cli, doctor
from torch2trt.trt import flavour as flavours

RTX_3090 = ("NVIDIA GeForce RTX 3090", (8, 6))
H200 = ("NVIDIA H200", (9, 0))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend: the GPU, which flavours are installed, the driver, and whether importing a flavour works."""

    def pretend(
        gpu: Any = None, installed: dict[str, Any] | None = None, driver: str | None = None, broken: bool = False
    ) -> None:
        def load(name: str) -> None:
            if broken:
                raise ImportError("libnvinfer.so.10: cannot open shared object file")

        monkeypatch.setattr(flavours, "gpu", lambda: gpu)
        monkeypatch.setattr(flavours, "_installed_version", (installed or {}).get)
        monkeypatch.setattr(flavours, "load", load)
        monkeypatch.setattr(doctor, "_driver", lambda: driver)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)

    return pretend


def test_this_machine_is_usable(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    chosen = flavours.load()
    assert found["chosen"] == chosen.name
    assert {item["name"]: item["version"] for item in found["flavours"]}[chosen.name].startswith(chosen.version_text)
    assert found["torch"] == torch.__version__
    assert found["todo"] == []


def test_flavour_that_serves_the_gpu_is_chosen(machine: Any) -> None:
    both = {"tensorrt": (10, 13), "tensorrt_rtx": (1, 2)}
    for gpu, chosen in ((None, "tensorrt_rtx"), (H200, "tensorrt")):
        machine(gpu, both, driver="580.1" if gpu else None)
        found = doctor.examine()
        assert found.chosen == chosen
        assert found.todo == ()
    machine(RTX_3090, {"tensorrt_rtx": (1, 2)})
    assert doctor.examine().chosen == "tensorrt_rtx"


def test_nothing_installed_says_what_to_install(machine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for gpu, extra in ((None, "torch2trt[rtx]"), (H200, "torch2trt[cu12]")):
        machine(gpu)
        assert cli.main(["doctor"]) == 1
        out = capsys.readouterr().out
        assert "nothing usable" in out
        assert extra in out.partition("what to do")[2]


def test_a_gpu_that_the_flavour_does_not_serve(machine: Any) -> None:
    machine(H200, {"tensorrt_rtx": (1, 2)})
    found = doctor.examine()
    assert found.chosen is None
    assert "does not serve NVIDIA H200" in found.reason
    assert "cu12" in found.todo[0]


def test_a_flavour_that_is_too_old(machine: Any) -> None:
    machine(None, {"tensorrt_rtx": (1, 1)})
    found = doctor.examine()
    assert found.chosen is None
    assert "1.2 is the oldest supported" in found.reason


def test_a_broken_installation_shows(machine: Any) -> None:
    machine(H200, {"tensorrt": (10, 13)}, broken=True)
    found = doctor.examine()
    assert found.chosen is None
    assert "libnvinfer.so.10" in found.reason
    assert found.todo


def test_a_driver_that_torch_cannot_use(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(None, {"tensorrt_rtx": (1, 2)}, driver="470.1")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in doctor.examine().todo[0]
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "cannot use it" in doctor.examine().todo[0]
