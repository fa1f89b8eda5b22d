"""What `explain` and `summary` tell."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dicache_compile import DiCacheConfig, Schedule, SiteRule, dicache_backend, explain, summary
from dicache_compile.estimators import Reuse
from dicache_compile.summary import MAX_GENERATIONS
from dicache_compile.write.control import MASKED_STEPS
from dicache_compile.write.record import LOG_ROWS
from tests import models
from tests.contract.test_contract import STEPS, compiled, generate
from tests.helpers.published import published

pytestmark = pytest.mark.shares_traces


def test_explain_tells_of_a_model_that_was_never_compiled() -> None:
    model = models.make(models.Mixed)
    told = explain(model, *models.inputs(model, 0, STEPS))
    assert told.cached
    assert told.reason is None
    assert told.graphs == 1
    assert told.trunk == ("double_blocks", "single_blocks")
    assert told.blocks == ("double_blocks.0", "double_blocks.1", "single_blocks.0", "single_blocks.1")
    assert told.probe == ("double_blocks.0",)
    assert told.deep == told.blocks[1:]
    assert [(s.shape, s.dtype) for s in told.streams] == [((2, 6, 16), torch.float32)]
    assert told.timestep == "timestep"
    assert 0.6 < told.skippable < 0.8  # three of four blocks
    six_tensors = 6 * 2 * 6 * 16 * 4
    assert six_tensors < told.state_bytes < six_tensors + LOG_ROWS * 7 * 4 + 2 * MASKED_STEPS + 300
    assert str(told).splitlines()[:4] == [
        "cached, in one full graph",
        "  trunk      double_blocks (2 blocks), single_blocks (2 blocks)",
        "  probe      double_blocks.0",
        "  deep       double_blocks.1 ... single_blocks.1 (3)",
    ]


def test_explain_tells_how_the_operations_are_spread() -> None:
    model = models.make(models.SingleStream, depth=8)
    call = models.inputs(model, 0, STEPS)
    told = explain(model, *call)
    # The model computes something of the prompt that it does not use.
    names = ["prologue", *told.blocks, "outside of the blocks", "epilogue"]
    assert [part.name for part in told.parts] == names
    assert sum(part.share for part in told.parts) == pytest.approx(1)
    assert sum(part.skippable for part in told.parts) == pytest.approx(told.skippable)
    shares = {part.share for part in told.parts if part.kind == "block"}
    assert max(shares) == pytest.approx(min(shares))  # the blocks are alike
    assert [part.by_rule for part in told.parts] == [(part.skippable,) for part in told.parts]
    for part in told.parts:
        # Of the probe's block only what the deep blocks alone need can be left out.
        if part.name in told.deep or part.kind == "other":
            assert part.skippable == part.share
        else:
            assert part.skippable < 0.2 * max(shares)


def test_explain_tells_whose_the_operations_are_that_each_rule_leaves_out() -> None:
    model = models.make(models.SingleStream, depth=8)
    # The second rule's sites lie inside of the first one's.
    rules = (SiteRule(sites=(1, 8)), SiteRule(sites=(4, 7), schedule=Schedule.every(2), estimator=Reuse()))
    told = explain(compiled(model, rules=rules), *models.inputs(model, 0, STEPS))
    by_name = {part.name: part for part in told.parts}
    assert [part.name for part in told.parts if part.by_rule[1]] == ["blocks.4", "blocks.5", "blocks.6"]
    assert by_name["blocks.0"].skippable < 0.1 * by_name["blocks.0"].share
    for name in ("blocks.4", "blocks.5", "blocks.6"):
        # What is inside of both counts for both, and is left out once.
        assert by_name[name].by_rule == pytest.approx((by_name[name].share, by_name[name].share))
        assert by_name[name].skippable == pytest.approx(by_name[name].share)
    assert sum(part.share for part in told.parts) == pytest.approx(1)


def test_explain_neither_compiles_nor_disturbs_what_is_compiled() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, apart=True, probe_depth=2)
    with torch.no_grad():
        for step in range(5):
            call(*models.inputs(model, step, STEPS))
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for _ in range(3):
            told = explain(model, *models.inputs(model, 0, STEPS))
    assert told.probe == ("blocks.0", "blocks.1")  # the compiled model's config
    # Without arguments: what was cut, and what it runs on.
    assert explain(call) == dataclasses.replace(told, engine="calls")
    with torch._dynamo.config.patch(error_on_recompile=True), torch.no_grad():
        call(*models.inputs(model, 5, STEPS))
    assert len(summary(model).generations[-1].streams["0"]) == 6


def test_explain_traces_a_full_graph_and_does_not_run_it() -> None:
    real = models.make(models.Mixed)
    expected = explain(real, *models.inputs(real, 0, STEPS))
    model = copy.deepcopy(real).to("meta")
    told = explain(model, *(one.to("meta") for one in models.inputs(real, 0, STEPS)))
    # Attention is another operator there, whose operations PyTorch counts otherwise.
    assert told.skippable == pytest.approx(expected.skippable, abs=0.02)
    assert dataclasses.replace(told, skippable=expected.skippable, parts=expected.parts) == expected


def test_explain_looks_at_all_graphs_of_a_compiled_model_and_compiles_none() -> None:
    class Broken(models.Mixed):
        def forward(
            self, hidden_states: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor, *more: torch.Tensor
        ) -> torch.Tensor:
            torch._dynamo.graph_break()
            return super().forward(hidden_states, timestep, prompt)

    model = models.make(Broken)
    inputs = models.inputs(model, 0, STEPS)
    expected = explain(model, *inputs)
    assert expected.cached
    model.compile(backend=dicache_backend, options={"lowering": "eager", "probe_depth": 2})
    told = explain(model, *inputs)
    assert (told.graphs, told.blocks, told.probe) == (expected.graphs, expected.blocks, expected.blocks[:2])
    assert not summary(model).generations  # nothing of it ran


def test_explain_needs_no_values_where_the_tensors_are_fake() -> None:
    with FakeTensorMode():
        model = models.Mixed().eval().requires_grad_(False)
        inputs = [torch.ones(one.shape) for one in models.inputs(model, 0, STEPS)]
    real = models.Mixed().eval().requires_grad_(False)
    assert explain(model, *inputs) == explain(real, *models.inputs(real, 0, STEPS))


def test_an_explanation_is_told_in_what_json_can_hold() -> None:
    model = models.make(models.Mixed)
    config = DiCacheConfig(threshold=math.inf, state_dtype=torch.bfloat16)
    model.compile(backend=dicache_backend, options=config.options())
    told = explain(model, *models.inputs(model, 0, STEPS), passes=True)
    found = json.loads(json.dumps(told.to_dict(), allow_nan=False))
    assert set(found) == {field.name for field in dataclasses.fields(told)}
    assert found["trunk"] == ["double_blocks", "single_blocks"]
    assert found["streams"] == [{"shape": [2, 6, 16], "dtype": "float32"}]
    assert (found["config"]["threshold"], found["config"]["state_dtype"]) == ("inf", "bfloat16")
    assert [one["name"] for one in found["passes"]] == [one.name for one in told.passes]


def test_explain_asks_for_arguments_where_it_knows_nothing() -> None:
    with pytest.raises(ValueError, match="call it once, or give explain the arguments of a call"):
        explain(models.make(models.SingleStream))


@pytest.mark.parametrize("report", [summary, explain])
def test_reports_ask_for_a_module(report: object) -> None:
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, compiled or not, or a pipeline, got str"):
        report("model")  # type: ignore[operator]


def test_summary_tells_every_step() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=10.0)
    generate(call, model)
    steps = summary(call).generations[-1].streams["0"]
    assert [step.index for step in steps] == list(range(STEPS))
    assert [step.timestep for step in steps] == pytest.approx([1 - i / STEPS for i in range(STEPS)])
    assert [step.forced for step in steps] == [True] * 3 + [False] * 7
    assert [step.error is None for step in steps] == [True] + [False] * 9
    assert [step.gamma is None for step in steps] == [step.deep for step in steps]
    for before, step in itertools.pairwise(steps):
        carried = before.accumulated or 0.0 if not before.deep else 0.0
        assert step.accumulated == pytest.approx(carried + (step.error or 0.0))
    assert str(summary(model)).splitlines() == [
        "generation  stream        steps  deep  share  decisions (D deep, d deep and forced, . reused)",
        "         0  0                10     4    40%  ddd...D...",
        f"         0  config  {published(threshold=10.0, lowering='eager', strict=True).brief()}",
    ]


def test_summary_is_the_same_for_a_model_compiled_in_place() -> None:
    model = models.make(models.SingleStream)
    model.compile(backend=dicache_backend, options=DiCacheConfig(lowering="eager").options())
    generate(model, model)
    assert len(summary(model).generations[-1].streams["0"]) == STEPS


def test_old_generations_and_old_steps_are_dropped() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model)
    for _ in range(MAX_GENERATIONS + 3):
        generate(call, model, steps=2)
    assert len(summary(model).generations) == MAX_GENERATIONS
    generate(call, model, steps=LOG_ROWS + 10)
    (only,) = summary(model).generations
    steps = only.streams["0"]
    assert [step.index for step in steps] == list(range(10, LOG_ROWS + 10))


def test_the_name_of_the_backend_is_registered() -> None:
    assert "dicache" in torch._dynamo.list_backends()
