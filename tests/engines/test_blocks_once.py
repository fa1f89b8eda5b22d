"""Blocks that differ in nothing but their weights are compiled once. Where not said, compiling is stood in for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.testing import EagerAndRecordGraphs

from dicache_compile import DiCacheConfig, Schedule, dicache_backend, enable_cache
from dicache_compile.backend import FEW_BLOCKS
from dicache_compile.estimators import Reuse
from dicache_compile.graph import values
from dicache_compile.lowering import lower
from dicache_compile.lowering.forms import form
from tests import models
from tests.contract.test_contract import generate
from tests.helpers.published import published

STEPS, DEPTH = 8, 7
REUSING = {"threshold": math.inf, "max_consecutive_skips": 2, "warmup_steps": 2}


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[fx.GraphModule]:
    """What would have been compiled, each run as it is."""
    found: list[fx.GraphModule] = []

    def noted(gm: fx.GraphModule, examples: Any, settings: Any) -> Any:
        found.append(gm)
        return gm.forward

    monkeypatch.setattr(lower, "lower_graph", noted)
    return found


def compiled(model: nn.Module, **config: Any) -> Any:
    torch._dynamo.reset()
    settings = published(**{"blocks": "once", "strict": True, "carried": "residual", **config})
    return torch.compile(model, backend=dicache_backend, fullgraph=True, options=settings.options())


SCHEDULE = {"schedule": Schedule.steps(0, 1, 4), "estimator": Reuse(), "carried": "auto"}
CELLS: dict[str, tuple[type[models.Model], dict[str, Any]]] = {
    "one list": (models.SingleStream, REUSING),
    "two lists": (models.Mixed, REUSING),
    "long skips": (models.Skips, REUSING),
    "a control": (models.Controlled, REUSING),
    "no probe": (models.Mixed, {**REUSING, "probe_depth": 0}),
    "a deeper probe": (models.Mixed, {**REUSING, "probe_depth": 3}),
    "a schedule": (models.Mixed, SCHEDULE),
    "ranges": (models.Mixed, {**SCHEDULE, "sites": ((1, 3), (4, 6))}),
    "mlps": (models.SingleStream, {**SCHEDULE, "sites": "mlp"}),
}


@pytest.mark.parametrize("name", CELLS)
def test_outputs_are_those_of_the_cut_graph_to_the_bit(name: str, compilations: list[fx.GraphModule]) -> None:
    kind, rule = CELLS[name]
    model = models.make(kind, depth=DEPTH)
    ours = generate(compiled(model, **rule), model, steps=STEPS)
    in_parts = len(compilations)
    theirs = generate(compiled(model, **rule, lowering="eager"), model, steps=STEPS)
    whole = generate(compiled(model, **rule, blocks="whole"), model, steps=STEPS)
    assert len(compilations) > in_parts > 3
    for a, b, c in zip(ours, theirs, whole, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("kind", [models.SingleStream, models.Mixed])
def test_more_blocks_are_not_more_compilations(kind: type[models.Model], compilations: list[fx.GraphModule]) -> None:
    counts = []
    for depth in (8, 16):
        compilations.clear()
        model = models.make(kind, depth=depth)
        generate(compiled(model), model, steps=1)
        counts.append(len(compilations))
    assert counts[0] == counts[1]


def test_a_block_with_a_constant_of_its_own_is_compiled_by_itself(compilations: list[fx.GraphModule]) -> None:
    model = models.make(models.SingleStream, depth=DEPTH)
    generate(compiled(model), model, steps=1)
    alike = len(compilations)
    model.blocks[4].norm.eps *= 2
    expected = generate(model, model, steps=1)
    compilations.clear()
    ours = generate(compiled(model, threshold=0.0), model, steps=1)
    assert len(compilations) == alike + 1
    assert torch.equal(ours[0], expected[0])


def test_any_number_of_tokens_runs_the_same_code(compilations: list[fx.GraphModule]) -> None:
    model = models.make(models.SingleStream, depth=DEPTH)
    settings = published(**REUSING, blocks="once", strict=True, carried="residual")
    call = torch.compile(model, backend=dicache_backend, fullgraph=True, dynamic=True, options=settings.options())
    ours = [generate(call, model, steps=STEPS, tokens=tokens) for tokens in (6, 10)]
    assert len(compilations) < DEPTH
    for tokens, outputs in zip((6, 10), ours, strict=True):
        theirs = generate(compiled(model, **REUSING, lowering="eager"), model, steps=STEPS, tokens=tokens)
        assert all(torch.equal(a, b) for a, b in zip(outputs, theirs, strict=True))


class Strengths(models.SingleStream):
    """Each block is followed by a number of its own, as that of an adapter is."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.strengths = [0.5] * self.depth

    def run(self, carried: models.Carried, first: int, last: int) -> models.Carried:
        x = carried["x"]
        for block, strength in list(zip(self.blocks, self.strengths, strict=True))[first:last]:
            x = block(x, carried["time"])
            x = x + strength * block.mlp(x)
        return {**carried, "x": x}


