"""Passes that settings leave out, and those that they ask for."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.harness import check_module
from tests.plugging import enterprise
from tests.rewriting import Net, drawn
from torch2trt import api
from torch2trt.graph.program import Program
from torch2trt.passes import pipeline, plug_attention, plug_group_norm, plug_short_attention
from torch2trt.settings import ExtraPass, Settings, SkippablePass

X, MASK = drawn(2, 4, 6, 8) / 4, drawn(4, 4, seed=1) > 0


def everything(self: Any, x: Tensor, mask: Tensor) -> Any:
    """Something to do for every pass that can be left out."""
    heads = F.scaled_dot_product_attention(*(x[:, :, :2],) * 3, attn_mask=mask[:2, :2])
    attended = self.project(heads.transpose(1, 2).reshape(2, 2, 32)) * self.vector[:5]
    masked = F.scaled_dot_product_attention(x, x, x, torch.ones(6, 6, dtype=torch.bool).tril())
    shared = F.scaled_dot_product_attention(x, *(x[:, :2].repeat_interleave(2, 1),) * 2)
    product = x @ self.matrix + self.vector
    gated = product * torch.sigmoid(product)
    repeated = gated.pow(2) * self.vector.expand(6, 8).exp() + x[:, :1].expand(2, 4, 6, 8)
    joined = torch.cat(repeated.split(3, 2), 2)
    rounded = joined.tanh().half().float()[:, 1:].half().sin()
    turned = F.relu(joined[:, 1:].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    viewed = turned.reshape(2, 3, 48).reshape(2, 144).sin()
    images = [F.relu(each(x)).permute(0, 2, 3, 1) for each in (self.one, self.two)]
    turned = x * self.vector + torch.cat((-x[..., 4:], x[..., :4]), -1) * self.vector.cos()
    few = (part.unsqueeze(1) for part in self.joint(x[:, 0]).split(8, 2))
    biased = F.scaled_dot_product_attention(*few, attn_mask=self.matrix[:6, :6])
    wide = self.window(x.sin().permute(0, 3, 1, 2)).permute(0, 2, 3, 1).sin()
    patches = self.patch(x.sin().reshape(1, 1, 16, 24)).flatten(2).mT, self.small(x).flatten(2).mT
    normed = F.silu(F.group_norm(x.sin().permute(0, 3, 1, 2), 2))
    return (
        attended,
        patches,
        turned,
        normed,
        biased,
        wide,
        masked,
        shared,
        rounded,
        viewed,
        F.relu(self.first(viewed)),
        images,
        self.tall(x).sin() @ self.wide(x).sin().mT,
    )


def net() -> Net:
    layers: dict[str, Any] = {"project": nn.Linear(32, 5), "first": nn.Linear(144, 8)}
    layers |= {"tall": nn.Linear(8, 8), "wide": nn.Linear(8, 8), "one": nn.Conv2d(4, 8, 1), "two": nn.Conv2d(4, 8, 1)}
    layers |= {"joint": nn.Linear(8, 24), "window": nn.Conv2d(8, 8, 7, padding=3, groups=8)}
    layers |= {"patch": nn.Conv2d(1, 8, (16, 24), (16, 24)), "small": nn.Conv2d(4, 8, 2, 2)}
    return Net(everything, **layers, matrix=drawn(8, 8, seed=2), vector=drawn(8, seed=3))


def test_the_names_that_settings_take_are_those_of_passes() -> None:
    names = [each.__name__ for each in pipeline.PASSES]
    assert set(get_args(SkippablePass)) | set(get_args(ExtraPass)) <= set(names)
    assert not set(get_args(SkippablePass)) & set(get_args(ExtraPass))
    assert [each.__name__ for each in pipeline.passes_of(Settings())] == [
        name for name in names if name not in get_args(ExtraPass)
    ]
    assert pipeline.passes_of(Settings(extra_passes=get_args(ExtraPass))) == list(pipeline.PASSES)
    without = pipeline.passes_of(Settings(extra_passes=get_args(ExtraPass)), plugins=False)
    assert without == [each for each in pipeline.PASSES if each not in pipeline.MAKE_PLUGINS]


def reads(program: Program) -> list[tuple[Any, int]]:
    """The operators, and how many tensors each reads."""
    return [(node.target, len(node.all_input_nodes)) for node in program.calls]


@pytest.mark.parametrize("name", [*get_args(SkippablePass), *get_args(ExtraPass)])
def test_one_pass_less_or_more(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (plug_attention, plug_short_attention):
        monkeypatch.setattr(each, "_LEAST_KEYS", 1)
    monkeypatch.setattr(plug_group_norm, "_LEAST_VALUES", 1)
    chosen: dict[str, Any] = {"extra_passes" if name in get_args(ExtraPass) else "skip_passes": (name,)}
    # Only in halves is anything plugged.
    shared: dict[str, Any] = {"precision": "fp16"} if name.startswith("plug_") else {}
    default, other = (
        api.optimize(api.capture(net(), (X, MASK)), Settings(**shared, **each), enterprise()) for each in ({}, chosen)
    )
    assert reads(other) != reads(default)
    check_module(net(), (X, MASK), Settings(optimization_level=0, **chosen))


def test_without_any_of_them() -> None:
    check_module(net(), (X, MASK), Settings(optimization_level=0, skip_passes=get_args(SkippablePass)))
