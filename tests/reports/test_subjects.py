"""Whom reports are about: models that are refused, pipelines, models that were not called yet."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from dicache_compile import DiCacheConfig, configure, dicache_backend, explain, generation, reset, summary
from dicache_compile.errors import UncachedWarning
from tests import models
from tests.contract.test_contract import STEPS, compiled, generate
from tests.helpers.published import published
from tests.models import Mixed, SingleStream

pytestmark = pytest.mark.shares_traces


class Pipe:
    """What a diffusers pipeline shows of its parts."""

    def __init__(self, **parts: Any) -> None:
        self.components = {"scheduler": object(), "vae": nn.Linear(2, 2), **parts}
        for name, part in parts.items():
            setattr(self, name, part)


def refused(seed: int = 0) -> Any:
    """A model that has nothing to skip, compiled."""
    model = models.make(SingleStream, seed=seed, depth=1)
    return torch.compile(model, backend=dicache_backend, options={"lowering": "eager"})


def test_the_reports_tell_why_a_called_model_is_not_cached() -> None:
    call = refused()
    with pytest.warns(UncachedWarning, match="only one transformer block"):
        generate(call, call._orig_mod, steps=2)
    for given in (call, call._orig_mod, Pipe(transformer=call)):
        told = explain(given)
        assert not told.cached
        assert "only one transformer block" in (told.reason or "")
        done = summary(given)
        assert not done.generations
        assert str(done).startswith("no generation recorded: this model runs uncached: ")
        assert "only one transformer block" in str(done)


def test_each_model_that_is_refused_is_told_so_once() -> None:
    """Also one that shares another's graph, for which nothing is compiled."""
    told = []
    for seed in (0, 1):
        call = refused(seed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            generate(call, call._orig_mod, steps=3)
            generate(call, call._orig_mod, steps=3, tokens=7)  # compiled again, for the same reason
        told += [[str(one.message) for one in caught if one.category is UncachedWarning]]
        assert not explain(call).cached
    assert [len(texts) for texts in told] == [1, 1]
    assert told[0] == told[1]


def test_a_model_that_was_not_called_yet_is_explained_under_its_own_options() -> None:
    model = models.make(Mixed)
    call = compiled(model, probe_depth=2, threshold=0.3)
    told = explain(call, *models.inputs(model, 0, STEPS))
    assert told.probe == ("double_blocks.0", "double_blocks.1")
    assert told.config is not None
    assert told.config.threshold == 0.3
    with pytest.raises(ValueError, match="call it once, or give explain the arguments of a call"):
        explain(call)
    assert str(summary(call)) == "no generation recorded: this model has not been called since it was compiled"
    model.compile(backend=dicache_backend, options={"probe_depth": 3, "lowering": "eager"})
    assert len(explain(model, *models.inputs(model, 0, STEPS)).probe) == 3


def test_a_pipeline_stands_for_its_compiled_model() -> None:
    model = models.make(SingleStream)
    call = compiled(model, threshold=0.3)
    pipe = Pipe(transformer=call, text_encoder=models.make(SingleStream, seed=1))
    configure(pipe, threshold=0.2)
    generate(call, model)
    assert explain(pipe) == explain(call)
    assert summary(pipe) == summary(call)
    assert summary(pipe).config == published(threshold=0.2, lowering="eager", strict=True)
    reset(pipe)
    with pytest.raises(TypeError, match=r"explain traces one call of the model itself: give it pipe\.transformer"):
        explain(pipe, prompt="a cat")


def test_of_a_pipeline_with_several_compiled_models_all_are_told_of() -> None:
    pair = [models.make(SingleStream, seed=seed) for seed in (0, 1)]
    calls = [compiled(model, threshold=0.0) for model in pair]
    pipe = Pipe(transformer=calls[0], transformer_2=calls[1])
    with pytest.raises(ValueError, match="call it once, or give explain the arguments of a call"):
        explain(pipe)
    with generation():
        generate(calls[0], pair[0])
        lines = str(explain(pipe)).splitlines()
        assert lines[0] == "transformer: cached, in one full graph"
        assert lines[-1] == "transformer_2: not cached: this model has not been called since it was compiled"
        generate(calls[1], pair[1])
    told = explain(pipe)
    assert [told.name, *(one.name for one in told.others)] == ["transformer", "transformer_2"]
    assert str(told).splitlines().count("transformer_2: cached, in one full graph") == 1
    (found,) = summary(pipe).generations
    for name, call in (("transformer", calls[0]), ("transformer_2", calls[1])):
        assert found.streams[f"{name}/0"] == summary(call).generations[0].streams["0"]
    assert "  transformer_2/0     10    10   100%  " in str(summary(pipe))
    configure(pipe, threshold=0.5)
    assert [configure(call).threshold for call in calls] == [0.5, 0.5]
    assert summary(pipe).config == configure(calls[1])
    configure(calls[0], threshold=0.7)
    with generation():
        for call, model in zip(calls, pair, strict=True):
            generate(call, model)
    assert [one.config.threshold for one in summary(pipe).generations] == [0.0, 0.7, 0.5]
    with pytest.raises(TypeError, match=r"explain traces one call of the model itself: give it pipe\.transformer"):
        explain(pipe, *models.inputs(pair[0], 0, STEPS))


def test_a_pipeline_without_a_compiled_model_says_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"no model of this Pipe is compiled .* pipe\.transformer\.compile\(backend="):
        summary(Pipe(transformer=models.make(SingleStream)))


def test_a_config_is_taken_for_its_options() -> None:
    model = models.make(SingleStream)
    config = DiCacheConfig(threshold=0.4, lowering="eager")
    call = torch.compile(model, backend=dicache_backend, options=config)  # type: ignore[call-overload]
    generate(call, model)
    assert summary(call).config == config
    assert summary(call).generations
