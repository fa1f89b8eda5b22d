"""What the record of a stream's generations shows that its user should know."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import DiCacheConfig, Schedule, generation
from dicache_compile.calls.findings import findings
from dicache_compile.calls.record import Call
from tests import models
from tests.contract.test_contract import STEPS, compiled
from tests.reports.test_advice import said

NAN = math.nan
NOTHING_GIVEN = DiCacheConfig()


def row(index: int, deep: bool, error: float = 0.01, gamma: float = NAN) -> dict[str, float]:
    forced = index < 3
    errors = dict.fromkeys(("error", "accumulated"), error if index else NAN)
    return {"index": index, "timestep": 1 - index / 99, "deep": deep, "forced": forced, "gamma": gamma, **errors}


def run(steps: Sequence[dict[str, float]], config: DiCacheConfig = NOTHING_GIVEN, run: int | None = None) -> Any:
    return [(step, Call(0, run, config)) for step in steps]


def half_reused(steps: int = 20, config: DiCacheConfig = NOTHING_GIVEN, number: int | None = None, **kinds: Any) -> Any:
    return run([row(i, deep=i < 3 or i % 2 == 0, **kinds) for i in range(steps)], config, number)


def told(*generations: Any) -> dict[str, str]:
    return dict(findings("cond", generations))


def test_of_a_generation_in_which_half_is_reused_nothing_is_said() -> None:
    assert told(half_reused(), half_reused()) == {}


@pytest.mark.parametrize("error", [NAN, math.inf])
def test_errors_that_are_not_finite_are_told(error: float) -> None:
    steps = [row(i, deep=True, error=error if i > 4 else 0.5) for i in range(10)]
    text = told(run(steps))["finite"]
    assert text.startswith("the error was infinite or not a number on 5 of 10 steps of stream 'cond'")
    assert "run the model in bfloat16" in text


def test_a_schedule_measures_nothing_and_is_not_told_so() -> None:
    steps = [row(i, deep=i % 2 == 0, error=NAN) for i in range(10)]
    assert told(run(steps, DiCacheConfig(schedule=Schedule.every(2)))) == {}


def test_an_estimate_that_is_saturated_on_most_steps_is_told() -> None:
    deep = [row(i, deep=True) for i in range(3)]
    most, half = ([row(3 + i, deep=False, gamma=2.0 if i < held else 1.5) for i in range(16)] for held in (9, 8))
    text = told(run(deep + most))["saturated"]
    assert text.startswith("gamma was at the upper end of gamma_range=(1.0, 2.0) on 9 of 16 reused steps of stream")
    assert "saturated" not in told(run(deep + half))
    assert "saturated" not in told(run(deep + most, DiCacheConfig(gamma_range=(2.0, 2.0))))  # which was asked for


def test_long_and_short_generations_by_turns_are_told_where_nobody_announced_them() -> None:
    text = told(half_reused(20), half_reused(8), half_reused(20), half_reused(9))["unlike"]
    assert text.startswith("the last generations of stream 'cond' had 20, 8, 20, 9 steps, by their timesteps")
    assert "put `with generation():` around each denoising loop" in text
    assert told(half_reused(20), half_reused(20), half_reused(8), half_reused(20)) == {}  # one was given up
    assert told(*(half_reused(steps, number=steps) for steps in (20, 8, 21, 9))) == {}


class Scaled(models.SingleStream):
    """A model that is compiled again where its attribute changes."""

    factor = 1.0

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(*args, **kwargs) * self.factor


def test_a_compilation_in_the_middle_of_a_generation_is_told_once() -> None:
    model = models.make(Scaled)
    call: Callable[..., Tensor] = compiled(model, apart=True, threshold=10.0)

    @torch.no_grad()
    def changed(at: int, factor: float) -> None:
        with generation():
            for step in range(STEPS):
                if step == at:
                    model.factor = factor
                call(*models.inputs(model, step, STEPS))

    assert said(lambda: changed(0, 2.0)) == []
    (text,) = said(lambda: changed(5, 3.0))
    assert text.startswith("the model was compiled again at step 5 of a generation of stream '0'")
    assert "TORCH_LOGS=recompiles" in text
    assert said(lambda: changed(5, 4.0)) == []
