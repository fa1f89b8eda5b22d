"""The scheduler of `examples/rows.py`: requests that come and go between steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import reset, stream, summary
from dicache_compile.calls.session import sessions_of
from examples.rows import Scheduler
from tests import models
from tests.contract.test_contract import assert_near, compiled

pytestmark = pytest.mark.shares_traces
THRESHOLD = 0.1


def request(number: int) -> tuple[Tensor, Tensor, int]:
    """(noise, prompt, steps) of one."""
    generator = torch.Generator().manual_seed(number)
    return torch.randn(1, 6, 4, generator=generator), torch.randn(1, 3, 4, generator=generator), 6 + 3 * number


@torch.no_grad()
def alone(call: Any, number: int) -> Tensor:
    latents, prompt, steps = request(number)
    sigmas = torch.linspace(1, 0, steps + 1)
    for step in range(steps):
        with stream([f"alone {number}"], num_steps=steps):
            velocity = call(latents, sigmas[step : step + 1], prompt)
        latents = latents + (sigmas[step + 1] - sigmas[step]) * velocity
    return latents


def test_each_request_gets_the_picture_that_it_gets_alone() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, apart=True, rows="independent", threshold=THRESHOLD, max_streams=4)
    scheduler = Scheduler(call, at_once=2)
    pictures = {}
    for number in range(4):
        pictures[number] = scheduler.add(f"req-{number}", *request(number))
        for _ in range(3):
            scheduler.step()
    pictures[3].cancel()
    scheduler.step()
    (session,) = sessions_of(model)
    (pool,) = session.pools._known.values()
    assert "req-3" not in {one.name for one in pool._places if one is not None}
    while scheduler.step():
        pass
    for number in range(3):
        deep = [step.deep for one in summary(call).generations for step in one.streams.get(f"req-{number}", ())]
        assert len(deep) == 6 + 3 * number
        assert not all(deep)
        reset(call)
        assert_near([pictures[number].result()], [alone(call, number)])
    assert not scheduler.step()
