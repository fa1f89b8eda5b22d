"""Denoising runs that somebody announced: what belongs to one, and what starts a generation inside it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import DiCacheConfig, generation, reset, stream, summary
from dicache_compile.calls.runs import Position, at, current_run
from dicache_compile.calls.session import sessions_of
from dicache_compile.calls.streams import pipeline_stream
from dicache_compile.engines.base import CallsEngine
from dicache_compile.errors import CacheWarning, StepError
from dicache_compile.integrations.bars import announce
from tests import models
from tests.contract.test_contract import STEPS, compiled, generate

pytestmark = pytest.mark.shares_traces


class Bar:
    """As much of a progress bar as pipelines use."""

    closed = False

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.closed = True


def decisions(model: torch.nn.Module, generation: int = -1) -> dict[str, str]:
    streams = summary(model).generations[generation].streams
    return {name: "".join(".D"[step.deep] for step in steps) for name, steps in streams.items()}


def lengths(model: torch.nn.Module, name: str) -> list[int]:
    return [len(found.streams[name]) for found in summary(model).generations if name in found.streams]


@torch.no_grad()
def at_times(call: Any, model: models.Model, times: Sequence[float], **kinds: Any) -> list[Tensor]:
    """A run whose latents move step by step, at these timesteps."""
    out = []
    for step, time in enumerate(times):
        latents, timestep, prompt = models.inputs(model, step, len(times), **kinds)
        out.append(call(latents, torch.full_like(timestep, time), prompt))
    return out


IN_BFLOAT16 = torch.linspace(1, 0.97, 12).bfloat16().tolist()  # of twelve steps some neighbours are equal
HEUN = [1, 0.8, 0.8, 0.6, 0.6, 0.4, 0.4, 0.2, 0.2]
CHURNED = [1, 0.7, 0.75, 0.5, 0.55, 0.3, 0.35, 0.1]
THERE_AND_BACK = [0.2, 0.5, 0.8, 1.0, 0.8, 0.5, 0.2]
ODD = [IN_BFLOAT16, HEUN, CHURNED, THERE_AND_BACK]


@pytest.mark.parametrize("times", ODD, ids=["bfloat16", "heun", "churn", "there and back"])
@pytest.mark.parametrize("unnamed", [True, False])
def test_nothing_that_a_timestep_does_starts_a_generation_in_an_announced_run(
    times: list[float], unnamed: bool
) -> None:
    assert len(set(times)) < len(times) or sorted(times, reverse=True) != times
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0, final_steps=1, streams="auto" if unnamed else 1)
    for _ in range(2):
        with generation(num_steps=len(times)):
            at_times(call, model, times)
        (found,) = decisions(model).values()
        assert found.startswith("DDD.")
        assert found.endswith("D")
        assert len(found) == len(times)
    assert len(summary(model).generations) == 2


@pytest.mark.parametrize("times", [IN_BFLOAT16, HEUN, CHURNED], ids=["bfloat16", "heun", "churn"])
def test_where_the_number_of_steps_is_known_it_tells_where_the_next_run_starts(times: list[float]) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0, num_steps=len(times), final_steps=1, streams=1)
    first = at_times(call, model, times)
    assert all(torch.equal(a, b) for a, b in zip(first, at_times(call, model, times), strict=True))
    assert lengths(model, "main") == [len(times)] * 2
    assert decisions(model)["main"][-1] == "D"
    at_times(call, model, times[:5], seed=3)  # given up
    assert all(torch.equal(a, b) for a, b in zip(first, at_times(call, model, times), strict=True))
    assert lengths(model, "main") == [len(times)] * 2 + [5, len(times)]


def test_two_runs_of_one_model_side_by_side_are_as_if_alone() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0, final_steps=1)
    alone = {}
    for seed, steps in ((1, 10), (2, 6)):
        with generation(num_steps=steps):
            alone[seed] = generate(call, model, steps=steps, seed=seed)
        reset(model)
    found: dict[int, list[Tensor]] = {}
    turns = threading.Barrier(2)

    def run(seed: int, steps: int) -> None:
        found[seed] = []
        with generation(num_steps=steps), torch.no_grad():
            for step in range(10):
                turns.wait()
                if seed == 2:
                    turns.wait()
                if step < steps:
                    found[seed].append(call(*models.inputs(model, step, steps, seed=seed)))
                if seed == 1:
                    turns.wait()

    threads = [threading.Thread(target=run, args=of) for of in ((1, 10), (2, 6))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, results in alone.items():
        assert all(torch.equal(a, b) for a, b in zip(found[seed], results, strict=True))
    assert set(summary(model).generations[-1].streams) == {"0", "#2/0"}
    with generation(num_steps=6):  # their memory and their names are used again
        generate(call, model, steps=6)
    assert set(sessions_of(model)[-1].streams) == {"0", "#2/0"}


@pytest.mark.parametrize("names", [("", ""), ("a", "b")])
def test_a_pipelines_run_inside_anothers_leaves_that_as_it_is(names: tuple[str, str]) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0, final_steps=1)

    @torch.no_grad()
    def pipeline(name: str, steps: int, seed: int, between: Callable[[], Any] = lambda: None) -> list[Tensor]:
        out = []
        with announced(name, steps):
            for step in range(steps):
                if step == 4:
                    between()
                with pipeline_stream("cond"):
                    out.append(call(*models.inputs(model, step, steps, seed=seed)))
        return out

    def announced(name: str, steps: int) -> Bar:
        bar = Bar()
        if name:
            with stream(name):
                announce(bar, steps, by=model)
        else:
            announce(bar, steps, by=model)
        return bar

    inner_alone = pipeline(names[1], 6, seed=2)
    reset(model)
    outer_alone = pipeline(names[0], 10, seed=1)
    inner: list[Tensor] = []
    outer = pipeline(names[0], 10, seed=1, between=lambda: inner.extend(pipeline(names[1], 6, seed=2)))
    assert all(torch.equal(a, b) for a, b in zip(outer, outer_alone, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(inner, inner_alone, strict=True))
    assert current_run() is None


def test_a_bar_ends_its_run_however_it_ends() -> None:
    for end in ("close", "gone", "raise"):
        bar = Bar()
        run = announce(bar, 5, by=None)
        assert current_run() is run
        if end == "close":
            with bar:
                pass
            assert bar.closed
        elif end == "raise":
            with pytest.raises(KeyboardInterrupt), bar:
                raise KeyboardInterrupt
        del bar
        assert run.ended
        assert current_run() is None


def test_a_prompt_that_changes_in_a_run_needs_new_anchors_and_no_new_count() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0, final_steps=1)
    out = []
    with generation(num_steps=STEPS), stream("s"), torch.no_grad():
        for step in range(STEPS):
            latents, timestep, prompt = models.inputs(model, step, STEPS)
            out.append((call(latents, timestep, -prompt if step >= 5 else prompt), (latents, timestep, prompt)))
    assert decisions(model) == {"s": "DDD..D...D"}
    assert lengths(model, "s") == [STEPS]
    # The first step with the other prompt is compared with nothing.
    assert summary(model).generations[-1].streams["s"][5].error is None


@pytest.mark.filterwarnings("ignore:the model was compiled again")
def test_a_size_that_changes_in_a_run_needs_new_anchors_and_no_new_count() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, apart=True, threshold=10.0, final_steps=1)
    with generation(num_steps=STEPS), stream("s"), torch.no_grad():
        for step in range(STEPS):
            call(*models.inputs(model, step, STEPS, batch=2 if step < 5 else 1))
    assert decisions(model) == {"s": "DDD..D...D"}


def test_another_expert_that_takes_over_half_way_knows_which_step_it_is() -> None:
    experts = [models.make(models.SingleStream, seed=seed) for seed in (0, 1)]
    calls = [compiled(model, threshold=10.0, final_steps=1) for model in experts]
    for _ in range(2):
        with generation(num_steps=STEPS), torch.no_grad():
            for step in range(STEPS):
                with pipeline_stream("cond"):
                    calls[step >= 4](*models.inputs(experts[0], step, STEPS))
        assert decisions(experts[0]) == {"cond": "DDD."}
        assert decisions(experts[1]) == {"cond": "D...DD"}
        steps = summary(experts[1]).generations[-1].streams["cond"]
        assert [step.index for step in steps] == list(range(4, STEPS))
    assert len(summary(experts[1]).generations) == 2


def test_guidance_that_is_switched_on_half_way_knows_which_step_it_is() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0, final_steps=1)
    with generation(num_steps=STEPS), torch.no_grad():
        for step in range(STEPS):
            for name in ("cond", "uncond") if step >= 4 else ("cond",):
                with stream(name):
                    call(*models.inputs(model, step, STEPS))
    assert decisions(model) == {"cond": "DDD...D..D", "uncond": "D...DD"}
    assert [step.index for step in summary(model).generations[-1].streams["uncond"]] == list(range(4, STEPS))


@pytest.mark.parametrize("times", [IN_BFLOAT16, HEUN], ids=["bfloat16", "heun"])
@pytest.mark.parametrize("alike", [False, True])
def test_unnamed_guidance_in_a_run_is_numbered_by_its_calls_in_a_step(times: list[float], alike: bool) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0, final_steps=1)
    for _ in range(2):
        with generation(num_steps=len(times)), torch.no_grad():
            for step, time in enumerate(times):
                latents, timestep, prompt = models.inputs(model, step, len(times))
                for sign in (1, 1 if alike else -1):  # the negative prompt may be the same
                    call(latents, torch.full_like(timestep, time), sign * prompt)
        found = summary(model).generations[-1].streams
        assert {name: [step.index for step in steps] for name, steps in found.items()} == {
            name: list(range(len(times))) for name in ("0", "1")
        }
        assert len(set(decisions(model).values())) == 1


def test_an_unnamed_call_that_failed_in_a_run_is_made_again_as_the_same_stream() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0)
    with generation(), torch.no_grad():
        for step in range(5):
            for sign in (1, -1):
                latents, timestep, prompt = models.inputs(model, step, STEPS)
                if (step, sign) == (3, 1):
                    log = sessions_of(model)[-1].streams["0"].tensors["log"]
                    log.resize_(0)  # the next step of it fails half-way
                    with pytest.raises((RuntimeError, IndexError)):
                        call(latents, timestep, prompt)
                    del sessions_of(model)[-1].history["0"]
                call(latents, timestep, sign * prompt)
    assert set(sessions_of(model)[-1].history) == {"0", "1"}


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("again", ["the call", "the step"])
def test_an_unnamed_call_that_failed_may_come_again_alone_or_with_its_step(
    announced: bool, again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where somebody calls a model once more after an error of memory. Each stream keeps its own prompt's calls."""
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=math.inf, max_consecutive_skips=None)

    def of_sign(sign: int, step: int) -> Tensor:
        latents, timestep, prompt = models.inputs(model, step, STEPS)
        found: Tensor = call(latents, timestep, sign * prompt)
        return found

    with generation() if announced else nullcontext(), torch.no_grad():
        for step in range(7):
            of_sign(1, step)
            if step == 5:
                with monkeypatch.context() as patch:
                    patch.setattr(CallsEngine, "step", _out_of_memory)
                    with pytest.raises(torch.OutOfMemoryError):
                        of_sign(-1, step)
                if again == "the step":
                    of_sign(1, step)
            of_sign(-1, step)
    assert set(sessions_of(model)[-1].history) == {"0", "1"}
    found = summary(model).generations
    marks = {name: "".join(decisions(model, n).get(name, "") for n in range(len(found))) for name in ("0", "1")}
    assert marks["0"] == "DDD...." + "." * (again == "the step")
    assert marks["1"] == ("DDD..D." if announced else "DDD..DD")  # without a run its generation begins anew


