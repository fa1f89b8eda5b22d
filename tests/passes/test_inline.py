"""Blocks that run under `torch.utils.checkpoint`, or in regions that are compiled once, are told apart and cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

from dicache_compile import DiCacheConfig, dicache_backend, explain, summary
from dicache_compile.errors import UncachedWarning
from dicache_compile.passes.inline import inline
from dicache_compile.plan import Plan
from tests import models
from tests.contract.test_contract import STEPS, compiled, generate
from tests.helpers.graphs import captured
from tests.oracles.plain_oracle import PlainDiCache

Wrap = Callable[[nn.Module], Callable[..., Any]]


def checkpointed(block: nn.Module) -> Callable[..., Any]:
    return lambda *args: checkpoint(block, *args, use_reentrant=False)


def twice_checkpointed(block: nn.Module) -> Callable[..., Any]:
    return lambda *args: checkpoint(checkpointed(block), *args, use_reentrant=False)


def reentrant(block: nn.Module) -> Callable[..., Any]:
    return lambda *args: checkpoint(block, *args, use_reentrant=True)


@torch.compiler.nested_compile_region
def region(block: nn.Module, *args: Any) -> Any:
    return block(*args)


def compiled_once(block: nn.Module) -> Callable[..., Any]:
    return lambda *args: region(block, *args)


class Wrapped(models.TwoStream):
    """Two-stream blocks, each called through `wrap`."""

    wrap: Wrap

    def run(self, carried: models.Carried, first: int, last: int) -> models.Carried:
        x, text = carried["x"], carried["text"]
        for block in self.joint_blocks[first:last]:
            x, text = self.wrap(block)(x, text, carried["time"])
        return {**carried, "x": x, "text": text}


def wrapped(wrap: Wrap) -> Wrapped:
    return models.make(type("Made", (Wrapped,), {"wrap": staticmethod(wrap)}))  # type: ignore[return-value]


@pytest.mark.parametrize("wrap", [checkpointed, twice_checkpointed, reentrant, compiled_once])
def test_wrapped_blocks_are_cut_as_they_would_be_without(wrap: Wrap) -> None:
    model, plain = wrapped(wrap), models.make(models.TwoStream)
    with torch.no_grad():
        ours = generate(compiled(model, threshold=0.0), model)
        theirs = generate(plain, plain)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    # Of calls that share one compiled region Dynamo keeps the first one's name.
    owner = "repeated0" if wrap is compiled_once else "joint_blocks"
    assert explain(model).blocks == tuple(f"{owner}.{index}" for index in range(3))

    torch._dynamo.reset()
    model = wrapped(wrap)
    oracle = PlainDiCache(plain, threshold=0.3, max_skips=3)
    with torch.no_grad():
        expected = [oracle(*models.inputs(plain, step, STEPS)) for step in range(STEPS)]
        for a, b in zip(generate(compiled(model, threshold=0.3), model), expected, strict=True):
            torch.testing.assert_close(a, b)
    assert [step.deep for step in summary(model).generations[-1].streams["0"]] == oracle.deep
    assert not all(oracle.deep)


def test_a_graph_has_the_values_of_its_parts_and_keeps_what_they_read() -> None:
    constant = torch.arange(4.0)

    class Reading(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(
                lambda y: (y * torch.cond(y.sum() > 0, lambda: y.sin(), lambda: y.cos()), y)[0], x, use_reentrant=False
            )

    gm, examples = captured(Reading(), constant)
    inlined = inline(Plan(gm)).graph_module
    assert not any("checkpoint" in node.name for node in inlined.graph.nodes)
    assert all(torch.equal(a, b) for a, b in zip(inlined(*examples), Reading()(constant)[None], strict=True))
    assert all("example_value" in node.meta for node in inlined.graph.nodes if node.op.startswith("call_"))
    assert any("checkpoint" in node.name for node in gm.graph.nodes)
    plain: fx.GraphModule = captured(
        models.make(models.SingleStream), *models.inputs(models.make(models.SingleStream), 0, 9)
    )[0]
    assert inline(Plan(plain)).graph_module is plain


def test_with_gradients_checkpoints_stay() -> None:
    model = wrapped(checkpointed)
    call = torch.compile(model, backend=dicache_backend, options=DiCacheConfig(lowering="eager").options())
    with pytest.warns(UncachedWarning, match="under gradient checkpointing; run the model under torch.no_grad"):
        call(*models.inputs(model, 0, STEPS))
