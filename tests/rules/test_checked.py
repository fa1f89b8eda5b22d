"""A sum of anchors is tried on the probe before it is used: its error, what it decides, and what it gives."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import DiCacheConfig, summary
from dicache_compile.estimators import (
    AdamsBashforth,
    BandSplit,
    Checked,
    FoCa,
    Hermite,
    Newton,
    ProjectedDCTA,
    Reuse,
    Spectrum,
    Taylor,
)
from dicache_compile.gates import DraftError
from tests import models
from tests.contract.test_contract import assert_near, compiled
from tests.helpers.replay import replay

STEPS, DEPTH = 16, 3
ESTIMATORS = [Reuse(), Taylor(2), Newton(1, times="timesteps"), AdamsBashforth(3), Hermite(2)]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
@pytest.mark.parametrize("engine", ["calls", "conditional"])
@torch.no_grad()
def test_the_error_is_that_of_the_same_weights_on_the_probe(estimator: Any, engine: str) -> None:
    model = models.make(models.SingleStream, depth=DEPTH)

    @functools.cache
    def after(step: int, blocks: int) -> Tensor:
        carried: dict[str, Any] = model.enter(*models.inputs(model, step, STEPS))
        return model.run(carried, 0, blocks)["x"].clone()

    def time(step: int) -> float:
        return float(models.inputs(model, step, STEPS)[1].max())

    def estimate(step: int, blocks: int, deep: list[int]) -> Tensor:
        """Of what so many blocks add, by the anchors before the step."""
        anchors = [one for one in deep if one < step]
        added = lambda one: after(one, blocks) - after(one, 0)  # noqa: E731
        return replay(estimator, added, anchors, step + 1, time=time)[step]

    def generated(threshold: float) -> tuple[list[Tensor], Any]:
        fields: dict[str, Any] = {"estimator": Checked(estimator), "error": "estimate", "warmup_steps": 2}
        call = compiled(model, threshold=threshold, engine=engine, max_consecutive_skips=None, **fields)
        results = [call(*models.inputs(model, step, STEPS)) for step in range(STEPS)]
        return results, summary(model).generations[-1].streams["0"]

    _, all_deep = generated(0.0)
    threshold = 1.01 * sorted(one.error for one in all_deep[2:])[STEPS // 2]  # beside a number, not on it
    results, record = generated(threshold)
    deep = [step for step, one in enumerate(record) if one.deep]
    assert 2 < len(deep) < STEPS - 2
    for step in range(2, STEPS):
        p = after(step, 1) - after(step, 0)
        error = ((estimate(step, 1, deep) - p).abs().mean() / p.abs().mean()).item()
        assert record[step].error == pytest.approx(error, rel=1e-3, abs=1e-6)
        if step in deep:
            assert error > 0.999 * threshold
        else:
            assert error < 1.001 * threshold
            carried = model.enter(*models.inputs(model, step, STEPS))
            y = after(step, 0) + estimate(step, DEPTH, deep)
            assert_near([results[step]], [model.leave({**carried, "x": y})])


@torch.no_grad()
def test_the_first_steps_after_a_deep_one_are_reused_in_any_case_and_the_limit_falls() -> None:
    model = models.make(models.SingleStream, depth=DEPTH)
    config = DiCacheConfig.preset(
        "speca", threshold=0.0, floor=0.0, num_steps=STEPS, most=9, lowering="eager", strict=True
    )
    call = compiled(model, **{name: value for name, value in config.options().items() if name != "rules"})
    for step in range(STEPS):
        call(*models.inputs(model, step, STEPS))
    ran = "".join("01"[one.deep] for one in summary(model).generations[-1].streams["0"])
    assert ran == "1010001000100010"[:STEPS]


def test_what_cannot_be_tried_is_refused() -> None:
    for other in (ProjectedDCTA((0.2, 1.8)), Spectrum(), BandSplit(), FoCa()):
        with pytest.raises(TypeError, match="estimator: expected a sum of its last anchors, as Taylor"):
            Checked(other)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="estimator: expected one with base='x', got Reuse"):
        Checked(Reuse("h"))
    with pytest.raises(ValueError, match="num_steps: expected a whole number from 1 on, got 0"):
        DraftError(0.1, 0)
    with pytest.raises(ValueError, match="least: expected a whole number from 0 on, got -1"):
        DraftError(0.1, 10, least=-1)
    with pytest.raises(ValueError, match="decay: expected a finite number from 0 on, got inf"):
        DraftError(0.1, 10, decay=float("inf"))