def _out_of_memory(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_stream_that_failed_in_a_run_goes_on_counting() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0, final_steps=1)
    with generation(num_steps=STEPS), stream("s"), torch.no_grad():
        for step in range(STEPS):
            if step == 5:
                sessions_of(model)[-1].drop("s")
            call(*models.inputs(model, step, STEPS))
    assert decisions(model) == {"s": "DDD..D...D"}


def test_what_the_caller_says_of_its_position_counts() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0, final_steps=1)

    @torch.no_grad()
    def loop(steps: int, indices: Sequence[int]) -> None:
        for step in indices:
            with pipeline_stream("cond"), at(Position(index=step, steps=steps)):
                call(*models.inputs(model, 0, STEPS))  # the timestep stands still

    loop(8, range(8))
    assert decisions(model) == {"cond": "DDD...DD"}
    loop(8, range(3))  # given up
    loop(6, range(1, 6))  # begins half way
    assert [step.index for step in summary(model).generations[-1].streams["cond"]] == [1, 2, 3, 4, 5]
    assert decisions(model) == {"cond": "DD..D"}
    assert lengths(model, "cond") == [8, 3, 5]


@pytest.mark.parametrize("rising", [False, True])
def test_a_noise_level_tells_steps_apart_that_the_timestep_does_not(rising: bool) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0)
    levels = [1.0, 0.99, 0.98, 0.97, 0.96, 0.95]
    for _ in range(2):
        for level in reversed(levels) if rising else levels:
            with pipeline_stream("cond"), at(Position(sigma=level)), torch.no_grad():
                call(*models.inputs(model, 0, STEPS))
    assert lengths(model, "cond") == [6, 6]
    assert decisions(model) == {"cond": "DDD..."}


