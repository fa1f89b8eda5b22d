"""Which stream a call is of, and where a generation starts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import DiCacheConfig, reset, stream, summary
from dicache_compile.calls.runs import begin_run
from dicache_compile.calls.session import sessions_of
from tests import models
from tests.contract.test_contract import STEPS, compiled, generate

pytestmark = pytest.mark.shares_traces


def decisions(model: torch.nn.Module, name: str = "0", generation: int = -1) -> str:
    return "".join(".D"[step.deep] for step in summary(model).generations[generation].streams[name])


def guided(call: Any, model: models.Model, steps: int = STEPS) -> list[Tensor]:
    """Two calls a step of the same latents with two prompts, as guidance makes them."""
    out = []
    with torch.no_grad():
        for step in range(steps):
            latents, timestep, prompt = models.inputs(model, step, steps)
            out += [call(latents, timestep, prompt), call(latents, timestep, -prompt)]
    return out


def test_unnamed_calls_that_share_a_timestep_are_streams_of_their_own() -> None:
    model = models.make(models.TwoStream)
    call = compiled(model, threshold=0.3)
    with torch.no_grad():
        alone = [call(*models.inputs(model, step, STEPS)) for step in range(STEPS)]
    reset(model)
    both = guided(call, model)
    assert all(torch.equal(a, b) for a, b in zip(both[::2], alone, strict=True))
    assert set(summary(model).generations[-1].streams) == {"0", "1"}
    assert 0 < decisions(model).count("D") < STEPS


def test_guidance_gives_the_same_result_twice_also_after_one_step_was_given_up() -> None:
    model = models.make(models.TwoStream)
    call = compiled(model, threshold=0.3)
    first = guided(call, model)
    for given_up in (1, 2, 3):
        reset(model)
        with torch.no_grad():
            latents, timestep, prompt = models.inputs(model, 0, STEPS)
            for sign in (1, -1, 1)[:given_up]:
                call(latents, timestep, sign * prompt)
        again = guided(call, model)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), f"after {given_up} calls"


def test_names_go_before_numbers_and_do_not_read_the_timestep() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model)
    with torch.no_grad():
        for step in range(3):
            with stream("mine"):
                call(*models.inputs(model, step, STEPS))
    assert set(summary(model).generations[-1].streams) == {"mine"}
    assert sessions_of(model)[-1].numbering.time is None


def test_one_stream_takes_all_unnamed_calls() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, streams=1)
    generate(call, model)
    assert set(summary(model).generations[-1].streams) == {"main"}


def test_a_second_order_sampler_may_repeat_its_later_timesteps_in_a_named_stream() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0)
    with torch.no_grad(), stream("heun"):
        for step in (0, 1, 1, 2, 2, 3, 3):
            call(*models.inputs(model, step, STEPS))
    assert decisions(model, "heun") == "DDD...D"


@pytest.mark.parametrize(("name", "error"), [("", ValueError), (3, TypeError), (None, TypeError)])
def test_a_stream_needs_a_name(name: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="stream: expected a name"), stream(name):
        pass


@pytest.mark.parametrize("upwards", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_a_generation_starts_where_the_timestep_turns_back(upwards: bool, named: bool) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0)

    def run(first: int, last: int) -> list[Tensor]:
        out = []
        for step in range(first, last):
            latents, timestep, prompt = models.inputs(model, step, STEPS)
            with torch.no_grad():
                if named:
                    with stream("s"):
                        out.append(call(latents, 1 - timestep if upwards else timestep, prompt))
                else:
                    out.append(call(latents, 1 - timestep if upwards else timestep, prompt))
        return out

    name = "s" if named else "0"
    whole = run(0, STEPS)
    assert all(torch.equal(a, b) for a, b in zip(whole, run(0, STEPS), strict=True))
    run(0, 4)  # given up
    again = run(0, STEPS)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    assert decisions(model, name) == "DDD...D..."
    lengths = [len(generation.streams[name]) for generation in summary(model).generations]
    assert lengths == [STEPS, STEPS, 4, STEPS]


def test_the_largest_of_a_timestep_for_each_token_counts() -> None:
    class PerToken(models.SingleStream):
        def enter(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor, *more: Any) -> models.Carried:
            return super().enter(hidden_states, timestep.amax(1), prompt)

    model = models.make(PerToken)
    call = compiled(model, threshold=10.0)
    with torch.no_grad():
        for _ in range(2):
            for step in range(5):
                latents, timestep, prompt = models.inputs(model, step, STEPS)
                tokens = timestep[:, None].repeat(1, 6)
                tokens[:, 0] = 0  # a clean first frame
                call(latents, tokens, prompt)
    assert [len(generation.streams["0"]) for generation in summary(model).generations] == [5, 5]
    assert summary(model).generations[-1].streams["0"][1].timestep == pytest.approx(0.9)


def test_another_prompt_starts_a_generation_that_begins_lower() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0)
    with torch.no_grad(), stream("s"):
        for step in range(4):
            call(*models.inputs(model, step, STEPS, seed=1))
        for step in range(5, STEPS):  # lower than where the last one was given up
            call(*models.inputs(model, step, STEPS, seed=2))
    assert [len(generation.streams["s"]) for generation in summary(model).generations] == [4, 5]


def test_an_input_that_changes_on_every_step_starts_nothing() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0)
    with torch.no_grad(), stream("s"):
        for step in range(STEPS):
            latents, timestep, prompt = models.inputs(model, step, STEPS)
            call(latents, timestep, prompt + 0.01 * step)
    assert [len(generation.streams["s"]) for generation in summary(model).generations] == [STEPS]


def test_a_failing_step_leaves_nothing_for_the_next() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=0.3)
    expected = generate(call, model)
    with torch.no_grad():
        for step in range(5):
            call(*models.inputs(model, step, STEPS))
    engine_step = sessions_of(model)[-1].streams["0"]
    engine_step.tensors["log"].resize_(0)  # the next step fails half-way
    with pytest.raises((RuntimeError, IndexError)), torch.no_grad():
        call(*models.inputs(model, 5, STEPS))
    assert "0" not in sessions_of(model)[-1].streams
    sessions_of(model)[-1].history.clear()
    again = generate(call, model)
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))


def test_reset_starts_a_generation_and_frees_the_state() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0)
    with torch.no_grad():
        for step in range(5):
            call(*models.inputs(model, step, STEPS))
    assert sessions_of(model)[-1].streams
    reset(call)
    assert not sessions_of(model)[-1].streams
    with torch.no_grad():
        call(*models.inputs(model, 5, STEPS))
    assert decisions(model) == "D"


def test_streams_with_state_are_bounded() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model)
    for number in range(DiCacheConfig.max_streams + 4):
        with torch.no_grad(), stream(f"request {number}"):
            call(*models.inputs(model, 0, STEPS))
    assert len(sessions_of(model)[-1].streams) == DiCacheConfig.max_streams
    assert "request 0" not in sessions_of(model)[-1].streams


def test_rules_that_need_the_number_of_steps_refuse_a_call_without_it() -> None:
    from dicache_compile.errors import StepError

    model = models.make(models.SingleStream)
    call = torch.compile(model, backend="dicache", options=DiCacheConfig.preset("flux", lowering="eager").options())
    with pytest.raises(StepError, match=r"warmup_ratio=0.2 and final_steps=1 need the number of steps.*set num_steps"):
        generate(call, model)


def test_a_pipeline_tells_the_number_of_steps() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0, warmup_ratio=0.4, final_steps=2, warmup_steps=0, max_consecutive_skips=None)
    run = begin_run(STEPS, "")
    generate(call, model)
    assert decisions(model) == "DDDD....DD"
    run.end()
    run = begin_run(5, "")
    generate(call, model, steps=5)
    assert decisions(model) == "DD.DD"
    run.end()


def test_a_model_that_is_gone_leaves_no_session() -> None:
    import gc

    from dicache_compile.calls import session

    model = models.make(models.SingleStream)
    generate(compiled(model), model)
    assert len(session._sessions) == 1
    del model
    torch._dynamo.reset()
    gc.collect()
    assert not session._sessions


def test_models_that_share_a_table_never_meet() -> None:
    class Rotary(models.SingleStream):
        def __init__(self, table: Tensor) -> None:
            super().__init__()
            for block in self.blocks:
                block.table = table
                block.register_forward_pre_hook(lambda module, args: (args[0] * module.table, *args[1:]))

    table = torch.linspace(0.9, 1.1, 16)
    pair = [Rotary(table).eval().requires_grad_(False) for _ in range(2)]
    calls = [compiled(model, threshold=0.3) for model in pair]
    expected = []
    for call, model in zip(calls, pair, strict=True):
        expected.append(generate(call, model))
        reset(model)
    for step in range(STEPS):
        for call, model, alone in zip(calls, pair, expected, strict=True):
            with torch.no_grad():
                assert torch.equal(call(*models.inputs(model, step, STEPS)), alone[step])
    assert all(len(sessions_of(model)) == 1 for model in pair)


def test_a_pipelines_names_stand_below_an_explicit_one() -> None:
    from dicache_compile.calls.streams import pipeline_stream

    model = models.make(models.SingleStream)
    call = compiled(model)
    for name in ("cond", "uncond"):
        with torch.no_grad(), stream("request"), pipeline_stream(name):
            call(*models.inputs(model, 0, STEPS))
    assert set(summary(model).generations[-1].streams) == {"request/cond", "request/uncond"}


def test_unnamed_requests_with_one_prompt_do_not_reuse_each_others_anchors() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0, warmup_steps=1)
    with torch.no_grad():
        for step in range(5):
            latents, timestep, prompt = models.inputs(model, step, STEPS)
            for sign in (1, -1):  # two requests side by side
                call(sign * latents, timestep, prompt)
    # Stream "0" looked like one that was given up after its first step, by the second request: it runs deep until its
    # anchors are its own.
    assert decisions(model, "0") == "DDD.."
