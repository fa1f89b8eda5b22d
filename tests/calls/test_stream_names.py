"""Streams as objects: kept, passed on, entered many times, and what happens where they are left in another order."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dicache_compile import generation, stream, summary
from dicache_compile.calls.runs import current_run
from dicache_compile.calls.streams import current_name, pipeline_stream
from dicache_compile.errors import StepError
from tests import models
from tests.contract.test_contract import STEPS, compiled

pytestmark = pytest.mark.shares_traces


def test_a_stream_can_be_entered_again_and_inside_itself() -> None:
    one = stream("a")
    for _ in range(2):
        with one, stream("b"), one:
            assert current_name() == "a"
        assert current_name() is None
    assert repr(one) == "stream('a')"


def test_a_streams_call_is_of_it_in_any_thread() -> None:
    one = stream("a")
    with ThreadPoolExecutor(1) as pool, stream("b"):
        assert pool.submit(one.call, current_name).result() == "a"
        assert pool.submit(current_name).result() is None
        assert one.call(current_name) == "a"
        assert current_name() == "b"


def test_a_stream_brings_the_run_along_in_which_it_was_made() -> None:
    with ThreadPoolExecutor(1) as pool:
        with generation("request", num_steps=4):
            run, one = current_run(), stream("cond")
            assert run is not None
            assert pool.submit(one.call, current_run).result() is run
            assert pool.submit(current_run).result() is None
        assert pool.submit(one.call, current_run).result() is None  # it has ended


def test_names_in_a_named_generation_stand_below_it() -> None:
    with stream("user"), generation("request"):
        assert current_name() is None  # unnamed calls are numbered
        with stream("cond"):
            assert current_name() == "user/request/cond"
            with pipeline_stream("x"):
                assert current_name() == "user/request/cond/x"
        with pipeline_stream("cond"):
            assert current_name() == "user/request/cond"
    assert current_name() is None


def test_unnamed_calls_of_a_named_generation_are_its_streams() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model)
    with generation("request"), torch.no_grad():
        latents, timestep, prompt = models.inputs(model, 0, STEPS)
        call(latents, timestep, prompt)
        call(latents, timestep, -prompt)
    assert set(summary(model).generations[-1].streams) == {"request/0", "request/1"}


def around_a_yield(name: str) -> Iterator[str | None]:
    with stream(name):
        yield current_name()


def test_streams_that_are_left_in_another_order_are_told() -> None:
    first, second = around_a_yield("a"), around_a_yield("b")
    assert (next(first), next(second)) == ("a", "b")
    with pytest.raises(StepError, match=r"stream\('a'\) is left in another order.*stream\('b'\) was entered last here"):
        next(first, None)
    assert current_name() == "b"
    next(second, None)
    assert current_name() is None


def test_a_stream_that_is_left_in_another_context_is_told() -> None:
    first = around_a_yield("a")
    contextvars.copy_context().run(next, first)
    with pytest.raises(StepError, match=r"nothing is entered in this thread or task.*stream\(name\).call"):
        next(first, None)


def test_an_error_inside_is_not_hidden_by_the_order() -> None:
    def failing(name: str) -> Iterator[None]:
        with stream(name):
            yield
            raise KeyError(name)

    first, second = failing("a"), failing("b")
    next(first)
    next(second)
    with pytest.raises(KeyError, match="a"):
        next(first)
    with pytest.raises(KeyError, match="b"):
        next(second)
    assert current_name() is None


def test_a_generation_that_is_left_in_another_order_is_told() -> None:
    def run() -> Iterator[None]:
        with generation(num_steps=3):
            yield

    first, second = run(), run()
    next(first)
    next(second)
    with pytest.raises(StepError, match=r"generation\(\) is left in another order than it was entered"):
        next(first, None)
    next(second, None)
    assert current_run() is None


def test_tasks_have_streams_and_runs_of_their_own() -> None:
    async def run(name: str) -> set[str | None]:
        found = set()
        with generation(name), stream("cond"):
            for _ in range(3):
                await asyncio.sleep(0)
                found.add(current_name())
        return found

    async def both() -> list[set[str | None]]:
        return list(await asyncio.gather(run("a"), run("b")))

    assert asyncio.run(both()) == [{"a/cond"}, {"b/cond"}]


@pytest.mark.parametrize(("name", "error"), [("", ValueError), (3, TypeError)])
def test_a_generations_name_is_checked(name: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="generation: expected a name"):
        generation(name)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_steps: expected at least 1"):
        generation(num_steps=0)
