"""State in other forms than the stream's own: float8 with scales, and statistics by the fused operators."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from dicache_compile import DiCacheConfig, explain, summary
from dicache_compile.estimators import DCTA
from dicache_compile.gates import ProbeError
from dicache_compile.policy import SlotSpec
from dicache_compile.runtime.session import sessions_of

from . import models
from .cells import cells
from .models import Model
from .plain_oracle import PlainDiCache
from .test_contract import DTYPES, KINDS, assert_near, compiled, generate
from .test_plugins import Reuse

STEPS = 10
each_model = pytest.mark.parametrize("kind", models.ALL)
ENGINES = ("calls", "conditional")
each_engine = pytest.mark.parametrize("engine", ENGINES)


@cells("kind, engine, dtype, error", KINDS, ENGINES, DTYPES, ["probe", "probe_minus_input"])
def test_the_fused_operators_decide_and_estimate_as_the_oracle(
    kind: type[Model], engine: str, dtype: torch.dtype, error: Any
) -> None:
    model = models.make(kind, dtype)
    dense = PlainDiCache(model, 0.0, error=error)
    generate(dense, model)
    threshold = 2.5 * sorted(e for e in dense.errors if e is not None)[len(dense.errors) // 2]
    call = compiled(model, threshold=threshold, max_consecutive_skips=3, error=error, engine=engine, kernels="triton")
    oracle = PlainDiCache(model, threshold, max_skips=3, error=error)
    assert_near(generate(call, model), generate(oracle, model))
    steps = summary(call).generations[-1].streams["0"]
    assert [step.deep for step in steps] == oracle.deep
    assert 0 < sum(oracle.deep) < STEPS
    for step, expected, gamma in zip(steps, oracle.errors, oracle.gammas, strict=True):
        # The difference of two quotients below 1, each rounded to float32.
        assert step.error == (pytest.approx(expected, rel=1e-5, abs=2**-23) if expected is not None else None)
        assert step.gamma == (pytest.approx(gamma, rel=1e-5) if gamma is not None else None)


@each_model
def test_the_probes_piece_has_one_operator_for_all_statistics_of_a_stream(kind: type[Model]) -> None:
    model = models.make(kind)
    generate(compiled(model, kernels="triton"), model, steps=1)
    found = sessions_of(model)[-1].last_cut
    streams = len(found.partition.streams)

    def count(piece: Any, operator: Any) -> int:
        return len(piece.graph_module.graph.find_nodes(op="call_function", target=operator))

    assert count(found.branch.probe, torch.ops.dicache.statistics.default) == streams
    assert count(found.branch.estimate, torch.ops.dicache.combine.default) == streams
    assert count(found.branch.single, torch.ops.dicache.statistics.default) == 0


def test_the_fused_operators_go_through_inductor() -> None:
    model = models.make(models.SingleStream)
    call = compiled(
        model, kernels="triton", lowering="inductor", threshold=math.inf, max_consecutive_skips=2, warmup_steps=2
    )
    oracle = PlainDiCache(model, math.inf, warmup=2, max_skips=2)
    for a, b in zip(generate(call, model), generate(oracle, model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    (steps,) = summary(model).generations[-1].streams.values()
    assert [step.deep for step in steps] == oracle.deep


@cells("kind, dtype, kernels", KINDS, [torch.float8_e4m3fn, torch.float8_e5m2], ["inductor", "triton"])
def test_float8_state_moves_a_reused_step_by_no_more_than_its_rounding(
    kind: type[Model], dtype: torch.dtype, kernels: str
) -> None:
    model = models.make(kind)
    config = {"threshold": math.inf, "max_consecutive_skips": None, "warmup_steps": 2, "gamma_range": (1.0, 1.0)}
    ours = generate(compiled(model, **config, state_dtype=dtype, kernels=kernels), model)
    exact = generate(compiled(models.make(kind), **config), model)
    (steps,) = summary(model).generations[-1].streams.values()
    assert [step.deep for step in steps] == [True] * 2 + [False] * (STEPS - 2)
    # With gamma at 1 the estimate is x + R1, and R1 is rounded relative to the largest of its row. What the epilogue's
    # norm and its linears of width 16 make of it stays within that share of the result, times the square root of 16.
    for step, (a, b) in enumerate(zip(ours, exact, strict=True)):
        bound = 0.0 if step < 2 else 4 * torch.finfo(dtype).eps * b.abs().max().item()
        assert (a - b).abs().max().item() <= bound, f"step {step}"
    assert any((a - b).abs().max() > 0 for a, b in zip(ours, exact, strict=True))


@cells("kind, dtype, kernels", KINDS, [torch.float8_e4m3fn, torch.float8_e5m2], ["inductor", "triton"])
def test_float8_state_decides_as_state_in_the_streams_dtype(
    kind: type[Model], dtype: torch.dtype, kernels: str
) -> None:
    model = models.make(kind)
    config = {"threshold": 0.3, "max_consecutive_skips": None, "warmup_steps": 2}
    records = []
    for state_dtype in (None, dtype):
        torch._dynamo.reset()
        call = compiled(model, **config, state_dtype=state_dtype, kernels=kernels)
        generate(call, model)
        (steps,) = summary(call).generations[-1].streams.values()
        records.append([(step.deep, step.error, step.gamma) for step in steps])
    assert records[0] == records[1]


def test_float8_state_takes_a_quarter_of_the_memory_and_a_scale_a_row() -> None:
    model = models.make(models.SingleStream)
    generate(compiled(model, state_dtype=torch.float8_e4m3fn), model, steps=1)
    tensors = sessions_of(model)[-1].streams["0"].tensors
    assert tensors["r.0.0"].dtype == torch.float8_e4m3fn
    assert tensors["r.0.0"].shape == (2, 6, 16)
    assert tensors["r.0.0.scale"].shape == (2, 6, 1)
    assert tensors["p.0.0"].dtype == tensors["h_prev.0"].dtype == torch.float32
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert explain(model).state_bytes == held


def test_float8_state_of_large_values_stays_finite() -> None:
    model = models.make(models.SingleStream)
    with torch.no_grad():
        model.blocks[1].mlp[2].weight.mul_(1e6)
    ours = generate(compiled(model, threshold=math.inf, state_dtype=torch.float8_e4m3fn), model)
    assert all(torch.isfinite(a).all() for a in ours)


def test_float8_state_follows_the_number_of_tokens() -> None:
    model = models.make(models.SingleStream)
    call = compiled(model, threshold=math.inf, state_dtype=torch.float8_e5m2, warmup_steps=2)
    for tokens in (6, 8, 10):
        again = [generate(call, model, tokens=tokens) for _ in range(2)]
        assert all(torch.equal(a, b) for a, b in zip(*again, strict=True))


class PromotingBlock(models.Block):
    """Gives float32 under autocast, whatever it takes."""

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return super().forward(x, time) + torch.zeros(1)


class Promoting(models.SingleStream):
    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.blocks = torch.nn.ModuleList(PromotingBlock(self.width, 2) for _ in self.blocks)


@each_engine
def test_a_stream_that_changes_its_dtype_in_the_probe_is_measured_alike(engine: str) -> None:
    model = models.make(Promoting)
    outputs, gammas = [], []
    for kernels in ("inductor", "triton"):
        torch._dynamo.reset()
        config = {"threshold": math.inf, "max_consecutive_skips": 2, "engine": engine}
        call = compiled(model, **config, kernels=kernels)
        with torch.autocast("cpu", torch.bfloat16):
            outputs.append(generate(call, model))
        (steps,) = summary(call).generations[-1].streams.values()
        gammas.append([step.gamma for step in steps if step.gamma is not None])
    assert gammas[0] == pytest.approx(gammas[1], rel=1e-5)
    assert_near(*outputs)
    found = sessions_of(model)[-1].last_cut.partition.streams[0]
    assert [node.meta["example_value"].dtype for node in (found.x, found.h)] == [torch.bfloat16, torch.float32]


@each_engine
@pytest.mark.parametrize("kernels", ["inductor", "triton"])
def test_autocast_and_weights_that_change_in_place_are_followed(kernels: str, engine: str) -> None:
    model = models.make(models.SingleStream).requires_grad_(True)
    call = compiled(model, threshold=0.0, kernels=kernels, engine=engine)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        for _ in range(2):
            for step in range(3):
                arguments = models.inputs(model, step, STEPS)
                assert torch.equal(call(*arguments), model(*arguments))
            for parameter in model.parameters():
                parameter.mul_(1.3)
            torch.clear_autocast_cache()  # as a user's next autocast does; the model itself would read stale casts


class OtherEstimate(DCTA):
    def estimate(self, x: Any, gamma: Any, anchors: Any, state: Any) -> Any:
        return x.float()


class OtherMeasure(ProbeError):  # noqa: N818
    def measure(self, x: Any, h: Any, state: Any) -> Any:
        return 1000 * super().measure(x, h, state)


class Tallied(ProbeError):  # noqa: N818
    """Counts its steps in a slot of its own."""

    def slots(self) -> tuple[SlotSpec, ...]:
        return (*super().slots(), SlotSpec("tally", per_stream=True, scalar=True))

    def follow(self, x: Any, h: Any, reuse: Any, state: Any) -> dict[str, Any]:
        return {**super().follow(x, h, reuse, state), "tally": state["tally"] + 1}


def test_a_gate_with_a_slot_more_keeps_it_beside_the_fused_operators() -> None:
    model = models.make(models.SingleStream)
    generate(compiled(model, gate=Tallied(0.3), kernels="triton"), model, steps=6)
    assert sessions_of(model)[-1].streams["0"].tensors["tally.0"].item() == 6


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"estimator": OtherEstimate((1.0, 1.5))}, "would not run OtherEstimate.estimate: define weights beside it"),
        ({"gate": OtherMeasure(0.1)}, "would not run OtherMeasure.measure: define error_of beside it"),
        ({"engine": "cond"}, "writes to state in place, which engine='cond' cannot"),
        ({"state_dtype": torch.float64}, "does not take state_dtype=torch.float64"),
    ],
)
def test_what_the_fused_operators_would_leave_out_is_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"kernels='triton' {reason}")):
        DiCacheConfig(kernels="triton", **settings)


@pytest.mark.parametrize("dtype", [torch.float8_e8m0fnu, torch.float8_e4m3fnuz, torch.int32])
def test_a_dtype_that_cannot_hold_state_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="state_dtype: expected one of"):
        DiCacheConfig(state_dtype=dtype)


def test_the_fused_operators_are_refused_where_their_forms_are_missing() -> None:
    with pytest.raises(ValueError, match=r"kernels='triton' needs an estimator with the methods of policy.LinearEst"):
        DiCacheConfig(kernels="triton", estimator=Reuse())
    with pytest.raises(Exception, match=r"kernels='triton' takes streams in .*; this model's is in torch.float64"):
        generate(
            compiled(models.make(models.SingleStream, torch.float64), kernels="triton"),
            models.make(models.SingleStream, torch.float64),
            steps=1,
        )
