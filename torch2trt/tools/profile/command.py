"""``torch2trt profile``: a model or an artifact, as a table and, where asked for, as a page and a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from torch2trt import api
from torch2trt.errors import SettingError
from torch2trt.tools import inspect, page
from torch2trt.tools.inputs import Example, InputSpec, Span, draw_for, parse_profile
from torch2trt.tools.models import Model
from torch2trt.tools.profile.profiling import check_gpu, profile, profile_artifact
from torch2trt.tools.profile.report import Profile


def main_from_cli(
    name: str,
    model: Callable[[], tuple[Model, Example]],
    *,
    settings: Mapping[str, Any],
    profiles: Sequence[str],
    specs: Sequence[InputSpec],
    spans: Mapping[str, Span],
    seed: int,
    runs: int,
    html: Path | None,
    svg: Path | None,
) -> tuple[dict[str, Any], Text]:
    """Profile what a name means.

    Args:
        name: an artifact's file, or a model's name.
        model: the model and its example, for a model's name.
        settings: fields of :class:`torch2trt.Settings`, for a model.
        profiles: optimization profiles, for a model, as :func:`torch2trt.tools.inputs.parse_profile` takes them.
        specs, spans, seed: an artifact's inputs, as :func:`torch2trt.tools.inputs.draw_for` takes them.
        runs: how often each kernel is timed.
        html, svg: files to write.

    Returns:
        JSON values, and tables.

    Raises:
        NoGPUError: there is no GPU.
        SettingError: profiles for an artifact, which has its own.
        Torch2TRTError: it cannot be loaded, compiled or run.
    """
    check_gpu()
    if inspect.is_artifact(name):
        if profiles:
            raise SettingError("has its own profiles", subject=name, hint="give the sizes of a call with --input")
        found = profile_file(name, specs, spans=spans, seed=seed, runs=runs)
    else:
        resolved, example = model()
        found = profile(
            resolved.module,
            example.args,
            example.kwargs,
            dynamic_shapes=example.dynamic_shapes,
            profiles=[parse_profile(text) for text in profiles] or None,
            name=resolved.name,
            runs=runs,
            **settings,
        )
    if html is not None:
        page.write(html, found.to_html())
    if svg is not None:
        page.write(svg, found.to_svg())
    return found.to_json(), Text(str(found))


def profile_file(path: str, specs: Sequence[InputSpec], *, spans: Mapping[str, Span], seed: int, runs: int) -> Profile:
    """Profile what ``.save()`` wrote, on random inputs.

    Raises:
        ArtifactError: it is no artifact, truncated, corrupt, or of another format version.
        ExampleInputError: it has no such input.
        Torch2TRTError: as for :func:`torch2trt.tools.profile.profiling.profile_artifact`.
    """
    loaded = api.load(path)
    artifact = loaded.artifact
    state = [artifact.state[leaf.buffer] for leaf in artifact.signature.state]
    inputs = [*draw_for(artifact.signature, specs, seed=seed, spans=spans), *state]
    return profile_artifact(artifact, inputs, loaded.program() if loaded.has_program else None, runs=runs)
