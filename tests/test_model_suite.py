"""Twenty models of different kinds; all of the suite with ``--sweep``, which goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model_suite import MODELS
from tests.model_suite.__main__ import run
from tests.model_suite.check import Outcome, check
from torch2trt import api
from torch2trt.converters.lower import lower
from torch2trt.settings import Settings
from torch2trt.tools import coverage
from torch2trt.trt import flavour as flavours

EVERY_KIND = [
    "own:yolov8",
    "own:lstm_tagger",
    "own:gnn_attention",
    "own:diffusion_unet",
    "own:autoencoder",
    "torchvision:lraspp_mobilenet_v3_large",
    "torchvision:r3d_18",
    "timm:test_mambaout",
    "timm:mobilevit_xxs",
    "timm:repghostnet_050",
    "transformers:BertModel",
    "transformers:DebertaV2Model",
    "transformers:GPT2LMHeadModel",
    "transformers:LlamaForCausalLM",
    "transformers:MixtralModel",
    "transformers:T5Model",
    "transformers:WhisperModel",
    "transformers:DetrForObjectDetection",
    "transformers:SamModel",
    "transformers:MambaModel",
]


def test_the_suite_is_as_large_as_it_says() -> None:
    libraries = [name.partition(":")[0] for name in MODELS]
    assert libraries.count("timm") >= 80
    assert libraries.count("torchvision") >= 100
    assert libraries.count("transformers") >= 60
    assert all(model.name == name for name, model in MODELS.items())


@pytest.mark.filterwarnings("ignore")  # what libraries say of their own models
@pytest.mark.parametrize("name", EVERY_KIND)
def test_every_kind(name: str) -> None:
    (outcome,) = check(name)
    recorded = {each["name"]: each["status"] for each in coverage.read().models if each["flavour"] == outcome.flavour}
    assert outcome.status != "failed", outcome
    assert outcome.status == "whole" or recorded[name] == "hybrid", outcome
    assert outcome.layers > 10


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["torchvision:swin_t", "transformers:GPT2LMHeadModel"])
def test_no_more_layers_than_the_graph_has_nodes(name: str) -> None:
    settings = Settings(precision="fp32")
    program = api.optimize(api.capture(*MODELS[name].build()), settings)
    network = lower(program, flavours.load())
    layers = [network.definition.get_layer(index) for index in range(network.definition.num_layers)]
    constants = [layer for layer in layers if layer.type == network.flavour.trt.LayerType.CONSTANT]
    assert len(layers) - len(constants) <= program.captured_nodes


@pytest.fixture(scope="module")
def done(pytestconfig: pytest.Config) -> dict[str, Outcome]:
    """What an earlier run came to."""
    path: Path = pytestconfig.getoption("model_results")
    lines = path.read_text().splitlines() if path.exists() else []
    return {found["name"]: Outcome(**found) for found in map(json.loads, lines)}


@pytest.mark.sweep
@pytest.mark.timeout(0)  # the runner sees to those that hang
@pytest.mark.parametrize("name", MODELS)
def test_every_model(pytestconfig: pytest.Config, done: dict[str, Outcome], name: str) -> None:
    path: Path = pytestconfig.getoption("model_results")
    if name in done and done[name].status != "failed":
        pytest.skip(f"done, see {path}")
    (outcome,) = run(path, [name], limit=600.0)
    assert outcome.status != "failed", outcome


# The runner -----------------------------------------------------------------------------------------------------------


def _falls(name: str) -> Iterator[Outcome]:
    import os
    import time

    if name == "own:unet":
        os.abort()
    if name == "own:vit":
        time.sleep(60)
    yield Outcome(name, "whole")


def test_a_crash_and_a_hang_are_outcomes(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    run(path, ["own:unet", "own:vit", "own:yolov8"], limit=1.0, check=_falls)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [each["status"] for each in found] == ["failed", "failed", "whole"]
    assert [each["detail"] for each in found] == ["crash: exit code -6", "hang: nothing came in 1 s", ""]
