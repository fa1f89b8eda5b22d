"""Where the host knows that a schedule reuses a step, one piece runs, and does what the device would have decided."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import Schedule, configure, generation, summary
from dicache_compile.calls.session import sessions_of
from dicache_compile.engines.base import CallsEngine
from dicache_compile.estimators import Reuse, Tokens
from tests import models
from tests.calls.test_clock import Timeless, timeless_inputs
from tests.contract.test_contract import STEPS, compiled, generate
from tests.helpers.cells import cells

pytestmark = pytest.mark.shares_traces

DEEP = (0, 1, 4, 7)
RULES: dict[str, dict[str, Any]] = {
    "reuse": {"estimator": Reuse()},
    "line": {},
    "curve": {"order": 2, "probe_depth": 0},
    "feedback": {"feedback": 0.5},
    "tokens": {"estimator": Tokens(0.5), "sites": "mlp"},
}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each step whether the host knew that it is reused."""
    found: list[bool] = []
    step = CallsEngine.step

    def watched(self: CallsEngine, inputs: Any, state: Any, reused: bool = False, *others: Any) -> Any:
        found.append(reused)
        return step(self, inputs, state, reused, *others)

    monkeypatch.setattr(CallsEngine, "step", watched)
    return found


def rows(model: models.Model) -> Any:
    """The steps of each generation, without the host's clock."""
    return [
        [replace(step, began=None, seconds=None) for step in next(iter(one.streams.values()))]
        for one in summary(model).generations
    ]


@cells("rule, kind", list(RULES), models.ALL)
def test_what_the_host_knows_is_what_the_device_decides(rule: str, kind: type[models.Model], known: list[bool]) -> None:
    config: dict[str, Any] = {"schedule": Schedule.steps(*DEEP), "streams": 1, **RULES[rule]}
    ours, theirs = models.make(kind), models.make(kind)
    call, other = compiled(ours, **config), compiled(theirs, **config)
    for _ in range(2):
        known.clear()
        with generation(num_steps=STEPS):
            announced = generate(call, ours)
        assert known == [False] * STEPS  # the prompt is a new tensor on every call
        prompt = models.inputs(ours, 0, STEPS)
        known.clear()
        with generation(num_steps=STEPS), torch.no_grad():
            same = [call(*with_prompt(models.inputs(ours, step, STEPS), prompt)) for step in range(STEPS)]
        assert known == [step not in DEEP for step in range(STEPS)]
        known.clear()
        plain = generate(other, theirs)
        assert known == [False] * STEPS
        for a, b, c in zip(announced, same, plain, strict=True):
            assert torch.equal(a, c)
            assert torch.equal(b, c)
    with_host, without = rows(ours), rows(theirs)
    assert str(with_host[1]) == str(without[1]) == str(with_host[0])  # NaN is not equal to itself
    kept = [next(iter(sessions_of(one)[-1].streams.values())).tensors for one in (ours, theirs)]
    for name in ("index", "anchors", "skipped", "time", "times", "checksums", "stable"):
        assert torch.equal(kept[0][name], kept[1][name]), name


def with_prompt(arguments: tuple[Any, ...], prompt: tuple[Any, ...]) -> tuple[Any, ...]:
    """A call's arguments with the conditions of another one: the same tensors."""
    return tuple(
        old if isinstance(old, Tensor) and torch.equal(old, new) else new
        for old, new in zip(prompt, arguments, strict=True)
    )


@pytest.mark.parametrize("change", ["another tensor", "written to", "inference"])
def test_a_prompt_that_changes_has_the_device_decide(change: str, known: list[bool]) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, schedule=Schedule.steps(*DEEP), estimator=Reuse(), streams=1)
    prompt = models.inputs(model, 0, STEPS)
    if change == "inference":
        with torch.inference_mode():
            prompt = tuple(one.clone() for one in prompt)
    with generation(num_steps=STEPS), torch.no_grad():
        for step in range(STEPS):
            if step == 5 and change == "another tensor":
                prompt = tuple(one + 1 for one in prompt)
            if step == 5 and change == "written to":
                for one in prompt:
                    one.add_(1)
            latents, time, *_ = models.inputs(model, step, STEPS)
            call(latents, time, *prompt[2:])
    decided = "".join(".D"[step.deep] for step in rows(model)[-1])
    if change == "inference":  # of such a tensor nobody knows whether it was written to
        assert (decided, known) == ("DD..D..D..", [False] * STEPS)
    else:
        assert decided == "DD..DD.D.."
        assert known == [step not in (*DEEP, 5) for step in range(STEPS)]


def test_another_schedule_counts_from_the_next_generation_on(known: list[bool]) -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, schedule=Schedule.steps(*DEEP), estimator=Reuse(), streams=1)
    prompt = models.inputs(model, 0, STEPS)
    for _ in range(2):
        with generation(num_steps=STEPS), torch.no_grad():
            for step in range(STEPS):
                if step == 3:
                    configure(call, schedule=Schedule.every(2))
                call(*with_prompt(models.inputs(model, step, STEPS), prompt))
    decided = ["".join(".D"[step.deep] for step in one) for one in rows(model)]
    assert decided == ["DD..D..D..", "D.D.D.D.D."]
    assert known == [mark == "." for mark in "".join(decided)]


def test_a_model_without_a_timestep_counts_on_the_host_too(known: list[bool]) -> None:
    model, other = models.make(Timeless), models.make(Timeless)
    config: dict[str, Any] = {"schedule": Schedule.steps(*DEEP), "estimator": Reuse(), "streams": 1}
    call, apart = compiled(model, num_steps=STEPS, **config), compiled(other, num_steps=STEPS, **config)
    latents, prompt = zip(*(timeless_inputs(model, step) for step in range(STEPS)), strict=True)
    for _ in range(2):
        known.clear()
        with torch.no_grad():
            ours = [call(one, prompt[0]) for one in latents]
        assert known == [step not in DEEP for step in range(STEPS)]
        with torch.no_grad():
            theirs = [apart(one, two) for one, two in zip(latents, prompt, strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert str(rows(model)) == str(rows(other))


def test_a_known_step_measures_nothing() -> None:
    model = models.make(models.SingleStream)
    generate(compiled(model, schedule=Schedule.steps(*DEEP), estimator=Reuse()), model)
    program = sessions_of(model)[-1].last_cut.program
    assert program.reused is not None
    written = {str(value) for value in program.reused.reads if value.kind.value == "state"}
    counts = {"index", "time", "times", "stable", "skipped", "log", "logged"}
    assert written == {f"state.{name}" for name in (*counts, "r.0")}
    names = [str(node.target) for node in program.reused.graph_module.graph.nodes]
    assert not any("sum" in name for name in names)
    gated = models.make(models.SingleStream, seed=1)
    generate(compiled(gated, threshold=0.1), gated)
    assert sessions_of(gated)[-1].last_cut.program.reused is None
