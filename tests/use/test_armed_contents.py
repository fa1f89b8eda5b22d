"""What a model holds besides modules and tensors: a change in mid-generation is seen, though steps go straight."""

from __future__ import annotations

import argparse
import logging
import types
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dicache_compile import enable_cache, explain, generation
from dicache_compile.armed import Armed
from dicache_compile.armed.doors import watch
from tests import models
from tests.use.test_armed import STEPS, arguments, often, plainly

pytestmark = pytest.mark.filterwarnings("ignore:the model was compiled again", "ignore:[0-9]+ of the last")


class Scale:
    """As attention processors are: no module, and called by one."""

    def __init__(self) -> None:
        self.factor = 1.0
        self.inner = argparse.Namespace(offset=0.0)

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.factor + self.inner.offset


class Beside(nn.Module):
    """Takes the place of a layer's forward, as trainers of LoRAs do, and is no submodule of the model."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.multiplier = 0.5
        self.down, self.inner = nn.Linear(16, 16), layer.forward

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.multiplier * self.down(x)


class Holder(models.SingleStream):
    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.log = logging.getLogger(__name__)
        self.scale, self.apart = Scale(), types.SimpleNamespace(factor=1.0)
        self.numbers, self.names, self.kinds = [1.0, 1.0], {"a": 1.0}, {"plain"}
        self.nested, self.queue = ({"b": [1.0]},), deque([1.0])
        self.tensors = [torch.ones(16)]
        self.hidden = [nn.Linear(16, 16)]
        self.layer = nn.Linear(16, 16)
        self.beside = (Beside(self.layer),)
        self.layer.forward = self.beside[0].forward  # type: ignore[method-assign]
        self.hook = Scale()
        self.unembed.register_forward_hook(lambda module, args, result: self.hook(result))

    def run(self, carried: models.Carried, first: int, last: int) -> models.Carried:
        found = super().run(carried, first, last)
        x = self.scale(found["x"]) * self.apart.factor * self.numbers[0] * self.names["a"] + self.tensors[0]
        x = (x * self.nested[0]["b"][0] * self.queue[0]).sin() if "wavy" in self.kinds else x * self.nested[0]["b"][0]
        return {**found, "x": self.layer(self.hidden[0](x)) * self.queue[0]}


CHANGES: dict[str, Callable[[Any], Any]] = {
    "an object": lambda model: setattr(model.scale, "factor", 2.0),
    "an object of an object": lambda model: setattr(model.scale.inner, "offset", 2.0),
    "a namespace": lambda model: setattr(model.apart, "factor", 2.0),
    "an object that a hook calls": lambda model: setattr(model.hook, "factor", 2.0),
    "a list": lambda model: model.numbers.__setitem__(0, 2.0),
    "a dict": lambda model: model.names.update(a=2.0),
    "a set": lambda model: model.kinds.add("wavy"),
    "a deque": lambda model: model.queue.appendleft(2.0),
    "a list inside of a dict": lambda model: model.nested[0]["b"].insert(0, 2.0),
    "a tensor in a list": lambda model: model.tensors.__setitem__(0, torch.zeros(16)),
    "a module in a list": lambda model: model.hidden.__setitem__(0, nn.Linear(16, 16).requires_grad_(False)),
    "a weight of a module in a list": lambda model: setattr(model.hidden[0], "bias", None),
    "a module behind a layer": lambda model: setattr(model.beside[0], "multiplier", 0.25),
}


def armed_model(kind: type[models.Model] = Holder) -> tuple[Any, Armed]:
    model = models.make(kind)
    for module in (*model.hidden, *model.beside) if isinstance(model, Holder) else ():
        module.requires_grad_(False)
    enable_cache(model, threshold=0.0, streams=1, compile=False, strict=False)
    assert isinstance(model._compiled_call_impl, Armed)
    return model, model._compiled_call_impl


@torch.no_grad()
def test_a_model_that_holds_many_things_goes_straight() -> None:
    model, armed = armed_model()
    for _ in range(2):
        with generation(num_steps=STEPS):
            for step in range(STEPS):
                given = arguments(model, step)
                assert torch.equal(model(**given), plainly(model, **given))
    assert armed.calls == 2 * STEPS - 2
    assert explain(model).host_reason is None


@pytest.mark.parametrize("name", CHANGES)
def test_a_watch_notices_what_changes_in_what_a_model_holds(name: str) -> None:
    model, other = models.make(Holder), models.make(Holder)
    opened = watch(model)
    try:
        CHANGES[name](other)
        assert opened.change() is None
        CHANGES[name](model)
        assert opened.change() is not None
    finally:
        opened.close()


@torch.no_grad()
@pytest.mark.parametrize("name", [*often(CHANGES, 2)])
def test_a_change_in_mid_generation_of_what_a_model_holds_is_seen_at_once(name: str) -> None:
    model, armed = armed_model()
    with generation(num_steps=STEPS):
        for step in range(STEPS):
            given = arguments(model, step)
            if step == 3:
                before = plainly(model, **given)
                CHANGES[name](model)
                assert not torch.equal(plainly(model, **given), before)
            assert torch.equal(model(**given), plainly(model, **given)), f"step {step}"
    assert armed.calls == 2
    assert "host       torch.compile checks the model before every step: the model was changed" in str(explain(model))


@torch.no_grad()
def test_weights_that_functional_call_brings_are_those_that_are_used() -> None:
    model, armed = armed_model(models.SingleStream)
    half = {name: weight / 2 for name, weight in model.named_parameters()}
    other = models.make(models.SingleStream)
    other.load_state_dict(half)
    with generation(num_steps=STEPS):
        for step in range(STEPS):
            given = arguments(model, step)
            if step == 3:
                found = torch.func.functional_call(model, half, (), given)
                assert torch.equal(found, other(**given))
            else:
                assert torch.equal(model(**given), plainly(model, **given))
    assert armed.calls == 2


def test_a_watch_notices_that_weights_are_to_be_trained() -> None:
    model = models.make(models.SingleStream)
    opened = watch(model)
    try:
        model.blocks[1].requires_grad_(True)
        assert opened.change() == "requires_grad_ of a Block"
    finally:
        opened.close()
