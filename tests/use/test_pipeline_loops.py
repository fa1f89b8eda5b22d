"""Loops of pipelines that are out of the ordinary: samplers, batches, guidance that comes and goes, few steps."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from dicache_compile import Schedule, enable_cache, generation, summary
from dicache_compile.errors import CacheWarning
from tests.helpers.published import published
from tests.use.test_pipeline_zoo import ENTRIES, recorded
from zoo.pipelines.entry import STEPS, generate


def marks(model: Any) -> dict[str, str]:
    """What each stream's steps did in the last generation: D deep, d deep and forced, . reused."""
    streams = summary(model).generations[-1].streams
    return {name: "".join(str(step.decisions[0]) for step in steps) for name, steps in streams.items()}


def uncached(pipe: Any, arguments: dict[str, Any]) -> Tensor:
    """What the pipeline gives without the cache, which stays enabled."""
    call, pipe.transformer._compiled_call_impl = pipe.transformer._compiled_call_impl, None
    try:
        return generate(pipe, arguments)
    finally:
        pipe.transformer._compiled_call_impl = call


def walk(pipe: Any, arguments: dict[str, Any]) -> dict[str, str]:
    """Holds a pipeline with a cache against itself without; what the steps did of a run that reuses."""
    with generation(threshold=0.0):
        assert torch.equal(generate(pipe, arguments), uncached(pipe, arguments))
    first, second = (generate(pipe, arguments) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, uncached(pipe, arguments))
    return marks(pipe.transformer)


def enabled(name: str, **how: Any) -> tuple[Any, dict[str, Any]]:
    """A pipeline that reuses three steps in a row whatever the error is, each stream by itself."""
    pipe, arguments = ENTRIES[name].make()
    enable_cache(pipe, published(threshold=10.0, final_steps=1), compile=False, **how)
    return pipe, arguments


SAMPLERS = {
    "HeunDiscreteScheduler": 2 * STEPS - 1,  # calls of the model
    "EulerAncestralDiscreteScheduler": STEPS,
    "DDIMScheduler": STEPS,  # it counts no steps
    "KDPM2AncestralDiscreteScheduler": 2 * STEPS - 1,
    "DPMSolverMultistepScheduler": STEPS,
    "SASolverScheduler": STEPS,
    "UniPCMultistepScheduler": STEPS,
}


@pytest.mark.parametrize(
    "names", [[*SAMPLERS][:3], pytest.param([*SAMPLERS][3:], marks=pytest.mark.exhaustive)], ids=["some", "others"]
)
def test_samplers_of_any_order_and_those_that_draw_noise_tell_their_steps(names: list[str]) -> None:
    pipe, arguments = enabled("pixart_sigma")
    for name in names:
        calls = SAMPLERS[name]
        more = {"algorithm_type": "sde-dpmsolver++"} if name.startswith("DPM") else {}
        pipe.scheduler = getattr(diffusers, name)(**more)
        (found,) = walk(pipe, arguments).values()
        assert found == "ddd...D...D...d"[: calls - 1] + "d"
        assert recorded(pipe.transformer) == {"0": tuple(range(calls))}


def test_a_sampler_that_calls_twice_a_step_for_a_flow() -> None:
    pipe, arguments = enabled("sd3")
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    assert walk(pipe, arguments) == {"0": "ddd...D...D...d"}


def test_several_prompts_with_several_pictures_each() -> None:
    pipe, arguments = enabled("pixart_sigma", dynamic=False)
    prompts = {
        name: torch.cat([value, -value if value.is_floating_point() else value])
        for name, value in arguments.items()
        if isinstance(value, Tensor)
    }
    more = {**arguments, **prompts, "num_images_per_prompt": 2}
    assert walk(pipe, more) == {"0": "ddd...Dd"}
    assert generate(pipe, more).shape[0] == 4
    assert walk(pipe, arguments) == {"0": "ddd...Dd"}


@pytest.mark.parametrize("name", ["flux2_klein", pytest.param("wan", marks=pytest.mark.exhaustive)])
def test_guidance_that_rests_for_some_steps_knows_where_it_comes_back(name: str) -> None:
    pipe, arguments = enabled(name)

    def rest(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        pipe._guidance_scale = 1.0 if 2 <= step < 5 else 2.0
        return {}

    found = walk(pipe, {**arguments, "callback_on_step_end": rest})
    assert found == {"cond": "ddd...Dd", "uncond": "ddd.d"}
    assert recorded(pipe.transformer) == {"cond": tuple(range(STEPS)), "uncond": (0, 1, 2, 6, 7)}


def test_guidance_of_a_third_branch_that_leaves_layers_out_from_one_step_to_another() -> None:
    pipe, arguments = enabled("sd3")
    more = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 0.8}
    found = walk(pipe, {**arguments, **more})
    assert found == {"0": "ddd...Dd", "1": "dd...D"}
    assert recorded(pipe.transformer) == {"0": tuple(range(STEPS)), "1": tuple(range(1, 7))}


@pytest.mark.exhaustive
def test_a_batch_that_loses_its_half_of_guidance_gets_new_anchors_and_no_new_count() -> None:
    pipe, arguments = enabled("z_image")
    with pytest.warns(CacheWarning, match="the model was compiled again at step 4 of a generation"):
        found = walk(pipe, {**arguments, "cfg_truncation": 0.4})
    assert recorded(pipe.transformer) == {"0": tuple(range(STEPS))}
    (only,) = found.values()
    assert only.endswith("d")


def test_of_four_steps_the_default_reuses_one_and_a_shorter_warmup_two() -> None:
    pipe, arguments = ENTRIES["flux2"].make()
    enable_cache(pipe, threshold=10.0, compile=False)
    assert walk(pipe, {**arguments, "num_inference_steps": 4}) == {"0": "ddd."}
    with generation(warmup_steps=1):
        assert walk(pipe, {**arguments, "num_inference_steps": 4}) == {"0": "d..D"}
    assert torch.equal(*(generate(pipe, {**arguments, "num_inference_steps": 1}) for _ in range(2)))


@pytest.mark.parametrize("name", ["wan22_image", pytest.param("wan22", marks=pytest.mark.exhaustive)])
def test_a_second_expert_keeps_its_place_in_the_run(name: str) -> None:
    """Of Wan's two pipelines one tells `cache_context` where a step stands, the other leaves it to the scheduler."""
    pipe, arguments = enabled(name)
    generate(pipe, arguments)
    found = marks(pipe)
    assert found["transformer/cond"] == "ddd."
    assert found["transformer_2/cond"] == "d..d"  # the first for want of an anchor, the last of the run


@pytest.mark.exhaustive
def test_a_schedule_of_two_experts_is_one_of_the_whole_run() -> None:
    first, *others = Schedule.steps(0.0, 0.25, 0.5, 0.75), Schedule.every(2, last=1), Schedule.steps(0, 3, 4)
    pipe, arguments = ENTRIES["wan22"].make()
    enable_cache(pipe, schedule=first, compile=False)
    for schedule in (first, *others):
        with generation(schedule=schedule):
            generate(pipe, arguments)
        for half in ("cond", "uncond"):
            streams = summary(pipe).generations[-1].streams
            steps = [*streams[f"transformer/{half}"], *streams[f"transformer_2/{half}"]]
            assert tuple(step.index for step in steps if step.deep) == schedule.deep_steps(STEPS)
