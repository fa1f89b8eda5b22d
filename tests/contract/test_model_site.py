"""`sites="model"`: the whole model is what a step may leave out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dicache_compile import DiCacheConfig, Schedule, explain, summary
from dicache_compile.calls.session import sessions_of
from dicache_compile.estimators import AdamsBashforth, Newton, Reuse
from dicache_compile.gates import OutputRate, PolynomialChange
from dicache_compile.graph import operators
from tests import models
from tests.contract.test_contract import STEPS, assert_near, compiled, generate
from tests.helpers.cells import cells
from tests.helpers.replay import replay

pytestmark = pytest.mark.shares_traces
ENGINES = ["calls", "cond", "conditional"]
DEEP = (0, 1, 2, 5, 8)


def given(model: models.Model, step: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(the latents of a step, what the model makes of them)."""
    arguments = models.inputs(model, step, STEPS, seed)
    with torch.no_grad():
        return arguments[0], model(*arguments)


@cells("form, kind, engine", ["residual", "value"], [models.SingleStream, models.Mixed, models.Skips], ENGINES)
def test_a_reused_step_is_the_estimate_of_the_models_result(form: Any, kind: type[models.Model], engine: str) -> None:
    model = models.make(kind)
    config: dict[str, Any] = {"sites": "model", "probe_depth": 0, "schedule": Schedule.steps(*DEEP), "carried": form}
    ours = generate(compiled(model, **config, estimator=Newton(2), engine=engine), model)
    estimates = replay(
        Newton(2),
        lambda step: given(model, step)[1],
        DEEP,
        STEPS,
        x=None if form == "value" else lambda step: given(model, step)[0],
    )
    assert_near(ours, [estimates.get(step, given(model, step)[1]) for step in range(STEPS)])
    found = explain(model)
    assert found.rules[0].skips == "the whole model"
    assert found.skippable == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_deep_step_is_the_model_to_the_bit_and_another_prompt_is_noticed(engine: str) -> None:
    model = models.make(models.SingleStream)
    call = compiled(
        model, sites="model", probe_depth=0, gate=OutputRate(0.4), estimator=Reuse(), warmup_steps=2, engine=engine
    )
    for seed in (0, 3):
        ours = generate(call, model, seed=seed)
        steps = summary(call).generations[-1].streams["0"]
        assert [step.index for step in steps] == list(range(STEPS))
        assert {step.deep for step in steps[2:]} == {True, False}
        for step, result in zip(steps, ours, strict=True):
            if step.deep:
                assert torch.equal(result, given(model, step.index, seed)[1])


def test_a_prompt_that_changes_in_mid_generation_has_no_anchor_of_the_other() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, sites="model", probe_depth=0, gate=OutputRate(1e9), estimator=Reuse(), warmup_steps=2)
    with torch.no_grad():
        for step in range(STEPS):
            latents, timestep, prompt = models.inputs(model, step, STEPS)
            arguments = latents, timestep, prompt if step < 6 else -prompt
            result = call(*arguments)
            if step == 6:
                assert torch.equal(result, model(*arguments))


def test_no_operation_of_the_model_runs_on_a_reused_step() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, sites="model", probe_depth=0, schedule=Schedule.steps(*DEEP), estimator=AdamsBashforth(2))
    generate(call, model)
    reused = sessions_of(call)[-1].last_cut.program.reused
    assert reused is not None
    assert not any(operators.is_heavy(node) for node in reused.graph_module.graph.nodes)


class _Wider(nn.Module):
    """Returns more channels than it is given, as a model that also tells a variance."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = models.make(models.SingleStream)

    def forward(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
        return torch.cat((self.inner(hidden_states, timestep, prompt),) * 2, dim=-1)


def test_a_result_of_another_shape_is_kept_as_it_is_on_a_schedule_and_refused_to_a_gate_that_sees_x() -> None:
    inner = _Wider()
    config: dict[str, Any] = {"sites": "model", "probe_depth": 0, "estimator": Reuse()}
    call = compiled(inner, **config, schedule=Schedule.steps(*DEEP), apart=True)
    arguments = [models.inputs(inner.inner, step, STEPS) for step in range(STEPS)]
    with torch.no_grad():
        ours = [call(*one) for one in arguments]
        newest = [max(deep for deep in DEEP if deep <= step) for step in range(STEPS)]
        assert_near(ours, [inner(*arguments[deep]) for deep in newest])
    with pytest.raises(Exception, match="0 inputs of the model have its result's shape"), torch.no_grad():
        compiled(_Wider(), **config, gate=OutputRate(0.1), apart=True)(*arguments[0])


@pytest.mark.parametrize(
    "fields", [{"estimator": Reuse()}, {"probe_depth": 0, "gate": PolynomialChange((1.0, 0.0), 0.1)}]
)
def test_the_whole_model_has_no_probe(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="sites='model' has no blocks of its own: it needs probe_depth=0"):
        DiCacheConfig(sites="model", **{"estimator": Reuse(), **fields})
