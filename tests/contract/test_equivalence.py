"""Properties of random small transformers under random configs, in the eager lowering."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dicache_compile import summary
from dicache_compile.cut import cut
from dicache_compile.plan import Region
from tests import models
from tests.contract.test_contract import assert_near, compiled
from tests.helpers.graphs import captured
from tests.helpers.published import published
from tests.oracles.plain_oracle import PlainDiCache

pytestmark = pytest.mark.shares_traces
STEPS = 7


@st.composite
def cases(draw: st.DrawFn) -> tuple[models.Model, dict[str, Any], dict[str, int]]:
    """A model, a config without its threshold and engine, and the sizes of its inputs."""
    kind = draw(st.sampled_from(models.ALL))
    depth = draw(st.integers(2, 5))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    sizes = {"channels": draw(st.integers(1, 5)), "width": draw(st.sampled_from([8, 12, 16]))}
    model = models.make(kind, dtype, seed=draw(st.integers(0, 5)), depth=depth, **sizes)
    low = draw(st.floats(0, 2))
    config = {
        "probe_depth": (probe := draw(st.integers(0, depth - 1))),
        "warmup_steps": draw(st.integers(0, 4)),
        "max_consecutive_skips": draw(st.one_of(st.none(), st.integers(0, 4))),
        "gamma_range": (low, low + draw(st.floats(0, 2))),
        "error": draw(st.sampled_from(["probe", "probe_minus_input", *["estimate"] * (probe > 0)])),
        "order": (order := draw(st.sampled_from([1, 2]))),
        "feedback": draw(st.sampled_from([0.0, 0.5, 1.0])) if order == 1 else 0.0,
        "comparison": draw(st.sampled_from(["<", "<="])),
        "streams": draw(st.sampled_from(["auto", 1])),
        "joint": draw(st.booleans()),  # which one stream by itself does not notice
        "final_steps": draw(st.integers(0, 2)),
        "deep_steps": tuple(sorted(draw(st.sets(st.integers(0, STEPS - 1), max_size=3)))),
        "num_steps": STEPS,
    }
    return model, config, {"tokens": draw(st.integers(1, 7)), "batch": draw(st.integers(1, 3))}


def run(call: Any, model: models.Model, sizes: dict[str, int]) -> list[Tensor]:
    with torch.no_grad():
        return [call(*models.inputs(model, step, STEPS, **sizes)) for step in range(STEPS)]


def oracle(model: models.Model, threshold: float, config: dict[str, Any]) -> PlainDiCache:
    return PlainDiCache(
        model,
        threshold,
        probe_depth=config["probe_depth"],
        gamma_range=config["gamma_range"],
        warmup=config["warmup_steps"],
        last_forced=STEPS - config["final_steps"] if config["final_steps"] else None,
        deep_steps=config["deep_steps"],
        max_skips=config["max_consecutive_skips"],
        error=config["error"],
        order=config["order"],
        feedback=config["feedback"],
        inclusive=config["comparison"] == "<=",
    )


def property_of(examples: int) -> Any:
    slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(max_examples=examples, deadline=None, suppress_health_check=slow, derandomize=True)


engines = st.sampled_from(["calls", "cond", "conditional"])


@property_of(10)
@given(engine=engines, case=cases())
def test_threshold_zero_is_bit_identical(engine: str, case: Any) -> None:
    model, config, sizes = case
    ours = run(compiled(model, **{**config, "comparison": "<"}, threshold=0.0, engine=engine), model, sizes)
    for a, b in zip(ours, run(model, model, sizes), strict=True):
        assert torch.equal(a, b)


@property_of(10)
@given(engine=engines, case=cases())
def test_reusing_all_equals_the_oracle(engine: str, case: Any) -> None:
    model, config, sizes = case
    ours = run(compiled(model, **config, threshold=math.inf, engine=engine), model, sizes)
    plain = oracle(model, math.inf, config)
    assert_near(ours, run(plain, model, sizes))
    (steps,) = summary(model).generations[-1].streams.values()
    assert [step.deep for step in steps] == plain.deep


@property_of(8)
@given(case=cases(), share=st.floats(0.2, 4))
def test_the_pieces_equal_the_cond_graph_bit_for_bit(case: Any, share: float) -> None:
    model, config, sizes = case
    dense = oracle(model, 0.0, config)
    run(dense, model, sizes)
    threshold = share * max((error for error in dense.errors if error is not None and math.isfinite(error)), default=1)
    both = [compiled(model, **config, threshold=threshold, engine=engine) for engine in ("calls", "cond")]
    outputs = [run(call, model, sizes) for call in both]
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


@property_of(10)
@given(case=cases())
def test_no_region_reads_a_later_one_and_every_block_is_in_one_piece(case: Any) -> None:
    model, config, sizes = case
    torch._dynamo.reset()
    gm, examples = captured(model, *models.inputs(model, 0, STEPS, **sizes))
    with torch.no_grad():
        found = cut(gm, examples, published(**config)).partition
    for node, region in found.regions.items():
        for needed in node.all_input_nodes:
            assert found.regions.get(needed, Region.PROLOGUE).value <= region.value
    for stream in found.carried:
        assert found.regions[stream.h] is (Region.PROBE if config["probe_depth"] else Region.PROLOGUE)
        assert found.regions[stream.y] is Region.DEEP
    assert len(found.trunk.blocks) == model.depth
