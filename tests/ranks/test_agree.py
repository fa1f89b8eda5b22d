"""Ranks that make one picture together decide as one, by the error of the whole picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dicache_compile import DiCacheConfig, Ranks, Schedule, gates
from dicache_compile.estimators import Checked, Reuse, Taylor
from tests.ranks import jobs
from tests.ranks.world import World

# Sums over ranks are added up in another order than those of one process: float32 rounds each of some hundred elements
# by 2**-24 of it, and twenty steps of a sampler that is not there leave that as it is.
ROUNDING = 1e-5
RULES: dict[str, dict[str, Any]] = {
    "estimate": {"threshold": 0.05},
    "probe": {"threshold": 0.1, "error": "probe"},
    "probe_minus_input": {"threshold": 0.02, "error": "probe_minus_input"},
    "feedback": {"threshold": 0.1, "error": "probe", "feedback": 1.0},
    "residual": {"gate": gates.ResidualChange(0.1)},
    "salient": {"gate": gates.SalientChange(0.3)},
    "draft": {"gate": gates.DraftError(0.3, 20, decay=0.1, least=1), "estimator": Checked(Taylor(1))},
    "planned": {"gate": gates.Planned(((0.02, 2), (0.1, 1))), "probe_depth": 0, "estimator": Reuse()},
    "rate": {"gate": gates.OutputRate(0.05), "probe_depth": 0, "estimator": Reuse()},
}


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.exhaustive)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    found = World(request.param)
    yield found
    found.close()


def assert_as_one(found: list[Any]) -> None:
    """All ranks decide the same, to the last bit of their errors, and what one process does.

    An error may be the difference of two, of which each is below 0.1.
    """
    ours, alone, errors, of_one, apart = found[0]
    assert all(other[0] == ours and other[2] == errors for other in found)
    assert ours == alone
    assert set("".join(ours)) == {".", "D"}
    for error, expected in zip(errors, of_one, strict=True):
        assert (error is None) == (expected is None)
        assert error is None or error == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING / 10)
    assert apart < ROUNDING


@pytest.mark.parametrize("rule", RULES)
def test_ranks_with_parts_of_the_tokens_decide_and_estimate_as_one_process(world: World, rule: str) -> None:
    assert_as_one(world.run(jobs.context_parallel, "SingleStream", RULES[rule]))


@pytest.mark.exhaustive  # Inductor takes half a minute
def test_compiled_pieces_do_so_too(world: World) -> None:
    assert_as_one(world.run(jobs.context_parallel, "SingleStream", {"threshold": 0.05, "lowering": "inductor"}))


def test_ranks_with_parts_of_the_weights_decide_as_one_process(world: World) -> None:
    assert_as_one(world.run(jobs.tensor_parallel, {"threshold": 0.05}))


@pytest.mark.parametrize("job", [jobs.by_rows, jobs.of_requests])
def test_each_row_of_a_batch_is_decided_on_all_ranks_alike(
    world: World, job: Callable[[dict[str, Any]], tuple[Any, ...]]
) -> None:
    found = world.run(job, {"threshold": 0.05})
    ours, alone, apart = found[0]
    assert all(other[0] == ours for other in found)
    assert ours == alone
    assert len({tuple(row) for row in ours}) > 1, "rows that all do the same show nothing"
    assert apart < ROUNDING


def test_parts_of_unlike_sizes_count_by_their_sizes(world: World) -> None:
    found = world.run(jobs.of_unlike_parts, {"threshold": 0.05, "error": "probe"})
    ours, alone, errors, of_one = found[0]
    assert all(other[0] == ours and other[2] == errors for other in found)
    assert ours == alone
    assert errors[1:] == pytest.approx(of_one[1:], rel=ROUNDING)


def test_without_agree_these_ranks_would_decide_apart(world: World) -> None:
    rule = {"threshold": 0.06, "error": "probe"}
    apart = [decided for (decided,) in world.run(jobs.without_exchange, False, rule)]
    as_one = [decided for (decided,) in world.run(jobs.without_exchange, True, rule)]
    assert len(set(apart)) > 1
    assert len(set(as_one)) == 1


def test_ranks_with_pictures_of_their_own_decide_for_themselves(world: World) -> None:
    found = world.run(jobs.data_parallel, {"threshold": 0.06, "error": "probe"})
    assert not any(asks for _, asks in found)
    assert len({decided for (decided,), _ in found}) > 1


def test_calls_of_guidance_on_two_ranks_decide_as_in_one_process() -> None:
    world = World(2)
    try:
        rule = {"threshold": 0.12, "error": "probe"}
        found = world.run(jobs.guidance_parallel, rule)
        (first, of_first, near), (second, of_second, also_near) = found
        assert first == second == of_first == of_second
        assert "." in first[0]
        assert near == also_near == 0.0
        apart = world.run(jobs.guidance_parallel, rule, False)
        assert apart[0][0] != apart[1][0]
    finally:
        world.close()


@pytest.mark.exhaustive
@pytest.mark.parametrize("rule", RULES)
def test_ranks_with_parts_of_two_calls_decide_as_a_batch_of_both(rule: str) -> None:
    world = World(4)
    try:
        assert_as_one(world.run(jobs.tokens_and_guidance_parallel, RULES[rule]))
    finally:
        world.close()


def test_a_rank_that_begins_anew_takes_the_others_with_it(world: World) -> None:
    first, *others = world.run(jobs.one_rank_begins_anew, {"threshold": float("inf")})
    assert all(other == first for other in others)
    # Deep in the warm-up of three steps: of the generation, and of the one that a rank begins.
    assert first == [True] * 3 + [False] * 3 + [True] * 3 + [False] * 5


def test_a_rank_with_another_shape_has_all_run_deep_until_it_has_anchors(world: World) -> None:
    first, *others = world.run(jobs.one_rank_has_another_shape, {"threshold": float("inf")})
    assert all(other == first for other in others)
    assert first == [True] * 3 + [False] * 3 + [True] * 3 + [False] * 5


def test_the_first_rank_s_threshold_counts(world: World) -> None:
    first, *others = world.run(jobs.one_rank_is_told_otherwise, {"error": "probe"})
    assert all(other == first for other in others)


def test_a_hundred_random_steps_never_part_the_ranks(world: World) -> None:
    first, *others = world.run(jobs.anything_goes, 0, 100, {"threshold": 0.1})
    assert all(other == first for other in others)
    assert set(first) == {".", "D"}


@pytest.mark.exhaustive
@pytest.mark.parametrize("rule", ["estimate", "probe"])
def test_a_thousand_random_steps_never_part_the_ranks(world: World, rule: str) -> None:
    first, *others = world.run(jobs.anything_goes, 1, 1000, RULES[rule])
    assert all(other == first for other in others)
    assert len(first) == 1000
    assert min(first.count("."), first.count("D")) > 100


def test_a_step_asks_the_ranks_once_or_twice(world: World) -> None:
    # A deep step also keeps the gap between its anchors.
    assert world.run(jobs.sums_asked_for, "SingleStream", {"error": "probe"})[0] == [1, 1, 0]
    # To try the estimate needs gamma first.
    assert world.run(jobs.sums_asked_for, "SingleStream", {"error": "estimate"})[0] == [2, 1, 0]


def test_ranks_that_have_nothing_in_common_cost_nothing(world: World) -> None:
    alike = {tuple(one) for agree in ("auto", None) for one in world.run(jobs.nodes, {"agree": agree})}
    assert len(alike) == 1


def test_a_schedule_is_the_same_on_all_ranks_and_asks_nobody(world: World) -> None:
    rule = {"schedule": Schedule.every(3, after=3), "max_consecutive_skips": "auto"}
    ours, alone, *_ = world.run(jobs.context_parallel, "SingleStream", rule)[0]
    assert ours == alone
    assert "." in ours[0]


def test_collectives_in_the_blocks_need_ranks_that_agree(world: World) -> None:
    assert world.run(jobs.refused, True)[0] == (True, None)
    cached, reason = world.run(jobs.refused, False)[0]
    assert not cached
    assert reason is not None
    assert "run the collective `all_gather_into_tensor` (blocks.0)" in reason
    assert "agree=None" in reason


def test_a_model_that_fsdp_shards_as_a_whole_is_cached(world: World) -> None:
    for told, apart, gained in world.run(jobs.sharded, False, {"threshold": 0.1}):
        assert not any("uncached" in one for one in told)
        assert apart == 0.0
        assert gained > 0.0, "no step was reused"


def test_blocks_that_fsdp_shards_one_by_one_are_refused_with_the_reason(world: World) -> None:
    for told, *_ in world.run(jobs.sharded, True, {"threshold": 0.1}):
        assert any("runs uncached" in one and "fsdp" in one for one in told)


@pytest.mark.parametrize(
    ("agree", "error", "text"),
    [
        ("world", ValueError, "agree: 'world' is a guess.*torch.distributed.group.WORLD if all do"),
        (3, TypeError, "agree: expected a ProcessGroup, a DeviceMesh of one dimension, a Ranks, 'auto' or None, got 3"),
    ],
)
def test_what_is_no_group_is_refused(agree: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        DiCacheConfig(agree=agree)


def test_what_nothing_would_read_is_refused() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    try:
        group = dist.group.WORLD
        with pytest.raises(ValueError, match="agree: a schedule is the same on all ranks"):
            DiCacheConfig(agree=group, schedule=Schedule.every(3))
        with pytest.raises(ValueError, match="agree: nothing reads it, because the config has ranks_agree=True"):
            DiCacheConfig(agree=group, ranks_agree=True)
        with pytest.raises(ValueError, match="expected hold to be one of 'parts', 'copies', 'branches', got 'all'"):
            Ranks(group, hold="all")  # type: ignore[arg-type]
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "cp"))
        with pytest.raises(ValueError, match=r"expected a mesh of one dimension, got one of 2 .*give mesh\['cp'\]"):
            DiCacheConfig(agree=mesh)
        assert DiCacheConfig(agree=mesh["cp"]).agree is not None
    finally:
        dist.destroy_process_group()
    assert torch.distributed.is_initialized() is False
