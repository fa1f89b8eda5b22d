"""WorldCache's gate in a graph decides as by hand, on the trajectory of a model."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import DiCacheConfig, summary
from dicache_compile.estimators import Reuse
from dicache_compile.gates import SalientChange
from tests import models
from tests.contract.test_contract import compiled
from tests.helpers.replay import run

STEPS, WARM, DEPTH = 20, 3, 3
GRID = (1, 2, 3)


@pytest.mark.parametrize("grid", [None, GRID, (3, 2, 1)])
@pytest.mark.parametrize("engine", ["calls", "conditional"])
@torch.no_grad()
def test_decisions_are_those_by_hand(grid: tuple[int, int, int] | None, engine: str) -> None:
    model = models.make(models.SingleStream, depth=DEPTH)

    @functools.cache
    def after(step: int, blocks: int) -> Tensor:
        carried: dict[str, Any] = model.enter(*models.inputs(model, step, STEPS))
        return model.run(carried, 0, blocks)["x"].clone()

    given: dict[str, Any] = {"grid": grid, "relax": 4.0, "num_steps": STEPS, "warmup_steps": WARM, "threshold": 0.1}
    config = DiCacheConfig.preset("worldcache", **given)
    gate = config.gate
    assert isinstance(gate, SalientChange)
    x, h, y = (functools.partial(after, blocks=blocks) for blocks in (0, 1, DEPTH))
    expected = run(gate, Reuse(), y, range(WARM), STEPS, x=x, h=h).computed(STEPS)
    fields: dict[str, Any] = {"lowering": "eager", "strict": True, "engine": engine}
    options = DiCacheConfig.preset("worldcache", **given, **fields).options()
    call = compiled(model, **{name: value for name, value in options.items() if name != "rules"})
    for step in range(STEPS):
        call(*models.inputs(model, step, STEPS))
    assert "".join("01"[one.deep] for one in summary(model).generations[-1].streams["0"]) == expected
    assert "0" in expected
    assert "1" in expected[WARM:]


@torch.no_grad()
def test_a_grid_of_another_size_is_told() -> None:
    model = models.make(models.SingleStream, depth=DEPTH)
    call = compiled(model, gate=SalientChange(0.1, (1, 2, 4)), estimator=Reuse())
    with pytest.raises(ValueError, match="grid: 1 x 2 x 4 has 8 places, and the model 6 tokens"):
        call(*models.inputs(model, 0, STEPS))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"grid": (2, 3)}, r"grid: expected \(frames, rows, columns\), .* got \(2, 3\)"),
        ({"motion": -1.0}, "motion: expected a finite number from 0 on, got -1.0"),
        ({"salience": float("inf")}, "salience: expected a finite number from 0 on, got inf"),
        ({"relax": 4.0}, "num_steps: relax needs the number of steps of a generation, got None"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SalientChange(0.1, **given)
