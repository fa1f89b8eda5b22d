"""Small tensors that a piece computes for itself are kept in memory where something large reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from dicache_compile import DiCacheConfig, Schedule, summary
from dicache_compile.estimators import Taylor
from dicache_compile.kernels import combination
from dicache_compile.lowering import lower
from dicache_compile.lowering.fake_values import record_fake_values
from dicache_compile.lowering.once import compute_once
from tests import models
from tests.helpers import shared

X = torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(0))
TIME = torch.tensor(3.0)


def passed(function: Callable[..., object], *examples: Tensor) -> fx.GraphModule:
    """The function's graph after the pass; it gives what it gave."""
    gm = fx.symbolic_trace(function)
    mode = FakeTensorMode()
    record_fake_values(gm, [mode.from_tensor(example) for example in examples], mode)
    compute_once(gm)
    gm.graph.lint()
    torch.testing.assert_close(gm(*examples), function(*examples), rtol=0, atol=0)
    return gm


def kept(gm: fx.GraphModule) -> list[str]:
    """The names of what is kept."""
    return [str(node.args[0]) for node in gm.graph.nodes if node.target is torch.as_strided]


def test_weights_of_an_estimate_are_kept_and_what_leads_to_them_is_not() -> None:
    def estimate(x: Tensor, time: Tensor) -> Tensor:
        elapsed = time * time - 1
        return combination(x, [x + 1, x + 2], [elapsed / 7, 1 - elapsed / 7])

    gm = passed(estimate, X, TIME)
    # Of each weight what multiplies, and whether it is zero.
    assert len(kept(gm)) == 4
    assert not any(name.startswith(("mul", "add")) for name in kept(gm))
    (product,) = (node for node in gm.graph.nodes if node.name == "mul")  # time * time: read by numbers alone
    assert all(reader.target is not torch.as_strided for reader in product.users)


def test_places_of_a_ring_are_kept() -> None:
    def pick(x: Tensor, anchors: Tensor) -> Tensor:
        return torch.where((anchors - 1) % 3 == 2, x, -x)

    assert kept(passed(pick, X, torch.tensor(6))) == ["eq"]


def test_one_number_for_each_channel_or_row_is_kept() -> None:
    def channels(x: Tensor, weights: Tensor) -> Tensor:
        return x * (weights / 3)

    assert kept(passed(channels, X, torch.arange(16.0))) == ["truediv"]

    def rows(x: Tensor, weights: Tensor) -> Tensor:
        return x * (weights / 3)

    assert kept(passed(rows, X, torch.arange(2.0).reshape(2, 1, 1))) == ["truediv"]


def test_what_is_large_given_or_seen_of_another_tensor_is_left() -> None:
    assert not kept(passed(lambda x, time: x + time, X, TIME))
    assert not kept(passed(lambda x: (x + 1) * 2, X))
    assert not kept(passed(lambda x, times: x + times[1], X, torch.arange(3.0)))
    assert not kept(passed(lambda x, weights: x * (weights * 2), X, torch.ones(40, 16)))


def test_the_models_own_numbers_are_left() -> None:
    gm = fx.symbolic_trace(lambda x, time: x * (time * 2))
    next(node for node in gm.graph.nodes if node.name == "mul").meta["stack_trace"] = "as Dynamo notes it"
    mode = FakeTensorMode()
    record_fake_values(gm, [mode.from_tensor(X), mode.from_tensor(TIME)], mode)
    compute_once(gm)
    assert not kept(gm)


@torch.no_grad()
def test_where_inductor_cannot_have_it_the_piece_is_compiled_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with FoCa on a FLUX, torch 2.13: KeyError, from loops around several kernels."""
    asked: list[bool] = []

    def lowered(gm: fx.GraphModule, *_: object) -> Callable[..., object]:
        asked.append(any(node.target is torch.as_strided for node in gm.graph.nodes))
        if asked[-1]:
            raise KeyError("buf519")
        return gm.forward

    monkeypatch.setattr(lower, "lower_graph", lowered)
    model, steps = models.make(models.SingleStream, depth=3), 8
    config = DiCacheConfig(schedule=Schedule.every(3), estimator=Taylor(2), num_steps=steps, strict=True)
    call = shared.compiled_apart(model, config.options())
    ours = [call(*models.inputs(model, step, steps)) for step in range(steps)]
    assert any(asked)
    assert "".join("01"[one.deep] for one in summary(model).generations[-1].streams["0"]) == "10010010"
    plain = shared.compiled_apart(model, replace(config, lowering="eager").options())
    for step, result in enumerate(ours):
        torch.testing.assert_close(result, plain(*models.inputs(model, step, steps)), rtol=0, atol=0)
