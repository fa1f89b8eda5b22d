"""A new gate and a new estimator, each a class of its own that the config takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import summary
from dicache_compile.policy import SlotSpec, State
from tests import models
from tests.contract.test_contract import STEPS, assert_near, compiled, generate


@dataclass(frozen=True, slots=True)
class Interval:
    """Runs deep on every `period`-th step: a static gate, which counts what it has let through."""

    period: int

    def slots(self) -> tuple[SlotSpec, ...]:
        return (SlotSpec("count", per_stream=False, scalar=True),)

    def measure(self, x: Tensor, h: Tensor, state: State) -> Tensor:
        return torch.ones_like(h.float().mean())

    def follow(self, x: Tensor, h: Tensor, reuse: Tensor, state: State) -> dict[str, Tensor]:
        return {}

    def judge(self, error: Tensor, state: State) -> tuple[Tensor, Tensor]:
        count = state["count"] + error
        return count < self.period, count

    def settle(self, compared: Tensor, reuse: Tensor, state: State) -> dict[str, Tensor]:
        return {"count": torch.where(reuse, compared, torch.zeros_like(compared))}


@dataclass(frozen=True, slots=True)
class Reuse:
    """y = x + R1, or h + (y - h) where `base` is "h": one tensor a stream."""

    base: str = "x"

    def slots(self) -> tuple[SlotSpec, ...]:
        return (SlotSpec("last", per_stream=True, scalar=False),)

    def weigh(self, x: Tensor, h: Tensor, anchors: Tensor, state: State) -> Tensor:
        return torch.full_like(x.float().mean(), float("nan"))

    def estimate(self, x: Tensor, gamma: Tensor, anchors: Tensor, state: State) -> Tensor:
        return x.float() + state["last"].float()

    def anchor(self, x: Tensor, h: Tensor, y: Tensor, state: State) -> dict[str, Tensor]:
        return {"last": y.float() - x.float()}


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
            return (*Reuse.slots(self), SlotSpec("before", per_stream=True, scalar=False))

        def anchor(self, x: Tensor, h: Tensor, y: Tensor, state: State) -> dict[str, Tensor]:
            return {"last": y.float() - x.float(), "before": convert(state["last"])}

    model = models.make(models.SingleStream)
    with pytest.raises(Exception, match="takes another slot's old value as it is: give that one a history"):
        generate(compiled(model, estimator=Shifting()), model)


def test_slots_of_one_name_are_refused() -> None:
    class Clashing(Reuse):
        def slots(self) -> tuple[SlotSpec, ...]:
            return (SlotSpec("index", per_stream=False, scalar=True), *Reuse.slots(self))

    model = models.make(models.SingleStream)
    with pytest.raises(Exception, match="two slots are named 'index'"):
        generate(compiled(model, estimator=Clashing()), model)


def test_an_estimator_that_would_write_a_tensor_on_every_step_is_refused() -> None:
    class Rewriting(Reuse):
        def follow(self, gamma: Tensor, reuse: Tensor, anchors: Tensor, state: State) -> dict[str, Tensor]:
            return {"last": gamma}

    model = models.make(models.TwoStream)
    call = compiled(model, estimator=Rewriting())
    with pytest.raises(Exception, match=r"Rewriting\.follow may return slots that are scalars, got last"):
        generate(call, model)
