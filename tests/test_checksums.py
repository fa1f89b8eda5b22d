"""What tells prompts apart: each element and its place count, whatever a condition is summed beside."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, fx

from dicache_compile.passes import checksums
from dicache_compile.passes.emit import Emitter

SHAPES = [(1,), (2, 3, 5), (1 << 14,), (1 << 14, 2), (0,), (7, 11)]


def conditions(shapes: list[tuple[int, ...]], seed: int = 0) -> list[Tensor]:
    """Each with at most 64 ones, so that float32 sums of weights of 17 bits are exact, in whatever order."""
    generator = torch.Generator().manual_seed(seed)
    found = [torch.zeros(math.prod(shape)) for shape in shapes]
    for flat in found:
        flat[torch.randperm(len(flat), generator=generator)[:64]] = 1.0
    return [flat.view(shape) for flat, shape in zip(found, shapes, strict=True)]


def by_hand(condition: Tensor) -> float:
    def weight(place: int) -> float:
        return (place * 2654435761 // 65536) % 65536 / 65536 + 0.5

    return sum(value * weight(place) for place, value in enumerate(condition.flatten().tolist()))


def test_conditions_that_are_summed_side_by_side_have_the_sums_that_they_have_alone() -> None:
    found = conditions(SHAPES)
    together = checksums.checksums(found, [condition.numel() for condition in found])
    alone = torch.cat([checksums.checksums([condition], [None]) for condition in found])
    assert together.tolist() == alone.tolist() == [*map(by_hand, found)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.bool])
def test_any_kind_of_number_has_a_checksum(dtype: torch.dtype) -> None:
    condition = torch.tensor([[0, 1, 1], [1, 0, 1]], dtype=dtype)
    assert checksums.checksums([condition], [6]).item() == by_hand(condition.double())


@pytest.mark.parametrize("apart", [1, 2, 255, 4096, 65521, 1 << 16, 1 << 17])
def test_two_elements_that_change_places_change_the_checksum(apart: int) -> None:
    condition = torch.zeros(1 << 18)
    condition[5] = 1.0
    moved = condition.roll(apart)
    assert not checksums.checksums([condition], [None]).equal(checksums.checksums([moved], [None]))


def graph_of(found: list[Tensor | None], device: str = "meta") -> list[fx.Node]:
    """Placeholders of which Dynamo is said to know that much; "meta" stands for a device with kernels."""
    graph = fx.Graph()
    nodes = [graph.placeholder(f"condition_{place}") for place in range(len(found))]
    graph.output(())
    for node, condition in zip(nodes, found, strict=True):
        node.meta["example_value"] = None if condition is None else condition.to(device)
    return nodes


def test_small_conditions_are_grouped_and_each_is_in_one_group() -> None:
    nodes = graph_of([*conditions(SHAPES), None, *conditions([(3,)] * 9, 1)])
    groups = checksums.grouped(nodes)
    large, unknown = nodes[3], nodes[6]
    assert [large] in groups
    assert [unknown] in groups
    assert sorted(map(len, groups)) == [1, 1, 6, 8]
    assert set(itertools.chain.from_iterable(groups)) == set(nodes)


def test_on_a_cpu_each_condition_is_summed_alone() -> None:
    nodes = graph_of([*conditions(SHAPES)], "cpu")
    assert checksums.grouped(nodes) == [[node] for node in nodes]


def test_a_size_that_is_not_known_beforehand_is_not_asked_for() -> None:
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    env = ShapeEnv()
    fake = FakeTensorMode(shape_env=env).from_tensor(torch.randn(6, 3, device="meta"), static_shapes=False)
    assert not all(isinstance(size, int) for size in fake.shape)
    (node,) = graph_of([None])
    node.meta["example_value"] = fake
    assert checksums.grouped([node]) == [[node]]
    assert not env.guards


@pytest.mark.parametrize("shapes", [SHAPES, SHAPES[:1], [(3,)] * 20], ids=["mixed", "one", "many"])
def test_the_graph_has_one_checksum_for_each_condition(shapes: list[tuple[int, ...]]) -> None:
    found = conditions(shapes)
    nodes = graph_of(list(found))
    source = fx.GraphModule(torch.nn.Module(), nodes[0].graph)
    emitter = Emitter(source, {})
    sums = checksums.emit(emitter, nodes)
    module = emitter.module([sums])
    by_name = dict(zip((node.name for node in nodes), found, strict=True))
    (result,) = module(*(by_name[name] for name in emitter.inputs))
    assert result.shape == (len(found),)
    assert result.dtype == torch.float32
    assert sorted(result.tolist()) == sorted(map(by_hand, found))
