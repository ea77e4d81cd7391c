"""All settings of a compilation: one frozen dataclass, used alike by ``compile``, ``torch.compile`` and the CLI."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch2trt.errors import SettingError

Precision = Literal["fp32", "tf32", "fp16", "bf16"]
FlavourName = Literal["tensorrt", "tensorrt_rtx"]
Verbosity = Literal["none", "layer_names", "detailed"]
ProgressMode = Literal["auto", "terminal", "notebook", "none"]

# These two are checked against the passes themselves by a test; settings are below them and cannot ask.
SkippablePass = Literal[
    "unify_linears",
    "unify_activations",
    "fold_channel_scales",
    "reduce_strength",
    "sink_expands",
    "simplify_slices",
    "simplify_casts",
    "unify_rotary",
    "sink_permutes",
    "patches_as_products",
    "group_attention",
    "merge_views",
    "simplify_masks",
    "plug_attention",
    "plug_short_attention",
    "plug_depthwise",
    "plug_group_norm",
    "defer_blind_queries",
    "fuse_conv_blocks",
    "fuse_linear_blocks",
]
"""The passes without which an engine computes the same, in more layers or slower ones."""
ExtraPass = Literal[
    "small_patches_as_products",
    "merge_sibling_linears",
    "merge_sibling_convolutions",
    "flip_rotary",
]
"""The passes that are applied only where they are asked for: nobody has timed them on a GPU yet."""


def _setting(default: Any, help: str, *, engine: bool, in_program: bool = False, in_run: bool = False) -> Any:
    return field(default=default, metadata={"help": help, "engine": engine, "in_program": in_program, "in_run": in_run})


@dataclass(frozen=True)
class Settings:
    """Settings of one compilation.

    A field's ``metadata["engine"]`` says whether it changes the engine, and ``metadata["in_program"]`` whether all that
    it changes is seen in the Program that the engine is built of, or in the flavour that builds it;
    ``metadata["in_run"]`` says whether it changes how an engine is run, and so goes with the engine into files.
    """

    precision: Precision | None = _setting(
        None,
        "arithmetic of the whole model; unset: the module's own dtypes, with TF32 where they are float32",
        engine=True,
    )
    keep_io_dtypes: bool = _setting(
        True,
        "inputs and outputs keep the caller's dtypes; off: they take the engine's precision",
        engine=True,
        in_program=True,
    )
    keep_io_layouts: bool = _setting(
        True,
        "inputs and results that are channels-last where eager computes the example are so in the engine; off: none",
        engine=True,
        in_program=True,
    )
    flavour: FlavourName | None = _setting(
        None, "tensorrt or tensorrt_rtx; unset: what fits the machine", engine=True, in_program=True
    )
    workspace: int | None = _setting(None, "workspace limit in bytes; unset: all of the GPU's memory", engine=True)
    optimization_level: int | None = _setting(
        None, "builder optimisation level, 0 to 5; unset: TensorRT's own default", engine=True
    )
    max_aux_streams: int | None = _setting(
        None,
        "streams that an engine may use beside the caller's, 0: none; unset: as many as TensorRT thinks pay",
        engine=True,
    )
    profiling_verbosity: Verbosity = _setting("layer_names", "what the engine tells its inspector", engine=True)
    timing_cache: bool = _setting(True, "keep measured kernel timings in the cache folder", engine=False)
    engine_cache: bool | None = _setting(
        None,
        "keep engines in the cache folder and find them there; unset: those of tensorrt, which take long to build",
        engine=False,
    )
    engine_cache_bytes: int = _setting(
        8 << 30, "bytes that the engine cache may grow to; what was not used for longest goes first", engine=False
    )
    cache_dir: Path | None = _setting(None, "cache folder; unset: the user's own", engine=False)
    progress: ProgressMode = _setting("auto", "progress bar of the build", engine=False)
    build_in_subprocess: bool = _setting(
        False, "build in a child process, so that a crash of TensorRT becomes an error", engine=False
    )
    build_timeout: float | None = _setting(None, "seconds a build may take; implies build_in_subprocess", engine=False)
    fallback: bool = _setting(
        True,
        "what TensorRT cannot do runs in torch; off: it is an error that lists all of it",
        engine=True,
        in_program=True,
    )
    run_in_torch: tuple[str, ...] = _setting(
        (),
        "operators, as aten.nonzero, and modules, as model.head, that run in torch all the same",
        engine=True,
        in_program=True,
    )
    min_segment: int = _setting(
        6,
        "least worth of an engine beside what runs in torch: 3 for each layer with much to compute, 1 for others",
        engine=True,
        in_program=True,
    )
    skip_passes: tuple[SkippablePass, ...] = _setting(
        (), "passes over the graph that are left out, to see what they are worth", engine=True, in_program=True
    )
    extra_passes: tuple[ExtraPass, ...] = _setting(
        (),
        "passes over the graph that are off by default, since they have not been timed on a GPU",
        engine=True,
        in_program=True,
    )
    cuda_graphs: bool = _setting(True, "replay one captured CUDA graph per input shape", engine=False, in_run=True)
    max_concurrent_runs: int = _setting(
        4,
        "runs that different streams may have on the GPU at once, each with activations and CUDA graphs of its own, "
        "made when they are first needed; 1: streams wait for each other",
        engine=False,
        in_run=True,
    )

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for item in dataclasses.fields(self):
            _check(item.name, getattr(self, item.name), hints[item.name])
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise SettingError(f"must be 0 to 5, got {self.optimization_level}", subject="optimization_level")
        if self.max_aux_streams is not None and self.max_aux_streams < 0:
            raise SettingError(f"must not be negative, got {self.max_aux_streams}", subject="max_aux_streams")
        if self.workspace is not None and self.workspace <= 0:
            raise SettingError(f"must be positive, got {self.workspace}", subject="workspace")
        if self.build_timeout is not None and self.build_timeout <= 0:
            raise SettingError(f"must be positive, got {self.build_timeout}", subject="build_timeout")
        if self.engine_cache_bytes < 0:
            raise SettingError(f"must not be negative, got {self.engine_cache_bytes}", subject="engine_cache_bytes")
        if self.max_concurrent_runs < 1:
            raise SettingError(f"must be positive, got {self.max_concurrent_runs}", subject="max_concurrent_runs")
        if self.min_segment < 1:
            raise SettingError(f"must be positive, got {self.min_segment}", subject="min_segment")

    @property
    def in_child(self) -> bool:
        """Whether the build has a process of its own."""
        return self.build_in_subprocess or self.build_timeout is not None

    @classmethod
    def make(cls, **values: Any) -> Settings:
        """Settings from keywords, as :func:`merged` reads them; an unknown name is an error that suggests the nearest.

        Raises:
            SettingError: an unknown name or a value of the wrong type.
        """
        return cls.from_json(merged(values))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from fields by name alone, whose values may be JSON's.

        Raises:
            SettingError: as :meth:`make`.
        """
        known, values = [item.name for item in dataclasses.fields(cls)], {**values}
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"the settings are: {', '.join(known)}"
                raise SettingError("unknown setting", subject=name, hint=hint)
        if isinstance(values.get("cache_dir"), str):
            values["cache_dir"] = Path(values["cache_dir"])
        for name in ("run_in_torch", "skip_passes", "extra_passes"):
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """The fields that are not as they are by default, but those that only say how a build goes, as JSON values."""
        return {
            item.name: list(value) if isinstance(value, tuple) else value
            for item in dataclasses.fields(self)
            if (value := getattr(self, item.name)) != item.default
            and (item.metadata["engine"] or item.metadata["in_run"])
        }

    def builder_settings(self) -> dict[str, Any]:
        """The fields that change the engine of a given Program and flavour, as JSON values."""
        chosen = [
            item for item in dataclasses.fields(self) if item.metadata["engine"] and not item.metadata["in_program"]
        ]
        return {item.name: getattr(self, item.name) for item in chosen}


