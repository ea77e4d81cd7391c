"""The command line: ``torch2trt compile | export | verify | explain | compare | profile | tune | …``.

Results go to stdout, as tables or with ``--json`` as one JSON object; everything else goes to stderr. The exit code is
0 where all is well, 1 where a verification fails or nothing usable is installed, 2 for an error with a number and 3 for
any other.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2trt import __version__
from torch2trt.errors import ArtifactWriteError, SettingError
from torch2trt.settings import Settings, merged
from torch2trt.tools.options import (
    Parser,
    add_at,
    add_input,
    add_model,
    add_output,
    add_profile,
    add_settings,
    add_tuning,
)
from torch2trt.tools.outcome import Outcome, report

# What needs torch is imported by the commands, so that --help answers at once.
if TYPE_CHECKING:
    from torch2trt.pieces import PiecewiseModule
    from torch2trt.runtime.module import EngineModule
    from torch2trt.tools.inputs import Example, InputSpec, Span
    from torch2trt.tools.models import Model
    from torch2trt.tools.sizes import At

_INPUT_HELP = """
inputs:
  --input 1x3x224x224                          by position, random, in the model's own dtype
  --input ids:int64:1x128 --input mask:1x128   by the name of forward's parameter
  --input x:batch=1..8..64x3x224x224           a dynamic dimension: MIN..OPT..MAX, with a name where several are one
Without --input a model takes what its library says, or what it was exported with.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv

    def command() -> Outcome:
        options = _parser().parse_args(argv)
        return options.command(options)  # type: ignore[no-any-return]

    return report(command, as_json="--json" in argv)


# The commands ---------------------------------------------------------------------------------------------------------


def _compile(options: argparse.Namespace) -> Outcome:
    import torch2trt

    _check_folder(options.output)
    model, example = _model(options)
    _warn_of_random_weights(model, options)
    keywords = _keywords(options, model, example)
    compiled = torch2trt.compile(model.module, example.args, example.kwargs, **keywords)
    compiled.save(options.output, program=options.program)
    return _describe(options, compiled)


def _export(options: argparse.Namespace) -> Outcome:
    import torch2trt

    _check_folder(options.output)
    model, example = _model(options)
    _warn_of_random_weights(model, options)
    keywords = _keywords(options, model, example)
    compiled = torch2trt.export(model.module, example.args, options.output, example.kwargs, **keywords)
    return _describe(options, compiled)


def _verify(options: argparse.Namespace) -> Outcome:
    from rich.console import Group
    from rich.text import Text

    import torch2trt

    model, example = _model(options)
    keywords = _keywords(options, model, example)
    compiled = torch2trt.compile(model.module, example.args, example.kwargs, **keywords)
    found = compiled.verify(*example.args, **example.kwargs)
    outcome = _describe(options, compiled)
    return Outcome(
        {**outcome.data, **found.to_json()},
        Group(outcome.shown, Text(str(found))),
        code=0 if found.passed else 1,
    )


def _bench(options: argparse.Namespace) -> Outcome:
    from torch2trt.tools.bench import main_from_cli

    data, shown = main_from_cli(
        options.models,
        inputs=options.input,
        profiles=options.profile,
        settings=_settings(options),
        backends=options.backend,
        batches=options.batch,
        repeats=options.repeats,
        results=options.results,
        seed=options.seed,
    )
    return Outcome(data, shown)


def _inspect(options: argparse.Namespace) -> Outcome:
    from torch2trt.tools import inspect
    from torch2trt.tools.engine_layers import inspect_layers
    from torch2trt.tools.inputs import parse_profile

    profiles = [parse_profile(text) for text in options.profile]
    if inspect.is_artifact(options.model):
        if options.layers or profiles:
            return Outcome(*inspect_layers(options.model, profiles))
        return Outcome(*inspect.artifact(options.model))
    if options.layers:
        raise SettingError("is no artifact", subject=options.model, hint="compile it, and inspect what is written")
    model, example = _model(options)
    return Outcome(*inspect.network(model, example, Settings.make(**_settings(options)), profiles or None))


