"""What the blocks give is kept as it is: `carried="value"`, for blocks that do not add to what they are given."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dicache_compile import DiCacheConfig, Schedule, explain, summary
from dicache_compile.calls.session import sessions_of
from dicache_compile.estimators import Reuse
from tests import models
from tests.contract.test_contract import ENGINES, STEPS, assert_near, compiled, generate
from tests.helpers.cells import cells
from tests.oracles.plain_oracle import PlainDiCache

pytestmark = pytest.mark.shares_traces

DEEP = (0, 1, 4, 7)


@torch.no_grad()
def oracle(model: models.Model, threshold: float, **rule: Any) -> tuple[list[Tensor], list[bool]]:
    """A generation, with anchors of y and h in place of y - x and h - x."""
    plain = PlainDiCache(model, threshold, **rule)
    results = []
    for step in range(STEPS):
        carried = model.enter(*models.inputs(model, step, STEPS))
        x = carried["x"].clone()
        carried = model.run(carried, 0, plain.probe_depth)
        h = carried["x"].clone()
        reuse = plain._reuses(x, h)
        plain.h_prev, plain.x_prev = h, x
        plain.index += 1
        plain.deep.append(not reuse)
        nothing = torch.zeros_like(x)
        if reuse:
            carried = {**carried, "x": plain._estimate(nothing, h).to(x.dtype)}
        else:
            carried = model.run(carried, plain.probe_depth, model.depth)
            plain.anchors.append((carried["x"].float().clone(), h.float()))
        results.append(model.leave(carried))
    return results, plain.deep


@cells("kind, engine", [models.Skips, models.SingleStream, models.Mixed], ENGINES)
def test_the_values_themselves_are_the_anchors(kind: type[models.Model], engine: str) -> None:
    model = models.make(kind)
    rule: dict[str, Any] = {"threshold": 0.5, "warmup_steps": 2, "max_consecutive_skips": 2}
    ours = generate(compiled(model, carried="value", engine=engine, **rule), model)
    theirs, deep = oracle(model, 0.5, warmup=2, max_skips=2)
    assert_near(ours, theirs)
    steps = summary(model).generations[-1].streams["0"]
    assert [step.deep for step in steps] == deep
    assert {True, False} == set(deep)
    uncached = generate(model, model)
    assert all(torch.equal(a, b) for a, b, ran in zip(ours, uncached, deep, strict=True) if ran)


def test_a_value_needs_no_counterpart_on_a_schedule() -> None:
    """The blocks forget what they are given: no path leads from the result back to it."""
    model = models.make(Forgetting)
    config: dict[str, Any] = {"schedule": Schedule.steps(*DEEP), "estimator": Reuse()}
    refused = explain(compiled(model, strict=False, **config), *models.inputs(model, 0, STEPS))
    assert "has no counterpart" in (refused.reason or "")
    torch._dynamo.reset()
    ours = generate(compiled(model, carried="value", **config), model)
    uncached = generate(model, model)
    assert all(torch.equal(ours[step], uncached[step]) for step in DEEP)
    found = sessions_of(model)[-1].last_cut.partition.carried
    assert [(value.form, value.x is value.y) for value in found] == [("value", True)]


class Forgetting(models.Model):
    """Blocks of which each is half as long as the one before."""

    def __init__(self, depth: int = 3, **sizes: int) -> None:
        super().__init__(**sizes)
        self.depth = depth
        self.blocks = nn.ModuleList(models.Block(self.width, 2) for _ in range(depth))

    def run(self, carried: models.Carried, first: int, last: int) -> models.Carried:
        x = carried["x"]
        for block in self.blocks[first:last]:
            x = block(torch.cat((x, x.mean(1, keepdim=True)), dim=1), carried["time"])
        return {**carried, "x": x}


def test_a_value_leaves_no_input_to_go_along() -> None:
    with pytest.raises(ValueError, match=re.escape("carried='value' leaves no input for DCTA(")):
        DiCacheConfig(carried="value", probe_depth=0)
    with pytest.raises(ValueError, match="carried: expected one of 'auto', 'residual', 'value', got 'y'"):
        DiCacheConfig(carried="y")  # type: ignore[arg-type]
