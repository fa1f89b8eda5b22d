"""Calls of one model from several threads and tasks."""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import generation, reset, stream, summary
from dicache_compile.engines.base import CallsEngine
from dicache_compile.errors import CacheWarning
from tests import models
from tests.contract.test_contract import compiled, each_engine
from tests.oracles.plain_oracle import PlainDiCache

pytestmark = pytest.mark.shares_traces
STEPS, THREADS = 10, 4
THRESHOLD = 0.1


def together(work: Sequence[Callable[[], Any]]) -> list[Any]:
    """What some functions give that begin at the same time, each in a thread of its own; raises what they raise."""
    barrier = threading.Barrier(len(work))

    def run(one: Callable[[], Any]) -> Any:
        barrier.wait()
        return one()

    with ThreadPoolExecutor(len(work)) as pool:
        # In the context of this one, as Dynamo's settings are each thread's own.
        started = [pool.submit(contextvars.copy_context().run, run, one) for one in work]
        return [done.result() for done in started]


@torch.no_grad()
def steps(call: Any, model: models.Model, name: str, seed: int) -> list[Tensor]:
    results = []
    for step in range(STEPS):
        with stream(name):
            results.append(call(*models.inputs(model, step, STEPS, seed=seed)))
    return results


def deep(model: Any, name: str) -> list[bool]:
    return [step.deep for one in summary(model).generations for step in one.streams.get(name, ())]


@each_engine
def test_threads_with_streams_of_their_own_give_what_each_gives_alone(engine: str) -> None:
    """The first call of each compiles, too."""
    model = models.make(models.TwoStream)
    call = compiled(model, apart=True, threshold=THRESHOLD, engine=engine)
    names = [f"r{n}/0" for n in range(THREADS)]
    found = together([lambda n=n, name=name: steps(call, model, name, n) for n, name in enumerate(names)])
    reset(call)
    for number, name in enumerate(names):
        alone = steps(call, model, name, number)
        assert all(torch.equal(one, other) for one, other in zip(found[number], alone, strict=True))
        both = deep(call, name)
        assert both[:STEPS] == both[STEPS:]
        assert len(both) == 2 * STEPS


@pytest.mark.parametrize("name", [None, "named"])
def test_a_call_that_fails_in_another_thread_leaves_the_numbers_of_unnamed_calls_as_they_are(
    name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=math.inf, max_consecutive_skips=None)

    def fails() -> None:
        with torch.no_grad(), monkeypatch.context() as patch, generation() if name is None else stream(name):
            patch.setattr(CallsEngine, "step", _fails)
            with pytest.raises(RuntimeError, match="half-way"):
                call(*models.inputs(model, 0, STEPS, seed=5))

    with torch.no_grad(), generation("mine"):
        for step in range(6):
            latents, timestep, prompt = models.inputs(model, step, STEPS)
            call(latents, timestep, prompt)
            if step == 4:  # between the two calls of guidance
                together([fails])
            call(latents, timestep, -prompt)
    assert [deep(call, f"mine/{number}") for number in (0, 1)] == [[True] * 3 + [False] * 3] * 2


def _fails(*_: object) -> None:
    raise RuntimeError("half-way")


@pytest.mark.filterwarnings("ignore::dicache_compile.errors.CacheWarning")  # about generations that make no sense
def test_calls_of_one_stream_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, apart=True, threshold=THRESHOLD)
    steps(call, model, "warm", 0)
    inside, most = [0], [0]
    step = CallsEngine.step

    def watched(*args: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.002)
        found = step(*args)
        inside[0] -= 1
        return found

    monkeypatch.setattr(CallsEngine, "step", watched)

    def work() -> None:
        with torch.no_grad():
            for _ in range(STEPS):
                with stream("one"):
                    call(*models.inputs(model, 0, STEPS, seed=3))

    together([work] * THREADS)
    assert most == [1]
    assert sum(len(one.streams.get("one", ())) for one in summary(call).generations) >= STEPS


@pytest.mark.filterwarnings("ignore::dicache_compile.errors.CacheWarning")
def test_more_threads_than_max_streams_are_right_and_are_told_once() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, apart=True, threshold=THRESHOLD, max_streams=2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", CacheWarning)
        found = together([lambda n=n: steps(call, model, f"r{n}/0", n) for n in range(THREADS)])
        turns = [[steps_of(call, model, f"t{n}/0", n, step) for n in range(THREADS)] for step in range(STEPS)]
    assert all(result.isfinite().all() for results in (*found, *turns) for result in results)
    lost = [str(one.message) for one in told if "max_streams=2" in str(one.message)]
    assert len(lost) == 1


@torch.no_grad()
def steps_of(call: Any, model: models.Model, name: str, seed: int, step: int) -> Tensor:
    with stream(name):
        found: Tensor = call(*models.inputs(model, step, STEPS, seed=seed))
    return found


def test_tasks_keep_the_names_of_their_own_streams() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, apart=True, threshold=THRESHOLD)
    alone = [PlainDiCache(model, THRESHOLD, max_skips=3) for _ in range(3)]

    async def request(number: int) -> None:
        with generation(f"task {number}", num_steps=STEPS):
            for step in range(STEPS):
                await asyncio.sleep(0)
                arguments = models.inputs(model, step, STEPS, seed=number)
                with stream("0"), torch.no_grad():
                    call(*arguments)
                alone[number](*arguments)

    async def all_of_them() -> None:
        await asyncio.gather(*(request(number) for number in range(3)))

    asyncio.run(all_of_them())
    assert [deep(call, f"task {number}/0") for number in range(3)] == [one.deep for one in alone]


@pytest.mark.filterwarnings("ignore::dicache_compile.errors.CacheWarning")  # as often as it is reset, it begins anew
def test_a_summary_can_be_read_and_a_model_reset_while_threads_call_it() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, apart=True, threshold=THRESHOLD)
    steps(call, model, "warm", 0)
    done = threading.Event()

    def reads() -> None:
        while not done.is_set():
            str(summary(call))
            reset(call, "r1/0")

    reader = threading.Thread(target=reads)
    reader.start()
    try:
        together([lambda n=n: [steps(call, model, f"r{n}/{k}", n) for k in range(3)] for n in range(2)])
    finally:
        done.set()
        reader.join()
