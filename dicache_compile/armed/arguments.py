"""What a model is called with: its tensors, of which forms, and what else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

CONSTANTS = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device, torch.Size)


class OtherArgumentError(Exception):
    """An argument of which nobody knows what compiled code makes of it."""


class _Form(Protocol):
    def takes(self, value: Any, found: list[Tensor]) -> bool:
        """Whether a value is of this form; its tensors are added to `found`, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Arguments:
    """The form of a call's arguments."""

    form: _Form
    places: tuple[int, ...]  # for each tensor: where it stands among them for the first time

    def tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor] | None:
        """Those of a call, in order; None where its arguments are of another form."""
        found: list[Tensor] = []
        if not self.form.takes((args, kwargs), found) or _places(found) != self.places:
            return None
        return found


def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Arguments, list[Tensor]]:
    """(the form of these arguments, their tensors in order).

    Raises OtherArgumentError for what is neither a tensor, a constant, nor a tuple, list or dict of such.
    """
    form, found = _form((args, kwargs)), list[Tensor]()
    if not form.takes((args, kwargs), found):
        raise OtherArgumentError("a number that is not equal to itself")
    return Arguments(form, _places(found)), found


def _form(value: Any) -> _Form:
    kind = type(value)
    if isinstance(value, Tensor):
        keys = torch._C._dispatch_keys(value)
        return _Tensor(kind, value.shape, value.stride(), value.dtype, value.device, value.requires_grad, keys)
    if kind in CONSTANTS:
        return _Constant(value)
    if kind in (tuple, list):
        return _Items(kind, tuple(map(_form, value)))
    if kind is dict:
        return _Named(tuple(value), tuple(map(_form, value.values())))
    raise OtherArgumentError(f"an argument of type {kind.__name__}")


def _places(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    known: dict[int, int] = {}
    return tuple(known.setdefault(id(tensor), place) for place, tensor in enumerate(tensors))


@dataclass(frozen=True, slots=True)
class _Tensor:
    """All that compiled code goes by."""

    kind: Any  # its type
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool
    keys: Any  # of dispatch: whether it is conjugated, say, or inside of a transform

    def takes(self, value: Any, found: list[Tensor]) -> bool:
        found.append(value)
        return (
            type(value) is self.kind
            and value.shape == self.shape
            and value.stride() == self.stride
            and value.dtype is self.dtype
            and value.device == self.device
            and value.requires_grad is self.requires_grad
            and torch._C._dispatch_keys(value) == self.keys
        )


@dataclass(frozen=True, slots=True)
class _Constant:
    value: Any

    def takes(self, value: Any, found: list[Tensor]) -> bool:
        if type(value) is not type(self.value) or value != self.value:
            return False
        return type(value) is not float or math.copysign(1, value) == math.copysign(1, self.value)


@dataclass(frozen=True, slots=True)
class _Items:
    kind: Any  # its type
    forms: tuple[_Form, ...]

    def takes(self, value: Any, found: list[Tensor]) -> bool:
        return type(value) is self.kind and len(value) == len(self.forms) and _all_take(self.forms, value, found)


@dataclass(frozen=True, slots=True)
class _Named:
    """A dict. The order counts, as a model may go through it."""

    names: tuple[Any, ...]
    forms: tuple[_Form, ...]

    def takes(self, value: Mapping[Any, Any], found: list[Tensor]) -> bool:
        return type(value) is dict and tuple(value) == self.names and _all_take(self.forms, value.values(), found)


def _all_take(forms: Iterable[_Form], values: Iterable[Any], found: list[Tensor]) -> bool:
    return all(form.takes(value, found) for form, value in zip(forms, values, strict=True))
