"""What calls yield, as fake tensors, computed once for each form of their arguments.

Torch takes a third of a millisecond for one call on fake tensors, and a network has the same calls over and over: the
norms of one width, the blocks of one stage. What such a call yields depends on the forms of its arguments alone.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

# Whose fake kernels see nothing but their arguments; what others look at only they can tell.
_NAMESPACES = frozenset({"aten", "prims", "torch2trt"})
_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format)

_results: weakref.WeakKeyDictionary[FakeTensorMode, dict[Any, _Result]] = weakref.WeakKeyDictionary()


class _NoFormError(Exception):
    """An argument is more than its form."""


@dataclass(frozen=True)
class _Form:
    """All that there is to a fake tensor of static sizes, apart from its memory."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool
    owner: int | None = None
    """Which of the tensors among the arguments it is a view of."""

    @classmethod
    def of(cls, value: torch.Tensor, owner: int | None = None) -> _Form:
        """The form of a tensor.

        Raises:
            _NoFormError: it has dynamic sizes, elements that are known, or is stored in another way.
        """
        if (
            type(value) is not FakeTensor
            or value._has_symbolic_sizes_strides
            or value.constant is not None
            or value.layout is not torch.strided
            or value.is_conj()
            or value.is_neg()
        ):
            raise _NoFormError
        offset = int(value.storage_offset())
        place = tuple(value.shape), value.stride(), offset
        return cls(*place, value.dtype, value.fake_device, value.requires_grad, owner)

    @property
    def is_new(self) -> bool:
        """Whether it has memory of its own."""
        return self.owner is None

    def make(self, mode: FakeTensorMode, tensors: Sequence[torch.Tensor]) -> FakeTensor:
        """A new tensor of this form.

        Args:
            tensors: those among the arguments.
        """
        with torch._C._DisableTorchDispatch():
            if self.owner is None:
                made = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")
            else:
                made = torch.empty(0, dtype=self.dtype, device="meta")
                made.set_(tensors[self.owner].untyped_storage(), self.offset, self.shape, self.stride)
            return FakeTensor(mode, made.requires_grad_(self.requires_grad), self.device)


@dataclass(frozen=True)
class _Result:
    """The forms of what a call yields."""

    forms: tuple[_Form, ...]
    kind: type[list[Any]] | type[tuple[Any, ...]] | None
    """Of several tensors; None: it is one."""


class Call:
    """A call of an operator on values, of which the result may be known.

    Args:
        mode: of the fake tensors among them.
    """

    def __init__(self, mode: Any, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._mode = mode
        self._tensors: list[torch.Tensor] = []
        self._key: Any = None
        if isinstance(target, torch._ops.OpOverload) and target.namespace in _NAMESPACES:
            try:
                self._key = (target, *self._forms(args), *zip(kwargs, self._forms(kwargs.values()), strict=True))
            except _NoFormError:
                return

    def result(self) -> Any:
        """What the call yields, or None where it is not known."""
        found = None if self._key is None else _results.get(self._mode, {}).get(self._key)
        if found is None:
            return None
        made = [form.make(self._mode, self._tensors) for form in found.forms]
        return made[0] if found.kind is None else found.kind(made)

    def keep(self, result: Any) -> None:
        """Note what the call yields, if it is tensors with nothing to them but their forms."""
        if self._key is None:
            return
        kind = type(result) if type(result) in (list, tuple) else None
        values = [result] if kind is None else result
        with contextlib.suppress(_NoFormError):
            forms = tuple(map(self._form_of_result, values))
            own = [value.untyped_storage()._cdata for value, form in zip(values, forms, strict=True) if form.is_new]
            if len(own) == len(set(own)):
                _results.setdefault(self._mode, {})[self._key] = _Result(forms, kind)

    def _form_of_result(self, value: Any) -> _Form:
        if type(value) is not FakeTensor or any(value is tensor for tensor in self._tensors):
            raise _NoFormError
        storages = [tensor.untyped_storage()._cdata for tensor in self._tensors]
        own = value.untyped_storage()._cdata
        form = _Form.of(value, storages.index(own) if own in storages else None)
        # Where two arguments share memory, there is no telling whose view it is.
        if storages.count(own) > 1 or (form.is_new and form.offset):
            raise _NoFormError
        return form

    def _forms(self, values: Iterable[Any]) -> tuple[Any, ...]:
        return tuple(map(self._form, values))

    def _form(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            self._tensors.append(value)
            return _Form.of(value)
        if isinstance(value, list | tuple):
            return (list, *self._forms(value))
        if type(value) in _PLAIN:
            # 1, 1.0 and True are equal, and lead to other dtypes.
            return type(value), value
        raise _NoFormError
