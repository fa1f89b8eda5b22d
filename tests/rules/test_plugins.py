"""A new gate and a new estimator, each a class of its own that the config takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from dicache_compile import Schedule, explain, summary
from dicache_compile.estimators import Linear
from dicache_compile.rules import Estimator, Gate, Seen, SlotSpec, anchor_times
from tests import models
from tests.contract.test_contract import STEPS, assert_near, compiled, generate

pytestmark = pytest.mark.shares_traces


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


@dataclass(frozen=True, slots=True)
class InTime(Linear):
    """On the line through the last two anchors over the timestep, as TaylorSeer's first order."""

    count: ClassVar[int] = 2

    def slots(self) -> tuple[SlotSpec, ...]:
        return (*Linear.slots(self), anchor_times(2))

    def weights(self, seen: Seen) -> tuple[Tensor, Tensor]:
        newest, older = seen.times[0], seen.times[1]
        step = torch.where(seen.anchors > 1, (seen.time - newest) / (newest - older), torch.zeros_like(newest))
        return 1 + step, -step


@pytest.mark.parametrize("engine", ["calls", "cond", "conditional"])
def test_an_estimator_sees_the_times_of_its_anchors(engine: str) -> None:
    model = models.make(models.SingleStream)
    config = {"schedule": Schedule.every(3, after=2), "estimator": InTime(), "sites": (0, 4)}
    ours = generate(compiled(model, **config, engine=engine), model)
    theirs, anchors = [], list[tuple[Tensor, float]]()
    with torch.no_grad():
        for step in range(STEPS):
            carried = model.enter(*models.inputs(model, step, STEPS))
            x, time = carried["x"], 1 - step / STEPS
            if step < 2 or (step - 1) % 3 == 0:
                carried = model.run(carried, 0, model.depth)
                anchors.append((carried["x"] - x, time))
            else:
                (older, before), (newest, last) = anchors[-2:]
                carried = {**carried, "x": x + newest + (time - last) / (last - before) * (newest - older)}
            theirs.append(model.leave(carried))
    assert_near(ours, theirs)
    assert explain(model).probe == ()


@dataclass(frozen=True, slots=True)
class Scaled(Estimator):
    """The last residual, scaled for each channel by how the probe's has grown, and for each row by a number."""

    def slots(self) -> tuple[SlotSpec, ...]:
        return SlotSpec("r"), SlotSpec("p")

    def aid(self, seen: Seen) -> tuple[Tensor, Tensor]:
        p = (seen.h - seen.x).float()
        by_channel = p.abs().mean((0, 1)) / seen.state["p"].float().abs().mean((0, 1))
        by_row = 1 + 0.1 * torch.tanh(p.mean((1, 2), keepdim=True))
        return by_channel, by_row

    def estimate(self, seen: Seen) -> Tensor:
        by_channel, by_row = seen.aid
        return seen.x.float() + by_row * by_channel.clamp(0.5, 2.0) * seen.state["r"].float()

    def anchor(self, seen: Seen) -> dict[str, Tensor]:
        return {"r": seen.y.float() - seen.x.float(), "p": seen.h.float() - seen.x.float()}


@pytest.mark.parametrize(
    ("engine", "lowering"),
    [
        ("calls", "eager"),
        ("cond", "eager"),
        ("conditional", "eager"),
        ("calls", "inductor"),
        pytest.param("cond", "inductor", marks=pytest.mark.exhaustive),
    ],
)
def test_an_aid_may_be_several_tensors_one_a_channel_and_one_a_row(engine: str, lowering: str) -> None:
    model = models.make(models.SingleStream)
    config = {"schedule": Schedule.every(2), "estimator": Scaled(), "lowering": lowering}
    ours = generate(compiled(model, **config, engine=engine), model)
    theirs = []
    with torch.no_grad():
        for step in range(STEPS):
            before = model.enter(*models.inputs(model, step, STEPS))
            carried = model.run(before, 0, 1)
            x, p = before["x"], carried["x"] - before["x"]
            if step % 2 == 0:
                carried = model.run(carried, 1, model.depth)
                residual, last = carried["x"] - x, p
            else:
                by_channel = (p.abs().mean((0, 1)) / last.abs().mean((0, 1))).clamp(0.5, 2.0)
                by_row = 1 + 0.1 * torch.tanh(p.mean((1, 2), keepdim=True))
                carried = {**carried, "x": x + by_row * by_channel * residual}
            theirs.append(model.leave(carried))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert all(step.gamma is None for step in summary(model).generations[-1].streams["0"])
