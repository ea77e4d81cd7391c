"""PyTorch's own operator samples as a second source of rows: each is computed right, or refused with a reason."""

from __future__ import annotations

import functools
import itertools
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tests import worker as processes
from tests.harness import OpCase, OpModule, check_case, operators_reached, truth
from torch2trt.errors import ContractError, InterpreterError, NetworkError, Torch2TRTError

with warnings.catch_warnings():
    # They import whatever is there, numba among it, whose warnings are its own.
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.opinfo.core import OpInfo, SampleInput

# Importing the samples forbids setting torch's switches for good, and other tests set them.
torch.backends.m.__allow_nonbracketed_mutation_flag = True  # type: ignore[attr-defined]

Status = Literal["right", "refused", "skipped", "wrong", "crash", "hang"]

# Times the dtype's own: samples cancel and amplify at will.
TOLERANCE = 20.0


@dataclass(frozen=True)
class Outcome:
    """What became of one sample: ``skipped`` has no true result, and from ``wrong`` on it is a defect."""

    op: str
    dtype: str
    sample: int
    status: Status
    detail: str = ""
    operators: tuple[str, ...] = ()
    """What was in its graphs, see :func:`operators_reached`."""

    @property
    def is_defect(self) -> bool:
        return self.status in ("wrong", "crash", "hang")


Check = Callable[[str, str, int, SampleInput], Outcome]


def _name(op: OpInfo) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else str(op.name)


def _samples(op: OpInfo, dtype: torch.dtype) -> Iterator[SampleInput]:
    # `op.sample_inputs` also searches the stack for the test that asks, which takes longer than most samples.
    return iter(op.sample_inputs_func(op, "cpu", dtype, False))


class _Ran(TorchDispatchMode):
    """Notes which ATen operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.add(func)
        return func(*args, **(kwargs or {}))


def _is_core(op: OpInfo) -> bool:
    """Whether an operator is named after one of the Core ATen opset, or its first sample runs such ones alone."""
    packet = getattr(torch.ops.aten, op.aten_name or "", None)
    if packet is not None and any(torch.Tag.core in getattr(packet, name).tags for name in packet.overloads()):
        return True
    # Jiterator's are compiled for a GPU.
    if not op.supports_dtype(torch.float32, "cpu") or op.name.startswith("jiterator"):
        return False
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sample = next(_samples(op, torch.float32))
        with _Ran() as ran:
            op.op(sample.input, *sample.args, **sample.kwargs)
    return bool(ran.operators) and all(torch.Tag.core in operator.tags for operator in ran.operators)


OPS: dict[str, OpInfo] = {_name(op): op for op in op_db if _is_core(op)}
"""The operators of the Core ATen opset, by name and variant: ``nn.functional.pad.constant``."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "int64": torch.int64, "bool": torch.bool}


def samples(name: str, dtype: str, limit: int | None) -> list[SampleInput]:
    """An operator's first samples, the same in every run."""
    torch.manual_seed(0)
    return list(itertools.islice(_samples(OPS[name], DTYPES[dtype]), limit))


