"""More than one shape: state never meets another's, and follows a dynamic graph's."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import DiCacheConfig, dicache_backend, reset, summary
from dicache_compile.calls.session import sessions_of
from tests import models
from tests.contract.test_contract import ENGINES, KINDS, STEPS, compiled, generate
from tests.helpers.cells import cells
from tests.helpers.published import published

pytestmark = pytest.mark.shares_traces


@functools.cache
def alone(tokens: int) -> list[Tensor]:
    """What a model that never saw another shape gives."""
    model = models.make(models.SingleStream)
    out = generate(compiled(model, threshold=0.3), model, tokens=tokens)
    torch._dynamo.reset()
    return out


@cells("engine, dynamic", ENGINES, [None, False, True])
def test_a_shape_that_comes_back_starts_anew(engine: str, dynamic: bool | None) -> None:
    for tokens in (6, 8, 10):
        alone(tokens)  # before anything else is compiled
    model = models.make(models.SingleStream)
    options = published(threshold=0.3, engine=engine, lowering="eager", strict=True).options()  # type: ignore[arg-type]
    call = torch.compile(model, backend=dicache_backend, fullgraph=True, dynamic=dynamic, options=options)
    for tokens in (6, 8, 6, 10, 8):
        ours = generate(call, model, tokens=tokens)
        for step, (a, b) in enumerate(zip(ours, alone(tokens), strict=True)):
            # A dynamic graph may take the same operations in another order.
            torch.testing.assert_close(a, b, msg=f"{tokens} tokens, step {step}")
    state = sessions_of(model)[-1].streams["0"]
    assert state.tensors["h_prev.0"].shape == (2, 8, 16)
    assert len(sessions_of(model)[-1].streams) == 1


@pytest.mark.parametrize("kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in KINDS[1:])])
def test_a_shape_that_comes_back_in_mid_generation_meets_no_old_state(kind: type[models.Model]) -> None:
    model = models.make(kind)
    call = compiled(model, apart=True, threshold=10.0)
    with torch.no_grad():
        for step in range(5):
            call(*models.inputs(model, step, STEPS, tokens=6))
        for step in range(5, 8):
            call(*models.inputs(model, step, STEPS, tokens=8))
        for step in range(8, STEPS):
            call(*models.inputs(model, step, STEPS, tokens=6))
    generations = [generation.streams["0"] for generation in summary(model).generations]
    assert ["".join(".D"[step.deep] for step in steps) for steps in generations] == ["DDD..", "DDD", "DD"]


@pytest.mark.parametrize("dynamic", [None, True])
def test_a_dynamic_graph_serves_a_third_shape_without_another_compilation(dynamic: bool | None) -> None:
    graphs: list[Any] = []

    def counting(gm: torch.fx.GraphModule, examples: Any, **options: Any) -> Any:
        graphs.append(gm)
        return dicache_backend(gm, examples, **options)

    model = models.make(models.SingleStream)
    options = DiCacheConfig(lowering="eager", strict=True).options()
    call = torch.compile(model, backend=counting, fullgraph=True, dynamic=dynamic, options=options)
    for tokens in (6, 8, 10, 6, 12):
        generate(call, model, steps=2, tokens=tokens)
    assert len(graphs) == (2 if dynamic is None else 1)


def test_a_batch_and_its_copy_decide_alike() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, apart=True, threshold=0.3)
    generate(call, model, batch=2)
    once = summary(model).generations[-1].streams["0"]
    reset(model)
    with torch.no_grad():
        for step in range(STEPS):
            call(*(torch.cat((argument, argument)) for argument in models.inputs(model, step, STEPS)))
    twice = summary(model).generations[-1].streams["0"]
    assert [step.deep for step in once] == [step.deep for step in twice]
    for a, b in zip(once[1:], twice[1:], strict=True):
        assert a.error == pytest.approx(b.error, rel=1e-5)
