"""What the timestep says of generations: of several the ones that move count, and what has its form is no prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import DiCacheConfig, dicache_backend, stream, summary
from dicache_compile.calls.session import sessions_of
from tests import models
from tests.contract.test_contract import STEPS, compiled

pytestmark = pytest.mark.shares_traces


class PerToken(models.SingleStream):
    """Takes a timestep for each token."""

    def enter(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor, *more: Any) -> models.Carried:
        return super().enter(hidden_states, timestep.mean(1), prompt)


def pyramid(step: int) -> list[float]:
    """Frame after frame falls from 1 to 0: the largest stands still until the last begins, the smallest later on."""
    return [min(1.0, max(0.0, 1 - (step - 2 * frame) / 4)) for frame in range(1, 7)]


def clean_at_one(step: int) -> list[float]:
    """Noise has 0 and what is given has 1, which is the largest all the while."""
    return [1.0, 1.0, *[step / STEPS] * 4]


def the_middle(step: int) -> list[float]:
    """Neither the largest nor the smallest moves."""
    return [0.0, *[0.9 - 0.05 * step] * 4, 1.0]


VECTORS = [pyramid, clean_at_one, the_middle]


def lengths(model: torch.nn.Module) -> list[int]:
    return [len(next(iter(found.streams.values()))) for found in summary(model).generations]


@torch.no_grad()
def run(call: Any, model: models.Model, times: Any, steps: Sequence[int]) -> list[Tensor]:
    out = []
    for step in steps:
        latents, _, prompt = models.inputs(model, step, STEPS)
        out.append(call(latents, torch.tensor([times(step)] * 2), prompt))
    return out


@pytest.mark.parametrize("streams", ["auto", 1])
@pytest.mark.parametrize("times", VECTORS)
def test_a_generation_lasts_as_long_as_its_timesteps_move_on(times: Any, streams: Any) -> None:
    model = models.make(PerToken)
    call = compiled(model, threshold=10.0, streams=streams)
    steps = range(3, 3 + STEPS) if times is pyramid else range(STEPS)
    first = run(call, model, times, steps)
    run(call, model, times, steps[:4])  # given up
    again = run(call, model, times, steps)
    assert lengths(model) == [STEPS, 4, STEPS]
    assert {name for found in summary(model).generations for name in found.streams} == {
        "0" if streams == "auto" else "main"
    }
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_queue_of_frames_has_the_same_timesteps_on_every_step() -> None:
    model = models.make(PerToken)
    call = compiled(model, threshold=10.0, streams=1)
    run(call, model, lambda _: [0.1, 0.3, 0.5, 0.7, 0.9, 1.0], range(STEPS))
    # The second step looks like the first of another run; the third cannot.
    assert lengths(model) == [1, STEPS - 1]


class TwoTimes(models.SingleStream):
    """Takes the size of the step, and how strong guidance is, besides the timestep."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor, dt: Tensor, guidance: Tensor
    ) -> Tensor:
        carried = self.enter(hidden_states, timestep, prompt)
        extra = models.sinusoid(dt, self.width) + models.sinusoid(guidance, self.width)
        return self.leave(self.run({**carried, "time": carried["time"] + extra}, 0, self.depth))


def test_a_second_step_size_and_guidance_are_no_prompt() -> None:
    model = models.make(TwoTimes)
    call = compiled(model, threshold=10.0, streams=1)
    times = torch.linspace(1, 0, 21)
    sizes = times[:-1] - times[1:]
    assert len(sizes.unique()) > 1  # equal but for rounding
    with torch.no_grad():
        for step in range(20):
            latents, _, prompt = models.inputs(model, step, 20)
            guidance = torch.full((2,), 3.5 if step < 8 else 2.0)
            call(latents, times[step].repeat(2), prompt, sizes[step].repeat(2), guidance)
    assert lengths(model) == [20]


@pytest.mark.parametrize(("change", "expected"), [(2.0**-23, [STEPS]), (2.0**-6, [6, STEPS - 6])])
def test_a_prompt_that_differs_by_rounding_is_the_same(change: float, expected: list[int]) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0, streams=1)
    with torch.no_grad():
        for step in range(STEPS):
            latents, timestep, prompt = models.inputs(model, step, STEPS)
            call(latents, timestep, prompt * (1 + change) if step >= 6 else prompt)
    assert lengths(model) == expected


def test_a_prompt_in_whole_numbers_that_differs_by_one_is_another() -> None:
    class Tokens(models.SingleStream):
        def enter(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor, *more: Any) -> models.Carried:
            return super().enter(hidden_states, timestep, (prompt[..., None] % 7 + torch.zeros(4)) / 7)

    model = models.make(Tokens)
    call = compiled(model, threshold=10.0, streams=1)
    ids = torch.arange(200, 1200).reshape(2, 500)
    other = ids.clone()
    other[1, 77] += 1
    with torch.no_grad():
        for step in range(STEPS):
            latents, timestep, _ = models.inputs(model, step, STEPS)
            call(latents, timestep, other if step >= 6 else ids)
    assert lengths(model) == [6, STEPS - 6]


class Broken(models.SingleStream):
    """Breaks the graph between the timestep's embedding and the trunk."""

    def forward(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:  # type: ignore[override]
        carried = self.enter(hidden_states, timestep, prompt)
        torch._dynamo.graph_break()
        return self.leave(self.run(carried, 0, self.depth))


def broken(model: models.Model, **config: Any) -> Any:
    options = DiCacheConfig(threshold=10.0, lowering="eager", **config).options()
    return torch.compile(model, backend=dicache_backend, options=options)


def test_unnamed_calls_with_equal_inputs_behind_a_graph_break_are_told_apart_from_the_second_step_on() -> None:
    model = models.make(Broken)
    call = broken(model)
    with torch.no_grad():
        for step in range(STEPS):
            for _ in range(2):
                call(*models.inputs(model, step, STEPS))
    streams = summary(model).generations[-1].streams
    assert set(streams) == {"0", "1"}
    assert len(streams["0"]) == STEPS
    assert len(streams["1"]) == STEPS - 1
    assert not all(step.deep for step in streams["0"])


def test_a_vector_of_timesteps_is_told_across_a_graph_break() -> None:
    class BrokenPerToken(Broken):
        def enter(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor, *more: Any) -> models.Carried:
            return super().enter(hidden_states, timestep.mean(1), prompt)

    model = models.make(BrokenPerToken)
    call = broken(model, streams=1)
    with stream("s"):
        for _ in range(2):
            run(call, model, pyramid, range(3, 3 + STEPS))
    assert lengths(model) == [STEPS, STEPS]
    assert "s" in sessions_of(model)[-1].streams
