"""Several compiled graphs of one model: a stream's state goes on, whichever of them runs its next step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import dicache_backend, generation, stream, summary
from dicache_compile.calls.session import sessions_of
from tests import models
from tests.contract.test_contract import STEPS, assert_near
from tests.fakes.recording_device import RecordingDevice
from tests.helpers.cells import cells
from tests.helpers.published import published
from tests.oracles.plain_oracle import PlainDiCache

EXPECTED = "DDD...D..D"  # with a high threshold, three reused in a row at most, and the last step deep
Run = Callable[[Any, models.Model], list[Tensor]]


class Counted:
    """A model compiled with automatic dynamic shapes, and how many graphs Dynamo made of it."""

    def __init__(self, model: models.Model, **config: Any) -> None:
        self.graphs = 0
        settings = published(
            **{"threshold": 10.0, "num_steps": STEPS, "final_steps": 1, "lowering": "eager", "strict": True, **config}
        )

        def backend(gm: torch.fx.GraphModule, examples: Any, **options: Any) -> Any:
            self.graphs += 1
            return dicache_backend(gm, examples, options=settings.options())

        self.call = torch.compile(model, backend=backend, fullgraph=True)


def decisions(model: torch.nn.Module, name: str) -> list[str]:
    runs = [found.streams[name] for found in summary(model).generations if name in found.streams]
    return ["".join(".D"[step.deep] for step in run) for run in runs]


class Switching(models.SingleStream):
    """Takes another way at a Python flag; both are the same but for an addition of nothing."""

    flag = False

    def enter(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor, *more: Any) -> models.Carried:
        return super().enter(hidden_states + 0 if self.flag else hidden_states, timestep, prompt)


class KeepingTable(models.SingleStream):
    """Computes a table on the first call and keeps it, as models do with rotary embeddings."""

    table: Tensor | None = None

    def enter(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor, *more: Any) -> models.Carried:
        if self.table is None:
            self.table = torch.ones(hidden_states.shape[1], 1)
        return super().enter(hidden_states * self.table, timestep, prompt)


class CachingText(models.SingleStream):
    """Keeps what it makes of the prompt on the first step, so that later graphs have no such input."""

    text: Tensor | None = None

    def enter(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor, *more: Any) -> models.Carried:
        if self.text is None:
            self.text = self.embed_prompt(prompt)
        time = self.embed_time(models.sinusoid(timestep, self.width)) + self.text.mean(1)
        return {"x": self.embed(hidden_states), "time": time, "text": self.text, "skips": []}


@torch.no_grad()
def plainly(call: Any, model: models.Model) -> list[Tensor]:
    return [call(*models.inputs(model, step, STEPS)) for step in range(STEPS)]


@torch.no_grad()
def unlike_prompts(call: Any, model: models.Model) -> list[Tensor]:
    """Guidance whose two prompts differ in length: the second call makes Dynamo take lengths as numbers."""
    out = []
    for step in range(STEPS):
        latents, timestep, prompt = models.inputs(model, step, STEPS)
        for name, text in (("cond", prompt), ("uncond", -prompt[:, :2])):
            with stream(name):
                out.append(call(latents, timestep, text))
    return out


def outside_of_inference_mode(call: Any, model: models.Model) -> list[Tensor]:
    """The first latents, and every third, are made outside of the inference mode in which the model runs."""
    out = []
    for step in range(STEPS):
        inside: AbstractContextManager[Any] = torch.inference_mode() if step % 3 else nullcontext()
        with inside:
            arguments = models.inputs(model, step, STEPS)
        with torch.inference_mode():
            out.append(call(*arguments))
    return out


@torch.no_grad()
def flag_turns(call: Any, model: models.Model) -> list[Tensor]:
    out = []
    for step in range(STEPS):
        model.flag = step >= 5
        out.append(call(*models.inputs(model, step, STEPS)))
    return out


@torch.no_grad()
def cached_text(call: Any, model: models.Model) -> list[Tensor]:
    model.text = None
    return plainly(call, model)


Case = tuple[type[models.Model], Run, tuple[str, ...]]
CASES: dict[str, Case] = {
    "prompts of unlike length": (models.SingleStream, unlike_prompts, ("cond", "uncond")),
    "latents made outside": (models.SingleStream, outside_of_inference_mode, ("main",)),
    "a table that is kept": (KeepingTable, plainly, ("main",)),
    "a text cache": (CachingText, cached_text, ("main",)),
    "a flag": (Switching, flag_turns, ("main",)),
}


@pytest.mark.filterwarnings("ignore:the model was compiled again")
@cells("case, counted", list(CASES), [True, False])
def test_the_same_seed_gives_the_same_result_in_a_fresh_process_and_a_used_one(case: str, counted: bool) -> None:
    """With the steps of a generation counted by the config, and in a run that is announced."""
    kind, run, names = CASES[case]
    model = models.make(kind)
    compiled = Counted(model, streams=1, **({} if counted else {"num_steps": None}))
    results = []
    for _ in range(2):
        with nullcontext() if counted else generation(num_steps=STEPS):
            results.append(run(compiled.call, model))
    assert compiled.graphs > 1
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    for name in names:
        assert decisions(model, name) == [EXPECTED] * 2
    oracle = PlainDiCache(model, float("inf"), max_skips=3, last_forced=STEPS - 1)
    if run is plainly:
        assert_near(results[0], run(oracle, model))


@pytest.mark.filterwarnings("ignore:the model was compiled again")
def test_a_generation_that_nobody_announced_goes_on_in_another_graph() -> None:
    model = models.make(Switching)
    compiled = Counted(model, streams=1, num_steps=None, final_steps=0)
    first = flag_turns(compiled.call, model)
    again = flag_turns(compiled.call, model)
    assert decisions(model, "main") == ["DDD...D..."] * 2
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.filterwarnings("ignore:the model was compiled again")
def test_a_larger_batch_in_mid_run_gives_the_same_result_twice() -> None:
    model = models.make(models.SingleStream)
    compiled = Counted(model, streams=1)
    results = []
    for _ in range(3):
        with generation(num_steps=STEPS), torch.no_grad():
            batches = [1 if step < 4 else 3 for step in range(STEPS)]
            results.append([compiled.call(*models.inputs(model, s, STEPS, batch=b)) for s, b in enumerate(batches)])
    assert decisions(model, "main") == ["DDD.D...DD"] * 3
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_graphs_that_take_turns_are_captured_once_each(captures: RecordingDevice) -> None:
    model = models.make(models.SingleStream)
    compiled = Counted(model, streams=1, engine="conditional")
    first = outside_of_inference_mode(compiled.call, model)
    assert compiled.graphs == 2
    assert captures.done.count("warm_up") == 2
    again = outside_of_inference_mode(compiled.call, model)
    assert captures.done.count("warm_up") == 2
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert decisions(model, "main") == [EXPECTED] * 2
    # What is captured for both works on the same tensors.
    (state,) = sessions_of(model)[-1].streams.values()
    assert sum(view.recording is not None for view in state._views.values()) == 2
