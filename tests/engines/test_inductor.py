"""What only compiled pieces can get wrong. Few and small: each compiles with Inductor."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._guards import TracingContext
from torch._subclasses.fake_tensor import FakeTensor

from dicache_compile import DiCacheConfig, dicache_backend, summary
from dicache_compile.errors import UncachedWarning
from dicache_compile.lowering import lower
from tests import models
from tests.contract.test_contract import generate
from tests.contract.test_rows import course, deep_steps, run, run_alone
from tests.helpers.cells import first
from tests.helpers.published import published
from tests.oracles.plain_oracle import PlainDiCache
from tests.oracles.row_oracle import PlainRows
from tests.passes import test_forms

STEPS = 9
DEPTH = 3  # as shallow as a trunk of two lists may be: Inductor's time is that of the blocks


def compiled(model: models.Model, **config: Any) -> Any:
    settings = {"lowering": "inductor", "strict": True, "carried": "residual", **config}  # which the oracles keep
    return torch.compile(model, backend=dicache_backend, fullgraph=True, options=published(**settings).options())


def worst(ours: list[Tensor], exact: list[Tensor]) -> float:
    return max((a.double() - b).abs().max().item() for a, b in zip(ours, exact, strict=True))


def in_float64(model: models.Model) -> list[Tensor]:
    double = models.make(type(model), depth=model.depth).double()
    double.load_state_dict(model.state_dict())
    with torch.no_grad():
        return [
            double(*(a.double() if torch.is_tensor(a) else [c.double() for c in a] for a in arguments))
            for arguments in (models.inputs(model, step, STEPS) for step in range(STEPS))
        ]


@first("engine, dtype", ["calls", "cond"], [torch.float32, torch.bfloat16])
def test_threshold_zero_is_as_near_to_float64_as_plain_torch_compile(engine: str, dtype: torch.dtype) -> None:
    model = models.make(models.Mixed, dtype, depth=DEPTH)
    exact = in_float64(model)
    plain = worst(generate(torch.compile(model), model, steps=STEPS), exact)
    ours = worst(generate(compiled(model, threshold=0.0, engine=engine), model, steps=STEPS), exact)
    # Both round at other places: twice the error, or that of the last rounding alone.
    last_rounding = torch.finfo(dtype).eps * max(e.abs().max().item() for e in exact)
    assert ours <= max(2 * plain, 2 * last_rounding)


@first("kind, engine", [models.Mixed, models.Skips, models.Controlled], ["calls", "cond"])
def test_compiled_pieces_decide_and_estimate_as_the_oracle(kind: type[models.Model], engine: str) -> None:
    model = models.make(kind, depth=DEPTH)
    config = {"threshold": math.inf, "max_consecutive_skips": 2, "warmup_steps": 2}
    ours = generate(compiled(model, **config, engine=engine), model, steps=STEPS)
    oracle = PlainDiCache(model, math.inf, warmup=2, max_skips=2)
    theirs = generate(oracle, model, steps=STEPS)
    (steps,) = summary(model).generations[-1].streams.values()
    assert [step.deep for step in steps] == oracle.deep
    assert oracle.deep.count(False) >= 4
    # Compiled matmuls round elsewhere than eager ones; errors of that size stay of that size.
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=f"step {step}")
    for step, gamma in zip(steps, oracle.gammas, strict=True):
        assert step.gamma == (pytest.approx(gamma, rel=1e-3) if gamma is not None else None)


def test_compiled_rows_decide_and_estimate_as_the_oracle_has_them_alone() -> None:
    model = models.make(models.SingleStream, depth=DEPTH)
    courses = (course((4, 4), 1), course((8,), 21))
    config = {"threshold": math.inf, "max_consecutive_skips": 2, "warmup_steps": 2}
    ours = run(compiled(model, rows="independent", **config), model, courses)
    oracle = PlainRows(lambda: PlainDiCache(model, math.inf, warmup=2, max_skips=2))
    theirs = run_alone(oracle, model, courses)
    assert deep_steps(model, 2) == [oracle.deep(0), oracle.deep(1)]
    assert oracle.deep(0) != oracle.deep(1)
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):  # bounds as above
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=f"step {step}")


@pytest.mark.parametrize("kind", [models.SingleStream, pytest.param(models.Controlled, marks=pytest.mark.exhaustive)])
def test_a_new_anchor_takes_the_place_of_the_older_in_a_compiled_deep_piece(kind: type[models.Model]) -> None:
    """Compiled in-place writes of one input from another go wrong (see `write_back`); the ring has none."""
    from dicache_compile.calls.session import sessions_of

    model = models.make(kind, depth=DEPTH)
    call = compiled(model, threshold=0.0)
    previous: Tensor | None = None
    with torch.no_grad():
        for step in range(4):
            call(*models.inputs(model, step, STEPS))
            state = sessions_of(model)[-1].streams["0"].tensors
            newest, older = (state[f"r.0.{(step + age) % 2}"] for age in (0, 1))
            if previous is not None:
                assert torch.equal(older, previous)
                assert not torch.equal(newest, previous)
            previous = newest.clone()


@pytest.mark.exhaustive
def test_modes_and_inductor_options_are_passed_on() -> None:
    model = models.make(models.SingleStream, depth=DEPTH)
    expected = generate(compiled(model), model, steps=3)
    call = torch.compile(model, backend=dicache_backend, mode="reduce-overhead")
    ours = generate(call, model, steps=3)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()
    options = {**DiCacheConfig().options(), "epilogue_fusion": False}
    generate(torch.compile(model, backend="dicache", options=options), model, steps=3)


def test_a_second_compilation_finds_what_the_first_one_left() -> None:
    from torch._dynamo.utils import counters

    model = models.make(models.Mixed, depth=DEPTH)
    generate(compiled(model), model, steps=1)
    torch._dynamo.reset()
    counters.clear()
    generate(compiled(model), model, steps=1)
    assert counters["aot_autograd"]["autograd_cache_hit"] == 3
    assert counters["aot_autograd"]["autograd_cache_bypass"] == 0


def test_a_second_resolution_compiles_once_more_and_follows_it() -> None:
    model = models.make(models.SingleStream, depth=DEPTH)
    config = {"threshold": math.inf, "max_consecutive_skips": 2}
    call = compiled(model, **config)
    for tokens in (6, 8, 10, 6):
        ours = generate(call, model, steps=STEPS, tokens=tokens)
        theirs = generate(PlainDiCache(model, math.inf, max_skips=2), model, steps=STEPS, tokens=tokens)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_uncached_graphs_go_through_inductor() -> None:
    model = models.make(models.SingleStream, depth=1)
    call = torch.compile(model, backend=dicache_backend)
    with pytest.warns(UncachedWarning, match="only one transformer block"):
        ours = generate(call, model, steps=2)
    for a, b in zip(ours, generate(model, model, steps=2), strict=True):
        torch.testing.assert_close(a, b)


@first("kind, engine", [test_forms.ChannelsFirst, test_forms.Flattened], ["calls", "cond"])
def test_what_lies_in_memory_with_its_channels_first_is_estimated(kind: type[models.Model], engine: str) -> None:
    model = models.make(kind)
    plain = models.make(test_forms.Reshaped if kind is test_forms.Flattened else kind)
    plain.load_state_dict(model.state_dict())
    config: dict[str, Any] = {"threshold": math.inf, "warmup_steps": 2, "max_consecutive_skips": 2}
    ours = generate(compiled(model, **config, engine=engine), model, steps=STEPS)
    theirs = generate(PlainDiCache(plain, math.inf, warmup=2, max_skips=2), model, steps=STEPS)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # Inductor sums in another order


@pytest.mark.exhaustive
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_what_inductor_makes_of_the_pieces_compiles_for_hopper(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    # A process of its own: it puts another driver in Triton's place.
    command = [sys.executable, "-m", "pytest", "--noconftest", "-m", request.config.option.markexpr]
    caches = {"TRITON_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    done = subprocess.run(
        [*command, "tests/engines/inductor_triton.py"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", **caches},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_what_a_piece_is_compiled_with_is_of_the_fake_mode_that_dynamo_has_for_backends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    foreign: list[bool] = []

    def noted(gm: torch.fx.GraphModule, examples: list[Any], settings: Any) -> Any:
        mode = TracingContext.get().fake_mode
        foreign.extend(one.fake_mode is not mode for one in examples if isinstance(one, FakeTensor))
        return gm.forward

    monkeypatch.setattr(lower, "lower_graph", noted)
    model = models.make(models.Mixed, depth=DEPTH)
    generate(compiled(model, threshold=0.0), model, steps=1)
    assert foreign
    assert not any(foreign)
