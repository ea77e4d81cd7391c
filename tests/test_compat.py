"""The call and the class of NVIDIA's torch2trt, used as its documentation uses them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torch2trt as package
from torch2trt import TRTModule, torch2trt


class Net(nn.Module):
    """Two inputs, nested results."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.linear = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
        features = F.relu(self.conv(x))
        return {"features": features, "rest": [self.linear(y) + 1, None]}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def converted(net: nn.Module) -> TRTModule:
    return torch2trt(net, [*pair(2)])


def pair(batch: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, size, size), torch.randn(batch, 5)


def run(model: TRTModule, *args: Any, **kwargs: Any) -> Any:
    return model.compiled.reference(*args, **kwargs)


def dims(model: TRTModule) -> set[tuple[int, int, int]]:
    return {(span.min, span.opt, span.max) for span in model.compiled.artifact.signature.dims.values()}


def test_the_documented_script(net: nn.Module, converted: TRTModule, tmp_path: Path) -> None:
    x, y = pair(2)
    torch.testing.assert_close(run(converted, x, y), net(x, y))
    path = tmp_path / "net_trt.pth"
    torch.save(converted.state_dict(), path)
    model = TRTModule()
    model.load_state_dict(torch.load(path))
    assert model.engine.serialize() == converted.engine.serialize()
    assert len(model.engine.serialize()) > 1000
    assert (model.input_names, model.output_names) == (["input_0", "input_1"], ["output_0", "output_1"])
    assert model.compiled.artifact.signature.to_json() == converted.compiled.artifact.signature.to_json()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_calling_it_without_a_gpu_says_so(converted: TRTModule) -> None:
    with pytest.raises(package.NoGPUError):
        converted(*pair(2))


@pytest.mark.gpu
def test_on_a_gpu(net: nn.Module, tmp_path: Path) -> None:
    x, y = (tensor.cuda() for tensor in pair(2))
    model = Net().eval()
    model.load_state_dict(net.state_dict())
    model.cuda()
    model_trt = torch2trt(model, [x, y], fp16_mode=True, max_batch_size=4)
    torch.save(model_trt.state_dict(), tmp_path / "model.pth")
    loaded = TRTModule()
    loaded.load_state_dict(torch.load(tmp_path / "model.pth"))
    for batch in (1, 4):
        args = [tensor.cuda() for tensor in pair(batch)]
        with torch.no_grad():
            torch.testing.assert_close(loaded(*args), model(*args), rtol=2e-2, atol=2e-2)


def test_half_precision_keeps_the_callers_dtypes(net: nn.Module) -> None:
    x, y = pair(2)
    model = torch2trt(net, (x, y), fp16_mode=True)
    found, wanted = run(model, x, y), net(x, y)
    assert found["features"].dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)
    assert not torch.equal(found["features"], wanted["features"])
    half = torch2trt(nn.Linear(4, 2).eval().half(), [torch.randn(1, 4).half()], fp16_mode=True)
    assert run(half, torch.randn(1, 4).half()).dtype == torch.float16


def test_batch_size(net: nn.Module) -> None:
    model = torch2trt(net, [*pair(2)], max_batch_size=6)
    assert dims(model) == {(1, 2, 6)}
    for batch in (1, 6):
        x, y = pair(batch)
        torch.testing.assert_close(run(model, x, y), net(x, y))
    with pytest.raises(package.InputShapeError):
        run(model, *pair(7))


def test_shapes(net: nn.Module) -> None:
    model = torch2trt(
        net,
        [*pair(2)],
        min_shapes=[(2, 3, 8, 8), (2, 5)],
        opt_shapes=[(2, 3, 12, 10), (2, 5)],
        max_shapes=[torch.Size((2, 3, 32, 16)), (2, 5)],
    )
    assert dims(model) == {(8, 12, 32), (8, 10, 16)}
    x, y = torch.randn(2, 3, 31, 9), torch.randn(2, 5)
    torch.testing.assert_close(run(model, x, y), net(x, y))


def test_inputs_by_name_and_nested() -> None:
    class Nested(nn.Module):
        def forward(self, pair: list[torch.Tensor], scale: torch.Tensor, twice: bool = False) -> torch.Tensor:
            total = pair[0] + pair[1] * scale
            return total * 2 if twice else total

    x, y, scale = torch.randn(2, 3), torch.randn(2, 3), torch.randn(3)
    model = torch2trt(
        Nested().eval(),
        {"pair": [x, y], "scale": scale, "twice": True},
        min_shapes=[(1, 3), (1, 3), (3,)],
        max_shapes=[(4, 3), (4, 3), (3,)],
    )
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(run(model, pair=[x, y], scale=scale, twice=True), (x + y * scale) * 2)


