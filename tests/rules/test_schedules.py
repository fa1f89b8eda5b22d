"""Schedules: which steps they name, and what a step that they decide runs and keeps."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from dicache_compile import DiCacheConfig, Schedule, configure, explain, generation, summary
from dicache_compile.calls.session import sessions_of
from dicache_compile.errors import StepError
from dicache_compile.estimators import DCTA, Reuse
from dicache_compile.gates import ProbeError
from dicache_compile.graph import operators
from tests import models
from tests.contract.test_contract import STEPS, assert_near, compiled, generate
from tests.helpers.cells import cells
from tests.oracles.plain_oracle import PlainDiCache

pytestmark = pytest.mark.shares_traces

ENGINES = ["calls", "cond", "conditional", "graphs"]


@pytest.mark.parametrize(
    ("schedule", "num_steps", "deep"),
    [
        (Schedule.every(6, after=3), 20, (0, 1, 2, 8, 14)),
        (Schedule.every(4), 10, (0, 4, 8)),
        (Schedule.every(5, after=2, last=1), 10, (0, 1, 6, 9)),
        (Schedule.every(1), 3, (0, 1, 2)),
        (Schedule.steps(0, 1, 4, 8), None, (0, 1, 4, 8)),
        (Schedule.steps(0.0, 0.1, 0.5), 30, (0, 3, 15)),
        (Schedule.mask([1, 1, 0, 0, True]), 5, (0, 1, 4)),
    ],
    ids=str,
)
def test_a_schedule_names_its_steps(schedule: Schedule, num_steps: int | None, deep: tuple[int, ...]) -> None:
    assert schedule.deep_steps(num_steps) == deep


def test_a_schedule_of_an_unknown_length_names_what_can_be_told_apart() -> None:
    assert Schedule.every(1000, after=2).deep_steps(None) == (0, 1, 1001, 2001, 3001, 4001)
    with pytest.raises(ValueError, match=r"Schedule\.every\(5, after=1, last=2\) depends on the number of steps"):
        Schedule.every(5, last=2).deep_steps(None)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Schedule.every(0), "schedule: expected period to be a whole number from 1 on, got 0"),
        (lambda: Schedule.every(2.0), "schedule: expected period to be a whole number"),
        (lambda: Schedule.every(2, after=-1), "schedule: expected after to be a whole number from 0 on, got -1"),
        (lambda: Schedule.steps(3, 1), r"schedule: expected each step once and in order, got (3, 1)"),
        (lambda: Schedule.steps(-1), "schedule: expected steps from 0 to 4095, or shares of a generation"),
        (lambda: Schedule.steps(0, 0.5), "schedule: expected steps from 0 to 4095, or shares"),
        (lambda: Schedule.steps(4096), "schedule: expected steps from 0 to 4095"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_an_error(make: Any, error: str) -> None:
    with pytest.raises(ValueError, match=re.escape(error)):
        make()


@cells("kind, engine, estimator", models.ALL, ENGINES, ["reuse", "dcta"])
def test_a_schedule_decides_on_every_engine_as_the_oracle(
    kind: type[models.Model], engine: str, estimator: str
) -> None:
    model = models.make(kind)
    schedule = Schedule.steps(0, 1, 4, 8)
    config: dict[str, Any] = {"estimator": Reuse()} if estimator == "reuse" else {}
    ours = generate(compiled(model, schedule=schedule, engine=engine, **config), model)
    oracle = PlainDiCache(
        model, math.inf, warmup=2, max_skips=None, gamma_range=(1.0, 1.5) if not config else (1.0, 1.0)
    )
    oracle.deep_steps = (0, 1, 4, 8)
    assert_near(ours, generate(oracle, model))
    steps = summary(model).generations[-1].streams["0"]
    assert [step.index for step in steps if step.deep] == [0, 1, 4, 8]
    assert all(step.error is None for step in steps)


def counted(program: Any, piece: str) -> int:
    return sum(operators.is_heavy(node) for node in program.piece(piece).graph_module.graph.nodes)


def test_a_schedule_with_reuse_keeps_one_tensor_and_runs_no_block() -> None:
    model = models.make(models.SingleStream)
    generate(compiled(model, schedule=Schedule.every(4), estimator=Reuse()), model)
    found = sessions_of(model)[-1].last_cut
    kept = [slot.name for slot in found.program.slots if slot.like is not None]
    assert kept == ["times", "r.0"]  # the timestep in its own shape, and one residual
    assert explain(model).probe == ()
    # The embeddings of the latents, the prompt and the time; two linears on the way out.
    assert (counted(found.program, "P"), counted(found.program, "RE")) == (3, 2)
    read = {str(value) for piece in found.program.pieces() for value in piece.reads}
    assert not {name for name in read if "h_prev" in name or "accumulated" in name or name.startswith("aid")}
    # Nothing is computed of what the trunk is given: it goes straight to the estimate.
    graph = found.program.piece("P").graph_module.graph
    (x,) = [node for node in graph.nodes if node.name == found.partition.carried[0].x.name]
    assert [node.op for node in x.users] == ["output"]


def test_an_estimator_that_looks_at_the_probe_keeps_it() -> None:
    model = models.make(models.SingleStream)
    generate(compiled(model, schedule=Schedule.every(4)), model)
    assert explain(model).probe == ("blocks.0",)
    assert summary(model).generations[-1].streams["0"][6].gamma is not None
    other = models.make(models.SingleStream, seed=1)
    generate(compiled(other, schedule=Schedule.every(4), estimator=DCTA((1.0, 1.5), along="input")), other)
    assert explain(other).probe == ()


def test_another_schedule_compiles_nothing_and_another_kind_of_rule_has_to() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, schedule=Schedule.every(2), estimator=Reuse())
    generate(call, model)
    configure(call, schedule=Schedule.steps(0, 5))
    with torch._dynamo.config.patch(error_on_recompile=True), generation(num_steps=STEPS):
        generate(call, model)
    with generation(num_steps=STEPS, schedule=Schedule.every(3, last=1)):
        generate(call, model)
    decisions = [
        "".join(".D"[step.deep] for step in steps)
        for found in summary(call).generations
        for steps in found.streams.values()
    ]
    assert decisions == ["D.D.D.D.D.", "D....D....", "D..D..D..D"]
    with pytest.raises(ValueError, match="schedule: at run time one takes another's place"):
        configure(call, schedule=None)
    other = compiled(models.make(models.SingleStream, seed=1))
    with pytest.raises(ValueError, match="To have one, or none, compile again"):
        configure(other, schedule=Schedule.every(2))


def test_a_schedule_that_needs_the_number_of_steps_says_so() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, schedule=Schedule.every(3, last=1), estimator=Reuse())
    with pytest.raises(StepError, match=r"Schedule\.every\(3, after=1, last=1\) needs the number of steps"):
        generate(call, model)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"gate": ProbeError(0.1), "threshold": 0.2}, "threshold: nothing reads it, because the config has gate=Probe"),
        ({"gate": ProbeError(0.1), "error": "estimate"}, "error: nothing reads it, because the config has gate=Probe"),
        ({"estimator": Reuse(), "gamma_range": (1, 2)}, "gamma_range: nothing reads it, because the config has est"),
        ({"estimator": Reuse(), "order": 2}, "order: nothing reads it, because the config has estimator=Reuse()"),
        ({"schedule": Schedule.every(3), "threshold": 0.2}, "threshold: nothing reads it, because the config has sch"),
        ({"schedule": Schedule.every(3), "warmup_steps": 5}, "warmup_steps: nothing reads it, because the config has"),
        (
            {"schedule": Schedule.every(3), "gate": ProbeError(0.1)},
            "gate: nothing reads it, because the config has",
        ),
        ({"schedule": 3}, "schedule: expected a Schedule, such as Schedule.every(4), got 3"),
    ],
)
def test_a_field_that_nothing_would_read_is_refused(config: dict[str, Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(error)):
        DiCacheConfig(**config)


def test_a_preset_leaves_out_what_an_estimator_of_ones_own_stands_in_for() -> None:
    assert DiCacheConfig.preset("wan", estimator=Reuse()).gamma_range is None
