"""Requests that are rows where there are several pools: of other sizes, of a full budget; and who gives way to whom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import Schedule, generation, reset, stream, summary
from dicache_compile.calls.seats import Progress, Request, seated
from dicache_compile.calls.session import sessions_of
from dicache_compile.engines.base import CallsEngine
from dicache_compile.errors import StepError
from dicache_compile.estimators import GuidanceDifference
from tests import models
from tests.calls.test_requests import THRESHOLD, decided, pooled, request, step
from tests.contract.test_contract import assert_near, each_engine
from tests.oracles.plain_oracle import PlainDiCache

pytestmark = pytest.mark.shares_traces
SMALL, LARGE = 6, 9  # tokens


def marks(call: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in summary(call).generations:
        for name, steps in one.streams.items():
            found[name] = found.get(name, "") + "".join(str(s.decisions[0]) for s in steps)
    return found


@torch.no_grad()
def go(call: Any, model: models.Model, at: int, tokens: int, steps: int = 8) -> Tensor:
    with stream(["a"], num_steps=steps):
        found: Tensor = call(*models.inputs(model, at, steps, seed=1, batch=1, tokens=tokens))
    return found


@each_engine
def test_a_request_that_comes_in_another_size_counts_on_and_finds_no_anchor_of_before(engine: str) -> None:
    """As a stream does. Where it comes back to the first size, what it left there is too old to go on with."""
    model = models.make(models.SingleStream)
    rule = {"threshold": math.inf, "warmup_steps": 2, "max_consecutive_skips": 3}
    call = pooled(model, engine=engine, **rule)
    sizes = [LARGE if at in (3, 4, 5) else SMALL for at in range(8)]
    found = [go(call, model, at, tokens) for at, tokens in enumerate(sizes)]
    assert marks(call) == {"a": "dd.d..d."}
    alone = pooled(model, engine=engine, **rule)
    reset(alone)
    with generation("a", num_steps=8), torch.no_grad():
        theirs = [
            alone(*models.inputs(model, at, 8, seed=1, batch=1, tokens=tokens)) for at, tokens in enumerate(sizes)
        ]
    assert all(torch.equal(one, other) for one, other in zip(found, theirs, strict=True))


def test_a_request_that_has_ended_in_another_size_begins_anew_under_its_name() -> None:
    model = models.make(models.SingleStream)
    call = pooled(model, threshold=math.inf, warmup_steps=2, max_consecutive_skips=3, max_streams=1)
    for at in range(8):
        go(call, model, at, SMALL if at < 4 else LARGE)
    for at in range(8):  # of the same prompt
        go(call, model, at, SMALL)
    assert marks(call) == {"a": "dd..d..." + "dd...D.."}
    with stream(["b"], num_steps=8), torch.no_grad():  # both places of "a" are free
        for tokens in (SMALL, LARGE):
            call(*models.inputs(model, 0, 8, batch=1, tokens=tokens))


def test_calls_of_guidance_that_are_of_other_sizes_decide_together_all_the_same() -> None:
    """As where the tokens of unlike prompts leave the blocks, too."""
    model = models.make(models.SingleStream)
    call = pooled(model, joint=True, threshold=THRESHOLD)
    leaders = {name: PlainDiCache(model, THRESHOLD, max_skips=3) for name in "abc"}
    others = {name: PlainDiCache(model, THRESHOLD, max_skips=3, leader=leaders[name]) for name in "abc"}
    at = dict.fromkeys("abc", 0)
    for names in ("ab", "cab", "bc", "acb", "ca", "bca", "abc", "abc", "cb", "a"):
        for lane, alone, tokens, seed in (("cond", leaders, SMALL, 0), ("uncond", others, LARGE, 50)):
            rows = [models.inputs(model, at[name], 10, seed=ord(name) + seed, batch=1, tokens=tokens) for name in names]
            with stream(list(names), num_steps=10), stream(lane), torch.no_grad():
                ours = call(*(torch.cat(parts) for parts in zip(*rows, strict=True)))
            theirs = [alone[name](*row) for name, row in zip(names, rows, strict=True)]
            assert_near([ours], [torch.cat(theirs)])
        for name in names:
            at[name] += 1
    found = decided(call)
    assert all(found[f"{name}/uncond"] == found[f"{name}/cond"] == leaders[name].deep for name in "abc")
    assert len({tuple(one.deep) for one in leaders.values()}) > 1


def test_what_a_failed_call_of_guidance_gave_is_not_taken_by_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.make(models.SingleStream)
    call = pooled(model, sites="model", schedule=Schedule.every(3, after=1), estimator=GuidanceDifference())

    def both(at: int, lanes: Sequence[str] = ("cond", "uncond")) -> list[Tensor]:
        latents, timestep, prompt = models.inputs(model, at, 8)
        found = []
        for lane in lanes:
            with stream(["a", "b"], num_steps=8), stream(lane), torch.no_grad():
                found.append(call(latents, timestep, prompt if lane == "cond" else -prompt))
        return found

    for at in range(2):
        both(at)
    with monkeypatch.context() as patch:
        patch.setattr(CallsEngine, "step", _breaks)
        with pytest.raises(RuntimeError, match="at the end"):
            both(2, ["cond"])
    (uncond,) = both(2, ["uncond"])
    latents, timestep, prompt = models.inputs(model, 2, 8)
    assert torch.equal(uncond, model(latents, timestep, -prompt))


_step = CallsEngine.step


def _breaks(engine: CallsEngine, inputs: Any, state: Any, *more: Any) -> Any:
    """A step that fails when all of it is written, and what it gave is nonsense."""
    _step(engine, inputs, state, *more)
    for name, value in state.tensors.items():
        if "partner" in name and value.is_floating_point() and value.numel() > 8:
            value.fill_(1e3)
    raise RuntimeError("at the end")


def test_to_end_a_request_ends_its_rows_of_guidance() -> None:
    model = models.make(models.SingleStream)
    call = pooled(model, threshold=THRESHOLD, max_streams=2)
    with torch.no_grad():
        for name in "ab":
            with stream([f"{name}/uncond", f"{name}/cond"], num_steps=8):
                call(*models.inputs(model, 0, 8))
            reset(call, name)
            reset(call, "a/c")  # which is nobody


def test_a_pool_whose_requests_have_ended_gives_way_to_another_size() -> None:
    model = models.make(models.SingleStream)
    call = pooled(model, threshold=THRESHOLD)
    go(call, model, 0, LARGE, steps=1)
    (session,) = sessions_of(model)
    own = session.pools.bytes()
    reset(call)
    call = pooled(model, threshold=THRESHOLD, max_state_bytes=own)
    for tokens in (SMALL, LARGE, SMALL, 7):
        go(call, model, 0, tokens, steps=1)
        assert sessions_of(call)[-1].pools.bytes() <= own
    go(call, model, 0, 7, steps=2)
    with pytest.raises(StepError, match=r"beside 0\.\d\d MiB of other requests, and max_state_bytes allows"):
        go(call, model, 0, LARGE, steps=1)
    go(call, model, 1, 7, steps=2)
    assert marks(call)["a"][-2:] == "dd"


def test_a_pool_that_is_refused_takes_nothing_of_the_streams_that_there_are() -> None:
    model = models.make(models.SingleStream)
    call = pooled(model, threshold=THRESHOLD)
    go(call, model, 0, LARGE, steps=1)
    own = sessions_of(model)[-1].pools.bytes()
    call = pooled(model, threshold=THRESHOLD, max_state_bytes=own + own // 2)
    go(call, model, 0, SMALL)
    with torch.no_grad(), stream("s"):
        call(*models.inputs(model, 0, 8, batch=1, tokens=SMALL))
        streams = list(sessions_of(call)[-1].streams)
        with pytest.raises(StepError, match="the pool of requests"):
            go(call, model, 0, LARGE)
    assert list(sessions_of(call)[-1].streams) == streams


@pytest.mark.filterwarnings("ignore::dicache_compile.errors.CacheWarning")  # of streams that give way
def test_the_record_of_requests_outlives_that_of_streams_which_came_and_went_meanwhile() -> None:
    model = models.make(models.SingleStream)
    call = pooled(model, threshold=THRESHOLD, max_streams=2)
    a = request(model, 1, 8)
    for at in range(8):
        step(call, model, (a,))
        with torch.no_grad():
            for number in range(10):
                with stream(f"{at} {number}/0"):
                    call(*models.inputs(model, 0, 8, batch=1))
    assert decided(call)[a.name] == a.alone.deep


def test_a_request_that_may_have_a_call_left_keeps_its_place_longest() -> None:
    """Of guidance's last step the second call is still to come, while another thread brings a new request."""
    done, waits = Progress(calls=4, steps=4), Progress(calls=3, steps=4)
    a = Request("a", {"cond": done, "uncond": waits}, last=1)
    b, c = (Request(name, {"cond": done, "uncond": done}, last=last) for name, last in (("b", 3), ("c", 2)))
    found = seated((a, b, c), ["d"])
    assert [one.name for one in found.places if one is not None] == ["d", "b", "a"]
    with pytest.raises(StepError, match="4 new requests"):
        seated((a, b, c), list("defg"))
