"""AdaCache on a model: one block decides how many steps are reused, and how much moves counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import DiCacheConfig, summary
from dicache_compile.errors import UncachedWarning
from dicache_compile.estimators import Reuse
from dicache_compile.gates import Motion, Planned
from tests import models
from tests.contract.test_contract import assert_near, compiled

STEPS, BLOCKS, MONITORED, FRAME = 30, 4, 2, 2
CODEBOOK = {0.08: 6, 0.16: 5, 0.24: 4, 0.32: 3, 0.4: 2, 1.0: 1}


@dataclass
class Plain:
    """AdaCache by its code's equations: what each block adds is kept, and one of them is looked at."""

    model: models.Model
    moving: bool
    residuals: list[Tensor] | None = None
    moved: float = 1.0
    next: int = 0  # deep step
    rate: int = 1
    ran: str = ""

    def __call__(self, step: int, *inputs: Any) -> Tensor:
        carried = self.model.enter(*inputs)
        if step not in (0, self.next, STEPS - 2, STEPS - 1):
            assert self.residuals is not None
            self.ran += "0"
            return self.model.leave({**carried, "x": carried["x"] + sum(self.residuals)})
        residuals = []
        for block in range(BLOCKS):
            before = carried["x"].clone()
            carried = self.model.run(carried, block, block + 1)
            residuals.append(carried["x"] - before)
        if self.residuals is not None:
            self._look_up(step, residuals[MONITORED], self.residuals[MONITORED])
        self.residuals, self.next, self.ran = residuals, step + self.rate, self.ran + "1"
        return self.model.leave(carried)

    def _look_up(self, step: int, new: Tensor, old: Tensor) -> None:
        change = float((new - old).abs().sum() / old.abs().sum()) / self.rate
        if self.moving:
            later, earlier = new[:, FRAME:], new[:, :-FRAME]
            moves = float((later - earlier).abs().sum() / (later.abs().sum() + earlier.abs().sum()))
            moves = (moves / 0.385) ** 8 if 4 <= step + 1 <= 26 else 1.0
            change *= moves + abs(10 * (moves - self.moved) / self.rate)
            self.moved = moves
        self.rate = next((rate for bound, rate in CODEBOOK.items() if change < bound), 1)


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("engine", ["calls", "conditional"])
@torch.no_grad()
def test_adacache_goes_by_one_block_and_by_what_moves(moving: bool, engine: str) -> None:
    model = models.make(models.SingleStream, depth=BLOCKS)
    fields: dict[str, Any] = {"num_steps": STEPS, "lowering": "eager", "strict": True, "engine": engine}
    moves = {"frame_tokens": FRAME} if moving else {}
    config = DiCacheConfig.preset("adacache", blocks=BLOCKS, monitored=MONITORED, **moves, **fields)
    call = compiled(model, **{name: value for name, value in config.options().items() if name != "rules"})
    ran = set()
    for _ in range(2):  # nothing is left of the first generation
        oracle = Plain(model, moving)
        for step in range(STEPS):
            inputs = models.inputs(model, step, STEPS)
            assert_near([call(*inputs)], [oracle(step, *inputs)])
        record = summary(model).generations[-1].streams["0"]
        assert "".join("01"[one.deep] for one in record) == oracle.ran
        ran.add(oracle.ran)
    assert len(ran) == 1
    assert "0" in ran.pop()


@torch.no_grad()
def test_a_clip_of_one_frame_is_not_reused() -> None:
    model = models.make(models.SingleStream, depth=BLOCKS)
    gate = Planned(((float("inf"), 3),), motion=Motion(100, steps=(1, STEPS)))
    call = compiled(model, gate=gate, estimator=Reuse(), probe_depth=0, warmup_steps=1, max_consecutive_skips=None)
    for step in range(6):
        call(*models.inputs(model, step, STEPS))
    assert all(one.deep for one in summary(model).generations[-1].streams["0"])


@torch.no_grad()
def test_a_result_that_is_not_there_is_told() -> None:
    model = models.make(models.SingleStream, depth=BLOCKS)
    gate = Planned(((0.1, 3),), of=2)
    call = compiled(model, gate=gate, estimator=Reuse(), probe_depth=0, sites=((0, 1), (2, 3)), strict=False)
    with pytest.warns(UncachedWarning, match="a gate learns from result 2, and its sites give 2, from 0 on; give"):
        call(*models.inputs(model, 0, STEPS))
