"""State in other forms than the stream's own: float8 with scales, and other dtypes under autocast."""

from __future__ import annotations

import math

import pytest
import torch

from dicache_compile import DiCacheConfig, explain, reset, summary
from dicache_compile.calls.session import sessions_of
from tests import models
from tests.contract.test_contract import KINDS, assert_near, compiled, generate
from tests.helpers.cells import cells
from tests.models import Model
from tests.oracles.plain_oracle import PlainDiCache

pytestmark = pytest.mark.shares_traces
STEPS = 10
ENGINES = ("calls", "conditional")
each_engine = pytest.mark.parametrize("engine", ENGINES)


@cells("kind, dtype", KINDS, [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_state_moves_a_reused_step_by_no_more_than_its_rounding(kind: type[Model], dtype: torch.dtype) -> None:
    model = models.make(kind)
    config = {"threshold": math.inf, "max_consecutive_skips": None, "warmup_steps": 2, "gamma_range": (1.0, 1.0)}
    ours = generate(compiled(model, **config, state_dtype=dtype), model)
    exact = generate(compiled(models.make(kind), **config), model)
    (steps,) = summary(model).generations[-1].streams.values()
    assert [step.deep for step in steps] == [True] * 2 + [False] * (STEPS - 2)
    # With gamma at 1 the estimate is x + R1, and R1 is rounded relative to the largest of its row. What the epilogue's
    # norm and its linears of width 16 make of it stays within that share of the result, times the square root of 16.
    for step, (a, b) in enumerate(zip(ours, exact, strict=True)):
        bound = 0.0 if step < 2 else 4 * torch.finfo(dtype).eps * b.abs().max().item()
        assert (a - b).abs().max().item() <= bound, f"step {step}"
    assert any((a - b).abs().max() > 0 for a, b in zip(ours, exact, strict=True))


@cells("kind, dtype", KINDS, [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_state_decides_as_state_in_the_streams_dtype(kind: type[Model], dtype: torch.dtype) -> None:
    model = models.make(kind)
    config = {"threshold": 0.3, "max_consecutive_skips": None, "warmup_steps": 2}
    records = []
    for state_dtype in (None, dtype):
        reset(model)
        call = compiled(model, **config, state_dtype=state_dtype)
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
    call = compiled(model, apart=True, threshold=math.inf, state_dtype=torch.float8_e5m2, warmup_steps=2)
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
    call = compiled(model, threshold=math.inf, max_consecutive_skips=2, engine=engine)
    oracle = PlainDiCache(model, math.inf, max_skips=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert_near(generate(call, model), generate(oracle, model))
    (steps,) = summary(call).generations[-1].streams.values()
    for step, gamma in zip(steps, oracle.gammas, strict=True):
        assert step.gamma == (pytest.approx(gamma, rel=1e-5) if gamma is not None else None)
    found = sessions_of(model)[-1].last_cut.partition.carried[0]
    assert [node.meta["example_value"].dtype for node in (found.x, found.h)] == [torch.bfloat16, torch.float32]


@each_engine
def test_autocast_and_weights_that_change_in_place_are_followed(engine: str) -> None:
    model = models.make(models.SingleStream).requires_grad_(True)
    call = compiled(model, threshold=0.0, engine=engine)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        for _ in range(2):
            for step in range(3):
                arguments = models.inputs(model, step, STEPS)
                assert torch.equal(call(*arguments), model(*arguments))
            for parameter in model.parameters():
                parameter.mul_(1.3)
            torch.clear_autocast_cache()  # as a user's next autocast does; the model itself would read stale casts


@pytest.mark.parametrize("dtype", [torch.float8_e8m0fnu, torch.float8_e4m3fnuz, torch.int32])
def test_a_dtype_that_cannot_hold_state_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="state_dtype: expected one of"):
        DiCacheConfig(state_dtype=dtype)
