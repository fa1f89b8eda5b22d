"""A new gate and a new estimator, each a class of its own that the config takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import summary
from dicache_compile.rules import Estimator, Gate, Seen, SlotSpec
from tests import models
from tests.contract.test_contract import STEPS, assert_near, compiled, generate


@dataclass(frozen=True, slots=True)
class Interval(Gate):
    """Runs deep on every `period`-th step: a static gate, which counts what it has let through."""

    period: int

    def slots(self) -> tuple[SlotSpec, ...]:
        return (SlotSpec("count", "number", shared=True),)

    def measure(self, seen: Seen) -> Tensor:
        return torch.ones_like(seen.h.float().mean())

    def judge(self, seen: Seen) -> tuple[Tensor, Tensor]:
        count = seen.state["count"] + seen.error
        return count < self.period, count

    def settle(self, seen: Seen) -> dict[str, Tensor]:
        return {"count": torch.where(seen.reused, seen.error, torch.zeros_like(seen.error))}


@dataclass(frozen=True, slots=True)
class Reuse(Estimator):
    """y = x + R1: one tensor for each carried value."""

    def slots(self) -> tuple[SlotSpec, ...]:
        return (SlotSpec("last"),)

    def estimate(self, seen: Seen) -> Tensor:
        return seen.x.float() + seen.state["last"].float()

    def anchor(self, seen: Seen) -> dict[str, Tensor]:
        return {"last": seen.y.float() - seen.x.float()}


@pytest.mark.parametrize("engine", ["calls", "cond", "conditional"])
@pytest.mark.parametrize("kind", models.ALL)
def test_a_gate_and_an_estimator_of_ones_own(kind: type[models.Model], engine: str) -> None:
    model = models.make(kind)
    config = {"gate": Interval(3), "estimator": Reuse(), "max_consecutive_skips": None, "warmup_steps": 1}
    ours = generate(compiled(model, **config, engine=engine), model)

    theirs, residual = [], torch.zeros(())
    deep = [step % 3 == 0 for step in range(STEPS)]
    with torch.no_grad():
        for step in range(STEPS):
            carried = model.enter(*models.inputs(model, step, STEPS))
            x = carried["x"].clone()
            carried = model.run(carried, 0, 1)
            if deep[step]:
                carried = model.run(carried, 1, model.depth)
                residual = carried["x"] - x
            else:
                carried = {**carried, "x": x + residual}
            theirs.append(model.leave(carried))
    assert_near(ours, theirs)
    steps = summary(model).generations[-1].streams["0"]
    assert [step.deep for step in steps] == deep
    assert all(step.gamma is None for step in steps)


@pytest.mark.parametrize("convert", [lambda old: old, lambda old: old.float()])
def test_a_slot_that_takes_anothers_old_value_is_refused(convert: Any) -> None:
    class Shifting(Reuse):
        def slots(self) -> tuple[SlotSpec, ...]:
            return (*Reuse.slots(self), SlotSpec("before"))

        def anchor(self, seen: Seen) -> dict[str, Tensor]:
            return {**Reuse.anchor(self, seen), "before": convert(seen.state["last"])}

    model = models.make(models.SingleStream)
    with pytest.raises(Exception, match="takes another slot's old value as it is: give that one a history"):
        generate(compiled(model, estimator=Shifting()), model)


def test_slots_of_one_name_are_refused() -> None:
    class Clashing(Interval):
        def slots(self) -> tuple[SlotSpec, ...]:
            return (SlotSpec("index", "number", shared=True), *Interval.slots(self))

    model = models.make(models.SingleStream)
    with pytest.raises(Exception, match="two slots are named 'index'"):
        generate(compiled(model, gate=Clashing(3)), model)


def test_an_estimator_that_would_write_a_tensor_on_every_step_is_refused() -> None:
    class Rewriting(Reuse):
        def follow(self, seen: Seen) -> dict[str, Tensor]:
            return {"last": seen.x}

    model = models.make(models.TwoStream)
    call = compiled(model, estimator=Rewriting())
    with pytest.raises(Exception, match=r"Rewriting\.follow may return slots that are numbers, got last"):
        generate(call, model)
