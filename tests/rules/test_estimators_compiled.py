"""Every estimator in a compiled step gives what it gives by hand."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import Schedule
from dicache_compile.estimators import (
    AdamsBashforth,
    BandSplit,
    ChannelAffine,
    FoCa,
    Hermite,
    HyCa,
    LearnedTable,
    Newton,
    ProjectedDCTA,
    Spectrum,
    StepAffine,
    Taylor,
)
from dicache_compile.rules import Estimator
from tests import models
from tests.contract.test_contract import STEPS, assert_near, compiled, generate
from tests.helpers.cells import cells
from tests.helpers.replay import replay

pytestmark = pytest.mark.shares_traces
DEEP = (0, 1, 2, 5, 9)
ESTIMATORS: list[Estimator] = [
    LearnedTable(
        DEEP,
        tuple((1.0 + step / 20, 0.0, 0.0) if step < 5 else (1.5, -0.6, 0.1) for step in range(STEPS)),
        tuple((step / 10, 0.0) if step < 5 else (0.2, -0.1) for step in range(STEPS)),
    ),
    Taylor(2, first=3),
    Newton(3, times="timesteps"),
    Newton(2, times=tuple(float(step**2) for step in range(STEPS))),
    AdamsBashforth(3),
    Hermite(2),
    FoCa(),
    HyCa(("taylor", "ab2", "am", "rk2", "bdf2"), tuple(channel % 5 for channel in range(16))),
    StepAffine(tuple(1 - step / 50 for step in range(STEPS)), (0.01,) * STEPS),
    ChannelAffine(tuple(1 - channel / 50 for channel in range(16)), (0.01,) * 16),
    ProjectedDCTA((0.2, 1.8)),
    Spectrum(span=STEPS),
    BandSplit(),
    BandSplit(grid=(2, 3), cutoff=0.5),
]


@cells("estimator, engine", ESTIMATORS, ["calls", "cond", "conditional"])
def test_an_estimator_in_a_compiled_step_is_as_by_hand(estimator: Estimator, engine: str) -> None:
    model = models.make(models.SingleStream)
    ours = generate(compiled(model, schedule=Schedule.steps(*DEEP), estimator=estimator, engine=engine), model)

    @cache
    def step_of(step: int) -> tuple[dict[str, Any], Tensor, Tensor]:
        with torch.no_grad():
            entered = model.enter(*models.inputs(model, step, STEPS))
            probed = model.run({**entered, "x": entered["x"].clone()}, 0, 1)
            return entered, probed["x"].clone(), model.run(probed, 1, model.depth)["x"]

    estimates = replay(
        estimator,
        lambda step: step_of(step)[2],
        DEEP,
        STEPS,
        x=lambda step: step_of(step)[0]["x"],
        h=lambda step: step_of(step)[1],
        time=lambda step: 1 - step / STEPS,
    )
    with torch.no_grad():
        theirs = [
            model.leave({**step_of(step)[0], "x": estimates.get(step, step_of(step)[2])}) for step in range(STEPS)
        ]
    assert_near(ours, theirs)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_a_generation_finds_nothing_of_the_one_before(estimator: Estimator) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, schedule=Schedule.steps(*DEEP), estimator=estimator)
    alone = generate(call, model)
    generate(call, model, seed=3)
    again = generate(call, model)
    assert all(torch.equal(a, b) for a, b in zip(alone, again, strict=True))


def test_what_is_for_another_models_sizes_is_refused_with_both_numbers() -> None:
    model = models.make(models.SingleStream)
    with pytest.raises(Exception, match="grid: 2 x 2 has 4 places, and the model 6 tokens"):
        generate(compiled(model, schedule=Schedule.every(3), estimator=BandSplit(grid=(2, 2))), model)
    for estimator in (HyCa(("taylor",), (0, 0)), ChannelAffine((1.0, 1.0), (0.0, 0.0))):
        with pytest.raises(Exception, match="expected a model of 2 channels, got one of 16"):
            generate(compiled(model, schedule=Schedule.every(3), estimator=estimator), model)
