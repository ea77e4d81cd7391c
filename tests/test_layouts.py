"""Inputs and results whose channels come last in memory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import fake_impls
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

import torch2trt
from tests.mlp import in_place_count
from torch2trt.api import engine_keys
from torch2trt.errors import ArtifactError, InputShapeError
from torch2trt.frontend import export, layouts
from torch2trt.frontend.dynamic_shapes import resized
from torch2trt.graph.signature import Signature, channels_last
from torch2trt.runtime.module import EngineModule
from torch2trt.settings import Settings
from torch2trt.tools.inputs import InputSpec, draw_for
from torch2trt.trt import flavour as flavours

QUICK: dict[str, Any] = {"precision": "fp32", "progress": "none", "optimization_level": 0}
LAST, LAST_3D = (0, 2, 3, 1), (0, 2, 3, 4, 1)


class Net(nn.Module):
    """Images in; images, and a row for each, out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 6, 3, stride=2)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.second(self.first(images).relu())
        return found, found.mean((2, 3))


def images(batch: int = 2, height: int = 9, *, last: bool = True, seed: int = 0) -> Tensor:
    made = torch.randn(batch, 3, height, 8, generator=torch.Generator().manual_seed(seed))
    return made.to(memory_format=torch.channels_last) if last else made


def compiled(example: Tensor, module: nn.Module | None = None, **keywords: Any) -> EngineModule:
    return torch2trt.compile(module or Net(), (example,), **{**QUICK, **keywords})  # type: ignore[no-any-return]


def orders(module: EngineModule) -> list[tuple[int, ...]]:
    signature = module.artifact.signature
    return [leaf.order for leaf in (*signature.tensor_inputs, *signature.tensor_outputs)]


def check(module: EngineModule, value: Tensor, *, on_gpu: bool = False) -> tuple[Tensor, Tensor]:
    found = module(value) if on_gpu else module.reference(value)
    expected = Net().to(value.device)(value)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("value", "order"),
    [
        (torch.empty(2, 3, 4, 5), ()),
        (torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last), LAST),
        (torch.empty(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d), LAST_3D),
        (torch.empty(1, 3, 4, 5).to(memory_format=torch.channels_last), LAST),
        # Both at once: nothing has to be said.
        (torch.empty(2, 1, 4, 5).to(memory_format=torch.channels_last), ()),
        (torch.empty(2, 3, 1, 1).to(memory_format=torch.channels_last), ()),
        # Neither is dense.
        (torch.empty(2, 6, 4, 5).to(memory_format=torch.channels_last)[:, :3], ()),
        (torch.empty(2, 4, 5, 3).permute(0, 3, 2, 1), ()),
        (torch.empty(2, 4, 3).transpose(1, 2), ()),
        (torch.empty(2, 3, 4, 5).expand(2, 3, 4, 5), ()),
    ],
)
def test_orders(value: Tensor, order: tuple[int, ...]) -> None:
    assert channels_last(value) == order


def test_the_engine_has_them_as_the_example() -> None:
    module = compiled(images())
    assert orders(module) == [LAST, LAST, ()]
    for value in (images(seed=1), images(last=False)):
        found = check(module, value)
        assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert module.verify(images(seed=2)).passed
    assert "images: float32[2×3×9×8]" in repr(module)
    with pytest.raises(InputShapeError, match="axis 3 is 7"):
        module(images()[..., :7])


def test_a_contiguous_example_stays_contiguous() -> None:
    module = compiled(images(last=False))
    assert orders(module) == [(), (), ()]
    assert check(module, images())[0].is_contiguous()


def test_it_can_be_switched_off() -> None:
    module = compiled(images(), keep_io_layouts=False)
    assert orders(module) == [(), (), ()]
    assert check(module, images())[0].is_contiguous()


def test_dynamic_sizes_and_profiles() -> None:
    module = compiled(
        images(),
        dynamic_shapes={"images": {0: Dim("batch", min=1, max=4), 2: Dim("height", min=5, max=20)}},
        profiles=[{"batch": 1, "height": 9}, {"batch": (2, 2, 4)}],
    )
    assert orders(module) == [LAST, LAST, ()]
    for value in (images(1), images(4, 20), images(3, 5, last=False)):
        check(module, value)
    with pytest.raises(InputShapeError, match="no profile"):
        module(images(1, 10))
    with pytest.raises(InputShapeError, match="height"):
        module(images(2, 21))


def test_halves_and_volumes() -> None:
    half = compiled(images(), precision="fp16", keep_io_dtypes=False)
    assert orders(half) == [LAST, LAST, ()]
    assert half.artifact.signature.tensor_inputs[0].spec.dtype == torch.float16
    volumes = torch.randn(1, 2, 3, 4, 5).to(memory_format=torch.channels_last_3d)
    net = nn.Conv3d(2, 4, 2).eval()
    module = compiled(volumes, net)
    assert orders(module) == [LAST_3D, channels_last(net(volumes))]
    torch.testing.assert_close(module.reference(volumes), net(volumes), atol=1e-4, rtol=1e-4)