def test_the_runs_own_number_of_steps_counts_before_the_configs_and_it_is_said_once() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0, num_steps=30, final_steps=1, max_consecutive_skips=None)
    with pytest.warns(CacheWarning, match="this run has 8 steps, and the config says num_steps=30: 8 counts") as said:
        for _ in range(2):
            with generation(num_steps=8):
                generate(call, model, steps=8)
    assert decisions(model) == {"0": "DDD....D"}
    assert len(said) == 1


def test_a_schedule_for_another_number_of_steps_is_an_error() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, num_steps=30, deep_steps=(5, 8, 28))
    for _ in range(2):
        with (
            generation(num_steps=50),
            pytest.raises(StepError, match=r"are steps of num_steps=30, and this run has 50"),
        ):
            generate(call, model, steps=1)


@pytest.mark.parametrize(("steps", "deep"), [(10, "D.D..D...D"), (20, "D...D.....D.......D.")])
def test_a_schedule_in_shares_fits_every_length(steps: int, deep: str) -> None:
    model = models.make(models.SingleStream)
    free = {"warmup_steps": 0, "max_consecutive_skips": None, "threshold": float("inf")}
    call = compiled(model, deep_steps=(0, 0.2, 0.5, 0.9), **free)
    with generation(num_steps=steps):
        generate(call, model, steps=steps)
    assert decisions(model) == {"0": deep}


