"""What is compiled in a way that cannot be cached, or only in part, is told so."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from dicache_compile import DiCacheConfig, dicache_backend, explain, summary
from dicache_compile.errors import UncachedWarning
from tests import models
from tests.contract.test_contract import STEPS
from tests.use.test_real_use import at, build

EAGER = DiCacheConfig(lowering="eager").options()
STRICT = DiCacheConfig(lowering="eager", strict=True).options()


def test_blocks_that_are_compiled_one_by_one_are_told_to_compile_the_whole() -> None:
    model = models.make(models.SingleStream)
    arguments = models.inputs(model, 0, STEPS)
    for block in model.blocks:
        block.compile(backend=dicache_backend, options=EAGER)
    with (
        torch.no_grad(),
        pytest.warns(UncachedWarning, match="one block .* compile the whole denoiser, in place") as caught,
    ):
        model(*arguments)
    assert len(caught) == 1
    torch._dynamo.reset()
    for block in model.blocks:
        block.compile(backend=dicache_backend, options=STRICT)
    with torch.no_grad(), pytest.raises(Exception, match="as compile_repeated_blocks compiles them"):
        model(*arguments)


@torch.no_grad()
def test_parts_without_attention_stay_silent_when_they_are_compiled_alone() -> None:
    model = models.make(models.SingleStream)
    model.embed_time.compile(backend=dicache_backend, options=STRICT)
    model.blocks[0].mlp.compile(backend=dicache_backend, options=STRICT)
    model(*models.inputs(model, 0, STEPS))


@pytest.mark.parametrize(
    "cache", ["FirstBlockCacheConfig", pytest.param("TaylorSeerCacheConfig", marks=pytest.mark.exhaustive)]
)
def test_a_cache_of_diffusers_is_named(cache: str) -> None:
    import diffusers

    model = build("flux")
    model.enable_cache(getattr(diffusers, cache)())
    model.compile(backend=dicache_backend, options=EAGER)
    with (
        torch.no_grad(),
        model.cache_context("cond"),
        pytest.warns(UncachedWarning, match=r"call model\.disable_cache\(\)"),
    ):
        for step in range(3):
            model(**at("flux")(step))
    assert not summary(model).generations


class Guided(nn.Module):
    """Both calls of guidance in one graph."""

    def __init__(self, model: models.Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
        conditional = self.model(hidden_states, timestep, prompt)
        return conditional + 2.0 * (conditional - self.model(hidden_states, timestep, 0 * prompt))


class Sampler(Guided):
    """A whole run in one graph."""

    def forward(self, hidden_states: Tensor, timesteps: Tensor, prompt: Tensor) -> Tensor:
        for time in timesteps.unbind():
            hidden_states = hidden_states - 0.1 * self.model(hidden_states, time.expand(2), prompt)
        return hidden_states


class Repeating(models.SingleStream):
    """Runs its blocks twice, each time with what came out of them."""

    def run(self, carried: models.Carried, first: int, last: int) -> models.Carried:
        return super().run(super().run(carried, first, last), first, last)


class Beside(models.SingleStream):
    """A stack that nothing tells from the trunk but that another one is heavier still."""

    def __init__(self, depth: int = 3, **sizes: int) -> None:
        super().__init__(depth, **sizes)
        self.decoder = nn.ModuleList(nn.Linear(self.width, self.width) for _ in range(60))

    def leave(self, carried: models.Carried) -> Tensor:
        x = carried["x"]
        for layer in self.decoder:
            x = x + layer(x).tanh()
        return super().leave({**carried, "x": x})


def test_a_model_that_is_called_twice_in_one_graph_is_told_that_one_call_is_cut() -> None:
    model = models.make(models.SingleStream)
    found = explain(Guided(model), *models.inputs(model, 0, STEPS))
    assert found.cached
    (uncut,) = found.uncut
    assert (uncut.owner, uncut.again) == ("model.blocks", True)
    assert found.skippable < uncut.share < 0.5
    assert "uncut " in str(found)
    assert "model.blocks, called again" in str(found)


def test_blocks_that_a_model_repeats_by_itself_are_one_trunk() -> None:
    model = models.make(Repeating, depth=2)
    found = explain(model, *models.inputs(model, 0, STEPS))
    assert len(found.blocks) == 4
    assert not found.uncut


def test_a_whole_sampling_loop_is_told_to_compile_the_denoiser_alone() -> None:
    model = models.make(models.SingleStream, depth=2)
    latents, _, prompt = models.inputs(model, 0, STEPS)
    arguments = (latents, torch.linspace(1, 0.25, 3), prompt)
    found = explain(Sampler(model), *arguments)
    assert not found.cached
    call = torch.compile(Sampler(model), backend=dicache_backend, options=EAGER)
    with torch.no_grad(), pytest.warns(UncachedWarning, match="run 3 times in this graph; if it is a sampling loop"):
        call(*arguments)
    assert "compile the whole denoiser, in place" in (found.reason or "")


def test_a_stack_beside_the_trunk_that_is_as_heavy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.make(Beside)
    arguments = models.inputs(model, 0, STEPS)
    found = explain(model, *arguments)
    assert found.trunk == ("blocks",)
    assert [stack.owner for stack in found.uncut] == ["decoder"]
    assert not found.uncut[0].again
    assert found.uncut[0].share + found.skippable < 1
    assert "of the operations in decoder" in str(found)
    call = torch.compile(model, backend=dicache_backend, options=EAGER)
    lines: list[str] = []
    logger = logging.getLogger("dicache_compile")
    monkeypatch.setattr(logger, "warning", lambda text, *more: lines.append(text % more))
    with torch.no_grad():
        call(*arguments)
    assert lines == ["decoder is as heavy as what is cut, and runs on every step: see `explain`"]


@pytest.mark.parametrize(("kind", "little"), [(models.SingleStream, False), (Beside, True)])
def test_little_to_gain_is_told(kind: type[models.SingleStream], little: bool) -> None:
    model = models.make(kind, depth=2)
    assert (": little to gain" in str(explain(model, *models.inputs(model, 0, STEPS)))) == little