class Running(nn.Module):
    """Keeps what it saw, and returns it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(2, 3, 9, 8).to(memory_format=torch.channels_last))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        self.seen.add_(images)
        return self.seen * 2


def test_state_has_its_own_order() -> None:
    module = compiled(images(), Running())
    assert orders(module) == [LAST, (), LAST, ()]
    eager = Running()
    for seed in range(2):
        torch.testing.assert_close(module.reference(images(seed=seed)), eager(images(seed=seed)))


def test_what_is_written_somewhere_is_in_its_own_order() -> None:
    class Writing(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mul_(2)

    module = compiled(images(), Writing().eval())
    value, other = images(), images()
    torch.testing.assert_close(module.reference(value), other.mul_(2))
    torch.testing.assert_close(value, other)


def test_a_hybrid_reads_its_inputs_so() -> None:
    module = compiled(images(), run_in_torch=["second"], min_segment=1)
    engine = module.artifact.parts[0]
    assert [leaf.order for leaf in engine.signature.tensor_inputs] == [LAST]  # type: ignore[union-attr]
    check(module, images())


def test_it_is_saved(tmp_path: Path) -> None:
    module = compiled(images())
    module.save(tmp_path / "net.t2t", program=True)
    loaded = torch2trt.load(tmp_path / "net.t2t")
    assert loaded.artifact.signature == module.artifact.signature
    check(loaded, images())


def test_inputs_are_drawn_so() -> None:
    module = compiled(images())
    (drawn,) = draw_for(module.artifact.signature)
    assert channels_last(drawn) == LAST
    (drawn,) = draw_for(module.artifact.signature, [InputSpec.parse("images:2x3x9x8")], seed=1)
    assert channels_last(drawn) == LAST


@pytest.mark.parametrize("order", [[0, 2, 3], [0, 2, 3, 3], [1, 2, 3, 4], ["0", "1", "2", "3"]])
def test_a_file_with_another_order(order: list[Any]) -> None:
    data = json.loads(json.dumps(compiled(images()).artifact.signature.to_json()))
    assert Signature.from_json(data).tensor_inputs[0].order == LAST
    data["inputs"][0]["order"] = order
    with pytest.raises(ArtifactError, match="no order of 4 axes"):
        Signature.from_json(data)


def test_a_bare_plan_says_so(tmp_path: Path) -> None:
    torch2trt.export(Net(), (images(),), tmp_path / "net.engine", **QUICK)
    description = json.loads((tmp_path / "net.engine.json").read_text())
    (read,) = description["inputs"]
    assert (read["shape"], read["order"], read["profile"]["opt"]) == ([2, 9, 8, 3], list(LAST), [2, 9, 8, 3])
    assert description["profiles"][0]["inputs"]["images"]["opt"] == [2, 9, 8, 3]
    assert "order" not in description["outputs"][1]


def test_engines_of_other_layouts_are_others() -> None:
    settings = Settings.make(**QUICK)
    keys = set()
    for example in (images(), images(last=False)):
        program = torch2trt.api.optimize(torch2trt.api.capture(Net(), (example,)), settings)
        ((_, key),) = engine_keys(program, flavours.load(), settings)
        keys.add(key.digest)
    assert len(keys) == 2


def test_a_dynamic_batch_of_one_image() -> None:
    module = compiled(images(1), dynamic_shapes={"images": {0: Dim("batch", min=1, max=4)}})
    assert orders(module) == [LAST, LAST, ()]
    volumes = torch.randn(1, 2, 3, 4, 5).to(memory_format=torch.channels_last_3d)
    assert channels_last(resized(volumes, 0, 3)) == LAST_3D
    assert torch.equal(resized(volumes, 0, 3), volumes.repeat(3, 1, 1, 1, 1))
    assert resized(volumes.contiguous(), 0, 3).is_contiguous()


class Viewing(Net):
    """What eager copies, since it cannot view a convolution's result in this shape."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.first(images)
        return found.flatten(2), found.flatten(1).reshape(found.shape) + 1, self.second(found)


class Interpolating(Net):
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = F.max_pool2d(self.first(images), 2)
        wider = F.interpolate(found, scale_factor=2.0)
        plain = wider.contiguous()
        return wider, plain, torch.cat([wider, plain], 1), found.permute(0, 2, 3, 1), found.transpose(2, 3)


