"""One engine of a Program, or of a segment of it: known, or lowered and built."""

from __future__ import annotations

import time

from torch2trt.converters import registry
from torch2trt.converters.lower import lower
from torch2trt.converters.own_operators import own_operators
from torch2trt.engine import builder, sources
from torch2trt.engine.cache import Plan
from torch2trt.engine.cached import cached
from torch2trt.engine.child import build_in_child
from torch2trt.engine.key import Key, NoKeyError, key_of_program
from torch2trt.engine.memory import give_back
from torch2trt.graph import serialize
from torch2trt.graph.operator_call import OperatorCall
from torch2trt.graph.program import Program
from torch2trt.runtime.artifact import Artifact, gpu_here
from torch2trt.settings import Settings
from torch2trt.trt.flavour import Flavour

_OWN = __name__.partition(".")[0]


def engine_of(program: Program, flavour: Flavour, settings: Settings) -> Artifact:
    """The engine of a Program that converts whole: from the cache where it is known, else lowered and built."""
    gpu = gpu_here()
    found = cached(
        lambda: key_of(program, flavour, settings),
        lambda: _build(program, flavour, settings),
        name=program.name,
        flavour=flavour,
        gpu=gpu,
        settings=settings,
    )
    facts, known = found.plan.facts, found.state == "hit"
    # The file is trusted with no more than what this Program calls itself.
    allowed = serialize.namespaces_of(program)
    return Artifact(
        name=program.name,
        plan=found.plan.data,
        signature=program.signature,
        settings=settings,
        flavour=flavour.name,
        flavour_version=flavour.version_text,
        gpu=gpu,
        calls=tuple(OperatorCall.from_json(call, allowed) for call in facts["calls"]),
        report={
            "layers": facts["layers"],
            "lower_s": 0.0 if known else facts["lower_s"],
            "build_s": 0.0 if known else facts["build_s"],
            "cache": found.state,
            "cache_s": found.seconds,
        },
    )


def key_of(program: Program, flavour: Flavour, settings: Settings) -> Key:
    """The key of such an engine.

    Raises:
        NoKeyError: there is none, and why.
    """
    return key_of_program(program, flavour, settings, other_code=_other_code(program))


def _build(program: Program, flavour: Flavour, settings: Settings) -> Plan:
    start = time.perf_counter()
    network = lower(program, flavour)
    lowered, layers = time.perf_counter(), network.definition.num_layers
    if settings.in_child:
        network.release()
        plan = build_in_child(program, settings, flavour.name, name=program.name, own=own_operators(program))
    else:
        plan = builder.build(network, program.signature, settings, name=program.name)
        network.release()
    give_back()
    return Plan(
        plan,
        {
            "layers": layers,
            "calls": [plugin.call.to_json() for plugin in network.plugins],
            "lower_s": lowered - start,
            "build_s": time.perf_counter() - lowered,
        },
    )


def _other_code(program: Program) -> dict[str, str]:
    """The converters that are not this package's, and digests of the packages that they are in."""
    converters = filter(None, map(registry.find, {node.target for node in program.calls}))
    functions = [each for found in converters for each in (found.function, found.at_most) if each is not None]
    named = {(getattr(each, "__module__", ""), getattr(each, "__qualname__", "")) for each in functions}
    others = sorted((module, name) for module, name in named if module.partition(".")[0] != _OWN)
    try:
        packages = dict(sources.code_of_package(module) for module, _ in others)
    except sources.UnknownCodeError as error:
        raise NoKeyError(f"of a converter: {error}") from error
    return packages | {f"{module}.{name}": "converter" for module, name in others}
