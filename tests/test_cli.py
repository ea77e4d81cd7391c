"""The command line: what it prints, what it writes, how it ends."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import torch2trt
from torch2trt.errors import ExampleInputError, MissingPackageError, ModelNameError, WeightError
from torch2trt.settings import Settings
from torch2trt.tools import cli, models
from torch2trt.tools.inputs import Axis, InputSpec, draw, parse_span
from torch2trt.tools.weights import randomize

NET = """
import torch
from torch import nn

print("this line is the model's own")


class Net(nn.Module):
    def __init__(self, width=4, scale=1.0):
        super().__init__()
        self.scale = scale
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, image, offset=None):
        y = self.layers(image * self.scale)
        return {"y": y if offset is None else y + offset}


class Unsupported(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvalsh(x)


def broken():
    raise RuntimeError("the model's own fault")


number = 3
"""

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The path of a file with models, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "cli_net.py").write_text(NET)
    yield str(tmp_path / "cli_net.py")
    for name in ("cli_net", "cli_net.py"):
        sys.modules.pop(name, None)


def run(capsys: Capture, *argv: str, code: int = 0) -> dict[str, Any]:
    """The JSON object that a command prints, alone, on stdout."""
    assert cli.main([*argv, "--json"]) == code
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)  # type: ignore[no-any-return]


# Inputs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("1x3x8", InputSpec((Axis(1, 1, 1), Axis(3, 3, 3), Axis(8, 8, 8)))),
        ("ids:int64:1x128", InputSpec((Axis(1, 1, 1), Axis(128, 128, 128)), "ids", torch.int64)),
        ("float16:2", InputSpec((Axis(2, 2, 2),), "", torch.float16)),
        ("mask:2", InputSpec((Axis(2, 2, 2),), "mask")),
        ("x:float32:", InputSpec((), "x", torch.float32)),
        ("x:batch=1..8..64x3", InputSpec((Axis(1, 8, 64, "batch"), Axis(3, 3, 3)), "x")),
        ("2xx=1..2..4x1..2..3", InputSpec((Axis(2, 2, 2), Axis(1, 2, 4, "x"), Axis(1, 2, 3)))),
    ],
)
def test_input_is_read(text: str, spec: InputSpec) -> None:
    assert InputSpec.parse(text) == spec


@pytest.mark.parametrize(
    "text", ["", "1x", "x3", "1x3x", "a:b:c:1", "x:float12:1", ":1", "1,3", "4..2..1", "1..2", "-1x3", "a b:1"]
)
def test_what_describes_no_input_is_refused(text: str) -> None:
    with pytest.raises(ExampleInputError):
        InputSpec.parse(text)


@pytest.mark.parametrize("text", ["5", "5:5", "7:3", "x=:3", "a:b"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ExampleInputError):
        parse_span(text)


class Texts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None = None) -> torch.Tensor:
        raise NotImplementedError


def specs(*texts: str) -> list[InputSpec]:
    return [InputSpec.parse(text) for text in texts]


def test_inputs_are_drawn_for_forward() -> None:
    described = specs("types:int64:500x2", "int64:n=1..500..600x2", "mask:int32:n=1..500..600x2")
    example = draw(Texts(), described, seed=3, spans=dict([parse_span("types=7:9")]))
    ids, mask, types = example.args
    assert example.kwargs == {}
    assert ids.unique().tolist() == list(range(50))
    assert types.unique().tolist() == [7, 8]
    assert mask.dtype == torch.int32
    assert bool((mask == 1).all())
    assert example.dynamic_shapes is not None
    assert {
        name: axes and {i: dim.__name__ for i, dim in axes.items()} for name, axes in example.dynamic_shapes.items()
    } == {
        "ids": {0: "n"},
        "mask": {0: "n"},
        "types": None,
    }
    again = draw(Texts(), described, seed=3)
    assert torch.equal(ids, again.args[0])
    assert not torch.equal(ids, draw(Texts(), described, seed=4).args[0])


def test_dtype_is_the_models_own_where_none_is_given() -> None:
    assert draw(nn.Linear(2, 2).half(), specs("1x2")).args[0].dtype == torch.float16


def test_inputs_by_name_after_a_gap_are_keywords() -> None:
    class Gap(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor | None = None, *rest: torch.Tensor, **named: Any) -> None:
            pass

    example = draw(Gap(), specs("float32:1", "extra:float32:2..3..4"))
    assert [len(example.args), list(example.kwargs)] == [1, ["extra"]]
    assert draw(Gap(), specs("1", "2", "3", "4")).args[3].shape == (4,)


@pytest.mark.parametrize(
    "texts", [("1",), ("1", "2", "3", "4"), ("ids:1", "ids:1"), ("ids:1", "musk:1"), ("n=1..2..3", "n=1..2..4")]
)
def test_inputs_that_forward_does_not_take_are_refused(texts: tuple[str, ...]) -> None:
    with pytest.raises(ExampleInputError):
        draw(Texts(), specs(*texts))


# Models ---------------------------------------------------------------------------------------------------------------


def test_models_of_the_libraries_know_their_inputs() -> None:
    for name, shape in {
        "torchvision:squeezenet1_1": (1, 3, 224, 224),
        "torchvision:lraspp_mobilenet_v3_large": (1, 3, 520, 520),
        "timm:test_vit": (1, 3, 160, 160),
    }.items():
        model = models.resolve(name)
        (image,) = model.example().args
        assert image.shape == shape
        assert not model.module.training
        assert model.random
    tiny = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 9}
    bert = models.resolve("transformers:BertModel", arguments=tiny)
    example = bert.example()
    ids, mask = example.args
    assert ids.shape == mask.shape == (1, 128)
    assert bert.module(*example.args).last_hidden_state.shape == (1, 128, 8)


def test_a_model_without_known_inputs_says_what_to_pass() -> None:
    model = models.resolve("torch.nn:Identity")
    with pytest.raises(ExampleInputError, match="no inputs of its own") as caught:
        model.example()
    assert "forward(input)" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("torchvision:resnet51", "resnet50"),
        ("timm:resnet51", "resnet50"),
        ("transformers:BertModle", "BertModel"),
        ("torch.nn:Linaer", "Linear"),
        ("resnet50", "torchvision:NAME"),
        ("no.such.module:Net", "package.module:CALLABLE"),
        ("no_such_file.py:Net", "FILE.py:CALLABLE"),
        ("no_such_file.pt2", "torch.export.save"),
        ("cli_net:number", "CALLABLE"),
        ("builtins:list", ""),
    ],
)
def test_a_name_that_means_no_model_is_refused(net: str, name: str, hint: str) -> None:
    with pytest.raises(ModelNameError) as caught:
        models.resolve(name)
    assert hint in caught.value.hint


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingPackageError, match="not installed"):
        models.resolve("timm:resnet18")


def test_initial_weights_follow_the_seed() -> None:
    def weights(seed: int) -> torch.Tensor:
        return next(models.resolve("torchvision:squeezenet1_1", seed=seed).module.parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_random_weights_do_not_blow_up_rounding() -> None:
    model = models.resolve("torchvision:resnet50")
    (image,) = model.example(specs("1x3x64x64")).args
    randomize(model.module, (image,))
    with torch.no_grad():
        single, double = model.module(image), model.module.double()(image.double())
    assert (single - double).abs().max() < 3e-6 * double.abs().max()


def test_weights_come_from_a_file(net: str, tmp_path: Path) -> None:
    trained = models.resolve("cli_net:Net", seed=1).module.state_dict()
    torch.save(trained, tmp_path / "weights.pt")
    safetensors.torch.save_file(trained, tmp_path / "weights.safetensors")
    for file in ("weights.pt", "weights.safetensors"):
        loaded = models.resolve("cli_net:Net", seed=2, weights=tmp_path / file).module.state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in trained.items())
        with pytest.raises(WeightError, match="size mismatch"):
            models.resolve("cli_net:Net", weights=tmp_path / file, arguments={"width": 5})
    with pytest.raises(WeightError, match="No such file"):
        models.resolve("cli_net:Net", weights=tmp_path / "missing.pt")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(WeightError):
        models.resolve("cli_net:Net", weights=tmp_path / "junk.pt")


# Commands -------------------------------------------------------------------------------------------------------------


def test_verify_says_how_far_the_network_is_from_the_model(net: str, capsys: Capture) -> None:
    found = run(
        capsys, "verify", f"{net}:Net", "--input", "image:n=1..2..4x3x8x8", "--input", "offset:float32:1",
        "--precision", "fp16", "--flavour", "tensorrt_rtx", "--model-arg", "width=6",
    )  # fmt: skip
    assert found["model"] == f"{net}:Net"
    assert [found["flavour"], found["precision"], found["name"]] == ["tensorrt_rtx", "fp16", "Net"]
    assert found["nodes"] >= found["fused_blocks"] == 1
    assert found["layers"] > 0
    assert found["build_s"] > 0
    assert found["engine_bytes"] > 0
    assert found["passed"] is True
    assert 0 < found["max_rel_error"] < 2e-2
    assert [output["name"] for output in found["outputs"]] == ["output0"]


def test_verify_fails_where_the_network_is_wrong(net: str, capsys: Capture) -> None:
    options = ["verify", f"{net}:Net", "--input", "1x3x8x8", "--model-arg", "scale=1e6"]
    found = run(capsys, *options, "--precision", "fp16", code=1)
    assert found["passed"] is False
    assert found["max_abs_error"] is None  # infinite: FP16 ends at 65504
    assert run(capsys, *options, "--precision", "fp32")["passed"] is True


def test_verify_shows_tables_without_json(net: str, capsys: Capture) -> None:
    assert cli.main(["verify", "cli_net:Net", "--input", "1x3x8x8"]) == 0
    out = capsys.readouterr().out
    assert "image: float32[1×3×8×8]" in out.replace("\n", "")
    assert "passed" in out


def test_compile_writes_an_artifact_that_loads_and_inspects(net: str, capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "net.t2t"
    options = ["--input", "image:n=1..2..4x3x8x8", "--precision", "fp32", "-o", str(path), "--program"]
    written = run(capsys, "compile", "cli_net:Net", *options)
    assert written["output"] == str(path)
    image = torch.randn(3, 3, 8, 8)
    assert torch2trt.load(path).reference(image)["y"].shape == (3, 4, 6, 6)

    shown = run(capsys, "inspect", str(path))
    assert shown["name"] == "Net"
    assert shown["settings"] == {"precision": "fp32"}
    assert shown["report"]["layers"] == written["layers"]
    assert shown["program"] is True
    assert shown["signature"]["dims"] == {"n": [1, 2, 4]}
    assert shown["engine_bytes"] < shown["file_bytes"] == path.stat().st_size
    assert cli.main(["inspect", str(path)]) == 0
    assert "image: float32[n×3×8×8]" in capsys.readouterr().out


def test_export_writes_a_plan_and_what_it_takes(net: str, capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "net.engine"
    written = run(capsys, "export", "cli_net:Net", "--input", "1x3x8x8", "-o", str(path))
    assert path.stat().st_size == written["engine_bytes"]
    assert json.loads((tmp_path / "net.engine.json").read_text())["inputs"][0]["name"] == "image"
    assert run(capsys, "inspect", str(path), code=2)["error"]["code"] == "T2T601"


def test_inspect_counts_the_layers_of_a_model(net: str, capsys: Capture) -> None:
    found = run(capsys, "inspect", "cli_net:Net", "--input", "1x3x8x8")
    assert found["layers_by_type"]["convolution"] == 1
    assert sum(found["layers_by_type"].values()) == found["layers"]
    assert found["flops"] == 2 * 36 * 4 * 27


def test_explain_says_what_would_run_in_torch(net: str, capsys: Capture, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    argv = ["explain", f"{net}:Net", "--input", "1x3x8x8", "--run-in-torch", "aten.relu", "--min-segment", "1"]
    data = run(capsys, *argv, "--html", str(page))
    assert data["calls_in_torch"] == 1
    assert [segment["where"] for segment in data["segments"]][:2] == ["engine", "torch"]
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert cli.main(argv) == 0
    assert "run_in_torch names 'aten.relu'" in capsys.readouterr().out


def test_compare_names_the_call_that_overflows(net: str, capsys: Capture, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    argv = ["compare", f"{net}:Net", "--input", "1x3x8x8", "--runs", "reference", "--html", str(page)]
    data = run(capsys, *argv, "--model-arg", "scale=1e6", "--precision", "fp16", code=1)
    assert [call["node"] for call in data["calls"] if call["overflows"]] == data["overflows"] != []
    assert data["calls"][-1]["max_rel_error"] is None
    assert "overflow" in page.read_text(encoding="utf-8")
    assert run(capsys, *argv, "--precision", "fp16", "--tolerance", "1e-9", code=1)["tolerance"] == 1e-9
    assert cli.main([*argv, "--precision", "fp32"]) == 0
    assert "layers.0" in capsys.readouterr().out


def test_reduce_writes_the_call_that_overflows(net: str, capsys: Capture, tmp_path: Path) -> None:
    argv = ["reduce", f"{net}:Net", "--input", "1x3x8x8", "-o", str(tmp_path / "small.py"), "--precision", "fp16"]
    found = run(capsys, *argv, "--model-arg", "scale=1e6", "--timeout", "200")
    assert found["failure"]["kind"] == "wrong"
    assert found["calls"] < found["calls_before"]
    text = (tmp_path / "small.py").read_text(encoding="utf-8")
    assert "'precision': 'fp16'" in text
    assert (tmp_path / "small.safetensors").exists()


def test_an_exported_program_brings_its_inputs(capsys: Capture, tmp_path: Path) -> None:
    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return (self.linear(x) * scale).to(torch.float32)

    args, kwargs = (torch.randn(3, 4),), {"scale": torch.randn(2)}
    torch.export.save(torch.export.export(Casts().eval(), args, kwargs), tmp_path / "casts.pt2")
    example = models.resolve(str(tmp_path / "casts.pt2")).example()
    assert torch.equal(example.args[0], args[0])
    assert torch.equal(example.kwargs["scale"], kwargs["scale"])
    found = run(capsys, "verify", str(tmp_path / "casts.pt2"))
    assert found["name"] == "casts"
    assert found["passed"] is True


def test_trained_weights_are_asked_for_where_they_are_random(capsys: Capture, tmp_path: Path) -> None:
    path = str(tmp_path / "net.t2t")
    options = ["compile", "torchvision:squeezenet1_1", "--input", "1x3x32x32", "-o", path, "--program"]
    assert cli.main(options) == 0
    assert "random weights (seed 0); --weights FILE" in capsys.readouterr().err
    # Biases start as zeros, which hide mistakes.
    program = torch2trt.load(path).program()
    biases = [tensor for name, tensor in program.weights.sources.items() if name.endswith("bias")]
    assert len(biases) == 26
    assert all(bool(bias.any()) for bias in biases)


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["verify", "torchvision:resnet51"], "T2T108", "resnet50"),
        (["verify", "cli_net:Net"], "T2T107", "forward(image, offset=None)"),
        (["verify", "cli_net:Net", "--input", "1x3x8x8", "--precision", "fp17"], "T2T101", "fp17"),
        (["verify", "cli_net:Net", "--input", "1x3x8x8", "--optimization-level", "9"], "T2T101", "0 to 5"),
        (["verify", "cli_net:Net", "--inputs", "1x3x8x8"], "T2T101", "--inputs"),
        (["verify", "cli_net:Net", "--model-arg", "width"], "T2T101", "NAME=VALUE"),
        (["verify", "cli_net:Unsupported", "--input", "2x2"], "T2T201", "linalg_eigh"),
        (["compile", "cli_net:Net", "--input", "1x3x8x8"], "T2T101", "--output"),
        (["compile", "cli_net:Net", "--input", "1x3x8x8", "-o", "no/such/net.t2t"], "T2T603", "no/such"),
        (["inspect", "cli_net.py"], "T2T601", "no artifact"),
        ([], "T2T101", "COMMAND"),
    ],
)
def test_errors_have_a_number_and_say_what_to_do(
    net: str, capsys: Capture, argv: list[str], code: str, text: str
) -> None:
    assert cli.main([*argv, "--json"]) == 2
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert error["code"] == code
    assert text in json.dumps(error)
    assert code in err
    if argv:
        assert cli.main(argv) == 2
        assert capsys.readouterr().out.replace("this line is the model's own\n", "") == ""


def test_a_defect_is_told_from_an_error_of_ours(net: str, capsys: Capture) -> None:
    assert cli.main(["verify", "cli_net:broken", "--json"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["message"] == "RuntimeError: the model's own fault"
    assert "Traceback" in err


def test_every_setting_is_an_option() -> None:
    parser = cli._parser()
    assert cli._settings(parser.parse_args(["verify", "m"])) == {}
    argv = ["verify", "m"]
    given: dict[str, Any] = {
        "precision": "bf16", "keep_io_dtypes": False, "keep_io_layouts": False, "flavour": "tensorrt",
        "workspace": 1, "optimization_level": 2, "max_aux_streams": 1,
        "profiling_verbosity": "none", "timing_cache": False, "engine_cache": False,
        "engine_cache_bytes": 9, "cache_dir": Path("x"), "progress": "none",
        "build_in_subprocess": True, "build_timeout": 1.5, "fallback": False,
        "run_in_torch": ("aten.relu", "model.head"), "min_segment": 3,
        "skip_passes": ("merge_views", "sink_expands"), "extra_passes": ("merge_sibling_linears",),
        "cuda_graphs": False, "max_concurrent_runs": 2,
    }  # fmt: skip
    assert list(given) == [item.name for item in dataclasses.fields(Settings)]
    for name, value in given.items():
        flag = name.replace("_", "-")
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        argv += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", text]
    assert cli._settings(parser.parse_args(argv)) == given
    Settings.make(**given)


def test_help_needs_no_torch(capsys: Capture) -> None:
    import subprocess

    code = "import sys; from torch2trt.tools import cli; cli._parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(SystemExit, match="0"):
        cli.main(["verify", "--help"])
    assert "--input 1x3x224x224" in capsys.readouterr().out
