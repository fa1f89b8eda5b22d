"""Chunks of one video at different noise levels, each with a decision of its own: FlowCache, against its equations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import DiCacheConfig, dicache_backend, stream, summary
from tests import models
from tests.contract.test_contract import assert_near

THRESHOLD, WARM = 0.12, 2
CHUNKS, STEPS, LATER = 3, 10, 3  # each chunk begins so many steps after the one before
KINDS = [models.SingleStream, models.TwoStream]


@dataclass
class PlainChunk:
    """One chunk's state, by the lines of FlowCache's SkyReels-V2 code: x where it enters the blocks, in float32."""

    model: models.Model
    done: int = 0
    total: float = 0.0
    before: Tensor = field(default_factory=lambda: torch.zeros(()))
    residual: Tensor = field(default_factory=lambda: torch.zeros(()))
    computed: str = ""

    def __call__(self, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        carried = self.model.enter(latents, timestep, context)
        x = carried["x"].clone()
        if self.done < WARM:
            runs = True
        else:
            self.total += float((x - self.before).abs().mean() / self.before.abs().mean())
            runs = self.total >= THRESHOLD
        if runs:
            self.total = 0.0
            carried = self.model.run(carried, 0, self.model.depth)
            self.residual = carried["x"] - x
        self.before, self.done, self.computed = x, self.done + 1, self.computed + "01"[runs]
        return self.model.leave({**carried, "x": x + self.residual})


def compiled(model: models.Model, **fields: Any) -> Any:
    fields = {"threshold": THRESHOLD, "warmup_steps": WARM, "lowering": "eager", "strict": True, **fields}
    config = DiCacheConfig.preset("flowcache", **fields)
    return torch.compile(model, backend=dicache_backend, options=config.options())


def noise(chunk: int) -> Tensor:
    return torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(chunk))


def decisions(model: models.Model, row: bool = True) -> list[str]:
    """Of each chunk: 1 computed, 0 reused."""
    letters: dict[str, str] = {}
    for one in summary(model).generations:
        for name, steps in one.streams.items():
            letters[name] = letters.get(name, "") + "".join("01"[step.deep] for step in steps)
    return [letters[name] for name in sorted(letters)]


@pytest.mark.parametrize("engine", ["calls", "conditional"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_chunks_that_are_calls_decide_each_for_itself(kind: type[models.Model], engine: str) -> None:
    """An autoregressive loop: each chunk sees the one before it as it is by then, and is denoised some steps behind."""
    model = models.make(kind)
    call = compiled(model, engine=engine)
    plain = [PlainChunk(model) for _ in range(CHUNKS)]
    both = [[noise(chunk) for chunk in range(CHUNKS)] for _ in range(2)]  # the latents of ours, and of the oracle
    for now in range(STEPS + LATER * (CHUNKS - 1)):
        for chunk in range(CHUNKS):
            step = now - LATER * chunk
            if not 0 <= step < STEPS:
                continue
            time = torch.full((1,), 1 - step / STEPS)
            before = max(chunk - 1, 0)
            with stream(f"chunk {chunk}"):
                ours = call(both[0][chunk], time, both[0][before])
            theirs = plain[chunk](both[1][chunk], time, both[1][before])
            for latents, velocity in zip(both, (ours, theirs), strict=True):
                latents[chunk] = latents[chunk] - 0.15 * velocity
    found = decisions(model)
    assert found == [chunk.computed for chunk in plain]
    assert len(set(found)) > 1  # or it would not be told from one decision for all
    assert all("0" in one for one in found)
    # What is off by rounding on a step goes into all later ones.
    for one, another in zip(*both, strict=True):
        assert (one - another).abs().max() <= 1e-4 * another.abs().max()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_chunks_that_are_rows_decide_each_for_itself(kind: type[models.Model]) -> None:
    model = models.make(kind)
    call = compiled(model)
    plain = [PlainChunk(model) for _ in range(CHUNKS)]
    size = [0.4, 1.0, 2.2]  # how fast each moves
    for step in range(STEPS):
        latents = torch.cat([noise(chunk) + size[chunk] * 0.1 * step * noise(9) for chunk in range(CHUNKS)])
        times = torch.tensor([1 - (step + LATER * chunk) / (STEPS + LATER * CHUNKS) for chunk in range(CHUNKS)])
        context = torch.cat([noise(20)[:, :3] for _ in range(CHUNKS)])
        rows = [slice(chunk, chunk + 1) for chunk in range(CHUNKS)]
        theirs = [one(latents[at], times[at], context[at]) for one, at in zip(plain, rows, strict=True)]
        assert_near([call(latents, times, context)], [torch.cat(theirs)])
    found = decisions(model)
    assert found == [chunk.computed for chunk in plain]
    assert len(set(found)) == CHUNKS