@torch.no_grad()
@pytest.mark.parametrize("guarded", [False, True])
def test_a_float_that_changes_is_compiled_as_dynamo_has_it(guarded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo passes such a float as a tensor. Inductor refuses to read one of which it knows no source, and where it
    makes a guard of it, the code is of one block alone.
    """
    found: dict[str, tuple[Any, Any]] = {}

    def noted(gm: fx.GraphModule, examples: Any, settings: Any) -> Any:
        for node, example in zip(gm.graph.find_nodes(op="placeholder"), examples, strict=True):
            if values.is_number(node):
                found[node.name] = (node._dynamo_source, example)
                assert not guarded or next(iter(node.users)).meta["example_value"] > 0.1
        return gm.forward

    monkeypatch.setattr(lower, "lower_graph", noted)
    model = models.make(Strengths, depth=3)
    torch._dynamo.reset()
    enable_cache(model, **REUSING, blocks="once", streams=1, strict=True)
    for strengths in ([0.5, 0.5, 0.5], [0.25, 0.75, 0.125], [0.75, 0.3, 0.6]):
        model.strengths = strengths
        given = models.inputs(model, 0, STEPS)
        assert torch.equal(model(*given), model._call_impl(*given))
    assert len(found) == (3 if guarded else 1)
    assert all(source is not None and type(example) is Tensor for source, example in found.values())


def test_under_autocast_each_block_is_in_its_scope(compilations: list[fx.GraphModule]) -> None:
    model = models.make(models.SingleStream, depth=DEPTH)
    results = []
    for lowering in ("inductor", "eager"):
        with torch.autocast("cpu", torch.bfloat16):
            results.append(generate(compiled(model, **REUSING, lowering=lowering), model, steps=STEPS))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    plain = generate(compiled(model, **REUSING, lowering="eager"), model, steps=STEPS)
    assert any(not torch.equal(a, b) for a, b in zip(plain, results[0], strict=True))


def test_compiled_once_or_each_alone_a_block_gives_the_same_bits() -> None:
    """Compiled by Inductor: the weights of one block are given to the code that was compiled for another."""
    model = models.make(models.SingleStream, depth=3)
    exact = generate(compiled(model, **REUSING, lowering="eager"), model, steps=STEPS)
    ours = generate(compiled(model, **REUSING), model, steps=STEPS)
    for one, two in ((0, 1), (1, 2)):  # blocks that change places: neither has code of its own
        model.blocks[one], model.blocks[two] = model.blocks[two], model.blocks[one]
    generate(compiled(model, **REUSING), model, steps=STEPS)
    for one, two in ((1, 2), (0, 1)):
        model.blocks[one], model.blocks[two] = model.blocks[two], model.blocks[one]
    again = generate(compiled(model, **REUSING), model, steps=STEPS)
    for a, b, c in zip(ours, again, exact, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-5)  # Inductor sums in another order


def traced(function: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    torch._dynamo.reset()
    backend = EagerAndRecordGraphs()
    torch.compile(function, backend=backend, fullgraph=True)(*inputs)
    (graph,) = backend.graphs
    return graph


def _with_its_part(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    part = x + 2 * y
    return part - x, part


BASE = torch.zeros(4, 6)
OTHERS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "another operation": (lambda x, y: (x - 2 * y - x,), (BASE, BASE.clone())),
    "another constant": (lambda x, y: (x + 3 * y - x,), (BASE, BASE.clone())),
    "a float for an integer": (lambda x, y: (x + 2.0 * y - x,), (BASE, BASE.clone())),
    "other operands": (lambda x, y: (x + 2 * y - y,), (BASE, BASE.clone())),
    "another result": (_with_its_part, (BASE, BASE.clone())),
    "another shape": (lambda x, y: (x + 2 * y - x,), (BASE, torch.zeros(6))),
    "another stride": (lambda x, y: (x + 2 * y - x,), (BASE, torch.zeros(6, 4).t())),
    "another offset": (lambda x, y: (x + 2 * y - x,), (BASE, torch.zeros(5, 6)[1:])),
    "another dtype": (lambda x, y: (x + 2 * y - x,), (BASE, BASE.double())),
    "another kind of input": (lambda x, y: (x + 2 * y - x,), (BASE, nn.Parameter(BASE.clone(), requires_grad=False))),
    "signs that are to be turned": (lambda x, y: (x + 2 * y - x,), (BASE, torch._neg_view(BASE.clone()))),
    "shared memory": (lambda x, y: (x + 2 * y - x,), (BASE, BASE.view(4, 6))),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_form_is_another_with(name: str) -> None:
    def plain(x: Tensor, y: Tensor) -> tuple[Tensor]:
        return (x + 2 * y - x,)

    first = traced(plain, BASE, BASE.clone())
    assert form(first) == form(traced(plain, torch.ones(4, 6), torch.ones(4, 6)))
    function, inputs = OTHERS[name]
    assert form(first) != form(traced(function, *inputs))


@pytest.mark.parametrize("depth", [FEW_BLOCKS, FEW_BLOCKS + 1])
def test_by_itself_only_a_deep_trunk_is_compiled_block_by_block(depth: int, compilations: list[fx.GraphModule]) -> None:
    model = models.make(models.SingleStream, depth=depth)
    generate(compiled(model, blocks="auto"), model, steps=1)
    assert (len(compilations) == 3) == (depth == FEW_BLOCKS)  # the probe's part, the deep one, the reused one


def test_blocks_is_auto_once_or_whole() -> None:
    assert DiCacheConfig().blocks == "auto"
    with pytest.raises(ValueError, match="blocks"):
        DiCacheConfig(blocks="each")  # type: ignore[arg-type]


def test_frozen_weights_are_code_of_one_block_alone(compilations: list[fx.GraphModule]) -> None:
    model = models.make(models.SingleStream, depth=DEPTH)
    options = {**published(blocks="once", strict=True).options(), "freezing": True}
    with torch.no_grad():
        torch.compile(model, backend=dicache_backend, fullgraph=True, options=options)(*models.inputs(model, 0, STEPS))
    assert len(compilations) == 3
