"""What the state of a model may take, and that it does not grow."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from dicache_compile import explain, reset, stream, summary
from dicache_compile.calls.session import sessions_of
from dicache_compile.errors import StepError
from tests import models
from tests.contract.test_contract import compiled, generate

pytestmark = pytest.mark.shares_traces
THRESHOLD = 0.1


def kept(model: Any) -> int:
    """Bytes of the states of a model's streams and requests."""
    (session,) = sessions_of(model)
    return sum(state.bytes() for state in session.streams.values()) + session.pools.bytes()


def bounded(model: models.Model, **config: Any) -> Any:
    return compiled(model, apart=True, threshold=THRESHOLD, **config)


def needed() -> int:
    """What a stream keeps of such a model."""
    model = models.make(models.SingleStream)
    with stream("0"), torch.no_grad():
        bounded(model)(*models.inputs(model, 0, 8))
    return kept(model)


def test_a_stream_that_needs_more_than_the_budget_is_refused_before_its_first_step() -> None:
    model = models.make(models.SingleStream)
    own = needed()
    call = bounded(model, max_state_bytes=own - 1)
    told = r"stream '0' has to keep 0\.\d+ MiB, and max_state_bytes allows 0\.\d+ MiB: raise it, or keep less"
    with stream("0"), torch.no_grad(), pytest.raises(StepError, match=told):
        call(*models.inputs(model, 0, 8))
    assert kept(call) == 0
    assert explain(call).state_bytes == own
    model = models.make(models.SingleStream)
    generate(bounded(model, max_state_bytes=own), model)


def test_the_stream_unused_for_longest_gives_way_to_one_that_the_budget_has_no_room_for() -> None:
    model = models.make(models.SingleStream)
    own = needed()
    call = bounded(model, max_state_bytes=2 * own + own // 2)
    with torch.no_grad():
        for name in ("a", "b", "a", "c"):
            with stream(name):
                call(*models.inputs(model, 0, 8))
            assert kept(call) <= 2 * own + own // 2
    assert list(sessions_of(call)[-1].streams) == ["a", "c"]


def test_a_stream_of_another_size_gives_up_what_it_kept_for_the_one_before() -> None:
    model = models.make(models.SingleStream)
    own = needed()
    call = bounded(model, max_state_bytes=own + own // 2)
    with torch.no_grad():
        for tokens in (6, 7, 6):
            with stream("a"):
                call(*models.inputs(model, 0, 8, tokens=tokens))
            assert kept(call) <= own + own // 2


def test_a_pool_that_the_budget_has_no_room_for_is_refused_before_its_first_step() -> None:
    def called(budget: int | None) -> int:
        model = models.make(models.SingleStream)
        call = bounded(model, rows="independent", max_streams=64, max_state_bytes=budget)
        with stream(["a", "b"]), torch.no_grad():
            call(*models.inputs(model, 0, 8))
        told = explain(call)
        assert told.pool_bytes == kept(call)
        assert f"{kept(call) / 2**20:.2f} MiB where rows are named, for 64 of them" in str(told)
        return kept(call)

    own = called(None)
    assert called(own) == own
    with pytest.raises(StepError, match="the pool of requests, with max_streams places, has to keep"):
        called(own - 1)


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), ("1 GB", TypeError)])
def test_a_budget_is_a_number_of_bytes(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="max_state_bytes: expected"):
        bounded(models.make(models.SingleStream), max_state_bytes=value)


@pytest.mark.filterwarnings("ignore::dicache_compile.errors.CacheWarning")
@pytest.mark.parametrize("rows", ["together", "independent"])
def test_many_short_generations_of_many_streams_and_sizes_take_no_more_memory_than_the_first(rows: str) -> None:
    """300 generations, 40 streams, ten sizes in rotation."""
    model = models.make(models.SingleStream)
    call = torch.compile(
        model, backend="dicache", fullgraph=True, dynamic=True,
        options={"lowering": "eager", "threshold": THRESHOLD, "rows": rows},
    )  # fmt: skip
    counts = []
    with torch.no_grad():
        for number in range(300):
            for step in range(3):
                arguments = models.inputs(model, step, 3, tokens=6 + number % 10)
                names = stream(f"r{number % 40}/0") if rows == "together" else stream([f"{number}", f"{number}b"])
                with names:
                    call(*arguments)
            if rows == "independent":
                reset(call, f"{number}")
                reset(call, f"{number}b")
            if number in (99, 199, 299):
                gc.collect()
                counts.append((kept(call), _alive()))
    assert counts[0] == counts[1] == counts[2]
    assert len(summary(call).generations) > 0


def _alive() -> int:
    """Bytes of all tensors of the process."""
    return sum(one.nbytes for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter))
