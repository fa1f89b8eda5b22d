"""Small tensors that a piece computes for itself are kept in memory where something large reads them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from dicache_compile.kernels import combination
from dicache_compile.lowering.fake_values import record_fake_values
from dicache_compile.lowering.once import compute_once

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
