"""Runs of real diffusers pipelines with tiny random parts: inside each other, with two experts, changed half way."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from dicache_compile import DiCacheConfig, generation, summary
from dicache_compile.calls.runs import current_run
from tests.helpers import shared
from tests.use.test_pipelines import STEPS, WAN, compiled, diffusers, flux, run, wan

pytestmark = pytest.mark.shares_traces
CONFIG: dict[str, Any] = {"threshold": 10.0, "final_steps": 1}


def marks(model: torch.nn.Module) -> dict[str, str]:
    streams = summary(model).generations[-1].streams
    return {name: "".join(".D"[step.deep] for step in steps) for name, steps in streams.items()}


@pytest.mark.parametrize("build", [flux, wan])
def test_a_pipeline_call_inside_another_on_one_transformer_leaves_that_as_it_is(build: Any) -> None:
    pipeline, arguments = compiled(build, **CONFIG)
    alone = run(pipeline, arguments, seed=1)
    inner_alone = run(pipeline, arguments, seed=2, steps=5)
    inner: list[torch.Tensor] = []

    def another(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == 3:
            parts = {**pipeline.components, "scheduler": copy.deepcopy(pipeline.scheduler)}
            other = type(pipeline)(**parts)
            other.set_progress_bar_config(disable=True)
            inner.append(run(other, arguments, seed=2, steps=5))
        return {}

    assert torch.equal(run(pipeline, arguments, seed=1, callback_on_step_end=another), alone)
    assert torch.equal(inner[0], inner_alone)
    assert current_run() is None


def test_a_prompt_that_a_callback_changes_needs_new_anchors_and_no_new_count() -> None:
    pipeline, arguments = compiled(flux, **CONFIG)

    def change(_: Any, step: int, __: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": -kwargs["prompt_embeds"]} if step == 3 else {}

    more = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    run(pipeline, arguments, **more)
    assert marks(pipeline.transformer) == {"cond": "DDD.D..D", "uncond": "DDD...DD"}


def test_two_experts_are_of_one_run() -> None:
    pipeline, arguments = compiled(wan, **CONFIG)
    torch.manual_seed(1)
    second = diffusers.WanTransformer3DModel(**WAN).eval().requires_grad_(False)
    shared.compile_in_place(second, DiCacheConfig(lowering="eager", strict=True, **CONFIG).options())
    both = diffusers.WanPipeline(**{**pipeline.components, "transformer_2": second}, boundary_ratio=0.8)
    both.set_progress_bar_config(disable=True)
    results = [run(both, arguments) for _ in range(2)]
    assert torch.equal(*results)
    first = len(summary(pipeline.transformer).generations[-1].streams["cond"])
    assert 0 < first < STEPS - 1
    for name in ("cond", "uncond"):
        steps = summary(second).generations[-1].streams[name]
        assert [step.index for step in steps] == list(range(first, STEPS))
        assert steps[-1].deep
        assert steps[-1].forced
    assert len(summary(second).generations) == 2


@pytest.mark.exhaustive
def test_another_batch_gives_the_same_result_for_the_same_seed() -> None:
    pipeline, arguments = compiled(flux, apart=True, **CONFIG)
    run(pipeline, arguments)
    results = [run(pipeline, arguments, seed=1, num_images_per_prompt=3) for _ in range(3)]
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_a_pipeline_in_a_generation_is_of_that_request() -> None:
    pipeline, arguments = compiled(flux, **CONFIG)
    with generation("request"):
        run(pipeline, arguments)
        assert current_run() is not None
    assert set(marks(pipeline.transformer)) == {"request/cond", "request/uncond"}