def _explain(options: argparse.Namespace) -> Outcome:
    from rich.text import Text

    import torch2trt

    model, example = _model(options)
    found = torch2trt.explain(model.module, example.args, example.kwargs, **_keywords(options, model, example))
    _write_page(options.html, found.name, found.to_html)
    return Outcome(found.to_json(), Text(str(found)), code=1 if found.refusal else 0)


def _compare(options: argparse.Namespace) -> Outcome:
    from rich.text import Text

    import torch2trt

    model, example = _model(options)
    found = torch2trt.compare(
        model.module,
        example.args,
        example.kwargs,
        at=_at(options.at),
        runs=options.runs,
        tolerance=options.tolerance,
        **_keywords(options, model, example),
    )
    _write_page(options.html, found.name, found.to_html)
    return Outcome(found.to_json(), Text(str(found)), code=0 if found.passed else 1)


def _profile(options: argparse.Namespace) -> Outcome:
    from torch2trt.tools.profile.command import main_from_cli

    for path in filter(None, (options.html, options.svg)):
        _check_folder(path)
    specs, spans = _inputs(options)
    files = {"html": options.html, "svg": options.svg}
    own = {"profiles": options.profile, "specs": specs, "spans": spans, "seed": options.seed, "runs": options.runs}
    return Outcome(*main_from_cli(options.model, lambda: _model(options), settings=_settings(options), **own, **files))


def _tune(options: argparse.Namespace) -> Outcome:
    from torch2trt.tools.tune.command import main_from_cli

    for path in filter(None, (options.output, options.plot)):
        _check_folder(path)
    own = ("objective", "max_latency", "batches", "precisions", "levels", "streams", "max_error", "budget")
    given = {name: getattr(options, name) for name in own if name in options}
    files = {"output": options.output, "plot": options.plot}
    return main_from_cli(lambda: _model(options), settings=_settings(options), **given, **files)


def _reduce(options: argparse.Namespace) -> Outcome:
    from rich.text import Text

    import torch2trt
    from torch2trt.tools.inputs import parse_sizes

    _check_folder(options.output)
    model, example = _model(options)
    found = torch2trt.reduce(
        model.module,
        example.args,
        example.kwargs,
        path=options.output,
        at=None if options.at is None else parse_sizes(options.at),
        tolerance=options.tolerance,
        timeout=options.timeout,
        imports=options.imports,
        report=lambda text: print(text, file=sys.stderr),
        **_keywords(options, model, example),
    )
    return Outcome(found.to_json(), Text(str(found)))


def _coverage(options: argparse.Namespace) -> Outcome:
    from rich.table import Table

    from torch2trt.tools import coverage

    folder = options.folder or coverage.FOLDER
    found = coverage.merge(coverage.read(folder), options.models, options.samples)
    coverage.write(found, folder)
    table = Table("", "", title=f"written to {folder}")
    for what, counts in found.counts.items():
        table.add_row(what, ", ".join(f"{key} {count}" for key, count in counts.items()))
    return Outcome(found.counts, table)


def _list(options: argparse.Namespace) -> Outcome:
    from torch2trt.tools import cache

    return cache.listing(Settings.make(**_settings(options)))


def _why(options: argparse.Namespace) -> Outcome:
    from torch2trt.tools import cache

    model, example = _model(options)
    return cache.why(
        model, example, _keywords(options, model, example)["profiles"], Settings.make(**_settings(options))
    )


def _prune(options: argparse.Namespace) -> Outcome:
    from torch2trt.tools import cache

    settings = Settings.make(**_settings(options))
    return cache.prune(settings, max_bytes=0 if options.all else options.max_bytes, days=options.older_than)


def _doctor(options: argparse.Namespace) -> Outcome:
    from torch2trt.tools import doctor

    found = doctor.examine()
    return Outcome(found.to_json(), found, code=0 if found.chosen else 1)


def _model(options: argparse.Namespace) -> tuple[Model, Example]:
    from torch2trt.tools import models
    from torch2trt.tools.weights import randomize

    specs, spans = _inputs(options)
    arguments = dict(_argument(text) for text in options.model_arg)
    model = models.resolve(options.model, seed=options.seed, weights=options.weights, arguments=arguments)
    example = model.example(specs, seed=options.seed, spans=spans)
    if model.random:
        randomize(model.module, example.args, example.kwargs, seed=options.seed)
    return model, example


