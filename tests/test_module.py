"""A compiled module among others: nested, copied, saved, moved and shown."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.pretending import (
    BATCH,
    leaf,
    make_module,
    make_signature,
    running,
)
from torch2trt.errors import (
    ArtifactError,
    ArtifactMismatchError,
    FrozenModuleError,
    ProgramMissingError,
)
from torch2trt.runtime.module import EngineModule
from torch2trt.settings import Settings


def test_train_and_eval_change_nothing() -> None:
    module = make_module()
    assert module.train() is module
    assert module.eval() is module
    assert not module.training
    parent = nn.Sequential(module, nn.Dropout())
    parent.train()
    assert parent[1].training
    assert not module.training


def test_no_parameters_and_one_state() -> None:
    module = make_module(truth=nn.Linear(3, 3))
    assert not list(module.parameters())
    assert not list(module.children())
    assert list(module.state_dict()) == ["_extra_state"]
    assert module.state_dict()["_extra_state"].dtype == torch.uint8


def test_the_engine_travels_in_a_parents_state() -> None:
    source = nn.Sequential(nn.Linear(3, 3), make_module(plan=b"trained"))
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    target = nn.Sequential(nn.Linear(3, 3), make_module(plan=b"other", program=lambda: None, truth=lambda x: x))
    target.load_state_dict(torch.load(buffer, weights_only=True))
    assert target[1].artifact == source[1].artifact
    assert target[1].artifact.plan == b"trained"
    assert torch.equal(target[0].weight, source[0].weight)
    # What the old engine came from is not what the new one came from.
    with pytest.raises(ProgramMissingError):
        target[1].reference(torch.zeros(1, 3))
    with pytest.raises(ProgramMissingError):
        target[1].verify(torch.zeros(1, 3))


def test_its_own_state_keeps_what_it_came_from() -> None:
    module = make_module(truth=lambda x: x)
    session = module._session
    module.load_state_dict(module.state_dict())
    assert module._session is session
    assert module._truth[0] is not None


def test_the_state_of_another_module() -> None:
    other = make_module(make_signature([leaf("image", 1, 3)], [leaf("y", 1, 3)]))
    with pytest.raises(ArtifactMismatchError, match=r"image: float32\[1×3\].*this is .*x: float32\[batch×3\]"):
        make_module().load_state_dict(other.state_dict())
    with pytest.raises(ArtifactError, match="no tensor of bytes"):
        make_module().load_state_dict({"_extra_state": torch.ones(3)})
    with pytest.raises(ArtifactError):
        make_module().load_state_dict({"_extra_state": torch.ones(3, dtype=torch.uint8)})
    with pytest.raises(RuntimeError, match="Missing key"):
        make_module().load_state_dict({})


def test_copies_share_the_engine() -> None:
    module = running(make_module(), lambda x: 2 * x)
    parent = nn.Sequential(module, module, nn.Linear(3, 3))
    copied = copy.deepcopy(parent)
    assert copied[0] is copied[1]
    assert copied[0] is not module
    assert copied[0].artifact is module.artifact
    assert copied[0]._session is module._session
    assert copied[2].weight is not parent[2].weight
    assert torch.equal(copied(torch.ones(1, 3)), parent(torch.ones(1, 3)))
    handle = copied[0].register_forward_hook(lambda *_: None)
    assert not module._forward_hooks
    handle.remove()


def test_pickles_go_through_the_artifact() -> None:
    module = make_module(truth=lambda x: x)
    module.note = "kept"
    pickled = pickle.loads(pickle.dumps(nn.Sequential(module)))[0]
    assert pickled.artifact == module.artifact
    assert pickled.note == "kept"
    with pytest.raises(ProgramMissingError):
        pickled.verify(torch.zeros(1, 3))


def test_save_and_load(tmp_path: Path) -> None:
    module = make_module()
    module.save(tmp_path / "net.t2t")
    loaded = EngineModule.load(tmp_path / "net.t2t")
    assert loaded.artifact == module.artifact
    with pytest.raises(ProgramMissingError):
        module.save(tmp_path / "more.t2t", program=True)
    assert not (tmp_path / "more.t2t").exists()


CHANGES: list[tuple[str, Callable[[nn.Module], Any]]] = [
    ("half", lambda m: m.half()),
    ("bfloat16", lambda m: m.bfloat16()),
    ("double", lambda m: m.double()),
    ("to-dtype", lambda m: m.to(torch.float16)),
    ("cpu", lambda m: m.cpu()),
    ("to-cpu", lambda m: m.to("cpu")),
    ("to-both", lambda m: m.to("cuda", torch.float16)),
]


@pytest.mark.parametrize("change", [change for _, change in CHANGES], ids=[name for name, _ in CHANGES])
def test_changes_are_refused(change: Callable[[nn.Module], Any]) -> None:
    for module in (make_module(), nn.Sequential(make_module())):
        with pytest.raises(FrozenModuleError, match=r"\[T2T505\] net: cannot (become|move)") as caught:
            change(module)
        assert isinstance(caught.value, TypeError)


def test_float_is_refused_where_it_would_change_something() -> None:
    half = make_signature([leaf("x", 3, dtype=torch.float16)], [leaf("y", 3, dtype=torch.float16)])
    inside = make_module(settings=Settings(precision="fp16"))
    for module in (make_module(half, settings=Settings()), inside):
        with pytest.raises(FrozenModuleError, match="cannot become float32"):
            module.float()
    with pytest.raises(FrozenModuleError, match="cannot become float16"):
        inside.half()


def test_what_changes_nothing_is_fine() -> None:
    module = make_module()
    for same in (module.float(), module.to("cuda:0"), module.to(torch.float32), module.to("cuda:0", torch.float32)):
        assert same is module
    half = make_signature([leaf("x", 3, dtype=torch.float16)], [leaf("y", 3, dtype=torch.float16)])
    make_module(half, settings=Settings()).half()
    integers = make_signature([leaf("x", 3, dtype=torch.int64)], [leaf("y", 3, dtype=torch.int64)])
    make_module(integers, settings=Settings()).to("cuda:0")
    nn.Sequential(module).requires_grad_(False).zero_grad()


def test_a_module_that_has_not_run_may_choose_its_gpu() -> None:
    module = make_module()
    module.to("cuda:1")
    assert module._session.device == torch.device("cuda:1")
    assert not module._session.is_open
    with pytest.raises(FrozenModuleError, match="cannot move from cuda:1 to cuda:2"):
        module.to("cuda:2")
    with pytest.raises(FrozenModuleError, match="cannot move from cuda:3 to cuda:1"):
        make_module(device="cuda:3").to("cuda:1")


def test_how_it_shows_itself() -> None:
    module = make_module(
        name_in_html := make_signature([leaf("<x>", BATCH, 3)], [leaf("y", BATCH, 3)], batch=(1, 4, 16)),
        report={"nodes": 9, "layers": 7, "fused_blocks": 2, "build_s": 1.25},
        gpu="NVIDIA H200 (9.0)",
    )
    assert name_in_html is module.artifact.signature
    assert (
        repr(module) == "EngineModule(net, tensorrt_rtx 1.7.1, fp32, (<x>: float32[batch×3]) → (y: float32[batch×3]))"
    )
    shown = module._repr_html_()
    for text in (
        "<caption>net</caption>",
        "tensorrt_rtx 1.7.1",
        "fp32",
        "9 → 7",
        "1.2 s",
        "batch 1…4…16",
        "H200",
        "0.0 MB",
    ):
        assert text in shown
    assert "&lt;x&gt;: float32[batch×3]" in shown
    assert "<x>" not in shown
    assert module.report == {**module.artifact.report, "engine_bytes": 4}
    assert "table" in make_module()._repr_html_()
