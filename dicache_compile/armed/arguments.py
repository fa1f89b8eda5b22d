"""What a model is called with: its tensors, of which forms, and what else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._C._dynamo.guards import TensorGuards

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
    repeated: tuple[tuple[int, int], ...]  # (place among the tensors, where the same one stands for the first time)
    single: tuple[int, ...]  # the other places
    guards: TensorGuards  # of these: all that compiled code goes by, and that no two are the same

    @classmethod
    def of(cls, form: _Form, tensors: Sequence[Tensor]) -> Arguments:
        places: dict[int, int] = {}
        for place, tensor in enumerate(tensors):
            places.setdefault(id(tensor), place)
        first = [places[id(tensor)] for tensor in tensors]
        guards = TensorGuards(
            *(tensors[place] for place in places.values()), dynamic_dims_sizes=None, dynamic_dims_strides=None
        )
        repeated = tuple((place, one) for place, one in enumerate(first) if place != one)
        return cls(form, repeated, tuple(places.values()), guards)

    def tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor] | None:
        """Those of a call, in order; None where its arguments are of another form."""
        found: list[Tensor] = []
        if not self.form.takes((args, kwargs), found):
            return None
        if not self.repeated:
            return found if self.guards.check(*found) else None
        same = all(found[place] is found[first] for place, first in self.repeated)
        return found if same and self.guards.check(*(found[place] for place in self.single)) else None


def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Arguments, list[Tensor]]:
    """(the form of these arguments, their tensors in order).

    Raises OtherArgumentError for what is neither a tensor, a constant, nor a tuple, list or dict of such.
    """
    form, found = _form((args, kwargs)), list[Tensor]()
    if not form.takes((args, kwargs), found):
        raise OtherArgumentError("a number that is not equal to itself")
    return Arguments.of(form, found), found


def _form(value: Any) -> _Form:
    kind = type(value)
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise OtherArgumentError(f"a tensor of layout {value.layout}")
        return _Tensor()
    if kind in CONSTANTS:
        return _Constant(value)
    if kind in (tuple, list):
        return _Items(kind, tuple(map(_form, value)))
    if kind is dict:
        return _Named(tuple(value), tuple(map(_form, value.values())))
    raise OtherArgumentError(f"an argument of type {kind.__name__}")


class _Tensor:
    """Any: all tensors of a call are checked at once."""

    def takes(self, value: Any, found: list[Tensor]) -> bool:
        found.append(value)
        return True


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
