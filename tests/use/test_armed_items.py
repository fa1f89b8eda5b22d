"""What is in lists, dicts, sets and objects is compared, each item as the object that it is."""

from __future__ import annotations

import argparse
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dicache_compile.armed.contents import Contents, contents


class Own(list[int]):
    """A list with attributes."""


class Plain:
    """An object with attributes."""

    def __init__(self) -> None:
        self.a, self.b = 1.0, 2.0


def moved(one: dict[Any, Any], old: object, new: object) -> None:
    """The same value under another key, in the same place."""
    items = [(new if key == old else key, value) for key, value in one.items()]
    one.clear()
    one.update(items)


def replaced(one: list[Any], value: object) -> None:
    one[0] = value


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "an item": (lambda: [1, 2], lambda one: replaced(one, 3)),
    "an equal item of another type": (lambda: [1, 2], lambda one: replaced(one, True)),
    "an equal object": (lambda: [float("2.5")], lambda one: replaced(one, float("2.5"))),
    "an equal tensor": (lambda: [torch.ones(())], lambda one: replaced(one, torch.ones(()))),
    "a tensor for a number": (lambda: [1.0], lambda one: replaced(one, torch.ones(()))),
    "a tensor of many for a number": (lambda: [1.0], lambda one: replaced(one, torch.ones(3))),
    "the order": (lambda: [1, 2], lambda one: one.reverse()),
    "one more": (lambda: [1, 2], lambda one: one.append(3)),
    "one fewer": (lambda: [1, 2], lambda one: one.pop()),
    "one of an empty list": (list, lambda one: one.append(3)),
    "one of an empty dict": (dict, lambda one: one.update(a=1)),
    "a value": (lambda: {"a": 1, "b": 2}, lambda one: one.update(a=3)),
    "an equal value of another type": (lambda: {"a": 1}, lambda one: one.update(a=1.0)),
    "a key": (lambda: {"a": 1, "b": 2}, lambda one: moved(one, "a", "c")),
    "a key for a tensor": (lambda: {"a": 1, "b": 2}, lambda one: moved(one, "a", torch.ones(2))),
    "a key that is a number": (lambda: {1: 1, "b": 2}, lambda one: moved(one, 1, 2)),
    "the order of keys": (lambda: {"a": 1, "b": 1}, lambda one: one.update(a=one.pop("a"))),
    "an ordered dict": (lambda: OrderedDict(a=1, b=2), lambda one: one.update(a=2)),
    "the order of an ordered dict": (lambda: OrderedDict(a=1, b=1), lambda one: one.move_to_end("a")),
    "a set": (lambda: {1, 2}, lambda one: (one.discard(1), one.add(3))),
    "a deque": (lambda: deque([1, 2]), lambda one: one.rotate()),
    "a list of a class": (lambda: Own([1, 2]), lambda one: replaced(one, 3)),
    "an attribute": (Plain, lambda one: setattr(one, "a", 1)),
    "an attribute's name": (Plain, lambda one: moved(vars(one), "a", "c")),
    "another attribute": (Plain, lambda one: setattr(one, "c", 1)),
    "a namespace": (lambda: argparse.Namespace(a=1), lambda one: setattr(one, "a", 1.0)),
    "one of a large list": (lambda: list(range(2000)), lambda one: one.append(3)),
}


def held(thing: object) -> Contents:
    model = nn.Module()
    model.thing = thing  # type: ignore[assignment]
    return contents(model)[0]


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_noticed(name: str) -> None:
    make, change = CHANGES[name]
    thing = make()
    before = held(thing)
    assert before.are_same()
    change(thing)
    assert not before.are_same()


def test_looking_and_changing_back_change_nothing() -> None:
    things = [Plain(), {"a": [1, 2]}, Own([1]), deque([1])]
    before = held(things)
    for one in things:
        repr(one), vars(one) if hasattr(one, "__dict__") else None, list(one) if isinstance(one, list) else None
    things[1]["a"][0], kept = 5, things[1]["a"][0]  # type: ignore[index]
    assert not before.are_same()
    things[1]["a"][0] = kept  # type: ignore[index]
    assert before.are_same()
