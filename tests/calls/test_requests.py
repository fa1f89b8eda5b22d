"""Rows of a batch that are requests: they come, go and change places, and each is what it is alone."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from dicache_compile import generation, reset, stream, summary
from dicache_compile.calls.session import sessions_of
from dicache_compile.engines.base import CallsEngine
from dicache_compile.errors import StepError
from tests import models
from tests.contract.test_contract import assert_near, compiled, each_engine
from tests.contract.test_rows import together
from tests.oracles.plain_oracle import PlainDiCache

pytestmark = pytest.mark.shares_traces
THRESHOLD = 0.1
MANY = 200


@dataclass(eq=False)
class Served:
    """A request, and what it is alone."""

    name: str
    steps: int
    seed: int
    alone: PlainDiCache
    gives_up_after: int | None = None
    done: int = 0
    errors: list[float] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return self.done >= (self.steps if self.gives_up_after is None else self.gives_up_after)

    def arguments(self, model: models.Model, **sizes: int) -> tuple[Any, ...]:
        return models.inputs(model, self.done, self.steps, seed=self.seed, batch=1, **sizes)


def pooled(model: models.Model, **config: Any) -> Any:
    return compiled(model, apart=True, rows="independent", **config)  # as batches have several sizes


def request(model: models.Model, number: int, steps: int, **more: Any) -> Served:
    return Served(f"req-{number}", steps, number, PlainDiCache(model, THRESHOLD, max_skips=3), **more)


@torch.no_grad()
def step(call: Any, model: models.Model, batch: Sequence[Served], **sizes: int) -> None:
    """One step of a batch, of which each row has to be what it is alone."""
    rows = [one.arguments(model, **sizes) for one in batch]
    with stream([one.name for one in batch], num_steps=[one.steps for one in batch]):
        ours = call(*(together(parts) for parts in zip(*rows, strict=True)))
    for place, (one, arguments) in enumerate(zip(batch, rows, strict=True)):
        assert_near([ours[place : place + 1]], [one.alone(*arguments)])
        one.done += 1


def decided(model: Any) -> dict[str, list[bool]]:
    """Whether each request ran deep, step by step."""
    return {name: [s.deep for s in steps] for one in summary(model).generations for name, steps in one.streams.items()}


def serve(call: Any, model: models.Model, requests: Sequence[Served], capacity: int, at_once: int, seed: int) -> None:
    """Steps of batches of whoever is there, as a server makes them."""
    rng = random.Random(seed)
    waiting, running, over = list(requests), list[Served](), list[Served]()
    while waiting or running:
        while waiting and len(running) < capacity and (not running or rng.random() < 0.6):
            running.append(waiting.pop(0))
        batch = rng.sample(running, min(len(running), rng.randint(1, at_once)))
        step(call, model, batch)
        for one in [one for one in running if one.is_over]:
            if one.gives_up_after is not None:
                reset(call, one.name)
            running.remove(one)
            over.append(one)
        if len(over) == 40 or not (waiting or running):  # the record is long enough for these
            found = decided(call)
            assert all(found[one.name] == one.alone.deep for one in over)
            over.clear()


def test_two_hundred_requests_at_random_are_each_what_they_are_alone() -> None:
    model = models.make(models.TwoStream)
    call = pooled(model, threshold=THRESHOLD, max_streams=6)
    rng = random.Random(0)
    lengths = [rng.randint(1, 14) for _ in range(MANY)]
    ends = [rng.choice((None, None, rng.randint(1, steps))) for steps in lengths]
    requests = [request(model, n, lengths[n], gives_up_after=ends[n]) for n in range(MANY)]
    serve(call, model, requests, capacity=6, at_once=4, seed=1)
    assert len({tuple(one.alone.deep) for one in requests}) > 20, "requests that all do the same show nothing"
    (session,) = sessions_of(model)
    assert not session.streams
    kept = session.pools.tensors()
    assert max(len(tensor) for tensor in kept if tensor.dim() == 3) == 6


@each_engine
def test_requests_of_all_engines_move_between_places_and_batches(engine: str) -> None:
    model = models.make(models.SingleStream)
    call = pooled(model, threshold=THRESHOLD, engine=engine, max_streams=4)
    a, b, c, d = (request(model, number, steps) for number, steps in enumerate((12, 9, 7, 12), start=1))
    for batch in ((a, b, c), (c, a, b), (a, b), (b, a), (d, b, a), (c, d), (a, c, d), (d, a), (a, d, c), (b, c)):
        step(call, model, batch)
    found = decided(call)
    assert [found[one.name] for one in (a, b, c, d)] == [one.alone.deep for one in (a, b, c, d)]
    (session,) = sessions_of(model)
    before = [tensor.data_ptr() for tensor in session.pools.tensors()]
    step(call, model, (c, a, b))
    assert [tensor.data_ptr() for tensor in session.pools.tensors()] == before


def test_a_full_pool_refuses_a_new_request_and_changes_nothing() -> None:
    model = models.make(models.SingleStream)
    call = pooled(model, threshold=THRESHOLD, max_streams=2)
    a, b, c = (request(model, number, 4) for number in range(3))
    step(call, model, (a, b))
    with pytest.raises(StepError, match=r"1 new requests \('req-2'\) for 0 free places: 2 requests .*max_streams=2"):
        step(call, model, (a, c))
    with pytest.raises(StepError, match="3 new requests"):
        step(call, model, [request(model, number, 4) for number in (7, 8, 9)])
    for _ in range(3):
        step(call, model, (b, a))  # which goes on, to its end
    step(call, model, (c,))  # and has left a place
    reset(call, "req-2")
    reset(call, "nobody")
    step(call, model, (request(model, 4, 4), request(model, 5, 4)))


def test_a_cancelled_request_that_comes_again_begins_anew() -> None:
    model = models.make(models.SingleStream)
    call = pooled(model, threshold=THRESHOLD)
    a, b = request(model, 1, 10), request(model, 2, 10)
    for _ in range(5):
        step(call, model, (a, b))
    reset(call, a.name)
    again = request(model, 1, 10)
    for _ in range(5):
        step(call, model, (b, again))
    assert decided(call)["req-1"] == again.alone.deep
    with pytest.raises(TypeError, match="request: expected the name of one, got 3"):
        reset(call, 3)  # type: ignore[arg-type]


def test_the_calls_of_guidance_are_lanes_in_which_each_request_follows_its_own_first_call() -> None:
    model = models.make(models.SingleStream)
    call = pooled(model, joint=True, threshold=THRESHOLD)
    leaders = {name: PlainDiCache(model, THRESHOLD, max_skips=3) for name in "abc"}
    others = {name: PlainDiCache(model, THRESHOLD, max_skips=3, leader=leaders[name]) for name in "abc"}
    at = dict.fromkeys("abc", 0)
    for names in ("ab", "cab", "bc", "acb", "ca", "bca", "abc", "abc", "cb", "a"):
        rows = [models.inputs(model, at[name], 10, seed=ord(name), batch=1) for name in names]
        with stream(list(names), num_steps=10), torch.no_grad():
            for lane, alone, sign in (("cond", leaders, 1), ("uncond", others, -1)):
                latents, timestep, prompt = (torch.cat(parts) for parts in zip(*rows, strict=True))
                with stream(lane):
                    ours = call(latents, timestep, sign * prompt)
                theirs = [alone[name](x, t, sign * p) for name, (x, t, p) in zip(names, rows, strict=True)]
                assert_near([ours], [torch.cat(theirs)])
        for name in names:
            at[name] += 1
    found = decided(call)
    assert {f"{name}/{lane}" for name in "abc" for lane in ("cond", "uncond")} <= found.keys()
    assert all(found[f"{name}/uncond"] == found[f"{name}/cond"] == leaders[name].deep for name in "abc")


def test_without_a_number_of_steps_the_timestep_tells_where_a_request_begins() -> None:
    model = models.make(models.SingleStream)
    call = pooled(model, threshold=math.inf, warmup_steps=2, max_consecutive_skips=2)
    with torch.no_grad():
        for place in range(12):
            a = models.inputs(model, place % 6, 6, seed=1, batch=1)
            b = models.inputs(model, place, 12, seed=2, batch=1)
            pair = (("a", a), ("b", b)) if place % 2 else (("b", b), ("a", a))
            with stream([name for name, _ in pair]):
                call(*(torch.cat(parts) for parts in zip(*(row for _, row in pair), strict=True)))
    marks = {}
    for one in summary(call).generations:
        for name, steps in one.streams.items():
            marks[name] = marks.get(name, "") + "".join(str(s.decisions[0]) for s in steps)
    assert marks == {"a": "dd..D." * 2, "b": "dd..D..D..D."}


def test_a_step_that_fails_leaves_its_rows_without_anchors_and_the_others_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = models.make(models.SingleStream)
    call = pooled(model, threshold=math.inf, warmup_steps=2, max_consecutive_skips=None)

    def go(rows: Sequence[str], at: int) -> None:
        with stream(list(rows), num_steps=9), torch.no_grad():
            call(*models.inputs(model, at, 9, batch=len(rows)))

    for at in range(4):
        go("abc", at)
    with monkeypatch.context() as patch:
        patch.setattr(CallsEngine, "step", _spoils)
        with pytest.raises(RuntimeError, match="half-way"):
            go("ba", 4)
    for at in range(4, 7):
        go("bac", at)
    found = {name: "".join(".D"[deep] for deep in deeps) for name, deeps in decided(call).items()}
    assert {name: marks[-3:] for name, marks in found.items()} == {"a": "D..", "b": "D..", "c": "..."}


def _spoils(engine: CallsEngine, inputs: Any, state: Any, *more: Any) -> Any:
    """A step that is recorded, and leaves nonsense behind."""
    for name, value in state.tensors.items():
        if value.is_floating_point() and name not in ("log", *state.told):  # which no step writes
            value.fill_(math.nan)
    state.tensors["logged"].add_(2)
    raise RuntimeError("half-way")


def test_requests_of_another_size_have_a_pool_of_their_own() -> None:
    model = models.make(models.SingleStream)
    call = pooled(model, threshold=THRESHOLD, max_streams=2)
    small, large = request(model, 1, 6), request(model, 2, 6)
    for _ in range(6):
        step(call, model, (small,), tokens=6)
        step(call, model, (large,), tokens=9)
    found = decided(call)
    assert [found["req-1"], found["req-2"]] == [small.alone.deep, large.alone.deep]


def test_state_in_float8_moves_with_its_requests() -> None:
    model = models.make(models.SingleStream)
    results = {}
    for moves in (False, True):
        call = pooled(model, threshold=0.4, state_dtype=torch.float8_e4m3fn)
        reset(call)
        results[moves] = []
        with torch.no_grad():
            for at in range(10):
                rows = [models.inputs(model, at, 10, seed=seed, batch=1) for seed in (1, 2)]
                order = (1, 0) if moves and at % 3 else (0, 1)
                with stream([f"{moves} {place}" for place in order], num_steps=10):
                    ours = call(*(torch.cat(parts) for parts in zip(*(rows[place] for place in order), strict=True)))
                results[moves].append(torch.stack([ours[order.index(place)] for place in (0, 1)]))
    assert_near(results[True], results[False])


def test_in_an_announced_run_all_rows_are_of_that_run() -> None:
    model = models.make(models.SingleStream)
    call = pooled(model, threshold=math.inf, warmup_steps=2, max_consecutive_skips=2)
    for _ in range(2):
        with stream(["a", "b"]), generation(num_steps=6), torch.no_grad():
            for _step in range(6):
                call(*models.inputs(model, 0, 6))  # whose timestep tells nothing
    marks = [
        "".join(str(s.decisions[0]) for s in steps)
        for one in summary(call).generations
        for steps in one.streams.values()
    ]
    assert marks == ["dd..D."] * 4


def test_shares_of_a_run_are_those_of_each_requests_own_number_of_steps() -> None:
    model = models.make(models.SingleStream)
    call = pooled(model, deep_steps=(0.0, 0.5), threshold=math.inf, warmup_steps=1, max_consecutive_skips=None)
    with torch.no_grad():
        for at in range(8):
            with stream(["a", "b"], num_steps=[8, 12]):
                call(*models.inputs(model, at, 8))
    found = {name: [n for n, deep in enumerate(deeps) if deep] for name, deeps in decided(call).items()}
    assert found == {"a": [0, 4], "b": [0, 6]}


def test_rows_are_refused_that_cannot_be_these_requests() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=0.1)
    with stream(["a", "b"]), torch.no_grad(), pytest.raises(StepError, match="set rows='independent'"):
        call(*models.inputs(model, 0, 8))
    call = pooled(model, threshold=0.1)
    with stream(["a", "b", "c"]), torch.no_grad(), pytest.raises(StepError, match="the batch has 2 rows, and stream"):
        call(*models.inputs(model, 0, 8))


@pytest.mark.parametrize(
    ("names", "more", "error", "told"),
    [
        ([], {}, ValueError, "an empty list"),
        (["a", "a"], {}, ValueError, "'a' is there 2 times"),
        (["a", ""], {}, ValueError, "got an empty one"),
        (["a", 3], {}, TypeError, "expected a name, got 3"),
        (3, {}, TypeError, "or a list with one for each row, got 3"),
        ("a", {"num_steps": 3}, TypeError, "got one name"),
        (["a", "b"], {"num_steps": [3]}, ValueError, "for each of 2 rows, got 1"),
        (["a"], {"num_steps": 0}, ValueError, "expected at least 1, got 0"),
        (["a"], {"num_steps": 2.5}, TypeError, "expected a whole number, got 2.5"),
    ],
)
def test_names_of_rows_that_are_none_are_refused(names: Any, more: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        stream(names, **more)


def test_names_of_rows_are_left_in_their_order() -> None:
    rows = stream(["a", "b"])
    with pytest.raises(StepError, match=r"stream\(\['a', 'b'\]\) is left in another order"):
        rows.__exit__(None, None, None)
    with rows, stream("cond") as inner:
        assert repr(inner) == "stream('cond')"
