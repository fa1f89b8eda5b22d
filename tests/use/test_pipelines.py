"""Real diffusers pipelines with tiny random parts: nothing is downloaded, prompts come as embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import DiCacheConfig, Schedule, dicache_backend, enable_cache, summary
from dicache_compile.estimators import GuidanceDifference
from tests.helpers import shared
from tests.helpers.published import published

diffusers = pytest.importorskip("diffusers", reason="the pipelines are diffusers'")

pytestmark = pytest.mark.shares_traces

STEPS = 8
FLUX = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 4, 8),
    "guidance_embeds": False,
}
WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 4,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
}


def flux() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    pipeline = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=diffusers.AutoencoderKL(latent_channels=4, block_out_channels=(4,), norm_num_groups=1),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=diffusers.FluxTransformer2DModel(**FLUX).eval(),
    )
    arguments = {
        "prompt_embeds": torch.randn(1, 8, 32),
        "pooled_prompt_embeds": torch.randn(1, 32),
        "negative_prompt_embeds": torch.randn(1, 8, 32),
        "negative_pooled_prompt_embeds": torch.randn(1, 32),
        "true_cfg_scale": 2.0,
        "height": 16,
        "width": 16,
        "output_type": "latent",
    }
    return pipeline, arguments


def wan() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    pipeline = diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        transformer=diffusers.WanTransformer3DModel(**WAN).eval(),
        vae=diffusers.AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    arguments = {
        "prompt_embeds": torch.randn(1, 8, 32),
        "negative_prompt_embeds": torch.randn(1, 8, 32),
        "guidance_scale": 2.0,
        "num_frames": 5,
        "height": 16,
        "width": 16,
        "output_type": "latent",
    }
    return pipeline, arguments


PIPELINES = pytest.mark.parametrize("build", [flux, wan])
FLUX_FIRST = pytest.mark.parametrize("build", [flux, pytest.param(wan, marks=pytest.mark.exhaustive)])


def compiled(build: Any, apart: bool = False, **config: Any) -> tuple[Any, dict[str, Any]]:
    """`apart`: traced for this test alone, which is about what Dynamo does, such as with a second shape."""
    pipeline, arguments = build()
    pipeline.set_progress_bar_config(disable=True)
    options = published(**{"lowering": "eager", "threshold": 10.0, "strict": True, **config}).options()
    pipeline.transformer.requires_grad_(False)
    if apart:
        pipeline.transformer.compile(backend=dicache_backend, fullgraph=True, options=options)
    else:
        shared.compile_in_place(pipeline.transformer, options)
    return pipeline, arguments


def run(pipeline: Any, arguments: dict[str, Any], seed: int = 0, steps: int = STEPS, **more: Any) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    result = pipeline(num_inference_steps=steps, generator=generator, **{**arguments, **more})
    return result[0] if isinstance(result, tuple) else next(iter(result.values()))


def marks(pipeline: Any, name: str) -> str:
    return "".join(".D"[step.deep] for step in summary(pipeline.transformer).generations[-1].streams[name])


@PIPELINES
def test_threshold_zero_gives_the_pipelines_own_result(build: Any) -> None:
    plain, arguments = build()
    plain.set_progress_bar_config(disable=True)
    expected = run(plain, arguments)
    pipeline, arguments = compiled(build, threshold=0.0)
    assert torch.equal(run(pipeline, arguments), expected)


@PIPELINES
def test_guidance_gives_two_named_streams_from_the_first_generation_on(build: Any) -> None:
    pipeline, arguments = compiled(build)
    run(pipeline, arguments)
    (generation,) = summary(pipeline.transformer).generations
    assert set(generation.streams) == {"cond", "uncond"}
    for name in generation.streams:
        assert marks(pipeline, name) == "DDD...D."


@PIPELINES
def test_the_unconditional_call_is_estimated_from_the_conditional_one(build: Any) -> None:
    """Latents go from call to call as in any run: the pipeline passes both calls of a step the same."""
    rule = {
        "sites": "model",
        "schedule": Schedule.every(3, after=1),
        "estimator": GuidanceDifference(),
        "threshold": None,
    }
    pipeline, arguments = compiled(build, **rule)
    for steps in (STEPS, 5):
        run(pipeline, arguments, steps=steps)
        assert marks(pipeline, "cond") == "D" * steps
        assert marks(pipeline, "uncond") == "D..D..D."[:steps]


@PIPELINES
def test_the_same_seed_gives_the_same_result_twice(build: Any) -> None:
    pipeline, arguments = compiled(build, threshold=0.2)
    first = run(pipeline, arguments, seed=1)
    run(pipeline, arguments, seed=2, steps=5)
    assert torch.equal(run(pipeline, arguments, seed=1), first)
    assert len(summary(pipeline.transformer).generations) == 3


@PIPELINES
@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_run_that_raises_half_way_leaves_nothing_for_the_next(build: Any, after: int) -> None:
    pipeline, arguments = compiled(build, threshold=0.2)
    expected = run(pipeline, arguments, seed=1)

    def stop(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == after:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        run(pipeline, arguments, seed=1, callback_on_step_end=stop)
    assert torch.equal(run(pipeline, arguments, seed=1), expected)


@FLUX_FIRST
def test_steps_after_the_first_go_straight_and_give_the_same_result(build: Any) -> None:
    results = []
    for straight in (True, False):
        pipeline, arguments = build()
        pipeline.set_progress_bar_config(disable=True)
        pipeline.transformer.requires_grad_(False)
        enable_cache(pipeline, threshold=10.0, compile=False)
        armed = pipeline.transformer._compiled_call_impl
        if not straight:
            pipeline.transformer._compiled_call_impl = armed.inner
        results.append(run(pipeline, arguments))
        assert armed.reason is None
        assert armed.calls == (2 * STEPS - 1 if straight else 0)  # with two calls a step, of one form
    assert torch.equal(*results)


@FLUX_FIRST
def test_presets_take_the_number_of_steps_from_the_pipeline(build: Any) -> None:
    pipeline, arguments = build()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.transformer.requires_grad_(False)
    options = DiCacheConfig.preset("flux", threshold=10.0, lowering="eager").options()
    pipeline.transformer = torch.compile(pipeline.transformer, backend="dicache", options=options)
    run(pipeline, arguments, steps=10)
    assert marks(pipeline, "cond") == "DDD......D"
    run(pipeline, arguments, steps=5)
    assert marks(pipeline, "uncond") == "DD..D"


@PIPELINES
def test_one_graph_and_no_recompile_after_the_first_generation(build: Any) -> None:
    pipeline, arguments = compiled(build, apart=True)
    run(pipeline, arguments)
    with torch._dynamo.config.patch(error_on_recompile=True):
        run(pipeline, arguments, seed=3)
    assert len(summary(pipeline.transformer).generations) == 2


def test_a_lora_loaded_before_compiling_is_part_of_the_model() -> None:
    peft = pytest.importorskip("peft", reason="diffusers loads LoRAs with peft")
    pipeline, arguments = flux()
    pipeline.set_progress_bar_config(disable=True)
    without = run(pipeline, arguments)
    pipeline.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "proj_out"], init_lora_weights=False))
    pipeline.transformer.requires_grad_(False)
    expected = run(pipeline, arguments)
    assert not torch.equal(expected, without)
    options = DiCacheConfig(threshold=0.0, lowering="eager", strict=True).options()
    pipeline.transformer.compile(backend=dicache_backend, fullgraph=True, options=options)
    assert torch.equal(run(pipeline, arguments), expected)
    assert set(summary(pipeline.transformer).generations[-1].streams) == {"cond", "uncond"}


def test_two_pipelines_of_one_class_never_meet() -> None:
    one, arguments = compiled(flux, threshold=0.2)
    expected = run(one, arguments, seed=1)
    other, _ = compiled(flux, threshold=0.2)
    run(other, arguments, seed=2, steps=5)
    assert torch.equal(run(one, arguments, seed=1), expected)
    assert len(summary(one.transformer).generations) == 2
    assert len(summary(other.transformer).generations) == 1
