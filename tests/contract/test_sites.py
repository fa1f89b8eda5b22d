"""A range of the trunk's blocks as the site: those before and after it run on every step."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import DiCacheConfig, Schedule, explain
from dicache_compile.estimators import Reuse
from tests import models
from tests.contract.test_contract import STEPS, assert_near, compiled, generate
from tests.helpers.cells import cells

DEEP = (0, 1, 4, 7)
CARRIED = ("x", "text")


def plain(model: models.Model, first: int, last: int, depth: int) -> list[Tensor]:
    """The steps of a generation on which the blocks from first to last are reused, in plain PyTorch."""
    results: list[Tensor] = []
    residuals: dict[str, Tensor] = {}
    with torch.no_grad():
        for step in range(STEPS):
            before = model.run(model.enter(*models.inputs(model, step, STEPS)), 0, first)
            carried = model.run(before, first, first + depth)
            if step in DEEP:
                carried = model.run(carried, first + depth, last)
                residuals = {name: carried[name] - before[name] for name in CARRIED}
            else:
                carried = {**carried, **{name: before[name] + residuals[name] for name in CARRIED}}
            results.append(model.leave(model.run(carried, last, model.depth)))
    return results


@cells(
    "kind, engine, sites",
    [models.SingleStream, models.TwoStream, models.Mixed],
    ["calls", "cond", "conditional"],
    [(1, -1), (0, -2), (2, 6)],
)
def test_the_blocks_of_a_range_are_reused_and_the_others_run(
    kind: type[models.Model], engine: str, sites: tuple[int, int]
) -> None:
    model = models.make(kind, depth=6)
    call = compiled(model, schedule=Schedule.steps(*DEEP), estimator=Reuse(), sites=sites, engine=engine)
    first, last = (place % 6 if place < 0 else place for place in sites)
    ours, theirs = generate(call, model), plain(model, first, last, 0)
    assert_near(ours, theirs)
    assert all(torch.equal(a, b) for step, (a, b) in enumerate(zip(ours, theirs, strict=True)) if step in DEEP)
    found = explain(model)
    assert len(found.deep) == last - first
    assert found.beside == (*found.blocks[:first], *found.blocks[last:])
    assert "beside" in str(found)


def test_the_probe_of_a_range_is_its_first_block() -> None:
    model = models.make(models.SingleStream, depth=6)
    generate(compiled(model, sites=(1, -1), threshold=0.3), model)
    found = explain(model)
    assert (found.probe, found.beside) == (("blocks.1",), ("blocks.0", "blocks.5"))
    assert str(found).splitlines()[1:5] == [
        "  trunk      blocks (6 blocks)",
        "  probe      blocks.1",
        "  deep       blocks.2 ... blocks.4 (3)",
        "  beside     blocks.0 ... blocks.5 (2), on every step",
    ]


@pytest.mark.parametrize("sites", [(3, 1), (0, 9), (2, 3), (-9, -1)])
def test_a_range_that_the_trunk_has_not_is_refused(sites: tuple[int, int]) -> None:
    model = models.make(models.SingleStream)
    found = explain(compiled(model, sites=sites, strict=False), *models.inputs(model, 0, STEPS))
    assert f"sites={sites!r} names no range of the trunk's 4 blocks" in (found.reason or "")


@pytest.mark.parametrize("sites", ["blocks", 3, (1, 2, 3), (True, 4), (0.5, 2)])
def test_a_site_is_the_trunk_or_a_range(sites: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"sites: expected 'trunk' or two whole numbers, got {sites!r}")):
        DiCacheConfig(sites=sites)
