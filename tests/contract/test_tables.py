"""Tables: a schedule for each site, as published routers and calibrated caches have them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dicache_compile import DiCacheConfig, Schedule, explain, summary
from dicache_compile.estimators import Reuse
from tests import models
from tests.contract.test_contract import STEPS, assert_near, compiled, generate
from tests.contract.test_sites import plain as plain_ranges
from tests.contract.test_sublayers import METHODS, Crossing, Kept
from tests.helpers.cells import cells

pytestmark = pytest.mark.shares_traces

ROWS = ((0, 2, 4, 6, 8), (0, 1, 5), (0, 1, 2, 3, 4, 7, 9), (0, 6), (0, 3, 4, 8), (0, 1, 2, 5, 9))
ENGINES = ["calls", "cond", "conditional"]


def table(*rows: Iterable[int]) -> dict[str, Any]:
    masks = [[step in row for step in range(STEPS)] for row in map(tuple, rows)]
    return {"schedule": Schedule.table(*masks), "estimator": Reuse()}


def plain(model: models.Model, rows: Iterable[tuple[str, int, tuple[int, ...]]]) -> list[Tensor]:
    """A generation on which a part of a block runs on the steps of its own row, in plain PyTorch."""
    kept: list[tuple[Kept, tuple[int, ...]]] = []
    for kind, place, row in rows:
        block = model.blocks[place]  # type: ignore[index]
        part = getattr(block, METHODS[kind])
        kept.append((Kept(part.forward if isinstance(part, nn.Module) else part), row))
        if isinstance(part, nn.Module):
            part.forward = kept[-1][0]
        else:
            setattr(block, METHODS[kind], kept[-1][0])
    results = []
    with torch.no_grad():
        for step in range(STEPS):
            for one, row in kept:
                one.deep = step in row
            results.append(model(*models.inputs(model, step, STEPS)))
    return results


@cells("engine, kinds", ENGINES, [("attention", "mlp"), ("attention", "cross_attention", "mlp")])
def test_each_kind_of_part_has_a_row(engine: str, kinds: tuple[str, ...]) -> None:
    model = models.make(Crossing)
    call = compiled(model, sites=kinds, engine=engine, **table(*ROWS[: len(kinds)]))
    ours = generate(call, model)
    rows = [(kind, place, row) for kind, row in zip(kinds, ROWS, strict=False) for place in range(3)]
    assert_near(ours, plain(models.make(Crossing), rows))
    steps = summary(model).generations[-1].streams["0"]
    for rule, row in enumerate(ROWS[: len(kinds)]):
        ran = [step.index for step in steps if (one := step.decisions[rule]) is not None and one.deep]
        assert tuple(ran) == row
    assert [rule.parts for rule in explain(model).rules] == list(kinds)
    uncached = generate(models.make(Crossing), model)
    assert torch.equal(ours[0], uncached[0])
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(ours, uncached, strict=True))


@pytest.mark.parametrize("engine", ENGINES)
def test_each_part_of_each_block_has_a_row(engine: str) -> None:
    model = models.make(Crossing, depth=2)
    sites = tuple(itertools.product(("attention", "cross_attention", "mlp"), range(2)))
    call = compiled(model, sites=[(kind, place, place + 1) for kind, place in sites], engine=engine, **table(*ROWS))
    ours = generate(call, model)
    rows = [(kind, place, row) for (kind, place), row in zip(sites, ROWS, strict=True)]
    assert_near(ours, plain(models.make(Crossing, depth=2), rows))
    assert len(explain(model).rules) == 6


def test_a_row_of_a_range_is_a_schedule_of_its_own() -> None:
    model = models.make(models.SingleStream, depth=8)
    sites = ((0, 3), (3, 8))
    schedule = Schedule.table(Schedule.every(3), Schedule.steps(0, 1, 4, 7))
    ours = generate(compiled(model, sites=sites, schedule=schedule, estimator=Reuse()), model)
    alone = []
    for site, row in zip(sites, schedule.rows, strict=True):
        other = models.make(models.SingleStream, depth=8)
        call = compiled(other, sites=site, schedule=row, estimator=Reuse())
        alone.append(generate(call, other))
    # On a step on which one of the two runs, the other one is all that differs from the model.
    rows = [set(row.deep_steps(STEPS)) for row in schedule.rows]
    uncached = generate(model, model)
    for step in range(STEPS):
        deep = [step in row for row in rows]
        if all(deep):
            assert torch.equal(ours[step], uncached[step])
        elif deep[1]:
            assert torch.equal(ours[step], alone[0][step])
    assert_near(alone[1][:2], plain_ranges(model, (3, 8))[:2])


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"sites": "attention"}, "schedule: a table has a row for each site, got 2 rows and sites='attention'"),
        (
            {"sites": ((0, 2), (2, 4), (4, 6))},
            "schedule: a table has a row for each site, got 2 rows and sites=((0, 2)",
        ),
        ({"sites": (0, 2)}, "schedule: a table has a row for each site, got 2 rows and sites=(0, 2)"),
        ({"sites": ("attention", "mlp"), "num_steps": 7}, "schedule: the last of num_steps=7 is step 6, got 8"),
    ],
)
def test_a_table_has_a_row_for_each_site(config: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=re.escape(error)):
        DiCacheConfig(**table(*ROWS[:2]), **config)


def test_a_table_needs_a_row() -> None:
    with pytest.raises(ValueError, match="schedule: expected a row for each site, got none"):
        Schedule.table()
