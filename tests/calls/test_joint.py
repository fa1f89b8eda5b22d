"""Streams that decide together: the first of a request's calls at a timestep decides, the others do as it did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import DiCacheConfig, reset, stream, summary
from dicache_compile.calls.session import sessions_of
from tests import models
from tests.contract.test_contract import DTYPES, ENGINES, KINDS, STEPS, assert_near, compiled, each_engine
from tests.helpers.cells import cells
from tests.oracles.plain_oracle import PlainDiCache

pytestmark = pytest.mark.shares_traces
THRESHOLD = 0.12  # at which the second stream, whose latents move more, decides otherwise if left to itself


def arguments(model: models.Model, name: str, step: int, steps: int = STEPS, **sizes: int) -> tuple[Any, ...]:
    """The first stream's inputs, or another one's that move more from step to step."""
    latents, timestep, *more = models.inputs(model, step, steps, **sizes)
    first = models.inputs(model, 0, steps, **sizes)[0]
    return (
        latents if name.endswith("cond") and not name.endswith("uncond") else 3 * latents - 2 * first,
        timestep,
        *more,
    )


@torch.no_grad()
def together(call: Any, model: models.Model, names: Sequence[str] = ("cond", "uncond"), **sizes: int) -> list[Tensor]:
    """A generation of several streams, step by step."""
    out = []
    for step in range(STEPS):
        for name in names:
            with stream(name):
                out.append(call(*arguments(model, name, step, **sizes)))
    return out


def decisions(model: models.Model, generation: int = -1) -> dict[str, str]:
    streams = summary(model).generations[generation].streams
    return {name: "".join(".D"[step.deep] for step in steps) for name, steps in streams.items()}


@cells("kind, engine, dtype, error", KINDS, ENGINES, DTYPES, ["probe", "estimate"])
def test_the_second_stream_does_as_the_first_and_equals_the_oracle(
    kind: type[models.Model], engine: str, dtype: torch.dtype, error: str
) -> None:
    model = models.make(kind, dtype)
    call = compiled(model, threshold=THRESHOLD, joint=True, error=error, engine=engine)
    leader = PlainDiCache(model, THRESHOLD, error=error, max_skips=3)
    follower = PlainDiCache(model, THRESHOLD, error=error, max_skips=3, leader=leader)
    expected = []
    for step in range(STEPS):
        expected += [leader(*arguments(model, "cond", step)), follower(*arguments(model, "uncond", step))]
    assert_near(together(call, model), expected)
    assert leader.deep == follower.deep
    assert decisions(model) == {name: "".join(".D"[deep] for deep in leader.deep) for name in ("cond", "uncond")}


def apart_and_together(**config: Any) -> tuple[dict[str, str], dict[str, str]]:
    model = models.make(models.TwoStream)
    found = []
    for joint in (False, True):
        reset(model)
        together(compiled(model, threshold=THRESHOLD, joint=joint, **config), model)
        found.append(decisions(model))
    return found[0], found[1]


@pytest.mark.parametrize("error", ["probe", "estimate"])
def test_left_to_themselves_they_would_decide_otherwise(error: str) -> None:
    apart, joint = apart_and_together(error=error)
    assert apart["cond"] != apart["uncond"]
    assert joint["cond"] == joint["uncond"] == apart["cond"]


def test_each_request_has_a_leader_of_its_own() -> None:
    model = models.make(models.TwoStream)
    call = compiled(model, threshold=THRESHOLD, joint=True)
    # "b" has the latents that move more in both of its streams.
    together(call, model, ["a/cond", "b/x", "a/uncond", "b/y"])
    found = decisions(model)
    assert found["a/cond"] == found["a/uncond"] != found["b/x"] == found["b/y"]


def test_unnamed_calls_of_a_timestep_decide_together() -> None:
    model = models.make(models.TwoStream)
    call = compiled(model, threshold=THRESHOLD, joint=True)
    with torch.no_grad():
        for step in range(STEPS):
            for name in ("cond", "uncond"):
                latents, timestep, prompt = arguments(model, name, step)
                call(latents, timestep, prompt if name == "cond" else -prompt)
    found = decisions(model)
    assert found["0"] == found["1"]
    assert "." in found["0"][:-1]


def test_a_timestep_that_comes_twice_is_decided_twice() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=0.5, joint=True)
    with torch.no_grad():
        for step, sign in ((0, 1), (1, 1), (2, 1), (3, 1), (3, -1)):  # the last is nothing like the one before
            for name in ("cond", "uncond"):
                latents, *more = arguments(model, name, step)
                with stream(name):
                    call(sign * latents, *more)
    assert decisions(model) == {"cond": "DDD.D", "uncond": "DDD.D"}


def test_a_follower_runs_deep_where_its_error_is_no_number() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=math.inf, joint=True, max_consecutive_skips=None)
    with torch.no_grad():
        for step in range(6):
            for name in ("cond", "uncond"):
                latents, *more = arguments(model, name, step)
                with stream(name):
                    call(latents * math.nan if (name, step) == ("uncond", 4) else latents, *more)
    assert decisions(model) == {"cond": "DDD...", "uncond": "DDD.DD"}  # the step after it is compared with NaN


def test_a_stream_that_is_called_alone_decides_by_itself() -> None:
    model = models.make(models.TwoStream)
    call = compiled(model, threshold=THRESHOLD, joint=True)
    together(call, model, ["uncond"])
    alone = decisions(model)["uncond"]
    apart, _ = apart_and_together()
    assert alone == apart["uncond"]


def test_a_leader_that_failed_decides_nothing_of_the_others() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=math.inf, joint=True)
    with torch.no_grad():
        for step in range(4):
            for name in ("cond", "uncond"):
                if (name, step) == ("uncond", 3):  # the reused step of "cond" before it fails, and is tried again
                    sessions_of(model)[-1].drop("cond")
                    with stream("cond"):
                        call(*arguments(model, "cond", step))
                with stream(name):
                    call(*arguments(model, name, step))
    assert decisions(model, 0)["uncond"] == "DDDD"  # for "cond" a generation has begun


@each_engine
def test_what_was_given_up_decides_nothing_of_the_next_generation(engine: str) -> None:
    model = models.make(models.TwoStream)
    call = compiled(model, threshold=THRESHOLD, joint=True, engine=engine)
    first = together(call, model)
    for given_up in range(1, 2 * STEPS):
        with torch.no_grad():
            for place in range(given_up):
                step, second = divmod(place, 2)
                with stream(name := ("cond", "uncond")[second]):
                    call(*arguments(model, name, step))
        again = together(call, model)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), f"after {given_up} calls"


@pytest.mark.parametrize("engine", ["calls", "conditional"])
def test_streams_decide_together_after_another_shape_and_back(engine: str) -> None:
    model = models.make(models.TwoStream)
    call = compiled(model, apart=True, threshold=THRESHOLD, joint=True, engine=engine)
    first = together(call, model)
    together(call, model, tokens=7)
    again = together(call, model)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert decisions(model)["cond"] == decisions(model)["uncond"]


def test_a_request_does_not_take_over_what_was_captured_for_another() -> None:
    model = models.make(models.TwoStream)
    call = compiled(model, threshold=THRESHOLD, joint=True, engine="conditional")
    kinds = ("cond", "uncond", "other")  # three, so that requests do not give way as a whole
    first = together(call, model, kinds)
    for number in range(DiCacheConfig.max_streams // 2):
        names = [f"{number}/{kind}" for kind in kinds]
        assert all(torch.equal(a, b) for a, b in zip(first, together(call, model, names), strict=True))
        assert len(set(decisions(model).values())) == 1
