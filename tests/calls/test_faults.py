"""A step that is broken off anywhere leaves nothing behind for the next generation."""

from __future__ import annotations

import asyncio
import contextvars
import linecache
import random
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import generation, reset, stream, summary
from dicache_compile.errors import StepError
from tests import models
from tests.contract.test_contract import compiled

pytestmark = pytest.mark.shares_traces
STEPS = 6
THRESHOLD = 0.1
KINDS: tuple[Callable[[], BaseException], ...] = (
    KeyboardInterrupt,
    asyncio.CancelledError,
    MemoryError,
    lambda: torch.OutOfMemoryError("CUDA out of memory"),
    lambda: RuntimeError("CUDA error: an illegal memory access was encountered"),
)


class Interruption:
    """Raises at the so manyth line that runs of the package or of a piece."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.lines, self._at, self._error, self.is_reached = 0, at, error, False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        return self._line if "dicache_compile" in name or "eval_with_key" in name else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines >= self._at > 0 and not self.is_reached and not _is_with(frame):
                self.is_reached = True
                raise self._error
        return self._line

    def __enter__(self) -> Interruption:
        self._before = sys.gettrace()
        sys.settrace(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)


def _is_with(frame: FrameType) -> bool:
    """Whether this may be where a `with` is left, which no interruption comes before: Python looks for none there."""
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with ")


Loop = Callable[[Any, models.Model, int], list[Tensor]]  # a generation of that seed


def by_timesteps(call: Any, model: models.Model, seed: int) -> list[Tensor]:
    return [call(*models.inputs(model, step, STEPS, seed=seed)) for step in range(STEPS)]


def announced(call: Any, model: models.Model, seed: int) -> list[Tensor]:
    with generation(num_steps=STEPS):
        return by_timesteps(call, model, seed)


def guided(call: Any, model: models.Model, seed: int) -> list[Tensor]:
    results = []
    for step in range(STEPS):
        latents, timestep, prompt = models.inputs(model, step, STEPS, seed=seed)
        for name, sign in (("cond", 1), ("uncond", -1)):
            with stream(name):
                results.append(call(latents, timestep, sign * prompt))
    return results


def of_requests(call: Any, model: models.Model, seed: int) -> list[Tensor]:
    results = []
    for name in "abc":  # a server ends what was broken off
        reset(call, name)
    for step in range(STEPS):
        rows = [models.inputs(model, step, STEPS, seed=seed + row, batch=1) for row in range(3)]
        order = (step % 3, (step + 1) % 3)
        with stream(["abc"[row] for row in order], num_steps=STEPS):
            results.append(call(*(torch.cat(parts) for parts in zip(*(rows[row] for row in order), strict=True))))
    return results


CASES: dict[str, tuple[Loop, dict[str, Any]]] = {
    "by timesteps": (by_timesteps, {}),
    "announced": (announced, {}),
    "guided": (guided, {"joint": True}),
    "requests": (of_requests, {"rows": "independent", "max_streams": 4}),
    "captured": (announced, {"engine": "graphs"}),
    "one stream on the device": (guided, {"device_streams": 1}),
}


@pytest.mark.parametrize(
    "times", [20, pytest.param(200, marks=pytest.mark.exhaustive)], ids=lambda times: f"{times} times"
)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:the last generations of stream")  # had other lengths, as they were broken off
@torch.no_grad()
def test_what_breaks_off_anywhere_leaves_the_next_generation_as_it_is_in_a_fresh_process(case: str, times: int) -> None:
    loop, config = CASES[case]
    model = models.make(models.SingleStream)
    call = compiled(model, apart=True, threshold=THRESHOLD, **config)
    expected, recorded = dict[int, list[Tensor]](), dict[int, dict[str, str]]()
    for seed in (1, 2):
        expected[seed] = loop(call, model, seed)
        recorded[seed] = last(call)
    with Interruption(-1, KeyboardInterrupt()) as counted:
        loop(call, model, 3)
    assert counted.lines > 100 * STEPS
    rng, reached = random.Random(case), 0
    for time in range(times):
        error = KINDS[time % len(KINDS)]()
        # With more reused steps there are fewer lines. Of a capture it is told what could not be done.
        broken = Interruption(rng.randint(1, counted.lines), error)
        # A name may stay in force where a `with stream` itself is broken off: that is Python's, and ends with its task.
        contextvars.copy_context().run(interrupted, broken, partial(loop, call, model, rng.choice((2, 3, 4))), error)
        reached += broken.is_reached
        seed = rng.choice((1, 2))
        run = partial(loop, call, model, seed)
        found = in_another_thread(run) if time % 8 == 0 else run()
        assert all(torch.equal(one, other) for one, other in zip(found, expected[seed], strict=True)), (time, error)
        if case == "requests":  # a record has rows of several in turn, so that one too many would shift all others
            assert last(call) == recorded[seed], (time, error)
    assert reached > 0.6 * times


def interrupted(broken: Interruption, run: Callable[[], object], error: BaseException) -> None:
    with suppress(type(error), StepError), broken:
        run()


def last(call: Any) -> dict[str, str]:
    """What is recorded of the last generation of each request."""
    found = {}
    for one in summary(call).generations:
        for name, steps in one.streams.items():
            found[name] = "".join(str(step.decisions[0]) for step in steps)
    return found


def in_another_thread(run: Callable[[], list[Tensor]]) -> list[Tensor]:
    """What a function gives there, where a lock that is still held would be waited for."""
    found: list[list[Tensor]] = []

    def work() -> None:
        with torch.no_grad():
            found.append(run())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert found, "a lock is still held"
    return found[0]
