"""Options that several commands share, and those of ``torch2trt tune``; nothing here needs torch."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from torch2trt.errors import SettingError
from torch2trt.settings import Settings


class Parser(argparse.ArgumentParser):
    """Mistakes are errors with a number."""

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise SettingError(message, subject=self.prog, hint=f"{self.prog} --help lists the options")


def add_output(parser: Parser, help: str) -> None:
    """The file to write."""
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help=help)


def add_model(parser: Parser, before: str) -> None:
    """A model by its name, its weights and its inputs."""
    forms = "torchvision:NAME, timm:NAME, transformers:CLASS, package.module:CALLABLE, FILE.py:CALLABLE or FILE.pt2"
    parser.add_argument("model", metavar="MODEL", help=before + forms)
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a state_dict: .safetensors, or from torch.save")
    parser.add_argument(
        "--model-arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a keyword for what makes the model (for transformers, of its configuration), such as num_classes=10",
    )
    add_input(parser)
    parser.add_argument(
        "--int-range",
        action="append",
        default=[],
        metavar="[NAME=]LOW:HIGH",
        help="random integers from LOW to below HIGH; unset: the rows of the model's first embedding",
    )


def add_input(parser: Parser) -> None:
    """The inputs, and the seed of what is random."""
    parser.add_argument("--input", action="append", default=[], metavar="[NAME:][DTYPE:]SHAPE", help="see below")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of random weights and inputs (default: 0)")


def add_profile(parser: Parser) -> None:
    """Optimization profiles."""
    parser.add_argument(
        "--profile",
        action="append",
        default=[],
        metavar="NAME=SIZES,…",
        help="an optimization profile for dimensions by name, such as batch=2..16..64; may come several times",
    )


def add_at(parser: Parser, *, several: bool) -> None:
    """The sizes to run at, where they are not those of the inputs."""
    more = "; may come several times, or be `all`: the smallest, usual and largest sizes of every profile" * several
    parser.add_argument(
        "--at",
        action="append" if several else "store",
        metavar="NAME=N,…",
        help=f"run at these sizes of the dynamic dimensions, such as batch=64{more}",
    )


def add_settings(parser: Parser) -> None:
    """One option for each field of Settings, and a file of them; those not given stay out of the namespace."""
    group = parser.add_argument_group("settings")
    hints = get_type_hints(Settings)
    for item in dataclasses.fields(Settings):
        kinds = [kind for kind in get_args(hints[item.name]) or (hints[item.name],) if kind is not NoneType]
        if get_origin(hints[item.name]) in (Literal, tuple):
            kinds = [hints[item.name]]
        (kind,) = kinds
        form: dict[str, Any]
        if kind is bool:
            form = {"action": argparse.BooleanOptionalAction}
        elif get_origin(kind) is Literal:
            form = {"choices": get_args(kind)}
        elif get_origin(kind) is tuple:
            form = {"type": lambda text: tuple(text.split(",")), "metavar": "NAME,…"}
        else:
            form = {"type": kind, "metavar": {Path: "FOLDER", int: "N", float: "SECONDS"}[kind]}
        text = item.metadata["help"].replace("%", "%%")
        group.add_argument(f"--{item.name.replace('_', '-')}", default=argparse.SUPPRESS, help=text, **form)
    group.add_argument(
        "--settings",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="a JSON file of settings, such as tune -o writes; options win over it",
    )


def add_tuning(parser: Parser) -> None:
    """What :func:`torch2trt.tune` takes beside a model and settings; what is not given stays out of the namespace."""
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the settings found, for --settings")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw latency against throughput, as .png or .svg")

    def option(name: str, **form: Any) -> None:
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, **form)

    option("objective", choices=("latency", "throughput"), help="what is to be good (default: latency)")
    option("max-latency", type=float, metavar="MS", help="largest latency allowed, where throughput is the objective")
    option(
        "batches",
        type=_numbers,
        metavar="N,…",
        help="batch sizes (default: the inputs' own; for throughput the powers of two up to 64 as well)",
    )
    option(
        "precisions",
        type=_names,
        metavar="NAME,…",
        help="precisions allowed, such as tf32,fp16 (default: what the settings say, else the module's own)",
    )
    option("levels", type=_numbers, metavar="N,…", help="builder optimisation levels (default: 1,3,5)")
    option("streams", type=_numbers, metavar="N,…", help="numbers of auxiliary streams (default: 0,4)")
    option("max-error", type=float, metavar="X", help="largest error allowed, where the tolerance allows more")
    option("budget", type=float, metavar="SECONDS", help="after which no build is begun (default: none)")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes numbers with commas between, got {text!r}") from None


def _names(text: str) -> list[str]:
    return text.split(",")