def merged(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields by name, ``settings`` among them replaced by the fields that it stands for; other keywords win over those.

    Args:
        values: ``settings`` is the path of a JSON file with one object of fields, such a mapping, or a
            :class:`Settings`; unset or None: there are no others.

    Raises:
        SettingError: a file that cannot be read, or holds something else, an unknown field or a wrong value.
    """
    own = dict(values)
    given = own.pop("settings", None)
    if given is None:
        return own
    if isinstance(given, Settings):
        return {
            item.name: value
            for item in dataclasses.fields(given)
            if (value := getattr(given, item.name)) != item.default
        } | own
    if isinstance(given, Mapping):
        return {**given, **own}
    if isinstance(given, str | os.PathLike):
        return {**_read(Path(given)), **own}
    raise SettingError(f"takes a file, a mapping or Settings, got {given!r}", subject="settings")


def _read(path: Path) -> dict[str, Any]:
    hint = 'pass a JSON file such as torch2trt tune writes, {"precision": "fp16"}'
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingError(f"cannot be read: {error}", subject=str(path), hint=hint) from error
    if not isinstance(found, dict):
        raise SettingError("holds no object of settings", subject=str(path), hint=hint)
    try:
        Settings.from_json(found)
    except SettingError as error:
        raise SettingError(error.reason, subject=f"{path}: {error.subject}", hint=error.hint) from error
    return found


def _check(name: str, value: Any, hint: Any) -> None:
    alternatives = get_args(hint) if type(None) in get_args(hint) else (hint,)
    for alternative in alternatives:
        if get_origin(alternative) is Literal:
            if value in get_args(alternative):
                return
        elif get_origin(alternative) is tuple:
            names = get_args(get_args(alternative)[0])
            if isinstance(value, tuple) and all(item in names if names else isinstance(item, str) for item in value):
                return
        elif alternative is float and isinstance(value, int | float) and not isinstance(value, bool):
            return
        elif alternative is int and isinstance(value, bool):
            continue
        elif isinstance(value, alternative):
            return
    wanted = " or ".join(_spell(alternative) for alternative in alternatives)
    raise SettingError(f"takes {wanted}, got {value!r}", subject=name)


def _spell(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(repr(value) for value in get_args(hint))
    if get_origin(hint) is tuple:
        return f"a list of {_spell(get_args(hint)[0])}"
    return "None" if hint is type(None) else str(hint.__name__)
