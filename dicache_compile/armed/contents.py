"""What a model holds besides its submodules and tensors: lists, dicts, sets, and objects such as attention processors.

They are changed in place, past every method of the model, so what is in them is compared. Of layers that keep books of
adapters, as peft's do, only the strengths are: their methods tell what else changes.

Not noticed: what is in the variables of a function, in the slots of a class, in a global, and which items a list of
more than LARGE has, as the vocabulary of a tokenizer may be.
"""

from __future__ import annotations

import argparse
import operator
import sys
import types
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor, nn

LARGE = 1000

_OF_EVERY_MODULE = frozenset((*vars(nn.Module()), "_compiled_call_impl"))
_HOLD_NOTHING = frozenset((type(None), bool, int, float, complex, str, bytes))
_CONTAINERS = (list, set, deque)
_NAMESPACES = (types.SimpleNamespace, argparse.Namespace)
# Packages whose objects no model changes.
_OF_NOBODY = frozenset(("torch", __name__.partition(".")[0], *sys.stdlib_module_names))


@dataclass(frozen=True, slots=True)
class Contents:
    """What was in them when this was made."""

    empty: tuple[Collection[Any], ...]  # as nearly all attention processors are
    filled: tuple[Collection[Any], ...]  # the lists themselves; of a dict its keys, and its values
    sizes: list[int]
    small: tuple[Collection[Any], ...]  # which of these are compared one by one
    items: tuple[Any, ...]

    @classmethod
    def of(cls, parts: Sequence[Collection[Any]]) -> Contents:
        filled = tuple(filter(len, parts))
        small = tuple(part for part in filled if len(part) <= LARGE)
        return cls(
            empty=tuple(part for part in parts if not part),
            filled=filled,
            sizes=list(map(len, filled)),
            small=small,
            items=tuple(chain.from_iterable(small)),
        )

    def are_same(self) -> bool:
        """Whether each one still is the same object."""
        if any(self.empty) or list(map(len, self.filled)) != self.sizes:
            return False
        return all(map(operator.is_, chain.from_iterable(self.small), self.items))


def contents(model: nn.Module) -> tuple[Contents, tuple[nn.Module, ...]]:
    """(what a model holds, its modules and those that it has without their being submodules)."""
    seen: dict[int, Any] = {}  # what was looked into, by its id
    parts: list[Collection[Any]] = []
    todo: list[Any] = [model]
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        if isinstance(one, nn.Module):
            todo += _held(one)
        elif isinstance(one, types.MethodType):
            todo.append(one.__self__)
        elif isinstance(one, tuple):
            todo += filter(_may_hold, one)
        else:
            own = tuple(_parts(one))
            parts += own
            todo += filter(_may_hold, chain.from_iterable(part for part in own if len(part) <= LARGE))
    return Contents.of(parts), tuple(one for one in seen.values() if isinstance(one, nn.Module))


def _may_hold(value: Any) -> bool:
    return type(value) not in _HOLD_NOTHING and not isinstance(value, (Tensor, type, types.ModuleType))


def _held(module: nn.Module) -> list[Any]:
    """What a module has of its own that may hold something, but for its tensors."""
    own = vars(module)
    found = [inner for inner in own["_modules"].values() if inner is not None]
    if own["_forward_hooks"] or own["_forward_pre_hooks"]:
        found += filter(_may_hold, (*own["_forward_hooks"].values(), *own["_forward_pre_hooks"].values()))
    if hasattr(type(module), "set_scale"):  # a layer with adapters: a dozen dicts, of a model's hundreds of layers
        found.append(own.get("scaling", ()))
    elif not isinstance(module, nn.ParameterDict):  # which notes its own keys
        rest = [value for name, value in own.items() if name not in _OF_EVERY_MODULE]
        found += filter(_may_hold, rest)
    return found


def _parts(one: Any) -> Iterator[Collection[Any]]:
    """Where something that is no module has what it holds."""
    if isinstance(one, dict):
        yield from (one, one.values())
    elif isinstance(one, _CONTAINERS):
        yield one
    if isinstance(one, _NAMESPACES) or type(one).__module__.partition(".")[0] not in _OF_NOBODY:
        own = getattr(one, "__dict__", None)
        if isinstance(own, dict):
            yield own if not own else own.values()