def _inputs(options: argparse.Namespace) -> tuple[list[InputSpec], dict[str, Span]]:
    from torch2trt.tools.inputs import InputSpec, parse_span

    return [InputSpec.parse(text) for text in options.input], dict(parse_span(text) for text in options.int_range)


def _keywords(options: argparse.Namespace, model: Model, example: Example) -> dict[str, Any]:
    from torch2trt.tools.inputs import parse_profile

    found = {"dynamic_shapes": example.dynamic_shapes, "name": model.name, **_settings(options)}
    if "profile" in options:
        found["profiles"] = [parse_profile(text) for text in options.profile] or None
    return found


def _at(texts: Sequence[str] | None) -> At | None:
    from torch2trt.tools.inputs import parse_sizes

    if texts is None:
        return None
    return "all" if texts == ["all"] else [parse_sizes(text) for text in texts]


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, and those of the file that was."""
    names = (*(item.name for item in dataclasses.fields(Settings)), "settings")
    return merged({name: getattr(options, name) for name in names if name in options})


def _argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise SettingError("is not NAME=VALUE", subject=f"model-arg {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _check_folder(path: Path) -> None:
    """Refuse before building what could not be written after it."""
    if not path.parent.is_dir():
        raise ArtifactWriteError("its folder does not exist", subject=str(path), hint=f"mkdir {path.parent}")


def _write_page(path: Path | None, title: str, body: Callable[[], str]) -> None:
    from torch2trt.tools import page

    if path is not None:
        page.write(path, page.document(title, body()))


def _warn_of_random_weights(model: Model, options: argparse.Namespace) -> None:
    if model.random:
        print(f"{model.name} has random weights (seed {options.seed}); --weights FILE loads others", file=sys.stderr)


def _describe(options: argparse.Namespace, compiled: EngineModule | PiecewiseModule) -> Outcome:
    from torch2trt.pieces import PiecewiseModule
    from torch2trt.tools import inspect

    written = {"output": str(options.output)} if "output" in options else {}
    if isinstance(compiled, PiecewiseModule):
        data = {"model": options.model, "pieces": len(compiled.engines), **compiled.report, **written}
        engines = [engine.artifact for engine in compiled.engines]
        return Outcome(data, inspect.pieces(compiled.name, engines, compiled.refusals))
    artifact = compiled.artifact
    data = {
        "model": options.model,
        "flavour": artifact.flavour,
        "flavour_version": artifact.flavour_version,
        "gpu": artifact.gpu,
        "precision": artifact.precision,
        **compiled.report,
        **written,
    }
    return Outcome(data, inspect.table(artifact))


# The options ----------------------------------------------------------------------------------------------------------


def _parser() -> Parser:
    parser = Parser(prog="torch2trt", description="Compile PyTorch modules into TensorRT engines.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"torch2trt {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(
        run: Callable[[argparse.Namespace], Outcome], help: str, *, epilog: str = "", among: Any = commands
    ) -> Parser:
        added: Parser = among.add_parser(
            run.__name__.removeprefix("_"),
            help=help,
            description=f"{help[0].upper()}{help[1:]}.",
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=run)
        added.add_argument("--json", action="store_true", help="print one JSON object")
        return added

    compiling = command(_compile, "compile a model into an artifact for torch2trt.load", epilog=_INPUT_HELP)
    add_output(compiling, "the artifact to write, such as resnet50.t2t")
    compiling.add_argument("--program", action="store_true", help="save the Program with it, for reference()")
    exporting = command(_export, "write a bare plan, with a JSON beside it, for trtexec or Triton", epilog=_INPUT_HELP)
    add_output(exporting, "the plan to write, such as resnet50.engine")
    verifying = command(_verify, "compile a model and compare it with float64 eager", epilog=_INPUT_HELP)
    explaining = command(
        _explain, "say which calls would run in an engine, which in torch, and why", epilog=_INPUT_HELP
    )
    comparing = command(_compare, "compare a model call by call with float64 eager", epilog=_INPUT_HELP)
    profiling = command(
        _profile, "say where the time of a call goes, by kernel, module and line; needs a GPU", epilog=_INPUT_HELP
    )
    for page in (explaining, comparing, profiling):
        page.add_argument("--html", type=Path, metavar="FILE", help="write it as a page, too")
    profiling.add_argument("--svg", type=Path, metavar="FILE", help="write the engine as a picture, too")
    profiling.add_argument("--runs", type=int, default=20, metavar="N", help="measurements a kernel (default: 20)")
    comparing.add_argument(
        "--runs", choices=("engine", "reference"), help="what is compared; unset: the engine where a GPU runs it"
    )
    reducing = command(
        _reduce, "cut a model that fails to the smallest graph that does, as a script", epilog=_INPUT_HELP
    )
    add_output(reducing, "the script to write, such as small.py; its tensors go beside it")
    reducing.add_argument("--timeout", type=float, metavar="SECONDS", help="after which a process counts as hanging")
    reducing.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module that registers operators which the model uses; may come several times",
    )
    for tolerant in (comparing, reducing):
        tolerant.add_argument(
            "--tolerance", type=float, metavar="X", help="largest relative error allowed; unset: as verify has it"
        )
    tuning = command(_tune, "find good settings for a model on this GPU; needs one", epilog=_INPUT_HELP)
    add_tuning(tuning)
    inspecting = command(_inspect, "show an artifact, or the network that a model becomes", epilog=_INPUT_HELP)
    inspecting.add_argument(
        "--layers",
        action="store_true",
        help="show the layers of an artifact's engines, in each profile or those that --profile names; needs a GPU",
    )
    for parser_of_one, what in (
        *((compiling, ""), (exporting, ""), (verifying, ""), (explaining, ""), (comparing, ""), (reducing, "")),
        (tuning, ""),
        *((inspecting, "an artifact, or "), (profiling, "an artifact, or ")),
    ):
        add_model(parser_of_one, what)
        add_settings(parser_of_one)

    for building in (compiling, exporting, verifying, explaining, comparing, reducing, profiling, inspecting):
        add_profile(building)
    add_at(comparing, several=True)
    add_at(reducing, several=False)

    measuring = command(_bench, "measure against the other roads; needs a GPU", epilog=_INPUT_HELP)
    measuring.add_argument("models", nargs="*", metavar="MODEL", help="as for compile; several are measured in turn")
    add_input(measuring)
    add_profile(measuring)
    measuring.add_argument(
        "--backend", action="append", metavar="NAMES", help="such as eager,torch2trt; unset: the usual"
    )
    measuring.add_argument("--batch", action="append", type=int, metavar="N", help="batch size; may come several times")
    measuring.add_argument("--repeats", type=int, metavar="N", help="measurements a row")
    measuring.add_argument("--results", type=Path, metavar="FOLDER", help="where the CSV goes")
    add_settings(measuring)

    covering = command(
        _coverage, "count what converts, from committed results, and write docs/operators.md and models.md"
    )
    covering.add_argument(
        "--models",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="take in what python -m tests.model_suite wrote; may come several times",
    )
    covering.add_argument(
        "--samples",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="take in what the sweep of PyTorch's samples, or python -m tests.rows, wrote; may come several times",
    )
    covering.add_argument("--folder", type=Path, help="the documents (default: this checkout's)")
    what = "show, question and prune the engine cache"
    caching = commands.add_parser("cache", help=what, description=f"{what.capitalize()}.", allow_abbrev=False)
    of_cache = caching.add_subparsers(metavar="COMMAND", required=True)
    listing = command(_list, "list the engines, the most recently used first", among=of_cache)
    asking = command(_why, "say what differs from the engine that comes nearest", epilog=_INPUT_HELP, among=of_cache)
    add_model(asking, "")
    add_settings(asking)
    add_profile(asking)
    pruning = command(_prune, "remove engines", among=of_cache)
    chosen = pruning.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--max-bytes", type=int, metavar="N", help="the least recently used, until N bytes are left")
    chosen.add_argument("--older-than", type=float, metavar="DAYS", help="what was not used for so long")
    chosen.add_argument("--all", action="store_true", help="everything")
    for looking in (listing, pruning):
        looking.add_argument("--cache-dir", type=Path, default=argparse.SUPPRESS, metavar="FOLDER", help="the folder")
    command(_doctor, "say what is installed, what is used and why, and what to install")
    return parser


if __name__ == "__main__":
    sys.exit(main())
