"""`enable_cache` and `disable_cache`: one line, undone by another one."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from dicache_compile import DiCacheConfig, Schedule, configure, disable_cache, enable_cache, explain, reset, summary
from dicache_compile.calls.session import sessions_of
from tests import models
from tests.contract.test_contract import generate
from tests.use.test_pipelines import PIPELINES, flux, run, wan

diffusers = pytest.importorskip("diffusers", reason="the pipelines are diffusers'")


class Pipe:
    """What a diffusers pipeline shows of its parts."""

    def __init__(self, **parts: Any) -> None:
        self.components = {"scheduler": object(), "vae": nn.Linear(2, 2), **parts}


def quiet(build: Any) -> tuple[Any, dict[str, Any]]:
    pipe, arguments = build()
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.requires_grad_(False)
    return pipe, arguments


@PIPELINES
def test_one_line_caches_a_pipeline_and_another_one_undoes_it(build: Any) -> None:
    pipe, arguments = quiet(build)
    transformer = pipe.transformer
    plain = run(pipe, arguments)
    enabled = enable_cache(pipe, threshold=0.0, compile=False)
    assert torch.equal(run(pipe, arguments), plain)
    assert pipe.transformer is transformer
    assert str(enabled).splitlines() == [
        f"dicache on transformer ({type(transformer).__name__})",
        "config     threshold=0.0, lowering='eager'",
        "next       the first call compiles; then summary() tells what was reused, disable_cache() undoes it",
    ]
    configure(enabled, threshold=10.0)
    cached = run(pipe, arguments)
    assert not torch.equal(cached, plain)
    for given in (enabled, pipe, transformer):
        assert [len(one.streams) for one in summary(given).generations] == [2, 2]
        assert explain(given).cached
    assert enabled.summary() == summary(pipe)
    assert enabled.explain() == explain(pipe)
    assert enabled.configure(threshold=10.0) == configure(pipe)
    reset(enabled)
    assert torch.equal(run(pipe, arguments), cached)
    enabled.reset()
    assert not any(session.streams for session in sessions_of(transformer))
    disable_cache(pipe)
    assert transformer._compiled_call_impl is None
    assert not any(session.streams for session in sessions_of(transformer))
    assert torch.equal(run(pipe, arguments), plain)
    with pytest.raises(ValueError, match="no cache of dicache_compile is enabled here"):
        disable_cache(pipe)
    enable_cache(pipe, threshold=10.0, compile=False)
    assert torch.equal(run(pipe, arguments), cached)
    enable_cache(pipe, threshold=0.0, compile=False)  # as at first: what `configure` changed is forgotten
    assert torch.equal(run(pipe, arguments), plain)


@torch.no_grad()
def test_one_more_config_than_dynamo_compiles_of_a_function_is_cached_too() -> None:
    model = models.make(models.SingleStream, depth=2)
    for steps in range(1, torch._dynamo.config.recompile_limit + 2):
        enabled = enable_cache(model, DiCacheConfig(schedule=Schedule.every(2), num_steps=steps), compile=False)
        model(*models.inputs(model, 0, 2))
        assert len(enabled.summary().generations) == 1
        disable_cache(model)


def test_a_cache_is_undone_in_the_middle_of_a_generation() -> None:
    pipe, arguments = quiet(flux)
    plain = run(pipe, arguments)
    enabled = enable_cache(pipe, threshold=0.0, compile=False)

    def undone(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == 3:
            disable_cache(enabled)
        return {}

    assert torch.equal(run(pipe, arguments, callback_on_step_end=undone), plain)
    assert torch.equal(run(pipe, arguments), plain)


def test_all_denoisers_are_compiled_and_nothing_else() -> None:
    parts = {name: models.make(models.SingleStream, seed=seed) for seed, name in enumerate(("transformer", "other"))}
    second = models.make(models.TwoStream)
    pipe = Pipe(**parts, transformer_2=second, controlnet=models.make(models.Mixed))
    enabled = enable_cache(pipe, DiCacheConfig(threshold=10.0), warmup_steps=1, compile=False)
    assert list(enabled.models) == ["transformer", "transformer_2"]
    assert enabled.config == DiCacheConfig(threshold=10.0, warmup_steps=1, lowering="eager")
    for model in enabled.models.values():
        generate(model, model, steps=4)
        assert [step.deep for step in summary(model).generations[-1].streams["0"]] == [True, False, False, True]
    assert parts["other"]._compiled_call_impl is None
    assert pipe.components["controlnet"]._compiled_call_impl is None


def test_what_a_model_was_compiled_with_before_comes_back() -> None:
    model = models.make(models.SingleStream)
    model.compile(backend="eager")
    before = model._compiled_call_impl
    for threshold in (0.1, 0.2):  # the second takes the place of the first
        assert enable_cache(model, threshold=threshold, compile=False).config.threshold == threshold
    assert model._compiled_call_impl is not before
    disable_cache(model)
    assert model._compiled_call_impl is before


def test_the_published_rule_is_that_of_the_models_class() -> None:
    for build, name in ((flux, "flux"), (wan, "wan")):
        pipe, _ = quiet(build)
        enabled = enable_cache(pipe, preset="published", warmup_ratio=0.5, compile=False)
        assert enabled.config == DiCacheConfig.preset(name, warmup_ratio=0.5, lowering="eager")
    other = models.make(models.SingleStream)
    with pytest.raises(ValueError, match="no rule was published for SingleStream, only for FluxTransformer2DModel, "):
        enable_cache(other, preset="published")
    assert enable_cache(other, preset="hunyuan").config == DiCacheConfig.preset("hunyuan")
    both = Pipe(transformer=quiet(flux)[0].transformer, transformer_2=quiet(wan)[0].transformer)
    with pytest.raises(ValueError, match=r"the models are of several families, \['flux', 'wan'\]: enable each alone"):
        enable_cache(both, preset="published")
    with pytest.raises(ValueError, match="preset='flux' stands in for config: give one of them"):
        enable_cache(other, DiCacheConfig(), preset="flux")


@pytest.mark.parametrize(
    ("given", "fields", "error"),
    [
        (lambda: Pipe(unet=nn.Linear(2, 2)), {}, "this Pipe denoises with a UNet, whose blocks differ in shape"),
        (lambda: Pipe(), {}, "this Pipe has no transformer: there is nothing to cache"),
        (lambda: "a name", {}, "expected a diffusers pipeline or a torch.nn.Module, got str"),
        (lambda: torch.compile(nn.Linear(2, 2)), {}, "this is what torch.compile returned: give the model itself"),
        (lambda: nn.Linear(2, 2), {"treshold": 1}, "unknown option 'treshold'; the nearest is 'threshold'"),
        (lambda: nn.Linear(2, 2), {"threshold": -1}, "threshold: expected a number from 0 to inf, got -1"),
        (lambda: nn.Linear(2, 2), {"config": {"threshold": 1}}, "config: expected a DiCacheConfig, got dict"),
    ],
)
def test_what_cannot_be_cached_is_refused(given: Any, fields: dict[str, Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(error)):
        enable_cache(given(), **fields)


def test_a_model_with_another_cache_is_refused_and_nothing_is_changed() -> None:
    pipe, _ = quiet(flux)
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match=r"pipe\.transformer has a cache of diffusers: call pipe"):
        enable_cache(pipe)
    pipe.transformer.disable_cache()
    first, second = models.make(models.SingleStream), models.make(models.SingleStream, seed=1)
    second._is_cached = True
    with pytest.raises(ValueError, match=r"pipe\.transformer_2 has a cache of cache-dit: call "):
        enable_cache(Pipe(transformer=first, transformer_2=second))
    assert first._compiled_call_impl is None
