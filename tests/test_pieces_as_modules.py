"""Modules in pieces as modules: parameters under the module's own names, state, moves, copies, pickles."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch2trt
from tests.piecewise import BIG, Counts, check, counting, pieces
from tests.test_pieces import QUICK, Forked, X
from torch2trt.pieces import PiecewiseModule


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    return counting(monkeypatch)


class Versioned(Forked):
    """Has a state of its own beside buffers, and a child that is called as an attribute of what is compiled is."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.ones(8))
        self.register_buffer("scratch", torch.zeros(8), persistent=False)
        self.report = nn.Linear(8, 8)
        self.loaded: Any = None

    def forward(self, x: Tensor) -> dict[str, Any]:  # type: ignore[override]
        return super().forward(self.report(x) + self.shift + self.scratch)

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 3}

    def set_extra_state(self, state: Any) -> None:
        self.loaded = state


@pytest.mark.parametrize("kind", [Forked, Versioned])
def test_names_are_the_modules_own(kind: type[Forked]) -> None:
    module = kind().eval()
    compiled = pieces(module)
    assert list(compiled.state_dict()) == list(module.state_dict())
    for own, theirs in (
        (compiled.named_parameters(), module.named_parameters()),
        (compiled.named_buffers(), module.named_buffers()),
        (compiled.named_children(), module.named_children()),
    ):
        found, wanted = dict(own), dict(theirs)
        assert list(found) == list(wanted)
        assert all(found[name] is wanted[name] for name in wanted)
    names = [name for name, _ in compiled.named_modules()]
    assert names == [name for name, _ in module.named_modules()]
    assert compiled.get_parameter("first.weight") is module.first.weight
    parent = nn.ModuleDict({"part": compiled})
    assert list(parent.state_dict()) == [f"part.{name}" for name in module.state_dict()]
    assert [name for name, _ in parent.named_parameters()] == [f"part.{name}" for name, _ in module.named_parameters()]


def test_state_is_saved_and_loaded(counts: Counts) -> None:
    module, other = Versioned().eval(), Versioned().eval()
    with torch.no_grad():
        other.down.weight.mul_(3)
        other.shift.add_(1)
    compiled = pieces(module)
    before = counts.built
    file = io.BytesIO()
    torch.save(pieces(other).state_dict(), file)
    file.seek(0)
    between = counts.built
    result = compiled.load_state_dict(torch.load(file))
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert module.loaded == {"version": 3}
    check(compiled, other, X)
    check(compiled, module, X)
    assert before < between < counts.built
    assert compiled.verify(X).passed
    # As a part of another module, and under names that are missing.
    nn.Sequential(compiled).load_state_dict({f"0.{name}": value for name, value in Versioned().state_dict().items()})
    check(compiled, Versioned().eval(), X)
    with pytest.raises(RuntimeError, match=r"Missing key.*first\.weight"):
        compiled.load_state_dict({})


def test_state_can_be_assigned() -> None:
    module = Forked().eval()
    compiled = pieces(module)
    given = {name: value * 2 for name, value in module.state_dict().items()}
    nn.Sequential(compiled).load_state_dict({f"0.{name}": value for name, value in given.items()}, assign=True)
    assert module.first.weight.data_ptr() == given["first.weight"].data_ptr()
    check(compiled, module, X)


def test_moves_and_casts_reach_the_module() -> None:
    module = Forked().eval()
    compiled = pieces(module)
    assert nn.Sequential(compiled).to(torch.float16)[0] is compiled
    assert {value.dtype for value in module.state_dict().values()} == {torch.float16}
    with torch.no_grad():
        found, wanted = compiled.reference(X.half()), module(X.half())
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)
    assert compiled.float() is compiled
    check(compiled, module, X)
    assert compiled.requires_grad_(False) is compiled
    assert not module.first.weight.requires_grad
    assert compiled.to("meta") is compiled
    assert module.first.weight.device.type == "meta"


def test_a_module_that_moves_in_its_own_way() -> None:
    class Anchored(Forked):
        def __init__(self) -> None:
            super().__init__()
            self.anchor = torch.ones(8)

        def _apply(self, fn: Any, recurse: bool = True) -> Any:
            self.anchor = fn(self.anchor)
            return super()._apply(fn, recurse)

        def forward(self, x: Tensor) -> dict[str, Any]:  # type: ignore[override]
            return super().forward(x * self.anchor)

    module = Anchored().eval()
    pieces(module).double()
    assert module.anchor.dtype == torch.float64


def test_there_are_no_modes() -> None:
    class Dropping(Forked):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> dict[str, Any]:  # type: ignore[override]
            return super().forward(self.drop(x))

    module = Dropping().eval()
    compiled = pieces(module)
    parent = nn.Sequential(compiled)
    assert parent.train()[0] is compiled
    assert not compiled.training
    assert not module.drop.training
    check(compiled, module, X)
    assert compiled.eval() is compiled


def test_what_it_looks_like() -> None:
    shown = repr(nn.Sequential(pieces(Forked().eval())))
    assert "Forked, 2 engines" in shown
    assert "(first): Linear(in_features=8" in shown
    assert "OptimizedModule" not in shown


def test_copies_have_weights_of_their_own(counts: Counts) -> None:
    module = Forked().eval()
    compiled = pieces(module)
    copied = copy.deepcopy(nn.Sequential(compiled))[0]
    assert isinstance(copied, PiecewiseModule)
    assert copied.first.weight is not module.first.weight
    before = counts.built
    check(copied, module, X)
    assert counts.built == before
    with torch.no_grad():
        copied.first.weight.mul_(-1)
    changed = copy.deepcopy(module)
    with torch.no_grad():
        changed.first.weight.mul_(-1)
    check(copied, changed, X)
    check(compiled, module, X)
    assert copied.verify(X).passed
    twice = nn.ModuleList([compiled, compiled])
    one, two = copy.deepcopy(twice)
    assert one is two


def test_pickles_have_the_module_and_its_engines(counts: Counts) -> None:
    module = Forked().eval()
    compiled = pieces(module)
    compiled.reference(BIG)
    data = pickle.dumps(nn.Sequential(compiled))
    before = counts.built
    again = pickle.loads(data)[0]
    assert isinstance(again, PiecewiseModule)
    assert again.first.weight is not module.first.weight
    assert again.settings == compiled.settings
    assert len(again.engines) == len(compiled.engines) == 3
    check(again, module, X, BIG)
    assert counts.built == before
    assert again.verify(X).passed
    assert again.report == compiled.report


def test_it_may_be_a_part_of_what_is_compiled() -> None:
    inner = pieces(Forked().eval())

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor) -> Tensor:
            found: dict[str, Tensor] = self.inner.reference(x * self.scale)
            return found["y"] + 1

    around = Around().eval()
    assert [name for name, _ in around.named_parameters()][:2] == ["scale", "inner.first.weight"]
    with torch.no_grad():
        torch.testing.assert_close(around(X), Forked().eval()(X * 2)["y"] + 1, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_moves_between_devices() -> None:
    module = Forked().eval().cuda()
    compiled = torch2trt.compile(module, (X.cuda(),), **QUICK)
    compiled.cpu()
    assert module.first.weight.device.type == "cpu"
    compiled.cuda()
    with torch.no_grad():
        torch.testing.assert_close(compiled(X.cuda()), module(X.cuda()), rtol=1e-4, atol=1e-4)
        again = pickle.loads(pickle.dumps(compiled))
        torch.testing.assert_close(again(X.cuda()), module(X.cuda()), rtol=1e-4, atol=1e-4)