@contextlib.contextmanager
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes fake tensors, since there may be no GPU."""
    # Checking the module reads its weights' values.
    monkeypatch.setattr(export, "check_module", lambda module: None)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda:0"):
        yield


def captured(module: nn.Module, example: Tensor, dynamic: Sequence[int] = ()) -> list[tuple[int, ...]]:
    sizes = {axis: Dim(f"d{axis}", min=5 if axis else 1, max=32) for axis in dynamic}
    program = export.capture(module, (example,), dynamic_shapes=(sizes,) if sizes else None)
    return [leaf.order for leaf in program.signature.tensor_outputs]


@pytest.mark.parametrize("kind", [Net, Viewing, Interpolating])
@pytest.mark.parametrize("dynamic", [(), (0,), (0, 2, 3)])
@pytest.mark.parametrize("last", ["image", "weights", "none"])
def test_on_cuda_results_are_as_eager_leaves_them(
    kind: type[Net], dynamic: tuple[int, ...], last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with on_cuda(monkeypatch), torch.no_grad():
        example = torch.empty(2, 3, 10, 8)
        module = kind()
        if last == "image":
            example = example.to(memory_format=torch.channels_last)
        elif last == "weights":
            for layer in (module.first, module.second):
                layer.weight.data = layer.weight.to(memory_format=torch.channels_last)
        wanted = [channels_last(value) for value in module(example)]
        assert captured(module, example, dynamic) == wanted
        assert (LAST in wanted) == (last != "none")


def test_on_cuda_one_image_of_a_dynamic_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    with on_cuda(monkeypatch):
        example = torch.empty(1, 3, 9, 8).to(memory_format=torch.channels_last)
        assert captured(Net(), example, (0,)) == [LAST, ()]


def test_on_cuda_a_result_of_a_size_that_depends_on_data(monkeypatch: pytest.MonkeyPatch) -> None:
    class Choosing(Net):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            found = self.first(images)
            return found, found[torch.nonzero(images[:, 0, 0, 0])[:, 0]]

    with on_cuda(monkeypatch):
        assert captured(Choosing(), torch.empty(2, 3, 9, 8).to(memory_format=torch.channels_last)) == [LAST, LAST]


def test_on_cuda_an_export_before_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with on_cuda(monkeypatch):
        example = torch.empty(2, 3, 9, 8).to(memory_format=torch.channels_last)
        torch.export.export(Net(), (example,)).run_decompositions({})
        assert captured(Net(), example) == [LAST, ()]


def test_a_torch_with_other_insides_is_taken_at_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "fake_impls", SimpleNamespace())
    module = nn.Conv2d(3, 4, 3).eval()
    program = export.capture(module, (torch.randn(2, 3, 8, 8),))
    assert program.spec(program.output_node.all_input_nodes[0]).shape == (2, 4, 6, 6)


def test_on_cuda_without_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    with on_cuda(monkeypatch), torch.backends.cudnn.flags(enabled=False):
        assert captured(Net(), torch.empty(2, 3, 9, 8).to(memory_format=torch.channels_last)) == [(), ()]


def test_on_cuda_a_layout_that_torch_cannot_tell_ends_no_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    convolution = torch.ops.aten.convolution.default
    own = fake_impls.op_implementations_dict[convolution]

    def failing(*args: Any, **kwargs: Any) -> Any:
        if torch.backends.cudnn.enabled:
            raise RuntimeError("no such GPU")
        return own(*args, **kwargs)

    monkeypatch.setitem(fake_impls.op_implementations_dict, convolution, failing)
    with on_cuda(monkeypatch):
        assert captured(Net(), torch.empty(2, 3, 9, 8).to(memory_format=torch.channels_last)) == [(), ()]
    assert fake_impls.op_implementations_dict[convolution] is failing


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_they_are_read_and_written_where_they_are(cuda_graphs: bool) -> None:
    module = compiled(
        images().cuda(),
        Net().cuda(),
        cuda_graphs=cuda_graphs,
        dynamic_shapes={"images": {0: Dim("batch", min=1, max=4)}},
        profiles=[{"batch": 1}, {"batch": (2, 2, 4)}],
    )
    assert orders(module) == [LAST, LAST, ()]
    for batch in (1, 2, 4):
        value = images(batch).cuda()
        for _ in range(6):
            value.normal_()
            found = check(module, value, on_gpu=True)
            assert found[0].is_contiguous(memory_format=torch.channels_last)
        check(module, images(batch, last=False).cuda(), on_gpu=True)
    if cuda_graphs:
        assert in_place_count(module) == 3
    assert module.verify(images().cuda()).passed


@pytest.mark.gpu
def test_a_graph_of_the_callers() -> None:
    module = compiled(images().cuda(), Net().cuda())
    value = images().cuda()
    module(value)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = module(value)
    for seed in range(3):
        value.copy_(images(seed=seed))
        graph.replay()
        torch.testing.assert_close(found, Net().cuda()(value), atol=1e-4, rtol=1e-4)
