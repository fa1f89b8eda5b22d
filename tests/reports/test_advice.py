"""What people are told of a cache that is on and does little: once each, with the numbers."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from dicache_compile import DiCacheConfig, generation, stream, summary
from dicache_compile.calls.session import sessions_of
from dicache_compile.errors import CacheWarning
from tests import models
from tests.contract.test_contract import STEPS, compiled, generate

pytestmark = pytest.mark.shares_traces


def said(run: Any) -> list[str]:
    """The texts of the warnings that a run gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(one.message) for one in caught if one.category is CacheWarning]


def generations(call: Any, model: models.Model, many: int, **kinds: Any) -> list[str]:
    return said(lambda: [generate(call, model, **kinds) for _ in range(many)])


def test_nothing_reused_in_two_generations_is_told_once_with_the_numbers() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=1e-4)
    assert generations(call, model, 2) == []
    (text,) = generations(call, model, 3)
    smallest = min(s.accumulated for s in summary(model).generations[0].streams["0"] if not s.forced)
    assert f"two generations of stream '0', of {STEPS} and {STEPS} steps: smallest error {smallest:.2g}" in text
    assert "threshold 0.0001. Raise threshold" in text


def test_a_warm_up_that_is_all_is_told() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0, warmup_steps=STEPS)
    (text,) = generations(call, model, 3)
    assert "all steps were forced. Shorten warmup_steps" in text


@pytest.mark.parametrize("config", [{"threshold": 0.0}, {"threshold": 0.3}])
def test_where_nothing_is_wrong_nothing_is_said(config: dict[str, Any]) -> None:
    model = models.make(models.SingleStream)
    assert generations(compiled(model, **config), model, 4) == []
    assert any(not step.deep for step in summary(model).generations[-1].streams["0"]) == (config["threshold"] > 0)


def test_nearly_all_reused_is_told() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0, max_consecutive_skips=None)
    with generation():
        assert generations(call, model, 1, steps=50) == []
    with generation():
        (text,) = generations(call, model, 1, steps=50)
    assert "47 of 50 steps of stream '0' were reused in one generation" in text


def test_generations_of_one_step_in_a_row_are_told() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, streams=1)

    @torch.no_grad()
    def rising() -> None:
        for step in range(8):  # each goes against the direction that the first two had
            with generation():
                call(*models.inputs(model, step, STEPS))

    (text,) = said(rising)
    assert "each of the last 6 calls of stream 'main' began a generation (timesteps 1, 0.9, 0.8, 0.7, 0.6, 0.5)" in text
    assert said(rising) == []


@pytest.mark.parametrize("announced", [True, False])
def test_a_stream_that_loses_its_state_half_way_is_told(announced: bool) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, max_streams=2)
    runs = [generation(str(number)) for number in range(3)]

    @torch.no_grad()
    def turns(steps: int) -> None:
        for step in range(steps):
            for number in range(3):
                with stream(str(number)):
                    call(*models.inputs(model, step, STEPS))

    def announced_turns() -> None:
        with runs[0]:
            turns(3)

    (text,) = said(announced_turns if announced else lambda: turns(4))
    assert "lost its state half-way through a generation" in text
    assert "more streams take turns than max_streams=2 allows" in text
    assert len(sessions_of(model)[-1].streams) == 2


def test_streams_that_come_back_for_another_generation_have_lost_nothing() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, max_streams=2, threshold=0.3)

    def requests() -> None:
        for number in (0, 1, 2, 0, 1):
            with stream(str(number)):
                generate(call, model)

    assert said(requests) == []


def test_as_many_streams_have_state_as_the_config_says() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, max_streams=70, threshold=10.0)
    with torch.no_grad():
        for step in range(5):
            for number in range(70):
                with stream(str(number)):
                    call(*models.inputs(model, step, STEPS))
    assert len(sessions_of(model)[-1].streams) == 70
    for steps in summary(model).generations[-1].streams.values():
        assert [step.deep for step in steps] == [True] * 3 + [False] * 2
    with pytest.raises(ValueError, match="max_streams: expected at least 1"):
        DiCacheConfig(max_streams=0)


def test_weights_that_are_new_on_every_call_are_told() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model)

    @torch.no_grad()
    def new_weights() -> None:
        for step in range(10):
            for name, parameter in list(model.named_parameters()):
                owner, _, last = name.rpartition(".")
                fresh = torch.nn.Parameter(parameter.clone(), requires_grad=False)
                setattr(model.get_submodule(owner), last, fresh)
            call(*models.inputs(model, step, STEPS))

    (text,) = said(new_weights)
    assert "the last 6 calls came with weights that no call before had" in text