def test_shares_need_the_number_of_steps() -> None:
    model = models.make(models.SingleStream)
    with pytest.raises(StepError, match=r"deep_steps=\(0.5,\) are shares of the number of steps.*set num_steps"):
        generate(compiled(model, deep_steps=(0.5,)), model, steps=1)
    for wrong in ((0.5, 1.0), (0.5, 3), (0.7, 0.2), (-0.5,)):
        with pytest.raises(ValueError, match="deep_steps: expected"):
            DiCacheConfig(deep_steps=wrong)


def test_runs_of_one_step_keep_one_state() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0)
    for number in range(5):
        for name in ("cond", "uncond"):
            with generation(f"request {number}", num_steps=1), stream(name), torch.no_grad():
                arguments = models.inputs(model, 0, STEPS, seed=number)
                assert torch.equal(call(*arguments), model(*arguments))
    assert len(sessions_of(model)[-1].streams) == 1


def test_a_generation_overrides_fields_for_itself_and_compiles_nothing() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, apart=True, threshold=10.0)
    generate(call, model)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            with generation(num_steps=STEPS, threshold=0.0):
                generate(call, model)
            assert decisions(model) == {"0": "D" * STEPS}
        with generation(deep_steps=(4,), max_consecutive_skips=None):
            generate(call, model)
        assert decisions(model) == {"0": "DDD.D....."}
        generate(call, model)
    assert decisions(model) == {"0": "DDD...D..."}
    assert [found.config.threshold for found in summary(model).generations] == [10.0, 0.0, 0.0, 10.0, 10.0]


def test_a_generation_takes_only_fields_that_can_change() -> None:
    with pytest.raises(TypeError, match=r"probe_depth: is part of the compiled graph.*these can change: quality"):
        generation(probe_depth=2)
    model = models.make(models.SingleStream)
    with pytest.raises(ValueError, match="threshold: expected a number from 0"), generation(threshold=-1):
        generate(compiled(model), model, steps=1)
