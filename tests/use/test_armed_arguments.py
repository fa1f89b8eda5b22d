"""Which calls are of the same form, for a step that goes straight to what is compiled."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile.armed.arguments import OtherArgumentError, read


class Own(Tensor):
    """A type of tensors of somebody's own."""


def arguments(seed: int = 0) -> dict[str, Any]:
    random = torch.Generator().manual_seed(seed)
    states, mask = (torch.randn(2, 6, 4, generator=random) for _ in range(2))
    return {"states": states, "more": (mask, 2.0), "named": {"a": states, "b": mask[0]}, "flag": True}


OTHERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "one fewer": lambda given: {name: value for name, value in given.items() if name != "flag"},
    "one more": lambda given: {**given, "scale": 1.0},
    "another order": lambda given: dict(reversed(given.items())),
    "shape": lambda given: {**given, "states": given["states"][:, :5]},
    "strides": lambda given: {**given, "more": (given["more"][0].mT.contiguous().mT, 2.0)},
    "dtype": lambda given: {**given, "more": (given["more"][0].double(), 2.0)},
    "device": lambda given: {**given, "more": (given["more"][0].to("meta"), 2.0)},
    "type": lambda given: {**given, "more": (given["more"][0].as_subclass(Own), 2.0)},
    "parameter": lambda given: {**given, "more": (torch.nn.Parameter(given["more"][0]), 2.0)},
    "gradients": lambda given: {**given, "more": (given["more"][0].requires_grad_(), 2.0)},
    "negated": lambda given: {**given, "more": (torch._neg_view(given["more"][0]), 2.0)},
    "none for a tensor": lambda given: {**given, "more": (None, 2.0)},
    "a number for a tensor": lambda given: {**given, "more": (1.0, 2.0)},
    "a tensor for a number": lambda given: {**given, "more": (given["more"][0], torch.tensor(2.0))},
    "number": lambda given: {**given, "more": (given["more"][0], 3.0)},
    "a number's type": lambda given: {**given, "flag": 1},
    "a list": lambda given: {**given, "more": list(given["more"])},
    "two where there was one": lambda given: {**given, "named": {**given["named"], "a": given["states"].clone()}},
    "one where there were two": lambda given: {**given, "more": (given["states"], 2.0)},
    "sparse": lambda given: {**given, "more": (given["more"][0].to_sparse(), 2.0)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_arguments_of_another_form_are_told(name: str) -> None:
    form, _ = read((), arguments())
    assert form.tensors((), OTHERS[name](arguments(1))) is None
    assert form.tensors((torch.zeros(()),), arguments(1)) is None


def alone(given: dict[str, Any]) -> dict[str, Any]:
    """The same arguments with no tensor in two places."""
    return {name: value for name, value in given.items() if name != "named"}


@pytest.mark.parametrize("name", [name for name in OTHERS if not name.startswith("two")])
def test_so_they_are_where_no_tensor_is_passed_twice(name: str) -> None:
    form, _ = read((), alone(arguments()))
    assert form.tensors((), alone(arguments(1))) is not None
    assert form.tensors((), alone(OTHERS[name](arguments(1)))) is None


def test_arguments_of_the_same_form_give_their_tensors_in_order() -> None:
    form, first = read((), arguments())
    given = arguments(1)
    found = form.tensors((), given)
    assert found is not None
    expected: list[Tensor] = [given["states"], given["more"][0], given["states"], given["named"]["b"]]
    assert [id(one) for one in found] == [id(one) for one in expected]
    assert len(first) == len(found)


def test_no_tensor_is_kept_alive() -> None:
    given = arguments()
    seen = weakref.ref(given["states"])
    form, _ = read((), given)
    del given, _
    assert seen() is None
    assert form.tensors((), arguments(1)) is not None


@pytest.mark.parametrize("value", [torch.eye(3).to_sparse(), object(), float("nan")])
def test_what_compiled_code_may_take_anyhow_is_refused(value: object) -> None:
    with pytest.raises(OtherArgumentError):
        read((value,), {})
