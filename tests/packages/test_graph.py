"""The exported graph, whose state goes in and comes out, is the program step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from dicache_compile import DiCacheConfig, Schedule, SiteRule, export_graph, summary
from dicache_compile.errors import ExportError, StepError
from dicache_compile.estimators import Reuse
from tests import models

STEPS = 8

CONFIGS: dict[str, dict[str, Any]] = {
    "a gate": {"threshold": 0.3},
    "a schedule": {"schedule": Schedule.steps(0, 1, 3), "estimator": Reuse()},
    "two rules": {"rules": (SiteRule(sites=(0, 2), threshold=0.2), SiteRule(sites=(2, 4), threshold=0.5))},
    "no number of steps": {"threshold": 0.3, "num_steps": None},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_exported_graph_is_the_compiled_model_step_by_step(config: dict[str, Any], tmp_path: Path) -> None:
    model = models.make(models.Mixed)
    options = DiCacheConfig(**{"num_steps": STEPS, **config}, lowering="eager", strict=True).options()
    call = torch.compile(model, backend="dicache", fullgraph=True, options=options)
    exported = export_graph(call, *models.inputs(model, 0, STEPS))
    assert exported.state_dict.keys() == model.state_dict().keys()
    torch.export.save(exported, tmp_path / "graph.pt2")
    loaded = torch.export.load(tmp_path / "graph.pt2")
    assert any(node.target is torch.ops.higher_order.cond for node in loaded.graph.nodes)
    (_, state), _ = loaded.example_inputs
    run = loaded.module()
    for _ in range(2):  # the second generation is told by the timestep, which goes back
        for step in range(STEPS):
            latents, time, prompt = models.inputs(model, step, STEPS)
            arguments = {"hidden_states": latents, "timestep": time, "prompt": prompt, "more": ()}
            before = {name: one.clone() for name, one in state.items()}
            with torch.no_grad():
                ours, new = run(arguments, state)
                theirs = call(latents, time, prompt)
            assert torch.equal(ours, theirs)
            assert all(torch.equal(one, state[name]) for name, one in before.items() if one.isfinite().all())
            state = new
    steps = [step.deep for step in summary(call).generations[-1].streams["0"]]
    assert 0 < sum(steps) < STEPS


def test_the_exported_graph_of_a_flux_is_the_compiled_model_step_by_step() -> None:
    pytest.importorskip("diffusers")
    entry = zoo.entries()["flux"]
    model = entry.build()
    options = DiCacheConfig(threshold=0.3, lowering="eager", strict=True).options()
    model.compile(backend="dicache", fullgraph=True, options=options)
    exported = export_graph(model, **entry.at_step(0, STEPS), return_dict=False)
    (arguments, state), _ = exported.example_inputs
    run = exported.module()
    for step in range(STEPS):
        call = {**entry.at_step(step, STEPS), "return_dict": False}
        with torch.no_grad():
            (ours,), state = run({**arguments, **call}, state)
            (theirs,) = model(**call)
        assert torch.equal(ours, theirs)
    steps = [step.deep for step in summary(model).generations[-1].streams["0"]]
    assert 0 < sum(steps) < STEPS


class Detaches(models.SingleStream):
    def forward(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor, *more: Any) -> Tensor:
        return super().forward(hidden_states.data * 2, timestep, prompt)


@torch.no_grad()
def test_a_model_that_reads_a_tensors_data_is_exported() -> None:
    """As CogVideoX does; `torch.export` by itself cannot take that."""
    model = models.make(Detaches, depth=3)
    call = models.inputs(model, 0, STEPS)
    exported = export_graph(model, *call)
    (arguments, state), _ = exported.example_inputs
    assert torch.equal(exported.module()(arguments, state)[0], model(*call))


def test_what_only_the_host_knows_is_told() -> None:
    model = models.make(models.SingleStream, depth=3)
    options = DiCacheConfig(threshold=0.3, final_steps=1).options()
    call = torch.compile(model, backend="dicache", fullgraph=True, options=options)
    with pytest.raises(StepError, match=r"need the number of steps of a generation, .*: set num_steps"):
        export_graph(call, *models.inputs(model, 0, STEPS))
    together = torch.compile(model, backend="dicache", options=DiCacheConfig(joint=True).options())
    with pytest.raises(ExportError, match=r"joint=True has streams decide together.*leave joint out"):
        export_graph(together, *models.inputs(model, 0, STEPS))
    pytest.importorskip("diffusers")
    entry = zoo.entries()["temporal"]
    timeless = entry.build()
    timeless.compile(backend="dicache", fullgraph=True, options=DiCacheConfig(**entry.config).options())
    with pytest.raises(ExportError, match="the steps of a model without a timestep are counted outside of its graph"):
        export_graph(timeless, **entry.at_step(0, STEPS), return_dict=False)
