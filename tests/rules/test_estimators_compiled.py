"""Every estimator in a compiled step gives what it gives by hand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import DiCacheConfig, Schedule, SiteRule
from dicache_compile.estimators import (
    AdamsBashforth,
    BandSplit,
    ChannelAffine,
    Extrapolated,
    FoCa,
    Hermite,
    HyCa,
    LearnedTable,
    Linear,
    MeanVelocity,
    Newton,
    ProjectedDCTA,
    Reuse,
    Spectrum,
    StepAffine,
    Taylor,
)
from dicache_compile.rules import Estimator, Seen
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
    Taylor(1, base="h"),
    Newton(3, times="timesteps"),
    Newton(2, times=tuple(float(step**2) for step in range(STEPS))),
    AdamsBashforth(3),
    Hermite(2),
    FoCa(),
    HyCa(("taylor", "ab2", "am", "rk2", "bdf2"), tuple(channel % 5 for channel in range(16))),
    StepAffine(tuple(1 - step / 50 for step in range(STEPS)), (0.01,) * STEPS),
    ChannelAffine(tuple(1 - channel / 50 for channel in range(16)), (0.01,) * 16),
    ProjectedDCTA((0.2, 1.8)),
    Extrapolated(tuple(step / STEPS for step in range(STEPS))),
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


@pytest.mark.parametrize("engine", ["calls", "cond", "conditional"])
def test_a_mean_velocity_in_a_compiled_step_is_as_by_hand(engine: str) -> None:
    model = models.make(models.SingleStream)
    estimator = MeanVelocity(tuple(1 - (step / STEPS) ** 1.3 for step in range(STEPS + 1)), (1, 2, 3) * 3 + (2,))
    where: dict[str, Any] = {"sites": "model", "carried": "residual", "probe_depth": 0, "engine": engine}
    call = compiled(model, schedule=Schedule.steps(*DEEP), estimator=estimator, **where)
    generate(call, model, seed=3)  # of which nothing is left
    ours = generate(call, model)
    with torch.no_grad():
        given = [models.inputs(model, step, STEPS) for step in range(STEPS)]
        velocities = [model(*arguments) for arguments in given]
    estimates = replay(estimator, lambda step: velocities[step], DEEP, STEPS, x=lambda step: given[step][0])
    assert_near(ours, [estimates.get(step, velocities[step]) for step in range(STEPS)])


class _TwoAnchors(Linear):
    count = 2

    def weights(self, seen: Seen) -> Sequence[float | Tensor]:
        return 1.25, -0.25


@pytest.mark.parametrize("engine", ["calls", "conditional"])
def test_every_attention_goes_on_from_its_own_last_two_outputs(engine: str) -> None:
    model = models.make(models.Mixed)
    # One reused step after two deep ones: the last two outputs are the last two anchors.
    where: dict[str, Any] = {"schedule": Schedule.steps(0, 1, 3, 4, 6, 7, 9), "sites": "attention", "engine": engine}
    ours = generate(compiled(model, estimator=Extrapolated(0.25), **where), model)
    assert_near(ours, generate(compiled(model, estimator=_TwoAnchors(), **where), model))


def test_a_rule_inside_of_another_counts_its_own_steps() -> None:
    model = models.make(models.SingleStream)
    common: dict[str, Any] = {"joint": False}

    def rules(estimator: Estimator) -> tuple[SiteRule, ...]:
        outer = SiteRule(sites=(0, 4), schedule=Schedule.steps(0, 1, 2, 5, 6, 7), estimator=Reuse())
        return outer, SiteRule(sites=(1, 3), schedule=Schedule.steps(0, 1, 5, 6), estimator=estimator)

    ours = generate(compiled(model, rules=rules(Extrapolated(0.25)), **common), model)
    # The inner one reuses steps 2 and 7, each after two that ran; on steps 3, 4, 8 and 9 it is not asked.
    assert_near(ours, generate(compiled(model, rules=rules(_TwoAnchors()), **common), model))


@pytest.mark.parametrize("where", [{}, {"sites": "model", "probe_depth": 0}])
def test_a_mean_velocity_that_would_not_see_the_latents_is_refused(where: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs the latents: sites='model', carried='residual'; got sites="):
        DiCacheConfig(schedule=Schedule.every(3), estimator=MeanVelocity((1.0, 0.5, 0.0)), **where)


def test_what_is_for_another_models_sizes_is_refused_with_both_numbers() -> None:
    model = models.make(models.SingleStream)
    with pytest.raises(Exception, match="grid: 2 x 2 has 4 places, and the model 6 tokens"):
        generate(compiled(model, schedule=Schedule.every(3), estimator=BandSplit(grid=(2, 2))), model)
    for estimator in (HyCa(("taylor",), (0, 0)), ChannelAffine((1.0, 1.0), (0.0, 0.0))):
        with pytest.raises(Exception, match="expected a model of 2 channels, got one of 16"):
            generate(compiled(model, schedule=Schedule.every(3), estimator=estimator), model)
