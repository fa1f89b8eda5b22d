"""Blocks without names: found from the form of the graph, and where the names say they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dicache_compile import dicache_backend, explain, summary
from tests import models
from tests.contract.test_contract import STEPS, generate
from tests.helpers.graphs import captured
from tests.helpers.published import published
from tests.helpers.unnamed import form
from tests.oracles.plain_oracle import PlainDiCache


@pytest.mark.parametrize("kind", models.ALL, ids=lambda kind: kind.__name__)
def test_names_and_form_agree_on_the_test_models(kind: type[models.Model]) -> None:
    model = models.make(kind, depth=6)
    gm, _ = captured(model, *models.inputs(model, 0, STEPS))
    if kind is models.Controlled:  # a control is added after every block
        assert form(gm, named=False)[0][0][0] == form(gm, named=True)[0][0][0]
    else:
        assert form(gm, named=False) == form(gm, named=True)


class ByName(models.SingleStream):
    """Blocks in plain attributes and in a dict that is not a module's."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        for place, block in enumerate(self.blocks):
            setattr(self, f"block_{place}", block)
        del self.blocks

    def run(self, carried: models.Carried, first: int, last: int) -> models.Carried:
        blocks = {place: getattr(self, f"block_{place}") for place in range(self.depth)}
        x = carried["x"]
        for place in range(first, last):
            x = blocks[place](x, carried["time"])
        return {**carried, "x": x}


class InModuleDict(models.SingleStream):
    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.named_blocks = nn.ModuleDict(dict(zip("abcd", self.blocks, strict=True)))
        del self.blocks

    def run(self, carried: models.Carried, first: int, last: int) -> models.Carried:
        x = carried["x"]
        for name in "abcd"[first:last]:
            x = self.named_blocks[name](x, carried["time"])
        return {**carried, "x": x}


@pytest.mark.parametrize(("kind", "trunk"), [(ByName, "repeated0"), (InModuleDict, "named_blocks")])
def test_blocks_outside_of_module_lists_are_cached_as_the_oracle_does(kind: type[models.Model], trunk: str) -> None:
    model = models.make(kind)
    options = published(threshold=float("inf"), lowering="eager", strict=True).options()
    ours = generate(torch.compile(model, backend=dicache_backend, fullgraph=True, options=options), model)
    oracle = PlainDiCache(model, float("inf"), max_skips=3)
    expected = [oracle(*models.inputs(model, step, STEPS)) for step in range(STEPS)]
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=16 * torch.finfo(a.dtype).eps, atol=1e-6)
    assert [step.deep for step in summary(model).generations[-1].streams["0"]] == oracle.deep
    assert explain(model).trunk == (trunk,)


@pytest.mark.parametrize("decomposed", [False, True])
def test_an_exported_model_without_metadata_is_cached_as_the_oracle_does(decomposed: bool) -> None:
    model = models.make(models.SingleStream)
    program = torch.export.export(model, models.inputs(model, 0, STEPS))
    exported: Any = (program.run_decompositions() if decomposed else program).module()
    for node in exported.graph.nodes:
        node.meta.pop("nn_module_stack", None)
    options = published(threshold=float("inf"), lowering="eager", strict=True).options()
    call = torch.compile(exported, backend=dicache_backend, fullgraph=True, options=options)
    oracle = PlainDiCache(model, float("inf"), max_skips=3)
    with torch.no_grad():
        for step in range(STEPS):
            inputs = models.inputs(model, step, STEPS)
            torch.testing.assert_close(call(*inputs), oracle(*inputs))
    assert not all(oracle.deep)


def test_two_attentions_that_share_an_mlp_are_one_block() -> None:
    class Twice(models.Block):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__(width, heads)
            self.again = models.Attention(width, heads)

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            x = x + self.attention(self.norm(x))
            x = x + self.again(self.norm(x))
            return x + self.mlp(self.norm(x))

    model = models.make(models.SingleStream)
    model.blocks = nn.ModuleList(Twice(model.width, 2) for _ in range(4)).requires_grad_(False)
    gm, _ = captured(model, *models.inputs(model, 0, STEPS))
    assert form(gm, named=False) == form(gm, named=True)


def test_an_adapter_after_every_other_block_is_no_part_of_a_block() -> None:
    class Adapted(models.SingleStream):
        def __init__(self, **sizes: int) -> None:
            super().__init__(depth=6, **sizes)
            self.adapters = nn.ModuleList(nn.Linear(self.width, self.width) for _ in range(3))

        def run(self, carried: models.Carried, first: int, last: int) -> models.Carried:
            x = carried["x"]
            for place in range(first, last):
                x = self.blocks[place](x, carried["time"])
                if place % 2:
                    x = x + self.adapters[place // 2](x).tanh()
            return {**carried, "x": x}

    model = models.make(Adapted)
    gm, _ = captured(model, *models.inputs(model, 0, STEPS))
    unnamed, named = form(gm, named=False), form(gm, named=True)
    assert [stream[:2] for stream in unnamed[0]] == [stream[:2] for stream in named[0]]
