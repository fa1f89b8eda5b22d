"""State that waits in host memory while other streams run."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import explain, reset, stream, summary
from dicache_compile.calls import desk
from dicache_compile.calls.session import Session, sessions_of
from dicache_compile.errors import StepError
from tests import models
from tests.contract.test_contract import compiled

pytestmark = pytest.mark.shares_traces
STEPS = 8
NAMES = ("a/cond", "a/uncond", "b/cond", "b/uncond", "c/cond")
CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "joint": {"joint": True, "error": "estimate", "order": 2, "gamma_range": (1, 2)},
    "float8": {"state_dtype": torch.float8_e4m3fn},
    "rows": {"rows": "independent"},
    "captured": {"engine": "graphs"},
}


def started(**config: Any) -> tuple[Any, models.Model]:
    model = models.make(models.SingleStream)
    return compiled(model, apart=True, threshold=0.1, **config), model


def session_of(call: Any) -> Session:
    return sessions_of(call)[-1]


@torch.no_grad()
def step(call: Any, model: models.Model, name: str, index: int, **kinds: Any) -> Tensor:
    with stream(name):
        found: Tensor = call(*models.inputs(model, index, STEPS, seed=NAMES.index(name), **kinds))
    return found


def in_turn(call: Any, model: models.Model, names: tuple[str, ...] = NAMES) -> list[Tensor]:
    return [step(call, model, name, index) for index in range(STEPS) for name in names]


def decisions(call: Any) -> dict[str, list[Any]]:
    return {name: [one.decisions for one in steps] for name, steps in summary(call).generations[-1].streams.items()}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("case", CONFIGS)
def test_state_in_host_memory_changes_no_bit(case: str, count: int) -> None:
    plain, hosted = started(**CONFIGS[case]), started(**CONFIGS[case], device_streams=count)
    for found, expected in zip(in_turn(*hosted), in_turn(*plain), strict=True):
        assert torch.equal(found, expected)
    assert decisions(hosted[0]) == decisions(plain[0])
    assert not all(step.deep for steps in decisions(plain[0]).values() for step, *_ in steps)


def test_streams_that_come_at_random_and_change_their_size_are_as_with_state_on_the_device() -> None:
    plain, hosted = started(max_streams=3), started(max_streams=3, device_streams=2)
    order = random.Random(0)
    at = dict.fromkeys(NAMES, 0)
    with pytest.warns(match="max_streams=3"):  # one of both
        for _ in range(80):
            name, tokens = order.choice(NAMES), order.choice((6, 7))
            found, expected = (step(*one, name, at[name] % STEPS, tokens=tokens) for one in (hosted, plain))
            assert torch.equal(found, expected)
            at[name] += 1
            if order.random() < 0.1:
                at[name] = 0
                for call, _ in (plain, hosted):
                    reset(call, name)


def on_device(call: Any) -> int:
    """Bytes that large tensors take there."""
    session = session_of(call)
    states = session.streams.values()
    distinct = {id(tensor): tensor for state in states for tensor in state.values if tensor.dim() == 3}
    return sum(tensor.nbytes for tensor in distinct.values())


def test_the_device_holds_as_many_streams_as_are_asked_for() -> None:
    alone = started()
    step(*alone, NAMES[0], 0)
    for count in (1, 2, 4):
        hosted = started(device_streams=count)
        in_turn(*hosted)
        assert f"MiB a stream; of {count} on the device, of the others in host memory" in str(explain(hosted[0]))
        assert on_device(hosted[0]) == count * on_device(alone[0])
        session = session_of(hosted[0])
        assert session.desks is not None
        assert session.desks.bytes() == on_device(hosted[0])
        reset(hosted[0])
        assert session.desks.bytes() == 0


def test_a_budget_is_of_what_lies_on_the_device() -> None:
    alone = started()
    step(*alone, NAMES[0], 0)
    (state,) = session_of(alone[0]).streams.values()
    large, small = on_device(alone[0]), state.bytes() - on_device(alone[0])
    budget = large + len(NAMES) * small
    hosted = started(device_streams=1, max_state_bytes=budget)
    in_turn(*hosted)
    assert len(session_of(hosted[0]).streams) == len(NAMES)
    two = started(device_streams=2, max_state_bytes=large + 2 * small)
    with pytest.warns(match=f"more streams take turns than max_state_bytes={large + 2 * small} allows"):
        in_turn(*two, names=NAMES[:2])
    assert len(session_of(two[0]).streams) == 1
    with pytest.raises(StepError, match="max_state_bytes"):
        step(*started(device_streams=1, max_state_bytes=large), NAMES[0], 0)


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each copy to a desk was made ahead of the step."""
    found = []
    true = desk.Desk.bring

    def bring(self: desk.Desk, guest: desk.Guest, ahead: bool = False) -> None:
        if not self.has(guest):
            found.append(ahead)
        true(self, guest, ahead)

    monkeypatch.setattr(desk.Desk, "bring", bring)
    return found


@pytest.mark.parametrize(
    ("streams", "count", "first", "later"),
    [(1, 1, 1, []), (2, 2, 2, []), (2, 1, 2, [False, False]), (4, 2, 4, [True] * 4)],
)
def test_nothing_is_copied_while_a_stream_stays_and_the_next_one_is_brought_ahead(
    brought: list[bool], streams: int, count: int, first: int, later: list[bool]
) -> None:
    call, model = started(device_streams=count)
    names = NAMES[:streams]
    for index in range(STEPS):
        del brought[:]
        for name in names:
            step(call, model, name, index)
        if index == 0:
            assert brought == [False] * first
        elif index > 1:  # in the second round it is seen who follows the last one
            assert brought == later


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (True, TypeError), ("all", TypeError)])
def test_a_number_of_streams_is_expected(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="device_streams: expected"):
        started(device_streams=value)
