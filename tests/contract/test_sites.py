"""A range of the trunk's blocks as the site: those before and after it run on every step."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import DiCacheConfig, Schedule, explain, summary
from dicache_compile.estimators import Reuse
from tests import models
from tests.contract.test_contract import STEPS, assert_near, compiled, generate
from tests.helpers.cells import cells
from tests.oracles.plain_oracle import PlainDiCache

pytestmark = pytest.mark.shares_traces

DEEP = (0, 1, 4, 7)
CARRIED = ("x", "text")


def plain(model: models.Model, *sites: tuple[int, int]) -> list[Tensor]:
    """The steps of a generation on which some ranges of blocks are reused, in plain PyTorch."""
    results: list[Tensor] = []
    residuals: dict[tuple[int, str], Tensor] = {}
    with torch.no_grad():
        for step in range(STEPS):
            carried, done = model.enter(*models.inputs(model, step, STEPS)), 0
            for first, last in sites:
                before = model.run(carried, done, first)
                if step in DEEP:
                    carried = model.run(before, first, last)
                    residuals |= {(first, name): carried[name] - before[name] for name in CARRIED}
                else:
                    carried = {**before, **{name: before[name] + residuals[first, name] for name in CARRIED}}
                done = last
            results.append(model.leave(model.run(carried, done, model.depth)))
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
    ours, theirs = generate(call, model), plain(model, (first, last))
    assert_near(ours, theirs)
    assert all(torch.equal(a, b) for step, (a, b) in enumerate(zip(ours, theirs, strict=True)) if step in DEEP)
    found = explain(model)
    assert len(found.deep) == last - first
    assert found.beside == (*found.blocks[:first], *found.blocks[last:])
    assert "beside" in str(found)


@cells("kind, engine", [models.SingleStream, models.TwoStream, models.Mixed], ["calls", "cond", "conditional"])
def test_several_ranges_are_reused_together_and_what_is_between_them_runs(
    kind: type[models.Model], engine: str
) -> None:
    model = models.make(kind, depth=8)
    sites = ((0, 3), (5, 7))
    call = compiled(model, schedule=Schedule.steps(*DEEP), estimator=Reuse(), sites=sites, engine=engine)
    ours, theirs = generate(call, model), plain(model, *sites)
    assert_near(ours, theirs)
    assert all(torch.equal(a, b) for step, (a, b) in enumerate(zip(ours, theirs, strict=True)) if step in DEEP)
    found = explain(model)
    assert len(found.deep) == 5
    assert found.beside == tuple(found.blocks[place] for place in (3, 4, 7))


@pytest.mark.parametrize("kind", [models.SingleStream, models.TwoStream, models.Mixed])
def test_a_gate_looks_at_the_first_of_several_ranges_and_decides_for_all(kind: type[models.Model]) -> None:
    model = models.make(kind, depth=8)
    config: dict[str, Any] = {"threshold": math.inf, "warmup_steps": 2, "max_consecutive_skips": 2}
    ours = generate(compiled(model, sites=((0, 4), (5, 8)), **config), model)
    steps = summary(model).generations[-1].streams["0"]
    oracle = PlainDiCache(model, math.inf, warmup=2, max_skips=2)
    generate(oracle, model)
    assert [step.deep for step in steps] == oracle.deep
    # The probe is the first block, of which the error is that of the whole trunk's.
    for step, error in zip(steps[1:], oracle.errors[1:], strict=True):
        assert step.error == pytest.approx(error, rel=1e-5)
    traced = [model(*models.inputs(model, step, STEPS)) for step in range(STEPS)]
    assert all(torch.equal(a, b) for a, b, step in zip(ours, traced, steps, strict=True) if step.deep)
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(ours, traced, strict=True))


def test_what_counts_on_every_step_needs_one_site() -> None:
    with pytest.raises(ValueError, match=r"feedback counts on every step, which it can at one site: sites=\(\(0, 2\)"):
        DiCacheConfig(feedback=1, sites=((0, 2), (3, 5)))


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


@cells(
    "kind, engine, sites",
    [models.SingleStream, models.TwoStream, models.Mixed],
    ["calls", "cond", "conditional"],
    [((2, 3),), ((0, 1), (3, 5)), ((1, 2), (3, 4), (5, 6))],
)
def test_a_range_may_be_one_block(kind: type[models.Model], engine: str, sites: tuple[tuple[int, int], ...]) -> None:
    model = models.make(kind, depth=6)
    call = compiled(model, schedule=Schedule.steps(*DEEP), estimator=Reuse(), sites=sites, engine=engine)
    ours, theirs = generate(call, model), plain(model, *sites)
    assert_near(ours, theirs)
    assert all(torch.equal(a, b) for step, (a, b) in enumerate(zip(ours, theirs, strict=True)) if step in DEEP)
    assert [step.deep for step in summary(model).generations[-1].streams["0"]] == [s in DEEP for s in range(STEPS)]
    left_out = sum(last - first for first, last in sites)
    assert len(explain(model).beside) == 6 - left_out


@pytest.mark.parametrize("sites", [(3, 1), (0, 9), (2, 3), (-9, -1), ((2, 4), (0, 2)), ((0, 3), (2, 4))])
def test_a_range_that_the_trunk_has_not_is_refused(sites: Any) -> None:
    model = models.make(models.SingleStream)
    found = explain(compiled(model, sites=sites, strict=False), *models.inputs(model, 0, STEPS))
    wrong = sites[1] if isinstance(sites[0], tuple) else sites
    assert f"sites: {wrong!r} is no such range of the trunk's 4 blocks" in (found.reason or "")


@pytest.mark.parametrize("sites", ["blocks", 3, (), (1, 2, 3), (True, 4), (0.5, 2), ((0, 2), 3)])
def test_a_site_is_the_trunk_a_range_or_a_part(sites: Any) -> None:
    expected = "sites: expected 'trunk', 'model', two whole numbers or several such pairs, or of 'attention', "
    with pytest.raises(TypeError, match=re.escape(expected)) as caught:
        DiCacheConfig(sites=sites)
    assert str(caught.value).endswith(f"got {sites!r}")
