"""Which ranks decide as one: those whose blocks run collectives together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore

from dicache_compile import Schedule
from dicache_compile.engines.capturable import why_not_capturable
from dicache_compile.errors import UnsupportedGraphError
from dicache_compile.graph import values
from dicache_compile.passes.collectives import find_ranks
from dicache_compile.plan import Group
from tests import models
from tests.contract.test_contract import STEPS
from tests.helpers.graphs import Mixer, Tiny, tiny_inputs
from tests.passes.test_passes import cut_of


@pytest.fixture(autouse=True)
def ranks() -> Iterator[None]:
    """A group of two ranks, of which only this one is there and no collective waits for the other."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


class Reducing(Mixer):
    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return super().forward(x, time) + functional.all_reduce(x, "sum", dist.group.WORLD)


class Exchanging(Mixer):
    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        other = torch.empty_like(x)
        dist.all_to_all_single(other, x.contiguous())
        return super().forward(x, time) + other


class Gathering(Tiny):
    """Collectives before and after the blocks, which every rank runs on every step."""

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        result = super().forward(functional.all_reduce(hidden_states, "sum", dist.group.WORLD), timestep)
        return functional.all_gather_tensor(result, 0, dist.group.WORLD)


def with_block(block: type[nn.Module]) -> nn.Module:
    model = Tiny(2)
    model.blocks[1] = block()
    return model


def in_parallel() -> models.Model:
    """Each MLP's weights spread over the ranks."""
    model = models.make(models.SingleStream)
    mesh = init_device_mesh("cpu", (2,))
    for block in model.blocks:
        parallelize_module(block.mlp, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    return model


@pytest.mark.parametrize("block", [Reducing, Exchanging])
def test_ranks_whose_blocks_work_together_decide_as_one(block: type[nn.Module]) -> None:
    group = dist.group.WORLD.group_name
    assert cut_of(with_block(block), *tiny_inputs()).plan.ranks == Group(group, 2, "parts")


@pytest.mark.parametrize(("block", "name"), [(Reducing, "all_reduce"), (Exchanging, "all_to_all_single")])
def test_collectives_in_the_blocks_are_refused_by_name_where_ranks_may_not_agree(
    block: type[nn.Module], name: str
) -> None:
    with pytest.raises(UnsupportedGraphError, match=rf"run the collective `{name}` \(blocks\.1\).*\(agree=None\)"):
        cut_of(with_block(block), *tiny_inputs(), agree=None)
    for config in ({"ranks_agree": True}, {"schedule": Schedule.every(3), "agree": None}):
        assert cut_of(with_block(block), *tiny_inputs(), **config).plan.ranks is None


def test_a_group_that_lacks_some_of_the_ranks_is_refused() -> None:
    plan = cut_of(with_block(Reducing), *tiny_inputs()).plan
    some = Group(dist.new_group([0]).group_name, 1)
    plan = dataclasses.replace(plan, asked=dataclasses.replace(plan.asked, agree=some), ranks=None)
    with pytest.raises(
        UnsupportedGraphError, match=r"of ranks \[0, 1\], and agree= has \[0\]: .*; give agree= a group"
    ):
        find_ranks(plan)


def test_collectives_of_tensors_that_are_spread_over_ranks_are_seen() -> None:
    model = in_parallel()
    arguments: tuple[Any, ...] = models.inputs(model, 0, STEPS)
    with pytest.raises(UnsupportedGraphError, match="run the collective `all_reduce`"):
        cut_of(model, *arguments, agree=None)
    found = cut_of(model, *arguments)
    assert found.plan.ranks is not None
    assert found.plan.ranks.hold == "copies"
    assert cut_of(model, *arguments, ranks_agree=True).partition.carried


def test_collectives_around_the_blocks_are_not() -> None:
    assert cut_of(Gathering(2), *tiny_inputs()).partition.carried


def test_what_ranks_agree_on_cannot_be_captured_over_a_backend_that_needs_the_host() -> None:
    found = cut_of(with_block(Reducing), *tiny_inputs())
    examples = {node.name: values.value(node) for node in found.placeholders}
    assert why_not_capturable(found, examples) == "its ranks agree over fake, whose collectives need the host"