def _topk(x: torch.Tensor, k: int, dim: int = -1, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    values, indices = torch.topk(x, k, dim, *args)
    return values, x.gather(dim, indices)


def _sort(x: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    values, indices = torch.sort(x, *args, **kwargs)
    return values, indices if kwargs.get("stable") else x.gather(kwargs.get("dim", args[0] if args else -1), indices)


def _argsort(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    indices = torch.argsort(x, *args, **kwargs)
    return indices if kwargs.get("stable") else x.gather(kwargs.get("dim", args[0] if args else -1), indices)


def _written(name: str) -> Callable[..., torch.Tensor]:
    """A function whose result holds anything, and is then written."""
    return lambda *args, **kwargs: OPS[name].op(*args, **kwargs).fill_(1)


# Which of equal elements come first is nobody's promise: what counts is that they are where the indices say.
_INSTEAD = {"topk": _topk, "sort": _sort, "argsort": _argsort}
_INSTEAD |= {name: _written(name) for name in OPS if name.startswith(("empty", "new_empty"))}


def _in_real_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with pairs in the place of complex results, which no engine returns."""

    def real(tensor: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor

    return lambda *args, **kwargs: pytree.tree_map_only(torch.Tensor, real, function(*args, **kwargs))


def _beside_another(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with one more argument, of which something else is computed."""
    return lambda beside, *args, **kwargs: (function(*args, **kwargs), beside.neg())


# Why a row says rtx="no runner", in the words of the refusal.
_NO_RUNNER = "has a runner"


def _case_of(name: str, sample: SampleInput) -> OpCase:
    function = _in_real_numbers(_INSTEAD.get(name, OPS[name].op))
    case = OpCase(name, function, (sample.input, *sample.args), sample.kwargs, tolerance=TOLERANCE)
    if OpModule(case).inputs:
        return case
    # What makes a tensor of none is a part of modules that have inputs, and an engine takes at least one.
    return replace(case, function=_beside_another(function), args=(torch.ones(1), *case.args))


def check_sample(name: str, dtype: str, index: int, sample: SampleInput) -> Outcome:
    """Take one sample through every stage, as any other row.

    Where TensorRT-RTX has no runner for a layer, it is checked as rows that say so are: its network is the one that
    enterprise TensorRT is given.
    """
    case = _case_of(name, sample)
    module = OpModule(case)
    leaves = pytree.tree_leaves((tuple(case.args), dict(case.kwargs)))
    try:
        truth(module, tuple(leaves[position] for position in module.inputs))
    except Exception as error:  # whatever eager cannot do in float64
        return Outcome(name, dtype, index, "skipped", f"{type(error).__name__}: {error}"[:1000])
    status, detail, operators = outcome_of(case)
    if status == "refused" and _NO_RUNNER in detail:
        status, detail, operators = outcome_of(replace(case, rtx=_NO_RUNNER))
    return Outcome(name, dtype, index, status, detail, operators)


def outcome_of(case: OpCase) -> tuple[Status, str, tuple[str, ...]]:
    """Take a row through every stage: what becomes of it, why, and which operators its graphs had."""
    status: Status = "right"
    detail = ""
    with operators_reached() as reached:
        try:
            check_case(case)
        except (ContractError, InterpreterError, NetworkError) as error:
            status, detail = "wrong", str(error)
        except Torch2TRTError as error:
            status, detail = "refused", str(error)
        except Exception as error:  # a mismatch, or what should have been refused by name
            status, detail = "wrong", f"{type(error).__name__}: {error}"
    return status, detail[:1000], tuple(sorted(reached))


class Worker:
    """A process that checks samples; where TensorRT takes it down or never returns, that costs one sample.

    Args:
        check: what to do with each.
        patience: after so many seconds, a sample hangs.
    """

    def __init__(self, check: Check = check_sample, patience: float = 120.0) -> None:
        self._process = processes.Worker(functools.partial(_work, check), patience)

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def check(self, name: str, dtype: str, limit: int | None = None) -> list[Outcome]:
        """Check an operator's first samples, or all."""
        outcomes: list[Outcome] = []
        while True:
            try:
                for outcome in self._process.results(name, dtype, limit, len(outcomes)):
                    outcomes.append(outcome)
            except processes.LostError as lost:
                outcomes.append(Outcome(name, dtype, len(outcomes), lost.how, lost.detail))
            else:
                return outcomes


def _work(check: Check, name: str, dtype: str, limit: int | None, first: int) -> Iterator[Outcome]:
    for index, sample in enumerate(samples(name, dtype, limit)):
        if index >= first:
            yield check(name, dtype, index, sample)


# Results in a file, one JSON line a sample ----------------------------------------------------------------------------


def append(path: Path, outcomes: list[Outcome]) -> None:
    """Add an operator's outcomes in one write, so that several processes may share the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("".join(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes))


def recorded(path: Path) -> list[Outcome]:
    """The outcomes in a file, the last of each sample."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = (Outcome(**json.loads(line)) for line in lines)
    return list({(outcome.op, outcome.dtype, outcome.sample): outcome for outcome in found}.values())


def _count(path: Path) -> None:
    counts: Counter[tuple[str, str]] = Counter((outcome.dtype, outcome.status) for outcome in recorded(path))
    for (dtype, status), count in sorted(counts.items()):
        print(f"{dtype:10}{status:10}{count:6}")


if __name__ == "__main__":
    _count(Path(sys.argv[1]))
