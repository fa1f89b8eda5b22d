"""What a model holds besides its submodules and tensors: lists, dicts, sets, and objects such as attention processors.

They are changed in place, past every method of the model, so what is in them is compared. Of layers that keep books of
adapters, as peft's do, only the strengths are: their methods tell what else changes.

Not noticed: what is in the variables of a function, in the slots of a class, in a global, and which items a list of
more than LARGE has, as the vocabulary of a tokenizer may be.
"""

from __future__ import annotations

import argparse
import gc
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
    filled: tuple[Collection[Any], ...]
    sizes: list[int]
    seen: tuple[Collection[Any], ...]  # into which the garbage collector sees: five times as fast as iterating
    items: list[Any]
    others: tuple[Collection[Any], ...]
    others_items: list[Any]
    named: tuple[dict[str, Any], ...]  # whose keys the collector leaves out
    names: list[str]

    @classmethod
    def of(cls, parts: Sequence[Collection[Any]]) -> Contents:
        filled = tuple(filter(len, parts))
        small = tuple(part for part in filled if len(part) <= LARGE)
        named = tuple(part for part in small if isinstance(part, dict) and all(type(key) is str for key in part))
        seen = tuple(filter(_is_seen, small))
        others = tuple(view for part in small if not _is_seen(part) for view in _views(part))
        return cls(
            empty=tuple(part for part in parts if not part),
            filled=filled,
            sizes=list(map(len, filled)),
            seen=seen,
            items=gc.get_referents(*seen),
            others=others,
            others_items=list(chain.from_iterable(others)),
            named=named,
            names=list(chain.from_iterable(named)),
        )

    def are_same(self) -> bool:
        """Whether each one still is the same object."""
        if any(self.empty) or list(map(len, self.filled)) != self.sizes:
            return False
        if list(chain.from_iterable(self.named)) != self.names:
            return False
        items = gc.get_referents(*self.seen)
        if len(items) != len(self.items) or not all(map(operator.is_, items, self.items)):
            return False
        return all(map(operator.is_, chain.from_iterable(self.others), self.others_items))


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
            views = (view for part in own if len(part) <= LARGE for view in _views(part))
            todo += filter(_may_hold, chain.from_iterable(views))
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
    if isinstance(one, (dict, *_CONTAINERS)):
        yield one
    if isinstance(one, _NAMESPACES) or type(one).__module__.partition(".")[0] not in _OF_NOBODY:
        own = getattr(one, "__dict__", None)
        if isinstance(own, dict):
            yield own


def _views(part: Collection[Any]) -> tuple[Collection[Any], ...]:
    return (part, part.values()) if isinstance(part, dict) else (part,)


def _is_seen(part: Collection[Any]) -> bool:
    """Whether the garbage collector comes to all that is in it, but for names. From Python 3.13 on it comes to the
    attributes of some objects by another way.
    """
    *names, items = _views(part)
    wanted = (*items, *(name for name in chain.from_iterable(names) if type(name) is not str))
    return set(map(id, wanted)) <= set(map(id, gc.get_referents(part)))
