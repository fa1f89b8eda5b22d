"""Calls whose graph has no timestep: it was read before a graph break, or there is none at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed

from dicache_compile import dicache_backend, explain, reset, stream, summary
from dicache_compile import generation as announced
from dicache_compile.calls.clock import EarlierClock
from dicache_compile.errors import StepError
from tests import models
from tests.contract.test_contract import STEPS
from tests.helpers.published import published


class Timeless(models.SingleStream):
    """Nothing tells it the time."""

    def forward(self, hidden_states: Tensor, prompt: Tensor) -> Tensor:  # type: ignore[override]
        carried = self.enter(hidden_states, torch.zeros(len(hidden_states)), prompt)
        return self.leave(self.run(carried, 0, self.depth))


def timeless_inputs(model: models.Model, step: int) -> tuple[Any, ...]:
    latents, _, prompt = models.inputs(model, step, STEPS)
    return latents, prompt


def compiled(model: models.Model, **config: Any) -> Any:
    options = published(threshold=float("inf"), lowering="eager", strict=True, **config).options()
    return torch.compile(model, backend=dicache_backend, fullgraph=True, options=options)


@torch.no_grad()
def generation(call: Any, model: models.Model, steps: int = STEPS) -> list[Tensor]:
    return [call(*timeless_inputs(model, step)) for step in range(steps)]


def decisions(model: models.Model, name: str = "main") -> list[str]:
    runs = [generation.streams[name] for generation in summary(model).generations]
    return ["".join(".D"[step.deep] for step in run) for run in runs]


def test_steps_without_a_timestep_are_counted() -> None:
    model = models.make(Timeless)
    call = compiled(model, streams=1, num_steps=STEPS)
    first, second = generation(call, model), generation(call, model)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert decisions(model) == ["DDD...D..."] * 2
    assert explain(model).timestep is None


def test_a_counted_generation_that_is_given_up_needs_a_reset() -> None:
    model = models.make(Timeless)
    call = compiled(model, streams=1, num_steps=STEPS)
    expected = generation(call, model)
    generation(call, model, steps=5)
    reset(model)
    assert all(torch.equal(a, b) for a, b in zip(generation(call, model), expected, strict=True))
    assert decisions(model)[-1] == "DDD...D..."


def test_a_counted_generation_that_is_given_up_needs_no_reset_where_runs_are_announced() -> None:
    model = models.make(Timeless)
    call = compiled(model, streams=1, num_steps=STEPS)
    expected = generation(call, model)
    with announced():
        generation(call, model, steps=5)
    for _ in range(2):
        with announced():
            again = generation(call, model)
        assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
    assert decisions(model) == ["DDD...D...", "DDD..", "DDD...D...", "DDD...D..."]


def test_named_streams_are_counted_each_on_its_own() -> None:
    model = models.make(Timeless)
    call = compiled(model, streams=1, num_steps=STEPS)
    with torch.no_grad():
        for step in range(STEPS):
            for name in ("cond", "uncond"):
                with stream(name):
                    call(*timeless_inputs(model, step))
    assert decisions(model, "cond") == decisions(model, "uncond") == ["DDD...D..."]


@pytest.mark.parametrize("config", [{}, {"streams": 1}, {"num_steps": STEPS}], ids=str)
def test_without_a_count_a_model_without_a_timestep_is_refused(config: dict[str, Any]) -> None:
    model = models.make(Timeless)
    with pytest.raises(BackendCompilerFailed, match="set streams=1 and num_steps="), torch.no_grad():
        compiled(model, **config)(*timeless_inputs(model, 0))


def test_a_timestep_that_an_earlier_graph_did_not_tell_is_an_error() -> None:
    with pytest.raises(StepError, match="the graph before the break in forward did not run"):
        EarlierClock(("a file", "forward")).time(())
