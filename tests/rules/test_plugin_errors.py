"""What a gate or an estimator of one's own makes and returns: it works, or an error says what is expected."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import summary
from dicache_compile.estimators import DCTA
from dicache_compile.gates import ProbeError
from dicache_compile.rules import Seen, SlotSpec
from tests import models
from tests.contract.test_contract import STEPS, compiled, generate
from tests.rules.test_plugins import Interval, Reuse

pytestmark = pytest.mark.shares_traces
FREE: dict[str, Any] = {"max_consecutive_skips": None, "warmup_steps": 1}
DEEP = [True, True, False, True, False, False, True, True, True, True]


class ByTable(Interval):
    """Runs deep where a table says so; the table and the number one are made inside of the method."""

    def judge(self, seen: Seen) -> tuple[Tensor, Tensor]:
        table = torch.tensor(DEEP)
        count = seen.state["count"]
        return ~table[count.long()], count + torch.ones((), dtype=torch.float32)

    def settle(self, seen: Seen) -> dict[str, Tensor]:
        return {"count": seen.error}


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==, which Dynamo asks for
class Kept(Reuse):
    """A gain for each channel, which the object keeps as a tensor, and an offset that cancels out."""

    gain: Tensor = field(default_factory=lambda: torch.full((16,), 0.5))

    def estimate(self, seen: Seen) -> Tensor:
        return seen.x.float() + self.gain * seen.state["last"].float()

    def anchor(self, seen: Seen) -> dict[str, Tensor]:
        return {"last": seen.y.float() - seen.x.float() + torch.arange(16) - torch.arange(16)}


@pytest.mark.parametrize("engine", ["calls", "cond", "conditional"])
def test_constants_of_a_gate_and_an_estimator_are_part_of_the_graph(engine: str) -> None:
    model = models.make(models.SingleStream)
    ours = generate(compiled(model, gate=ByTable(1), estimator=Kept(), engine=engine, **FREE), model)
    assert [step.deep for step in summary(model).generations[-1].streams["0"]] == DEEP
    residual = torch.zeros(())
    for step in range(STEPS):
        carried = model.enter(*models.inputs(model, step, STEPS))
        x = carried["x"]
        if DEEP[step]:
            carried = model.run(carried, 0, model.depth)
            residual = carried["x"] - x + torch.arange(16) - torch.arange(16)
        else:
            carried = {**carried, "x": x + 0.5 * residual}
        # Deep steps to the bit; estimates to the order of float32 operations, as in the contract.
        bound = 0.0 if DEEP[step] else 16 * torch.finfo(torch.float32).eps
        expected = model.leave(carried)
        assert (ours[step] - expected).abs().max() <= bound * expected.abs().max()


@pytest.mark.exhaustive
def test_constants_go_through_inductor() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, gate=ByTable(1), estimator=Kept(), lowering="inductor", **FREE)
    eager = generate(compiled(model, gate=ByTable(1), estimator=Kept(), **FREE), model)
    for a, b in zip(generate(call, model), eager, strict=True):
        torch.testing.assert_close(a, b)
    assert [step.deep for step in summary(call).generations[-1].streams["0"]] == DEEP


class OneError(Interval):
    def measure(self, seen: Seen) -> Tensor:
        return seen.h.float().mean().reshape(1)


class Number(Interval):
    def measure(self, seen: Seen) -> Tensor:
        return 1.0  # type: ignore[return-value]


class Soft(Interval):
    def judge(self, seen: Seen) -> tuple[Tensor, Tensor]:
        return (seen.error < 1).float(), seen.error


class Alone(Interval):
    def judge(self, seen: Seen) -> tuple[Tensor, Tensor]:
        return seen.error < 1  # type: ignore[return-value]


class Takes(Interval):
    def settle(self, seen: Seen) -> dict[str, Tensor]:
        return {"count": seen.error, "index": torch.zeros_like(seen.error)}


class Wide(Interval):
    def settle(self, seen: Seen) -> dict[str, Tensor]:
        return {"count": seen.error.reshape(1, 1)}


class Follows(Interval):
    def follow(self, seen: Seen) -> dict[str, Tensor]:
        return {"anchors": seen.reused}


class Branches(Interval):
    def measure(self, seen: Seen) -> Tensor:
        mean = seen.h.float().mean()
        return mean if mean > 0 else -mean


class Narrow(Reuse):
    def estimate(self, seen: Seen) -> Tensor:
        return Reuse.estimate(self, seen)[:, :1]


class Small(Reuse):
    def anchor(self, seen: Seen) -> dict[str, Tensor]:
        return {"last": (seen.y.float() - seen.x.float()).mean(1, keepdim=True)}


class Forgets(Reuse):
    def slots(self) -> tuple[SlotSpec, ...]:
        return (*Reuse.slots(self), SlotSpec("other", "number"))


class Misnames(Reuse):
    def anchor(self, seen: Seen) -> dict[str, Tensor]:
        return {**Reuse.anchor(self, seen), "lost": gamma_of(seen.x)}


class Keeps(Reuse):
    def keep(self, seen: Seen) -> dict[str, Tensor]:
        return {"last": seen.y.float() - seen.x.float(), "older": seen.y}


class KeepsSmall(Reuse):
    def keep(self, seen: Seen) -> dict[str, Tensor]:
        return {"last": seen.y.float().mean(1)}


class KeepsAnchors(Reuse):
    def slots(self) -> tuple[SlotSpec, ...]:
        return (*Reuse.slots(self), SlotSpec("past", history=2))

    def anchor(self, seen: Seen) -> dict[str, Tensor]:
        return {**Reuse.anchor(self, seen), "past": seen.y}

    def keep(self, seen: Seen) -> dict[str, Tensor]:
        return {"past": seen.y}


class Mixes(Reuse):
    def aid(self, seen: Seen) -> Tensor:
        return (seen.x.float() @ seen.h.float()).mean()


class Asks(Reuse):
    def aid(self, seen: Seen) -> Tensor:
        return gamma_of(seen.state["lsat"])


def gamma_of(x: Tensor) -> Tensor:
    return x.float().mean()


@pytest.mark.parametrize(
    ("plugin", "error"),
    [
        (OneError(3), r"OneError\.measure returned float32 of shape \(1,\), expected a real tensor of shape \(\)"),
        (Number(3), r"Number\.measure returned 1\.0 of type float, expected a real tensor of shape \(\)"),
        (Soft(3), r"Soft\.judge returned, in place 0, float32 of shape \(\), expected bool of shape \(\)"),
        (Alone(3), r"Alone\.judge returned bool of shape \(\), expected a tuple of 2 tensors"),
        (Takes(3), r"Takes\.settle may return slots of its own, got index: expected count"),
        (Wide(3), r"Wide\.settle gave the slot 'count' float32 of shape \(1, 1\), expected .* of shape \(\)"),
        (Follows(3), r"Follows\.follow may return slots of its own, got anchors: expected count"),
        (Branches(3), r"Branches\.measure cannot be traced into the graph: TraceError: .*control flow"),
        (Narrow(), r"Narrow\.estimate returned float32 of shape \(2, 1, 16\), expected .* of shape \(2, 6, 16\)"),
        (Small(), r"Small\.anchor gave the slot 'last' float32 of shape \(2, 1, 16\), expected .* \(2, 6, 16\)"),
        (Forgets(), r"Forgets\.anchor must return all of its slots, and other is missing"),
        (Misnames(), r"Misnames\.anchor may return slots of its own, got lost: expected last"),
        (Keeps(), r"Keeps\.keep may return slots without a history, got older: expected last"),
        (KeepsSmall(), r"KeepsSmall\.keep gave the slot 'last' float32 of shape \(2, 16\), expected .* \(2, 6, 16\)"),
        (KeepsAnchors(), r"KeepsAnchors\.keep may return slots without a history, got past: expected last"),
        (Mixes(), r"Mixes\.aid failed: RuntimeError: .*"),
        (Asks(), r"Asks\.aid failed: KeyError: 'lsat'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_method_gives_wrongly_is_an_error_when_it_is_compiled(plugin: Any, error: str) -> None:
    model = models.make(models.SingleStream)
    config = {"estimator": plugin, "threshold": math.inf} if isinstance(plugin, Reuse) else {"gate": plugin}
    call = compiled(model, **config)
    with torch.no_grad(), pytest.raises(Exception, match=error):
        call(*models.inputs(model, 0, STEPS))


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"gate": ProbeError(10**400)}, "the setting 'threshold': expected what a float can hold"),
        ({"gate": ProbeError("high")}, "the setting 'threshold': expected a number, got str"),  # type: ignore[arg-type]
        ({"estimator": DCTA((1, 10**400))}, "the setting 'gamma_range': expected what a float can hold"),
        ({"gate": Interval(10**30)}, r"Interval\.judge failed: OverflowError"),
    ],
)
def test_a_number_that_no_device_can_hold_is_an_error_that_names_it(config: Any, error: str) -> None:
    model = models.make(models.SingleStream)
    with torch.no_grad(), pytest.raises(Exception, match=error):
        compiled(model, **config)(*models.inputs(model, 0, STEPS))


def test_each_stream_is_tried_with_its_own_shape() -> None:
    class Square(Reuse):
        """Right for six image tokens, and not for three of text."""

        def anchor(self, seen: Seen) -> dict[str, Tensor]:
            return {"last": (seen.y.float() - seen.x.float()) + torch.zeros(6, 1)}

    class OnText(models.TwoStream):
        def leave(self, carried: models.Carried) -> Tensor:
            return super().leave(carried) + carried["text"].mean()

    model = models.make(OnText)
    with torch.no_grad(), pytest.raises(Exception, match=r"Square\.anchor failed: .*\[2, 3, 16\]"):
        compiled(model, estimator=Square())(*models.inputs(model, 0, STEPS))
