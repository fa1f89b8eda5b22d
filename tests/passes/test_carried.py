"""What blocks of one form carry is told by that form, however they write their residuals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile.graph.dataflow import Dataflow
from dicache_compile.passes.counterparts import Search
from dicache_compile.passes.partition import partition
from dicache_compile.passes.trunk import find_trunk
from dicache_compile.plan import AskedRule, Partition
from tests import models
from tests.helpers.graphs import captured
from tests.models import Carried
from tests.passes.test_forms import STEPS, CustomResiduals, check


class Residuals(models.SingleStream):
    """Blocks whose residuals are added by `add`."""

    def add(self, x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
        raise NotImplementedError

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        x, gate = carried["x"], carried["time"].sigmoid()[:, None].expand_as(carried["x"])
        for block in self.blocks[first:last]:
            x = self.add(x, block.attention(block.norm(x)), gate)
            x = self.add(x, block.mlp(block.norm(x)), gate)
        return {**carried, "x": x}


class Interpolated(Residuals):
    def add(self, x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
        return torch.lerp(x, branch, 0.3 * gate)


class MultiplyAdded(Residuals):
    def add(self, x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
        return torch.addcmul(x, branch, gate, value=0.9)


@torch.compiler.allow_in_graph
def fused(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    return torch.sqrt(1 - gate**2) * x + gate * branch


class Fused(Residuals):
    """One node of the graph, which is a function of the model's own."""

    def add(self, x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
        return fused(x, branch, gate)


class SecondHalf(Interpolated):
    """Only a part of the tokens goes on."""

    def leave(self, carried: Carried) -> Tensor:
        return super().leave({**carried, "x": carried["x"][:, carried["x"].shape[1] // 2 :]})


@pytest.mark.parametrize("kind", [Interpolated, MultiplyAdded, Fused])
def test_a_residual_is_not_recognised_by_its_operator(kind: type[models.Model]) -> None:
    check(models.make(kind))


def by_names(*_: Any) -> None:
    raise AssertionError("looked for by the names of operators")


def cut(kind: type[models.Model]) -> Partition:
    model = models.make(kind)
    gm, _ = captured(model, *models.inputs(model, 0, STEPS))
    flow = Dataflow(gm.graph)
    return partition(gm, flow, find_trunk(gm, flow), AskedRule(1))


@pytest.mark.parametrize(
    "kind", [models.SingleStream, models.TwoStream, Interpolated, MultiplyAdded, Fused, CustomResiduals, SecondHalf]
)
def test_names_are_not_asked_where_blocks_have_one_form(
    kind: type[models.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Search, "_found", by_names)
    found = cut(kind)
    first, last = found.trunk.blocks[0].nodes, found.trunk.blocks[-1].nodes
    entering = {needed for node in first for needed in node.all_input_nodes} - set(first)
    for value in found.carried:
        x, h, y = (node.args[0] if kind is SecondHalf else node for node in (value.x, value.h, value.y))
        assert x in entering
        assert h in first
        assert y in last


def test_names_are_asked_where_blocks_are_of_several_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Search, "_found", by_names)
    with pytest.raises(AssertionError, match="by the names"):
        cut(models.Mixed)