def test_data_set(net: nn.Module) -> None:
    class Images:
        sizes = (1, 4, 5, 3, 4)

        def __len__(self) -> int:
            return len(self.sizes)

        def __getitem__(self, index: int) -> list[torch.Tensor]:
            return [*pair(self.sizes[index])]

    model = torch2trt(net, Images())
    assert dims(model) == {(1, 4, 5)}
    x, y = pair(5)
    torch.testing.assert_close(run(model, x, y), net(x, y))


def test_names(net: nn.Module) -> None:
    model = torch2trt(net, [*pair(1)], input_names=["image", "extra"], output_names=["features", "score"])
    assert (model.input_names, model.output_names) == (["image", "extra"], ["features", "score"])
    assert model.compiled.verify(*pair(1)).passed
    with pytest.raises(package.SettingError, match="input_names: takes 2 different"):
        torch2trt(net, [*pair(1)], input_names=["image"])
    with pytest.raises(package.SettingError, match="output_names"):
        torch2trt(net, [*pair(1)], output_names=["same", "same"])


def test_as_a_part_of_another_module(converted: TRTModule, tmp_path: Path) -> None:
    class Parent(nn.Module):
        def __init__(self, child: TRTModule) -> None:
            super().__init__()
            self.child = child
            self.head = nn.Linear(4, 2)

    parent = Parent(converted)
    torch.save(parent.state_dict(), tmp_path / "parent.pth")
    other = Parent(TRTModule())
    other.load_state_dict(torch.load(tmp_path / "parent.pth"))
    assert torch.equal(other.head.weight, parent.head.weight)
    assert other.child.engine.serialize() == converted.engine.serialize()
    with pytest.raises(package.FrozenModuleError):
        parent.half()


def test_an_empty_module_says_so() -> None:
    empty = TRTModule()
    assert empty.state_dict() == {}
    for use in (lambda: empty(torch.randn(1)), lambda: empty.engine, lambda: empty.input_names):
        with pytest.raises(package.ArtifactError, match="load_state_dict"):
            use()
    with pytest.raises(package.ArtifactError, match="saved by NVIDIA's torch2trt"):
        empty.load_state_dict({"engine": bytearray(b"ptrt"), "input_names": ["input_0"], "output_names": ["output_0"]})
    with pytest.raises(package.ArtifactError, match="convert the module again"):
        TRTModule(object(), ["input_0"], ["output_0"])


@pytest.mark.parametrize(
    ("arguments", "subject"),
    [
        ({"int8_mode": True}, "int8_mode"),
        ({"default_device_type": SimpleNamespace(name="DLA")}, "default_device_type"),
        ({"device_types": {nn.ReLU(): SimpleNamespace(name="DLA")}}, "device_types"),
        ({"fp_16_mode": True}, "fp_16_mode"),
    ],
)
def test_what_is_refused(net: nn.Module, arguments: dict[str, Any], subject: str) -> None:
    with pytest.raises(package.SettingError, match=f"{subject}: "):
        torch2trt(net, [*pair(1)], **arguments)


def test_what_is_ignored_is_said(net: nn.Module) -> None:
    with pytest.warns(UserWarning, match="ignores") as caught:
        torch2trt(
            net,
            [*pair(1)],
            log_level=1,
            strict_type_constraints=True,
            keep_network=True,
            int8_calib_dataset=None,
            default_device_type=SimpleNamespace(name="GPU"),
            max_workspace_size=1 << 25,
            optimization_level=1,
        )
    assert sorted(str(warning.message).split()[2].rstrip(":") for warning in caught) == [
        "keep_network",
        "log_level",
        "strict_type_constraints",
    ]
    assert all(Path(warning.filename).name == "test_compat.py" for warning in caught)


def test_inputs_that_are_none(net: nn.Module) -> None:
    for inputs in (torch.randn(1, 3, 8, 8), 3, torch.utils.data.TensorDataset(torch.empty(0, 3))):
        with pytest.raises(package.ExampleInputError):
            torch2trt(net, inputs)
    for shapes in ([(1, 3, 8, 8)], [(1, 3, 8), (1, 5)]):
        with pytest.raises(package.DynamicShapeError, match="min_shapes"):
            torch2trt(net, [*pair(1)], min_shapes=shapes)
    with pytest.raises(package.DynamicShapeError, match="is false"):
        torch2trt(net, [*pair(2)], max_batch_size=1)
